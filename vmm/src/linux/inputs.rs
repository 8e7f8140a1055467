//! How a guest reads what it only reads: the inputs, which lie in a directory beside the outputs that it writes.
//!
//! The guest has the whole directory by 9p, as what it writes wants it, which is slow to read. So the inputs are shown once more,
//! over themselves, in a way that is fast because nothing of them can change. Where a builder takes that away, or looks beside
//! it, it finds what 9p shows: no way shows more than another, and what is written is written the same with all of them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::report::{MountRequest, What};
use crate::shares::image::{self, Content, Form};
use crate::shares::virtiofs::{Caching, Server};
use crate::shares::{self, Cache, STORE_SERIAL, STORE_TAG};
use crate::spec::{Drive, Share, ShareKind};

/// Where the guest has a way's file system for as long as it takes to show its parts.
const ASIDE: &str = "/anchorhold/inputs";

/// The inputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Inputs {
    /// The directory that they lie in, as the guest has it: one of its view's.
    pub directory: PathBuf,
    /// Their names in there.
    pub names: Vec<OsString>,
    /// How they are read.
    pub way: Way,
    /// What the guest keeps of them by 9p.
    pub cache: Cache,
    /// Whether 9p will do when the way cannot be gone; otherwise there is no machine then.
    pub or_nine_p: bool,
}

/// How inputs are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Way {
    /// As an image on a disk that cannot be written, which is made of them, and of nothing else, before the machine starts.
    #[serde(rename_all = "kebab-case")]
    Image {
        /// The program that makes it.
        program: PathBuf,
        /// Where it is made.
        file: PathBuf,
        /// The bytes of inputs from which on it is not worth its making.
        most: Option<u64>,
    },
    /// By virtiofs.
    #[serde(rename_all = "kebab-case")]
    Virtiofs {
        /// The program that serves it.
        program: PathBuf,
        /// Where it listens.
        socket: PathBuf,
        /// What the guest keeps.
        caching: Caching,
    },
    /// By 9p, apart from what is written.
    #[serde(rename_all = "kebab-case")]
    NineP {
        /// Why nothing better, where it was not asked for.
        why: Option<String>,
    },
}

/// The way that is gone.
#[derive(Debug, Default)]
pub(super) struct Ready {
    pub drive: Option<Drive>,
    pub share: Option<Share>,
    pub server: Option<Server>,
    pub cover: Option<What>,
}

impl Inputs {
    /// Makes what is needed before the machine starts. `outside` is their directory as this process has it.
    ///
    /// # Errors
    /// In words, when the way cannot be gone and 9p will not do.
    pub(super) fn ready(&self, outside: &Path, told: &mut dyn FnMut(&str)) -> Result<Ready, String> {
        let made = match &self.way {
            Way::NineP { why: None } => return Ok(self.nine_p(outside)),
            Way::NineP { why: Some(why) } => Err(why.clone()),
            Way::Image { program, file, most } => self.image(outside, program, file, *most),
            Way::Virtiofs { program, socket, caching } => self.virtiofs(outside, program, socket, *caching),
        };
        match made {
            Ok(ready) => Ok(ready),
            Err(why) if self.or_nine_p => {
                told(&format!("the inputs are read by 9p: {why}"));
                Ok(self.nine_p(outside))
            }
            Err(why) => Err(why),
        }
    }

    /// Those that can be shown over themselves. A link cannot be, and is nothing to read.
    fn paths(&self, outside: &Path) -> Vec<PathBuf> {
        self.names.iter().map(|name| outside.join(name)).filter(|path| !path.is_symlink()).collect()
    }

    fn cover(&self, paths: &[PathBuf], with: MountRequest) -> What {
        let names = paths.iter().filter_map(|path| path.file_name()).map(Into::into).collect();
        What::Cover { with, names, over: self.directory.clone() }
    }

    fn nine_p(&self, outside: &Path) -> Ready {
        if self.cache != Cache::Loose {
            // Not faster than where they are.
            return Ready::default();
        }
        let cover = self.cover(&self.paths(outside), shares::nine_p(STORE_TAG, ASIDE, true, self.cache));
        let share = Share { tag: STORE_TAG.into(), path: outside.to_owned(), read_only: true, kind: ShareKind::NineP };
        Ready { share: Some(share), cover: Some(cover), ..Ready::default() }
    }

    fn virtiofs(&self, outside: &Path, program: &Path, socket: &Path, caching: Caching) -> Result<Ready, String> {
        let server = Server::start(program, outside, caching, socket).map_err(|error| error.to_string())?;
        let cover = self.cover(&self.paths(outside), shares::virtiofs(STORE_TAG, ASIDE, true));
        let share =
            Share { tag: STORE_TAG.into(), path: socket.to_owned(), read_only: true, kind: ShareKind::Virtiofs };
        Ok(Ready { share: Some(share), cover: Some(cover), server: Some(server), drive: None })
    }

