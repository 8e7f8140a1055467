//! The shipped programs, loaded into real threads: a filter is a thread's own, so no process has to be spent on a test.

use super::*;
use crate::layers::seccomp::{Choices, Recorder, SocketMaker, Wanted, load, program};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const PLAIN: Choices = Choices { record: false, nested: false, compat: true, ignore_chown: false };
const RECORDING: Choices = Choices { record: true, ..PLAIN };

/// Any system call. The tests pass only numbers, null pointers and pointers to strings that live.
fn raw<const N: usize>(number: libc::c_long, given: [usize; N]) -> Result<libc::c_long, i32> {
    let mut args = [0_usize; 6];
    args[..N].copy_from_slice(&given);
    let [a, b, c, d, e, f] = args;
    // SAFETY: every caller in this file passes calls that write to no memory of this process.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        value => Ok(value),
    }
}

/// A call through i386's door, without pointers.
#[cfg(target_arch = "x86_64")]
fn int80(number: u32, first: u32, second: u32, third: u32) -> Result<i32, i32> {
    let answer: u64;
    // SAFETY: the calls made here write to no memory; rbx, which the compiler keeps for itself, is put back; the kernel
    // clears r8 to r11 on this door in old versions, hence the clobbers.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) u64::from(first) => _,
            inout("rax") u64::from(number) => answer,
            in("rcx") u64::from(second),
            in("rdx") u64::from(third),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    match answer as i32 {
        error @ -4095..0 => Err(-error),
        value => Ok(value),
    }
}

/// Whether this kernel has i386's door.
fn int80_works() -> bool {
    #[cfg(target_arch = "x86_64")]
    return int80(20, 0, 0, 0).is_ok();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}

/// Runs `body` in a thread under a program without recording.
fn confined<T: Send + 'static>(choices: Choices, body: impl FnOnce() -> T + Send + 'static) -> T {
    thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        assert!(load(choices).unwrap().is_none());
        body()
    })
    .join()
    .unwrap()
}

/// Runs `body` in a thread under a recording program, and gives the listener.
fn recorded<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> (OwnedFd, JoinHandle<T>) {
    let (sender, receiver) = mpsc::channel();
    let confined = thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        sender.send(load(RECORDING).unwrap().expect("a listener")).unwrap();
        body()
    });
    (receiver.recv().unwrap(), confined)
}

/// Makes sockets in this very process, which is where the tests' threads are.
#[derive(Default)]
struct Here {
    made: Vec<Wanted>,
    elsewhere: bool,
}

impl SocketMaker for Here {
    fn make(&mut self, wanted: Wanted) -> Result<Vec<OwnedFd>, nix::errno::Errno> {
        self.made.push(wanted);
        crate::sys::socket::make(wanted.family, wanted.kind, wanted.protocol, wanted.pair)
    }

    fn stands_where_the_room_does(&self, _: nix::unistd::Pid) -> bool {
        !self.elsewhere
    }
}

/// Answers until every confined thread is gone.
fn supervise(recorder: &mut Recorder, maker: &mut Here) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !recorder.over() {
        assert!(Instant::now() < deadline, "the confined thread does not end");
        nix::poll::poll(&mut [PollFd::new(recorder.as_fd(), PollFlags::POLLIN)], PollTimeout::from(1000_u16)).unwrap();
        recorder.answer(maker).unwrap();
    }
}

