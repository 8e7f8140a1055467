//! `anchorhold audit`: the battery of escape probes, in our rooms and in other sandboxes.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anchorhold_audit::Error;
use anchorhold_audit::audit::{self, Controls, Request};
use anchorhold_audit::facts::{self, Facts};
use anchorhold_audit::report::terminal::{self, Style};
use anchorhold_audit::report::{self, Report};
use anchorhold_audit::vocabulary::Severity;
use anchorhold_audit::{program, verdicts};
use anchorhold_sandbox::outcome::exit_status;
use clap::{Args, ValueEnum};

use super::{Subcommand, command, complain, exit_code, options};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "audit",
    command: || command::<AuditOptions>("audit", "Try to get out of rooms and other sandboxes, and say what is open"),
    run,
};

#[derive(Debug, Args)]
struct AuditOptions {
    /// The sandbox to try [host, room, room:limited, room:nested, room:fetch, room:machines, build, attach, bubblewrap, crun, podman, nsjail, firejail, nspawn,
    /// nix, nix-fixed-output, unshare, or a command line with {} in it]
    ///
    /// May be repeated; `user:` before a word starts it as the ordinary user. Without it: our own rooms.
    #[arg(long = "in", value_name = "SANDBOX", help_heading = "What is tried")]
    sandboxes: Vec<String>,

    /// Leave a layer out of our rooms, to see what it is for
    #[arg(long, value_name = "LAYER", help_heading = "What is tried")]
    without: Vec<anchorhold_sandbox::Layer>,

    /// Only the probes of this id, or of this beginning of an id
    #[arg(long, value_name = "ID", help_heading = "What is tried")]
    only: Vec<String>,

    /// The ordinary user [default: who called sudo, else nobody]
    #[arg(long, value_name = "USER", help_heading = "What is tried")]
    user: Option<String>,

    /// Leave the bare host out; less is proven then
    #[arg(long, help_heading = "What is tried")]
    no_baseline: bool,

    /// Which weakenings are run to see that probes can reach
    #[arg(long, value_name = "WHICH", default_value = "needed", help_heading = "What is tried")]
    controls: WhichControls,

    /// The probe program [default: anchorhold-probe beside anchorhold]
    #[arg(long, value_name = "FILE", env = "ANCHORHOLD_PROBE", help_heading = "What is tried")]
    probe_program: Option<PathBuf>,

    /// Another anchorhold to judge
    #[arg(long, value_name = "FILE", env = "ANCHORHOLD_BIN", hide = true)]
    anchorhold: Option<PathBuf>,

    /// Print the probes, and try nothing
    #[arg(long, help_heading = "Instead")]
    list: bool,

    /// Tell a probe's story, and try nothing
    #[arg(long, value_name = "ID", help_heading = "Instead")]
    explain: Option<String>,

    /// Probes of your own: every executable in this folder (docs/audit.md)
    #[arg(long, value_name = "DIR", help_heading = "What is tried")]
    probes: Vec<PathBuf>,

    /// Compare two files that --facts has printed
    #[arg(long, value_names = ["FILE", "FILE"], num_args = 2, help_heading = "Instead")]
    compare: Vec<PathBuf>,

    /// Collect what tells hosts, boots and runs apart, and print it as JSON
    #[arg(long, help_heading = "Instead")]
    facts: bool,

    /// Print the report as JSON
    #[arg(long, help_heading = "Reports")]
    json: bool,

    /// Write the report to this file, too: SARIF 2.1.0
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    sarif: Option<PathBuf>,

    /// Write the report to this file, too: JUnit XML
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    junit: Option<PathBuf>,

    /// Write the report to this file, too: a page of HTML that needs no other file
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    html: Option<PathBuf>,

