//! Questions that change nothing.

use std::io::BufRead;

use super::worker::Session;
use super::{Fault, building};
use crate::build::stored;
use crate::hash::base32;
use crate::store_path::HASH_PART_LEN;
use crate::wire::{LONGEST_PATH, Message, wanted, write_unkeyed_info};

impl<R: BufRead> Session<'_, '_, R> {
    pub(super) fn is_valid_path(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        let mut reply = Message::new();
        reply.truth(self.server.store.is_valid(&path)?);
        Ok(reply)
    }

    pub(super) fn query_referrers(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        let store = self.server.store;
        let mut reply = Message::new();
        reply.paths(store.dir(), &store.query_referrers(&path)?);
        Ok(reply)
    }

    pub(super) fn query_valid_derivers(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        let store = self.server.store;
        let mut reply = Message::new();
        reply.paths(store.dir(), &store.valid_derivers(&path)?);
        Ok(reply)
    }

    pub(super) fn query_all_valid_paths(&mut self) -> Result<Message, Fault> {
        let store = self.server.store;
        let mut reply = Message::new();
        reply.paths(store.dir(), &store.all_valid_paths()?);
        Ok(reply)
    }

    pub(super) fn query_path_info(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        let store = self.server.store;
        let mut reply = Message::new();
        match store.query_path_info(&path)? {
            Some(info) => write_unkeyed_info(reply.number(1), store.dir(), &info),
            None => drop(reply.number(0)),
        }
        Ok(reply)
    }

    pub(super) fn query_valid_paths(&mut self) -> Result<Message, Fault> {
        let store = self.server.store;
        let paths = self.source.paths("a path", store.dir())?;
        // Nothing is fetched from elsewhere here, whether the client would have it or not.
        self.source.truth("whether to substitute")?;
        let mut reply = Message::new();
        reply.paths(store.dir(), &store.valid_of(&paths)?);
        Ok(reply)
    }

    pub(super) fn query_path_from_hash_part(&mut self) -> Result<Message, Fault> {
        let part = self.source.text("the hash part of a path", LONGEST_PATH)?;
        let store = self.server.store;
        let is_one = part.len() == HASH_PART_LEN && part.bytes().all(base32::is_digit);
        let found = if is_one { store.path_from_hash_part(&part)? } else { None };
        let mut reply = Message::new();
        reply.maybe_path(store.dir(), found.as_ref());
        Ok(reply)
    }

    /// The outputs of a derivation: as a map, as paths, or as names.
    pub(super) fn query_derivation_outputs(&mut self, form: OutputsForm) -> Result<Message, Fault> {
        let path = self.path()?;
        let store = self.server.store;
        if !store.is_valid(&path)? {
            return Err(Fault::refused(format!("path '{}' is not valid", store.dir().display(&path))));
        }
        let derivation = stored::read(store, &path).map_err(Fault::refused)?;
        let mut reply = Message::new();
        match form {
            OutputsForm::Map => {
                reply.number(derivation.outputs.len() as u64);
                for (name, output) in &derivation.outputs {
                    reply.string(name).maybe_path(store.dir(), output.path());
                }
            }
            OutputsForm::Paths => {
                let paths: Vec<_> = derivation.outputs.values().filter_map(|output| output.path()).collect();
                reply.paths(store.dir(), paths);
            }
            OutputsForm::Names => drop(reply.strings(derivation.outputs.keys())),
        }
        Ok(reply)
    }

    pub(super) fn query_missing(&mut self) -> Result<Message, Fault> {
        let store = self.server.store;
        let texts = self.source.texts("what is to be built")?;
        let asked = texts.iter().map(|text| wanted(text, store.dir())).collect::<Result<Vec<_>, _>>()?;
        let (to_build, unknown) = building::missing(self.server, &asked)?;
        let mut reply = Message::new();
        // Nothing is ever substituted: no paths, no bytes to fetch, no bytes to unpack.
        reply.paths(store.dir(), &to_build).number(0).paths(store.dir(), &unknown).number(0).number(0);
        Ok(reply)
    }

    /// What a substituter has: this server asks none.
    pub(super) fn query_substitutable_paths(&mut self) -> Result<Message, Fault> {
        self.source.paths("a path", self.server.store.dir())?;
        Ok(none())
    }

    pub(super) fn query_substitutable_path_info(&mut self) -> Result<Message, Fault> {
        self.path()?;
        Ok(none())
    }

    pub(super) fn query_substitutable_path_infos(&mut self) -> Result<Message, Fault> {
        let dir = self.server.store.dir();
        self.source.list("a path", |source| {
            source.path("a path", dir)?;
            source.text("a content address", LONGEST_PATH)
        })?;
        Ok(none())
    }

    /// What a content-addressed derivation was built to: none is built here.
    pub(super) fn query_realisation(&mut self) -> Result<Message, Fault> {
        self.source.text("the name of an output", LONGEST_PATH)?;
        Ok(none())
    }
}

/// An empty list, or no.
fn none() -> Message {
    let mut reply = Message::new();
    reply.number(0);
    reply
}

/// How the outputs of a derivation are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputsForm {
    Map,
    Paths,
    Names,
}
