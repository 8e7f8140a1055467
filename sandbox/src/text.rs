//! Text that the kernel takes as bytes: arguments, environment, names.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that are nearly always UTF-8. Written as a string when they are, else with each other byte as `\xNN` behind a
/// leading `\x:` mark.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(pub OsString);

const MARK: &str = "\\x:";

impl Text {
    /// As the system takes it.
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    fn spelled(&self) -> String {
        match self.0.to_str() {
            Some(text) if !text.starts_with(MARK) => text.to_owned(),
            _ => {
                let mut spelled = MARK.to_owned();
                for byte in self.0.as_bytes() {
                    match byte {
                        b'\\' => spelled.push_str("\\\\"),
                        0x20..=0x7e => spelled.push(char::from(*byte)),
                        _ => spelled.push_str(&format!("\\x{byte:02x}")),
                    }
                }
                spelled
            }
        }
    }

    fn read(spelled: &str) -> Result<Self, String> {
        let Some(rest) = spelled.strip_prefix(MARK) else { return Ok(Self(spelled.into())) };
        let mut bytes = Vec::with_capacity(rest.len());
        let mut rest = rest.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            let (decoded, left) = match (byte, tail) {
                (b'\\', [b'\\', tail @ ..]) => (b'\\', tail),
                (b'\\', [b'x', high, low, tail @ ..]) => {
                    let digit = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
                    match (digit(*high), digit(*low)) {
                        (Some(high), Some(low)) => (high << 4 | low, tail),
                        _ => return Err(format!("`{spelled}`: \\x takes two hexadecimal digits")),
                    }
                }
                (b'\\', _) => return Err(format!("`{spelled}`: after a backslash comes another one or xNN")),
                (byte, tail) => (byte, tail),
            };
            bytes.push(decoded);
            rest = left;
        }
        Ok(Self(OsString::from_vec(bytes)))
    }
}

impl<T: Into<OsString>> From<T> for Text {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.spelled())
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.spelled())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spelled = String::deserialize(deserializer)?;
        Self::read(&spelled).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_survive_writing_and_reading(bytes: Vec<u8>) {
            let text = Text(OsString::from_vec(bytes));
            prop_assert_eq!(Text::read(&text.spelled()), Ok(text));
        }
    }

    #[test]
    fn ordinary_text_is_written_as_it_is() {
        assert_eq!(Text::from("a b=ü\n").spelled(), "a b=ü\n");
    }
}
