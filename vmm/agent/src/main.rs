//! The first process of a guest. It loads modules, does what its image lists for the start, then what the host asks for
//! over the port; the protocol is `anchorhold_vmm::report`. It is linked statically and needs nothing else in its image.
//!
//! Whatever goes wrong before it is ready ends it loudly: a report, a line on the console, power off. A guest that hangs
//! would keep its host waiting for a deadline that this makes needless.
#![forbid(unsafe_code)]

mod devices;
mod files;
mod network;
mod port;
mod programs;
mod serve;

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anchorhold_vmm::agent::{MODULES, MODULES_LIST, START};
use anchorhold_vmm::report::{Frames, Report, Request};
use rustix::time::ClockId;

use port::Port;

/// What a request, or the start, fails by: what was being done, to what, and what the kernel said.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {why}")]
pub struct Failure {
    doing: String,
    why: String,
}

impl Failure {
    fn new(doing: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { doing: doing.into(), why: why.to_string() }
    }
}

/// Says what was being done when something fails.
trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|why| Failure::new(doing(), why))
    }
}

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("anchorhold-agent is the first process of a guest, nothing to be started by hand");
        return ExitCode::from(2);
    }
    // A panic in any thread would leave a guest that nobody answers for.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("anchorhold: agent: {panic}");
        files::power_off();
    }));
    let began = since_boot();
    let port = match begin() {
        Ok(port) => port,
        Err(failure) => die(None, &failure),
    };
    let mut guest = serve::Guest::new(port.clone());
    match start(&port, &mut guest, began).and_then(|()| serve::requests(&mut guest)) {
        Ok(()) => files::power_off(),
        Err(failure) => die(Some(&port), &failure),
    }
}

/// Ends the guest, saying why to whoever may listen.
fn die(port: Option<&Port>, failure: &Failure) -> ! {
    eprintln!("anchorhold: agent: {failure}");
    if let Some(port) = port {
        // If the port is what failed, the console has it.
        let _ = port.say(&Report::Died { why: failure.to_string() });
    }
    files::power_off()
}

/// Up to where the host can be told what goes wrong.
fn begin() -> Result<Arc<Port>, Failure> {
    files::mount_basics()?;
    let events = devices::Events::open()?;
    load_modules()?;
    Port::open(&events).map(Arc::new)
}

fn load_modules() -> Result<(), Failure> {
    let list = fs::read_to_string(MODULES_LIST).doing(|| format!("reading {MODULES_LIST}"))?;
    for name in list.lines().filter(|line| !line.is_empty()) {
        let path = Path::new(MODULES).join(name);
        let file = fs::File::open(&path).doing(|| format!("opening {}", path.display()))?;
        match rustix::system::finit_module(&file, c"", 0) {
            // Another one may have asked for it in the meantime.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(Failure::new(format!("loading the module {name}"), io::Error::from(errno))),
        }
    }
    // They are in the kernel now; the files only take memory. It does no harm if they stay.
    let _ = fs::remove_dir_all(MODULES);
    Ok(())
}

/// Does what the image lists, and says that all is ready.
fn start(port: &Port, guest: &mut serve::Guest, began: u64) -> Result<(), Failure> {
    let mut frames = Frames::new();
    frames.feed(&fs::read(START).doing(|| format!("reading {START}"))?);
    while let Some(message) = frames.next_message().doing(|| format!("reading {START}"))? {
        let request = Request::decode(&message).doing(|| format!("reading {START}"))?;
        guest.at_start(request)?;
    }
    if !frames.is_between() {
        return Err(Failure::new(format!("reading {START}"), "it is cut off"));
    }
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    port.say(&Report::Ready { kernel, began, up: since_boot() })
}

/// How long the kernel has run, in nanoseconds.
fn since_boot() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}
