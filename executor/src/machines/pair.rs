//! Builds whose builder runs in a guest that is reached by the network alone: those that require the feature `windows-vm`.
//!
//! The guest has the store with the inputs and the outputs to be on one drive, and the exchange on another; the build directory
//! lies in the exchange. Whatever the guest writes beside these two is in the room's memory and gone with it.

use std::ffi::OsString;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anchorhold_sandbox::Room;
use anchorhold_sandbox::quantity::Size;
use anchorhold_sandbox::room::{Entry, Output};
use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::initramfs::Initramfs;
use anchorhold_vmm::kernel::Modules;
use anchorhold_vmm::linux::PrepareError;
use anchorhold_vmm::pair::job::Job;
use anchorhold_vmm::pair::{self, CONTROLLER_MEMORY, Limits, PairSpec, Side};
use anchorhold_vmm::profile::{Drive, Profile, System};
use anchorhold_vmm::shares;
use anchorhold_vmm::stages::InUse;
use anchorhold_vmm::wire::Kind;

use super::build::Wishes;
use super::stages::{self, Revivable};
use super::{Ground, Machines, Order, SYSTEM_CACHE, Work, cpu, room, write_order};

/// The images, in the room.
const IMAGES: &str = "/machine/images";
/// The store in the room, where the host's QEMU needs /nix/store for itself.
const STORE_ASIDE: &str = "/machine/store";
/// Where further drives are in the guest, for programs that know no letters.
const DRIVES: &str = "/run/drives";
/// The build directory, in the exchange.
const BUILD: &str = "build";
/// How long both machines may take until SSH answers, under emulation on a busy host.
const BOOT: Duration = Duration::from_secs(300);
/// The same of a Windows.
const BOOT_OF_WINDOWS: Duration = Duration::from_secs(1800);
/// How long a machine that starts may do nothing.
const STALL: Duration = Duration::from_secs(60);

/// A guest that a pair can have.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// What it is.
    pub profile: Profile,
    /// The folder with its files.
    folder: PathBuf,
    /// Its disk.
    disk: PathBuf,
}

impl Machines {
    /// Whether the guest of the settings is there, and its controller.
    pub fn has_guest(&self) -> bool {
        self.guest.is_some() && self.guest_image(None).is_ok()
    }

    /// The guest of this name, or that of the settings. A name is a plain word: a derivation gives it.
    ///
    /// # Errors
    /// [`FailureClass::NoImage`].
    pub fn guest_image(&self, name: Option<&str>) -> Result<GuestImage, Failure> {
        let none = |what: String| Failure::new(FailureClass::NoImage, what);
        let name = name.or(self.guest.as_deref()).ok_or_else(|| none("no guest is named".to_owned()))?;
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
        if name.is_empty() || name.len() > 40 || !name.chars().all(is_plain) {
            return Err(none(format!("{name:?} is no guest's name: letters, digits, - and _")));
        }
        let made = |cache: &Path| cache.join("guest-images");
        let places = match &self.images {
            Some(named) => vec![named.clone()],
            None => vec![made(&self.cache), made(Path::new(SYSTEM_CACHE))],
        };
        let has_controller = |place: &&PathBuf| place.join("controller.erofs").is_file();
        let folder = places.iter().find(has_controller).cloned().ok_or_else(|| {
            let looked = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ");
            none(format!("there is no controller.erofs in {looked}"))
        })?;
        let own = folder.join(format!("{name}.toml"));
        let profile = match fs::read_to_string(&own) {
            Ok(text) => Profile::parse(&text).map_err(|error| none(format!("{}: {error}", own.display())))?,
            Err(_) => Profile::built_in(name).map_err(|error| none(error.to_string()))?,
        };
        if profile.system == System::Windows {
            let what = format!("the guest {name} is a Windows, and this version makes no disk of one");
            return Err(none(what));
        }
        let disk = folder.join(format!("{name}.erofs"));
        for needed in [&disk, &folder.join("key"), &folder.join("known_hosts")] {
            if !needed.is_file() {
                return Err(none(format!("the guest {name} has no {}", needed.display())));
            }
        }
        Ok(GuestImage { profile, folder, disk })
    }
}

