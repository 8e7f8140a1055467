//! The collector's door: processes tell it over a socket what they want to keep while it works.
//!
//! A line with a path comes in; `1` goes out when the path, and all that it needs, is safe. If it is just being removed, the
//! answer comes when it is gone: the process sees that it is not valid then, and makes it anew.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::gc::referrers_first;
use super::graph::Graph;
use super::{Roots, Store, StoreError};
use crate::store_path::StorePath;

/// The longest line that is read. In bytes.
const LONGEST: u64 = 4096;

/// What the collector and its clients both look at.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Nothing yet while the roots are still being read: what comes in waits in `held`.
    pub graph: Option<Arc<Graph>>,
    /// Whether the path with this number lives.
    pub alive: Vec<bool>,
    /// Paths that somebody asked for, valid or not.
    held: BTreeSet<StorePath>,
    /// The hash parts of `held`: locks and other files of a build have the same.
    held_parts: HashSet<String>,
    /// The hash parts of what is being removed at this moment.
    pending: HashSet<String>,
    ended: bool,
    clients: Vec<UnixStream>,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The dead paths of `only`, or all of them, each after those that refer to it.
    pub fn dead_in_order(&self, only: Option<&BTreeSet<StorePath>>) -> VecDeque<usize> {
        let state = self.state();
        let Some(graph) = state.graph.clone() else { return VecDeque::new() };
        referrers_first(&graph, |number| {
            !state.alive[number] && only.is_none_or(|only| only.contains(graph.path(number)))
        })
    }

    /// From now on nobody can keep those of `parts` that are not held yet; gives them.
    pub fn begin_removal(&self, numbers: &[usize]) -> Vec<usize> {
        let mut state = self.state();
        let Some(graph) = state.graph.clone() else { return Vec::new() };
        let dead: Vec<_> = numbers.iter().copied().filter(|number| !state.alive[*number]).collect();
        state.pending.extend(dead.iter().map(|number| graph.path(*number).hash_part().to_owned()));
        dead
    }

    /// As [`Self::begin_removal`], for something that is not valid; says whether it may be removed.
    pub fn begin_removal_of_part(&self, hash_part: &str) -> bool {
        let mut state = self.state();
        !state.held_parts.contains(hash_part) && {
            state.pending.insert(hash_part.to_owned());
            true
        }
    }

    pub fn end_removal(&self) {
        self.state().pending.clear();
        self.changed.notify_all();
    }

    /// Keeps `path`, and returns when it is safe or gone.
    pub fn keep(&self, path: StorePath) {
        let mut state = self.state();
        while state.pending.contains(path.hash_part()) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held_parts.insert(path.hash_part().to_owned());
        let State { graph, alive, held, .. } = &mut *state;
        if let Some(graph) = graph
            && let Some(number) = graph.number(&path)
        {
            graph.mark(number, alive);
        }
        held.insert(path);
    }
}

/// The open door. Closed when dropped.
pub(super) struct Listener {
    shared: Arc<Shared>,
    socket: PathBuf,
    directory: File,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Opens the door. `gc.lock` must be held.
    pub fn start(store: &Store) -> Result<Self, StoreError> {
        let path = store.state_dir().join("gc-socket");
        fs::create_dir_all(&path).map_err(StoreError::on("make the directory", &path))?;
        let directory = File::open(&path).map_err(StoreError::on("open", &path))?;
        let socket = path.join("socket");
        // Who left it is dead, or would have the lock.
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(short(&directory)).map_err(StoreError::on("listen at", &socket))?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let dir = store.dir().clone();
        let thread = std::thread::Builder::new()
            .name("gc-socket".to_owned())
            .spawn(move || {
                for stream in listener.incoming() {
                    let Ok(stream) = stream else { continue };
                    let Ok(copy) = stream.try_clone() else { continue };
                    let mut state = for_thread.state();
                    if state.ended {
                        return;
                    }
                    state.clients.push(copy);
                    drop(state);
                    let (shared, dir) = (Arc::clone(&for_thread), dir.clone());
                    // It ends with its stream, which is shut down with the door.
                    let _ = std::thread::Builder::new()
                        .name("gc-client".to_owned())
                        .spawn(move || serve(&stream, |line| dir.parse(line).map(|path| shared.keep(path)).is_ok()));
                }
            })
            .map_err(StoreError::on("start a thread to listen at", &socket))?;
        Ok(Self { shared, socket, directory, thread: Some(thread) })
    }

    /// Gives the clients the graph, and learns what they asked for meanwhile.
    pub fn begin(&self, graph: Graph, alive: Vec<bool>, roots: &Roots) -> Arc<Shared> {
        let mut state = self.shared.state();
        state.held_parts.extend(roots.held.iter().map(|path| path.hash_part().to_owned()));
        state.alive = alive;
        let State { alive, held, .. } = &mut *state;
        for path in held.iter() {
            if let Some(number) = graph.number(path) {
                graph.mark(number, alive);
            }
        }
        state.graph = Some(Arc::new(graph));
        drop(state);
        Arc::clone(&self.shared)
    }

    /// Closes the door: clients see the end of their streams and turn to `gc.lock`.
    pub fn end(self) {}
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.ended = true;
        for client in state.clients.drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
        drop(state);
        // The thread waits for one more client.
        let _ = UnixStream::connect(short(&self.directory));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.socket);
    }
}

/// The name of a socket may have 107 bytes; through a held directory it is short wherever the store is.
fn short(directory: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join("socket")
}

fn serve(mut stream: &UnixStream, keep: impl Fn(&str) -> bool) {
    let Ok(copy) = stream.try_clone() else { return };
    let mut reader = BufReader::new(copy);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
            Ok(_) if line.last() == Some(&b'\n') => line.pop(),
            _ => return,
        };
        // What is no path needs no keeping; Nix answers so too.
        if let Ok(line) = std::str::from_utf8(&line) {
            keep(line);
        }
        if stream.write_all(b"1").is_err() {
            return;
        }
    }
}
