//! Namespaces: those that are shared with the starter, and those that can be made inside.

use anchorhold_probe::verdict::{Finding, name_of};
use anchorhold_probe::world::World;

use crate::calls;
use crate::probe::{Control, Order, Probe, Severity};
use crate::probes::sockets;

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "ns.shared",
        title: "Namespaces are the starter's own",
        severity: Severity::High,
        reference: "namespaces(7); nix-sandbox.md H29",
        tries: "Compares its namespaces with the starter's, kind by kind. The time namespace is not counted.",
        safe: "every kind differs",
        meaning: "A layer that the sandbox seems to have is silently missing: what lies in that namespace is the host's.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: shared,
    },
    user("ns.user.unshare", "A user namespace can be made by unshare(2)", "Unshares its user namespace.", |world| {
        Finding::of(calls::unshare(libc::CLONE_NEWUSER)).granted(world.namespaces_granted)
    }),
    user(
        "ns.user.clone",
        "A user namespace can be made by clone(2)",
        "Makes a child in a new user namespace by clone(2).",
        |world| {
            let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
            Finding::of(forked(|| calls::raw(libc::SYS_clone, &[flags as usize]))).granted(world.namespaces_granted)
        },
    ),
    user(
        "ns.user.clone3",
        "A user namespace can be made by clone3(2)",
        "Makes a child in a new user namespace by clone3(2), whose flags lie behind a pointer.",
        |world| {
            // struct clone_args: flags first, the exit signal fifth.
            let arguments = [libc::CLONE_NEWUSER as u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
            let size = size_of_val(&arguments);
            Finding::of(forked(|| calls::raw(libc::SYS_clone3, &[arguments.as_ptr() as usize, size])))
                .granted(world.namespaces_granted)
        },
    ),
    user(
        "ns.user.int80",
        "A user namespace can be made by the 32-bit entry",
        "Unshares its user namespace by the i386 call, and makes a child in a new one by the i386 clone.",
        |world| {
            let flags = (libc::CLONE_NEWUSER | libc::SIGCHLD) as u32;
            Finding::worst([
                ("clone".to_owned(), Finding::of(forked(|| calls::int80(120, [flags, 0, 0, 0, 0])))),
                ("unshare".to_owned(), Finding::of(calls::int80(310, [libc::CLONE_NEWUSER as u32, 0, 0, 0, 0]))),
            ])
            .granted(world.namespaces_granted)
        },
    ),
    given(
        "ns.user.mount",
        "In a user namespace of its own it mounts a file system",
        "In a new user and mount namespace, mounts a tmpfs.",
        "CVE-2022-0185",
        |world| {
            Finding::of(nested(libc::CLONE_NEWNS).and_then(|_| calls::mount("tmpfs", "/", "tmpfs", 0, "size=64k")))
                .granted(world.namespaces_granted)
        },
    ),
    given(
        "ns.user.overlay",
        "In a user namespace of its own it mounts an overlay",
        "In a new user and mount namespace, mounts an overlay over folders of a tmpfs.",
        "CVE-2023-0386, CVE-2021-3493",
        |world| Finding::of(nested(libc::CLONE_NEWNS).and_then(|_| overlay(world))).granted(world.namespaces_granted),
    ),
    given(
        "ns.user.net",
        "In a user namespace of its own it administers a network",
        "Makes a new user and network namespace.",
        "CVE-2022-1015",
        |_| Finding::of(nested(libc::CLONE_NEWNET)),
    ),
    given(
        "ns.user.nft",
        "In a user namespace of its own it administers packet filters",
        "In a new user and network namespace, asks nf_tables for its generation, which needs CAP_NET_ADMIN there.",
        "CVE-2024-1086, CVE-2023-32233",
        |_| Finding::of(nested(libc::CLONE_NEWNET).and_then(|_| generation())),
    ),
    given(
        "ns.user.packet",
        "In a user namespace of its own it makes link-layer sockets",
        "In a new user and network namespace, makes a socket of the family AF_PACKET.",
        "CVE-2020-14386, CVE-2017-7308",
        |_| {
            Finding::of(nested(libc::CLONE_NEWNET).and_then(|_| sockets::made(libc::AF_PACKET, libc::SOCK_RAW, 0x0300)))
        },
    ),
    Probe {
        id: "ns.direct",
        title: "Namespaces can be made without a user namespace",
        severity: Severity::High,
        reference: "unshare(2), CAP_SYS_ADMIN",
        tries: "Unshares each of the mount, network, pid, IPC, UTS and cgroup namespaces.",
        safe: "EPERM",
        meaning: "The payload kept CAP_SYS_ADMIN, with which most walls of a sandbox are taken down again.",
        controls: &[Control::HostRoot],
        order: Order::Last,
        root: true,
        run: |_| {
            Finding::worst(
                [
                    ("mount", libc::CLONE_NEWNS),
                    ("network", libc::CLONE_NEWNET),
                    ("pid", libc::CLONE_NEWPID),
                    ("IPC", libc::CLONE_NEWIPC),
                    ("UTS", libc::CLONE_NEWUTS),
                    ("cgroup", libc::CLONE_NEWCGROUP),
                ]
                .map(|(name, flag)| (name.to_owned(), Finding::of(calls::unshare(flag)))),
            )
        },
    },
    Probe {
        id: "ns.depth",
        title: "User namespaces nest",
        severity: Severity::Low,
        reference: "user_namespaces(7): at most 32",
        tries: "Makes user namespaces in each other until the kernel refuses.",
        safe: "none at all, or what the policy says",
        meaning: "Each level is a new set of capabilities over what is made in it.",
        controls: &[Control::Host],
        order: Order::Last,
        root: false,
        run: |world| {
            let mut depth = 0;
            let end = loop {
                match nested(0) {
                    Ok(_) if depth < 40 => depth += 1,
                    Ok(_) => break 0,
                    Err(errno) => break errno,
                }
            };
            match depth {
                0 => Finding::refused(end),
                depth => {
                    Finding::reached(format!("{depth} levels, then {}", name_of(end))).granted(world.namespaces_granted)
                }
            }
        },
    },
];

