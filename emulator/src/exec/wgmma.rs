//! `wgmma.*` (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions").
//!
//! The k-th `wgmma.mma_async` of each of a warpgroup's four warps is one operation. It can run once all four have issued it, reads shared
//! memory and the accumulators when it runs, and has run when a `wgmma.wait_group` that covers it is over. Operations of one
//! warpgroup run in order.

mod lower;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Lanes;
use crate::check::clocks::Operation as Ordered;
use crate::exec::asynchronous::{self, Issued, Range};
use crate::exec::memory::{AccessKind, Home};
use crate::exec::{Context, Operation, Outcome, Step};
use crate::fault::{Access, FaultKind, Stop};
use crate::machine::cluster::{Cluster, Pending, SHARED_START};
use crate::machine::launch::LaunchState;
use crate::machine::warp::Wait;
use crate::program::{Predicate, Register};
use crate::tensor::Descriptor;
use crate::tensor::wgmma::{Operands, Shape};

pub(crate) use lower::lower;

/// Operations whose order is remembered.
const HISTORY: usize = 256;

/// The wgmma operations of one warpgroup.
#[derive(Default)]
pub(crate) struct Warpgroup {
    /// Issued by at least one warp, not run.
    queue: VecDeque<Issue>,
    /// How many have run.
    run: u64,
    /// The order of operations that have run, by number; the last few.
    history: VecDeque<(u64, Option<Arc<Ordered>>)>,
    work: Option<Box<Operands>>,
}

impl Warpgroup {
    /// How many operations all four warps have issued.
    pub(crate) fn full(&self) -> u64 {
        self.run + self.queue.iter().take_while(|i| i.warps == 0xf).count() as u64
    }
}

/// One operation.
struct Issue {
    instruction: Arc<Instr>,
    id: u64,
    pc: u32,
    issued: Issued,
    /// Shared memory that it reads; only with the checks.
    reads: Vec<Range>,
    /// Warps that issued it.
    warps: u8,
    a: Option<u64>,
    b: u64,
    /// The fragments of A, four registers of each warp.
    fragments: Vec<Lanes>,
    scale: [bool; 4],
}

/// The constant part of a `wgmma.mma_async`.
struct Instr {
    shape: Shape,
    accumulators: Vec<Register>,
    /// Accumulators and fragments of A.
    registers: Arc<[Register]>,
}

enum A {
    Descriptor(Register),
    Registers(Vec<Register>),
}

enum Scale {
    Always(bool),
    Predicate(Predicate, bool),
}

struct MmaAsync {
    instruction: Arc<Instr>,
    a: A,
    b: Register,
    scale: Scale,
}

struct Fence;
struct Commit;
struct WaitGroup {
    newest: usize,
}

/// An operation that may run when the scheduler says.
struct Ready {
    cta: usize,
    group: usize,
    id: u64,
}

impl Pending for Ready {
    fn id(&self) -> u64 {
        self.id
    }

    fn reads(&self) -> bool {
        true
    }

    fn needs_a_wait(&self) -> Option<(&'static str, Access)> {
        None // each warp's exit checks that
    }

    fn complete(self: Box<Self>, cluster: &mut Cluster, launch: &LaunchState<'_>) -> Result<(), Box<Stop>> {
        // Everything before it runs first; it may have run already for the sake of a later one.
        while cluster.ctas[self.cta].asynchronous.warpgroups[self.group]
            .queue
            .front()
            .is_some_and(|i| i.id <= self.id)
        {
            execute(cluster, launch, self.cta, self.group)?;
        }
        Ok(())
    }
}

