//! Who makes an access, and what one access may find: bytes never written, conflicts with earlier accesses.

use super::super::Clocks;
use super::super::shadow::{Record, STRONG, Shadow, Word};
use crate::Lanes;
use crate::exec::memory::AccessKind;
use crate::fault::{FaultKind, Stop};
use crate::machine::launch::LaunchState;

/// Who makes an access, and what is ordered before it.
pub(super) struct Actor<'c> {
    pub(super) cluster: u32,
    pub(super) warp: u16,
    pub(super) lane: u8,
    pub(super) pc: u32,
    pub(super) clock: u32,
    pub(super) clocks: &'c Clocks,
    /// Actors from here on are asynchronous operations.
    pub(super) operations: u16,
    /// The access goes through the asynchronous proxy.
    pub(super) proxy: bool,
}

fn found(kind: FaultKind, message: String, lane: u8) -> Box<Stop> {
    Stop::new(kind, message).lane(u32::from(lane))
}

impl Actor<'_> {
    /// Whether an earlier access is ordered before this one.
    fn after(&self, record: &Record) -> bool {
        if record.cluster == self.cluster {
            record.warp == self.warp && self.warp < self.operations || self.clocks.ordered(record.warp, record.clock)
        } else {
            self.clocks.clusters.binary_search(&record.cluster).is_ok()
        }
    }

    /// Whether the checks ask for conflicts with an earlier access.
    fn watches(&self, record: &Record, launch: &LaunchState<'_>) -> bool {
        let operation = self.warp >= self.operations || record.warp >= self.operations;
        if operation {
            launch.checks.asynchronous
        } else {
            launch.checks.races
        }
    }

    fn race(&self, record: &Record, now: &str, before: &str, launch: &LaunchState<'_>) -> Box<Stop> {
        let mine = self.warp >= self.operations;
        let theirs = record.warp >= self.operations && record.cluster == self.cluster;
        let of = |asynchronous| {
            if asynchronous {
                " of an asynchronous operation"
            } else {
                ""
            }
        };
        let message = format!(
            "a {now}{} races with a {before}{}: nothing orders them",
            of(mine),
            of(theirs)
        );
        let kind = if mine || theirs {
            FaultKind::InFlight
        } else {
            FaultKind::Race
        };
        found(kind, message, self.lane).other(launch.access(record))
    }

    /// Checks and remembers the access of some bytes of one word.
    #[inline]
    fn word(&self, word: &mut Word, bytes: u8, kind: AccessKind, launch: &LaunchState<'_>) -> Result<(), Box<Stop>> {
        // Most words were touched by nobody else: by this warp alone, whose accesses are ordered.
        let mine = |r: &Record| r.bytes == 0 || r.cluster == self.cluster && r.warp == self.warp;
        let alone = !self.proxy && self.warp < self.operations;
        if alone && mine(&word.write) && word.reads[1].bytes == 0 && word.reads[2].bytes == 0 && mine(&word.reads[0]) {
            let record = Record {
                cluster: self.cluster,
                warp: self.warp,
                lane: self.lane,
                bytes: bytes | if kind.strong() { STRONG } else { 0 },
                clock: self.clock,
                pc: self.pc,
            };
            if kind.writes() {
                word.write = record;
                if word.reads[0].bytes & 0xF & !bytes == 0 {
                    word.reads[0].bytes = 0;
                }
            } else {
                word.reads[0] = record;
            }
            return Ok(());
        }
        self.contended(word, bytes, kind, launch)
    }

    /// [`Actor::word`] where others were too.
    fn contended(
        &self,
        word: &mut Word,
        bytes: u8,
        kind: AccessKind,
        launch: &LaunchState<'_>,
    ) -> Result<(), Box<Stop>> {
        let strong = kind.strong();
        let both = |r: &Record| strong && r.bytes & STRONG != 0;
        let write = word.write;
        if write.overlaps(bytes) && !both(&write) {
            if self.watches(&write, launch) && !self.after(&write) {
                let now = if kind.writes() { "write" } else { "read" };
                return Err(self.race(&write, now, "write", launch));
            }
            if self.proxy
                && launch.checks.asynchronous
                && write.cluster == self.cluster
                && write.warp < self.operations
                && !self.clocks.visible(write.warp, write.clock)
            {
                let message = "an asynchronous operation accesses what ordinary stores wrote, without a fence.proxy.async between";
                return Err(found(FaultKind::Proxy, message.into(), self.lane).other(launch.access(&write)));
            }
        }
        let record = Record {
            cluster: self.cluster,
            warp: self.warp,
            lane: self.lane,
            bytes: bytes | if strong { STRONG } else { 0 },
            clock: self.clock,
            pc: self.pc,
        };
        if kind.writes() {
            if launch.checks.races || launch.checks.asynchronous {
                let conflict = word
                    .reads
                    .iter()
                    .find(|r| r.overlaps(bytes) && !both(r) && self.watches(r, launch) && !self.after(r));
                if let Some(read) = conflict {
                    return Err(self.race(read, "write", "read", launch));
                }
            }
            word.write = record;
            word.reads
                .iter_mut()
                .filter(|r| r.bytes & 0xF & !bytes == 0)
                .for_each(|r| r.bytes = 0);
        } else {
            word.add_read(record);
        }
        Ok(())
    }

    /// Checks and remembers an access.
    pub(super) fn access(
        &self,
        shadow: &mut Shadow,
        offset: u64,
        size: u64,
        kind: AccessKind,
        launch: &LaunchState<'_>,
    ) -> Result<(), Box<Stop>> {
        if kind.reads()
            && launch.checks.uninitialised
            && let Some(byte) = shadow.undefined(offset, size)
        {
            let message = format!(
                "a read of {size} bytes of which byte {} was never written",
                byte - offset
            );
            return Err(found(FaultKind::Uninitialised, message, self.lane));
        }
        if launch.checks.races || launch.checks.asynchronous {
            let end = offset + size;
            for index in offset / 4..end.div_ceil(4) {
                let low = offset.max(index * 4) - index * 4;
                let high = end.min(index * 4 + 4) - index * 4;
                let bytes = (((1u16 << high) - 1) & !((1u16 << low) - 1)) as u8;
                self.word(shadow.word(index), bytes, kind, launch)?;
            }
        }
        if kind.writes() {
            shadow.define(offset, size);
        }
        Ok(())
    }
}