#[test]
fn the_kernel_refuses_what_the_table_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let new = text(&directory.path().join("new"));
    confined(PLAIN, move || {
        let path = text(&file);
        let here = libc::AT_FDCWD as usize;
        let at = |path: &CString| path.as_ptr() as usize;
        let create = (libc::O_CREAT | libc::O_WRONLY) as usize;
        for mode in [0o4755, 0o2755, 0o6755] {
            assert_eq!(raw(libc::SYS_fchmodat, [here, at(&path), mode]), Err(libc::EPERM));
            assert_eq!(raw(libc::SYS_openat, [here, at(&new), create, mode]), Err(libc::EPERM));
            assert_eq!(raw(libc::SYS_mknodat, [here, at(&new), libc::S_IFREG as usize | mode]), Err(libc::EPERM));
            let refused = std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode as u32)).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        }
        assert_eq!(raw(libc::SYS_mknodat, [here, at(&new), libc::S_IFCHR as usize | 0o644]), Err(libc::EPERM));
        assert_eq!(raw(libc::SYS_openat2, [here, at(&new), 0, 24]), Err(libc::ENOSYS));
        assert_eq!(raw(libc::SYS_io_uring_setup, [1]), Err(libc::ENOSYS));
        assert_eq!(raw(libc::SYS_keyctl, [0, 0]), Err(libc::ENOSYS));
        assert_eq!(raw(libc::SYS_socket, [40, 1]), Err(libc::EAFNOSUPPORT), "AF_VSOCK");
        assert_eq!(raw(libc::SYS_socket, [38, 5]), Err(libc::EAFNOSUPPORT), "AF_ALG");
        assert_eq!(raw(libc::SYS_socket, [16, 3, 9]), Err(libc::EPROTONOSUPPORT), "NETLINK_AUDIT");
        assert_eq!(raw(libc::SYS_setxattr, [at(&path), at(&path), 0, 0, 0]), Err(libc::EOPNOTSUPP));
        assert_eq!(raw(libc::SYS_bpf, [0]), Err(libc::EPERM));
        assert_eq!(raw(libc::SYS_setns, [usize::MAX, 0]), Err(libc::EPERM));
        assert_eq!(raw(libc::SYS_personality, [0x0400000]), Err(libc::EPERM), "READ_IMPLIES_EXEC");
        assert_eq!(raw(libc::SYS_ioctl, [0, 0x5412 | 1 << 32]), Err(libc::EPERM), "TIOCSTI with upper bits");
        for number in [337, 390, 470, 471, 472, 500, 1 << 20, 1 << 30] {
            assert_eq!(raw(number, []), Err(libc::ENOSYS), "{number}");
        }

        // And a build works.
        let rubbish =
            raw(libc::SYS_openat, [here, at(&path), 0, 0o6755]).expect("open without O_CREAT ignores the mode");
        assert!(raw(libc::SYS_close, [rubbish as usize]).is_ok());
        assert!(raw(libc::SYS_personality, [0xffff_ffff]).is_ok());
        assert_eq!(raw(-1, []), Err(libc::ENOSYS), "the number by which tracers skip");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o1755)).unwrap();
        std::fs::write(&file, "y").unwrap();
        std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std::os::unix::net::UnixStream::pair().unwrap();
        assert!(std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).status().unwrap().code() == Some(7));
        thread::spawn(|| ()).join().unwrap();
    });
}

#[test]
fn choices_reach_the_kernel() {
    confined(Choices { nested: true, ..PLAIN }, || {
        assert_eq!(raw(libc::SYS_setns, [usize::MAX, 0]), Err(libc::EBADF), "past the filter");
        // The type does not exist, whether or not the family does.
        assert_ne!(raw(libc::SYS_socket, [40, 9]), Err(libc::EPERM));
    });
}

