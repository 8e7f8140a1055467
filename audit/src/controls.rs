//! The weakening behind each control: how the hole that a probe looks for is opened on purpose, to see that the probe finds it.

use anchorhold_probe::vocabulary::Control;

/// Where a control is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakening {
    /// The bare host, as root if we are.
    HostRoot,
    /// The bare host, as the ordinary user.
    HostUser,
    /// A room of ours with these options. `@SHOWN@` in one stands for the folder of the probe program and the input.
    Room(&'static [&'static str]),
    /// A room of ours with these options, started by the ordinary user, so that the room's processes have that user's kernel id.
    UserRoom(&'static [&'static str]),
    /// Another sandbox, which has the hole by its make; none where it is not installed.
    Peer(&'static str),
}

/// The table. What a layer protects, a second one often protects as well; so a weakening takes away all that would hide it.
pub fn weakenings(control: Control) -> &'static [Weakening] {
    use Weakening::{HostRoot, HostUser, Peer, Room, UserRoom};
    match control {
        Control::Host => &[HostUser, HostRoot],
        Control::HostRoot | Control::KernelRoot => &[HostRoot],
        Control::Network => &[Room(&["--without", "network", "--without", "landlock", "--without", "seccomp"])],
        Control::Pid | Control::Ipc => &[
            UserRoom(&[
                "--without",
                "namespaces",
                "--without",
                "landlock",
                "--without",
                "identity",
                "--without",
                "seccomp",
                "--without",
                "proc",
            ]),
            Peer("bubblewrap"),
        ],
        Control::Mounts => &[HostUser, HostRoot, Peer("chroot")],
        Control::Seccomp => {
            &[Room(&["--without", "seccomp"]), Room(&["--without", "seccomp", "--without", "capabilities"])]
        }
        Control::Landlock => &[Room(&["--without", "landlock"])],
        Control::Capabilities => &[Room(&[
            "--without",
            "capabilities",
            "--without",
            "seccomp",
            "--without",
            "landlock",
            "--without",
            "identity",
            "--without",
            "root",
        ])],
        Control::Writable => &[
            UserRoom(&["--without", "root", "--without", "landlock", "--without", "seccomp"]),
            Room(&["--without", "root", "--without", "landlock", "--without", "seccomp"]),
        ],
        Control::SetId => &[Room(&["--without", "root", "--without", "landlock"])],
        Control::Descriptors => &[
            UserRoom(&["--without", "descriptors", "--without", "landlock", "--without", "seccomp"]),
            Room(&["--without", "descriptors", "--without", "landlock", "--without", "seccomp"]),
        ],
        Control::Environment => &[Room(&["--env", "ANCHORHOLD_AUDIT_MARK"])],
        Control::FirstProcess => &[Room(&[])],
        Control::Terminal => {
            &[Room(&["--without", "descriptors", "--without", "seccomp", "--without", "landlock"]), Peer("bubblewrap")]
        }
        Control::Keyring => &[UserRoom(&["--without", "keyring", "--without", "seccomp"])],
        Control::Limits => &[Peer("room:unlimited")],
        Control::UserNamespaces => &[
            Room(&["--profile", "nested", "--without", "seccomp", "--without", "landlock"]),
            Room(&["--without", "namespaces", "--without", "seccomp", "--without", "landlock"]),
        ],
        Control::Fetch => &[Room(&["--profile", "fetch"])],
        Control::ProcMasks => &[Room(&["--without", "proc"]), Room(&["--without", "proc", "--without", "landlock"])],
        Control::Outputs => &[Peer("naive")],
        Control::Supervisor => &[Peer("{} & wait")],
        // Each of these makes a host that has what this one may not have, in a mount or network namespace of its own.
        Control::Btrfs => &[Peer(
            "truncate -s 128M {scratch}.btrfs && mkfs.btrfs --quiet {scratch}.btrfs && unshare --mount --propagation private \
             sh -c 'mount -o loop {scratch}.btrfs {scratch} && exec \"$@\"' sh {}",
        )],
        Control::LinkLocal => &[Peer(
            "unshare --net sh -c 'ip link set lo up && ip route add 169.254.0.0/16 dev lo && exec \"$@\"' sh {}",
        )],
        Control::NameServer => &[Peer(
            "echo nameserver 192.0.2.1 >{scratch}.resolv && unshare --net --mount --propagation private \
             sh -c 'ip link set lo up && ip route add 192.0.2.0/24 dev lo && mount --bind {scratch}.resolv /etc/resolv.conf && \
             exec \"$@\"' sh {}",
        )],
        Control::Daemon => &[Peer(
            "unshare --mount --propagation private sh -c 'mount -t tmpfs tmpfs /run && touch /run/docker.sock && \
             mount --bind {outside}/socket /run/docker.sock && exec \"$@\"' sh {}",
        )],
        Control::SharedMounts => {
            &[Peer("unshare --mount --propagation private sh -c 'mount --make-rshared / && exec \"$@\"' sh {}")]
        }
        Control::OomScore => &[Peer("echo 500 >/proc/self/oom_score_adj && {}")],
        Control::Devices => &[Room(&["--without", "devices", "--without", "landlock"])],
    }
}

impl std::fmt::Display for Weakening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::HostRoot => f.write_str("no sandbox, as root"),
            Self::Peer(word) => write!(f, "{word}"),
            Self::HostUser => f.write_str("no sandbox, as an ordinary user"),
            Self::Room(options) => write!(f, "anchorhold run {}", options.join(" ")),
            Self::UserRoom(options) => write!(f, "anchorhold run {}, as an ordinary user", options.join(" ")),
        }
    }
}
