//! Who a client is, and how far it is believed.
//!
//! Words of `trusted-users` and `allowed-users` are names of users, `@` and the name of a group, or `*` for all. Who the client is
//! says the kernel (`SO_PEERCRED`). Source: `src/nix/unix/daemon.cc` of Nix.

use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

/// Somebody at the other end of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The user's number.
    pub uid: u32,
    /// The number of the group that it was in when it connected.
    pub gid: u32,
    /// The user's name, or the number where there is none.
    pub name: String,
}

/// How far a client is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As the store's owner is.
    Trusted,
    /// Only what can be checked.
    Untrusted,
    /// It may not connect.
    Refused,
}

impl Peer {
    /// Whoever is connected to `socket`.
    ///
    /// # Errors
    /// It is no socket on this machine.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let credentials = rustix::net::sockopt::socket_peercred(socket)?;
        Ok(Self::new(credentials.uid.as_raw(), credentials.gid.as_raw()))
    }

    /// Somebody with these numbers.
    pub fn new(uid: u32, gid: u32) -> Self {
        let entry = database_entry(
            "passwd",
            |fields| fields.get(2).is_some_and(|field| *field == uid.to_string()),
            &uid.to_string(),
        );
        let name = entry.and_then(|entry| entry.split(':').next().map(str::to_owned)).filter(|name| !name.is_empty());
        Self { uid, gid, name: name.unwrap_or_else(|| uid.to_string()) }
    }

    /// How far it is believed. The superuser and whoever the server itself runs as could write to the store by hand.
    pub fn standing(&self, trusted: &[String], allowed: &[String]) -> Standing {
        if self.uid == 0 || self.uid == rustix::process::geteuid().as_raw() || self.is_among(trusted) {
            Standing::Trusted
        } else if self.is_among(allowed) {
            Standing::Untrusted
        } else {
            Standing::Refused
        }
    }

    fn is_among(&self, words: &[String]) -> bool {
        words.iter().any(|word| match word.strip_prefix('@') {
            Some(group) => self.is_in(group),
            None => word == "*" || *word == self.name,
        })
    }

    fn is_in(&self, group: &str) -> bool {
        let entry = database_entry("group", |fields| fields.first() == Some(&group), group);
        entry.is_some_and(|entry| {
            let fields: Vec<&str> = entry.split(':').collect();
            fields.get(2).is_some_and(|number| *number == self.gid.to_string())
                || fields.get(3).is_some_and(|members| members.split(',').any(|member| member == self.name))
        })
    }
}

/// An entry of the user database: from the file, or from wherever else this machine keeps them.
fn database_entry(database: &str, wanted: impl Fn(&[&str]) -> bool, key: &str) -> Option<String> {
    let file = std::fs::read(format!("/etc/{database}")).unwrap_or_default();
    let file = String::from_utf8_lossy(&file);
    let find = |text: &str| text.lines().find(|line| wanted(&line.split(':').collect::<Vec<_>>())).map(str::to_owned);
    find(&file).or_else(|| {
        let asked =
            Command::new("getent").args([database, key]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        find(&String::from_utf8_lossy(&asked.stdout))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn names_groups_and_everybody_are_understood() {
        // In every user database there is.
        let root = Peer::new(0, 0);
        assert_eq!(root.name, "root");
        assert!(root.is_among(&words(&["root"])) && root.is_among(&words(&["@root"])) && root.is_among(&words(&["*"])));
        assert!(!root.is_among(&words(&["nobody", "@nobody", "@", ""])));
        let stranger = Peer::new(4_000_000_000, 4_000_000_000);
        assert_eq!(stranger.name, "4000000000");
        assert_eq!(stranger.standing(&[], &words(&["*"])), Standing::Untrusted);
        assert_eq!(stranger.standing(&[], &words(&["root"])), Standing::Refused);
        assert_eq!(stranger.standing(&words(&["4000000000"]), &[]), Standing::Trusted);
        assert_eq!(root.standing(&[], &[]), Standing::Trusted);
    }
}
