//! Our own room, by `anchorhold run`.

use anchorhold_probe::observation::Launch;
use anchorhold_probe::world::World;

use super::{Bound, Ground, Inside, Sandbox, line, text, version_of};

/// A room of one of the profiles.
#[derive(Debug, Default)]
pub struct Room {
    profile: Option<&'static str>,
    options: Vec<String>,
    limits: Limits,
    bound: Option<Bound>,
}

/// What probes are told of limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Limits {
    /// Nothing.
    #[default]
    Untold,
    /// Some, which the room has.
    Kept,
    /// Some, which the room has not.
    Missing,
}

/// The limits of `room:limited`: far enough away for the battery itself, near enough to be met.
const PROCESSES: u32 = 400;
const DISK: u64 = 32 << 20;

/// As many files as fit into a tmpfs of that size: one for each page, and 16,384 more (SECURITY.md).
const FILES: u64 = DISK / 4096 + 16_384;

impl Room {
    /// Without limits, but with probes that were told of some: the control of those that look for limits.
    pub fn unlimited() -> Self {
        let options = ["--without", "limits", "--without", "cgroup"].map(str::to_owned);
        Self { options: options.into(), limits: Limits::Missing, ..Self::default() }
    }

    /// With limits.
    pub fn limited() -> Self {
        let options = ["--pids".to_owned(), PROCESSES.to_string(), "--tmpfs-size".to_owned(), DISK.to_string()];
        Self { options: options.into(), limits: Limits::Kept, ..Self::default() }
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
            None if self.limits == Limits::Kept => "room:limited".into(),
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
        match self.bound {
            Some(bound) => bound.describe(world),
            None if self.limits != Limits::Untold => {
                world.process_limit = Some(PROCESSES);
                world.disk_limit = Some(DISK);
                world.inode_limit = Some(FILES);
            }
            None => {}
        }
    }

    fn bounded(&self, bound: Bound) -> Option<Box<dyn Sandbox>> {
        let (option, value) = match bound {
            Bound::Memory(bytes) => ("--memory", bytes.to_string()),
            Bound::Time(seconds) => ("--timeout", format!("{seconds}s")),
            Bound::Log(bytes) => ("--max-output", bytes.to_string()),
        };
        let options = match self.limits {
            Limits::Untold => return None,
            Limits::Kept => vec![option.to_owned(), value],
            Limits::Missing => self.options.clone(),
        };
        Some(Box::new(Self { options, bound: Some(bound), profile: self.profile, limits: self.limits }))
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
