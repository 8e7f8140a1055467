//! The room of a build, as a pure function of what the build is and what policy allows.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anchorhold_sandbox::quantity::Size;
use anchorhold_sandbox::room::{
    Devices, Entry, Identity, Limits, Network, NetworkMode, Output, Outside, Personality, Process, Profile,
};
use anchorhold_sandbox::text::Text;
use anchorhold_sandbox::{Layer, Room};

use super::environment::BuilderInput;
use crate::store_path::{StoreDir, StorePath};

/// What a builder's room is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The store as the builder names it.
    pub store_dir: &'a StoreDir,
    /// Where the store's files really lie.
    pub real_store: &'a Path,
    /// The closure of the inputs: exactly what the builder may see of the store.
    pub inputs: &'a [StorePath],
    /// Where the builder's own store directory, build directory and `/tmp` lie.
    pub scratch: ScratchPaths<'a>,
    /// The build directory as the builder names it.
    pub build_dir: &'a str,
    /// Further paths, from configuration.
    pub sandbox_paths: &'a [SandboxPath],
    /// The bound of `/dev/shm`.
    pub shm_size: Size,
    /// The network of a build that is granted one.
    pub fetch: Network,
    /// What it is allowed beyond.
    pub grants: Grants,
    /// How much it may use.
    pub limits: Limits,
    /// The kernel's ids behind its own.
    pub outside: Outside,
    /// What runs.
    pub command: BuilderInput,
}

/// Host paths of the three directories that a builder may write.
#[derive(Debug, Clone, Copy)]
pub struct ScratchPaths<'a> {
    /// Behind the store.
    pub store: &'a Path,
    /// Behind the build directory.
    pub build: &'a Path,
    /// Behind `/tmp`.
    pub tmp: &'a Path,
}

/// A path that every builder sees: Nix's `inside=outside?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPath {
    /// Where it stands in the room.
    pub inside: PathBuf,
    /// Where it stands on the host.
    pub outside: PathBuf,
    /// Whether it may be missing.
    pub optional: bool,
}

impl SandboxPath {
    /// Reads Nix's spelling: `inside`, `inside=outside`, either with a `?` at its end.
    pub fn parse(text: &str) -> Self {
        let (text, optional) = text.strip_suffix('?').map_or((text, false), |rest| (rest, true));
        let (inside, outside) = text.split_once('=').unwrap_or((text, text));
        Self { inside: inside.into(), outside: outside.into(), optional }
    }
}

/// What a builder is given beyond the ordinary, by what it asked for and policy granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grants {
    /// `/dev/kvm`.
    pub kvm: bool,
    /// That it makes sandboxes itself.
    pub nested: bool,
    /// A way out to the network, because its output is known beforehand.
    pub fetch: bool,
    /// That it sees the host's files, read-only, and its network: `__noChroot` where policy is relaxed.
    pub no_room: bool,
    /// A Linux machine of its own.
    pub linux_vm: bool,
    /// A guest that is reached by the network, and a controller beside it.
    pub windows_vm: bool,
    /// That 32-bit is the machine it sees.
    pub linux32: bool,
}

/// Directories of the host that a build without a room sees.
const HOST: [&str; 8] = ["/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr"];

/// The room.
pub fn room(parts: Parts<'_>) -> Room {
    let store_dir = Path::new(parts.store_dir.as_str());
    let writable = |inside: &Path, outside: &Path| Entry::Bind {
        inside: inside.to_owned(),
        outside: Some(outside.to_owned()),
        writable: true,
        optional: false,
        noexec: false,
    };
    let read_only = |inside: PathBuf, outside: PathBuf, optional| Entry::Bind {
        inside,
        outside: Some(outside),
        writable: false,
        optional,
        noexec: false,
    };
    let build_dir = Path::new(parts.build_dir);
    let mut mounts = vec![
        writable(store_dir, parts.scratch.store),
        writable(build_dir, parts.scratch.build),
        writable(Path::new("/tmp"), parts.scratch.tmp),
    ];
    mounts.extend(
        parts
            .inputs
            .iter()
            .map(|input| read_only(store_dir.join(input.as_str()), parts.real_store.join(input.as_str()), false)),
    );
    // Where the host's own files stand, nothing can be put over them.
    let is_hosts = |path: &&SandboxPath| parts.grants.no_room && HOST.iter().any(|host| path.inside.starts_with(host));
    mounts.extend(
        parts
            .sandbox_paths
            .iter()
            .filter(|path| !is_hosts(path))
            .map(|path| read_only(path.inside.clone(), path.outside.clone(), path.optional)),
    );
    if parts.grants.no_room {
        mounts.extend(HOST.iter().map(|path| read_only(path.into(), path.into(), true)));
    }
    // The host's own stands there then.
    let without = if parts.grants.no_room { [Layer::Etc].into() } else { BTreeSet::new() };
    let text = |bytes: Vec<u8>| Text(OsString::from_vec(bytes));
    let mut arguments = parts.command.arguments.into_iter().map(text);
    let profile = match parts.grants {
        Grants { fetch: true, .. } => Profile::Fetch,
        Grants { nested: true, .. } => Profile::Nested,
        _ => Profile::Build,
    };
    Room {
        profile,
        without,
        identity: Identity { home: build_dir.to_owned(), outside: parts.outside, ..Identity::default() },
        mounts,
        devices: Devices { kvm: parts.grants.kvm, shm_size: parts.shm_size },
        network: match parts.grants {
            Grants { no_room: true, .. } => Network { mode: Some(NetworkMode::Host), ..Network::default() },
            Grants { fetch: true, .. } => parts.fetch,
            _ => Network::default(),
        },
        limits: parts.limits,
        process: Process {
            program: text(parts.command.program),
            argv0: arguments.next(),
            arguments: arguments.collect(),
            environment: parts.command.environment.into_iter().map(|(name, value)| (text(name), text(value))).collect(),
            directory: build_dir.to_owned(),
            output: Output::Log,
            personality: if parts.grants.linux32 { Personality::Linux32 } else { Personality::Native },
            ..Process::default()
        },
        ..Room::default()
    }
}
