//! The service files, judged by what will read them: systemd, Nix and sshd.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anchorhold_tests::skip;
use serde_json::{Value, json};

fn services() -> PathBuf {
    PathBuf::from("../services")
}

/// What a program says; `None`, after saying so, where there is none.
fn run(command: &mut Command) -> Option<Output> {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(error) => {
            skip(&format!("{}: {error}", command.get_program().display()));
            None
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The directives of a unit's section; what is said more than once is a list.
fn directives(unit: &str, section: &str) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(services().join("systemd").join(unit)).expect("the unit");
    let mut here = false;
    let mut found: BTreeMap<String, Value> = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            here = name == format!("{section}]");
        } else if here {
            let (name, value) = line.split_once('=').expect("NAME=VALUE");
            let both = match found.remove(name) {
                None => json!(value),
                Some(Value::Array(mut all)) => {
                    all.push(json!(value));
                    Value::Array(all)
                }
                Some(one) => json!([one, value]),
            };
            found.insert(name.to_owned(), both);
        }
    }
    assert!(!found.is_empty(), "{unit} has a section {section}");
    found
}

/// The units in a directory of their own, with a program that is there.
fn units(directory: &Path, change: impl Fn(&str) -> String) {
    for name in ["anchorhold-store.service", "anchorhold-store.socket"] {
        let text = fs::read_to_string(services().join("systemd").join(name)).expect("the unit");
        fs::write(directory.join(name), change(&text).replace("/usr/bin/anchorhold", "/bin/true")).expect("a copy");
    }
}

#[test]
fn systemd_takes_the_units() {
    let verify = |change: &dyn Fn(&str) -> String| {
        let directory = tempfile::tempdir().expect("a directory");
        units(directory.path(), change);
        let mut command = Command::new("systemd-analyze");
        command
            .arg("verify")
            .args(["anchorhold-store.service", "anchorhold-store.socket"].map(|name| directory.path().join(name)));
        run(command.env("SYSTEMD_LOG_LEVEL", "warning"))
    };
    let Some(good) = verify(&|text| text.to_owned()) else { return };
    // It wants a run directory of systemd's own, which chroots and some containers do not let it have.
    let about_us = |output: &Output| stderr(output).lines().filter(|line| line.contains("anchorhold-store")).count();
    if !good.status.success() && about_us(&good) == 0 {
        skip(&format!("systemd-analyze verify: {}", stderr(&good).trim()));
        return;
    }
    assert!(good.status.success(), "{}", stderr(&good));
    assert_eq!(about_us(&good), 0, "{}", stderr(&good));
    // The other side: it does look.
    let bad = verify(&|text| text.replace("KillMode=mixed", "KillMode=gentle")).expect("it ran before");
    assert!(stderr(&bad).contains("KillMode") || stderr(&bad).contains("kill mode"), "{}", stderr(&bad));
}

#[test]
fn the_service_can_do_no_more_than_rooms_need() {
    let directory = tempfile::tempdir().expect("a directory");
    units(directory.path(), str::to_owned);
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--json=short"]).arg(directory.path().join("anchorhold-store.service"));
    let Some(output) = run(&mut command) else { return };
    let Ok(Value::Array(rows)) = serde_json::from_slice(&output.stdout) else {
        skip(&format!("systemd-analyze security: {}", stderr(&output).trim()));
        return;
    };
    let good = |field: &str| {
        let row = rows.iter().find(|row| row["json_field"] == field).unwrap_or_else(|| panic!("no {field}"));
        row["set"].clone()
    };
    for field in [
        "NoNewPrivileges",
        "PrivateTmp",
        "ProtectHome",
        "ProtectSystem",
        "CapabilityBoundingSet_CAP_SYS_MODULE",
        "CapabilityBoundingSet_CAP_NET_ADMIN",
        "CapabilityBoundingSet_CAP_SYS_RAWIO",
        "CapabilityBoundingSet_CAP_MKNOD",
        "AmbientCapabilities",
    ] {
        assert_eq!(good(field), true, "{field}");
    }
    // And what rooms need is left to them.
    for field in ["RestrictNamespaces_user", "ProtectKernelTunables", "ProtectHostname", "PrivateUsers"] {
        assert_eq!(good(field), false, "{field}");
    }
}

