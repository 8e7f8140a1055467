//! Device nodes: what stands in /dev, and whether more can be made.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anchorhold_probe::verdict::{Finding, Verdict, name_of};
use anchorhold_probe::world::World;

use crate::calls::{self, LowMemory};
use crate::files::{self, Scratch};
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe::fact(
        "dev.list",
        "What stands in /dev",
        "Lists /dev.",
        "Programs look for devices and choose their way by what they find.",
        |_| Finding::info(files::names("/dev").map_or_else(name_of, |names| names.join(" "))),
    ),
    forbidden("dev.forbidden.memory", "The machine's memory and messages can be opened", |_| opened(MEMORY)),
    forbidden("dev.forbidden.disk", "The machine's disks can be opened", disks),
    Probe {
        controls: &[Control::HostRoot, Control::Devices],
        ..forbidden("dev.forbidden.kernel", "Devices that drive parts of the kernel can be opened", |_| opened(KERNEL))
    },
    forbidden("dev.forbidden.console", "The machine's consoles can be opened", |_| opened(CONSOLES)),
    forbidden("dev.forbidden.hardware", "The machine's hardware can be opened", |_| opened(HARDWARE)),
    Probe {
        severity: Severity::Medium,
        tries: "Looks for device nodes in /dev beyond the usual ten, and opens them.",
        meaning: "Every device is another part of the kernel that a build can talk to, and that differs from host to host.",
        ..forbidden("dev.unexpected", "Other devices can be opened", unexpected)
    },
    Probe::fact(
        "dev.kvm",
        "Whether virtual machines can be started",
        "Opens /dev/kvm and asks for the version of its interface.",
        "It must be there if it was granted, and must not be if not.",
        |world| {
            let granted = if world.kvm_granted { "granted" } else { "not granted" };
            Finding::info(match kvm() {
                Ok(version) => format!("{granted}; version {version}"),
                Err(errno) => format!("{granted}; {}", name_of(errno)),
            })
        },
    ),
    Probe {
        id: "dev.kvm.ungranted",
        title: "Virtual machines can be started without a grant",
        severity: Severity::Medium,
        reference: "Documentation/virt/kvm/api.rst",
        tries: "Opens /dev/kvm, if it was not granted.",
        safe: "ENOENT",
        meaning: "KVM is a large part of the kernel, and a way to hide what runs.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run: |world| Finding::of(kvm()).granted(world.kvm_granted),
    },
    Probe {
        id: "dev.mknod.chr",
        title: "Character devices can be made and used",
        severity: Severity::Critical,
        reference: "mknod(2)",
        tries: "Makes the node of /dev/null in a folder of its own, and opens it.",
        safe: "EPERM",
        meaning: "A node for the machine's memory or disks is the machine.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |world| made(world, libc::S_IFCHR, libc::makedev(1, 3), &native_mknod),
    },
    Probe {
        id: "dev.mknod.blk",
        title: "Block devices can be made and used",
        severity: Severity::Critical,
        reference: "mknod(2)",
        tries: "Makes the nodes of the disk that holds a mount and of the first loop device in a folder of its own, and opens them for \
                reading.",
        safe: "EPERM",
        meaning: "Whoever opens the disk reads and writes every file on it, past all permissions.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: true,
        run: |world| {
            Finding::worst(
                [("disk", disk_number()), ("loop device", libc::makedev(7, 0))]
                    .map(|(name, number)| (name.to_owned(), made(world, libc::S_IFBLK, number, &native_mknod))),
            )
        },
    },
    whiteout("dev.mknod.whiteout", "Whiteouts can be made by mknod", |world| whited_out(world, &native_mknod)),
    whiteout("dev.mknod.whiteout.at", "Whiteouts can be made by mknodat", |world| {
        whited_out(world, &|path, mode, device| {
            let path = calls::c_path(path);
            calls::raw(libc::SYS_mknodat, &[HERE, path.as_ptr() as usize, mode as usize, device as usize])
        })
    }),
    whiteout("dev.mknod.whiteout.int80", "Whiteouts can be made by the i386 mknod", |world| {
        whited_out(world, &|path, mode, device| {
            let path = LowMemory::holding(calls::c_path(path).as_bytes_with_nul())?;
            // mknod(2) of asm/unistd_32.h.
            calls::int80(14, [path.pointer(), mode, device as u32, 0, 0])
        })
    }),
    Probe {
        tries: "The same by int 0x80.",
        ..whiteout("dev.whiteout.rename.int80", "Whiteouts can be made by the i386 renameat2", |world| {
            whited_out(world, &|path, _, _| {
                let (old, new) = renamed(path)?;
                let (old, new) =
                    (LowMemory::holding(old.as_bytes_with_nul())?, LowMemory::holding(new.as_bytes_with_nul())?);
                // renameat2(2) of asm/unistd_32.h.
                calls::int80(353, [HERE as u32, old.pointer(), HERE as u32, new.pointer(), LEAVE_WHITEOUT as u32])
            })
        })
    },
    Probe {
        tries: "Renames a file of its own and leaves a whiteout (a character device 0:0) at the old name.",
        ..whiteout("dev.whiteout.rename", "Whiteouts can be made by renameat2", |world| {
            whited_out(world, &|path, _, _| {
                let (old, new) = renamed(path)?;
                calls::raw(
                    libc::SYS_renameat2,
                    &[HERE, old.as_ptr() as usize, HERE, new.as_ptr() as usize, LEAVE_WHITEOUT],
                )
            })
        })
    },
    Probe {
        id: "dev.write",
        title: "Files can be made in /dev",
        severity: Severity::Low,
        reference: "",
        tries: "Makes and removes a file in /dev.",
        safe: "EROFS or EACCES",
        meaning: "A program that expects a device may be given a file, and data is kept where nobody looks.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run: |_| {
            let path = format!("/dev/.anchorhold-probe-{}", std::process::id());
            let file = calls::open(&path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o600);
            if let Ok(file) = file {
                calls::close(file);
                let _ = std::fs::remove_file(&path);
            }
            Finding::of(file.map(i64::from))
        },
    },
    Probe::fact(
        "dev.shm.size",
        "How much fits into /dev/shm",
        "Asks for the size of its file system.",
        "Without a bound a build can fill the machine's memory.",
        |_| {
            Finding::info(match files::file_system("/dev/shm") {
                Ok(system) if system.size == 0 => "no bound".to_owned(),
                Ok(system) => format!("{} MiB", system.size >> 20),
                Err(errno) => name_of(errno),
            })
        },
    ),
    Probe {
        id: "dev.pts.private",
        title: "Terminals of the host can be seen",
        severity: Severity::Medium,
        reference: "devpts, Documentation/filesystems/devpts.rst",
        tries: "Looks in /dev/pts for terminals that are not its own.",
        safe: "an instance of its own, without others' terminals",
        meaning: "Terminals of users of the host can be opened as far as their modes allow: written to, and sometimes read from.",
        controls: &[Control::Devices],
        order: Order::Any,
        root: false,
        run: terminals,
    },
];

