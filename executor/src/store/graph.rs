//! The valid paths and what keeps what, as numbers: what a collector needs of the database, and no more. A store has hundreds
//! of thousands of paths, and each is asked for by name once for each of its roots.

use std::collections::HashMap;

use rusqlite::{Connection, Statement};

use super::gc::GcPolicy;
use super::{Store, StoreError};
use crate::store_path::{HASH_PART_LEN, StorePath};

/// The digits of a path. They are its whole name but for what no honest store has: two paths with the same.
type HashPart = [u8; HASH_PART_LEN];

/// Which of the valid paths keep which others alive.
#[derive(Debug, Default)]
pub(super) struct Graph {
    paths: Vec<StorePath>,
    numbers: HashMap<HashPart, u32>,
    /// Those whose digits another path has as well.
    namesakes: HashMap<StorePath, u32>,
    references: Edges,
    /// What each keeps besides what it refers to.
    kept: Edges,
}

/// For each number, the numbers that lead on from it, one list after the other.
#[derive(Debug, Default)]
struct Edges {
    starts: Vec<u32>,
    targets: Vec<u32>,
}

impl Edges {
    fn new(nodes: usize, mut pairs: Vec<(u32, u32)>) -> Self {
        // They come from an index in nearly this order.
        pairs.sort();
        let mut starts = Vec::with_capacity(nodes + 1);
        let mut at = 0;
        for node in 0..nodes {
            starts.push(at as u32);
            while pairs.get(at).is_some_and(|(from, _)| *from as usize == node) {
                at += 1;
            }
        }
        starts.push(at as u32);
        Self { starts, targets: pairs.into_iter().map(|(_, to)| to).collect() }
    }

    fn of(&self, node: usize) -> &[u32] {
        &self.targets[self.starts[node] as usize..self.starts[node + 1] as usize]
    }
}

/// From the numbers of rows to ours. Rows were numbered one after the other, with gaps for what was removed.
struct Rows(Vec<i64>);

impl Rows {
    fn number(&self, id: i64) -> Option<u32> {
        // Without gaps a row is in its place; with some, it is not far before it.
        let first = *self.0.first()?;
        let most = usize::try_from(id.checked_sub(first)?).ok()?.min(self.0.len() - 1);
        if self.0[most] == id {
            return Some(most as u32);
        }
        self.0[..most].binary_search(&id).ok().map(|number| number as u32)
    }
}

impl Graph {
    /// Reads it, all of one moment.
    pub fn read(store: &Store, policy: GcPolicy) -> Result<Self, StoreError> {
        let database = store.database();
        let error = database.error("read all paths");
        let transaction = database.connection.unchecked_transaction().map_err(&error)?;
        let mut graph = Self::default();
        let mut ids = Vec::new();
        let mut bad = None;
        each(&transaction, "select id, path from ValidPaths order by id", |row| {
            let text = row.get_ref(1)?.as_str()?;
            match super::query::parse_entry(store.dir(), text) {
                Ok(path) => graph.add(path),
                Err(why) => bad = Some(why),
            }
            ids.push(row.get(0)?);
            Ok(bad.is_none())
        })
        .map_err(&error)?;
        if let Some(why) = bad {
            return Err(why);
        }
        let (rows, mut pairs) = (Rows(ids), Vec::new());
        each(&transaction, "select referrer, reference from Refs order by referrer, reference", |row| {
            let (from, to) = (row.get(0)?, row.get(1)?);
            if from != to
                && let (Some(from), Some(to)) = (rows.number(from), rows.number(to))
            {
                pairs.push((from, to));
            }
            Ok(true)
        })
        .map_err(&error)?;
        graph.references = Edges::new(graph.paths.len(), pairs);
        let mut kept = Vec::new();
        let prefix = format!("{}/", store.dir());
        if policy.keep_derivations {
            each(&transaction, "select id, deriver from ValidPaths where deriver is not null", |row| {
                let drv = row.get_ref(1)?.as_str()?.strip_prefix(&prefix).and_then(|name| graph.number_of_name(name));
                kept.extend(rows.number(row.get(0)?).zip(drv.map(|number| number as u32)));
                Ok(true)
            })
            .map_err(&error)?;
        }
        if policy.keep_outputs {
            each(&transaction, "select drv, path from DerivationOutputs", |row| {
                let out = row.get_ref(1)?.as_str()?.strip_prefix(&prefix).and_then(|name| graph.number_of_name(name));
                kept.extend(rows.number(row.get(0)?).zip(out.map(|number| number as u32)));
                Ok(true)
            })
            .map_err(&error)?;
        }
        graph.kept = Edges::new(graph.paths.len(), kept);
        Ok(graph)
    }

