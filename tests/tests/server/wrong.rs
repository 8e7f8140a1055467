//! Clients that do wrong.

use std::fs;
use std::io::{Read, Write};

use crate::world::{World, text};

#[test]
fn clients_that_do_wrong_harm_nobody_else() {
    let Some(world) = World::new() else { return };
    let (local, served) = (world.local(), world.served());
    // Taken in, and never read from: more than any buffer on the way holds.
    let big = world.path("big");
    fs::write(&big, vec![7; 8 << 20]).unwrap();
    let big = world.said("nix-store", &["--store", &local, "--add", big.to_str().unwrap()]);
    world.said("nix", &["copy", "--from", &local, "--to", &served, &big]);
    let numbers = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let greeting = numbers(&[0x6e69_7863, 0x122, 0, 0]);
    let mut deaf = world.connect().unwrap();
    let mut request = [greeting.clone(), numbers(&[38, big.len() as u64])].concat();
    request.extend(big.as_bytes());
    request.resize(request.len().next_multiple_of(8), 0);
    deaf.write_all(&request).unwrap();
    // Says half a sentence, and waits.
    let mut slow = world.connect().unwrap();
    slow.write_all(&[greeting.clone(), numbers(&[1, 1 << 40])].concat()).unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).unwrap();
    assert!(text(&answer).contains("length"), "{}", text(&answer));
    let mut silent = world.connect().unwrap();
    silent.write_all(&greeting[..20]).unwrap();
    // Speaks something else, or of something that is not there.
    let mut stranger = world.connect().unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    answer.clear();
    let _ = stranger.read_to_end(&mut answer);
    assert!(answer.is_empty());
    let mut unknown = world.connect().unwrap();
    unknown.write_all(&[greeting, numbers(&[4711])].concat()).unwrap();
    unknown.read_to_end(&mut answer).unwrap();
    assert!(text(&answer).contains("there is no operation 4711"), "{}", text(&answer));

    // Everybody else is served meanwhile.
    let out = world.said("nix-build", &world.build(&served, "meanwhile", "echo $out > $out"));
    assert!(world.real(&out).exists());
    drop((deaf, silent));
    world.is_whole();
}
