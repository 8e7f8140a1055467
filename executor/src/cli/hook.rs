//! `anchorhold hook`: builds for a Nix of 2.4 or later, as its build hook.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::time::Duration;

use anchorhold::build::scratch;
use anchorhold::config::{Config, Sources};
use anchorhold::hook::carried::VARIABLE;
use anchorhold::hook::child::{self, BuildRemote};
use anchorhold::hook::machine::{self, Machine};
use anchorhold::hook::settings::BUILDERS;
use anchorhold::hook::{Carried, Endpoint, Settings, store_root};
use anchorhold::server::watch::Watch;
use anchorhold::store::{Access, Store};
use anchorhold::wire::Source;
use clap::Args;
use rustix::fs::MemfdFlags;

use super::config::ConfigOptions;
use super::store_root::Failure;
use super::{Subcommand, build, command, complain, exit_code, options, policy};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "hook",
    command: || {
        command::<HookOptions>("hook", "Build for Nix (2.4 or later), as the program of its setting build-hook")
    },
    run,
};

/// The name of a link to this program by which it is a hook without a word more: the setting of some Nixes holds a path only.
const NAME: &str = "anchorhold-hook";

/// Called by [`NAME`], this is a hook.
pub fn by_name(arguments: &mut Vec<OsString>) {
    if arguments.first().is_some_and(|name| Path::new(name).file_name() == Some(OsStr::new(NAME))) {
        arguments.insert(1, SUBCOMMAND.name.into());
    }
}

#[derive(Debug, Args)]
struct HookOptions {
    #[command(flatten)]
    config: ConfigOptions,

    /// Nix's own program for remote builds, or a nix that has it inside [default: that of the Nix that runs]
    #[arg(long, value_name = "PROGRAM")]
    build_remote: Option<PathBuf>,

    /// How many builds run at once, of all users of this host [default: the setting max-jobs]
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,

    /// How much Nix says, as Nix tells it
    #[arg(value_name = "VERBOSITY", required_unless_present_any = ["stdio", "sweep"])]
    verbosity: Option<OsString>,

    /// Be the machine that builds are sent to: started by Nix's program, which was started by this one
    #[arg(long, hide = true, conflicts_with = "verbosity")]
    stdio: bool,

    /// Wait for the end of standard input, and remove from this directory what builds left that are no more
    #[arg(long, hide = true, value_name = "DIRECTORY", conflicts_with_all = ["verbosity", "stdio"])]
    sweep: Option<PathBuf>,
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: HookOptions = options(matches);
    let done = match (&options.verbosity, &options.sweep) {
        (Some(verbosity), _) => hand_on(&options, verbosity),
        (None, Some(builds)) => sweep(builds).map(|()| 0),
        (None, None) => attend().map(|()| 0),
    };
    match done {
        Ok(status) => exit_code(status),
        Err(why) => {
            complain(why.0);
            ExitCode::FAILURE
        }
    }
}

