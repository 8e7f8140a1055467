//! `anchorhold vm list|install|suspend|revive|ssh|prune`: the stages of guests.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anchorhold::config::settings::Settings;
use anchorhold::machines::stages::{self, Listener, Missing, Registry, Revival, Stages, Why};
use anchorhold_sandbox::outcome::End;
use anchorhold_sandbox::quantity::{Duration, Size};
use anchorhold_sandbox::room::Limits;
use anchorhold_vmm::failure::Failure;
use anchorhold_vmm::spec::Clock;
use anchorhold_vmm::stages::{Cache, Entry, Stage};
use clap::Args;
use serde_json::json;

use super::super::complain;
use super::super::config::ConfigOptions;
use super::super::run::OwnStreams;
use super::{Refused, not_started};

#[derive(Debug, Args)]
pub(super) struct GuestOptions {
    #[command(flatten)]
    config: ConfigOptions,

    /// Which guest
    #[arg(long, value_name = "NAME", default_value = "standin", help_heading = "Machine")]
    guest: String,

    /// Memory of the guest [default: the setting vm-memory]
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    memory: Option<Size>,

    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Machine")]
    cores: u32,

    /// Give a share another letter, as Y:=xchg
    #[arg(long, value_name = "LETTER=SHARE", help_heading = "Machine")]
    drive: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct MakeOptions {
    #[command(flatten)]
    guest: GuestOptions,

    /// Make it again though it is there
    #[arg(long)]
    again: bool,
}

#[derive(Debug, Args)]
pub(super) struct ReviveOptions {
    #[command(flatten)]
    guest: GuestOptions,

    /// Make nothing: without a saved pair for exactly this, say what differs
    #[arg(long)]
    only_saved: bool,

    /// Show this directory to the guest on the drive of the store, read-only
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    store: Option<PathBuf>,

    /// The directory behind the guest's exchange, writable for the room's user [default: memory]
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    exchange: Option<PathBuf>,

    /// The current directory in the guest
    #[arg(long, value_name = "PATH", default_value = "/", help_heading = "Files")]
    cwd: PathBuf,

    /// Set a variable
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Process")]
    env: Vec<OsString>,

    /// Set the guest's clock to now; else it goes on where it was saved, in 2010
    #[arg(long, help_heading = "Process")]
    now: bool,

