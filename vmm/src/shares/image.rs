//! The store as an image of exactly a closure, made by the host's own tools (erofs-utils, squashfs-tools). What is not an
//! input is not there; the same closure gives the same bytes.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The form of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Mapped, not packed.
    Erofs,
    /// In blocks, packed or not: the fastest to read for the first time.
    Squashfs,
}

impl Form {
    /// As the kernel calls it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
        }
    }

    /// The program that makes it: in the path, and where an ordinary user's path does not lead. Nothing if there is none.
    pub fn program(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
        folders.map(|folder| folder.join(self.tool().0)).find(|path| path.is_file())
    }

    /// The name of that program, and of the package that has it.
    pub fn tool(self) -> (&'static str, &'static str) {
        match self {
            Self::Erofs => ("mkfs.erofs", "erofs-utils"),
            Self::Squashfs => ("mksquashfs", "squashfs-tools"),
        }
    }
}

/// What goes into an image.
#[derive(Clone, Debug)]
pub enum Content {
    /// A directory that has exactly what the image is to have: in a room, its own store.
    Directory(PathBuf),
    /// These paths, beside each other under their own names. Only for squashfs.
    Paths(Vec<PathBuf>),
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No tool.
    #[error("{tool} cannot be started ({source}): install {package}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// What it comes in.
        package: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The tool failed.
    #[error("{tool} could not make {image}: {said}")]
    Failed {
        /// Which.
        tool: &'static str,
        /// Of what.
        image: PathBuf,
        /// The beginning of what it said.
        said: String,
    },
    /// Something that cannot be put in.
    #[error("{path:?} cannot be put into an image: {why}")]
    Content {
        /// What.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
}

/// Makes the image `to`, which must not be there yet, by [`Form::program`]'s program. In a squashfs everything belongs to whom it
/// belongs to here, and is as old; in an erofs all belongs to root and is as old as things in a store are.
///
/// # Errors
/// If the program is not there, or fails, which it does at the first file that it cannot read: then `to` is not there.
pub fn make(form: Form, program: &Path, content: &Content, to: &Path) -> Result<(), ImageError> {
    let (tool, package) = form.tool();
    let mut command = Command::new(program);
    match (form, content) {
        (Form::Erofs, Content::Directory(directory)) => {
            // 1 is the time of everything in a store.
            command.args(["-T1", "-U00000000-0000-0000-0000-000000000000", "--all-root", "-x-1"]);
            command.arg(to).arg(directory);
        }
        (Form::Erofs, Content::Paths(paths)) => {
            let path = paths.first().cloned().unwrap_or_default();
            return Err(ImageError::Content { path, why: "erofs takes one directory; name it, or take squashfs" });
        }
        (Form::Squashfs, content) => {
            // The sources come first, all options last.
            match content {
                Content::Directory(directory) => command.arg(directory).arg(to),
                Content::Paths(paths) => command.args(check(paths)?).arg(to).arg("-keep-as-directory"),
            };
            // Packed by LZ4: measured as fast as not packed, and smaller.
            command.args(["-comp", "lz4", "-no-xattrs", "-noappend", "-no-progress", "-quiet", "-mkfs-time", "0"]);
            // Else a file that cannot be read is an empty one. And it would take a quarter of the host's memory, which a room may
            // not have.
            command.args(["-exit-on-error", "-mem", "256M"]);
        }
    }
    // It would set times of its own.
    command.env_remove("SOURCE_DATE_EPOCH").stdin(Stdio::null());
    let done = command.output().map_err(|source| ImageError::Tool { tool, package, source })?;
    if !done.status.success() {
        let _ = std::fs::remove_file(to);
        let said = [done.stdout, done.stderr].concat();
        // What is wrong comes first; behind it, some print all of their usage.
        let said = String::from_utf8_lossy(&said[..said.len().min(500)]).trim().to_owned();
        return Err(ImageError::Failed { tool, image: to.to_owned(), said });
    }
    Ok(())
}

/// Paths that can stand beside each other.
fn check(paths: &[PathBuf]) -> Result<&[PathBuf], ImageError> {
    let mut names = std::collections::BTreeSet::new();
    for path in paths {
        let refuse = |why| Err(ImageError::Content { path: path.clone(), why });
        match path.file_name() {
            _ if !path.is_absolute() => return refuse("it is not absolute"),
            None => return refuse("it has no name"),
            Some(name) if !names.insert(name) => return refuse("another one has the same name"),
            Some(_) => {}
        }
        // mksquashfs would follow it and take what it leads to.
        if path.is_symlink() {
            return refuse("it is a symbolic link itself; name a directory that has it");
        }
    }
    if paths.is_empty() {
        return Err(ImageError::Content { path: PathBuf::new(), why: "there are no paths" });
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn closure(folder: &Path) -> Vec<PathBuf> {
        for (name, content) in [("a-one/bin/one", "#!/bin/sh\n"), ("b-two/name", "text"), ("c-not", "secret")] {
            let path = folder.join("store").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        std::os::unix::fs::symlink("../b-two", folder.join("store/a-one/link")).unwrap();
        ["a-one", "b-two"].map(|name| folder.join("store").join(name)).to_vec()
    }

    fn program(form: Form) -> Option<PathBuf> {
        let program = form.program();
        if program.is_none() {
            println!("SKIP: no {} here", form.tool().0);
        }
        program
    }

    #[test]
    fn the_image_has_exactly_the_closure_and_the_same_bytes_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let paths = closure(folder.path());
        for (form, content) in [
            (Form::Squashfs, Content::Paths(paths.clone())),
            (Form::Squashfs, Content::Paths(paths[..1].to_vec())),
            (Form::Squashfs, Content::Directory(folder.path().join("store"))),
            (Form::Erofs, Content::Directory(folder.path().join("store"))),
        ] {
            let Some(program) = program(form) else { return };
            let (one, two) = (folder.path().join("one"), folder.path().join("two"));
            make(form, &program, &content, &one).unwrap();
            make(form, &program, &content, &two).unwrap();
            assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap(), "{form:?}");
            if form == Form::Squashfs {
                let listed = Command::new("unsquashfs").arg("-lls").arg(&one).output().unwrap();
                let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
                assert!(
                    listed.contains("squashfs-root/a-one/bin/one") && listed.contains("link -> ../b-two"),
                    "{listed}"
                );
                let all = matches!(content, Content::Directory(_));
                assert_eq!(listed.contains("c-not"), all, "{listed}");
            }
            fs::remove_file(one).unwrap();
            fs::remove_file(two).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_put_in_is_refused_and_a_failed_tool_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let paths = closure(folder.path());
        let to = folder.path().join("image");
        let told = |form: Form, content| {
            let program = form.program().unwrap_or_else(|| form.tool().0.into());
            make(form, &program, &content, &to).unwrap_err().to_string()
        };
        assert!(told(Form::Erofs, Content::Paths(paths.clone())).contains("squashfs"));
        assert!(told(Form::Squashfs, Content::Paths(Vec::new())).contains("no paths"));
        let twice = vec![paths[0].clone(), folder.path().join("other/a-one")];
        assert!(told(Form::Squashfs, Content::Paths(twice)).contains("same name"));
        let link = folder.path().join("store/a-one/link");
        assert!(told(Form::Squashfs, Content::Paths(vec![link])).contains("symbolic link"));
        if program(Form::Erofs).is_some() {
            let said = told(Form::Erofs, Content::Directory("/missing".into()));
            assert!(said.contains("mkfs.erofs could not make") && !to.exists(), "{said}");
        }
        let missing = make(Form::Squashfs, Path::new("/missing"), &Content::Paths(paths), &to).unwrap_err().to_string();
        assert!(missing.contains("install squashfs-tools"), "{missing}");
    }

    /// mksquashfs by itself takes what it cannot read for empty, and says that all is well.
    #[test]
    fn a_file_that_cannot_be_read_is_no_empty_file() {
        use std::os::unix::fs::PermissionsExt;
        let Some(mut program) = program(Form::Squashfs) else { return };
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let paths = closure(folder.path());
        fs::set_permissions(paths[1].join("name"), fs::Permissions::from_mode(0o000)).unwrap();
        if rustix::process::geteuid().is_root() {
            // Who reads every file.
            let nobody = folder.path().join("nobody");
            let script = format!(
                "#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups {} \"$@\"\n",
                program.display()
            );
            // By a process of its own: a descriptor of ours that another test's child has meanwhile would make it busy.
            let mut write = Command::new("/bin/sh");
            write.args(["-c", "printf %s \"$1\" >\"$0\"; chmod 755 \"$0\""]).arg(&nobody).arg(script);
            assert!(write.status().unwrap().success());
            program = nobody;
        }
        let to = folder.path().join("image");
        let said = make(Form::Squashfs, &program, &Content::Paths(paths), &to).unwrap_err().to_string();
        assert!(said.contains("mksquashfs could not make") && !to.exists(), "{said}");
    }
}
