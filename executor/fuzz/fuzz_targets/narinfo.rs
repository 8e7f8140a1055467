//! Any text: read as a narinfo or refused. What was accepted is written and read again as the same.
#![no_main]

use anchorhold::{cache::NarInfo, store_path::StoreDir};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let store = StoreDir::default();
    if let Ok(info) = NarInfo::parse(text, &store) {
        assert_eq!(NarInfo::parse(&info.to_text(&store), &store).expect("our own text"), info);
    }
});
