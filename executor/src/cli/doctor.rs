//! `anchorhold doctor`: what this machine offers, layer by layer.
//!
//! The exit status is 0 when the default room can be made, which is tried, and 1 when it cannot.
//!
//! `--json` prints one object. Fields may come, none goes or changes its meaning as long as `version` is 1:
//!
//! | key | meaning |
//! |---|---|
//! | `version` | of this form: 1 |
//! | `made_by`, `kernel`, `uid`, `privileged` | the program, `uname -r`, the caller's uid, whether it can give rooms ids of their own |
//! | `default_room.verdict` | `works`, `weaker` (made, but a layer is less than it could be) or `missing` (cannot be made) |
//! | `default_room.failure` | null, or `layer` (may be null), `message`, `fix` (may be null) |
//! | `default_room.seal` | what the kernel showed of the room, as `run --seal` writes it; null when it was not made |
//! | `diagnoses` | a list, see below |
//! | `nix` | the Nix on this machine: `present`, `program`, `version` (both may be null), `doors` (those in force, the strongest first: `attach`, `hook`, `store-server`), `diagnoses` (each with `aspect`, `verdict`, `found`, `fix`) |
//!
//! Each diagnosis has `group` (`room`: a layer of that room; `host`: what it needs; `option`: what can be asked for; `setting`),
//! `aspect` (with the group its stable name), `layer` (or null), `verdict` (`works`, `weaker`, `missing`, `info`), `found` (words,
//! with the kernel's answer) and `fix` (words, or null).
//!
//! What is said of Nix changes nothing about the exit status: rooms can be made without one.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anchorhold::nix_config::installed::{self, NixReport};
use anchorhold::nix_config::judge::Finding;
use anchorhold_sandbox::diagnosis::{Diagnosis, Group, Payload, Report, Verdict, examine};
use clap::Args;
use serde::Serialize;

use super::{Subcommand, command, complain, options};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "doctor",
    command: || command::<DoctorOptions>("doctor", "Say what this machine offers, layer by layer, and what to mend"),
    run,
};

#[derive(Debug, Args)]
struct DoctorOptions {
    /// Print it as JSON
    #[arg(long)]
    json: bool,

    /// Exit at once: what runs in the rooms that are made to see whether they can be
    #[arg(long, hide = true)]
    in_trial_room: bool,
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: DoctorOptions = options(matches);
    if options.in_trial_room {
        return ExitCode::SUCCESS;
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            complain(format_args!(
                "cannot find this program's own file, which the trial room runs: /proc/self/exe: {error}"
            ));
            return ExitCode::FAILURE;
        }
    };
    let report = examine(&Payload { program, arguments: vec!["doctor".into(), "--in-trial-room".into()] });
    let nix = installed::examine();
    let text = if options.json {
        match serde_json::to_string_pretty(&Everything { report: &report, nix: &nix }) {
            Ok(text) => format!("{text}\n"),
            Err(error) => {
                complain(error);
                return ExitCode::FAILURE;
            }
        }
    } else {
        let page = Page::of_stdout();
        in_words(&report, page) + &of_nix(&nix, page)
    };
    // A reader that has seen enough is no failure of ours; the exit status says what it always says.
    let _ = io::stdout().write_all(text.as_bytes());
    if report.works() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Serialize)]
struct Everything<'a> {
    #[serde(flatten)]
    report: &'a Report,
    nix: &'a NixReport,
}

/// What is written on.
#[derive(Clone, Copy)]
struct Page {
    colour: bool,
    /// Columns; lines are not broken where there is no terminal, so that each can be searched for.
    width: Option<usize>,
}

impl Page {
    fn of_stdout() -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        // https://no-color.org: set and not empty.
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let able = std::env::var_os("TERM").is_some_and(|kind| kind != "dumb");
        let size = anchorhold_sandbox::sys::device::window_size(stdout.as_fd()).ok();
        let width = size.map(|size| usize::from(size.ws_col)).filter(|columns| terminal && *columns >= 60);
        Self { colour: terminal && wanted && able, width }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Text from column `indent` on, its first line without the indent.
    fn broken(self, text: &str, indent: usize) -> String {
        let Some(width) = self.width else { return text.to_owned() };
        let room = width.saturating_sub(indent).max(20);
        let mut lines = vec![String::new()];
        for word in text.split(' ') {
            let line = lines.last().map_or(0, |line| line.chars().count());
            if line > 0 && line + 1 + word.chars().count() > room {
                lines.push(String::new());
            }
            if let Some(line) = lines.last_mut() {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
        }
        lines.join(&format!("\n{:indent$}", ""))
    }
}

fn colour(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Works => "32",
        Verdict::Weaker => "33",
        Verdict::Missing => "31",
        Verdict::Info => "2",
    }
}

/// The report for people.
fn in_words(report: &Report, page: Page) -> String {
    let mut text = headline(report, page);
    for group in Group::ALL {
        let heading = match group {
            Group::Room if report.works() => "The default room, made just now, each layer read back from the kernel",
            Group::Room => "The default room, tried just now",
            Group::Host => "What it needs of this machine",
            Group::Option => "What a room can be given when asked",
            Group::Setting => "For information: no room depends on these",
        };
        text.push_str(&format!("\n{}\n", page.paint("1", heading)));
        let widest = report.of(group).map(|one| one.aspect.len()).max().unwrap_or(0);
        let mut above = None;
        for diagnosis in report.of(group) {
            text.push_str(&row(diagnosis.into(), widest, above, page));
            above = diagnosis.fix.as_deref();
        }
    }
    text
}

