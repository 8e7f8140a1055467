//! What programs of Windows are told of paths and names, in guests that know both kinds.
//!
//! A build's variables have the store's own names, `/nix/store/…`, whatever runs it. A program of Windows knows drives alone: for
//! it each variable that is a path on one of them, or a list of such paths, is there once more in Windows' own form.

use std::ffi::{OsStr, OsString};

use super::{Drive, Language, Profile};
use crate::exchange::Command;

/// The ends of names that Windows takes for programs.
const PROGRAMS: [&str; 4] = [".exe", ".com", ".cmd", ".bat"];

impl Profile {
    /// A command as it is put into the exchange of this guest: started by the profile's launcher if it is named as programs of
    /// Windows are, and with the variables that begin with [`super::CommandStart::windows_names`]. What a build sets itself stays.
    pub fn command_for(&self, command: &Command) -> Command {
        let mut made = command.clone();
        if let Some(launcher) = &self.command.launcher
            && self.command.form == Language::Sh
            && is_of_windows(&command.program)
        {
            made.arguments.insert(0, std::mem::replace(&mut made.program, launcher.into()));
        }
        if let Some(prefix) = &self.command.windows_names {
            for (name, value) in &command.environment {
                let mut further = OsString::from(prefix);
                further.push(name);
                if let Some(told) = windows_names(&self.drives, value)
                    && !command.environment.iter().any(|(name, _)| name.eq_ignore_ascii_case(&further))
                {
                    made.environment.push((further, told.into()));
                }
            }
        }
        made
    }
}

/// With a drive's letter or a backslash, or what Windows takes for a program.
fn is_of_windows(program: &OsStr) -> bool {
    let bytes = program.as_encoded_bytes();
    let lower = bytes.to_ascii_lowercase();
    matches!(bytes, [letter, b':', ..] if letter.is_ascii_alphabetic())
        || bytes.contains(&b'\\')
        || PROGRAMS.iter().any(|end| lower.ends_with(end.as_bytes()))
}

/// One path on a drive, or several with single spaces between them, as Nix writes lists.
fn windows_names(drives: &[Drive], value: &OsStr) -> Option<String> {
    let one = |word: &str| {
        drives.iter().find_map(|drive| {
            let rest = word.strip_prefix(drive.path.trim_end_matches('/'))?;
            match rest.as_bytes() {
                [] => Some(format!("{}\\", drive.letter)),
                [b'/', ..] => Some(format!("{}{}", drive.letter, rest.replace('/', "\\"))),
                _ => None,
            }
        })
    };
    let words: Option<Vec<String>> = value.to_str()?.split(' ').map(one).collect();
    words.map(|words| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str, command: &Command) -> Command {
        Profile::built_in(name).unwrap().command_for(command)
    }

    #[test]
    fn paths_on_drives_are_there_once_more_as_windows_calls_them() {
        let command = Command::new("/bin/sh")
            .variable("out", "/nix/store/aaa-out")
            .variable("inputs", "/nix/store/aaa-in /nix/store/bbb-in/bin")
            .variable("TOP", "/xchg")
            .variable("other", "/nix/stores/x")
            .variable("mixed", "/nix/store/aaa-in and more")
            .variable("far", "/etc")
            .variable("windows_far", "kept")
            .variable("WINDOWS_TOP", "kept");
        let of = |made: &Command| made.environment[command.environment.len()..].to_vec();
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let told = made("wine", &command);
        assert_eq!(told.environment[..command.environment.len()], command.environment);
        let wanted = [pair("WINDOWS_out", "S:\\aaa-out"), pair("WINDOWS_inputs", "S:\\aaa-in S:\\bbb-in\\bin")];
        assert_eq!(of(&told), wanted);
        // Its exchange is elsewhere for Cygwin.
        assert_eq!(of(&made("windows", &command)), wanted);
        assert_eq!(made("standin", &command), command);
    }

    #[test]
    fn what_is_named_as_a_program_of_windows_is_started_by_what_can() {
        let program = |name: &str| {
            let made = made("wine", &Command::new(name).arguments(["a b"]));
            (made.program.into_string().unwrap(), made.arguments.len())
        };
        for name in ["S:\\x\\hello.exe", "s:/x", "/nix/store/x/Hello.EXE", "cmd.exe", "/nix/store/x/build.cmd", "a\\b"]
        {
            assert_eq!(program(name), ("/usr/bin/windows".into(), 2), "{name}");
        }
        for name in ["/nix/store/x/bin/bash", "/nix/store/x.exe/sh", "sh", "/a:b"] {
            assert_eq!(program(name), (name.to_owned(), 1));
        }
        assert_eq!(made("standin", &Command::new("S:\\x.exe")).program, "S:\\x.exe");
    }
}