/// The drive of a share.
fn drive<'a>(profile: &'a Profile, share: &str) -> Result<&'a Drive, Failure> {
    profile.drives.iter().find(|drive| drive.share == share).ok_or_else(|| {
        Failure::new(FailureClass::NoShare, format!("the guest {} has no drive of the share {share}", profile.name))
    })
}

/// Where the guest has the build directory.
///
/// # Errors
/// A profile without a drive for it.
pub fn build_directory(profile: &Profile) -> Result<String, Failure> {
    let exchange = drive(profile, shares::EXCHANGE)?;
    Ok(format!("{}/{BUILD}", exchange.path.trim_end_matches('/')))
}

/// The room of a pair in whose guest the builder of `room` runs; as for [`super::build::in_machine`]. What takes long is told a
/// line at a time. Saved machines that it revives are in use until what is given is dropped.
///
/// # Errors
/// What is missing, or cannot be shown to this guest.
pub fn in_pair(
    room: &Room,
    machines: &Machines,
    wishes: &Wishes,
    image: &GuestImage,
    work: &Path,
    owner: Option<(u32, u32)>,
    tell: &mut dyn FnMut(&str),
) -> Result<(Room, Option<[InUse; 2]>), Failure> {
    let profile = &with_drives(&image.profile, wishes, room)?;
    let exchange = PathBuf::from(drive(profile, shares::EXCHANGE)?.path.trim_end_matches('/'));
    let guests_store = PathBuf::from(&drive(profile, shares::STORE_SHARE)?.path);
    let size = (wishes.memory(machines), wishes.cores());
    let saved = saved(machines, profile, size, tell)?;
    let ground = Ground::lay(machines, work, owner)?;
    let store = if ground.qemu.starts_with("/nix/store") { PathBuf::from(STORE_ASIDE) } else { guests_store.clone() };

    let Shown { entries: mut shown, watched, inputs } =
        show(&room.mounts, (&guests_store, &store), (&exchange, machines.exchange))
            .map_err(|what| Failure::new(FailureClass::NoShare, format!("the guest {}: {what}", profile.name)))?;
    let in_room = |file: &Path| Path::new(IMAGES).join(file.file_name().unwrap_or_default());
    let [controller_disk, key, known_hosts] =
        ["controller.erofs", "key", "known_hosts"].map(|name| image.folder.join(name));
    for file in [&image.disk, &controller_disk, &key, &known_hosts] {
        shown.push(Entry::Bind {
            inside: in_room(file),
            outside: Some(file.clone()),
            writable: false,
            optional: false,
            noexec: true,
        });
    }
    let inputs = if machines.keeps_inputs() { inputs } else { Vec::new() };
    let kernel = ground.kernel.extracted(&machines.cache.join("kernels")).map_err(PrepareError::from)?;
    let (spec, saved, in_use) = match saved {
        Some(revived) => {
            shown.extend(revived.entries);
            (PairSpec { store, exchange, inputs, ..revived.spec }, Some(revived.saved), Some(revived.in_use))
        }
        None => {
            let modules = Modules::open(&ground.kernel.modules).map_err(PrepareError::from)?;
            let side = |name: &str, memory: u64, cores: u32, tree: Initramfs, disk: &Path| -> Result<Side, Failure> {
                let name = format!("initramfs.{name}");
                write_initramfs(&tree, memory, &ground.order.join(&name))?;
                let initramfs = Some(Path::new(room::ORDER).join(name));
                Ok(Side { memory, cores, initramfs, drives: vec![pair::root(in_room(disk))] })
            };
            let guest = pair::initramfs_of_guest(&modules, &ground.agent, profile)?;
            let controller = pair::initramfs_of_controller(&modules, &ground.agent)?;
            let spec = PairSpec {
                accelerator: ground.accelerator,
                cpu: cpu(ground.accelerator).to_owned(),
                kernel: room::KERNEL.into(),
                guest: side(pair::GUEST, size.0, size.1, guest, &image.disk)?,
                controller: side(pair::CONTROLLER, CONTROLLER_MEMORY, 1, controller, &controller_disk)?,
                profile: profile.clone(),
                store,
                exchange,
                inputs,
            };
            (spec, None, None)
        }
    };
    let boot = if profile.system == System::Windows { BOOT_OF_WINDOWS } else { BOOT };
    let job = Job {
        pair: spec,
        topology: machines.topology(),
        wire: if machines.wire == "vde" { Kind::Vde } else { Kind::Dgram },
        saved,
        clock: machines.clock(),
        key: in_room(&key),
        known_hosts: in_room(&known_hosts),
        qemu: Some(ground.qemu.clone()),
        limits: Limits { boot, stall: STALL },
        limit: None,
        console_limit: 16 << 20,
        // A file system of memory has whole pages.
        exchange_limit: machines.exchange + (64 << 10),
        watched,
    };
    let process = &room.process;
    let order = Order { work: Work::Pair(Box::new(job)), hooks: wishes.hooks(process) };
    write_order(&ground.order, &order, &super::build::command(process))?;
    let prepared = ground.prepared(kernel);
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(FailureClass::QemuRefused, format!("finding this program: {error}")))?;
    let mut made = room::room(room::Parts {
        prepared: &prepared,
        program: &program,
        shown,
        outside: room.identity.outside,
        limits: room.limits.clone(),
        output: Output::Log,
    });
    if !order.hooks.is_empty() {
        made.process.environment.clone_from(&process.environment);
        made.process.directory.clone_from(&process.directory);
    }
    Ok((made, in_use))
}

