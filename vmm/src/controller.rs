//! The controller of a pair: the Linux machine beside the guest that exports the store and the exchange over SMB, and runs
//! commands in the guest over SSH.
//!
//! All here is data for its agent: what its image does at the start ([`Controller::start`]), and the programs that it runs
//! for its host. Its root is the image `controller.erofs` of `scripts/guest-images`, on the disk [`ROOT_SERIAL`].

use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::exchange::Command;
use crate::kernel::Feature;
use crate::profile::{Drive, Profile, Reach};
use crate::report::{MountRequest, RunRequest, Streams, What};
use crate::sessions::Size;
use crate::shares::image::Form;
use crate::shares::samba::{ACCOUNTS, Account, Samba, SambaError, Share};
use crate::shares::{self, disk, memory};

/// The controller's address on the wire; the guest's is in its profile.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);
/// The length of the wire's prefix.
pub const PREFIX: u8 = 24;
/// The network card of the guest, as it was in 2014.
pub const GUEST_MAC: &str = "52:54:00:12:01:01";
/// The network card of the controller.
pub const CONTROLLER_MAC: &str = "52:54:00:12:01:02";
/// The serial number of the disk with a machine's root.
pub const ROOT_SERIAL: &str = "root";
/// Where Samba's port is.
pub const SMB_PORT: u16 = 445;

/// The file of the private key.
pub const KEY: &str = "key";
/// The file of the guest's host key.
pub const KNOWN_HOSTS: &str = "known_hosts";

/// A controller, for one guest and one run.
#[derive(Clone, Debug)]
pub struct Controller {
    /// The guest that it is for.
    pub profile: Profile,
    /// As whom the guest's shares are mounted.
    pub account: Account,
    /// The mounts of its own, at least of the directories that the drives' shares are: see [`Self::directory_of`].
    pub mounts: Vec<MountRequest>,
    /// The private key with which the guest lets us in, as a file of OpenSSH.
    pub key: Vec<u8>,
    /// The guest's host key, as a line of known_hosts(5).
    pub known_hosts: Vec<u8>,
}

/// What any machine with a root image does first: its root, memory for what is written, its network.
pub fn root_and_network(address: Ipv4Addr) -> Vec<What> {
    vec![
        What::Mount(disk(ROOT_SERIAL, Form::Erofs, "/root")),
        What::SwitchRoot("/root".into()),
        What::Mount(memory("/run", 32 << 20)),
        What::Mount(memory("/tmp", 64 << 20)),
        What::Network { interface: "lo".into(), address: Some((Ipv4Addr::LOCALHOST, 8)) },
        What::Network { interface: "eth0".into(), address: Some((address, PREFIX)) },
    ]
}

impl Controller {
    /// What its kernel must be able to do, whatever its mounts are.
    pub const FEATURES: [Feature; 8] = [
        Feature::Virtio,
        Feature::Port,
        Feature::Network,
        Feature::Disk,
        Feature::Erofs,
        Feature::Squashfs,
        Feature::NineP,
        Feature::Virtiofs,
    ];

    /// Where the directory behind a share must be mounted in the controller.
    pub fn directory_of(share: &str) -> PathBuf {
        match share {
            shares::STORE_SHARE => "/nix/store".into(),
            shares::EXCHANGE => "/xchg".into(),
            other => Path::new("/run/shares").join(other),
        }
    }

    fn samba(&self) -> Samba {
        let [store, exchange] = [shares::STORE_SHARE, shares::EXCHANGE].map(Self::directory_of);
        let shares = self.profile.drives.iter().map(|drive| Share {
            name: drive.share.clone(),
            path: self.profile.behind(drive, &store, &exchange).unwrap_or_else(|| Self::directory_of(&drive.share)),
            read_only: drive.read_only,
        });
        Samba { folder: "/run/samba".into(), account: self.account.clone(), shares: shares.collect() }
    }

    /// What its image does before it is ready.
    ///
    /// # Errors
    /// If a share cannot be said to Samba.
    pub fn start(&self) -> Result<Vec<What>, SambaError> {
        let mut start = root_and_network(ADDRESS);
        start.extend(self.mounts.iter().cloned().map(What::Mount));
        start.extend(self.files()?);
        Ok(start)
    }

