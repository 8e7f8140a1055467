//! The line of Nix's setting `builders` that names us: a machine on this host that is reached without ssh.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What Nix's helper is to know of us.
#[derive(Debug)]
pub struct Machine<'a> {
    /// This program.
    pub program: &'a Path,
    /// The systems that are built for.
    pub systems: BTreeSet<&'a str>,
    /// The words that derivations may require.
    pub features: BTreeSet<&'a str>,
    /// How many builds run at once, on the whole host: the helper counts them.
    pub jobs: usize,
}

impl Machine<'_> {
    /// The line. With the host `localhost`, Nix starts `bash -c 'PROGRAM --stdio'` and no ssh.
    pub fn line(&self) -> String {
        // The helper names a lock after this, and a file's name is short: all else is carried elsewhere.
        let mut line = String::from("ssh-ng://localhost?remote-program=");
        escape(&mut line, self.program.as_os_str().as_bytes());
        line.push_str("%20hook ");
        list(&mut line, &self.systems);
        // No key; so many jobs; a speed; features, none of which a derivation must require to come here.
        let _ = write!(line, " - {} 1 ", self.jobs.max(1));
        list(&mut line, &self.features);
        line.push_str(" -");
        line
    }
}

/// In percent signs, for all that an address, the line around it, or the shell that reads it would take for its own.
fn escape(into: &mut String, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => into.push(char::from(*byte)),
            _ => {
                let _ = write!(into, "%{byte:02X}");
            }
        }
    }
}

/// Words with commas between them. What would break the line is left out: nobody can require it.
fn list(into: &mut String, words: &BTreeSet<&str>) {
    let fits = |word: &&&str| {
        !word.is_empty()
            && !word.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, ',' | ';' | '#' | '@'))
    };
    let words: Vec<&str> = words.iter().filter(fits).copied().collect();
    into.push_str(if words.is_empty() { "-" } else { "" });
    into.push_str(&words.join(","));
}

/// Whether the shell that starts us takes the program's path as it is.
pub fn is_plain(program: &Path) -> bool {
    let mut escaped = String::new();
    escape(&mut escaped, program.as_os_str().as_bytes());
    program.is_absolute() && escaped.as_bytes() == program.as_os_str().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_the_fields_of_the_machines_file() {
        let machine = Machine {
            program: Path::new("/usr/bin/anchorhold"),
            systems: ["i686-linux", "x86_64-linux"].into(),
            features: ["kvm", "big-parallel", "a,b", "two words"].into(),
            jobs: 3,
        };
        let wanted = "ssh-ng://localhost?remote-program=/usr/bin/anchorhold%20hook i686-linux,x86_64-linux - 3 1 big-parallel,kvm -";
        assert_eq!(machine.line(), wanted);
        let bare = Machine { features: BTreeSet::new(), jobs: 0, ..machine };
        assert!(bare.line().ends_with(" - 1 1 - -"), "{}", bare.line());
    }

    #[test]
    fn a_shell_reads_plain_paths_only() {
        assert!(is_plain(Path::new("/usr/bin/anchorhold-1.0")));
        for path in ["/a b/anchorhold", "/$HOME/anchorhold", "anchorhold", "/it's"] {
            assert!(!is_plain(Path::new(path)), "{path}");
        }
    }
}
