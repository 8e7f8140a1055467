//! `anchorhold store-server`: the store and its builds for a real Nix, over Nix's own protocols.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anchorhold::build::scratch;
use anchorhold::cache::PublicKey;
use anchorhold::config::settings::Settings;
use anchorhold::server::trust::{Peer, Standing};
use anchorhold::server::watch::Watch;
use anchorhold::server::{self, Protocol, Server, ServerError, listener};
use anchorhold::store::{Access, GcPolicy, Store};
use clap::Args;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::config::ConfigOptions;
use super::store_root::{Failure, StorePlace};
use super::{Subcommand, build, command, complain, options, policy};

pub const SUBCOMMAND: Subcommand = Subcommand {
    name: "store-server",
    command: || {
        command::<ServerOptions>(
            "store-server",
            "Serve the store to a Nix, and build for it: a remote store, a remote builder, a daemon",
        )
    },
    run,
};

/// How many clients are served at once. Each is a process: somebody who opens connections without end must not take all there are.
const MOST_CLIENTS: usize = 500;

/// What is read at once.
const BUFFER: usize = 256 << 10;

/// What a pipe to or from the client is to hold: as much as anybody may ask for.
const PIPE: usize = 1 << 20;

#[derive(Debug, Args)]
struct ServerOptions {
    #[command(flatten)]
    store: StorePlace,

    #[command(flatten)]
    config: ConfigOptions,

    #[command(flatten)]
    door: DoorOptions,

    /// Let clients of the serve protocol write and build, too
    #[arg(long)]
    write: bool,

    #[command(flatten)]
    trust: TrustOptions,
}

#[derive(Debug, Args)]
#[group(id = "door", multiple = false)]
struct DoorOptions {
    /// Serve one client of the worker protocol on standard input and output, as `nix-daemon --stdio`
    #[arg(long)]
    stdio: bool,

    /// Serve one client of the serve protocol on standard input and output, as `nix-store --serve`
    #[arg(long)]
    serve: bool,

    /// Listen on this socket, and serve every client in a process of its own
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Listen on the socket that is standard input, as systemd hands it over
    #[arg(long)]
    listen_stdin: bool,

    /// Remove what a server leaves, when standard input ends with it
    #[arg(long, hide = true)]
    sweep: bool,
}

#[derive(Debug, Args)]
#[group(id = "trust", multiple = false)]
struct TrustOptions {
    /// Believe the client on standard input: the default there
    #[arg(long)]
    trusted: bool,

    /// Do not believe the client on standard input: take signed and content-addressed paths only
    #[arg(long)]
    untrusted: bool,

    /// Believe the client on standard input as far as `trusted-users` and `allowed-users` say of who is at the other end of the socket
    #[arg(long)]
    by_peer: bool,
}

fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options: ServerOptions = options(matches);
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(why.0);
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &ServerOptions) -> Result<(), Failure> {
    let settings = options.config.load()?.settings();
    let root = options.store.root_by(&options.config.load()?)?;
    if let Some(path) = &options.door.socket {
        let listener =
            listener::bind(path).map_err(|error| Failure(format!("cannot listen on ‘{}’: {error}", path.display())))?;
        return listen(&listener, options, &settings, root);
    }
    if options.door.sweep {
        return sweep_after(&settings, &root);
    }
    if options.door.listen_stdin {
        let listener = UnixListener::from(stdin()?);
        // Whoever made it may have made it non-blocking, and then waiting for a client would be trying again and again.
        listener.set_nonblocking(false).map_err(|error| Failure(format!("setting up standard input: {error}")))?;
        return listen(&listener, options, &settings, root);
    }
    attend(options, &settings, &root)
}

/// Every connection is given to a process of its own: this program once more, with the connection as its standard input and output.
/// What one client does to its process, no other feels; and everything that a client holds ends with it.
fn listen(listener: &UnixListener, options: &ServerOptions, settings: &Settings, root: PathBuf) -> Result<(), Failure> {
    // Made once, before many try at the same time.
    let store = Store::open(&root, Access::ReadWrite)?;
    let builds = policy::builds(settings, &store);
    drop(store);
    let mut arguments = words(options, &root);
    if options.write {
        arguments.push("--write".into());
    }
    arguments.push("--by-peer".into());
    let clients = Arc::new(AtomicUsize::new(0));
    let attend = |stream: UnixStream| {
        if clients.load(Ordering::Relaxed) >= MOST_CLIENTS {
            return Err(io::Error::other(format!("{MOST_CLIENTS} clients are being served already")));
        }
        let mut child = Process::new("/proc/self/exe")
            .arg0("anchorhold")
            .args(&arguments)
            .stdin(Stdio::from(OwnedFd::from(stream.try_clone()?)))
            .stdout(Stdio::from(OwnedFd::from(stream)))
            // Keys typed at our terminal are for us; the clients are told by the end of their connections.
            .process_group(0)
            .spawn()?;
        let (builds, root, leaving) = (builds.clone(), root.clone(), Arc::clone(&clients));
        clients.fetch_add(1, Ordering::Relaxed);
        let waiting = move || {
            let status = child.wait();
            leaving.fetch_sub(1, Ordering::Relaxed);
            if !status.is_ok_and(|status| status.success()) {
                // It may have been stopped in the middle of a build. What cannot be removed now, the next build removes.
                let _ = sweep(&builds, &root);
            }
        };
        std::thread::Builder::new().name("connection".to_owned()).stack_size(256 << 10).spawn(waiting)?;
        Ok(())
    };
    listener::accept(listener, attend, |text| complain(text))
}

