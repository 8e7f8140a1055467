//! `anchorhold doctor`, on this machine as it is and in surroundings that are made hostile for it.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anchorhold_tests::host::is_root;
use anchorhold_tests::room::anchorhold;
use anchorhold_tests::skip;
use serde_json::Value;

/// The names that users of `--json` may rely on.
const HOST: [&str; 11] = [
    "keyrings",
    "landlock",
    "loopback",
    "mount-calls",
    "other-namespaces",
    "process-limit",
    "procfs",
    "room-ids",
    "seccomp-filter",
    "seccomp-listener",
    "user-namespaces",
];
const OPTIONS: [&str; 14] = [
    "cgroup-cpu",
    "cgroup-freezer",
    "cgroup-io",
    "cgroup-layout",
    "cgroup-memory",
    "cgroup-pids",
    "cgroup-trial",
    "id-range",
    "kvm",
    "nested-rooms",
    "nf-tables",
    "pasta",
    "outer-proc",
    "time-namespace",
];

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn json(output: &Output) -> Value {
    let said = text(output);
    serde_json::from_str(&said).unwrap_or_else(|error| {
        panic!("{error}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    })
}

fn diagnosis<'a>(report: &'a Value, group: &str, aspect: &str) -> &'a Value {
    let all = report["diagnoses"].as_array().expect("a list");
    let found = all.iter().find(|one| one["group"] == group && one["aspect"] == aspect);
    found.unwrap_or_else(|| panic!("no {group}/{aspect} in {report:#}"))
}

fn said<'a>(diagnosis: &'a Value, key: &str) -> &'a str {
    diagnosis[key].as_str().unwrap_or_else(|| panic!("no {key} in {diagnosis}"))
}

/// Doctor with these arguments inside a shell script that prepares its surroundings and ends in `"$@"`; `None`, after saying so,
/// where `unshare` with these options is not possible.
fn within(unshare: &[&str], script: &str, arguments: &[&str]) -> Option<Output> {
    let probe = Command::new("unshare").args(unshare).args(["sh", "-c", script, "sh", "true"]).output();
    match probe {
        Ok(probe) if probe.status.success() => {}
        Ok(probe) => {
            let why = String::from_utf8_lossy(&probe.stderr);
            skip(&format!("unshare {} with `{script}`: {}", unshare.join(" "), why.trim()));
            return None;
        }
        Err(error) => {
            skip(&format!("unshare: {error}"));
            return None;
        }
    }
    let mut command = Command::new("unshare");
    command.args(unshare).args(["sh", "-c", script, "sh"]).arg(anchorhold()).arg("doctor").args(arguments);
    Some(run(&mut command))
}

/// The verdict is the truth: a room can be made by `run` exactly when doctor says so, in words, in JSON and by its status.
fn agrees_with_run(command: impl Fn() -> Command) {
    let words = run(command().arg("doctor"));
    let report = run(command().args(["doctor", "--json"]));
    // 125: not started. Whatever else it returns, the room stood.
    let ran = run(command().args(["run", "--", "true"]));
    let works = ran.status.code() != Some(125);
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    let expected = Some(if works { 0 } else { 1 });
    assert_eq!((words.status.code(), report.status.code()), (expected, expected), "{stderr}\n{}", text(&words));
    let first = text(&words).lines().next().unwrap_or_default().to_owned();
    assert_eq!(first.contains("can be made"), works, "{first}");
    assert_eq!(first.contains("cannot be made"), !works, "{first}");
    let room = &json(&report)["default_room"];
    assert_eq!(room["failure"].is_null(), works, "{room:#}");
    assert_eq!(room["verdict"] != "missing", works);
    if works {
        assert!(room["seal"]["layers"].as_array().is_some_and(|layers| layers.len() >= 12), "{room:#}");
    } else {
        let failure = &room["failure"];
        assert!(stderr.contains(said(failure, "layer")), "{stderr} against {failure:#}");
    }
}

#[test]
fn the_verdict_is_true_for_whoever_runs_this() {
    agrees_with_run(|| Command::new(anchorhold()));
}