/// Runs the oldest operation of a warpgroup, which all four warps have issued. No warp may be taken out of the cluster.
fn execute(cluster: &mut Cluster, launch: &LaunchState<'_>, cta: usize, group: usize) -> Result<(), Box<Stop>> {
    let state = &mut cluster.ctas[cta];
    let warpgroup = &mut state.asynchronous.warpgroups[group];
    let Some(issue) = warpgroup.queue.pop_front() else {
        return Ok(());
    };
    if issue.issued.order.is_some() {
        // Older ones were waited for by every warp: no more than this many can be in flight with one wait outstanding.
        if warpgroup.history.len() == HISTORY {
            warpgroup.history.pop_front();
        }
        warpgroup.history.push_back((warpgroup.run, issue.issued.order.clone()));
    }
    warpgroup.run += 1;
    let mut work = warpgroup.work.take().unwrap_or_default();
    for range in &issue.reads {
        let home = Home::Shared(range.cta, range.offset);
        let who = issue.issued.who;
        issue
            .issued
            .watch(cluster, launch, home, range.bytes.into(), AccessKind::Read, false)
            .map_err(|s| if s.other.is_none() { s.other(who) } else { s })?;
    }
    let state = &mut cluster.ctas[cta];
    let shape = &issue.instruction.shape;
    let describe = |bits: u64, which: &str| {
        Descriptor::decode(bits).ok_or_else(|| {
            let message = format!("the descriptor of {which}, {bits:#018x}, has reserved bits set");
            Stop::new(FaultKind::Operand, message).other(issue.issued.who)
        })
    };
    let shared = state.shared.bytes();
    let outside = |e: crate::tensor::wgmma::OutOfBounds| {
        Stop::new(FaultKind::OutOfBounds, e.to_string())
            .address(e.address.into())
            .other(issue.issued.who)
    };
    match issue.a {
        Some(bits) => {
            work.a_shared(shape, &describe(bits, "A")?, shared, SHARED_START)
                .map_err(outside)?;
        }
        None => {
            for warp in 0..4 {
                let f = &issue.fragments[4 * warp..];
                work.a_registers(shape, warp, [&f[0], &f[1], &f[2], &f[3]]);
            }
        }
    }
    work.b_shared(shape, &describe(issue.b, "B")?, shared, SHARED_START)
        .map_err(outside)?;
    work.multiply(shape);
    let first = first_warp(launch, cta, group);
    for warp in 0..4 {
        let registers = &mut cluster.warps[first + warp].registers;
        for (i, &r) in issue.instruction.accumulators.iter().enumerate() {
            work.accumulate(shape, warp, i, issue.scale[warp], &mut registers[r as usize]);
        }
    }
    cluster.counters.tensor_flops += shape.flops();
    let unit = 32 * (shape.n + if issue.a.is_some() { 64 } else { 0 });
    cluster.counters.traffic[1].read += unit as u64;
    cluster.ctas[cta].asynchronous.warpgroups[group].work = Some(work);
    Ok(())
}

/// Index in the cluster of the first warp of a warpgroup.
fn first_warp(launch: &LaunchState<'_>, cta: usize, group: usize) -> usize {
    cta * launch.warps_per_cta() + 4 * group
}

/// Runs `f` with the running warp in its place.
fn with_all_warps<R>(cx: &mut Context<'_>, f: impl FnOnce(&mut Cluster, &LaunchState<'_>) -> R) -> R {
    let index = cx.warp_index();
    std::mem::swap(cx.warp, &mut cx.cluster.warps[index]);
    let result = f(cx.cluster, cx.launch);
    std::mem::swap(cx.warp, &mut cx.cluster.warps[index]);
    result
}

/// The warpgroup of the running warp.
fn warpgroup<'a>(cx: &'a mut Context<'_>) -> &'a mut Warpgroup {
    let group = cx.warp.id as usize / 4;
    let groups = &mut cx.cluster.ctas[cx.warp.cta].asynchronous.warpgroups;
    if groups.len() <= group {
        groups.resize_with(group + 1, Warpgroup::default);
    }
    &mut groups[group]
}

