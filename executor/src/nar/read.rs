//! From a stream to the parts of an archive.

use std::io::{self, BufRead, Write};

use super::encoder::{Encoder, ToWriter, padding};
use super::{MAGIC, MAX_DEPTH, MAX_NAME, MAX_TARGET, NarError};
use crate::tree::descent::shown_names;

/// A part of an archive, in the order of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A directory begins; its entries follow.
    Directory,
    /// The next node has this name in the current directory.
    Entry(Vec<u8>),
    /// The current directory ends.
    EndDirectory,
    /// A regular file. Its contents can be had by [`Reader::contents_to`] before the next part is asked for.
    Regular {
        /// Whether its owner may execute it.
        executable: bool,
        /// Bytes of contents.
        size: u64,
    },
    /// A symlink and where it leads, without a NUL.
    Symlink(Vec<u8>),
}

/// Reads an archive part by part and refuses everything that is not canonical.
///
/// Memory is bounded whatever the stream says: [`MAX_DEPTH`] names of [`MAX_NAME`] bytes and the source's own buffer.
/// Nothing beyond the archive's end is taken from the source.
pub struct Reader<R> {
    source: R,
    offset: u64,
    expected: Expected,
    /// The last name of each directory on the way.
    names: Vec<Option<Vec<u8>>>,
    /// Whether a file of no bytes had no contents where Nix writes contents of no bytes.
    omitted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Start,
    Node,
    Contents { left: u64, size: u64 },
    EndOfNode,
    Entries,
    Nothing,
}