/// A missing path shows who answers: the kernel looks for it, the filter does not.
#[cfg(target_arch = "x86_64")]
#[test]
fn changes_of_owner_are_answered_by_the_filter_alone_where_they_are_ignored() {
    const HERE: usize = libc::AT_FDCWD as usize;
    const CHOWN_OF_X32: libc::c_long = libc::SYS_chown | 1 << 30;
    let ask = || {
        let mut answers = vec![
            raw(libc::SYS_chown, [0, 1, 1]),
            raw(libc::SYS_lchown, [0, 1, 1]),
            raw(libc::SYS_fchownat, [HERE, 0, 1, 1, 0]),
        ];
        if int80_works() {
            // chown, lchown, chown32, lchown32.
            answers.extend([182, 16, 212, 198].map(|number| int80(number, 0, 1, 1).map(libc::c_long::from)));
        }
        let of_none = raw(libc::SYS_fchown, [usize::MAX, 1, 1]);
        (answers, of_none, raw(CHOWN_OF_X32, [0, 1, 1]))
    };
    let (answers, of_none, x32) = confined(PLAIN, ask);
    assert!(answers.iter().all(|answer| *answer == Err(libc::EFAULT)), "{answers:?}");
    assert_eq!((of_none, x32), (Err(libc::EBADF), Err(libc::ENOSYS)));
    let (answers, of_none, x32) = confined(Choices { ignore_chown: true, ..PLAIN }, ask);
    assert!(answers.iter().all(|answer| *answer == Ok(0)), "{answers:?}");
    assert_eq!((of_none, x32), (Ok(0), Err(libc::ENOSYS)));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_32_bit_door_has_the_same_policy() {
    const AT_FDCWD: u32 = libc::AT_FDCWD as u32;
    if !int80_works() {
        println!("this kernel has no i386 door");
        return;
    }
    confined(PLAIN, || {
        assert!(int80(20, 0, 0, 0).is_ok(), "getpid");
        assert_eq!(int80(15, 0, 0o4755, 0), Err(libc::EPERM), "chmod");
        assert_eq!(int80(15, 0, 0o755, 0), Err(libc::EFAULT), "chmod, past the filter");
        assert_eq!(int80(5, 0, libc::O_CREAT as u32, 0o4755), Err(libc::EPERM), "open");
        assert_eq!(int80(5, 0, 0, 0o4755), Err(libc::EFAULT), "open, past the filter");
        assert_eq!(int80(306, AT_FDCWD, 0, 0o2755), Err(libc::EPERM), "fchmodat");
        assert_eq!(int80(359, 40, 1, 0), Err(libc::EAFNOSUPPORT), "socket");
        assert_eq!(int80(425, 1, 0, 0), Err(libc::ENOSYS), "io_uring_setup");
        assert_eq!(int80(226, 0, 0, 0), Err(libc::EOPNOTSUPP), "setxattr");
        assert_eq!(int80(471, 0, 0, 0), Err(libc::ENOSYS), "the ceiling");
        for makes in [1, 8] {
            assert_eq!(int80(102, makes, 0, 0), Err(libc::EAFNOSUPPORT), "socketcall, where nobody makes the socket");
        }
        assert_eq!(int80(102, 2, 0, 0), Err(libc::EFAULT), "socketcall of bind, past the filter");
    });
}

/// The test that the next one starts again in a process of its own, to be killed.
#[cfg(target_arch = "x86_64")]
const KILLED: &str = "sys::seccomp::tests::a_room_without_32_bit_programs_kills_them";

#[cfg(target_arch = "x86_64")]
#[test]
fn a_room_without_32_bit_programs_kills_them() {
    use std::os::unix::process::ExitStatusExt;
    const CHILD: &str = "ANCHORHOLD_TEST_CALLS_I386";
    if !int80_works() {
        println!("this kernel has no i386 door");
        return;
    }
    if std::env::var_os(CHILD).is_some() {
        confined(Choices { compat: false, ..PLAIN }, || {
            assert!(raw(libc::SYS_getppid, []).is_ok());
            let _ = int80(20, 0, 0, 0);
        });
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", KILLED])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(libc::SIGSYS), "{child:?}");
}

#[test]
fn recording_is_given_up_where_there_is_a_listener_already() {
    let (listener, confined) = recorded(|| {
        assert!(load(RECORDING).unwrap().is_none());
        // Answered by the inner filter's errno, which comes before the outer one's notification: nobody listens here.
        assert_eq!(raw(libc::SYS_fchmod, [usize::MAX, 0o4755]), Err(libc::EPERM));
    });
    confined.join().unwrap();
    drop(listener);
}

#[test]
fn refusals_are_answered_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let (listener, confined) = recorded(move || {
        for _ in 0..3 {
            let refused = std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4755)).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        }
        assert_eq!(raw(libc::SYS_socket, [40, 1]), Err(libc::EAFNOSUPPORT));
        assert_eq!(raw(libc::SYS_socket, [16, 3, 9]), Err(libc::EPROTONOSUPPORT));
        #[cfg(target_arch = "x86_64")]
        if int80_works() {
            assert_eq!(int80(15, 0, 0o4755, 0), Err(libc::EPERM), "i386's number for the same call");
        }
        assert_eq!(raw(libc::SYS_io_uring_setup, [1]), Err(libc::ENOSYS), "not recorded");
        assert_eq!(raw(libc::SYS_setxattr, [0; 5]), Err(libc::EOPNOTSUPP), "not recorded");
    });
    let mut recorder = Recorder::new(listener);
    recorder.answer(&mut Here::default()).expect("does not wait when there is nothing to answer");
    supervise(&mut recorder, &mut Here::default());
    confined.join().unwrap();

    let mut own = std::fs::read_to_string("/proc/self/comm").unwrap();
    own.truncate(own.trim_end().len());
    let mut refused: Vec<String> = recorder.refusals().iter().map(ToString::to_string).collect();
    // The library's chmod is fchmodat where there is no other.
    let name = if cfg!(target_arch = "x86_64") { "chmod" } else { "fchmodat" };
    let times = if cfg!(target_arch = "x86_64") && int80_works() { 4 } else { 3 };
    assert_eq!(refused.remove(0), format!("{name} 04755 by {own} ×{times}"));
    assert_eq!(refused, [format!("socket AF_VSOCK by {own} ×1"), format!("socket NETLINK_AUDIT by {own} ×1")]);
    assert_eq!(recorder.refusals()[1].hint.as_deref(), Some("no profile allows this socket family"));
    assert_eq!(recorder.others(), 0);
}

