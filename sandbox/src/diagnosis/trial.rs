//! Rooms made for real: the default one, which decides, and one for each thing that can be asked for beyond it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::cgroup::Site;
use super::{Diagnosis, Facts, Group, Verdict};
use crate::error::Error;
use crate::host::Host;
use crate::launcher::{self, Launcher, Stream};
use crate::layers::Layer;
use crate::outcome::End;
use crate::plan::Plan;
use crate::quantity::Size;
use crate::room::{Entry, Outside, ProcSource, Profile, Room};
use crate::seal::{Seal, State};
use crate::text::Text;

/// A program that exits with 0 in any room: one static file.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The file, on the host.
    pub program: PathBuf,
    /// What makes it exit at once.
    pub arguments: Vec<Text>,
}

/// Why a room could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The layer that refused or failed, where one did.
    pub layer: Option<Layer>,
    /// What was being done, to what, what the kernel said.
    pub message: String,
    /// What to do about it.
    pub fix: Option<String>,
}

/// How making a room went.
#[derive(Clone, Debug)]
pub enum Attempt {
    /// It was made, and its seal read back.
    Made {
        /// The seal; lost when the payload then could not be executed.
        seal: Option<Seal>,
        /// What went wrong with the payload, in a room that stood.
        payload: Option<String>,
    },
    /// It was not made.
    Failed(Failure),
}

impl Attempt {
    /// What is less than it could be in a room that was made.
    pub fn weaker(&self) -> Vec<String> {
        let Self::Made { seal: Some(seal), .. } = self else { return Vec::new() };
        let weaker = seal.layers.iter().filter(|sealed| sealed.state == State::Weaker);
        weaker.map(|sealed| format!("{}: {}", sealed.layer, sealed.open.join("; "))).collect()
    }

    fn skipped() -> Self {
        Self::Failed(Failure {
            layer: None,
            message: "not tried: it needs what the default room needs".into(),
            fix: Some("mend the default room first".into()),
        })
    }
}

/// What the payload writes is of no interest.
struct Nowhere;

