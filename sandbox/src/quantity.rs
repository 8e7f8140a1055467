//! Sizes and times as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of memory or disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// In bytes. Written `4096`, `16K`, `1.5G`; the letters are powers of 1,024.
    Bytes(u64),
    /// A share of the machine's memory in per cent, as tmpfs takes it. Written `50%`.
    Share(u8),
}

impl Size {
    /// So many MiB.
    pub const fn mebibytes(count: u64) -> Self {
        Self::Bytes(count << 20)
    }

    /// In bytes, on a machine with this much memory.
    pub fn bytes(self, memory: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(percent) => memory / 100 * u64::from(percent),
        }
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no size: write 4096, 16K, 512M, 1.5G or 50%");
        if let Some(percent) = text.strip_suffix('%') {
            let percent: u8 = percent.parse().map_err(|_| wrong())?;
            return if (1..=100).contains(&percent) { Ok(Self::Share(percent)) } else { Err(wrong()) };
        }
        let (number, shift) = split_unit(text, &[("K", 10), ("M", 20), ("G", 30), ("T", 40)]);
        scaled(number, (1u64 << shift) as f64).map(Self::Bytes).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => {
                for (shift, unit) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
                    if *bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
                        return write!(f, "{}{unit}", bytes >> shift);
                    }
                }
                write!(f, "{bytes}")
            }
        }
    }
}

/// A length of time, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub u64);

impl Duration {
    /// As the standard library has it.
    pub fn std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl FromStr for Duration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        let (number, factor) = match split_unit(text, &units) {
            (number, 0) => (number, 1000),
            found => found,
        };
        scaled(number, f64::from(factor))
            .filter(|milliseconds| *milliseconds > 0)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no length of time: write 30, 1.5s, 500ms, 10m, 2h or 1d"))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}ms", self.0)
    }
}

/// The number in front of a unit, and what the unit means; 0 when there is none.
fn split_unit<'a>(text: &'a str, units: &[(&str, u32)]) -> (&'a str, u32) {
    units
        .iter()
        .find_map(|(unit, meaning)| {
            let number = text.strip_suffix(unit).or_else(|| text.strip_suffix(&unit.to_ascii_lowercase()))?;
            number.ends_with(|last: char| last.is_ascii_digit()).then_some((number, *meaning))
        })
        .unwrap_or((text, 0))
}

fn scaled(number: &str, factor: f64) -> Option<u64> {
    if !number.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor as u64);
    }
    let value = number.parse::<f64>().ok()? * factor;
    (value.is_finite() && value < 9.0e18).then_some(value as u64)
}

macro_rules! as_text {
    ($type:ty, $expecting:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$type, E> {
                        number.to_string().parse().map_err(E::custom)
                    }
                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$type, E> {
                        number.to_string().parse().map_err(E::custom)
                    }
                    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<$type, E> {
                        number.to_string().parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

as_text!(Size, "a size such as 4096, \"512M\" or \"50%\"");
as_text!(Duration, "a length of time such as 30, \"500ms\" or \"2h\"");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("16K", 16 << 10), ("512m", 512 << 20), ("1.5G", 3 << 29)] {
            assert_eq!(text.parse(), Ok(Size::Bytes(bytes)), "{text}");
        }
        assert_eq!("50%".parse(), Ok(Size::Share(50)));
        for text in ["", "K", "-1", "1X", "101%", "0%", "1e400", "99999999999T", "nan", "inf"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, milliseconds) in
            [("30", 30_000), ("500ms", 500), ("1.5s", 1500), ("10m", 600_000), ("2h", 7_200_000)]
        {
            assert_eq!(text.parse(), Ok(Duration(milliseconds)), "{text}");
        }
        for text in ["", "0", "-1", "1y", "s", "1e999"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes in 0..u64::MAX / 2, milliseconds in 1..u64::MAX / 2) {
            prop_assert_eq!(Size::Bytes(bytes).to_string().parse(), Ok(Size::Bytes(bytes)));
            prop_assert_eq!(Duration(milliseconds).to_string().parse(), Ok(Duration(milliseconds)));
        }
    }
}
