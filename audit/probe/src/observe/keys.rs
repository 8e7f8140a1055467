//! A key in the launcher's session keyring and one in its user keyring, and what others have put there.

use std::ffi::CString;

use anchorhold_probe::observation::SetUp;

use crate::calls;

const SESSION: i32 = -3;
const USER: i32 = -4;

const JOIN_SESSION_KEYRING: usize = 1;
const DESCRIBE: usize = 6;
const UNLINK: usize = 9;
const READ: usize = 11;

/// Our keys; taken away again when dropped.
pub struct Keys {
    nonce: String,
    own: Vec<(i32, i64)>,
}

impl Keys {
    /// Joins a new session keyring, which the command inherits, and adds the keys.
    pub fn add(nonce: &str, set_up: &mut SetUp) -> Self {
        let mut keys = Self { nonce: nonce.to_owned(), own: Vec::new() };
        let name = text(&format!("anchorhold-{nonce}"));
        if let Err(errno) = calls::raw(libc::SYS_keyctl, &[JOIN_SESSION_KEYRING, name.as_ptr() as usize]) {
            set_up.miss("session keyring", errno);
            return keys;
        }
        set_up.session_key = keys.one(SESSION, "session", set_up);
        set_up.user_key = keys.one(USER, "user", set_up);
        keys
    }

    fn one(&mut self, keyring: i32, word: &str, set_up: &mut SetUp) -> Option<String> {
        let description = format!("anchorhold-{word}-{}", self.nonce);
        let (kind, name) = (text("user"), text(&description));
        let added = calls::raw(
            libc::SYS_add_key,
            &[
                kind.as_ptr() as usize,
                name.as_ptr() as usize,
                self.nonce.as_ptr() as usize,
                self.nonce.len(),
                keyring as usize,
            ],
        );
        match added {
            Ok(key) => {
                self.own.push((keyring, key));
                Some(description)
            }
            Err(errno) => {
                set_up.miss(&format!("key in the {word} keyring"), errno);
                None
            }
        }
    }

    /// Descriptions of keys that somebody else has put beside ours, if they hold the nonce; they are taken away.
    pub fn foreign(&self) -> Vec<String> {
        let mut found = Vec::new();
        for keyring in [SESSION, USER] {
            for key in contents(keyring) {
                if self.own.iter().any(|(_, own)| *own == key) {
                    continue;
                }
                let description = describe(key);
                if description.contains(&self.nonce) {
                    let _ = calls::raw(libc::SYS_keyctl, &[UNLINK, key as usize, keyring as usize]);
                    found.push(description);
                }
            }
        }
        found
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        for (keyring, key) in &self.own {
            let _ = calls::raw(libc::SYS_keyctl, &[UNLINK, *key as usize, *keyring as usize]);
        }
    }
}

fn contents(keyring: i32) -> Vec<i64> {
    let mut ids = vec![0_i32; 1024];
    let length =
        calls::raw(libc::SYS_keyctl, &[READ, keyring as usize, ids.as_mut_ptr() as usize, ids.len() * 4]).unwrap_or(0);
    ids.truncate(usize::try_from(length).unwrap_or(0).min(ids.len() * 4) / 4);
    ids.into_iter().map(i64::from).collect()
}

fn describe(key: i64) -> String {
    let mut bytes = vec![0_u8; 4096];
    let length = calls::raw(libc::SYS_keyctl, &[DESCRIBE, key as usize, bytes.as_mut_ptr() as usize, bytes.len()]);
    bytes.truncate(usize::try_from(length.unwrap_or(0)).unwrap_or(0).min(4096));
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
}

fn text(text: &str) -> CString {
    CString::new(text).expect("names of observers have no zero byte")
}
