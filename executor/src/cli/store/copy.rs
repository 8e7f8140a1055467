//! `anchorhold store copy`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anchorhold::build::log::{self, LogWriter};
use anchorhold::cache::{Compression, Directory, PublicKey, SecretKey};
use anchorhold::config::settings::Settings;
use anchorhold::config::{Config, Sources};
use anchorhold::store::{Access, Store};
use anchorhold::store_path::{StoreDir, StorePath};
use anchorhold::transfer::{self, Place, Request, Trust};
use clap::Args;
use serde_json::json;

use super::{Failure, StorePlace, find_path, notice, parse_path, print, print_json, size};

/// More threads only wait for the disk; each of them takes up to 100 MiB to compress with xz.
const MOST_JOBS: usize = 4;

/// No key is longer.
const LONGEST_KEY: u64 = 4096;

#[derive(Debug, Args)]
pub(super) struct CopyOptions {
    /// Where the paths are: a store's root, or a binary cache as file:///DIRECTORY [default: the store]
    #[arg(long, value_name = "PLACE")]
    from: Option<OsString>,

    /// Where they are to be: a store's root, or a binary cache as file:///DIRECTORY [default: the store]
    #[arg(long, value_name = "PLACE", required_unless_present = "from")]
    to: Option<OsString>,

    /// A key whose signatures are trusted, besides those of the setting `trusted-public-keys`
    #[arg(long, value_name = "NAME:BASE64")]
    trusted_key: Vec<PublicKey>,

    /// Take paths into the store without asking for a signature; hashes are checked all the same
    #[arg(long)]
    no_check_sigs: bool,

    /// Sign what arrives with the secret key in FILE; into a cache, those of the setting `secret-key-files` sign too
    #[arg(long, value_name = "FILE")]
    sign_key: Vec<PathBuf>,

    /// How archives are compressed in a cache: xz, zstd or none [default: xz]
    #[arg(long, value_name = "NAME")]
    compression: Option<Compression>,

    /// How many paths are under way at once [default: one for each processor, at most 4]
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,

    /// Print what was done as JSON
    #[arg(long)]
    json: bool,

    /// Copy all paths that are there
    #[arg(long, conflicts_with = "paths")]
    all: bool,

    /// Copy the logs of the builds that made what is copied, too
    #[arg(long)]
    logs: bool,

    /// The paths
    #[arg(value_name = "PATH", required_unless_present = "all")]
    paths: Vec<OsString>,
}

/// A place as it was named.
enum Named {
    Store(PathBuf),
    Cache { directory: PathBuf, compression: Option<Compression>, keys: Vec<PathBuf> },
}

pub(super) fn run(place: &StorePlace, options: &CopyOptions) -> Result<ExitCode, Failure> {
    let settings = Config::load(&Sources::standard())?.settings();
    let named = |text: &Option<OsString>| match text {
        Some(text) => name(text),
        None => place.root().map(Named::Store),
    };
    let (source, destination) = (named(&options.from)?, named(&options.to)?);
    let dir = StoreDir::default();
    let from = match source {
        Named::Store(root) => Place::Store(Store::open(&root, Access::ReadOnly)?),
        Named::Cache { directory, .. } => Place::Cache(Directory::open(&directory, &dir)?),
    };
    let mut key_files = options.sign_key.clone();
    let mut compression = options.compression;
    let to = match destination {
        Named::Store(root) => Place::Store(Store::open(&root, Access::ReadWrite)?),
        Named::Cache { directory, compression: wanted, keys } => {
            // What came from elsewhere is not vouched for by a setting that somebody may have forgotten.
            if matches!(from, Place::Store(_)) {
                key_files.extend(settings.secret_key_files.iter().cloned());
            }
            key_files.extend(keys);
            compression = compression.or(wanted);
            Place::Cache(Directory::create(&directory, &dir)?)
        }
    };
    let mut paths = match (options.all, &from) {
        (false, _) => BTreeSet::new(),
        (true, Place::Store(store)) => store.all_valid_paths()?.into_iter().collect(),
        (true, Place::Cache(cache)) => cache.all()?,
    };
    for text in &options.paths {
        paths.insert(match (&from, &to) {
            (Place::Store(store), _) | (_, Place::Store(store)) => parse_path(store, text)?,
            _ => find_path(&dir, None, text)
                .ok_or_else(|| Failure(format!("‘{}’ is no store path and no link to one", text.display())))?,
        });
    }
    let keys = key_files.iter().map(|file| secret_key(file)).collect::<Result<Vec<_>, _>>()?;
    let request = Request {
        paths,
        trust: trust(options, &settings, &keys)?,
        compression: compression.unwrap_or(Compression::Xz),
        keys,
        jobs: options
            .jobs
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |jobs| jobs.get().min(MOST_JOBS))),
    };
    let derivers = Mutex::new(BTreeSet::new());
    let told = |info: &anchorhold::cache::NarInfo| {
        derivers.lock().unwrap_or_else(PoisonError::into_inner).extend(info.deriver.clone());
        notice(&format!("fetched ‘{}’ ({})", dir.display(&info.path), size(info.nar_size)));
    };
    let report = transfer::copy(&from, &to, &request, &told, &mut notice)?;
    if options.logs {
        let derivers = derivers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let logs = derivers.iter().map(|drv| copy_log(&from, &to, drv)).sum::<Result<usize, Failure>>()?;
        notice(&format!("{logs} logs copied"));
    }
    let bytes: u64 = report.copied.iter().map(|one| one.nar_size).sum();
    if options.json {
        return print_json(&json!({
            "copied": report.copied.iter().map(|one| json!({
                "path": dir.display(&one.path), "narSize": one.nar_size, "vouchedBy": one.vouched_by,
            })).collect::<Vec<_>>(),
            "present": report.present.iter().map(|path| dir.display(path)).collect::<Vec<_>>(),
            "narBytes": bytes,
        }));
    }
    notice(&match report.present.len() {
        0 => format!("{} paths copied, {}", report.copied.len(), size(bytes)),
        there => format!("{} paths copied, {}; {there} were there already", report.copied.len(), size(bytes)),
    });
    print(report.copied.iter().map(|one| dir.display(&one.path)))
}

