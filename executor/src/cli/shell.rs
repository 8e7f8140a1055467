//! `anchorhold shell`: into the room of a build.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anchorhold::build::keep::{self, Kept};
use anchorhold::build::running::{self, Running};
use anchorhold::build::tools::{self, NoTools, Tools};
use anchorhold::build::visit::{self, Streams, Visit};
use anchorhold::build::{launcher, record};
use anchorhold::store::{Access, Store};
use anchorhold_sandbox::launcher::Options;
use anchorhold_sandbox::outcome::{End, exit_status};
use anchorhold_sandbox::{Launcher, Plan};
use clap::Args;

use super::config::ConfigOptions;
use super::run::{OwnStreams, explain_refusals, status_of};
use super::store_root::{Failure, StorePlace};
use super::{Subcommand, command, complain, exit_code, options};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "shell",
    command: || command::<ShellOptions>("shell", "Open a shell in the room of a failed or a running build"),
    run,
};

#[derive(Debug, Args)]
struct ShellOptions {
    #[command(flatten)]
    store: StorePlace,

    #[command(flatten)]
    config: ConfigOptions,

    /// A build: the directory that --keep-failed kept, or a derivation, by its path, its hash's beginning or its name
    ///
    /// Without it the builds that can be entered are listed.
    #[arg(value_name = "BUILD")]
    build: Option<String>,

    /// Enter a build that is running, named as above or by a process id; list these without a name
    #[arg(long)]
    running: bool,

    /// Let the running build stand still until the shell ends
    #[arg(long, requires = "running")]
    freeze: bool,

    /// Tools to bring, instead of the host's static busybox: a directory of static programs, or a store path, with its closure
    #[arg(long, value_name = "DIR")]
    tools: Option<PathBuf>,

    /// A command to run instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: ShellOptions = options(matches);
    match shell(&options) {
        Ok(status) => exit_code(status),
        Err(why) => {
            complain(why.0);
            exit_code(exit_status::NOT_STARTED)
        }
    }
}

fn shell(options: &ShellOptions) -> Result<i32, Failure> {
    let Some(build) = &options.build else { return list(options) };
    if options.running {
        return if build == "list" { list(options) } else { enter_running(options, build) };
    }
    let is_directory = Path::new(build).join(keep::ROOM).exists();
    let store = store(options, !is_directory)?;
    let kept = match &store {
        Some(store) if !is_directory => kept_of(store, build)?,
        _ => PathBuf::from(build),
    };
    let kept = keep::open(&kept)?;
    enter_kept(options, store.as_ref(), kept)
}

/// The store, which a kept build is entered without.
fn store(options: &ShellOptions, is_needed: bool) -> Result<Option<Store>, Failure> {
    let opened = options.config.load().map_err(Failure::from).and_then(|config| {
        let root = options.store.root_by(&config)?;
        Ok(Store::open(&root, Access::ReadOnly)?)
    });
    match opened {
        Ok(store) => Ok(Some(store)),
        Err(_) if !is_needed => Ok(None),
        Err(why) => Err(why),
    }
}

/// A terminal, if the person has one at both ends; else what was put there.
fn streams() -> Streams {
    match (std::io::stdin().is_terminal(), std::io::stdout().is_terminal()) {
        (true, true) => Streams::Terminal,
        (true, false) => Streams::NoInput,
        (false, _) => Streams::Input,
    }
}

fn tools(
    options: &ShellOptions,
    store: Option<&Store>,
    builder: &anchorhold_sandbox::text::Text,
) -> Result<Tools, NoTools> {
    Tools::choose(options.tools.as_deref(), store, builder)
}

fn enter_kept(options: &ShellOptions, store: Option<&Store>, kept: Kept) -> Result<i32, Failure> {
    let tools = tools(options, store, &kept.room.process.program)?;
    let streams = streams();
    let path = kept.path.clone();
    let visit = Visit::prepare(kept, store, &tools, streams, &options.command).map_err(Failure)?;
    let plan = Plan::compile(&visit.room, &launcher::host_for(&visit.room))?;
    if options.command.is_empty() && streams == Streams::Terminal {
        let directory = visit.room.process.directory.display();
        complain(format_args!(
            "{directory} is {}/{}; /.visitor/build runs the builder again",
            path.display(),
            keep::BUILD
        ));
    }
    let mut sink = OwnStreams::default();
    let outcome = match Launcher::new(&plan, Options::default()).run(&mut sink) {
        Ok(outcome) => outcome,
        Err(_) if sink.reader_gone => return Ok(128 + 13),
        Err(error) => {
            complain(&error);
            return Ok(status_of(&error));
        }
    };
    if outcome.end != End::Exited(0) {
        explain_refusals(&outcome);
    }
    Ok(outcome.end.exit_status())
}

/// Where builds are at work: the same place as for `anchorhold build`.
fn builds(options: &ShellOptions, store: &Store) -> Result<PathBuf, Failure> {
    let configured = options.config.load()?.settings().build_dir.clone();
    Ok(configured.unwrap_or_else(|| store.state_dir().join("anchorhold/builds")))
}

