//! What a guest reaches by QEMU's own network, with its restriction and without: the hole, and that it is closed.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;

use anchorhold_tests::skip;
use anchorhold_vmm::exchange::Command;
use anchorhold_vmm::kernel::Feature;
use anchorhold_vmm::report::{Ending, RunRequest, Streams, What};

use crate::machine::{PATIENCE, parts};

const BUSYBOX: &str = "/usr/bin/busybox";

#[test]
fn a_restricted_network_does_not_lead_to_the_host_as_an_ordinary_one_does() {
    let parts = match parts() {
        Ok(parts) if Path::new(BUSYBOX).exists() => parts,
        Ok(_) => return skip("no static busybox here"),
        Err(reason) => return skip(&reason),
    };
    // Somebody listens on the host's loopback.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = std::thread::spawn(move || {
        let mut words = String::new();
        listener.accept().unwrap().0.read_to_string(&mut words).unwrap();
        words
    });
    let address = |name: &str, network: u8| What::Network {
        interface: name.into(),
        address: Some(([10, 0, network, 15].into(), 24)),
    };
    let mut image = parts.image(&[Feature::Network], &[address("eth0", 2), address("eth1", 3)]);
    image.copy("/bin/busybox", 0o755, BUSYBOX).unwrap();
    image.link("/bin/sh", "busybox").unwrap();
    let card = |id: &str, options: &str| {
        let device = format!("virtio-net-pci,netdev={id},romfile=");
        ["-netdev".to_owned(), format!("user,id={id},{options}"), "-device".to_owned(), device]
    };
    // In the order of the cards; the second is the one of guests that are served directly.
    let cards = [card("ordinary", "net=10.0.2.0/24"), card("restricted", "net=10.0.3.0/24,restrict=on,ipv6=off")];
    let mut machine = parts.start(256, &image, &cards.concat(), None);
    machine.port.ready(PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", machine.console()));
    let mut run = |line: &str| {
        let command = Command::new("/bin/sh").arguments(["-c", line]).variable("PATH", "/bin");
        let request = RunRequest { command: Ok(command), user: None, streams: Streams::Together, alone: true };
        let mut said = Vec::new();
        let ending = machine.port.run(request, PATIENCE, &mut |_, bytes| said.extend(bytes)).unwrap();
        (ending, String::from_utf8_lossy(&said).into_owned())
    };
    for (server, port) in [("10.0.3.2", port), ("10.0.3.3", 53), ("10.0.3.254", port)] {
        let (ending, said) = run(&format!("echo by-restricted | busybox nc -w 2 {server} {port}"));
        assert_ne!(ending, Ending::Exited(0), "{server}: {said}");
    }
    let (ending, said) = run(&format!("echo by-ordinary | busybox nc -w 20 10.0.2.2 {port}"));
    assert_eq!(ending, Ending::Exited(0), "{said}");
    assert_eq!(heard.join().unwrap(), "by-ordinary\n", "the hole is there, and nobody else was heard");
}
