//! The worker protocol, versions 1.32 (Nix 2.4) to 1.38.
//!
//! Source: `src/libstore/daemon.cc` and `worker-protocol-connection.cc` of Nix.

use std::io::BufRead;
use std::os::fd::AsFd;

use super::activities::Activities;
use super::building::{self, Mode};
use super::channel::Channel;
use super::client_settings::ClientSettings;
use super::content_address::parse_method;
use super::operation::Operation;
use super::queries::OutputsForm;
use super::upkeep::done;
use super::{Fault, Server, ServerError, adding};
use crate::derivation::Method;
use crate::hash::Algorithm;
use crate::nar;
use crate::progress;
use crate::store_path::StorePath;
use crate::tree;
use crate::wire::{
    Framed, LONGEST_PATH, LONGEST_STRING, Message, ResultForm, Source, WireError, basic_derivation, build_result,
    unkeyed_info, wanted, write_info,
};

/// Answers the client's magic number.
const MAGIC: u64 = 0x6478_696f;

/// The version that is spoken: its first number in the second byte.
pub(super) const VERSION: u64 = 1 << 8 | 38;

/// The oldest version that is understood: that of Nix 2.4.
const OLDEST: u64 = 1 << 8 | 32;

/// Features by name, of version 1.38 on. None is claimed.
const FEATURES: [&str; 0] = [];

/// One connection.
pub(super) struct Session<'s, 'c, R> {
    pub server: &'s Server<'s>,
    pub source: Source<R>,
    pub channel: &'c Channel,
    minor: u64,
    client: ClientSettings,
}

enum Answer {
    Reply(Message),
    Archive(StorePath),
}

/// Greets the client, and answers what it asks.
pub(super) fn attend<R: BufRead>(
    server: &Server<'_>,
    mut source: Source<R>,
    channel: &Channel,
) -> Result<(), ServerError> {
    let minor = greet(&mut source, channel, Some(server.trusted))?;
    channel.reply(&Message::new())?;
    let mut session = Session { server, source, channel, minor, client: ClientSettings::default() };
    session.requests()
}

/// Greets the client and tells it that it may not go on.
pub(super) fn refuse<R: BufRead>(why: &str, mut source: Source<R>, channel: &Channel) -> Result<(), ServerError> {
    match source.number("the magic number")? {
        super::WORKER_MAGIC => {}
        other => return Err(ServerError::Magic(other)),
    }
    greet(&mut source, channel, Some(false))?;
    Ok(channel.fail(why)?)
}

/// The part of the greeting after the client's magic number; gives the second number of the version that both speak.
pub(crate) fn greet<R: BufRead>(
    source: &mut Source<R>,
    channel: &Channel,
    trusted: Option<bool>,
) -> Result<u64, ServerError> {
    let mut hello = Message::new();
    hello.number(MAGIC).number(VERSION);
    channel.send(&hello)?;
    let theirs = source.number("the client's version")?;
    // Of a version to come, we speak ours: it is for the client to know whether it still does.
    let version = theirs.min(VERSION);
    if version < OLDEST {
        channel.fail("the Nix client version is too old: 2.4 is the oldest that can be served")?;
        return Err(ServerError::TooOld {
            major: theirs >> 8,
            minor: theirs & 0xff,
            protocol: "the worker protocol",
            oldest: "1.32",
        });
    }
    let minor = version & 0xff;
    if minor >= 38 {
        let mut features = Message::new();
        features.strings(FEATURES);
        channel.send(&features)?;
        source.texts("a feature")?;
    }
    if source.truth("whether a processor is named")? {
        source.number("a processor")?;
    }
    source.number("whether space is reserved")?;
    let mut rest = Message::new();
    if minor >= 33 {
        rest.string(concat!("anchorhold ", env!("CARGO_PKG_VERSION")));
    }
    if minor >= 35 {
        rest.number(match trusted {
            None => 0,
            Some(true) => 1,
            Some(false) => 2,
        });
    }
    channel.send(&rest)?;
    Ok(minor)
}