const HERE: usize = libc::AT_FDCWD as usize;
/// `RENAME_WHITEOUT`, linux/fs.h.
const LEAVE_WHITEOUT: usize = 4;

/// Names in /dev, in one text for `--explain`.
const MEMORY: &str = "mem kmem port kmsg core oldmem mcelog nvram";
const KERNEL: &str = "fuse cuse net/tun loop-control btrfs-control autofs device-mapper mapper/control vhost-net vhost-vsock \
                      vhost-vdpa vsock vfio/vfio uinput uhid userfaultfd kfd ppp rfkill ublk-control \
                      ecryptfs binder binderfs/binder-control infiniband/rdma_cm iommu";
const CONSOLES: &str = "console tty0 tty1 ttyS0 ttyS1 hvc0 vcs vcs1 vcsa1 vcsu1 fb0";
const HARDWARE: &str = "hwrng cpu_dma_latency cpu/0/msr cpu/0/cpuid dri/card0 dri/renderD128 input/event0 input/mice snd/control snd/seq \
                        snd/timer rtc0 hpet sev sgx_enclave sgx_provision tpm0 tpmrm0 vga_arbiter i2c-0 bus/usb/001/001 nvidia0 \
                        nvidiactl sg0 ptp0 gpiochip0 udmabuf dma_heap/system";

