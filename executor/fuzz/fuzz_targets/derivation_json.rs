//! JSON: whatever is read is read back the same after it was written.
#![no_main]

use anchorhold::derivation::json::{read, write_one};
use anchorhold::store_path::StoreDir;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let store_dir = StoreDir::default();
    for named in read(bytes, &store_dir).unwrap_or_default() {
        let text = write_one(&named.derivation).expect("all of it came from JSON").to_string();
        let again = read(text.as_bytes(), &store_dir).expect("it was just written");
        assert_eq!(again[0].derivation, named.derivation);
    }
});
