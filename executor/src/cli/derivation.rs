//! `anchorhold derivation`: derivations into a store and out of it, as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anchorhold::build::stored::{self, Stored};
use anchorhold::derivation::paths::{Calculator, Derivations};
use anchorhold::derivation::{Derivation, aterm, json};
use anchorhold::store::{Access, Store};
use anchorhold::store_path::StorePath;
use clap::Args;

use super::store_root::{Failure, StorePlace};
use super::{Subcommand, command, complain, options};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "derivation",
    command: || command::<DerivationOptions>("derivation", "Put derivations into the store, and show them, as JSON"),
    run,
};

#[derive(Debug, Args)]
struct DerivationOptions {
    #[command(flatten)]
    place: StorePlace,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Read derivations as `nix derivation show` prints them, put them into the store, and print their paths
    ///
    /// Output paths may be left out: they are computed. Those that are given must be right.
    Add {
        /// Where to read them; - is standard input
        #[arg(value_name = "FILE", default_value = "-")]
        files: Vec<PathBuf>,
    },
    /// Print derivations as JSON, in the form of `nix derivation show`
    Show {
        /// With all derivations below
        #[arg(long, short)]
        recursive: bool,

        /// In the form of Nix before 2.33, whose keys are whole paths
        #[arg(long)]
        old: bool,

        /// Derivations in the store
        #[arg(value_name = "DRV", required = true)]
        derivations: Vec<String>,
    },
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: DerivationOptions = options(matches);
    let done = match &options.action {
        Action::Add { files } => add(&options.place, files),
        Action::Show { recursive, old, derivations } => show(&options.place, *recursive, *old, derivations),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(why.0);
            ExitCode::FAILURE
        }
    }
}

fn add(place: &StorePlace, files: &[PathBuf]) -> Result<(), Failure> {
    let store = place.open(Access::ReadWrite)?;
    let mut calculator = Calculator::new(store.dir(), Stored::new(&store));
    for file in files {
        let mut text = Vec::new();
        let shown = file.display();
        let read = |text: &mut Vec<u8>| match file.to_str() {
            Some("-") => io::stdin().take(json::MAX_LEN as u64 + 1).read_to_end(text),
            _ => std::fs::File::open(file)?.take(json::MAX_LEN as u64 + 1).read_to_end(text),
        };
        read(&mut text).map_err(|error| Failure(format!("reading {shown}: {error}")))?;
        let named = json::read(&text, store.dir()).map_err(|error| Failure(format!("{shown}: {error}")))?;
        for (path, derivation) in in_order(named).map_err(|why| Failure(format!("{shown}: {why}")))? {
            let added = add_one(&store, &mut calculator, path.as_ref(), derivation)
                .map_err(|why| Failure(format!("{shown}: {}", why.0)))?;
            println!("{}", store.dir().display(&added));
        }
    }
    Ok(())
}

/// Those that others of the same file need first: a whole graph may be in one.
fn in_order(named: Vec<json::Named>) -> Result<Vec<(Option<StorePath>, Derivation)>, String> {
    let (with_path, mut ordered): (Vec<_>, Vec<_>) = named.into_iter().partition(|one| one.path.is_some());
    let mut ordered: Vec<_> = ordered.drain(..).map(|one| (None, one.derivation)).collect();
    let mut left: BTreeMap<StorePath, Derivation> =
        with_path.into_iter().filter_map(|one| Some((one.path?, one.derivation))).collect();
    let mut sorted = Vec::new();
    while !left.is_empty() {
        let ready: BTreeSet<StorePath> = left
            .iter()
            .filter(|(_, derivation)| !derivation.input_derivations.keys().any(|input| left.contains_key(input)))
            .map(|(path, _)| path.clone())
            .collect();
        if ready.is_empty() {
            let names: Vec<_> = left.keys().map(StorePath::to_string).collect();
            return Err(format!("derivations need one another: {}", names.join(", ")));
        }
        for path in ready {
            if let Some(derivation) = left.remove(&path) {
                sorted.push((Some(path), derivation));
            }
        }
    }
    sorted.append(&mut ordered);
    Ok(sorted)
}

fn add_one<D: Derivations>(
    store: &Store,
    calculator: &mut Calculator<'_, D>,
    said: Option<&StorePath>,
    mut derivation: Derivation,
) -> Result<StorePath, Failure> {
    calculator.complete(&mut derivation)?;
    let path = derivation.store_path(store.dir())?;
    if let Some(said) = said.filter(|said| **said != path) {
        return Err(Failure(format!(
            "the derivation is called ‘{}’, but what it says makes it ‘{}’",
            store.dir().display(said),
            store.dir().display(&path)
        )));
    }
    let outputs =
        derivation.outputs.iter().filter_map(|(name, output)| output.path().map(|path| (name.clone(), path.clone())));
    let text = aterm::write(&derivation, store.dir());
    let info = store.add_text(path.name(), &text, derivation.references(), outputs, &mut |notice| complain(notice))?;
    Ok(info.path)
}

fn show(place: &StorePlace, recursive: bool, old: bool, derivations: &[String]) -> Result<(), Failure> {
    let store = place.open(Access::ReadOnly)?;
    let mut found = BTreeMap::new();
    let mut left = Vec::new();
    for text in derivations {
        left.push(super::build::target(&store, text)?.derivation);
    }
    while let Some(path) = left.pop() {
        if found.contains_key(&path) {
            continue;
        }
        if !store.is_valid(&path)? {
            return Err(Failure(format!(
                "‘{}’ is not in the store ‘{}’",
                store.dir().display(&path),
                store.root().display()
            )));
        }
        let derivation = stored::read(&store, &path)?;
        if recursive {
            left.extend(derivation.input_derivations.keys().cloned());
        }
        found.insert(path, derivation);
    }
    let value = if old { json::write_old(&found, store.dir())? } else { json::write(&found)? };
    println!("{value:#}");
    Ok(())
}