/// What every sandbox has in /dev.
const USUAL: [&str; 8] = ["full", "null", "random", "tty", "urandom", "zero", "ptmx", "console"];

const fn forbidden(id: &'static str, title: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::Critical,
        reference: "security-probes 3.3",
        tries: "Opens devices by their usual names for reading, and reads nothing.",
        safe: "ENOENT; EACCES is weaker, as then only the user id protects them",
        meaning: "Devices reach the machine past all namespaces: its memory, its disks, its screen, and drivers with errors of their own.",
        controls: &[Control::HostRoot],
        order: Order::Any,
        root: false,
        run,
    }
}

const fn whiteout(id: &'static str, title: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::Medium,
        reference: "mknod(2), Linux 5.8: whiteouts need no capability",
        tries: "Makes a whiteout (a character device 0:0) in a folder of its own.",
        safe: "EPERM",
        meaning: "No archive of a store can hold device nodes; and an overlay mounted over the output takes the whiteout as the removal of \
                  a file below.",
        controls: &[Control::Seccomp, Control::Host],
        order: Order::Any,
        root: false,
        run,
    }
}

/// Opens devices by name. One that is there and refused says so.
fn opened(names: &str) -> Finding {
    let found = names.split_whitespace().map(|name| (name.to_owned(), opened_one(&Path::new("/dev").join(name))));
    let there: Vec<(String, Finding)> = found.filter(|(_, finding)| finding.verdict != Verdict::Absent).collect();
    if there.is_empty() { Finding::absent("none is there") } else { Finding::worst(there).shortened() }
}

/// Opens one for reading, or where that is not asked for alone, for writing. A path that is no device does not count.
fn opened_one(path: &Path) -> Finding {
    let Ok(found) = std::fs::metadata(path) else { return Finding::absent("") };
    if !found.file_type().is_char_device() && !found.file_type().is_block_device() {
        return Finding::absent("no device");
    }
    Finding::of(files::opens(path, libc::O_RDONLY).or_else(|_| files::opens(path, libc::O_WRONLY)))
}

fn disks(_: &World) -> Finding {
    let mut found = Vec::new();
    files::walk(&["/dev"], |path, status| {
        if status.file_type().is_block_device() && found.len() < 100 {
            found.push((path.display().to_string(), opened_one(path)));
        }
        files::Descend::Yes
    });
    if found.is_empty() { Finding::absent("no block device in /dev") } else { Finding::worst(found).shortened() }
}

fn unexpected(_: &World) -> Finding {
    let known: BTreeSet<&str> =
        [MEMORY, KERNEL, CONSOLES, HARDWARE].into_iter().flat_map(str::split_whitespace).collect();
    // Opening a watchdog starts it, and closing it may restart the machine; opening a console makes it. Of terminals it is enough to
    // have tried the first.
    let left_alone = |name: &str| ["watchdog", "tty", "vcs", "pts/"].iter().any(|start| name.starts_with(start));
    let mut found = Vec::new();
    files::walk(&["/dev"], |path, status| {
        let name = path.strip_prefix("/dev").unwrap_or(path).display().to_string();
        let other = !known.contains(name.as_str()) && !USUAL.contains(&name.as_str()) && name != "kvm";
        if status.file_type().is_char_device() && other && !left_alone(&name) {
            found.push((name, opened_one(path)));
        }
        files::Descend::Yes
    });
    if found.is_empty() { Finding::absent("nothing but the usual ones") } else { Finding::worst(found).shortened() }
}

fn kvm() -> Result<i64, i32> {
    const GET_API_VERSION: usize = 0xae00;
    let file = calls::open("/dev/kvm", libc::O_RDWR, 0)?;
    calls::raw(libc::SYS_ioctl, &[file as usize, GET_API_VERSION, 0])
}