/// This subcommand once more, in the same store with the same settings.
fn words(options: &ServerOptions, root: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![SUBCOMMAND.name.into(), "--store".into(), root.into()];
    words.extend(options.config.arguments());
    words
}

fn stdin() -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?)
}

/// Serves the client on standard input and output.
fn attend(options: &ServerOptions, settings: &Settings, root: &Path) -> Result<(), Failure> {
    let (input, watched) = (stdin()?, stdin()?);
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    // What a library or a child of ours may print is not for the protocol.
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    // As it is made, a pipe holds so little that both ends wait for each other all the time. A socket says no.
    for pipe in [&input, &output] {
        let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE);
    }
    // A pipe has no such limit: what is behind it, an sshd most likely, knows itself when its client is gone.
    let _ = set_socket_timeout(&output, Timeout::Send, settings.stalled_client_timeout);
    let input = BufReader::with_capacity(BUFFER, File::from(input));
    let output = ToClient { output: File::from(output), patience: settings.stalled_client_timeout };

    if !options.trust.by_peer {
        let mut sweeper = words(options, root);
        sweeper.push("--sweep".into());
        let _ = SWEEPER.set(sweeper);
    }
    let mut refused = None;
    let trusted = if options.trust.by_peer {
        let peer = Peer::of(rustix::stdio::stdin())
            .map_err(|error| Failure(format!("--by-peer needs a socket as standard input: {error}")))?;
        match peer.standing(&settings.trusted_users, &settings.allowed_users) {
            Standing::Trusted => true,
            Standing::Untrusted => false,
            Standing::Refused => {
                refused = Some(peer.name);
                false
            }
        }
    } else {
        !options.trust.untrusted
    };
    if let Some(user) = refused {
        return Ok(server::refuse(&user, input, output)?);
    }

    let (protocol, may_write) = match (options.door.stdio, options.door.serve) {
        (true, _) => (Protocol::Worker, true),
        (_, true) => (Protocol::Serve, options.write),
        // As a forced command, whatever was asked for: the client's first number says what it speaks, and what it asked for says
        // whether it means to write.
        _ => {
            let asked = std::env::var("SSH_ORIGINAL_COMMAND").unwrap_or_default();
            (Protocol::ByMagic, options.write || asked.split_ascii_whitespace().any(|word| word == "--write"))
        }
    };
    let store = Store::open(root, Access::ReadWrite)?;
    let keys = settings.trusted_public_keys.iter().map(|text| text.parse()).collect::<Result<Vec<PublicKey>, _>>()?;
    let watch = Watch::new(watched, gone).calling(begin);
    let server = Server {
        store: &store,
        policy: policy::of_store(settings, &store)?,
        jobs: build::jobs(settings),
        keep_going: settings.keep_going,
        trusted,
        require_signatures: settings.require_sigs,
        keys,
        collector: GcPolicy {
            keep_derivations: settings.keep_derivations,
            keep_outputs: settings.keep_outputs,
            ..GcPolicy::default()
        },
        watch: &watch,
    };
    match server::attend(&server, protocol, may_write, input, output) {
        // In the serve protocol this line is all that the client is told.
        Err(ServerError::Request(why)) => Err(Failure(format!("error: {why}"))),
        other => Ok(other?),
    }
}

/// The way to the client. Who takes nothing for too long is as good as gone, also while a build of theirs runs.
struct ToClient {
    output: File,
    patience: Option<Duration>,
}

impl Write for ToClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.output.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.patience.is_some() => {
                let seconds = self.patience.unwrap_or_default().as_secs();
                end(&format!(
                    "the client has taken nothing of what it was sent for {seconds} s (stalled-client-timeout)"
                ))
            }
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// The words by which this program is called to remove what this process leaves; nothing where whoever started it does so.
static SWEEPER: OnceLock<Vec<OsString>> = OnceLock::new();

/// A client kills a server that it has started itself as soon as it needs it no more, in the middle of a build too. So what is left
/// is removed by a process in a group of its own, when its standard input ends with us. If there is none, the next build or the
/// collector removes it.
fn begin() {
    static STARTED: OnceLock<Option<Child>> = OnceLock::new();
    STARTED.get_or_init(|| {
        let words = SWEEPER.get()?;
        Process::new("/proc/self/exe")
            .arg0("anchorhold")
            .args(words)
            .stdin(Stdio::piped())
            // While it has these open, somebody might wait for it.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .ok()
    });
}

/// The client has gone in the middle of something.
fn gone() {
    end("the client has gone");
}

/// Ending at once is what stops everything: the kernel ends the launchers with us, and the rooms with them, and gives back every
/// lock.
fn end(why: &str) -> ! {
    complain(why);
    std::process::exit(1);
}

/// What a killed room still writes to cannot be removed: it needs a moment to be gone.
const MOMENT: Duration = Duration::from_millis(300);

/// Removes what a server has left when standard input ends with it.
fn sweep_after(settings: &Settings, root: &Path) -> Result<(), Failure> {
    anchorhold_sandbox::sys::process::close_from(3);
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    let store = Store::open(root, Access::ReadWrite)?;
    let builds = policy::builds(settings, &store);
    drop(store);
    sweep(&builds, root)
}

fn sweep(builds: &Path, root: &Path) -> Result<(), Failure> {
    scratch::sweep(builds)?;
    Store::open(root, Access::ReadWrite)?.sweep()?;
    std::thread::sleep(MOMENT);
    scratch::sweep(builds)?;
    Ok(())
}
