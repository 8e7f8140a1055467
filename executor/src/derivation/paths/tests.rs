use super::super::json;
use super::*;
use proptest::prelude::*;

fn store() -> StoreDir {
    StoreDir::default()
}

fn derivation(text: &str) -> Derivation {
    json::read(text.as_bytes(), &store()).unwrap().remove(0).derivation
}

/// A derivation without paths that needs `inputs`.
fn plain(name: &str, inputs: &[&str]) -> Derivation {
    let drvs: serde_json::Map<_, _> =
        inputs.iter().map(|input| (path_of(input).to_string(), serde_json::json!(["out"]))).collect();
    let value = serde_json::json!({
        "name": name, "version": 4, "outputs": {"out": {}}, "inputs": {"srcs": [], "drvs": drvs},
        "system": "x86_64-linux", "builder": "/bin/sh", "args": [], "env": {}
    });
    derivation(&value.to_string())
}

fn path_of(name: &str) -> StorePath {
    format!("{}-{name}.drv", "0".repeat(32)).parse().unwrap()
}

/// With some path, for graphs where nobody looks at it.
fn with_path(mut derivation: Derivation) -> Derivation {
    let path = format!("{}-{}", "1".repeat(32), derivation.name).parse().unwrap();
    derivation.outputs.insert("out".to_owned(), Output::InputAddressed(path));
    derivation
}

/// The path is that of Nix's own test (`src/libstore-tests/data/derivation/invariants`).
#[test]
fn a_derivation_without_paths_is_completed() {
    let name = "filled-in-deferred-empty-env-var";
    let store = store();
    let path: StorePath = format!("bilpz1nq8qi9r3bzsp72n34yjgqg43ws-{name}").parse().unwrap();
    for variable in [r#","out":"""#, ""] {
        let mut derivation = derivation(&format!(
            r#"{{"name":"{name}","version":4,"outputs":{{"out":{{}}}},"inputs":{{"srcs":[],"drvs":{{}}}},
            "system":"x86_64-linux","builder":"/bin/sh","args":[],
            "env":{{"__doc":"Fill in deferred output with empty env var"{variable}}}}}"#
        ));
        let mut calculator = Calculator::new(&store, BTreeMap::new());
        calculator.complete(&mut derivation).unwrap();
        assert_eq!(derivation.variable("out"), Some(store.display(&path).as_bytes()));
        assert_eq!(derivation.outputs["out"], Output::InputAddressed(path.clone()));
        calculator.check(&derivation.store_path(&store).unwrap(), &derivation).unwrap();
    }
}

#[test]
fn what_is_missing_is_named_with_those_that_need_it() {
    let graph: BTreeMap<_, _> = [("a", vec!["b"]), ("b", vec!["c"]), ("c", vec!["d"])]
        .into_iter()
        .map(|(name, inputs)| (path_of(name), with_path(plain(name, &inputs))))
        .collect();
    let store = store();
    let error = Calculator::new(&store, graph).output_paths(&plain("top", &["a"])).unwrap_err();
    let PathsError::MissingInput { missing, chain } = &error else { panic!("{error}") };
    assert_eq!(*missing, path_of("d"));
    assert_eq!(*chain, ["a", "b", "c"].map(path_of));
    assert!(error.to_string().ends_with(&format!("-a.drv’ → ‘{}’ → ‘{}’", path_of("b"), path_of("c"))), "{error}");
}

