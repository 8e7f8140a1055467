//! Kernel ids for rooms that root starts: a private one, or a private range, for each room that lives.
//!
//! A slot is locked with flock(2) on a file of its own below the run directory, held by the supervisor until everything in the room is
//! dead, and freed by the kernel whatever way the supervisor ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;

use crate::layers::identity::Extent;
use crate::site::Trouble;

/// How many ids a slot has, and a room with a range gets.
pub const RANGE_LENGTH: u32 = 65_536;

/// The first id of the first slot. systemd's list of id ranges (UIDS-GIDS) leaves 0x7000_0000 to 0x7fff_ffff unused; Nix's
/// auto-allocated ids (from 0x3400_0000) and container managers' stay below.
pub const FIRST_ID: u32 = 0x7000_0000;

const SLOTS: u32 = 4096;

/// Where ids come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The first id of slot 0.
    pub first: u32,
    /// How many ids apart slots are.
    pub stride: u32,
    /// How many slots there are.
    pub slots: u32,
    /// Where the lock files are.
    pub locks: PathBuf,
}

impl Pool {
    /// The pool of this host, from the uid map of the user namespace that we live in: in a container only mapped ids exist.
    ///
    /// # Errors
    /// Words, when the map has no room for private ids.
    pub fn from_uid_map(uid_map: &str, locks: &Path) -> Result<Self, String> {
        let extents: Vec<(u64, u64)> = uid_map
            .lines()
            .filter_map(|line| {
                let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
                match (numbers.next()?, numbers.next()?, numbers.next()?) {
                    (Ok(inside), Ok(_), Ok(length)) => Some((inside, length)),
                    _ => None,
                }
            })
            .collect();
        let pool = |first: u32, stride: u32, slots: u32| Ok(Self { first, stride, slots, locks: locks.to_owned() });
        let holds = |first: u64, length: u64| {
            extents.iter().any(|(inside, count)| *inside <= first && first + length <= inside + count)
        };
        let all = u64::from(SLOTS) * u64::from(RANGE_LENGTH);
        if holds(FIRST_ID.into(), all) {
            return pool(FIRST_ID, RANGE_LENGTH, SLOTS);
        }
        // In a container: the upper half of the largest extent, one id a slot; distribution users live in the lower half.
        let (inside, count) = extents.iter().copied().max_by_key(|(_, count)| *count).unwrap_or((0, 0));
        let slots = (count / 4).min(u64::from(SLOTS)) as u32;
        if slots < 8 {
            return Err(format!("this user namespace maps only {count} ids"));
        }
        // 65534 is nobody: stay below it.
        let first = (inside + count / 2) as u32;
        pool(first, 1, slots)
    }
}

/// Ids that no other room has while this value lives.
#[derive(Debug)]
pub struct Reservation {
    /// The first of them.
    pub first: u32,
    _lock: Flock<File>,
}

impl Reservation {
    /// Takes the first free slot.
    ///
    /// # Errors
    /// When the lock directory cannot be made or trusted, or every slot is taken.
    pub fn take(length: u32, pool: &Pool) -> Result<Self, Trouble> {
        if length > pool.stride {
            return Err(Trouble::new(
                Errno::ERANGE,
                format!("{length} ids were asked for, and this user namespace has {} for a room", pool.stride),
            ));
        }
        let say = |error: io::Error| {
            Trouble::new(
                error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
                format!("lock directory {}", pool.locks.display()),
            )
        };
        prepare(&pool.locks).map_err(say)?;
        // The lowest free one: the ids show in mount tables and on files, and should differ between runs as little as can be.
        for slot in 0..pool.slots {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(pool.locks.join(slot.to_string()))
                .map_err(say)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { first: pool.first + slot * pool.stride, _lock: lock }),
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {}
                Err((_, errno)) => return Err(Trouble::from(errno)),
            }
        }
        Err(Trouble::new(Errno::EAGAIN, format!("all {} slots are taken by living rooms", pool.slots)))
    }
}

