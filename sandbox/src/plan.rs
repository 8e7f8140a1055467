//! From what is wanted and what this host can do to an ordered list of steps: pure, printable, and all that the launcher does.

use std::fmt;

use serde::Serialize;

use crate::error::Refusal;
use crate::host::{Host, KernelRoot};
use crate::layers::{self, Action, Layer, identity, network};
use crate::room::Room;

/// The order that the kernel forces. A layer says in which stage each of its steps belongs; within a stage, steps keep the order of
/// the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// What the supervisor takes before anything is forked: ids, control groups.
    Reserve,
    /// Host trees that only the caller's ids can reach are opened before those ids are given up.
    OpenSources,
    /// The caller's ids are given up.
    TakeIdentity,
    /// A user namespace comes first: all other namespaces, and the room's mounts, are then owned by it.
    Unshare,
    /// Without maps nothing in the namespace has an owner.
    Maps,
    /// The room's first process is born; from here on it does the work.
    Birth,
    /// The other namespaces, made by the first process itself so that nobody else holds them.
    Enter,
    /// Before the cgroup namespace, whose root is the group that its maker is in.
    Join,
    /// The cgroup namespace.
    EnterCgroup,
    /// The network namespace, made by the warden at the same time as the room's first process does what follows.
    Network,
    /// The new root must be mounted before anything can be attached below it.
    NewRoot,
    /// Outer mounts before inner ones.
    Tree,
    /// `/dev` binds nodes of the host, so the old root must still be there.
    Devices,
    /// A new procfs is allowed only while the host's is in sight.
    Proc,
    /// The room's first process joins the network, while it still has a capability over it.
    JoinNetwork,
    /// The tree becomes read-only.
    Seal,
    /// The old root goes.
    Pivot,
    /// Written while `/proc/sys` can still be written.
    NamespaceLimits,
    /// Parts of `/proc` are covered, `/proc/sys` becomes read-only.
    ProcCovers,
    /// The second user namespace: from here on nothing of the above can be undone.
    Lock,
    /// Keyring, session, standard streams, personality, current directory.
    Session,
    /// After the second user namespace, which is where processes are counted.
    Limits,
    /// After the last step that opens something.
    Descriptors,
    /// After the last step that needs a capability.
    Capabilities,
    /// Landlock and the filter need it once capabilities are gone.
    NoNewPrivileges,
    /// Before the filter, which may refuse its calls.
    Landlock,
    /// Last: it judges everything that comes after.
    Seccomp,
}

/// Which process does a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The process that started all this, outside.
    Supervisor,
    /// The one between: in the room's user namespace, outside its other ones. It stays to end the room should the supervisor vanish.
    Warden,
    /// The room's first process.
    Room,
}

/// One system call, or one small group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// When.
    pub stage: Stage,
    /// Who.
    pub place: Place,
    /// What.
    pub action: Action,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action.layer(), self.action)
    }
}

/// A protection that is less than the layer's full one, for a reason that is not a choice of `without`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Weakening {
    /// Which layer.
    pub layer: Layer,
    /// What is less.
    pub what: String,
}

/// All that will be done, in order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// What is wanted.
    pub room: Room,
    /// How.
    pub steps: Vec<Step>,
    /// What is weaker than the room's profile says.
    pub weakenings: Vec<Weakening>,
    /// The memory that shares were computed from, in bytes.
    pub memory: u64,
    /// What the kernel's uid 0 and gid 0 are called where we live.
    pub kernel_root: KernelRoot,
    /// Where ids of rooms are taken from, if this plan takes any.
    #[serde(skip)]
    pub ids: Option<crate::ids::Pool>,
}

impl Plan {
    /// Compiles a room for a host.
    ///
    /// # Errors
    /// The first layer that cannot, or must not, do what is asked.
    pub fn compile(room: &Room, host: &Host) -> Result<Self, Refusal> {
        let mut draft = Draft::default();
        layers::plan(room, host, &mut draft)?;
        let Draft { mut steps, weakenings } = draft;
        // Stable: layers keep their order within a stage.
        steps.sort_by_key(|step| step.stage);
        let takes_ids =
            steps.iter().any(|step| matches!(step.action, Action::Identity(identity::Action::Reserve { .. })));
        let ids = match (&host.ids, takes_ids) {
            (Ok(pool), true) => Some(pool.clone()),
            (Err(why), true) => {
                return Err(Refusal::new(
                    Layer::Identity,
                    "kernel ids for this room",
                    why,
                    "name an unprivileged user with --build-user",
                ));
            }
            (_, false) => None,
        };
        Ok(Self { room: room.clone(), steps, weakenings, memory: host.memory, kernel_root: host.kernel_root, ids })
    }

    /// Where the room's first process begins.
    pub fn birth(&self) -> usize {
        self.steps.iter().position(|step| step.stage >= Stage::Birth).unwrap_or(self.steps.len())
    }

    /// The steps of one process, with their numbers in the whole plan.
    pub fn steps_of(&self, place: Place) -> impl Iterator<Item = (usize, &Step)> {
        self.steps.iter().enumerate().filter(move |(_, step)| step.place == place)
    }
}

/// A plan in the making.
#[derive(Debug, Default)]
pub struct Draft {
    steps: Vec<Step>,
    weakenings: Vec<Weakening>,
}

impl Draft {
    /// Adds a step.
    pub fn add(&mut self, stage: Stage, action: impl Into<Action>) {
        let action = action.into();
        let place = match stage {
            Stage::Reserve => Place::Supervisor,
            _ if action.is_the_supervisors() => Place::Supervisor,
            Stage::Network => Place::Warden,
            Stage::OpenSources | Stage::TakeIdentity | Stage::Unshare | Stage::Maps => Place::Warden,
            _ => Place::Room,
        };
        self.steps.push(Step { stage, place, action });
    }

    /// Says that a layer is less than it could be.
    pub fn weaken(&mut self, layer: Layer, what: impl Into<String>) {
        self.weakenings.push(Weakening { layer, what: what.into() });
    }
}

impl Action {
    /// Whether only the supervisor, outside, can do it, at whatever stage.
    fn is_the_supervisors(&self) -> bool {
        matches!(
            self,
            Self::Identity(identity::Action::MapRange { .. })
                | Self::Cgroup(_)
                | Self::Network(network::Action::StartPasta(..))
        )
    }
}
