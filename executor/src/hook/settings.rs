//! The settings that Nix sends a hook before anything else: all that it has, and not only what was changed.

use std::io::BufRead;

use crate::wire::{Message, Source, WireError};

/// The longest name, in bytes.
const LONGEST_NAME: usize = 1 << 10;

/// The longest value, in bytes. The list of builders may be long.
const LONGEST_VALUE: usize = 4 << 20;

/// The most settings. Nix has about a hundred.
const MOST: usize = 1 << 12;

/// The setting that says on which machines is built.
pub const BUILDERS: &str = "builders";

/// The settings, in the order in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings(Vec<(Vec<u8>, Vec<u8>)>);

impl Settings {
    /// Reads them, to their end and not a byte further. Nothing if the stream ends before the first.
    ///
    /// # Errors
    /// What is no list of settings, or too long for one; and what the stream says.
    pub fn read<R: BufRead>(source: &mut Source<R>) -> Result<Option<Self>, WireError> {
        let what = "whether a setting follows";
        let Some(mut more) = source.number_or_end(what)? else { return Ok(None) };
        let mut settings = Vec::new();
        while more != 0 {
            if more != 1 {
                return Err(WireError::invalid(
                    what,
                    format!("{more} is neither 0 nor 1; is this a build hook's input?"),
                ));
            }
            if settings.len() == MOST {
                let (length, most) = (MOST as u64 + 1, MOST as u64);
                return Err(WireError::TooLong { what: "the list of settings", length, most });
            }
            let name = source.bytes("the name of a setting", LONGEST_NAME)?;
            let value = source.bytes("the value of a setting", LONGEST_VALUE)?;
            settings.push((name, value));
            more = source.number(what)?;
        }
        Ok(Some(Self(settings)))
    }

    /// As Nix would send them.
    pub fn write(&self, message: &mut Message) {
        for (name, value) in &self.0 {
            message.number(1).string(name).string(value);
        }
        message.number(0);
    }

    /// The value of a setting. Nothing also if it is no text.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().rev().find(|(known, _)| known == name.as_bytes())?;
        std::str::from_utf8(value).ok()
    }

    /// Gives a setting a value, wherever it stands, and adds it if it is not there.
    pub fn set(&mut self, name: &str, value: &str) {
        let mut found = false;
        for (_, old) in self.0.iter_mut().filter(|(known, _)| known == name.as_bytes()) {
            *old = value.as_bytes().to_vec();
            found = true;
        }
        if !found {
            self.0.push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(settings: &Settings) -> Vec<u8> {
        let mut message = Message::new();
        settings.write(&mut message);
        message.0
    }

    #[test]
    fn what_follows_the_settings_is_left() {
        // As Nix 2.8 begins.
        let mut bytes =
            b"\x01\0\0\0\0\0\0\0\x13\0\0\0\0\0\0\0accept-flake-config\0\0\0\0\0\x05\0\0\0\0\0\0\0false\0\0\0".to_vec();
        bytes.extend([0; 8]);
        bytes.extend(b"rest");
        let mut source = Source::new(&bytes[..]);
        let settings = Settings::read(&mut source).unwrap().unwrap();
        assert_eq!(settings.get("accept-flake-config"), Some("false"));
        assert_eq!(*source.stream(), b"rest");
        assert_eq!(written(&settings), bytes[..bytes.len() - 4]);
    }

    #[test]
    fn builders_are_replaced_wherever_they_stand() {
        let mut settings = Settings::default();
        settings.set(BUILDERS, "@/etc/nix/machines");
        settings.set("cores", "0");
        settings.set(BUILDERS, "ours");
        assert_eq!(settings.get(BUILDERS), Some("ours"));
        assert_eq!(settings.0.len(), 2);
    }

    #[test]
    fn what_is_no_list_of_settings_is_refused() {
        assert_eq!(Settings::read(&mut Source::new(&b""[..])).unwrap(), None, "a Nix that went away at once");
        for bytes in [&b"\x02\0\0\0\0\0\0\0"[..], b"\x01\0\0\0\0\0\0\0\xff\xff\xff\xff\0\0\0\0", b"\x01\0\0\0", b"try"]
        {
            assert!(Settings::read(&mut Source::new(bytes)).is_err(), "{bytes:?}");
        }
        let mut endless = Vec::new();
        for _ in 0..=MOST {
            endless.extend(1u64.to_le_bytes());
            endless.extend([0; 16]);
        }
        assert!(matches!(Settings::read(&mut Source::new(&endless[..])), Err(WireError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(pairs in prop::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..8)) {
            let settings = Settings(pairs);
            let bytes = written(&settings);
            prop_assert_eq!(Settings::read(&mut Source::new(&bytes[..])).unwrap(), Some(settings));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Settings::read(&mut Source::new(&bytes[..]));
        }
    }
}
