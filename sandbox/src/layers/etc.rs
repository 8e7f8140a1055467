//! The generated `/etc`: nothing of the host's is in it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::Layer;
use crate::error::Refusal;
use crate::host::Host;
use crate::plan::{Draft, Stage};
use crate::room::Room;
use crate::seal::{Finding, View};
use crate::site::{Outcome, Site, check_room_path};
use crate::sys::MountFlags;

/// The steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A file of `/etc`.
    File {
        /// Its name.
        name: &'static str,
        /// What is in it.
        text: String,
    },
    /// The host's `/etc`, for a room without this layer.
    HostEtc,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, .. } => write!(f, "write /etc/{name}"),
            Self::HostEtc => f.write_str("bind the host's /etc"),
        }
    }
}

pub(super) fn plan(room: &Room, host: &Host, draft: &mut Draft) -> Result<(), Refusal> {
    for (what, text) in [("user name", &room.identity.user), ("group name", &room.identity.group)] {
        if text.is_empty() || text.contains([':', '\n', '\0', '/']) {
            return Err(Refusal::new(
                Layer::Etc,
                format!("{what} {text:?}"),
                "a name in /etc/passwd has no colon, slash, newline or NUL and is not empty",
                "choose another name",
            ));
        }
    }
    let home = &room.identity.home;
    let no_home = match check_room_path(home) {
        Err(why) => Some(why),
        Ok(()) if home.as_os_str().as_encoded_bytes().contains(&b':') => Some("a colon ends a field of /etc/passwd"),
        Ok(()) => None,
    };
    if let Some(why) = no_home {
        return Err(Refusal::new(Layer::Etc, format!("home directory {home:?}"), why, "choose another one"));
    }
    if let Some(line) = room.etc.hosts.iter().find(|line| line.contains(['\n', '\0'])) {
        return Err(Refusal::new(
            Layer::Etc,
            format!("the line {line:?} of /etc/hosts"),
            "it has a newline or a NUL in it",
            "give each line by itself",
        ));
    }
    if !room.has(Layer::Etc) {
        draft.add(Stage::Tree, Action::HostEtc);
        return Ok(());
    }
    let identity = &room.identity;
    let home = identity.home.display();
    // The lines of Nix's sandbox (nix-sandbox 1.2): builds that print them should not differ.
    let mut passwd = format!("root:x:0:0:Nix build user:{home}:/noshell\n");
    if identity.uid != 0 {
        passwd += &format!("{}:x:{}:{}:Nix build user:{home}:/noshell\n", identity.user, identity.uid, identity.gid);
    }
    passwd += "nobody:x:65534:65534:Nobody:/:/noshell\n";
    let mut group = String::from("root:x:0:\n");
    if identity.gid != 0 {
        group += &format!("{}:!:{}:\n", identity.group, identity.gid);
    }
    group += "nogroup:x:65534:\n";
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for line in &room.etc.hosts {
        hosts += line;
        hosts.push('\n');
    }
    let mut files = vec![("passwd", passwd), ("group", group), ("hosts", hosts)];
    if let Some(resolv_conf) = super::network::resolv_conf(room, host) {
        files.push(("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n".into()));
        files.push(("resolv.conf", resolv_conf));
    }
    for (name, text) in files {
        let path = PathBuf::from("/etc").join(name);
        if room.mounts.iter().any(|entry| entry.inside() == path) {
            return Err(Refusal::new(
                Layer::Etc,
                format!("mount point {}", path.display()),
                "the generated one stands there",
                "leave it out, or have no generated /etc with --without etc",
            ));
        }
        draft.add(Stage::Tree, Action::File { name, text });
    }
    Ok(())
}

pub(super) fn apply(action: &Action, site: &mut Site<'_>) -> Outcome {
    match action {
        Action::File { name, text } => site.create_file(&PathBuf::from("/etc").join(name), text.as_bytes(), 0o444),
        Action::HostEtc => site.bind_host_path("/etc".as_ref(), MountFlags::READ_ONLY),
    }
}

pub(super) fn verify(_: &Room, view: &View<'_>) -> Finding {
    let mut finding = Finding::new();
    match view.mounts.iter().find(|mount| mount.point == "/etc") {
        Some(mount) => finding.wrong(format!("/etc is a mount of {}", mount.source)),
        None => finding.fact("generated", "nothing is mounted on /etc"),
    }
    finding
}
