//! Which way a Linux machine reads the inputs of its build: the setting `vm-store`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anchorhold_vmm::failure::{Failure, FailureClass};
use anchorhold_vmm::kernel::{Feature, Kernel, Modules};
use anchorhold_vmm::linux::{Inputs, Way};
use anchorhold_vmm::shares::Cache;
use anchorhold_vmm::shares::image::Form;
use anchorhold_vmm::shares::virtiofs::{self, Caching};

use super::{Machines, room};

/// The image, among what the room writes.
const IMAGE: &str = "inputs.squashfs";
/// The socket of a virtiofsd, there too.
const SOCKET: &str = "inputs.sock";
/// From how many bytes of inputs on an image is not worth its making, where nobody asks for one: it is packed at some 600 MiB a
/// second, and saves a millisecond or two for each file that the builder opens, of which few builders open more than some
/// thousands.
const WORTH: u64 = 2 << 30;
/// The same in inputs: each is on mksquashfs's command line, and is shown by a mount of its own.
const WORTH_INPUTS: usize = 4096;

/// What lies read-only in a directory that the guest writes: the inputs in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputNames {
    directory: PathBuf,
    names: Vec<OsString>,
}

impl InputNames {
    /// Adds what lies `below` this directory of the guest's, if it lies directly in it; those of another directory than the first
    /// are left to 9p.
    pub fn add(&mut self, directory: &Path, below: &Path) {
        if self.names.is_empty() {
            directory.clone_into(&mut self.directory);
        }
        if self.directory == directory && below.components().count() == 1 {
            self.names.push(below.into());
        }
    }

    /// How they are read, as the settings say; nothing, if there are none.
    ///
    /// # Errors
    /// What the settings ask for and cannot be had.
    pub(super) fn by(&self, machines: &Machines, kernel: &Kernel, qemu: &Path) -> Result<Option<Inputs>, Failure> {
        if self.names.is_empty() {
            return Ok(None);
        }
        let or_nine_p = machines.store == "auto";
        let way = match machines.store.as_str() {
            "9p" => Ok(Way::NineP { why: None }),
            "virtiofs" => virtiofs(machines, kernel, qemu),
            _ => self.image(or_nine_p, kernel, qemu),
        };
        let way = match way {
            Ok(way) => way,
            Err(why) if or_nine_p => Way::NineP { why: Some(why) },
            Err(why) => {
                let class = if machines.store == "virtiofs" { FailureClass::NoShare } else { FailureClass::NoImage };
                return Err(Failure::new(class, format!("vm-store is {}: {why}", machines.store)));
            }
        };
        let cache = if machines.keeps_inputs() { Cache::Loose } else { Cache::None };
        Ok(Some(Inputs { directory: self.directory.clone(), names: self.names.clone(), way, cache, or_nine_p }))
    }

    fn image(&self, only_if_worth_it: bool, kernel: &Kernel, qemu: &Path) -> Result<Way, String> {
        if only_if_worth_it && self.names.len() > WORTH_INPUTS {
            return Err(format!("they are {}, which is too many for an image", self.names.len()));
        }
        has_features(kernel, &IMAGE_FEATURES)?;
        let (tool, package) = Form::Squashfs.tool();
        let program = Form::Squashfs.program().ok_or_else(|| format!("there is no {tool} here: install {package}"))?;
        let program = in_room(&program, qemu)?;
        let file = Path::new(room::RESULT).join(IMAGE);
        Ok(Way::Image { program, file, most: only_if_worth_it.then_some(WORTH) })
    }
}

fn virtiofs(machines: &Machines, kernel: &Kernel, qemu: &Path) -> Result<Way, String> {
    has_features(kernel, &[Feature::Virtiofs])?;
    let program = virtiofs::program().map_err(|error| error.to_string())?;
    let cached = |caching: &Caching| caching.to_string() == machines.store_cache;
    let caching = Caching::ALL.into_iter().find(cached).unwrap_or_default();
    Ok(Way::Virtiofs { program: in_room(&program, qemu)?, socket: Path::new(room::RESULT).join(SOCKET), caching })
}

fn has_features(kernel: &Kernel, features: &[Feature]) -> Result<(), String> {
    let modules = Modules::open(&kernel.modules).and_then(|modules| modules.closure(features.iter().copied()));
    modules.map(drop).map_err(|error| error.to_string())
}

/// A program of the host's as the room of this QEMU has it: through links, of which the room may not have the first.
fn in_room(program: &Path, qemu: &Path) -> Result<PathBuf, String> {
    let program = program.canonicalize().map_err(|error| format!("{}: {error}", program.display()))?;
    if room::programs(qemu).iter().any(|place| program.starts_with(place)) {
        return Ok(program);
    }
    Err(format!("{} is not among the programs that the machine's room has", program.display()))
}

const IMAGE_FEATURES: [Feature; 2] = [Feature::Disk, Feature::Squashfs];

/// What the guest's kernel must be able to do for it.
pub(super) fn features(inputs: Option<&Inputs>) -> &'static [Feature] {
    match inputs.map(|inputs| &inputs.way) {
        Some(Way::Image { .. }) => &IMAGE_FEATURES,
        Some(Way::Virtiofs { .. }) => &[Feature::Virtiofs],
        Some(Way::NineP { .. }) | None => &[],
    }
}
