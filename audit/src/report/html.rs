//! The report as one HTML file that needs nothing else: no script, no font, no picture from anywhere.

use std::fmt::Write;

use anchorhold_probe::vocabulary::{Row, Severity};

use super::junit::escape;
use super::{Report, Run};
use crate::catalogue::Probe;
use crate::verdicts::{self, Counts, State};

/// The page.
pub fn write(report: &Report) -> String {
    let mut page = String::new();
    let counted = report.catalogue.0.iter().filter(|probe| probe.severity != Severity::Fact).count();
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>anchorhold audit</title><style>{STYLE}</style></head><body>\n<h1>What is open</h1>\n\
         <p>{counted} probes on Linux {} ({}), anchorhold {}, {}.</p>\n",
        escape(&report.kernel),
        escape(&report.machine),
        escape(&report.version),
        date(report.time),
    );
    summary(&mut page, report);
    let judged: Vec<&Run> = report.runs.iter().filter(|run| !run.battery.rows.is_empty()).collect();
    page.push_str(
        "<h2>Side by side</h2>\n<p class=\"key\"><b class=\"open\">open</b> the attempt worked &nbsp; <b class=\"granted\">granted</b> it was asked for \
         &nbsp; <b class=\"closed\">·</b> refused, and seen to work under a weakening &nbsp; <b class=\"unproven\">~</b> refused, but \
         nothing on this kernel made the probe reach &nbsp; <b class=\"unproven\">?</b> not shown &nbsp; <b class=\"closed\">–</b> the host has it \
         neither, or the sandbox has nothing of the kind. A row opens on a click.</p>\n",
    );
    for severity in Severity::COUNTED {
        matrix(&mut page, report, &judged, severity);
    }
    commands(&mut page, report);
    controls(&mut page, report);
    page.push_str("</body></html>\n");
    page
}

/// Counts of each sandbox, as bars.
fn summary(page: &mut String, report: &Report) {
    page.push_str(
        "<table class=\"summary\"><tr><th>sandbox</th><th>version</th><th>critical</th><th>high</th><th>medium</th><th>low</th>\
         <th>open</th><th>unproven</th><th>not shown</th></tr>\n",
    );
    let most = report.runs.iter().map(|run| Counts::of(report, run).all(State::Open)).max().unwrap_or(0).max(1);
    for run in &report.runs {
        let class = if run.baseline { " class=\"baseline\"" } else { "" };
        let _ = write!(
            page,
            "<tr{class}><td>{}{}</td><td>{}</td>",
            escape(&run.title()),
            if run.baseline { " <i>(no sandbox)</i>" } else { "" },
            escape(run.version.as_deref().unwrap_or(""))
        );
        if run.battery.rows.is_empty() {
            let _ = writeln!(
                page,
                "<td colspan=\"7\" class=\"problem\">did not run: {}</td></tr>",
                escape(run.problem.as_deref().unwrap_or(""))
            );
            continue;
        }
        let counts = Counts::of(report, run);
        for severity in Severity::COUNTED {
            let open = counts.get(severity, State::Open);
            let _ =
                write!(page, "<td class=\"number {}\">{open}</td>", if open > 0 { severity.name() } else { "none" });
        }
        page.push_str("<td class=\"bar\"><span class=\"track\">");
        for severity in Severity::COUNTED {
            let share = counts.get(severity, State::Open) * 1000 / most;
            let _ = write!(
                page,
                "<span class=\"{}\" style=\"width:{}.{}%\"></span>",
                severity.name(),
                share / 10,
                share % 10
            );
        }
        let _ = write!(
            page,
            "</span> {}</td><td class=\"number\">{}</td><td class=\"number\">{}</td></tr>",
            counts.all(State::Open),
            counts.all(State::Unproven),
            counts.all(State::Inconclusive) + counts.all(State::Lost)
        );
        if let Some(problem) = &run.problem {
            let _ = write!(page, "<tr><td></td><td colspan=\"8\" class=\"problem\">{}</td></tr>", escape(problem));
        }
        page.push('\n');
    }
    page.push_str("</table>\n");
}

