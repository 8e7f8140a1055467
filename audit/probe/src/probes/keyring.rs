//! The kernel's keyrings: they belong to sessions and users, and pass namespaces.

use anchorhold_probe::verdict::Finding;
use anchorhold_probe::world::World;

use crate::calls::{self, LowMemory};
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "key.session.search",
        title: "A key in the starter's session keyring is found",
        severity: Severity::High,
        reference: "session-keyring(7); nix-sandbox.md H28",
        tries: "Searches the session keyring for the observer's key.",
        safe: "ENOKEY or ENOSYS",
        meaning: "Credentials of Kerberos, of encrypted disks and network file systems lie in keyrings. Found is half way \
                  to read.",
        controls: &[Control::Keyring, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match &world.session_key {
            Some(name) => Finding::of(search(SESSION, name)),
            None => Finding::inconclusive("no key was made"),
        },
    },
    Probe {
        id: "key.session.read",
        title: "A key in the starter's session keyring is read",
        severity: Severity::High,
        reference: "session-keyring(7); nix-sandbox.md H28",
        tries: "Reads the observer's key and looks for the nonce.",
        safe: "ENOKEY or ENOSYS; EACCES means found, but not possessed",
        meaning: "Credentials of the user who started the sandbox are the build's.",
        controls: &[Control::Keyring, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match &world.session_key {
            Some(name) => read(SESSION, name, &world.nonce),
            None => Finding::inconclusive("no key was made"),
        },
    },
    Probe {
        id: "key.session.plant",
        title: "A key can be left in the starter's session keyring",
        severity: Severity::High,
        reference: "session-keyring(7); security-probes.md 0, number 4",
        tries: "Where the observer's key is found, adds one beside it that expires after a minute.",
        safe: "ENOKEY or ENOSYS",
        meaning: "What one build leaves the next one finds: a channel between builds that share nothing else.",
        controls: &[Control::Keyring, Control::Host],
        order: Order::Any,
        root: false,
        run: planted,
    },
    Probe {
        id: "key.user.search",
        title: "A key in the starter's user keyring is found",
        severity: Severity::High,
        reference: "user-keyring(7)",
        tries: "Searches the user keyring and the user session keyring for the observer's key.",
        safe: "ENOKEY or ENOSYS",
        meaning: "It is shared by all processes of a user; since Linux 5.3 each user namespace has its own.",
        controls: &[Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match &world.user_key {
            Some(name) => Finding::worst([
                ("user keyring".to_owned(), Finding::of(search(USER, name))),
                ("user session keyring".to_owned(), Finding::of(search(USER_SESSION, name))),
            ]),
            None => Finding::inconclusive("no key was made"),
        },
    },
    Probe {
        id: "key.add",
        title: "Keys can be added",
        severity: Severity::Medium,
        reference: "add_key(2); CVE-2016-0728",
        tries: "Adds a key to its own process keyring, which ends with the process.",
        safe: "ENOSYS",
        meaning: "Keyrings have been a way to kernel memory again and again, and count against the host user's quota.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| Finding::of(add(PROCESS, "anchorhold-probe")),
    },
    Probe {
        id: "key.request",
        title: "Keys can be requested",
        severity: Severity::Medium,
        reference: "request_key(2)",
        tries: "Requests a key that nobody has, without the text that would start /sbin/request-key.",
        safe: "ENOSYS",
        meaning: "With that text the kernel starts a program on the host as root, outside of every sandbox.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            let (kind, name) = (calls::c_path("user"), calls::c_path("anchorhold-probe-nobody-has"));
            let words = [kind.as_ptr() as usize, name.as_ptr() as usize, 0, 0];
            Finding::past(calls::raw(libc::SYS_request_key, &words), &[libc::ENOKEY])
        },
    },
    Probe {
        id: "key.int80",
        title: "Keyrings are reached by the 32-bit entry",
        severity: Severity::Medium,
        reference: "nix-sandbox.md H1 (foreign entries)",
        tries: "Asks for the number of its session keyring by the i386 call keyctl, and adds a key by the i386 call add_key.",
        safe: "ENOSYS",
        meaning: "A filter for the native entry alone leaves the other one open to every program.",
        controls: &[Control::Seccomp],
        order: Order::Any,
        root: false,
        run: |_| {
            Finding::worst([
                ("keyctl".to_owned(), Finding::of(calls::int80(288, [0, SESSION as u32, 0, 0, 0]))),
                ("add_key".to_owned(), Finding::of(add_by_i386())),
            ])
        },
    },
];

/// Special keyrings, linux/keyctl.h.
const PROCESS: i32 = -2;
const SESSION: i32 = -3;
const USER: i32 = -4;
const USER_SESSION: i32 = -5;

/// Operations of keyctl(2), linux/keyctl.h.
const SEARCH: usize = 10;
const READ: usize = 11;
const SET_TIMEOUT: usize = 15;

/// The number of a `user` key in a keyring.
fn search(keyring: i32, name: &str) -> Result<i64, i32> {
    let (kind, name) = (calls::c_path("user"), calls::c_path(name));
    let words = [SEARCH, keyring as usize, kind.as_ptr() as usize, name.as_ptr() as usize, 0];
    calls::raw(libc::SYS_keyctl, &words)
}

fn read(keyring: i32, name: &str, nonce: &str) -> Finding {
    let mut bytes = [0_u8; 256];
    let length = search(keyring, name)
        .and_then(|key| calls::raw(libc::SYS_keyctl, &[READ, key as usize, bytes.as_mut_ptr() as usize, bytes.len()]));
    match length {
        Ok(_) if String::from_utf8_lossy(&bytes).contains(nonce) => Finding::reached("the nonce is in it"),
        Ok(_) => Finding::absent("a key of the same name without the nonce"),
        Err(libc::EACCES) => Finding::refused(libc::EACCES).with("found, but not possessed"),
        Err(errno) => Finding::refused(errno),
    }
}

/// Adds a `user` key.
fn add(keyring: i32, name: &str) -> Result<i64, i32> {
    let (kind, name) = (calls::c_path("user"), calls::c_path(name));
    let payload = b"x";
    let words = [kind.as_ptr() as usize, name.as_ptr() as usize, payload.as_ptr() as usize, 1, keyring as usize];
    calls::raw(libc::SYS_add_key, &words)
}

/// The same by the i386 entry, into the process keyring.
fn add_by_i386() -> Result<i64, i32> {
    let memory = LowMemory::holding(b"user\0anchorhold-probe\0")?;
    let name = memory.pointer() + 5;
    calls::int80(286, [memory.pointer(), name, memory.pointer(), 1, PROCESS as u32])
}

fn planted(world: &World) -> Finding {
    let Some(name) = &world.session_key else {
        return Finding::inconclusive("no key was made");
    };
    // In a keyring of its own nobody outside would ever see what is left.
    if let Err(errno) = search(SESSION, name) {
        return Finding::refused(errno);
    }
    let name = format!("anchorhold-planted-{}", world.nonce);
    match add(SESSION, &name) {
        Ok(key) => {
            let _ = calls::raw(libc::SYS_keyctl, &[SET_TIMEOUT, key as usize, 60]);
            Finding::reached(format!("{name} lies beside the observer's key"))
        }
        Err(errno) => Finding::refused(errno),
    }
}
