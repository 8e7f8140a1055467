//! Which modules a guest's kernel needs for what it is to do, and in which order they are loaded.
//!
//! What depmod(8) wrote is read (`modules.dep`, `modules.softdep`, `modules.alias`, `modules.builtin`), and what it does not
//! know is added here: a file system's hashes are asked for by name when it is mounted, long after it was loaded. CIFS without
//! SHA-512 fails then with "Could not allocate shash TFM 'sha512'".

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The longest of depmod's files, and the longest module, that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// Something that a guest's kernel is to be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// virtio devices on a PCI bus: all of the others stand on it.
    Virtio,
    /// A network interface.
    Network,
    /// A disk.
    Disk,
    /// The port of our agent.
    Port,
    /// Read-only images that are mapped.
    Erofs,
    /// Read-only images that are packed.
    Squashfs,
    /// A disk that is written.
    Ext4,
    /// Folders of the host by virtiofs.
    Virtiofs,
    /// Folders of the host by 9p.
    NineP,
    /// Shares of an SMB server.
    Cifs,
    /// Writing over what is read-only.
    Overlay,
    /// Programs that another one starts: binfmt_misc.
    ForeignPrograms,
}

impl Feature {
    /// The modules that give it, and crypto algorithms that it will ask for.
    fn wants(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Virtio => (&["virtio_pci"], &[]),
            Self::Network => (&["virtio_net"], &[]),
            Self::Disk => (&["virtio_blk"], &[]),
            Self::Port => (&["virtio_console"], &[]),
            Self::Erofs => (&["erofs"], &[]),
            Self::Squashfs => (&["squashfs"], &[]),
            Self::Ext4 => (&["ext4"], &[]),
            Self::Virtiofs => (&["virtiofs"], &[]),
            Self::NineP => (&["9pnet_virtio", "9p"], &[]),
            Self::Cifs => (
                &["cifs", "nls_utf8"],
                &["sha512", "sha256", "hmac", "md5", "aes", "ghash", "ctr", "ecb", "ccm", "cmac", "gcm"],
            ),
            Self::Overlay => (&["overlay"], &[]),
            Self::ForeignPrograms => (&["binfmt_misc"], &[]),
        }
    }
}

/// Why a list of modules cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// It is neither there nor built in.
    #[error(
        "the kernel in {folder} has no {module}, which {wanted_by} needs: use a full kernel (Debian's cloud kernel lacks 9p); scripts/guest-kernel makes one"
    )]
    Missing {
        /// The kernel's folder.
        folder: PathBuf,
        /// What is missing.
        module: String,
        /// For what.
        wanted_by: String,
    },
    /// A file of depmod's, or a module, that cannot be read.
    #[error("reading {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// A file that does not look as depmod writes it.
    #[error("{path}: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A module, as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores, as lsmod(8) shows it.
    pub name: String,
    /// Its file, possibly compressed.
    pub path: PathBuf,
}

impl Module {
    /// Its content, decompressed: a guest may be without the means.
    ///
    /// # Errors
    /// If it cannot be read, is broken, or is no module.
    pub fn read(&self) -> Result<Vec<u8>, ModulesError> {
        let io = |source| ModulesError::Io { path: self.path.clone(), source };
        let file = File::open(&self.path).map_err(io)?;
        let extension = self.path.extension().unwrap_or_default().as_encoded_bytes();
        let reader: Box<dyn Read> = match extension {
            b"xz" => Box::new(liblzma::read::XzDecoder::new(file)),
            b"zst" => Box::new(zstd::stream::read::Decoder::new(file).map_err(io)?),
            b"gz" => Box::new(flate2::read::GzDecoder::new(file)),
            _ => Box::new(file),
        };
        let mut bytes = Vec::new();
        reader.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_FILE || !bytes.starts_with(b"\x7fELF") {
            return Err(ModulesError::Malformed { path: self.path.clone(), why: "it is no kernel module".into() });
        }
        Ok(bytes)
    }
}

/// What depmod writes.
const LISTS: [&str; 5] =
    ["modules.dep", "modules.softdep", "modules.alias", "modules.builtin", "modules.builtin.modinfo"];

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    folder: PathBuf,
    files: BTreeMap<String, PathBuf>,
    needs: BTreeMap<String, Vec<String>>,
    soft: BTreeMap<String, Vec<String>>,
    aliases: BTreeMap<String, Vec<String>>,
    built_in: BTreeSet<String>,
    built_in_aliases: BTreeSet<String>,
}

