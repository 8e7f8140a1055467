//! A visit to a room that is at work: one more process in it, with nothing that the payload has not.
//!
//! Four processes take part. The *host* is the caller of [`Visit::run`]: it must have one thread, it shows the visitor's terminal and
//! waits. It forks the *usher*, which gives up the caller's ids, joins the user namespace that owns the room, and from there the
//! others. In a mount namespace of its own, a copy of the room's, it puts what the visitor brings beside what is there: the room
//! itself is not changed. It forks the *visitor*, which enters the second user namespace as the payload did, does the same steps of
//! the same plan from the session on, and becomes the shell. Where the room is to stand still, a *keeper* holds it: see [`Frost`].
//!
//! The room is the enemy, and shares a uid and a pid namespace with the visitor: until its exec the usher and the visitor can not be
//! looked into (`PR_SET_DUMPABLE`), so nothing that they hold of the host's can be taken from them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::SFlag;
use nix::unistd::Pid;

use super::Options;
use super::Sink;
use super::doors::{Doors, Resident, Status, hide, stat_field};
use super::frost::Frost;
use super::inside::{Command, do_step, fail};
use super::message::{Answer, Hatch, Report};
use super::pump::Pump;
use super::signals::Signals;
use super::supervisor::{Processes, failure, finish, no_exec, wait_for_word};
use super::watch::Watch;
use crate::error::Error;
use crate::layers::namespaces::Kind;
use crate::layers::{Action, Layer, root};
use crate::outcome::End;
use crate::plan::{Place, Plan, Stage};
use crate::room::{Room, Stdin};
use crate::site::{Site, Trouble};
use crate::sys::process::{self, Forked, exit_now, fork_sibling, pidfd_signal};
use crate::sys::{Kernel, MountFlags, Propagation, Sys};

/// A visit to be.
#[derive(Debug)]
pub struct Visit<'a> {
    /// The plan of the room, with the visitor's process in the payload's place. Only its steps from the session on are done.
    pub plan: &'a Plan,
    /// Whom to visit.
    pub resident: Resident,
    /// What the visitor brings: where it will stand, and where it lies on the host. Outer before inner.
    pub brought: &'a [(PathBuf, PathBuf)],
    /// Whether the room stands still meanwhile.
    pub freeze: bool,
}

/// How a visit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visited {
    /// How the visitor's process ended.
    pub end: End,
    /// Whether the room ended first, which ends everybody in it.
    pub room_ended: bool,
}

