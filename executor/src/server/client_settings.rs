//! What a client asks for beside its requests: `SetOptions` of the worker protocol, the options of the serve protocol.

use anchorhold_sandbox::quantity::{Duration, Size};

use super::Server;
use crate::build::policy::Policy;

/// What a client has asked for so far. Nothing of it can give a build more than this machine's own settings do; a client that is
/// not believed can only ask for less.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ClientSettings {
    pub keep_failed: Option<bool>,
    pub keep_going: Option<bool>,
    pub jobs: Option<u64>,
    pub cores: Option<u64>,
    /// In seconds; 0 is no limit.
    pub max_silent_time: Option<u64>,
    /// In seconds; 0 is no limit.
    pub timeout: Option<u64>,
    /// In bytes; 0 is no limit.
    pub max_log_size: Option<u64>,
}

impl ClientSettings {
    /// A setting by its name. Others than these are the administrator's.
    pub fn set(&mut self, name: &str, value: &str) {
        let number = || value.parse::<u64>().ok();
        match name {
            "timeout" | "build-timeout" => self.timeout = number(),
            "max-silent-time" | "build-max-silent-time" => self.max_silent_time = number(),
            "max-build-log-size" | "build-max-log-size" => self.max_log_size = number(),
            "keep-failed" => self.keep_failed = truth(value),
            "keep-going" => self.keep_going = truth(value),
            _ => {}
        }
    }

    /// This machine's policy, as far as the client may change it.
    pub fn policy(&self, server: &Server<'_>) -> Policy {
        let mut policy = server.policy.clone();
        let time = |asked: Option<u64>, own: Option<Duration>| {
            let asked = asked.filter(|seconds| *seconds > 0).map(|seconds| Duration(seconds.saturating_mul(1000)));
            tighter(server.trusted, asked, own, |time| time.0)
        };
        policy.timeout = time(self.timeout, policy.timeout);
        policy.max_silent_time = time(self.max_silent_time, policy.max_silent_time);
        let size = self.max_log_size.filter(|size| *size > 0).map(Size::Bytes);
        policy.max_log_size = tighter(server.trusted, size, policy.max_log_size, |size| size.bytes(0));
        if let Some(cores) = self.cores {
            policy.cores = u32::try_from(cores).unwrap_or(u32::MAX);
        }
        policy.keep_failed |= self.keep_failed.unwrap_or(false);
        policy
    }

    /// How many builds run at once: no more than this machine allows. A client that builds nothing itself says 0, and does not
    /// mean us.
    pub fn jobs(&self, server: &Server<'_>) -> usize {
        let asked =
            self.jobs.filter(|jobs| *jobs > 0).map_or(usize::MAX, |jobs| usize::try_from(jobs).unwrap_or(usize::MAX));
        server.jobs.min(asked).max(1)
    }
}

fn truth(value: &str) -> Option<bool> {
    match value {
        "true" | "yes" | "1" => Some(true),
        "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// What was asked for if the client is believed, else the smaller of the two.
fn tighter<T: Copy>(trusted: bool, asked: Option<T>, own: Option<T>, measure: impl Fn(&T) -> u64) -> Option<T> {
    match (asked, own) {
        (Some(asked), Some(own)) if !trusted && measure(&own) < measure(&asked) => Some(own),
        (Some(asked), _) => Some(asked),
        (None, own) => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_believed_can_only_ask_for_less() {
        let measure = |time: &u64| *time;
        assert_eq!(tighter(false, Some(5), Some(3), measure), Some(3));
        assert_eq!(tighter(false, Some(2), Some(3), measure), Some(2));
        assert_eq!(tighter(false, None, Some(3), measure), Some(3));
        assert_eq!(tighter(true, Some(5), Some(3), measure), Some(5));
        assert_eq!(tighter(false, Some(5), None, measure), Some(5));
    }
}
