//! Writes a BPF program from its end to its beginning, so that code which is there already is jumped to, not repeated.
//!
//! Jumps in classic BPF only go forward: whoever writes backwards knows every target. Sharing matters because most of
//! what loading a filter costs is the kernel's own compiler, which costs by the instruction.

use seccompiler::sock_filter;
use std::collections::HashMap;

/// `BPF_JMP | BPF_JA` and `BPF_RET | BPF_K`, linux/bpf_common.h.
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;

/// A place in the program, counted from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(usize);

/// A program that grows at its beginning.
#[derive(Default)]
pub struct Assembler {
    /// Last instruction first.
    steps: Vec<sock_filter>,
    /// Blocks that were written, and where.
    blocks: Vec<(Vec<sock_filter>, Place)>,
    /// For a target out of reach of conditional jumps: the latest place that leads there.
    nearest: HashMap<Place, Place>,
}

impl Assembler {
    /// Puts an instruction in front of everything. Without a jump it goes on to what was the beginning until now.
    pub fn push(&mut self, step: sock_filter) -> Place {
        self.steps.push(step);
        Place(self.steps.len())
    }

    /// The place of code that ends by itself. Written only if it is not there yet.
    pub fn block(&mut self, code: Vec<sock_filter>) -> Place {
        if let Some((_, place)) = self.blocks.iter().find(|(written, _)| *written == code) {
            return *place;
        }
        self.steps.extend(code.iter().rev().cloned());
        let place = Place(self.steps.len());
        self.blocks.push((code, place));
        place
    }

    /// Puts a conditional jump to two places in front of everything.
    pub fn branch(&mut self, code: u16, k: u32, yes: Place, no: Place) -> Place {
        let (yes, no) = (self.within_reach(yes), self.within_reach(no));
        let offset = |place| u8::try_from(self.distance(place)).expect("both were brought within reach");
        let step = sock_filter { code, jt: offset(yes), jf: offset(no), k };
        self.push(step)
    }

    /// The program, first instruction first.
    pub fn finish(self) -> Vec<sock_filter> {
        self.steps.into_iter().rev().collect()
    }

    /// Instructions between the next one to be put in front and a place.
    fn distance(&self, place: Place) -> usize {
        self.steps.len() - place.0
    }

    /// A place that leads to `target` and that a conditional jump can reach, even after one more step is put in between:
    /// the way to the branch's other target.
    fn within_reach(&mut self, target: Place) -> Place {
        let nearest = self.nearest.get(&target).copied().unwrap_or(target);
        if self.distance(nearest) < usize::from(u8::MAX) {
            return nearest;
        }
        // A return is as short as the jump to it.
        let step = match &self.steps[target.0 - 1] {
            step if step.code == RETURN => step.clone(),
            _ => sock_filter {
                code: JUMP,
                jt: 0,
                jf: 0,
                k: u32::try_from(self.distance(target)).expect("a program is shorter than 2^32"),
            },
        };
        let place = self.push(step);
        self.nearest.insert(target, place);
        place
    }
}
