//! The machine that a build was granted, for every door.

use std::path::Path;

use anchorhold_sandbox::Room;
use anchorhold_vmm::failure::Failure;
use anchorhold_vmm::stages::InUse;

use super::Machines;
use super::build::{WishError, Wishes, in_machine};
use super::pair::{self, GuestImage, in_pair};
use super::stages::{Held, LINUX, Registry};
use crate::build::room::Grants;
use crate::derivation::Derivation;

/// A machine that may be had, with the derivation's wishes of it.
#[derive(Debug)]
pub struct Granted<'a> {
    machines: &'a Machines,
    wishes: Wishes,
    /// The guest beside a controller; without one it is a Linux machine.
    guest: Option<GuestImage>,
}

/// What a build is enclosed in.
#[derive(Debug)]
pub struct Enclosed {
    /// The room of its machine.
    pub room: Room,
    /// The saved machines that are revived in it, which nobody removes while this is held.
    _in_use: Option<[InUse; 2]>,
}

/// Why a build does not get the machine that it was granted.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// A wish that cannot be followed: the derivation's own fault.
    #[error(transparent)]
    Wish(#[from] WishError),
    /// There is none after all.
    #[error("there are no virtual machines here")]
    None,
    /// What is missing.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl<'a> Granted<'a> {
    /// The machine of a derivation; nothing, when it is built in a room alone.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn of(
        grants: &Grants,
        machines: Option<&'a Machines>,
        derivation: &Derivation,
    ) -> Result<Option<Self>, GrantError> {
        if !grants.linux_vm && !grants.windows_vm {
            return Ok(None);
        }
        let machines = machines.ok_or(GrantError::None)?;
        let wishes = Wishes::read(derivation)?;
        let guest = match grants.windows_vm {
            true if wishes.disk.is_some() => return Err(WishError::Disk.into()),
            true => Some(machines.guest_image(wishes.image.as_deref())?),
            false => None,
        };
        Ok(Some(Self { machines, wishes, guest }))
    }

    /// Where the builder has its build directory, if that is not where a room has it: a guest that is reached by the network has
    /// everything on its drives.
    ///
    /// # Errors
    /// A guest without a drive for it.
    pub fn build_directory(&self) -> Result<Option<String>, Failure> {
        self.guest.as_ref().map(|guest| pair::build_directory(&guest.profile)).transpose()
    }

    /// The room of the machine in which the builder of `room` runs; see [`in_machine`]. What takes long is told a line at a time.
    /// To be held until the room has ended.
    ///
    /// # Errors
    /// What is missing, or cannot be shown to a guest.
    pub fn enclose(
        &self,
        room: &Room,
        work: &Path,
        owner: Option<(u32, u32)>,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Enclosed, Failure> {
        let (room, in_use) = match &self.guest {
            Some(guest) => in_pair(room, self.machines, &self.wishes, guest, work, owner, tell)?,
            None => (in_machine(room, self.machines, &self.wishes, work, owner)?, None),
        };
        Ok(Enclosed { room, _in_use: in_use })
    }

    /// Makes the machine known to people, under the name of its guest, for as long as what is given is held. `what` is built in
    /// it; `work` is that of [`Granted::enclose`]. A machine that nobody finds is built in as well.
    pub fn known(&self, what: &str, work: &Path) -> Option<Held> {
        let guest = self.guest.as_ref().map_or(LINUX, |guest| &guest.profile.name);
        Registry::open().and_then(|all| all.register(guest, what, &super::build::result(work))).ok()
    }

    /// The options of `anchorhold vm run` that make the same machine; none for a guest beside a controller.
    pub fn as_options(&self) -> Option<String> {
        if self.guest.is_some() {
            return None;
        }
        let disk = self.wishes.disk.map_or_else(String::new, |bytes| format!(" --disk {bytes}"));
        Some(format!("--memory {}M --cores {}{disk}", self.wishes.memory(self.machines), self.wishes.cores()))
    }

    /// What a person is told of it; `room` is the machine's.
    pub fn in_words(&self, room: &Room) -> String {
        let kind = match &self.guest {
            Some(guest) if self.machines.topology == "direct" => format!("the guest ‘{}’", guest.profile.name),
            Some(guest) => format!("the guest ‘{}’ beside a controller", guest.profile.name),
            None => "a Linux machine".to_owned(),
        };
        format!("{kind}, by {}", if room.devices.kvm { "KVM" } else { "emulation" })
    }
}
