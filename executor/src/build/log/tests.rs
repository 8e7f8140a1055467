use super::*;
use proptest::prelude::*;
use std::process::Command;

const DRV: &str = "n51kmbn8n4gk400r3sgj0hjmszkazsbj-a.drv";

fn drv() -> StorePath {
    DRV.parse().unwrap()
}

fn stored(log_dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    read_log(log_dir, &drv()).unwrap().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn names(log_dir: &Path) -> Vec<String> {
    let directory = log_dir.join("drvs/n5");
    let mut names: Vec<_> =
        directory.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_log_appears_whole_where_nix_has_it() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = LogWriter::create(root.path(), &drv(), None).unwrap();
    assert_eq!(writer.write(b"\x1b[31mraw\xff\r\n").unwrap(), Written::All);
    assert!(read_log(root.path(), &drv()).unwrap().is_none(), "an unfinished log is none");
    let path = writer.finish().unwrap();
    assert_eq!(path, root.path().join("drvs/n5/1kmbn8n4gk400r3sgj0hjmszkazsbj-a.drv.bz2"));
    assert_eq!(stored(root.path()), b"\x1b[31mraw\xff\r\n");
    assert_eq!(names(root.path()).len(), 1);
}

#[test]
fn the_limit_holds_to_the_byte_and_is_told_at_once() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = LogWriter::create(root.path(), &drv(), Some(100_000)).unwrap();
    assert_eq!(writer.write(&[b'a'; 99_999]).unwrap(), Written::All);
    assert_eq!(writer.write(b"b").unwrap(), Written::All, "the limit itself is allowed");
    assert_eq!(writer.write(&[b'c'; 70_000]).unwrap(), Written::LimitReached);
    assert_eq!(writer.write(b"").unwrap(), Written::LimitReached);
    assert_eq!(writer.len(), 100_000);
    writer.finish().unwrap();
    let bytes = stored(root.path());
    assert_eq!((bytes.len(), bytes[99_999]), (100_000, b'b'));
}

#[test]
fn the_older_log_stays_until_the_new_one_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let mut first = LogWriter::create(root.path(), &drv(), None).unwrap();
    first.write(b"first").unwrap();
    first.finish().unwrap();
    let mut second = LogWriter::create(root.path(), &drv(), None).unwrap();
    second.write(b"second").unwrap();
    drop(second);
    assert_eq!(stored(root.path()), b"first");
    assert_eq!(names(root.path()).len(), 1, "a log that is given up is taken away");
}

#[test]
fn two_writers_do_not_mix_and_a_dead_ones_remains_are_taken_over() {
    let root = tempfile::tempdir().unwrap();
    let one = LogWriter::create(root.path(), &drv(), None).unwrap();
    let error = LogWriter::create(root.path(), &drv(), None).unwrap_err();
    assert!(matches!(error, LogError::Busy { .. }), "{error}");
    drop(one);
    let partial = log_path(root.path(), &drv()).with_extension("bz2.partial");
    std::fs::write(&partial, vec![b'x'; 5000]).unwrap();
    LogWriter::create(root.path(), &drv(), None).unwrap().finish().unwrap();
    assert_eq!(stored(root.path()), b"");
    assert!(!partial.exists());
}

#[test]
fn what_is_no_file_is_refused_without_waiting_and_links_are_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let path = log_path(root.path(), &drv());
    std::fs::create_dir_all(&path).unwrap();
    assert!(matches!(read_log(root.path(), &drv()), Err(LogError::NoFile { .. })));
    let victim = root.path().join("victim");
    std::fs::write(&victim, "kept").unwrap();
    std::os::unix::fs::symlink(&victim, path.with_extension("bz2.partial")).unwrap();
    assert!(matches!(LogWriter::create(root.path(), &drv(), None), Err(LogError::NoFile { .. })));
    assert_eq!(std::fs::read(&victim).unwrap(), b"kept");
}

#[test]
fn a_plain_log_is_read_and_a_broken_one_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    assert!(read_log(root.path(), &drv()).unwrap().is_none());
    let path = log_path(root.path(), &drv());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path.with_extension(""), "plain").unwrap();
    assert_eq!(stored(root.path()), b"plain");
    std::fs::write(&path, "BZh9 this is no such file").unwrap();
    let mut reader = read_log(root.path(), &drv()).unwrap().unwrap();
    assert!(reader.read_to_end(&mut Vec::new()).is_err());
}

/// A real Nix reads our logs, large and small, and byte for byte.
#[test]
fn nix_reads_it() {
    let root = tempfile::tempdir().unwrap();
    let nix = |program: &str, arguments: &[&str]| {
        Command::new(program)
            .args(arguments)
            .args(["--store", root.path().to_str().unwrap()])
            .env("NIX_CONFIG", "substituters =\nexperimental-features = nix-command\nbuild-users-group =")
            .env("HOME", root.path())
            .output()
    };
    let added = match nix("nix-instantiate", &["-E", "derivation { name = \"a\"; system = \"x\"; builder = \"/x\"; }"])
    {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            println!("SKIP: no nix-instantiate here: {error}");
            return;
        }
    };
    let added = added.trim();
    let drv: StorePath = added.rsplit('/').next().unwrap().parse().unwrap();
    let log_dir = root.path().join("nix/var/log/nix");
    for size in [0, 20, 1_500_000] {
        let bytes: Vec<u8> = (0..size).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut writer = LogWriter::create(&log_dir, &drv, None).unwrap();
        for piece in bytes.chunks(4096) {
            writer.write(piece).unwrap();
        }
        writer.finish().unwrap();
        for (program, arguments) in [("nix-store", &["--read-log", added][..]), ("nix", &["log", added])] {
            let output = nix(program, arguments).unwrap();
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            // `nix log` may add a newline of its own.
            let shown = output.stdout.strip_suffix(b"\n").filter(|shown| shown.len() == bytes.len());
            assert!(output.stdout == bytes || shown == Some(&bytes[..]), "{program} of {size} bytes");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_was_written_is_read(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 0..6)) {
        let root = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::create(root.path(), &drv(), None).unwrap();
        for piece in &pieces {
            writer.write(piece).unwrap();
        }
        writer.finish().unwrap();
        prop_assert_eq!(stored(root.path()), pieces.concat());
    }
}