/// Makes the lock directory, or makes sure that nobody else could have.
fn prepare(locks: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(locks) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let found = std::fs::symlink_metadata(locks)?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}

/// The caller's lines in `/etc/subuid` and `/etc/subgid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subordinate {
    /// First uid.
    pub uid: u32,
    /// First gid.
    pub gid: u32,
    /// How many of both.
    pub length: u32,
}

impl Subordinate {
    /// Finds them for a user.
    ///
    /// # Errors
    /// Words, when a helper or a line is missing.
    pub fn find(user: &str, uid: u32) -> Result<Self, String> {
        for helper in ["newuidmap", "newgidmap"] {
            helper_path(helper).ok_or_else(|| format!("{helper} is not installed"))?;
        }
        let read = |path: &str| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let (uids, gids) = (read("/etc/subuid")?, read("/etc/subgid")?);
        let line = |text: &str, path: &str| {
            Self::line(text, user, uid)
                .ok_or_else(|| format!("{path} has no line with 65,536 ids for {user} (uid {uid})"))
        };
        let (uid, gid) = (line(&uids, "/etc/subuid")?, line(&gids, "/etc/subgid")?);
        Ok(Self { uid: uid.0, gid: gid.0, length: uid.1.min(gid.1) })
    }

    fn line(text: &str, user: &str, uid: u32) -> Option<(u32, u32)> {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let owner = fields.next()?;
            let (first, length) = (fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
            ((owner == user || owner.parse() == Ok(uid)) && length >= RANGE_LENGTH && first > 0)
                .then_some((first, length))
        })
    }
}

/// The kernel ids of a user of this host, by name or number; a number needs no entry in the user database.
///
/// # Errors
/// Words, when there is no such user.
pub fn user(name: &str) -> Result<(u32, u32), String> {
    match (entry(name)?, name.parse()) {
        (Some(entry), _) => Ok((entry.uid, entry.gid)),
        (None, Ok(number)) => Ok((number, number)),
        (None, Err(_)) => Err(format!("there is no user {name}; getent passwd shows those there are")),
    }
}

/// A line of the user database, passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserEntry {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

impl UserEntry {
    /// The line for a user given by name or number.
    fn find(table: &str, user: &str) -> Option<Self> {
        table.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, uid, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            (name == user || user.parse() == Ok(uid)).then(|| Self { name: name.to_owned(), uid, gid })
        })
    }
}

/// Looks a user up by name or number.
///
/// Not by getpwnam(3): the C library would load the modules that nsswitch.conf(5) names, and in a static program that ends in a crash
/// where they are not of the very same build. Users who are not in the file are asked of getent(1), which is an ordinary program.
///
/// # Errors
/// Words, when the database cannot be asked.
pub(crate) fn entry(user: &str) -> Result<Option<UserEntry>, String> {
    let file = "/etc/passwd";
    match std::fs::read_to_string(file) {
        Ok(table) if UserEntry::find(&table, user).is_some() => return Ok(UserEntry::find(&table, user)),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("{file}: {error}")),
    }
    let Some(getent) = helper_path("getent") else { return Ok(None) };
    // It takes what begins with a dash for an option, and no user's name does.
    if user.is_empty() || user.starts_with('-') {
        return Ok(None);
    }
    let output = std::process::Command::new(&getent).args(["passwd", user]).env_clear().output();
    let output = output.map_err(|error| format!("{}: {error}", getent.display()))?;
    Ok(UserEntry::find(&String::from_utf8_lossy(&output.stdout), user))
}

pub(crate) fn helper_path(name: &str) -> Option<PathBuf> {
    ["/run/wrappers/bin", "/usr/bin", "/bin", "/usr/local/bin", "/run/current-system/sw/bin"]
        .into_iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
}

