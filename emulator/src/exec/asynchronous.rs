//! What the machine remembers of asynchronous operations: which are pending, which groups they belong to, what a wait for them
//! orders, and which registers `wgmma` uses.
//!
//! Without checks and without a seed an operation completes when it is issued. With a seed it completes at a random moment that
//! the memory model allows; with the asynchronous checks but no seed as late as it may, which is when somebody waits for it.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::check::clocks::Operation as Ordered;
use crate::exec::Context;
use crate::exec::memory::{AccessKind, Home};
use crate::fault::{Access, FaultKind, Stop};
use crate::machine::cluster::{Cluster, SHARED_START};
use crate::machine::launch::LaunchState;
use crate::machine::warp::Warp;
use crate::program::{Op, Register};
use crate::tensor::mbarrier::Mbarrier;

/// Whether operations complete later than they are issued.
pub(crate) fn deferred(launch: &LaunchState<'_>) -> bool {
    launch.random_schedule || launch.checks.asynchronous
}

/// Bytes of shared memory of a CTA of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) cta: usize,
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
}

/// Who issued an operation, and what that orders. Without checks there is no order to keep.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) who: Access,
    /// As far as it reads shared memory and everything else of a load.
    pub(crate) order: Option<Arc<Ordered>>,
    /// The writes to global memory of a store, which a wait for its reads does not cover.
    pub(crate) written: Option<Arc<Ordered>>,
    /// Through the asynchronous proxy; `cp.async` is not.
    pub(crate) proxy: bool,
}

impl Issued {
    /// By a lane of the running warp.
    pub(crate) fn new(cx: &mut Context<'_>, lane: usize, proxy: bool, stores: bool) -> Self {
        let who = cx.who(lane);
        let w = cx.warp_index();
        let order = &mut cx.cluster.order;
        let mut begin = || order.enabled().then(|| Arc::new(order.operation(w)));
        let first = begin();
        Self {
            who,
            order: first,
            written: if stores { begin() } else { None },
            proxy,
        }
    }

    /// Checks and remembers an access; `second` of the part that writes global memory.
    pub(crate) fn watch(
        &self,
        cluster: &mut Cluster,
        launch: &LaunchState<'_>,
        home: Home,
        size: u64,
        kind: AccessKind,
        second: bool,
    ) -> Result<(), Box<Stop>> {
        let order = if second { &self.written } else { &self.order };
        match order {
            Some(order) if size != 0 => {
                cluster.watch_asynchronous(launch, order, (home, size, kind), self.proxy, self.who)
            }
            _ => Ok(()),
        }
    }
}

/// State of a cluster.
#[derive(Default)]
pub(crate) struct ClusterState {
    next: u64,
}

impl ClusterState {
    /// A name for an operation.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// State of a CTA.
#[derive(Default)]
pub(crate) struct CtaState {
    /// Initialised `mbarrier`s and who initialised them; only kept with the checks.
    pub(crate) mbarriers: BTreeMap<u32, Access>,
    /// `wgmma` state of each warpgroup.
    pub(crate) warpgroups: Vec<super::wgmma::Warpgroup>,
    /// Registers that `setmaxnreg.dec` returned, and what each warp holds per thread.
    pub(crate) register_pool: Option<super::registers::Pool>,
}

/// An operation of a group.
#[derive(Clone)]
pub(crate) struct Member {
    id: u64,
    issued: Issued,
}

/// One group of asynchronous copies.
struct Group {
    /// Lanes that have not waited for it.
    mask: u32,
    /// Lanes that have not waited for its reads.
    reads: u32,
    members: Vec<Member>,
}

/// The groups of one kind of a warp's threads.
#[derive(Default)]
pub(crate) struct Groups {
    open: Vec<(u32, Member)>,
    committed: Vec<Group>,
}

impl Groups {
    /// An operation of the lanes `mask` joins their open groups.
    pub(crate) fn add(&mut self, mask: u32, id: u64, issued: Issued) {
        self.open.push((mask, Member { id, issued }));
    }

    /// The lanes `mask` close their open groups.
    pub(crate) fn commit(&mut self, mask: u32) {
        let members = self
            .open
            .iter()
            .filter(|(m, _)| m & mask != 0)
            .map(|(_, member)| member.clone())
            .collect();
        self.open.retain_mut(|(m, _)| {
            *m &= !mask;
            *m != 0
        });
        self.committed.push(Group {
            mask,
            reads: mask,
            members,
        });
    }