/// Words at an address that an i386 call can name. The kernel and the supervisor write there too, hence the type.
#[cfg(target_arch = "x86_64")]
fn low_words<const N: usize>(words: [i32; N]) -> &'static [AtomicI32; N] {
    let length = size_of::<[AtomicI32; N]>();
    // SAFETY: asks for a fresh anonymous mapping at no address in particular.
    let place = unsafe {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), length, protection, flags | libc::MAP_32BIT, -1, 0)
    };
    assert_ne!(place, libc::MAP_FAILED);
    // SAFETY: the mapping is long enough, page-aligned, all zeroes, nobody else's, and left to the process's end.
    let place = unsafe { &*place.cast::<[AtomicI32; N]>() };
    place.iter().zip(words).for_each(|(place, word)| place.store(word, Ordering::SeqCst));
    place
}

#[cfg(target_arch = "x86_64")]
fn borrow(number: i32) -> BorrowedFd<'static> {
    // SAFETY: only for descriptors that the tests are given here and close nowhere.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// What `socketcall` answers, and the two words behind the fourth argument.
#[cfg(target_arch = "x86_64")]
fn socketcall(call: u32, family: i32, kind: i32, protocol: i32) -> (Result<i32, i32>, [i32; 2]) {
    let words = low_words([family, kind, protocol, 0, 77, 77]);
    words[3].store(words[4].as_ptr().addr() as i32, Ordering::SeqCst);
    let answer = int80(102, call, words.as_ptr().addr() as u32, 0);
    (answer, [words[4].load(Ordering::SeqCst), words[5].load(Ordering::SeqCst)])
}

