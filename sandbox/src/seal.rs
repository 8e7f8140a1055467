//! The seal: what the kernel itself says of the room, read from outside after set-up and before anything of the payload runs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use nix::unistd::Pid;
use serde::Serialize;

use crate::error::Error;
use crate::host::KernelRoot;
use crate::layers::{self, Layer, cgroup::Cgroup, namespaces::Kind};
use crate::plan::{Plan, Weakening};
use crate::room::Profile;
use crate::site::Note;
use crate::sys::file::read_proc;

/// What one layer's reading back found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    facts: BTreeMap<String, String>,
    wrong: Vec<String>,
}

impl Finding {
    /// Nothing found yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Something as it should be, worth showing.
    pub fn fact(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.facts.insert(key.into(), value.into());
    }

    /// Something that is not as planned.
    pub fn wrong(&mut self, what: impl Into<String>) {
        self.wrong.push(what.into());
    }

    /// A fact that must have one value.
    pub fn expect(&mut self, key: &str, found: Option<&str>, wanted: &str) {
        match found {
            Some(found) if found == wanted => self.fact(key, found),
            Some(found) => self.wrong(format!("{key} is {found}, not {wanted}")),
            None => self.wrong(format!("{key} is not shown")),
        }
    }
}

/// The state of a layer in a seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Read back and found as planned.
    Verified,
    /// Read back and found as planned, but the plan was less than the layer's full strength.
    Weaker,
    /// Left out by name.
    LeftOut,
}

/// One layer's part of the seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sealed {
    /// The layer.
    pub layer: Layer,
    /// Its state.
    pub state: State,
    /// What is open because of its state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<String>,
    /// What the kernel showed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
}

/// The whole seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seal {
    /// Version of this form.
    pub version: u32,
    /// The program and version that made the room.
    pub made_by: &'static str,
    /// `uname -r`.
    pub kernel: String,
    /// The room's profile.
    pub profile: Profile,
    /// The layers.
    pub layers: Vec<Sealed>,
}

impl Seal {
    /// Whether every layer is there at its full strength.
    pub fn is_whole(&self) -> bool {
        self.layers.iter().all(|sealed| sealed.state == State::Verified)
    }
}

/// A line of `/proc/<pid>/mountinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountLine<'a> {
    /// Its id.
    pub id: &'a str,
    /// The id of the mount that it stands on.
    pub parent: &'a str,
    /// Mount point, from the room's root.
    pub point: &'a str,
    /// Per-mount options.
    options: &'a str,
    /// `shared:N`, `master:N` and so on.
    pub propagation: &'a str,
    /// File system type.
    pub kind: &'a str,
    /// Source as the file system names it.
    pub source: &'a str,
}

impl<'a> MountLine<'a> {
    /// Whether it has a per-mount option.
    pub fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|one| one == option)
    }

    /// The mount point as a path: a blank in it is no longer `\040`.
    pub fn path(&self) -> PathBuf {
        crate::sys::mount::unescape(self.point.as_bytes())
    }

    fn parse(line: &'a str) -> Option<Self> {
        // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.splitn(7, ' ');
        let (id, parent) = (left.next()?, left.next()?);
        let mut left = left.skip(2);
        let mut right = right.split(' ');
        Some(Self {
            id,
            parent,
            point: left.next()?,
            options: left.next()?,
            propagation: left.next().unwrap_or_default(),
            kind: right.next()?,
            source: right.next()?,
        })
    }

    /// All lines of a mount table.
    pub fn parse_all(table: &'a str) -> Vec<Self> {
        table.lines().filter_map(Self::parse).collect()
    }
}

