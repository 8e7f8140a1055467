use super::*;
use crate::derivation::{Derivation, aterm};
use crate::store_path::StoreDir;
use proptest::prelude::*;
use serde_json::{Value, json};

const HASH: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
const HELLO_SRI: &str = "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";

fn read_value(value: &Value) -> Result<Vec<Named>, JsonError> {
    read(value.to_string().as_bytes(), &StoreDir::default())
}

fn read_first(value: &Value) -> Derivation {
    read_value(value).unwrap().remove(0).derivation
}

/// The same derivation in versions 4, 3 and 1.
fn versions() -> [Value; 3] {
    let common = json!({
        "name": "a", "system": "x86_64-linux", "builder": "/bin/sh", "args": ["-c", "true"], "env": {"out": "x"},
    });
    let with = |more: Value| {
        let mut all = common.clone();
        let all_keys = all.as_object_mut().unwrap();
        all_keys.extend(more.as_object().unwrap().clone());
        all
    };
    let (src, drv) = (format!("{HASH}-src"), format!("{HASH}-in.drv"));
    let dynamic = json!({"outputs": ["dev", "out"], "dynamicOutputs": {}});
    let path = StoreDir::default().fixed_path("a", true, &HELLO_SRI.parse().unwrap()).unwrap();
    [
        with(json!({
            "version": 4,
            "outputs": {"out": {"method": "nar", "hash": HELLO_SRI}},
            "inputs": {"srcs": [src], "drvs": {drv.clone(): dynamic}},
        })),
        with(json!({
            "version": 3,
            "outputs": {"out": {"method": "nar", "hashAlgo": "sha256", "hash": HELLO, "path": path.as_str()}},
            "inputSrcs": [src], "inputDrvs": {drv.clone(): dynamic},
        })),
        with(json!({
            "outputs": {"out": {"path": format!("/nix/store/{path}"), "hashAlgo": "r:sha256", "hash": HELLO}},
            "inputSrcs": [format!("/nix/store/{src}")],
            "inputDrvs": {format!("/nix/store/{drv}"): ["dev", "out"]},
        })),
    ]
}

#[test]
fn all_versions_say_the_same() {
    let [four, three, old] = versions();
    let derivation = read_first(&four);
    assert_eq!(derivation.input_derivations.values().next().unwrap().len(), 2);
    assert_eq!(read_first(&three), derivation);
    assert_eq!(read_first(&old), derivation);
    let mut hash_object = four.clone();
    hash_object["outputs"]["out"]["hash"] =
        json!({"algorithm": "sha256", "format": "base64", "hash": HELLO_SRI.split_once('-').unwrap().1});
    assert_eq!(read_first(&hash_object), derivation);
    assert_eq!(write_one(&derivation).unwrap(), four);
}

#[test]
fn paths_are_taken_from_the_maps_around() {
    let [four, _, mut old] = versions();
    old.as_object_mut().unwrap().remove("name");
    let path = format!("{HASH}-a.drv");
    let expected = Named { path: Some(path.parse().unwrap()), derivation: read_first(&four) };
    let new = json!({"version": 4, "derivations": {path.clone(): four}});
    assert_eq!(read_value(&new).unwrap(), std::slice::from_ref(&expected));
    let old = json!({format!("/nix/store/{path}"): old});
    assert_eq!(read_value(&old).unwrap(), std::slice::from_ref(&expected));
    assert_eq!(
        read_value(&write([(expected.path.as_ref().unwrap(), &expected.derivation)]).unwrap()).unwrap(),
        [expected]
    );
}

