//! The machine that Nix's helper sends builds to: the worker protocol, as far as the helper speaks it.
//!
//! Its store is the host's, read only, and beside it the outputs that were built over this connection. So no input is ever
//! sent, and nothing that is sent would be taken.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use super::building::{self, Made};
use super::carried::exit_status;
use crate::build::launcher::Worker;
use crate::build::policy::Policy;
use crate::build::result::BuildResult;
use crate::build::scheduler::Order;
use crate::build::scratch;
use crate::build::telling::Telling;
use crate::nar;
use crate::progress;
use crate::server::activities::Activities;
use crate::server::building::story;
use crate::server::channel::Channel;
use crate::server::operation::Operation;
use crate::server::watch::Watch;
use crate::server::worker::greet;
use crate::server::{ServerError, WORKER_MAGIC};
use crate::store::{PathInfo, Store, StoreError};
use crate::store_path::StorePath;
use crate::wire::{Framed, Message, ResultForm, Source, WireError, basic_derivation, build_result, write_unkeyed_info};

/// What one connection works with.
pub struct Endpoint<'a> {
    /// The host's store.
    pub host: &'a Store,
    /// What builds may do.
    pub policy: &'a Policy,
    /// Sees when the helper goes away.
    pub watch: &'a Watch,
    /// A file in which it is said how a build failed.
    pub report: Option<&'a Path>,
}

/// Why a request was not done.
enum Fault {
    /// The stream is out of step, or gone: the connection ends.
    Wire(WireError),
    /// The request was understood and not done: the next may come.
    Refused(String),
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.to_string())
    }
}

struct Session<'e, 'c, R> {
    endpoint: &'e Endpoint<'e>,
    source: Source<R>,
    channel: &'c Channel,
    minor: u64,
    /// Started while Nix's helper still prepares: its first build need not wait for it.
    worker: Option<Worker>,
    /// What was built, until the connection ends.
    made: Vec<Made>,
}

impl Endpoint<'_> {
    /// Answers what the helper asks, until it ends the connection.
    ///
    /// # Errors
    /// What came over the connection is not understood, or it broke.
    pub fn attend(&self, input: impl BufRead, output: impl Write + Send + 'static) -> Result<(), ServerError> {
        let mut source = Source::new(input);
        match source.number_or_end("the magic number")? {
            None => return Ok(()),
            Some(WORKER_MAGIC) => {}
            Some(other) => return Err(ServerError::Magic(other)),
        }
        let worker = Worker::start().ok();
        let channel = Channel::new(output);
        let minor = greet(&mut source, &channel, Some(true))?;
        channel.reply(&Message::new())?;
        Session { endpoint: self, source, channel: &channel, minor, worker, made: Vec::new() }.requests()
    }
}

