//! The settings as data: what is allowed, what holds if nothing is said, and what it is for.

use anchorhold_sandbox::layers::network::policy::{Allow, Prefix};
use anchorhold_sandbox::quantity::{Duration, Size};
use toml::Value;

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number from this one on.
    Count(i64),
    /// A whole number from 1 on, or `"auto"`.
    CountOrAuto,
    /// A number above 0, or 0 for no limit.
    Number,
    /// Any text on one line.
    Text,
    /// An absolute path, or nothing.
    Path,
    /// Bytes: a number, or a text such as `"512M"`.
    Size,
    /// Bytes, or a share of the memory such as `"50%"`.
    SizeOrShare,
    /// Seconds: a number, or a text such as `"10m"`.
    Time,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `true` or `"relaxed"`.
    Sandbox,
    /// A list of texts.
    List,
    /// A list of absolute paths.
    Paths,
    /// A list of paths, each `INSIDE`, `INSIDE=OUTSIDE`, and `?` behind it if it may be missing.
    SandboxPaths,
    /// A list of destinations that pasta lets through.
    Destinations,
    /// A list of networks.
    Networks,
    /// A table of texts.
    Map,
}

impl Kind {
    /// What it takes, for people.
    pub fn words(self) -> String {
        match self {
            Self::Bool => "true or false".into(),
            Self::Count(from) => format!("a whole number from {from}"),
            Self::CountOrAuto => "a whole number from 1, or \"auto\"".into(),
            Self::Number => "a number, 0 or more".into(),
            Self::Text => "a text".into(),
            Self::Path => "an absolute path, or \"\"".into(),
            Self::Size => "a size: 4096, \"16K\", \"1.5G\"".into(),
            Self::SizeOrShare => "a size, or a share of the memory: \"50%\"".into(),
            Self::Time => "a time: 30 (seconds), \"10m\", \"2h\"".into(),
            Self::Choice(words) => words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or "),
            Self::Sandbox => "true or \"relaxed\"".into(),
            Self::List => "a list of texts".into(),
            Self::Paths => "a list of absolute paths".into(),
            Self::SandboxPaths => "a list of INSIDE[=OUTSIDE][?]".into(),
            Self::Destinations => "a list of ADDRESS[/PREFIX][:PORT[-PORT]][/tcp|/udp]".into(),
            Self::Networks => "a list of ADDRESS/PREFIX".into(),
            Self::Map => "a table of texts".into(),
        }
    }

