//! The picture of a run: which builds run, what waits for them, and how far everything is. Pure: it draws into lines.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

use super::{Build, BuildId, Ending, plain, short};

/// Deeper levels are drawn like this one: a chain of a thousand builds must not push the names off the screen.
const MAX_INDENT: usize = 8;

#[derive(Debug)]
struct Node {
    name: String,
    needs: Vec<BuildId>,
    /// Since when it runs.
    since: Option<Instant>,
    phase: String,
    last_line: String,
}

/// What is known of all builds that have not ended, and the count of those that have.
#[derive(Debug)]
pub struct Tree {
    nodes: BTreeMap<BuildId, Node>,
    begun: Instant,
    done: usize,
    failed: usize,
    /// Not built because of others.
    left_out: usize,
    colours: bool,
}

impl Tree {
    pub fn new(begun: Instant, colours: bool) -> Self {
        Self { nodes: BTreeMap::new(), begun, done: 0, failed: 0, left_out: 0, colours }
    }

    pub fn know(&mut self, build: &Build) {
        self.nodes.entry(build.id).or_insert_with(|| Node {
            name: plain(&build.name),
            needs: build.needs.clone(),
            since: None,
            phase: String::new(),
            last_line: String::new(),
        });
    }

    pub fn start(&mut self, build: &Build, now: Instant) {
        self.know(build);
        if let Some(node) = self.nodes.get_mut(&build.id) {
            node.since = Some(now);
        }
    }

    pub fn phase(&mut self, id: BuildId, phase: &str) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.phase = plain(phase);
        }
    }

    /// `line` has passed the filter.
    pub fn line(&mut self, id: BuildId, line: String) {
        if let Some(node) = self.nodes.get_mut(&id)
            && !line.trim().is_empty()
        {
            // A tab is as wide as it likes.
            node.last_line = line.replace('\t', " ");
        }
    }

    /// Gives the build's name.
    pub fn finish(&mut self, id: BuildId, ending: &Ending) -> Option<String> {
        match ending {
            Ending::Done => self.done += 1,
            Ending::Failed(_) => self.failed += 1,
            Ending::DependencyFailed | Ending::Cancelled => self.left_out += 1,
        }
        self.nodes.remove(&id).map(|node| node.name)
    }

    pub fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The picture in at most `height` lines, at least one; they may be too long for the terminal.
    pub fn draw(&self, height: usize, now: Instant) -> Vec<String> {
        let running: Vec<BuildId> =
            self.nodes.iter().filter(|(_, node)| node.since.is_some()).map(|(id, _)| *id).collect();
        let room = height.saturating_sub(1);
        let rows = self.rows(&running);
        let mut lines: Vec<String> = if rows.len() <= room {
            rows.iter().map(|(id, depth)| self.row(*id, *depth, now)).collect()
        } else if running.len() <= room {
            running.iter().map(|id| self.row(*id, 0, now)).collect()
        } else {
            // Those that have run longest are what is waited for.
            let mut oldest = running.clone();
            oldest.sort_by_key(|id| self.nodes.get(id).and_then(|node| node.since));
            let shown = room.saturating_sub(1);
            let mut lines: Vec<_> = oldest.iter().take(shown).map(|id| self.row(*id, 0, now)).collect();
            if room > 0 {
                lines.push(format!("… and {} more", running.len() - shown));
            }
            lines
        };
        lines.push(self.summary(running.len(), now));
        lines
    }

    fn summary(&self, running: usize, now: Instant) -> String {
        let mut parts = vec![
            format!("{running} running"),
            format!("{} waiting", self.nodes.len() - running),
            format!("{} done", self.done),
        ];
        if self.failed > 0 {
            parts.push(self.paint("31", &format!("{} failed", self.failed)));
        }
        if self.left_out > 0 {
            parts.push(format!("{} left out", self.left_out));
        }
        format!("[{}] {}", parts.join(", "), short(now.saturating_duration_since(self.begun)))
    }

    fn row(&self, id: BuildId, depth: usize, now: Instant) -> String {
        let Some(node) = self.nodes.get(&id) else { return String::new() };
        let mut row = "  ".repeat(depth.min(MAX_INDENT));
        let Some(since) = node.since else {
            row.push_str(&self.paint("2", &format!("⏸ {}", node.name)));
            return row;
        };
        row.push_str(&self.paint("33", "⏵"));
        row.push_str(&format!(" {} {}", self.paint("1", &node.name), short(now.saturating_duration_since(since))));
        if !node.phase.is_empty() {
            row.push_str(&format!(" {}", self.paint("36", &node.phase)));
        }
        if !node.last_line.is_empty() {
            row.push_str(&format!(" {}", self.paint("2", &node.last_line)));
        }
        row
    }

    /// The running builds, each below what waits for it, each once.
    fn rows(&self, running: &[BuildId]) -> Vec<(BuildId, usize)> {
        let mut dependants: BTreeMap<BuildId, Vec<BuildId>> = BTreeMap::new();
        for (id, node) in &self.nodes {
            for need in &node.needs {
                dependants.entry(*need).or_default().push(*id);
            }
        }
        let above = |id: &BuildId| dependants.get(id).map(Vec::as_slice).unwrap_or_default();
        // What runs, and all that waits for it.
        let mut active: BTreeSet<BuildId> = BTreeSet::new();
        let mut open = running.to_vec();
        while let Some(id) = open.pop() {
            if active.insert(id) {
                open.extend(above(&id));
            }
        }
        let mut rows = Vec::new();
        let mut drawn = HashSet::new();
        let roots = active.iter().filter(|id| above(id).is_empty());
        // With an explicit stack: a chain may be longer than a thread's own.
        let mut stack: Vec<(BuildId, usize)> = roots.rev().map(|id| (*id, 0)).collect();
        while let Some((id, depth)) = stack.pop() {
            if !drawn.insert(id) {
                continue;
            }
            rows.push((id, depth));
            if let Some(node) = self.nodes.get(&id) {
                let below = node.needs.iter().rev().filter(|need| active.contains(need));
                stack.extend(below.map(|need| (*need, depth + 1)));
            }
        }
        rows
    }
}
