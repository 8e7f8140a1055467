//! Which build is next: so many at once, each when all that it needs is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::result::{BuildResult, Status};
use crate::store_path::StorePath;

/// What must be built before what.
#[derive(Debug, Default, Clone)]
pub struct Order {
    needs: BTreeMap<StorePath, BTreeSet<StorePath>>,
}

impl Order {
    /// Adds a build and the builds that must come before it. Those must be added as well, before or after.
    pub fn add(&mut self, build: StorePath, needs: BTreeSet<StorePath>) {
        self.needs.insert(build, needs);
    }

    /// How many builds there are.
    pub fn len(&self) -> usize {
        self.needs.len()
    }

    /// Whether there is nothing to build.
    pub fn is_empty(&self) -> bool {
        self.needs.is_empty()
    }

    /// All builds, each with those that must come before it.
    pub fn iter(&self) -> impl Iterator<Item = (&StorePath, &BTreeSet<StorePath>)> {
        self.needs.iter()
    }
}

/// Does all builds, at most `jobs` at once, and returns their results in the order in which they ended.
///
/// Each of the threads that build makes itself a `S` by `slot` and keeps it from build to build. Without `keep_going` no
/// build is started after the first failure. What needs something that failed is not built; what was not begun for another
/// build's failure has no result.
pub fn run<S>(
    order: &Order,
    jobs: usize,
    keep_going: bool,
    slot: impl Fn() -> S + Sync,
    build: impl Fn(&mut S, &StorePath) -> BuildResult + Sync,
) -> Vec<BuildResult> {
    let state = Mutex::new(State::new(order));
    let changed = Condvar::new();
    let work = || {
        let mut own = None;
        let mut held = lock(&state);
        loop {
            if let Some(next) = held.ready.pop_first() {
                held.running += 1;
                drop(held);
                let result = build(own.get_or_insert_with(&slot), &next);
                held = lock(&state);
                held.running -= 1;
                held.ended(result, keep_going);
                changed.notify_all();
            } else if held.running == 0 {
                return;
            } else {
                held = changed.wait(held).unwrap_or_else(PoisonError::into_inner);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, order.len().max(1)) {
            scope.spawn(work);
        }
    });
    state.into_inner().unwrap_or_else(PoisonError::into_inner).results
}

fn lock<'a, 'b>(state: &'b Mutex<State<'a>>) -> MutexGuard<'b, State<'a>> {
    // A thread that panics inside a build takes the scope down with it; the state it leaves is whole.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct State<'a> {
    ready: BTreeSet<StorePath>,
    /// How many of its needs are still missing.
    missing: HashMap<&'a StorePath, usize>,
    needed_by: HashMap<&'a StorePath, Vec<&'a StorePath>>,
    running: usize,
    results: Vec<BuildResult>,
}

impl<'a> State<'a> {
    fn new(order: &'a Order) -> Self {
        let mut ready = BTreeSet::new();
        let mut missing = HashMap::new();
        let mut needed_by: HashMap<_, Vec<_>> = HashMap::new();
        for (build, needs) in &order.needs {
            if needs.is_empty() {
                ready.insert(build.clone());
            }
            missing.insert(build, needs.len());
            for need in needs {
                needed_by.entry(need).or_default().push(build);
            }
        }
        Self { ready, missing, needed_by, running: 0, results: Vec::new() }
    }

