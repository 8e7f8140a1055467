//! `docs/room.md` and what is really read cannot differ: its examples are read, its tables are compared with the keys of a room and
//! with their defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anchorhold_sandbox::quantity::{Duration, Size};
use anchorhold_sandbox::room::{Entry, NetworkMode};
use anchorhold_sandbox::{Host, Layer, Plan, Room};

fn reference() -> String {
    // The working directory of a test is its package's.
    std::fs::read_to_string(Path::new("../docs/room.md")).expect("docs/room.md is there")
}

/// The blocks of TOML, each with the line where it begins.
fn examples(text: &str) -> Vec<(usize, String)> {
    let mut examples = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line) {
            (None, "```toml") => open = Some((number + 2, String::new())),
            (Some(_), "```") => examples.extend(open.take()),
            (Some((_, example)), line) => *example += &format!("{line}\n"),
            (None, _) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    examples
}

/// The tables: for each section, the keys and their defaults as they are printed.
fn tables(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut tables = BTreeMap::<_, BTreeMap<_, _>>::new();
    let mut section = String::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("##") {
            let quoted = heading.split('`').nth(1).unwrap_or_default();
            // `[identity]`, `[[mount]]`, `kind = "bind"`; the file itself has none.
            section = quoted.trim_matches(['[', ']']).replace("kind = ", "mount ").replace('"', "");
        }
        // A bar in a cell is written with a backslash.
        let line = line.replace("\\|", "\u{0}");
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let ["", key, _, default, ""] = cells.as_slice()
            && let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`'))
        {
            let again = tables.entry(section.clone()).or_default().insert(key.to_owned(), (*default).to_owned());
            assert_eq!(again, None, "{section}.{key} twice");
        }
    }
    tables
}

/// A room with every key in use, so that none is left out when it is written.
fn whole() -> Room {
    let mut room = Room::default();
    room.without.insert(Layer::Keyring);
    room.mounts = vec![
        Entry::bind("/a=/b?".as_ref(), true),
        Entry::Tmpfs { inside: "/t".into(), size: Size::Share(1), mode: 0o700, noexec: true },
        Entry::Directory { inside: "/d".into() },
        Entry::File { inside: "/f".into(), text: "x".into(), executable: true },
        Entry::Symlink { inside: "/l".into(), target: "/t".into() },
    ];
    room.etc.hosts.push("192.0.2.1 a".into());
    let network = &mut room.network;
    network.mode = Some(NetworkMode::Pasta);
    network.allow.push("10.0.0.1".parse().unwrap());
    network.refuse.push("10.0.0.0/8".parse().unwrap());
    network.dns = Some(true);
    let limits = &mut room.limits;
    (limits.memory, limits.output) = (Some(Size::Bytes(1)), Some(Size::Bytes(1)));
    (limits.file_size, limits.address_space) = (Some(Size::Bytes(1)), Some(Size::Bytes(1)));
    (limits.pids, limits.open_files) = (Some(1), Some(3));
    (limits.cpu, limits.cpu_weight, limits.io_weight) = (Some(1.0), Some(1), Some(1));
    (limits.time, limits.silence, limits.process_time) = (Some(Duration(1)), Some(Duration(1)), Some(Duration(1)));
    (room.landlock.files, room.landlock.require) = (Some(true), Some(1));
    room.seccomp.record = Some(true);
    room.process.argv0 = Some("x".into());
    room.process.arguments.push("x".into());
    room.process.environment.insert("A".into(), "x".into());
    room
}

/// The keys of a room, by section, with the values of a written room.
fn keys(room: &Room) -> BTreeMap<String, BTreeMap<String, toml::Value>> {
    let mut sections = BTreeMap::<String, BTreeMap<String, toml::Value>>::new();
    for (name, value) in toml::Table::try_from(room).expect("a room is written") {
        match value {
            toml::Value::Table(table) => sections.entry(name).or_default().extend(table),
            toml::Value::Array(entries) if name == "mount" => {
                for entry in entries {
                    let toml::Value::Table(mut entry) = entry else { panic!("{entry}") };
                    let kind = entry.remove("kind").and_then(|kind| kind.as_str().map(str::to_owned)).unwrap();
                    sections.entry(format!("mount {kind}")).or_default().extend(entry);
                }
            }
            value => {
                sections.entry(String::new()).or_default().insert(name, value);
            }
        }
    }
    sections
}

#[test]
fn every_example_is_a_room_that_can_be_planned() {
    let text = reference();
    let examples = examples(&text);
    assert!(examples.len() >= 4);
    for (line, example) in examples {
        let mut room = Room::from_toml(&example).unwrap_or_else(|error| panic!("docs/room.md, line {line}: {error}"));
        if room.process.program.as_os_str().is_empty() {
            room.process.program = "/bin/true".into();
        }
        let written = toml::to_string(&room).unwrap();
        assert_eq!(Room::from_toml(&written).unwrap(), room, "line {line}");
        // Control groups are asked of the machine that runs this.
        room.limits.memory = None;
        room.limits.cpu = None;
        room.limits.account = false;
        Plan::compile(&room, &Host::made_up(true)).unwrap_or_else(|error| panic!("line {line}: {error}"));
    }
}

#[test]
fn every_key_is_described_and_every_described_key_exists() {
    fn names<T>(sections: BTreeMap<String, BTreeMap<String, T>>) -> BTreeMap<String, BTreeSet<String>> {
        sections.into_iter().map(|(section, keys)| (section, keys.into_keys().collect())).collect()
    }
    assert_eq!(names(tables(&reference())), names(keys(&whole())));
}

#[test]
fn every_default_that_is_given_as_a_value_is_the_real_one() {
    let mut room = Room::default();
    // What is left out of a block, as it is then written.
    for block in ["kind = \"bind\"", "kind = \"tmpfs\"", "kind = \"file\"\ntext = \"\""] {
        let block = format!("[[mount]]\ninside = \"/x\"\n{block}\n");
        room.mounts.extend(Room::from_toml(&block).unwrap().mounts);
    }
    let real = keys(&room);
    let mut compared = 0;
    for (section, table) in tables(&reference()) {
        for (key, default) in table {
            let Some(value) = default.strip_prefix('`').and_then(|rest| rest.split('`').next()) else { continue };
            let Ok(told) = toml::from_str::<toml::Table>(&format!("value = {value}")) else { continue };
            assert_eq!(real.get(&section).and_then(|keys| keys.get(&key)), Some(&told["value"]), "{section}.{key}");
            compared += 1;
        }
    }
    assert!(compared >= 25, "{compared}");
}

#[test]
fn a_key_that_is_not_known_is_refused_with_its_line_and_column() {
    for section in keys(&whole()).into_keys() {
        let (head, kind) = match section.split_once(' ') {
            Some((_, kind)) => ("[[mount]]\n".to_owned(), format!("kind = \"{kind}\"\ninside = \"/x\"\n")),
            None if section.is_empty() => (String::new(), String::new()),
            None => (format!("[{section}]\n"), String::new()),
        };
        let required = match section.as_str() {
            "mount file" => "text = \"\"\n",
            "mount symlink" => "target = \"/x\"\n",
            _ => "",
        };
        let text = format!("# A room.\n\n{head}{kind}{required}writeable = true\n");
        let error = Room::from_toml(&text).expect_err(&section);
        let words = error.to_string();
        assert!(words.contains("writeable"), "{section}: {words}");
        // An entry is read as a whole, so its error is shown where the entry begins.
        let line = if section.starts_with("mount ") { 3 } else { text.lines().count() };
        assert!(words.contains(&format!("line {line}, column 1")), "{section}: {words}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_with_its_line_and_column() {
    for (text, line, column) in [
        ("profile = \"bild\"\n", 1, 11),
        ("[identity]\nuid = -1\n", 2, 7),
        ("[limits]\n\nmemory = \"lots\"\n", 3, 10),
        ("[limits]\ntime = \"0s\"\n", 2, 8),
        ("without = [\"keyrings\"]\n", 1, 12),
    ] {
        let words = Room::from_toml(text).expect_err(text).to_string();
        assert!(words.contains(&format!("line {line}, column {column}")), "{text}: {words}");
    }
}
