//! The session keyring. keyctl(2).

use std::ffi::CString;

use nix::errno::Errno;

use crate::{Answer, done};

const KEYCTL_GET_KEYRING_ID: libc::c_long = 0;
const KEYCTL_SEARCH: libc::c_long = 10;
const KEY_SPEC_SESSION_KEYRING: libc::c_long = -3;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;

pub fn answer(words: &[&str]) -> Option<Answer> {
    Some(match *words {
        ["session-keyring"] => session_keyring().map(|serial| serial.to_string()),
        ["add-key", name] => done(add_key(name)),
        ["find-key", name] => done(find_key(name)),
        ["with-key", name, ref command @ ..] => with_key(name, command),
        _ => return None,
    })
}

fn session_keyring() -> Result<libc::c_long, Errno> {
    // SAFETY: this operation takes integers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0) })
}

fn add_key(name: &str) -> Result<libc::c_long, Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let (kind, value) = (c"user".as_ptr(), b"secret".as_ptr());
    // SAFETY: the two strings end with NUL, the value is as long as it says, all outlive the call.
    let made = unsafe { libc::syscall(libc::SYS_add_key, kind, name.as_ptr(), value, 6, KEY_SPEC_SESSION_KEYRING) };
    Errno::result(made)
}

fn find_key(name: &str) -> Result<libc::c_long, Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let (kind, keyring) = (c"user".as_ptr(), KEY_SPEC_SESSION_KEYRING);
    // SAFETY: both strings end with NUL and outlive the call.
    let found = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SEARCH, keyring, kind, name.as_ptr(), 0) };
    Errno::result(found)
}

/// Becomes a command in a session keyring of its own that holds a key; outside of rooms this is the caller.
fn with_key(name: &str, command: &[&str]) -> Answer {
    use std::os::unix::process::CommandExt;
    let no_name: *const libc::c_char = std::ptr::null();
    // SAFETY: without a name the kernel reads no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, no_name) })?;
    add_key(name)?;
    let (program, arguments) = command.split_first().ok_or(Errno::EINVAL)?;
    Err(crate::errno(std::process::Command::new(program).args(arguments).exec()))
}
