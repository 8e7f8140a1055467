//! What a visitor brings into a room: a shell and tools, in a directory of their own beside everything that the build sees.
//!
//! A room holds no more than its build needs, often not even `ls`, and a program of the host runs in it only if it needs no
//! loader: the host's libraries are not there. So by default the tools are a static busybox. `--tools` brings others: a
//! directory of static programs, or a path of the store, which comes with its closure.
//!
//! ```text
//! /.visitor/
//!   bin/      the tools: busybox, under all its names
//!   tools/    a directory given with --tools
//!   rc        what the shell reads first: its prompt
//!   build     runs the builder again, with the environment that it had
//! ```

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use anchorhold_sandbox::room::Process;
use anchorhold_sandbox::text::Text;

use crate::store::{Direction, Store};
use crate::store_path::StorePath;

/// Where the tools stand in a room.
pub const INSIDE: &str = "/.visitor";

/// The names of shells, best first.
const SHELLS: [&str; 4] = ["bash", "sh", "ash", "dash"];

/// Where a distribution may put a busybox, beside the directories of PATH.
const BUSYBOXES: [&str; 4] = ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static", "/sbin/busybox"];

/// The tools of a visitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tools {
    /// A static busybox of the host.
    Busybox(PathBuf),
    /// A directory of programs that need nothing else.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Where programs are below it: `bin`, or nothing.
        programs: &'static str,
        /// The shell's name.
        shell: &'static str,
    },
    /// A path of the store.
    Store {
        /// All that must be in the room's store.
        closure: Vec<StorePath>,
        /// The directory of programs as the room names it.
        programs: PathBuf,
        /// The shell's name.
        shell: &'static str,
    },
    /// The build's own shell, and nothing else.
    Own(PathBuf),
}

/// Why there are no tools.
#[derive(Debug, thiserror::Error)]
pub enum NoTools {
    /// Nothing that could be brought.
    #[error(
        "there is no shell to bring into the room: the host has no static busybox (Debian: apt-get install busybox-static), and the builder is not a shell; install one, or name static programs or a store path with --tools DIR"
    )]
    Nothing,
    /// A directory that was named does not serve.
    #[error("--tools {path}: {why}")]
    Unusable {
        /// As it was named.
        path: String,
        /// Why.
        why: String,
    },
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

impl Tools {
    /// The tools that are asked for, or else the best that the host has. `builder` is the program of the room.
    ///
    /// # Errors
    /// When there is none that would run in a room.
    pub fn choose(asked: Option<&Path>, store: Option<&Store>, builder: &Text) -> Result<Self, NoTools> {
        if let Some(asked) = asked {
            return Self::named(asked, store);
        }
        if let Some(busybox) = static_busybox() {
            return Ok(Self::Busybox(busybox));
        }
        let builder = Path::new(builder.as_os_str());
        let is_shell = builder.file_name().is_some_and(|name| SHELLS.iter().any(|shell| name == *shell));
        if is_shell && builder.is_absolute() { Ok(Self::Own(builder.to_owned())) } else { Err(NoTools::Nothing) }
    }

    fn named(asked: &Path, store: Option<&Store>) -> Result<Self, NoTools> {
        let unusable = |why: String| NoTools::Unusable { path: asked.display().to_string(), why };
        let in_store = store.and_then(|store| {
            let below = asked.strip_prefix(store.real_dir()).or_else(|_| asked.strip_prefix(store.dir().as_str()));
            Some((store, below.ok()?.to_owned()))
        });
        let real = match &in_store {
            Some((store, below)) => store.real_dir().join(below),
            None => asked.canonicalize().map_err(|error| unusable(error.to_string()))?,
        };
        let found = ["bin", ""].into_iter().find_map(|programs| {
            let has = |shell: &&&str| real.join(programs).join(shell).exists();
            Some((programs, *SHELLS.iter().find(has)?))
        });
        let Some((programs, shell)) = found else {
            return Err(unusable(format!("there is no {} in it, nor in its bin/", SHELLS.join(", "))));
        };
        if let Some((store, below)) = in_store {
            let top = below.components().next().and_then(|top| top.as_os_str().to_str()).unwrap_or_default();
            let path: StorePath = top.parse().map_err(|error| unusable(format!("{error}")))?;
            let closure = store.closure([&path], Direction::Forward)?;
            let programs = Path::new(store.dir().as_str()).join(&below).join(programs);
            return Ok(Self::Store { closure: closure.into_iter().collect(), programs, shell });
        }
        let program = real.join(programs).join(shell);
        match loader(&program) {
            Ok(None) => Ok(Self::Directory { path: real, programs, shell }),
            Ok(Some(loader)) => Err(unusable(format!(
                "its {shell} needs the loader {}, which is not in the room: give static programs, or a path of the store",
                loader.display()
            ))),
            Err(error) => Err(unusable(format!("{}: {error}", program.display()))),
        }
    }