    /// End the machines after this time
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    timeout: Option<Duration>,

    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct ListOptions {
    #[command(flatten)]
    config: ConfigOptions,

    /// Print one object as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PruneOptions {
    #[command(flatten)]
    config: ConfigOptions,

    /// Remove every stage, not only those that newer ones have replaced
    #[arg(long, conflicts_with = "names")]
    all: bool,

    /// Stages to remove, by their names or the beginning of these
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct ExportOptions {
    #[command(flatten)]
    config: ConfigOptions,

    /// The stage, by its name or the beginning of it
    #[arg(value_name = "NAME")]
    name: String,

    /// The file; it is made anew
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ImportOptions {
    #[command(flatten)]
    config: ConfigOptions,

    /// A file of `vm export`
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(super) fn export(options: &ExportOptions) -> Result<i32, Refused> {
    let cache = Cache::open(&stages::cache_root(&settings(&options.config)?)).map_err(not_started)?;
    let name = one_of(&names(&cache)?, &options.name)?;
    let entry = cache.entry(&name).map_err(failed)?;
    let _in_use = cache.uses(&entry).map_err(failed)?;
    cache.export(&entry, &options.file).map_err(failed)?;
    println!("{name}");
    Ok(0)
}

pub(super) fn import(options: &ImportOptions) -> Result<i32, Refused> {
    let cache = Cache::open(&stages::cache_root(&settings(&options.config)?)).map_err(not_started)?;
    println!("{}", cache.import(&options.file).map_err(failed)?.directory.display());
    Ok(0)
}

/// The names of all stages that are there, whatever is in them.
fn names(cache: &Cache) -> Result<Vec<String>, Refused> {
    let entries = std::fs::read_dir(cache.root()).map_err(not_started)?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_stage = |name: &String| Stage::ALL.iter().any(|stage| name.starts_with(&format!("{}-", stage.name())));
    Ok(names.filter(is_stage).collect())
}

/// The one that begins like this.
fn one_of(names: &[String], wanted: &str) -> Result<String, Refused> {
    let mut found = names.iter().filter(|name| name.starts_with(wanted));
    match (found.next(), found.next()) {
        (Some(name), None) => Ok(name.clone()),
        (None, _) => Err(not_started(format_args!("there is no stage {wanted}"))),
        _ => Err(not_started(format_args!("several stages begin with {wanted}"))),
    }
}

fn settings(config: &ConfigOptions) -> Result<Settings, Refused> {
    Ok(config.load().map_err(not_started)?.settings())
}

impl GuestOptions {
    fn stages(&self) -> Result<Stages, Refused> {
        let memory = self.memory.as_ref().map(|size| size.bytes(0) >> 20);
        let stages = Stages::open(&settings(&self.config)?, &self.guest, memory, self.cores).map_err(not_started)?;
        if self.drive.is_empty() {
            return Ok(stages);
        }
        let mut profile = stages.profile().clone();
        for text in &self.drive {
            let wrong = |why: &str| not_started(format_args!("--drive {text}: {why}"));
            let (letter, share) = text.split_once('=').ok_or_else(|| wrong("write LETTER=SHARE"))?;
            let drive = profile.drives.iter_mut().find(|drive| drive.share == share);
            letter.clone_into(&mut drive.ok_or_else(|| wrong("the guest has no such share"))?.letter);
        }
        // Checked as a whole, with what others there are.
        let drives = std::mem::take(&mut profile.drives);
        Ok(stages.with_profile(profile.with_drives(drives).map_err(not_started)?))
    }
}

pub(super) fn install(options: &MakeOptions) -> Result<i32, Refused> {
    let missing = if options.again { Missing::MakeAgain } else { Missing::Make };
    let (entry, _in_use) = options.guest.stages()?.install(missing, &mut Shown::new()).map_err(failed)?;
    println!("{}", entry.directory.display());
    Ok(0)
}

pub(super) fn suspend(options: &MakeOptions) -> Result<i32, Refused> {
    let missing = if options.again { Missing::MakeAgain } else { Missing::Make };
    let suspended = options.guest.stages()?.suspend(missing, &mut Shown::new()).map_err(failed)?;
    println!("{}", suspended.entry.directory.display());
    Ok(0)
}

/// A failure of a machine, with what was seen of it on standard error.
fn failed(failure: Failure) -> Refused {
    for line in failure.evidence.console.iter().rev().take(20).rev() {
        eprintln!("console: {line}");
    }
    for line in &failure.evidence.qemu {
        eprintln!("QEMU: {line}");
    }
    (anchorhold_sandbox::outcome::exit_status::MACHINE, failure.to_string())
}

/// A command in a revived guest, or a session.
pub(super) fn revive(options: &ReviveOptions) -> Result<i32, Refused> {
    if options.command.is_empty() {
        return Err(not_started("there is no command; `anchorhold vm ssh` opens a session"));
    }
    in_revived(options)
}

pub(super) fn in_revived(options: &ReviveOptions) -> Result<i32, Refused> {
    let stages = options.guest.stages()?;
    let missing = if options.only_saved { Missing::Refuse } else { Missing::Make };
    let suspended = stages.suspend(missing, &mut Shown::new()).map_err(failed)?;
    let command = match options.command.as_slice() {
        [] => None,
        words => Some(super::guest_command(words, &options.cwd, &options.env)?),
    };
    let absolute = |path: &Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        if path.is_dir() { Ok(path) } else { Err(not_started(format_args!("{} is no directory", path.display()))) }
    };
    let revival = Revival {
        command,
        store: options.store.as_deref().map(absolute).transpose()?,
        exchange: options.exchange.as_deref().map(absolute).transpose()?,
        clock: if options.now { Clock::Host } else { Clock::Virtual },
        limits: Limits { time: options.timeout, ..Limits::default() },
    };
    let (report, end) = stages.revive(&suspended, revival, &mut OwnStreams::default()).map_err(failed)?;
    if end == End::Time {
        complain("the machines were ended: they ran longer than --timeout allows");
        return Ok(end.exit_status());
    }
    if let anchorhold::machines::supervisor::Report::Failed(failure) = report {
        return Err(failed(failure));
    }
    if let Some(complaint) = report.complaint() {
        complain(complaint);
    }
    Ok(report.exit_status())
}

pub(super) fn list(options: &ListOptions) -> Result<i32, Refused> {
    let cache = Cache::open(&stages::cache_root(&settings(&options.config)?)).map_err(not_started)?;
    let kept = cache.list().map_err(not_started)?;
    let running = Registry::open().and_then(|registry| registry.list()).map_err(not_started)?;
    if options.json {
        let entry = |entry: &Entry| {
            json!({
                "name": entry.name(), "stage": entry.record.stage, "profile": entry.record.profile,
                "directory": entry.directory, "bytes": entry.size(), "made": entry.record.made,
                "took-milliseconds": entry.record.took, "stands-on": entry.record.stands_on, "key": entry.record.key,
            })
        };
        let damaged: Vec<String> =
            kept.iter().filter_map(|entry| entry.as_ref().err().map(ToString::to_string)).collect();
        let whole: Vec<_> = kept.iter().flatten().map(entry).collect();
        println!("{}", json!({ "stages": whole, "damaged": damaged, "running": running }));
        return Ok(0);
    }
    let mut out = std::io::stdout().lock();
    let mut write = |line: String| {
        let _ = writeln!(out, "{line}");
    };
    for entry in &kept {
        match entry {
            Ok(entry) => {
                let field = |name: &str| entry.record.key.get(name).unwrap_or("?").to_owned();
                let prefix = if entry.record.stage == Stage::Suspend { "guest." } else { "" };
                let qemu = field("qemu").split(' ').next().unwrap_or("?").to_owned();
                write(format!(
                    "{}  {}  {}  {} old  QEMU {qemu}, {}, {}, {}",
                    entry.name(),
                    entry.record.profile,
                    size(entry.size()),
                    age(entry.record.made),
                    field(&format!("{prefix}machine-type")),
                    field(&format!("{prefix}accelerator")),
                    field(&format!("{prefix}memory")),
                ));
            }
            Err(failure) => write(format!("damaged: {failure}")),
        }
    }
    for machine in running {
        write(format!("{}  runs ({}) since {}", machine.name, machine.what, age(machine.begun)));
    }
    Ok(0)
}

fn size(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

fn age(since: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = now.saturating_sub(since);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

pub(super) fn prune(options: &PruneOptions) -> Result<i32, Refused> {
    let cache = Cache::open(&stages::cache_root(&settings(&options.config)?)).map_err(not_started)?;
    let kept = cache.list().map_err(not_started)?;
    let whole: Vec<&Entry> = kept.iter().flatten().collect();
    let mut condemned: Vec<String> = Vec::new();
    if options.names.is_empty() {
        // Those that nobody could use: the newest of each guest stays, with what it stands on.
        let mut needed: Vec<String> = Vec::new();
        if !options.all {
            for stage in [Stage::Suspend, Stage::Install] {
                for entry in whole.iter().filter(|entry| entry.record.stage == stage) {
                    let is_newest = !whole
                        .iter()
                        .any(|other| other.is_for_the_same(entry) && other.record.made > entry.record.made);
                    if is_newest {
                        needed.push(entry.name());
                        needed.extend(entry.record.stands_on.clone());
                    }
                }
            }
        }
        condemned.extend(whole.iter().map(|entry| entry.name()).filter(|name| !needed.contains(name)));
        // What is no stage any more.
        for failure in kept.iter().filter_map(|entry| entry.as_ref().err()) {
            complain(format_args!("left alone, name it to remove it: {failure}"));
        }
    } else {
        let names = names(&cache)?;
        for wanted in &options.names {
            condemned.push(one_of(&names, wanted)?);
        }
        // What stands on them goes too.
        let stands = |entry: &&&Entry| entry.record.stands_on.as_ref().is_some_and(|below| condemned.contains(below));
        let above: Vec<String> = whole.iter().filter(stands).map(|entry| entry.name()).collect();
        condemned.extend(above);
    }
    condemned.sort();
    condemned.dedup();
    // A pair before the disk that it stands on.
    condemned.reverse();
    let (mut freed, mut is_all, mut still_needed) = (0, true, BTreeSet::new());
    for name in &condemned {
        if still_needed.contains(name) {
            complain(format_args!("{name} stays: a stage that is in use stands on it"));
            continue;
        }
        match cache.remove(name) {
            Ok(bytes) => {
                freed += bytes;
                println!("{name}");
            }
            Err(failure) => {
                complain(failure.what);
                is_all = false;
                let below = whole.iter().find(|entry| entry.name() == *name);
                still_needed.extend(below.and_then(|entry| entry.record.stands_on.clone()));
            }
        }
    }
    freed += cache.sweep().map_err(not_started)?;
    eprintln!("anchorhold: {} freed", size(freed));
    // Who names a stage wants it gone; who sweeps takes what there is.
    Ok(if is_all || options.names.is_empty() { 0 } else { 1 })
}

/// How it goes, on standard error: one line that changes on a terminal, else a line for each step.
struct Shown {
    is_terminal: bool,
    stage: &'static str,
    step: String,
    line: String,
    begun: Instant,
    last: Option<std::time::Duration>,
}

impl Shown {
    fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { is_terminal, stage: "", step: String::new(), line: String::new(), begun: Instant::now(), last: None }
    }

    fn show(&self) {
        if !self.is_terminal {
            return;
        }
        let last = self.last.map(|last| format!(" of about {:.0} s", last.as_secs_f32())).unwrap_or_default();
        let elapsed = self.begun.elapsed().as_secs_f32();
        let mut text = format!("{}: {} · {elapsed:.0} s{last}", self.stage, self.step);
        if !self.line.is_empty() {
            text = format!("{text} · {}", self.line);
        }
        // A line that is longer than the terminal would stay there when the next one comes.
        let size = rustix::termios::tcgetwinsize(std::io::stderr());
        let width = size.map_or(0, |size| usize::from(size.ws_col)).clamp(40, 200);
        let text: String = text.chars().take(width - 1).collect();
        eprint!("\r\x1b[K{text}");
    }

    /// A line that stays, above the one that changes.
    fn tell(&self, line: std::fmt::Arguments<'_>) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
        complain(line);
    }
}

impl Listener for Shown {
    fn begins(&mut self, stage: Stage, why: Why<'_>, last: Option<std::time::Duration>) {
        (self.stage, self.begun, self.last) = (stage.name(), Instant::now(), last);
        (self.step, self.line) = (String::new(), String::new());
        self.tell(format_args!("{}: {}", self.stage, why.in_words(last)));
    }

    fn step(&mut self, what: &str) {
        what.clone_into(&mut self.step);
        if !self.is_terminal {
            complain(format_args!("{}: {:.1} s: {what}", self.stage, self.begun.elapsed().as_secs_f32()));
        }
        self.show();
    }

    fn line(&mut self, line: &str) {
        self.line = line.chars().filter(|letter| !letter.is_control()).collect();
        self.show();
    }

    fn still(&mut self) {
        self.show();
    }

    fn done(&mut self, stage: Stage, took: std::time::Duration) {
        let last = self.last.map(|last| format!(", last time {:.1} s", last.as_secs_f32())).unwrap_or_default();
        self.tell(format_args!("{}: done in {:.1} s{last}", stage.name(), took.as_secs_f32()));
    }
}
