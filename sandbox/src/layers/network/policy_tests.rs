use super::*;
use proptest::prelude::*;

fn refusal(text: &str) -> String {
    text.parse::<Allow>().unwrap_err().to_string()
}

fn open(rules: &Rules, destination: &str, protocol: Protocol, port: u16) -> bool {
    rules.decide(destination.parse().unwrap(), protocol, port) == Verdict::Accept
}

fn host(list: &[(&str, u8)]) -> Vec<HostAddress> {
    list.iter()
        .map(|(address, prefix_length)| HostAddress {
            address: address.parse().unwrap(),
            prefix_length: *prefix_length,
        })
        .collect()
}

#[test]
fn entries_read_and_write() {
    for text in [
        "192.0.2.1",
        "192.0.2.0/24",
        "192.0.2.1:443",
        "192.0.2.1:443-444/tcp",
        "10.0.0.0/8:53/udp",
        "10.1.2.3/udp",
        "[2001:db8::1]",
        "[2606:4700::]/32:1-65535/tcp",
        "[fd00::1]:22",
    ] {
        assert_eq!(text.parse::<Allow>().unwrap().to_string(), text);
    }
    assert_eq!("192.0.2.1/32".parse::<Allow>().unwrap().to_string(), "192.0.2.1");
}

#[test]
fn bad_entries_say_what_to_write() {
    assert_eq!(
        refusal("cache.example.org:443"),
        "network policy entry \"cache.example.org:443\": names are refused, because their addresses change: write the address"
    );
    assert!(refusal("2001:db8::1:443").contains("[2001:db8::1]:443"));
    assert!(refusal("10.0.0.1/8").contains("write 10.0.0.0/8 or 10.0.0.1/32"));
    assert!(refusal("10.0.0.0/33").contains("at most 32"));
    assert!(refusal("[2001:db8::]/129").contains("at most 128"));
    for text in
        ["10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:", "10.0.0.1:080", "10.0.0.1:+80", "10.0.0.1:1-", "10.0.0.1:a"]
    {
        assert!(refusal(text).contains("is no port"), "{text}");
    }
    assert!(refusal("10.0.0.1:9-8").contains("backwards"));
    assert!(refusal("10.0.0.1/icmp").contains("write tcp or udp"));
    assert!(refusal("10.0.0.1:80/tcp/udp").contains("is no port"));
    for text in [
        "",
        " 10.0.0.1",
        "10.0.0.1 ",
        "10.0.0",
        "10.0.0.01",
        "[::1",
        "[]",
        "10.0.0.1x",
        "[fd00::1]80",
        "[fe80::1%eth0]",
    ] {
        assert!(text.parse::<Allow>().is_err(), "{text:?}");
    }
    assert!(refusal(&"1".repeat(1000)).len() < 250);
}

#[test]
fn what_cannot_be_opened_is_refused_when_it_is_read() {
    for text in [
        "127.0.0.1:80",
        "0.0.0.0/0",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.251",
        "128.0.0.0/1",
        "[::1]:80",
        "[::]/0",
        "[::ffff:10.0.0.1]",
        "[fe80::1]",
        "[fec0::1]",
        "[ff02::1]",
        "203.0.113.1",
        "[2001:db8:616e:6368::1]",
    ] {
        assert!(refusal(text).contains("cannot be opened"), "{text}");
    }
}

#[test]
fn default_opens_the_internet_and_nothing_private() {
    let rules = compile(&Policy::default(), &host(&[("198.51.100.2", 24), ("2001:db8:99::2", 64)]), false).unwrap();
    for public in [
        "192.0.2.10",
        "1.1.1.1",
        "198.51.100.3",
        "223.255.255.255",
        "2606:4700::1",
        "2001:db8:1::10",
        "64:ff9b::1.1.1.1",
    ] {
        for protocol in Protocol::ALL {
            assert!(open(&rules, public, protocol, 443), "{public}");
        }
    }
    for private in [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.1.2.3",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.1",
        "203.0.113.2",
        "224.0.0.251",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "198.51.100.2",
        "::",
        "::1",
        "::ffff:10.0.0.1",
        "::ffff:1.1.1.1",
        "::10.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b::198.51.100.2",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:20::1",
        "2002:a00:1::1",
        "2001:db8:616e:6368::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::fb",
        "ff0e::1",
        "4000::1",
        "2001:db8:99::2",
        "2001:db8:99::77",
    ] {
        for port in [53, 80, 443] {
            assert!(!open(&rules, private, Protocol::Tcp, port), "{private}");
            assert!(!open(&rules, private, Protocol::Udp, port), "{private}");
        }
    }
    assert!(open(&rules, "203.0.113.53", Protocol::Udp, 53));
    assert!(!open(&rules, "203.0.113.53", Protocol::Tcp, 53));
    assert!(!open(&rules, "203.0.113.53", Protocol::Udp, 54));
    assert!(open(&compile(&Policy::default(), &[], true).unwrap(), "203.0.113.53", Protocol::Tcp, 53));
}

