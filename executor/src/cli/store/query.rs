//! `anchorhold store query` and `path-info`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::ExitCode;

use anchorhold::store::{Access, Direction, PathInfo, Store};
use anchorhold::store_path::StorePath;
use clap::Args;
use serde_json::{Value, json};

use super::{Failure, StorePlace, parse_paths, print, print_json};

#[derive(Debug, Args)]
#[group(id = "question", multiple = false)]
pub(super) struct Question {
    /// What they refer to (this is what is asked without any other)
    #[arg(long)]
    references: bool,

    /// What refers to them
    #[arg(long)]
    referrers: bool,

    /// They and all that they need
    #[arg(long, short = 'R')]
    requisites: bool,

    /// They and all that needs them
    #[arg(long)]
    referrers_closure: bool,

    /// The derivation that made each
    #[arg(long)]
    deriver: bool,

    /// The outputs of derivations
    #[arg(long)]
    outputs: bool,

    /// The valid derivations that have them as outputs
    #[arg(long)]
    valid_derivers: bool,

    /// What keeps them from the collector
    #[arg(long)]
    roots: bool,

    /// Every valid path
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct QueryOptions {
    #[command(flatten)]
    question: Question,

    /// The paths
    #[arg(value_name = "PATH", required_unless_present = "all", conflicts_with = "all")]
    paths: Vec<OsString>,
}

pub(super) fn run(place: &StorePlace, options: &QueryOptions) -> Result<ExitCode, Failure> {
    let store = place.open(Access::ReadOnly)?;
    let paths = parse_paths(&store, &options.paths)?;
    let question = &options.question;
    // A path that is not valid has no answers; that is an error, and not the answer that there are none.
    for path in &paths {
        store.path_info(path)?;
    }
    let mut answer = BTreeSet::new();
    if question.all {
        answer = store.all_valid_paths()?;
    } else if question.requisites || question.referrers_closure {
        let direction = if question.requisites { Direction::Forward } else { Direction::Backward };
        answer = store.closure(&paths, direction)?;
        if question.requisites {
            // What needs comes after what is needed, as in Nix.
            let order = store.references_first(&answer)?;
            return print(order.iter().map(|path| store.dir().display(path)));
        }
    } else if question.roots {
        return roots(&store, &paths);
    } else {
        for path in &paths {
            answer.extend(ask(&store, question, path)?);
        }
    }
    print(answer.iter().map(|path| store.dir().display(path)))
}

fn ask(store: &Store, question: &Question, path: &StorePath) -> Result<Vec<StorePath>, Failure> {
    Ok(if question.referrers {
        store.query_referrers(path)?.into_iter().collect()
    } else if question.deriver {
        store.path_info(path)?.deriver.into_iter().collect()
    } else if question.outputs {
        store.derivation_outputs(path)?.into_values().collect()
    } else if question.valid_derivers {
        store.valid_derivers(path)?.into_iter().collect()
    } else {
        store.query_references(path)?.into_iter().collect()
    })
}

fn roots(store: &Store, paths: &BTreeSet<StorePath>) -> Result<ExitCode, Failure> {
    let needing = store.closure(paths, Direction::Backward)?;
    let roots = store.find_roots(true)?;
    let lines = roots.paths.iter().filter(|(path, _)| needing.contains(*path)).flat_map(|(path, by)| {
        let path = store.dir().display(path);
        by.iter().map(move |by| format!("{by} -> {path}"))
    });
    print(lines)
}

#[derive(Debug, Args)]
pub(super) struct PathInfoOptions {
    /// Print all that is known as JSON, in the form of `nix path-info --json` of Nix 2.8
    #[arg(long)]
    json: bool,

    /// With all that they need
    #[arg(long, short = 'r')]
    closure: bool,

    /// Add the size of each in bytes
    #[arg(long, short = 's')]
    size: bool,

    /// Add the size of each and of all that it needs, in bytes
    #[arg(long, short = 'S')]
    closure_size: bool,

    /// Every valid path
    #[arg(long)]
    all: bool,

    /// The paths
    #[arg(value_name = "PATH", required_unless_present = "all", conflicts_with = "all")]
    paths: Vec<OsString>,
}

pub(super) fn path_info(place: &StorePlace, options: &PathInfoOptions) -> Result<ExitCode, Failure> {
    let store = place.open(Access::ReadOnly)?;
    let mut infos = if options.all {
        store.all_path_infos()?
    } else {
        let mut paths = parse_paths(&store, &options.paths)?;
        if options.closure {
            paths = store.closure(&paths, Direction::Forward)?;
        }
        paths.iter().map(|path| store.path_info(path)).collect::<Result<_, _>>()?
    };
    infos.sort_by(|a, b| a.path.cmp(&b.path));
    let closure_size = |info: &PathInfo| -> Result<u64, Failure> {
        let closure = store.closure([&info.path], Direction::Forward)?;
        closure.iter().map(|path| Ok(store.path_info(path)?.nar_size)).sum()
    };
    if options.json {
        let mut objects = Vec::new();
        for info in &infos {
            let mut object = as_json(&store, info);
            if options.closure_size {
                object["closureSize"] = closure_size(info)?.into();
            }
            objects.push(object);
        }
        return print_json(&Value::Array(objects));
    }
    let mut lines = Vec::new();
    for info in &infos {
        let mut line = store.dir().display(&info.path);
        if options.size {
            line.push_str(&format!("\t{}", info.nar_size));
        }
        if options.closure_size {
            line.push_str(&format!("\t{}", closure_size(info)?));
        }
        lines.push(line);
    }
    print(lines)
}

fn as_json(store: &Store, info: &PathInfo) -> Value {
    let full = |path| store.dir().display(path);
    let mut object = json!({
        "path": full(&info.path),
        "narHash": info.nar_hash.sri(),
        "narSize": info.nar_size,
        "references": info.references.iter().map(full).collect::<Vec<_>>(),
        "registrationTime": info.registration_time,
    });
    // Nix leaves out what there is none of.
    if let Some(deriver) = &info.deriver {
        object["deriver"] = full(deriver).into();
    }
    if let Some(address) = &info.content_address {
        object["ca"] = address.as_str().into();
    }
    if info.ultimate {
        object["ultimate"] = true.into();
    }
    if !info.signatures.is_empty() {
        object["signatures"] = json!(info.signatures);
    }
    object
}
