//! A kernel's file: its version, and the ELF file inside a `bzImage` (the kernel's Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::KernelError;

/// The longest kernel file that is read, in bytes.
const MAX_FILE: u64 = 256 << 20;
/// The longest kernel that is unpacked, in bytes. Debian's has 66 MiB.
const MAX_KERNEL: usize = 512 << 20;
/// A block of LZ4's legacy format holds at most this much, unpacked (lz4's doc/lz4_Frame_format.md).
const LZ4_BLOCK: usize = 8 << 20;
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// What is wrong with a kernel's file.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Neither a `bzImage` nor an ELF file.
    #[error(
        "this is no Linux kernel for this architecture: neither a bzImage of boot protocol 2.08 or newer nor an ELF file"
    )]
    Unknown,
    /// It points behind its own end.
    #[error("the kernel is cut off or broken: {what} lies behind its end")]
    CutOff {
        /// What does.
        what: &'static str,
    },
    /// Nowhere does it tell its version.
    #[error("the kernel does not tell its version")]
    NoVersion,
    /// Compressed by something else.
    #[error("the kernel inside is compressed by a method that we do not know: it begins with {found:02x?}")]
    Compression {
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// The compressed kernel is broken.
    #[error("the kernel inside cannot be decompressed ({method}): {source}")]
    Decompress {
        /// By which method.
        method: &'static str,
        /// What is wrong.
        source: io::Error,
    },
    /// Decompressed, it is no ELF file.
    #[error("what was compressed in the kernel is no ELF file")]
    NoElf,
    /// It is too big to be one.
    #[error("over {limit} MiB is no kernel")]
    TooBig {
        /// In MiB.
        limit: u64,
    },
}

