//! Machines saved, and revived many times.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anchorhold_vmm::failure::FailureClass;
use anchorhold_vmm::machine::{Machine, Run};
use anchorhold_vmm::memory::{self, DEVICE, MANIFEST, RAM, Template, digest};

use crate::world::{Guest, World, line};

/// Counts what it is told, and holds something in memory that it can check.
const COUNTING: &str =
    "busybox dd if=/dev/urandom of=/tmp/data bs=64k count=32 2>/dev/null || busybox cp /bin/busybox /tmp/data
before=$(busybox sha256sum /tmp/data); count=0
echo up
while read word; do
  count=$((count + 1))
  [ \"$(busybox sha256sum /tmp/data)\" = \"$before\" ] && memory=whole || memory=broken
  echo \"answer-$word $count $memory\"
done";

/// A saved guest that was told one word.
fn template(world: &World, guest: &Guest, directory: &Path) -> Template {
    std::fs::create_dir_all(directory).unwrap();
    let mut machine = guest.start_with(world, Run { memory: memory::backing(directory), ..Run::default() });
    line(&mut machine, "up");
    say(&mut machine, "one", 1);
    Template::save(&mut machine, &guest.spec, directory)
        .unwrap_or_else(|failure| panic!("{failure}: {:?}", failure.evidence))
}

#[track_caller]
fn say(machine: &mut Machine, word: &str, count: u32) {
    machine.type_at_console(format!("{word}\n").as_bytes()).unwrap();
    line(machine, &format!("answer-{word} {count} whole"));
}

#[track_caller]
fn revive(world: &World, guest: &Guest, template: &Template) -> Machine {
    let begun = std::time::Instant::now();
    let revived = template.revive(&world.qemu, &guest.spec, Run::default());
    let mut machine = revived.unwrap_or_else(|failure| panic!("{failure}: {:?}", failure.evidence));
    machine.go().unwrap();
    // For whoever wants to know; nothing is asserted of it.
    println!("revived and running after {:.3} s", begun.elapsed().as_secs_f64());
    machine
}

fn digest_of(file: &Path) -> String {
    digest(&File::open(file).unwrap()).unwrap()
}

#[test]
fn one_template_is_many_guests_and_stays_what_it_is() {
    let Some(world) = World::new() else { return };
    let guest = world.guest(COUNTING);
    let directory = guest.path("template");
    let template = template(&world, &guest, &directory);
    let files = [RAM, DEVICE, MANIFEST].map(|name| directory.join(name));
    let before = files.each_ref().map(|file| digest_of(file));
    let (mut one, mut other) = (revive(&world, &guest, &template), revive(&world, &guest, &template));
    say(&mut one, "two", 2);
    say(&mut one, "three", 3);
    // The other has not heard of it.
    say(&mut other, "two", 2);
    drop((one, other));
    assert_eq!(files.each_ref().map(|file| digest_of(file)), before);
    template.verify().unwrap();
    // Opened anew, as by another process.
    say(&mut revive(&world, &guest, &Template::open(&directory).unwrap()), "two", 2);
}

#[test]
fn memory_that_was_never_used_takes_no_disk() {
    use std::os::unix::fs::MetadataExt;
    let Some(world) = World::new() else { return };
    let guest = world.guest(COUNTING);
    let directory = guest.path("template");
    template(&world, &guest, &directory);
    let ram = std::fs::metadata(directory.join(RAM)).unwrap();
    assert_eq!(ram.len(), 128 << 20);
    assert!(ram.blocks() * 512 < 100 << 20, "{} of 128 MiB are on the disk", (ram.blocks() * 512) >> 20);
}

#[test]
fn a_flipped_byte_is_refused_and_without_the_digest_it_would_not_be() {
    let Some(world) = World::new() else { return };
    let guest = world.guest(COUNTING);
    let directory = guest.path("template");
    let template = template(&world, &guest, &directory);
    for name in [RAM, DEVICE] {
        let file = File::options().read(true).write(true).open(directory.join(name)).unwrap();
        // In the middle of the device state; in memory, where there is something.
        let at = if name == RAM { 1 << 20 } else { file.metadata().unwrap().len() / 2 };
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        let failure = template.revive(&world.qemu, &guest.spec, Run::default()).unwrap_err();
        assert_eq!(failure.class, FailureClass::CorruptState, "{failure}");
        assert!(failure.what.contains(&format!("/{name}: ")), "{failure}");
        file.write_all_at(&byte, at).unwrap();
    }
    // Whole again, it is read again, and revived.
    say(&mut revive(&world, &guest, &template), "two", 2);

    // QEMU itself does not notice a guest's memory that is another: a manifest that was made for it lets it through.
    let file = File::options().read(true).write(true).open(directory.join(RAM)).unwrap();
    let end = file.metadata().unwrap().len() - 4096;
    file.write_all_at(b"flipped", end).unwrap();
    let state = [RAM, DEVICE].map(|name| (name.to_owned(), digest_of(&directory.join(name))));
    memory::Manifest::new(template.key().clone(), state.into()).write(&directory.join(MANIFEST)).unwrap();
    drop(Template::open(&directory).unwrap().revive(&world.qemu, &guest.spec, Run::default()).unwrap());

    // What it cannot read, it says.
    let device = File::options().write(true).open(directory.join(DEVICE)).unwrap();
    device.set_len(device.metadata().unwrap().len() / 2).unwrap();
    let state = [RAM, DEVICE].map(|name| (name.to_owned(), digest_of(&directory.join(name))));
    memory::Manifest::new(template.key().clone(), state.into()).write(&directory.join(MANIFEST)).unwrap();
    let failure = Template::open(&directory).unwrap().revive(&world.qemu, &guest.spec, Run::default()).unwrap_err();
    assert_eq!(failure.class, FailureClass::LoadFailed, "{failure}");
}

#[test]
fn a_state_of_another_machine_is_refused_by_the_field() {
    let Some(world) = World::new() else { return };
    let mut guest = world.guest(COUNTING);
    let directory = guest.path("template");
    let template = template(&world, &guest, &directory);
    guest.spec.ports.push("one.more".into());
    let failure = template.revive(&world.qemu, &guest.spec, Run::default()).unwrap_err();
    assert_eq!(failure.class, FailureClass::StateMismatch);
    assert!(failure.what.contains("with devices ‘"), "{failure}");
    guest.spec.ports.clear();
    guest.spec.memory = 256;
    let failure = template.revive(&world.qemu, &guest.spec, Run::default()).unwrap_err();
    assert_eq!(failure.class, FailureClass::StateMismatch);
    assert!(failure.what.contains("memory ‘128 MiB’, and this machine has ‘256 MiB’"), "{failure}");
}

#[test]
fn one_file_carries_a_state_and_is_always_the_same_file() {
    let Some(world) = World::new() else { return };
    let guest = world.guest(COUNTING);
    let template = template(&world, &guest, &guest.path("template"));
    let (file, again) = (guest.path("state.gz"), guest.path("again.gz"));
    template.export(&file).unwrap();
    let imported = Template::import(&file, &guest.path("imported")).unwrap();
    say(&mut revive(&world, &guest, &imported), "two", 2);
    imported.export(&again).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes == std::fs::read(&again).unwrap(), "what was carried elsewhere is another file");

    // No damage of the file becomes a template: cut off, flipped, empty.
    let flipped = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    for (number, damaged) in
        [bytes[..bytes.len() - 20].to_vec(), flipped(1), flipped(bytes.len() / 2), flipped(bytes.len() - 6), vec![]]
            .into_iter()
            .enumerate()
    {
        let (place, into) = (guest.path("damaged.gz"), guest.path(&format!("damaged{number}")));
        std::fs::write(&place, damaged).unwrap();
        let failure = Template::import(&place, &into).unwrap_err();
        assert_eq!(failure.class, FailureClass::CorruptState, "{number}: {failure}");
        assert!(Template::open(&into).is_err(), "{number}");
    }
}

#[test]
fn a_save_that_fails_leaves_the_machine_as_it_was() {
    let Some(world) = World::new() else { return };
    let guest = world.guest(COUNTING);
    let directory = guest.path("template");
    std::fs::create_dir(&directory).unwrap();
    let mut machine = guest.start_with(&world, Run { memory: memory::backing(&directory), ..Run::default() });
    line(&mut machine, "up");
    // A directory stands where the state is to be written.
    std::fs::create_dir(directory.join(DEVICE)).unwrap();
    let failure = Template::save(&mut machine, &guest.spec, &directory).unwrap_err();
    assert_eq!(failure.class, FailureClass::SaveFailed, "{failure}");
    assert!(Template::open(&directory).is_err(), "a state that failed is there");
    machine.go().unwrap();
    say(&mut machine, "on", 1);
}
