//! A command for Windows' own shells.
//!
//! PowerShell reads the length-prefixed file itself, by a script that is always the same ([`READER`]): nothing is quoted
//! on the way but the arguments, in the one form in which Windows passes them to a program. `cmd` can read nothing but its
//! own language ([`cmd`]), in which some values cannot be said; those are refused by name.

use std::ffi::{OsStr, OsString};

use super::{Command, CommandError};

/// The file name of [`READER`] in the share `xchg`.
pub const READER_FILE: &str = "command.ps1";
/// The file name of the text of [`cmd`].
pub const CMD_FILE: &str = "command.cmd";

/// Reads the file `command` beside it, sets its environment, and runs its program to the end, whose status becomes its own.
/// For Windows PowerShell 5.1 and everything newer. Status 125: the file could not be read or the program not started.
pub const READER: &str = include_str!("reader.ps1");

/// The longest line that cmd reads (Microsoft's "Command prompt line string limitation").
const LONGEST_LINE: usize = 8191;

/// What cannot be said to Windows, or not in this language.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowsError {
    /// It cannot be given to any program.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Windows' strings are UTF-16.
    #[error("{what} is not UTF-8, and Windows has no other strings: pass it in a file")]
    NotText {
        /// Which string.
        what: String,
    },
    /// No line of cmd can hold it.
    #[error("{what} cannot be said in cmd's language ({why}): use PowerShell's reader for this guest")]
    Unspeakable {
        /// Which string.
        what: String,
        /// What is in the way.
        why: &'static str,
    },
}

/// That Windows can be given every string of the command.
///
/// # Errors
/// Naming the one that is not text.
pub fn check(command: &Command) -> Result<(), WindowsError> {
    command.check()?;
    for (what, value) in strings(command) {
        if value.to_str().is_none() {
            return Err(WindowsError::NotText { what });
        }
    }
    Ok(())
}

fn strings(command: &Command) -> Vec<(String, &OsStr)> {
    let mut all = vec![
        ("the program".to_owned(), command.program.as_os_str()),
        ("the working directory".to_owned(), command.directory.as_os_str()),
    ];
    for (number, argument) in (1..).zip(&command.arguments) {
        all.push((format!("argument {number}"), argument));
    }
    for (name, value) in &command.environment {
        all.push((format!("the name of variable {name:?}"), name));
        all.push((format!("variable {name:?}"), value));
    }
    all
}

/// Text for cmd that does what [`READER`] does, but that an empty variable is none: cmd knows no other way to say that. Wine's cmd
/// takes the text for one of code page 437, whatever `chcp` says, so that it is told nothing but ASCII right.
///
/// # Errors
/// Naming a string that is not text, has a line's end in it, or is too long for a line.
pub fn cmd(command: &Command) -> Result<Vec<u8>, WindowsError> {
    check(command)?;
    for (what, value) in strings(command) {
        let bytes = value.as_encoded_bytes();
        let unspeakable = |why| Err(WindowsError::Unspeakable { what: what.clone(), why });
        if bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0x1a)) {
            return unspeakable("it has a line's end or control-Z in it");
        }
        if what.contains("argument") && bytes.contains(&b'"') {
            return unspeakable("it is an argument with a double quote in it");
        }
    }
    let mut lines = vec!["@echo off".to_owned(), "chcp 65001 >nul".to_owned()];
    for (name, value) in &command.environment {
        lines.push(format!("set \"{}", quoted(&format!("{}={}", text(name), text(value)))));
    }
    // Asked for by itself: what `cd` comes to is not told by `||` in every cmd, and Wine's takes the space before it for a part of
    // the name.
    let directory = text(command.directory.as_os_str());
    lines.push(format!("if not exist \"{} exit /b 125", quoted(&format!("{}\\.", directory.trim_end_matches('\\')))));
    lines.push(format!("cd /d \"{}", quoted(&directory)));
    let mut line = format!("\"{}", quoted(&text(&command.program)));
    for argument in &command.arguments {
        // A backslash before the closing quote would make that quote a part of the argument.
        let argument = text(argument);
        let backslashes = argument.len() - argument.trim_end_matches('\\').len();
        line.push_str(&format!(" \"{}", quoted(&format!("{argument}{}", "\\".repeat(backslashes)))));
    }
    lines.push(line);
    lines.push("exit /b %ERRORLEVEL%".to_owned());
    if let Some(long) = lines.iter().find(|line| line.len() > LONGEST_LINE) {
        let what = format!("the line that begins {:?}", long.chars().take(30).collect::<String>());
        return Err(WindowsError::Unspeakable { what, why: "it is longer than 8191 characters" });
    }
    Ok((lines.join("\r\n") + "\r\n").into_bytes())
}