/// A kernel's file, read.
#[derive(Clone, Debug)]
pub struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be read, or is far too big.
    pub fn read(path: &Path) -> Result<Self, KernelError> {
        let io = |source| KernelError::Io { doing: format!("reading {}", path.display()), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(io)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(super::at(path, ImageError::TooBig { limit: MAX_FILE >> 20 }));
        }
        Ok(Self { bytes })
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it is an ELF file, which starts without being decompressed.
    pub fn is_elf(&self) -> bool {
        self.bytes.starts_with(b"\x7fELF")
    }

    /// The release of the kernel, `6.1.0-37-amd64`.
    ///
    /// # Errors
    /// If the file is no kernel, or does not tell.
    pub fn version(&self) -> Result<String, ImageError> {
        let text = if self.is_elf() {
            let banner = b"Linux version ";
            let at = self.bytes.windows(banner.len()).position(|at| at == banner).ok_or(ImageError::NoVersion)?;
            &self.bytes[at + banner.len()..]
        } else {
            self.check_header()?;
            // The pointer counts from the second sector.
            let at = usize::from(self.u16(0x20e)?) + 0x200;
            self.bytes.get(at..).ok_or(ImageError::CutOff { what: "its version" })?
        };
        let word: Vec<u8> =
            text.iter().copied().take(256).take_while(|byte| byte.is_ascii_graphic() && *byte != b'/').collect();
        match String::from_utf8(word) {
            Ok(version) if !version.is_empty() && !version.starts_with('.') => Ok(version),
            _ => Err(ImageError::NoVersion),
        }
    }

    /// The ELF file inside.
    ///
    /// # Errors
    /// If it is cut off, compressed in an unknown way, or broken.
    pub fn extract(&self) -> Result<Vec<u8>, ImageError> {
        if self.is_elf() {
            return Ok(self.bytes.clone());
        }
        self.check_header()?;
        // Of 0 it is 4, for kernels that were old in 1995.
        let sectors = match *self.bytes.get(0x1f1).ok_or(ImageError::CutOff { what: "its header" })? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let begin = (sectors + 1) * 512 + self.u32(0x248)? as usize;
        let length = self.u32(0x24c)? as usize;
        let end = begin.checked_add(length).ok_or(ImageError::CutOff { what: "the kernel inside" })?;
        let packed = self.bytes.get(begin..end).ok_or(ImageError::CutOff { what: "the kernel inside" })?;
        let elf = decompress(packed)?;
        if elf.starts_with(b"\x7fELF") { Ok(elf) } else { Err(ImageError::NoElf) }
    }

    fn check_header(&self) -> Result<(), ImageError> {
        let is = self.bytes.get(0x202..0x206) == Some(b"HdrS") && self.u16(0x206)? >= 0x0208;
        if is { Ok(()) } else { Err(ImageError::Unknown) }
    }

    fn u16(&self, at: usize) -> Result<u16, ImageError> {
        let bytes = self.bytes.get(at..at + 2).ok_or(ImageError::CutOff { what: "its header" })?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&self, at: usize) -> Result<u32, ImageError> {
        let bytes = self.bytes.get(at..at + 4).ok_or(ImageError::CutOff { what: "its header" })?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

fn decompress(packed: &[u8]) -> Result<Vec<u8>, ImageError> {
    // The build appends the unpacked size to the stream, in four bytes. The decoders stop before it by themselves.
    match packed {
        [0x1f, 0x8b, ..] => bounded("gzip", flate2::read::GzDecoder::new(packed)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => bounded("xz", liblzma::read::XzDecoder::new(packed)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::with_buffer(packed).and_then(|mut decoder| {
                // The kernel is packed with a window as large as it is.
                decoder.window_log_max(31)?;
                Ok(decoder.single_frame())
            });
            bounded("zstd", decoder.map_err(|source| ImageError::Decompress { method: "zstd", source })?)
        }
        [b'B', b'Z', b'h', ..] => bounded("bzip2", bzip2::read::BzDecoder::new(packed)),
        packed if packed.starts_with(&LZ4_LEGACY) => lz4(&packed[4..]),
        _ => Err(ImageError::Compression { found: packed[..packed.len().min(6)].to_vec() }),
    }
}

fn bounded(method: &'static str, decoder: impl Read) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    decoder
        .take(MAX_KERNEL as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ImageError::Decompress { method, source })?;
    if bytes.len() > MAX_KERNEL {
        return Err(ImageError::TooBig { limit: MAX_KERNEL as u64 >> 20 });
    }
    Ok(bytes)
}

/// Blocks behind their length, each a block of plain LZ4. Nothing marks the end but the appended size.
fn lz4(mut rest: &[u8]) -> Result<Vec<u8>, ImageError> {
    let broken = |why: String| ImageError::Decompress { method: "lz4", source: io::Error::other(why) };
    let mut bytes = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        if after.is_empty() {
            // That was the size.
            break;
        }
        if *length == LZ4_LEGACY {
            rest = after;
            continue;
        }
        let length = u32::from_le_bytes(*length) as usize;
        let block = after.get(..length).ok_or_else(|| broken("a block is cut off".into()))?;
        bytes.extend(lz4_flex::block::decompress(block, LZ4_BLOCK).map_err(|error| broken(error.to_string()))?);
        if bytes.len() > MAX_KERNEL {
            return Err(ImageError::TooBig { limit: MAX_KERNEL as u64 >> 20 });
        }
        rest = &after[length..];
    }
    Ok(bytes)
}

/// Whether QEMU can start an ELF kernel directly: it has Xen's note of type 18 (XEN_ELFNOTE_PHYS32_ENTRY), which tells its
/// entry for PVH.
pub fn starts_by_pvh(elf: &[u8]) -> bool {
    // The note's head as it lies in memory: the name's length 4, the description's 4 or 8, the type, the name.
    [[4u8, 0, 0, 0, 4, 0, 0, 0], [4, 0, 0, 0, 8, 0, 0, 0]].iter().any(|lengths| {
        let note: Vec<u8> = lengths.iter().chain(&[18, 0, 0, 0]).chain(b"Xen\0").copied().collect();
        memchr::memmem::find(elf, &note).is_some()
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// A kernel with nothing in it but what we look at.
    pub(crate) fn bz_image(version: &str, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[0x1f1] = 1;
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        bytes[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        bytes[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        bytes[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        bytes[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(payload);
        bytes
    }

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..200_000u32).flat_map(|number| (number / 7).to_le_bytes()));
        elf.extend(b"Linux version 6.1.0-9-test (someone)");
        elf
    }

    fn with_size(mut packed: Vec<u8>) -> Vec<u8> {
        packed.extend((elf().len() as u32).to_le_bytes());
        packed
    }

    fn packed() -> Vec<(&'static str, Vec<u8>)> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf()).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&elf()).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&elf()).unwrap();
        let mut lz4 = LZ4_LEGACY.to_vec();
        for block in elf().chunks(300_000) {
            let block = lz4_flex::block::compress(block);
            lz4.extend((block.len() as u32).to_le_bytes());
            lz4.extend(block);
        }
        vec![
            // gzip alone carries its size in its own trailer.
            ("gzip", gzip.finish().unwrap()),
            ("xz", with_size(xz.finish().unwrap())),
            ("bzip2", with_size(bzip2.finish().unwrap())),
            ("zstd", with_size(zstd::encode_all(&elf()[..], 3).unwrap())),
            ("lz4", with_size(lz4)),
        ]
    }

    #[test]
    fn the_kernel_is_taken_out_however_it_was_packed() {
        for (method, payload) in packed() {
            let image = Image { bytes: bz_image("6.1.0-9-test", &payload) };
            assert_eq!(image.version().unwrap(), "6.1.0-9-test");
            assert!(image.extract().unwrap() == elf(), "{method}");
        }
    }

    #[test]
    fn an_elf_kernel_is_its_own_and_tells_its_version() {
        let image = Image { bytes: elf() };
        assert_eq!(image.version().unwrap(), "6.1.0-9-test");
        assert!(image.extract().unwrap() == elf());
    }

    #[test]
    fn a_broken_kernel_says_how() {
        for (method, payload) in packed() {
            let mut image = bz_image("6.1.0", &payload);
            image.truncate(image.len() - 100);
            let error = Image { bytes: image }.extract().unwrap_err().to_string();
            assert!(error.contains("lies behind its end"), "{method}: {error}");
            let half = &payload[..payload.len() / 2];
            let error = Image { bytes: bz_image("6.1.0", half) }.extract().unwrap_err().to_string();
            assert!(error.contains(method), "{method}: {error}");
        }
        let error = Image { bytes: bz_image("6.1.0", b"\x89LZO..") }.extract().unwrap_err().to_string();
        assert!(error.contains("a method that we do not know"), "{error}");
        assert!(matches!(Image { bytes: b"MZ".repeat(2000) }.version(), Err(ImageError::Unknown)));
    }

    #[test]
    fn a_kernel_without_a_pvh_entry_is_known() {
        let mut elf = elf();
        assert!(!starts_by_pvh(&elf));
        elf.extend(b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\0\0\0\x01");
        assert!(starts_by_pvh(&elf));
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_an_error_and_nothing_worse(tail in prop::collection::vec(any::<u8>(), 0..300), head: bool) {
            let bytes = if head { bz_image("6", &tail) } else { tail };
            let image = Image { bytes };
            let _ = (image.version(), image.extract());
        }

        #[test]
        fn a_header_of_any_numbers_points_nowhere_else(head in prop::collection::vec(any::<u8>(), 600)) {
            let mut bytes = bz_image("6", b"");
            bytes[..600].copy_from_slice(&head);
            bytes[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
            let image = Image { bytes };
            let _ = (image.version(), image.extract());
        }
    }
}
