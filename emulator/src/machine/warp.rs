//! A warp: registers, the groups of lanes that run together, and the loop that executes instructions.
//!
//! Lanes that a branch parts become separate *splits*, each with its own program counter. They come together again
//! at the branch's immediate post-dominator: a split that reaches it waits in the branch's *join* until every lane
//! of the join has come or exited. Joins are only a matter of efficiency and of convergence for `.aligned`
//! instructions; when nothing else can run they are broken, so that lanes which a program makes wait for each other
//! always progress (independent thread scheduling).

use crate::Lanes;
use crate::exec::{Context, Step, asynchronous};
use crate::fault::{FaultKind, Stop};
use crate::machine::cluster::Cluster;
use crate::machine::launch::LaunchState;
use crate::program::{Combine, NO_PREDICATE, NOWHERE, Op};

/// What a split waits for.
#[derive(Clone, Debug)]
pub(crate) enum Wait {
    /// Nothing: it can run.
    None,
    /// A named barrier of its CTA leaving a generation.
    Barrier { id: usize, generation: u64 },
    /// The cluster barrier leaving a generation.
    Cluster { generation: u64 },
    /// A 64-bit word of shared memory (an `mbarrier`) becoming other than `value`; `offset` is from the start of
    /// the shared memory of CTA `cta` of the cluster. May time out.
    Memory { cta: usize, offset: u32, value: u64 },
    /// All four warps of a warpgroup having issued `target` wgmma operations.
    Warpgroup { group: usize, target: u64 },
    /// So many registers a thread being free in the CTA's pool.
    Registers { need: u32 },
    /// Other lanes of the warp arriving at the same instruction.
    Lanes { members: u32 },
    /// In a join.
    Join,
}

/// Lanes that run together.
#[derive(Clone, Debug)]
pub(super) struct Split {
    pub(super) pc: u32,
    pub(super) mask: u32,
    pub(super) join: u32,
    /// How far a multi-step operation has come; 0 at every fresh instruction.
    pub(super) stage: u32,
    pub(super) wait: Wait,
}

/// A place where lanes that parted meet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Join {
    pub(super) pc: u32,
    /// Lanes still to come.
    pub(super) coming: u32,
    /// Lanes that wait here.
    pub(super) arrived: u32,
    pub(super) parent: u32,
}

/// How a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SliceEnd {
    Quantum,
    Blocked,
    Finished,
}

/// Instructions for which lanes of a warp may stay apart before those that wait for the others go on without them: a lane
/// that spins may wait for just them. Lanes that run a long loop each in its own way must not be taken for such.
const PATIENCE: u64 = 1 << 20;

/// A warp.
#[derive(Default)]
pub(crate) struct Warp {
    /// Position of its CTA in the cluster.
    pub(crate) cta: usize,
    /// Its index in the CTA.
    pub(crate) id: u32,
    pub(crate) registers: Vec<Lanes>,
    pub(crate) predicates: Vec<u32>,
    /// Local memory, one lane after the other.
    pub(crate) local: Vec<u128>,
    /// Lanes that have threads and have not exited.
    pub(crate) live: u32,
    /// The place of the instruction that runs.
    pub(crate) pc: u32,
    /// Stage of the running instruction.
    pub(crate) stage: u32,
    /// A bounded wait gave up: the retried instruction must answer "not yet".
    pub(crate) timed_out: bool,
    pub(super) splits: Vec<Split>,
    pub(super) joins: Vec<Join>,
    /// Places in `joins` that nobody uses.
    pub(super) free: Vec<u32>,
    /// The allocation that each of a few recent memory instructions touched.
    pub(crate) hints: [u32; 16],
    /// Registers undefined and secret, by lane; only kept when the checks ask.
    pub(crate) labels: Vec<[u32; 2]>,
    pub(crate) predicate_labels: Vec<[u32; 2]>,
    /// Instructions since all lanes were together.
    apart: u64,
    pub(crate) asynchronous: asynchronous::WarpState,
    /// The cluster barrier's generation when this warp arrived, until it waits.
    pub(crate) cluster_arrived: Option<u64>,
    /// Lanes to which the running instruction gave secret memory.
    pub(crate) loaded_secret: u32,
}

/// The lanes of a mask.
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros();
        mask &= mask - 1;
        Some(lane as usize)
    })
}

/// Writes the lanes of `mask`.
#[inline(always)]
pub(crate) fn blend(to: &mut Lanes, from: &Lanes, mask: u32) {
    if mask == !0 {
        *to = *from;
    } else {
        for i in 0..32 {
            if mask >> i & 1 != 0 {
                to[i] = from[i];
            }
        }
    }
}

