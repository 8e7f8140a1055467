//! What a probe can find.

use serde::{Deserialize, Serialize};

/// How an attempt ended. Whether a row applies to a kernel at all is not decided here: who compares rows takes that from
/// the row of the bare host on the same kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It worked: the hole is open.
    Reached,
    /// The kernel or a filter said no; the error number is in the finding.
    Refused,
    /// The object, the path or the system call is not there.
    Absent,
    /// The probe could not be set up, so nothing was shown.
    Inconclusive,
    /// A fact, never counted.
    Info,
}

/// The verdict of one probe, and what a person should know about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How the attempt ended.
    pub verdict: Verdict,
    /// The error's name as `errno(3)` spells it, where the kernel gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// What was seen, in a few words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Finding {
    /// The attempt worked.
    pub fn reached(detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Reached, errno: None, detail: detail.into() }
    }

    /// The attempt was refused with this error number. That it names a missing system call or object makes it `Absent`.
    pub fn refused(errno: i32) -> Self {
        let verdict = match errno {
            libc::ENOSYS | libc::ENOENT | libc::ENXIO | libc::ENODEV | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT => {
                Verdict::Absent
            }
            _ => Verdict::Refused,
        };
        Self { verdict, errno: Some(name_of(errno)), detail: String::new() }
    }

    /// What was looked for is not there, and no error number says so.
    pub fn absent(detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Absent, errno: None, detail: detail.into() }
    }

    /// The attempt came to nothing without an error number: what was seen in its place.
    pub fn held(detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Refused, errno: None, detail: detail.into() }
    }

    /// Nothing was shown, for this reason.
    pub fn inconclusive(detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Inconclusive, errno: None, detail: detail.into() }
    }

    /// A fact.
    pub fn info(detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Info, errno: None, detail: detail.into() }
    }

    /// The same finding with more words.
    pub fn with(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// Reached if the call worked, or failed with one of these error numbers, which the kernel gives only after the
    /// permission check; refused with its error number otherwise.
    pub fn past(result: Result<i64, i32>, after_the_check: &[i32]) -> Self {
        match result {
            Err(errno) if after_the_check.contains(&errno) => {
                Self::reached(format!("{}, which comes after the permission check", name_of(errno)))
            }
            _ => Self::of(result),
        }
    }

    /// A hole that policy opened on purpose is a fact, not a hole.
    pub fn granted(self, granted: bool) -> Self {
        match self.verdict {
            Verdict::Reached if granted => Self::info(format!("granted; {}", self.detail)),
            _ => self,
        }
    }

    /// The attempt of several that got furthest: all that reached, else the last refusal, else the last answer.
    pub fn worst(attempts: impl IntoIterator<Item = (String, Self)>) -> Self {
        let mut open = Vec::new();
        let mut last = Self::inconclusive("nothing was tried");
        let mut answers = Vec::new();
        for (name, finding) in attempts {
            if finding.verdict == Verdict::Reached {
                open.push(if finding.detail.is_empty() { name } else { format!("{name} ({})", finding.detail) });
            } else {
                answers.push(format!("{name}: {}", finding.errno.as_deref().unwrap_or(&finding.detail)));
                // That something is there but refused says more than that something else is not there, and either says
                // more than a probe that could not be set up.
                let weight = |finding: &Self| match finding.verdict {
                    Verdict::Inconclusive => 0,
                    Verdict::Absent => 1,
                    _ => 2,
                };
                if weight(&finding) >= weight(&last) {
                    last = finding;
                }
            }
        }
        if open.is_empty() { last.with(answers.join(", ")) } else { Self::reached(open.join(", ")) }
    }

    /// The same finding, its words cut to what fits into a table.
    pub fn shortened(mut self) -> Self {
        const LONGEST: usize = 300;
        if let Some((end, _)) = self.detail.char_indices().nth(LONGEST) {
            self.detail.truncate(end);
            self.detail.push_str(" …");
        }
        self
    }

    /// Reached if the call worked, refused with its error number if not.
    pub fn of(result: Result<i64, i32>) -> Self {
        match result {
            Ok(_) => Self::reached(""),
            Err(errno) => Self::refused(errno),
        }
    }
}

/// The symbolic name of an error number, or the number itself. Table: `asm-generic/errno-base.h` and `errno.h`, those
/// that a sandbox answers with.
pub fn name_of(errno: i32) -> String {
    const NAMES: &[(i32, &str)] = &[
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EINTR, "EINTR"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::E2BIG, "E2BIG"),
        (libc::ENOEXEC, "ENOEXEC"),
        (libc::EBADF, "EBADF"),
        (libc::ECHILD, "ECHILD"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::EXDEV, "EXDEV"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EISDIR, "EISDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENFILE, "ENFILE"),
        (libc::EMFILE, "EMFILE"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::EFBIG, "EFBIG"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::EMLINK, "EMLINK"),
        (libc::EPIPE, "EPIPE"),
        (libc::ERANGE, "ERANGE"),
        (libc::ELOOP, "ELOOP"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENOTEMPTY, "ENOTEMPTY"),
        (libc::ENODATA, "ENODATA"),
        (libc::EOVERFLOW, "EOVERFLOW"),
        (libc::EUSERS, "EUSERS"),
        (libc::ENOTSOCK, "ENOTSOCK"),
        (libc::EPROTOTYPE, "EPROTOTYPE"),
        (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT"),
        (libc::ESOCKTNOSUPPORT, "ESOCKTNOSUPPORT"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::EADDRINUSE, "EADDRINUSE"),
        (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"),
        (libc::ENETDOWN, "ENETDOWN"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::EHOSTUNREACH, "EHOSTUNREACH"),
        (libc::EDQUOT, "EDQUOT"),
        (libc::ENOKEY, "ENOKEY"),
        (libc::EKEYREVOKED, "EKEYREVOKED"),
    ];
    NAMES.iter().find(|(number, _)| *number == errno).map_or_else(|| errno.to_string(), |(_, name)| (*name).to_owned())
}
