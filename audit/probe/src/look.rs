//! Somebody else on the host, of another uid than anybody in the sandbox: whether they come to a file that the sandbox made.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anchorhold_probe::verdict::Finding;

use crate::files::{self, Descend};

/// Looks, and prints the finding.
pub fn look(name: &str, process: i32, folders: &[PathBuf]) -> ExitCode {
    let finding = found(name, process, folders);
    println!("{}", serde_json::to_string(&finding).expect("plain data has a JSON form"));
    ExitCode::SUCCESS
}

fn found(name: &str, process: i32, folders: &[PathBuf]) -> Finding {
    let by_process = ["cwd", "root/build", "root/scratch", "root/tmp", "root"];
    let by_process = by_process.map(|link| Path::new("/proc").join(process.to_string()).join(link).join(name));
    let mut refused = libc::ENOENT;
    for path in by_process {
        match opened(&path) {
            Ok(_) => return Finding::reached(format!("somebody else opened {}", path.display())),
            Err(libc::ENOENT) => {}
            Err(errno) => refused = errno,
        }
    }
    let mut seen = None;
    let tops: Vec<&str> = folders.iter().filter_map(|folder| folder.to_str()).collect();
    let whole = files::walk(&tops, |path, _| {
        if path.file_name().is_some_and(|found| found == name) && opened(path).is_ok() {
            seen = Some(path.to_owned());
            return Descend::Stop;
        }
        Descend::Yes
    });
    match seen {
        Some(path) => Finding::reached(format!("somebody else opened {}", path.display())),
        None if whole => Finding::refused(refused).with("nobody else comes to what it made"),
        None => Finding::refused(refused).with("nobody else came to what it made, as far as was looked"),
    }
}

fn opened(path: &Path) -> Result<i64, i32> {
    files::opens(path, libc::O_RDONLY)
}
