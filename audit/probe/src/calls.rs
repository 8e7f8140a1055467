//! Raw system calls. Probes decide by error numbers, and a C library would translate, retry or emulate on the way; so
//! every attempt goes through [`raw`], by number. This is the only module with unsafe code.
//!
//! Why it is sound to offer [`raw`] as a safe function: it is not, in general, and a library must not. Here the whole
//! program is the caller, each probe runs in a process of its own that ends after one attempt, and pointers that probes
//! pass come from the typed functions below or from buffers that live across the call.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A system call by number, with up to six arguments; missing ones are zero. The error is the error number.
pub fn raw(number: libc::c_long, arguments: &[usize]) -> Result<i64, i32> {
    let word = |index: usize| arguments.get(index).copied().unwrap_or(0);
    // SAFETY: see the head of this module: what the arguments point to lives across the call, in a process of one attempt.
    let result = unsafe { libc::syscall(number, word(0), word(1), word(2), word(3), word(4), word(5)) };
    if result == -1 { Err(errno()) } else { Ok(result) }
}

/// The error number of the last call of the C library.
pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The same call by the i386 entry (`int 0x80`), where the kernel has one. Pointers must lie below 4 GiB: see
/// [`LowMemory`]. The error is the error number.
#[cfg(target_arch = "x86_64")]
pub fn int80(number: u32, arguments: [u32; 5]) -> Result<i64, i32> {
    let result: u64;
    // SAFETY: the kernel saves all but the result; rbx is the compiler's own and is put back. Memory that the call may
    // write is the caller's LowMemory. A kernel without the entry sends SIGSEGV, which ends this attempt's process.
    unsafe {
        std::arch::asm!(
            "xchg {first:r}, rbx",
            "int 0x80",
            "xchg {first:r}, rbx",
            first = inout(reg) u64::from(arguments[0]) => _,
            inlateout("rax") u64::from(number) => result,
            in("rcx") u64::from(arguments[1]),
            in("rdx") u64::from(arguments[2]),
            in("rsi") u64::from(arguments[3]),
            in("rdi") u64::from(arguments[4]),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    let result = result as u32 as i32;
    if (-4095..0).contains(&result) { Err(-result) } else { Ok(i64::from(result)) }
}

/// Memory below 4 GiB, for the pointers of the i386 entry. One page, never given back.
#[cfg(target_arch = "x86_64")]
pub struct LowMemory {
    address: usize,
}

#[cfg(target_arch = "x86_64")]
impl LowMemory {
    /// A page that begins with these bytes.
    pub fn holding(bytes: &[u8]) -> Result<Self, i32> {
        const PAGE: usize = 4096;
        assert!(bytes.len() <= PAGE, "one page is enough for what probes pass");
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(errno());
        }
        // SAFETY: the mapping is PAGE bytes long, new and writable, and does not overlap `bytes`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address.cast(), bytes.len()) };
        Ok(Self { address: address as usize })
    }

    /// Its address as the i386 entry takes it.
    pub fn pointer(&self) -> u32 {
        u32::try_from(self.address).expect("MAP_32BIT keeps to the low 2 GiB")
    }
}

/// A path as system calls take it. Probes pass no zero bytes.
pub fn c_path(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).expect("paths of probes have no zero byte")
}

/// `openat(AT_FDCWD, path, flags | O_CLOEXEC, mode)`: the descriptor. The caller closes it, or ends.
pub fn open(path: impl AsRef<Path>, flags: i32, mode: u32) -> Result<i32, i32> {
    let path = c_path(path);
    raw(
        libc::SYS_openat,
        &[libc::AT_FDCWD as usize, path.as_ptr() as usize, (flags | libc::O_CLOEXEC) as usize, mode as usize],
    )
    .map(|descriptor| descriptor as i32)
}

/// `close`, without an answer.
pub fn close(descriptor: i32) {
    let _ = raw(libc::SYS_close, &[descriptor as usize]);
}

/// `read` into a buffer: how many bytes.
pub fn read(descriptor: i32, buffer: &mut [u8]) -> Result<usize, i32> {
    raw(libc::SYS_read, &[descriptor as usize, buffer.as_mut_ptr() as usize, buffer.len()])
        .map(|length| length as usize)
}

/// `write` of bytes: how many were taken.
pub fn write(descriptor: i32, bytes: &[u8]) -> Result<usize, i32> {
    raw(libc::SYS_write, &[descriptor as usize, bytes.as_ptr() as usize, bytes.len()]).map(|length| length as usize)
}

/// `socket`, close-on-exec: the descriptor.
pub fn socket(family: i32, kind: i32, protocol: i32) -> Result<i32, i32> {
    raw(libc::SYS_socket, &[family as usize, (kind | libc::SOCK_CLOEXEC) as usize, protocol as usize])
        .map(|descriptor| descriptor as i32)
}

