use super::super::Output;
use super::*;
use serde_json::json;

const FOO: &str = "p0hax2lzvjpfc2gwkk62xdglz0fcqfzn-foo";
const BAR: &str = "r5cff30838majxk5mp3ip2diffi8vpaj-bar";

fn derivation(variables: &[(&str, &str)]) -> Derivation {
    Derivation {
        name: "a".to_owned(),
        outputs: ["bin", "out"].map(|name| (name.to_owned(), Output::Deferred)).into(),
        input_derivations: BTreeMap::new(),
        input_sources: BTreeSet::new(),
        system: "x".to_owned(),
        builder: b"/bin/sh".to_vec(),
        arguments: vec![],
        environment: variables
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .collect(),
    }
}

fn read(variables: &[(&str, &str)]) -> Result<Options, OptionsError> {
    Options::read(&derivation(variables), &StoreDir::default())
}

fn read_json(value: &Value) -> Result<Options, OptionsError> {
    read(&[("__json", &value.to_string())])
}

fn full(path: &str) -> String {
    format!("/nix/store/{path}")
}

fn set<T: Ord>(all: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    all.into_iter().collect()
}

fn path(text: &str) -> Reference {
    Reference::Path(text.parse().unwrap())
}

fn output(text: &str) -> Reference {
    Reference::Output(text.to_owned())
}

#[test]
fn nothing_asked_is_the_default() {
    let options = read(&[]).unwrap();
    assert!(options.allow_substitutes && !options.no_chroot && !options.prefer_local_build);
    assert!(options.checks_of("out").ignore_self_references);
    assert_eq!(read_json(&json!({})).unwrap().checks_of("out"), OutputChecks::default());
}

#[test]
fn variables_and_structured_attributes_say_the_same() {
    let foo = full(FOO);
    let classic = read(&[
        ("requiredSystemFeatures", " rainbow\n uid-range "),
        ("__noChroot", "1"),
        ("preferLocalBuild", "1"),
        ("allowSubstitutes", ""),
        ("__impureHostDeps", "/usr/bin/ditto"),
        ("__sandboxProfile", "sandcastle"),
        ("impureEnvVars", "UNICORN"),
        ("passAsFile", "a b"),
        ("exportReferencesGraph", &format!("refs1 {foo} refs2 {foo}/bin")),
        ("allowedReferences", &format!("{foo} bin {}", placeholder("out"))),
        ("disallowedRequisites", &full(BAR)),
        ("maxSize", "5"),
    ])
    .unwrap();
    let structured = read_json(&json!({
        "requiredSystemFeatures": ["rainbow", "uid-range"], "__noChroot": true, "preferLocalBuild": true,
        "allowSubstitutes": false, "__impureHostDeps": ["/usr/bin/ditto"], "impureEnvVars": ["UNICORN"],
        "passAsFile": ["a"], "exportReferencesGraph": {"refs1": foo, "refs2": [[foo], []]},
        "outputChecks": {
            "out": {"allowedReferences": [foo, "bin", "out"], "disallowedRequisites": [full(BAR)], "maxSize": 5,
                    "maxClosureSize": 7, "ignoreSelfRefs": true, "colour": 1},
            "doc": {},
        },
        "unsafeDiscardReferences": {"out": true, "bin": false},
        "allowedReferences": [],
    }))
    .unwrap();
    for options in [&classic, &structured] {
        assert_eq!(options.required_system_features, set(["rainbow", "uid-range"].map(str::to_owned)));
        assert!(options.no_chroot && options.prefer_local_build && !options.allow_substitutes);
        assert_eq!(options.impure_host_deps, set(["/usr/bin/ditto".to_owned()]));
        assert_eq!(options.impure_env_vars, set(["UNICORN".to_owned()]));
        let graph = set([FOO.parse().unwrap()]);
        assert_eq!(
            options.export_references_graph,
            BTreeMap::from([("refs1".to_owned(), graph.clone()), ("refs2".to_owned(), graph)])
        );
        let checks = options.checks_of("out");
        assert!(checks.ignore_self_references);
        assert_eq!(checks.allowed_references, Some(set([path(FOO), output("bin"), output("out")])));
        assert_eq!(checks.allowed_requisites, None);
        assert_eq!(checks.disallowed_requisites, set([path(BAR)]));
    }
    assert_eq!(classic.pass_as_file, set(["a", "b"].map(str::to_owned)));
    assert_eq!(classic.without_effect, set(["maxSize".to_owned()]));
    let checks = structured.checks_of("out");
    assert_eq!((checks.max_size, checks.max_closure_size), (Some(5), Some(7)));
    assert_eq!(structured.unsafe_discard_references, set(["out".to_owned()]));
    assert_eq!(structured.checks_of("bin"), OutputChecks::default());
    let without = ["allowedReferences", "outputChecks.doc", "outputChecks.out.colour", "passAsFile"];
    assert_eq!(structured.without_effect, set(without.map(str::to_owned)));
}

#[test]
fn wrong_values_are_named() {
    for (variables, part) in [
        (
            ("allowedReferences", "doc"),
            "‘allowedReferences’ of the derivation ‘a’ has ‘doc’, which is neither a store path nor one of its outputs (bin, out)",
        ),
        (("exportReferencesGraph", "name"), "file names and store paths in turn"),
        (("exportReferencesGraph", "../name /nix/store/x"), "has the file name ‘../name’"),
        (("exportReferencesGraph", "name /etc"), "‘/etc’ is not in the store"),
        (("__json", "{"), "cannot read the structured attributes of the derivation ‘a’"),
        (("__json", "[]"), "‘__json’ of the derivation ‘a’ must be a JSON object"),
    ] {
        let error = read(&[variables]).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    for (value, part) in [
        (json!({"__noChroot": "1"}), "‘__noChroot’ of the derivation ‘a’ must be true or false"),
        (
            json!({"requiredSystemFeatures": "kvm"}),
            "‘requiredSystemFeatures’ of the derivation ‘a’ must be a list of strings",
        ),
        (json!({"impureEnvVars": [1]}), "‘impureEnvVars’ of the derivation ‘a’ must be a list of strings"),
        (json!({"outputChecks": []}), "‘outputChecks’ of the derivation ‘a’ must be an attribute set"),
        (json!({"outputChecks": {"out": 1}}), "‘outputChecks.out’ of the derivation ‘a’ must be an attribute set"),
        (
            json!({"outputChecks": {"out": {"maxSize": -1}}}),
            "‘outputChecks.out.maxSize’ of the derivation ‘a’ must be a whole number",
        ),
        (json!({"outputChecks": {"out": {"ignoreSelfRefs": 1}}}), "‘outputChecks.out.ignoreSelfRefs’"),
        (
            json!({"outputChecks": {"out": {"allowedRequisites": ["x"]}}}),
            "‘outputChecks.out.allowedRequisites’ of the derivation ‘a’ has ‘x’",
        ),
        (
            json!({"exportReferencesGraph": {"a": 1}}),
            "‘exportReferencesGraph.a’ of the derivation ‘a’ must be store paths",
        ),
        (
            json!({"exportReferencesGraph": ["a"]}),
            "‘exportReferencesGraph’ of the derivation ‘a’ must be an attribute set",
        ),
        (json!({"unsafeDiscardReferences": {"out": 1}}), "‘unsafeDiscardReferences.out’"),
    ] {
        let error = read_json(&value).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
