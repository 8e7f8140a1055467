//! Looks at what became of an output, as somebody does who relies on it.

use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anchorhold_probe::observation::{AGREED, Launch, OutputKind};
use anchorhold_probe::verdict::Finding;

use crate::battery::Battery;
use crate::observers::launcher::Ended;
use crate::trials::{Trials, last_words};

/// The deepest folder of an output that is looked into.
const DEEPEST: usize = 16;

/// What became of an output of this kind.
pub fn judge(trials: &Trials<'_>, kind: OutputKind, launch: &Launch, ended: &Ended) -> Finding {
    let said = Battery::parse(&[&ended.output[..], b"\n", &ended.errors].concat());
    if let Some(row) = said.row(kind.probe()) {
        return row.finding.clone().with("the builder cannot make it");
    }
    if let Some(changed) = trials.observers.canary().changed() {
        return Finding::reached(changed);
    }
    let late: Vec<_> = trials.observers.kept();
    let stayed = ended.survivors.first().map(|one| format!("{} was still there when the build was over", one.name));
    let Some(output) = trials.sandbox.registered(trials.ground, &ended.output) else {
        return match stayed {
            Some(stayed) => Finding::reached(stayed),
            None if ended.status == Some(0) => Finding::inconclusive(format!(
                "nothing was registered, and nothing said why: {}",
                launch.words.join(" ")
            )),
            None => Finding::held(last_words(ended)),
        };
    };
    match kind {
        OutputKind::Modes => modes(&output),
        OutputKind::Fifo | OutputKind::Socket | OutputKind::Device => special(&output),
        OutputKind::Link => match fs::symlink_metadata(&output) {
            Ok(found) if found.is_symlink() => Finding::held("registered as the link that it is"),
            Ok(_) => Finding::reached("what the link leads to was registered"),
            Err(error) => Finding::inconclusive(error.to_string()),
        },
        OutputKind::Race => {
            stayed.map_or_else(|| Finding::held("nobody was there any more to change it"), Finding::reached)
        }
        OutputKind::Late => {
            for descriptor in late {
                let _ = fs::File::from(descriptor).write_all_at(b"outer!", 0);
            }
            match fs::read(&output) {
                Ok(found) if found == AGREED.as_bytes() => Finding::held("it is as it was agreed"),
                Ok(found) => Finding::reached(format!("it says {:?}", String::from_utf8_lossy(&found))),
                Err(error) => Finding::inconclusive(error.to_string()),
            }
        }
    }
}

/// Everything in an output, itself first. Links are not followed.
fn everything(output: &Path) -> std::io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut found = vec![(output.to_owned(), fs::symlink_metadata(output)?)];
    let mut next = 0;
    while let Some((path, kind)) = found.get(next).cloned() {
        if kind.is_dir() && path.components().count() < output.components().count() + DEEPEST {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                found.push((entry.path(), entry.metadata()?));
            }
        }
        next += 1;
    }
    Ok(found)
}

fn modes(output: &Path) -> Finding {
    let all = match everything(output) {
        Ok(all) => all,
        Err(error) => return Finding::inconclusive(error.to_string()),
    };
    // The owner is whoever the store is of.
    let owner = output.parent().and_then(|store| fs::metadata(store).ok()).map(|found| found.uid());
    let wrong = all.iter().filter_map(|(path, found)| {
        let mode = found.mode() & 0o7777;
        let mut list = [0_u8; 4096];
        let attributes = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
        let why = if found.is_symlink() {
            None
        } else if mode != 0o555 && (found.is_dir() || mode != 0o444) {
            Some(format!("mode {mode:o}"))
        } else if attributes > 0 {
            Some("attributes".to_owned())
        } else {
            None
        };
        let why = why.or_else(|| (found.mtime() != 1).then(|| format!("the time {}", found.mtime())));
        let why = why.or_else(|| (Some(found.uid()) != owner).then(|| format!("the owner {}", found.uid())));
        why.map(|why| format!("{} has {why}", path.strip_prefix(output).unwrap_or(path).display()))
    });
    match wrong.collect::<Vec<_>>().as_slice() {
        [] => Finding::held(format!("{} files, all as in a store", all.len())),
        wrong => Finding::reached(wrong.join(", ")),
    }
}

fn special(output: &Path) -> Finding {
    match everything(output) {
        Ok(all) => {
            let special = all.iter().find(|(_, found)| {
                let kind = found.file_type();
                kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device()
            });
            match special {
                Some((path, _)) => Finding::reached(format!("{} was registered", path.display())),
                None => Finding::held("registered without it"),
            }
        }
        Err(error) => Finding::inconclusive(error.to_string()),
    }
}