impl Warp {
    pub(crate) fn start(cta: usize, id: u32, threads: u32, registers: Vec<Lanes>, launch: &LaunchState<'_>) -> Self {
        let live = if threads >= 32 { !0 } else { (1 << threads) - 1 };
        let program = launch.program;
        let mut warp = Warp {
            cta,
            id,
            registers,
            predicates: vec![0; program.predicates as usize],
            local: vec![0; program.local_bytes as usize * 2],
            live,
            splits: vec![Split {
                pc: 0,
                mask: live,
                join: NOWHERE,
                stage: 0,
                wait: Wait::None,
            }],
            ..Warp::default()
        };
        if launch.labels {
            warp.labels = vec![[!0, 0]; program.registers as usize];
            program
                .constants
                .iter()
                .for_each(|(r, _)| warp.labels[*r as usize] = [0, 0]);
            warp.predicate_labels = vec![[!0, 0]; program.predicates as usize];
        }
        warp
    }

    pub(crate) fn finished(&self) -> bool {
        self.live == 0
    }

    /// Makes splits whose wait is over runnable; whether any split can run.
    pub(crate) fn wake(&mut self, ready: impl Fn(&Wait) -> bool) -> bool {
        let mut any = false;
        for split in &mut self.splits {
            if matches!(split.wait, Wait::None) || ready(&split.wait) {
                split.wait = Wait::None;
                any = true;
            }
        }
        any || self.gather()
    }

    pub(crate) fn could_run(&self) -> bool {
        self.splits.iter().any(|s| matches!(s.wait, Wait::None))
    }

    pub(crate) fn waits(&self) -> impl Iterator<Item = &Wait> {
        self.splits.iter().map(|s| &s.wait)
    }

    /// What is blocked where, for messages.
    pub(crate) fn blocked(&self) -> impl Iterator<Item = (u32, u32, &Wait)> {
        let joins = self
            .joins
            .iter()
            .filter(|j| j.arrived != 0)
            .map(|j| (j.pc, j.arrived, &Wait::Join));
        self.splits
            .iter()
            .map(|s| {
                (
                    s.pc.saturating_sub(u32::from(
                        s.stage == 0 && !matches!(s.wait, Wait::Memory { .. } | Wait::Lanes { .. }),
                    )),
                    s.mask,
                    &s.wait,
                )
            })
            .chain(joins)
    }

    /// Ends bounded waits; whether there was one.
    pub(crate) fn time_out(&mut self) -> bool {
        let mut any = false;
        for split in &mut self.splits {
            if matches!(split.wait, Wait::Memory { .. }) {
                split.wait = Wait::None;
                split.stage = TIMED_OUT;
                any = true;
            }
        }
        any
    }

    /// Runs one runnable split for up to `quantum` instructions.
    pub(crate) fn run(
        &mut self,
        cluster: &mut Cluster,
        launch: &LaunchState<'_>,
        quantum: u64,
    ) -> Result<SliceEnd, Box<Stop>> {
        let pick = self.splits.iter().position(|s| matches!(s.wait, Wait::None));
        let Some(pick) = pick else { return Ok(SliceEnd::Blocked) };
        let split = self.splits.remove(pick);
        let begin = cluster.clock;
        let end = if launch.labels || launch.registers_watched {
            self.run_split::<true>(split, cluster, launch, quantum)?
        } else {
            self.run_split::<false>(split, cluster, launch, quantum)?
        };
        if end == SliceEnd::Quantum && self.joins.len() > self.free.len() {
            // A split that spins must not keep lanes in a join for ever that could end the spinning.
            self.apart += cluster.clock - begin;
            if self.apart > PATIENCE {
                self.apart = 0;
                self.break_join();
            }
        }
        if self.live == 0 {
            return Ok(SliceEnd::Finished);
        }
        Ok(end)
    }