#[test]
fn an_input_that_cannot_be_read_says_why() {
    let store = store();
    let derivations = |path: &StorePath| match path.name() {
        "a.drv" => Ok(Some(with_path(plain("a", &["b"])))),
        _ => Err(std::io::Error::other("the disk is on fire")),
    };
    let error = Calculator::new(&store, derivations).output_paths(&plain("top", &["a"])).unwrap_err().to_string();
    let expected = format!("cannot read the derivation ‘{}’, needed by ‘{}’: the disk", path_of("b"), path_of("a"));
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn an_output_that_an_input_lacks_is_named() {
    let mut top = plain("top", &["a"]);
    top.input_derivations.insert(path_of("a"), BTreeSet::from(["doc".to_owned()]));
    let graph = BTreeMap::from([(path_of("a"), with_path(plain("a", &[])))]);
    let store = store();
    let error = Calculator::new(&store, graph).output_paths(&top).unwrap_err().to_string();
    assert!(error.contains("-a.drv’ has no output ‘doc’"), "{error}");
}

#[test]
fn a_cycle_is_found_and_shown() {
    let graph: BTreeMap<_, _> = [("a", "b"), ("b", "c"), ("c", "b")]
        .into_iter()
        .map(|(name, input)| (path_of(name), with_path(plain(name, &[input]))))
        .collect();
    let store = store();
    let error = Calculator::new(&store, graph).output_paths(&plain("top", &["a"])).unwrap_err();
    let PathsError::Cycle(cycle) = &error else { panic!("{error}") };
    assert_eq!(*cycle, ["b", "c", "b"].map(path_of));
}

#[test]
fn a_deep_graph_needs_no_deep_stack() {
    let name = |level: usize| format!("d{level}");
    let graph: BTreeMap<_, _> = (0..20_000)
        .map(|level| {
            let inputs = if level == 0 { vec![] } else { vec![name(level - 1)] };
            let inputs: Vec<_> = inputs.iter().map(String::as_str).collect();
            (path_of(&name(level)), with_path(plain(&name(level), &inputs)))
        })
        .collect();
    let store = store();
    assert!(Calculator::new(&store, graph.clone()).output_paths(&plain("top", &["d19999"])).is_ok());

    let mut broken = graph;
    broken.remove(&path_of("d0"));
    let error = Calculator::new(&store, broken).output_paths(&plain("top", &["d19999"])).unwrap_err();
    let PathsError::MissingInput { chain, .. } = &error else { panic!("{error}") };
    assert_eq!(chain.len(), 19_999);
    assert!(error.to_string().contains(" → (19987 more) → "), "{error}");
}

#[test]
fn a_wrong_path_or_variable_is_named_with_the_right_one() {
    let store = store();
    let mut calculator = Calculator::new(&store, BTreeMap::new());
    let mut right = plain("a", &[]);
    calculator.complete(&mut right).unwrap();
    let own = right.store_path(&store).unwrap();
    calculator.check(&own, &right).unwrap();

    let mut wrong = right.clone();
    wrong.environment.insert(b"out".to_vec(), b"/tmp/out".to_vec());
    let error = calculator.check_outputs(&wrong).unwrap_err().to_string();
    assert!(error.contains("has ‘/tmp/out’ in its variable ‘out’, which should be"), "{error}");
    wrong.environment.remove(b"out".as_slice());
    assert!(calculator.check_outputs(&wrong).is_err());

    let error = calculator.check_outputs(&with_path(right.clone())).unwrap_err().to_string();
    assert!(error.contains("‘11111111111111111111111111111111-a’ for its output ‘out’"), "{error}");

    let error = calculator.check(&path_of("b"), &right).unwrap_err().to_string();
    assert!(error.contains("is called ‘a’"), "{error}");
    let error = calculator.check(&path_of("a"), &right).unwrap_err().to_string();
    assert!(error.contains(&format!("belong at ‘{own}’")), "{error}");
}

#[test]
fn a_fixed_output_has_the_path_of_its_hash() {
    let store = store();
    let hash = Hash::sha256(b"hello");
    for method in [Method::Flat, Method::Recursive, Method::Text] {
        let mut fixed = plain("a", &[]);
        let path = fixed_output_path(&store, "a", "out", method, &hash).unwrap().unwrap();
        fixed.outputs.insert("out".to_owned(), Output::Fixed { path, method, hash });
        let mut calculator = Calculator::new(&store, BTreeMap::new());
        calculator.complete(&mut fixed).unwrap();
        calculator.check_outputs(&fixed).unwrap();
        let path = path_of("a");
        fixed.outputs.insert("out".to_owned(), Output::Fixed { path, method, hash });
        let error = calculator.check_outputs(&fixed).unwrap_err().to_string();
        assert!(error.contains("for its output ‘out’, which should be"), "{error}");
    }
    let mut text = plain("a", &[]);
    let (path, method, hash) = (path_of("a"), Method::Text, Hash::of(crate::hash::Algorithm::Sha1, b""));
    text.outputs.insert("out".to_owned(), Output::Fixed { path, method, hash });
    let error = Calculator::new(&store, BTreeMap::new()).check_outputs(&text).unwrap_err().to_string();
    assert!(error.contains("possible with SHA-256 only"), "{error}");
}

proptest! {
    /// How a thing is fetched is no part of the paths of what depends on it; what it contains is.
    #[test]
    fn only_the_contents_of_a_fetched_input_count(first in ".{0,8}", second in ".{0,8}", contents in ".{0,8}") {
        let store = store();
        let fetch = |url: &str, contents: &str| {
            let hash = Hash::sha256(contents.as_bytes());
            let path = store.fixed_path("fetch", false, &hash).unwrap();
            let mut derivation = plain("fetch", &[]);
            derivation.environment.insert(b"url".to_vec(), url.as_bytes().to_vec());
            derivation.outputs.insert("out".to_owned(), Output::Fixed { path, method: Method::Flat, hash });
            derivation
        };
        let above = |fetched: Derivation| {
            let graph = BTreeMap::from([(path_of("fetch"), fetched)]);
            Calculator::new(&store, graph).output_paths(&plain("top", &["fetch"])).unwrap()
        };
        prop_assert_eq!(above(fetch(&first, &contents)), above(fetch(&second, &contents)));
        if first != contents {
            prop_assert_ne!(above(fetch("", &first)), above(fetch("", &contents)));
        }
    }
}