/// Accesses of lanes that follow each other in memory without gaps: one long access.
pub(super) struct Run {
    offset: u64,
    bytes: u64,
    /// Bytes of a lane.
    size: u64,
    /// The lane of the first bytes; the next lane has the next.
    lane: usize,
}

impl Run {
    /// The accesses of these lanes as one, if they are: whole words, lane after lane.
    pub(super) fn of(offsets: &Lanes, size: u64, mask: u32) -> Option<Run> {
        let lane = mask.trailing_zeros() as usize;
        let count = mask.count_ones() as usize;
        let first = *offsets.get(lane)?;
        let together = mask >> lane == crate::lower::types::ones(count as u32) as u32;
        if !together || !size.is_multiple_of(4) || !first.is_multiple_of(4) {
            return None;
        }
        let follows = |(i, offset): (usize, &u64)| *offset == first + i as u64 * size;
        offsets[lane..lane + count]
            .iter()
            .enumerate()
            .all(follows)
            .then_some(Run {
                offset: first,
                bytes: size * count as u64,
                size,
                lane,
            })
    }
}

impl Actor<'_> {
    /// [`Actor::access`] of many lanes at once.
    pub(super) fn run(
        &mut self,
        shadow: &mut Shadow,
        run: &Run,
        kind: AccessKind,
        launch: &LaunchState<'_>,
    ) -> Result<(), Box<Stop>> {
        if kind.reads()
            && launch.checks.uninitialised
            && let Some(byte) = shadow.undefined(run.offset, run.bytes)
        {
            let within = byte - run.offset;
            self.lane = (run.lane as u64 + within / run.size) as u8;
            let (size, within) = (run.size, within % run.size);
            let message = format!("a read of {size} bytes of which byte {within} was never written");
            return Err(found(FaultKind::Uninitialised, message, self.lane));
        }
        if launch.checks.races || launch.checks.asynchronous {
            let words = run.size / 4;
            let (mut index, end) = (run.offset / 4, (run.offset + run.bytes) / 4);
            let (mut lane, mut left) = (run.lane as u8, words);
            while index < end {
                for word in shadow.words_from(index, end - index) {
                    self.lane = lane;
                    self.word(word, 0xF, kind, launch)?;
                    index += 1;
                    left -= 1;
                    if left == 0 {
                        (lane, left) = (lane + 1, words);
                    }
                }
            }
        }
        if kind.writes() {
            shadow.define(run.offset, run.bytes);
        }
        Ok(())
    }
}
