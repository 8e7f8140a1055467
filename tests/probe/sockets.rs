//! Sockets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

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
        ["send-descriptor", name, path] => send_descriptor(name, path),
        ["take-descriptor", name] => take_descriptor(name),
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

/// Opens a file for writing, or a directory, and hands it to whoever listens at this abstract name.
fn send_descriptor(name: &str, path: &str) -> Answer {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(path).or_else(|_| std::fs::File::open(path));
    let opened = opened.map_err(errno)?;
    let address = SocketAddr::from_abstract_name(name).map_err(errno)?;
    let stream = UnixStream::connect_addr(&address).map_err(errno)?;
    let descriptors = [opened.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    done(sendmsg::<()>(stream.as_raw_fd(), &[std::io::IoSlice::new(b"d")], &message, MsgFlags::empty(), None))
}

/// Listens at this abstract name, says so, takes a directory from whoever comes, and leaves a file in it.
fn take_descriptor(name: &str) -> Answer {
    let address = SocketAddr::from_abstract_name(name).map_err(errno)?;
    let listener = UnixListener::bind_addr(&address).map_err(errno)?;
    println!("listening");
    let (stream, _) = listener.accept().map_err(errno)?;
    let directory = anchorhold_tests::descriptor::received(&stream).ok_or(Errno::EBADMSG)?;
    let flags = nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_WRONLY;
    done(nix::fcntl::openat(&directory, "planted", flags, nix::sys::stat::Mode::from_bits_retain(0o644)))
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
