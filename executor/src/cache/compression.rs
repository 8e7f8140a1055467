//! How archives are compressed in a cache.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::str::FromStr;

use bzip2::bufread::MultiBzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Check, Filters, LzmaOptions, Stream};
use liblzma::write::XzEncoder;

use super::CacheError;

/// Most memory that a decompressor may take: `xz -9` wants 65 MiB, and `zstd` without `--ultra` 8 MiB of window.
const MEMORY: u64 = 128 << 20;

/// The largest window of zstd in bits: 2^27 is [`MEMORY`].
const WINDOW_LOG: u32 = 27;

/// What xz looks back at on level 6, and the least that it takes. In bytes.
const DICTIONARY: u32 = 8 << 20;
const LEAST_DICTIONARY: u32 = 64 << 10;

/// A compression of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// As they are.
    None,
    /// xz: small, slow to make. What caches have by default.
    Xz,
    /// Zstandard: fast.
    Zstd,
    /// bzip2: only read; what an old narinfo means when it says nothing.
    Bzip2,
}

impl Compression {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Xz, Self::Zstd, Self::Bzip2];

    /// The name in a narinfo.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        }
    }

    /// What a file's name ends with.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::None => ".nar",
            Self::Xz => ".nar.xz",
            Self::Zstd => ".nar.zst",
            Self::Bzip2 => ".nar.bz2",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Compression {
    type Err = CacheError;

    fn from_str(text: &str) -> Result<Self, CacheError> {
        Self::ALL.into_iter().find(|compression| compression.name() == text).ok_or_else(|| CacheError::Invalid {
            file: format!("the compression ‘{}’", text.escape_debug()),
            what: "none, xz, zstd and bzip2 are known".to_owned(),
        })
    }
}

/// Compresses what is written to it.
pub(super) enum Encoder<W: Write> {
    None(W),
    Xz(XzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// For `size` bytes; nothing for what is only read.
    pub(super) fn new(compression: Compression, size: u64, sink: W) -> Result<Self, CacheError> {
        let failed = |source: liblzma::stream::Error| {
            CacheError::system("begin to compress", "an archive", io::Error::from(source))
        };
        Ok(match compression {
            Compression::None => Self::None(sink),
            // The levels are those that both tools have of themselves.
            Compression::Xz => {
                let mut options = LzmaOptions::new_preset(6).map_err(failed)?;
                // Beyond what there is to look back at, a dictionary only costs: eleven times its size in memory.
                let whole = size.next_power_of_two().clamp(u64::from(LEAST_DICTIONARY), u64::from(DICTIONARY));
                options.dict_size(u32::try_from(whole).unwrap_or(DICTIONARY));
                let mut filters = Filters::new();
                filters.lzma2(&options);
                let stream = Stream::new_stream_encoder(&filters, Check::Crc64).map_err(failed)?;
                Self::Xz(XzEncoder::new_stream(sink, stream))
            }
            Compression::Zstd => Self::Zstd(
                zstd::stream::write::Encoder::new(sink, 0)
                    .map_err(|source| CacheError::system("begin to compress", "an archive", source))?,
            ),
            Compression::Bzip2 => return Err(CacheError::ReadOnlyCompression(compression)),
        })
    }

    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::None(sink) => Ok(sink),
            Self::Xz(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(sink) => sink.write(bytes),
            Self::Xz(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // Flushing a compressor costs compression; what is in it comes out at the end.
        Ok(())
    }
}

/// Decompresses what it reads, with bounded memory.
pub(super) enum Decoder<R: BufRead> {
    None(R),
    Xz(XzDecoder<R>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
    Bzip2(MultiBzDecoder<R>),
}

impl<R: BufRead> Decoder<R> {
    pub(super) fn new(compression: Compression, source: R) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(source),
            Compression::Xz => {
                Self::Xz(XzDecoder::new_stream(source, Stream::new_stream_decoder(MEMORY, CONCATENATED)?))
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(WINDOW_LOG)?;
                Self::Zstd(decoder)
            }
            Compression::Bzip2 => Self::Bzip2(MultiBzDecoder::new(source)),
        })
    }

    pub(super) fn into_source(self) -> R {
        match self {
            Self::None(source) => source,
            Self::Xz(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
            Self::Bzip2(decoder) => decoder.into_inner(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(source) => source.read(buffer),
            Self::Xz(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
            Self::Bzip2(decoder) => decoder.read(buffer),
        }
    }
}
