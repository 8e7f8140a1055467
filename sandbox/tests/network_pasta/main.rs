//! The network of a room, for real: a host, an internet and a room, each a network namespace that this test makes, and the
//! installed pasta between them. Nothing leaves the machine.
//!
//! ```text
//! internet  192.0.2.10 2001:db8:1::10 (public)  10.9.9.9 169.254.169.254 100.64.0.9 fd00:9::9 (not)   TCP 8080 8081, UDP 5353
//!    |      198.51.100.1 2001:db8:99::1   name server
//! host      198.51.100.2 2001:db8:99::2 10.7.7.7   TCP 9090 9091 on every address, loopback too
//!    |      pasta
//! room      203.0.113.2 2001:db8:616e:6368::2      probes
//! ```
//!
//! One program in several roles, because namespaces are entered by single-threaded processes: the environment variable
//! `ROLE` tells which. Without root, pasta or ip(8) it prints why it is skipped.

mod probes;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anchorhold_sandbox::layers::network::addresses::{self, Families};
use anchorhold_sandbox::layers::network::pasta::{Pasta, PastaFound, RunAs, TunAccess, check};
use anchorhold_sandbox::layers::network::policy::{Allow, HostAddress, MAX_ENTRIES, Policy, compile};
use anchorhold_sandbox::layers::network::{loopback_up, nftables, rtnetlink};
use anchorhold_sandbox::sys;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use probes::{Probe, Trick, attempt, probes};

/// The unprivileged user of the rooms here; no real one has to exist.
const USER: u32 = 12345;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let role = std::env::var("ROLE").unwrap_or_default();
    if !role.is_empty() {
        // Whatever happens to its maker, no process of this test stays.
        let _ = sys::network::die_with_parent();
    }
    let done = match role.as_str() {
        "" => world(),
        "internet" => internet(),
        "listener" => listener(),
        "supervisor" => supervisor(),
        "room" => room(),
        other => Err(format!("no role {other}").into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{role}: FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ensure(holds: bool, otherwise: impl Into<String>) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise.into().into()) }
}

// ---- the world -------------------------------------------------------------------------------------------------------

fn world() -> Result<(), Failure> {
    if std::env::args().any(|argument| argument == "--list") {
        return Ok(());
    }
    if let Err(reason) = make_host() {
        println!("network_pasta: skipped: {reason}");
        return Ok(());
    }
    loopback_up()?;
    no_default_route()?;
    let mut internet = Role::start("internet", &[], None)?;
    internet.expect("unshared")?;
    ip(&format!("link add up0 type veth peer name down0 netns {}", internet.child.id()))?;
    for line in [
        "addr add 198.51.100.2/24 dev up0",
        "addr add 2001:db8:99::2/64 dev up0 nodad",
        "addr add 10.7.7.7/24 dev up0",
        "link set up0 up",
        "route add default via 198.51.100.1",
        "route add default via 2001:db8:99::1",
    ] {
        ip(line)?;
    }
    internet.tell("linked")?;
    internet.expect("serving")?;
    let mut listener = Role::start("listener", &[], None)?;
    listener.expect("serving")?;

    // From the host everything must be reachable, or a closed door would prove nothing.
    for target in [
        "192.0.2.10:8080",
        "10.9.9.9:8080",
        "169.254.169.254:8080",
        "127.0.0.1:9090",
        "10.7.7.7:9090",
        "[fd00:9::9]:8080",
        "[2001:db8:99::1]:8080",
    ] {
        let result = attempt(&Probe::tcp(target));
        ensure(
            result.is_ok(),
            format!("the world is not as it should be: the host cannot reach {target}: {result:?}"),
        )?;
    }

    for (mode, user, scenarios) in [
        (0o600, None, ["default", "allow", "only", "large", "control", "routing rules"].as_slice()),
        (0o666, None, &["default"]),
        (0o666, Some(USER), &["default", "allow"]),
    ] {
        std::fs::set_permissions("/dev/net/tun", PermissionsExt::from_mode(mode))?;
        for scenario in scenarios {
            let started = Instant::now();
            Role::start("supervisor", &[("SCENARIO", scenario)], user)?.finish()?;
            println!(
                "scenario {scenario}, tun mode {mode:o}, supervisor {}: ok, {:.1} s",
                user.map_or("root", |_| "an ordinary user"),
                started.elapsed().as_secs_f32()
            );
        }
    }
    // Most machines today: a resolver on the host's own loopback. The room reaches it by pasta and by nothing else.
    std::fs::write("/run/resolv.conf", "nameserver 127.0.0.53\n")?;
    Role::start("supervisor", &[("SCENARIO", "local resolver")], None)?.finish()?;
    std::fs::set_permissions("/dev/net/tun", PermissionsExt::from_mode(0o600))?;
    Role::start("supervisor", &[("SCENARIO", "closed tun")], Some(USER))?.finish()?;
    Role::start("supervisor", &[("SCENARIO", "failing pasta")], None)?.finish()?;
    dies_with_its_supervisor()?;
    println!("network_pasta: ok");
    Ok(())
}

