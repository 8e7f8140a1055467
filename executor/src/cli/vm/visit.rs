//! `anchorhold vm console|screenshot`: looking at machines that run.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anchorhold::machines::stages::{Registry, Visit};
use clap::Args;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::{Refused, not_started};

/// What ends a visit to a console: Ctrl-], as with telnet.
const LEAVE: u8 = 0x1d;

#[derive(Debug, Args)]
pub(super) struct ConsoleOptions {
    /// The controller's console instead of the guest's
    #[arg(long)]
    controller: bool,

    /// Which machine, as `vm list` names it [default: the only one]
    #[arg(value_name = "MACHINE")]
    machine: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ScreenshotOptions {
    /// The controller's display instead of the guest's
    #[arg(long)]
    controller: bool,

    /// Where the picture is written
    #[arg(long, short, value_name = "FILE", default_value = "screenshot.png")]
    output: PathBuf,

    /// Which machine, as `vm list` names it [default: the only one]
    #[arg(value_name = "MACHINE")]
    machine: Option<String>,
}

pub(super) fn screenshot(options: &ScreenshotOptions) -> Result<i32, Refused> {
    let machine = Registry::open().and_then(|all| all.find(options.machine.as_deref())).map_err(not_started)?;
    let picture = Visit::to(&machine, options.controller).and_then(Visit::screenshot).map_err(not_started)?;
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&options.output)
        .and_then(|mut file| file.write_all(&picture));
    written.map_err(|error| not_started(format_args!("writing {}: {error}", options.output.display())))?;
    println!("{}", options.output.display());
    Ok(0)
}

/// The terminal as it was, when this is dropped.
pub(super) struct Raw(Termios);

impl Raw {
    pub(super) fn begin() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return None;
        }
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

pub(super) fn console(options: &ConsoleOptions) -> Result<i32, Refused> {
    let machine = Registry::open().and_then(|all| all.find(options.machine.as_deref())).map_err(not_started)?;
    let mut console = Visit::to(&machine, options.controller).and_then(Visit::console).map_err(not_started)?;
    let raw = Raw::begin();
    if raw.is_some() {
        eprint!("The console of {}; Ctrl-] leaves it.\r\n", machine.name);
    }
    let mut typed = console.try_clone().map_err(not_started)?;
    let is_terminal = raw.is_some();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = io::stdin().read(&mut piece) {
            let bytes = &piece[..length];
            if is_terminal && bytes.contains(&LEAVE) {
                let _ = typed.shutdown(std::net::Shutdown::Both);
                return;
            }
            if typed.write_all(bytes).is_err() {
                return;
            }
        }
        // A pipe at its end has said all; what the console says to it is still wanted.
    });
    let mut piece = [0; 4096];
    loop {
        match console.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                let mut out = io::stdout().lock();
                if out.write_all(&piece[..length]).and_then(|()| out.flush()).is_err() {
                    break;
                }
            }
        }
    }
    drop(raw);
    Ok(0)
}
