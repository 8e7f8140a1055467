//! Roots, the collector, and what keeps a store in order.

use std::io::BufRead;
use std::path::PathBuf;

use super::worker::Session;
use super::{Fault, adding, building};
use crate::build::log::LogWriter;
use crate::store::Registration;
use crate::wire::{LONGEST_PATH, Message};

impl<R: BufRead> Session<'_, '_, R> {
    pub(super) fn add_temp_root(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        self.server.store.add_temp_root(&path)?;
        Ok(done())
    }

    pub(super) fn ensure_path(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        let store = self.server.store;
        match store.keep_if_valid(&path)? {
            Some(_) => Ok(done()),
            None => Err(Fault::refused(format!(
                "path '{}' is not valid here, and this server fetches nothing from elsewhere",
                store.dir().display(&path)
            ))),
        }
    }

    pub(super) fn add_indirect_root(&mut self) -> Result<Message, Fault> {
        let link = self.source.text("a link", LONGEST_PATH)?;
        self.server.store.add_link_to_root(&absolute(&link)?)?;
        Ok(done())
    }

    pub(super) fn add_perm_root(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        let link = self.source.text("a link", LONGEST_PATH)?;
        self.must_be_trusted("you are not privileged to create perm roots")?;
        self.server.store.add_indirect_root(&path, &absolute(&link)?)?;
        let mut reply = Message::new();
        reply.string(link);
        Ok(reply)
    }

    pub(super) fn find_roots(&mut self) -> Result<Message, Fault> {
        let store = self.server.store;
        let roots = self.server.watch.during(|| store.find_roots(true))?;
        let mut reply = Message::new();
        reply.number(roots.paths.values().map(|by| by.len() as u64).sum());
        for (path, by) in &roots.paths {
            for root in by {
                // Where others keep their links is not for everybody.
                reply.string(if self.server.trusted { root } else { "{censored}" }).path(store.dir(), path);
            }
        }
        Ok(reply)
    }

    pub(super) fn collect_garbage(&mut self) -> Result<Message, Fault> {
        let store = self.server.store;
        let action = self.source.number("what to collect")?;
        let only = self.source.paths("a path to delete", store.dir())?;
        let ignore_liveness = self.source.truth("whether to ignore roots")?;
        let max_freed = self.source.number("how much to free")?;
        for _ in 0..3 {
            self.source.number("an option that means nothing any more")?;
        }
        if ignore_liveness {
            return Err(Fault::refused("you are not allowed to ignore liveness"));
        }
        let max_freed = (max_freed < i64::MAX as u64).then_some(max_freed);
        let (policy, channel) = (self.server.collector, self.channel);
        let mut notice = |line: &str| channel.note(line);
        let (paths, freed) = self.server.watch.during(|| match action {
            0 => Ok((store.live_and_dead(policy)?.0.into_iter().collect(), 0)),
            1 => Ok((store.live_and_dead(policy)?.1.into_iter().collect(), 0)),
            2 => {
                let report = store.collect_garbage(policy, max_freed, &mut notice)?;
                report.warnings.iter().for_each(|line| channel.note(line));
                Ok((report.deleted, report.bytes_freed))
            }
            3 => {
                let report = store.delete_paths(&only, policy, &mut notice)?;
                report.warnings.iter().for_each(|line| channel.note(line));
                Ok((report.deleted, report.bytes_freed))
            }
            other => Err(Fault::refused(format!("the collector has no action {other}"))),
        })?;
        let mut reply = Message::new();
        reply.paths(store.dir(), &paths).number(freed).number(0);
        Ok(reply)
    }

