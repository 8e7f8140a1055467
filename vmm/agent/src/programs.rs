//! Programs that run for the host: their output, their end, and the reaping of what they leave behind.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anchorhold_vmm::exchange;
use anchorhold_vmm::report::{Ending, Report, RunRequest, Streams};
use anchorhold_vmm::sessions::{Ends, Flowed, Flows, Size};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid};

use crate::port::Port;
use crate::{Doing, Failure};

/// How long something that outlives a program may hold its output open before the end is reported nevertheless.
const HELD_OPEN: Duration = Duration::from_secs(2);

/// Children that somebody waits for, by process id.
#[derive(Debug, Default)]
struct Waiters {
    senders: BTreeMap<i32, Sender<WaitStatus>>,
}

/// The programs of this guest.
#[derive(Debug, Default)]
pub struct Programs {
    /// Held while a child is made: until it is in the list, nobody may reap it.
    waiters: Mutex<Waiters>,
    made: Condvar,
    /// Running programs by the numbers of their requests.
    running: Mutex<BTreeMap<u32, Pid>>,
    /// The standard inputs of those that wait for theirs.
    inputs: Mutex<BTreeMap<u32, io::PipeWriter>>,
    /// The streams of people's sessions.
    flows: Flows,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Programs {
    /// With the thread that reaps, as the first process must.
    pub fn begin() -> Arc<Self> {
        let programs = Arc::new(Self::default());
        let reaped = programs.clone();
        thread::spawn(move || reaped.reap());
        programs
    }

    fn reap(&self) {
        loop {
            // Without taking it: a child that could not be executed belongs to whoever was making it.
            match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(_) => {
                    let mut waiters = lock(&self.waiters);
                    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                        if let Some(waiter) = waiters.senders.remove(&pid.as_raw_nonzero().get()) {
                            // Nobody listens any more only if its thread has panicked.
                            let _ = waiter.send(status);
                        }
                    }
                }
                Err(rustix::io::Errno::CHILD) => {
                    // A child that was made between that call and this lock is in the list already.
                    let waiters = lock(&self.waiters);
                    drop(self.made.wait_while(waiters, |waiters| waiters.senders.is_empty()));
                }
                Err(_) => {}
            }
        }
    }

    /// Runs a program. Its output and its end are reported by threads of its own.
    pub fn run(self: &Arc<Self>, port: &Arc<Port>, number: u32, request: RunRequest) -> Result<(), Failure> {
        let wanted = match request.command {
            Ok(command) => command,
            Err(path) => {
                let doing = || format!("reading the command {}", path.display());
                let file = File::open(&path).doing(doing)?;
                let mut bytes = Vec::new();
                file.take(exchange::MAX_COMMAND as u64 + 1).read_to_end(&mut bytes).doing(doing)?;
                exchange::Command::decode(&bytes).doing(doing)?
            }
        };
        let doing = || format!("running {}", wanted.program.display());
        let mut command = Command::new(&wanted.program);
        command.args(&wanted.arguments).env_clear().current_dir(&wanted.directory).process_group(0);
        command.envs(wanted.environment.iter().map(|(name, value)| (name, value)));
        if let Some((user, group)) = request.user {
            // Without other groups: std drops them with the user.
            command.uid(user).gid(group);
        }
        let mut pipes = Vec::new();
        let mut input = None;
        let mut ends = None;
        match request.streams {
            Streams::Session(terminal) => ends = Some(Ends::of(&mut command, terminal).doing(doing)?),
            Streams::Fed => {
                let ((read, write), (fed, feed)) = (io::pipe().doing(doing)?, io::pipe().doing(doing)?);
                command.stdin(fed).stdout(write.try_clone().doing(doing)?).stderr(write);
                pipes.push((false, read));
                input = Some(feed);
            }
            Streams::Console => {
                let console = File::options().read(true).write(true).open("/dev/console").doing(doing)?;
                command.stdin(console.try_clone().doing(doing)?);
                command.stdout(console.try_clone().doing(doing)?).stderr(console);
            }
            Streams::Together => {
                let (read, write) = io::pipe().doing(doing)?;
                command.stdin(Stdio::null()).stdout(write.try_clone().doing(doing)?).stderr(write);
                pipes.push((false, read));
            }
            Streams::Apart => {
                let ((read, write), (read_error, write_error)) = (io::pipe().doing(doing)?, io::pipe().doing(doing)?);
                command.stdin(Stdio::null()).stdout(write).stderr(write_error);
                pipes.extend([(false, read), (true, read_error)]);
            }
        }
        let (ended, end) = mpsc::channel();
        let pid = {
            let mut waiters = lock(&self.waiters);
            let child = command.spawn().doing(doing)?;
            waiters.senders.insert(child.id() as i32, ended);
            self.made.notify_all();
            Pid::from_child(&child)
        };
        // It holds the writing ends of the pipes.
        drop(command);
        lock(&self.running).insert(number, pid);
        if let Some(input) = input {
            lock(&self.inputs).insert(number, input);
        }
        let flowing = ends.map(|ends| {
            let port = port.clone();
            let tell = move |flowed| {
                port.say(&match flowed {
                    Flowed::Output { error, bytes } => Report::Output { number, error, bytes },
                    Flowed::Taken(bytes) => Report::Taken { number, bytes },
                })
                .is_ok()
            };
            self.flows.begin(number, ends, tell)
        });
        let (programs, port) = (self.clone(), port.clone());
        thread::spawn(move || {
            let (done, all_done) = mpsc::channel::<()>();
            for (error, pipe) in pipes {
                let (port, done) = (port.clone(), done.clone());
                thread::spawn(move || pump(&port, number, error, pipe, done));
            }
            drop(done);
            let ending = match end.recv() {
                Ok(status) => ending(status),
                Err(_) => Ending::NotStarted("its status was lost".into()),
            };
            if request.alone {
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            }
            lock(&programs.running).remove(&number);
            lock(&programs.inputs).remove(&number);
            // Until all pipes are at their end, which nobody announces by a message.
            let _ = all_done.recv_timeout(HELD_OPEN);
            if let Some(flowing) = flowing {
                flowing.wait();
                programs.flows.end(number);
            }
            // A port that fails ends the guest by the thread that reads from it.
            let _ = port.say(&Report::Ended { number, ending });
        });
        Ok(())
    }

    /// Gives a program its standard input, all of it, by a thread of its own: the program takes it when it likes.
    pub fn feed(&self, number: u32, bytes: Vec<u8>) -> Result<(), Failure> {
        use std::io::Write;
        let input = lock(&self.inputs).remove(&number);
        let mut input =
            input.ok_or_else(|| Failure::new(format!("giving run {number} its input"), "it waits for none"))?;
        // One that has ended takes nothing, and its end is reported.
        thread::spawn(move || input.write_all(&bytes));
        Ok(())
    }

    /// Gives a program of a session a piece of its input.
    pub fn feed_piece(&self, number: u32, bytes: Vec<u8>) {
        self.flows.feed(number, bytes);
    }

    /// Lets a program of a session say so many bytes more.
    pub fn allow(&self, number: u32, bytes: u32) {
        self.flows.allow(number, bytes);
    }

    /// Gives the terminal of a session a size, and tells its program. There is none any more when it has ended.
    pub fn resize(&self, number: u32, size: Size) {
        self.flows.resize(number, size);
        if let Some(pid) = lock(&self.running).get(&number) {
            // It is nobody's controlling terminal, so that the kernel tells nobody.
            let _ = rustix::process::kill_process_group(*pid, Signal::WINCH);
        }
    }

    /// Ends a session: nobody hears its program any more, which is killed with its group.
    pub fn end_session(&self, number: u32) {
        self.flows.end(number);
        if let Some(pid) = lock(&self.running).get(&number) {
            let _ = rustix::process::kill_process_group(*pid, Signal::KILL);
        }
    }

    /// Sends a signal to a program and its group.
    pub fn kill(&self, number: u32, signal: u32) -> Result<(), Failure> {
        let doing = || format!("sending signal {signal} to run {number}");
        let pid = *lock(&self.running).get(&number).ok_or_else(|| Failure::new(doing(), "it does not run"))?;
        let signal = i32::try_from(signal).ok().and_then(Signal::from_named_raw);
        let signal = signal.ok_or_else(|| Failure::new(doing(), "there is no such signal"))?;
        rustix::process::kill_process_group(pid, signal).map_err(io::Error::from).doing(doing)
    }
}

fn ending(status: WaitStatus) -> Ending {
    match (status.exit_status(), status.terminating_signal()) {
        // Of eight bits, by wait(2).
        (Some(status), _) => Ending::Exited(status as u8),
        (None, Some(signal)) => Ending::Signalled(signal.unsigned_abs()),
        (None, None) => Ending::NotStarted(format!("it has the strange status {status:?}")),
    }
}

fn pump(port: &Port, number: u32, error: bool, mut pipe: io::PipeReader, done: Sender<()>) {
    let mut buffer = vec![0; 65536];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                if port.say(&Report::Output { number, error, bytes: buffer[..length].to_vec() }).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    // The last one to go ends the wait.
    drop(done);
}