/// The 16-byte units of shared memory that an operand covers.
fn ranges(cx: &Context<'_>, bits: u64, shape: &Shape, is_a: bool) -> Result<Vec<Range>, Box<Stop>> {
    let (element, major, mn) = if is_a {
        (shape.a, shape.a_major, crate::tensor::wgmma::M)
    } else {
        (shape.b, shape.b_major, shape.n)
    };
    let Some(d) = Descriptor::decode(bits) else {
        return Ok(Vec::new()); // reported when it runs
    };
    let cta = cx.warp.cta;
    let length = cx.cluster.ctas[cta].shared.len();
    let mut out: Vec<Range> = Vec::new();
    d.for_each_unit(element, major, mn, |address, _, _| {
        let offset = address.wrapping_sub(SHARED_START);
        if offset.checked_add(16).is_some_and(|end| end <= length) {
            out.push(Range { cta, offset, bytes: 16 });
        }
    });
    // Few long ranges instead of many short ones.
    out.sort_unstable_by_key(|r| r.offset);
    out.dedup_by(|b, a| {
        let adjacent = b.offset <= a.offset + a.bytes;
        if adjacent {
            a.bytes = a.bytes.max(b.offset + 16 - a.offset);
        }
        adjacent
    });
    Ok(out)
}

impl Operation for MmaAsync {
    fn is_wgmma(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        cx.aligned()?;
        let group = cx.warp.id as usize / 4;
        let member = cx.warp.id as usize % 4;
        if (group + 1) * 4 > cx.launch.warps_per_cta() || cx.warp.live != !0 {
            return Err(Stop::new(
                FaultKind::BarrierDivergence,
                "a wgmma instruction needs a warpgroup of four full warps",
            ));
        }
        let instruction = &self.instruction;
        let a = match &self.a {
            A::Descriptor(r) => Some(cx.uniform(*r, "the descriptor of A")?),
            A::Registers(_) => None,
        };
        let b = cx.uniform(self.b, "the descriptor of B")?;
        let scale = match self.scale {
            Scale::Always(scale) => scale,
            Scale::Predicate(p, negated) => {
                let p = cx.warp.predicates[p as usize];
                let p = if negated { !p } else { p };
                if p != 0 && p != !0 {
                    return Err(Stop::new(FaultKind::Operand, "scale-d must be the same in all lanes"));
                }
                p != 0
            }
        };
        if cx.launch.checks.asynchronous {
            self.check_registers(cx, scale)?;
        }
        if scale && cx.launch.checks.uninitialised && !cx.warp.labels.is_empty() {
            let undefined = |r: &&Register| cx.warp.labels[**r as usize][0] != 0;
            if instruction.accumulators.iter().any(|r| undefined(&r)) {
                let message = "the wgmma adds to an accumulator that was never written";
                return Err(Stop::new(FaultKind::Uninitialised, message));
            }
        }
        let sequence = cx.warp.asynchronous.issued;
        let pc = cx.pc;
        let state = warpgroup(cx);
        let at = (sequence - state.run) as usize;
        if at == state.queue.len() {
            let mut reads = Vec::new();
            if cx.cluster.order.enabled() {
                if let Some(bits) = a {
                    reads = ranges(cx, bits, &instruction.shape, true)?;
                }
                reads.extend(ranges(cx, b, &instruction.shape, false)?);
            }
            let id = cx.cluster.asynchronous.fresh();
            let issued = Issued::new(cx, 0, true, false);
            let fragments = if a.is_none() { vec![[0; 32]; 16] } else { Vec::new() };
            let instruction = instruction.clone();
            let issue = Issue {
                instruction,
                id,
                pc,
                issued,
                reads,
                warps: 0,
                a,
                b,
                fragments,
                scale: [false; 4],
            };
            warpgroup(cx).queue.push_back(issue);
        }
        let fragments: Vec<Lanes> = match &self.a {
            A::Descriptor(_) => Vec::new(),
            A::Registers(list) => list.iter().map(|r| *cx.register(*r)).collect(),
        };
        let clocks = (cx.cluster.order.enabled()).then(|| {
            let w = cx.warp_index();
            cx.cluster.order.publish(w)
        });
        let issue = &mut warpgroup(cx).queue[at];
        if let (Some(clocks), Some(order)) = (clocks, issue.issued.order.as_mut()) {
            Arc::make_mut(order).meet(&clocks);
        }
        if issue.pc != pc || issue.a != a || issue.b != b {
            let message = format!(
                "the warps of a warpgroup execute different wgmma instructions, or with different descriptors (B {b:#018x} here, {:#018x} there)",
                issue.b
            );
            return Err(Stop::new(FaultKind::BarrierDivergence, message).other(issue.issued.who));
        }
        issue.warps |= 1 << member;
        issue.scale[member] = scale;
        for (slot, value) in issue.fragments.iter_mut().skip(4 * member).zip(fragments) {
            *slot = value;
        }
        let (id, ready) = (issue.id, issue.warps == 0xf);
        cx.warp.asynchronous.issued += 1;
        if cx.launch.checks.asynchronous {
            cx.warp.asynchronous.fly(sequence, &instruction.registers);
        }
        if ready {
            let cta = cx.warp.cta;
            if asynchronous::deferred(cx.launch) {
                cx.cluster.pending.push(Box::new(Ready { cta, group, id }));
            } else {
                with_all_warps(cx, |cluster, launch| execute(cluster, launch, cta, group))?;
            }
        }
        Ok(Step::Next)
    }
}