impl launcher::Sink for Nowhere {
    fn output(&mut self, _: Stream, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

fn room(payload: &Payload) -> Room {
    let mut room = Room::default();
    let inside = Path::new("/payload");
    room.mounts.push(Entry::Bind {
        inside: inside.into(),
        outside: Some(payload.program.clone()),
        writable: false,
        optional: false,
        noexec: false,
    });
    room.process.program = inside.as_os_str().into();
    room.process.arguments = payload.arguments.clone();
    room
}

/// Makes the room that every build gets.
pub fn default_room(payload: &Payload, host: &Host) -> Attempt {
    attempt(&room(payload), host)
}

fn attempt(room: &Room, host: &Host) -> Attempt {
    let failed = |layer, message: String, fix| Attempt::Failed(Failure { layer, message, fix });
    let outcome = Plan::compile(room, host)
        .map_err(Error::from)
        .and_then(|plan| Launcher::new(&plan, launcher::Options::default()).run(&mut Nowhere));
    match outcome {
        Ok(outcome) => match outcome.end {
            End::Exited(0) => Attempt::Made { seal: Some(outcome.seal), payload: None },
            end => Attempt::Made {
                seal: Some(outcome.seal),
                payload: Some(format!("the trial program ended with {end:?}")),
            },
        },
        // The command is executed only once the room is sealed, so this room stood.
        Err(error @ Error::Exec { .. }) => Attempt::Made { seal: None, payload: Some(error.to_string()) },
        Err(Error::Refused(refusal)) => {
            failed(Some(refusal.layer), format!("{}: {}", refusal.what, refusal.why), Some(refusal.fix))
        }
        Err(Error::SetUp(mut failure)) => {
            let fix = failure.fix.take();
            let message = failure.to_string();
            let layer = format!("{}: ", failure.layer);
            failed(Some(failure.layer), message.strip_prefix(&layer).unwrap_or(&message).to_owned(), fix)
        }
        Err(Error::NotSealed { layer, what }) => failed(
            Some(layer),
            format!("the kernel does not show what was set up: {what}"),
            Some("please report this".into()),
        ),
        Err(error) => failed(None, error.to_string(), None),
    }
}

/// What was tried beyond the default room.
#[derive(Clone, Debug)]
pub struct Options {
    /// With a time namespace.
    pub time_namespace: Attempt,
    /// With 65,536 ids.
    pub id_range: Attempt,
    /// For payloads that make sandboxes.
    pub nested: Attempt,
    /// With a network, through pasta(1).
    pub fetch: Attempt,
    /// With the `/proc` around us instead of one of its own.
    pub outer_proc: Attempt,
    /// With a control group that has every limit that can be set without changing a group which is not ours alone.
    pub limits: Option<Attempt>,
}

impl Options {
    /// Tries them, where the default room leaves hope.
    pub fn attempt(payload: &Payload, facts: &Facts, default: &Attempt) -> Self {
        let host = &facts.host;
        let hope = matches!(default, Attempt::Made { .. });
        let plain = room(payload);
        let try_one = |worth: bool, change: &dyn Fn(&mut Room)| {
            if !worth {
                return Attempt::skipped();
            }
            let mut room = plain.clone();
            change(&mut room);
            attempt(&room, host)
        };
        let placed = |name: &str| {
            facts
                .cgroup
                .controllers
                .iter()
                .any(|one| one.controller == name && matches!(&one.site, Ok(site) if site.is_harmless()))
        };
        let any = ["memory", "pids", "cpu"].into_iter().any(placed);
        Self {
            time_namespace: try_one(hope, &|room| room.namespaces.time = true),
            id_range: try_one(hope, &|room| room.identity.outside = Outside::Range),
            nested: try_one(hope, &|room| room.profile = Profile::Nested),
            fetch: try_one(hope && host.way_out.is_ok(), &|room| room.profile = Profile::Fetch),
            // Where /proc is masked the default room cannot be made, and this is the way out.
            outer_proc: try_one(hope || !facts.proc_masks.is_empty(), &|room| {
                room.proc.source = ProcSource::Outer;
            }),
            limits: (hope && any).then(|| {
                try_one(true, &|room| {
                    room.limits.memory = placed("memory").then_some(Size::mebibytes(256));
                    room.limits.pids = placed("pids").then_some(64);
                    room.limits.cpu = placed("cpu").then_some(1.0);
                    room.limits.account = true;
                })
            }),
        }
    }
}

/// The default room, layer by layer. Pure.
pub fn judge(default: &Attempt) -> Vec<Diagnosis> {
    let room = |layer: Layer, verdict, found: String| Diagnosis::new(Group::Room, layer.name(), layer, verdict, found);
    let mut all = Vec::new();
    match default {
        Attempt::Failed(failure) => {
            let layer = failure.layer.unwrap_or(Layer::Process);
            let missing = room(layer, Verdict::Missing, failure.message.clone());
            all.push(Diagnosis { fix: failure.fix.clone().or(Some("please report this".into())), ..missing });
        }
        Attempt::Made { seal, payload } => {
            for sealed in seal.iter().flat_map(|seal| &seal.layers) {
                let facts = in_words(sealed.layer, &sealed.facts);
                all.push(match sealed.state {
                    State::Verified => room(sealed.layer, Verdict::Works, facts),
                    State::Weaker => room(sealed.layer, Verdict::Weaker, sealed.open.join("; "))
                        .fix("the rows below say what it would take"),
                    State::LeftOut => {
                        room(sealed.layer, Verdict::Missing, format!("open is {}", sealed.open.join("; ")))
                            .fix("do not leave it out")
                    }
                });
            }
            if let Some(trouble) = payload {
                let found = format!("the room was made and sealed, but {trouble}");
                let fix =
                    "make anchorhold itself readable and executable for everybody (chmod 755), as one static file";
                all.push(room(Layer::Process, Verdict::Weaker, found).fix(fix));
            }
        }
    }
    all
}

/// The facts of a seal in a line for people.
fn in_words(layer: Layer, facts: &BTreeMap<String, String>) -> String {
    let keys = || facts.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let value = |key: &str| facts.get(key).map_or("?", String::as_str);
    match layer {
        _ if facts.is_empty() => "read back as planned".into(),
        Layer::Namespaces => format!("of its own: {}", keys()),
        Layer::Identity => format!(
            "kernel uid {}, gid {}; maps {} and {}; in a second user namespace",
            value("kernel-uids"),
            value("kernel-gids"),
            value("uid_map"),
            value("gid_map")
        ),
        // Five sets of zeroes say no more than one word.
        Layer::Capabilities => "none in any set, no new privileges".into(),
        _ => facts.iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join(", "),
    }
}

/// Options that need no more than an attempt. Pure.
pub fn judge_options(options: &Options) -> Vec<Diagnosis> {
    vec![
        option(
            "time-namespace",
            Layer::Namespaces,
            &options.time_namespace,
            "--time-namespace: clocks begin at zero",
            || "use Linux 5.6 or newer with CONFIG_TIME_NS, or do without: no other layer needs it".into(),
        ),
        option(
            "nested-rooms",
            Layer::Namespaces,
            &options.nested,
            "--profile nested: sandboxes can be made inside",
            || "see the failing step; the profile build does without".into(),
        ),
    ]
}

/// One option by its attempt.
pub fn option(
    aspect: &'static str,
    layer: Layer,
    attempt: &Attempt,
    gives: &str,
    fix: impl FnOnce() -> String,
) -> Diagnosis {
    let one = |verdict, found: String| Diagnosis::new(Group::Option, aspect, layer, verdict, found);
    match attempt {
        Attempt::Failed(failure) => {
            let found = one(Verdict::Missing, failure.message.clone());
            found.fix(failure.fix.clone().unwrap_or_else(fix))
        }
        made => match made.weaker() {
            weaker if weaker.is_empty() => one(Verdict::Works, gives.to_owned()),
            weaker => one(Verdict::Weaker, format!("{gives}; {}", weaker.join("; "))).fix(fix()),
        },
    }
}

impl Site {
    /// Whether making a group there changes nothing that others can see, so that it may be tried.
    fn is_harmless(&self) -> bool {
        !self.changes
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn made() -> Attempt {
        let sealed = |layer, state| crate::seal::Sealed { layer, state, open: Vec::new(), facts: BTreeMap::new() };
        let layers = Layer::ALL.into_iter().filter(|layer| *layer != Layer::Process);
        let seal = Seal {
            version: 1,
            made_by: "anchorhold",
            kernel: "7.2".into(),
            profile: Profile::Build,
            layers: layers.map(|layer| sealed(layer, State::Verified)).collect(),
        };
        Attempt::Made { seal: Some(seal), payload: None }
    }

    pub fn failed(layer: Layer) -> Attempt {
        Attempt::Failed(Failure { layer: Some(layer), message: "no".into(), fix: None })
    }

    pub fn all_made() -> Options {
        Options {
            time_namespace: made(),
            id_range: made(),
            nested: made(),
            fetch: made(),
            outer_proc: made(),
            limits: Some(made()),
        }
    }

    pub fn none_made() -> Options {
        let no = || failed(Layer::Namespaces);
        Options {
            time_namespace: no(),
            id_range: no(),
            nested: no(),
            fetch: no(),
            outer_proc: no(),
            limits: Some(no()),
        }
    }

    #[test]
    fn every_layer_of_the_seal_is_a_row() {
        let rows = judge(&made());
        assert_eq!(rows.len(), Layer::ALL.len() - 1);
        assert!(rows.iter().all(|row| row.verdict == Verdict::Works && row.group == Group::Room));
    }

    #[test]
    fn a_failing_step_is_named_with_its_layer() {
        let failure = Failure { layer: Some(Layer::Keyring), message: "cannot join".into(), fix: Some("do so".into()) };
        let rows = judge(&Attempt::Failed(failure));
        assert_eq!((rows[0].aspect, rows[0].verdict), ("keyring", Verdict::Missing));
        assert_eq!(rows[0].fix.as_deref(), Some("do so"));
    }

    #[test]
    fn a_room_whose_payload_cannot_be_executed_was_made_all_the_same() {
        let rows = judge(&Attempt::Made { seal: None, payload: Some("cannot execute".into()) });
        assert_eq!((rows[0].aspect, rows[0].verdict), ("process", Verdict::Weaker));
    }

    #[test]
    fn an_option_that_is_weaker_says_what_is_less() {
        let Attempt::Made { seal: Some(mut seal), .. } = made() else { unreachable!() };
        seal.layers[0].state = State::Weaker;
        seal.layers[0].open = vec!["half of it".into()];
        let attempt = Attempt::Made { seal: Some(seal), payload: None };
        let row = option("nested-rooms", Layer::Namespaces, &attempt, "gives", || "a fix".into());
        assert_eq!(row.verdict, Verdict::Weaker);
        assert!(row.found.contains("half of it"), "{}", row.found);
    }
}
