//! The checks of one access: written before, ordered after what it conflicts with.

use super::Clocks;
use super::clocks::{Operation, Order};
use super::shadow::{Record, STRONG, Shadow, Word};
use crate::Lanes;
use crate::exec::Context;
use crate::exec::memory::{AccessKind, Home};
use crate::fault::{Access, FaultKind, Stop};
use crate::machine::cluster::{Cluster, SHARED_START};
use crate::machine::launch::LaunchState;
use crate::machine::warp::lanes;

/// Who makes an access, and what is ordered before it.
struct Actor<'c> {
    cluster: u32,
    warp: u16,
    lane: u8,
    pc: u32,
    clock: u32,
    clocks: &'c Clocks,
    /// Actors from here on are asynchronous operations.
    operations: u16,
    /// The access goes through the asynchronous proxy.
    proxy: bool,
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
    fn access(
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
struct Run {
    offset: u64,
    bytes: u64,
    /// Bytes of a lane.
    size: u64,
    /// The lane of the first bytes; the next lane has the next.
    lane: usize,
}

impl Run {
    /// The accesses of these lanes as one, if they are: whole words, lane after lane.
    fn of(offsets: &Lanes, size: u64, mask: u32) -> Option<Run> {
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
    fn run(
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

impl Context<'_> {
    /// Position of the running warp among the warps of its cluster.
    pub(crate) fn warp_index(&self) -> usize {
        self.warp.cta * self.launch.warps_per_cta() + self.warp.id as usize
    }

    /// Checks and remembers an access of the running warp.
    pub(crate) fn watch(&mut self, home: Home, size: u32, kind: AccessKind, lane: usize) -> Result<(), Box<Stop>> {
        if matches!(home, Home::Local | Home::Parameter) {
            return Ok(());
        }
        if kind.strong() {
            self.synchronise(self.warp_index(), home, kind);
        }
        self.record(home, size, kind, lane)
    }

    /// [`Context::watch`] without the synchronisation of strong accesses.
    pub(crate) fn record(&mut self, home: Home, size: u32, kind: AccessKind, lane: usize) -> Result<(), Box<Stop>> {
        let w = self.warp_index();
        let (undefined, secret) = self.stored_labels(kind, lane);
        let launch = self.launch;
        let Cluster { order, ctas, index, .. } = &mut *self.cluster;
        let actor = Actor {
            cluster: *index as u32,
            warp: w as u16,
            lane: lane as u8,
            pc: self.pc,
            clock: order.now(w),
            clocks: order.of(w),
            operations: order.first_operation(),
            proxy: false,
        };
        let size = u64::from(size);
        let mut access = |shadow: &mut Shadow, offset: u64| {
            actor.access(shadow, offset, size, kind, launch)?;
            if kind.writes() {
                if undefined {
                    shadow.undefine(offset, size);
                }
                if launch.checks.taint {
                    shadow.taint(offset, size, secret);
                }
            }
            if kind.reads() && launch.checks.taint && shadow.is_secret(offset, size) {
                self.warp.loaded_secret |= 1 << lane;
            }
            Ok(())
        };
        match home {
            Home::Shared(cta, offset) => {
                let shared = &mut ctas[cta].shared;
                let length = u64::from(shared.len());
                shared.shadow.fit(length);
                access(&mut shared.shadow, u64::from(offset))
            }
            Home::Global(i, offset) => {
                let a = &launch.global.allocations[i];
                let mut shadow = a.shadow.lock().unwrap_or_else(|e| e.into_inner());
                shadow.fit(a.length);
                access(&mut shadow, offset)
            }
            _ => Ok(()),
        }
    }

    /// [`Context::record`] of all active lanes at once, at offsets in one piece of memory.
    pub(crate) fn record_all(
        &mut self,
        home: Home,
        offsets: &Lanes,
        size: u64,
        kind: AccessKind,
    ) -> Result<(), Box<Stop>> {
        let w = self.warp_index();
        let [undefined, secret] = self.stored_masks(kind);
        let (launch, mask) = (self.launch, self.mask);
        let Cluster { order, ctas, index, .. } = &mut *self.cluster;
        let mut actor = Actor {
            cluster: *index as u32,
            warp: w as u16,
            lane: 0,
            pc: self.pc,
            clock: order.now(w),
            clocks: order.of(w),
            operations: order.first_operation(),
            proxy: false,
        };
        let mut loaded = 0;
        let run = if undefined | secret == 0 {
            Run::of(offsets, size, mask)
        } else {
            None
        };
        // Lanes that read the same bytes are one reader.
        let first = mask.trailing_zeros() as usize;
        let same = run.is_none() && kind == AccessKind::Read && lanes(mask).all(|lane| offsets[lane] == offsets[first]);
        let mut all = |shadow: &mut Shadow| {
            let open = !launch.checks.taint || shadow.has_no_secrets();
            if let (Some(run), true) = (&run, open) {
                return actor.run(shadow, run, kind, launch);
            }
            let each = if same && open { 1 << first } else { mask };
            for lane in lanes(each) {
                let offset = offsets[lane];
                actor.lane = lane as u8;
                actor.access(shadow, offset, size, kind, launch)?;
                if kind.writes() {
                    if undefined >> lane & 1 != 0 {
                        shadow.undefine(offset, size);
                    }
                    if launch.checks.taint {
                        shadow.taint(offset, size, secret >> lane & 1 != 0);
                    }
                } else if launch.checks.taint && shadow.is_secret(offset, size) {
                    loaded |= 1 << lane;
                }
            }
            Ok(())
        };
        let result = match home {
            Home::Shared(cta, _) => {
                let shared = &mut ctas[cta].shared;
                let length = u64::from(shared.len());
                shared.shadow.fit(length);
                all(&mut shared.shadow)
            }
            Home::Global(i, _) => {
                let a = &launch.global.allocations[i];
                let mut shadow = a.shadow.lock().unwrap_or_else(|e| e.into_inner());
                shadow.fit(a.length);
                all(&mut shadow)
            }
            _ => Ok(()),
        };
        self.warp.loaded_secret |= loaded;
        result
    }

    /// A strong access synchronises with the strong accesses of the same word before it.
    fn synchronise(&mut self, w: usize, home: Home, kind: AccessKind) {
        match home {
            Home::Shared(cta, offset) => {
                let object = shared_object(cta, offset);
                let order = &mut self.cluster.order;
                order.acquire(w, object);
                if kind.writes() {
                    order.release(w, object);
                }
            }
            Home::Global(i, offset) => {
                let address = self.launch.global.allocations[i].start + offset;
                let cluster = self.cluster.index as u32;
                let mut objects = self.launch.objects.lock().unwrap_or_else(|e| e.into_inner());
                let order = &mut self.cluster.order;
                let object = objects.entry(address).or_default();
                order.of_mut(w).join_clusters(&object.clusters);
                order.acquire(w, address);
                if kind.writes() {
                    let mut clocks = order.of(w).clusters.clone();
                    if let Err(at) = clocks.binary_search(&cluster) {
                        clocks.insert(at, cluster);
                    }
                    object.join_clusters(&clocks);
                    drop(objects);
                    order.release(w, address);
                }
            }
            _ => {}
        }
    }

    /// The running warp arrives at a barrier of its CTA.
    pub(crate) fn barrier_arrival(&mut self, id: usize, waits: bool) {
        if !self.cluster.order.enabled() {
            return;
        }
        let w = self.warp_index();
        let clocks = self.cluster.order.publish(w);
        let barrier = &mut self.cta().barriers[id];
        barrier.clocks.join(&clocks);
        if waits {
            barrier.waiters.push(w);
        }
    }

    /// The running warp arrives at the cluster barrier.
    pub(crate) fn cluster_arrival(&mut self) {
        if self.cluster.order.enabled() {
            let w = self.warp_index();
            let clocks = self.cluster.order.publish(w);
            self.cluster.barrier.clocks.join(&clocks);
        }
    }

    /// The running warp waits for the cluster barrier, or has waited for it.
    pub(crate) fn cluster_departure(&mut self, generation: u64) {
        if !self.cluster.order.enabled() {
            return;
        }
        let w = self.warp_index();
        let Cluster { barrier, order, .. } = &mut *self.cluster;
        if barrier.generation != generation {
            order.take(w, &barrier.completed);
        } else {
            barrier.waiters.push(w);
        }
    }

    /// Lanes of the warp synchronised; they are ordered by the program already.
    pub(crate) fn warp_synchronised(&mut self) {}
}

/// The synchronisation object of a word of shared memory, such as an `mbarrier`.
pub(crate) fn shared_object(cta: usize, offset: u32) -> u64 {
    (cta as u64) << 32 | u64::from(offset)
}

impl Cluster {
    /// Checks and remembers an access of an asynchronous operation, through the asynchronous proxy if `proxy`. `issued` says who
    /// issued it.
    pub(crate) fn watch_asynchronous(
        &mut self,
        launch: &LaunchState<'_>,
        operation: &Operation,
        (home, size, kind): (Home, u64, AccessKind),
        proxy: bool,
        issued: Access,
    ) -> Result<(), Box<Stop>> {
        if !launch.watched || !self.order.enabled() {
            return Ok(());
        }
        let actor = Actor {
            cluster: self.index as u32,
            warp: operation.actor,
            lane: issued.lane as u8,
            pc: issued.pc,
            clock: operation.clock,
            clocks: &operation.clocks,
            operations: self.order.first_operation(),
            proxy,
        };
        match home {
            Home::Shared(cta, offset) => {
                let shared = &mut self.ctas[cta].shared;
                let length = u64::from(shared.len());
                shared.shadow.fit(length);
                let address = u64::from(offset + SHARED_START);
                let result = actor.access(&mut shared.shadow, u64::from(offset), size, kind, launch);
                result.map_err(|stop| stop.address(address))
            }
            Home::Global(i, offset) => {
                let a = &launch.global.allocations[i];
                let mut shadow = a.shadow.lock().unwrap_or_else(|e| e.into_inner());
                shadow.fit(a.length);
                let result = actor.access(&mut shadow, offset, size, kind, launch);
                result.map_err(|stop| stop.address(a.start + offset))
            }
            _ => Ok(()),
        }
    }
}

impl LaunchState<'_> {
    /// The order of a new cluster: kept only when accesses are watched.
    pub(crate) fn new_order(&self, warps: usize) -> Order {
        if self.watched {
            Order::new(warps)
        } else {
            Order::default()
        }
    }

    /// The place of a recorded access.
    fn access(&self, record: &Record) -> Access {
        let per_cta = self.warps_per_cta();
        let warp = usize::from(record.warp);
        let size: u32 = self.cluster.iter().product();
        let rank = (warp / per_cta).min(size as usize - 1) as u32;
        let index = self.cta_of(u64::from(record.cluster), rank);
        let linear = index[0] + self.grid[0] * (index[1] + self.grid[1] * index[2]);
        let warp = if warp / per_cta >= size as usize {
            u32::MAX
        } else {
            (warp % per_cta) as u32
        };
        Access {
            pc: record.pc,
            cta: linear,
            warp,
            lane: u32::from(record.lane),
        }
    }
}
