use proptest::prelude::*;

use super::*;

/// Files in a directory of their own, and what comes of them.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn from_file(text: &str) -> Result<Config, ConfigError> {
    let files = Files::new();
    Config::load(&Sources { files: vec![files.write("f.toml", text)], ..Sources::default() })
}

fn from_option(name: &str, value: &str) -> Result<Config, ConfigError> {
    Config::load(&Sources { options: vec![(name.into(), value.into())], ..Sources::default() })
}

fn error(result: Result<Config, ConfigError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn every_default_is_a_value_of_its_setting_and_every_name_is_there_once() {
    for (number, setting) in SETTINGS.iter().enumerate() {
        if let table::Default::Is(text) = setting.default {
            assert!(table::parse_toml(text).is_some(), "{}", setting.name);
        }
        setting.kind.check(&setting.default_value()).unwrap_or_else(|why| panic!("{} {why}", setting.name));
        assert!(!SETTINGS[..number].iter().any(|other| other.name == setting.name), "{}", setting.name);
    }
}

#[test]
fn the_defaults_are_strict_and_without_limits() {
    let settings = Config::defaults().settings();
    assert_eq!((settings.sandbox, settings.require_sigs, settings.network), (Sandbox::Strict, true, Network::Pasta));
    assert_eq!((settings.timeout, settings.memory, settings.pids, settings.cpu), (None, None, None, None));
    assert_eq!((settings.max_jobs, settings.log_lines), (MaxJobs::Count(1), 10));
    assert_eq!(settings.sandbox_dev_shm_size, anchorhold_sandbox::quantity::Size::Share(50));
}

#[test]
fn a_later_source_wins_and_each_value_knows_its_own() {
    let files = Files::new();
    let sources = Sources {
        system: Some(files.write("system.toml", "# first\ncores = 2\nmax-jobs = 3\ntimeout = \"1h\"\n")),
        user: Some(files.write("user.toml", "\nmax-jobs = \"auto\"\nsandbox-paths = [\"/bin/sh=/opt/sh?\"]\n")),
        files: vec![
            files.write("f.toml", "timeout = 30\nextra-sandbox-paths = [\"/x\"]\nimpure-env = { A = \"b c\" }\n"),
        ],
        options: vec![("keep-going".into(), "true".into()), ("memory".into(), "1.5G".into())],
    };
    let config = Config::load(&sources).unwrap();
    let settings = config.settings();
    assert_eq!((settings.cores, settings.max_jobs, settings.keep_going), (2, MaxJobs::Auto, true));
    assert_eq!(settings.timeout, Some(std::time::Duration::from_secs(30)));
    assert_eq!(settings.sandbox_paths, ["/bin/sh=/opt/sh?", "/x"]);
    assert_eq!(settings.memory, Some(anchorhold_sandbox::quantity::Size::Bytes(3 << 29)));
    assert_eq!(settings.impure_env["A"], "b c");
    let origin = |name| config.0[name].origin.to_string();
    assert!(origin("cores").ends_with("/system.toml:2"), "{}", origin("cores"));
    assert!(origin("max-jobs").ends_with("/user.toml:2"));
    assert!(origin("timeout").ends_with("/f.toml:1"));
    assert_eq!((origin("keep-going").as_str(), origin("pids").as_str()), ("--option", "default"));
}

#[test]
fn a_misspelled_name_is_an_error_with_its_line_and_the_nearest_name() {
    let text = error(from_file("cores = 1\n\nmax-job = 4\n"));
    assert!(text.contains("f.toml:3: there is no setting ‘max-job’: is ‘max-jobs’ meant?"), "{text}");
    assert!(error(from_file("keep_failed = true")).contains("‘keep-failed’ meant"));
    assert!(error(from_option("sandbx", "true")).starts_with("--option: there is no setting ‘sandbx’: is ‘sandbox’"));
    let text = error(from_file("[sandbox-fallback]\n"));
    assert!(text.contains("f.toml:1") && text.contains("never replaced by a weaker one"), "{text}");
    assert!(!error(from_file("zzzzqqq = 1")).contains("meant"));
    assert!(error(from_file("\"a\\u001b[2J\" = 1")).contains("‘a\\u{1b}[2J’"));
}

#[test]
fn a_wrong_value_is_an_error_that_says_what_is_wanted() {
    for (line, part) in [
        ("cores = \"many\"", "‘cores’ wants a whole number from 0, not the text \"many\""),
        ("cores = -1", "not -1"),
        ("keep-going = 1", "wants true or false, not 1"),
        ("max-jobs = 0", "or \"auto\", not 0"),
        ("timeout = \"soon\"", "soon"),
        ("max-build-log-size = \"50%\"", "wants a size"),
        ("sandbox-paths = \"/bin\"", "wants a list"),
        ("sandbox-paths = [\"bin\"]", "no absolute path"),
        ("sandbox-paths = [\"/a=/b/../c\"]", "without ‘..’"),
        ("secret-key-files = [1]", "not 1"),
        ("build-dir = \"tmp\"", "no absolute path"),
        ("network = \"host\"", "\"pasta\" or \"none\""),
        ("network-allow = [\"nowhere\"]", "network-allow"),
        ("impure-env = { A = 1 }", "‘A’ is 1"),
        ("cpu = -0.5", "0 or more"),
        ("system = \"a\\nb\"", "control character"),
        ("cores = 1\ncores = 2", "duplicate key"),
        ("cores = = 1", "f.toml:1: "),
    ] {
        let text = error(from_file(line));
        assert!(text.contains(part) && text.contains("f.toml:") && !text.contains('\n'), "{line}: {text}");
    }
    assert!(error(from_option("cores", "x")).starts_with("--option: ‘cores’ wants"));
    assert!(error(from_option("impure-env", "A")).contains("NAME=VALUE"));
    assert!(error(from_option("impure-env", "{ A = ")).contains("a table of TOML"));
    assert!(error(from_option("impure-env", "{ A = 1 }")).contains("‘A’ is 1"));
}

#[test]
fn the_sandbox_cannot_be_turned_off() {
    for result in [from_file("sandbox = false"), from_option("sandbox", "false")] {
        let text = error(result);
        assert!(text.contains("cannot be turned off") && text.contains("__noChroot"), "{text}");
    }
    assert_eq!(from_file("sandbox = \"relaxed\"").unwrap().settings().sandbox, Sandbox::Relaxed);
    assert_eq!(from_option("sandbox", "relaxed").unwrap().settings().sandbox, Sandbox::Relaxed);
    assert_eq!(from_option("sandbox", "true").unwrap().settings().sandbox, Sandbox::Strict);
    assert!(from_option("sandbox", "off").is_err());
}

#[test]
fn what_the_system_locks_stays() {
    let files = Files::new();
    let system = files.write("system.toml", "locked = [\"sandbox\", \"memory\"]\nmemory = \"4G\"\n");
    let load = |user: &str, options: &[(&str, &str)]| {
        Config::load(&Sources {
            system: Some(system.clone()),
            user: Some(files.write("user.toml", user)),
            options: options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            ..Sources::default()
        })
    };
    let text = error(load("\nsandbox = \"relaxed\"\n", &[]));
    assert!(text.contains("user.toml:2: ‘sandbox’ is locked by") && text.contains("system.toml:1"), "{text}");
    assert!(error(load("", &[("memory", "8G")])).starts_with("--option: ‘memory’ is locked"));
    let config = load("memory = \"4G\"\ncores = 3\n", &[("sandbox", "true")]).unwrap();
    assert_eq!(config.settings().cores, 3);
    assert!(config.0["memory"].origin.to_string().ends_with("system.toml:2"), "the same value is no other");
    assert!(error(load("locked = []", &[])).contains("the system's file alone"));
    files.write("system.toml", "locked = [\"sandbocks\"]");
    assert!(error(load("", &[])).contains("‘sandbox’ meant"));
}

#[test]
fn a_file_that_was_asked_for_must_be_there_and_be_of_a_sane_size() {
    let files = Files::new();
    let missing = files.0.path().join("none.toml");
    let of = |path: &Path| Sources { files: vec![path.to_owned()], ..Sources::default() };
    assert!(error(Config::load(&of(&missing))).contains("cannot read the configuration"));
    let standard = Sources { system: Some(missing.clone()), user: Some(missing), ..Sources::default() };
    assert!(Config::load(&standard).is_ok());
    let large = files.write("large.toml", &"#\n".repeat(1 << 20));
    assert!(error(Config::load(&of(&large))).contains("larger than"));
}

/// The page of the documentation, whose table is made here: UPDATE_DOCS=1 writes it.
#[test]
fn the_documentation_has_every_setting() {
    const BEGIN: &str = "<!-- settings: begin; made by `UPDATE_DOCS=1 cargo test -p anchorhold config::` -->\n";
    const END: &str = "<!-- settings: end -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let mut table = "| setting | takes | default | obeyed by | meaning |\n|---|---|---|---|---|\n".to_owned();
    for setting in SETTINGS {
        let default = match setting.default {
            table::Default::Is(text) => format!("`{text}`"),
            table::Default::OfMachine(_, words) => words.to_owned(),
        };
        let takes = setting.kind.words().replace('|', "\\|");
        table +=
            &format!("| `{}` | {takes} | {default} | {} | {} |\n", setting.name, setting.part, setting.description);
    }
    let wanted = format!("{before}{BEGIN}{table}{END}{after}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    assert!(
        page == wanted || std::env::var_os("UPDATE_DOCS").is_some(),
        "docs/configuration.md is behind: UPDATE_DOCS=1"
    );
}

proptest! {
    #[test]
    fn any_file_is_read_without_a_panic(text in "[a-z\\[\\]={}\"'\n.0-9-]{0,60}", name in ".{0,20}", value in ".{0,20}") {
        let mut config = Config::defaults();
        let _ = config.take_file(Path::new("f"), &text, true);
        let _ = from_option(&name, &value);
        for setting in SETTINGS {
            let _ = setting.kind.parse(&value);
        }
    }
}
