//! Landlock, the second layer behind the mounts and the network.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use anchorhold_tests::skip;

use crate::{footprint, room};

/// Somebody outside who listens on a name that has no file.
fn listener() -> (String, UnixListener) {
    let name = footprint().marker;
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    (name, UnixListener::bind_addr(&address).expect("nobody else has it"))
}

#[test]
fn an_abstract_socket_of_the_host_is_out_of_reach_even_in_the_hosts_network() {
    let (name, _listener) = listener();
    let answer = room().with(["--network", "host", "--require-landlock", "6"]).probe(["connect-abstract", &name]);
    if answer.status == 125 {
        return skip("the Landlock of this kernel has no scopes");
    }
    assert_eq!(answer.line(), "EPERM");
}

#[test]
fn without_the_layer_the_hosts_network_is_all_there_is_between() {
    let (name, _listener) = listener();
    let open = room().with(["--network", "host"]).without("landlock").probe(["connect-abstract", &name]);
    assert_eq!(open.line(), "done");
    // And that is shut by default.
    assert_eq!(room().without("landlock").probe(["connect-abstract", &name]).line(), "ECONNREFUSED");
}

#[test]
fn a_signal_does_not_leave_the_room_even_without_a_pid_namespace() {
    let outside = std::process::id().to_string();
    let weak = || room().without("namespaces").without("seccomp");
    let answer = weak().with(["--require-landlock", "6"]).probe(["kill", &outside, "0"]);
    if answer.status == 125 {
        return skip("the Landlock of this kernel has no scopes");
    }
    assert_eq!(answer.line(), "EPERM");
    if !anchorhold_tests::host::is_root() {
        // A user's room runs as that user: only Landlock stood between.
        assert_eq!(weak().without("landlock").probe(["kill", &outside, "0"]).line(), "done");
    }
}

#[test]
fn message_queues_of_the_rooms_own_are_not_in_its_way() {
    assert_eq!(room().probe(["message-queue"]).line(), "word");
    assert_eq!(room().without("landlock").probe(["message-queue"]).line(), "word");
}

#[test]
fn an_interface_that_the_kernel_lacks_is_refused_when_it_is_required() {
    let refusal = room().with(["--require-landlock", "1000"]).run(["/bin/true"]).refusal();
    assert!(refusal.starts_with("landlock: Landlock (interface 1000 is required"), "{refusal}");
}

#[test]
fn a_payload_may_restrict_itself_further() {
    // Builds test such code. The probe has no Landlock of its own; setpriv of util-linux 2.39 does, if it is there.
    let line = "setpriv --help 2>&1 | grep -q landlock-access || exit 77; \
                setpriv --landlock-access fs:write --landlock-rule path-beneath:write:/tmp sh -c 'echo fine >/tmp/file; cat /tmp/file'";
    let ended = room().shell(line);
    if ended.status == 77 {
        return skip("setpriv of this host knows no Landlock");
    }
    assert_eq!(ended.line(), "fine");
}
