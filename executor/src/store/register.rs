//! Changes of the database: paths become valid, and stop to be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};

use super::query::{path_id, referrers};
use super::{PathInfo, Registration, Store, StoreError};
use crate::hash::{Algorithm, Hash};
use crate::store_path::StorePath;

impl Store {
    /// Makes paths valid whose files are in their places already: all of them or, on any error, none. They may come in
    /// any order. A path that is valid already gets the new hash, size, signatures and so on. The outputs of a derivation are
    /// read from its file, unless they are given.
    ///
    /// # Errors
    /// A reference that is neither valid nor in the batch, a cycle, a file named as a derivation that is none, a read-only
    /// store, a full disk, a damaged database.
    pub fn register(&self, paths: &[Registration]) -> Result<(), StoreError> {
        self.check_writable("register a path")?;
        check_for_cycles(paths)?;
        let unread = paths.iter().filter(|one| one.info.path.is_derivation() && one.outputs.is_empty());
        let outputs_in_files = self.outputs_in_files(unread.map(|one| &one.info.path))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
        let mut database = self.database();
        let (database_path, root, dir) = (database.path.clone(), self.root.clone(), &self.dir);
        let error = |source| StoreError::sql("register a path", &database_path, &root, source);
        database.transaction("register a path", |connection| {
            let mut ids = BTreeMap::new();
            let mut known_before = Vec::new();
            for registration in paths {
                let info = &registration.info;
                let id = match path_id(connection, dir, &info.path).map_err(error)? {
                    Some(id) => {
                        known_before.push((id, &info.path));
                        self.update(connection, id, info).map_err(error)?;
                        id
                    }
                    None => self.insert(connection, info, now).map_err(error)?,
                };
                for (name, output) in outputs_in_files.get(&info.path).unwrap_or(&registration.outputs) {
                    connection
                        .prepare_cached("insert or replace into DerivationOutputs (drv, id, path) values (?1, ?2, ?3)")
                        .and_then(|mut statement| statement.execute(params![id, name, dir.display(output)]))
                        .map_err(error)?;
                }
                ids.insert(&info.path, id);
            }
            for registration in paths {
                let info = &registration.info;
                for reference in &info.references {
                    let id = match ids.get(reference) {
                        Some(id) => Some(*id),
                        None => path_id(connection, dir, reference).map_err(error)?,
                    };
                    let id = id.ok_or_else(|| StoreError::MissingReference {
                        path: info.path.clone(),
                        reference: reference.clone(),
                    })?;
                    connection
                        .prepare_cached("insert or ignore into Refs (referrer, reference) values (?1, ?2)")
                        .and_then(|mut statement| statement.execute([ids[&info.path], id]))
                        .map_err(error)?;
                }
            }
            // New paths can only be in a cycle with each other. One that was valid before may be needed by what it needs now.
            for (id, path) in known_before {
                if reaches_itself(connection, id).map_err(error)? {
                    return Err(StoreError::Cycle {
                        chain: vec![path.to_string(), "…".to_owned(), path.to_string()]
                    });
                }
            }
            Ok(())
        })
    }