/// What of a room no longer changes once it is locked: read while the rest is still being done.
pub struct Standing {
    mount_table: String,
    namespaces: [(Kind, io::Result<String>, io::Result<String>); Kind::ALL.len()],
    files: [(&'static str, io::Result<String>); 3],
}

impl Standing {
    /// Reads it.
    ///
    /// # Errors
    /// When procfs does not show the process.
    pub fn read_from_kernel(pid: Pid) -> io::Result<Self> {
        let process = pid.to_string();
        let read = |name: &str| read_proc(format!("/proc/{process}/{name}"));
        Ok(Self {
            mount_table: read("mountinfo")?,
            namespaces: Kind::ALL.map(|kind| (kind, namespace_of(&process, kind), namespace_of("self", kind))),
            files: ["uid_map", "gid_map", "net/dev"].map(|name| (name, read(name))),
        })
    }
}

/// What of a room's first process no longer changes once it has given up its capabilities.
pub struct Bare {
    limits: io::Result<String>,
    stat: String,
    open_after_exec: io::Result<Vec<u32>>,
}

impl Bare {
    /// Reads it.
    ///
    /// # Errors
    /// When procfs does not show the process.
    pub fn read_from_kernel(pid: Pid) -> io::Result<Self> {
        Ok(Self {
            limits: read_proc(format!("/proc/{pid}/limits")),
            stat: read_proc(format!("/proc/{pid}/stat"))?,
            open_after_exec: open_after_exec(pid),
        })
    }
}

/// Descriptors that exec will not close.
fn open_after_exec(pid: Pid) -> io::Result<Vec<u32>> {
    const CLOSE_ON_EXEC: u32 = libc::O_CLOEXEC as u32;
    let mut open = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let info = match read_proc(format!("/proc/{pid}/fdinfo/{number}")) {
            // Closed since it was listed: the room's first process goes on meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            info => info?,
        };
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
            .unwrap_or(0);
        if flags & CLOSE_ON_EXEC == 0 {
            open.push(number);
        }
    }
    open.sort_unstable();
    Ok(open)
}

/// The room's first process as the kernel shows it from outside, and what it reported of itself.
pub struct View<'a> {
    /// Its id, outside.
    pub pid: Pid,
    /// The mount table.
    pub mounts: Vec<MountLine<'a>>,
    /// The supervisor's own session keyring.
    pub own_keyring: &'a str,
    /// The room's control group.
    pub cgroup: Option<&'a Cgroup>,
    /// What shares of memory were computed from, in bytes.
    pub memory: u64,
    /// What the kernel's uid 0 and gid 0 are called where we live.
    pub kernel_root: KernelRoot,
    standing: &'a Standing,
    bare: &'a Bare,
    status: String,
    notes: &'a [Note],
    weakenings: &'a [Weakening],
}