/// The probe of one way to make a user namespace.
const fn user(id: &'static str, title: &'static str, tries: &'static str, run: fn(&World) -> Finding) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::High,
        reference: "user_namespaces(7); CVE-2021-41133 (clone3)",
        tries,
        safe: "ENOSPC or EPERM; where the policy allows them, granted",
        meaning: "In a user namespace of its own a build has every capability over what it makes there: mounts, networks, \
                  packet filters, the parts of the kernel in which most escalations of late were found.",
        controls: &[Control::UserNamespaces, Control::Host],
        order: Order::Last,
        root: false,
        run,
    }
}

/// The probe of one thing that a user namespace gives.
const fn given(
    id: &'static str,
    title: &'static str,
    tries: &'static str,
    reference: &'static str,
    run: fn(&World) -> Finding,
) -> Probe {
    Probe {
        id,
        title,
        severity: Severity::High,
        reference,
        tries,
        safe: "refused; where the policy allows it, granted",
        meaning: "This part of the kernel is for root alone on a host; in a user namespace everybody reaches it, and its \
                  mistakes have made users root.",
        controls: &[Control::UserNamespaces, Control::Host],
        order: Order::Last,
        root: false,
        run,
    }
}

fn shared(world: &World) -> Finding {
    if world.namespaces.is_empty() {
        let first: Vec<&str> = FIRST.iter().map(|(name, _)| *name).filter(|name| is_starters(world, name)).collect();
        return match first.is_empty() {
            true => {
                Finding::inconclusive("the starter's namespaces were not told, and these are not the machine's first")
            }
            false => Finding::reached(format!("{}: the machine's first", first.join(", "))),
        };
    }
    Finding::worst(world.namespaces.keys().filter(|name| !name.starts_with("time")).map(|name| {
        let finding = if is_starters(world, name) { Finding::reached("") } else { Finding::absent("another") };
        (name.clone(), finding)
    }))
}

/// The numbers of the namespaces that a machine begins with, linux/proc_ns.h.
const FIRST: &[(&str, u32)] =
    &[("ipc", 0xefff_ffff), ("uts", 0xefff_fffe), ("user", 0xefff_fffd), ("pid", 0xefff_fffc), ("cgroup", 0xefff_fffb)];

/// Whether a namespace is the starter's own, or, where that was not told, the machine's first of its kind.
pub fn is_starters(world: &World, name: &str) -> bool {
    let Ok(own) = std::fs::read_link(format!("/proc/self/ns/{name}")) else { return false };
    match world.namespaces.get(name) {
        Some(outer) => own.as_os_str() == outer.as_str(),
        None => FIRST
            .iter()
            .any(|(first, number)| *first == name && own.as_os_str() == format!("{name}:[{number}]").as_str()),
    }
}