/// Names of the interfaces in the network namespace of a process. proc_pid_net(5): two lines of headings, then `name: counters`.
fn interfaces(pid: u32) -> std::io::Result<Vec<String>> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let lines = table.lines().skip(2).filter_map(|line| line.split_once(':'));
    Ok(lines.map(|(name, _)| name.trim().to_owned()).collect())
}

/// Own namespaces with a device for interfaces and a name server's address; or why this machine cannot have them.
fn make_host() -> Result<(), Failure> {
    ensure(geteuid().is_root(), "not root, so no world can be made")?;
    for tool in ["pasta", "ip"] {
        let places = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
        let found = places.iter().any(|place| Path::new(place).join(tool).exists());
        ensure(found, format!("no {tool} (Debian: passt, iproute2)"))?;
    }
    ensure(Path::new("/dev/net").is_dir(), "no /dev/net; load the module tun")?;
    // Everything together takes a few seconds; nothing of it may hang for ever.
    nix::unistd::alarm::set(240);
    nix::sys::prctl::set_child_subreaper(true)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(|errno| format!("this root may make no namespaces: {errno}"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), "/dev/net", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))?;
    mknod("/dev/net/tun", SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(10, 200))
        .map_err(|errno| format!("this root may make no device nodes: {errno}"))?;
    std::fs::File::open("/dev/net/tun").map_err(|error| format!("no tun device: {error}"))?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))?;
    std::fs::write("/run/resolv.conf", "nameserver 198.51.100.1\n")?;
    std::fs::set_permissions("/run/resolv.conf", PermissionsExt::from_mode(0o644))?;
    let file = std::fs::canonicalize("/etc/resolv.conf").map_err(|error| format!("no /etc/resolv.conf: {error}"))?;
    Ok(mount(Some("/run/resolv.conf"), &file, none, MsFlags::MS_BIND, none)?)
}

/// A namespace without a way out has nothing to hand on, and the refusal says so.
fn no_default_route() -> Result<(), Failure> {
    let families = Families::of_host()?;
    ensure(families == Families { v4: false, v6: false }, format!("{families:?}"))?;
    let found = check(None, RunAs::User { uid: USER, gid: USER })?;
    println!("found {} ({}), tun {:?}", found.program.display(), found.version, found.tun);
    let error = refusal(Pasta::start(&found, std::process::id(), families, true));
    ensure(error.contains("the host has no default route; give the host a default route"), error)
}