    /// Whether `value` is one of its values; says why if not.
    pub fn check(self, value: &Value) -> Result<(), String> {
        let wanted = || Err(format!("wants {}, not {}", self.words(), described(value)));
        match (self, value) {
            (Self::Sandbox, Value::Boolean(false)) => {
                Err("cannot be turned off: a build is never given a weaker room \
                 than it was asked for; \"relaxed\" lets derivations that ask for it with __noChroot run without"
                    .into())
            }
            (Self::Bool, Value::Boolean(_)) | (Self::Sandbox, Value::Boolean(true)) => Ok(()),
            (Self::Count(from), Value::Integer(number)) if *number >= from => Ok(()),
            (Self::CountOrAuto, Value::Integer(1..)) => Ok(()),
            (Self::Number | Self::Size | Self::SizeOrShare | Self::Time, Value::Integer(0..)) => Ok(()),
            (Self::Number, Value::Float(number)) if number.is_finite() && *number >= 0.0 => Ok(()),
            (Self::CountOrAuto, Value::String(text)) if text == "auto" => Ok(()),
            (Self::Sandbox, Value::String(text)) if text == "relaxed" => Ok(()),
            (Self::Choice(words), Value::String(text)) if words.contains(&text.as_str()) => Ok(()),
            (Self::Text, Value::String(text)) => one_line(text),
            (Self::Path, Value::String(text)) if text.is_empty() => Ok(()),
            (Self::Path, Value::String(text)) => absolute(text),
            (Self::Size, Value::String(text)) => match text.parse()? {
                Size::Bytes(_) => Ok(()),
                Size::Share(_) => wanted(),
            },
            (Self::SizeOrShare, Value::String(text)) => text.parse::<Size>().map(drop),
            (Self::Time, Value::String(text)) => text.parse::<Duration>().map(drop),
            (Self::List, Value::Array(items)) => each(items, one_line),
            (Self::Paths, Value::Array(items)) => each(items, absolute),
            (Self::SandboxPaths, Value::Array(items)) => each(items, |text| {
                let text = text.strip_suffix('?').unwrap_or(text);
                let (inside, outside) = text.split_once('=').unwrap_or((text, text));
                absolute(inside).and_then(|()| absolute(outside))
            }),
            (Self::Destinations, Value::Array(items)) => {
                each(items, |text| text.parse::<Allow>().map(drop).map_err(|error| error.to_string()))
            }
            (Self::Networks, Value::Array(items)) => {
                each(items, |text| text.parse::<Prefix>().map(drop).map_err(|error| error.to_string()))
            }
            (Self::Map, Value::Table(table)) => table.iter().try_for_each(|(name, value)| match value {
                Value::String(text) if !text.contains('\0') && !name.is_empty() && !name.contains(['=', '\0']) => {
                    Ok(())
                }
                other => Err(format!("wants a text for each name; ‘{name}’ is {}", described(other))),
            }),
            _ => wanted(),
        }
    }

    /// The value that `text` of the command line stands for. Words of a list are parted by blanks, as in Nix; a table may be
    /// TOML's, too, whose values can have blanks.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::Bool => text.parse().map(Value::Boolean).unwrap_or_else(|_| Value::String(text.into())),
            Self::Sandbox if text == "true" || text == "false" => Value::Boolean(text == "true"),
            Self::Count(_) | Self::CountOrAuto | Self::Size | Self::SizeOrShare | Self::Time => {
                text.parse().map(Value::Integer).unwrap_or_else(|_| Value::String(text.into()))
            }
            Self::Number => text.parse().map(Value::Float).unwrap_or_else(|_| Value::String(text.into())),
            Self::Sandbox | Self::Text | Self::Path | Self::Choice(_) => Value::String(text.into()),
            Self::List | Self::Paths | Self::SandboxPaths | Self::Destinations | Self::Networks => {
                Value::Array(text.split_whitespace().map(|word| Value::String(word.into())).collect())
            }
            // As in a file, for values with blanks.
            Self::Map if text.trim_start().starts_with('{') => {
                let mut read: Result<toml::Table, _> = toml::from_str(&format!("map = {text}"));
                match read.as_mut().map(|table| table.remove("map")) {
                    Ok(Some(value)) => value,
                    _ => {
                        return Err("wants NAME=VALUE …, or a table of TOML on one line: { NAME = \"a value\" }".into());
                    }
                }
            }
            Self::Map => {
                let mut table = toml::Table::new();
                for word in text.split_whitespace() {
                    let (name, value) = word.split_once('=').ok_or_else(|| format!("‘{word}’ is not NAME=VALUE"))?;
                    table.insert(name.into(), Value::String(value.into()));
                }
                Value::Table(table)
            }
        };
        self.check(&value).map(|()| value)
    }
}

fn described(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the text {text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(truth) => truth.to_string(),
        Value::Array(_) => "a list".into(),
        Value::Table(_) => "a table".into(),
        Value::Datetime(_) => "a date".into(),
    }
}

fn each(items: &[Value], check: impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    items.iter().try_for_each(|item| match item {
        Value::String(text) => check(text),
        other => Err(format!("wants texts in its list, not {}", described(other))),
    })
}

fn one_line(text: &str) -> Result<(), String> {
    if text.contains(char::is_control) { Err(format!("{text:?} holds a control character")) } else { Ok(()) }
}