    /// Makes paths invalid, all of them or none; the files are left to the caller. Paths that are not valid are passed over.
    ///
    /// # Errors
    /// A valid path outside of `paths` refers to one of them.
    pub fn invalidate<'a>(&self, paths: impl IntoIterator<Item = &'a StorePath>) -> Result<(), StoreError> {
        self.check_writable("invalidate a path")?;
        let paths: BTreeSet<_> = paths.into_iter().collect();
        let mut database = self.database();
        let (database_path, root, dir) = (database.path.clone(), self.root.clone(), &self.dir);
        let error = |source| StoreError::sql("invalidate a path", &database_path, &root, source);
        database.transaction("invalidate a path", |connection| {
            for path in &paths {
                let others: Vec<_> = referrers(connection, dir, path)
                    .map_err(error)?
                    .into_iter()
                    .filter(|text| !dir.parse(text).is_ok_and(|referrer| paths.contains(&referrer)))
                    .take(10)
                    .collect();
                if !others.is_empty() {
                    return Err(StoreError::InUse { path: (*path).clone(), referrers: others });
                }
            }
            // Edges among the paths go first: the rows may then be deleted in any order.
            for sql in [
                "delete from Refs where referrer = (select id from ValidPaths where path = ?1)",
                "delete from ValidPaths where path = ?1",
            ] {
                let mut statement = connection.prepare_cached(sql).map_err(error)?;
                for path in &paths {
                    statement.execute([dir.display(path)]).map_err(error)?;
                }
            }
            Ok(())
        })
    }

    fn insert(&self, connection: &Connection, info: &PathInfo, now: i64) -> Result<i64, rusqlite::Error> {
        let time = if info.registration_time == 0 { now } else { info.registration_time };
        connection
            .prepare_cached(
                "insert into ValidPaths (path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca)
                 values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .insert(params![
                self.dir.display(&info.path),
                hash_column(&info.nar_hash),
                time,
                info.deriver.as_ref().map(|path| self.dir.display(path)),
                size_column(info),
                info.ultimate.then_some(1),
                signatures_column(info),
                info.content_address,
            ])
    }

    fn update(&self, connection: &Connection, id: i64, info: &PathInfo) -> Result<(), rusqlite::Error> {
        connection
            .prepare_cached(
                "update ValidPaths set hash = ?2, narSize = ?3, ultimate = ?4, sigs = ?5, ca = ?6,
                 deriver = coalesce(?7, deriver) where id = ?1",
            )?
            .execute(params![
                id,
                hash_column(&info.nar_hash),
                size_column(info),
                info.ultimate.then_some(1),
                signatures_column(info),
                info.content_address,
                info.deriver.as_ref().map(|path| self.dir.display(path)),
            ])?;
        connection.prepare_cached("delete from Refs where referrer = ?1")?.execute([id])?;
        Ok(())
    }
}

fn hash_column(hash: &Hash) -> String {
    debug_assert_eq!(hash.algorithm(), Algorithm::Sha256);
    format!("{}:{}", hash.algorithm(), hash.base16())
}

/// SQLite has no unsigned numbers; no file system holds half of this.
fn size_column(info: &PathInfo) -> Option<i64> {
    Some(i64::try_from(info.nar_size).unwrap_or(i64::MAX)).filter(|size| *size != 0)
}

fn signatures_column(info: &PathInfo) -> Option<String> {
    let signatures: Vec<_> = info.signatures.iter().map(String::as_str).collect();
    (!signatures.is_empty()).then(|| signatures.join(" "))
}

fn reaches_itself(connection: &Connection, id: i64) -> Result<bool, rusqlite::Error> {
    connection
        .prepare_cached(
            "with recursive reached(id) as (
                 select reference from Refs where referrer = ?1 and reference != ?1
                 union select Refs.reference from reached join Refs on Refs.referrer = reached.id
                       where Refs.reference != reached.id)
             select 1 from reached where id = ?1",
        )?
        .exists([id])
}

/// A depth-first walk with its own stack: a chain may have as many members as there are paths.
fn check_for_cycles(paths: &[Registration]) -> Result<(), StoreError> {
    let batch: BTreeMap<&StorePath, &PathInfo> =
        paths.iter().map(|registration| (&registration.info.path, &registration.info)).collect();
    let mut done = BTreeSet::new();
    for start in batch.values() {
        if done.contains(&start.path) {
            continue;
        }
        let mut stack = vec![(*start, start.references.iter())];
        let mut on_stack = BTreeSet::from([&start.path]);
        while let Some((info, references)) = stack.last_mut() {
            let info = *info;
            match references.next() {
                None => {
                    on_stack.remove(&info.path);
                    done.insert(&info.path);
                    stack.pop();
                }
                Some(reference) if *reference == info.path || done.contains(reference) => {}
                Some(reference) if on_stack.contains(reference) => {
                    let chain = stack.iter().map(|(info, _)| &info.path).skip_while(|path| *path != reference);
                    let chain = chain.chain([reference]).map(StorePath::to_string).collect();
                    return Err(StoreError::Cycle { chain });
                }
                Some(reference) => {
                    if let Some((path, next)) = batch.get_key_value(reference) {
                        on_stack.insert(path);
                        stack.push((next, next.references.iter()));
                    }
                }
            }
        }
    }
    Ok(())
}