/// The beginning of a file, at most `limit` bytes, by plain reads.
pub fn contents(path: impl AsRef<Path>, limit: usize) -> Result<Vec<u8>, i32> {
    let descriptor = open(path, libc::O_RDONLY | libc::O_NONBLOCK, 0)?;
    let mut bytes = vec![0; limit];
    let mut length = 0;
    let result = loop {
        match read(descriptor, &mut bytes[length..]) {
            Ok(0) => break Ok(()),
            Ok(more) => length += more,
            Err(libc::EINTR) => {}
            Err(errno) => break Err(errno),
        }
        if length == limit {
            break Ok(());
        }
    };
    close(descriptor);
    bytes.truncate(length);
    result.map(|()| bytes)
}

/// Runs in a child process, which ends with the status that `attempt` returns; `None` if it was killed. For attempts
/// that need a process beside their own.
pub fn in_child(attempt: impl FnOnce() -> i32) -> Result<Option<i32>, i32> {
    let child = fork()?;
    if child == 0 {
        exit(attempt());
    }
    let status = wait(child)?;
    Ok(libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)))
}

/// `fork`: 0 in the child, its id in the parent.
pub fn fork() -> Result<i32, i32> {
    // SAFETY: the program never starts a thread, so the child is as whole as its parent.
    let child = unsafe { libc::fork() };
    if child < 0 { Err(errno()) } else { Ok(child) }
}

/// Ends this process at once, without what the C library would do at its end.
pub fn exit(status: i32) -> ! {
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(status) }
}

/// Waits for a child, however often signals interrupt: its wait status.
pub fn wait(child: i32) -> Result<i32, i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is ours and lives across the call.
        let result = unsafe { libc::waitpid(child, &mut status, 0) };
        match (result, errno()) {
            (-1, libc::EINTR) => {}
            (-1, errno) => return Err(errno),
            _ => return Ok(status),
        }
    }
}

/// Has this process ended by SIGALRM after so many seconds.
pub fn alarm(seconds: u32) {
    // SAFETY: it takes a number; the default action of the signal ends the process, which is the purpose.
    unsafe { libc::alarm(seconds) };
}

/// The default action and no block for every signal, so that the limit of [`alarm`] holds whatever was inherited.
pub fn default_signals() {
    for signal in 1..32 {
        // SAFETY: the default action is no code of ours; the kernel refuses the two that cannot be changed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let none = 0_u64;
    let _ = raw(libc::SYS_rt_sigprocmask, &[libc::SIG_SETMASK as usize, &raw const none as usize, 0, 8]);
}

/// A pipe, close-on-exec: its reading and its writing end.
pub fn pipe() -> Result<[i32; 2], i32> {
    let mut ends = [-1; 2];
    raw(libc::SYS_pipe2, &[ends.as_mut_ptr() as usize, libc::O_CLOEXEC as usize]).map(|_| ends)
}

/// Whether the descriptor can be read (or has come to its end) within so many milliseconds.
pub fn readable(descriptor: i32, milliseconds: i32) -> bool {
    let mut watched = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, ours, alive across the call.
    unsafe { libc::poll(&mut watched, 1, milliseconds) > 0 }
}

/// Waits until one of two descriptors can be read, at most so many milliseconds: whether it was the first. A negative
/// descriptor is not watched.
pub fn either_readable(first: i32, second: i32, milliseconds: i32) -> bool {
    let watched = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut both = [watched(first), watched(second)];
    // SAFETY: two entries, ours, alive across the call.
    unsafe { libc::poll(both.as_mut_ptr(), 2, milliseconds) };
    both[0].revents != 0
}

/// The effective user id.
pub fn geteuid() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// The effective group id.
pub fn getegid() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::getegid() }
}

/// Release and machine name of the kernel, as it says itself here.
pub fn uname() -> (String, String) {
    // SAFETY: arrays of bytes, for which zero is a value.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is ours and lives across the call.
    unsafe { libc::uname(&mut name) };
    let text = |field: &[libc::c_char]| {
        let bytes: Vec<u8> = field.iter().map(|&byte| byte as u8).collect();
        CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
    };
    (text(&name.release), text(&name.machine))
}

/// The i386 entry where the processor has none.
#[cfg(not(target_arch = "x86_64"))]
pub fn int80(_: u32, _: [u32; 5]) -> Result<i64, i32> {
    Err(libc::ENOSYS)
}

/// Memory for the i386 entry where the processor has none.
#[cfg(not(target_arch = "x86_64"))]
pub struct LowMemory;

#[cfg(not(target_arch = "x86_64"))]
impl LowMemory {
    /// There is none.
    pub fn holding(_: &[u8]) -> Result<Self, i32> {
        Err(libc::ENOSYS)
    }

    /// Of no use.
    pub fn pointer(&self) -> u32 {
        0
    }
}

/// Whether a descriptor becomes ready for these `poll(2)` events within so many milliseconds.
pub fn ready(descriptor: i32, events: i16, milliseconds: i32) -> bool {
    let mut watched = libc::pollfd { fd: descriptor, events, revents: 0 };
    // SAFETY: one entry, ours, alive across the call.
    unsafe { libc::poll(&mut watched, 1, milliseconds) > 0 }
}

/// Lets time pass. For what can only be seen not to happen.
pub fn pause(milliseconds: u64) {
    std::thread::sleep(std::time::Duration::from_millis(milliseconds));
}

