//! Nix's own base 32: digits and letters without `e`, `o`, `t` and `u`, written from the last bits to the first.
//!
//! Source: `src/libutil/base-nix-32.cc`. It is not RFC 4648: the alphabet, the order and the lack of padding differ.

const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// The value of each byte as a digit, or `INVALID`.
const VALUES: [u8; 256] = {
    let mut values = [INVALID; 256];
    let mut digit = 0;
    while digit < ALPHABET.len() {
        values[ALPHABET[digit] as usize] = digit as u8;
        digit += 1;
    }
    values
};
const INVALID: u8 = 0xff;

/// Whether `byte` is one of the 32 digits.
pub fn is_digit(byte: u8) -> bool {
    VALUES[usize::from(byte)] != INVALID
}

/// The number of digits that `bytes` bytes take.
pub const fn encoded_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// The text of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    (0..encoded_len(bytes.len()))
        .rev()
        .map(|digit| {
            let bit = digit * 5;
            let (byte, shift) = (bit / 8, bit % 8);
            let low = bytes[byte] >> shift;
            let high = match bytes.get(byte + 1) {
                Some(next) if shift > 3 => next << (8 - shift),
                _ => 0,
            };
            char::from(ALPHABET[usize::from((low | high) & 0x1f)])
        })
        .collect()
}

/// The `N` bytes that `text` says, or nothing if it is not exactly the text of `N` bytes: a foreign digit, another length,
/// or bits set beyond the last byte, which would give one hash several texts.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    decode_into(text, &mut bytes).then_some(bytes)
}

/// As [`decode`], for a length known at run time only; says whether `text` was valid.
pub fn decode_into(text: &str, bytes: &mut [u8]) -> bool {
    if text.len() != encoded_len(bytes.len()) {
        return false;
    }
    bytes.fill(0);
    for (digit, character) in text.bytes().rev().enumerate() {
        let value = VALUES[usize::from(character)];
        if value == INVALID {
            return false;
        }
        let bit = digit * 5;
        let (byte, shift) = (bit / 8, bit % 8);
        bytes[byte] |= value << shift;
        let rest = if shift > 3 { value >> (8 - shift) } else { 0 };
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= rest,
            None if rest != 0 => return false,
            None => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_empty_hash_as_nix_prints_it() {
        // nix-hash --type sha256 --to-base32 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
        let bytes = [
            0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae,
            0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
        ];
        assert_eq!(encode(&bytes), "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
    }

    #[test]
    fn spare_bits_and_foreign_letters_are_refused() {
        assert_eq!(decode::<1>("7z"), Some([0xff]));
        assert_eq!(decode::<1>("8z"), None, "bit 8 of a byte");
        assert_eq!(decode::<1>("ez"), None);
        assert_eq!(decode::<1>("7Z"), None);
        assert_eq!(decode::<1>("07z"), None);
        assert_eq!(decode::<1>("z"), None);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(bytes in any::<[u8; 32]>(), short in any::<[u8; 20]>()) {
            prop_assert_eq!(decode::<32>(&encode(&bytes)), Some(bytes));
            prop_assert_eq!(decode::<20>(&encode(&short)), Some(short));
        }

        #[test]
        fn a_text_that_is_accepted_is_the_text_that_is_written(text in "[0-9a-z]{52}") {
            if let Some(bytes) = decode::<32>(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
