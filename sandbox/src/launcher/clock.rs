//! Where the time of making a room goes.

use std::time::{Duration, Instant};

use crate::outcome::Timing;
use crate::plan::Plan;

/// Where the time goes.
pub struct Clock {
    on: bool,
    last: Instant,
    laps: Vec<Timing>,
    /// Number of a step, nanoseconds.
    pub steps: Vec<(usize, u64)>,
}

impl Clock {
    /// A clock that runs, or one that does nothing.
    pub fn new(on: bool) -> Self {
        Self { on, last: Instant::now(), laps: Vec::new(), steps: Vec::new() }
    }

    /// Takes the time since the last lap.
    pub fn lap(&mut self, what: &str) {
        if self.on {
            let now = Instant::now();
            let microseconds = (now - self.last).as_micros() as u64;
            self.last = now;
            self.laps.push(Timing { what: what.into(), microseconds });
        }
    }

    /// Takes the time of a step.
    pub fn step(&mut self, number: usize, time: Duration) {
        if self.on {
            self.steps.push((number, time.as_nanos() as u64));
        }
    }

    /// All that was taken, steps by their number.
    pub fn into_timings(mut self, plan: &Plan) -> Vec<Timing> {
        self.steps.sort_unstable();
        let steps = self.steps.iter().map(|(number, nanoseconds)| Timing {
            what: format!("step {number}, {}", plan.steps[*number]),
            microseconds: nanoseconds / 1000,
        });
        self.laps.into_iter().chain(steps).collect()
    }
}
