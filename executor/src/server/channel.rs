//! The way to the client: replies, and in the worker protocol the messages before them.

use std::io::{BufWriter, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::wire::{Message, WireError};

const NEXT: u64 = 0x6f6c_6d67;
const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;
const START_ACTIVITY: u64 = 0x5354_5254;
const STOP_ACTIVITY: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;

/// Bytes that are gathered before they are sent.
const BUFFER: usize = 64 << 10;

/// A value that an activity or a result tells of.
pub(crate) enum Field<'a> {
    Number(u64),
    Text(&'a str),
}

pub(crate) struct Channel(Mutex<Inner>);

struct Inner {
    sink: BufWriter<Box<dyn Write + Send>>,
    next_activity: u64,
    broken: bool,
}

impl Channel {
    pub fn new(sink: impl Write + Send + 'static) -> Self {
        let sink = BufWriter::with_capacity(BUFFER, Box::new(sink) as Box<dyn Write + Send>);
        // As in Nix: the numbers of two processes whose messages meet in one stream differ.
        Self(Mutex::new(Inner { sink, next_activity: u64::from(std::process::id()) << 32, broken: false }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `message` and all before it.
    pub fn send(&self, message: &Message) -> Result<(), WireError> {
        let mut inner = self.inner();
        inner.sink.write_all(&message.0).and_then(|()| inner.sink.flush()).map_err(WireError::Write)
    }

    /// Gives `write` the way for something that is too long for a message; then all is sent.
    pub fn stream<T, E: From<WireError>>(&self, write: impl FnOnce(&mut dyn Write) -> Result<T, E>) -> Result<T, E> {
        let mut inner = self.inner();
        let done = write(&mut inner.sink)?;
        inner.sink.flush().map_err(WireError::Write)?;
        Ok(done)
    }

    /// The end of the messages of a request, and its reply.
    pub fn reply(&self, reply: &Message) -> Result<(), WireError> {
        let mut inner = self.inner();
        let mut last = Message::new();
        last.number(LAST);
        inner
            .sink
            .write_all(&last.0)
            .and_then(|()| inner.sink.write_all(&reply.0))
            .and_then(|()| inner.sink.flush())
            .map_err(WireError::Write)
    }

    /// The end of the messages of a request that was not done.
    pub fn fail(&self, text: &str) -> Result<(), WireError> {
        let mut message = Message::new();
        // The type, a level, a name, the text, no place in a file, and no trace.
        message.number(ERROR).string("Error").number(0).string("Error").string(text).number(0).number(0);
        self.send(&message)
    }

    /// A line for a person.
    pub fn note(&self, text: &str) {
        let mut message = Message::new();
        message.number(NEXT).string(format!("{text}\n"));
        self.tell(&message);
    }

    /// Something begins; gives its number.
    pub fn start(&self, kind: u64, level: u64, text: &str, fields: &[Field<'_>], parent: u64) -> u64 {
        let id = {
            let mut inner = self.inner();
            inner.next_activity += 1;
            inner.next_activity
        };
        let mut message = Message::new();
        message.number(START_ACTIVITY).number(id).number(level).number(kind).string(text);
        write_fields(&mut message, fields);
        message.number(parent);
        self.tell(&message);
        id
    }

    /// It ends.
    pub fn stop(&self, id: u64) {
        let mut message = Message::new();
        message.number(STOP_ACTIVITY).number(id);
        self.tell(&message);
    }

    /// Something is known of it.
    pub fn result(&self, id: u64, kind: u64, fields: &[Field<'_>]) {
        let mut message = Message::new();
        message.number(RESULT).number(id).number(kind);
        write_fields(&mut message, fields);
        self.tell(&message);
    }

    /// Sends what nobody waits for. That it cannot be sent ends nothing here: whoever watches the connection sees it too, and so
    /// does the reply.
    fn tell(&self, message: &Message) {
        let mut inner = self.inner();
        if !inner.broken {
            inner.broken = inner.sink.write_all(&message.0).and_then(|()| inner.sink.flush()).is_err();
        }
    }
}

fn write_fields(message: &mut Message, fields: &[Field<'_>]) {
    message.number(fields.len() as u64);
    for field in fields {
        match field {
            Field::Number(number) => message.number(0).number(*number),
            Field::Text(text) => message.number(1).string(text),
        };
    }
}
