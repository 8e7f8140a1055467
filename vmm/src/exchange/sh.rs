//! A command for the shell of a guest that has no agent: text that a POSIX shell reads from a file of the share.
//!
//! Every value stands in single quotes, inside of which a shell knows nothing special but their end; there is no other
//! quoting and nothing on a command line. Each variable is set on its own: one that is read-only in that shell (bash has
//! UID, EUID, PPID and more) is left as it is, in silence.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::{Command, CommandError};

/// The file of the text in the share `xchg`.
pub const FILE: &str = "command.sh";

/// Linux takes no string longer than this, with its NUL, when it starts a program (execve(2), MAX_ARG_STRLEN).
pub const LONGEST_STRING: usize = 128 << 10;

/// The text for a shell, and what it cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// For the file.
    pub bytes: Vec<u8>,
    /// Variables that the shell gets and its programs do not: they are too long for any program. A command of which a shell
    /// is the program should be sourced instead of started (see [`environment`]).
    pub not_exported: Vec<OsString>,
}

/// Text that restores the environment in the shell that reads it. It is added to what the shell has: a guest's own
/// programs need variables of their own.
///
/// A variable that with its name is longer than `longest` bytes ([`LONGEST_STRING`], or what the guest's profile says) is
/// kept from programs. Variables whose names no shell can have are left out here; [`run`] gives them to the program nevertheless.
///
/// # Errors
/// If a string of the command cannot be given to a program.
pub fn environment(command: &Command, longest: usize) -> Result<Text, CommandError> {
    command.check()?;
    let mut bytes = Vec::new();
    let mut not_exported = Vec::new();
    for (name, value) in command.environment.iter().filter(|(name, _)| is_identifier(name)) {
        // `command` takes from `export` that a failure of it ends a shell (POSIX, 2.8.1 and 2.14). bash and dash complain on
        // standard error, where nobody would know what to make of it.
        let long = name.len() + value.len() + "=".len() + 1 > longest;
        if long {
            bytes.extend(b"if command export ");
            bytes.extend(name.as_bytes());
            bytes.extend(b"= 2>/dev/null; then unset ");
            bytes.extend(name.as_bytes());
            bytes.extend(b"; ");
            assignment(&mut bytes, name, value);
            bytes.extend(b"; fi\n");
            not_exported.push(name.clone());
        } else {
            bytes.extend(b"command export ");
            assignment(&mut bytes, name, value);
            bytes.extend(b" 2>/dev/null\n");
        }
    }
    Ok(Text { bytes, not_exported })
}

/// Text that restores the environment and becomes the program, in its directory and with its arguments. A directory that is
/// not there ends the shell with status 125. `longest` is as for [`environment`].
///
/// # Errors
/// If a string of the command cannot be given to a program.
pub fn run(command: &Command, longest: usize) -> Result<Text, CommandError> {
    let Text { mut bytes, not_exported } = environment(command, longest)?;
    bytes.extend(b"cd ");
    quote(&mut bytes, command.directory.as_os_str());
    bytes.extend(b" || exit 125\nexec ");
    // Names that no shell can have: env(1) gives them. By its path, for PATH is the build's by now.
    let odd: Vec<_> = command.environment.iter().filter(|(name, _)| !is_identifier(name)).collect();
    if !odd.is_empty() {
        bytes.extend(b"/usr/bin/env ");
        for (name, value) in odd {
            quote(&mut bytes, name);
            bytes.push(b'=');
            quote(&mut bytes, value);
            bytes.push(b' ');
        }
    }
    quote(&mut bytes, &command.program);
    for argument in &command.arguments {
        bytes.push(b' ');
        quote(&mut bytes, argument);
    }
    bytes.push(b'\n');
    Ok(Text { bytes, not_exported })
}