#[test]
fn an_allow_entry_opens_exactly_itself() {
    let policy = Policy { allow: vec!["10.1.2.3:8000-8001/tcp".parse().unwrap()], ..Policy::default() };
    let rules = compile(&policy, &[], false).unwrap();
    assert!(open(&rules, "10.1.2.3", Protocol::Tcp, 8000) && open(&rules, "10.1.2.3", Protocol::Tcp, 8001));
    assert!(!open(&rules, "10.1.2.3", Protocol::Tcp, 8002) && !open(&rules, "10.1.2.3", Protocol::Tcp, 7999));
    assert!(!open(&rules, "10.1.2.3", Protocol::Udp, 8000) && !open(&rules, "10.1.2.4", Protocol::Tcp, 8000));
    assert!(open(&rules, "1.1.1.1", Protocol::Udp, 9));
}

#[test]
fn only_closes_everything_else() {
    let policy = Policy { allow: vec!["1.1.1.1:443/tcp".parse().unwrap()], only: true, ..Policy::default() };
    let rules = compile(&policy, &[], true).unwrap();
    assert!(open(&rules, "1.1.1.1", Protocol::Tcp, 443));
    for (other, port) in [("1.1.1.1", 80), ("1.0.0.1", 443), ("203.0.113.53", 53), ("2606:4700::1", 443)] {
        assert!(!open(&rules, other, Protocol::Tcp, port) && !open(&rules, other, Protocol::Udp, port), "{other}");
    }
    let with_dns = compile(&Policy { dns: Some(true), ..policy }, &[], false).unwrap();
    assert!(open(&with_dns, "203.0.113.53", Protocol::Udp, 53));
}

#[test]
fn the_host_itself_opens_only_by_its_own_address() {
    let own = host(&[("192.168.1.5", 24)]);
    let network = Policy { allow: vec!["192.168.1.0/24".parse().unwrap()], ..Policy::default() };
    let rules = compile(&network, &own, false).unwrap();
    assert!(open(&rules, "192.168.1.6", Protocol::Tcp, 80) && !open(&rules, "192.168.1.5", Protocol::Tcp, 80));
    let exact = Policy { allow: vec!["192.168.1.5:80/tcp".parse().unwrap()], ..Policy::default() };
    let rules = compile(&exact, &own, false).unwrap();
    assert!(open(&rules, "192.168.1.5", Protocol::Tcp, 80) && !open(&rules, "192.168.1.5", Protocol::Tcp, 81));
}

#[test]
fn further_networks_can_be_refused() {
    let policy = Policy { refuse: vec!["192.0.2.0/24".parse().unwrap()], ..Policy::default() };
    let rules = compile(&policy, &[], false).unwrap();
    assert!(!open(&rules, "192.0.2.10", Protocol::Tcp, 80) && !open(&rules, "64:ff9b::192.0.2.10", Protocol::Tcp, 80));
    assert!(open(&rules, "192.0.3.10", Protocol::Tcp, 80));
}

#[test]
fn lists_are_bounded() {
    let entry: Allow = "10.0.0.1".parse().unwrap();
    let policy = Policy { allow: vec![entry; MAX_ENTRIES + 1], ..Policy::default() };
    assert!(compile(&policy, &[], false).unwrap_err().to_string().contains("1025 entries"));
    let many = vec![HostAddress { address: "10.0.0.1".parse().unwrap(), prefix_length: 8 }; MAX_HOST_ADDRESSES + 1];
    assert!(compile(&Policy::default(), &many, false).is_err());
}

