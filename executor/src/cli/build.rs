//! `anchorhold build`: derivations, to registered outputs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anchorhold::build::call::{self, Request};
use anchorhold::build::graph::Wanted;
use anchorhold::build::policy::Policy;
use anchorhold::build::record;
use anchorhold::build::result::{self, BuildResult, Status};
use anchorhold::config::settings::{MaxJobs, Settings};
use anchorhold::progress::{self, Level, LogFormat};
use anchorhold::store::{Access, Store};
use anchorhold::store_path::StorePath;
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
pub(super) struct BuildOptions {
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

    /// Make LINK a link to the output, which keeps it for as long as the link is there; other outputs have their names
    /// behind LINK, further derivations a number
    #[arg(long, value_name = "LINK", conflicts_with = "check")]
    root: Option<PathBuf>,

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

impl BuildOptions {
    /// The command that makes the same build in the same way again, but for the derivation.
    fn again(&self, store: &Store) -> String {
        fn given<T: ToString>(name: &str, value: Option<&T>) -> Option<[String; 2]> {
            value.map(|value| [name.to_owned(), value.to_string()])
        }
        let mut words = vec!["anchorhold".to_owned(), "build".to_owned()];
        words.extend(["--store".to_owned(), store.root().display().to_string()]);
        words.extend(self.config.arguments().iter().map(|word| word.to_string_lossy().into_owned()));
        let limits = [
            given("--cores", self.cores.as_ref()),
            given("--timeout", self.timeout.as_ref()),
            given("--max-silent-time", self.max_silent_time.as_ref()),
            given("--max-build-log-size", self.max_build_log_size.as_ref()),
            given("--memory", self.memory.as_ref()),
            given("--pids", self.pids.as_ref()),
            given("--cpu", self.cpu.as_ref()),
        ];
        words.extend(limits.into_iter().flatten().flatten());
        words.extend(self.check.then(|| "--check".to_owned()));
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

/// As one word of a shell, in quotes only where it needs them.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=:,+@%^".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    carry_out(&options(matches))
}

/// As [`run`], saving machines that are not saved yet.
pub(super) fn run_saving(matches: &clap::ArgMatches) -> ExitCode {
    let mut options: BuildOptions = options(matches);
    options.config.give("vm-save", "true");
    carry_out(&options)
}

fn carry_out(options: &BuildOptions) -> ExitCode {
    match build(options) {
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
    if let Some(link) = &options.root {
        add_roots(&store, link, &wanted, &results)?;
    }
    if options.json {
        let list: Vec<_> = results.iter().map(|result| told(&store, result)).collect();
        println!("{}", serde_json::to_string_pretty(&list)?);
    } else {
        print_outputs(&store, &wanted, &results);
    }
    // A wanted build that was not begun because another failed has failed as well.
    Ok(result::exit_code(results.iter().map(|result| result.status)).max(u8::from(
        asked.iter().any(|path| !results.iter().any(|result| result.derivation == *path && result.status.is_success())),
    )))
}

/// A result as it is printed. Of outputs that were there, the account and the seal of the build that made them, if it was one
/// of ours.
fn told(store: &Store, result: &BuildResult) -> serde_json::Value {
    let mut told = result.to_json(store.dir());
    if result.status == Status::AlreadyValid
        && let Ok(record) = record::read(&store.state_dir(), &result.derivation)
        && record["success"] == true
    {
        for key in ["account", "refused", "seal"] {
            told[key] = record[key].clone();
        }
    }
    told
}

/// Links as Nix names them: `result`, `result-dev`, `result-1`, `result-1-dev`.
fn add_roots(store: &Store, link: &Path, wanted: &[Wanted], results: &[BuildResult]) -> Result<(), Failure> {
    for (number, one) in wanted.iter().enumerate() {
        let mut base = link.as_os_str().to_owned();
        if number > 0 {
            base.push(format!("-{number}"));
        }
        for (name, path) in outputs_of(one, results) {
            let mut link = base.clone();
            if name != "out" {
                link.push(format!("-{name}"));
            }
            store.add_indirect_root(path, Path::new(&link))?;
        }
    }
    Ok(())
}

/// The outputs that are asked for by one wanted derivation, as far as they are there.
fn outputs_of<'a>(one: &'a Wanted, results: &'a [BuildResult]) -> impl Iterator<Item = (&'a String, &'a StorePath)> {
    results
        .iter()
        .filter(|result| result.derivation == one.derivation)
        .flat_map(|result| &result.outputs)
        .filter(|(name, _)| one.outputs.is_empty() || one.outputs.contains(*name))
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
    for (_, path) in wanted.iter().flat_map(|one| outputs_of(one, results)) {
        println!("{}", store.dir().display(path));
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
    let mut policy = super::policy::of_store(settings, store)?;
    policy.again = Some(options.again(store));
    policy.cores = options.cores.unwrap_or(policy.cores);
    policy.timeout = options.timeout.or(policy.timeout);
    policy.max_silent_time = options.max_silent_time.or(policy.max_silent_time);
    policy.max_log_size = options.max_build_log_size.or(policy.max_log_size);
    policy.memory = options.memory.or(policy.memory);
    policy.pids = options.pids.or(policy.pids);
    policy.cpu = options.cpu.or(policy.cpu);
    policy.keep_failed |= options.keep_failed;
    Ok(policy)
}