    /// What Samba and ssh read. Written anew, with another account, it holds for whoever comes from then on.
    ///
    /// # Errors
    /// If a share cannot be said to Samba.
    pub fn files(&self) -> Result<Vec<What>, SambaError> {
        let samba = self.samba();
        // A directory is made with the first file in it.
        let made = samba.directories().into_iter().map(|directory| (directory.join(".made"), 0o600, Vec::new()));
        let files = samba.files()?.into_iter().map(|file| (file.path, file.mode, file.content));
        // ssh refuses a key that others may read.
        let ours = [(KEY, 0o600, &self.key), (KNOWN_HOSTS, 0o644, &self.known_hosts)]
            .map(|(name, mode, content)| (Path::new("/run").join(name), mode, content.clone()))
            .into_iter();
        Ok(made.chain(files).chain(ours).map(|(path, mode, content)| What::WriteFile { path, mode, content }).collect())
    }

    /// Who may come in, of [`Self::files`]: all in them that is another's in each run.
    ///
    /// # Errors
    /// If a share cannot be said to Samba.
    pub fn accounts(&self) -> Result<Vec<What>, SambaError> {
        let is_of_accounts = |what: &What| matches!(what, What::WriteFile { path, .. } if path.ends_with(ACCOUNTS));
        Ok(self.files()?.into_iter().filter(is_of_accounts).collect())
    }

    /// Samba's server. It runs until the end; that it ends is a failure of the machine.
    pub fn server(&self) -> RunRequest {
        let mut request = program("/usr/sbin/smbd");
        if let Ok(command) = &mut request.command {
            command.arguments = self.samba().arguments();
        }
        request
    }

    /// Until Samba's own port answers.
    pub fn await_server(milliseconds: u32) -> What {
        What::AwaitBanner { address: ADDRESS, port: SMB_PORT, banner: Vec::new(), milliseconds }
    }

    /// Until the guest's SSH server answers.
    pub fn await_guest(&self, milliseconds: u32) -> What {
        let reach = &self.profile.reach;
        let banner = reach.banner.clone().into_bytes();
        What::AwaitBanner { address: reach.address, port: reach.port, banner, milliseconds }
    }

    /// A line for the guest's shell, over SSH: one connection stays open for all of them, so that it can be saved with
    /// both machines and used again after they are revived. Its status is the line's, or 255 of ssh's own: a wrong host key,
    /// no login, or a connection that was lost.
    pub fn in_guest(&self, line: &str) -> RunRequest {
        let reach = &self.profile.reach;
        let mut request = program("/usr/bin/ssh");
        if let Ok(command) = &mut request.command {
            command.arguments = ssh(reach, Path::new("/run"), (reach.address, reach.port), line);
        }
        request
    }

    /// What a person wants in the guest, over SSH as [`Self::in_guest`], but in a connection of its own.
    pub fn for_person(&self, line: Option<&OsStr>, terminal: Option<&(String, Size)>) -> RunRequest {
        let reach = &self.profile.reach;
        let mut request = program("/usr/bin/ssh");
        if let Ok(command) = &mut request.command {
            let at = (reach.address, reach.port);
            command.arguments = ssh_for_person(reach, Path::new("/run"), at, line, terminal.is_some());
            command.environment.extend(terminal.map(|(name, _)| ("TERM".into(), name.into())));
        }
        RunRequest { streams: Streams::Session(terminal.map(|(_, size)| *size)), alone: true, ..request }
    }

    /// The lines that mount the guest's drives.
    pub fn mount_lines(&self) -> Vec<(&Drive, String)> {
        self.profile.drives.iter().map(|drive| (drive, self.profile.mount(drive, ADDRESS, &self.account))).collect()
    }
}

/// The arguments of ssh for a line in the guest, which is reached at this address and port. The files [`KEY`] and
/// [`KNOWN_HOSTS`] are in `folder`, and the session's socket is made there.
pub fn ssh(reach: &Reach, folder: &Path, at: (Ipv4Addr, u16), line: &str) -> Vec<OsString> {
    let file = |option: &str, name: &str| {
        let mut argument = OsString::from(option);
        argument.push(folder.join(name));
        argument
    };
    vec![
        // No configuration but this.
        "-F/dev/null".into(),
        file("-i", KEY),
        format!("-p{}", at.1).into(),
        "-oIdentitiesOnly=yes".into(),
        file("-oUserKnownHostsFile=", KNOWN_HOSTS),
        "-oGlobalKnownHostsFile=/dev/null".into(),
        format!("-oHostKeyAlias={}", reach.address).into(),
        "-oStrictHostKeyChecking=yes".into(),
        "-oBatchMode=yes".into(),
        format!("-oConnectTimeout={}", reach.login_seconds).into(),
        // A guest that freezes is noticed.
        "-oServerAliveInterval=5".into(),
        "-oServerAliveCountMax=6".into(),
        "-oControlMaster=auto".into(),
        file("-oControlPath=", "ssh"),
        "-oControlPersist=yes".into(),
        "-T".into(),
        format!("{}@{}", reach.user, at.0).into(),
        line.into(),
    ]
}

