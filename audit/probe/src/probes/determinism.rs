//! Facts by which a program could tell one machine, or one run, from another.

use std::env;
use std::path::Path;

use anchorhold_probe::verdict::{Finding, name_of};

use crate::calls;
use crate::probe::Probe;
use crate::probes::network;

/// The facts of this layer.
pub const PROBES: &[Probe] = &[
    fact("det.hostname", "Host name", |_| file("/proc/sys/kernel/hostname")),
    fact("det.domain", "NIS domain name", |_| file("/proc/sys/kernel/domainname")),
    fact("det.ids", "User, group and further groups", |_| {
        let mut groups = [0_u32; 256];
        let count = calls::raw(libc::SYS_getgroups, &[groups.len(), groups.as_mut_ptr() as usize]).unwrap_or(0);
        Finding::info(format!("{} {} {:?}", calls::geteuid(), calls::getegid(), &groups[..count as usize]))
    }),
    fact("det.user", "The user's line of /etc/passwd", |_| {
        let uid = calls::geteuid().to_string();
        let text = calls::contents("/etc/passwd", 1 << 20).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find(|line| line.split(':').nth(2) == Some(&uid));
        Finding::info(line.unwrap_or("none"))
    }),
    fact("det.kernel", "Kernel release, version and machine", |_| {
        let (release, machine) = calls::uname();
        let version = text("/proc/version");
        Finding::info(format!("{release} {machine}; {version}"))
    }),
    fact("det.cpus", "Processors: how many, and which may be used", |_| {
        let mut mask = [0_u64; 128];
        let length =
            calls::raw(libc::SYS_sched_getaffinity, &[0, size_of_val(&mask), mask.as_mut_ptr() as usize]).unwrap_or(0);
        let usable: u32 = mask[..length as usize / 8].iter().map(|word| word.count_ones()).sum();
        Finding::info(format!("{usable} usable; online {}", text("/sys/devices/system/cpu/online")))
    }),
    fact("det.cpuinfo", "Model and flags of the processor", |_| {
        let all = text("/proc/cpuinfo");
        let line = |name: &str| {
            all.lines()
                .find_map(|line| Some(line.strip_prefix(name)?.split_once(':')?.1.trim()))
                .unwrap_or("?")
                .to_owned()
        };
        Finding::info(format!("{}; {}", line("model name"), line("flags")))
    }),
    fact("det.memory", "Memory of the machine", |_| {
        let all = text("/proc/meminfo");
        // struct sysinfo: uptime, three loads, then total memory.
        let mut words = [0_u64; 16];
        let _ = calls::raw(libc::SYS_sysinfo, &[words.as_mut_ptr() as usize]);
        Finding::info(format!("{}; sysinfo {}", all.lines().next().unwrap_or("?"), words[4]))
    }),
    fact("det.boot_id", "Number of this boot", |_| file("/proc/sys/kernel/random/boot_id")),
    fact("det.machine_id", "Number of the machine", |_| file("/etc/machine-id")),
    fact("det.uptime", "Time since the machine was started", |_| {
        let mut words = [0_i64; 16];
        let _ = calls::raw(libc::SYS_sysinfo, &[words.as_mut_ptr() as usize]);
        Finding::info(format!("{}; sysinfo {}", text("/proc/uptime"), words[0]))
    }),
    fact("det.load", "Load of the machine", |_| file("/proc/loadavg")),
    fact("det.btime", "When the machine was started", |_| {
        let all = text("/proc/stat");
        Finding::info(all.lines().find(|line| line.starts_with("btime")).unwrap_or("?"))
    }),
    fact("det.cmdline", "Command line of the kernel", |_| file("/proc/cmdline")),
    fact("det.macs", "Hardware addresses", |_| Finding::info(network::interfaces().join(", "))),
    fact("det.timezone", "Time zone", |_| {
        let link = std::fs::read_link("/etc/localtime").map(|path| path.display().to_string());
        Finding::info(format!(
            "TZ {:?}; /etc/localtime {}",
            env::var_os("TZ"),
            link.unwrap_or_else(|_| "none".to_owned())
        ))
    }),
    fact("det.locale", "Locale", |_| {
        let mut set: Vec<_> = env::vars_os()
            .filter(|(name, _)| name.to_string_lossy().starts_with("LC_") || name == "LANG" || name == "LANGUAGE")
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        set.sort();
        Finding::info(set.join(" "))
    }),
    fact("det.umask", "Mask of new files' modes", |_| {
        number(calls::raw(libc::SYS_umask, &[0o22]).map(|mask| format!("{mask:03o}")))
    }),
    fact("det.argv0", "The program's own name", |_| {
        Finding::info(env::args_os().next().unwrap_or_default().display().to_string())
    }),
    fact("det.exe", "Where the program lies", |_| match std::fs::read_link("/proc/self/exe") {
        Ok(path) => Finding::info(path.display().to_string()),
        Err(error) => Finding::info(error.kind().to_string()),
    }),
    fact("det.path", "The folder it starts in", |_| match env::current_dir() {
        Ok(path) => Finding::info(path.display().to_string()),
        Err(error) => Finding::info(error.kind().to_string()),
    }),
    fact("det.statfs", "Size, free space and inodes of the file systems", |world| {
        let scratch = world.scratch.clone().unwrap_or_else(|| "/tmp".into());
        let one = |path: &Path| {
            // struct statfs: type, block size, blocks, free, available, files, free files.
            let mut words = [0_u64; 16];
            let name = calls::c_path(path);
            match calls::raw(libc::SYS_statfs, &[name.as_ptr() as usize, words.as_mut_ptr() as usize]) {
                Ok(_) => format!(
                    "{} type {:x} blocks {} free {} files {} free {}",
                    path.display(),
                    words[0],
                    words[2],
                    words[3],
                    words[5],
                    words[6]
                ),
                Err(errno) => format!("{} {}", path.display(), name_of(errno)),
            }
        };
        Finding::info([one(Path::new("/")), one(&scratch)].join("; "))
    }),
    fact("det.inode", "Number of a new file", |world| {
        use std::os::unix::fs::MetadataExt;
        let folder = world.scratch.clone().unwrap_or_else(|| "/tmp".into());
        let path = folder.join("anchorhold-probe-inode");
        let made = std::fs::File::create_new(&path).and_then(|file| file.metadata());
        let _ = made.is_ok() && std::fs::remove_file(&path).is_ok();
        match made {
            Ok(data) => Finding::info(format!("inode {} of device {}", data.ino(), data.dev())),
            Err(error) => Finding::info(error.kind().to_string()),
        }
    }),
    fact("det.readdir", "Order of a folder's entries", |world| {
        let folder = world.scratch.clone().unwrap_or_else(|| "/tmp".into()).join("anchorhold-probe-order");
        let order = || {
            std::fs::create_dir(&folder)?;
            for name in ["delta", "alpha", "echo", "bravo", "foxtrot", "charlie"] {
                std::fs::File::create_new(folder.join(name))?;
            }
            std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name().display().to_string())).collect()
        };
        let order: std::io::Result<Vec<String>> = order();
        let _ = std::fs::remove_dir_all(&folder);
        match order {
            Ok(names) => Finding::info(names.join(" ")),
            Err(error) => Finding::info(error.kind().to_string()),
        }
    }),
    fact("det.aslr", "Whether addresses are random", |_| {
        let personality = calls::raw(libc::SYS_personality, &[0xffff_ffff]).unwrap_or(0);
        let switched = text("/proc/sys/kernel/randomize_va_space");
        let own = if personality & 0x004_0000 == 0 { "on" } else { "off" };
        let maps = text("/proc/self/maps");
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).and_then(|line| line.split('-').next());
        Finding::info(format!("{own} for this process; {switched} for all; stack at {}", stack.unwrap_or("?")))
    }),
    fact("det.hugepages", "Huge pages", |_| Finding::info(text("/sys/kernel/mm/transparent_hugepage/enabled"))),
    fact("det.clock", "Namespace and offsets of the clocks", |_| {
        let namespace = std::fs::read_link("/proc/self/ns/time").map(|path| path.display().to_string());
        let clock = |id: libc::clockid_t| {
            let mut time = [0_i64; 2];
            let _ = calls::raw(libc::SYS_clock_gettime, &[id as usize, time.as_mut_ptr() as usize]);
            time[0]
        };
        Finding::info(format!(
            "{}; {}; boot time {}",
            namespace.unwrap_or_else(|_| "?".to_owned()),
            text("/proc/self/timens_offsets").split_whitespace().collect::<Vec<_>>().join(" "),
            clock(libc::CLOCK_BOOTTIME)
        ))
    }),
    fact("det.cgroup", "Path of the control group", |_| Finding::info(text("/proc/self/cgroup").replace('\n', " "))),
    fact("det.pid", "Numbers of the first process and its parent", |_| {
        // This is a child of the battery.
        let battery = calls::raw(libc::SYS_getppid, &[]).unwrap_or(0);
        let stat = text(&format!("/proc/{battery}/stat"));
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1).map(str::to_owned));
        Finding::info(format!("{battery}, parent {}", parent.unwrap_or_else(|| "?".to_owned())))
    }),
    fact("det.auxiliary", "What the kernel tells a program at its start", |_| {
        let words = calls::contents("/proc/self/auxv", 4096).unwrap_or_default();
        Finding::info(auxiliary(&words))
    }),
];