fn absolute(text: &str) -> Result<(), String> {
    one_line(text)?;
    if text.starts_with('/') && !text.split('/').any(|part| part == "..") {
        Ok(())
    } else {
        Err(format!("{text:?} is no absolute path without ‘..’"))
    }
}

/// What holds if nothing is said.
#[derive(Debug, Clone, Copy)]
pub enum Default {
    /// This, in TOML.
    Is(&'static str),
    /// What the machine is, and how that is described.
    OfMachine(fn() -> Value, &'static str),
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Nix's own name if Nix has it.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds if nothing is said.
    pub default: Default,
    /// One line.
    pub description: &'static str,
    /// The part of the program that obeys it.
    pub part: &'static str,
}

impl Setting {
    /// What holds if nothing is said.
    pub fn default_value(&self) -> Value {
        match self.default {
            // The table is checked by a test; an empty text would be refused where the value is used.
            Default::Is(text) => parse_toml(text).unwrap_or(Value::String(String::new())),
            Default::OfMachine(value, _) => value(),
        }
    }
}

/// A value as it is written in a file.
pub(super) fn parse_toml(text: &str) -> Option<Value> {
    let mut table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    table.remove("value")
}

fn this_system() -> Value {
    Value::String(format!("{}-linux", std::env::consts::ARCH))
}

fn platforms() -> Value {
    let extra: &[&str] = if cfg!(target_arch = "x86_64") { &["i686-linux"] } else { &[] };
    Value::Array(extra.iter().map(|name| Value::String((*name).into())).collect())
}

/// The setting with this name.
pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

const fn setting(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    part: &'static str,
    description: &'static str,
) -> Setting {
    Setting { name, kind, default: Default::Is(default), description, part }
}

/// All settings, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    setting(
        "store",
        Kind::Path,
        "\"\"",
        "store",
        "The root of the embedded store; without one it is in the person's state directory.",
    ),
    setting(
        "max-jobs",
        Kind::CountOrAuto,
        "1",
        "build",
        "How many builds run at once; `auto` is one for each processor.",
    ),
    setting("cores", Kind::Count(0), "0", "build", "`NIX_BUILD_CORES` of a build; 0 is all processors."),
    setting(
        "keep-going",
        Kind::Bool,
        "false",
        "build",
        "After a failure, go on with what does not need the failed build.",
    ),
    setting("keep-failed", Kind::Bool, "false", "build", "Keep the build directory of a failed build, for the caller."),
    setting("timeout", Kind::Time, "0", "build", "The longest time that a build may run; 0 is no limit."),
    setting(
        "max-silent-time",
        Kind::Time,
        "0",
        "build",
        "The longest time that a build may write nothing; 0 is no limit.",
    ),
    setting(
        "max-build-log-size",
        Kind::Size,
        "0",
        "build",
        "The most that a build may write to its log; 0 is no limit.",
    ),
    setting("log-lines", Kind::Count(0), "10", "build", "How many of a log's last lines a failure shows."),
    Setting {
        name: "system",
        kind: Kind::Text,
        default: Default::OfMachine(this_system, "this machine's"),
        part: "build",
        description: "The system that this machine builds for.",
    },
    Setting {
        name: "extra-platforms",
        kind: Kind::List,
        default: Default::OfMachine(platforms, "`[\"i686-linux\"]` on x86_64"),
        part: "build",
        description: "Other systems that this machine builds for.",
    },
    setting(
        "system-features",
        Kind::List,
        "[\"benchmark\", \"big-parallel\", \"kvm\", \"linux-vm\", \"nested-sandbox\", \"nixos-test\", \"windows-vm\"]",
        "build",
        "What builds may require of this machine; those that require `kvm` are granted `/dev/kvm` (the word counts only where the device is usable), those that require `linux-vm` run in a Linux machine of their own (where there are QEMU, a kernel and the agent), those that require `windows-vm` in a guest beside a controller (where `vm-guest` names one), those that require `nested-sandbox` may make sandboxes themselves.",
    ),
    setting(
        "sandbox",
        Kind::Sandbox,
        "true",
        "room",
        "`true`: every build is in its room. `\"relaxed\"`: those with `__noChroot` are not.",
    ),
    setting(
        "sandbox-paths",
        Kind::SandboxPaths,
        "[\"/bin/sh=/bin/busybox?\"]",
        "room",
        "Paths of the host that every build is shown, read-only.",
    ),
    setting("extra-sandbox-paths", Kind::SandboxPaths, "[]", "room", "More of them: added to `sandbox-paths`."),
    setting("sandbox-build-dir", Kind::Path, "\"/build\"", "room", "The build directory inside the room."),
    setting("sandbox-dev-shm-size", Kind::SizeOrShare, "\"50%\"", "room", "The bound of `/dev/shm` in the room."),
    setting(
        "build-dir",
        Kind::Path,
        "\"\"",
        "room",
        "Where build directories are made on the host; without one they are beside the store.",
    ),
    setting(
        "build-users-group",
        Kind::Text,
        "\"\"",
        "room",
        "The group whose members builds run as; without one each room has an id of its own.",
    ),
    setting("memory", Kind::SizeOrShare, "0", "room", "The most memory of a build's room; 0 is no limit."),
    setting("pids", Kind::Count(0), "0", "room", "The most processes and threads of a build's room; 0 is no limit."),
    setting("cpu", Kind::Number, "0", "room", "The processors' worth of time of a build's room; 0 is no limit."),
    setting(
        "network",
        Kind::Choice(&["pasta", "none"]),
        "\"pasta\"",
        "room",
        "How fixed-output builds reach the network; other builds never do.",
    ),
    setting(
        "network-allow",
        Kind::Destinations,
        "[]",
        "room",
        "Private destinations that fixed-output builds may reach.",
    ),
    setting("network-refuse", Kind::Networks, "[]", "room", "More networks that fixed-output builds may not reach."),
    setting(
        "network-only-allowed",
        Kind::Bool,
        "false",
        "room",
        "Fixed-output builds reach nothing but `network-allow`.",
    ),
    setting(
        "impure-env",
        Kind::Map,
        "{}",
        "build",
        "Variables that `impureEnvVars` of fixed-output builds takes before those of the caller.",
    ),
    setting(
        "pre-build-hook",
        Kind::Path,
        "\"\"",
        "build",
        "A program that is run before a build and can add to its paths.",
    ),
    setting("post-build-hook", Kind::Path, "\"\"", "build", "A program that is run after a build that succeeded."),
    setting("require-sigs", Kind::Bool, "true", "store", "Take foreign paths only with a signature of a trusted key."),
    setting("trusted-public-keys", Kind::List, "[]", "store", "The keys that are trusted, each `NAME:BASE64`."),
    setting(
        "trusted-users",
        Kind::List,
        "[\"root\"]",
        "store",
        "Who is believed by `store-server` without signatures: users, `@` and a group, or `*`.",
    ),
    setting("allowed-users", Kind::List, "[\"*\"]", "store", "Who may connect to `store-server`, in the same words."),
    setting(
        "stalled-client-timeout",
        Kind::Time,
        "\"15m\"",
        "store",
        "How long a client of `store-server` may take nothing of what it is sent before it counts as gone; 0 is for ever.",
    ),
    setting("secret-key-files", Kind::Paths, "[]", "store", "Files with keys that outputs are signed with."),
    setting("auto-optimise-store", Kind::Bool, "false", "store", "Hard-link equal files of new outputs at once."),
    setting("min-free", Kind::Size, "0", "store", "Collect garbage during builds when less is free; 0 is never."),
    setting("max-free", Kind::Size, "0", "store", "Stop collecting when so much is free; 0 is to collect all."),
    setting("keep-derivations", Kind::Bool, "true", "store", "Outputs keep the derivations that made them."),
    setting("keep-outputs", Kind::Bool, "false", "store", "Derivations keep their outputs."),
    setting(
        "accel",
        Kind::Choice(&["auto", "kvm", "tcg"]),
        "\"auto\"",
        "machines",
        "What runs virtual machines: the kernel's KVM, slow emulation, or what is there; the result names it.",
    ),
    setting(
        "vm-qemu",
        Kind::Path,
        "\"\"",
        "machines",
        "The QEMU of virtual machines; without one it is looked for in PATH.",
    ),
    setting(
        "vm-kernel",
        Kind::Path,
        "\"\"",
        "machines",
        "The kernel of Linux machines: a file, or a folder as `scripts/guest-kernel` makes it; without one that folder's own place is looked at, then `/boot`.",
    ),
    setting(
        "vm-agent",
        Kind::Path,
        "\"\"",
        "machines",
        "The first process of guests, a static program; without one it is `anchorhold-agent` beside this program.",
    ),
    setting(
        "vm-memory",
        Kind::Size,
        "\"1G\"",
        "machines",
        "The memory of a virtual machine that does not ask for other.",
    ),
    setting(
        "vm-cache",
        Kind::Path,
        "\"\"",
        "machines",
        "Where installed disks and saved machines are kept, a directory of yours alone; without one `anchorhold/stages` in the cache directory (of root, `/var/cache/anchorhold/stages`).",
    ),
    setting(
        "vm-guest",
        Kind::Text,
        "\"\"",
        "machines",
        "The guest of builds that require `windows-vm` and name no other by `vmImage`: `standin`, `windows`, or one of the folder's own; without one there are no such builds here.",
    ),
    setting(
        "vm-images",
        Kind::Path,
        "\"\"",
        "machines",
        "The folder with the images of guests and of their controller; without one it is where `scripts/guest-images` puts it.",
    ),
    setting(
        "vm-topology",
        Kind::Choice(&["pair", "direct"]),
        "\"pair\"",
        "machines",
        "Who gives guests their drives: a controller, a second machine beside them, or Samba beside QEMU itself. A build sees no difference.",
    ),
    setting(
        "vm-wire",
        Kind::Choice(&["dgram", "vde"]),
        "\"dgram\"",
        "machines",
        "What is between a guest and its controller: a pair of sockets that both inherit, or a `vde_switch` in their room.",
    ),
    setting(
        "vm-store",
        Kind::Choice(&["auto", "image", "virtiofs", "9p"]),
        "\"auto\"",
        "machines",
        "How a Linux machine reads the inputs of its build: from an image that is made of them, by virtiofs, by 9p, or by the fastest that can be had here. A build sees no difference.",
    ),
    setting(
        "vm-store-cache",
        Kind::Choice(&["auto", "loose", "none", "always", "metadata", "never"]),
        "\"auto\"",
        "machines",
        "What a Linux machine, or a controller, keeps of the inputs that it has read: by 9p all (`loose`) or nothing (`none`), by virtiofs all (`always`), names and no contents (`metadata`) or nothing (`never`). `auto`, and words of the other way, keep all.",
    ),
    setting(
        "vm-clock",
        Kind::Choice(&["now", "2010"]),
        "\"now\"",
        "machines",
        "What the clocks of machines show to a build: the host's time, or one that begins on the first of January 2010 and goes on where a saved guest's stood. What is written to the host by 9p has the host's time in any case, and programs that compare the times of files, as configure and make do, want one clock.",
    ),
    setting(
        "vm-save",
        Kind::Bool,
        "false",
        "machines",
        "Whether a build in a guest that is not saved yet saves it first, as `anchorhold vm build` does; builds that want the same machines then revive it.",
    ),
    setting(
        "vm-exchange",
        Kind::Size,
        "\"1G\"",
        "machines",
        "How much a guest can put into the exchange beside its build directory and its outputs; it lies in memory.",
    ),
];
