//! `anchorhold attach`: one build for Nix, as its external builder.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anchorhold::attach::carry_out::result_file;
use anchorhold::attach::voice::Voice;
use anchorhold::attach::{Attachment, End, Request, Stopped};
use clap::Args;

use super::config::ConfigOptions;
use super::{Subcommand, command, exit_code, options, policy};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "attach",
    command: || {
        command::<AttachOptions>(
            "attach",
            "Build for Nix (2.32 or later), as the program of its setting external-builders",
        )
    },
    run,
};

/// The status by which tribuchet's Nix is told to build by itself.
const DECLINED: u8 = 222;

#[derive(Debug, Args)]
struct AttachOptions {
    #[command(flatten)]
    config: ConfigOptions,

    /// Follow tribuchet's conventions too, for a Nix with its patches: status 222 for a build that is not done here, which
    /// Nix then builds in its own sandbox; a file result.json
    #[arg(long)]
    tribuchet: bool,

    /// The build, in the form that Nix writes
    #[arg(value_name = "BUILD.JSON")]
    request: PathBuf,
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    // What the daemon had open is nobody's business here. Nothing of ours is open yet.
    anchorhold_sandbox::sys::process::close_from(3);
    let options: AttachOptions = options(matches);
    let mut voice = Voice::new(io::stdout().lock());
    match attach(&options, &mut voice) {
        // A builder cannot ask for a build without a room.
        Ok(End::Exited(status)) if options.tribuchet && status == i32::from(DECLINED) => ExitCode::FAILURE,
        Ok(End::Exited(status)) => exit_code(status),
        Ok(End::Signaled(signal)) => die_of(signal),
        Err(Trouble::Stopped(Stopped::Interrupted(signal))) => die_of(signal),
        Err(Trouble::Stopped(rejected @ Stopped::Rejected { .. })) if options.tribuchet => {
            // This Nix counts only what ended after the set-up.
            let told = voice.stand().and_then(|()| voice.fail(&rejected.to_string()));
            if told.is_ok() { ExitCode::from(DECLINED) } else { ExitCode::FAILURE }
        }
        Err(trouble) => {
            // Where nobody listens, nobody is told.
            let _ = voice.fail(&trouble.to_string());
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error("{0}")]
    Words(String),
}

impl Trouble {
    fn words(why: impl ToString) -> Self {
        Self::Words(why.to_string())
    }
}

fn attach<W: Write>(options: &AttachOptions, voice: &mut Voice<W>) -> Result<End, Trouble> {
    // The environment is the daemon's, or that of whoever called Nix: no file of a user is found by it.
    let config = options.config.load_without_user().map_err(Trouble::words)?;
    let settings = config.settings();
    let request = Request::read(&options.request).map_err(Trouble::words)?;
    let mut policy = policy::by_settings(&settings, request.top_dir.clone());
    // Nix has chosen this program for the system, and keeps its own limits of time and log.
    policy.extra_platforms.insert(request.system.clone());
    let end = Attachment { request: &request, policy: &policy }.carry_out(voice)?;
    if options.tribuchet && end == End::Exited(0) {
        // No build of ours adds paths to the store while it runs.
        let file = result_file(&request);
        std::fs::write(&file, "{\"addedPaths\":[]}\n")
            .map_err(|error| Trouble::words(format!("cannot write {}: {error}", file.display())))?;
    }
    Ok(end)
}

/// Ends as the builder did, so that Nix says the same of us as of it.
fn die_of(signal: i32) -> ExitCode {
    use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};
    let hard = getrlimit(Resource::Core).maximum;
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: hard });
    if let Some(named) = Signal::from_named_raw(signal) {
        // Twice: the first time, the handler that the standard library has for some may only take itself away.
        for _ in 0..2 {
            let _ = kill_process(getpid(), named);
        }
    }
    exit_code(128 + signal)
}