/// The same of a person's session, in a connection of its own. In one that all shared, about one of twenty short sessions lost
/// its status when another one's rest was ended meanwhile (dropbear, under emulation), and a build's could as well. Without a
/// line it is a login.
pub fn ssh_for_person(
    reach: &Reach,
    folder: &Path,
    at: (Ipv4Addr, u16),
    line: Option<&OsStr>,
    terminal: bool,
) -> Vec<OsString> {
    let mut arguments = ssh(reach, folder, at, "");
    arguments.pop();
    arguments.retain(|argument| argument != "-T" && !argument.as_encoded_bytes().starts_with(b"-oControl"));
    // It says nothing but what goes wrong, and takes no orders.
    let own = ["-oLogLevel=ERROR", "-oEscapeChar=none", if terminal { "-tt" } else { "-T" }];
    arguments.splice(0..0, own.map(OsString::from));
    arguments.extend(line.map(OsStr::to_owned));
    arguments
}

/// A program of the machine's own, as root.
fn program(path: &str) -> RunRequest {
    let command = Command::new(path).variable("PATH", "/bin:/usr/bin:/usr/sbin").variable("HOME", "/run");
    RunRequest { command: Ok(command), user: None, streams: Streams::Together, alone: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> Controller {
        Controller {
            profile: Profile::built_in("standin").unwrap(),
            account: Account::new("nixbld").unwrap(),
            mounts: vec![disk(shares::STORE_SERIAL, Form::Squashfs, "/nix/store")],
            key: b"key".to_vec(),
            known_hosts: b"192.168.0.1 key".to_vec(),
        }
    }

    #[test]
    fn every_drive_of_the_guest_is_a_share_of_the_controller() {
        let controller = controller();
        let start = controller.start().unwrap();
        let written = start.iter().find_map(|what| match what {
            What::WriteFile { path, content, .. } if path.ends_with("smb.conf") => Some(content.clone()),
            _ => None,
        });
        let text = String::from_utf8(written.unwrap()).unwrap();
        for (drive, line) in controller.mount_lines() {
            assert!(text.contains(&format!("[{}]", drive.share)), "{text}");
            assert!(line.contains(&format!("//192.168.0.2/{}", drive.share)), "{line}");
        }
        assert!(text.contains("[nixstore]\npath = /nix/store\nread only = no\n"), "{text}");
        assert!(text.contains("[xchg]\npath = /xchg\nread only = no\n"), "{text}");
    }

    #[test]
    fn a_login_always_checks_the_key_and_never_asks() {
        let command = controller().in_guest("exit 3").command.unwrap();
        let has = |wanted: &str| command.arguments.iter().any(|argument| argument == wanted);
        assert!(has("-oStrictHostKeyChecking=yes") && has("-oBatchMode=yes") && has("-F/dev/null"));
        assert_eq!(command.arguments.last().unwrap(), "exit 3");
    }

    #[test]
    fn a_person_comes_in_as_a_build_does_by_a_connection_of_his_own() {
        let controller = controller();
        let terminal = ("xterm".to_owned(), Size { rows: 24, columns: 80 });
        for (line, terminal) in [(Some("top"), None), (Some("top"), Some(&terminal)), (None, Some(&terminal))] {
            let request = controller.for_person(line.map(OsStr::new), terminal);
            let arguments = request.command.unwrap().arguments;
            let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
            assert!(has("-oStrictHostKeyChecking=yes") && has("-oBatchMode=yes") && has("-F/dev/null"));
            assert!(!arguments.iter().any(|argument| argument.to_string_lossy().contains("Control")));
            assert_eq!((has("-tt"), has("-T")), (terminal.is_some(), terminal.is_none()));
            assert_eq!(arguments.last().unwrap(), line.unwrap_or("root@192.168.0.1"));
        }
    }
}
