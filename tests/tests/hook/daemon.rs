//! A daemon that works for somebody whom it does not trust, with a `/nix` of its own in a mount namespace.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anchorhold_tests::host::is_root;
use anchorhold_tests::recipe::THING;
use anchorhold_tests::room::anchorhold;
use anchorhold_tests::skip;

/// What all scripts begin with. The directory is the shell's own; `alice` is nobody.
const BEGINNING: &str = r#"
unset NIX_REMOTE NIX_PATH NIX_STORE_DIR NIX_STATE_DIR
mkdir nix conf client tools tools/bin tmp
chmod 1777 tmp; chmod 777 client
export TMPDIR=$PWD/tmp
mount --bind nix /nix
cp /usr/bin/busybox tools/bin
for applet in sh cat echo id; do ln -s busybox tools/bin/$applet; done
cat > conf/nix.conf <<E
substituters =
substitute = false
build-users-group =
sandbox = false
build-hook = $PWD/anchorhold-hook
$SETTINGS
E
ln -s $ANCHORHOLD anchorhold-hook
TOOLS=$(NIX_CONF_DIR=$PWD/conf nix-store --add tools)
printf 'substitute = false\n' > client/nix.conf
NIX_CONF_DIR=$PWD/conf NIX_CONFIG="$SERVICE" nix-daemon > daemon.log 2>&1 < /dev/null &
for try in $(seq 400); do [ ! -S /nix/var/nix/daemon-socket/socket ] || break; sleep 0.05; done
alice() {
    setpriv --reuid 65534 --regid 65534 --clear-groups env -i PATH="$PATH" NIX_REMOTE=daemon NIX_CONF_DIR=$PWD/client \
        HOME=$PWD/client XDG_CACHE_HOME=$PWD/client TOOLS=$TOOLS "$@"
}
# What a build does unless it says otherwise.
script='cat /proc/self/status > $out'
# build STATUS NAME [OPTION...]: the status is the one that is wanted; everything that was said is in the file said.
build() {
    local wanted=$1 name=$2 status=0
    shift 2
    alice nix-build thing.nix --no-out-link --argstr name $name --argstr script "$script" "$@" > said 2>&1 || status=$?
    [ $status = $wanted ] || { echo "status $status instead of $wanted:"; cat said daemon.log; exit 1; }
}
# Of a room of ours a build can read this; of one of Nix's, or of none, it cannot.
ours() {
    grep -q 'NoNewPrivs:.1' $(tail -n 1 said) && grep -q "' on 'ssh-ng://localhost" said && return
    echo "not ours: $1"; cat said; exit 1
}
"#;

/// Runs a script with a daemon whose settings and service have these lines.
#[track_caller]
fn with_daemon(settings: &str, service: &str, script: &str) {
    if !is_root() {
        return skip("only root has a daemon");
    }
    if !Path::new("/nix").is_dir()
        || !["/usr/bin/busybox", "/usr/bin/nix-daemon"].iter().all(|it| Path::new(it).exists())
    {
        return skip("no directory /nix to mount on, no busybox (busybox-static), or no Nix (nix-bin)");
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let enter = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]);
        command.args(["bash", "-euc", script]);
        command.env("SETTINGS", settings).env("SERVICE", service).env("ANCHORHOLD", anchorhold());
        command.current_dir(directory.path()).stdin(Stdio::null()).output().unwrap()
    };
    let tried = enter("true");
    if !tried.status.success() {
        return skip(&format!("no namespaces can be had: {}", String::from_utf8_lossy(&tried.stderr).trim()));
    }
    std::fs::write(directory.path().join("thing.nix"), THING).unwrap();
    let output = enter(&format!("{BEGINNING}\n{script}"));
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}:\n{said}\n{complained}", output.status);
}

#[test]
fn an_untrusted_user_s_builds_come_here() {
    with_daemon(
        "",
        "",
        r#"
        build 0 plain
        ours plain
        build 0 unbuilt --builders '' -j4 --option build-hook '' --option sandbox false
        ours unbuilt
        nix-store --verify --check-contents 2> /dev/null
        # A daemon of this age does not tell its clients the class.
        build 1 fails --argstr script 'echo the last words; exit 3'
        grep -q 'the last words' said
        # This is the way around a build hook, and what is written of it is true.
        build 0 local --arg more '{ preferLocalBuild = true; }'
        ! grep "' on 'ssh-ng://localhost" said
        "#,
    );
}

#[test]
fn with_a_system_that_nothing_uses_nothing_leads_around_the_hook() {
    with_daemon(
        "",
        "system = anchorhold-only\nextra-platforms =",
        r#"
        build 0 plain
        ours plain
        build 0 local --arg more '{ preferLocalBuild = true; }' -j4 --builders ''
        ours local
        build 0 demanding --arg more '{ preferLocalBuild = true; }' --option extra-platforms x86_64-linux
        ours demanding
        build 1 plain --check
        grep -q 'is required to build' said
        # Whatever is wrong with the hook, nothing is built then.
        ln -sfn /bin/false anchorhold-hook
        build 1 broken --arg more '{ preferLocalBuild = true; }'
        "#,
    );
}
