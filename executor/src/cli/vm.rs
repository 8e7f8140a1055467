//! `anchorhold vm`: virtual machines for people.

mod session;
mod stages;
mod visit;

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anchorhold::build::keep;
use anchorhold::build::launcher::host_for;
use anchorhold::build::tools::Tools;
use anchorhold::build::visit::{Streams, Visit};
use anchorhold::machines::build::{Wishes, in_machine};
use anchorhold::machines::stages::{LINUX, Registry};
use anchorhold::machines::{self, Machines, Wanted};
use anchorhold_sandbox::launcher::Options;
use anchorhold_sandbox::outcome::{End, exit_status};
use anchorhold_sandbox::quantity::{Duration, Size};
use anchorhold_sandbox::room::{Entry, Limits, Output};
use anchorhold_sandbox::{Launcher, Plan, Room};
use anchorhold_vmm::exchange;
use anchorhold_vmm::failure::FailureClass;
use anchorhold_vmm::linux::Directory;
use clap::{ArgMatches, Args, Command};

use super::config::ConfigOptions;
use super::run::{OwnStreams, explain_refusals, status_of};
use super::{Subcommand, command, complain, exit_code, options};

pub const SUBCOMMAND: Subcommand = Subcommand { name: "vm", command: vm, run };

fn vm() -> Command {
    Command::new("vm")
        .about("Run commands in virtual machines, each machine in a sealed room")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(command::<RunOptions>(
            "run",
            "Run a command in a Linux machine of its own, and give its exit status",
        ))
        .subcommand(command::<stages::ListOptions>(
            "list",
            "List the stages of guests that are kept, and the machines that run",
        ))
        .subcommand(command::<stages::MakeOptions>("install", "Install a guest on a blank disk, from its media"))
        .subcommand(command::<stages::MakeOptions>("suspend", "Start a guest and its controller, and save both"))
        .subcommand(command::<stages::ReviveOptions>(
            "revive",
            "Run a command in a guest that is revived, and give its exit status; what is not there yet is made",
        ))
        .subcommand(command::<session::SshOptions>(
            "ssh",
            "Open a session in a guest that runs, or in one that is revived for it, or run a command there",
        ))
        .subcommand(command::<super::build::BuildOptions>(
            "build",
            "Build derivations as `anchorhold build` does; guests that are not saved yet are saved first, and then revived",
        ))
        .subcommand(command::<stages::PruneOptions>("prune", "Remove stages that newer ones have replaced"))
        .subcommand(command::<stages::ExportOptions>(
            "export",
            "Write a stage and what it stands on as one file, always the same for the same stage",
        ))
        .subcommand(command::<stages::ImportOptions>("import", "Take the stages of such a file into the cache"))
        .subcommand(command::<visit::ConsoleOptions>("console", "Attach to the serial console of a machine that runs"))
        .subcommand(command::<visit::ScreenshotOptions>(
            "screenshot",
            "Take a picture of the display of a machine that runs",
        ))
        .subcommand(
            Command::new("failures").about("Print the classes of failures of machines, as one line of JSON each"),
        )
}

#[derive(Debug, Args)]
struct RunOptions {
    #[command(flatten)]
    config: ConfigOptions,

    /// Memory of the machine [default: the setting vm-memory]
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    memory: Option<Size>,

    /// Processors of the machine
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Machine")]
    cores: u32,

    /// Give it a blank disk of this size: /dev/vda
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    disk: Option<Size>,

