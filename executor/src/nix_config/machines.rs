//! Nix's setting `builders`: the machines that builds are sent to.

use std::path::Path;

use super::files;

/// How deep files of machines may name each other.
const DEEPEST: usize = 8;
/// How many machines are looked at.
const MOST: usize = 1000;

/// The addresses of all machines. Machines are lines or parted by `;`, their first word is the address, and `@FILE` stands for what is
/// in a file, which may be missing.
///
/// # Errors
/// The sentence that says which file cannot be read.
pub fn addresses(setting: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    collect(setting, 0, &mut all)?;
    Ok(all)
}

fn collect(text: &str, depth: usize, all: &mut Vec<String>) -> Result<(), String> {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        for machine in line.split(';').map(str::trim).filter(|machine| !machine.is_empty()) {
            if all.len() >= MOST || depth > DEEPEST {
                return Err(format!("it has more than {MOST} machines, or files that name each other"));
            }
            match machine.strip_prefix('@') {
                Some(file) => match files::contents(Path::new(file.trim())) {
                    Ok(text) => collect(&text, depth + 1, all)?,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(format!("cannot read {file}: {error}")),
                },
                None => all.extend(machine.split_ascii_whitespace().next().map(str::to_owned)),
            }
        }
    }
    Ok(())
}

/// Whether this address is ours: a server of ours on this machine or on another, by the program or the socket that it names.
pub fn is_ours(address: &str) -> bool {
    let (place, query) = address.split_once('?').unwrap_or((address, ""));
    let program = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == "remote-program");
    match program {
        Some((_, program)) => program.contains("anchorhold"),
        None => place.starts_with("unix://") && place.contains("/anchorhold"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_come_from_lines_semicolons_and_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("machines");
        std::fs::write(&file, "# none\nssh://a x86_64-linux\n\nssh-ng://b # c\n").unwrap();
        let setting = format!("unix:///x x - 1 ; @{} ; @/nonexistent/machines", file.display());
        assert_eq!(addresses(&setting).unwrap(), ["unix:///x", "ssh://a", "ssh-ng://b"]);
        assert_eq!(addresses("").unwrap(), Vec::<String>::new());
        std::fs::write(&file, format!("@{}", file.display())).unwrap();
        assert!(addresses(&setting).is_err());
    }

    #[test]
    fn ours_are_known_by_program_and_socket() {
        assert!(is_ours("ssh-ng://localhost?remote-program=/usr/bin/anchorhold%20hook"));
        assert!(is_ours("ssh://build@far?compress=true&remote-program=/opt/anchorhold/bin/anchorhold"));
        assert!(is_ours("unix:///run/anchorhold-store/socket?real=/x"));
        assert!(!is_ours("ssh://anchorhold.example.org"));
        assert!(!is_ours("unix:///nix/var/nix/daemon-socket/socket"));
        assert!(!is_ours("ssh-ng://h?remote-program=nix-daemon"));
    }
}
