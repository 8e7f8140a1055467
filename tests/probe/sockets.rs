//! Sockets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::errno::Errno;

use crate::{Answer, done, errno, number};

pub fn answer(words: &[&str]) -> Option<Answer> {
    Some(match *words {
        ["loopback", address] => loopback(address),
        ["route", address] => done(UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect((address, 9)))),
        ["connect", address, port] => {
            let to = (address, number::<u16>(port));
            done(std::net::ToSocketAddrs::to_socket_addrs(&to).and_then(|mut found| {
                TcpStream::connect_timeout(&found.next().ok_or(std::io::ErrorKind::NotFound)?, Duration::from_secs(20))
            }))
        }
        ["connect-abstract", name] => {
            done(SocketAddr::from_abstract_name(name).and_then(|address| UnixStream::connect_addr(&address)))
        }
        ["listen-abstract", name] => {
            done(SocketAddr::from_abstract_name(name).and_then(|address| UnixListener::bind_addr(&address)))
        }
        ["leave-a-socket", path] => done(UnixListener::bind(path)),
        ["interfaces"] => interfaces(),
        ["socket", family, kind, protocol] => socket(number(family), number(kind), number(protocol)),
        _ => return None,
    })
}

/// Talks to itself.
fn loopback(address: &str) -> Answer {
    let listener = TcpListener::bind((address, 0)).map_err(errno)?;
    let mut client = TcpStream::connect(listener.local_addr().map_err(errno)?).map_err(errno)?;
    let (mut server, _) = listener.accept().map_err(errno)?;
    client.write_all(b"word").map_err(errno)?;
    let mut heard = [0; 4];
    server.read_exact(&mut heard).map_err(errno)?;
    Ok(String::from_utf8_lossy(&heard).into_owned())
}

fn interfaces() -> Answer {
    let table = std::fs::read_to_string("/proc/self/net/dev").map_err(errno)?;
    let names: Vec<_> = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    Ok(names.join(" "))
}

fn socket(family: i32, kind: i32, protocol: i32) -> Answer {
    // SAFETY: socket(2) takes three integers; the descriptor is left to the end of this process.
    done(Errno::result(unsafe { libc::socket(family, kind, protocol) }))
}