/// Copies the log of a derivation's last build, if there is one here and none there; says how many that are.
fn copy_log(from: &Place, to: &Place, drv: &StorePath) -> Result<usize, Failure> {
    let log = match from {
        Place::Store(store) => log::read_log(&store.log_dir(), drv)?,
        Place::Cache(cache) => cache.log(drv)?,
    };
    let Some(mut log) = log else { return Ok(0) };
    match to {
        Place::Store(store) if log::log_path(&store.log_dir(), drv).exists() => return Ok(0),
        Place::Store(store) => {
            let mut writer = LogWriter::create(&store.log_dir(), drv, None)?;
            let mut piece = vec![0; 64 << 10];
            loop {
                match log.read(&mut piece)? {
                    0 => break,
                    count => drop(writer.write(&piece[..count])?),
                }
            }
            writer.finish()?;
        }
        Place::Cache(cache) => cache.push_log(drv, &mut log)?,
    }
    Ok(1)
}

fn trust(options: &CopyOptions, settings: &Settings, own: &[SecretKey]) -> Result<Trust, Failure> {
    if options.no_check_sigs || !settings.require_sigs {
        return Ok(Trust::Everybody);
    }
    let mut keys = options.trusted_key.clone();
    for text in &settings.trusted_public_keys {
        keys.push(text.parse().map_err(|error| Failure(format!("the setting ‘trusted-public-keys’: {error}")))?);
    }
    // Who signs with a key trusts it.
    keys.extend(own.iter().map(SecretKey::public));
    Ok(Trust::Keys(keys))
}

pub(super) fn secret_key(file: &Path) -> Result<SecretKey, Failure> {
    let failed = |why: String| Failure(format!("the secret key file ‘{}’: {why}", file.display()));
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(LONGEST_KEY).read_to_string(&mut text))
        .map_err(|error| failed(error.to_string()))?;
    text.parse().map_err(|error: anchorhold::cache::CacheError| failed(error.to_string()))
}

/// What `--from` and `--to` mean.
fn name(text: &std::ffi::OsStr) -> Result<Named, Failure> {
    let Some(url) = text.to_str().filter(|text| text.contains("://")) else { return Ok(Named::Store(text.into())) };
    let wrong = |why: &str| Failure(format!("‘{}’ is no place to copy from or to: {why}", url.escape_debug()));
    let rest = url
        .strip_prefix("file://")
        .ok_or_else(|| wrong("name a store by its root, or a binary cache as file:///DIRECTORY"))?;
    let (directory, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let directory = PathBuf::from(decoded(directory).ok_or_else(|| wrong("a % is not followed by two digits"))?);
    if !directory.is_absolute() {
        return Err(wrong("the directory must be absolute: three slashes follow ‘file:’"));
    }
    let (mut compression, mut keys) = (None, Vec::new());
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("compression", name)) => compression = Some(name.parse()?),
            Some(("secret-key", file)) => {
                keys.push(PathBuf::from(decoded(file).ok_or_else(|| wrong("a % is not followed by two digits"))?));
            }
            _ => return Err(wrong("only compression=… and secret-key=… are known after the question mark")),
        }
    }
    Ok(Named::Cache { directory, compression, keys })
}

/// A part of a URL without its percent signs.
fn decoded(text: &str) -> Option<OsString> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digit = |byte: u8| char::from(byte).to_digit(16);
                u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).ok()?
            }
            other => other,
        });
    }
    Some(OsString::from_vec(bytes))
}

pub(super) fn cache(text: &std::ffi::OsStr) -> Result<Option<Directory>, Failure> {
    match name(text)? {
        Named::Store(_) => Ok(None),
        Named::Cache { directory, .. } => Ok(Some(Directory::open(&directory, &StoreDir::default())?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_understood_or_refused() {
        let Ok(Named::Cache { directory, compression, keys }) =
            name("file:///a%20b/c?compression=zstd&secret-key=/k%2fl".as_ref())
        else {
            panic!("this is a cache");
        };
        assert_eq!((directory, compression), (PathBuf::from("/a b/c"), Some(Compression::Zstd)));
        assert_eq!(keys, [PathBuf::from("/k/l")]);
        assert!(matches!(name("/a/b".as_ref()), Ok(Named::Store(root)) if root == Path::new("/a/b")));
        for (text, words) in [
            ("https://cache.example", "file:///DIRECTORY"),
            ("file://relative", "three slashes"),
            ("file:///a%2", "two digits"),
            ("file:///a%zz", "two digits"),
            ("file:///a?compression=arc", "none, xz, zstd and bzip2"),
            ("file:///a?trusted=1", "only compression"),
        ] {
            let Err(Failure(why)) = name(text.as_ref()) else { panic!("{text} is a place") };
            assert!(why.contains(words), "{text}: {why}");
        }
    }
}