impl Visit<'_> {
    /// Enters the room, and waits until the visitor's process has ended. What it left running in its session ends with it.
    ///
    /// # Errors
    /// See [`Error`]; the visitor's process was not started then.
    pub fn run(&self, sink: &mut dyn Sink) -> Result<Visited, Error> {
        let threads =
            process::thread_count().map_err(|error| Error::supervisor("counting this process's threads", error))?;
        if threads != 1 {
            return Err(Error::ManyThreads { threads });
        }
        let doors = Doors::open(self.resident, &self.plan.room)?;
        // Before the freezer is forked: a signal that would end us ends the visit in its order.
        let signals = Signals::take()?;
        let frost = if self.freeze { Some(Frost::lay(Pid::from_raw(self.resident.pid), &doors.pidfd)?) } else { None };
        let kernel = Kernel::default();
        let no_pool = crate::ids::Pool { first: 0, stride: 0, slots: 0, locks: PathBuf::new() };
        let mut site = Site::new(&kernel, no_pool, doors.ids);
        let (streams, pump) = Pump::make(&self.plan.room)?;
        site.streams = streams;
        let feeder = match self.plan.room.process.stdin {
            Stdin::Inherit => Some(Feeder::start(&mut site)?),
            Stdin::Null => None,
        };
        let result = self.enter(doors, site, frost, (signals, pump), sink);
        feeder.into_iter().for_each(Feeder::end);
        result
    }

    fn enter(
        &self,
        doors: Doors,
        mut site: Site<'_>,
        frost: Option<Frost>,
        (mut signals, mut pump): (Signals, Pump),
        sink: &mut dyn Sink,
    ) -> Result<Visited, Error> {
        let begun = Instant::now();
        let (hatch, other) = Hatch::pair().map_err(|errno| Error::supervisor("making a socket pair", errno))?;
        let usher = match process::fork().map_err(|errno| Error::supervisor("forking", errno))? {
            Forked::Child => {
                drop((hatch, pump, frost));
                self.live_as_usher(doors, site, other)
            }
            Forked::Parent { pid, .. } => pid,
        };
        drop(other);
        site.streams = Default::default();
        let resident = doors.pidfd;
        let mut visitor = Processes::none();
        let entered = self.receive(&hatch, &mut signals, &mut pump, &mut visitor);
        let entered = entered.and_then(|()| {
            hatch.send(&Answer::Go, None).map_err(|errno| Error::supervisor("starting the command", errno))
        });
        if let Err(error) = entered {
            drop(hatch);
            let _ = process::wait(usher);
            visitor.end();
            return Err(error);
        }
        let _ = process::wait(usher);
        let watch = Watch {
            plan: self.plan,
            recorder: None,
            sockets: None,
            pasta: None,
            signals,
            pump,
            cgroup: None,
            sink,
            begun,
            heard: Instant::now(),
            output_bytes: 0,
            buffer: vec![0; 16 * 1024],
        };
        let watched = watch.until_the_end(&mut visitor);
        // Not reaped yet, so nobody else has its id.
        if let Some((first, _)) = &visitor.first {
            end_session(*first);
        }
        let finished = finish(self.plan, &mut visitor, watched);
        let room_ended = is_ending(Pid::from_raw(self.resident.pid), &resident);
        drop(frost);
        match hatch.receive::<Report>() {
            Ok(Some((Report::NoExec { errno }, _))) => Err(no_exec(self.plan, Errno::from_raw(errno))),
            _ => finished.map(|(end, _)| Visited { end, room_ended }),
        }
    }

    /// The words of usher and visitor, until the latter stands before its exec.
    fn receive(
        &self,
        hatch: &Hatch,
        signals: &mut Signals,
        pump: &mut Pump,
        visitor: &mut Processes,
    ) -> Result<(), Error> {
        let listening = |errno| Error::supervisor("listening to the visitor's process", errno);
        let mut ready = false;
        loop {
            // Usher and visitor speak over one socket, each when it comes to it.
            if let (true, Some((pid, _))) = (ready, &visitor.first) {
                return is_bare(*pid, &self.plan.room, self.resident);
            }
            wait_for_word(hatch, signals)?;
            let Some((report, descriptor)) = hatch.receive::<Report>().map_err(listening)? else {
                return Err(Error::supervisor("entering the room: it ended meanwhile", Errno::ESRCH));
            };
            match report {
                Report::Born(pid) => {
                    let pid = Pid::from_raw(pid);
                    // Our child, and not waited for: the id is its own.
                    let pidfd = process::pidfd_open(pid).map_err(listening)?;
                    visitor.first = Some((pid, pidfd));
                }
                Report::Terminal => match descriptor {
                    Some(master) => pump.take_terminal(&self.plan.room, master)?,
                    None => return Err(listening(Errno::EBADMSG)),
                },
                Report::Failed { step, errno, detail } => {
                    let trouble = Trouble { errno: Errno::from_raw(errno), detail };
                    return Err(failure(self.plan, step.min(self.plan.steps.len() - 1), &trouble).into());
                }
                Report::NotEntered { doing, errno } => return Err(Error::supervisor(doing, Errno::from_raw(errno))),
                Report::Ready { .. } => ready = true,
                Report::NoExec { .. } | Report::Turn(_) | Report::Locked | Report::Bare => {
                    return Err(listening(Errno::EBADMSG));
                }
            }
        }
    }

    fn live_as_usher(&self, doors: Doors, site: Site<'_>, hatch: Hatch) -> ! {
        let second = match self.usher_in(doors) {
            Ok(second) => second,
            Err((doing, errno)) => not_entered(&hatch, doing, errno),
        };
        match fork_sibling() {
            Ok(Forked::Child) => self.live_as_visitor(second, site, hatch),
            Ok(Forked::Parent { pid, .. }) => {
                let _ = hatch.send(&Report::Born(pid.as_raw()), None);
                exit_now(0)
            }
            Err(errno) => not_entered(&hatch, "starting a process in the room".into(), errno),
        }
    }

    /// Into all of the room's namespaces but the second user namespace, which is given back.
    fn usher_in(&self, doors: Doors) -> Result<Option<OwnedFd>, (String, Errno)> {
        let kernel = Kernel::default();
        let say = |doing: &'static str| move |errno: Errno| (doing.to_owned(), errno);
        hide().map_err(say("hiding from the room"))?;
        let open = |trees: &mut Vec<(PathBuf, OwnedFd)>| {
            for (inside, outside) in self.brought {
                let tree = kernel.open_tree(AT_FDCWD, outside, true);
                trees.push((inside.clone(), tree.map_err(|errno| (format!("opening {}", outside.display()), errno))?));
            }
            Ok(())
        };
        let mut trees = Vec::new();
        let caller = (nix::unistd::geteuid(), nix::unistd::getegid());
        let is_root = caller.0.is_root();
        if is_root {
            // As in any room of root's: what only root can reach is opened before its ids are given up.
            open(&mut trees)?;
            doors.take_ids(&kernel).map_err(say("giving up the ids of root"))?;
        }
        kernel
            .join_namespace(doors.owner.as_fd(), Kind::User.flag())
            .map_err(say("joining the user namespace that owns the room"))?;
        if !is_root {
            // An ordinary user may clone mounts only here: in a copy of the host's mount namespace, left right after.
            kernel.unshare(Kind::Mnt.flag()).map_err(say("making a mount namespace"))?;
            open(&mut trees)?;
        }
        for (kind, door) in &doors.others {
            kernel
                .join_namespace(door.as_fd(), kind.flag())
                .map_err(|errno| (format!("joining the room's {} namespace", kind.name()), errno))?;
        }
        if !trees.is_empty() {
            let one_by_one =
                self.plan.steps.iter().any(|step| step.action == Action::Root(root::Action::RestrictOneByOne));
            private_root(&kernel, trees, one_by_one).map_err(|trouble| {
                (format!("putting the visitor's tools beside the room: {trouble}"), trouble.errno)
            })?;
        }
        Ok(doors.second)
    }

    fn live_as_visitor(&self, second: Option<OwnedFd>, mut site: Site<'_>, hatch: Hatch) -> ! {
        let hatch = Rc::new(hatch);
        site.hatch = Some(Rc::clone(&hatch));
        let command = Command::prepare(self.plan);
        process::reset_signals();
        if let Some(second) = second
            && let Err(errno) = site.sys.join_namespace(second.as_fd(), Kind::User.flag())
        {
            not_entered(&hatch, "joining the room's second user namespace".into(), errno);
        }
        if let Err(errno) = hide() {
            not_entered(&hatch, "hiding from the room".into(), errno);
        }
        // The payload's own steps, and no others: birth, and all that comes once the tree and the namespaces stand.
        for (number, step) in self.plan.steps.iter().enumerate() {
            if step.place != Place::Room || !(step.stage == Stage::Birth || step.stage >= Stage::Session) {
                continue;
            }
            if let Err(trouble) = do_step(self.plan, number, &mut site, Options::default()) {
                fail(&hatch, number, &trouble);
            }
        }
        let ready = Report::Ready { notes: Vec::new(), timings: Vec::new() };
        let answer = hatch.send(&ready, None).and_then(|()| hatch.receive::<Answer>());
        if !matches!(answer, Ok(Some((Answer::Go, _)))) {
            exit_now(1);
        }
        let errno = command.exec();
        let _ = hatch.send(&Report::NoExec { errno: errno as i32 }, None);
        exit_now(127)
    }
}

