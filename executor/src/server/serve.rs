//! The serve protocol, versions 2.5 to 2.8: what `nix-store --serve` speaks.
//!
//! Replies follow requests directly, and errors have no words: where a reply has no status in it, the connection ends, and what
//! happened is said on standard error, which the client shows. Source: `src/nix-store/nix-store.cc` (`opServe`) of Nix.

use std::collections::BTreeSet;
use std::io::{BufRead, Read};
use std::os::fd::AsFd;

use super::activities::Lines;
use super::building::{self, Mode};
use super::channel::Channel;
use super::client_settings::ClientSettings;
use super::{Fault, Server, ServerError, adding};
use crate::build::stored;
use crate::nar;
use crate::progress;
use crate::store::Direction;
use crate::store_path::StorePath;
use crate::tree;
use crate::wire::{Message, ResultForm, Source, WireError, basic_derivation, build_result, unkeyed_info, wanted};

/// Answers the client's magic number.
const MAGIC: u64 = 0x5452_eecb;

const NEWEST: u64 = 2 << 8 | 8;
const OLDEST: u64 = 2 << 8 | 5;

struct Session<'s, 'c, R> {
    server: &'s Server<'s>,
    source: Source<R>,
    channel: &'c Channel,
    minor: u64,
    may_write: bool,
}

