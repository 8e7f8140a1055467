//! How a refused argument is shown to a person.

/// The notation of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Notation {
    /// A file mode: `04755`.
    Octal,
    /// Flags and requests: `0x5412`.
    Hex,
    /// A socket family by its name: `AF_VSOCK`.
    Family,
    /// A netlink protocol by its name: `NETLINK_AUDIT`.
    Netlink,
}

/// Which argument of a refused call is shown, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Show {
    /// Index of the argument; 0 is the first.
    pub arg: u8,
    /// Its notation.
    #[serde(rename = "as")]
    pub notation: Notation,
}
