//! Any bytes: read as an archive or refused. What was accepted is canonical, so that copying it again changes nothing.
#![no_main]

use anchorhold::nar;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut once = Vec::new();
    if nar::copy(bytes, &mut once).is_ok() {
        let mut twice = Vec::new();
        nar::copy(once.as_slice(), &mut twice).expect("what was written must be readable");
        assert_eq!(once, twice);
    }
});