/// Runs newuidmap(1) or newgidmap(1) for a process.
///
/// # Errors
/// What it said.
pub(crate) fn run_map_helper(helper: &str, pid: Pid, extent: &Extent) -> Result<(), Trouble> {
    let path = helper_path(helper).ok_or_else(|| Trouble::new(Errno::ENOENT, format!("{helper} is not installed")))?;
    let Extent { inside, outside, length } = extent;
    let output = std::process::Command::new(path)
        .args([pid.to_string(), inside.to_string(), outside.to_string(), length.to_string()])
        .env_clear()
        .output()
        .map_err(|error| Trouble::new(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw), helper))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Trouble::new(Errno::EPERM, format!("{helper}: {}", said.trim().replace('\n', "; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initial_namespace_has_the_whole_pool() {
        let pool = Pool::from_uid_map("         0          0 4294967295\n", Path::new("/run/x")).unwrap();
        assert_eq!((pool.first, pool.stride, pool.slots), (FIRST_ID, RANGE_LENGTH, SLOTS));
    }

    #[test]
    fn a_container_lends_from_its_upper_half() {
        let pool = Pool::from_uid_map("0 100000 65536\n", Path::new("/run/x")).unwrap();
        assert!(pool.first >= 32_768 && pool.first + pool.slots < 65_534, "{pool:?}");
        assert_eq!(pool.stride, 1);
    }

    #[test]
    fn a_namespace_with_one_id_has_none_to_lend() {
        assert!(Pool::from_uid_map("0 1000 1\n", Path::new("/run/x")).is_err());
    }

    #[test]
    fn two_rooms_never_hold_the_same_slot() {
        let directory = tempfile::tempdir().unwrap();
        let locks = directory.path().join("ids");
        let pool = Pool { first: 5000, stride: 1, slots: 3, locks };
        let held: Vec<_> = (0..3).map(|_| Reservation::take(1, &pool).unwrap()).collect();
        let mut ids: Vec<_> = held.iter().map(|slot| slot.first).collect();
        ids.sort_unstable();
        assert_eq!(ids, [5000, 5001, 5002]);
        assert_eq!(Reservation::take(1, &pool).unwrap_err().errno, Errno::EAGAIN);
        drop(held);
        Reservation::take(1, &pool).unwrap();
    }

    #[test]
    fn a_lock_directory_that_others_can_write_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let locks = directory.path().join("ids");
        std::fs::create_dir(&locks).unwrap();
        std::fs::set_permissions(&locks, std::fs::Permissions::from_mode(0o777)).unwrap();
        let pool = Pool { first: 5000, stride: 1, slots: 3, locks };
        assert_eq!(Reservation::take(1, &pool).unwrap_err().errno, Errno::EPERM);
    }

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let table =
            "root:x:0:0:root:/root:/bin/sh\nbroken\n1234:x:7:8::/:\nalice:x:1234:100:Alice:/home/alice:/bin/sh\n";
        let found = |user| UserEntry::find(table, user).map(|entry| (entry.name, entry.uid, entry.gid));
        assert_eq!(found("alice"), Some(("alice".into(), 1234, 100)));
        assert_eq!(found("0"), Some(("root".into(), 0, 0)));
        assert_eq!(found("bob"), None);
        // A name of digits wins over a number that comes later, as the first line wins everywhere.
        assert_eq!(found("1234"), Some(("1234".into(), 7, 8)));
    }

    #[test]
    fn a_number_without_an_entry_is_a_user_and_a_name_is_not() {
        assert_eq!(user("4123456789"), Ok((4_123_456_789, 4_123_456_789)));
        assert!(user("no-such-user-here").unwrap_err().contains("no-such-user-here"));
        assert!(user("-x").is_err());
    }

    #[test]
    fn only_a_line_with_enough_ids_counts() {
        let text = "alice:100000:1000\nbob:200000:65536\n1234:300000:65536\n";
        assert_eq!(Subordinate::line(text, "alice", 5), None);
        assert_eq!(Subordinate::line(text, "bob", 5), Some((200_000, 65_536)));
        assert_eq!(Subordinate::line(text, "nobody", 1234), Some((300_000, 65_536)));
    }
}