/// A child that does `work` and then ends with the status it returns: its id. Nobody waits for it here.
pub fn spawn(work: impl FnOnce() -> i32) -> Result<i32, i32> {
    let child = fork()?;
    if child == 0 {
        exit(work());
    }
    Ok(child)
}

/// `kill`.
pub fn kill(process: i32, signal: i32) -> Result<i64, i32> {
    raw(libc::SYS_kill, &[process as usize, signal as usize])
}

/// `prctl` with up to four arguments behind the option.
pub fn prctl(option: i32, arguments: &[usize]) -> Result<i64, i32> {
    let word = |index: usize| arguments.get(index).copied().unwrap_or(0);
    raw(libc::SYS_prctl, &[option as usize, word(0), word(1), word(2), word(3)])
}

/// `unshare`.
pub fn unshare(flags: i32) -> Result<i64, i32> {
    raw(libc::SYS_unshare, &[flags as usize])
}

/// `mount`. An empty source, type or data is passed as an empty text.
pub fn mount(source: &str, target: impl AsRef<Path>, kind: &str, flags: libc::c_ulong, data: &str) -> Result<i64, i32> {
    let (source, target, kind, data) = (c_path(source), c_path(target), c_path(kind), c_path(data));
    let pointers = [source.as_ptr() as usize, target.as_ptr() as usize, kind.as_ptr() as usize];
    raw(libc::SYS_mount, &[pointers[0], pointers[1], pointers[2], flags as usize, data.as_ptr() as usize])
}

/// `umount2`.
pub fn umount(target: impl AsRef<Path>, flags: i32) -> Result<i64, i32> {
    let target = c_path(target);
    raw(libc::SYS_umount2, &[target.as_ptr() as usize, flags as usize])
}

/// Writes a whole short text to a file that exists.
pub fn overwrite(path: impl AsRef<Path>, text: &str) -> Result<i64, i32> {
    let descriptor = open(path, libc::O_WRONLY, 0)?;
    let result = write(descriptor, text.as_bytes());
    close(descriptor);
    result.map(|length| length as i64)
}

/// `connect` to an address in the kernel's own form.
pub fn connect(descriptor: i32, address: &[u8]) -> Result<i64, i32> {
    raw(libc::SYS_connect, &[descriptor as usize, address.as_ptr() as usize, address.len()])
}

/// `bind` to an address in the kernel's own form.
pub fn bind(descriptor: i32, address: &[u8]) -> Result<i64, i32> {
    raw(libc::SYS_bind, &[descriptor as usize, address.as_ptr() as usize, address.len()])
}

/// Bytes at an address of this process that the kernel gave, without touching them from here.
pub fn memory(address: usize, length: usize) -> Result<Vec<u8>, i32> {
    let [reader, writer] = pipe()?;
    let mut bytes = vec![0; length.min(4096)];
    let result = raw(libc::SYS_write, &[writer as usize, address, bytes.len()]).and_then(|_| read(reader, &mut bytes));
    close(reader);
    close(writer);
    bytes.truncate(result?);
    Ok(bytes)
}

/// `getrlimit`: the soft and the hard limit.
pub fn limit(resource: u32) -> Result<(u64, u64), i32> {
    let mut both = [0_u64; 2];
    raw(libc::SYS_prlimit64, &[0, resource as usize, 0, both.as_mut_ptr() as usize]).map(|_| (both[0], both[1]))
}

/// `fstat`: the mode and the number of the device.
pub fn status(descriptor: i32) -> Result<(u32, u64), i32> {
    // SAFETY: a structure of integers, for which zero is a value.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `status` is ours and lives across the call.
    let result = unsafe { libc::fstat(descriptor, &mut status) };
    if result == -1 { Err(errno()) } else { Ok((status.st_mode, status.st_dev)) }
}

/// The number of the device that a path lies on.
pub fn device_of(path: impl AsRef<Path>) -> Result<u64, i32> {
    let descriptor = open(path, libc::O_PATH, 0)?;
    let result = status(descriptor);
    close(descriptor);
    result.map(|(_, device)| device)
}

/// Sends one byte and a descriptor over a connected Unix socket.
pub fn send_descriptor(socket: i32, descriptor: i32) -> Result<i64, i32> {
    let byte = [b'd'];
    let vector = [byte.as_ptr() as usize, byte.len()];
    // struct cmsghdr: length, level, type; then the descriptor, padded to a word.
    let mut control = [0_u8; 24];
    control[..8].copy_from_slice(&20_u64.to_ne_bytes());
    control[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    control[16..20].copy_from_slice(&descriptor.to_ne_bytes());
    // struct msghdr: name and its length, vectors and their count, control and its length, flags.
    let message = [0, 0, vector.as_ptr() as usize, 1, control.as_ptr() as usize, control.len(), 0];
    raw(libc::SYS_sendmsg, &[socket as usize, message.as_ptr() as usize, libc::MSG_NOSIGNAL as usize])
}

/// Ignores every signal that can be ignored.
pub fn ignore_signals() {
    for signal in 1..65 {
        // SAFETY: ignoring is no code of ours; the kernel refuses the signals that cannot be.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
