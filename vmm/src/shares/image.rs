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

    fn tool(self) -> (&'static str, &'static str) {
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

/// Makes the image `to`, which must not be there yet. All in it belongs to root and is as old as things in a store are.
///
/// # Errors
/// If the host has no tool for it, or the tool fails: then `to` is not there.
pub fn make(form: Form, content: &Content, to: &Path) -> Result<(), ImageError> {
    let (tool, package) = form.tool();
    let mut command = Command::new(find(tool));
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
            command.args(["-comp", "lz4", "-all-root", "-no-xattrs", "-noappend", "-no-progress", "-quiet"]);
            command.args(["-mkfs-time", "0", "-all-time", "1"]);
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

/// In the path, and where an ordinary user's path does not lead.
fn find(tool: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(tool)).find(|path| path.is_file()).unwrap_or_else(|| tool.into())
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

    fn there(form: Form) -> bool {
        let there = find(form.tool().0).is_absolute();
        if !there {
            println!("SKIP: no {} here", form.tool().0);
        }
        there
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
            if !there(form) {
                return;
            }
            let (one, two) = (folder.path().join("one"), folder.path().join("two"));
            make(form, &content, &one).unwrap();
            make(form, &content, &two).unwrap();
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
                assert!(listed.contains("root/root") && listed.contains("1970-01-01"), "{listed}");
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
        let told = |form, content| make(form, &content, &to).unwrap_err().to_string();
        assert!(told(Form::Erofs, Content::Paths(paths.clone())).contains("squashfs"));
        assert!(told(Form::Squashfs, Content::Paths(Vec::new())).contains("no paths"));
        let twice = vec![paths[0].clone(), folder.path().join("other/a-one")];
        assert!(told(Form::Squashfs, Content::Paths(twice)).contains("same name"));
        let link = folder.path().join("store/a-one/link");
        assert!(told(Form::Squashfs, Content::Paths(vec![link])).contains("symbolic link"));
        if there(Form::Erofs) {
            let said = told(Form::Erofs, Content::Directory("/missing".into()));
            assert!(said.contains("mkfs.erofs could not make") && !to.exists(), "{said}");
        }
    }
}