    pub(super) fn verify_store(&mut self) -> Result<Message, Fault> {
        let contents = self.source.truth("whether to check contents")?;
        let repair = self.source.truth("whether to repair")?;
        if repair {
            self.must_be_trusted("you are not privileged to repair paths")?;
        }
        let (store, channel) = (self.server.store, self.channel);
        let report = self.server.watch.during(|| store.verify(contents, repair, &mut |_| {}))?;
        let name = |path| store.dir().display(path);
        for path in &report.missing {
            channel.note(&format!("path '{}' disappeared, but it is still registered", name(path)));
        }
        for (path, wanted, found) in &report.changed {
            channel.note(&format!("path '{}' was modified! expected hash '{wanted}', got '{found}'", name(path)));
        }
        for (path, why) in &report.unreadable {
            channel.note(&format!("path '{}' cannot be read: {why}", name(path)));
        }
        report.bad_links.iter().for_each(|link| channel.note(&format!("the link '{link}' is damaged")));
        report.repaired.iter().for_each(|line| channel.note(line));
        let mut reply = Message::new();
        reply.truth(report.left > 0);
        Ok(reply)
    }

    pub(super) fn optimise_store(&mut self) -> Result<Message, Fault> {
        let (store, channel) = (self.server.store, self.channel);
        let report = self.server.watch.during(|| store.optimise(&mut |_| {}))?;
        report.warnings.iter().for_each(|line| channel.note(line));
        channel.note(&format!("{} bytes freed by hard-linking {} files", report.bytes_saved, report.linked));
        Ok(done())
    }

    pub(super) fn add_signatures(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        let signatures = self.source.texts("a signature")?;
        let store = self.server.store;
        let mut info = store.path_info(&path)?;
        if let Some(bad) = signatures.iter().find(|text| text.contains(char::is_whitespace) || !text.contains(':')) {
            return Err(Fault::refused(format!("‘{}’ is no signature", bad.escape_debug())));
        }
        if !self.server.trusted {
            // Each alone: what one good signature carries, it must not carry for others.
            for text in &signatures {
                let mut alone = info.clone();
                alone.signatures = [text.clone()].into();
                if !adding::is_signed(self.server, &alone) {
                    return Err(Fault::refused(
                        "a signature that is not by a trusted key is taken from trusted users only",
                    ));
                }
            }
        }
        let before = info.signatures.len();
        info.signatures.extend(signatures);
        if info.signatures.len() > before {
            store.register(&[Registration::from(info)])?;
        }
        Ok(done())
    }

    pub(super) fn add_build_log(&mut self) -> Result<Message, Fault> {
        let path = self.path()?;
        let trusted = self.server.trusted;
        let log_dir = self.server.store.log_dir();
        self.with_frames(|framed| {
            if !trusted {
                return Err(Fault::refused("you are not privileged to add logs"));
            }
            let mut log = LogWriter::create(&log_dir, &path, None).map_err(Fault::refused)?;
            loop {
                let bytes = framed.fill_buf().map_err(Fault::refused)?;
                let count = bytes.len();
                if count == 0 {
                    break;
                }
                log.write(bytes).map_err(Fault::refused)?;
                framed.consume(count);
            }
            log.finish().map_err(Fault::refused)?;
            Ok(())
        })?;
        Ok(done())
    }

    pub(super) fn register_drv_output(&mut self) -> Result<Message, Fault> {
        self.source.text("a realisation", crate::wire::LONGEST_STRING)?;
        Err(Fault::refused("content-addressed derivations are not built here, and what they were built to is not kept"))
    }

    /// What is asked for many paths before something is done with them; its result matters to nobody.
    pub(super) fn repair_refused(&self, repair: bool) -> Result<(), Fault> {
        if repair { Err(building::no_repair(self.server.trusted)) } else { Ok(()) }
    }
}

pub(super) fn done() -> Message {
    let mut reply = Message::new();
    reply.number(1);
    reply
}

fn absolute(text: &str) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(text);
    if path.is_absolute() && !text.contains('\0') {
        return Ok(path);
    }
    Err(Fault::refused(format!("‘{}’ is no absolute path", text.escape_debug())))
}
