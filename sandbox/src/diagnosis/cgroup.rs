//! Control groups: which limits of a whole room can be had here.

use super::trial::{self, Attempt};
use super::{Diagnosis, Facts, Group, Verdict};
use crate::layers::Layer;
use crate::layers::cgroup::{Asked, Controller, CpuMax, Kind, Layout, Unusable, place};

/// Where a group with a controller would be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// In words.
    pub place: String,
    /// Whether groups that are there already would have to be changed for it.
    pub changes: bool,
}

/// One controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name in v2.
    pub controller: &'static str,
    /// Its name here, which does not change.
    pub aspect: &'static str,
    /// What it is asked for by, and what it does.
    pub gives: &'static str,
    /// Where, or why not and what to do about it.
    pub site: Result<Site, (String, String)>,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// How the machine has its trees, or why that is not known.
    pub layout: Result<Kind, String>,
    /// The controllers that rooms use.
    pub controllers: Vec<Found>,
}

/// The controllers, their names here, what they give, and how to ask for each alone.
fn asked() -> [(Controller, &'static str, &'static str, Asked); 5] {
    let nothing = Asked::default;
    let cpu_max = Some(CpuMax { quota_us: 100_000, period_us: 100_000 });
    [
        (Controller::Memory, "cgroup-memory", "--memory", Asked { memory_max: Some(1 << 28), ..nothing() }),
        (Controller::Pids, "cgroup-pids", "exact --pids", Asked { pids_max: Some(64), ..nothing() }),
        (Controller::Cpu, "cgroup-cpu", "--cpu, --cpu-weight", Asked { cpu_max, ..nothing() }),
        (
            Controller::Io,
            "cgroup-io",
            "io-weight, and the account of disks",
            Asked { io_weight: Some(100), ..nothing() },
        ),
        (Controller::Freezer, "cgroup-freezer", "stopping a whole room", Asked { freezer: true, ..nothing() }),
    ]
}

impl Groups {
    /// Asks where each would be made. Nothing is made.
    pub fn gather(layout: &Result<Layout, String>) -> Self {
        let found = |(controller, aspect, gives, asked): (Controller, _, _, Asked)| Found {
            controller: controller.name(),
            aspect,
            gives,
            site: match layout {
                Ok(layout) => where_placed(layout, &asked),
                Err(why) => Err((why.clone(), "make /proc/self/cgroup and /proc/self/mountinfo readable".into())),
            },
        };
        Self {
            layout: layout.as_ref().map(Layout::kind).map_err(String::clone),
            controllers: asked().into_iter().map(found).collect(),
        }
    }
}

fn where_placed(layout: &Layout, asked: &Asked) -> Result<Site, (String, String)> {
    let because = |Unusable { why, fix, .. }| (why, fix);
    let placement = place(layout, asked).map_err(because)?;
    // What nobody insists on is no refusal: then there is no site.
    let Some(site) = placement.sites.last() else {
        return Err(placement.absent.into_iter().next().map_or_else(Default::default, because));
    };
    let version = match site.version {
        crate::layers::cgroup::Version::V1 => "v1",
        crate::layers::cgroup::Version::V2 => "v2",
    };
    Ok(Site {
        place: format!("{version}, in {}", site.parent.display()),
        changes: site.vacate || !site.enable.is_empty(),
    })
}

/// Judges the layout, each controller and the trial of those that work.
pub fn judge(facts: &Facts, limits: &Option<Attempt>) -> Vec<Diagnosis> {
    let row = |aspect, verdict, found: String| Diagnosis::new(Group::Option, aspect, Layer::Cgroup, verdict, found);
    let groups = &facts.cgroup;
    let mount = "mount /sys/fs/cgroup here, or use a kernel with CONFIG_CGROUPS; rooms without limits of memory, cpu or disk need none";
    let layout = match &groups.layout {
        Ok(Kind::Unified) => row("cgroup-layout", Verdict::Works, "v2 only".into()),
        Ok(Kind::Hybrid) => {
            row("cgroup-layout", Verdict::Works, "hybrid: controllers in v1 trees, a v2 tree beside them".into())
        }
        Ok(Kind::Legacy) => row("cgroup-layout", Verdict::Weaker, "v1 only: nothing can be delegated to a user".into())
            .fix("boot with systemd.unified_cgroup_hierarchy=1"),
        Ok(Kind::None) => row("cgroup-layout", Verdict::Missing, "no tree is mounted here".into()).fix(mount),
        Err(why) => row("cgroup-layout", Verdict::Missing, why.clone()).fix(mount),
    };
    let mut all = vec![layout];
    for found in &groups.controllers {
        all.push(match &found.site {
            Ok(site) => {
                let note =
                    if site.changes { "; our own group hands it out once we have moved to a leaf of it" } else { "" };
                row(found.aspect, Verdict::Works, format!("{}: {}{note}", found.gives, site.place))
            }
            Err((why, fix)) => row(found.aspect, Verdict::Missing, format!("{}: {why}", found.gives)).fix(fix),
        });
    }
    all.push(match limits {
        Some(attempt) => {
            let gives = "a room with limits was made in a control group of its own";
            trial::option("cgroup-trial", Layer::Cgroup, attempt, gives, || "see the failing step".into())
        }
        None => {
            let found = "not tried: there is no group that could be made without changing one that is there";
            row("cgroup-trial", Verdict::Info, found.into())
        }
    });
    all
}

#[cfg(test)]
impl Groups {
    pub fn healthy() -> Self {
        let site = Site { place: "v2, in /sys/fs/cgroup/x".into(), changes: false };
        Self::made_up(Ok(Kind::Unified), &Ok(site))
    }

    pub fn none() -> Self {
        Self::made_up(Ok(Kind::None), &Err(("why".into(), "fix".into())))
    }

    fn made_up(layout: Result<Kind, String>, site: &Result<Site, (String, String)>) -> Self {
        let found = |(controller, aspect, gives, _): (Controller, _, _, Asked)| Found {
            controller: controller.name(),
            aspect,
            gives,
            site: site.clone(),
        };
        Self { layout, controllers: asked().into_iter().map(found).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(groups: Groups) -> Vec<Diagnosis> {
        judge(&Facts { cgroup: groups, ..Facts::healthy() }, &None)
    }

    #[test]
    fn no_groups_cost_only_what_is_asked_of_them() {
        let rows = rows(Groups::none());
        assert_eq!(rows[0].verdict, Verdict::Missing);
        assert!(rows.iter().all(|row| row.group == Group::Option), "the default room needs none");
    }

    #[test]
    fn a_group_that_is_not_delegated_says_what_systemd_is_to_do() {
        // As a user in a session that systemd delegates nothing to.
        let layout = Layout::parse("0::/user.slice/user-1000.slice/session-1.scope\n", "");
        let rows = rows(Groups::gather(&Ok(layout)));
        let memory = rows.iter().find(|row| row.aspect == "cgroup-memory").unwrap();
        assert_eq!(memory.verdict, Verdict::Missing);
        assert!(memory.fix.is_some());
    }

    #[test]
    fn a_kernel_without_the_io_controller_misses_that_alone() {
        let mut groups = Groups::healthy();
        let io = groups.controllers.iter_mut().find(|found| found.controller == "io").unwrap();
        io.site = Err(("the controllers are 'cpu memory pids'".into(), "delegate it".into()));
        let missing: Vec<_> =
            rows(groups).into_iter().filter(|row| row.verdict == Verdict::Missing).map(|row| row.aspect).collect();
        assert_eq!(missing, ["cgroup-io"]);
    }
}
