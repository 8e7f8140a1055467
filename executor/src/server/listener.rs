//! The socket that clients connect to.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Makes the socket at `path`, open to everybody: who may connect is decided by who they are. A socket that nobody listens to
/// any more gives way.
///
/// # Errors
/// Somebody listens there, something else lies there, or what the kernel says.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => match UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens there")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Gives every connection to `attend`, for ever. What one connection fails by does not end the others.
pub fn accept(
    listener: &UnixListener,
    mut attend: impl FnMut(UnixStream) -> io::Result<()>,
    complain: impl Fn(&str),
) -> ! {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = attend(stream) {
                    complain(&format!("a connection was not attended to: {error}"));
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
            Err(error) => {
                complain(&format!("cannot accept a connection: {error}"));
                // Too many open files, most likely: it gets better when another client goes.
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}