fn not_entered(hatch: &Hatch, doing: String, errno: Errno) -> ! {
    let _ = hatch.send(&Report::NotEntered { doing, errno: errno as i32 }, None);
    exit_now(1)
}

/// What hands the caller's standard input on through a pipe: a descriptor of a file of the host's would be one in the room, where the
/// payload might come by it.
struct Feeder {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Feeder {
    /// Starts it; its pipe becomes the visitor's standard input.
    fn start(site: &mut Site<'_>) -> Result<Self, Error> {
        let say = |errno: Errno| Error::supervisor("handing standard input on", errno);
        let (theirs, ours) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(say)?;
        match process::fork().map_err(say)? {
            Forked::Child => {
                let stdin = std::io::stdin();
                process::reset_signals();
                let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
                process::close_all_but(&[stdin.as_fd(), ours.as_fd()]);
                let mut buffer = [0; 4096];
                loop {
                    match nix::unistd::read(stdin.as_fd(), &mut buffer) {
                        Ok(length) if length > 0 => {
                            // Nobody reads any more: then nothing is read either.
                            if crate::sys::file::write_whole(ours.as_fd(), &buffer[..length]).is_err() {
                                exit_now(0);
                            }
                        }
                        Err(Errno::EINTR) => {}
                        _ => exit_now(0),
                    }
                }
            }
            Forked::Parent { pid, pidfd } => {
                site.streams.stdin = Some(theirs);
                Ok(Self { pid, pidfd })
            }
        }
    }

