//! Fields of our own messages and files: numbers of fixed size, little endian, and bytes behind their length.
//!
//! What a guest sends, or leaves on a share, is foreign: [`Reader`] never reads past the end, never makes room for more than
//! what is there, and says what was wrong.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What is wrong with bytes that should be fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The bytes end inside a field.
    #[error("cut off: {wanted} more bytes are due for {field}, {left} are left")]
    Short {
        /// Which field.
        field: &'static str,
        /// How many bytes it should have had.
        wanted: u64,
        /// How many there are.
        left: usize,
    },
    /// A number that stands for a choice stands for none.
    #[error("{field} has no choice {value}")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// Text that is not UTF-8, or a name with a NUL in it.
    #[error("{field} is not {wanted}")]
    Malformed {
        /// Which field.
        field: &'static str,
        /// What it should have been.
        wanted: &'static str,
    },
    /// All fields are read, and there is more.
    #[error("{left} bytes are left after the last field")]
    Left {
        /// How many.
        left: usize,
    },
}

/// Takes fields from the front of bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// All of `bytes` are fields.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, field: &'static str, wanted: u64) -> Result<&'a [u8], FieldError> {
        let short = FieldError::Short { field, wanted, left: self.rest.len() };
        let length = usize::try_from(wanted).map_err(|_| short.clone())?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FieldError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N as u64)?);
        Ok(array)
    }

    /// A number of one byte.
    ///
    /// # Errors
    /// At the end.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, FieldError> {
        Ok(self.array::<1>(field)?[0])
    }

    /// A number of four bytes.
    ///
    /// # Errors
    /// At the end.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, FieldError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// A number of eight bytes.
    ///
    /// # Errors
    /// At the end.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, FieldError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// Yes or no.
    ///
    /// # Errors
    /// At the end, and for other bytes than 0 and 1.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, FieldError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(FieldError::Unknown { field, value: other.into() }),
        }
    }

    /// Bytes behind their length.
    ///
    /// # Errors
    /// If fewer are there than the length says.
    pub fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], FieldError> {
        let length = self.u32(field)?;
        self.take(field, length.into())
    }

    /// Text behind its length.
    ///
    /// # Errors
    /// If it is cut off, and if it is not UTF-8.
    pub fn text(&mut self, field: &'static str) -> Result<&'a str, FieldError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| FieldError::Malformed { field, wanted: "UTF-8" })
    }

    /// A path, an argument or the like: any bytes but NUL, which no system call could take.
    ///
    /// # Errors
    /// If it is cut off, and if it has a NUL.
    pub fn name(&mut self, field: &'static str) -> Result<&'a OsStr, FieldError> {
        let bytes = self.bytes(field)?;
        if bytes.contains(&0) {
            return Err(FieldError::Malformed { field, wanted: "free of NUL" });
        }
        Ok(OsStr::from_bytes(bytes))
    }

    /// Things behind their number, each read by `one`, which takes at least one byte.
    ///
    /// # Errors
    /// What `one` finds wrong, and a number of things that cannot be here.
    pub fn list<T>(
        &mut self,
        field: &'static str,
        mut one: impl FnMut(&mut Self) -> Result<T, FieldError>,
    ) -> Result<Vec<T>, FieldError> {
        let number = self.u32(field)?;
        // Room is made for what is read, not for what is announced.
        let mut things = Vec::new();
        for _ in 0..number {
            if self.rest.is_empty() {
                return Err(FieldError::Short { field, wanted: 1, left: 0 });
            }
            things.push(one(self)?);
        }
        Ok(things)
    }

    /// How many bytes are not yet read.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// There must be no more.
    ///
    /// # Errors
    /// If there is.
    pub fn end(&self) -> Result<(), FieldError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FieldError::Left { left: self.rest.len() }) }
    }
}

/// Puts fields one behind the other.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// A number of one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    /// A number of four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    /// A number of eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    /// Yes or no.
    pub fn flag(&mut self, value: bool) -> &mut Self {
        self.u8(value.into())
    }

    /// Bytes behind their length. What is longer than 4 GiB is not written whole; no message of ours may be that long.
    pub fn bytes(&mut self, value: impl AsRef<[u8]>) -> &mut Self {
        let value = value.as_ref();
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.u32(length);
        self.bytes.extend(&value[..length as usize]);
        self
    }

    /// A path, an argument or the like.
    pub fn name(&mut self, value: impl AsRef<OsStr>) -> &mut Self {
        self.bytes(value.as_ref().as_bytes())
    }

    /// Things behind their number, each written by `one`.
    pub fn list<T>(&mut self, things: &[T], mut one: impl FnMut(&mut Self, &T)) -> &mut Self {
        let number = u32::try_from(things.len()).unwrap_or(u32::MAX);
        self.u32(number);
        for thing in &things[..number as usize] {
            one(self, thing);
        }
        self
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_announced_length_makes_no_room_by_itself() {
        let error = Reader::new(&[0xff, 0xff, 0xff, 0xff, 1]).bytes("name").unwrap_err();
        assert_eq!(error.to_string(), "cut off: 4294967295 more bytes are due for name, 1 are left");
        let error = Reader::new(&[0xff, 0xff, 0xff, 0xff]).list("names", |one| one.u8("name")).unwrap_err();
        assert_eq!(error, FieldError::Short { field: "names", wanted: 1, left: 0 });
    }

    #[test]
    fn names_hold_no_nul_and_text_is_utf_8() {
        let mut fields = Writer::new();
        fields.bytes(b"a\0b").bytes(b"\xff");
        let bytes = fields.finish();
        let mut reader = Reader::new(&bytes);
        assert!(reader.name("path").is_err());
        assert!(reader.text("words").is_err());
        assert_eq!(reader.end(), Ok(()));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number: u32, big: u64, yes: bool, bytes: Vec<u8>, words: String, small: Vec<u8>) {
            let mut fields = Writer::new();
            fields.u32(number).u64(big).flag(yes).bytes(&bytes).bytes(&words).list(&small, |one, value| { one.u8(*value); });
            let written = fields.finish();
            let mut reader = Reader::new(&written);
            prop_assert_eq!(reader.u32("number"), Ok(number));
            prop_assert_eq!(reader.u64("big"), Ok(big));
            prop_assert_eq!(reader.flag("yes"), Ok(yes));
            prop_assert_eq!(reader.bytes("bytes"), Ok(&bytes[..]));
            prop_assert_eq!(reader.text("words"), Ok(&words[..]));
            prop_assert_eq!(reader.list("small", |one| one.u8("one")), Ok(small));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }
}