/// How it stands with Nix, for people.
fn of_nix(nix: &NixReport, page: Page) -> String {
    if !nix.present {
        return "\nThere is no Nix on this machine, and none is needed.\n".to_owned();
    }
    let mut text = format!("\n{}\n", page.paint("1", "The Nix on this machine, and whether its builds come here"));
    let widest = nix.diagnoses.iter().map(|one| one.aspect.len()).max().unwrap_or(0);
    for finding in &nix.diagnoses {
        text.push_str(&row(finding.into(), widest, None, page));
    }
    text
}

fn headline(report: &Report, page: Page) -> String {
    let verdict = report.default_room.verdict;
    let line = match verdict {
        Verdict::Missing => "The default room cannot be made.",
        Verdict::Weaker => "The default room can be made, but a layer of it is weaker than it could be.",
        Verdict::Works | Verdict::Info => "The default room can be made.",
    };
    let mut text = format!("{}\n", page.paint(&format!("1;{}", colour(verdict)), line));
    if let Some(failure) = &report.default_room.failure {
        let layer = failure.layer.map_or(String::new(), |layer| format!("{layer}: "));
        text.push_str(&page.broken(&format!("{layer}{}.", failure.message), 0));
        text.push('\n');
    }
    let count = |verdict| report.diagnoses.iter().filter(|one| one.verdict == verdict).count();
    let who = match (report.privileged, report.uid) {
        (true, _) => "as root".to_owned(),
        (false, uid) => format!("as uid {uid}, unprivileged"),
    };
    let kernel = &report.kernel;
    let (works, weaker, missing) = (count(Verdict::Works), count(Verdict::Weaker), count(Verdict::Missing));
    text.push_str(&page.broken(
        &format!(
            "Linux {kernel}, {who}: {works} work, {weaker} weaker, {missing} missing; below each of these is its fix."
        ),
        0,
    ));
    text.push('\n');
    text
}

/// What a row shows.
#[derive(Clone, Copy)]
struct Row<'a> {
    aspect: &'a str,
    verdict: Verdict,
    found: &'a str,
    fix: Option<&'a str>,
}

impl<'a> From<&'a Diagnosis> for Row<'a> {
    fn from(one: &'a Diagnosis) -> Self {
        Self { aspect: one.aspect, verdict: one.verdict, found: &one.found, fix: one.fix.as_deref() }
    }
}

impl<'a> From<&'a Finding> for Row<'a> {
    fn from(one: &'a Finding) -> Self {
        Self { aspect: one.aspect, verdict: one.verdict, found: &one.found, fix: one.fix.as_deref() }
    }
}

/// One row. `above` is the fix of the one before: what mends several is not read several times.
fn row(shown: Row<'_>, widest: usize, above: Option<&str>, page: Page) -> String {
    const MARGIN: usize = 2;
    const VERDICT: usize = 9;
    let indent = MARGIN + VERDICT + widest + 2;
    let verdict = page.paint(colour(shown.verdict), &format!("{:<VERDICT$}", shown.verdict.name()));
    let found = page.broken(shown.found, indent);
    let mut text = format!("{:MARGIN$}{verdict}{:<widest$}  {found}\n", "", shown.aspect);
    if let Some(fix) = shown.fix {
        let inner = indent + "fix: ".len();
        let fix = if above == Some(fix) { "as above" } else { fix };
        text.push_str(&format!("{:indent$}{} {}\n", "", page.paint("1", "fix:"), page.broken(fix, inner)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis(found: &str) -> Diagnosis {
        Diagnosis {
            group: Group::Host,
            aspect: "procfs",
            layer: None,
            verdict: Verdict::Missing,
            found: found.into(),
            fix: Some("unmask it".into()),
        }
    }

    #[test]
    fn a_row_without_a_terminal_is_one_line_and_its_fix_another() {
        let page = Page { colour: false, width: None };
        let long = "word ".repeat(60);
        let text = row((&diagnosis(long.trim())).into(), 8, None, page);
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().nth(1).unwrap().trim_start().starts_with("fix: unmask it"));
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn a_row_on_a_terminal_stays_inside_it() {
        let page = Page { colour: false, width: Some(60) };
        let text = row((&diagnosis("word ".repeat(60).trim())).into(), 8, None, page);
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert!(text.lines().nth(1).unwrap().starts_with(&" ".repeat(21)), "{text}");
    }

    #[test]
    fn a_fix_is_not_said_twice_in_a_row() {
        let page = Page { colour: false, width: None };
        assert!(row((&diagnosis("x")).into(), 8, Some("unmask it"), page).ends_with("fix: as above\n"));
        assert!(row((&diagnosis("x")).into(), 8, Some("another"), page).ends_with("fix: unmask it\n"));
    }

    #[test]
    fn colour_is_put_around_the_verdict_alone() {
        let text = row((&diagnosis("x")).into(), 8, None, Page { colour: true, width: None });
        assert!(text.contains("\x1b[31mmissing  \x1b[0mprocfs"), "{text:?}");
    }
}