/// The module's configuration with these options, as far as the stub beside this file goes.
fn module(given: &str) -> Option<Result<Value, String>> {
    let at = |path: PathBuf| fs::canonicalize(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (stub, module) = (at("tests/services/module.nix".into()), at(services().join("nixos/anchorhold.nix")));
    let state = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("nix-instantiate");
    command.args(["--eval", "--strict", "--json", "--readonly-mode"]).arg(stub);
    command.args(["--arg", "module", &module.display().to_string(), "--arg", "given", given]);
    command.env("NIX_CONFIG", "substituters =\nbuild-users-group =").env("HOME", state.path());
    // No store is written, and that of this machine need not be there.
    command.env("NIX_STATE_DIR", state.path().join("state")).env("NIX_REMOTE", state.path());
    let output = run(&mut command)?;
    Some(if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).expect("JSON"))
    } else {
        Err(stderr(&output))
    })
}

#[test]
fn the_nixos_module_has_the_units_of_the_files() {
    let given = r#"{ enable = true; package = "/usr"; storeServer.enable = true; }"#;
    let Some(configuration) = module(given) else { return };
    let configuration = configuration.unwrap_or_else(|error| panic!("{error}"));
    let systemd = &configuration["systemd"];
    let same =
        |found: &Value, unit: &str, section: &str| assert_eq!(*found, json!(directives(unit, section)), "{unit}");
    same(&systemd["services"]["anchorhold-store"]["serviceConfig"], "anchorhold-store.service", "Service");
    same(&systemd["sockets"]["anchorhold-store"]["socketConfig"], "anchorhold-store.socket", "Socket");
}

#[test]
fn the_nixos_module_opens_the_doors_that_are_asked_for() {
    let with = |options: &str| module(&format!(r#"{{ enable = true; package = "/p"; {options} }}"#));
    let Some(attach) = with("attach.enable = true;") else { return };
    let attach = attach.unwrap_or_else(|error| panic!("{error}"));
    let settings = &attach["nix"]["settings"];
    let entries: Value = serde_json::from_str(settings["external-builders"].as_str().expect("a text")).expect("JSON");
    let expected =
        json!([{"systems": ["x86_64-linux", "i686-linux"], "program": "/p/bin/anchorhold", "args": ["attach"]}]);
    assert_eq!(entries, expected);
    assert_eq!(settings["extra-platforms"], json!(["i686-linux"]), "nothing is left for Nix's own sandbox");

    let hook = with("hook.enable = true; settings.memory = \"8G\";")
        .expect("it ran before")
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(hook["nix"]["settings"]["build-hook"], json!(["/p/bin/anchorhold", "hook"]));
    let daemon = &hook["systemd"]["services"]["nix-daemon"]["environment"]["NIX_CONFIG"];
    assert_eq!(*daemon, "system = hook-only\nextra-platforms =");
    let both = with("hook.enable = true; attach.enable = true;")
        .expect("it ran before")
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(both["assertions"][0]["assertion"], false);

    let ssh = with("ssh = { enable = true; trusted = false; authorizedKeys = [ \"ssh-ed25519 AAAA\" ]; };");
    let ssh = ssh.expect("it ran before").unwrap_or_else(|error| panic!("{error}"));
    let lines = |text: &str| {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let block = ssh["services"]["openssh"]["extraConfig"].as_str().expect("a text");
    let file = fs::read_to_string(services().join("ssh/sshd_config")).expect("the file");
    let file = file.replace("/usr/bin/anchorhold store-server", "/p/bin/anchorhold store-server --untrusted");
    assert_eq!(lines(block), lines(&file));
    assert!(with("nonsense = true;").expect("it ran before").is_err_and(|error| error.contains("nonsense")));
}

#[test]
fn sshd_takes_the_block() {
    let directory = tempfile::tempdir().expect("a directory");
    let key = directory.path().join("key");
    let Some(_) = run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)) else {
        return;
    };
    let mut command = Command::new("/usr/sbin/sshd");
    command
        .args(["-T", "-C", "user=anchorhold-builder,host=h,addr=192.0.2.1", "-f"])
        .arg(services().join("ssh/sshd_config"));
    let Some(output) = run(command.arg("-h").arg(&key)) else { return };
    if stderr(&output).contains("rivilege separation") {
        skip(&format!("sshd: {}", stderr(&output).trim()));
        return;
    }
    let said = String::from_utf8_lossy(&output.stdout).to_lowercase();
    assert!(output.status.success(), "{}", stderr(&output));
    for line in
        ["forcecommand /usr/bin/anchorhold store-server", "disableforwarding yes", "permittty no", "permituserrc no"]
    {
        assert!(said.lines().any(|one| one == line), "{line} in {said}");
    }
}