impl<R: BufRead> Session<'_, '_, R> {
    fn requests(&mut self) -> Result<(), ServerError> {
        while let Some(number) = self.source.number_or_end("an operation")? {
            self.source.renew();
            let answer = match Operation::of(number) {
                Some(operation) => self.answer(operation),
                // What follows has a length that nobody knows.
                None => Err(WireError::invalid("an operation", format!("there is no operation {number}")).into()),
            };
            match answer {
                Ok(Answer::Reply(reply)) => self.channel.reply(&reply)?,
                Ok(Answer::Archive(path)) => self.send_archive(&path)?,
                Err(Fault::Refused(why)) => self.channel.fail(&why)?,
                Err(Fault::Wire(error)) => {
                    // Out of step: told, and ended. If it cannot be told, that it came to this matters more.
                    let _ = self.channel.fail(&error.to_string());
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, operation: Operation) -> Result<Answer, Fault> {
        let reply = match operation {
            Operation::IsValidPath => self.is_valid_path(),
            Operation::HasSubstitutes | Operation::QuerySubstitutablePathInfo => self.query_substitutable_path_info(),
            Operation::QueryReferrers => self.query_referrers(),
            Operation::AddToStore => self.add_to_store(),
            Operation::AddTextToStore => self.add_text_to_store(),
            Operation::BuildPaths => self.build_paths(),
            Operation::EnsurePath => self.ensure_path(),
            Operation::AddTempRoot => self.add_temp_root(),
            Operation::AddIndirectRoot => self.add_indirect_root(),
            Operation::SyncWithGc => Ok(done()),
            Operation::FindRoots => self.find_roots(),
            Operation::SetOptions => self.set_options(),
            Operation::CollectGarbage => self.collect_garbage(),
            Operation::QueryDerivationOutputs => self.query_derivation_outputs(OutputsForm::Paths),
            Operation::QueryAllValidPaths => self.query_all_valid_paths(),
            Operation::QueryPathInfo => self.query_path_info(),
            Operation::QueryDerivationOutputNames => self.query_derivation_outputs(OutputsForm::Names),
            Operation::QueryPathFromHashPart => self.query_path_from_hash_part(),
            Operation::QuerySubstitutablePathInfos => self.query_substitutable_path_infos(),
            Operation::QueryValidPaths => self.query_valid_paths(),
            Operation::QuerySubstitutablePaths => self.query_substitutable_paths(),
            Operation::QueryValidDerivers => self.query_valid_derivers(),
            Operation::OptimiseStore => self.optimise_store(),
            Operation::VerifyStore => self.verify_store(),
            Operation::BuildDerivation => self.build_derivation(),
            Operation::AddSignatures => self.add_signatures(),
            Operation::NarFromPath => return self.nar_from_path().map(Answer::Archive),
            Operation::AddToStoreNar => self.add_to_store_nar(),
            Operation::QueryMissing => self.query_missing(),
            Operation::QueryDerivationOutputMap => self.query_derivation_outputs(OutputsForm::Map),
            Operation::RegisterDrvOutput => self.register_drv_output(),
            Operation::QueryRealisation => self.query_realisation(),
            Operation::AddMultipleToStore => self.add_multiple_to_store(),
            Operation::AddBuildLog => self.add_build_log(),
            Operation::BuildPathsWithResults => self.build_paths_with_results(),
            Operation::AddPermRoot => self.add_perm_root(),
        };
        reply.map(Answer::Reply)
    }

    pub(super) fn path(&mut self) -> Result<StorePath, Fault> {
        Ok(self.source.path("a path", self.server.store.dir())?)
    }

    pub(super) fn must_be_trusted(&self, otherwise: &str) -> Result<(), Fault> {
        if self.server.trusted { Ok(()) } else { Err(Fault::refused(otherwise)) }
    }

    /// Lets `work` read the frames that follow, and reads the rest of them whatever it says, so that the stream stays in step.
    pub(super) fn with_frames<T>(
        &mut self,
        work: impl FnOnce(&mut Framed<'_, R>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut framed = Framed::new(&mut self.source);
        let done = work(&mut framed);
        framed.drain()?;
        done
    }

    fn set_options(&mut self) -> Result<Message, Fault> {
        let source = &mut self.source;
        let mut client = ClientSettings {
            keep_failed: Some(source.truth("keep-failed")?),
            keep_going: Some(source.truth("keep-going")?),
            ..ClientSettings::default()
        };
        source.number("fallback")?;
        source.number("verbosity")?;
        client.jobs = Some(source.number("max-jobs")?);
        client.max_silent_time = Some(source.number("max-silent-time")?);
        source.number("use-build-hook")?;
        source.number("verbose-build")?;
        source.number("log-type")?;
        source.number("print-build-trace")?;
        client.cores = Some(source.number("cores")?);
        source.number("substitute")?;
        let overrides = source.list("a setting", |source| {
            Ok((source.text("a setting", LONGEST_PATH)?, source.text("a setting", LONGEST_STRING)?))
        })?;
        for (name, value) in overrides {
            client.set(&name, &value);
        }
        self.client = client;
        Ok(Message::new())
    }

    fn add_to_store(&mut self) -> Result<Message, Fault> {
        let name = self.source.text("a name", LONGEST_PATH)?;
        let method = self.source.text("a way to name a path", LONGEST_PATH)?;
        let store = self.server.store;
        let references = self.source.paths("a reference", store.dir())?;
        let repair = self.source.truth("whether to repair")?;
        let (refused, channel) = (self.repair_refused(repair), self.channel);
        let info = self.with_frames(|framed| {
            refused?;
            let method = parse_method(&method)?;
            adding::add_by_contents(store, framed, &name, method, references, &mut |line| channel.note(line))
        })?;
        let mut reply = Message::new();
        write_info(&mut reply, store.dir(), &info);
        Ok(reply)
    }

    fn add_text_to_store(&mut self) -> Result<Message, Fault> {
        let name = self.source.text("a name", LONGEST_PATH)?;
        let contents = self.source.bytes("a text", LONGEST_STRING)?;
        let (store, channel) = (self.server.store, self.channel);
        let references = self.source.paths("a reference", store.dir())?;
        let method = (Method::Text, Algorithm::Sha256);
        let mut notice = |line: &str| channel.note(line);
        let info = adding::add_by_contents(store, &contents[..], &name, method, references, &mut notice)?;
        let mut reply = Message::new();
        reply.path(store.dir(), &info.path);
        Ok(reply)
    }

    fn add_to_store_nar(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        let info = unkeyed_info(&mut self.source, self.server.store.dir(), path)?;
        let repair = self.source.truth("whether to repair")?;
        let check = !self.source.truth("whether signatures are not checked")?;
        let (server, channel, refused) = (self.server, self.channel, self.repair_refused(repair));
        self.with_frames(|framed| {
            refused?;
            adding::add_nar(server, framed, info, check, &mut |line| channel.note(line))
        })?;
        Ok(Message::new())
    }

    fn add_multiple_to_store(&mut self) -> Result<Message, Fault> {
        let repair = self.source.truth("whether to repair")?;
        let check = !self.source.truth("whether signatures are not checked")?;
        let (server, channel, refused) = (self.server, self.channel, self.repair_refused(repair));
        self.with_frames(|framed| {
            refused?;
            // What is out of step in here is in step again after the last frame.
            let inside = |error: WireError| Fault::refused(error);
            let mut source = Source::new(framed);
            let count = source.number("the number of paths").map_err(inside)?;
            for _ in 0..count {
                source.renew();
                let path = source.path("a path", server.store.dir()).map_err(inside)?;
                let info = unkeyed_info(&mut source, server.store.dir(), path).map_err(inside)?;
                adding::add_nar(server, source.stream(), info, check, &mut |line| channel.note(line))?;
            }
            Ok(())
        })?;
        Ok(Message::new())
    }

    fn nar_from_path(&mut self) -> Result<StorePath, Fault> {
        let path = self.path()?;
        let store = self.server.store;
        match store.keep_if_valid(&path)? {
            Some(_) => Ok(path),
            None => Err(Fault::refused(format!("path '{}' is not valid", store.dir().display(&path)))),
        }
    }

    /// The archive follows the end of the messages as it is. What fails within it, nobody can be told: the connection ends.
    fn send_archive(&self, path: &StorePath) -> Result<(), ServerError> {
        let broken = |error: &dyn std::fmt::Display| ServerError::Request(format!("sending ‘{path}’: {error}"));
        let (parent, name) = tree::place(&self.server.store.real_path(path)).map_err(|error| broken(&error))?;
        self.channel.reply(&Message::new())?;
        self.channel.stream(|sink| nar::dump(parent.as_fd(), &name, sink).map_err(|error| broken(&error)))?;
        Ok(())
    }

    fn asked(&mut self) -> Result<(Vec<String>, Vec<crate::wire::Asked>, Mode), Fault> {
        let texts = self.source.texts("what is to be built")?;
        let mode = self.source.number("a build mode")?;
        let dir = self.server.store.dir();
        let asked =
            texts.iter().map(|text| wanted(text, dir).map_err(Fault::refused)).collect::<Result<Vec<_>, _>>()?;
        Ok((texts, asked, Mode::of(mode)?))
    }

    fn build_paths(&mut self) -> Result<Message, Fault> {
        let (_, asked, mode) = self.asked()?;
        let reporter = progress::to_view(Activities::new(self.channel));
        let results = building::build_asked(self.server, &self.client, &asked, mode, &reporter)?;
        match building::failure(self.server.store.dir(), &results) {
            Some((_, story)) => Err(Fault::Refused(story)),
            None => Ok(done()),
        }
    }

    fn build_paths_with_results(&mut self) -> Result<Message, Fault> {
        let (texts, asked, mode) = self.asked()?;
        let reporter = progress::to_view(Activities::new(self.channel));
        let results = building::build_asked(self.server, &self.client, &asked, mode, &reporter)?;
        let mut reply = Message::new();
        reply.number(results.len() as u64);
        let dir = self.server.store.dir();
        for (text, result) in texts.iter().zip(&results) {
            reply.string(text);
            build_result(&mut reply, dir, result, &building::story(dir, result), self.result_form());
        }
        Ok(reply)
    }

    fn build_derivation(&mut self) -> Result<Message, Fault> {
        let dir = self.server.store.dir();
        let basic = basic_derivation(&mut self.source, dir)?;
        let mode = Mode::of(self.source.number("a build mode")?)?;
        let reporter = progress::to_view(Activities::new(self.channel));
        let result = building::build_basic(self.server, &self.client, basic, mode, &reporter)?;
        let mut reply = Message::new();
        build_result(&mut reply, dir, &result, &building::story(dir, &result), self.result_form());
        Ok(reply)
    }

    fn result_form(&self) -> ResultForm {
        ResultForm { processor_time: self.minor >= 37, outputs: true, plain_outputs: false }
    }
}
