//! `anchorhold vm` with a cache, images and an agent.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anchorhold_tests::room::anchorhold;
use serde_json::Value;
use tempfile::TempDir;

pub struct World {
    pub place: TempDir,
    pub cache: PathBuf,
    /// Who serves the guests.
    pub topology: &'static str,
    images: PathBuf,
    agent: PathBuf,
    program: PathBuf,
    /// Somebody else than who runs the tests, who must be root then.
    user: Option<u32>,
}

/// The ordinary user that every host has.
const NOBODY: u32 = 65534;

impl World {
    /// With stages that earlier tests may have made. Says why and gives nothing where there can be none.
    pub fn new() -> Option<Self> {
        Self::find(None)
    }

    /// With an empty cache.
    pub fn empty() -> Option<Self> {
        Self::find(Some("cache"))
    }

    /// With somebody else's cache.
    pub fn of(cache: &Path) -> Option<Self> {
        Self::find(None).map(|world| Self { cache: cache.to_owned(), ..world })
    }

    /// With guests that are served in this way.
    #[must_use]
    pub fn with(self, topology: &'static str) -> Option<Self> {
        if topology == "direct" && !["/usr/sbin/smbd", "/usr/bin/ssh"].iter().all(|path| Path::new(path).exists()) {
            anchorhold_tests::skip("there is no smbd or no ssh here");
            return None;
        }
        Some(Self { topology, ..self })
    }

    /// As an ordinary user, with an empty cache of his own.
    pub fn of_nobody() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            anchorhold_tests::skip("only root becomes somebody else; these tests are an ordinary user's already");
            return None;
        }
        let world = Self::empty()?;
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        // Where he can walk to it.
        let program = world.place.path().join("anchorhold");
        fs::copy(anchorhold(), &program).unwrap();
        open(world.place.path());
        open(&world.agent);
        let home = world.place.path().join("home");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
        let cache = home.join("cache");
        Some(Self { program, cache, user: Some(NOBODY), ..world })
    }

    fn find(own: Option<&str>) -> Option<Self> {
        let skip = |why: &str| {
            anchorhold_tests::skip(why);
            None
        };
        if std::env::var_os("ANCHORHOLD_HEAVY_TESTS").is_none() {
            return skip("ANCHORHOLD_HEAVY_TESTS is not set: a pair of machines takes half a minute");
        }
        if Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err() {
            return skip("no qemu-system-x86_64 here");
        }
        let named = std::env::var_os("ANCHORHOLD_GUEST_IMAGES").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/anchorhold/guest-images"));
        let places = named.into_iter().chain(home).chain(["/var/cache/anchorhold/guest-images".into()]);
        let Some(images) = places.into_iter().find(|place| place.join("installer.erofs").is_file()) else {
            return skip("no media here: scripts/guest-images makes them");
        };
        let built = anchorhold().with_file_name("anchorhold-agent");
        if !built.is_file() {
            return skip("the agent is not built: cargo build -p anchorhold-agent");
        }
        let place = tempfile::tempdir().unwrap();
        let agent = place.path().join("agent");
        // A debug build's agent is mostly about itself, more than a small guest has room for.
        let stripped = Command::new("strip").arg("-o").arg(&agent).arg(&built).status();
        if !stripped.is_ok_and(|status| status.success()) {
            return skip("strip, of binutils, does not run");
        }
        let of_user = || std::env::temp_dir().join(format!("anchorhold-test-stages-{}", nix::unistd::geteuid()));
        let cache = own.map_or_else(of_user, |own| place.path().join(own));
        Some(Self { place, cache, topology: "pair", images, agent, program: anchorhold(), user: None })
    }

    /// `anchorhold vm WORDS` with the settings of this world.
    pub fn vm<T: AsRef<OsStr>>(&self, words: &[T]) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(user) = self.user {
            let home = self.place.path().join("home");
            command.uid(user).gid(user).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", &home).current_dir(&home);
        }
        command.arg("vm").arg(&words[0]);
        if !["export", "import", "list", "prune"].iter().any(|word| words[0].as_ref() == *word) {
            command.args(["--option", "vm-topology", self.topology]);
        }
        for (name, value) in [("vm-cache", &self.cache), ("vm-images", &self.images), ("vm-agent", &self.agent)] {
            command.args(["--option", name]).arg(value);
        }
        command.args(["--option", "accel", "tcg"]).args(&words[1..]).stdin(Stdio::null());
        command
    }

    pub fn run<T: AsRef<OsStr>>(&self, words: &[T]) -> Output {
        self.vm(words).output().unwrap()
    }

    /// The same, which must go well; the first line of its output.
    #[track_caller]
    pub fn must<T: AsRef<OsStr>>(&self, words: &[T]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().next().unwrap_or_default().to_owned()
    }

    /// What `vm list --json` says.
    #[track_caller]
    pub fn list(&self) -> Value {
        serde_json::from_str(&self.must(&["list", "--json"])).unwrap()
    }

    /// How many machines have something of this world's cache.
    pub fn machines(&self) -> usize {
        let cache = self.cache.to_string_lossy().into_owned();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|process| {
                let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line);
                line.contains("qemu-system") && line.contains(&cache)
            })
            .count()
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