/// The machines that were saved for exactly this, which stand in a moment; they are saved now if that is wanted.
///
/// # Errors
/// Some that are there, and not what was written.
fn saved(
    machines: &Machines,
    profile: &Profile,
    size: (u64, u32),
    tell: &mut dyn FnMut(&str),
) -> Result<Option<Revivable>, Failure> {
    let mut saved = stages::saved(machines, profile, size)?;
    if saved.is_none() && machines.save {
        match stages::making::make(machines, profile, size, tell) {
            Ok(()) => saved = stages::saved(machines, profile, size)?,
            // What a build needs is a guest, saved or not.
            Err(failure) => tell(&format!("the guest is started, since it cannot be saved: {failure}")),
        }
    }
    if let Some(revivable) = &saved {
        let name = revivable.saved.directory.file_name().unwrap_or_default().to_string_lossy();
        tell(&format!("the guest is revived: {name}"));
    }
    Ok(saved)
}

/// What stands in the room for the guest.
#[derive(Debug, PartialEq)]
struct Shown {
    entries: Vec<Entry>,
    /// The directories that the guest writes.
    watched: Vec<PathBuf>,
    /// The names in the store of what it only reads.
    inputs: Vec<OsString>,
}

/// Of the builder's room the store and what lies in the exchange, which is new and of so many bytes. Everything stands where it
/// stands in the guest, but for the store where QEMU has one of its own.
fn show(
    mounts: &[Entry],
    (guests_store, store): (&Path, &Path),
    (exchange, size): (&Path, u64),
) -> Result<Shown, String> {
    // Nothing in it is executed by the room, whatever the guest leaves there.
    let memory = Entry::Tmpfs { inside: exchange.to_owned(), size: Size::Bytes(size), mode: 0o1777, noexec: true };
    let mut shown = Shown { entries: vec![memory], watched: vec![exchange.to_owned()], inputs: Vec::new() };
    for entry in mounts {
        let Entry::Bind { inside, outside, writable, optional, noexec } = entry else { continue };
        let place = match inside.strip_prefix(guests_store) {
            Ok(below) if below.as_os_str().is_empty() => store.to_owned(),
            Ok(below) => store.join(below),
            Err(_) if inside.starts_with(exchange) => inside.clone(),
            // The guest has its own /tmp and its own programs.
            Err(_) => continue,
        };
        if *writable {
            shown.watched.push(place.clone());
        } else if !optional && place.parent() == Some(store) {
            shown.inputs.extend(place.file_name().map(Into::into));
        }
        let outside = Some(outside.clone().unwrap_or_else(|| inside.clone()));
        let (writable, optional, noexec) = (*writable, *optional, *noexec);
        shown.entries.push(Entry::Bind { inside: place, outside, writable, optional, noexec });
    }
    if !shown.watched.iter().any(|path| path == store) {
        return Err(format!("it has the store at {}, and this store is elsewhere", guests_store.display()));
    }
    Ok(shown)
}