fn text(value: &OsStr) -> String {
    // `check` has seen to it that nothing is lost.
    value.to_string_lossy().into_owned()
}

/// What stands behind an opening quote, with the closing one. A quote inside closes it for a while, where cmd's own signs
/// count again and want a caret.
fn quoted(value: &str) -> String {
    let mut out = String::new();
    let mut inside = true;
    for letter in value.chars() {
        match letter {
            '"' => inside = !inside,
            '%' => out.push('%'),
            '&' | '|' | '<' | '>' | '^' | '(' | ')' if !inside => out.push('^'),
            _ => {}
        }
        out.push(letter);
    }
    out.push('"');
    out
}

/// The files to be put into the share for PowerShell: their names and contents.
///
/// # Errors
/// If Windows cannot be given a string of the command.
pub fn files(command: &Command) -> Result<Vec<(OsString, Vec<u8>)>, WindowsError> {
    check(command)?;
    Ok(vec![
        (super::COMMAND_FILE.into(), command.encode()?),
        (READER_FILE.into(), READER.replace('\n', "\r\n").into_bytes()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cmd_text(command: &Command) -> String {
        String::from_utf8(cmd(command).unwrap()).unwrap()
    }

    #[test]
    fn cmd_gets_percents_doubled_quotes_kept_and_signs_behind_carets_where_they_count() {
        let command = Command::new("S:\\hello.exe")
            .arguments(["100%", "end\\"])
            .variable("A", "x&y|%PATH%")
            .variable("B", "say \"a&b\" & go")
            .directory("X:\\");
        let lines: Vec<String> = cmd_text(&command).split("\r\n").map(str::to_owned).collect();
        assert!(lines.contains(&"set \"A=x&y|%%PATH%%\"".to_owned()), "{lines:?}");
        assert!(lines.contains(&"set \"B=say \"a^&b\" & go\"".to_owned()), "{lines:?}");
        assert!(lines.contains(&"\"S:\\hello.exe\" \"100%%\" \"end\\\\\"".to_owned()), "{lines:?}");
        assert!(lines.contains(&"if not exist \"X:\\.\" exit /b 125".to_owned()), "{lines:?}");
    }

    #[test]
    fn what_windows_or_cmd_cannot_be_told_is_refused_by_name() {
        use std::os::unix::ffi::OsStringExt;
        let latin = Command::new("a").variable("LATIN", OsString::from_vec(vec![0xe9]));
        assert!(check(&latin).unwrap_err().to_string().starts_with("variable \"LATIN\" is not UTF-8"));
        let lines = Command::new("a").variable("LINES", "a\nb");
        assert!(cmd(&lines).unwrap_err().to_string().contains("variable \"LINES\" cannot be said"));
        assert!(files(&lines).is_ok());
        let long = Command::new("a").variable("LONG", "x".repeat(9000));
        assert!(cmd(&long).unwrap_err().to_string().contains("8191"));
    }

    #[test]
    fn the_reader_knows_the_form_that_is_written() {
        let bytes = Command::new("a").encode().unwrap();
        let magic: Vec<String> = bytes[..4].iter().map(u8::to_string).collect();
        assert!(READER.contains(&format!("'{}'", magic.join(" "))), "{magic:?}");
    }
}
