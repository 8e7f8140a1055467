//! The kernel of a guest: where one is, which version it is, and in which form it starts fastest.
//!
//! A Debian kernel is a `bzImage`: a loader with the real kernel compressed inside. Under emulation its decompression takes
//! seconds, so the ELF file is taken out once ([`image`]), kept in a cache, and started by QEMU directly (PVH). Which modules
//! a machine needs is worked out in [`modules`].

pub mod image;
pub mod modules;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use image::{Image, ImageError};
pub use modules::{Feature, Module, Modules, ModulesError};

/// Where kernels are, or should be made.
const HOW_TO_MAKE: &str = "scripts/guest-kernel makes one from Debian's package and prints its folder";

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nothing there.
    #[error("no kernel in {}: {HOW_TO_MAKE}", .looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))]
    None {
        /// Where was looked.
        looked: Vec<PathBuf>,
    },
    /// A kernel whose modules are missing.
    #[error("the kernel {image} is version {version}, and its modules are in none of {looked:?}: {HOW_TO_MAKE}")]
    NoModules {
        /// The kernel.
        image: PathBuf,
        /// As it says itself.
        version: String,
        /// Where was looked.
        looked: Vec<PathBuf>,
    },
    /// The file is no kernel that we know.
    #[error("{path}: {source}")]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ImageError,
    },
    /// A file could not be read or written.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A kernel with its modules.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Kernel {
    /// Its release, as uname(2) will tell it.
    pub version: String,
    /// Its file, as it was found.
    pub image: PathBuf,
    /// The folder with `modules.dep`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The kernel of a file, of a folder with `boot/vmlinuz-*` (as `scripts/guest-kernel` makes them), or of a `/boot`.
    ///
    /// # Errors
    /// If there is none, or it has no modules.
    pub fn at(path: &Path) -> Result<Self, KernelError> {
        if !path.is_dir() {
            return Self::of_file(path);
        }
        let mut found: Vec<PathBuf> = Vec::new();
        let looked = vec![path.join("boot"), path.to_owned()];
        for folder in &looked {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            found.extend(
                entries
                    .filter_map(Result::ok)
                    .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"vmlinuz-"))
                    .map(|entry| entry.path()),
            );
        }
        // The newest; one that root alone may read, as Ubuntu's are, or that has lost its modules is passed over.
        found.sort_by_cached_key(|path| std::cmp::Reverse(version_key(&path.to_string_lossy())));
        let mut first_problem = None;
        for image in found {
            match Self::of_file(&image) {
                Ok(kernel) => return Ok(kernel),
                Err(problem) => drop(first_problem.get_or_insert(problem)),
            }
        }
        Err(first_problem.unwrap_or(KernelError::None { looked }))
    }

    /// The first kernel of these places, each as for [`Self::at`]. A person who names none gets those of the cache and of
    /// this machine's `/boot`.
    ///
    /// # Errors
    /// The first place's own problem if it has a kernel that cannot be used, else that there is none anywhere.
    pub fn first_of(places: &[PathBuf]) -> Result<Self, KernelError> {
        let mut problem = None;
        for place in places {
            match Self::at(place) {
                Ok(kernel) => return Ok(kernel),
                Err(KernelError::None { .. }) => {}
                Err(KernelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(other) => drop(problem.get_or_insert(other)),
            }
        }
        Err(problem.unwrap_or(KernelError::None { looked: places.to_vec() }))
    }

    fn of_file(image: &Path) -> Result<Self, KernelError> {
        let version = Image::read(image)?.version().map_err(|source| at(image, source))?;
        // A folder above the file, so that a kernel that lies somewhere is not mixed with the host's modules.
        let mut looked = Vec::new();
        for above in image.ancestors().skip(1).take(2) {
            looked.push(above.join("lib/modules").join(&version));
            looked.push(above.join("usr/lib/modules").join(&version));
        }
        // NixOS and Fedora keep the kernel beside its modules.
        looked.extend(image.parent().map(Path::to_owned));
        match looked.iter().find(|folder| folder.join("modules.dep").is_file()) {
            Some(modules) => Ok(Self { modules: modules.clone(), version, image: image.to_owned() }),
            None => Err(KernelError::NoModules { image: image.to_owned(), version, looked }),
        }
    }

    /// The kernel as an ELF file that needs no decompression, from `cache` or made there. A kernel that is one already, or
    /// that cannot be started that way, is its own file.
    ///
    /// # Errors
    /// If it is broken, or the cache cannot be written.
    pub fn extracted(&self, cache: &Path) -> Result<PathBuf, KernelError> {
        let image = Image::read(&self.image)?;
        if image.is_elf() {
            return Ok(self.image.clone());
        }
        let digest = Sha256::digest(image.bytes());
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let place = cache.join(format!("kernel-{}-{name}.elf", self.version));
        if place.is_file() {
            return Ok(place);
        }
        let elf = image.extract().map_err(|source| at(&self.image, source))?;
        if !image::starts_by_pvh(&elf) {
            return Ok(self.image.clone());
        }
        let io = |doing: String| move |source| KernelError::Io { doing, source };
        fs::create_dir_all(cache).map_err(io(format!("making {}", cache.display())))?;
        // Whole or not at all: whoever finds the name finds all of it.
        let mut file = tempfile::NamedTempFile::new_in(cache).map_err(io(format!("writing in {}", cache.display())))?;
        io::Write::write_all(&mut file, &elf).map_err(io(format!("writing {}", place.display())))?;
        let readable = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o644);
        file.as_file().set_permissions(readable).map_err(io(format!("writing {}", place.display())))?;
        file.persist(&place).map_err(|error| KernelError::Io {
            doing: format!("renaming to {}", place.display()),
            source: error.error,
        })?;
        Ok(place)
    }
}