    fn ended(&mut self, result: BuildResult, keep_going: bool) {
        let dependents = self.needed_by.remove(&result.derivation).unwrap_or_default();
        if result.status.is_success() {
            for build in dependents {
                if let Some(left) = self.missing.get_mut(build) {
                    *left -= 1;
                    if *left == 0 {
                        self.ready.insert(build.clone());
                    }
                }
            }
            self.results.push(result);
            return;
        }
        if !keep_going {
            self.ready.clear();
        }
        let failed = result.derivation.clone();
        self.results.push(result);
        let mut above: Vec<(&StorePath, StorePath)> = dependents.into_iter().map(|one| (one, failed.clone())).collect();
        while let Some((build, because)) = above.pop() {
            // Once for each, however many of its needs have failed.
            if self.missing.remove(build).is_none() {
                continue;
            }
            let message = format!("it needs ‘{because}’, which could not be built");
            self.results.push(BuildResult::new(build.clone(), Status::DependencyFailed, message));
            let next = self.needed_by.remove(build).unwrap_or_default();
            above.extend(next.into_iter().map(|one| (one, build.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn path(name: &str) -> StorePath {
        StorePath::from_parts("00bgd045z0d4icpbc2yyz4gx48ak44la", name).unwrap()
    }

    fn order(builds: &[(&str, &[&str])]) -> Order {
        let mut order = Order::default();
        for (build, needs) in builds {
            order.add(path(build), needs.iter().map(|need| path(need)).collect());
        }
        order
    }

    /// Which builds ended how, with `failing` failing.
    fn run_with(order: &Order, jobs: usize, keep_going: bool, failing: &[&str]) -> Vec<(String, Status)> {
        let results = run(
            order,
            jobs,
            keep_going,
            || (),
            |(), build| {
                let status = if failing.contains(&build.name()) { Status::PermanentFailure } else { Status::Built };
                BuildResult::new(build.clone(), status, "")
            },
        );
        results.into_iter().map(|result| (result.derivation.name().to_owned(), result.status)).collect()
    }

    const DIAMOND: &[(&str, &[&str])] = &[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"]), ("e", &[])];

    #[test]
    fn what_is_needed_comes_first() {
        for jobs in [1, 2, 9] {
            let ended = run_with(&order(DIAMOND), jobs, false, &[]);
            let place = |name| ended.iter().position(|(ended, _)| ended == name).unwrap();
            assert_eq!(ended.len(), 5);
            for (build, needs) in DIAMOND {
                assert!(needs.iter().all(|need| place(need) < place(build)), "{ended:?}");
            }
        }
    }

    #[test]
    fn what_needs_a_failed_build_is_not_built() {
        let ended: BTreeMap<_, _> = run_with(&order(DIAMOND), 1, true, &["b"]).into_iter().collect();
        assert_eq!(ended["b"], Status::PermanentFailure);
        assert_eq!(ended["d"], Status::DependencyFailed);
        assert_eq!(ended["c"], Status::Built);
        assert_eq!(ended["e"], Status::Built);
    }

    #[test]
    fn without_keep_going_nothing_new_is_begun() {
        let ended: BTreeMap<_, _> = run_with(&order(DIAMOND), 1, false, &["a"]).into_iter().collect();
        assert_eq!(ended["a"], Status::PermanentFailure);
        assert_eq!(ended.get("e"), None, "it was ready, and is left");
        assert_eq!(ended["d"], Status::DependencyFailed);
    }

    #[test]
    fn a_need_that_fails_twice_over_is_told_once() {
        let ended = run_with(&order(DIAMOND), 1, true, &["b", "c"]);
        assert_eq!(ended.iter().filter(|(name, _)| name == "d").count(), 1);
    }

    #[test]
    fn no_more_than_asked_run_at_once_and_as_many_as_asked_do() {
        let builds: Vec<_> = (0..8).map(|number| (format!("b{number}"), [])).collect();
        let builds: Vec<(&str, &[&str])> = builds.iter().map(|(name, needs)| (name.as_str(), &needs[..])).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let both = std::sync::Barrier::new(2);
        run(
            &order(&builds),
            2,
            false,
            || (),
            |(), build| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Nobody gets past alone: were they done one after the other, this would wait for ever.
                both.wait();
                now.fetch_sub(1, Ordering::SeqCst);
                BuildResult::new(build.clone(), Status::Built, "")
            },
        );
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn an_empty_order_has_no_results() {
        assert!(run_with(&Order::default(), 4, false, &[]).is_empty());
    }
}
