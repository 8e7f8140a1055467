//! `anchorhold store add`.

use std::path::PathBuf;
use std::process::ExitCode;

use anchorhold::hash::Algorithm;
use anchorhold::store::{Access, Naming};
use clap::Args;

use super::{Failure, StorePlace, notice, print};

#[derive(Debug, Args)]
pub(super) struct AddOptions {
    /// The name after the hash; without it the file's own
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Name the path by the bytes of a single file, not by its archive: what a fixed output of the mode flat is
    #[arg(long)]
    flat: bool,

    /// Name the path as the text of a file: what `builtins.toFile` makes
    #[arg(long, conflicts_with_all = ["flat", "hash"])]
    text: bool,

    /// The hash function of the name: md5, sha1, sha256 or sha512
    #[arg(long, value_name = "ALGORITHM", default_value = "sha256")]
    hash: Algorithm,

    /// Make LINK a link to the path, which keeps it for as long as the link is there
    #[arg(long, value_name = "LINK")]
    root: Option<PathBuf>,

    /// Files and directories
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

pub(super) fn run(place: &StorePlace, options: &AddOptions) -> Result<ExitCode, Failure> {
    if options.files.len() > 1 && (options.name.is_some() || options.root.is_some()) {
        return Err(Failure("--name and --root are for a single file".to_owned()));
    }
    let store = place.open(Access::ReadWrite)?;
    let mut added = Vec::new();
    for file in &options.files {
        let name = match &options.name {
            Some(name) => name.clone(),
            None => {
                let absolute = std::path::absolute(file)?;
                let name = absolute.file_name().and_then(|name| name.to_str()).map(str::to_owned);
                name.ok_or_else(|| Failure(format!("‘{}’ gives no name: use --name", file.display())))?
            }
        };
        let info = if options.text {
            let contents =
                std::fs::read(file).map_err(|error| Failure(format!("cannot read ‘{}’: {error}", file.display())))?;
            store.add_text(&name, &contents, [], [], &mut notice)?
        } else {
            let naming = if options.flat { Naming::Flat(options.hash) } else { Naming::Recursive(options.hash) };
            store.add(&name, file, naming, &mut notice)?
        };
        if let Some(link) = &options.root {
            store.add_indirect_root(&info.path, link)?;
        }
        added.push(store.dir().display(&info.path));
    }
    print(added)
}
