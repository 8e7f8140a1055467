//! What a guest sees of the host: the store, read-only and with exactly a closure in it, and `xchg`, which it writes.
//!
//! * [`image`] makes the store an image on a disk: the fastest way by far for a Linux guest.
//! * [`mod@virtiofs`] serves a directory by a program beside QEMU.
//! * [`samba`] exports directories over SMB, for guests that know nothing else.
//! * [`exchange`] watches the room in `xchg`: a guest's own tools may report a write that was lost as done.
//!
//! The functions here write down the mounts of a Linux guest, as its agent is asked for them.

pub mod exchange;
pub mod image;
pub mod samba;
pub mod virtiofs;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::report::MountRequest;

/// The serial number of the disk with the store.
pub const STORE_SERIAL: &str = "store";
/// The tag of the store by virtiofs or 9p, and the name of its share.
pub const STORE_TAG: &str = "store";
/// The tag of what of the store nobody changes, by 9p once more.
pub const INPUTS_TAG: &str = "inputs";
/// The tag and the share of the exchange.
pub const EXCHANGE: &str = "xchg";
/// The store's share over SMB.
pub const STORE_SHARE: &str = "nixstore";

/// The message size of 9p, in bytes: what QEMU takes at most without a warning. With small ones it is slow by a factor of ten.
const NINE_P_MESSAGE: u32 = 512_000;

/// What a guest's kernel keeps of what it has read of a directory of the host's by 9p.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Everything, for as long as it likes: for what nobody changes. What is written through it is opened to be read too, which
    /// fails where a new file is for reading alone (`cp` of one), unless QEMU is root.
    Loose,
    /// What is mapped, for as long as it is: for what the guest writes, as programs may map what they write.
    Mmap,
    /// Nothing: what is written is written. Files cannot be mapped to be written.
    None,
}

fn plain(source: &str, target: impl Into<PathBuf>, kind: &str) -> MountRequest {
    MountRequest {
        source: source.into(),
        target: target.into(),
        kind: kind.into(),
        options: "".into(),
        read_only: false,
        no_programs: false,
    }
}

/// A read-only image on the disk with this serial number.
pub fn disk(serial: &str, form: image::Form, target: impl Into<PathBuf>) -> MountRequest {
    MountRequest { read_only: true, ..plain(&format!("serial:{serial}"), target, form.kind()) }
}

/// A directory of the host's by virtiofs.
pub fn virtiofs(tag: &str, target: impl Into<PathBuf>, read_only: bool) -> MountRequest {
    MountRequest { read_only, ..plain(tag, target, "virtiofs") }
}

/// A directory of the host's by 9p.
pub fn nine_p(tag: &str, target: impl Into<PathBuf>, read_only: bool, cache: Cache) -> MountRequest {
    let cache = match cache {
        Cache::Loose => "loose",
        Cache::Mmap => "mmap",
        Cache::None => "none",
    };
    let options = format!("trans=virtio,version=9p2000.L,msize={NINE_P_MESSAGE},cache={cache}").into();
    MountRequest { read_only, options, ..plain(tag, target, "9p") }
}

/// Memory of at most `size` bytes.
pub fn memory(target: impl Into<PathBuf>, size: u64) -> MountRequest {
    MountRequest { options: format!("size={size},mode=755").into(), ..plain("tmpfs", target, "tmpfs") }
}

/// A share of an SMB server. What is kept before it is written loses that the disk is full, so that each write waits.
pub fn smb(
    server: Ipv4Addr,
    share: &str,
    account: &samba::Account,
    target: impl Into<PathBuf>,
    read_only: bool,
) -> MountRequest {
    let source = format!("//{server}/{share}");
    MountRequest {
        read_only,
        options: smb_options(server, account, read_only).into(),
        ..plain(&source, target, "cifs")
    }
}

/// The options of mount(8) for such a share, for a guest that is asked through a shell. `ip` is for kernels without
/// mount.cifs, which would have looked the name up. Handles are closed when they are closed and directories kept by none:
/// Linux 6.1 otherwise finds them busy when the share is unmounted, which is a BUG that stops the guest.
pub fn smb_options(server: Ipv4Addr, account: &samba::Account, read_only: bool) -> String {
    // Never without a cache: Linux 6.1 then reads past the end of a file when it reads into a pipe, as sendfile(2) does, and the
    // file has 128 KiB of NULs behind it. What is written is not kept either way: `sync` waits for the server with each write, and
    // the writer is told when there was no room.
    let cache = if read_only { "cache=loose,actimeo=60" } else { "cache=loose,actimeo=1,sync,nostrictsync" };
    format!(
        "ip={server},username={},password={},vers=3.1.1,nobrl,mfsymlinks,nohandlecache,closetimeo=0,{cache}",
        account.name(),
        account.password()
    )
}
