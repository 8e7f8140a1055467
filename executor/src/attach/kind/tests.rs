use super::*;
use crate::store_path::StoreDir;
use serde_json::json;

const HASH: &str = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";

/// A request with these variables, whose one output is at `out`.
fn request(environment: Value, out: &str) -> Request {
    let text = json!({
        "args": [], "builder": "/b", "env": environment, "inputPaths": [], "outputs": {"out": out},
        "realStoreDir": "/nix/store", "storeDir": "/nix/store", "system": "x86_64-linux", "tmpDir": "/t/build",
        "tmpDirInSandbox": "/build", "topTmpDir": "/t", "version": 1,
    });
    Request::parse(text.to_string().as_bytes()).unwrap()
}

fn path_of(method: Method, name: &str, hash: &Hash) -> String {
    let store_dir = StoreDir::default();
    store_dir.display(&fixed_output_path(&store_dir, name, "out", method, hash).unwrap().unwrap())
}

fn is_fetch(environment: Value, out: &str) -> bool {
    find_out(&request(environment, out)).unwrap().derivation.fixed_output().is_some()
}

#[test]
fn a_path_that_follows_from_its_hash_is_believed() {
    let hash = Hash::parse(HASH, None).unwrap();
    let sha1 = Hash::of(Algorithm::Sha1, b"abc");
    let unknown = Hash::new(Algorithm::Sha256, &[0; 32]).unwrap();
    for (method, hash, environment) in [
        (Method::Flat, hash, json!({"outputHash": HASH})),
        (Method::Flat, hash, json!({"outputHash": HASH, "outputHashAlgo": "", "outputHashMode": "flat"})),
        (Method::Recursive, hash, json!({"outputHash": HASH, "outputHashMode": "recursive"})),
        (
            Method::Recursive,
            hash,
            json!({"outputHash": hash.base16(), "outputHashAlgo": "sha256", "outputHashMode": "nar"}),
        ),
        (
            Method::Recursive,
            sha1,
            json!({"outputHash": sha1.base32(), "outputHashAlgo": "sha1", "outputHashMode": "recursive"}),
        ),
        (Method::Text, hash, json!({"outputHash": HASH, "outputHashMode": "text"})),
        (
            Method::Recursive,
            unknown,
            json!({"outputHash": "", "outputHashAlgo": "sha256", "outputHashMode": "recursive"}),
        ),
    ] {
        assert!(is_fetch(environment.clone(), &path_of(method, "source", &hash)), "{environment}");
    }
}

#[test]
fn words_alone_are_not_believed() {
    let hash = Hash::parse(HASH, None).unwrap();
    let flat = path_of(Method::Flat, "source", &hash);
    let other = path_of(Method::Flat, "source", &Hash::sha256(b""));
    for (environment, out) in [
        (json!({"NIX_OUTPUT_CHECKED": "1"}), &flat),
        (json!({"NIX_OUTPUT_CHECKED": "1", "outputHash": HASH}), &other),
        (json!({"outputHash": HASH, "outputHashMode": "recursive"}), &flat),
        (json!({"outputHash": HASH, "outputHashMode": "git"}), &flat),
        (json!({"outputHash": HASH, "outputHashAlgo": "sha1"}), &flat),
        (json!({"outputHash": "", "outputHashAlgo": "sha256"}), &flat),
        (json!({"outputHash": "sha256-nonsense"}), &flat),
        // Only Nix's own file is where structured attributes are.
        (json!({"__json": format!("{{\"outputHash\":\"{HASH}\"}}")}), &flat),
    ] {
        assert!(!is_fetch(environment.clone(), out), "{environment}");
    }
    // Of several outputs none is fixed.
    let mut two = request(json!({"outputHash": HASH}), &flat);
    two.outputs.insert("dev".to_owned(), format!("{}-source-dev", "a".repeat(32)).parse().unwrap());
    assert!(find_out(&two).unwrap().derivation.fixed_output().is_none());
}

#[test]
fn what_is_built_again_is_known_by_its_derivation() {
    let store = tempfile::tempdir().unwrap();
    let hash = Hash::parse(HASH, None).unwrap();
    let known = fixed_output_path(&StoreDir::default(), "source", "out", Method::Flat, &hash).unwrap().unwrap();
    let derivation = format!("{}-source.drv", "a".repeat(32));
    let zero = Hash::new(Algorithm::Sha256, &[0; 32]).unwrap();
    let made_up =
        |kind: String| StoreDir::default().display(&StoreDir::default().make_path(&kind, &zero, "source").unwrap());
    let is_fetch = |out: &str| {
        let mut request = request(json!({"outputHash": HASH}), out);
        request.real_store = store.path().to_owned();
        find_out(&request).unwrap().derivation.fixed_output().is_some()
    };
    let again = made_up(format!("rewrite:{derivation}:{known}"));
    assert!(!is_fetch(&again), "there is no such derivation");
    std::fs::write(store.path().join(&derivation), "").unwrap();
    assert!(is_fetch(&again));
    // The output of a derivation of another kind, which says that it were fixed.
    let other = format!("{}-source", "b".repeat(32));
    assert!(!is_fetch(&made_up(format!("rewrite:{derivation}:{other}"))));
    assert!(!is_fetch(&made_up(format!("rewrite:{derivation}:name:out"))));
}

#[test]
fn what_it_asks_for_is_found_in_variables_and_in_structured_attributes() {
    let out = format!("/nix/store/{}-a", "a".repeat(32));
    let known =
        find_out(&request(json!({"requiredSystemFeatures": "kvm big-parallel", "__noChroot": "1"}), &out)).unwrap();
    assert_eq!(Vec::from_iter(&known.options.required_system_features), ["big-parallel", "kvm"]);
    assert!(known.options.no_chroot);
    assert_eq!(known.derivation.name, "a");

    let top = tempfile::tempdir().unwrap();
    let build = top.path().join("build");
    std::fs::create_dir(&build).unwrap();
    let hash = Hash::parse(HASH, None).unwrap();
    let fixed = path_of(Method::Recursive, "a", &hash);
    // Without the file it is a variable like any other.
    let environment = json!({"NIX_ATTRS_JSON_FILE": "/build/.attrs.json", "requiredSystemFeatures": "of no meaning"});
    let mut request = request(environment, &fixed);
    (request.top_dir, request.build_dir) = (top.path().to_owned(), build.clone());
    assert!(find_out(&request).unwrap().options.structured_attributes.is_none());

    let attributes = json!({"requiredSystemFeatures": ["kvm"], "outputHash": HASH, "outputHashMode": "recursive", "outputHashAlgo": null});
    std::fs::write(build.join(ATTRIBUTES), attributes.to_string()).unwrap();
    let known = find_out(&request).unwrap();
    assert_eq!(Vec::from_iter(&known.options.required_system_features), ["kvm"]);
    assert!(known.derivation.fixed_output().is_some());

    std::fs::write(build.join(ATTRIBUTES), "[]").unwrap();
    assert!(find_out(&request).unwrap_err().to_string().contains("no JSON object"));
    std::fs::remove_file(build.join(ATTRIBUTES)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", build.join(ATTRIBUTES)).unwrap();
    assert!(find_out(&request).unwrap_err().to_string().contains("cannot read the structured attributes"));
}