impl<R: BufRead> Reader<R> {
    /// A reader of the archive that `source` is about to give.
    pub fn new(source: R) -> Self {
        Self { source, offset: 0, expected: Expected::Start, names: Vec::new(), omitted: false }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether what was read so far is, to the byte, what [`dump`](super::dump) writes of the same tree.
    pub fn is_canonical(&self) -> bool {
        !self.omitted
    }

    /// The source, with all that follows what was read.
    pub fn into_source(self) -> R {
        self.source
    }

    /// The next part, or nothing after the last. Contents that were not asked for are skipped.
    ///
    /// # Errors
    /// The source fails, ends too early, or says what no canonical archive says. After an error the reader is of no use.
    #[expect(clippy::should_implement_trait, reason = "an iterator could be asked on after an error")]
    pub fn next(&mut self) -> Result<Option<Event>, NarError> {
        loop {
            match self.expected {
                Expected::Start => {
                    self.token(MAGIC, "the words ‘nix-archive-1’")?;
                    self.expected = Expected::Node;
                }
                Expected::Node => return self.node().map(Some),
                Expected::Contents { .. } => {
                    self.contents_to(&mut io::sink())?;
                }
                Expected::EndOfNode if self.names.is_empty() => self.expected = Expected::Nothing,
                Expected::EndOfNode => {
                    self.token(b")", "the end of a directory's entry")?;
                    self.expected = Expected::Entries;
                }
                Expected::Entries => return self.entry().map(Some),
                Expected::Nothing => return Ok(None),
            }
        }
    }

    fn node(&mut self) -> Result<Event, NarError> {
        self.token(b"(", "the beginning of a node")?;
        self.token(b"type", "the type of a node")?;
        let kind = self.string(16, "the type of a node")?;
        match kind.as_slice() {
            b"regular" => self.regular(),
            b"symlink" => {
                self.token(b"target", "the target of a symlink")?;
                let target = self.string(MAX_TARGET, "the target of a symlink")?;
                if target.is_empty() || target.contains(&0) {
                    return Err(self.malformed("the target of a symlink is empty or has a NUL byte"));
                }
                self.token(b")", "the end of a symlink")?;
                self.expected = Expected::EndOfNode;
                Ok(Event::Symlink(target))
            }
            b"directory" => {
                if self.names.len() == MAX_DEPTH {
                    return Err(
                        self.malformed(format!("there are more than {MAX_DEPTH} directories inside each other"))
                    );
                }
                self.names.push(None);
                self.expected = Expected::Entries;
                Ok(Event::Directory)
            }
            other => {
                let kind = shown_names([other].into_iter());
                Err(self.malformed(format!("a node has the unknown type ‘{kind}’")))
            }
        }
    }

    fn regular(&mut self) -> Result<Event, NarError> {
        const WANTED: &str = "‘executable’, ‘contents’ or the end of a file";
        let mut word = self.string(16, WANTED)?;
        let executable = word == b"executable";
        if executable {
            self.token(b"", "the empty string after ‘executable’")?;
            word = self.string(16, WANTED)?;
        }
        let mut size = 0;
        match word.as_slice() {
            b"contents" => {
                size = self.number("the length of a file's contents")?;
                // An archive's own length could not be counted.
                if size > i64::MAX as u64 {
                    return Err(self.malformed(format!("a file is said to have {size} bytes")));
                }
                self.expected = Expected::Contents { left: size, size };
            }
            b")" => {
                self.omitted = true;
                self.expected = Expected::EndOfNode;
            }
            other => {
                let word = shown_names([other].into_iter());
                return Err(self.malformed(format!("‘{word}’ stands where {WANTED} should")));
            }
        }
        Ok(Event::Regular { executable, size })
    }

    /// Writes the contents of the file that [`next`](Self::next) has just given, or what is left of them; gives how
    /// many bytes there were.
    ///
    /// # Errors
    /// As [`next`](Self::next), and what `sink` says.
    pub fn contents_to(&mut self, sink: &mut impl Write) -> Result<u64, NarError> {
        let Expected::Contents { left, size } = self.expected else { return Ok(0) };
        let mut rest = left;
        while rest > 0 {
            let (offset, available) = (self.offset, self.source.fill_buf());
            let available = match available {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(|source| NarError::Source { offset, source })?,
            };
            if available.is_empty() {
                return Err(NarError::Truncated { offset, wanted: "more of a file's contents" });
            }
            let count = available.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            sink.write_all(&available[..count]).map_err(NarError::Sink)?;
            self.source.consume(count);
            self.offset += count as u64;
            rest -= count as u64;
            self.expected = Expected::Contents { left: rest, size };
        }
        self.padding(size)?;
        self.token(b")", "the end of a file")?;
        self.expected = Expected::EndOfNode;
        Ok(left)
    }

    fn entry(&mut self) -> Result<Event, NarError> {
        const WANTED: &str = "an entry or the end of a directory";
        let word = self.string(16, WANTED)?;
        match word.as_slice() {
            b")" => {
                self.names.pop();
                self.expected = Expected::EndOfNode;
                return Ok(Event::EndDirectory);
            }
            b"entry" => {}
            other => {
                let word = shown_names([other].into_iter());
                return Err(self.malformed(format!("‘{word}’ stands where {WANTED} should")));
            }
        }
        self.token(b"(", "the beginning of an entry")?;
        self.token(b"name", "the name of an entry")?;
        let name = self.string(MAX_NAME, "the name of an entry")?;
        if let Some(why) = unfit(&name) {
            let name = shown_names([name.as_slice()].into_iter());
            return Err(self.malformed(format!("an entry is called ‘{name}’, {why}")));
        }
        if let Some(Some(before)) = self.names.last()
            && *before >= name
        {
            let shown = |name: &[u8]| shown_names([name].into_iter());
            let (before, after) = (shown(before), shown(&name));
            let what = if before == after {
                format!("the name ‘{after}’ occurs twice in a directory")
            } else {
                format!("the names of a directory are not sorted: ‘{after}’ follows ‘{before}’")
            };
            return Err(self.malformed(what));
        }
        self.token(b"node", "the node of an entry")?;
        if let Some(last) = self.names.last_mut() {
            *last = Some(name.clone());
        }
        self.expected = Expected::Node;
        Ok(Event::Entry(name))
    }

    fn exactly(&mut self, bytes: &mut [u8], wanted: &'static str) -> Result<(), NarError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.source.read(&mut bytes[filled..]) {
                Ok(0) => return Err(NarError::Truncated { offset: self.offset, wanted }),
                Ok(count) => {
                    filled += count;
                    self.offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NarError::Source { offset: self.offset, source }),
            }
        }
        Ok(())
    }

    fn number(&mut self, wanted: &'static str) -> Result<u64, NarError> {
        let mut bytes = [0; 8];
        self.exactly(&mut bytes, wanted)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn padding(&mut self, length: u64) -> Result<(), NarError> {
        let mut bytes = [0; 7];
        let bytes = &mut bytes[..padding(length)];
        self.exactly(bytes, "the padding of a string")?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(self.malformed("the padding of a string is not zero"));
        }
        Ok(())
    }

    /// A string of at most `limit` bytes, which is asked for as `wanted`.
    fn string(&mut self, limit: usize, wanted: &'static str) -> Result<Vec<u8>, NarError> {
        let length = self.number(wanted)?;
        if length > limit as u64 {
            return Err(
                self.malformed(format!("{wanted} is said to have {length} bytes, at most {limit} are possible"))
            );
        }
        let mut string = vec![0; length as usize];
        self.exactly(&mut string, wanted)?;
        self.padding(length)?;
        Ok(string)
    }

    fn token(&mut self, token: &[u8], wanted: &'static str) -> Result<(), NarError> {
        // Tokens are short, and there are some for every node: they are read without touching the heap.
        let mut bytes = [0; 16];
        let length = self.number(wanted)?;
        if length != token.len() as u64 {
            return Err(self.malformed(format!("a string of {length} bytes stands where {wanted} should")));
        }
        let bytes = &mut bytes[..token.len()];
        self.exactly(bytes, wanted)?;
        if bytes != token {
            let word = shown_names([&*bytes].into_iter());
            return Err(self.malformed(format!("‘{word}’ stands where {wanted} should")));
        }
        self.padding(length)
    }

    fn malformed(&self, what: impl Into<String>) -> NarError {
        let names = self.names.iter().flatten().map(Vec::as_slice);
        let path = shown_names(names);
        let place = if path.is_empty() { String::new() } else { format!(", in ‘{path}’") };
        NarError::Malformed { offset: self.offset, place, what: what.into() }
    }
}