fn at(path: &Path, source: ImageError) -> KernelError {
    KernelError::Image { path: path.to_owned(), source }
}

/// Numbers compare as numbers: 6.10 is newer than 6.9.
fn version_key(name: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let words = rest.find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(words);
        let digits = after.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(digits);
        parts.push((number.parse().unwrap_or(u64::MAX), word.to_owned()));
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_by_number_comes_first() {
        let mut names = ["vmlinuz-6.9.1-amd64", "vmlinuz-6.10.0-amd64", "vmlinuz-6.9.12-amd64"];
        names.sort_by_cached_key(|name| std::cmp::Reverse(version_key(name)));
        assert_eq!(names, ["vmlinuz-6.10.0-amd64", "vmlinuz-6.9.12-amd64", "vmlinuz-6.9.1-amd64"]);
    }

    #[test]
    fn no_kernel_says_where_and_what_to_do() {
        let empty = tempfile::tempdir().unwrap();
        let error = Kernel::first_of(&[empty.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains(empty.path().to_str().unwrap()) && error.contains("scripts/guest-kernel"), "{error}");
    }

    #[test]
    fn a_kernel_without_its_modules_says_which_version_it_wants() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("vmlinuz-1");
        fs::write(&kernel, image::tests::bz_image("6.1.0-test", &[])).unwrap();
        let error = Kernel::at(&kernel).unwrap_err().to_string();
        assert!(error.contains("version 6.1.0-test") && error.contains("lib/modules/6.1.0-test"), "{error}");
    }

    #[test]
    fn a_folder_with_a_kernel_and_its_modules_is_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("boot")).unwrap();
        fs::write(folder.path().join("boot/vmlinuz-6.1.0-test"), image::tests::bz_image("6.1.0-test", &[])).unwrap();
        let modules = folder.path().join("lib/modules/6.1.0-test");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("modules.dep"), "").unwrap();
        let kernel = Kernel::at(folder.path()).unwrap();
        assert_eq!((kernel.version.as_str(), &kernel.modules), ("6.1.0-test", &modules));
        // There is nothing in it that could be taken out.
        assert!(matches!(kernel.extracted(folder.path()), Err(KernelError::Image { .. })));
    }
}
