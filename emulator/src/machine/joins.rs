//! Where lanes of a warp that went apart meet again.

use super::warp::{Join, Split, Wait, Warp};
use crate::program::NOWHERE;

impl Join {
    /// The lanes that have arrived go on together.
    fn depart(&mut self) -> Split {
        let split = Split {
            pc: self.pc,
            mask: self.arrived,
            join: self.parent,
            stage: 0,
            wait: Wait::None,
        };
        self.arrived = 0;
        split
    }
}

impl Warp {
    /// Lanes that wait for each other at one instruction run it together once all are there.
    pub(super) fn gather(&mut self) -> bool {
        for i in 0..self.splits.len() {
            let Wait::Lanes { members } = self.splits[i].wait else {
                continue;
            };
            let pc = self.splits[i].pc;
            let here = |s: &Split| s.pc == pc && matches!(s.wait, Wait::Lanes { members: m } if m == members);
            let there = self.splits.iter().filter(|s| here(s)).fold(0, |m, s| m | s.mask);
            if members & self.live & !there == 0 {
                // They become one split. Lanes from different joins leave the inner ones.
                let mut merged = self.splits[i].clone();
                merged.wait = Wait::None;
                merged.mask = there;
                let others: Vec<u32> = self
                    .splits
                    .iter()
                    .filter(|s| here(s) && s.join != merged.join)
                    .map(|s| s.join)
                    .collect();
                self.splits.retain(|s| !here(s));
                for join in others {
                    merged.join = self.common(merged.join, join, there);
                }
                self.splits.push(merged);
                return true;
            }
        }
        false
    }

    /// The innermost join that two chains share; `mask` leaves all joins inside of it.
    fn common(&mut self, a: u32, b: u32, mask: u32) -> u32 {
        let mut chain = Vec::new();
        let mut at = a;
        while at != NOWHERE {
            chain.push(at);
            at = self.joins[at as usize].parent;
        }
        let mut shared = b;
        while shared != NOWHERE && !chain.contains(&shared) {
            shared = self.joins[shared as usize].parent;
        }
        for start in [a, b] {
            let mut at = start;
            while at != shared && at != NOWHERE {
                self.joins[at as usize].coming &= !mask;
                let parent = self.joins[at as usize].parent;
                self.release(at);
                at = parent;
            }
        }
        shared
    }

    /// Lets the lanes of a complete join go on.
    fn release(&mut self, join: u32) {
        let j = &mut self.joins[join as usize];
        if j.coming == 0 && j.arrived != 0 {
            self.splits.push(j.depart());
        }
        if self.joins[join as usize].coming == 0 {
            self.free.push(join);
        }
    }

    /// Lets lanes that wait in some join go on without the others; whether there was one.
    pub(crate) fn break_join(&mut self) -> bool {
        for i in 0..self.joins.len() {
            let j = &mut self.joins[i];
            if j.arrived != 0 {
                self.splits.push(j.depart());
                return true;
            }
        }
        false
    }

    /// Lanes leave the warp: no join waits for them.
    pub(super) fn exit(&mut self, mask: u32, mut join: u32) {
        self.live &= !mask;
        while join != NOWHERE {
            self.joins[join as usize].coming &= !mask;
            let parent = self.joins[join as usize].parent;
            self.release(join);
            join = parent;
        }
    }

    pub(super) fn new_join(&mut self, pc: u32, mask: u32, parent: u32) -> u32 {
        let join = Join {
            pc,
            coming: mask,
            arrived: 0,
            parent,
        };
        if let Some(place) = self.free.pop() {
            self.joins[place as usize] = join;
            return place;
        }
        self.joins.push(join);
        self.joins.len() as u32 - 1
    }
}
