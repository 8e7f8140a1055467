//! Builds that clients ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::client_settings::ClientSettings;
use super::{Fault, Server};
use crate::build::call::{self, Request};
use crate::build::graph::{Graph, GraphError, Wanted};
use crate::build::realise::{Realiser, Slot};
use crate::build::result::{self, BuildResult, Status};
use crate::build::scheduler::Order;
use crate::build::scratch;
use crate::build::stored::Stored;
use crate::build::telling::Telling;
use crate::derivation::paths::Calculator;
use crate::derivation::{Derivation, Kind};
use crate::progress::{Reporter, escapes};
use crate::store_path::{StoreDir, StorePath};
use crate::wire::{Asked, BasicDerivation};

/// How a build is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// What is not there.
    Normal,
    /// What is there too, and what differs is put in its place. Not done here.
    Repair,
    /// What is there too, and compared.
    Check,
}

impl Mode {
    pub fn of(number: u64) -> Result<Self, Fault> {
        match number {
            0 => Ok(Self::Normal),
            1 => Ok(Self::Repair),
            2 => Ok(Self::Check),
            _ => Err(Fault::refused(format!("there is no build mode {number}"))),
        }
    }

    fn check(self, server: &Server<'_>) -> Result<bool, Fault> {
        match self {
            Self::Normal => Ok(false),
            Self::Check => Ok(true),
            Self::Repair => Err(no_repair(server.trusted)),
        }
    }
}

/// What a request to repair is told.
pub(super) fn no_repair(trusted: bool) -> Fault {
    Fault::refused(if trusted {
        "repairing is not done here: delete the path, and build or copy it again"
    } else {
        "repairing is not allowed because you are not in 'trusted-users'"
    })
}

/// The result of each wish, in the order in which they were made.
pub(super) fn build_asked(
    server: &Server<'_>,
    client: &ClientSettings,
    asked: &[Asked],
    mode: Mode,
    reporter: &dyn Reporter,
) -> Result<Vec<BuildResult>, Fault> {
    let check = mode.check(server)?;
    let wanted: Vec<Wanted> = asked
        .iter()
        .filter_map(|one| if let Asked::Built(wanted) = one { Some(wanted.clone()) } else { None })
        .collect();
    let request = Request {
        wanted,
        jobs: client.jobs(server),
        keep_going: client.keep_going.unwrap_or(server.keep_going),
        check,
    };
    let policy = client.policy(server);
    let done = match request.wanted.is_empty() {
        true => Vec::new(),
        false => {
            let built = server.watch.during(|| call::build(server.store, &policy, &request, reporter));
            built.map_err(Fault::refused)?
        }
    };
    let by_path: BTreeMap<&StorePath, &BuildResult> = done.iter().map(|result| (&result.derivation, result)).collect();
    asked
        .iter()
        .map(|one| match one {
            Asked::Path(path) => match server.store.keep_if_valid(path)? {
                Some(_) => Ok(BuildResult::new(path.clone(), Status::AlreadyValid, "")),
                None => Ok(BuildResult::new(path.clone(), Status::MiscFailure, NO_SUBSTITUTER)),
            },
            Asked::Built(wanted) => match by_path.get(&wanted.derivation) {
                Some(result) => {
                    let mut result = (*result).clone();
                    if !wanted.outputs.is_empty() {
                        result.outputs.retain(|name, _| wanted.outputs.contains(name));
                    }
                    for path in result.outputs.values() {
                        server.store.add_temp_root(path)?;
                    }
                    Ok(result)
                }
                None => Ok(BuildResult::new(wanted.derivation.clone(), Status::MiscFailure, NOT_BEGUN)),
            },
        })
        .collect()
}

const NO_SUBSTITUTER: &str = "is not valid here, and this server fetches nothing from elsewhere";
const NOT_BEGUN: &str = "was not begun, because another build failed";

