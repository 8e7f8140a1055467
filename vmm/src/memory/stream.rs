//! A template as one file, `state.gz`: what can lie in a store and be carried elsewhere.
//!
//! It is not QEMU's own stream of a migration, which is cut by the clock and so is never the same file twice, but the template's
//! parts one after the other, compressed without a name or a time: the same state is the same file.
//!
//! ```text
//! anchorhold state 1\n    length, manifest.json    length, device    length, ram
//! ```

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::{Compression, GzBuilder, bufread::GzDecoder};

use super::manifest::Manifest;
use super::{DEVICE, MANIFEST, RAM, Template, new_file};
use crate::failure::{Failure, FailureClass};

const MAGIC: &[u8; 19] = b"anchorhold state 1\n";

/// The longest manifest that is read.
const MAX_MANIFEST: u64 = 1 << 20;

/// The longest state of devices that is read: a display has some MiB, all else some hundred KiB.
const MAX_DEVICE: u64 = 1 << 30;

/// The piece of memory that is left a hole when it is all zero.
const PIECE: usize = 64 << 10;

impl Template {
    /// Writes it as one file, which is made anew. What is written is checked on the way.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`], and [`FailureClass::SaveFailed`] with what the file system says.
    pub fn export(&self, to: &Path) -> Result<(), Failure> {
        self.verify()?;
        let write = || -> io::Result<()> {
            let mut out = GzBuilder::new().mtime(0).operating_system(255).write(new_file(to)?, Compression::fast());
            out.write_all(MAGIC)?;
            for name in [MANIFEST, DEVICE, RAM] {
                let file = File::open(self.directory.join(name))?;
                let length = file.metadata()?.len();
                out.write_all(&length.to_le_bytes())?;
                if io::copy(&mut file.take(length), &mut out)? != length {
                    return Err(io::Error::other(format!("{name} became shorter while it was read")));
                }
            }
            out.finish()?.sync_all()
        };
        write().map_err(|error| {
            // Half a file must not be taken for one.
            let _ = std::fs::remove_file(to);
            Failure::new(FailureClass::SaveFailed, format!("writing {}: {error}", to.display()))
        })
    }

    /// Makes a template in `directory`, which is made, of such a file.
    ///
    /// # Errors
    /// [`FailureClass::CorruptState`], and [`FailureClass::SaveFailed`] with what the file system says.
    pub fn import(from: &Path, directory: &Path) -> Result<Self, Failure> {
        let corrupt = |why: String| Failure::new(FailureClass::CorruptState, format!("{}: {why}", from.display()));
        let failed = |error: io::Error| {
            Failure::new(FailureClass::SaveFailed, format!("writing into {}: {error}", directory.display()))
        };
        let file = File::open(from).map_err(|error| corrupt(error.to_string()))?;
        let mut input = GzDecoder::new(BufReader::with_capacity(1 << 20, file));
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic).map_err(|error| corrupt(error.to_string()))?;
        if magic != *MAGIC {
            return Err(corrupt("it is no saved machine of this version".to_owned()));
        }
        std::fs::create_dir_all(directory).map_err(failed)?;
        let unfinished = directory.join("manifest.unfinished");
        let _ = std::fs::remove_file(directory.join(MANIFEST));
        let mut memory = 0;
        for name in [MANIFEST, DEVICE, RAM] {
            let mut length = [0; 8];
            input.read_exact(&mut length).map_err(|error| corrupt(error.to_string()))?;
            let length = u64::from_le_bytes(length);
            let is_right = match name {
                MANIFEST => length <= MAX_MANIFEST,
                DEVICE => length <= MAX_DEVICE,
                _ => length == memory,
            };
            if !is_right {
                return Err(corrupt(format!("its {name} would have {length} bytes")));
            }
            let place = if name == MANIFEST { unfinished.clone() } else { directory.join(name) };
            let out = new_file(&place).map_err(failed)?;
            copy_sparse(&mut input, &out, length).map_err(|(is_input, error)| match is_input {
                true => corrupt(error.to_string()),
                false => failed(error),
            })?;
            if name == MANIFEST {
                memory = Manifest::read(&place)?.key.memory.saturating_mul(1 << 20);
            }
        }
        // To its very end, where gzip's own checksum is.
        match input.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(corrupt("there is more in it than a saved machine".to_owned())),
            Err(error) => return Err(corrupt(error.to_string())),
        }
        let template = Self { directory: directory.to_owned(), manifest: Manifest::read(&unfinished)? };
        template.check_now()?;
        std::fs::rename(&unfinished, directory.join(MANIFEST)).map_err(failed)?;
        Ok(template)
    }
}

/// So many bytes of `input` into `out`, zeroes as holes. What fails is told with whether it is the input.
///
/// # Errors
/// What reading and writing say.
pub fn copy_sparse(input: &mut impl Read, out: &File, length: u64) -> Result<(), (bool, io::Error)> {
    let written = |error| (false, error);
    out.set_len(length).map_err(written)?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        let size = usize::try_from(length - at).unwrap_or(PIECE).min(PIECE);
        input.read_exact(&mut piece[..size]).map_err(|error| (true, error))?;
        if piece[..size].iter().any(|byte| *byte != 0) {
            out.write_all_at(&piece[..size], at).map_err(written)?;
        }
        at += size as u64;
    }
    out.sync_all().map_err(written)
}