/// Why a directory cannot have an entry of this name.
fn unfit(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("which is empty"),
        b"." | b".." => Some("which stands for a directory itself"),
        _ if name.contains(&b'/') => Some("which has a slash"),
        _ if name.contains(&0) => Some("which has a NUL byte"),
        _ => None,
    }
}

/// Copies one archive from `source` to `sink` and checks it on the way; gives the size of what was written.
///
/// What is written is in the form that Nix writes, whatever freedom the format left to the source (a file without
/// contents may say so or say nothing): hash what comes out, not what goes in.
///
/// # Errors
/// As [`Reader::next`], and what `sink` says. Part of the archive was written then.
pub fn copy(source: impl BufRead, sink: impl Write) -> Result<u64, NarError> {
    let mut reader = Reader::new(source);
    let mut encoder = Encoder::new(ToWriter(sink));
    encoder.string(MAGIC).map_err(NarError::Sink)?;
    let mut depth = 0_usize;
    while let Some(event) = reader.next()? {
        let written = match &event {
            Event::Directory => {
                depth += 1;
                encoder.strings(&[b"(", b"type", b"directory"])
            }
            Event::Entry(name) => encoder.strings(&[b"entry", b"(", b"name", name, b"node"]),
            Event::EndDirectory => {
                depth -= 1;
                encoder.string(b")")
            }
            Event::Symlink(target) => encoder.strings(&[b"(", b"type", b"symlink", b"target", target, b")"]),
            Event::Regular { executable, size } => {
                let begin: &[&[u8]] = &[b"(", b"type", b"regular", b"executable", b""];
                encoder.strings(if *executable { begin } else { &begin[..3] }).map_err(NarError::Sink)?;
                encoder.string(b"contents").and_then(|()| encoder.length(*size)).map_err(NarError::Sink)?;
                reader.contents_to(&mut Contents(&mut encoder))?;
                encoder.pad(*size).and_then(|()| encoder.string(b")"))
            }
        };
        written.map_err(NarError::Sink)?;
        // Everything but a directory's beginning and an entry's name ends a node, and with it the entry around it.
        if depth > 0 && !matches!(event, Event::Directory | Event::Entry(_)) {
            encoder.string(b")").map_err(NarError::Sink)?;
        }
    }
    let (ToWriter(mut sink), size) = encoder.finish().map_err(NarError::Sink)?;
    sink.flush().map_err(NarError::Sink)?;
    Ok(size)
}

struct Contents<'a, W>(&'a mut Encoder<ToWriter<W>>);

impl<W: Write> Write for Contents<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.bytes(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