/// Modules are found under both spellings; the kernel's own is the one with underscores.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let name = file.split(".ko").next().filter(|name| !name.is_empty() && file.contains(".ko"))?;
    Some(canonical(name))
}

impl Modules {
    /// Those of the folder `lib/modules/VERSION`.
    ///
    /// # Errors
    /// If what depmod writes is not there.
    pub fn open(folder: &Path) -> Result<Self, ModulesError> {
        let mut modules = Self {
            folder: folder.to_owned(),
            files: BTreeMap::new(),
            needs: BTreeMap::new(),
            soft: BTreeMap::new(),
            aliases: BTreeMap::new(),
            built_in: BTreeSet::new(),
            built_in_aliases: BTreeSet::new(),
        };
        let read = |name: &str| {
            let path = folder.join(name);
            let mut bytes = Vec::new();
            match File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
                Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                // depmod leaves out what would be empty.
                Err(error) if error.kind() == io::ErrorKind::NotFound && name != "modules.dep" => Ok(String::new()),
                Err(source) => Err(ModulesError::Io { path, source }),
            }
        };
        modules.dependencies(&read("modules.dep")?)?;
        for line in read("modules.softdep")?.lines() {
            let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "softdep").skip(1);
            let Some(name) = words.next() else { continue };
            let soft = modules.soft.entry(canonical(name)).or_default();
            soft.extend(words.filter(|word| !word.ends_with(':')).map(canonical));
        }
        for line in read("modules.alias")?.lines() {
            if let ["alias", alias, name] = line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
                modules.aliases.entry(canonical(alias)).or_default().push(canonical(name));
            }
        }
        modules.built_in = read("modules.builtin")?.lines().filter_map(name_of).collect();
        modules.built_in_aliases = read("modules.builtin.modinfo")?
            .split('\0')
            .filter_map(|field| field.split_once(".alias=").map(|(_, alias)| canonical(alias)))
            .collect();
        Ok(modules)
    }

    /// The files that depmod wrote, of those that are there.
    pub fn lists(&self) -> Vec<PathBuf> {
        LISTS.iter().map(|name| self.folder.join(name)).filter(|path| path.is_file()).collect()
    }

    fn dependencies(&mut self, text: &str) -> Result<(), ModulesError> {
        let path = self.folder.join("modules.dep");
        let malformed = |why: String| ModulesError::Malformed { path: path.clone(), why };
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let (file, needs) = line.split_once(':').ok_or_else(|| malformed(format!("no colon in {line:?}")))?;
            let name = name_of(file).ok_or_else(|| malformed(format!("{file:?} is no module")))?;
            if Path::new(file).components().any(|part| part == std::path::Component::ParentDir) {
                return Err(malformed(format!("{file:?} leads out of the folder")));
            }
            let needs: Option<Vec<String>> = needs.split_ascii_whitespace().map(name_of).collect();
            let needs = needs.ok_or_else(|| malformed(format!("what {name} needs is no list of modules")))?;
            // depmod writes absolute paths for modules outside of its folder; they are taken at their word.
            self.files.insert(name.clone(), self.folder.join(file));
            self.needs.insert(name, needs);
        }
        Ok(())
    }

    /// The modules for all of these features, each behind those that it needs. What is built in is left out.
    ///
    /// # Errors
    /// Naming a module or an algorithm that this kernel does not have.
    pub fn closure(&self, features: impl IntoIterator<Item = Feature>) -> Result<Vec<Module>, ModulesError> {
        let mut order = Order { modules: self, placed: BTreeSet::new(), order: Vec::new() };
        for feature in features {
            let (modules, algorithms) = feature.wants();
            let missing = |module: &str| ModulesError::Missing {
                folder: self.folder.clone(),
                module: module.to_owned(),
                wanted_by: format!("{feature:?}").to_lowercase(),
            };
            // The algorithms first: the feature may look for them as it is loaded.
            for algorithm in algorithms {
                match self.algorithm(algorithm) {
                    Some(Some(module)) => order.place(module)?,
                    Some(None) => {}
                    None => return Err(missing(algorithm)),
                }
            }
            for module in modules.iter().map(|name| canonical(name)) {
                if self.files.contains_key(&module) {
                    order.place(&module)?;
                } else if !self.built_in.contains(&module) {
                    return Err(missing(&module));
                }
            }
        }
        Ok(order.order)
    }

    /// The module of a crypto algorithm; an inner `None` when it is built in.
    ///
    /// Of several, the generic one: the others are for processors that the guest's may not be.
    fn algorithm(&self, name: &str) -> Option<Option<&str>> {
        let alias = format!("crypto_{name}");
        let built_in = [name, &format!("{name}_generic")].iter().any(|name| self.built_in.contains(*name))
            || self.built_in_aliases.contains(&alias);
        if built_in {
            return Some(None);
        }
        let mut candidates: Vec<&str> = Vec::new();
        for name in [format!("{name}_generic"), name.to_owned()] {
            candidates.extend(self.files.get_key_value(&name).map(|(name, _)| name.as_str()));
        }
        candidates.extend(self.aliases.get(&alias).into_iter().flatten().map(String::as_str));
        candidates.retain(|name| self.files.get(*name).is_some_and(|path| !self.is_for_one_processor(path)));
        let generic = candidates.iter().copied().find(|name| name.ends_with("_generic"));
        generic.or(candidates.first().copied()).map(Some)
    }

    /// Modules for one processor's instructions refuse to be loaded on another.
    fn is_for_one_processor(&self, path: &Path) -> bool {
        path.strip_prefix(&self.folder).unwrap_or(path).iter().any(|part| part == "arch")
    }

    /// What a soft dependency names: a module, or something that a module is also known as.
    fn soft_target(&self, name: &str) -> Option<&str> {
        if let Some((name, _)) = self.files.get_key_value(name) {
            return Some(name);
        }
        if let Some(found) = self.algorithm(name.strip_prefix("crypto_").unwrap_or(name)) {
            return found;
        }
        let known_as = self.aliases.get(name)?;
        let mut files = known_as.iter().filter_map(|name| self.files.get_key_value(name));
        files.find(|(_, path)| !self.is_for_one_processor(path)).map(|(name, _)| name.as_str())
    }
}