/// What a shell takes for a variable's name.
fn is_identifier(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

fn assignment(bytes: &mut Vec<u8>, name: &OsStr, value: &OsStr) {
    bytes.extend(name.as_bytes());
    bytes.push(b'=');
    quote(bytes, value);
}

/// The value in single quotes.
pub fn quote(bytes: &mut Vec<u8>, value: &OsStr) {
    bytes.push(b'\'');
    for byte in value.as_bytes() {
        match byte {
            // Out of the quotes, one by itself, and in again.
            b'\'' => bytes.extend(b"'\\''"),
            other => bytes.push(*other),
        }
    }
    bytes.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::super::tests::command;
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;
    use std::process::{self, Stdio};

    /// The shells that are here, each as a program and its first arguments.
    fn shells() -> Vec<Vec<&'static str>> {
        let all = [vec!["sh"], vec!["bash"], vec!["bash", "--posix"], vec!["busybox", "sh"]];
        let here = all.into_iter().filter(|shell| {
            let mut tried = process::Command::new(shell[0]);
            tried.arg("--help").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        });
        let here: Vec<_> = here.collect();
        assert!(!here.is_empty(), "no shell at all");
        here
    }

    /// What a shell that reads this text says, with a read-only variable in it beforehand.
    fn read_by(shell: &[&str], text: &[u8]) -> process::Output {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        std::fs::write(&file, text).unwrap();
        process::Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", "readonly FIXED=before; . \"$0\""])
            .arg(&file)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap()
    }

    fn fields(bytes: &[u8]) -> Vec<&[u8]> {
        bytes.strip_suffix(b"\0").map(|bytes| bytes.split(|byte| *byte == 0).collect()).unwrap_or_default()
    }

    proptest! {
        // Every case starts several programs.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn odd_values_arrive_equal_through_every_shell(mut command in command()) {
            // Names that mean something to a shell or to the loader are a matter of their own.
            command.environment = command
                .environment
                .into_iter()
                .enumerate()
                .map(|(number, (name, value))| (OsString::from(format!("T{number}_{}", name.to_str().unwrap())), value))
                .collect();
            command.directory = "/".into();
            for shell in shells() {
                let mut printed = command.clone();
                printed.arguments.insert(0, "%s\\0".into());
                printed.program = "/usr/bin/printf".into();
                let output = read_by(&shell, &run(&printed, LONGEST_STRING).unwrap().bytes);
                prop_assert!(output.status.success(), "{:?}", output);
                let arguments: Vec<&[u8]> = command.arguments.iter().map(|argument| argument.as_bytes()).collect();
                // printf writes one empty field for no arguments at all.
                if !arguments.is_empty() {
                    prop_assert_eq!(fields(&output.stdout), arguments);
                }

                let mut shown = command.clone();
                shown.program = "/bin/cat".into();
                shown.arguments = vec!["/proc/self/environ".into()];
                let output = read_by(&shell, &run(&shown, LONGEST_STRING).unwrap().bytes);
                let found = fields(&output.stdout);
                for (name, value) in &command.environment {
                    let wanted = [name.as_bytes(), b"=", value.as_bytes()].concat();
                    prop_assert!(found.contains(&&wanted[..]), "{:?}: {:?} of {:?}", shell, name, output);
                }
            }
        }
    }

    #[test]
    fn read_only_variables_are_left_alone_in_silence_and_what_follows_is_set() {
        let command =
            Command::new("/usr/bin/env").variable("FIXED", "after").variable("UID", "77").variable("LATER", "yes");
        for shell in shells() {
            let output = read_by(&shell, &run(&command, LONGEST_STRING).unwrap().bytes);
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("LATER=yes\n"), "{shell:?}: {output:?}");
            assert!(!said.contains("FIXED=after"), "{shell:?}: {said}");
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{shell:?}");
        }
        // Without `command export`, dash stops at the first of them.
        let naive = read_by(&["sh"], b"export FIXED='after'\nexport LATER='yes'\nexec /usr/bin/env\n");
        let bash = process::Command::new("sh").args(["-c", "echo ${BASH_VERSION-}"]).output().unwrap().stdout.len() > 1;
        assert!(bash || !String::from_utf8_lossy(&naive.stdout).contains("LATER"));
    }

    #[test]
    fn a_mebibyte_is_in_the_shell_and_kept_from_programs_that_could_not_start_with_it() {
        let long: Vec<u8> = (0..1 << 20).map(|at| 1 + (at % 255) as u8).collect();
        let command = Command::new("/bin/true").variable("LONG", OsString::from_vec(long.clone()));
        let mut text = environment(&command, LONGEST_STRING).unwrap();
        assert_eq!(text.not_exported, ["LONG"]);
        text.bytes.extend(b"printf %s \"$LONG\"; /bin/true || echo FAILED\n");
        for shell in shells() {
            let output = read_by(&shell, &text.bytes);
            assert!(output.stdout == long, "{shell:?}: {} bytes, {:?}", output.stdout.len(), output.status);
        }
        let mut fixed =
            environment(&Command::new("x").variable("FIXED", OsString::from_vec(long)), LONGEST_STRING).unwrap();
        fixed.bytes.extend(b"printf %s \"$FIXED\"\n");
        for shell in shells() {
            assert_eq!(read_by(&shell, &fixed.bytes).stdout, b"before", "{shell:?}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_has_its_own_status() {
        let command = Command::new("/bin/true").directory("/missing");
        for shell in shells() {
            assert_eq!(
                read_by(&shell, &run(&command, LONGEST_STRING).unwrap().bytes).status.code(),
                Some(125),
                "{shell:?}"
            );
        }
    }
}
