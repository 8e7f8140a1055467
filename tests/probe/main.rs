//! Attempts one thing and prints on one line how that went: `done`, or the name of the errno. Questions print their answer.
//!
//! It runs inside rooms, where there may be nothing else: it is static and needs no file. Words may follow a command that does not
//! need them; they mark the process for those who look from outside.

mod devices;
mod files;
mod keys;
mod namespaces;
mod processes;
mod sockets;

use nix::errno::Errno;

/// What an attempt brought: a line to print, or the kernel's refusal.
type Answer = Result<String, Errno>;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // Called as if it were a suite, by those who run all of them.
    if words.first().is_none_or(|word| word.starts_with('-')) {
        return;
    }
    println!("{}", attempt(&words));
}

/// Does one command, in words.
fn attempt(words: &[&str]) -> String {
    let modules =
        [files::answer, namespaces::answer, processes::answer, devices::answer, sockets::answer, keys::answer];
    match modules.iter().find_map(|module| module(words)) {
        Some(Ok(line)) => line,
        Some(Err(errno)) => format!("{errno:?}"),
        None => {
            eprintln!("room-probe: no command {words:?}");
            std::process::exit(2);
        }
    }
}

/// An attempt that brings nothing but its success.
fn done<T>(result: Result<T, impl Into<Trouble>>) -> Answer {
    match result {
        Ok(_) => Ok("done".into()),
        Err(error) => Err(error.into().0),
    }
}

/// The errno of any of the error types that wrap one.
struct Trouble(Errno);

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        Self(errno)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

/// The errno of an error of the standard library.
fn errno(error: std::io::Error) -> Errno {
    Trouble::from(error).0
}

/// A number in a command; the tests write them, so a wrong one is a mistake in a test.
fn number<T: std::str::FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("{word} is not the number that is needed"))
}

/// An octal mode.
fn octal(word: &str) -> u32 {
    u32::from_str_radix(word, 8).unwrap_or_else(|_| panic!("{word} is not an octal number"))
}
