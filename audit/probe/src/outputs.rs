//! Outputs that whoever takes them over should not take as they are. What became of them is looked at from outside.

use std::fs::{self, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use anchorhold_probe::observation::{AGREED, OutputKind};
use anchorhold_probe::verdict::Finding;
use anchorhold_probe::vocabulary::Row;
use anchorhold_probe::world::World;

use crate::arguments::Run;
use crate::calls;
use crate::probes::network;

/// Names beside an output that somebody who takes it over may use.
const SIBLINGS: [&str; 9] = [".tmp", ".lock", ".check", ".chroot", ".drv.chroot", "-tmp", ".part", "~", ".old"];

/// How long what is left behind goes on, in milliseconds.
const STAY: u64 = 6000;

/// Makes it. The status is 0 if it could be made; if not, the kernel's answer is printed as a row.
pub fn make(kind: &str, run: &Run) -> ExitCode {
    let Some(kind) = OutputKind::ALL.into_iter().find(|known| known.name() == kind) else {
        eprintln!("anchorhold-probe: there is no output {kind}");
        return ExitCode::from(2);
    };
    let Some(output) = &run.output else {
        eprintln!("anchorhold-probe: no output was named");
        return ExitCode::from(2);
    };
    let made = match kind {
        OutputKind::Modes => modes(output),
        OutputKind::Fifo => special(output, |path| {
            let path = calls::c_path(path);
            calls::raw(
                libc::SYS_mknodat,
                &[libc::AT_FDCWD as usize, path.as_ptr() as usize, (libc::S_IFIFO | 0o644) as usize],
            )
        }),
        OutputKind::Socket => special(output, |path| {
            // Its path may be longer than a socket's name can be.
            let _ = std::env::set_current_dir(output);
            let name = path.file_name().unwrap_or_default();
            UnixListener::bind(name).map(|_| 0).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
        }),
        OutputKind::Device => special(output, |path| {
            let path = calls::c_path(path);
            // The device 0:0, a whiteout, is the one that takes no capability.
            calls::raw(
                libc::SYS_mknodat,
                &[libc::AT_FDCWD as usize, path.as_ptr() as usize, (libc::S_IFCHR | 0o644) as usize, 0],
            )
        }),
        OutputKind::Link => link(output, &run.world),
        OutputKind::Race => race(output, &run.world),
        OutputKind::Late => late(output, &run.world),
    };
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => {
            let row = Row { id: kind.probe().to_owned(), finding: Finding::refused(errno), milliseconds: 0 };
            println!("{}", serde_json::to_string(&row).expect("plain data has a JSON form"));
            ExitCode::from(3)
        }
    }
}

fn number(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Modes, times and attributes that a store does not have. What others may write is left out: it is refused by all that look.
fn modes(output: &Path) -> Result<(), i32> {
    fs::create_dir(output).map_err(number)?;
    fs::create_dir(output.join("folder")).map_err(number)?;
    for (name, mode) in [("plain", 0o644), ("program", 0o755), ("secret", 0o600)] {
        fs::write(output.join(name), name).map_err(number)?;
        fs::set_permissions(output.join(name), Permissions::from_mode(mode)).map_err(number)?;
    }
    // A filter may refuse these, and then there is one thing less to put right.
    let set_id = output.join("set-id");
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o6755).open(&set_id);
    if made.is_err() {
        fs::write(&set_id, "set-id").map_err(number)?;
    }
    let _ = fs::set_permissions(&set_id, Permissions::from_mode(0o6755));
    let _ = fs::set_permissions(output.join("folder"), Permissions::from_mode(0o3755));
    let name = c"user.anchorhold";
    let path = calls::c_path(output.join("plain"));
    let _ =
        calls::raw(libc::SYS_setxattr, &[path.as_ptr() as usize, name.as_ptr() as usize, name.as_ptr() as usize, 4, 0]);
    symlink("plain", output.join("link")).map_err(number)?;
    fs::hard_link(output.join("program"), output.join("twin")).map_err(number)?;
    fs::set_permissions(output, Permissions::from_mode(0o755)).map_err(number)
}

/// A folder with a file in it that no archive can hold.
fn special(output: &Path, make: impl FnOnce(&Path) -> Result<i64, i32>) -> Result<(), i32> {
    fs::create_dir(output).map_err(number)?;
    make(&output.join("special")).map(|_| ())
}

/// A link to the canary as output, and more of them under every name that may be used beside it.
fn link(output: &Path, world: &World) -> Result<(), i32> {
    let canary = world.canary.as_deref().ok_or(libc::ENOENT)?.join("canary");
    symlink(&canary, output).map_err(number)?;
    for suffix in SIBLINGS {
        let mut name = output.as_os_str().to_owned();
        name.push(suffix);
        // Beside it there may be no room for others.
        let _ = symlink(&canary, &name);
    }
    Ok(())
}

/// An output that somebody who stayed behind goes on exchanging for a link to the canary's folder.
fn race(output: &Path, world: &World) -> Result<(), i32> {
    let canary = world.canary.as_deref().ok_or(libc::ENOENT)?;
    fs::create_dir_all(output.join("inner/folder")).map_err(number)?;
    fs::write(output.join("inner/canary"), "not the canary").map_err(number)?;
    symlink(canary, output.join("other")).map_err(number)?;
    let (inner, other) = (calls::c_path(output.join("inner")), calls::c_path(output.join("other")));
    left_behind("anchor-racer", || {
        const EXCHANGE: usize = 2;
        let here = libc::AT_FDCWD as usize;
        let until = std::time::Instant::now() + std::time::Duration::from_millis(STAY);
        while std::time::Instant::now() < until {
            let words = [here, inner.as_ptr() as usize, here, other.as_ptr() as usize, EXCHANGE];
            let _ = calls::raw(libc::SYS_renameat2, &words);
        }
    })
}

/// An output that is written to when it is done: by somebody who stayed behind, and by the observer outside, who is handed its
/// descriptor if they can be reached.
fn late(output: &Path, world: &World) -> Result<(), i32> {
    fs::write(output, AGREED).map_err(number)?;
    let file = calls::open(output, libc::O_RDWR, 0)?;
    if let Some(name) = &world.abstract_socket
        && let Ok(socket) = network::connected(&network::abstract_address(name.as_bytes()))
    {
        let _ = calls::send_descriptor(socket, file);
    }
    left_behind("anchor-writer", || {
        for _ in 0..STAY / 50 {
            calls::pause(50);
            let _ = calls::raw(libc::SYS_pwrite64, &[file as usize, b"late!!".as_ptr() as usize, 6, 0]);
        }
    })
}

/// Leaves a process behind that works on.
fn left_behind(name: &str, work: impl FnOnce()) -> Result<(), i32> {
    let [ready, writer] = calls::pipe()?;
    let child = calls::spawn(|| {
        calls::close(ready);
        let _ = calls::raw(libc::SYS_setsid, &[]);
        calls::ignore_signals();
        let _ = calls::prctl(libc::PR_SET_PDEATHSIG, &[0]);
        let text = calls::c_path(name);
        let _ = calls::prctl(libc::PR_SET_NAME, &[text.as_ptr() as usize]);
        // Nobody is to wait for it because of its output.
        for descriptor in 0..3 {
            calls::close(descriptor);
        }
        calls::close(writer);
        work();
        0
    });
    calls::close(writer);
    // The end of our session ends whoever does not ignore it yet.
    calls::readable(ready, 5000);
    calls::close(ready);
    child.map(|_| ())
}