/// The profile with the drives that the derivation asks for. Each shows a part of what the builder may see of the store.
fn with_drives(profile: &Profile, wishes: &Wishes, room: &Room) -> Result<Profile, Failure> {
    let refused = |what: String| Failure::new(FailureClass::NoShare, format!("the attribute ‘drives’: {what}"));
    let mut drives = Vec::new();
    for (letter, path) in &wishes.drives {
        let is_input =
            |entry: &Entry| matches!(entry, Entry::Bind { writable: false, .. }) && path.starts_with(entry.inside());
        if !room.mounts.iter().any(is_input) {
            return Err(refused(format!("{} is in no input of the derivation", path.display())));
        }
        let name: String = letter.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
        drives.push(Drive {
            letter: letter.clone(),
            share: format!("drive_{name}"),
            path: format!("{DRIVES}/{name}"),
            read_only: true,
            directory: Some(path.clone()),
        });
    }
    profile.clone().with_drives(drives).map_err(|error| refused(error.to_string()))
}

fn write_initramfs(tree: &Initramfs, memory: u64, to: &Path) -> Result<(), Failure> {
    tree.check_fits(memory << 20).map_err(PrepareError::from)?;
    let io = |source| PrepareError::Io { doing: format!("writing {}", to.display()), source };
    let mut file = BufWriter::new(fs::File::create(to).map_err(io)?);
    tree.write(&mut file).map_err(PrepareError::from)?;
    file.flush().map_err(io)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(inside: &str, outside: &str, writable: bool) -> Entry {
        Entry::Bind { inside: inside.into(), outside: Some(outside.into()), writable, optional: false, noexec: false }
    }

    fn mounts() -> Vec<Entry> {
        vec![
            bind("/nix/store", "/scratch/store", true),
            bind("/xchg/build", "/scratch/build", true),
            bind("/tmp", "/scratch/tmp", true),
            bind("/nix/store/aaa-in", "/real/nix/store/aaa-in", false),
            bind("/bin/sh", "/usr/bin/busybox", false),
        ]
    }

    #[test]
    fn a_guest_is_shown_the_store_and_its_exchange_and_nothing_else_of_the_builders_room() {
        let (store, exchange) = (Path::new("/nix/store"), Path::new("/xchg"));
        let shown = show(&mounts(), (store, store), (exchange, 4096)).unwrap();
        let places: Vec<_> = shown.entries.iter().map(|entry| entry.inside().to_str().unwrap()).collect();
        assert_eq!(places, ["/xchg", "/nix/store", "/xchg/build", "/nix/store/aaa-in"]);
        assert!(matches!(shown.entries[0], Entry::Tmpfs { size: Size::Bytes(4096), noexec: true, .. }));
        assert_eq!(shown.watched, ["/xchg", "/nix/store", "/xchg/build"].map(PathBuf::from));
        assert_eq!(shown.inputs, ["aaa-in"]);
        // A QEMU of a store wants the place for its own.
        let shown = show(&mounts(), (store, Path::new(STORE_ASIDE)), (exchange, 4096)).unwrap();
        assert!(shown.entries.contains(&bind("/machine/store/aaa-in", "/real/nix/store/aaa-in", false)));
        let other = show(&mounts(), (Path::new("/store"), store), (exchange, 4096)).unwrap_err();
        assert!(other.contains("this store is elsewhere"), "{other}");
    }

    #[test]
    fn a_drive_shows_an_input_and_nothing_else() {
        let profile = Profile::built_in("standin").unwrap();
        let room = Room { mounts: mounts(), ..Room::default() };
        let wishes = |letter: &str, path: &str| {
            let mut wishes = Wishes::default();
            wishes.drives = vec![(letter.into(), path.into())];
            wishes
        };
        let with = |letter, path| with_drives(&profile, &wishes(letter, path), &room);
        let made = with("T:", "/nix/store/aaa-in/share").unwrap();
        let drive = made.drives.last().unwrap();
        assert_eq!((&*drive.path, &*drive.share, drive.read_only), ("/run/drives/t", "drive_t", true));
        for (letter, path) in [
            ("T:", "/nix/store/bbb-other"),
            ("T:", "/nix/store"),
            ("T:", "/etc"),
            ("S:", "/nix/store/aaa-in"),
            ("C:", "/nix/store/aaa-in"),
            ("T:", "/nix/store/aaa-in/../.."),
        ] {
            let told = with(letter, path).unwrap_err();
            assert_eq!(told.class, FailureClass::NoShare, "{letter} {path}: {told}");
        }
    }
}