    /// What a failed build with a machine has left (`--keep-failed`): the machine has what the build had
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["ro", "rw", "no_usr", "cwd", "env"], help_heading = "Files")]
    kept: Option<PathBuf>,

    /// Show this directory to the guest, read-only [INSIDE=OUTSIDE]
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    ro: Vec<OsString>,

    /// Show this directory to the guest, writable
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    rw: Vec<OsString>,

    /// Do not show the host's /usr and the links to it
    #[arg(long, help_heading = "Files")]
    no_usr: bool,

    /// The current directory in the guest
    #[arg(long, value_name = "PATH", default_value = "/", help_heading = "Files")]
    cwd: PathBuf,

    /// Set a variable
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Process")]
    env: Vec<OsString>,

    /// End the machine after this time
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    timeout: Option<Duration>,

    /// Write the console of the machine to this file
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    console: Option<PathBuf>,

    /// Write how the machine ended, or why it failed, to this file as JSON
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    result: Option<PathBuf>,

    /// The command and its arguments; without one, a shell on your terminal
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn run(matches: &ArgMatches) -> ExitCode {
    match matches.subcommand() {
        Some(("failures", _)) => {
            println!("{}", FailureClass::table());
            ExitCode::SUCCESS
        }
        Some(("build", matches)) => super::build::run_saving(matches),
        Some((name, matches)) => {
            let done = match name {
                "list" => stages::list(&options(matches)),
                "install" => stages::install(&options(matches)),
                "suspend" => stages::suspend(&options(matches)),
                "revive" => stages::revive(&options(matches)),
                "ssh" => session::ssh(&options(matches)),
                "prune" => stages::prune(&options(matches)),
                "export" => stages::export(&options(matches)),
                "import" => stages::import(&options(matches)),
                "console" => visit::console(&options(matches)),
                "screenshot" => visit::screenshot(&options(matches)),
                _ => run_command(&options(matches)),
            };
            match done {
                Ok(status) => exit_code(status),
                Err((status, why)) => {
                    complain(why);
                    exit_code(status)
                }
            }
        }
        None => exit_code(exit_status::NOT_STARTED),
    }
}

type Refused = (i32, String);

fn not_started(why: impl std::fmt::Display) -> Refused {
    (exit_status::NOT_STARTED, why.to_string())
}

fn run_command(options: &RunOptions) -> Result<i32, Refused> {
    let terminal = options.command.is_empty();
    if terminal && !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        return Err(not_started("there is no command, and no terminal for a shell: give a command behind --"));
    }
    let settings = options.config.load().map_err(not_started)?.settings();
    let machines = Machines::of(&settings);
    let work = tempfile::Builder::new().prefix("anchorhold-vm-").tempdir();
    let work = work.map_err(|error| not_started(format_args!("making a directory for temporary files: {error}")))?;
    let memory = options.memory.map_or(machines.memory, |size| size.bytes(0) >> 20).max(1);
    if let Some(kept) = &options.kept {
        let kept = keep::open(kept).map_err(not_started)?;
        let tools = Tools::choose(None, None, &kept.room.process.program).map_err(not_started)?;
        let visit = Visit::prepare(kept, None, &tools, Streams::NoInput, &options.command).map_err(not_started)?;
        let disk = options.disk.map(|size| size.bytes(0));
        let wishes = Wishes::of_person(memory, options.cores.clamp(1, 255), disk, terminal);
        let mut room = in_machine(&visit.room, &machines, &wishes, work.path(), visit.owner()).map_err(not_started)?;
        room.limits.time = options.timeout;
        return run_room(options, &room, &machines::build::result(work.path()));
    }
    let mut view = machines::plain_view();
    // Both outside and in the room; the guest finds each at its own place.
    let mut shown = Vec::new();
    let mut show = |inside: PathBuf, outside: PathBuf, writable: bool| {
        let place = PathBuf::from(format!("/machine/directories/{}", shown.len()));
        shown.push(Entry::Bind {
            inside: place.clone(),
            outside: Some(outside),
            writable,
            optional: false,
            noexec: false,
        });
        view.directories.push(Directory { outside: place, inside, writable });
    };
    if !options.no_usr {
        let (directories, links) = machines::host_programs();
        directories.into_iter().for_each(|path| show(path.clone(), path, false));
        view.links.extend(links);
    }
    for (spelled, writable) in
        options.ro.iter().map(|path| (path, false)).chain(options.rw.iter().map(|path| (path, true)))
    {
        let (inside, outside) = shared(spelled)?;
        show(inside, outside, writable);
    }
    let ids = machines::Ids::take(settings.build_users_group.as_deref()).map_err(not_started)?;
    let wanted = Wanted {
        name: "guest".to_owned(),
        memory,
        cores: options.cores.clamp(1, 255),
        view,
        inputs: None,
        disk: options.disk.map(|size| size.bytes(0)),
        command: match terminal {
            true => guest_command(&shell(), &options.cwd, &options.env)?,
            false => guest_command(&options.command, &options.cwd, &options.env)?,
        },
        streams_apart: true,
        terminal,
        hooks: Vec::new(),
        limit: None,
    };
    let prepared = machines::prepare(&machines, &wanted, work.path(), ids.owner()).map_err(not_started)?;
    let program =
        std::env::current_exe().map_err(|error| not_started(format_args!("finding this program: {error}")))?;
    let room = machines::room::room(machines::room::Parts {
        prepared: &prepared,
        program: &program,
        shown,
        outside: ids.outside(),
        limits: Limits { time: options.timeout, ..Limits::default() },
        output: if terminal { Output::Terminal } else { Output::Pipe },
    });
    run_room(options, &room, &prepared.result)
}

