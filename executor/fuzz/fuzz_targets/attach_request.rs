//! build.json: whatever is taken names nothing outside its store, and what is found out about it needs no trust.
#![no_main]

use anchorhold::attach::Request;
use anchorhold::attach::kind::find_out;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut request) = Request::parse(bytes) else { return };
    for path in request.outputs.values().chain(&request.inputs) {
        assert!(!path.as_str().contains('/'));
    }
    assert!(request.build_dir.starts_with(&request.top_dir));
    assert!(request.build_dir_inside.is_absolute());
    // Structured attributes are a file; the fuzzer has none.
    request.environment.remove("NIX_ATTRS_JSON_FILE");
    if let Ok(known) = find_out(&request) {
        assert_eq!(known.derivation.outputs.len(), request.outputs.len());
    }
});