impl MmaAsync {
    /// There must have been a `wgmma.fence`, and none of the registers may have been accessed since.
    fn check_registers(&self, cx: &Context<'_>, scale: bool) -> Result<(), Box<Stop>> {
        let state = &cx.warp.asynchronous;
        let refuse = |message: String| Err(Stop::new(FaultKind::InFlight, message));
        if !state.fenced {
            return refuse("there is no wgmma.fence before the warp's first wgmma".into());
        }
        let accumulators = &self.instruction.accumulators[..];
        let fragments = match &self.a {
            A::Registers(list) => &list[..],
            A::Descriptor(_) => &[],
        };
        for (list, dead, what) in [
            (accumulators, !scale, "an accumulator"),
            (fragments, false, "a fragment of A"),
        ] {
            if state.unfenced(list, dead) {
                return refuse(format!(
                    "{what} was accessed since the last wgmma.fence; a fence must come before this wgmma"
                ));
            }
        }
        Ok(())
    }
}

impl Operation for Fence {
    fn is_wgmma(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        cx.aligned()?;
        cx.warp.asynchronous.fence();
        Ok(Step::Next)
    }
}

impl Operation for Commit {
    fn is_wgmma(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        cx.aligned()?;
        let state = &mut cx.warp.asynchronous;
        state.committed.push_back(state.issued);
        Ok(Step::Next)
    }
}

impl Operation for WaitGroup {
    fn is_wgmma(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        cx.aligned()?;
        let committed = &cx.warp.asynchronous.committed;
        let Some(over) = committed.len().checked_sub(self.newest).filter(|&n| n > 0) else {
            return Ok(Step::Next);
        };
        let target = committed[over - 1];
        let (cta, group) = (cx.warp.cta, cx.warp.id as usize / 4);
        let state = warpgroup(cx);
        if state.full() < target {
            return Ok(Step::Retry(Wait::Warpgroup { group, target }));
        }
        if state.run < target {
            with_all_warps(cx, |cluster, launch| {
                while cluster.ctas[cta].asynchronous.warpgroups[group].run < target {
                    execute(cluster, launch, cta, group)?;
                }
                Ok::<(), Box<Stop>>(())
            })?;
        }
        // The warp sees what the operations that it waited for have read as read.
        let w = cx.warp_index();
        let since = std::mem::replace(&mut cx.warp.asynchronous.waited, target);
        let done: Vec<Arc<Ordered>> = {
            let state = warpgroup(cx);
            let from = state.history.iter().filter(|(s, _)| (since..target).contains(s));
            from.filter_map(|(_, o)| o.clone()).collect()
        };
        for order in done {
            cx.cluster.order.take(w, &order.clocks);
        }
        cx.warp.asynchronous.committed.drain(..over);
        cx.warp.asynchronous.landed(target);
        Ok(Step::Next)
    }
}
