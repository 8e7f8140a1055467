//! A network of the room's own: loopback, and nothing else unless asked for.

use std::net::{TcpListener, TcpStream};

use anchorhold_tests::skip;

use crate::{room, room_of};

#[test]
fn loopback_works_and_is_the_only_interface() {
    for profile in ["build", "nested", "machines"] {
        assert_eq!(room_of(profile).probe(["interfaces"]).line(), "lo", "{profile}");
        assert_eq!(room_of(profile).probe(["loopback", "127.0.0.1"]).line(), "word", "{profile}");
    }
    if TcpListener::bind("[::1]:0").is_ok() {
        assert_eq!(room().probe(["loopback", "::1"]).line(), "word");
    } else {
        skip("this host has no IPv6");
    }
}

#[test]
fn there_is_no_way_out() {
    // A documentation address: nothing is sent, only the route is asked for.
    for address in ["192.0.2.1", "169.254.169.254", "10.0.0.1"] {
        assert_eq!(room().probe(["route", address]).line(), "ENETUNREACH", "{address}");
    }
}

/// Somebody outside who listens on the host's loopback.
fn listener() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    (listener.local_addr().expect("an address").port().to_string(), listener)
}

#[test]
fn what_listens_on_the_hosts_loopback_is_not_reached() {
    let (port, _listener) = listener();
    assert_eq!(room().probe(["connect", "127.0.0.1", &port]).line(), "ECONNREFUSED");
}

#[test]
fn without_the_layer_what_listens_on_the_hosts_loopback_is_reached() {
    let (port, _listener) = listener();
    assert_eq!(room().without("network").probe(["connect", "127.0.0.1", &port]).line(), "done");
}

#[test]
fn the_hosts_network_is_there_only_for_the_word_and_with_a_warning() {
    let (port, _listener) = listener();
    let ended = room().with(["--network", "host"]).probe(["connect", "127.0.0.1", &port]);
    assert!(ended.stderr.starts_with("anchorhold: warning: network is weaker: the host's network"), "{ended:?}");
    assert_eq!(ended.line(), "done");
}

#[test]
fn what_listens_in_a_room_is_not_reached_from_the_host() {
    let (_, ours) = listener();
    let port = ours.local_addr().expect("an address").port();
    drop(ours);
    let mut running =
        room().start(["/bin/sh", "-c", "command -v perl >/dev/null || { echo none; exit; }; exec perl -e '$| = 1; use IO::Socket::INET; \
            IO::Socket::INET->new(Listen => 1, LocalAddr => \"127.0.0.1\", LocalPort => shift) or die; print \"ready\\n\"; sleep' \
            \"$0\"", &port.to_string()]);
    if running.line() == "none" {
        return skip("there is no perl to listen with");
    }
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_room_with_pasta_has_its_own_network_and_not_the_hosts_loopback() {
    let pasta = || room().with(["--network", "pasta"]);
    let interfaces = pasta().probe(["interfaces"]);
    if interfaces.status == 125 {
        let refusal = interfaces.refusal();
        assert!(refusal.starts_with("network: "), "{refusal}");
        return skip("pasta cannot be used here");
    }
    let interfaces = interfaces.line();
    assert!(interfaces.split(' ').any(|name| name == "lo") && interfaces.split(' ').count() == 2, "{interfaces}");
    let (port, _listener) = listener();
    assert_eq!(pasta().probe(["connect", "127.0.0.1", &port]).line(), "ECONNREFUSED");
    assert_eq!(pasta().shell("grep -c ^nameserver /etc/resolv.conf").line(), "1");
}