    fn image(&self, outside: &Path, program: &Path, file: &Path, most: Option<u64>) -> Result<Ready, String> {
        let paths = self.paths(outside);
        if paths.is_empty() {
            return Ok(Ready::default());
        }
        if let Some(most) = most {
            let size = size(&paths, most).map_err(|error| format!("measuring the inputs: {error}"))?;
            if size > most {
                return Err(format!(
                    "they are more than {} MiB, of which an image takes longer than it saves",
                    most >> 20
                ));
            }
        }
        let cover = self.cover(&paths, shares::disk(STORE_SERIAL, Form::Squashfs, ASIDE));
        image::make(Form::Squashfs, program, &Content::Paths(paths), file).map_err(|error| error.to_string())?;
        Ok(Ready { drive: Some(Drive::read_only(STORE_SERIAL, file)), cover: Some(cover), ..Ready::default() })
    }
}

/// The bytes of all files below these paths, counted until there are more than `most`.
fn size(paths: &[PathBuf], most: u64) -> io::Result<u64> {
    let mut left: Vec<PathBuf> = paths.to_vec();
    let mut size = 0;
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path)?;
        if found.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        } else if found.is_file() {
            size += found.len();
        }
        if size > most {
            break;
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(way: Way, or_nine_p: bool) -> (tempfile::TempDir, Inputs) {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join("store/aaa-one/bin")).unwrap();
        fs::write(place.path().join("store/aaa-one/bin/tool"), [7; 5000]).unwrap();
        fs::write(place.path().join("store/bbb-file"), "file").unwrap();
        std::os::unix::fs::symlink("aaa-one", place.path().join("store/ccc-link")).unwrap();
        fs::write(place.path().join("store/ddd-other"), "no input").unwrap();
        let names = ["aaa-one", "bbb-file", "ccc-link"].map(OsString::from).to_vec();
        (place, Inputs { directory: "/nix/store".into(), names, way, cache: Cache::Loose, or_nine_p })
    }

    fn ready(place: &tempfile::TempDir, inputs: &Inputs) -> (Result<Ready, String>, Vec<String>) {
        let mut told = Vec::new();
        let ready = inputs.ready(&place.path().join("store"), &mut |words| told.push(words.to_owned()));
        (ready, told)
    }

    fn by_image(place: &Path, program: &str, most: Option<u64>) -> Way {
        Way::Image { program: program.into(), file: place.join("image"), most }
    }

    #[test]
    fn what_cannot_be_had_is_told_or_refused() {
        let (place, mut inputs) = inputs(Way::NineP { why: Some("there is no other".into()) }, true);
        let is_nine_p = |way: Result<Ready, String>| {
            let Ready { drive: None, share: Some(share), cover: Some(What::Cover { with, names, .. }), .. } =
                way.unwrap()
            else {
                panic!()
            };
            assert!(share.read_only && with.read_only && with.kind == "9p" && share.tag == "store" && names.len() == 2);
        };
        let (way, told) = ready(&place, &inputs);
        is_nine_p(way);
        assert_eq!(told, ["the inputs are read by 9p: there is no other"]);
        inputs.way = by_image(place.path(), "/missing/mksquashfs", None);
        let (way, told) = ready(&place, &inputs);
        is_nine_p(way);
        assert!(told[0].contains("install squashfs-tools"), "{told:?}");
        inputs.way = by_image(place.path(), "/missing/mksquashfs", Some(5003));
        let (way, told) = ready(&place, &inputs);
        is_nine_p(way);
        assert!(told[0].contains("they are more than 0 MiB"), "{told:?}");
        inputs.or_nine_p = false;
        assert!(ready(&place, &inputs).0.unwrap_err().contains("more than"));
        // Without a cache they are read where they are.
        inputs = Inputs { way: Way::NineP { why: None }, cache: Cache::None, ..inputs };
        let (way, told) = ready(&place, &inputs);
        assert!(way.unwrap().cover.is_none() && told.is_empty());
    }

    #[test]
    fn an_image_is_of_the_inputs_and_shows_all_but_links() {
        let Some(program) = Form::Squashfs.program() else {
            println!("SKIP: no mksquashfs here");
            return;
        };
        let (place, inputs) = inputs(Way::NineP { why: None }, false);
        let way = by_image(place.path(), program.to_str().unwrap(), Some(5004));
        let (way, told) = ready(&place, &Inputs { way, ..inputs });
        let Ready { drive: Some(drive), cover: Some(What::Cover { with, names, over }), share: None, .. } =
            way.unwrap()
        else {
            panic!()
        };
        assert!(drive.read_only && drive.image == place.path().join("image") && with.read_only && told.is_empty());
        assert_eq!((names, over), (["aaa-one", "bbb-file"].map(OsString::from).to_vec(), "/nix/store".into()));
        let listed = std::process::Command::new("unsquashfs").arg("-l").arg(&drive.image).output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let mut files: Vec<_> = listed.lines().filter(|line| line.starts_with("squashfs-root/")).collect();
        files.sort_unstable();
        let expected =
            ["aaa-one", "aaa-one/bin", "aaa-one/bin/tool", "bbb-file"].map(|name| format!("squashfs-root/{name}"));
        assert_eq!(files, expected);
    }
}
