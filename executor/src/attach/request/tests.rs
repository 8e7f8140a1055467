use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn path(digit: char, name: &str) -> String {
    format!("/nix/store/{}-{name}", digit.to_string().repeat(32))
}

/// As Nix 2.34 writes it.
pub(in crate::attach) fn sample() -> Value {
    json!({
        "args": ["-c", "true"],
        "builder": format!("{}/bin/sh", path('a', "busybox")),
        "env": {"HOME": "/homeless-shelter", "NIX_BUILD_TOP": "/build", "out": path('b', "hello"), "name": "hello"},
        "inputPaths": [path('a', "busybox")],
        "outputs": {"out": path('b', "hello")},
        "realStoreDir": "/root/store/nix/store",
        "storeDir": "/nix/store",
        "system": "x86_64-linux",
        "tmpDir": "/nix/var/nix/builds/nix-1-2/build",
        "tmpDirInSandbox": "/build",
        "topTmpDir": "/nix/var/nix/builds/nix-1-2",
        "version": 1,
    })
}

fn parse(value: &Value) -> Result<Request, String> {
    Request::parse(value.to_string().as_bytes()).map_err(|error| error.to_string())
}

fn with(name: &str, value: Value) -> Value {
    let mut sample = sample();
    sample[name] = value;
    sample
}

#[test]
fn what_nix_writes_is_understood() {
    let request = parse(&with("added later", json!({"is": ["no", "matter"]}))).unwrap();
    assert_eq!(request.builder, format!("{}/bin/sh", path('a', "busybox")));
    assert_eq!(request.arguments, ["-c", "true"]);
    assert_eq!(request.environment["out"], path('b', "hello"));
    assert_eq!(request.inputs.len(), 1);
    assert_eq!(request.outputs["out"].name(), "hello");
    assert_eq!(request.real_store, Path::new("/root/store/nix/store"));
    assert_eq!(request.build_dir, Path::new("/nix/var/nix/builds/nix-1-2/build"));
}

#[test]
fn what_it_cannot_mean_is_refused_in_words() {
    for (name, value, part) in [
        ("version", json!(2), "has version 2, and this anchorhold understands version 1"),
        ("version", json!("1"), "not what Nix writes"),
        ("args", json!("-c"), "not what Nix writes"),
        ("env", json!({"a": 1}), "not what Nix writes"),
        ("env", json!({"a=b": "1"}), "‘env’ is wrong"),
        ("env", json!({"": "1"}), "‘env’ is wrong"),
        ("env", json!({"a": "\0"}), "‘env’ is wrong"),
        ("args", json!(["\0"]), "zero byte"),
        ("builder", json!(""), "‘builder’ is no program"),
        ("storeDir", json!("nix/store"), "cannot be a store directory"),
        ("storeDir", json!("/gnu/store"), "‘inputPaths’"),
        ("inputPaths", json!([path('a', "..")]), "‘inputPaths’"),
        ("inputPaths", json!([format!("{}/bin", path('a', "b"))]), "‘inputPaths’"),
        ("inputPaths", json!([path('b', "hello")]), "is an input as well"),
        ("outputs", json!({}), "‘outputs’ is empty"),
        ("outputs", json!({"out": "/etc/passwd"}), "‘outputs’"),
        ("outputs", json!({"../out": path('b', "hello")}), "no name of an output"),
        ("outputs", json!({"out": path('b', "hello"), "dev": path('b', "hello")}), "two outputs are"),
        ("realStoreDir", json!("nix"), "‘realStoreDir’ is ‘nix’, which is no absolute path"),
        ("tmpDirInSandbox", json!("/"), "‘tmpDirInSandbox’"),
        ("tmpDir", json!("/nix/var/nix/builds/nix-1-2/../build"), "‘tmpDir’"),
        ("tmpDir", json!("/etc"), "‘tmpDir’ is not in ‘topTmpDir’"),
    ] {
        let error = parse(&with(name, value.clone())).expect_err(&format!("{name}: {value}"));
        assert!(error.contains(part), "{name} = {value}: {error}");
    }
    for name in ["version", "builder", "args", "env", "outputs", "inputPaths", "storeDir", "tmpDir"] {
        let mut sample = sample();
        sample.as_object_mut().unwrap().remove(name);
        let error = parse(&sample).unwrap_err();
        assert!(error.contains(&format!("missing field `{name}`")), "{name}: {error}");
    }
}

#[test]
fn depth_and_length_are_bounded() {
    let deep = [b"{\"version\":1,\"a\":".as_slice(), &b"[".repeat(100_000)].concat();
    assert!(matches!(Request::parse(&deep), Err(RequestError::Syntax(_))));
    assert!(matches!(Request::parse(&vec![b' '; MAX_LEN as usize + 1]), Err(RequestError::TooLong)));
}

#[test]
fn only_a_regular_file_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("build.json");
    let error = Request::read(&file).unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
    let error = Request::read(directory.path()).unwrap_err().to_string();
    assert!(error.contains("no regular file"), "{error}");
    std::fs::write(&file, sample().to_string()).unwrap();
    assert!(Request::read(&file).is_ok());
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::parse(&bytes);
    }

    /// One byte of a good request changed: what is taken all the same names nothing outside the store.
    #[test]
    fn a_damaged_request_is_refused_or_harmless(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut text = sample().to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(request) = Request::parse(&text) {
            for path in request.outputs.values().chain(&request.inputs) {
                prop_assert!(!path.as_str().contains('/'));
            }
            prop_assert!(request.build_dir.starts_with(&request.top_dir) && request.build_dir_inside.is_absolute());
        }
    }
}
