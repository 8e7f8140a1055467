//! `anchorhold build`: derivations, to registered outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;

use anchorhold::build::call::{self, Request};
use anchorhold::build::graph::Wanted;
use anchorhold::build::policy::{self, Policy};
use anchorhold::build::result::{self, BuildResult};
use anchorhold::build::room::SandboxPath;
use anchorhold::progress::{LogFormat, Reporter};
use anchorhold::store::{Access, Store};
use anchorhold_sandbox::quantity::{Duration, Size};
use anchorhold_sandbox::room::NetworkMode;
use clap::Args;

use super::store_root::StoreRoot;
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
    store: StoreRoot,

    /// Derivations in the store; `^out,dev` behind one asks for some of its outputs only
    #[arg(required = true, value_name = "DRV")]
    targets: Vec<String>,

    /// How many builds run at once
    #[arg(long, short, value_name = "N", default_value_t = 1)]
    jobs: usize,

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
    #[arg(long, value_name = "N", default_value_t = 0)]
    cores: u32,

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

    /// A path that every builder sees, read-only [INSIDE[=OUTSIDE][?]; default: /bin/sh=/bin/busybox?]
    #[arg(long, value_name = "PATH", help_heading = "Room")]
    sandbox_path: Vec<String>,

    /// The network of builds whose output is known beforehand: pasta or none
    #[arg(long, value_name = "MODE", help_heading = "Room", default_value = "pasta", value_parser = fetch_network)]
    fetch_network: NetworkMode,

    /// Let derivations with `__noChroot` see the host's files and network
    #[arg(long, help_heading = "Room")]
    relaxed: bool,

    /// How progress is shown: bar, raw or internal-json [default: bar on a terminal, else raw]
    #[arg(long, value_name = "FORMAT", help_heading = "Reports")]
    log_format: Option<LogFormat>,

    /// How many lines of a failed build's log are repeated
    #[arg(long, value_name = "N", help_heading = "Reports", default_value_t = 25)]
    log_lines: usize,

    /// Print the results as JSON, with account and seal
    #[arg(long, help_heading = "Reports")]
    json: bool,
}

fn fetch_network(text: &str) -> Result<NetworkMode, String> {
    match text.parse()? {
        NetworkMode::Host => Err("builds are never given the host's own network".to_owned()),
        mode => Ok(mode),
    }
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: BuildOptions = options(matches);
    match build(&options) {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            complain(why);
            ExitCode::from(1)
        }
    }
}

fn build(options: &BuildOptions) -> Result<u8, String> {
    let root = options.store.root();
    let store = Store::open(&root, Access::ReadWrite).map_err(|error| error.to_string())?;
    let wanted = options.targets.iter().map(|text| target(&store, text)).collect::<Result<Vec<_>, _>>()?;
    let asked: BTreeSet<_> = wanted.iter().map(|one| one.derivation.clone()).collect();
    let request = Request {
        wanted: wanted.clone(),
        jobs: options.jobs.max(1),
        keep_going: options.keep_going,
        check: options.check,
    };
    let reporter: Box<dyn Reporter> = LogFormat::choose(options.log_format).reporter(store.dir());
    let results =
        call::build(&store, &policy(options, &store), &request, &*reporter).map_err(|error| error.to_string())?;
    drop(reporter);
    if options.json {
        let list: Vec<_> = results.iter().map(|result| result.to_json(store.dir())).collect();
        println!("{}", serde_json::to_string_pretty(&list).map_err(|error| error.to_string())?);
    } else {
        print_outputs(&store, &wanted, &results);
    }
    // A wanted build that was not begun because another failed has failed as well.
    Ok(result::exit_code(results.iter().map(|result| result.status)).max(u8::from(
        asked.iter().any(|path| !results.iter().any(|result| result.derivation == *path && result.status.is_success())),
    )))
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
fn target(store: &Store, text: &str) -> Result<Wanted, String> {
    let (path, outputs) = match text.rsplit_once(['^', '!']) {
        Some((path, "*")) => (path, BTreeSet::new()),
        Some((path, names)) => (path, names.split(',').map(str::to_owned).collect()),
        None => (text, BTreeSet::new()),
    };
    let real = store.real_dir();
    let name = Path::new(path).strip_prefix(&real).ok().and_then(Path::to_str);
    let derivation = match name {
        Some(name) => name.parse().map_err(|error| format!("{text}: {error}"))?,
        None if path.contains('/') => store.dir().parse(path).map_err(|error| {
            format!(
                "{text}: {error}; `anchorhold derivation add FILE` puts a derivation into the store and prints its path"
            )
        })?,
        None => path.parse().map_err(|error| format!("{text}: {error}"))?,
    };
    Ok(Wanted { derivation, outputs })
}

fn policy(options: &BuildOptions, store: &Store) -> Policy {
    let mut features: BTreeSet<String> =
        ["benchmark", "big-parallel", policy::NESTED].into_iter().map(str::to_owned).collect();
    if anchorhold_sandbox::kvm::probe(rustix::process::geteuid().is_root()).is_ok() {
        features.insert(policy::KVM.to_owned());
    }
    let native = policy::native_system();
    let extra_platforms =
        if native == "x86_64-linux" { BTreeSet::from(["i686-linux".to_owned()]) } else { BTreeSet::new() };
    let paths = match options.sandbox_path.as_slice() {
        [] => vec![SandboxPath::parse("/bin/sh=/bin/busybox?")],
        given => given.iter().map(|text| SandboxPath::parse(text)).collect(),
    };
    Policy {
        system: native,
        extra_platforms,
        features,
        relaxed: options.relaxed,
        sandbox_paths: paths,
        build_dir: "/build".to_owned(),
        builds: store.state_dir().join("anchorhold/builds"),
        shm_size: Size::Share(50),
        cores: options.cores,
        timeout: options.timeout,
        max_silent_time: options.max_silent_time,
        max_log_size: options.max_build_log_size,
        memory: options.memory,
        pids: options.pids,
        cpu: options.cpu,
        fetch: options.fetch_network,
        impure_environment: BTreeMap::new(),
        keep_failed: options.keep_failed,
        log_lines: options.log_lines,
    }
}
