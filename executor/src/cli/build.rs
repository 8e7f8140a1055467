//! `anchorhold build`: derivations, to registered outputs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use anchorhold::build::call::{self, Request};
use anchorhold::build::graph::Wanted;
use anchorhold::build::policy::{self, Policy};
use anchorhold::build::result::{self, BuildResult};
use anchorhold::build::room::SandboxPath;
use anchorhold::config::settings::{MaxJobs, Network, Sandbox, Settings};
use anchorhold::progress::{self, Level, LogFormat};
use anchorhold::store::{Access, Store};
use anchorhold_sandbox::quantity::{Duration, Size};
use anchorhold_sandbox::room::{Network as RoomNetwork, NetworkMode};
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
    let policy = policy(options, &settings, &store);
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
fn policy(options: &BuildOptions, settings: &Settings, store: &Store) -> Policy {
    let mut policy = settings_policy(settings, store);
    policy.cores = options.cores.unwrap_or(policy.cores);
    policy.timeout = options.timeout.or(policy.timeout);
    policy.max_silent_time = options.max_silent_time.or(policy.max_silent_time);
    policy.max_log_size = options.max_build_log_size.or(policy.max_log_size);
    policy.memory = options.memory.or(policy.memory);
    policy.pids = options.pids.or(policy.pids);
    policy.cpu = options.cpu.or(policy.cpu);
    policy.keep_failed |= options.keep_failed;
    policy
}

/// What the settings say.
pub(super) fn settings_policy(settings: &Settings, store: &Store) -> Policy {
    let time = |time: std::time::Duration| Duration(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let mut features: BTreeSet<String> = settings.system_features.iter().cloned().collect();
    // A word alone gives nobody a device: a build that requires it would find out in the middle of its work.
    if features.contains(policy::KVM) && anchorhold_sandbox::kvm::probe(rustix::process::geteuid().is_root()).is_err() {
        features.remove(policy::KVM);
    }
    Policy {
        system: settings.system.clone(),
        extra_platforms: settings.extra_platforms.iter().cloned().collect(),
        features,
        relaxed: settings.sandbox == Sandbox::Relaxed,
        sandbox_paths: settings.sandbox_paths.iter().map(|text| SandboxPath::parse(text)).collect(),
        build_dir: settings.sandbox_build_dir.display().to_string(),
        builds: settings.build_dir.clone().unwrap_or_else(|| store.state_dir().join("anchorhold/builds")),
        shm_size: settings.sandbox_dev_shm_size,
        cores: u32::try_from(settings.cores).unwrap_or(u32::MAX),
        timeout: settings.timeout.map(time),
        max_silent_time: settings.max_silent_time.map(time),
        max_log_size: settings.max_build_log_size.map(Size::Bytes),
        memory: settings.memory,
        pids: settings.pids,
        cpu: settings.cpu,
        fetch: RoomNetwork {
            mode: Some(match settings.network {
                Network::Pasta => NetworkMode::Pasta,
                Network::None => NetworkMode::None,
            }),
            allow: settings.network_allow.clone(),
            refuse: settings.network_refuse.clone(),
            only_allowed: settings.network_only_allowed,
            dns: None,
        },
        impure_environment: settings.impure_env.clone(),
        keep_failed: settings.keep_failed,
        log_lines: settings.log_lines,
    }
}
