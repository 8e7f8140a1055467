//! Questions to the database.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, Row};

use super::{Direction, PathInfo, Store, StoreError};
use crate::hash::Hash;
use crate::store_path::{StoreDir, StorePath};

const INFO: &str = "select path, id, hash, registrationTime, deriver, narSize, ultimate, sigs, ca from ValidPaths";

impl Store {
    /// Whether `path` is registered, and so its files are whole.
    pub fn is_valid(&self, path: &StorePath) -> Result<bool, StoreError> {
        let database = self.database();
        path_id(&database.connection, &self.dir, path).map(|id| id.is_some()).map_err(database.error("look up a path"))
    }

    /// All that is known of `path`, or nothing if it is not valid.
    pub fn query_path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, StoreError> {
        let database = self.database();
        let connection = &database.connection;
        let row = connection
            .prepare_cached(&format!("{INFO} where path = ?1"))
            .and_then(|mut statement| statement.query_row([self.dir.display(path)], RawInfo::read).optional())
            .map_err(database.error("look up a path"))?;
        let Some(row) = row else { return Ok(None) };
        let id = row.id;
        let mut info = row.parse(&self.dir)?;
        let references = column(
            connection,
            "select v.path from Refs r join ValidPaths v on v.id = r.reference where r.referrer = ?1",
            [id],
        )
        .map_err(database.error("look up references"))?;
        info.references = self.parse_all(references)?;
        Ok(Some(info))
    }

    /// All that is known of `path`; that it is not valid is an error.
    pub fn path_info(&self, path: &StorePath) -> Result<PathInfo, StoreError> {
        self.query_path_info(path)?.ok_or_else(|| StoreError::NotValid(self.dir.display(path)))
    }

    /// All that is known of every valid path, in the order of their names. One pass over the tables, not one per path.
    pub fn all_path_infos(&self) -> Result<Vec<PathInfo>, StoreError> {
        let database = self.database();
        let read = || -> Result<_, rusqlite::Error> {
            // One transaction, so that both tables are seen at the same moment.
            let transaction = database.connection.unchecked_transaction()?;
            let rows: Vec<RawInfo> =
                transaction.prepare(INFO)?.query_map([], RawInfo::read)?.collect::<Result<_, _>>()?;
            let edges: Vec<(i64, i64)> = transaction
                .prepare("select referrer, reference from Refs")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            Ok((rows, edges))
        };
        let (rows, edges) = read().map_err(database.error("read all paths"))?;
        let mut infos = BTreeMap::new();
        for row in rows {
            infos.insert(row.id, row.parse(&self.dir)?);
        }
        let names: BTreeMap<i64, StorePath> = infos.iter().map(|(id, info)| (*id, info.path.clone())).collect();
        for (referrer, reference) in edges {
            if let (Some(info), Some(name)) = (infos.get_mut(&referrer), names.get(&reference)) {
                info.references.insert(name.clone());
            }
        }
        let mut infos: Vec<_> = infos.into_values().collect();
        infos.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(infos)
    }

    /// Every valid path.
    pub fn all_valid_paths(&self) -> Result<BTreeSet<StorePath>, StoreError> {
        let database = self.database();
        let texts = column(&database.connection, "select path from ValidPaths", [])
            .map_err(database.error("read all paths"))?;
        self.parse_all(texts)
    }