/// Greets the client, whose magic number was read, and answers what it asks.
pub(super) fn attend<R: BufRead>(
    server: &Server<'_>,
    may_write: bool,
    mut source: Source<R>,
    channel: &Channel,
) -> Result<(), ServerError> {
    let theirs = source.number("the client's version")?;
    let version = theirs.min(NEWEST);
    let mut hello = Message::new();
    hello.number(MAGIC).number(version.max(OLDEST));
    channel.send(&hello)?;
    if version < OLDEST {
        return Err(ServerError::TooOld {
            major: theirs >> 8,
            minor: theirs & 0xff,
            protocol: "the serve protocol",
            oldest: "2.5",
        });
    }
    let mut session = Session { server, source, channel, minor: version & 0xff, may_write };
    while let Some(command) = session.source.number_or_end("a command")? {
        session.source.renew();
        match session.answer(command) {
            Ok(()) => {}
            Err(Fault::Refused(why)) => return Err(ServerError::Request(why)),
            Err(Fault::Wire(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

impl<R: BufRead> Session<'_, '_, R> {
    fn answer(&mut self, command: u64) -> Result<(), Fault> {
        let reply = match command {
            1 => self.query_valid_paths()?,
            2 => self.query_path_infos()?,
            3 => return self.dump_store_path(),
            4 => self.import_paths()?,
            5 => return self.export_paths(),
            6 => self.build_paths()?,
            7 => self.query_closure()?,
            8 => self.build_derivation()?,
            9 => self.add_to_store_nar()?,
            other => return Err(Fault::refused(format!("unknown serve command {other}"))),
        };
        Ok(self.channel.send(&reply)?)
    }

    fn must_write(&self, what: &str) -> Result<(), Fault> {
        match self.may_write {
            true => Ok(()),
            false => Err(Fault::refused(format!("{what} is not allowed: this server was started without --write"))),
        }
    }

    fn query_valid_paths(&mut self) -> Result<Message, Fault> {
        let store = self.server.store;
        let lock = self.source.truth("whether to keep paths")?;
        // Nothing is fetched from elsewhere here.
        self.source.truth("whether to substitute")?;
        let paths = self.source.paths("a path", store.dir())?;
        if lock && self.may_write {
            for path in &paths {
                store.add_temp_root(path)?;
            }
        }
        let mut reply = Message::new();
        reply.paths(store.dir(), &store.valid_of(&paths)?);
        Ok(reply)
    }

    fn query_path_infos(&mut self) -> Result<Message, Fault> {
        let store = self.server.store;
        let paths = self.source.paths("a path", store.dir())?;
        let mut reply = Message::new();
        for path in &paths {
            let Some(info) = store.query_path_info(path)? else { continue };
            reply
                .path(store.dir(), path)
                .maybe_path(store.dir(), info.deriver.as_ref())
                .paths(store.dir(), &info.references)
                // How much there is to download: nobody knows, and nobody asks.
                .number(info.nar_size)
                .number(info.nar_size)
                .string(info.nar_hash.to_string())
                .string(info.content_address.as_deref().unwrap_or_default())
                .strings(&info.signatures);
        }
        reply.string("");
        Ok(reply)
    }

    fn dump_store_path(&mut self) -> Result<(), Fault> {
        let store = self.server.store;
        let path = self.source.path("a path", store.dir())?;
        if !store.is_valid(&path)? {
            return Err(Fault::refused(format!("path '{}' is not valid", store.dir().display(&path))));
        }
        let (parent, name) = tree::place(&store.real_path(&path)).map_err(Fault::refused)?;
        self.channel.stream(|sink| nar::dump(parent.as_fd(), &name, sink).map(drop).map_err(Fault::refused))
    }

    fn import_paths(&mut self) -> Result<Message, Fault> {
        self.must_write("importing paths")?;
        if !self.server.trusted {
            // The stream says of itself what it holds, and nobody has signed it.
            return Err(Fault::refused("importing paths is not allowed because you are not in 'trusted-users'"));
        }
        self.server.store.import(self.source.stream(), &mut |_| {})?;
        Ok(done())
    }

    fn export_paths(&mut self) -> Result<(), Fault> {
        let store = self.server.store;
        self.source.number("an option that means nothing any more")?;
        let paths = self.source.paths("a path", store.dir())?;
        self.channel.stream(|sink| store.export(&paths, sink).map_err(Fault::from))
    }

    fn options(&mut self) -> Result<ClientSettings, Fault> {
        let source = &mut self.source;
        let mut client = ClientSettings {
            max_silent_time: Some(source.number("max-silent-time")?),
            timeout: Some(source.number("timeout")?),
            max_log_size: Some(source.number("max-build-log-size")?),
            ..ClientSettings::default()
        };
        source.number("how often to repeat")?;
        source.number("whether to enforce determinism")?;
        if self.minor >= 7 {
            client.keep_failed = Some(source.truth("keep-failed")?);
        }
        Ok(client)
    }

    fn build_paths(&mut self) -> Result<Message, Fault> {
        let dir = self.server.store.dir();
        let texts = self.source.texts("what is to be built")?;
        let client = self.options()?;
        self.must_write("building paths")?;
        let asked = texts.iter().map(|text| wanted(text, dir)).collect::<Result<Vec<_>, WireError>>()?;
        let reporter = progress::to_view(Lines(std::io::stderr()));
        let failed = match building::build_asked(self.server, &client, &asked, Mode::Normal, &reporter) {
            Ok(results) => building::failure(dir, &results).map(|(status, story)| (u64::from(status), story)),
            Err(Fault::Refused(why)) => Some((1, why)),
            Err(other) => return Err(other),
        };
        let mut reply = Message::new();
        match failed {
            None => reply.number(0),
            Some((status, story)) => reply.number(status).string(story),
        };
        Ok(reply)
    }

    fn query_closure(&mut self) -> Result<Message, Fault> {
        let store = self.server.store;
        let with_outputs = self.source.truth("whether outputs are wanted")?;
        let paths = self.source.paths("a path", store.dir())?;
        let mut closure = store.closure(&paths, Direction::Forward)?;
        if with_outputs {
            let mut outputs: BTreeSet<StorePath> = BTreeSet::new();
            for path in closure.iter().filter(|path| path.is_derivation()) {
                let derivation = stored::read(store, path).map_err(Fault::refused)?;
                outputs.extend(derivation.outputs.values().filter_map(|output| output.path().cloned()));
            }
            closure.extend(store.closure(&store.valid_of(&outputs)?, Direction::Forward)?);
        }
        let mut reply = Message::new();
        reply.paths(store.dir(), &closure);
        Ok(reply)
    }

    fn build_derivation(&mut self) -> Result<Message, Fault> {
        let dir = self.server.store.dir();
        let basic = basic_derivation(&mut self.source, dir)?;
        let client = self.options()?;
        self.must_write("building")?;
        let reporter = progress::to_view(Lines(std::io::stderr()));
        let result = building::build_basic(self.server, &client, basic, Mode::Normal, &reporter)?;
        let mut reply = Message::new();
        let form = ResultForm { processor_time: false, outputs: self.minor >= 6, plain_outputs: self.minor >= 8 };
        build_result(&mut reply, dir, &result, &building::story(dir, &result), form);
        Ok(reply)
    }

    fn add_to_store_nar(&mut self) -> Result<Message, Fault> {
        let dir = self.server.store.dir();
        let path = self.source.path("a path", dir)?;
        let info = unkeyed_info(&mut self.source, dir, path)?;
        self.must_write("importing paths")?;
        if info.nar_size == 0 {
            return Err(Fault::refused("the size of an archive must be said"));
        }
        let mut archive = self.source.stream().take(info.nar_size);
        adding::add_nar(self.server, &mut archive, info, false, &mut |_| {})?;
        std::io::copy(&mut archive, &mut std::io::sink()).map_err(Fault::refused)?;
        Ok(done())
    }
}

fn done() -> Message {
    let mut reply = Message::new();
    reply.number(1);
    reply
}
