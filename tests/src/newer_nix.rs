//! A newer Nix than this machine's, in the root that `scripts/newer-nix` makes.
//!
//! `ANCHORHOLD_NEWER_NIX` names that root; where it is not set or not there, tests are skipped. Each test has a `/nix` of its
//! own there, and what runs in the root ends with the script that was started in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::host::is_root;
use crate::recipe::THING;
use crate::room::anchorhold;
use crate::skip;

/// What all scripts begin with after `settings`, `features` and `group` are set: settings, a store with tools, and builds of an
/// expression that needs nothing else.
const BEGINNING: &str = r#"
export NIX_CONF_DIR=/tmp/conf XDG_CACHE_HOME=/tmp/cache
mkdir -p $NIX_CONF_DIR /tmp/busybox/bin
cat > $NIX_CONF_DIR/nix.conf <<E
substituters =
substitute = false
experimental-features = nix-command $features
build-users-group = $group
$settings
E
cp /usr/bin/busybox /tmp/busybox/bin
for applet in sh cat echo env head id ls mkdir sed sleep; do ln -s busybox /tmp/busybox/bin/$applet; done
export TOOLS=$(nix-store --add /tmp/busybox)
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
# What was killed needs a moment to be gone.
nobody_sleeps() {
    for try in $(seq 600); do
        [ "$(busybox ps -o comm | grep -cx sleep || true)" != 0 ] || return 0
        busybox usleep 100000
    done
    busybox ps -o pid,comm
    return 1
}
"#;

/// Where the Nix keeps its store for a test, and how it is set up.
pub struct NewerNix {
    directory: tempfile::TempDir,
    root: PathBuf,
    group: &'static str,
    features: String,
    settings: String,
}

impl NewerNix {
    /// A Nix with these build users and settings, or why there is none. Of `group`, the empty name stands for no build users.
    ///
    /// # Errors
    /// In words, what is missing on this machine.
    pub fn new(group: &'static str, features: &str, settings: &str) -> Result<Self, String> {
        let root = std::env::var_os("ANCHORHOLD_NEWER_NIX").map(PathBuf::from).unwrap_or_default();
        if !root.join("etc/newer-nix-edition").exists() {
            return Err(
                "no newer Nix: scripts/newer-nix make, and ANCHORHOLD_NEWER_NIX set to what it prints".to_owned()
            );
        }
        if !group.is_empty() && !is_root() {
            return Err("Nix has build users only as root".to_owned());
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(directory.path().join("nix")).unwrap();
        let made = Self { directory, root, group, features: features.to_owned(), settings: settings.to_owned() };
        let tried = made.enter("true").output().unwrap();
        if !tried.status.success() {
            let why = String::from_utf8_lossy(&tried.stderr).into_owned();
            return Err(format!("the root of the newer Nix cannot be entered: {}", why.trim()));
        }
        Ok(made)
    }

    fn enter(&self, script: &str) -> Command {
        let bind = |from: &Path, to: &str| format!("{}:{to}", from.display());
        let mut command = Command::new("../scripts/newer-nix");
        command.args(["--offline", "--directory"]).arg(&self.root);
        command.args(["--bind", &bind(&self.directory.path().join("nix"), "/nix")]);
        let probe = anchorhold().with_file_name("anchorhold-probe");
        if probe.exists() {
            command.args(["--bind", &bind(&probe, "/tmp/anchorhold-probe")]);
        }
        command.args(["--bind", &bind(&anchorhold(), "/tmp/anchorhold"), "run", "bash", "-euc", script]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a script that must succeed; what it printed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let whole = format!(
            "group={} features='{}' settings=$(cat <<'E'\n{}\nE\n)\n{BEGINNING}\ncat > /tmp/thing.nix <<'E'{THING}E\n{script}",
            self.group, self.features, self.settings
        );
        let output = self.enter(&whole).output().unwrap();
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}:\n{said}\n{complained}", output.status);
        said.into_owned()
    }
}

/// Runs a script in a root of its own, if there is one.
#[track_caller]
pub fn in_newer_nix(group: &'static str, features: &str, settings: &str, script: &str) {
    match NewerNix::new(group, features, settings) {
        Ok(nix) => drop(nix.run(script)),
        Err(reason) => skip(&reason),
    }
}

/// The groups of build users that whoever runs the tests can have. The empty name is that of none.
pub fn groups() -> &'static [&'static str] {
    if is_root() { &["", "nixbld"] } else { &[""] }
}
