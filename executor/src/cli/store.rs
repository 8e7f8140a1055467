//! `anchorhold store`: the embedded store, looked at and kept in order.
//!
//! The exit status is 0 when all was done, and 1 when it was not: the reason is a line on standard error.

mod add;
mod collect;
mod copy;
mod log;
mod query;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anchorhold::nar;
use anchorhold::store::{Access, Direction, Store, StoreError};
use anchorhold::store_path::{StoreDir, StorePath};
use anchorhold::tree;
use clap::Args;

use super::store_root::{Failure, StorePlace};
use super::{Subcommand, command, complain, options};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "store",
    command: || command::<StoreOptions>("store", "Look at the store of built paths, and keep it in order"),
    run,
};

#[derive(Debug, Args)]
struct StoreOptions {
    #[command(flatten)]
    place: StorePlace,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Add files and directories; print their paths
    Add(add::AddOptions),
    /// Read paths from standard input, as `export` wrote them; print them
    Import,
    /// Write paths to standard output, for `import` here or `nix-store --import`
    Export(ExportOptions),
    /// Copy paths and all that they need from one store or binary cache to another; print what went over
    Copy(copy::CopyOptions),
    /// Write a file or directory to standard output as a Nix archive
    Dump {
        /// A store path, or any file
        #[arg(value_name = "PATH")]
        path: OsString,
    },
    /// Unpack a Nix archive from standard input
    Restore {
        /// The file or directory to make; it must not exist
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
    /// Say how paths hang together
    Query(query::QueryOptions),
    /// Say what is known of paths
    PathInfo(query::PathInfoOptions),
    /// Print what a builder wrote
    Log(log::LogOptions),
    /// Check that the store is what its database says
    Verify(VerifyOptions),
    /// Remove what no root needs
    Gc(collect::GcOptions),
    /// List the roots, and what each keeps
    Roots(collect::RootsOptions),
    /// Make equal files one
    Optimise(OptimiseOptions),
}

#[derive(Debug, Args)]
struct ExportOptions {
    /// With all that they need
    #[arg(long, short = 'r')]
    closure: bool,

    /// The paths
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<OsString>,
}

#[derive(Debug, Args)]
struct VerifyOptions {
    /// Read all files, and compare their hashes
    #[arg(long)]
    check_contents: bool,

    /// Set right what can be from what is here: forget paths without files that nothing needs, remove damaged links
    ///
    /// Contents that are lost are not brought back: build or copy those paths again.
    #[arg(long)]
    repair: bool,

    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct OptimiseOptions {
    /// Print the account as JSON
    #[arg(long)]
    json: bool,
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let StoreOptions { place, action } = options(matches);
    let result = match action {
        Action::Add(options) => add::run(&place, &options),
        Action::Import => import(&place),
        Action::Export(options) => export(&place, &options),
        Action::Copy(options) => copy::run(&place, &options),
        Action::Dump { path } => dump(&place, &path),
        Action::Restore { path } => restore(&path),
        Action::Query(options) => query::run(&place, &options),
        Action::PathInfo(options) => query::path_info(&place, &options),
        Action::Log(options) => log::run(&place, &options),
        Action::Verify(options) => verify(&place, &options),
        Action::Gc(options) => collect::run(&place, &options),
        Action::Roots(options) => collect::roots(&place, &options),
        Action::Optimise(options) => optimise(&place, &options),
    };
    match result {
        Ok(code) => code,
        Err(Failure(why)) => {
            complain(why);
            ExitCode::FAILURE
        }
    }
}

/// A line for a person while something takes its time.
fn notice(line: &str) {
    complain(line);
}

/// Nothing is said.
fn quiet(_: &str) {}

/// The store path that a person means: in full, as a link to it such as `result`, where its files really are, or its name alone.
/// What lies below a path stands for it.
fn parse_path(store: &Store, text: &std::ffi::OsStr) -> Result<StorePath, Failure> {
    find_path(store.dir(), Some(&store.real_dir()), text).ok_or_else(|| {
        Failure(format!("‘{}’ is not in the store ‘{}’ and no link to it", text.display(), store.root().display()))
    })
}

fn find_path(dir: &StoreDir, real_dir: Option<&Path>, text: &std::ffi::OsStr) -> Option<StorePath> {
    if let Some(text) = text.to_str() {
        if let Ok((path, _)) = dir.parse_below(text) {
            return Some(path);
        }
        if let Ok(path) = text.parse() {
            return Some(path);
        }
    }
    let mut path = std::path::absolute(text).ok()?;
    // A link may lead to a link; the kernel follows as many.
    for _ in 0..40 {
        for directory in [Some(Path::new(dir.as_str())), real_dir].into_iter().flatten() {
            if let Ok(rest) = path.strip_prefix(directory)
                && let Some(name) = rest.components().next()
                && let Some(found) = name.as_os_str().to_str().and_then(|name| name.parse().ok())
            {
                return Some(found);
            }
        }
        path = path.parent().unwrap_or(Path::new("/")).join(std::fs::read_link(&path).ok()?);
    }
    None
}

fn parse_paths(store: &Store, texts: &[OsString]) -> Result<std::collections::BTreeSet<StorePath>, Failure> {
    texts.iter().map(|text| parse_path(store, text)).collect()
}

/// Writes lines to standard output. A reader that has seen enough is no error.
fn print<T: std::fmt::Display>(lines: impl IntoIterator<Item = T>) -> Result<ExitCode, Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = lines.into_iter().try_for_each(|line| writeln!(out, "{line}")).and_then(|()| out.flush());
    finished(written)
}

fn print_json(value: &serde_json::Value) -> Result<ExitCode, Failure> {
    print([serde_json::to_string_pretty(value)?])
}

fn finished(written: io::Result<()>) -> Result<ExitCode, Failure> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Standard output for bytes that no terminal should show.
fn binary_output() -> Result<io::BufWriter<io::StdoutLock<'static>>, Failure> {
    let out = io::stdout().lock();
    if out.is_terminal() {
        return Err(Failure("this is not for a terminal: send it to a file or another program".to_owned()));
    }
    Ok(io::BufWriter::with_capacity(256 << 10, out))
}