/// A call that returns twice, as fork(2) does: its child ends at once, and is waited for.
fn forked(call: impl FnOnce() -> Result<i64, i32>) -> Result<i64, i32> {
    let child = call()?;
    if child == 0 {
        calls::exit(0);
    }
    calls::wait(child as i32).map(i64::from)
}

/// A user namespace of its own in which it is root, and others by these flags with it.
pub fn nested(flags: i32) -> Result<i64, i32> {
    let (uid, gid) = (calls::geteuid(), calls::getegid());
    calls::unshare(libc::CLONE_NEWUSER | flags)?;
    // Where there is no /proc, or it is read-only, capabilities are there without names for the ids.
    let _ = calls::overwrite("/proc/self/setgroups", "deny");
    let _ = calls::overwrite("/proc/self/uid_map", &format!("0 {uid} 1"));
    let _ = calls::overwrite("/proc/self/gid_map", &format!("0 {gid} 1"));
    Ok(0)
}

/// A folder that something can be mounted over.
pub fn folder(world: &World) -> String {
    let scratch = world.scratch.as_ref().map(|path| path.to_string_lossy().into_owned());
    scratch
        .into_iter()
        .chain(["/tmp", "/var/tmp", "/dev/shm", "/dev", "/proc"].map(str::to_owned))
        .find(|path| std::fs::metadata(path).is_ok_and(|data| data.is_dir()))
        .unwrap_or_else(|| "/".to_owned())
}

fn overlay(world: &World) -> Result<i64, i32> {
    let folder = folder(world);
    calls::mount("tmpfs", &folder, "tmpfs", 0, "size=1m")?;
    for name in ["lower", "upper", "work", "merged"] {
        let path = calls::c_path(format!("{folder}/{name}"));
        calls::raw(libc::SYS_mkdirat, &[libc::AT_FDCWD as usize, path.as_ptr() as usize, 0o755])?;
    }
    let data = format!("lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work");
    calls::mount("overlay", format!("{folder}/merged"), "overlay", 0, &data)
}

/// NFT_MSG_GETGEN over netlink, and the answer's error number.
fn generation() -> Result<i64, i32> {
    const REQUEST: u16 = 1;
    let socket = calls::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)?;
    // struct nlmsghdr: length, type (subsystem nf_tables, message 16), flags, number, port; then struct nfgenmsg.
    let mut message = 20_u32.to_ne_bytes().to_vec();
    message.extend_from_slice(&((10_u16 << 8) | 16).to_ne_bytes());
    message.extend_from_slice(&REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 12]);
    calls::write(socket, &message)?;
    let mut answer = [0_u8; 4096];
    if !calls::readable(socket, 500) {
        return Err(libc::ETIMEDOUT);
    }
    let length = calls::read(socket, &mut answer)?;
    refusal(&answer[..length])
}

/// The error number of a netlink answer, if it is one.
fn refusal(answer: &[u8]) -> Result<i64, i32> {
    const ERROR: u16 = 2;
    match (answer.get(4..6), answer.get(16..20)) {
        (Some(kind), Some(errno)) if kind == ERROR.to_ne_bytes() => {
            match i32::from_ne_bytes(errno.try_into().expect("four bytes")) {
                0 => Ok(0),
                errno => Err(-errno),
            }
        }
        (Some(_), _) => Ok(0),
        _ => Err(libc::EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netlink_answer_is_an_error_or_not() {
        let answer = |kind: u16, word: i32| {
            let mut bytes = 36_u32.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(&word.to_ne_bytes());
            bytes
        };
        assert_eq!(refusal(&answer(2, -libc::EPERM)), Err(libc::EPERM));
        assert_eq!(refusal(&answer(2, 0)), Ok(0));
        assert_eq!(refusal(&answer(0x0a0f, 7)), Ok(0));
        assert_eq!(refusal(&[]), Err(libc::EIO));
    }

    #[test]
    fn a_namespace_that_is_the_starters_own_is_told() {
        let own = std::fs::read_link("/proc/self/ns/net").expect("there is a /proc").to_string_lossy().into_owned();
        let world = |link: &str| World { namespaces: [("net".to_owned(), link.to_owned())].into(), ..World::default() };
        assert_eq!(shared(&world(&own)), Finding::reached("net"));
        assert_eq!(shared(&world("net:[1]")).verdict, anchorhold_probe::verdict::Verdict::Absent);
    }
}