/// The probes of one severity against all sandboxes.
fn matrix(page: &mut String, report: &Report, runs: &[&Run], severity: Severity) {
    let mut probes: Vec<&Probe> = report.catalogue.0.iter().filter(|probe| probe.severity == severity).collect();
    if probes.is_empty() {
        return;
    }
    probes.sort_by_key(|probe| probe.layer().to_owned());
    let _ = write!(page, "<h3 class=\"{0}\">{0}</h3>\n<table class=\"matrix\"><tr><th></th><th></th>", severity.name());
    for run in runs {
        let class = if run.baseline { " class=\"baseline\"" } else { "" };
        let _ = write!(page, "<th{class}><span>{}</span></th>", escape(&run.title()));
    }
    page.push_str("</tr>\n");
    for probe in probes {
        let proof = verdicts::proof(report, probe).map_or_else(
            || "nothing made it reach on this kernel".to_owned(),
            |proof| format!("seen to reach in: {proof}"),
        );
        let _ = write!(
            page,
            "<tr><td><code>{}</code></td><td><details><summary>{}</summary><p>{}</p><p><b>Tries:</b> {}</p><p><b>Safe:</b> {}</p><p>{}</p><p>{}</p></details></td>",
            escape(&probe.id),
            escape(&probe.title),
            escape(&probe.meaning),
            escape(&probe.tries),
            escape(&probe.safe),
            escape(&probe.reference),
            escape(&proof),
        );
        for run in runs {
            let state = verdicts::state(report, run, probe);
            let (class, mark) = match state {
                State::Open if run.baseline => ("host", "open"),
                State::Open => ("open", "open"),
                State::Granted => ("granted", "granted"),
                State::Closed => ("closed", "·"),
                State::NotApplicable => ("closed", "–"),
                State::Unproven => ("unproven", "~"),
                State::Inconclusive => ("unproven", "?"),
                State::Lost => ("unproven", "!"),
                State::Fact => ("closed", "i"),
            };
            let answer = run.battery.row(&probe.id).map(Row::answer).unwrap_or_default();
            let _ = write!(page, "<td class=\"{class}\" title=\"{}: {}\">{mark}</td>", state.name(), escape(&answer));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
}

/// How each was started: a comparison without command lines is none.
fn commands(page: &mut String, report: &Report) {
    page.push_str("<h2>Command lines</h2>\n<p><code>$RUN</code> is the folder of the run, <code>{…}</code> the description of the observers.</p>\n<dl>\n");
    for run in report.runs.iter().filter(|run| !run.command.is_empty()) {
        let _ =
            writeln!(page, "<dt>{}</dt><dd><code>{}</code></dd>", escape(&run.title()), escape(&run.command.join(" ")));
    }
    page.push_str("</dl>\n");
}

/// The weakenings that were run.
fn controls(page: &mut String, report: &Report) {
    if report.controls.is_empty() {
        return;
    }
    page.push_str("<h2>Controls</h2>\n<p>Weakenings of our own room and other ways to open a hole, run for what the bare host had not proven.</p>\n<table><tr><th>control</th><th>weakening</th><th>reached</th><th>did not reach</th></tr>\n");
    for run in &report.controls {
        let silent: Vec<&str> = run.silent.iter().map(|(id, _)| id.as_str()).collect();
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td><code>{}</code>{}</td><td>{}</td><td>{}</td></tr>",
            run.control,
            escape(&run.how),
            run.problem
                .as_ref()
                .map(|problem| format!(" <span class=\"problem\">{}</span>", escape(problem)))
                .unwrap_or_default(),
            escape(&run.fired.join(", ")),
            escape(&silent.join(", "))
        );
    }
    page.push_str("</table>\n");
    if report.silent.is_empty() {
        return;
    }
    page.push_str("<h2>Controls that did not fire</h2>\n<table><tr><th>probe</th><th>control</th><th>why</th></tr>\n");
    for silent in &report.silent {
        let why = match &silent.reason {
            Some(reason) => escape(reason),
            None => "<span class=\"problem\">no reason is known</span>".to_owned(),
        };
        let _ = writeln!(page, "<tr><td>{}</td><td>{}</td><td>{why}</td></tr>", escape(&silent.probe), silent.control);
    }
    page.push_str("</table>\n");
}

/// Year, month and day of a time in seconds since 1970 (Howard Hinnant's `civil_from_days`).
fn date(seconds: u64) -> String {
    let days = i64::try_from(seconds / 86_400).unwrap_or(0) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--critical:#a4001d;--high:#d9480f;--medium:#b8860b;--low:#3b6ea5}\
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:110rem;padding:0 1rem}\
h1,h2,h3{line-height:1.2}h3{margin:1.6rem 0 .3rem;text-transform:capitalize}\
h3.critical{color:var(--critical)}h3.high{color:var(--high)}h3.medium{color:var(--medium)}h3.low{color:var(--low)}\
table{border-collapse:collapse}td,th{padding:.15rem .5rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}\
th{font-weight:600}code{font:13px/1.4 ui-monospace,monospace;overflow-wrap:anywhere}\
.summary th:nth-child(n+3):not(:nth-child(7)),.number{text-align:right;font-variant-numeric:tabular-nums}.none{opacity:.45}\
td.critical,td.high,td.medium,td.low{font-weight:700}td.critical{color:var(--critical)}td.high{color:var(--high)}td.medium{color:var(--medium)}td.low{color:var(--low)}\
.baseline{opacity:.7}.problem{color:var(--high)}\
.bar{white-space:nowrap}.track{display:inline-flex;width:14rem;height:.8rem;background:#8882;vertical-align:middle}\
.track span{display:block;height:100%}.track .critical{background:var(--critical)}.track .high{background:var(--high)}.track .medium{background:var(--medium)}.track .low{background:var(--low)}\
.matrix td:nth-child(n+3){text-align:center}.matrix th{vertical-align:bottom}.matrix th span{writing-mode:vertical-rl;transform:rotate(180deg);font-weight:500;max-height:13rem}\
.matrix td:nth-child(2){min-width:17rem}.matrix{font-size:13px}.matrix code{white-space:nowrap;font-size:12px}.matrix td:nth-child(n+3){min-width:2.7rem;padding:.15rem}.matrix tr:hover td{background-color:#8881}.matrix tr:hover td.open{background:var(--critical)}\
td.open,b.open{background:var(--critical);color:#fff;font-weight:700}b.open,b.granted{padding:0 .3rem}\
td.granted,b.granted{background:#7b5ea7;color:#fff}td.host{background:#8883}td.closed,b.closed{color:#2b8a3e;font-weight:700}td.unproven,b.unproven{color:var(--medium);font-weight:700}\
summary{cursor:pointer}details p{margin:.3rem 0;max-width:60rem}dd{margin:0 0 .6rem 1rem}";
