//! `anchorhold store gc` and `roots`.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anchorhold::store::{Access, GcPolicy, GcReport, Store};
use clap::Args;
use serde_json::json;

use super::{Failure, StorePlace, complain, notice, parse_paths, print, print_json, size};

#[derive(Debug, Args)]
#[group(id = "looking", multiple = false)]
pub(super) struct Looking {
    /// List the roots; remove nothing
    #[arg(long)]
    print_roots: bool,

    /// List the paths that a root needs; remove nothing
    #[arg(long)]
    print_live: bool,

    /// List the paths that would be removed; remove nothing
    #[arg(long)]
    print_dead: bool,

    /// Remove just these paths, which no root and no other path may need
    #[arg(long, value_name = "PATH", num_args = 1..)]
    delete: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct GcOptions {
    #[command(flatten)]
    looking: Looking,

    /// Stop when this much is free: bytes, or with K, M, G or T
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "looking")]
    max_freed: Option<u64>,

    /// First remove the generations of profiles that were out of use this long ago, such as 30d
    #[arg(long, value_name = "AGE", value_parser = parse_age, conflicts_with = "looking")]
    delete_older_than: Option<Duration>,

    /// First remove all generations of profiles but the current ones
    #[arg(long, short = 'd', conflicts_with_all = ["looking", "delete_older_than"])]
    delete_old: bool,

    /// Remove derivations too whose outputs are needed
    #[arg(long)]
    no_keep_derivations: bool,

    /// Keep the outputs of needed derivations
    #[arg(long)]
    keep_outputs: bool,

    /// Remove what running processes use
    #[arg(long)]
    ignore_processes: bool,

    /// Print the account as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RootsOptions {
    /// Without what running processes use
    #[arg(long)]
    ignore_processes: bool,

    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(place: &StorePlace, options: &GcOptions) -> Result<ExitCode, Failure> {
    let looking = &options.looking;
    let policy = GcPolicy {
        keep_derivations: !options.no_keep_derivations,
        keep_outputs: options.keep_outputs,
        runtime_roots: !options.ignore_processes,
    };
    if looking.print_roots {
        let ignore_processes = options.ignore_processes;
        return roots(place, &RootsOptions { ignore_processes, json: options.json });
    }
    if looking.print_live || looking.print_dead {
        let store = place.open(Access::ReadOnly)?;
        let (live, dead) = store.live_and_dead(policy)?;
        let paths = if looking.print_live { live } else { dead };
        return print(paths.iter().map(|path| store.dir().display(path)));
    }
    let store = place.open(Access::ReadWrite)?;
    if options.delete_old || options.delete_older_than.is_some() {
        for link in store.delete_generations(options.delete_older_than, false)? {
            notice(&format!("removed the generation ‘{}’", link.display()));
        }
    }
    let report = if looking.delete.is_empty() {
        store.collect_garbage(policy, options.max_freed, &mut notice)?
    } else {
        store.delete_paths(&parse_paths(&store, &looking.delete)?, policy, &mut notice)?
    };
    for line in &report.warnings {
        complain(line);
    }
    account(&store, &report, options.json)
}

fn account(store: &Store, report: &GcReport, as_json: bool) -> Result<ExitCode, Failure> {
    if as_json {
        return print_json(&json!({
            "deleted": report.deleted.iter().map(|path| store.dir().display(path)).collect::<Vec<_>>(),
            "leftovers": report.leftovers,
            "links": report.links,
            "bytesFreed": report.bytes_freed,
            "warnings": report.warnings,
        }));
    }
    print([format!(
        "{} paths, {} leftovers and {} unused links removed: {} freed",
        report.deleted.len(),
        report.leftovers.len(),
        report.links,
        size(report.bytes_freed)
    )])
}

pub(super) fn roots(place: &StorePlace, options: &RootsOptions) -> Result<ExitCode, Failure> {
    let store = place.open(Access::ReadOnly)?;
    let roots = store.find_roots(!options.ignore_processes)?;
    for line in &roots.warnings {
        complain(line);
    }
    let mut all = Vec::new();
    for (path, by) in &roots.paths {
        let path = store.dir().display(path);
        all.extend(by.iter().map(|by| (by, path.clone())));
    }
    if options.json {
        return print_json(&all.into_iter().map(|(by, path)| json!({ "root": by, "path": path })).collect());
    }
    print(all.into_iter().map(|(by, path)| format!("{by} -> {path}")))
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "a size is a whole number, with K, M, G or T after it".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "this is more than there can be".to_owned())
}

fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || "an age is a whole number and h, d or w, such as 30d".to_owned();
    let (at, unit) = text.char_indices().next_back().ok_or_else(wrong)?;
    let hours = match unit {
        'h' => 1,
        'd' => 24,
        'w' => 24 * 7,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..at].parse().map_err(|_| wrong())?;
    number.checked_mul(hours * 3600).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_read() {
        assert_eq!(parse_size("10"), Ok(10));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        assert_eq!(parse_age("2w"), Ok(Duration::from_secs(14 * 24 * 3600)));
        for text in ["", "G", "-1", "1.5G", "99999999999T", "ä"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for text in ["", "d", "30", "30y", "99999999999999999999d", "1ä"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
    }
}
