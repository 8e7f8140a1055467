//! `anchorhold store log`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::process::ExitCode;

use anchorhold::build::log;
use anchorhold::cache::Directory;
use anchorhold::progress::escapes::EscapeFilter;
use anchorhold::store::{Access, Store};
use anchorhold::store_path::{StoreDir, StorePath};
use clap::Args;

use super::{Failure, StorePlace, copy, find_path, finished, parse_path};

#[derive(Debug, Args)]
pub(super) struct LogOptions {
    /// A binary cache that has the log, as file:///DIRECTORY, instead of the store
    #[arg(long, value_name = "CACHE")]
    from: Option<OsString>,

    /// Print the builder's bytes as they came; a terminal obeys what is in them
    #[arg(long)]
    raw: bool,

    /// A derivation, or an output of one
    #[arg(value_name = "PATH")]
    path: OsString,
}

pub(super) fn run(place: &StorePlace, options: &LogOptions) -> Result<ExitCode, Failure> {
    let cache = match &options.from {
        None => None,
        Some(text) => Some(
            copy::cache(text)?
                .ok_or_else(|| Failure("--from names a binary cache, --store a store's root".to_owned()))?,
        ),
    };
    let mut source = match &cache {
        Some(cache) => in_cache(cache, &options.path)?,
        None => in_store(&place.open(Access::ReadOnly)?, &options.path)?,
    };
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let mut buffer = vec![0; 64 << 10];
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut filter = EscapeFilter::new(colours);
    let mut shown = String::new();
    loop {
        let count = match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // What could be read is worth reading.
                let _ = out.flush();
                return Err(Failure(format!("the log is damaged from here on: {error}")));
            }
            Ok(count) => count,
        };
        let written = if options.raw {
            out.write_all(&buffer[..count])
        } else {
            shown.clear();
            filter.feed(&buffer[..count], &mut shown);
            if count == 0 {
                filter.finish(&mut shown);
            }
            out.write_all(shown.as_bytes())
        };
        if written.is_err() || count == 0 {
            return finished(written.and_then(|()| out.flush()));
        }
    }
}

fn in_store(store: &Store, text: &std::ffi::OsStr) -> Result<Box<dyn Read>, Failure> {
    let path = parse_path(store, text)?;
    let derivations = if path.is_derivation() {
        BTreeSet::from([path.clone()])
    } else {
        let mut all = store.valid_derivers(&path)?;
        all.extend(store.query_path_info(&path)?.and_then(|info| info.deriver));
        all
    };
    let full = store.dir().display(&path);
    if derivations.is_empty() {
        return Err(Failure(match store.is_valid(&path)? {
            true => format!("‘{full}’ was not built: it has no derivation, and so no log"),
            false => format!("‘{full}’ is not valid in this store, and no derivation here makes it"),
        }));
    }
    for drv in &derivations {
        if let Some(found) = log::read_log(&store.log_dir(), drv)? {
            return Ok(found);
        }
    }
    let names: Vec<_> = derivations.iter().map(|drv| format!("‘{}’", store.dir().display(drv))).collect();
    Err(Failure(format!(
        "there is no log of {} in the store ‘{}’: it was built elsewhere or not at all, or its log was removed",
        names.join(" or "),
        store.root().display()
    )))
}

fn in_cache(cache: &Directory, text: &std::ffi::OsStr) -> Result<Box<dyn Read>, Failure> {
    let path: StorePath = find_path(&StoreDir::default(), None, text)
        .ok_or_else(|| Failure(format!("‘{}’ is no store path and no link to one", text.display())))?;
    let drv = if path.is_derivation() {
        path
    } else {
        let info = cache.info(path.hash_part())?;
        let info = info.ok_or_else(|| Failure(format!("the cache ‘{}’ has no ‘{path}’", cache.path().display())))?;
        info.deriver.ok_or_else(|| Failure(format!("‘{path}’ has no derivation in the cache, and so no log")))?
    };
    let log = cache.log(&drv)?;
    log.ok_or_else(|| Failure(format!("the cache ‘{}’ has no log of ‘{drv}’", cache.path().display())))
}