    /// The shell, as the room names it.
    pub fn shell(&self) -> PathBuf {
        match self {
            Self::Busybox(_) => Path::new(INSIDE).join("bin/sh"),
            Self::Directory { programs, shell, .. } => Path::new(INSIDE).join("tools").join(programs).join(shell),
            Self::Store { programs, shell, .. } => programs.join(shell),
            Self::Own(shell) => shell.clone(),
        }
    }

    /// Where programs are looked for behind the build's own PATH.
    pub fn search(&self) -> Option<PathBuf> {
        match self {
            Self::Busybox(_) => Some(Path::new(INSIDE).join("bin")),
            Self::Directory { programs, .. } => Some(Path::new(INSIDE).join("tools").join(programs)),
            Self::Store { programs, .. } => Some(programs.clone()),
            Self::Own(_) => None,
        }
    }

    /// What else of the host stands in the room: inside, outside.
    pub fn mounts(&self) -> Option<(PathBuf, PathBuf)> {
        match self {
            Self::Directory { path, .. } => Some((Path::new(INSIDE).join("tools"), path.clone())),
            _ => None,
        }
    }

    /// Fills an empty directory that will be shown at [`INSIDE`].
    ///
    /// # Errors
    /// What the file system says, or busybox.
    pub fn lay_out(&self, directory: &Path, process: &Process, prompt: &str) -> io::Result<()> {
        for name in ["bin", "tools"] {
            make_directory(&directory.join(name))?;
        }
        if let Self::Busybox(busybox) = self {
            lay_out_busybox(busybox, &directory.join("bin"))?;
        }
        write(&directory.join("rc"), 0o644, format!("unset ENV\nPS1='{prompt}'\n").as_bytes())?;
        write(&directory.join("build"), 0o755, &self.script(process))
    }

    /// Runs the builder as it was run. A shell that has changed its environment does not change the builder's.
    fn script(&self, process: &Process) -> Vec<u8> {
        let mut script =
            format!("#!{}\ncd {} || exit\n", self.shell().display(), process.directory.display()).into_bytes();
        let env = match self {
            // It need not be there.
            Self::Own(_) => None,
            _ => self.search().map(|search| search.join("env")),
        };
        match env {
            Some(env) => {
                script.extend(format!("exec {} -i", env.display()).into_bytes());
                for (name, value) in &process.environment {
                    let mut word = name.0.clone();
                    word.push("=");
                    word.push(&value.0);
                    script.push(b' ');
                    script.extend(quoted(&word));
                }
            }
            None => {
                let path = process.environment.get(&Text::from("PATH")).cloned().unwrap_or_default();
                script.extend(b"unset ENV PS1\nPATH=");
                script.extend(quoted(&path.0));
                script.extend(b"\nexec");
            }
        }
        for word in std::iter::once(&process.program).chain(&process.arguments) {
            script.push(b' ');
            script.extend(quoted(&word.0));
        }
        script.push(b'\n');
        script
    }

    /// The process that a visitor has in the place of `process`: the shell, or a command of theirs, in its environment.
    pub fn process(&self, process: &Process, command: &[OsString]) -> Process {
        let mut environment = process.environment.clone();
        if let Some(search) = self.search() {
            let path = environment.entry(Text::from("PATH")).or_default();
            if !path.0.is_empty() {
                path.0.push(":");
            }
            path.0.push(search);
        }
        let shell = self.shell();
        let rc = Path::new(INSIDE).join("rc").into_os_string();
        let (program, arguments) = match command.split_first() {
            Some((program, arguments)) => (program.clone(), arguments.to_vec()),
            None if shell.file_name() == Some(OsStr::new("bash")) => {
                (shell.into_os_string(), vec!["--noprofile".into(), "--rcfile".into(), rc])
            }
            None => {
                environment.insert(Text::from("ENV"), Text(rc));
                (shell.into_os_string(), Vec::new())
            }
        };
        Process {
            program: Text(program),
            argv0: None,
            arguments: arguments.into_iter().map(Text).collect(),
            environment,
            ..process.clone()
        }
    }
}

/// A busybox of the host that runs anywhere.
fn static_busybox() -> Option<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::split_paths(&search).filter(|path| path.is_absolute()).map(|path| path.join("busybox"));
    BUSYBOXES.iter().map(PathBuf::from).chain(named).find(|path| matches!(loader(path), Ok(None)))
}

