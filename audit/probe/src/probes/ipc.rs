//! Memory and messages that processes share by name.

use anchorhold_probe::verdict::Finding;

use crate::calls;
use crate::probe::{Control, Order, Probe, Severity};

/// The probes of this layer.
pub const PROBES: &[Probe] = &[
    Probe {
        id: "ipc.sysv",
        title: "System V shared memory of the host can be attached",
        severity: Severity::High,
        reference: "sysvipc(7); nix-sandbox.md P10",
        tries: "Attaches the observer's segment by its key and reads the nonce.",
        safe: "ENOENT",
        meaning: "Databases and desktops of the host keep memory there; two builds can talk through it.",
        controls: &[Control::Ipc, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match world.shared_memory_key {
            Some(key) => attached(key, &world.nonce),
            None => Finding::inconclusive("no segment was made"),
        },
    },
    Probe {
        id: "ipc.mq",
        title: "POSIX message queues of the host can be opened",
        severity: Severity::High,
        reference: "mq_overview(7)",
        tries: "Opens the observer's queue and takes no message.",
        safe: "ENOENT",
        meaning: "Messages of host programs can be read and forged; two builds can talk through a queue.",
        controls: &[Control::Ipc, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match &world.message_queue {
            // The system call wants the name without the slash.
            Some(name) => {
                let name = calls::c_path(name.trim_start_matches('/'));
                let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
                Finding::of(calls::raw(libc::SYS_mq_open, &[name.as_ptr() as usize, flags as usize]))
            }
            None => Finding::inconclusive("no queue was made"),
        },
    },
    Probe {
        id: "ipc.devshm",
        title: "POSIX shared memory of the host can be opened",
        severity: Severity::High,
        reference: "shm_overview(7); nix-sandbox.md P9",
        tries: "Reads the observer's file in /dev/shm and looks for the nonce.",
        safe: "ENOENT",
        meaning: "Browsers and databases of the host keep memory there; two builds can talk through it.",
        controls: &[Control::Devices, Control::Host],
        order: Order::Any,
        root: false,
        run: |world| match &world.shared_memory_file {
            Some(name) => match calls::contents(format!("/dev/shm/{}", name.trim_start_matches('/')), 4096) {
                Ok(text) if String::from_utf8_lossy(&text).contains(&world.nonce) => {
                    Finding::reached("the nonce is in it")
                }
                Ok(_) => Finding::absent("a file of the same name without the nonce"),
                Err(errno) => Finding::refused(errno),
            },
            None => Finding::inconclusive("no file was made"),
        },
    },
    Probe {
        id: "ipc.sysv.list",
        title: "System V objects of others can be listed",
        severity: Severity::Low,
        reference: "shmctl(2), SHM_INFO",
        tries: "Asks how many shared memory segments there are.",
        safe: "none",
        meaning: "In an IPC namespace of its own there is nothing before the first program makes it.",
        controls: &[Control::Ipc, Control::Host],
        order: Order::Any,
        root: false,
        run: |_| {
            // struct shm_info: the first word is the number of segments.
            let mut info = [0_u32; 12];
            match calls::raw(libc::SYS_shmctl, &[0, 14, info.as_mut_ptr() as usize]) {
                Ok(_) if info[0] > 0 => Finding::reached(format!("{} segments", info[0])),
                Ok(_) => Finding::absent("no segment"),
                Err(errno) => Finding::refused(errno),
            }
        },
    },
];

fn attached(key: i32, nonce: &str) -> Finding {
    let read = || {
        let segment = calls::raw(libc::SYS_shmget, &[key as usize, 0, 0])?;
        let address = calls::raw(libc::SYS_shmat, &[segment as usize, 0, libc::SHM_RDONLY as usize])?;
        calls::memory(address as usize, nonce.len())
    };
    match read() {
        Ok(bytes) if bytes == nonce.as_bytes() => Finding::reached("the nonce is in it"),
        Ok(_) => Finding::absent("a segment of the same key without the nonce"),
        Err(errno) => Finding::refused(errno),
    }
}
