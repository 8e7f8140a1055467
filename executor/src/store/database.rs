//! The database of a store: how it is opened, made, and kept small.
//!
//! Source: `src/libstore/schema.sql`, `local-store.cc` and `sqlite.cc` of Nix 2.8. The schema's number and shape have not
//! changed since; the tables of content-addressed derivations are made by Nix itself when that feature is on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use rustix::fs::FlockOperation;

use super::error::StoreError;

/// The schema that this program reads and writes.
pub const SCHEMA: u64 = 10;

/// How long one statement waits for another process.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// The log is copied into the database when it has this many pages (of 4 KiB).
const CHECKPOINT_PAGES: u32 = 4000;

/// A log longer than this is cut to nothing when a store is opened for writing. In bytes.
const LONG_LOG: u64 = 64 << 20;

/// Space that is held back, so that a collector on a full disk has room to write. In bytes. Nix's size and place.
const RESERVED: usize = 8 << 20;

/// Word for word what `.schema` shows of a store of Nix 2.8, so that no tool sees a difference.
const TABLES: &str = r#"
CREATE TABLE IF NOT EXISTS ValidPaths (
    id               integer primary key autoincrement not null,
    path             text unique not null,
    hash             text not null,
    registrationTime integer not null,
    deriver          text,
    narSize          integer,
    ultimate         integer, -- null implies "false"
    sigs             text, -- space-separated
    ca               text -- if not null, an assertion that the path is content-addressed; see ValidPathInfo
);
CREATE TABLE IF NOT EXISTS Refs (
    referrer  integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
);
CREATE INDEX IF NOT EXISTS IndexReferrer on Refs(referrer);
CREATE INDEX IF NOT EXISTS IndexReference on Refs(reference);
CREATE TRIGGER IF NOT EXISTS DeleteSelfRefs before delete on ValidPaths
  begin
    delete from Refs where referrer = old.id and reference = old.id;
  end;
CREATE TABLE IF NOT EXISTS DerivationOutputs (
    drv  integer not null,
    id   text not null, -- symbolic output id, usually "out"
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
);
CREATE INDEX IF NOT EXISTS IndexDerivationOutputs on DerivationOutputs(path);
"#;

/// An open database. The lock goes with it.
#[derive(Debug)]
pub(crate) struct Database {
    pub connection: Connection,
    pub path: PathBuf,
    root: PathBuf,
    writable: bool,
    /// Held shared for as long as the database is open: who upgrades the schema takes it exclusively.
    _big_lock: Option<File>,
}

impl Database {
    /// Opens the database in `directory` for reading and writing, and makes it if there is none.
    pub fn open(root: &Path, directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("db.sqlite");
        let big_lock = open_lock(&directory.join("big-lock"))?;
        lock(&big_lock, FlockOperation::LockShared, directory)?;
        let schema = directory.join("schema");
        let found = read_schema(&schema)?;
        let error = |doing| {
            let path = path.clone();
            move |source| StoreError::sql(doing, &path, root, source)
        };
        if found.is_some() {
            check_file(&path)?;
        }
        let mut connection = Connection::open(&path).map_err(error("open"))?;
        prepare(&connection).map_err(error("open"))?;
        if found.is_none() {
            // Two processes may come here at once: both find the same work, and the transaction puts one after the other.
            retry(|| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                transaction.execute_batch(TABLES)?;
                transaction.commit()
            })
            .map_err(error("make tables"))?;
            write_whole(directory, "schema", SCHEMA.to_string().as_bytes())?;
        }
        check_tables(&connection).map_err(|source| missing_table(source, &path, root))?;
        reserve(&directory.join("reserved"));
        let database = Self { connection, path, root: root.to_owned(), writable: true, _big_lock: Some(big_lock) };
        if fs::metadata(directory.join("db.sqlite-wal")).is_ok_and(|log| log.len() > LONG_LOG) {
            database.checkpoint();
        }
        Ok(database)
    }

    /// Opens the database in `directory` for reading; writes nothing at all if the file system cannot be written.
    pub fn open_read_only(root: &Path, directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("db.sqlite");
        let big_lock = File::open(directory.join("big-lock")).ok();
        if let Some(file) = &big_lock {
            lock(file, FlockOperation::LockShared, directory)?;
        }
        if read_schema(&directory.join("schema"))?.is_none() {
            return Err(StoreError::NoStore { root: root.to_owned(), missing: path });
        }
        check_file(&path)?;
        let try_open = |immutable: bool| -> Result<Connection, rusqlite::Error> {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = if immutable {
                Connection::open_with_flags(immutable_uri(&path), flags | OpenFlags::SQLITE_OPEN_URI)?
            } else {
                Connection::open_with_flags(&path, flags)?
            };
            connection.busy_timeout(PATIENCE)?;
            connection.set_prepared_statement_cache_capacity(64);
            check_tables(&connection)?;
            Ok(connection)
        };
        let connection = match try_open(false) {
            // Without a place for the index of the log, SQLite can only read a database that has no log.
            Err(error)
                if matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
                    && fs::metadata(directory.join("db.sqlite-wal")).map_or(true, |log| log.len() == 0) =>
            {
                try_open(true)
            }
            other => other,
        }
        .map_err(|source| missing_table(source, &path, root))?;
        Ok(Self { connection, path, root: root.to_owned(), writable: false, _big_lock: big_lock })
    }

    /// The error for `doing`.
    pub fn error(&self, doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError + '_ {
        move |source| StoreError::sql(doing, &self.path, &self.root, source)
    }

    /// Does `work` in one transaction, all of it or nothing.
    pub fn transaction<T>(
        &mut self,
        doing: &'static str,
        mut work: impl FnMut(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if !self.writable {
            return Err(StoreError::ReadOnly { root: self.root.clone(), doing });
        }
        let (path, root) = (self.path.clone(), self.root.clone());
        let error = |source| StoreError::sql(doing, &path, &root, source);
        let mut attempts = 0;
        loop {
            let transaction =
                self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
            let result = work(&transaction);
            let result = match result {
                Ok(value) => transaction.commit().map(|()| value).map_err(error),
                Err(error) => Err(error),
            };
            match result {
                Err(StoreError::Busy { .. }) if attempts < 10 => attempts += 1,
                other => return other,
            }
        }
    }

    /// Holds space back for the next collector.
    pub fn reserve(&self) {
        reserve(&self.path.with_file_name("reserved"));
    }

    /// Copies the log into the database and cuts it to nothing, if nobody reads it just now.
    pub fn checkpoint(&self) {
        let _ = self.connection.busy_timeout(Duration::ZERO);
        let _ = self.connection.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()));
        let _ = self.connection.busy_timeout(PATIENCE);
    }
}

