//! What the battery leaves in a sandbox that is looked at from outside while it runs: a mark for everybody, and a process that does
//! not want to end.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anchorhold_probe::observation::ORPHAN;

use crate::arguments::Run;
use crate::calls;

/// How long it stays at most. Whoever looks is done in a few seconds.
const STAY: u64 = 90_000;

/// Stays until it is killed, or until the time is over.
pub fn hold(run: &Run) -> ExitCode {
    let mark = run.world.mark();
    if let Some(output) = &run.output {
        let _ = fs::create_dir(output);
    }
    // No other folder: where there is no sandbox, the one that it was started in is the host's.
    for folder in [run.world.scratch.clone(), run.output.clone()].into_iter().flatten() {
        leave(folder, &mark);
    }
    stay("anchor-held");
    let daemon = calls::spawn(|| {
        let _ = calls::raw(libc::SYS_setsid, &[]);
        calls::ignore_signals();
        stay(ORPHAN);
        calls::pause(STAY);
        0
    });
    if daemon.is_err() {
        eprintln!("anchorhold-probe: no process could be left behind");
        return ExitCode::FAILURE;
    }
    calls::ignore_signals();
    calls::pause(STAY);
    ExitCode::SUCCESS
}

/// Opens the folder to everybody, and leaves a file in it that everybody may read.
fn leave(folder: PathBuf, mark: &str) {
    let file = folder.join(mark);
    let _ = fs::write(&file, "a mark\n");
    for (path, mode) in [(&file, 0o666), (&folder, 0o777)] {
        let _ = fs::set_permissions(path, Permissions::from_mode(mode));
    }
}

/// Takes a name to be found by, and lets no parent's death end it.
fn stay(name: &str) {
    let text = calls::c_path(name);
    let _ = calls::prctl(libc::PR_SET_NAME, &[text.as_ptr() as usize]);
    let _ = calls::prctl(libc::PR_SET_PDEATHSIG, &[0]);
}
