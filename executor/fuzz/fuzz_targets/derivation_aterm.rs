//! `.drv` files: whatever is read is written back byte for byte, and all that is asked of it gives an answer.
#![no_main]

use std::collections::BTreeMap;

use anchorhold::derivation::options::Options;
use anchorhold::derivation::paths::Calculator;
use anchorhold::derivation::{aterm, json};
use anchorhold::store_path::{StoreDir, StorePath};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let store_dir = StoreDir::default();
    let Ok(derivation) = aterm::read(bytes, "name", &store_dir) else { return };
    assert_eq!(aterm::write(&derivation, &store_dir), bytes);
    let _ = Options::read(&derivation, &store_dir);
    let _ = Calculator::new(&store_dir, BTreeMap::<StorePath, _>::new()).check_outputs(&derivation);
    let _ = json::write_one(&derivation);
});