/// Killing the supervisor kills pasta: this process, its subreaper, sees it end by SIGKILL.
fn dies_with_its_supervisor() -> Result<(), Failure> {
    let mut supervisor = Role::start("supervisor", &[("SCENARIO", "abandoned")], None)?;
    let mut line = supervisor.line()?;
    while !line.starts_with("pasta ") {
        line = supervisor.line()?;
    }
    let pasta = Pid::from_raw(line["pasta ".len()..].parse()?);
    supervisor.child.kill()?;
    supervisor.child.wait()?;
    let status = waitpid(pasta, None)?;
    ensure(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), format!("{status:?}"))
}

fn refusal<T>(result: Result<T, impl std::fmt::Display>) -> String {
    match result {
        Ok(_) => "it worked".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn ip(line: &str) -> Result<(), Failure> {
    let mut command = Command::new("ip");
    if line.contains("::") {
        command.arg("-6");
    }
    let status = command.args(line.split_ascii_whitespace()).status()?;
    ensure(status.success(), format!("ip {line}: {status}"))
}

/// Another process of this program, spoken to by lines.
struct Role {
    name: String,
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Role {
    fn start(name: &str, environment: &[(&str, &str)], user: Option<u32>) -> Result<Self, Failure> {
        // By this name the program is found even where another user may not walk to it.
        let mut command = Command::new("/proc/self/exe");
        command.env("ROLE", name).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Self { name: name.to_owned(), child, lines })
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if (&mut self.lines).take(4096).read_line(&mut line)? == 0 {
            return Err(format!("{} ended early: {}", self.name, self.child.wait()?).into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn expect(&mut self, wanted: &str) -> Result<(), Failure> {
        let line = self.line()?;
        ensure(line == wanted, format!("{} said {line:?} instead of {wanted:?}", self.name))
    }

    fn tell(&mut self, line: &str) -> Result<(), Failure> {
        let input = self.child.stdin.as_mut().ok_or("no input")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// Passes its lines on until it ends, and wants it to end well.
    fn finish(&mut self) -> Result<(), Failure> {
        let mut rest = String::new();
        (&mut self.lines).take(1 << 20).read_to_string(&mut rest)?;
        let status = self.child.wait()?;
        print!("{rest}");
        ensure(status.success(), format!("{}: {status}", self.name))
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: &str) -> Result<(), Failure> {
    println!("{line}");
    Ok(io::stdout().flush()?)
}

fn hear(wanted: &str) -> Result<(), Failure> {
    let mut line = String::new();
    if io::stdin().read_line(&mut line)? == 0 {
        // Its maker gave it up.
        std::process::exit(1);
    }
    ensure(line.trim_end() == wanted, format!("heard {line:?} instead of {wanted:?}"))
}

// ---- those who answer ------------------------------------------------------------------------------------------------

fn internet() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    say("unshared")?;
    hear("linked")?;
    loopback_up()?;
    let own = ["192.0.2.10", "10.9.9.9", "10.9.9.8", "169.254.169.254", "100.64.0.9", "198.51.100.1"];
    let own6 = ["2001:db8:1::10", "fd00:9::9", "2001:db8:99::1"];
    ip("link set down0 up")?;
    ip("addr add 198.51.100.1/24 dev down0")?;
    ip("addr add 2001:db8:99::1/64 dev down0 nodad")?;
    for address in &own[..5] {
        ip(&format!("addr add {address}/32 dev lo"))?;
    }
    for address in &own6[..2] {
        ip(&format!("addr add {address}/128 dev lo nodad"))?;
    }
    for address in own.iter().chain(&own6) {
        let address: IpAddr = address.parse()?;
        for port in [5353, 8080, 53] {
            serve_udp(SocketAddr::new(address, port))?;
        }
        for port in [8080, 8081, 53] {
            serve_tcp(SocketAddr::new(address, port))?;
        }
    }
    say("serving")?;
    until_the_end()
}

fn listener() -> Result<(), Failure> {
    for port in [9090, 9091] {
        // The IPv6 wildcard takes IPv4 too.
        serve_tcp(format!("[::]:{port}").parse()?)?;
    }
    serve_udp("127.0.0.53:53".parse()?)?;
    say("serving")?;
    until_the_end()
}

/// Its input ends when its maker does.
fn until_the_end() -> Result<(), Failure> {
    io::stdin().read_to_string(&mut String::new())?;
    Ok(())
}

fn serve_tcp(address: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(address)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello");
        }
    });
    Ok(())
}

fn serve_udp(address: SocketAddr) -> Result<(), Failure> {
    let socket = UdpSocket::bind(address)?;
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    Ok(())
}

// ---- the supervisor --------------------------------------------------------------------------------------------------

fn policy(scenario: &str) -> Result<Policy, Failure> {
    let (allow, only): (&[&str], bool) = match scenario {
        "allow" => (&["10.9.9.9:8080/tcp", "10.7.7.7:9090/tcp", "198.51.100.0/24", "[fd00:9::9]:5353/udp"], false),
        "only" => (&["192.0.2.10:8080/tcp", "[2001:db8:1::10]:8080-8080"], true),
        _ => (&[], false),
    };
    let mut allow = allow.iter().map(|entry| entry.parse()).collect::<Result<Vec<Allow>, _>>()?;
    if scenario == "large" {
        // More than one message to the kernel holds, and more than one answer.
        for number in 0..MAX_ENTRIES {
            allow.push(format!("10.{}.{}.0/24:8080", number / 256, number % 256).parse()?);
        }
    }
    Ok(Policy { allow, only, ..Policy::default() })
}

fn supervisor() -> Result<(), Failure> {
    let scenario = std::env::var("SCENARIO")?;
    let root = geteuid().is_root();
    let run_as = if root { RunAs::User { uid: USER, gid: USER } } else { RunAs::Myself };
    if scenario == "closed tun" {
        return closed_tun();
    }
    let found = check(None, run_as)?;
    let families = Families::of_host()?;
    ensure(families == Families { v4: true, v6: true }, format!("{families:?}"))?;
    let host = addresses::of_host()?;
    let host_text: Vec<String> = host.iter().map(|own| format!("{}/{}", own.address, own.prefix_length)).collect();

    let tcp = if found.has_dns_over_tcp() { "yes" } else { "no" };
    let environment = [("SCENARIO", scenario.as_str()), ("HOST", &host_text.join(" ")), ("DNS_OVER_TCP", tcp)];
    let mut room = Role::start("room", &environment, root.then_some(USER))?;
    let pid = room.child.id();
    room.expect("unshared")?;
    std::fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    std::fs::write(format!("/proc/{pid}/uid_map"), format!("1000 {USER} 1"))?;
    std::fs::write(format!("/proc/{pid}/gid_map"), format!("100 {USER} 1"))?;
    room.tell("mapped")?;
    room.expect("policy")?;
    ensure(interfaces(pid)? == ["lo"], "the room has an interface too early")?;
    if scenario == "failing pasta" {
        return failing_pasta(&found, pid, families);
    }
    let started = Instant::now();
    let mut pasta = Pasta::start(&found, pid, families, policy(&scenario)?.has_dns())?;
    println!("  pasta ready after {} ms", started.elapsed().as_millis());
    ensure(interfaces(pid)? == ["lo", "eth0"], format!("{:?}", interfaces(pid)?))?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", pasta.pid()))?;
    let ids = format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}");
    ensure(status.contains(&ids) && status.contains("NoNewPrivs:\t1"), status)?;
    if scenario == "abandoned" {
        say(&format!("pasta {}", pasta.pid()))?;
        return until_the_end();
    }
    room.tell("ready")?;
    room.finish()?;
    ensure(pasta.ended().is_none(), "pasta ended by itself")?;
    if scenario == "only" {
        return noticed_when_killed(pasta);
    }
    let pid = pasta.pid();
    pasta.stop();
    ensure(!Path::new(&format!("/proc/{pid}")).exists(), "pasta was left behind")
}

/// A pasta that ends under a running room hangs up, so that the supervisor need not ask.
fn noticed_when_killed(mut pasta: Pasta) -> Result<(), Failure> {
    nix::sys::signal::kill(Pid::from_raw(i32::try_from(pasta.pid())?), Signal::SIGTERM)?;
    let mut set = [PollFd::new(pasta.as_fd(), PollFlags::empty())];
    ensure(poll(&mut set, PollTimeout::from(5000_u16))? == 1, "no hang-up")?;
    // The pipe closes a moment before the process can be reaped.
    nix::sys::wait::waitid(
        nix::sys::wait::Id::Pid(Pid::from_raw(i32::try_from(pasta.pid())?)),
        nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
    )?;
    ensure(pasta.ended().is_some(), "not noticed")
}

/// An ordinary user and a closed device, in `doctor`'s words.
fn closed_tun() -> Result<(), Failure> {
    let missing = refusal(check(None, RunAs::Myself));
    println!("  {missing}");
    let whole =
        ["/dev/net/tun", "Permission denied", "mode 0600", "chmod 0666"].iter().all(|part| missing.contains(part));
    ensure(whole && missing.lines().count() == 1, missing)
}

/// Failures of every kind: one line, nothing left behind.
fn failing_pasta(found: &PastaFound, room: u32, families: Families) -> Result<(), Failure> {
    let fails = |change: &dyn Fn(&mut PastaFound), wanted: &[&str]| -> Result<(), Failure> {
        let mut other = found.clone();
        change(&mut other);
        let started = Instant::now();
        let error = refusal(Pasta::start(&other, room, families, true));
        println!("  {error}");
        ensure(wanted.iter().all(|part| error.contains(part)) && error.lines().count() == 1, error)?;
        ensure(started.elapsed() < Duration::from_secs(5), "the failure took too long")?;
        let children = std::fs::read_to_string("/proc/thread-self/children")?;
        ensure(children.trim() == room.to_string(), format!("left behind: {children}"))?;
        ensure(interfaces(room)? == ["lo"], "an interface was left behind")
    };
    // The node is 0600 here, so a bound one is closed to pasta's user.
    fails(&|other| other.tun = TunAccess::Bound, &["Failed to open tun socket", "/dev/net/tun", "anchorhold doctor"])?;
    fails(&|other| other.program = "/nonexistent/pasta".into(), &["starting", "No such file"])?;
    fails(&|other| other.program = "/bin/false".into(), &["becoming ready", "without a word", "exit status: 1"])?;
    let stranger = RunAs::User { uid: USER + 1, gid: USER + 1 };
    fails(&|other| other.run_as = stranger, &["becoming ready", "user namespace"])?;
    // More words than a pipe holds, and then no end: neither may hold the supervisor up.
    let talker = "#!/bin/sh\ni=0\nwhile [ $i -lt 20000 ]; do echo noise >&2; i=$((i+1)); done\nexec >&-\nread -r forever\nexit 3\n";
    std::fs::write("/run/talker", talker)?;
    std::fs::set_permissions("/run/talker", PermissionsExt::from_mode(0o755))?;
    fails(&|other| other.program = "/run/talker".into(), &["becoming ready", "noise"])
}

// ---- the room --------------------------------------------------------------------------------------------------------

fn room() -> Result<(), Failure> {
    let scenario = std::env::var("SCENARIO")?;
    let host: Vec<HostAddress> = std::env::var("HOST")?
        .split(' ')
        .filter_map(|text| {
            let (address, length) = text.split_once('/')?;
            Some(HostAddress { address: address.parse().ok()?, prefix_length: length.parse().ok()? })
        })
        .collect();
    let dns_over_tcp = std::env::var("DNS_OVER_TCP")? == "yes";
    let families = Families { v4: true, v6: true };
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    say("unshared")?;
    hear("mapped")?;
    let started = Instant::now();
    loopback_up()?;
    let loopback = started.elapsed();
    let rules = compile(&policy(&scenario)?, &host, dns_over_tcp)?;
    let started = Instant::now();
    let weak = ["control", "routing rules"].contains(&scenario.as_str());
    if !weak {
        nftables::install(&rules)?;
    }
    let installed = started.elapsed();
    say("policy")?;
    hear("ready")?;
    let started = Instant::now();
    rtnetlink::configure(families)?;
    let configured = started.elapsed();
    println!("  loopback {loopback:?}, policy {installed:?}, interface {configured:?}");

    if scenario == "routing rules" {
        return routing_rules();
    }
    use caps::CapSet::{Ambient, Bounding, Effective, Inheritable, Permitted};
    for set in [Ambient, Bounding, Effective, Inheritable, Permitted] {
        caps::clear(None, set)?;
    }
    // What the payload might try first.
    ensure(nftables::install(&rules).is_err(), "the policy can be changed without capabilities")?;
    ensure(rtnetlink::configure(families).is_err(), "the interface can be changed")?;

    let mut wrong = Vec::new();
    let list = probes(&scenario, dns_over_tcp);
    let count = list.len();
    for (one, reach) in list {
        let started = Instant::now();
        let outcome = attempt(&one);
        // An answer and a refusal come at once; a packet that was lost is sent again after one and two seconds.
        let late = started.elapsed() > Duration::from_millis(1900) && !one.may_be_silent;
        if outcome.is_ok() != reach || late {
            wrong.push(format!("{one:?}: {outcome:?} after {:?}, wanted reach {reach}", started.elapsed()));
        }
    }
    own_loopback()?;
    raw_sockets(weak)?;
    ensure(wrong.is_empty(), wrong.join("\n"))?;
    println!("  {count} probes as wanted");
    Ok(())
}

/// Why the policy is not made of routing rules. Prints what it sees and judges nothing: a kernel may close this one day.
fn routing_rules() -> Result<(), Failure> {
    // ip(8) runs as uid 1000 of this namespace and would lose the capability on the way.
    for set in [caps::CapSet::Inheritable, caps::CapSet::Ambient] {
        caps::raise(None, set, caps::Capability::CAP_NET_ADMIN)?;
    }
    ip("rule add to 10.0.0.0/8 prohibit pref 5")?;
    for (udp, trick) in
        [(false, Trick::Plain), (false, Trick::Device), (true, Trick::Device), (true, Trick::PacketInfo)]
    {
        let one = Probe::new(udp, "10.9.9.9:8080", trick);
        println!("  prohibited by a routing rule: {} {trick:?}: {:?}", if udp { "udp" } else { "tcp" }, attempt(&one));
    }
    Ok(())
}

fn own_loopback() -> Result<(), Failure> {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address)?;
        TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_secs(2))?;
    }
    Ok(())
}

/// Neither raw nor packet sockets without CAP_NET_RAW; ping sockets do not exist in a new namespace, or their packets are
/// refused.
fn raw_sockets(open_world: bool) -> Result<(), Failure> {
    let flags = SockFlag::SOCK_CLOEXEC;
    for (family, kind, protocol) in [
        (AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Raw)),
        (AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp)),
        (AddressFamily::Inet6, SockType::Raw, Some(SockProtocol::IcmpV6)),
        (AddressFamily::Packet, SockType::Raw, None),
        (AddressFamily::Packet, SockType::Datagram, None),
    ] {
        let result = socket::socket(family, kind, flags, protocol);
        ensure(result.is_err(), format!("a {kind:?} socket of {family:?} opened"))?;
    }
    let echo = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    let ping = socket::socket(AddressFamily::Inet, SockType::Datagram, flags, SockProtocol::Icmp).and_then(|ping| {
        let to = SockaddrStorage::from(SocketAddr::from(([192, 0, 2, 10], 0)));
        socket::sendto(ping.as_raw_fd(), &echo, &to, MsgFlags::empty())
    });
    ensure(open_world || ping.is_err(), "a ping left")
}
