//! The state of one cluster of CTAs, and the scheduler of its warps.

use crate::Lanes;
use crate::check::{Clocks, clocks::Order};
use crate::exec::{Context, asynchronous};
use crate::fault::{FaultKind, Stop};
use crate::machine::launch::LaunchState;
use crate::machine::warp::{SliceEnd, Wait, Warp};
use crate::statistics::Counters;
use crate::tensor::mbarrier::Mbarrier;

/// Shared memory starts here in its state space: the first kilobyte belongs to the system, as on Hopper.
pub(crate) const SHARED_START: u32 = 1024;
/// The CTA's rank stands in the bits from here up of a `shared::cluster` address.
pub(crate) const RANK_SHIFT: u32 = 24;
/// Named barriers of a CTA.
pub(crate) const BARRIERS: usize = 16;

/// Shared memory of a CTA, 16-byte aligned.
pub(crate) struct SharedMemory {
    words: Box<[u128]>,
    length: u32,
    pub(crate) shadow: crate::check::Shadow,
}

impl SharedMemory {
    pub(crate) fn new(length: u32) -> Self {
        let words = vec![0u128; (length as usize).div_ceil(16)].into_boxed_slice();
        SharedMemory {
            words,
            length,
            shadow: crate::check::Shadow::default(),
        }
    }

    /// Size in bytes.
    pub(crate) fn len(&self) -> u32 {
        self.length
    }

    pub(crate) fn pointer(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast()
    }

    /// The 64-bit word at an offset; 0 outside.
    pub(crate) fn word(&self, offset: u32) -> u64 {
        let word = self.words.get(offset as usize / 16).copied().unwrap_or_default();
        (word >> (offset % 16 * 8)) as u64
    }

    /// All bytes; byte 0 is at address [`SHARED_START`].
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let length = self.length as usize;
        // SAFETY: the words hold at least `length` bytes and any bytes are valid `u8`s.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), length) }
    }
}

/// A named barrier.
#[derive(Clone, Debug, Default)]
pub(crate) struct Barrier {
    /// Threads arrived in this generation.
    pub(crate) arrived: u32,
    /// Threads expected, when the instruction named a count.
    pub(crate) expected: Option<u32>,
    /// How often it completed.
    pub(crate) generation: u64,
    /// Lanes whose predicate held, and lanes that came, of a `bar.red`.
    pub(crate) reduction: (u32, u32),
    /// The same of the last completed generation.
    pub(crate) result: (u32, u32),
    /// An arrival without a count was seen: all threads of the CTA are expected.
    pub(crate) all: bool,
    /// What those who arrived in this generation have done.
    pub(crate) clocks: Clocks,
    /// Who waits for this generation.
    pub(crate) waiters: Vec<usize>,
    /// The same of a generation that completed and was not yet handed on.
    released: Option<(Clocks, Vec<usize>)>,
}

impl Barrier {
    fn complete(&mut self) {
        self.generation += 1;
        self.arrived = 0;
        self.expected = None;
        self.all = false;
        self.result = std::mem::take(&mut self.reduction);
        self.released = Some((std::mem::take(&mut self.clocks), std::mem::take(&mut self.waiters)));
    }
}

/// A CTA.
pub(crate) struct Cta {
    /// Its index in the grid.
    pub(crate) index: [u32; 3],
    /// Its rank in the cluster.
    pub(crate) rank: u32,
    pub(crate) shared: SharedMemory,
    pub(crate) barriers: [Barrier; BARRIERS],
    /// Warps that have not exited.
    pub(crate) live_warps: u32,
    pub(crate) asynchronous: asynchronous::CtaState,
}

impl Cta {
    /// Completes the barrier if everybody is there.
    fn settle(&mut self, id: usize) {
        let live = self.live_warps * 32;
        let barrier = &mut self.barriers[id];
        let wanted = match barrier.expected {
            Some(expected) => expected,
            None if barrier.all => live,
            None => return,
        };
        if barrier.arrived > 0 && barrier.arrived >= wanted {
            barrier.complete();
        }
    }
}