struct Order<'a> {
    modules: &'a Modules,
    placed: BTreeSet<String>,
    order: Vec<Module>,
}

impl Order<'_> {
    /// Puts a module behind all that it needs. Iterative, so that no chain of dependencies can exhaust the stack.
    fn place(&mut self, name: &str) -> Result<(), ModulesError> {
        let mut stack = vec![(name.to_owned(), false)];
        while let Some((name, ready)) = stack.pop() {
            if ready {
                let path = self.modules.files[&name].clone();
                self.order.push(Module { name, path });
                continue;
            }
            // Marked before its needs are looked at, so that a ring of soft dependencies ends.
            if !self.placed.insert(name.clone()) {
                continue;
            }
            stack.push((name.clone(), true));
            let soft = self.modules.soft.get(&name).into_iter().flatten();
            for soft in soft.filter_map(|soft| self.modules.soft_target(soft)) {
                stack.push((soft.to_owned(), false));
            }
            for need in self.modules.needs.get(&name).into_iter().flatten() {
                if !self.modules.files.contains_key(need) {
                    return Err(ModulesError::Missing {
                        folder: self.modules.folder.clone(),
                        module: need.clone(),
                        wanted_by: name,
                    });
                }
                stack.push((need.clone(), false));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    const DEP: &str = "\
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_pci_modern_dev.ko.xz kernel/drivers/virtio/virtio.ko.xz kernel/drivers/virtio/virtio_ring.ko.xz
kernel/drivers/virtio/virtio_pci_modern_dev.ko.xz:
kernel/drivers/virtio/virtio.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz
kernel/drivers/virtio/virtio_ring.ko.xz:
kernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko:
kernel/crypto/crc32c_generic.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/a.ko:
kernel/b.ko:
";
    const SOFT: &str = "# Soft dependencies\nsoftdep libcrc32c pre: crc32c\nsoftdep a pre: b\nsoftdep b post: a\n";
    const ALIAS: &str = "alias crypto-crc32c crc32c_intel\nalias crypto-crc32c crc32c_generic\nalias crc32c crc32c_intel\nalias crc32c crc32c_generic\n";

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn every_module_comes_behind_what_it_needs_soft_needs_too() {
        let folder = folder(&[("modules.dep", DEP), ("modules.softdep", SOFT), ("modules.alias", ALIAS)]);
        let modules = Modules::open(folder.path()).unwrap();
        let closure = modules.closure([Feature::Virtio, Feature::Erofs]).unwrap();
        let place =
            |name: &str| names(&closure).iter().position(|one| *one == name).unwrap_or_else(|| panic!("{name}"));
        assert!(place("virtio_ring") < place("virtio") && place("virtio") < place("virtio_pci"));
        assert!(place("crc32c_generic") < place("libcrc32c") && place("libcrc32c") < place("erofs"));
        assert!(!names(&closure).contains(&"crc32c_intel"), "of another processor");
        assert_eq!(closure.len(), names(&closure).iter().collect::<BTreeSet<_>>().len());
    }

    #[test]
    fn what_is_built_in_is_not_looked_for_among_other_processors_modules() {
        let folder = folder(&[
            ("modules.dep", "kernel/fs/x.ko:\nkernel/arch/x86/crypto/aesni-intel.ko:\n"),
            ("modules.softdep", "softdep x pre: aes pre: unheard-of\n"),
            ("modules.alias", "alias crypto-aes aesni_intel\nalias aes aesni_intel\n"),
            ("modules.builtin", "kernel/crypto/aes_generic.ko\n"),
        ]);
        let modules = Modules::open(folder.path()).unwrap();
        let mut order = Order { modules: &modules, placed: BTreeSet::new(), order: Vec::new() };
        order.place("x").unwrap();
        assert_eq!(names(&order.order), ["x"]);
    }

    #[test]
    fn a_ring_of_soft_dependencies_ends() {
        let folder = folder(&[("modules.dep", DEP), ("modules.softdep", SOFT)]);
        let modules = Modules::open(folder.path()).unwrap();
        let mut order = Order { modules: &modules, placed: BTreeSet::new(), order: Vec::new() };
        order.place("a").unwrap();
        assert_eq!(names(&order.order), ["b", "a"]);
    }

    #[test]
    fn a_missing_module_and_a_missing_hash_are_named() {
        let with_cifs = "kernel/fs/cifs.ko:\nkernel/fs/nls_utf8.ko:\n";
        let built_in = "kernel/crypto/hmac.ko\nkernel/crypto/sha256_generic.ko\n";
        let folder = folder(&[("modules.dep", with_cifs), ("modules.builtin", built_in)]);
        let modules = Modules::open(folder.path()).unwrap();
        let told = |feature| modules.closure([feature]).unwrap_err().to_string();
        assert!(told(Feature::NineP).contains("has no 9pnet_virtio, which ninep needs"), "{}", told(Feature::NineP));
        assert!(told(Feature::Cifs).contains("has no sha512, which cifs needs"), "{}", told(Feature::Cifs));
    }

    #[test]
    fn what_is_built_in_is_left_out_also_hashes_that_go_by_another_name() {
        let folder = folder(&[
            ("modules.dep", "kernel/fs/cifs.ko:\n"),
            ("modules.builtin", "kernel/fs/nls/nls_utf8.ko\n"),
            (
                "modules.builtin.modinfo",
                "x.alias=crypto-sha512\0x.alias=crypto-sha256\0h.alias=crypto-hmac\0m.alias=crypto-md5\0\
                 a.alias=crypto-aes\0g.alias=crypto-ghash\0c.alias=crypto-ctr\0e.alias=crypto-ecb\0\
                 c.alias=crypto-ccm\0c.alias=crypto-cmac\0g.alias=crypto-gcm\0",
            ),
        ]);
        let modules = Modules::open(folder.path()).unwrap();
        assert_eq!(names(&modules.closure([Feature::Cifs]).unwrap()), ["cifs"]);
    }

    #[test]
    fn modules_are_read_decompressed_and_others_refused() {
        let folder = tempfile::tempdir().unwrap();
        let content = b"\x7fELF and so on".repeat(100);
        let xz = {
            let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
            io::Write::write_all(&mut xz, &content).unwrap();
            xz.finish().unwrap()
        };
        for (file, bytes) in
            [("a.ko", content.clone()), ("a.ko.xz", xz), ("a.ko.zst", zstd::encode_all(&content[..], 1).unwrap())]
        {
            let path = folder.path().join(file);
            fs::write(&path, bytes).unwrap();
            assert_eq!(Module { name: "a".into(), path }.read().unwrap(), content, "{file}");
        }
        let path = folder.path().join("b.ko");
        fs::write(&path, "text").unwrap();
        assert!(Module { name: "b".into(), path }.read().unwrap_err().to_string().contains("no kernel module"));
    }

    proptest! {
        #[test]
        fn whatever_depmod_left_is_an_error_at_most(dep: String, soft: String, alias: String) {
            let folder = folder(&[("modules.dep", &dep), ("modules.softdep", &soft), ("modules.alias", &alias)]);
            if let Ok(modules) = Modules::open(folder.path()) {
                let _ = modules.closure([Feature::Cifs, Feature::Virtio]);
            }
        }
    }
}