#[cfg(target_arch = "x86_64")]
#[test]
fn sockets_that_the_filter_cannot_see_are_judged_and_made() {
    if !int80_works() {
        println!("this kernel has no i386 door");
        return;
    }
    const PAIR: u32 = 8;
    let (listener, confined) = recorded(|| {
        let (unix, _) = socketcall(1, libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        let number = unix.expect("a socket");
        let flags = |number: i32| nix::fcntl::fcntl(borrow(number), nix::fcntl::FcntlArg::F_GETFD);
        assert_eq!(flags(number), Ok(libc::FD_CLOEXEC), "as it was asked for");
        let (plain, _) = socketcall(1, libc::AF_INET, libc::SOCK_DGRAM, 0);
        assert_eq!(flags(plain.expect("a socket")), Ok(0), "as it was asked for");

        let (pair, [one, other]) = socketcall(PAIR, libc::AF_UNIX, libc::SOCK_STREAM, 0);
        assert_eq!(pair, Ok(0));
        let (one, other) = (borrow(one), borrow(other));
        assert_eq!(nix::unistd::write(one, b"x"), Ok(1));
        assert_eq!(nix::unistd::read(other, &mut [0]), Ok(1));

        for call in [1, PAIR] {
            assert_eq!(socketcall(call, libc::AF_ALG, 5, 0), (Err(libc::EAFNOSUPPORT), [77, 77]));
            assert_eq!(socketcall(call, libc::AF_VSOCK, 1, 0), (Err(libc::EAFNOSUPPORT), [77, 77]));
            assert_eq!(int80(102, call, 8, 0), Err(libc::EFAULT), "nothing is there");
        }
        assert_eq!(socketcall(1, libc::AF_NETLINK, 3, 9).0, Err(libc::EPROTONOSUPPORT), "audit");
        assert_eq!(socketcall(1, libc::AF_INET, 77, 0).0, Err(libc::EINVAL), "the kernel's own answer");
        let (unsupported, _) = socketcall(PAIR, libc::AF_INET, libc::SOCK_STREAM, 0);
        assert_eq!(unsupported, Err(libc::EOPNOTSUPP), "the kernel's own answer");
        assert_eq!(int80(102, 2, 8, 0), Err(libc::EFAULT), "bind goes to the kernel");
    });
    let (mut recorder, mut maker) = (Recorder::new(listener), Here::default());
    supervise(&mut recorder, &mut maker);
    confined.join().unwrap();
    let families: Vec<i32> = maker.made.iter().map(|wanted| wanted.family).collect();
    assert!(!families.contains(&libc::AF_ALG) && !families.contains(&libc::AF_VSOCK), "{families:?}");
    let refused: Vec<String> = recorder
        .refusals()
        .iter()
        .map(|refused| format!("{} {:?} {}", refused.call, refused.argument, refused.count))
        .collect();
    for expected in [
        r#"socket Some("AF_ALG") 1"#,
        r#"socket Some("AF_VSOCK") 1"#,
        r#"socketpair Some("AF_VSOCK") 1"#,
        r#"socket Some("NETLINK_AUDIT") 1"#,
    ] {
        assert!(refused.iter().any(|line| line == expected), "{expected} is not among {refused:?}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn who_is_not_in_the_rooms_namespaces_gets_none_of_its_sockets() {
    if !int80_works() {
        println!("this kernel has no i386 door");
        return;
    }
    let (listener, confined) = recorded(|| socketcall(1, libc::AF_UNIX, libc::SOCK_STREAM, 0).0);
    let mut maker = Here { elsewhere: true, ..Here::default() };
    supervise(&mut Recorder::new(listener), &mut maker);
    assert_eq!(confined.join().unwrap(), Err(libc::EAFNOSUPPORT));
    assert_eq!(maker.made, []);
}

#[test]
fn a_storm_is_bounded_and_answered() {
    const CLOSELY: u64 = 10_000;
    const CALLS: u64 = CLOSELY + 5_000;
    let (listener, confined) = recorded(|| {
        let refuse = |number: u64| {
            // Every mode another one, as far as modes go.
            let mode = 0o4000 | (number as usize & 0o777);
            assert_eq!(raw(libc::SYS_fchmod, [usize::MAX, mode]), Err(libc::EPERM));
        };
        let start = Instant::now();
        (0..CLOSELY).for_each(refuse);
        let closely = start.elapsed();
        (CLOSELY..CALLS).for_each(refuse);
        (closely, start.elapsed() - closely)
    });
    let mut recorder = Recorder::new(listener);
    supervise(&mut recorder, &mut Here::default());
    let (closely, fast) = confined.join().unwrap();
    let each = |took: Duration, calls: u64| took.as_secs_f64() * 1e6 / calls as f64;
    println!("a recorded refusal: {:.1} µs, in a storm {:.1} µs", each(closely, CLOSELY), each(fast, CALLS - CLOSELY));
    let counted: u64 = recorder.refusals().iter().map(|refused| refused.count).sum();
    assert_eq!(recorder.refusals().len(), 256);
    assert_eq!(counted + recorder.others(), CALLS);
}

/// A program that reports every call of fchmod to a listener.
fn notify_fchmod() -> Vec<libc::sock_filter> {
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    vec![
        step(0x20, 0, 0),
        step(0x15, 1, libc::SYS_fchmod as u32),
        step(0x06, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(0x06, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[test]
fn a_build_cannot_answer_its_own_refusals() {
    let attempt = || {
        let busy = install(&notify_fchmod(), true).unwrap_err();
        assert_eq!(busy.raw_os_error(), Some(libc::EBUSY));
    };
    let (listener, confined) = recorded(move || {
        attempt();
        // Blocks until the listener is closed, then the kernel answers.
        assert_eq!(raw(libc::SYS_fchmod, [usize::MAX, 0o4755]), Err(libc::ENOSYS));
        // The kernel would allow a second listener now; the filter still does not, so nothing can say "continue".
        attempt();
        assert_eq!(raw(libc::SYS_fchmod, [usize::MAX, 0o4755]), Err(libc::ENOSYS));
    });
    nix::poll::poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::from(10_000_u16)).unwrap();
    drop(listener);
    confined.join().unwrap();
}

#[test]
fn without_recording_a_listener_of_the_builds_own_loses_to_the_errno() {
    confined(PLAIN, || {
        let _own = install(&notify_fchmod(), true).unwrap().expect("a listener");
        assert_eq!(raw(libc::SYS_fchmod, [usize::MAX, 0o4755]), Err(libc::EPERM));
    });
}

#[test]
fn a_filter_needs_no_new_privs_and_a_program() {
    let error = install(&[], false).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    let error = install(&[], true).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn what_loading_costs() {
    for choices in [PLAIN, RECORDING, Choices { compat: false, ..PLAIN }] {
        let mut times: Vec<Duration> = (0..25)
            .map(|_| {
                thread::spawn(move || {
                    nix::sys::prctl::set_no_new_privs().unwrap();
                    let start = Instant::now();
                    let listener = install(program(choices), choices.record).unwrap();
                    let took = start.elapsed();
                    assert_eq!(listener.is_some(), choices.record);
                    took
                })
                .join()
                .unwrap()
            })
            .collect();
        times.sort_unstable();
        println!("{choices:?}: {} instructions, median {:?}, least {:?}", program(choices).len(), times[12], times[0]);
    }
}