/// Lets Nix's own program do a hook's work, with us as the only machine that it knows; its status is ours.
fn hand_on(options: &HookOptions, verbosity: &OsStr) -> Result<i32, Failure> {
    // Whatever follows the settings stays for the program: in the buffer that the thread for the rest reads from, too.
    let Some(mut settings) = Settings::read(&mut Source::new(io::stdin().lock()))? else { return Ok(0) };
    // The environment is the daemon's, or that of whoever called Nix: no file of a user is found by it.
    let ours = options.config.load_without_user()?.settings();
    let mut carried = Carried::of(&settings);
    (carried.config, carried.options) = (options.config.files()?, options.config.pairs());
    let report = File::from(rustix::fs::memfd_create("anchorhold-hook", MemfdFlags::CLOEXEC)?);
    carried.report = Some(format!("/proc/{}/fd/{}", std::process::id(), report.as_raw_fd()).into());
    let policy = carried.applied_to(policy::by_settings(&ours, PathBuf::new()));
    let program = std::env::current_exe().map_err(|error| Failure(format!("cannot find this program: {error}")))?;
    if !machine::is_plain(&program) {
        return Err(Failure(format!(
            "Nix starts ‘{}’ by a shell, which would not take this path as it is: put the program where the path has letters, digits, ‘.’, ‘_’, ‘-’ and ‘/’ only",
            program.display()
        )));
    }
    let machine = Machine {
        program: &program,
        systems: policy.extra_platforms.iter().chain([&policy.system]).map(String::as_str).collect(),
        features: policy.features.iter().map(String::as_str).collect(),
        jobs: options.jobs.unwrap_or_else(|| build::jobs(&ours)),
    };
    settings.set(BUILDERS, &machine.line());
    let helper = options.build_remote.clone().map_or_else(BuildRemote::find, |named| Ok(BuildRemote::named(named)))?;
    let environment = child::environment(&settings, &serde_json::to_string(&carried)?);
    let status = helper.run(verbosity, &settings, &environment, io::stdin())?.code().unwrap_or(1);
    let mut said = String::new();
    if status != 0 && report.take(REPORT).read_to_string(&mut said).is_ok() {
        return Ok(said.parse().unwrap_or(status));
    }
    Ok(status)
}

/// The longest report, in bytes.
const REPORT: u64 = 8;

/// What is read at once.
const BUFFER: usize = 64 << 10;

/// Is the machine at the other end of the program's standard input and output.
fn attend() -> Result<(), Failure> {
    // What Nix and its program had open is nobody's business here, the pipe of the log least of all.
    anchorhold_sandbox::sys::process::close_from(3);
    let carried = std::env::var(VARIABLE).map_err(|_| {
        Failure(format!("--stdio is for Nix's program, as `anchorhold hook` starts it: {VARIABLE} is not set"))
    })?;
    let carried: Carried =
        serde_json::from_str(&carried).map_err(|error| Failure(format!("{VARIABLE} is not understood: {error}")))?;
    let mut sources = Sources { user: None, ..Sources::standard() };
    (sources.files, sources.options) = (carried.config.clone(), carried.options.clone());
    let ours = Config::load(&sources)?.settings();
    let (input, watched) = (stdin()?, stdin()?);
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    // What a child of ours may print is not for the protocol.
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    let host = Store::open(&store_root(&carried.store)?, Access::ReadOnly)?;
    let builds = ours.build_dir.clone().unwrap_or_else(|| host.state_dir().join("anchorhold/builds"));
    let policy = carried.applied_to(policy::by_settings(&ours, builds));
    let watch = Watch::new(watched, || std::process::exit(1));
    // If there is none, the next build removes what this one leaves.
    let _sweeper = sweeper(&policy.builds);
    let endpoint = Endpoint { host: &host, policy: &policy, watch: &watch, report: carried.report.as_deref() };
    Ok(endpoint.attend(BufReader::with_capacity(BUFFER, File::from(input)), File::from(output))?)
}

fn stdin() -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?)
}

/// Nix's program kills us as soon as it has fetched what it wants, and Nix kills everything of the hook when it is interrupted.
/// So what is left in `builds` is removed by a process that is in no group of theirs, when its standard input ends with us.
fn sweeper(builds: &Path) -> io::Result<Child> {
    Process::new("/proc/self/exe")
        .arg0("anchorhold")
        .args([SUBCOMMAND.name, "--sweep"])
        .arg(builds)
        .stdin(Stdio::piped())
        // While it has these open, Nix would wait for it.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

/// What a killed room still writes to cannot be removed: it needs a moment to be gone.
const MOMENT: Duration = Duration::from_millis(300);

fn sweep(builds: &Path) -> Result<(), Failure> {
    anchorhold_sandbox::sys::process::close_from(3);
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    scratch::sweep(builds)?;
    std::thread::sleep(MOMENT);
    scratch::sweep(builds)?;
    Ok(())
}
