use super::*;

/// The help of Debian 12's version, shortened, with its complaints about the missing system log.
const OLD_HELP: &str = "Failed to send 51 bytes to syslog\nUsage: pasta [OPTION]... [COMMAND] [ARGS]...\n\
  -f, --foreground\tDon't run in background\n  -e, --stderr\t\tLog to stderr too\n\
Failed to send 66 bytes to syslog\n  --no-map-gw\t\tDon't map gateway address to host\n";

fn found(extra: &[&str]) -> PastaFound {
    PastaFound {
        program: PathBuf::from("/usr/bin/pasta"),
        version: String::new(),
        options: REQUIRED.iter().chain(extra).map(|option| (*option).to_owned()).collect(),
        tun: TunAccess::Host,
        run_as: RunAs::Myself,
    }
}

fn line(arguments: Vec<OsString>) -> String {
    arguments.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

const BOTH: Families = Families { v4: true, v6: true };

#[test]
fn options_are_read_from_the_help() {
    let options = long_options(OLD_HELP);
    assert!(["--foreground", "--stderr", "--no-map-gw"].iter().all(|option| options.contains(*option)));
    assert_eq!(options.len(), 3);
}

#[test]
fn arguments_for_debian_12() {
    assert_eq!(
        line(arguments(&found(&["--stderr"]), BOTH, true, "/proc/7/ns/net", "/proc/7/ns/user")),
        "--foreground --pid /proc/self/fd/1 --stderr --tcp-ports none --udp-ports none --tcp-ns none --udp-ns none \
         --no-map-gw --no-icmp --no-dhcp --no-dhcpv6 --no-ra --no-netns-quit \
         --ns-ifname eth0 --mac-addr 02:61:6e:63:68:01 --mtu 65520 \
         --address 203.0.113.2 --netmask 24 --gateway 203.0.113.1 --dns-forward 203.0.113.53 \
         --address 2001:db8:616e:6368::2 --gateway 2001:db8:616e:6368::1 --dns-forward 2001:db8:616e:6368::53 \
         --userns /proc/7/ns/user --netns /proc/7/ns/net"
    );
}

#[test]
fn arguments_for_newer_versions_turn_every_mapping_off() {
    let new = found(&MAPPINGS);
    assert!(new.has_dns_over_tcp());
    assert!(!found(&[]).has_dns_over_tcp());
    let text = line(arguments(&new, Families { v4: true, v6: false }, false, "n", "u"));
    assert!(text.contains("--no-map-gw --map-host-loopback none --map-guest-addr none"), "{text}");
    assert!(text.contains("--ipv4-only") && !text.contains("2001:db8") && !text.contains("--dns-forward"), "{text}");
    let text = line(arguments(&new, Families { v4: false, v6: true }, true, "n", "u"));
    assert!(text.contains("--ipv6-only") && !text.contains("203.0.113"), "{text}");
}

#[test]
fn noise_is_no_reason() {
    assert_eq!(meaningful(OLD_HELP).len(), 4);
    assert_eq!(meaningful("\u{1b}[31mbad\nFailed to send 3 bytes to syslog\n"), ["[31mbad"]);
    assert!(meaningful(&"x".repeat(5000))[0].len() == 200);
}

#[test]
fn reasons_lead_to_fixes() {
    assert!(fix_for("Failed to open() /dev/net/tun: Permission denied").contains("/dev/net/tun"));
    assert!(fix_for("No routable interface for IPv4: disabled").contains("default route"));
    assert!(fix_for("Couldn't open user namespace /proc/1/ns/user").contains("user namespace"));
    assert!(fix_for("").contains("doctor"));
}

#[test]
fn what_is_missing_is_named() {
    let run_as = if geteuid().is_root() { RunAs::User { uid: 12345, gid: 12345 } } else { RunAs::Myself };
    let missing = check(Some(Path::new("/nonexistent/pasta")), run_as).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "network pasta: the program pasta: no executable file at /nonexistent/pasta; install the package passt (Debian, \
         Fedora, Arch, Nixpkgs), or name its path"
    );
    let missing = tun_access(Path::new("/nonexistent/tun"), run_as).unwrap_err();
    assert_eq!(missing.what, "the device /nonexistent/tun");
    assert!(missing.why.contains("No such file"), "{missing}");
    assert!(tun_access(Path::new("/dev/null"), run_as).unwrap_err().why.contains("not the tun device"));
}

#[test]
fn pasta_never_runs_as_root() {
    assert!(check(None, RunAs::User { uid: 0, gid: 0 }).is_err());
    if geteuid().is_root() {
        assert_eq!(check(None, RunAs::Myself).unwrap_err().what, "an unprivileged user");
    }
}
