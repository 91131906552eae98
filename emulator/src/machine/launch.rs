//! One launch: its arguments checked, its clusters spread over threads.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::Lanes;
use crate::check::Clocks;
use crate::checks::Checks;
use crate::fault::{Access, Error, Fault, FaultKind, Site, Stop};
use crate::machine::cluster::{Cluster, Cta, RANK_SHIFT, SHARED_START, SharedMemory, Turn};
use crate::machine::memory::GlobalMemory;
use crate::machine::warp::Warp;
use crate::program::{Constant, Program, Special};
use crate::statistics::{Counters, Statistics};
use crate::target::Target;

/// The shape of a launch.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// CTAs in each dimension.
    pub grid: [u32; 3],
    /// Threads of a CTA in each dimension.
    pub block: [u32; 3],
    /// CTAs of a cluster in each dimension; `[1, 1, 1]` without clusters.
    pub cluster: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub dynamic_shared_bytes: u32,
    /// The parameter buffer, laid out as [`EntryInfo::parameters`](crate::EntryInfo) says.
    pub params: &'a [u8],
}

impl Default for Launch<'_> {
    fn default() -> Self {
        Launch {
            grid: [1; 3],
            block: [1; 3],
            cluster: [1; 3],
            dynamic_shared_bytes: 0,
            params: &[],
        }
    }
}

/// What all clusters of a launch share.
pub(crate) struct LaunchState<'a> {
    pub(crate) program: &'a Program,
    pub(crate) global: &'a GlobalMemory,
    pub(crate) params: &'a [u128],
    pub(crate) checks: Checks,
    /// Definedness or taint of registers is tracked.
    pub(crate) labels: bool,
    /// Memory accesses are watched.
    pub(crate) watched: bool,
    /// Accesses of registers are watched for `wgmma` in flight.
    pub(crate) registers_watched: bool,
    pub(crate) seed: u64,
    /// Warps are switched at random instead of when they block.
    pub(crate) random_schedule: bool,
    pub(crate) target: Target,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) cluster: [u32; 3],
    pub(crate) dynamic_shared: u32,
    pub(crate) symbols: &'a [u64],
    /// What strong accesses of words of global memory have published.
    pub(crate) objects: Mutex<HashMap<u64, Clocks>>,
}