    /// Fail, with status 1, when something of this severity or worse is open in a sandbox
    #[arg(long, value_name = "SEVERITY", default_value = "high", help_heading = "Reports")]
    fail_on: FailOn,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhichControls {
    /// Those of probes that nothing else has proven
    Needed,
    /// All of them
    All,
    /// None
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FailOn {
    Critical,
    High,
    Medium,
    Low,
    Never,
}

impl FailOn {
    /// The least severity that fails.
    fn limit(self) -> Option<Severity> {
        match self {
            Self::Critical => Some(Severity::Critical),
            Self::High => Some(Severity::High),
            Self::Medium => Some(Severity::Medium),
            Self::Low => Some(Severity::Low),
            Self::Never => None,
        }
    }
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: AuditOptions = options(matches);
    match audit(&options) {
        Ok(status) => exit_code(status),
        Err(Error::Interrupted) => exit_code(130),
        Err(error) => {
            complain(error);
            exit_code(exit_status::NOT_STARTED)
        }
    }
}

fn audit(options: &AuditOptions) -> Result<i32, Error> {
    let anchorhold = match &options.anchorhold {
        Some(named) => named.clone(),
        None => std::env::current_exe().map_err(|error| Error::File {
            what: "finding",
            path: "/proc/self/exe".into(),
            error,
        })?,
    };
    if options.list || options.explain.is_some() {
        let catalogue = program::list(&program::find(options.probe_program.as_deref(), &anchorhold)?)?;
        match &options.explain {
            Some(id) => {
                let probe = catalogue.find(id).ok_or_else(|| Error::NoProbe(id.clone()))?;
                print!("{}", terminal::explain(probe, width()));
            }
            None => {
                for probe in &catalogue.0 {
                    println!("{:<26} {:<8}  {}", probe.id, probe.severity, probe.title);
                }
            }
        }
        return Ok(0);
    }
    if let [one, other] = options.compare.as_slice() {
        let (text, unexplained) = facts::compare(&read_facts(one)?, &read_facts(other)?);
        print!("{text}");
        return Ok(i32::from(unexplained > 0));
    }
    let request = Request {
        anchorhold,
        probe_program: options.probe_program.clone(),
        sandboxes: options.sandboxes.clone(),
        room_options: options.without.iter().flat_map(|layer| ["--without".to_owned(), layer.to_string()]).collect(),
        only: options.only.clone(),
        user: options.user.clone(),
        no_baseline: options.no_baseline,
        controls: match options.controls {
            _ if options.facts => Controls::None,
            WhichControls::Needed => Controls::Needed,
            WhichControls::All => Controls::All,
            WhichControls::None => Controls::None,
        },
        probes: options.probes.clone(),
        facts: options.facts,
    };
    let shows_progress = std::io::stderr().is_terminal();
    let report = audit::make(&request, &mut |what| {
        if shows_progress {
            eprint!("\r\x1b[K{what} ...");
        }
    });
    if shows_progress {
        eprint!("\r\x1b[K");
    }
    let report = report?;
    for (file, text) in [
        (&options.sarif, report::sarif::write as fn(&Report) -> String),
        (&options.html, report::html::write as fn(&Report) -> String),
    ] {
        if let Some(file) = file {
            std::fs::write(file, text(&report)).map_err(Error::file("writing", file))?;
        }
    }
    if let Some(file) = &options.junit {
        std::fs::write(file, report::junit::write(&report, options.fail_on.limit()))
            .map_err(Error::file("writing", file))?;
    }
    if options.facts {
        print!("{}", Facts::of(&report).to_json());
        return Ok(0);
    }
    if options.json {
        print!("{}", report.to_json());
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        print!("{}", terminal::show(&report, Style { colour, width: width() }));
    }
    Ok(status(&report, options))
}

/// 1 for what is open, 125 when a sandbox that was asked for could not be judged or a control did not fire for no reason, else 0.
fn status(report: &Report, options: &AuditOptions) -> i32 {
    let mut is_judged = true;
    for silent in report.silent.iter().filter(|silent| silent.reason.is_none()) {
        is_judged = false;
        complain(format_args!(
            "the control {} did not make {} reach, and no reason is known: nothing proves that this probe can see its hole",
            silent.control, silent.probe
        ));
    }
    for run in report.runs.iter().filter(|run| !run.baseline && !run.is_whole()) {
        is_judged = false;
        complain(format_args!(
            "{} was not judged: {}",
            run.title(),
            run.problem.as_deref().unwrap_or("it was cut off")
        ));
    }
    let worst = verdicts::worst_open(report);
    if options.fail_on.limit().is_some_and(|limit| worst.is_some_and(|worst| worst <= limit)) {
        1
    } else if is_judged {
        0
    } else {
        exit_status::NOT_STARTED
    }
}

fn read_facts(file: &Path) -> Result<Facts, Error> {
    let text = std::fs::read_to_string(file).map_err(Error::file("reading", file))?;
    serde_json::from_str(&text).map_err(|error| Error::file("reading", file)(error.into()))
}

/// Columns of the terminal; as on paper where there is none.
fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.map_or(0, |size| usize::from(size.ws_col)).clamp(0, 160).max(if size.is_ok() { 60 } else { 100 })
}