    fn run_split<const CHECK: bool>(
        &mut self,
        split: Split,
        cluster: &mut Cluster,
        launch: &LaunchState<'_>,
        quantum: u64,
    ) -> Result<SliceEnd, Box<Stop>> {
        let program = launch.program;
        let code = &program.code[..];
        let Split {
            mut pc,
            mut mask,
            mut join,
            stage,
            ..
        } = split;
        self.stage = stage;
        let mut join_pc = if join == NOWHERE {
            NOWHERE
        } else {
            self.joins[join as usize].pc
        };
        let mut left = quantum;
        // The body of the loop returns through this: park the split in a state.
        macro_rules! park {
            ($wait:expr, $end:expr) => {{
                cluster.clock += quantum - left;
                cluster.counters.warps += quantum - left;
                self.splits.push(Split {
                    pc,
                    mask,
                    join,
                    stage: self.stage,
                    wait: $wait,
                });
                return Ok($end);
            }};
        }
        loop {
            if pc == join_pc {
                let j = &mut self.joins[join as usize];
                j.arrived |= mask;
                j.coming &= !mask;
                if j.coming != 0 {
                    cluster.clock += quantum - left;
                    cluster.counters.warps += quantum - left;
                    return Ok(if self.could_run() {
                        SliceEnd::Quantum
                    } else {
                        SliceEnd::Blocked
                    });
                }
                mask = j.arrived;
                j.arrived = 0;
                self.free.push(join);
                join = j.parent;
                join_pc = if join == NOWHERE {
                    self.apart = 0;
                    NOWHERE
                } else {
                    self.joins[join as usize].pc
                };
                continue;
            }
            if left == 0 {
                park!(Wait::None, SliceEnd::Quantum);
            }
            left -= 1;
            self.pc = pc;
            let Some(ins) = code.get(pc as usize) else {
                return Err(Stop::new(FaultKind::Trap, "control ran past the end of the function"));
            };
            let mut active = mask;
            if ins.guard != NO_PREDICATE {
                let p = self.predicates[ins.guard as usize];
                active &= if ins.negated { !p } else { p };
                if CHECK && launch.labels {
                    self.check_guard(ins.guard, mask, matches!(ins.op, Op::Branch { .. }), launch)?;
                }
            }
            cluster.counters.threads[pc as usize] += u64::from(active.count_ones());
            if CHECK && active != 0 {
                if launch.registers_watched {
                    self.check_in_flight(pc, launch)?;
                }
                if launch.labels {
                    self.check_before(pc, active, launch)?;
                }
            }
            match ins.op {
                Op::Branch { target, join: meet } => {
                    let stay = mask & !active;
                    if active == 0 {
                        pc += 1;
                    } else if stay == 0 {
                        pc = target;
                    } else {
                        if meet != NOWHERE && meet != join_pc {
                            join = self.new_join(meet, mask, join);
                            join_pc = meet;
                        }
                        // The lanes that go to the join at once arrive there; otherwise the branch not taken waits.
                        let deposit = |warp: &mut Warp, at: u32, lanes: u32| {
                            if at == join_pc {
                                let j = &mut warp.joins[join as usize];
                                j.arrived |= lanes;
                                j.coming &= !lanes;
                            } else {
                                let wait = Wait::None;
                                warp.splits.push(Split {
                                    pc: at,
                                    mask: lanes,
                                    join,
                                    stage: 0,
                                    wait,
                                });
                            }
                        };
                        if target == join_pc {
                            deposit(self, target, active);
                            mask = stay;
                            pc += 1;
                        } else {
                            deposit(self, pc + 1, stay);
                            mask = active;
                            pc = target;
                        }
                    }
                    continue;
                }
                Op::Exit => {
                    pc += 1;
                    if active != 0 {
                        self.exit(active, join);
                        mask &= !active;
                        if mask == 0 {
                            cluster.clock += quantum - left;
                            cluster.counters.warps += quantum - left;
                            return Ok(if self.could_run() {
                                SliceEnd::Quantum
                            } else {
                                SliceEnd::Blocked
                            });
                        }
                    }
                    continue;
                }
                _ if active == 0 => {
                    pc += 1;
                    continue;
                }
                Op::Nop => {}
                Op::Copy { d, a } => {
                    let a = self.registers[a as usize];
                    blend(&mut self.registers[d as usize], &a, active);
                }
                Op::Map1 { f, d, a } => {
                    let out = &mut *cluster.scratch;
                    f(out, &self.registers[a as usize]);
                    blend(&mut self.registers[d as usize], out, active);
                }
                Op::Map2 { f, d, a, b } => {
                    let out = &mut *cluster.scratch;
                    f(out, &self.registers[a as usize], &self.registers[b as usize]);
                    blend(&mut self.registers[d as usize], out, active);
                }
                Op::Map3 { f, d, a, b, c } => {
                    let out = &mut *cluster.scratch;
                    let r = &self.registers;
                    f(out, &r[a as usize], &r[b as usize], &r[c as usize]);
                    blend(&mut self.registers[d as usize], out, active);
                }
                Op::Map4 { f, d, s } => {
                    let out = &mut *cluster.scratch;
                    let r = &self.registers;
                    f(
                        out,
                        &r[s[0] as usize],
                        &r[s[1] as usize],
                        &r[s[2] as usize],
                        &r[s[3] as usize],
                    );
                    blend(&mut self.registers[d as usize], out, active);
                }
                Op::Test { f, p, q, a, b, combine } => {
                    let result = f(&self.registers[a as usize], &self.registers[b as usize]);
                    let (yes, no) = (self.combine(result, combine), self.combine(!result, combine));
                    set_mask(&mut self.predicates[q as usize], no, active);
                    set_mask(&mut self.predicates[p as usize], yes, active);
                }
                Op::TestValue {
                    f,
                    d,
                    a,
                    b,
                    one,
                    combine,
                } => {
                    let result = f(&self.registers[a as usize], &self.registers[b as usize]);
                    let result = self.combine(result, combine);
                    let d = &mut self.registers[d as usize];
                    for lane in lanes(active) {
                        d[lane] = if result >> lane & 1 != 0 { one } else { 0 };
                    }
                }
                Op::Select { d, a, b, p, negated } => {
                    let p = self.predicates[p as usize] ^ if negated { !0 } else { 0 };
                    let out = &mut *cluster.scratch;
                    let (a, b) = (&self.registers[a as usize], &self.registers[b as usize]);
                    for i in 0..32 {
                        out[i] = if p >> i & 1 != 0 { a[i] } else { b[i] };
                    }
                    blend(&mut self.registers[d as usize], out, active);
                }
                Op::Logic { d, a, b, table } => {
                    let (a, b) = (self.predicates[a as usize], self.predicates[b as usize]);
                    let bit = |i: u8| if table >> i & 1 != 0 { !0u32 } else { 0 };
                    let result = bit(0) & !a & !b | bit(1) & !a & b | bit(2) & a & !b | bit(3) & a & b;
                    set_mask(&mut self.predicates[d as usize], result, active);
                }
                Op::Other(ref operation) => {
                    if self.stage == TIMED_OUT {
                        self.stage = 0;
                        self.timed_out = true;
                    }
                    let mut context = Context {
                        warp: self,
                        cluster,
                        launch,
                        mask: active,
                        pc,
                    };
                    let step = operation.run(&mut context)?;
                    self.timed_out = false;
                    match step {
                        Step::Next => self.stage = 0,
                        Step::Yield => {
                            self.stage = 0;
                            if CHECK && launch.labels {
                                self.check_after(pc, active, launch);
                            }
                            pc += 1;
                            park!(Wait::None, SliceEnd::Quantum);
                        }
                        Step::Wait(wait) => {
                            self.stage = 0;
                            if CHECK && launch.labels {
                                self.check_after(pc, active, launch);
                            }
                            pc += 1;
                            park!(wait, SliceEnd::Blocked);
                        }
                        Step::Retry(wait) => park!(wait, SliceEnd::Blocked),
                        Step::Jump { targets, join: meet } => {
                            // An indexed branch: one group of lanes for every target.
                            self.stage = 0;
                            if meet != NOWHERE && meet != join_pc && targets.len() > 1 {
                                join = self.new_join(meet, mask, join);
                            }
                            let stay = mask & !active;
                            let mut groups = targets;
                            if stay != 0 {
                                groups.push((pc + 1, stay));
                            }
                            for (pc, mask) in groups {
                                self.splits.push(Split {
                                    pc,
                                    mask,
                                    join,
                                    stage: 0,
                                    wait: Wait::None,
                                });
                            }
                            cluster.clock += quantum - left;
                            cluster.counters.warps += quantum - left;
                            return Ok(SliceEnd::Quantum);
                        }
                    }
                }
            }
            if CHECK && launch.labels {
                self.check_after(pc, active, launch);
            }
            pc += 1;
        }
    }

    #[inline(always)]
    fn combine(&self, result: u32, combine: Option<Combine>) -> u32 {
        match combine {
            None => result,
            Some(Combine {
                with,
                predicate,
                negated,
            }) => {
                let p = self.predicates[predicate as usize];
                with.apply(result, if negated { !p } else { p })
            }
        }
    }
}

/// [`Split::stage`] of a split whose bounded wait gave up.
const TIMED_OUT: u32 = u32::MAX;

#[inline(always)]
fn set_mask(to: &mut u32, value: u32, mask: u32) {
    *to = *to & !mask | value & mask;
}