    /// The operations that `mask` waits for when it lets `newest` groups pend, which count as waited for from now on.
    pub(crate) fn wait(&mut self, mask: u32, newest: usize, read: bool) -> Vec<Member> {
        let mut members: Vec<Member> = Vec::new();
        for lane in crate::machine::warp::lanes(mask) {
            let has = |g: &&mut Group| g.mask >> lane & 1 != 0;
            let mine = self.committed.iter_mut().filter(has).count();
            for group in self.committed.iter_mut().filter(has).take(mine.saturating_sub(newest)) {
                for member in &group.members {
                    if !members.iter().any(|m| m.id == member.id) {
                        members.push(member.clone());
                    }
                }
                group.reads &= !(1 << lane);
                if !read {
                    group.mask &= !(1 << lane);
                }
            }
        }
        self.committed.retain(|g| g.mask != 0);
        members
    }

    /// The open operations of `mask` and everything it committed (`cp.async.mbarrier.arrive`).
    pub(crate) fn all(&self, mask: u32) -> Vec<Member> {
        let open = self.open.iter().filter(|(m, _)| m & mask != 0).map(|(_, m)| m);
        let committed = self
            .committed
            .iter()
            .filter(|g| g.mask & mask != 0)
            .flat_map(|g| &g.members);
        open.chain(committed).cloned().collect()
    }

    /// Lanes with an operation whose reads they never waited for.
    pub(crate) fn unwaited(&self) -> u32 {
        let open = self.open.iter().fold(0, |m, (o, _)| m | o);
        let committed = self
            .committed
            .iter()
            .filter(|g| !g.members.is_empty())
            .fold(0, |m, g| m | g.reads);
        open | committed
    }
}

/// State of a warp.
#[derive(Default)]
pub(crate) struct WarpState {
    /// `cp.async` groups.
    pub(crate) copies: Groups,
    /// `cp.async.bulk` groups.
    pub(crate) bulk: Groups,
    /// All `wgmma` before this one were waited for.
    pub(crate) waited: u64,
    /// `wgmma` instructions issued.
    pub(crate) issued: u64,
    /// `issued` at each `wgmma.commit_group` that was not waited for.
    pub(crate) committed: VecDeque<u64>,
    /// The registers of each `wgmma` not waited for.
    pub(crate) in_flight: VecDeque<(u64, Arc<[Register]>)>,
    /// Bit set of the registers in `in_flight`.
    flying: Vec<u64>,
    /// Bit set of the registers that hold what a `wgmma` left there.
    results: Vec<u64>,
    /// Bit sets of the registers of those read, and of all registers written, since the last `wgmma.fence`.
    read: Vec<u64>,
    written: Vec<u64>,
    /// There was a `wgmma.fence`.
    pub(crate) fenced: bool,
}

fn set(bits: &mut Vec<u64>, register: Register) {
    let word = register as usize / 64;
    if bits.len() <= word {
        bits.resize(word + 1, 0);
    }
    bits[word] |= 1 << (register % 64);
}

fn clear(bits: &mut [u64], register: Register) {
    if let Some(word) = bits.get_mut(register as usize / 64) {
        *word &= !(1 << (register % 64));
    }
}

fn has(bits: &[u64], register: Register) -> bool {
    bits.get(register as usize / 64)
        .is_some_and(|w| w >> (register % 64) & 1 != 0)
}

impl WarpState {
    /// Notes accesses of an ordinary instruction; the register among them that a `wgmma` in flight uses.
    pub(crate) fn touch(&mut self, registers: &[Register], write: bool) -> Option<Register> {
        let mut hit = None;
        for &r in registers {
            if write {
                set(&mut self.written, r);
                clear(&mut self.results, r);
            } else if has(&self.results, r) {
                set(&mut self.read, r);
            }
            if !self.in_flight.is_empty() && has(&self.flying, r) {
                hit = Some(r);
            }
        }
        hit
    }

    /// `wgmma.fence`.
    pub(crate) fn fence(&mut self) {
        self.read.fill(0);
        self.written.fill(0);
        self.fenced = true;
    }

    /// Whether since the last fence a register of a `wgmma` was written, or the result of an earlier `wgmma` there was read. Writes of
    /// accumulators that it only writes (`dead`) do not count: compilers put the zeros of `scale-d = 0`, which nobody reads, behind the
    /// fence.
    pub(crate) fn unfenced(&self, registers: &[Register], dead: bool) -> bool {
        registers
            .iter()
            .any(|&r| has(&self.read, r) || !dead && has(&self.written, r))
    }

    /// A `wgmma` was issued.
    pub(crate) fn fly(&mut self, sequence: u64, registers: &Arc<[Register]>) {
        for &r in &registers[..] {
            set(&mut self.flying, r);
            // From here on the accesses that count are those while it is in flight.
            clear(&mut self.read, r);
            clear(&mut self.written, r);
            set(&mut self.results, r);
        }
        self.in_flight.push_back((sequence, registers.clone()));
    }

