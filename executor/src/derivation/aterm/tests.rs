use super::*;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

const A: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la-a";
const B: &str = "10bgd045z0d4icpbc2yyz4gx48ak44la-b.drv";

fn parse(text: &str) -> Result<Derivation, AtermError> {
    read(text.as_bytes(), "a", &StoreDir::default())
}

fn minimal(outputs: &str, inputs: &str, rest: &str) -> String {
    format!("Derive([{outputs}],[{inputs}],{rest})")
}

#[test]
fn what_is_no_derivation_says_what_and_where() {
    let out = format!(r#"("out","/nix/store/{A}","","")"#);
    let rest = r#"[],"s","/b",[],[]"#;
    let good = minimal(&out, "", rest);
    assert!(parse(&good).is_ok());
    let hash = "0a430879c266f8b57f4092a0f935cf3facd48bbccde5760d4748ca405171e969";
    for (text, offset, part) in [
        (String::new(), 0, "expected ‘Derive(’, found the end"),
        (good[..40].to_owned(), 40, "at the end of a string, found the end"),
        (format!("{good} "), good.len(), "expected the end, found ‘ ’"),
        (good.replace("],[]", "], []"), 7 + 1 + out.len() + 2, "expected ‘[’, found ‘ []"),
        (good.replace("Derive(", r#"DrvWithVersion("xp-dyn-drv","#), 15, "‘xp-dyn-drv’, for derivations that"),
        (minimal("", "", rest), 0, "has no outputs"),
        (minimal(r#"("out","/etc/passwd","","")"#, "", rest), 15, "‘/etc/passwd’ is not in the store"),
        (minimal(&format!("{out},{out}"), "", rest), 9 + out.len(), "the output ‘out’ is listed twice"),
        (
            minimal(&format!("{out},{}", out.replace("out", "dev")), "", rest),
            9 + out.len(),
            "the output ‘dev’ must come",
        ),
        (minimal(&out.replace("out", "a b"), "", rest), 9, "the invalid name ‘a b’"),
        (minimal(r#"("out","","","ab")"#, "", rest), 9, "a hash, but no algorithm"),
        (minimal(r#"("out","","sha256","ab")"#, "", rest), 9, "a hash, but no path"),
        (minimal(r#"("out","","git:sha1","ab")"#, "", rest), 18, "hashed as ‘git’"),
        (minimal(&format!(r#"("out","/nix/store/{A}","sha256","ab")"#), "", rest), 72, "not a sha256 hash"),
        (minimal(&format!(r#"("out","/nix/store/{A}","sha257","ab")"#), "", rest), 63, "unknown hash algorithm"),
        (
            minimal(&format!(r#"("out","/nix/store/{A}","sha256","{}")"#, hash.to_uppercase()), "", rest),
            72,
            "lower-case hexadecimal",
        ),
        (minimal(&format!(r#"("out","/nix/store/{A}","sha256","")"#), "", rest), 9, "a path, though"),
        (minimal(&out, &format!(r#"("/nix/store/{A}",["out"])"#), rest), 0, "does not end in .drv"),
        (minimal(&out, &format!(r#"("/nix/store/{B}",["out","out"])"#), rest), 132, "‘out’ is listed twice"),
        (minimal(&out, "", r#"[],"s","/b",[],[("b",""),("a","")]"#), 99, "the variable ‘a’ must come"),
        (minimal(&out, "", r#"[],"s","\b",[],[]"#), 82, "with a backslash"),
        (minimal(&out, "", "[],\"s\",\"a\nb\",[],[]"), 83, "a line end"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.to_string().contains(part), "{text}: {error}");
        assert_eq!(error.offset, offset, "{text}: {error}");
    }
    let latin = read(b"Derive([(\"\xe4\"", "a", &StoreDir::default()).unwrap_err();
    assert!(latin.to_string().contains("must be UTF-8"), "{latin}");
}

#[test]
fn bytes_that_are_no_text_survive() {
    let text = [
        format!(r#"Derive([("out","/nix/store/{A}","","")],[],[],"s","/b"#).into_bytes(),
        b"\xff\",[\"\\\"\\\\\\n\\r\\t\x01\xfe\"],[(\"\xfd\",\"\xfc\")])".to_vec(),
    ]
    .concat();
    let derivation = read(&text, "a", &StoreDir::default()).unwrap();
    assert_eq!(derivation.arguments, [b"\"\\\n\r\t\x01\xfe"]);
    assert_eq!(write(&derivation, &StoreDir::default()), text);
}

fn any_path(end: &'static str) -> impl Strategy<Value = StorePath> {
    ("[0-9a-df-np-sv-z]{32}", "[a-zA-Z0-9+_?=][a-zA-Z0-9+_?=-]{0,20}")
        .prop_map(move |(digits, name)| format!("{digits}-{name}{end}").parse().unwrap())
}

fn any_hash() -> impl Strategy<Value = Hash> {
    (prop::sample::select(&Algorithm::ALL), any::<[u8; 32]>()).prop_map(|(algorithm, data)| Hash::of(algorithm, &data))
}

fn any_outputs() -> impl Strategy<Value = BTreeMap<String, Output>> {
    let method = || prop::sample::select(&[Method::Flat, Method::Recursive, Method::Text]);
    let name = || "[a-z]{1,5}".prop_filter("not drv", |name| name != "drv");
    prop_oneof![
        btree_map(name(), any_path("").prop_map(Output::InputAddressed), 1..4),
        (any_path(""), method(), any_hash()).prop_map(|(path, method, hash)| BTreeMap::from([(
            "out".to_owned(),
            Output::Fixed { path, method, hash }
        )])),
        btree_map(name(), Just(Output::Deferred), 1..4),
        btree_map(name(), method().prop_map(|method| Output::Floating { method, algorithm: Algorithm::Sha256 }), 1..3),
        btree_map(name(), method().prop_map(|method| Output::Impure { method, algorithm: Algorithm::Sha512 }), 1..3),
    ]
}

/// Derivations that can be, with bytes of all kinds.
pub(crate) fn any_derivation() -> impl Strategy<Value = Derivation> {
    (
        any_outputs(),
        btree_map(any_path(".drv"), btree_set("[a-z]{1,5}", 0..3), 0..4),
        btree_set(any_path(""), 0..4),
        ".{0,10}",
        any::<Vec<u8>>(),
        vec(any::<Vec<u8>>(), 0..4),
        btree_map(any::<Vec<u8>>(), any::<Vec<u8>>(), 0..6),
    )
        .prop_map(|(outputs, input_derivations, input_sources, system, builder, arguments, environment)| {
            let name = "name".to_owned();
            Derivation { name, outputs, input_derivations, input_sources, system, builder, arguments, environment }
        })
}

proptest! {
    #[test]
    fn what_was_written_is_read_back(derivation in any_derivation()) {
        let store_dir = StoreDir::default();
        let bytes = write(&derivation, &store_dir);
        let read = read(&bytes, "name", &store_dir);
        prop_assert_eq!(read.as_ref(), Ok(&derivation));
    }

    /// Also the other way: whatever is read is written back as it was, so no two texts are one derivation.
    #[test]
    fn damaged_bytes_are_refused_or_are_another_derivation(
        derivation in any_derivation(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let store_dir = StoreDir::default();
        let mut bytes = write(&derivation, &store_dir);
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        match read(&bytes, "name", &store_dir) {
            Ok(read) => prop_assert_eq!(write(&read, &store_dir), bytes),
            Err(error) => prop_assert!(error.offset <= bytes.len()),
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in any::<Vec<u8>>()) {
        let _ = read(&bytes, "name", &StoreDir::default());
        let _ = super::super::json::read(&bytes, &StoreDir::default());
    }
}
