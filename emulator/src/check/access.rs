//! The checks of one access: written before, ordered after what it conflicts with.

mod actor;

use actor::{Actor, Run};

use super::clocks::{Operation, Order};
use super::shadow::{Record, Shadow};
use crate::Lanes;
use crate::exec::Context;
use crate::exec::memory::{AccessKind, Home};
use crate::fault::{Access, Stop};
use crate::machine::cluster::{Cluster, SHARED_START};
use crate::machine::launch::LaunchState;
use crate::machine::warp::lanes;

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