fn import(place: &StorePlace) -> Result<ExitCode, Failure> {
    let store = place.open(Access::ReadWrite)?;
    let source = io::BufReader::with_capacity(256 << 10, io::stdin().lock());
    let paths = store.import(source, &mut notice)?;
    print(paths.iter().map(|path| store.dir().display(path)))
}

fn export(place: &StorePlace, options: &ExportOptions) -> Result<ExitCode, Failure> {
    let store = place.open(Access::ReadOnly)?;
    let mut paths = parse_paths(&store, &options.paths)?;
    if options.closure {
        paths = store.closure(&paths, Direction::Forward)?;
    }
    let mut out = binary_output()?;
    match store.export(&paths, &mut out) {
        Err(StoreError::Nar(nar::NarError::Sink(error))) => finished(Err(error)),
        Err(error) => Err(error.into()),
        Ok(()) => finished(out.flush()),
    }
}

fn dump(place: &StorePlace, path: &std::ffi::OsStr) -> Result<ExitCode, Failure> {
    let mut real = PathBuf::from(path);
    // A file is dumped wherever it is; only what is named like a path of the store needs the store.
    if path.to_str().is_some_and(|text| text.starts_with("/nix/store/") || text.parse::<StorePath>().is_ok())
        && !real.exists()
    {
        let store = place.open(Access::ReadOnly)?;
        let path = parse_path(&store, path)?;
        store.path_info(&path)?;
        real = store.real_path(&path);
    }
    let mut out = binary_output()?;
    let (parent, name) = tree::place(&real)?;
    match nar::dump(std::os::fd::AsFd::as_fd(&parent), &name, &mut out) {
        Err(nar::NarError::Sink(error)) => finished(Err(error)),
        Err(error) => Err(error.into()),
        Ok(_) => finished(out.flush()),
    }
}

fn restore(path: &Path) -> Result<ExitCode, Failure> {
    let (parent, name) = tree::place(path)?;
    let source = io::BufReader::with_capacity(256 << 10, io::stdin().lock());
    let mut reader = nar::Reader::new(source);
    nar::restore(&mut reader, std::os::fd::AsFd::as_fd(&parent), &name)?;
    Ok(ExitCode::SUCCESS)
}

fn verify(place: &StorePlace, options: &VerifyOptions) -> Result<ExitCode, Failure> {
    let store = place.open(if options.repair { Access::ReadWrite } else { Access::ReadOnly })?;
    let report = store.verify(options.check_contents, options.repair, &mut quiet)?;
    let full = |path| store.dir().display(path);
    if options.json {
        print_json(&serde_json::json!({
            "checked": report.checked,
            "missing": report.missing.iter().map(full).collect::<Vec<_>>(),
            "changed": report.changed.iter().map(|(path, wanted, found)| serde_json::json!({
                "path": full(path), "registered": wanted.sri(), "found": found.sri(),
            })).collect::<Vec<_>>(),
            "unreadable": report.unreadable.iter().map(|(path, why)| serde_json::json!({
                "path": full(path), "why": why,
            })).collect::<Vec<_>>(),
            "badLinks": report.bad_links,
            "repaired": report.repaired,
            "left": report.left,
        }))?;
    } else {
        for path in &report.missing {
            complain(format_args!("‘{}’ is valid and has no files", full(path)));
        }
        for (path, wanted, found) in &report.changed {
            let (wanted, found) = (wanted.sri(), found.sri());
            complain(format_args!("‘{}’ has changed: its hash was {wanted} and is {found}", full(path)));
        }
        for (path, why) in &report.unreadable {
            complain(format_args!("‘{}’ cannot be read: {why}", full(path)));
        }
        for name in &report.bad_links {
            complain(format_args!("‘.links/{name}’ does not hold what its name says"));
        }
        for line in &report.repaired {
            complain(format_args!("repaired: {line}"));
        }
        let looked = if options.check_contents { "with their contents" } else { "without their contents" };
        complain(format_args!("{} paths checked {looked}, {} findings left", report.checked, report.left));
        if options.repair && report.left > 0 {
            complain("what is left cannot be repaired from what is here: build those paths again, or copy them here");
        }
    }
    Ok(if report.left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn optimise(place: &StorePlace, options: &OptimiseOptions) -> Result<ExitCode, Failure> {
    let store = place.open(Access::ReadWrite)?;
    let report = store.optimise(&mut quiet)?;
    for line in &report.warnings {
        complain(line);
    }
    if options.json {
        return print_json(&serde_json::json!({
            "examined": report.examined,
            "already": report.already,
            "linked": report.linked,
            "bytesSaved": report.bytes_saved,
            "full": report.full,
            "warnings": report.warnings,
        }));
    }
    let full = match report.full {
        0 => String::new(),
        n => format!("; {n} stay alone, as the file system allows no more links to their like"),
    };
    print([format!(
        "{} files examined, {} were one with another already, {} are now: {} saved{full}",
        report.examined,
        report.already,
        report.linked,
        size(report.bytes_saved)
    )])
}

/// A number of bytes for a person.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}
