//! The two files that a builder with structured attributes gets: `.attrs.json` and `.attrs.sh`.
//!
//! Source: `prepareStructuredAttrs` and `writeStructuredAttrsShell` in `src/libstore/parsed-derivations.cc` of Nix.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

use super::reference_graph::{Graph, GraphError, Inputs};
use crate::derivation::options::Options;
use crate::derivation::{Derivation, placeholder};
use crate::store_path::StoreDir;

/// The attributes as the builder gets them: with its outputs (by their placeholders) and the graphs that it asked for.
pub fn complete(
    attributes: &Map<String, Value>,
    derivation: &Derivation,
    options: &Options,
    store_dir: &StoreDir,
    inputs: &dyn Inputs,
) -> Result<Map<String, Value>, GraphError> {
    let mut attributes = attributes.clone();
    let outputs: Map<_, _> =
        derivation.outputs.keys().map(|output| (output.clone(), placeholder(output).into())).collect();
    attributes.insert("outputs".to_owned(), outputs.into());
    for (name, paths) in &options.export_references_graph {
        attributes.insert(name.clone(), Graph::of(paths, inputs)?.json(store_dir));
    }
    Ok(attributes)
}

/// The text of `.attrs.sh`: a declaration for Bash of each attribute that it can hold. Names that are no variable, lists in
/// lists and fractions are left out, as in Nix.
pub fn shell(attributes: &Map<String, Value>) -> String {
    let attributes: BTreeMap<_, _> = attributes.iter().collect();
    let mut text = String::new();
    for (name, value) in attributes {
        if !is_variable(name) {
            continue;
        }
        match value {
            Value::Array(all) => {
                if let Some(words) = all.iter().map(word).collect::<Option<Vec<_>>>() {
                    let words: String = words.iter().map(|word| format!("{word} ")).collect();
                    let _ = writeln!(text, "declare -a {name}=({words})");
                }
            }
            Value::Object(all) => {
                let all: BTreeMap<_, _> = all.iter().collect();
                let pair = |(key, value): (&String, &Value)| Some(format!("[{}]={} ", quote(key), word(value)?));
                if let Some(pairs) = all.into_iter().map(pair).collect::<Option<String>>() {
                    let _ = writeln!(text, "declare -A {name}=({pairs})");
                }
            }
            _ => {
                if let Some(word) = word(value) {
                    let _ = writeln!(text, "declare {name}={word}");
                }
            }
        }
    }
    text
}

fn is_variable(name: &str) -> bool {
    let is_letter = |character: char| character.is_ascii_alphabetic() || character == '_';
    name.starts_with(is_letter) && name.chars().all(|character| is_letter(character) || character.is_ascii_digit())
}

fn word(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("''".to_owned()),
        Value::Bool(value) => Some(if *value { "1" } else { "" }.to_owned()),
        Value::Number(number) => whole_number(number).map(|number| number.to_string()),
        Value::String(string) => Some(quote(string)),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// A number without a fraction as C++ converts it to `int`, which is what builders of Nix get: integers lose their upper
/// bits, and a floating-point number that is too large becomes the smallest integer.
fn whole_number(number: &Number) -> Option<i32> {
    if let Some(integer) = number.as_i64() {
        return Some(integer as i32);
    }
    if let Some(integer) = number.as_u64() {
        return Some(integer as i32);
    }
    let float = number.as_f64()?;
    // Whether it has a fraction is asked after rounding to single precision.
    let single = float as f32;
    if single.ceil() != single {
        return None;
    }
    let fits = float > f64::from(i32::MIN) - 1.0 && float < f64::from(i32::MAX) + 1.0;
    Some(if fits { float as i32 } else { i32::MIN })
}

/// `text` in single quotes.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn shell_of(value: &Value) -> String {
        shell(value.as_object().unwrap())
    }

    /// The expected lines are what Nix 2.8 wrote.
    #[test]
    fn values_become_declarations() {
        let attributes = json!({
            "big": 5_000_000_000_u64, "e20": 1e20, "f": 2.5, "f2": 3.0, "n": null, "t": true, "fa": false, "neg": -3,
            "list": ["a'b", 1, null, true], "mixed": [["x"]], "floats": [2.5], "o": {"a": "x y", "b c'": 5},
            "empty": [], "eo": {}, "a-b": "skipped", "": "skipped", "1a": "skipped", "q": "it's\n",
        });
        let expected = r#"declare big=705032704
declare e20=-2147483648
declare -a empty=()
declare -A eo=()
declare f2=3
declare fa=
declare -a list=('a'\''b' 1 '' 1 )
declare n=''
declare neg=-3
declare -A o=(['a']='x y' ['b c'\''']=5 )
declare q='it'\''s
'
declare t=1
"#;
        assert_eq!(shell_of(&attributes), expected);
    }

    proptest! {
        /// Whatever an attribute holds, Bash reads it back and runs nothing.
        #[test]
        fn bash_reads_strings_back(strings in proptest::collection::vec("[^\0]{0,12}", 1..5)) {
            let text = shell_of(&json!({ "strings": strings }));
            let script = format!("{text}printf '%s\\0' \"${{strings[@]}}\"");
            let Ok(output) = std::process::Command::new("bash").args(["-c", &script]).output() else {
                println!("SKIP: no bash is installed");
                return Ok(());
            };
            let read: Vec<_> = output.stdout.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            prop_assert_eq!(&read[..read.len() - 1], &strings[..]);
            prop_assert!(output.stderr.is_empty());
        }
    }
}