fn running_builds(options: &ShellOptions, store: &Store) -> Result<Vec<Running>, Failure> {
    let builds = builds(options, store)?;
    running::list(&builds).map_err(|error| {
        Failure(format!(
            "looking for running builds in {}: {error}; only the user who builds and root may",
            builds.display()
        ))
    })
}

fn enter_running(options: &ShellOptions, build: &str) -> Result<i32, Failure> {
    let Some(store) = store(options, true)? else { return Ok(exit_status::NOT_STARTED) };
    let mut found = running_builds(options, &store)?;
    found.retain(|one| match build.parse::<i32>() {
        Ok(pid) => one.resident.pid == pid || one.launcher == pid,
        Err(_) => names(build, &one.derivation, &store),
    });
    let running = match found.as_slice() {
        [running] => running,
        [] => {
            return Err(Failure(format!(
                "no build called ‘{build}’ is running; `anchorhold shell --running` lists those that are"
            )));
        }
        several => {
            let names: Vec<_> =
                several.iter().map(|one| format!("{} (process {})", one.derivation, one.resident.pid)).collect();
            return Err(Failure(format!("‘{build}’ may be {}: name one by its process", names.join(", "))));
        }
    };
    let tools = tools(options, Some(&store), &running.room.process.program)?;
    if matches!(tools, Tools::Store { .. }) {
        return Err(Failure(
            "tools from a store cannot be brought into a running build: their closure would have to stand in its store; give a directory of static programs".to_owned(),
        ));
    }
    let streams = streams();
    let room = visit::running_room(running, &tools, streams, &options.command);
    let brought = tempfile::Builder::new().prefix("anchorhold-visitor-").tempdir()?;
    std::fs::set_permissions(brought.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let called = running.derivation.split_once('-').map_or(&*running.derivation, |(_, called)| called);
    let prompt = visit::prompt_for(called.strip_suffix(".drv").unwrap_or(called), "running");
    tools.lay_out(brought.path(), &running.room.process, &prompt)?;
    let mut mounts = vec![(PathBuf::from(tools::INSIDE), brought.path().to_owned())];
    mounts.extend(tools.mounts());
    let plan = Plan::compile(&room, &launcher::host_for(&room))?;
    running.mark_visited()?;
    if options.command.is_empty() && streams == Streams::Terminal {
        let stands = if options.freeze { "stands still until you leave" } else { "goes on; --freeze would stop it" };
        complain(format_args!("in the room of the running build ‘{}’, which {stands}", running.derivation));
    }
    let visit = anchorhold_sandbox::launcher::Visit {
        plan: &plan,
        resident: running.resident,
        brought: &mounts,
        freeze: options.freeze,
    };
    let mut sink = OwnStreams::default();
    match visit.run(&mut sink) {
        Ok(visited) => {
            if visited.room_ended && visited.end == End::Signaled(9) {
                complain("the build has ended, and its room with it");
            }
            Ok(visited.end.exit_status())
        }
        Err(_) if sink.reader_gone => Ok(128 + 13),
        Err(error) => {
            complain(&error);
            Ok(status_of(&error))
        }
    }
}

/// Where the last failure of a derivation was kept.
fn kept_of(store: &Store, text: &str) -> Result<PathBuf, Failure> {
    let found = kept_builds(store, text)?;
    match found.as_slice() {
        [(_, kept)] => Ok(kept.clone()),
        [] => Err(Failure(format!(
            "no failed build that is kept is called ‘{text}’: build it with --keep-failed; `anchorhold shell` lists those that there are"
        ))),
        several => {
            let names: Vec<_> = several.iter().map(|(name, _)| name.as_str()).collect();
            Err(Failure(format!("‘{text}’ may be {}: write more of it", names.join(", "))))
        }
    }
}

/// The kept builds that a text names: all of them for an empty one.
fn kept_builds(store: &Store, text: &str) -> Result<Vec<(String, PathBuf)>, Failure> {
    let mut found: Vec<(String, PathBuf)> = record::kept(&store.state_dir())?
        .into_iter()
        .filter(|(name, kept)| names(text, name, store) && kept.join(keep::ROOM).exists())
        .collect();
    found.sort();
    Ok(found)
}

/// Whether a person who writes `text` means the derivation `name`: a store path, the beginning of its hash, or the name behind it.
pub(super) fn names(text: &str, name: &str, store: &Store) -> bool {
    let real = store.real_dir();
    let text = Path::new(text)
        .strip_prefix(&real)
        .or_else(|_| Path::new(text).strip_prefix(store.dir().as_str()))
        .ok()
        .and_then(Path::to_str)
        .unwrap_or(text);
    let called = name.split_once('-').map_or(name, |(_, called)| called);
    name.starts_with(text) || called == text || called.strip_suffix(".drv") == Some(text)
}

/// What can be entered, a line each: the state, the derivation, and the process or the directory.
fn list(options: &ShellOptions) -> Result<i32, Failure> {
    let Some(store) = store(options, true)? else { return Ok(0) };
    for one in running_builds(options, &store)? {
        println!("running  {}  {}", one.derivation, one.resident.pid);
    }
    if !options.running {
        for (name, kept) in kept_builds(&store, "")? {
            println!("failed   {name}  {}", kept.display());
        }
    }
    Ok(0)
}