/// A shell that has the console as its terminal, as large as ours: a serial line tells nobody its size.
fn shell() -> Vec<OsString> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    let (rows, columns) = size.map_or((24, 80), |size| (size.ws_row, size.ws_col));
    let term = std::env::var("TERM").unwrap_or_else(|_| "vt100".to_owned());
    let script = format!("stty rows {rows} cols {columns}; export TERM='{}'; exec bash -i", term.replace('\'', ""));
    ["setsid", "--ctty", "--wait", "sh", "-c", &script].map(OsString::from).into()
}

/// Enters the room of a machine; the exit status.
fn run_room(options: &RunOptions, room: &Room, result: &Path) -> Result<i32, Refused> {
    let _known = Registry::open().and_then(|all| all.register(LINUX, "run", result)).map_err(not_started)?;
    let plan = Plan::compile(room, &host_for(room)).map_err(not_started)?;
    for weakening in &plan.weakenings {
        complain(format_args!("warning: {} is weaker: {}", weakening.layer, weakening.what));
    }
    let mut streams = OwnStreams::default();
    let outcome = Launcher::new(&plan, Options::default())
        .run(&mut streams)
        .map_err(|error| (status_of(&error), error.to_string()))?;
    let reports = [(&options.console, machines::supervisor::CONSOLE), (&options.result, machines::supervisor::REPORT)];
    for (file, name) in reports {
        if let Some(file) = file {
            copy(&result.join(name), file)
                .map_err(|error| not_started(format_args!("writing {}: {error}", file.display())))?;
        }
    }
    match outcome.end {
        End::Exited(exit_status::MACHINE) => explain_refusals(&outcome),
        End::Time => complain("the machine was ended: it ran longer than --timeout allows"),
        _ => {}
    }
    Ok(outcome.end.exit_status())
}

/// A file that the room wrote, which may be anything by now.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    const MOST: u64 = 64 << 20;
    // O_NOFOLLOW and O_NONBLOCK: neither a link to elsewhere nor a pipe that nobody writes.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed())
        .open(from)?;
    let mut out = std::fs::File::create(to)?;
    std::io::copy(&mut file.take(MOST), &mut out).map(drop)
}

/// `INSIDE[=OUTSIDE]`, of a directory.
fn shared(spelled: &OsStr) -> Result<(PathBuf, PathBuf), Refused> {
    let Entry::Bind { inside, outside, .. } = Entry::bind(spelled, false) else { unreachable!("a bind is one") };
    let outside = outside.unwrap_or_else(|| inside.clone());
    let outside = std::path::absolute(&outside).unwrap_or(outside);
    if !inside.is_absolute() {
        return Err(not_started(format_args!("{}: the guest's path is not absolute", inside.display())));
    }
    if !outside.is_dir() {
        return Err(not_started(format_args!("{}: only directories can be shown to a guest", outside.display())));
    }
    Ok((inside, outside))
}

fn guest_command(words: &[OsString], cwd: &Path, env: &[OsString]) -> Result<exchange::Command, Refused> {
    use std::os::unix::ffi::OsStrExt;
    let (program, arguments) = words.split_first().ok_or_else(|| not_started("there is no command"))?;
    let mut command = exchange::Command::new(program)
        .arguments(arguments)
        .directory(cwd)
        .variable("HOME", "/root")
        .variable("LANG", "C.UTF-8")
        .variable("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .variable("TMPDIR", "/tmp")
        .variable("USER", "root");
    for assignment in env {
        let bytes = assignment.as_bytes();
        let Some(at) = bytes.iter().position(|byte| *byte == b'=') else {
            return Err(not_started(format_args!("--env {}: write NAME=VALUE", assignment.display())));
        };
        let (name, value) = (OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..]));
        command.environment.retain(|(known, _)| known != name);
        command = command.variable(name, value);
    }
    command.check().map_err(not_started)?;
    Ok(command)
}