impl LaunchState<'_> {
    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    pub(crate) fn warps_per_cta(&self) -> usize {
        self.threads().div_ceil(32) as usize
    }

    /// Index in the grid of a CTA, from its cluster's linear index and its rank.
    pub(crate) fn cta_of(&self, cluster: u64, rank: u32) -> [u32; 3] {
        let at = |i: u64, by: [u32; 3]| -> [u32; 3] {
            let (x, y) = (u64::from(by[0]), u64::from(by[1]));
            [(i % x) as u32, (i / x % y) as u32, (i / x / y) as u32]
        };
        let (origin, within) = (at(cluster, self.clusters()), at(u64::from(rank), self.cluster));
        std::array::from_fn(|i| origin[i] * self.cluster[i] + within[i])
    }

    fn shared_bytes(&self) -> u32 {
        self.program.dynamic_shared_at + self.dynamic_shared
    }

    /// Clusters in each dimension.
    fn clusters(&self) -> [u32; 3] {
        std::array::from_fn(|i| self.grid[i] / self.cluster[i])
    }

    fn special(&self, special: Special, cta: &Cta, warp: u32, lane: u32) -> u64 {
        let thread = warp * 32 + lane;
        let clusters = self.clusters();
        u64::from(match special {
            Special::Tid(0) => thread % self.block[0],
            Special::Tid(1) => thread / self.block[0] % self.block[1],
            Special::Tid(2) => thread / self.block[0] / self.block[1],
            Special::Ntid(i) if i < 3 => self.block[i as usize],
            Special::Ctaid(i) if i < 3 => cta.index[i as usize],
            Special::Nctaid(i) if i < 3 => self.grid[i as usize],
            Special::ClusterId(i) if i < 3 => cta.index[i as usize] / self.cluster[i as usize],
            Special::NumClusters(i) if i < 3 => clusters[i as usize],
            Special::ClusterCtaid(i) if i < 3 => cta.index[i as usize] % self.cluster[i as usize],
            Special::ClusterNctaid(i) if i < 3 => self.cluster[i as usize],
            Special::LaneId => lane,
            Special::WarpId => warp,
            Special::NumWarps => self.threads().div_ceil(32),
            Special::SmId => (cta.index[0] + self.grid[0] * cta.index[1]) % self.target.multiprocessors,
            Special::NumSms => self.target.multiprocessors,
            Special::GridId => 1,
            Special::LaneMask(order, equal) => (0..32u32)
                .filter(|other| other.cmp(&lane) == order || equal && *other == lane)
                .fold(0, |m, other| m | 1 << other),
            Special::ClusterRank => cta.rank,
            Special::ClusterSize => self.cluster.iter().product(),
            Special::ExplicitCluster => u32::from(self.cluster != [1; 3]),
            Special::DynamicShared => self.dynamic_shared,
            Special::TotalShared => self.shared_bytes(),
            _ => 0,
        })
    }

    /// Builds the cluster of a linear index.
    fn build(&self, index: u64) -> Cluster {
        let size: u32 = self.cluster.iter().product();
        let threads = self.threads();
        let warps_per_cta = threads.div_ceil(32);
        // Values that no lane, warp or CTA changes.
        let mut template: Vec<Lanes> = vec![[0; 32]; self.program.registers as usize];
        let mut varying = Vec::new();
        for &(register, constant) in &self.program.constants {
            let value = match constant {
                Constant::Bits(bits) => bits,
                Constant::Global { symbol, offset } => self.symbols[symbol as usize].wrapping_add(offset as u64),
                Constant::Local(offset) => u64::from(offset),
                Constant::Shared(_) | Constant::Special(_) => {
                    varying.push((register, constant));
                    continue;
                }
            };
            template[register as usize] = [value; 32];
        }
        let mut ctas = Vec::new();
        let mut warps = Vec::new();
        for rank in 0..size {
            let index = self.cta_of(index, rank);
            let cta = Cta {
                index,
                rank,
                shared: SharedMemory::new(self.shared_bytes()),
                barriers: Default::default(),
                live_warps: warps_per_cta,
                asynchronous: Default::default(),
            };
            for id in 0..warps_per_cta {
                let mut registers = recycled(&template);
                for &(register, constant) in &varying {
                    let lanes = &mut registers[register as usize];
                    match constant {
                        Constant::Shared(offset) => {
                            *lanes = [u64::from((rank << RANK_SHIFT) + SHARED_START + offset); 32];
                        }
                        Constant::Special(special) => {
                            for lane in 0..32 {
                                lanes[lane as usize] = self.special(special, &cta, id, lane);
                            }
                        }
                        _ => {}
                    }
                }
                let live = (threads - id * 32).min(32);
                warps.push(Warp::start(rank as usize, id, live, registers, self));
            }
            ctas.push(cta);
        }
        Cluster::new(index, ctas, warps, self)
    }

    fn site(&self, pc: u32, cta: [u32; 3], warp: u32, lane: Option<u32>) -> Site {
        let info = self.program.info.get(pc as usize);
        let source = info.and_then(|i| i.source).map(|(file, line)| {
            let name = self.program.files.iter().find(|(f, _)| *f == file);
            (name.map_or_else(|| format!("file {file}"), |(_, n)| n.clone()), line)
        });
        Site {
            position: info.map(|i| i.position).unwrap_or_default(),
            instruction: info
                .map(|i| self.program.kinds[i.kind as usize].clone())
                .unwrap_or_default(),
            source,
            cta,
            warp,
            lane,
        }
    }

    fn fault(&self, stop: Stop, cluster: &Cluster, warp: usize, pc: u32) -> Box<Fault> {
        let (cta, id) = cluster.warps.get(warp).map_or((0, 0), |w| (w.cta, w.id));
        let other = stop.other.map(|Access { pc, cta, warp, lane }| {
            let [x, y, _] = self.grid;
            let index = [cta % x, cta / x % y, cta / x / y];
            self.site(pc, index, warp, Some(lane))
        });
        Box::new(Fault {
            kind: stop.kind,
            kernel: self.program.name.to_string(),
            site: self.site(pc, cluster.ctas[cta].index, id, stop.lane),
            message: stop.message,
            address: stop.address,
            allocation: stop.address.and_then(|a| self.global.describe(a)),
            other,
            seed: self.seed,
        })
    }
}

