//! What to do about a step that failed, where more is known than the errno says.

use nix::errno::Errno;

use crate::layers::{Action, Layer, identity, namespaces, root};
use crate::plan::Step;

/// Advice for a person.
pub fn for_step(step: &Step, errno: Errno) -> Option<String> {
    let text = match (&step.action, errno) {
        (Action::Namespaces(namespaces::Action::Unshare(_)), Errno::EPERM | Errno::EACCES) => {
            "this kernel, its security module (AppArmor's kernel.apparmor_restrict_unprivileged_userns) or the container around us forbids user \
             namespaces: `anchorhold doctor` shows which"
        }
        (Action::Namespaces(namespaces::Action::Unshare(_)), Errno::ENOSPC | Errno::EUSERS) => {
            "the limit of namespaces is reached: raise user.max_user_namespaces and its kin, or leave the room that we are in"
        }
        (Action::Identity(identity::Action::MapSelf { .. }), Errno::EPERM | Errno::EACCES) => {
            "a security module lets user namespaces be made but not used: `anchorhold doctor` shows which"
        }
        (Action::Root(root::Action::Bind { .. } | root::Action::Open { .. }), Errno::ENOENT) => {
            "create it, correct the path, or mark it optional with a trailing `?`"
        }
        (Action::Root(root::Action::Bind { .. }), Errno::EACCES) => {
            "the room's user may not reach it: give it search permission on the way there, or start anchorhold as root"
        }
        (Action::Root(_), Errno::ENOSPC) => "the room's root is full: raise root.size",
        (_, Errno::ENOSPC | Errno::EDQUOT) => "there is no space left: free some",
        (_, Errno::EMFILE) => "raise the hard limit of open files (ulimit -Hn)",
        (_, Errno::ENOSYS) => "the kernel is too old for this layer, or the container around us filters the call",
        (action, Errno::EPERM) if action.layer() == Layer::Proc => {
            "ask for the weaker tier with --proc outer, or run outside the container"
        }
        _ => return None,
    };
    Some(text.to_owned())
}