#[test]
fn structured_attributes_become_their_variable() {
    let [mut four, ..] = versions();
    four["structuredAttrs"] = json!({"b": [1, 2.5, "ü\n"], "a": {}});
    let derivation = read_first(&four);
    assert_eq!(derivation.variable("__json"), Some(r#"{"a":{},"b":[1,2.5,"ü\n"]}"#.as_bytes()));
    assert_eq!(write_one(&derivation).unwrap(), four);
    // A spelling that Nix would not write must not get lost, since it is hashed; nor what is too deep within more JSON.
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(126), "]".repeat(126));
    for text in ["{ }", "{", "[]", &deep] {
        let mut other = derivation.clone();
        other.environment.insert(b"__json".to_vec(), text.as_bytes().to_vec());
        assert_eq!(read_first(&write_one(&other).unwrap()), other, "{text}");
    }
}

#[test]
fn what_is_no_derivation_says_what_and_where() {
    let [four, three, old] = versions();
    let change = |base: &Value, pointer: &str, value: Value| {
        let mut changed = base.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
        changed
    };
    let without = |base: &Value, key: &str| {
        let mut changed = base.clone();
        changed.as_object_mut().unwrap().remove(key);
        changed
    };
    for (value, part) in [
        (json!(7), "the JSON text: expected an object, found a number"),
        (change(&four, "/colour", json!(1)), "the derivation: the key ‘colour’ is not known here"),
        (change(&four, "/options", json!({})), "the key ‘options’ is not known"),
        (change(&four, "/outputs/out/colour", json!(1)), "output ‘out’: the key ‘colour’"),
        (change(&four, "/inputs/colour", json!(1)), "key ‘inputs’: the key ‘colour’"),
        (change(&four, "/inputSrcs", json!([])), "‘inputs’ and ‘inputSrcs’ cannot be together"),
        (change(&four, "/version", json!(5)), "version 5 of the JSON form"),
        (change(&four, "/builder", json!(5)), "key ‘builder’: expected a string, found a number"),
        (change(&four, "/env/a", json!(true)), "variable ‘a’: expected a string, found a boolean"),
        (change(&four, "/args", json!([null])), "key ‘args’: expected a string, found null"),
        (change(&four, "/name", json!("a/b")), "name ‘a/b’ is not valid"),
        (change(&four, "/outputs", json!({})), "has no outputs"),
        (change(&four, "/outputs", json!({"a/b": {}})), "the invalid name ‘a/b’"),
        (change(&four, "/outputs/out/path", json!(format!("{HASH}-a"))), "is not that of the fixed output"),
        (change(&four, "/outputs/out/method", json!("git")), "unknown method ‘git’"),
        (change(&four, "/outputs/out/hash", json!("sha256-x")), "not a sha256 hash"),
        (change(&four, "/inputs/srcs", json!([format!("/nix/store/{HASH}-a")])), "input sources: ‘/nix/store/"),
        (change(&four, "/inputs/srcs", json!([format!("{HASH}-a"), format!("{HASH}-a")])), "is listed twice"),
        (
            change(
                &four,
                "/inputs/drvs",
                json!({format!("{HASH}-a.drv"): {"outputs": [], "dynamicOutputs": {"a": 1}}}),
            ),
            "made by a build",
        ),
        (change(&four, "/inputs/drvs", json!({format!("{HASH}-a"): ["out"]})), "does not end in .drv"),
        (change(&three, "/outputs", json!({"out": {"path": "/etc/passwd"}})), "‘/etc/passwd’ does not begin with"),
        (change(&old, "/outputs", json!({"out": {"path": "/etc/passwd"}})), "‘/etc/passwd’ is not in the store"),
        (without(&four, "name"), "the key ‘name’ is missing"),
        (without(&four, "system"), "the key ‘system’ is missing"),
        (without(&three, "inputDrvs"), "the key ‘inputDrvs’ is missing"),
        (json!({format!("{HASH}-b.drv"): four}), "is called ‘a’, but its path is"),
        (json!({format!("{HASH}-a"): four}), "does not end in .drv"),
        (json!({"version": 4, "derivations": {}, "x": 1}), "the key ‘x’ is not known"),
    ] {
        let error = read_value(&value).unwrap_err().to_string();
        assert!(error.contains(part), "{value}: {error}");
    }
    let twice = four.to_string().replace(r#""outputs":{"#, r#""outputs":{"out":{},"#);
    let error = read(twice.as_bytes(), &StoreDir::default()).unwrap_err().to_string();
    assert!(error.contains("the key ‘out’ is there twice"), "{error}");
    assert!(read("[".repeat(100_000).as_bytes(), &StoreDir::default()).is_err());
}

proptest! {
    /// Wherever all is text; fixed paths of the generated derivations are not the computed ones, so those stay out.
    #[test]
    fn both_forms_are_read_back(mut derivation in aterm::tests::any_derivation()) {
        let store_dir = StoreDir::default();
        prop_assume!(derivation.fixed_output().is_none());
        let printable = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned().into_bytes();
        derivation.builder = printable(&derivation.builder);
        derivation.arguments.iter_mut().for_each(|argument| *argument = printable(argument));
        derivation.environment =
            derivation.environment.iter().map(|(name, value)| (printable(name), printable(value))).collect();
        let path = derivation.store_path(&store_dir).unwrap();
        let named = [Named { path: Some(path.clone()), derivation: derivation.clone() }];
        for value in [write([(&path, &derivation)]).unwrap(), write_old([(&path, &derivation)], &store_dir).unwrap()] {
            prop_assert_eq!(&read_value(&value).unwrap(), &named);
        }
    }

    #[test]
    fn damaged_text_is_read_without_a_panic(
        version in 0..3usize,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = versions()[version].to_string().into_bytes();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        let _ = read(&bytes, &StoreDir::default());
    }
}