fn native_mknod(path: &Path, mode: u32, device: u64) -> Result<i64, i32> {
    let path = calls::c_path(path);
    calls::raw(libc::SYS_mknod, &[path.as_ptr() as usize, mode as usize, device as usize])
}

/// The number of a disk that is mounted, or else of the first SCSI disk.
fn disk_number() -> u64 {
    let mounted = files::mounts().unwrap_or_default().iter().find_map(|mount| {
        let (major, minor) = mount.device.split_once(':')?;
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        (major != 0).then(|| libc::makedev(major, minor))
    });
    mounted.unwrap_or_else(|| libc::makedev(8, 0))
}

fn made(world: &World, kind: u32, device: u64, mknod: &dyn Fn(&Path, u32, u64) -> Result<i64, i32>) -> Finding {
    let scratch = match Scratch::new(world) {
        Ok(scratch) => scratch,
        Err(finding) => return finding,
    };
    let path = scratch.path("device");
    // The kernel's form of a number, not that of old programs.
    let (major, minor) = (u64::from(libc::major(device)), u64::from(libc::minor(device)));
    let number = minor & 0xff | major << 8 | (minor & !0xff) << 12;
    if let Err(errno) = mknod(&path, kind | 0o600, number) {
        return Finding::refused(errno);
    }
    match files::opens(&path, libc::O_RDONLY) {
        Ok(_) => Finding::reached(format!("{major}:{minor}")),
        // The number may have no driver; the node is honoured all the same.
        Err(libc::ENXIO | libc::ENODEV) => Finding::reached(format!("{major}:{minor}, which has no driver")),
        Err(errno) => Finding::refused(errno).with("it can be made, but not opened"),
    }
}

/// Makes a file: its name, and the one that it is to have.
fn renamed(path: &Path) -> Result<(CString, CString), i32> {
    std::fs::write(path, b"probe\n").map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
    Ok((calls::c_path(path), calls::c_path(path.with_extension("renamed"))))
}

fn whited_out(world: &World, make: &dyn Fn(&Path, u32, u64) -> Result<i64, i32>) -> Finding {
    let scratch = match Scratch::new(world) {
        Ok(scratch) => scratch,
        Err(finding) => return finding,
    };
    let path = scratch.path("whiteout");
    let result = make(&path, libc::S_IFCHR, 0);
    match (result, files::status(&path)) {
        (_, Ok(found)) if found.file_type().is_char_device() && found.rdev() == 0 => Finding::reached(""),
        (Err(errno), _) => Finding::refused(errno),
        (Ok(_), _) => Finding::inconclusive("the call succeeded, but there is no whiteout"),
    }
}

fn terminals(_: &World) -> Finding {
    let names = match files::names("/dev/pts") {
        Ok(names) => names,
        Err(errno) => return Finding::refused(errno),
    };
    // Those of standard input, output and error count as its own, whoever made them.
    let own: Vec<(u64, u64)> = (0..3)
        .filter_map(|descriptor| std::fs::metadata(format!("/proc/self/fd/{descriptor}")).ok())
        .map(|found| (found.dev(), found.rdev()))
        .collect();
    let others: Vec<String> = names
        .into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|name| {
            std::fs::metadata(format!("/dev/pts/{name}")).is_ok_and(|found| !own.contains(&(found.dev(), found.rdev())))
        })
        .collect();
    if others.is_empty() {
        Finding::held("no other terminal")
    } else {
        Finding::reached(format!("terminals {}", others.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_device_does_not_count() {
        let world = World { scratch: Some(std::env::temp_dir()), ..World::default() };
        let scratch = Scratch::new(&world).expect("a folder");
        let file = scratch.file("mem").expect("a file");
        assert_eq!(opened_one(&file).verdict, Verdict::Absent);
        assert_eq!(opened_one(Path::new("/dev/null")).verdict, Verdict::Reached);
    }
}