/// A copy, so that nothing but this one file of the host is shown, and a link for each of its names.
fn lay_out_busybox(busybox: &Path, directory: &Path) -> io::Result<()> {
    let listed =
        std::process::Command::new(busybox).arg("--list").env_clear().stdin(std::process::Stdio::null()).output()?;
    let mut contents = Vec::new();
    std::fs::File::open(busybox)?.read_to_end(&mut contents)?;
    write(&directory.join("busybox"), 0o755, &contents)?;
    for name in listed.stdout.split(|byte| *byte == b'\n') {
        if !name.is_empty() && !name.contains(&b'/') && name != b"busybox" {
            symlink("busybox", directory.join(OsStr::from_bytes(name)))?;
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)?;
    // Against our umask.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
}

fn write(path: &Path, mode: u32, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(contents)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// As a word of a shell.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// The loader that a program needs: of an ELF file its interpreter, of a script the program behind `#!`; nothing for one that runs
/// by itself.
///
/// # Errors
/// What the file system says, and when it is no program.
fn loader(program: &Path) -> io::Result<Option<PathBuf>> {
    /// More program headers than any linker writes.
    const MOST: u64 = 512;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is no program of this machine");
    let mut file = std::fs::File::open(program)?;
    let mut head = [0; 64];
    let length = file.read(&mut head)?;
    if head.starts_with(b"#!") {
        let line = head[2..length].split(|byte| *byte == b'\n').next().unwrap_or_default();
        return Ok(Some(OsString::from_vec(line.trim_ascii().to_vec()).into()));
    }
    // The 64-bit, little-endian form (elf(5)): what all machines have that this program is built for.
    if length < 64 || !head.starts_with(b"\x7fELF\x02\x01") {
        return Err(damaged());
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let (table, size, count) = (number(&head[32..40]), number(&head[54..56]), number(&head[56..58]));
    if size < 56 || count > MOST {
        return Err(damaged());
    }
    for index in 0..count {
        const PT_INTERP: u64 = 3;
        let mut header = [0; 56];
        file.seek(SeekFrom::Start(table.saturating_add(index * size)))?;
        file.read_exact(&mut header)?;
        if number(&header[..4]) == PT_INTERP {
            let mut name = vec![0; number(&header[32..40]).min(4096) as usize];
            file.seek(SeekFrom::Start(number(&header[8..16])))?;
            file.read_exact(&mut name)?;
            name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
            return Ok(Some(OsString::from_vec(name).into()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process {
            program: "/nix/store/x/bin/sh".into(),
            arguments: vec!["-e".into(), "it's\n".into()],
            environment: [("PATH".into(), "/path-not-set".into()), ("odd name".into(), "$(x)".into())].into(),
            directory: "/build".into(),
            ..Process::default()
        }
    }

    #[test]
    fn a_directory_without_a_shell_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let error = Tools::choose(Some(directory.path()), None, &"/bin/true".into()).unwrap_err();
        assert!(error.to_string().contains("there is no bash"), "{error}");
    }

    #[test]
    fn a_shell_that_needs_a_loader_is_refused_with_the_loader() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("sh"), "#!/opt/loader -x\n").unwrap();
        let error = Tools::choose(Some(directory.path()), None, &"/bin/true".into()).unwrap_err();
        assert!(error.to_string().contains("/opt/loader"), "{error}");
        // What this test itself is depends on how it was linked; a truncated program is none.
        std::fs::write(directory.path().join("sh"), b"\x7fELF\x02\x01").unwrap();
        assert!(Tools::choose(Some(directory.path()), None, &"/bin/true".into()).is_err());
    }

    #[test]
    fn the_script_restores_what_the_builder_had() {
        let directory = tempfile::tempdir().unwrap();
        let tools = Tools::Busybox("/unused".into());
        let script = String::from_utf8(tools.script(&process())).unwrap();
        assert_eq!(
            script,
            "#!/.visitor/bin/sh\ncd /build || exit\nexec /.visitor/bin/env -i 'PATH=/path-not-set' 'odd name=$(x)' '/nix/store/x/bin/sh' '-e' 'it'\\''s\n'\n"
        );
        drop(directory);
    }

    #[test]
    fn tools_are_found_behind_the_builds_own() {
        let visitor = Tools::Busybox("/unused".into()).process(&process(), &["ls".into()]);
        assert_eq!(visitor.environment[&Text::from("PATH")], Text::from("/path-not-set:/.visitor/bin"));
        assert_eq!((visitor.program, visitor.directory), ("ls".into(), "/build".into()));
        let own = Tools::Own("/bin/bash".into()).process(&process(), &[]);
        assert_eq!(own.environment[&Text::from("PATH")], Text::from("/path-not-set"));
        assert_eq!(own.program, "/bin/bash".into());
    }
}