impl<R: BufRead> Session<'_, '_, R> {
    fn requests(&mut self) -> Result<(), ServerError> {
        while let Some(number) = self.source.number_or_end("an operation")? {
            self.source.renew();
            let answer = match Operation::of(number) {
                Some(Operation::NarFromPath) => match self.nar_from_path()? {
                    None => continue,
                    Some(fault) => Err(fault),
                },
                Some(operation) => self.answer(operation),
                None => Err(unknown(number)),
            };
            match answer {
                Ok(reply) => self.channel.reply(&reply)?,
                Err(Fault::Refused(why)) => self.channel.fail(&why)?,
                Err(Fault::Wire(error)) => {
                    // Out of step: told, and ended.
                    let _ = self.channel.fail(&error.to_string());
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, operation: Operation) -> Result<Message, Fault> {
        match operation {
            Operation::IsValidPath => {
                let path = self.path()?;
                let mut reply = Message::new();
                reply.truth(self.info(&path)?.is_some());
                Ok(reply)
            }
            Operation::QueryValidPaths => self.query_valid_paths(),
            Operation::QueryPathInfo => self.query_path_info(),
            Operation::EnsurePath => {
                let path = self.path()?;
                match self.info(&path)? {
                    Some(_) => Ok(done()),
                    None => Err(self.not_valid(&path)),
                }
            }
            // Nix keeps all of this itself, for as long as it waits for the hook.
            Operation::AddTempRoot => self.path().map(|_| done()),
            Operation::BuildDerivation => self.build_derivation(),
            Operation::AddMultipleToStore => self.add_multiple_to_store(),
            other => Err(unknown(other as u64)),
        }
    }

    fn path(&mut self) -> Result<StorePath, Fault> {
        Ok(self.source.path("a path", self.endpoint.host.dir())?)
    }

    fn not_valid(&self, path: &StorePath) -> Fault {
        Fault::Refused(format!("path '{}' is not valid", self.endpoint.host.dir().display(path)))
    }

    /// What is known of a path: of one that was built over this connection, else of one of the host's.
    fn info(&self, path: &StorePath) -> Result<Option<PathInfo>, Fault> {
        match self.made(path) {
            Some((_, info)) => Ok(Some(info.clone())),
            None => Ok(self.endpoint.host.query_path_info(path)?),
        }
    }

    fn made(&self, path: &StorePath) -> Option<(&Made, &PathInfo)> {
        self.made.iter().rev().find_map(|made| made.outputs.get(path).map(|info| (made, info)))
    }

    fn query_valid_paths(&mut self) -> Result<Message, Fault> {
        let host = self.endpoint.host;
        let paths = self.source.paths("a path", host.dir())?;
        self.source.truth("whether to substitute")?;
        let mut valid: BTreeSet<StorePath> = host.valid_of(&paths)?;
        valid.extend(paths.into_iter().filter(|path| self.made(path).is_some()));
        let mut reply = Message::new();
        reply.paths(host.dir(), &valid);
        Ok(reply)
    }

    fn query_path_info(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        let mut reply = Message::new();
        match self.info(&path)? {
            Some(info) => write_unkeyed_info(reply.truth(true), self.endpoint.host.dir(), &info),
            None => {
                reply.truth(false);
            }
        }
        Ok(reply)
    }

    /// Of the helper it comes with nothing in it, because everything is there.
    fn add_multiple_to_store(&mut self) -> Result<Message, Fault> {
        self.source.truth("whether to repair")?;
        self.source.truth("whether signatures are not checked")?;
        let mut framed = Framed::new(&mut self.source);
        let count = Source::new(&mut framed).number("the number of paths");
        framed.drain()?;
        match count? {
            0 => Ok(Message::new()),
            count => Err(Fault::Refused(format!(
                "{count} paths were sent that the host's store does not have, and no path is taken here: is the setting `store` the store that Nix works on?"
            ))),
        }
    }

    fn build_derivation(&mut self) -> Result<Message, Fault> {
        let Endpoint { host, policy, watch, report } = *self.endpoint;
        let basic = basic_derivation(&mut self.source, host.dir())?;
        match self.source.number("a build mode")? {
            0 => {}
            mode => {
                return Err(Fault::Refused(format!(
                    "a build hook builds only what is not there, and build mode {mode} was asked for"
                )));
            }
        }
        let reporter = progress::to_view(Activities::new(self.channel));
        let mut order = Order::default();
        order.add(basic.path.clone(), BTreeSet::new());
        let outputs = |_: &StorePath| basic.derivation.outputs.keys().cloned().collect();
        let telling = Telling::of(&order, outputs, host.dir(), &reporter);
        if let Err(error) = scratch::sweep(&policy.builds) {
            telling.warn(&format!("what killed builds left could not be removed: {error}"));
        }
        let begun = Instant::now();
        let worker = self.worker.take();
        let (result, made): (BuildResult, _) = watch.during(|| building::build(host, policy, &telling, worker, &basic));
        telling.finished(&result, begun.elapsed());
        drop(telling);
        self.made.extend(made);
        if let (Some(file), Some(status)) = (report, exit_status(result.status))
            && let Err(error) = std::fs::write(file, status.to_string())
        {
            self.channel.note(&format!("warning: Nix is not told the class of this failure: {error}"));
        }
        let mut reply = Message::new();
        let form = ResultForm { processor_time: self.minor >= 37, outputs: true, plain_outputs: false };
        build_result(&mut reply, host.dir(), &result, &story(host.dir(), &result), form);
        Ok(reply)
    }

    /// The archive follows the end of the messages as it is. What fails within it, nobody can be told: the connection ends.
    fn nar_from_path(&mut self) -> Result<Option<Fault>, ServerError> {
        let path = match self.path() {
            Ok(path) => path,
            Err(fault) => return Ok(Some(fault)),
        };
        let broken = |error: &dyn std::fmt::Display| ServerError::Request(format!("sending ‘{path}’: {error}"));
        // Only what was built here: who asks reads the host's store itself.
        let Some((made, _)) = self.made(&path) else { return Ok(Some(self.not_valid(&path))) };
        let directory = made.directory().map_err(|error| broken(&error))?;
        self.channel.reply(&Message::new())?;
        self.channel.stream(|sink| {
            nar::dump(directory.as_fd(), path.as_str().as_ref(), sink).map_err(|error| broken(&error))
        })?;
        Ok(None)
    }
}

fn done() -> Message {
    let mut reply = Message::new();
    reply.number(1);
    reply
}

fn unknown(number: u64) -> Fault {
    WireError::invalid("an operation", format!("{number} is none that a build hook's machine does")).into()
}