impl<'a> View<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// When procfs does not show the process.
    pub fn read_from_kernel(
        pid: Pid,
        plan: &'a Plan,
        standing: &'a Standing,
        bare: &'a Bare,
        notes: &'a [Note],
        own_keyring: &'a str,
        cgroup: Option<&'a Cgroup>,
    ) -> io::Result<Self> {
        Ok(Self {
            pid,
            mounts: MountLine::parse_all(&standing.mount_table),
            own_keyring,
            cgroup,
            memory: plan.memory,
            kernel_root: plan.kernel_root,
            standing,
            status: read_proc(format!("/proc/{pid}/status"))?,
            bare,
            notes,
            weakenings: &plan.weakenings,
        })
    }

    /// A field of `/proc/<pid>/status`.
    pub fn status(&self, key: &str) -> Option<&str> {
        self.status.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
    }

    /// A field of `/proc/<pid>/stat`, counted from 1 as in proc(5).
    pub fn stat_field(&self, number: usize) -> Option<String> {
        let (_, rest) = self.bare.stat.rsplit_once(") ")?;
        rest.split_ascii_whitespace().nth(number.checked_sub(3)?).map(str::to_owned)
    }

    /// `uid_map`, `gid_map` or `net/dev` of `/proc/<pid>`.
    ///
    /// # Errors
    /// What kept it from being read.
    pub fn standing_file(&self, name: &str) -> Result<&str, String> {
        match self.standing.files.iter().find(|(one, _)| *one == name) {
            Some((_, Ok(text))) => Ok(text),
            Some((_, Err(error))) => Err(format!("/proc/PID/{name}: {error}")),
            None => Err(format!("/proc/PID/{name} was not read")),
        }
    }

    /// A file of `/proc/<pid>`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self, name: &str) -> io::Result<String> {
        read_proc(format!("/proc/{}/{name}", self.pid))
    }

    /// The identity of a namespace of the room, and that of the supervisor's own.
    ///
    /// # Errors
    /// What kept it from being read.
    pub fn namespace(&self, kind: Kind) -> Result<(&str, &str), String> {
        let found = self.standing.namespaces.iter().find(|(one, ..)| *one == kind);
        match found {
            Some((_, Ok(inside), Ok(outside))) => Ok((inside, outside)),
            Some((_, Err(error), _) | (_, _, Err(error))) => Err(format!("/proc/PID/ns/{}: {error}", kind.name())),
            None => Err(format!("the {} namespace was not read", kind.name())),
        }
    }

    /// What the room reported of itself.
    pub fn note(&self, layer: Layer, key: &str) -> Option<&str> {
        self.notes.iter().find(|note| note.layer == layer && note.key == key).map(|note| note.value.as_str())
    }

    /// Whether the plan said that a layer would be weaker.
    pub fn weakened(&self, layer: Layer) -> bool {
        self.weakenings.iter().any(|weakening| weakening.layer == layer)
    }

    /// Descriptors that exec will not close.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_after_exec(&self) -> Result<&[u32], &io::Error> {
        self.bare.open_after_exec.as_deref()
    }

    /// `/proc/<pid>/limits`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn limits(&self) -> Result<&str, &io::Error> {
        self.bare.limits.as_deref()
    }
}

fn namespace_of(process: &str, kind: Kind) -> io::Result<String> {
    let link = fs::read_link(format!("/proc/{process}/ns/{}", kind.name()))?;
    Ok(link.to_string_lossy().into_owned())
}

/// Reads everything back and compares it with the plan.
///
/// # Errors
/// [`Error::NotSealed`] for the first layer that is not as planned.
pub fn seal(plan: &Plan, view: &View<'_>) -> Result<Seal, Error> {
    let room = &plan.room;
    let mut sealed = Vec::new();
    for (layer, finding) in layers::verify(room, view) {
        if layer == Layer::Process {
            continue;
        }
        if !room.has(layer) {
            let open = vec![layer.left_open().to_owned()];
            sealed.push(Sealed { layer, state: State::LeftOut, open, facts: BTreeMap::new() });
            continue;
        }
        if !finding.wrong.is_empty() {
            return Err(Error::NotSealed { layer, what: finding.wrong.join("; ") });
        }
        let open: Vec<_> =
            plan.weakenings.iter().filter(|weak| weak.layer == layer).map(|weak| weak.what.clone()).collect();
        let state = if open.is_empty() { State::Verified } else { State::Weaker };
        sealed.push(Sealed { layer, state, open, facts: finding.facts });
    }
    Ok(Seal {
        version: 1,
        made_by: concat!("anchorhold ", env!("CARGO_PKG_VERSION")),
        kernel: nix::sys::utsname::uname()
            .map(|uname| uname.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        profile: room.profile,
        layers: sealed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_is_read_with_and_without_propagation() {
        let table = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
                     37 35 0:5 / / ro,nosuid - tmpfs none rw\n";
        let lines = MountLine::parse_all(table);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].point, lines[0].propagation, lines[0].kind), ("/mnt2", "master:1 shared:2", "ext3"));
        assert!(lines[1].has("ro") && lines[1].has("nosuid") && !lines[1].has("no") && lines[1].propagation.is_empty());
    }
}