/// The barrier of a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterBarrier {
    /// Threads arrived in this phase.
    pub(crate) arrived: u32,
    /// How often it completed.
    pub(crate) generation: u64,
    /// What those who arrived in this phase have done.
    pub(crate) clocks: Clocks,
    /// The same of the last phase.
    pub(crate) completed: Clocks,
    /// Who waits for this phase.
    pub(crate) waiters: Vec<usize>,
}

/// An asynchronous operation that has been issued and not completed.
pub(crate) trait Pending: Send {
    /// What names it.
    fn id(&self) -> u64;

    /// Whether it has yet to read its sources.
    fn reads(&self) -> bool;

    /// What it is and who issued it, if a kernel must not end before it.
    fn needs_a_wait(&self) -> Option<(&'static str, crate::fault::Access)>;

    /// Performs it, or its next step: moves the bytes and signals completion.
    fn complete(self: Box<Self>, cluster: &mut Cluster, launch: &LaunchState<'_>) -> Result<(), Box<Stop>>;
}

/// A cluster: CTAs that run together and see each other's shared memory. Without clusters, one CTA.
pub(crate) struct Cluster {
    /// Linear index in the grid of clusters.
    pub(crate) index: u64,
    pub(crate) ctas: Vec<Cta>,
    /// All warps; while a warp runs, its place is empty.
    pub(crate) warps: Vec<Warp>,
    pub(crate) barrier: ClusterBarrier,
    /// Issued asynchronous operations.
    pub(crate) pending: Vec<Box<dyn Pending>>,
    pub(crate) asynchronous: asynchronous::ClusterState,
    pub(crate) counters: Counters,
    /// State of the schedule's random numbers.
    random: u64,
    /// The warp that ran last.
    turn: usize,
    /// Simulated clock: warp instructions executed.
    pub(crate) clock: u64,
    /// Scratch for results.
    pub(crate) scratch: Box<Lanes>,
    /// The order of its warps, for the checks.
    pub(crate) order: Order,
}

/// How a turn of a cluster ended.
pub(crate) enum Turn {
    Finished,
    Paused,
}

impl Cluster {
    pub(crate) fn new(index: u64, ctas: Vec<Cta>, warps: Vec<Warp>, launch: &LaunchState<'_>) -> Self {
        let order = launch.new_order(warps.len());
        Cluster {
            order,
            index,
            ctas,
            warps,
            barrier: ClusterBarrier::default(),
            pending: Vec::new(),
            asynchronous: Default::default(),
            counters: Counters::new(launch.program.code.len()),
            random: launch.seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1,
            turn: 0,
            clock: 0,
            scratch: Box::new([0; 32]),
        }
    }

    /// The next random number of this cluster's schedule (splitmix64).
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A warp of a CTA lost its last lane.
    pub(crate) fn warp_exited(&mut self, cta: usize) {
        self.ctas[cta].live_warps -= 1;
        for id in 0..BARRIERS {
            self.settle(cta, id);
        }
        self.settle_cluster_barrier();
    }

    /// Completes a barrier of a CTA if everybody is there, and orders those who waited after those who arrived.
    pub(crate) fn settle(&mut self, cta: usize, id: usize) {
        self.ctas[cta].settle(id);
        if let Some((clocks, waiters)) = self.ctas[cta].barriers[id].released.take() {
            for w in waiters {
                self.order.take(w, &clocks);
            }
        }
    }

    /// Completes the cluster barrier if every warp that still runs has arrived.
    pub(crate) fn settle_cluster_barrier(&mut self) {
        let live: u32 = self.ctas.iter().map(|c| c.live_warps * 32).sum();
        if self.barrier.arrived > 0 && self.barrier.arrived >= live {
            self.barrier.arrived = 0;
            self.barrier.generation += 1;
            let clocks = std::mem::take(&mut self.barrier.clocks);
            for w in std::mem::take(&mut self.barrier.waiters) {
                self.order.take(w, &clocks);
            }
            self.barrier.completed = clocks;
        }
    }

    /// Whether a wait is over.
    fn ready(&self, wait: &Wait, cta: usize) -> bool {
        match *wait {
            Wait::None => true,
            Wait::Barrier { id, generation } => self.ctas[cta].barriers[id].generation != generation,
            Wait::Cluster { generation } => self.barrier.generation != generation,
            Wait::Memory { cta, offset, value } => self.ctas[cta].shared.word(offset) != value,
            Wait::Warpgroup { group, target } => self.ctas[cta]
                .asynchronous
                .warpgroups
                .get(group)
                .is_some_and(|g| g.full() >= target),
            Wait::Registers { need } => self.ctas[cta]
                .asynchronous
                .register_pool
                .as_ref()
                .is_some_and(|p| p.free >= need),
            Wait::Lanes { .. } | Wait::Join => false,
        }
    }

    /// Runs warps until all have exited or about `budget` warp instructions are spent.
    pub(crate) fn run(&mut self, launch: &LaunchState<'_>, budget: u64) -> Result<Turn, (Box<Stop>, usize, u32)> {
        let until = self.clock + budget;
        let count = self.warps.len();
        let mut timeouts = 0;
        let mut idle = self.clock;
        loop {
            let mut progress = false;
            let mut live = false;
            for step in 0..count {
                let w = if launch.random_schedule {
                    (self.random() % count as u64) as usize
                } else {
                    (self.turn + step) % count
                };
                if self.warps[w].finished() {
                    continue;
                }
                live = true;
                let cta = self.warps[w].cta;
                let mut warp = std::mem::take(&mut self.warps[w]);
                if warp.wake(|wait| self.ready(wait, cta)) {
                    progress = true;
                    let quantum = if launch.random_schedule {
                        1 + self.random() % 64
                    } else {
                        4096
                    };
                    let end = warp.run(self, launch, quantum);
                    let pc = warp.pc;
                    self.warps[w] = warp;
                    match end {
                        Ok(SliceEnd::Quantum | SliceEnd::Blocked) => {}
                        Ok(SliceEnd::Finished) => {
                            if launch.checks.asynchronous {
                                self.warps[w].asynchronous.finish().map_err(|stop| (stop, w, pc))?;
                            }
                            self.warp_exited(cta);
                        }
                        Err(stop) => return Err((stop, w, pc)),
                    }
                    if launch.random_schedule {
                        while !self.pending.is_empty() && self.random().is_multiple_of(8) {
                            self.complete_one(launch).map_err(|stop| (stop, w, pc))?;
                        }
                    } else if matches!(end, Ok(SliceEnd::Quantum)) {
                        // Whoever polls without a wait would poll for ever.
                        self.complete_one(launch).map_err(|stop| (stop, w, pc))?;
                    }
                } else {
                    self.warps[w] = warp;
                }
            }
            self.turn = (self.turn + 1) % count.max(1);
            if !live && self.warps.iter().all(Warp::finished) {
                if launch.checks.asynchronous {
                    asynchronous::finish(self).map_err(|stop| (stop, 0, 0))?;
                }
                while !self.pending.is_empty() {
                    self.complete_one(launch).map_err(|stop| (stop, 0, 0))?;
                }
                return Ok(Turn::Finished);
            }
            if progress {
                // Warps that only look again at what they wait for make no progress.
                if self.clock > idle + 4096 {
                    timeouts = 0;
                }
            } else if !launch.random_schedule || self.warps.iter().all(|w| !w.could_run()) {
                // Nobody can run. In order: let asynchronous operations land, split joins so that lanes which wait
                // only for each other's company go on, let bounded waits give up; then it is a deadlock.
                if !self.pending.is_empty() {
                    self.complete_one(launch).map_err(|stop| (stop, 0, 0))?;
                } else if self.any_ready() || self.warps.iter_mut().any(Warp::break_join) {
                    continue;
                } else if timeouts < 8 && self.warps.iter_mut().fold(false, |any, w| w.time_out() | any) {
                    timeouts += 1;
                    idle = self.clock;
                } else {
                    return Err(self.deadlock(launch));
                }
            }
            if self.clock >= until {
                return Ok(Turn::Paused);
            }
        }
    }

    fn any_ready(&self) -> bool {
        self.warps
            .iter()
            .any(|w| !w.finished() && w.waits().any(|wait| self.ready(wait, w.cta)))
    }

    /// Lets one pending operation land: the oldest, or with a seed any.
    fn complete_one(&mut self, launch: &LaunchState<'_>) -> Result<(), Box<Stop>> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let i = if launch.random_schedule {
            (self.random() % self.pending.len() as u64) as usize
        } else {
            0
        };
        self.pending.remove(i).complete(self, launch)
    }

    fn describe_mbarrier(&self, cta: usize, offset: u32) -> String {
        let state = match Mbarrier::decode(self.ctas[cta].shared.word(offset)) {
            Ok(b) => format!(
                "phase parity {}, {} of {} arrivals pending, tx-count {}",
                b.parity(),
                b.pending,
                b.expected,
                b.tx
            ),
            Err(e) => e.to_string(),
        };
        format!(
            "the mbarrier at shared address {:#x} of CTA rank {cta} ({state})",
            offset + SHARED_START
        )
    }

    fn deadlock(&self, launch: &LaunchState<'_>) -> (Box<Stop>, usize, u32) {
        let mut message = String::from("no warp can go on:");
        let mut first = None;
        let mut listed = 0;
        for (i, warp) in self.warps.iter().enumerate().filter(|(_, w)| !w.finished()) {
            for (pc, mask, wait) in warp.blocked() {
                first.get_or_insert((i, pc));
                listed += 1;
                if listed > 12 {
                    continue;
                }
                let cta = &self.ctas[warp.cta];
                let position = launch.program.info.get(pc as usize).map_or(0, |i| i.position.line);
                let what = match wait {
                    Wait::Barrier { id, .. } => {
                        let b = &cta.barriers[*id];
                        let wanted = b.expected.unwrap_or(cta.live_warps * 32);
                        format!("barrier {id} ({} of {wanted} threads arrived)", b.arrived)
                    }
                    Wait::Cluster { .. } => format!("the cluster barrier ({} threads arrived)", self.barrier.arrived),
                    Wait::Memory { cta, offset, .. } => self.describe_mbarrier(*cta, *offset),
                    Wait::Warpgroup { .. } => "the other warps of its warpgroup to issue their wgmma".into(),
                    Wait::Registers { need } => format!("setmaxnreg.inc to get {need} more registers a thread"),
                    Wait::Lanes { members } => format!("lanes {members:#010x} to arrive"),
                    Wait::Join => "its other lanes".into(),
                    Wait::None => continue,
                };
                let [x, y, z] = cta.index;
                message.push_str(&format!(
                    " CTA ({x},{y},{z}) warp {} lanes {mask:#010x} at line {position} for {what};",
                    warp.id
                ));
            }
        }
        if listed > 12 {
            message.push_str(&format!(" and {} more", listed - 12));
        }
        let (warp, pc) = first.unwrap_or((0, 0));
        (Stop::new(FaultKind::Deadlock, message), warp, pc)
    }
}

/// Everything an operation may touch, for one warp at one instruction.
impl<'a> Context<'a> {
    /// The CTA of the running warp.
    pub(crate) fn cta(&mut self) -> &mut Cta {
        &mut self.cluster.ctas[self.warp.cta]
    }
}