    fn add(&mut self, path: StorePath) {
        let number = self.paths.len() as u32;
        if let Some(digits) = digits(path.as_str())
            && *self.numbers.entry(digits).or_insert(number) != number
        {
            self.namesakes.insert(path.clone(), number);
        }
        self.paths.push(path);
    }

    /// How many paths there are; their numbers are below.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    pub fn path(&self, number: usize) -> &StorePath {
        &self.paths[number]
    }

    pub fn number(&self, path: &StorePath) -> Option<usize> {
        self.number_of_name(path.as_str())
    }

    /// The number of the path with this name, if there is one: the name need not be one that a path can have.
    pub fn number_of_name(&self, name: &str) -> Option<usize> {
        let number = *self.numbers.get(&digits(name)?)? as usize;
        if self.paths[number].as_str() == name {
            return Some(number);
        }
        if self.namesakes.is_empty() {
            return None;
        }
        self.namesakes.get(&name.parse::<StorePath>().ok()?).map(|number| *number as usize)
    }

    /// What a path refers to, itself left out.
    pub fn references(&self, number: usize) -> impl Iterator<Item = usize> {
        self.references.of(number).iter().map(|number| *number as usize)
    }

    /// Marks `start` and all that it keeps.
    pub fn mark(&self, start: usize, alive: &mut [bool]) {
        if std::mem::replace(&mut alive[start], true) {
            return;
        }
        let mut left = vec![start];
        while let Some(number) = left.pop() {
            for next in self.references.of(number).iter().chain(self.kept.of(number)) {
                let next = *next as usize;
                if !std::mem::replace(&mut alive[next], true) {
                    left.push(next);
                }
            }
        }
    }
}

fn digits(name: &str) -> Option<HashPart> {
    name.as_bytes().first_chunk().copied()
}

/// Calls `work` with each row until it says that it has seen enough.
fn each(
    connection: &Connection,
    sql: &str,
    mut work: impl FnMut(&rusqlite::Row<'_>) -> Result<bool, rusqlite::Error>,
) -> Result<(), rusqlite::Error> {
    let mut statement: Statement<'_> = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if !work(row)? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_with_gaps_are_found() {
        let rows = Rows(vec![3, 4, 9, 10, 1000]);
        for (number, id) in rows.0.iter().enumerate() {
            assert_eq!(rows.number(*id), Some(number as u32), "{id}");
        }
        for id in [i64::MIN, -1, 0, 2, 5, 8, 11, 999, 1001, i64::MAX] {
            assert_eq!(rows.number(id), None, "{id}");
        }
        assert_eq!(Rows(vec![]).number(1), None);
    }

    #[test]
    fn paths_with_the_same_digits_are_told_apart() {
        const DIGITS: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la";
        let mut graph = Graph::default();
        for name in ["a", "b", "c"] {
            graph.add(format!("{DIGITS}-{name}").parse().unwrap());
        }
        for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
            assert_eq!(graph.number_of_name(&format!("{DIGITS}-{name}")), Some(number));
        }
        for name in [format!("{DIGITS}-d"), DIGITS.to_owned(), "a".to_owned(), format!("{DIGITS}-a.lock")] {
            assert_eq!(graph.number_of_name(&name), None, "{name}");
        }
    }
}