/// What a person is told of a result; nothing of a success.
pub(crate) fn story(dir: &StoreDir, result: &BuildResult) -> String {
    if result.status.is_success() {
        return String::new();
    }
    let path = dir.display(&result.derivation);
    if !result.derivation.is_derivation() {
        return format!("path '{path}' {}", result.message);
    }
    if result.status == Status::DependencyFailed {
        return format!("cannot build '{path}': {}", result.message);
    }
    let mut text = format!("builder for '{path}' {}", result.message);
    if !result.last_lines.is_empty() {
        text.push_str(&format!(";\nlast {} log lines:", result.last_lines.len()));
        for line in &result.last_lines {
            text.push_str("\n> ");
            text.push_str(&escapes::filter_line(line, true));
        }
    }
    text
}

/// All failures of some results as one refusal, if there are any.
pub(super) fn failure(dir: &StoreDir, results: &[BuildResult]) -> Option<(u8, String)> {
    let mut stories: Vec<String> = Vec::new();
    for result in results {
        let story = story(dir, result);
        if !story.is_empty() && !stories.contains(&story) {
            stories.push(story);
        }
    }
    (!stories.is_empty()).then(|| (result::exit_code(results.iter().map(|result| result.status)), stories.join("\n")))
}

/// Builds a derivation that is in no store here: its inputs are paths, which must be valid.
pub(super) fn build_basic(
    server: &Server<'_>,
    client: &ClientSettings,
    basic: BasicDerivation,
    mode: Mode,
    reporter: &dyn Reporter,
) -> Result<BuildResult, Fault> {
    let check = mode.check(server)?;
    let BasicDerivation { mut path, derivation } = basic;
    let dir = server.store.dir();
    match derivation.kind().map_err(Fault::refused)? {
        // Where it is built must follow from what is built, whoever says it.
        Kind::Fixed => {
            let mut calculator = Calculator::new(dir, BTreeMap::<StorePath, Derivation>::new());
            if let Err(error) = calculator.check_outputs(&derivation) {
                return Ok(BuildResult::new(path, Status::InputRejected, format!("was not started: {error}")));
            }
        }
        _ if server.trusted => {}
        // The path of its output follows from derivations that are not here.
        _ => {
            return Err(Fault::refused(
                "you are not privileged to build input-addressed derivations; copy the derivation with all that it needs, and ask for its outputs",
            ));
        }
    }
    if !server.trusted {
        // Log and record are kept under the derivation's name: not under one that somebody else's may have.
        path = derivation.store_path(dir)?;
    }
    let policy = client.policy(server);
    let mut order = Order::default();
    order.add(path.clone(), BTreeSet::new());
    let telling = Telling::of(&order, |_| derivation.outputs.keys().cloned().collect(), dir, reporter);
    if let Err(error) = scratch::sweep(&policy.builds) {
        telling.warn(&format!("what killed builds left could not be removed: {error}"));
    }
    let begun = Instant::now();
    let realiser = Realiser { store: server.store, policy: &policy, telling: &telling, check };
    let result = server.watch.during(|| realiser.build(&mut Slot::default(), &path, &derivation));
    telling.finished(&result, begun.elapsed());
    Ok(result)
}

/// What would be done for some wishes: derivations to build, and what nobody knows how to make.
pub(super) fn missing(
    server: &Server<'_>,
    asked: &[Asked],
) -> Result<(BTreeSet<StorePath>, BTreeSet<StorePath>), Fault> {
    let (mut to_build, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    let mut stored = Stored::new(server.store);
    for one in asked {
        match one {
            Asked::Path(path) => {
                if !server.store.is_valid(path)? {
                    unknown.insert(path.clone());
                }
            }
            Asked::Built(wanted) => match Graph::resolve(&mut stored, std::slice::from_ref(wanted), false) {
                Ok(graph) => to_build.extend(graph.derivations.into_keys()),
                Err(GraphError::Missing { missing, .. }) => {
                    unknown.insert(missing);
                }
                Err(_) => {
                    unknown.insert(wanted.derivation.clone());
                }
            },
        }
    }
    Ok((to_build, unknown))
}
