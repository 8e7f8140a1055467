//! Any bytes as a client of either protocol: answered or refused, and nothing is valid in the store that is not whole.
#![no_main]

use std::io;

use anchorhold::build::policy::{Policy, native_system};
use anchorhold::server::watch::Watch;
use anchorhold::server::{Protocol, Server, attend};
use anchorhold::store::{Access, GcPolicy, Store};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let place = tempfile::tempdir().expect("a directory");
    let store = Store::open(place.path(), Access::ReadWrite).expect("a store");
    let watch = Watch::nothing();
    // Nothing is started: what a builder does is for other tests.
    let policy = Policy::granting_nothing(&format!("not-{}", native_system()), &place.path().join("builds"));
    let server = Server {
        store: &store,
        policy,
        jobs: 1,
        keep_going: false,
        // A trusted client of the worker protocol may make links anywhere: not here.
        trusted: first & 3 == 3,
        require_signatures: true,
        keys: Vec::new(),
        collector: GcPolicy::default(),
        watch: &watch,
    };
    // Most random bytes would fall at the first word.
    let magic: u64 = if first & 2 == 2 { 0x390c_9deb } else { 0x6e69_7863 };
    let input = [&magic.to_le_bytes()[..], rest].concat();
    let _ = attend(&server, Protocol::ByMagic, true, &input[..], io::sink());
    assert_eq!(store.verify(true, false, &mut |_| {}).expect("the store can be read").left, 0);
    drop(store);
    let (parent, name) = anchorhold::tree::place(place.path()).expect("its place");
    anchorhold::tree::remove(std::os::fd::AsFd::as_fd(&parent), &name).expect("it can be removed");
});
