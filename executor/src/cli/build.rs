//! `anchorhold build`: derivations, to registered outputs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use anchorhold::build::call::{self, Request};
use anchorhold::build::graph::Wanted;
use anchorhold::build::policy::Policy;
use anchorhold::build::result::{self, BuildResult};
use anchorhold::config::settings::{MaxJobs, Settings};
use anchorhold::progress::{self, Level, LogFormat};
use anchorhold::store::{Access, Store};
use anchorhold_sandbox::quantity::{Duration, Size};
use clap::Args;

use super::config::ConfigOptions;
use super::store_root::{Failure, StorePlace};
use super::{Subcommand, command, complain, options};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "build",
    command: || {
        command::<BuildOptions>("build", "Build derivations, each in a sealed room, and register their outputs")
    },
    run,
};

#[derive(Debug, Args)]
struct BuildOptions {
    #[command(flatten)]
    store: StorePlace,

    #[command(flatten)]
    config: ConfigOptions,

    /// Derivations in the store; `^out,dev` behind one asks for some of its outputs only
    #[arg(required = true, value_name = "DRV")]
    targets: Vec<String>,

    /// How many builds run at once
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,

    /// Go on with other builds when one has failed
    #[arg(long, short)]
    keep_going: bool,

    /// Keep the build directory of a failed build, as a copy of your own
    #[arg(long, short = 'K')]
    keep_failed: bool,

    /// Build again what is there, and compare every output
    #[arg(long)]
    check: bool,

    /// Processors that a builder is told to use; 0 lets it find out
    #[arg(long, value_name = "N")]
    cores: Option<u32>,

    /// End a build after this time
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    timeout: Option<Duration>,

    /// End a build after this time without output
    #[arg(long, value_name = "TIME", help_heading = "Limits")]
    max_silent_time: Option<Duration>,

    /// End a build that writes more than this
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    max_build_log_size: Option<Size>,

    /// Memory of one build
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    memory: Option<Size>,

    /// Processes and threads of one build
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pids: Option<u64>,

    /// Processors' worth of time of one build, for example 1.5
    #[arg(long, value_name = "N", help_heading = "Limits")]
    cpu: Option<f64>,

    /// How progress is shown: bar, raw or internal-json [default: bar on a terminal, else raw]
    #[arg(long, value_name = "FORMAT", help_heading = "Reports")]
    log_format: Option<LogFormat>,

    /// Print the results as JSON, with account and seal
    #[arg(long, help_heading = "Reports")]
    json: bool,
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: BuildOptions = options(matches);
    match build(&options) {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            complain(why.0);
            ExitCode::from(1)
        }
    }
}

fn build(options: &BuildOptions) -> Result<u8, Failure> {
    let config = options.config.load()?;
    let settings = config.settings();
    let store = Store::open(&options.store.root_by(&config)?, Access::ReadWrite)?;
    let wanted = options.targets.iter().map(|text| target(&store, text)).collect::<Result<Vec<_>, _>>()?;
    let asked: BTreeSet<_> = wanted.iter().map(|one| one.derivation.clone()).collect();
    let request = Request {
        wanted: wanted.clone(),
        jobs: options.jobs.unwrap_or_else(|| jobs(&settings)),
        keep_going: options.keep_going || settings.keep_going,
        check: options.check,
    };
    let reporter = progress::on_stderr(options.log_format, Level::Notice);
    let policy = policy(options, &settings, &store)?;
    let results = call::build(&store, &policy, &request, &*reporter)?;
    drop(reporter);
    if options.json {
        let list: Vec<_> = results.iter().map(|result| result.to_json(store.dir())).collect();
        println!("{}", serde_json::to_string_pretty(&list)?);
    } else {
        print_outputs(&store, &wanted, &results);
    }
    // A wanted build that was not begun because another failed has failed as well.
    Ok(result::exit_code(results.iter().map(|result| result.status)).max(u8::from(
        asked.iter().any(|path| !results.iter().any(|result| result.derivation == *path && result.status.is_success())),
    )))
}

/// How many builds run at once by the settings.
pub(super) fn jobs(settings: &Settings) -> usize {
    match settings.max_jobs {
        MaxJobs::Count(count) => count,
        MaxJobs::Auto => std::thread::available_parallelism().map_or(1, Into::into),
    }
}

/// One wanted output a line, in the order in which they were asked for.
fn print_outputs(store: &Store, wanted: &[Wanted], results: &[BuildResult]) {
    for one in wanted {
        let Some(result) = results.iter().find(|result| result.derivation == one.derivation) else { continue };
        for (name, path) in &result.outputs {
            if one.outputs.is_empty() || one.outputs.contains(name) {
                println!("{}", store.dir().display(path));
            }
        }
    }
}

/// A derivation as a person names it: its store path, the file behind it, or only its last name; and outputs.
pub(super) fn target(store: &Store, text: &str) -> Result<Wanted, Failure> {
    let (path, outputs) = match text.rsplit_once(['^', '!']) {
        Some((path, "*")) => (path, BTreeSet::new()),
        Some((path, names)) => (path, names.split(',').map(str::to_owned).collect()),
        None => (text, BTreeSet::new()),
    };
    let real = store.real_dir();
    let name = Path::new(path).strip_prefix(&real).ok().and_then(Path::to_str);
    let derivation = match name {
        Some(name) => name.parse().map_err(|error| Failure(format!("{text}: {error}")))?,
        None if path.contains('/') => store.dir().parse(path).map_err(|error| {
            Failure(format!(
                "{text}: {error}; `anchorhold derivation add FILE` puts a derivation into the store and prints its path"
            ))
        })?,
        None => path.parse().map_err(|error| Failure(format!("{text}: {error}")))?,
    };
    Ok(Wanted { derivation, outputs })
}

/// What the settings say, and the command line instead of them.
fn policy(options: &BuildOptions, settings: &Settings, store: &Store) -> Result<Policy, Failure> {
    let builds = settings.build_dir.clone().unwrap_or_else(|| store.state_dir().join("anchorhold/builds"));
    let mut base = super::policy::by_settings(settings, builds);
    base.upkeep.keys = super::policy::secret_keys(settings)?;
    Ok(Policy {
        cores: options.cores.unwrap_or(base.cores),
        timeout: options.timeout.or(base.timeout),
        max_silent_time: options.max_silent_time.or(base.max_silent_time),
        max_log_size: options.max_build_log_size.or(base.max_log_size),
        memory: options.memory.or(base.memory),
        pids: options.pids.or(base.pids),
        cpu: options.cpu.or(base.cpu),
        keep_failed: options.keep_failed || base.keep_failed,
        ..base
    })
}