    /// Which of `paths` are valid.
    pub fn valid_of(&self, paths: &BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>, StoreError> {
        let database = self.database();
        let texts = column(
            &database.connection,
            "select path from ValidPaths where path in (select value from json_each(?1))",
            [self.as_json(paths)],
        )
        .map_err(database.error("look up paths"))?;
        self.parse_all(texts)
    }

    /// The valid path with these 32 digits at its start.
    pub fn path_from_hash_part(&self, hash_part: &str) -> Result<Option<StorePath>, StoreError> {
        let database = self.database();
        let prefix = format!("{}/{hash_part}", self.dir);
        let found: Option<String> = database
            .connection
            .prepare_cached("select path from ValidPaths where path >= ?1 limit 1")
            .and_then(|mut statement| statement.query_row([&prefix], |row| row.get(0)).optional())
            .map_err(database.error("look up a path"))?;
        match found {
            Some(text) if text.starts_with(&prefix) => {
                let path = self.parse_entry(&text)?;
                Ok((path.hash_part() == hash_part).then_some(path))
            }
            _ => Ok(None),
        }
    }

    /// What the valid `path` refers to.
    pub fn query_references(&self, path: &StorePath) -> Result<BTreeSet<StorePath>, StoreError> {
        Ok(self.path_info(path)?.references)
    }

    /// The valid paths that refer to `path`, itself too if it refers to itself.
    pub fn query_referrers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>, StoreError> {
        let database = self.database();
        let texts = referrers(&database.connection, &self.dir, path).map_err(database.error("look up referrers"))?;
        self.parse_all(texts)
    }

    /// The paths themselves and all that can be reached from them. 100,000 paths take some tenths of a second.
    ///
    /// # Errors
    /// One of `paths` is not valid.
    pub fn closure<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
        direction: Direction,
    ) -> Result<BTreeSet<StorePath>, StoreError> {
        let starts: BTreeSet<_> = paths.into_iter().cloned().collect();
        // A set within SQLite: `union` drops what it has seen, and only the names come out.
        let (from, to) = match direction {
            Direction::Forward => ("referrer", "reference"),
            Direction::Backward => ("reference", "referrer"),
        };
        let database = self.database();
        let texts = column(
            &database.connection,
            &format!(
                "with recursive reached(id) as (
                     select id from ValidPaths where path in (select value from json_each(?1))
                     union select Refs.{to} from reached join Refs on Refs.{from} = reached.id)
                 select ValidPaths.path from reached join ValidPaths on ValidPaths.id = reached.id"
            ),
            [self.as_json(&starts)],
        )
        .map_err(database.error("compute a closure"))?;
        drop(database);
        let closure = self.parse_all(texts)?;
        match starts.iter().find(|start| !closure.contains(*start)) {
            Some(missing) => Err(StoreError::NotValid(self.dir.display(missing))),
            None => Ok(closure),
        }
    }

    /// The outputs of a valid derivation whose paths are known before it is built.
    pub fn derivation_outputs(&self, drv: &StorePath) -> Result<BTreeMap<String, StorePath>, StoreError> {
        let database = self.database();
        let rows: Vec<(String, String)> = database
            .connection
            .prepare_cached(
                "select o.id, o.path from DerivationOutputs o join ValidPaths v on v.id = o.drv where v.path = ?1",
            )
            .and_then(|mut statement| {
                statement.query_map([self.dir.display(drv)], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
            })
            .map_err(database.error("look up outputs"))?;
        drop(database);
        rows.into_iter().map(|(id, path)| Ok((id, self.parse_entry(&path)?))).collect()
    }

    /// Whether `name` is the name of a valid path.
    pub(super) fn is_name_valid(&self, name: &str) -> Result<bool, StoreError> {
        name.parse().map_or(Ok(false), |path| self.is_valid(&path))
    }

    /// The valid derivations that have `output` as an output.
    pub fn valid_derivers(&self, output: &StorePath) -> Result<BTreeSet<StorePath>, StoreError> {
        let database = self.database();
        let texts = column(
            &database.connection,
            "select v.path from DerivationOutputs o join ValidPaths v on v.id = o.drv where o.path = ?1",
            [self.dir.display(output)],
        )
        .map_err(database.error("look up derivers"))?;
        drop(database);
        self.parse_all(texts)
    }

    fn parse_entry(&self, text: &str) -> Result<StorePath, StoreError> {
        parse_entry(&self.dir, text)
    }

    fn parse_all(&self, texts: Vec<String>) -> Result<BTreeSet<StorePath>, StoreError> {
        texts.iter().map(|text| self.parse_entry(text)).collect()
    }

    fn as_json(&self, paths: &BTreeSet<StorePath>) -> String {
        // No character of a store path needs to be escaped.
        let quoted: Vec<_> = paths.iter().map(|path| format!("\"{}\"", self.dir.display(path))).collect();
        format!("[{}]", quoted.join(","))
    }
}

pub(super) fn parse_entry(dir: &StoreDir, text: &str) -> Result<StorePath, StoreError> {
    dir.parse(text).map_err(|error| StoreError::BadEntry {
        path: text.to_owned(),
        column: "path",
        why: error.to_string(),
    })
}

/// The first column of all rows.
pub(super) fn column(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<String>, rusqlite::Error> {
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_map(parameters, |row| row.get(0))?.collect()
}

pub(super) fn path_id(
    connection: &Connection,
    dir: &StoreDir,
    path: &StorePath,
) -> Result<Option<i64>, rusqlite::Error> {
    connection
        .prepare_cached("select id from ValidPaths where path = ?1")?
        .query_row([dir.display(path)], |row| row.get(0))
        .optional()
}

pub(super) fn referrers(
    connection: &Connection,
    dir: &StoreDir,
    path: &StorePath,
) -> Result<Vec<String>, rusqlite::Error> {
    column(
        connection,
        "select v.path from Refs r join ValidPaths v on v.id = r.referrer
         where r.reference = (select id from ValidPaths where path = ?1)",
        [dir.display(path)],
    )
}

/// A row of `ValidPaths` as it is, still to be understood.
struct RawInfo {
    path: String,
    id: i64,
    hash: String,
    registration_time: i64,
    deriver: Option<String>,
    nar_size: Option<i64>,
    ultimate: Option<i64>,
    signatures: Option<String>,
    content_address: Option<String>,
}

impl RawInfo {
    fn read(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        Ok(Self {
            path: row.get(0)?,
            id: row.get(1)?,
            hash: row.get(2)?,
            registration_time: row.get(3)?,
            deriver: row.get(4)?,
            nar_size: row.get(5)?,
            ultimate: row.get(6)?,
            signatures: row.get(7)?,
            content_address: row.get(8)?,
        })
    }

    fn parse(self, dir: &StoreDir) -> Result<PathInfo, StoreError> {
        let path = parse_entry(dir, &self.path)?;
        let bad = |column, why: String| StoreError::BadEntry { path: self.path.clone(), column, why };
        let nar_hash: Hash = self.hash.parse().map_err(|error| bad("hash", format!("{error}")))?;
        let nar_size =
            u64::try_from(self.nar_size.unwrap_or(0)).map_err(|_| bad("size", "it is less than zero".to_owned()))?;
        let deriver = self.deriver.filter(|text| !text.is_empty());
        let deriver =
            deriver.map(|text| dir.parse(&text).map_err(|error| bad("deriver", error.to_string()))).transpose()?;
        Ok(PathInfo {
            nar_hash,
            nar_size,
            references: BTreeSet::new(),
            deriver,
            registration_time: self.registration_time,
            ultimate: self.ultimate.is_some_and(|flag| flag != 0),
            signatures: self
                .signatures
                .iter()
                .flat_map(|text| text.split_ascii_whitespace())
                .map(str::to_owned)
                .collect(),
            content_address: self.content_address.filter(|text| !text.is_empty()),
            path,
        })
    }
}
