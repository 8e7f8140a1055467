//! A guest that does nothing: no output, no input or output of QEMU's, no processor time.
//!
//! An idle Linux under emulation uses well under one per cent of a processor. A guest that spins is not found here: it is at work as
//! far as anybody outside can see, and only a deadline ends it. A guest that would work and gets no processor, because its host is
//! overloaded, does not stall either.

use std::time::{Duration, Instant};

use crate::machine::Machine;

/// Clock ticks in a second: `USER_HZ`, which is 100 on every architecture that we run on.
const TICKS: f64 = 100.0;

/// The part of one processor that is nothing.
const IDLE: f64 = 0.03;

/// Bytes in a second that are nothing: QEMU's own timers and this very look at it.
const QUIET: f64 = 2048.0;

/// What a machine has done until some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Bytes from its console and ports.
    pub received: u64,
    /// Clock ticks outside the kernel.
    pub user_ticks: u64,
    /// Clock ticks in the kernel.
    pub system_ticks: u64,
    /// Bytes read and written by QEMU.
    pub transferred: u64,
    /// Nanoseconds in which QEMU could have run and had no processor.
    pub starved: u64,
}

impl Sample {
    /// Of this moment.
    pub fn of(machine: &Machine) -> Self {
        let usage = machine.usage().unwrap_or_default();
        Self {
            received: machine.received(),
            user_ticks: usage.user_ticks,
            system_ticks: usage.system_ticks,
            transferred: usage.transferred,
            starved: usage.starved,
        }
    }
}

/// A stall that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stalled {
    lasted: Duration,
    /// Nothing was done outside the kernel and much in it: what a guest looks like whose every privileged instruction is
    /// emulated, under a `/dev/kvm` that is none.
    pub is_emulated_privilege: bool,
}

impl Stalled {
    /// For people.
    pub fn in_words(self) -> String {
        let seconds = self.lasted.as_secs_f64();
        if self.is_emulated_privilege {
            format!("the guest did not get anywhere for {seconds:.1} s, while the kernel was busy with it")
        } else {
            format!("the guest did nothing for {seconds:.1} s: no output, no disk, no processor time")
        }
    }
}

/// Looks at samples in time.
#[derive(Debug)]
pub struct StallWatch {
    limit: Duration,
    /// The last moment at which something had been done.
    since: Instant,
    looked: Instant,
    last: Sample,
    is_kernel_busy: bool,
}

impl StallWatch {
    /// One that finds stalls of `limit`.
    pub fn new(limit: Duration, now: Instant, sample: Sample) -> Self {
        Self {
            limit: limit.max(Duration::from_millis(200)),
            since: now,
            looked: now,
            last: sample,
            is_kernel_busy: true,
        }
    }

    /// When the next look is due.
    pub fn next_look(&self) -> Instant {
        self.looked + self.limit / 4
    }

    /// Looks; says when nothing was done for too long.
    pub fn look(&mut self, now: Instant, sample: Sample) -> Option<Stalled> {
        let seconds = now.duration_since(self.looked).as_secs_f64();
        let part = |new: u64, old: u64| new.saturating_sub(old) as f64 / TICKS / seconds.max(0.001);
        let user = part(sample.user_ticks, self.last.user_ticks);
        let system = part(sample.system_ticks, self.last.system_ticks);
        let bytes = sample.transferred.saturating_sub(self.last.transferred) as f64 / seconds.max(0.001);
        let is_silent = sample.received == self.last.received && bytes < QUIET;
        let is_kernel_busy = system > 0.5 && user < system / 10.0;
        let starved = sample.starved.saturating_sub(self.last.starved) as f64 / 1e9 / seconds.max(0.001);
        let is_idle = user + system < IDLE && starved < IDLE;
        if !is_silent || !(is_idle || is_kernel_busy) {
            self.since = now;
            self.is_kernel_busy = true;
        } else {
            self.is_kernel_busy &= is_kernel_busy;
        }
        self.looked = now;
        self.last = sample;
        let lasted = now.duration_since(self.since);
        (lasted >= self.limit && (is_idle || self.is_kernel_busy))
            .then_some(Stalled { lasted, is_emulated_privilege: self.is_kernel_busy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once in 2.5 seconds at a watch for 10 seconds; each step is what is done between two looks.
    fn found_after(steps: &[Sample]) -> Option<(usize, bool)> {
        let begun = Instant::now();
        let mut watch = StallWatch::new(Duration::from_secs(10), begun, Sample::default());
        let (mut now, mut sum) = (begun, Sample::default());
        for (number, step) in steps.iter().enumerate() {
            now += Duration::from_millis(2500);
            assert_eq!(watch.next_look(), now);
            sum.received += step.received;
            sum.user_ticks += step.user_ticks;
            sum.system_ticks += step.system_ticks;
            sum.transferred += step.transferred;
            sum.starved += step.starved;
            if let Some(stalled) = watch.look(now, sum) {
                return Some((number + 1, stalled.is_emulated_privilege));
            }
        }
        None
    }

    #[test]
    fn a_guest_that_does_nothing_is_found_in_time() {
        let nothing = Sample { user_ticks: 1, system_ticks: 1, transferred: 300, ..Sample::default() };
        assert_eq!(found_after(&[nothing; 10]), Some((4, false)));
    }

    #[test]
    fn a_guest_that_does_anything_is_not() {
        for work in [
            Sample { received: 1, ..Sample::default() },
            Sample { user_ticks: 100, ..Sample::default() },
            Sample { user_ticks: 125, system_ticks: 125, ..Sample::default() },
            Sample { transferred: 1 << 20, ..Sample::default() },
            Sample { user_ticks: 2, starved: 1_500_000_000, ..Sample::default() },
        ] {
            // Once in ten seconds is enough.
            let steps: Vec<_> = (0..40).map(|step| if step % 3 == 2 { work } else { Sample::default() }).collect();
            assert_eq!(found_after(&steps), None, "{work:?}");
        }
    }

    #[test]
    fn the_trap_of_a_kvm_that_is_none_has_a_look_of_its_own() {
        let trap = Sample { user_ticks: 2, system_ticks: 245, ..Sample::default() };
        assert_eq!(found_after(&[trap; 10]), Some((4, true)));
    }
}
