//! What a probe is.

use anchorhold_probe::verdict::Finding;
pub use anchorhold_probe::vocabulary::{Control, Order, Severity};
use anchorhold_probe::world::World;
use serde::Serialize;

/// One attempt: what it is called, what it tries, and the function that tries it.
#[derive(Clone, Copy, Serialize)]
pub struct Probe {
    /// Layer, object and attempt, for example `fs.canary.read`. Stable: reports are compared by it.
    pub id: &'static str,
    /// One line for tables.
    pub title: &'static str,
    /// How bad it is when it reaches.
    pub severity: Severity,
    /// CVE numbers, or the document that tells of it. May be empty.
    pub reference: &'static str,
    /// What is tried, in one or two sentences.
    pub tries: &'static str,
    /// Which answers are safe.
    pub safe: &'static str,
    /// What it means for the host when it reaches: the story for `--explain`.
    pub meaning: &'static str,
    /// Weakenings under each of which it must reach. Empty for facts.
    pub controls: &'static [Control],
    /// When it runs.
    pub order: Order,
    /// That it proves something only as (mapped) root.
    pub root: bool,
    /// The attempt itself, in a process of its own that is ended after [`crate::child::LIMIT`].
    #[serde(skip)]
    pub run: fn(&World) -> Finding,
}

impl Probe {
    /// The first word of the id: the table that the probe belongs to.
    #[cfg(test)]
    pub fn layer(&self) -> &'static str {
        self.id.split_once('.').map_or(self.id, |(layer, _)| layer)
    }

    /// A fact: compared between two runs, never counted.
    pub const fn fact(
        id: &'static str,
        title: &'static str,
        tries: &'static str,
        meaning: &'static str,
        run: fn(&World) -> Finding,
    ) -> Self {
        Self {
            id,
            title,
            severity: Severity::Fact,
            reference: "",
            tries,
            safe: "any: it is compared",
            meaning,
            controls: &[],
            order: Order::Any,
            root: false,
            run,
        }
    }
}
