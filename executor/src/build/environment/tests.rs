use std::collections::BTreeSet;

use super::super::reference_graph::PathFacts;
use super::*;
use crate::derivation::{Output, placeholder};
use crate::store_path::StorePath;
use proptest::prelude::*;

const FINAL: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";
const SCRATCH: &str = "11bgd045z0d4icpbc2yyz4gx48ak44la";

fn path(name: &str) -> StorePath {
    format!("{FINAL}-{name}").parse().unwrap()
}

fn derivation(variables: &[(&str, &str)]) -> Derivation {
    Derivation {
        name: "a".to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), Output::InputAddressed(path("a")))]),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::new(),
        system: "x86_64-linux".to_owned(),
        builder: b"/nix/store/x/bin/sh".to_vec(),
        arguments: vec![],
        environment: variables
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .collect(),
    }
}

/// A store with `a` → `b`, and a derivation `c.drv` that makes `b`.
struct Store;

impl Inputs for Store {
    fn is_input(&self, path: &StorePath) -> bool {
        ["a", "c.drv", "gone"].contains(&path.name())
    }

    fn facts(&self, asked: &StorePath) -> Result<Option<PathFacts>, Box<dyn std::error::Error + Send + Sync>> {
        let references = match asked.name() {
            "a" => BTreeSet::from([path("a"), path("b")]),
            "b" | "c.drv" => BTreeSet::new(),
            _ => return Ok(None),
        };
        let nar_hash = Hash::sha256(asked.as_str().as_bytes());
        Ok(Some(PathFacts { nar_hash, nar_size: 10, references, content_address: None }))
    }

    fn outputs(&self, _: &StorePath) -> Result<Vec<StorePath>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(vec![path("b")])
    }
}

fn prepared(derivation: &Derivation, made: &str) -> Result<BuilderInput, PrepareError> {
    let store_dir = StoreDir::default();
    let options = Options::read(derivation, &store_dir).unwrap();
    let outputs = BTreeMap::from([("out".to_owned(), format!("/nix/store/{made}-a"))]);
    prepare(derivation, &options, &store_dir, &Settings::default(), &outputs, &Store)
}

#[test]
fn all_that_names_the_output_names_where_it_is_made() {
    let own = format!("/nix/store/{FINAL}-a");
    let mut derivation = derivation(&[("out", &own), ("flags", &format!("-L{own}/lib {}", placeholder("out")))]);
    derivation.arguments = vec![format!("{FINAL}{FINAL}").into_bytes(), placeholder("out").into_bytes()];
    let made = format!("/nix/store/{SCRATCH}-a");
    let input = prepared(&derivation, SCRATCH).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(text(&input.environment[b"out".as_slice()]), made);
    assert_eq!(text(&input.environment[b"flags".as_slice()]), format!("-L{made}/lib {made}"));
    assert_eq!(
        input.arguments.iter().map(|bytes| text(bytes)).collect::<Vec<_>>(),
        ["sh".to_owned(), format!("{SCRATCH}{SCRATCH}"), made]
    );
    let input = prepared(&derivation, FINAL).unwrap();
    assert_eq!(text(&input.environment[b"out".as_slice()]), own);
}

#[test]
fn only_fixed_outputs_learn_of_the_outside() {
    let mut derivation = derivation(&[("impureEnvVars", "http_proxy"), ("http_proxy", "mine")]);
    let input = prepared(&derivation, FINAL).unwrap();
    assert_eq!(input.environment[b"http_proxy".as_slice()], b"mine");
    assert!(!input.environment.contains_key(b"NIX_OUTPUT_CHECKED".as_slice()));
    let hash = Hash::sha256(b"");
    let output = Output::Fixed { path: path("a"), method: crate::derivation::Method::Flat, hash };
    derivation.outputs.insert("out".to_owned(), output);
    let input = prepared(&derivation, FINAL).unwrap();
    assert_eq!(input.environment[b"http_proxy".as_slice()], b"");
    assert_eq!(input.environment[b"NIX_OUTPUT_CHECKED".as_slice()], b"1");
}

#[test]
fn graphs_are_written_as_registrations() {
    let full = |name: &str| format!("/nix/store/{}", path(name));
    let value = format!("one {} two {}", full("a"), full("c.drv"));
    let input = prepared(&derivation(&[("exportReferencesGraph", &value)]), FINAL).unwrap();
    let (a, b, c) = (full("a"), full("b"), full("c.drv"));
    let expected = [
        ("one", format!("{a}\n\n2\n{a}\n{b}\n{b}\n\n0\n")),
        // Also what the derivation makes.
        ("two", format!("{b}\n\n0\n{c}\n\n0\n")),
    ];
    for (file, (name, contents)) in input.files.iter().zip(expected) {
        assert_eq!((file.name.as_str(), std::str::from_utf8(&file.contents)), (name, Ok(contents.as_str())));
    }
}

#[test]
fn what_cannot_be_given_is_named() {
    let full = |name: &str| format!("/nix/store/{}", path(name));
    for (variables, part) in [
        (("a", "x\0y"), "the variable ‘a’ of the derivation ‘a’ has a zero byte".to_owned()),
        (
            ("exportReferencesGraph", &*format!("g {}", full("b"))),
            format!("of ‘{}’: it is not in the input", path("b")),
        ),
        (("exportReferencesGraph", &*format!("g {}", full("gone"))), format!("‘{}’ is not valid", path("gone"))),
    ] {
        let error = prepared(&derivation(&[variables]), FINAL).unwrap_err().to_string();
        assert!(error.contains(&part), "{error}");
    }
}

proptest! {
    /// No name of a variable makes a file outside the build directory, or one that another variable makes too.
    #[test]
    fn files_of_variables_have_names_of_their_own(names in proptest::collection::btree_set("[^\0 \t\n\r]{1,12}", 1..6)) {
        let list = names.iter().cloned().collect::<Vec<_>>().join(" ");
        prop_assume!(!names.contains("passAsFile"));
        let mut variables: Vec<_> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
        variables.push(("passAsFile", &list));
        let input = prepared(&derivation(&variables), FINAL).unwrap();
        prop_assert_eq!(input.files.len(), names.len());
        for (file, name) in input.files.iter().zip(&names) {
            prop_assert!(file.name.starts_with(".attr-") && !file.name.contains('/'));
            prop_assert_eq!(&file.contents, name.as_bytes());
            let variable = format!("{name}Path").into_bytes();
            prop_assert_eq!(&input.environment[&variable], &format!("/build/{}", file.name).into_bytes());
        }
    }
}
