//! Any bytes: restored below an empty directory and archived again, or refused with nothing left behind.
#![no_main]

use std::os::fd::AsFd as _;

use anchorhold::{nar, tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let place = tempfile::tempdir().expect("a directory");
    let (parent, name) = tree::place(&place.path().join("tree")).expect("a place in it");
    match nar::restore(&mut nar::Reader::new(bytes), parent.as_fd(), &name) {
        Ok(()) => {
            let (mut expected, mut got) = (Vec::new(), Vec::new());
            nar::copy(bytes, &mut expected).expect("what was restored must be readable");
            nar::dump(parent.as_fd(), &name, &mut got).expect("what was restored must be a tree");
            assert_eq!(expected, got);
            tree::remove(parent.as_fd(), &name).expect("what was restored can be removed");
        }
        Err(_) => assert_eq!(std::fs::read_dir(place.path()).expect("the directory").count(), 0),
    }
});