/// A fact of this layer.
const fn fact(id: &'static str, title: &'static str, run: fn(&anchorhold_probe::world::World) -> Finding) -> Probe {
    Probe::fact(id, title, "Reads it.", "If it differs between machines or runs, results can differ by it.", run)
}

/// What a short file says.
fn text(path: &str) -> String {
    match calls::contents(path, 65536) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(errno) => name_of(errno),
    }
}

fn file(path: &str) -> Finding {
    Finding::info(text(path))
}

fn number(result: Result<String, i32>) -> Finding {
    Finding::info(result.unwrap_or_else(name_of))
}

/// The entries of the auxiliary vector that tell machines apart, getauxval(3): page size, hardware capabilities, clock
/// tick.
fn auxiliary(bytes: &[u8]) -> String {
    const NAMES: &[(u64, &str)] = &[(6, "page size"), (16, "capabilities"), (17, "clock tick"), (26, "capabilities 2")];
    let words: Vec<u64> =
        bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes"))).collect();
    let entries = words.chunks_exact(2).filter_map(|pair| {
        let (_, name) = NAMES.iter().find(|(number, _)| *number == pair[0])?;
        Some(format!("{name} {:x}", pair[1]))
    });
    entries.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_auxiliary_vector_is_read() {
        let words = [6_u64, 4096, 25, 0xdead, 16, 0xbfeb, 0, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(auxiliary(&bytes), "page size 1000, capabilities bfeb");
        assert_eq!(auxiliary(&bytes[..7]), "");
    }
}
