//! Our own room, by `anchorhold run`.

use anchorhold_probe::observation::Launch;
use anchorhold_probe::world::World;

use super::{Ground, Inside, Sandbox, line, text, version_of};

/// A room of one of the profiles.
#[derive(Debug, Default)]
pub struct Room {
    profile: Option<&'static str>,
    options: Vec<String>,
    limited: bool,
}

/// The limits of `room:limited`: far enough away for the battery itself, near enough to be met.
const PROCESSES: u32 = 300;
const DISK: u64 = 32 << 20;

impl Room {
    /// Without limits, but with probes that were told of some: the control of those that look for limits.
    pub fn unlimited() -> Self {
        let options = ["--without", "limits", "--without", "cgroup"].map(str::to_owned);
        Self { options: options.into(), limited: true, ..Self::default() }
    }

    /// With limits.
    pub fn limited() -> Self {
        let options = ["--pids".to_owned(), PROCESSES.to_string(), "--tmpfs-size".to_owned(), DISK.to_string()];
        Self { options: options.into(), limited: true, ..Self::default() }
    }

    /// Of this profile.
    pub fn of(profile: &str) -> Self {
        let profile = ["build", "nested", "fetch", "machines"].into_iter().find(|known| *known == profile);
        Self { profile, ..Self::default() }
    }

    /// With these options.
    pub fn weakened(options: &[&str]) -> Self {
        Self { options: options.iter().map(ToString::to_string).collect(), ..Self::default() }
    }
}

impl Sandbox for Room {
    fn name(&self) -> String {
        match self.profile {
            None if self.limited => "room:limited".into(),
            Some(profile) => format!("room:{profile}"),
            None => "room".into(),
        }
    }

    fn version(&self, ground: &Ground) -> Result<String, String> {
        version_of(&ground.anchorhold, &["--version"])
    }

    fn prepare(&self, _ground: &Ground) -> Result<Inside, String> {
        Ok(Inside::usual())
    }

    fn grant(&self, world: &mut World) {
        let has = |word: &str| self.options.iter().any(|option| option == word);
        world.network_granted = self.profile == Some("fetch") || has("fetch");
        world.namespaces_granted = self.profile == Some("nested") || has("nested");
        world.kvm_granted = has("--kvm");
        if self.limited {
            world.process_limit = Some(PROCESSES);
            world.disk_limit = Some(DISK);
        }
    }

    fn granted(&self) -> &'static [&'static str] {
        // SECURITY.md says so of the profile: user and mount namespaces, and one procfs without covers.
        const NESTED: &[&str] = &[
            "ns.user.unshare",
            "ns.user.clone",
            "ns.user.clone3",
            "ns.user.int80",
            "ns.user.mount",
            "ns.user.overlay",
            "ns.depth",
            "mnt.proc.fresh",
        ];
        if self.profile == Some("nested") { NESTED } else { &[] }
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let mut all = vec![text(&ground.anchorhold), "run".into()];
        if let Some(profile) = self.profile {
            all.extend(["--profile".into(), profile.into()]);
        }
        all.extend(self.options.iter().cloned());
        all.extend(ground.room_options.iter().cloned());
        all.extend([
            "--ro".into(),
            format!("/audit={}", text(&ground.shown)),
            "--tmpfs".into(),
            "/scratch".into(),
            "--".into(),
        ]);
        all.extend(words.iter().cloned());
        // The second name of the input, for the control in which inputs are writable.
        for word in &mut all {
            *word = word.replace("@SHOWN@", &text(&ground.shown));
        }
        Ok(line(all))
    }
}