#[test]
fn rules_can_be_read_by_a_person() {
    let policy = Policy { allow: vec!["10.1.2.3:80".parse().unwrap()], only: true, ..Policy::default() };
    let text: Vec<String> = compile(&policy, &[], false).unwrap().v4.iter().map(Rule::to_string).collect();
    assert_eq!(text, ["accept loopback", "accept 10.1.2.3:80/tcp", "accept 10.1.2.3:80/udp", "refuse everything"]);
}

#[test]
fn a_policy_is_written_in_toml() {
    let policy: Policy =
        toml::from_str("allow = [\"10.1.2.3:443/tcp\"]\nrefuse = [\"192.0.2.0/24\"]\nonly = true\n").unwrap();
    assert_eq!((policy.allow.len(), policy.refuse.len(), policy.only, policy.has_dns()), (1, 1, true, false));
    assert_eq!(toml::from_str::<Policy>(&toml::to_string(&policy).unwrap()).unwrap(), policy);
    let error = toml::from_str::<Policy>("allow = [\"example.org\"]").unwrap_err().to_string();
    assert!(error.contains("names are refused"), "{error}");
    assert!(toml::from_str::<Policy>("alow = []").is_err());
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()))
    ]
}

fn any_allow() -> impl Strategy<Value = Allow> {
    let ports =
        proptest::option::of((1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| Ports { first: a.min(b), last: a.max(b) }));
    let protocol = proptest::option::of(prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)]);
    (any_address(), 0..=128_u8, ports, protocol).prop_map(|(address, length, ports, protocol)| Allow {
        destination: Prefix::around(address, length),
        ports,
        protocol,
    })
}

proptest! {
    #[test]
    fn text_and_entry_are_one(allow in any_allow()) {
        // An entry that may never be opened is written all the same, and then refused when read.
        match allow.to_string().parse::<Allow>() {
            Ok(read) => prop_assert_eq!(read, allow),
            Err(error) => prop_assert!(error.problem.contains("cannot be opened"), "{}", error),
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,120}") {
        let _ = text.parse::<Allow>();
        let _ = text.parse::<Prefix>();
    }

    #[test]
    fn near_misses_are_read_or_refused(text in "[0-9a-f:./\\[\\]tcpud-]{0,40}") {
        if let Ok(allow) = text.parse::<Allow>() {
            prop_assert_eq!(allow.to_string().parse::<Allow>().unwrap(), allow);
        }
    }

    #[test]
    fn overlap_is_mutual_and_follows_from_a_shared_address(a in any_address(), m in 0..=128_u8, n in 0..=128_u8, b in any_address()) {
        let (one, other) = (Prefix::around(a, m), Prefix::around(b, n));
        prop_assert_eq!(one.overlaps(other), other.overlaps(one));
        prop_assert!(Prefix::around(a, m).overlaps(Prefix::around(a, n)));
        if one.contains(b) { prop_assert!(one.overlaps(other)); }
    }

    /// Nothing outside the allow-list and the internet is open, whatever the list says.
    #[test]
    fn what_nobody_allowed_stays_closed(allow in proptest::collection::vec(any_allow(), 0..6), to in any_address(), port in 1..=u16::MAX, only: bool) {
        let allow: Vec<Allow> = allow.into_iter().filter(|one| one.to_string().parse::<Allow>().is_ok()).collect();
        let named = allow.iter().any(|one| one.destination.contains(to));
        let private = REFUSED_V4.iter().chain(&REFUSED_V6).any(|(network, _)| network.contains(to));
        let policy = Policy { allow, only, ..Policy::default() };
        let rules = compile(&policy, &[], true).unwrap();
        if !named && (only || private) && !NAT64.contains(to) {
            prop_assert_eq!(rules.decide(to, Protocol::Tcp, port), Verdict::Refuse);
        }
        // The host's own address is closed even inside an allowed network.
        let own = [HostAddress { address: to, prefix_length: 24 }];
        let exact = policy.allow.iter().any(|one| one.destination == Prefix::host(to));
        if !exact {
            prop_assert_eq!(compile(&policy, &own, true).unwrap().decide(to, Protocol::Udp, port), Verdict::Refuse);
        }
    }
}
