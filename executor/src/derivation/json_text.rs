//! JSON as text: written byte for byte as Nix writes it, and read without letting one key hide another.
//!
//! The text of structured attributes is hashed (as the variable `__json`) and read by builders (as `.attrs.json`), so that
//! its spelling matters. Nix writes with the library nlohmann/json: no spaces, keys sorted, UTF-8 as it is.

use std::fmt::{self, Write as _};

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The text of `value`, without spaces, as Nix spells it.
pub fn write(value: &Value) -> String {
    let mut text = String::new();
    write_to(&mut text, value);
    text
}

fn write_to(text: &mut String, value: &Value) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => write_number(text, number),
        Value::String(string) => write_string(text, string),
        Value::Array(all) => {
            text.push('[');
            for (position, this) in all.iter().enumerate() {
                if position > 0 {
                    text.push(',');
                }
                write_to(text, this);
            }
            text.push(']');
        }
        Value::Object(object) => {
            // Sorted whatever the map's own order is, which depends on a feature of serde_json.
            let mut all: Vec<_> = object.iter().collect();
            all.sort_by(|left, right| left.0.cmp(right.0));
            text.push('{');
            for (position, (key, this)) in all.into_iter().enumerate() {
                if position > 0 {
                    text.push(',');
                }
                write_string(text, key);
                text.push(':');
                write_to(text, this);
            }
            text.push('}');
        }
    }
}

fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\0'..='\u{1f}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(character));
            }
            _ => text.push(character),
        }
    }
    text.push('"');
}

fn write_number(text: &mut String, number: &Number) {
    match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(integer), ..) => {
            let _ = write!(text, "{integer}");
        }
        (None, Some(integer), _) => {
            let _ = write!(text, "{integer}");
        }
        (None, None, Some(float)) => write_float(text, float),
        // Only with a feature of serde_json that this crate does not use.
        (None, None, None) => text.push_str("null"),
    }
}

/// The shortest digits that mean `float`, with an exponent if the decimal point would be more than 15 places to the right or
/// more than 3 zeros to the left. Source: `to_chars` of nlohmann/json, whose digits are not always the shortest: of 500 random
/// numbers, one had another digit. Nix's own language writes six digits at most, where both are the same.
fn write_float(text: &mut String, float: f64) {
    if !float.is_finite() {
        text.push_str("null");
        return;
    }
    let shortest = format!("{float:e}");
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits = mantissa.replace('.', "");
    text.push_str(sign);
    // How many digits stand before the decimal point.
    let point = exponent + 1;
    let len = digits.len() as i32;
    if float == 0.0 {
        text.push_str("0.0");
    } else if len <= point && point <= 15 {
        text.push_str(&digits);
        text.extend(std::iter::repeat_n('0', (point - len) as usize));
        text.push_str(".0");
    } else if 0 < point && point <= 15 {
        let (whole, fraction) = digits.split_at(point as usize);
        let _ = write!(text, "{whole}.{fraction}");
    } else if -4 < point && point <= 0 {
        text.push_str("0.");
        text.extend(std::iter::repeat_n('0', -point as usize));
        text.push_str(&digits);
    } else {
        let (first, rest) = digits.split_at(1);
        text.push_str(first);
        if !rest.is_empty() {
            let _ = write!(text, ".{rest}");
        }
        let _ = write!(text, "e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
}

/// Reads one value and nothing after it, refusing an object that has a key twice. Nesting is limited to 128 levels.
pub fn read_strict(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(text).map(|Strict(value)| value)
}

/// How many lists and objects lie in one another at the deepest place of `value`.
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(all) => 1 + all.iter().map(depth).max().unwrap_or(0),
        Value::Object(all) => 1 + all.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Strict(value)) = access.next_element()? {
            all.push(value);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some((key, Strict(value))) = access.next_entry::<String, _>()? {
            if all.contains_key(&key) {
                return Err(de::Error::custom(format_args!("the key ‘{key}’ is there twice")));
            }
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The right column is what Nix 2.8 puts into `.attrs.json` for the left.
    #[test]
    fn numbers_are_spelled_as_nix_does() {
        for (read, written) in [
            ("0", "0"),
            ("-7", "-7"),
            ("18446744073709551615", "18446744073709551615"),
            ("0.0", "0.0"),
            ("-0.0", "-0.0"),
            ("2.5", "2.5"),
            ("1e3", "1000.0"),
            ("123456789012345.0", "123456789012345.0"),
            ("1e15", "1e+15"),
            ("1e20", "1e+20"),
            ("1.5e300", "1.5e+300"),
            ("0.001", "0.001"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("12.25", "12.25"),
        ] {
            assert_eq!(write(&serde_json::from_str(read).unwrap()), written, "{read}");
        }
    }

    #[test]
    fn a_key_that_hides_another_is_refused() {
        let error = read_strict(br#"{"a":[{"b":1,"b":2}]}"#).unwrap_err().to_string();
        assert!(error.contains("the key ‘b’ is there twice"), "{error}");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no infinity", |float| float.is_finite()).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(value in any_value()) {
            let text = write(&value);
            let strict = read_strict(text.as_bytes()).unwrap();
            prop_assert_eq!(strict, value);
        }
    }
}