#[test]
fn the_verdict_is_true_for_an_ordinary_user_without_an_entry_anywhere() {
    if !is_root() {
        skip("only root can become somebody else");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = directory.path().join("anchorhold");
    std::fs::copy(anchorhold(), &copy).expect("copy");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    // No user database knows this one: nothing may depend on that, nor crash over it.
    let user = || {
        let mut command = Command::new(&copy);
        command.uid(0x7eed_0001).gid(0x7eed_0001).current_dir("/");
        command
    };
    agrees_with_run(user);
    let report = json(&run(user().args(["doctor", "--json"])));
    assert_eq!(report["privileged"], false);
    assert!(said(diagnosis(&report, "host", "room-ids"), "found").contains("2129461249"));
    assert_eq!(diagnosis(&report, "option", "id-range")["verdict"], "missing");
}

#[test]
fn the_json_has_its_keys_and_names() {
    let report = json(&run(Command::new(anchorhold()).args(["doctor", "--json"])));
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let top = ["version", "made_by", "kernel", "uid", "privileged", "default_room", "diagnoses", "nix"];
    assert_eq!(keys(&report), set(&top));
    assert_eq!(report["version"], 1);
    assert_eq!(keys(&report["default_room"]), set(&["verdict", "failure", "seal"]));
    let all = report["diagnoses"].as_array().expect("a list");
    for one in all {
        assert_eq!(keys(one), set(&["group", "aspect", "layer", "verdict", "found", "fix"]), "{one}");
        let verdict = said(one, "verdict");
        assert!(["works", "weaker", "missing", "info"].contains(&verdict), "{one}");
        assert!(!said(one, "found").is_empty(), "{one}");
        assert_eq!(one["fix"].is_string(), ["weaker", "missing"].contains(&verdict), "{one}");
    }
    let of = |group: &str| {
        let of_group = all.iter().filter(|one| one["group"] == group);
        of_group.map(|one| said(one, "aspect").to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(of("host"), set(&HOST));
    assert_eq!(of("option"), set(&OPTIONS));
}

#[test]
fn a_pipe_gets_no_colour_and_one_line_for_each_thing() {
    let output = run(Command::new(anchorhold()).arg("doctor").env("TERM", "xterm-256color").env_remove("NO_COLOR"));
    let said = text(&output);
    assert!(!said.contains('\x1b'), "{said:?}");
    for line in said.lines().skip(4).filter(|line| line.starts_with(' ')) {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        assert!(["works", "weaker", "missing", "info", "fix:"].contains(&first), "{line}");
    }
}

#[test]
fn a_terminal_gets_colour_unless_it_is_not_wanted() {
    let directory = tempfile::tempdir().expect("a directory");
    let shown = |no_color: Option<&str>| {
        let mut command = Command::new("script");
        command.args(["-qec", &format!("'{}' doctor", anchorhold().display()), "/dev/null"]);
        command.env("TERM", "xterm").env_remove("NO_COLOR").current_dir(directory.path());
        if let Some(value) = no_color {
            command.env("NO_COLOR", value);
        }
        command.stdin(Stdio::null()).output()
    };
    match shown(None) {
        Err(error) => skip(&format!("script(1): {error}")),
        Ok(output) => {
            assert!(text(&output).contains("\x1b[32mworks"), "{}", text(&output));
            let plain = shown(Some("1")).expect("it ran before");
            assert!(!text(&plain).contains('\x1b'), "{}", text(&plain));
            // https://no-color.org: an empty value asks for nothing.
            assert!(text(&shown(Some("")).expect("it ran before")).contains("\x1b["));
        }
    }
}

#[test]
fn a_reader_that_is_full_changes_nothing_about_the_status() {
    let status = |stdout: Stdio| {
        let mut command = Command::new(anchorhold());
        command.arg("doctor").stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        let output = command.output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    assert_eq!(status(full.into()), status(Stdio::null()));
}

#[test]
fn a_limit_of_no_user_namespaces_is_named() {
    let script = r#"echo 0 > /proc/sys/user/max_user_namespaces && "$@""#;
    let Some(words) = within(&["-Ur"], script, &[]) else { return };
    assert_eq!(words.status.code(), Some(1), "{}", text(&words));
    let first = text(&words).lines().take(2).collect::<Vec<_>>().join("\n");
    assert!(first.contains("cannot be made") && first.contains("user.max_user_namespaces is 0"), "{first}");
    let Some(output) = within(&["-Ur"], script, &["--json"]) else { return };
    let report = json(&output);
    let row = diagnosis(&report, "host", "user-namespaces");
    assert_eq!(row["verdict"], "missing");
    assert!(said(row, "found").contains("ENOSPC"), "{row}");
    assert!(said(row, "fix").contains("sysctl -w user.max_user_namespaces="), "{row}");
    assert_eq!(report["default_room"]["failure"]["layer"], "namespaces");

    // The other side: without the limit they can be made there.
    let Some(output) = within(&["-Ur"], r#""$@""#, &["--json"]) else { return };
    assert_eq!(diagnosis(&json(&output), "host", "user-namespaces")["verdict"], "works");
}

#[test]
fn another_kind_of_namespace_that_may_not_be_made_is_named() {
    let script = r#"echo 0 > /proc/sys/user/max_net_namespaces && "$@""#;
    let Some(output) = within(&["-Ur"], script, &["--json"]) else { return };
    let report = json(&output);
    let row = diagnosis(&report, "host", "other-namespaces");
    assert_eq!((&row["verdict"], output.status.code()), (&Value::from("missing"), Some(1)), "{row}");
    assert!(said(row, "found").contains("net") && said(row, "fix").contains("user.max_net_namespaces"), "{row}");
}

#[test]
fn a_masked_proc_is_named_with_the_weaker_tier() {
    let masked = ["kcore", "kmsg", "keys"].map(|name| format!("/proc/{name}"));
    let Some(masked) = masked.iter().find(|path| Path::new(path).exists()) else {
        skip("this /proc has nothing that containers mask");
        return;
    };
    // A user namespace makes an ordinary user able to mount; the kernel's own root must not be in one, where it would have no id to
    // give to a room.
    let (options, user): (&[&str], _) = if is_root() {
        (&["-mpf", "--mount-proc"], "")
    } else {
        (&["-Urmpf", "--mount-proc"], "unshare -U --map-user=1000 --map-group=1000")
    };
    let script = format!(r#"mount --bind /dev/null {masked} && {user} "$@""#);
    let Some(output) = within(options, &script, &["--json"]) else { return };
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let report = json(&output);
    let row = diagnosis(&report, "host", "procfs");
    assert_eq!(row["verdict"], "missing");
    assert!(said(row, "found").contains(masked.as_str()), "{row}");
    assert!(said(row, "fix").contains("--proc outer") && said(row, "fix").contains("unmask"), "{row}");
    assert_eq!(report["default_room"]["failure"]["layer"], "proc");
    // The tier was tried, and what is said of it is what `run` finds.
    let tier = diagnosis(&report, "option", "outer-proc");
    assert!(!said(tier, "found").contains("not tried"), "{tier}");
    let advised = said(row, "fix").contains("works here");
    assert_eq!(advised, tier["verdict"] == "works", "{row} {tier}");

    // The other side.
    let Some(output) = within(options, &format!(r#"{user} "$@""#), &["--json"]) else { return };
    assert_eq!(diagnosis(&json(&output), "host", "procfs")["verdict"], "works");
}

#[test]
fn a_root_with_one_id_is_told_who_to_be_if_it_is_the_kernels() {
    let Some(output) = within(&["-Ur"], r#""$@""#, &["--json"]) else { return };
    let report = json(&output);
    let row = diagnosis(&report, "host", "room-ids");
    if is_root() {
        assert_eq!((&row["verdict"], output.status.code()), (&Value::from("missing"), Some(1)), "{row}");
        assert!(said(row, "fix").contains("ordinary user"), "{row}");
    } else {
        assert_eq!(row["verdict"], "works", "{row}");
    }
}

#[test]
fn a_kvm_that_answers_and_cannot_run_a_guest_is_unusable() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let Some(flags) = cpuinfo.lines().find(|line| line.starts_with("flags")) else {
        skip("the processors here have no flags");
        return;
    };
    let able = flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    if able || !Path::new("/dev/kvm").exists() {
        skip("no /dev/kvm here, or one that works");
        return;
    }
    let report = json(&run(Command::new(anchorhold()).args(["doctor", "--json"])));
    let row = diagnosis(&report, "option", "kvm");
    assert_eq!(row["verdict"], "missing");
    assert!(said(row, "found").contains("unusable") && said(row, "found").contains("vmx"), "{row}");
}

#[test]
fn what_is_around_us_is_told() {
    let mut command = Command::new("setpriv");
    command.arg("--no-new-privs").arg(anchorhold()).args(["doctor", "--json"]);
    match command.stdin(Stdio::null()).output() {
        Err(error) => skip(&format!("setpriv(1): {error}")),
        Ok(output) => {
            let report = json(&output);
            let row = diagnosis(&report, "setting", "surroundings");
            assert!(said(row, "found").contains("kept from gaining privileges"), "{row}");
        }
    }
}

/// Doctor, asked about the Nix of this configuration.
fn with_nix(directory: &Path, configuration: &str, path: Option<&str>, arguments: &[&str]) -> Output {
    std::fs::write(directory.join("nix.conf"), configuration).expect("nix.conf");
    let mut command = Command::new(anchorhold());
    command.arg("doctor").args(arguments).env("NIX_CONF_DIR", directory).env("NIX_USER_CONF_FILES", "");
    command.env_remove("NIX_CONFIG").env("HOME", directory);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    run(&mut command)
}

fn of_nix<'a>(report: &'a Value, aspect: &str) -> &'a Value {
    let all = report["nix"]["diagnoses"].as_array().expect("a list");
    all.iter().find(|one| one["aspect"] == aspect).unwrap_or_else(|| panic!("no {aspect} in {:#}", report["nix"]))
}

#[test]
fn a_machine_without_nix_is_told_so_in_one_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let none = directory.path().join("none");
    let doctor = |arguments: &[&str]| {
        let mut command = Command::new(anchorhold());
        command.arg("doctor").args(arguments).env("NIX_CONF_DIR", &none).env("PATH", &none);
        run(&mut command)
    };
    let said = text(&doctor(&[]));
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("Nix")).collect();
    assert_eq!(lines, ["There is no Nix on this machine, and none is needed."], "{said}");
    let report = json(&doctor(&["--json"]));
    assert_eq!(report["nix"]["present"], false);
    assert_eq!(report["nix"]["diagnoses"], Value::Array(Vec::new()));
}

#[test]
fn a_nix_that_cannot_be_asked_has_its_files_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = anchorhold();
    let entry = format!(
        r#"[{{"systems": ["x86_64-linux", "i686-linux"], "program": "{}", "args": ["attach"]}}]"#,
        program.display()
    );
    std::fs::write(directory.path().join("doors.conf"), format!("external-builders = {entry}\n")).expect("doors.conf");
    let lines = "include doors.conf\n!include none.conf\nsystem = x86_64-linux\nextra-platforms = i686-linux\n";
    let report =
        |more: &str| json(&with_nix(directory.path(), &format!("{lines}{more}"), Some("/nonexistent"), &["--json"]));

    let off = report("");
    assert_eq!((&off["nix"]["doors"], &off["nix"]["program"]), (&Value::Array(Vec::new()), &Value::Null));
    assert_eq!(of_nix(&off, "external-builders")["verdict"], "missing");
    assert!(said(of_nix(&off, "external-builders"), "fix").contains("extra-experimental-features = external-builders"));

    let on = report("extra-experimental-features = external-builders\n");
    assert_eq!(on["nix"]["doors"], serde_json::json!(["attach"]), "{:#}", on["nix"]);
    assert_eq!(of_nix(&on, "local-builds")["verdict"], "works");

    let broken = report("include none.conf\n");
    assert!(said(of_nix(&broken, "nix"), "found").contains("none.conf"), "{:#}", broken["nix"]);
    assert_eq!(of_nix(&broken, "nix")["verdict"], "missing");
}

#[test]
fn a_real_nix_says_itself_how_it_is_configured() {
    if Command::new("nix").arg("--version").stdout(Stdio::null()).status().is_err() {
        skip("there is no nix in PATH");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    // Called by a name that needs no argument, because old Nixes give none.
    let hook = directory.path().join("anchorhold-hook");
    std::os::unix::fs::symlink(anchorhold(), &hook).expect("a link");
    let hook = format!("build-hook = {}\ntrusted-users = root *\n", hook.display());
    let report = json(&with_nix(directory.path(), &hook, None, &["--json"]));
    assert!(said(&report["nix"], "version").starts_with("nix ("), "{:#}", report["nix"]);
    assert_eq!(report["nix"]["doors"], serde_json::json!(["hook"]), "{:#}", report["nix"]);
    assert!(said(of_nix(&report, "local-builds"), "found").contains("preferLocalBuild"));
    assert_eq!(of_nix(&report, "trusted-users")["verdict"], "weaker");

    let closed = format!("{hook}system = hook-only\nextra-platforms =\n");
    let report = json(&with_nix(directory.path(), &closed, None, &["--json"]));
    assert_eq!(of_nix(&report, "local-builds")["verdict"], "works", "{:#}", report["nix"]);

    // Most Nixes do not show this setting as long as the feature is off, and old ones do not know it.
    let entry =
        r#"external-builders = [{"systems": ["x86_64-linux"], "program": "/usr/bin/anchorhold", "args": ["attach"]}]"#;
    let report = json(&with_nix(directory.path(), entry, None, &["--json"]));
    assert_eq!(of_nix(&report, "external-builders")["verdict"], "missing", "{:#}", report["nix"]);

    let words = text(&with_nix(directory.path(), "", None, &[]));
    assert!(words.contains("missing  door"), "{words}");

    let refused = json(&with_nix(directory.path(), "sandbox = perhaps\n", None, &["--json"]));
    let found = said(of_nix(&refused, "nix"), "found");
    assert!(found.contains("does not start") && found.contains("sandbox"), "{found}");
    // And none of it is about rooms.
    let works = run(Command::new(anchorhold()).arg("doctor")).status.code();
    assert_eq!(with_nix(directory.path(), "sandbox = perhaps\n", None, &[]).status.code(), works);
}
