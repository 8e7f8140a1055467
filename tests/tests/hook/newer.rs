//! A newer Nix, in the root that `scripts/newer-nix` makes and `ANCHORHOLD_NEWER_NIX` names.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anchorhold_tests::host::is_root;
use anchorhold_tests::room::anchorhold;
use anchorhold_tests::skip;

/// What all scripts begin with. Newer Nixes take words behind the program.
const BEGINNING: &str = r#"
export NIX_CONF_DIR=/tmp/conf XDG_CACHE_HOME=/tmp/cache
mkdir -p $NIX_CONF_DIR /tmp/busybox/bin
cat > $NIX_CONF_DIR/nix.conf <<E
substituters =
substitute = false
experimental-features = nix-command
build-users-group = $group
build-hook = /tmp/anchorhold hook --option network none
E
cp /usr/bin/busybox /tmp/busybox/bin
for applet in sh cat echo env id mkdir sleep; do ln -s busybox /tmp/busybox/bin/$applet; done
export TOOLS=$(nix-store --add /tmp/busybox)
cat > /tmp/thing.nix <<'E'
{ script ? "echo $out; echo hello > $out", name ? "thing", more ? { } }:
let tools = builtins.storePath (builtins.getEnv "TOOLS"); in
derivation ({
  inherit name;
  system = builtins.currentSystem;
  builder = "${tools}/bin/sh";
  PATH = "${tools}/bin";
  args = [ "-c" script ];
} // more)
E
as=
# build STATUS SCRIPT [OPTION...]: the status is the one that is wanted; everything that was said is in /tmp/said.
build() {
    local wanted=$1 script=$2 status=0
    shift 2
    $as nix-build /tmp/thing.nix --no-out-link --argstr script "$script" "$@" > /tmp/said 2>&1 || status=$?
    [ $status = $wanted ] || { echo "status $status instead of $wanted:"; cat /tmp/said; exit 1; }
}
said() {
    grep -qF -- "$1" /tmp/said || { echo "it did not say: $1"; cat /tmp/said; exit 1; }
}
"#;

/// Runs a script in a root with a `/nix` of its own.
#[track_caller]
fn in_newer(group: &str, script: &str) {
    let root = std::env::var_os("ANCHORHOLD_NEWER_NIX").map(PathBuf::from).unwrap_or_default();
    if !root.join("usr/bin/nix").exists() {
        return skip("no newer Nix: scripts/newer-nix make, and ANCHORHOLD_NEWER_NIX set to what it prints");
    }
    if !group.is_empty() && !is_root() {
        return skip("Nix has build users only as root");
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(directory.path().join("nix")).unwrap();
    let bind = |from: &Path, to: &str| format!("{}:{to}", from.display());
    let enter = |script: &str| {
        let mut command = Command::new("../scripts/newer-nix");
        command.args(["--offline", "--directory"]).arg(&root);
        command.args(["--bind", &bind(&directory.path().join("nix"), "/nix")]);
        command.args(["--bind", &bind(&anchorhold(), "/tmp/anchorhold"), "run", "bash", "-euc", script]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.output().unwrap()
    };
    let tried = enter("true");
    if !tried.status.success() {
        return skip(&format!("the newer Nix cannot be entered: {}", String::from_utf8_lossy(&tried.stderr).trim()));
    }
    let output = enter(&format!("group={group}\n{BEGINNING}\n{script}"));
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}:\n{said}\n{complained}", output.status);
}

#[test]
fn builds_failures_and_fixed_outputs() {
    in_newer(
        "",
        r#"
        build 0 'id -u; cat /proc/self/status > $out'
        said "' on 'ssh-ng://localhost"
        said 1000
        grep -q 'NoNewPrivs:.1' $(tail -n 1 /tmp/said)
        ! grep -q "' to 'ssh-ng:" /tmp/said
        nix-store --verify --check-contents 2> /dev/null
        # A newer Nix takes every failure of a hook for the same.
        build 1 'echo the last words; exit 7'
        said 'exit code 7'
        said 'the last words'
        build 1 'sleep 1234' --timeout 1
        said 'timed out'
        build 1 'echo hello > $out' --arg more '{ outputHash = ""; outputHashAlgo = "sha256"; outputHashMode = "flat"; }'
        said 'hash mismatch in fixed-output derivation'
        got=$(sed -n 's/^ *got: *//p' /tmp/said)
        build 0 'echo hello > $out' --arg more "{ outputHash = \"$got\"; outputHashAlgo = \"sha256\"; outputHashMode = \"flat\"; }"
        build 0 'echo a > $out; echo $out > $dev' --argstr name many --arg more '{ outputs = [ "out" "dev" ]; }'
        "#,
    );
}

#[test]
fn an_untrusted_user_with_a_daemon() {
    in_newer(
        "nixbld",
        r#"
        NIX_CONFIG=$'system = anchorhold-only\nextra-platforms =' nix-daemon > /tmp/daemon 2>&1 &
        while [ ! -S /nix/var/nix/daemon-socket/socket ]; do sleep 0.05; done
        mkdir -m 777 /tmp/client
        printf 'experimental-features = nix-command\nsubstitute = false\n' > /tmp/client/nix.conf
        chmod 755 /tmp /tmp/conf
        as="setpriv --reuid alice --regid alice --clear-groups env NIX_REMOTE=daemon NIX_CONF_DIR=/tmp/client XDG_CACHE_HOME=/tmp/client HOME=/tmp/client TMPDIR=/tmp/client"
        build 0 'cat /proc/self/status > $out' --option sandbox false --builders ''
        said "' on 'ssh-ng://localhost"
        grep -q 'NoNewPrivs:.1' $(tail -n 1 /tmp/said)
        build 0 'cat /proc/self/status > $out' --argstr name local -j4 --arg more '{ preferLocalBuild = true; }'
        said "' on 'ssh-ng://localhost"
        "#,
    );
}