    fn end(self) {
        let _ = pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = process::wait(self.pid);
    }
}

/// Reads back that the visitor has nothing that the payload has not, before it becomes what they asked for.
fn is_bare(visitor: Pid, room: &Room, resident: Resident) -> Result<(), Error> {
    let read = |pid| {
        Status::read(pid).map_err(|error| Error::supervisor(format!("reading the status of process {pid}"), error))
    };
    let (theirs, its) = (read(visitor)?, read(Pid::from_raw(resident.pid))?);
    let differs = ["Uid", "Gid", "Groups"].into_iter().find(|key| theirs.numbers(key) != its.numbers(key));
    match theirs.is_weaker(room).or_else(|| differs.map(|key| format!("{key} is {}", theirs.field(key)))) {
        None => Ok(()),
        Some(what) => Err(Error::NotSealed { layer: Layer::Process, what }),
    }
}

/// Whether a process is on its way out, or gone. The first process of a room ends only when everybody in the room has ended and
/// was waited for, visitors too: so it may be ending for a while.
fn is_ending(pid: Pid, held: &OwnedFd) -> bool {
    /// include/linux/sched.h
    const PF_EXITING: u64 = 4;
    let flags = stat_field(pid, 9).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & PF_EXITING != 0) || pidfd_signal(held.as_fd(), 0).is_err()
}

/// Kills what a visitor left running: everything in the session that its process led.
fn end_session(leader: Pid) {
    let session = leader.as_raw().to_string();
    for pid in super::frost::processes() {
        if pid == leader || stat_field(pid, 6).as_ref() != Some(&session) {
            continue;
        }
        // Looked at again once it is held: the id may be another's by then.
        if let Ok(held) = process::pidfd_open(pid)
            && stat_field(pid, 6).as_ref() == Some(&session)
        {
            let _ = pidfd_signal(held.as_fd(), libc::SIGKILL);
        }
    }
}

/// The room's tree with more beside it, in a mount namespace of our own: a new root with everything that stands in the room's.
fn private_root(kernel: &Kernel, trees: Vec<(PathBuf, OwnedFd)>, one_by_one: bool) -> Result<(), Trouble> {
    kernel.unshare(Kind::Mnt.flag())?;
    if one_by_one {
        kernel.restrict_one_by_one()?;
    }
    let new = kernel.new_filesystem("tmpfs", &[("size", "1048576"), ("mode", "0755")], MountFlags::PLAIN)?;
    // Over the room's root, which is still what this process reaches by name.
    kernel.move_mount(new.as_fd(), AT_FDCWD, Path::new("/"))?;
    let mut site = Site::new(kernel, crate::ids::Pool { first: 0, stride: 0, slots: 0, locks: PathBuf::new() }, (0, 0));
    site.set_root(new);
    for entry in std::fs::read_dir("/")? {
        let path = entry?.path();
        if trees.iter().any(|(inside, _)| inside.starts_with(&path)) {
            // What an outer visitor brought.
            continue;
        }
        if path.is_symlink() {
            site.make_symlink(&path, &std::fs::read_link(&path)?)?;
            continue;
        }
        let tree = kernel.open_tree(AT_FDCWD, &path, true)?;
        let is_directory = kernel.file_type(tree.as_fd())? == SFlag::S_IFDIR;
        site.attach(tree.as_fd(), &path, is_directory)?;
    }
    for (inside, tree) in &trees {
        let is_directory = kernel.file_type(tree.as_fd())? == SFlag::S_IFDIR;
        kernel.mount_setattr(tree.as_fd(), MountFlags::READ_ONLY, Some(Propagation::Private), true)?;
        site.attach(tree.as_fd(), inside, is_directory)?;
    }
    let root = site.root()?;
    kernel.mount_setattr(root.as_fd(), MountFlags::SEALED, None, false)?;
    kernel.fchdir(root.as_fd())?;
    kernel.pivot_root_here()?;
    kernel.detach_here()?;
    kernel.chdir(Path::new("/"))?;
    Ok(())
}