    /// What a warp must not leave behind.
    ///
    /// # Errors
    /// A `wgmma` or a bulk store that reads shared memory was not waited for.
    pub(crate) fn finish(&self) -> Result<(), Box<Stop>> {
        if !self.in_flight.is_empty() {
            let message = "the warp exits while a wgmma is in flight: wgmma.wait_group must come first";
            return Err(Stop::new(FaultKind::InFlight, message));
        }
        let lanes = self.bulk.unwaited();
        if lanes != 0 {
            let message = "the thread exits without cp.async.bulk.wait_group(.read) for its bulk stores, which still read shared memory";
            return Err(Stop::new(FaultKind::BulkGroup, message).lane(lanes.trailing_zeros()));
        }
        Ok(())
    }

    /// All `wgmma` before `target` were waited for.
    pub(crate) fn landed(&mut self, target: u64) {
        while self.in_flight.front().is_some_and(|(s, _)| *s < target) {
            self.in_flight.pop_front();
        }
        self.flying.fill(0);
        for (_, registers) in &self.in_flight {
            for &r in &registers[..] {
                set(&mut self.flying, r);
            }
        }
    }
}

/// What a cluster must not leave behind: transactions that were expected and never came, operations that nobody waited for.
///
/// # Errors
/// The first of these.
pub(crate) fn finish(cluster: &mut Cluster) -> Result<(), Box<Stop>> {
    if let Some((what, who)) = cluster.pending.iter().find_map(|p| p.needs_a_wait()) {
        let message = format!("the kernel ends while {what} is in flight: nobody waited for it");
        return Err(Stop::new(FaultKind::BulkGroup, message).other(who));
    }
    for cta in &cluster.ctas {
        for (&offset, &who) in &cta.asynchronous.mbarriers {
            let Ok(b) = Mbarrier::decode(cta.shared.word(offset)) else {
                continue;
            };
            if b.tx != 0 {
                let message = format!(
                    "the kernel ends while the mbarrier's current phase ({}) has a tx-count of {}: the bytes expected and those that arrived differ",
                    b.parity(),
                    b.tx
                );
                return Err(Stop::new(FaultKind::Mbarrier, message)
                    .address(u64::from(offset + SHARED_START))
                    .other(who));
            }
        }
    }
    Ok(())
}

/// Completes an operation if it is still pending; with `reading`, only as far as its reads go.
pub(crate) fn complete(
    cluster: &mut Cluster,
    launch: &LaunchState<'_>,
    id: u64,
    reading: bool,
) -> Result<(), Box<Stop>> {
    while let Some(i) = cluster
        .pending
        .iter()
        .position(|p| p.id() == id && (!reading || p.reads()))
    {
        let pending = cluster.pending.remove(i);
        pending.complete(cluster, launch)?;
    }
    Ok(())
}

/// The running warp waits for operations.
pub(crate) fn wait(cx: &mut Context<'_>, members: &[Member], reading: bool) -> Result<(), Box<Stop>> {
    for member in members {
        complete(cx.cluster, cx.launch, member.id, reading)?;
        let w = cx.warp_index();
        let issued = &member.issued;
        let written = if reading { None } else { issued.written.as_ref() };
        for order in issued.order.iter().chain(written) {
            cx.cluster.order.take(w, &order.clocks);
        }
    }
    Ok(())
}

impl Member {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn issued(&self) -> &Issued {
        &self.issued
    }
}

impl Warp {
    /// Notes the registers of an instruction and refuses those that a `wgmma` in flight uses.
    pub(crate) fn check_in_flight(&mut self, pc: u32, launch: &LaunchState<'_>) -> Result<(), Box<Stop>> {
        let program = launch.program;
        if matches!(&program.code[pc as usize].op, Op::Other(o) if o.is_wgmma()) {
            return Ok(());
        }
        let info = &program.info[pc as usize];
        for (list, write) in [(program.list(info.reads), false), (program.list(info.writes), true)] {
            if self.asynchronous.touch(list, write).is_some() {
                let message =
                    "the instruction accesses a register that a wgmma in flight uses: wgmma.wait_group must come first";
                return Err(Stop::new(FaultKind::InFlight, message));
            }
        }
        Ok(())
    }
}

impl Context<'_> {
    /// The access of one lane of the running instruction, for messages about it later.
    pub(crate) fn who(&self, lane: usize) -> Access {
        let [x, y, z] = self.cluster.ctas[self.warp.cta].index;
        let cta = x + self.launch.grid[0] * (y + self.launch.grid[1] * z);
        Access {
            pc: self.pc,
            cta,
            warp: self.warp.id,
            lane: lane as u32,
        }
    }
}
