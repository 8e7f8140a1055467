//! Messages of QMP, read from bytes.

use serde_json::{Map, Value};

/// The longest message. QEMU's longest answer to what we ask is some KiB.
const MAX_LENGTH: usize = 4 << 20;

/// One message of QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first one.
    Greeting(Greeting),
    /// A command was done.
    Answer {
        /// The id that the command had.
        id: Option<u64>,
        /// What it answers.
        value: Value,
    },
    /// A command was not done.
    Refusal {
        /// The id that the command had; none when not even that could be read.
        id: Option<u64>,
        /// QEMU's class of errors.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// Something happened.
    Event(Event),
}

/// QEMU's greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The version and the packager's own words for it: what makes two builds of QEMU one.
    pub build: String,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name, in capitals.
    pub name: String,
    /// What is said about it.
    pub data: Map<String, Value>,
}

impl Event {
    /// A text of its data.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.data.get(key).and_then(Value::as_str)
    }

    /// For people: the name, and what is said, on one line.
    pub fn line(&self) -> String {
        if self.data.is_empty() {
            return self.name.clone();
        }
        let mut line = format!("{} {}", self.name, Value::Object(self.data.clone()));
        if let Some((end, _)) = line.char_indices().nth(300) {
            line.truncate(end);
            line.push('…');
        }
        line
    }
}

/// Why bytes are no message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Longer than any message of QEMU's.
    #[error("a message of more than {MAX_LENGTH} bytes")]
    TooLong,
    /// Not JSON.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// JSON, and no message of QMP.
    #[error("no message: {0}")]
    NotQmp(&'static str),
}

/// Cuts a stream into messages.
#[derive(Debug, Default)]
pub struct Splitter {
    begun: Vec<u8>,
}

impl Splitter {
    /// Takes bytes, and puts the messages that they complete to `messages`.
    ///
    /// # Errors
    /// See [`ParseError`]. What came before is in `messages`.
    pub fn feed(&mut self, mut bytes: &[u8], messages: &mut Vec<Message>) -> Result<(), ParseError> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            if self.begun.len() + end > MAX_LENGTH {
                return Err(ParseError::TooLong);
            }
            self.begun.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.begun);
            if !line.trim_ascii().is_empty() {
                messages.push(parse(&line)?);
            }
        }
        if self.begun.len() + bytes.len() > MAX_LENGTH {
            return Err(ParseError::TooLong);
        }
        self.begun.extend_from_slice(bytes);
        Ok(())
    }
}

/// One line. The depth is bounded by the JSON reader, at 128.
fn parse(line: &[u8]) -> Result<Message, ParseError> {
    let value: Value = serde_json::from_slice(line).map_err(|error| ParseError::NotJson(error.to_string()))?;
    let Value::Object(mut members) = value else {
        return Err(ParseError::NotQmp("it is no object"));
    };
    let id = members.get("id").and_then(Value::as_u64);
    if let Some(Value::Object(greeting)) = members.get("QMP") {
        return Ok(Message::Greeting(Greeting { build: build(greeting)? }));
    }
    if let Some(value) = members.remove("return") {
        return Ok(Message::Answer { id, value });
    }
    if let Some(Value::Object(error)) = members.get("error") {
        let text = |key| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        return Ok(Message::Refusal { id, class: text("class"), description: text("desc") });
    }
    if let Some(Value::String(name)) = members.remove("event") {
        let data = match members.remove("data") {
            Some(Value::Object(data)) => data,
            None => Map::new(),
            Some(_) => return Err(ParseError::NotQmp("an event whose data is no object")),
        };
        return Ok(Message::Event(Event { name, data }));
    }
    Err(ParseError::NotQmp("it is neither a greeting, nor an answer, nor an event"))
}

fn build(greeting: &Map<String, Value>) -> Result<String, ParseError> {
    let version = greeting.get("version").ok_or(ParseError::NotQmp("a greeting without a version"))?;
    let numbers = version.get("qemu").ok_or(ParseError::NotQmp("a greeting without a version"))?;
    let number = |key| numbers.get(key).and_then(Value::as_u64).ok_or(ParseError::NotQmp("a version without numbers"));
    let package = version.get("package").and_then(Value::as_str).unwrap_or_default().trim();
    let mut build = format!("{}.{}.{}", number("major")?, number("minor")?, number("micro")?);
    if !package.is_empty() {
        build.push(' ');
        build.push_str(package);
    }
    Ok(build)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn messages(bytes: &[u8]) -> Result<Vec<Message>, ParseError> {
        let mut messages = Vec::new();
        Splitter::default().feed(bytes, &mut messages)?;
        Ok(messages)
    }

    #[test]
    fn the_messages_of_a_real_qemu() {
        let said = concat!(
            r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7"}, "capabilities": ["oob"]}}"#,
            "\r\n",
            r#"{"return": {}, "id": 1}"#,
            "\r\n",
            r#"{"id": 2, "error": {"class": "GenericError", "desc": "no"}}"#,
            "\r\n",
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
            "\r\n",
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#,
            "\r\n",
        );
        let event = |name: &str, data: Value| {
            Message::Event(Event { name: name.into(), data: data.as_object().unwrap().clone() })
        };
        assert_eq!(
            messages(said.as_bytes()).unwrap(),
            [
                Message::Greeting(Greeting { build: "7.2.22 Debian 1:7.2+dfsg-7".into() }),
                Message::Answer { id: Some(1), value: json!({}) },
                Message::Refusal { id: Some(2), class: "GenericError".into(), description: "no".into() },
                event("SHUTDOWN", json!({ "guest": true, "reason": "guest-shutdown" })),
                event("STOP", json!({})),
            ]
        );
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for bytes in ["[]\n", "{}\n", "nonsense\n", "{\"event\":\"A\",\"data\":1}\n", "{\"QMP\":{}}\n", "\u{1}\n"] {
            assert!(messages(bytes.as_bytes()).is_err(), "{bytes:?}");
        }
        let deep = format!("{}\n", "{\"return\":".repeat(100_000));
        assert!(matches!(messages(deep.as_bytes()), Err(ParseError::NotJson(_))));
        assert_eq!(messages(&vec![b' '; MAX_LENGTH + 1]), Err(ParseError::TooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = messages(&bytes);
        }

        #[test]
        fn it_does_not_matter_where_a_stream_is_cut(
            names in proptest::collection::vec("[A-Z_]{1,10}", 1..8),
            cuts in proptest::collection::vec(1_usize..40, 1..40),
        ) {
            let said: String = names.iter().map(|name| format!("{}\r\n", json!({ "event": name }))).collect();
            let mut splitter = Splitter::default();
            let (mut found, mut rest) = (Vec::new(), said.as_bytes());
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                splitter.feed(piece, &mut found).unwrap();
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, messages(said.as_bytes()).unwrap());
        }
    }
}
