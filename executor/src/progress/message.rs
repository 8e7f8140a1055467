//! Messages of builders in their logs: lines that begin with `@nix ` and go on in JSON, as stdenv's `setPhase` writes them.
//!
//! A builder is not trusted: of all that such a line can say (source: `handleJSONLogMessage` in `src/libutil/logging.cc`), only
//! the name of a phase and a text to show are taken. The line's length is bounded by the splitter, the depth by serde_json.

use serde::Deserialize;

/// Longest name of a phase, in characters.
const MAX_PHASE_LEN: usize = 64;

/// What a builder's message says.
#[derive(Debug, PartialEq, Eq)]
pub enum BuilderMessage {
    /// It has come to this phase.
    Phase(String),
    /// A text to show like a line.
    Text(String),
    /// Something that is not a builder's to say.
    Ignored,
}

#[derive(Deserialize)]
struct Fields {
    action: String,
    #[serde(default)]
    phase: Option<String>,
    #[serde(default)]
    msg: Option<String>,
}

/// The message in `line`, or nothing if it is a line like any other.
pub fn parse(line: &[u8]) -> Option<BuilderMessage> {
    let fields: Fields = serde_json::from_slice(line.strip_prefix(b"@nix ")?).ok()?;
    Some(match (fields.action.as_str(), fields.phase, fields.msg) {
        ("setPhase", Some(phase), _) => {
            BuilderMessage::Phase(super::plain(&phase).chars().take(MAX_PHASE_LEN).collect())
        }
        ("msg", _, Some(text)) => BuilderMessage::Text(text),
        _ => BuilderMessage::Ignored,
    })
}
