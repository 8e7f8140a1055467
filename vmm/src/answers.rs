//! What was found out from files, kept for as long as nobody touches these: asking a QEMU what it is, or packing an initramfs,
//! takes longer than reviving a machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::memory::Identity;

/// The longest file of answers that is read.
const MAX_FILE: u64 = 4 << 20;
/// How many answers are kept; with more than these, all are found anew.
const MOST: usize = 100;
/// A file that was touched so shortly before it was read may have been touched meanwhile: times are no finer than this.
const SETTLED: Duration = Duration::from_secs(1);

/// Answers by their questions.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answers {
    known: BTreeMap<String, Known>,
    #[serde(skip)]
    is_new: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Known {
    /// The files that it was found out from, as they were then.
    from: Vec<(PathBuf, Identity)>,
    answer: Value,
}

impl Known {
    fn holds(&self) -> bool {
        self.from.iter().all(|(path, then)| Identity::at(path).is_ok_and(|now| now == *then))
    }
}

impl Answers {
    /// Those in `file`; none when it cannot be read, which costs only time.
    pub fn read(file: &Path) -> Self {
        let mut text = Vec::new();
        match File::open(file).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text)) {
            Ok(_) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(_) => Self::default(),
        }
    }

    /// Writes them to `file` if any is new. Where that cannot be done, it is done without.
    pub fn write(&mut self, file: &Path) {
        if self.is_new
            && let Ok(text) = serde_json::to_vec(self)
        {
            let new = file.with_extension(format!("new-{}", std::process::id()));
            let _ = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, file));
            self.is_new = false;
        }
    }

    /// The answer to a question: the known one, or what `find` finds, with the files that it was found out from. A directory
    /// counts with the names in it.
    ///
    /// # Errors
    /// Those of `find`, which are not kept.
    pub fn get<T: Serialize + DeserializeOwned, E>(
        &mut self,
        question: &str,
        find: impl FnOnce() -> Result<(T, Vec<PathBuf>), E>,
    ) -> Result<T, E> {
        if let Some(known) = self.known.get(question)
            && known.holds()
            && let Ok(answer) = serde_json::from_value(known.answer.clone())
        {
            return Ok(answer);
        }
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (found, files) = find()?;
        let identity = |path: PathBuf| {
            let identity = Identity::at(&path).ok()?;
            (identity.changed() + SETTLED < begun).then_some((path, identity))
        };
        let from: Option<Vec<_>> = files.into_iter().map(identity).collect();
        if let (Some(from), Ok(answer)) = (from, serde_json::to_value(&found)) {
            if self.known.len() >= MOST {
                self.known.clear();
            }
            self.known.insert(question.to_owned(), Known { from, answer });
            self.is_new = true;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that looks as if nobody had touched it for long.
    fn settled(path: &Path) {
        // The time of the last change is the kernel's own: it can only be waited for.
        let settled = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            Identity::at(path).unwrap().changed() + SETTLED < now
        };
        while !settled() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    #[test]
    fn an_answer_holds_until_its_files_are_touched() {
        let place = tempfile::tempdir().unwrap();
        let (from, file) = (place.path().join("from"), place.path().join("answers.json"));
        std::fs::write(&from, "one").unwrap();
        let mut asked = 0;
        let mut ask = |answers: &mut Answers| {
            answers.get("what?", || {
                asked += 1;
                std::fs::read_to_string(&from).map(|text| (text, vec![from.clone()]))
            })
        };
        // Too new to be trusted.
        let mut answers = Answers::read(&file);
        assert_eq!(ask(&mut answers).unwrap(), "one");
        assert_eq!(ask(&mut answers).unwrap(), "one");
        settled(&from);
        assert_eq!(ask(&mut answers).unwrap(), "one");
        answers.write(&file);
        let mut again = Answers::read(&file);
        assert_eq!(ask(&mut again).unwrap(), "one");
        std::fs::write(&from, "two").unwrap();
        assert_eq!(ask(&mut again).unwrap(), "two");
        std::fs::remove_file(&from).unwrap();
        ask(&mut again).unwrap_err();
        assert_eq!(asked, 3 + 1 + 1);
    }
}
