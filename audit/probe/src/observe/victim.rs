//! A process of the launcher's user, outside of the sandbox, whose memory and environment hold the nonce.

use std::io::Read;
use std::process::{Child, Command, ExitCode, Stdio};

use anchorhold_probe::observation::{Order, SetUp};

/// The process; ended when dropped.
pub struct Victim(Child);

impl Victim {
    /// Starts it.
    pub fn start(order: &Order, set_up: &mut SetUp) -> Option<Self> {
        let started = std::env::current_exe().and_then(|program| {
            Command::new(program)
                .arg("sleep")
                .env(&order.variable, &order.nonce)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        });
        match started {
            Ok(child) => {
                set_up.victim = Some(child.id() as i32);
                Some(Self(child))
            }
            Err(error) => {
                set_up.missing.push(format!("victim: {error}"));
                None
            }
        }
    }

    /// Its id.
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the victim does: nothing, for as long as whoever started it holds the other end of its standard input.
pub fn sleep() -> ExitCode {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}