fn prepare(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(PATIENCE)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Asked first: setting it takes a lock that readers need not wait for.
    let mode: String = connection.query_row("pragma main.journal_mode", [], |row| row.get(0))?;
    if mode != "wal" {
        retry(|| connection.query_row("pragma main.journal_mode = wal", [], |_| Ok(())))?;
    }
    connection.execute_batch("pragma synchronous = normal; pragma foreign_keys = 1; pragma cache_size = -16384")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    // A log that grew once is given back at the next checkpoint.
    connection.pragma_update(None, "journal_size_limit", LONG_LOG as i64)
}

/// Fails if the tables are not there or not readable, which shows a damaged file when it is opened and not in mid-work.
fn check_tables(connection: &Connection) -> Result<(), rusqlite::Error> {
    for table in ["ValidPaths", "Refs", "DerivationOutputs"] {
        connection.query_row(&format!("select count(*) from (select 1 from {table} limit 1)"), [], |_| Ok(()))?;
    }
    Ok(())
}

/// SQLite takes a file that is not there, or empty, for a new database. A collector would then delete the whole store.
fn check_file(path: &Path) -> Result<(), StoreError> {
    let why = match fs::metadata(path) {
        Ok(file) if file.len() > 0 => return Ok(()),
        Ok(_) => "the file is empty",
        Err(error) if error.kind() == io::ErrorKind::NotFound => "the file is gone",
        Err(error) => return Err(StoreError::io("look at", path, error)),
    };
    Err(StoreError::Corrupt { path: path.to_owned(), why: why.to_owned() })
}

fn missing_table(source: rusqlite::Error, path: &Path, root: &Path) -> StoreError {
    match &source {
        rusqlite::Error::SqliteFailure(_, Some(why)) if why.starts_with("no such table") => {
            StoreError::Corrupt { path: path.to_owned(), why: why.clone() }
        }
        _ => StoreError::sql("read", path, root, source),
    }
}

/// Busy is also what SQLite says at once, without waiting, where waiting could make a deadlock.
fn retry<T>(mut work: impl FnMut() -> Result<T, rusqlite::Error>) -> Result<T, rusqlite::Error> {
    let mut attempts = 0;
    loop {
        match work() {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && attempts < 500 => {
                attempts += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// The number in the file `schema`, or nothing for a new store.
fn read_schema(path: &Path) -> Result<Option<u64>, StoreError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("read", path, error)),
    };
    let text = String::from_utf8_lossy(&text[..text.len().min(64)]).trim().to_owned();
    if text.is_empty() {
        // Nix writes this file after the tables: a machine that stopped in between left it empty.
        return Ok(None);
    }
    match text.parse() {
        Ok(SCHEMA) => Ok(Some(SCHEMA)),
        Ok(found) if found > SCHEMA => Err(StoreError::NewerSchema { found }),
        Ok(found) => Err(StoreError::OlderSchema { found }),
        Err(_) => Err(StoreError::BadSchema { path: path.to_owned(), text }),
    }
}

fn immutable_uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri + "?immutable=1"
}

/// Opens a lock file, and makes it if there is none, as Nix does.
pub(crate) fn open_lock(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(StoreError::on("open the lock", path))
}

pub(crate) fn lock(file: &File, operation: FlockOperation, path: &Path) -> Result<(), StoreError> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(StoreError::on("lock", path)),
        }
    }
}

/// Writes a file as a whole or not at all, and makes sure that it is on the disk.
fn write_whole(directory: &Path, name: &str, contents: &[u8]) -> Result<(), StoreError> {
    let path = directory.join(name);
    let write = || -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let mut file = tempfile::Builder::new()
            .prefix(".tmp-")
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(directory)?;
        file.write_all(contents)?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        Ok(())
    };
    write().map_err(StoreError::on("write", &path))
}

/// Holds space back. That there is none, or that the file is another user's, stops nobody.
fn reserve(path: &Path) {
    if fs::metadata(path).is_ok_and(|file| file.len() == RESERVED as u64) {
        return;
    }
    if let Ok(mut file) = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
        && file.write_all(&vec![b'X'; RESERVED]).is_err()
    {
        let _ = file.set_len(0);
    }
}