/// Bytes of register files that a thread keeps for later blocks.
const KEPT_BYTES: usize = 64 << 20;

thread_local! {
    // A block's register files are megabytes that live for microseconds: returned to the system and faulted in anew for
    // every block they would take more time than the kernel.
    static REGISTERS: RefCell<Vec<Vec<Lanes>>> = const { RefCell::new(Vec::new()) };
}

/// A register file with the content of `template`.
fn recycled(template: &[Lanes]) -> Vec<Lanes> {
    let mut registers = REGISTERS
        .with(|kept| kept.borrow_mut().pop())
        .unwrap_or_else(|| Vec::with_capacity(template.len()));
    registers.clear();
    registers.extend_from_slice(template);
    registers
}

/// Keeps the register files of a cluster that has ended.
fn recycle(cluster: Cluster) {
    REGISTERS.with(|kept| {
        let mut kept = kept.borrow_mut();
        let mut bytes: usize = kept.iter().map(|r| r.capacity() * size_of::<Lanes>()).sum();
        for warp in cluster.warps {
            bytes += warp.registers.capacity() * size_of::<Lanes>();
            if bytes > KEPT_BYTES {
                return;
            }
            kept.push(warp.registers);
        }
    });
}

/// Runs all clusters of a launch.
pub(crate) fn run(state: &LaunchState<'_>, budget: u64, threads: usize) -> Result<Statistics, Error> {
    let count: u64 = state.clusters().iter().map(|&n| u64::from(n)).product();
    let next = AtomicU64::new(0);
    let spent = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    // Of several faults the one of the first cluster counts.
    type Outcome = (Counters, Option<(u64, Box<Fault>)>);
    let outcome: Mutex<Outcome> = Mutex::default();
    let report = |index: u64, fault: Box<Fault>| {
        stop.store(true, Ordering::Relaxed);
        let mut outcome = outcome.lock().unwrap_or_else(|e| e.into_inner());
        if outcome.1.as_ref().is_none_or(|(i, _)| index < *i) {
            outcome.1 = Some((index, fault));
        }
    };
    let worker = || {
        let mut counters = Counters::default();
        let mut parked: std::collections::VecDeque<Cluster> = Default::default();
        loop {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            // New clusters first, so that clusters which wait for others through memory find them running; but not
            // without bound.
            let fresh = if parked.len() < 256 {
                let index = next.fetch_add(1, Ordering::Relaxed);
                (index < count).then(|| state.build(index))
            } else {
                None
            };
            let Some(mut cluster) = fresh.or_else(|| parked.pop_front()) else {
                break;
            };
            let before = cluster.clock;
            let turn = cluster.run(state, 1 << 18);
            let used = cluster.clock - before;
            let total = spent.fetch_add(used, Ordering::Relaxed) + used;
            match turn {
                Ok(Turn::Finished) => {
                    counters.add(&cluster.counters);
                    recycle(cluster);
                }
                Ok(Turn::Paused) if total > budget => {
                    let warp = cluster.warps.iter().position(|w| !w.finished()).unwrap_or(0);
                    let message = format!("the launch did not end within {budget} warp instructions");
                    let pc = cluster.warps[warp].pc;
                    report(
                        cluster.index,
                        state.fault(*Stop::new(FaultKind::StepBudget, message), &cluster, warp, pc),
                    );
                }
                Ok(Turn::Paused) => parked.push_back(cluster),
                Err((stopped, warp, pc)) => {
                    report(cluster.index, state.fault(*stopped, &cluster, warp, pc));
                }
            }
        }
        outcome.lock().unwrap_or_else(|e| e.into_inner()).0.add(&counters);
    };
    let threads = threads.min(usize::try_from(count).unwrap_or(usize::MAX));
    if threads <= 1 || state.program.order_matters || state.random_schedule {
        worker();
    } else {
        rayon::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|_| worker());
            }
        });
    }
    let (counters, fault) = outcome.into_inner().unwrap_or_else(|e| e.into_inner());
    match fault {
        Some((_, fault)) => Err(Error::Fault(fault)),
        None => Ok(state.program.statistics(&counters)),
    }
}
