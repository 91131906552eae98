//! Barriers of warps, CTAs and clusters, and fences.

use super::{Context, Operation, Outcome, Step};
use crate::fault::{FaultKind, Stop};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::machine::cluster::BARRIERS;
use crate::machine::warp::{Wait, lanes};
use crate::program::{Op, Predicate, Register};
use crate::syntax::ast::{Instruction, Operand};

#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    Count,
    All,
    Any,
}

/// `bar` and `barrier`.
struct Barrier {
    id: Register,
    threads: Option<Register>,
    aligned: bool,
    /// `arrive`: does not wait.
    arrive: bool,
    /// `red`: the operation, the destination, and the predicate that is reduced.
    reduction: Option<(Reduction, u32, Predicate, bool)>,
}

impl Operation for Barrier {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        if self.aligned {
            cx.aligned()?;
        }
        let id = cx.uniform(self.id, "the barrier")? as usize & 0xFFFF_FFFF;
        if id >= BARRIERS {
            return Err(Stop::new(
                FaultKind::BarrierCount,
                format!("barrier {id}, allowed: 0 to 15"),
            ));
        }
        if let (1, Some((reduction, d, ..))) = (cx.warp.stage, self.reduction) {
            // The barrier completed; its result is still there, for nobody completes the next one without us.
            let (yes, came) = cx.cta().barriers[id].result;
            let mask = cx.mask;
            let result = match reduction {
                Reduction::Count => {
                    for lane in lanes(mask) {
                        cx.register_mut(d)[lane] = u64::from(yes);
                    }
                    return Ok(Step::Next);
                }
                Reduction::All => yes == came,
                Reduction::Any => yes != 0,
            };
            let p = &mut cx.warp.predicates[d as usize];
            *p = *p & !mask | if result { mask } else { 0 };
            return Ok(Step::Next);
        }
        let expected = match self.threads {
            None => None,
            Some(r) => Some(cx.uniform(r, "the barrier's thread count")? as u32),
        };
        if let Some(count) = expected {
            let most = cx.launch.threads().next_multiple_of(32);
            if count == 0 || count % 32 != 0 || count > most {
                let message = format!("barrier {id} of {count} threads, allowed: multiples of 32 up to {most}");
                return Err(Stop::new(FaultKind::BarrierCount, message));
            }
        }
        // A warp counts with all its lanes, also those that have exited or never were.
        let present = if cx.mask == cx.warp.live {
            32
        } else {
            cx.mask.count_ones()
        };
        let mask = cx.mask;
        let predicate = self
            .reduction
            .map(|(_, _, p, negated)| (cx.warp.predicates[p as usize] ^ if negated { !0 } else { 0 }) & mask);
        let barrier = &mut cx.cta().barriers[id];
        if barrier.arrived > 0 && (barrier.expected != expected || barrier.all != expected.is_none()) {
            let name = |count: Option<u32>| count.map_or("all".into(), |c| c.to_string());
            let message = format!(
                "barrier {id} of {} threads, where warps that arrived before said {}",
                name(expected),
                name(barrier.expected)
            );
            return Err(Stop::new(FaultKind::BarrierCount, message));
        }
        barrier.expected = expected;
        barrier.all = expected.is_none();
        barrier.arrived += present;
        if let Some(expected) = expected.filter(|e| barrier.arrived > *e) {
            let message = format!("{} threads arrived at barrier {id} of {expected}", barrier.arrived);
            return Err(Stop::new(FaultKind::BarrierCount, message));
        }
        if let Some(predicate) = predicate {
            barrier.reduction.0 += predicate.count_ones();
            barrier.reduction.1 += mask.count_ones();
        }
        let generation = barrier.generation;
        cx.barrier_arrival(id, !self.arrive);
        let cta = cx.warp.cta;
        cx.cluster.settle(cta, id);
        if self.arrive {
            return Ok(Step::Next);
        }
        let wait = Wait::Barrier { id, generation };
        if self.reduction.is_some() {
            cx.warp.stage = 1;
            return Ok(Step::Retry(wait));
        }
        Ok(Step::Wait(wait))
    }
}

/// `bar.warp.sync`.
struct WarpBarrier {
    members: Register,
}

impl Operation for WarpBarrier {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        match cx.members(self.members)? {
            Err(step) => Ok(step),
            Ok(_) => {
                cx.warp_synchronised();
                Ok(Step::Next)
            }
        }
    }
}

/// `barrier.cluster.arrive` and `.wait`.
struct ClusterBarrier {
    arrive: bool,
    aligned: bool,
}

impl Operation for ClusterBarrier {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        if self.aligned {
            cx.aligned()?;
        }
        if self.arrive {
            if cx.warp.cluster_arrived.is_some() {
                let message = "barrier.cluster.arrive twice without a wait";
                return Err(Stop::new(FaultKind::BarrierCount, message));
            }
            let present = if cx.mask == cx.warp.live {
                32
            } else {
                cx.mask.count_ones()
            };
            cx.warp.cluster_arrived = Some(cx.cluster.barrier.generation);
            cx.cluster.barrier.arrived += present;
            cx.cluster_arrival();
            cx.cluster.settle_cluster_barrier();
            return Ok(Step::Next);
        }
        match cx.warp.cluster_arrived.take() {
            Some(generation) => {
                cx.cluster_departure(generation);
                Ok(Step::Wait(Wait::Cluster { generation }))
            }
            None => Err(Stop::new(
                FaultKind::BarrierCount,
                "barrier.cluster.wait without an arrive",
            )),
        }
    }
}

/// Fences: every access of this machine is performed at once, so only the checks take notice.
struct Fence {
    kind: FenceKind,
}

/// What a fence orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FenceKind {
    /// Memory accesses of the generic proxy, at CTA scope.
    Cta,
    /// At cluster scope or wider.
    Wide,
    /// Generic and asynchronous accesses (`fence.proxy.async`).
    Proxy,
    /// Initialisations of `mbarrier`s (`fence.mbarrier_init`).
    MbarrierInit,
}

impl Operation for Fence {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        cx.fenced(self.kind);
        Ok(Step::Next)
    }
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    match &*i.opcode {
        "bar" | "barrier" => {
            if m.take("warp") {
                let _ = m.take("sync");
                let [members] = l.operands(i)?;
                let members = l.source(members, Type::U32)?;
                return l.other(WarpBarrier { members });
            }
            if m.take("cluster") {
                let Some(arrive) = m.take_one(&["arrive", "wait"]) else {
                    return l.refuse("arrive or wait is missing");
                };
                let _ = m.take_one(&["release", "relaxed", "acquire"]);
                let aligned = m.take("aligned");
                return l.other(ClusterBarrier {
                    arrive: arrive == 0,
                    aligned,
                });
            }
            let _ = m.take("cta");
            let Some(mode) = m.take_one(&["sync", "arrive", "red"]) else {
                return l.refuse("the mode is missing");
            };
            // `bar` is always aligned.
            let aligned = m.take("aligned") || &*i.opcode == "bar";
            let mut operands = &i.operands[..];
            let mut reduction = None;
            let mut head = None;
            if mode == 2 {
                let operation = m.take_one(&["popc", "and", "or"]);
                let _ = m.ty();
                let (Some(operation), [d, rest @ .., p]) = (operation, operands) else {
                    return l.refuse("it has too few operands");
                };
                operands = rest;
                head = Some((operation, d, p));
            }
            let (id, threads) = match operands {
                [id] => (id, None),
                [id, threads] => (id, Some(threads)),
                _ => return l.refuse("it has the wrong number of operands"),
            };
            let id = l.source(id, Type::U32)?;
            let threads = match threads {
                Some(threads) => Some(l.source(threads, Type::U32)?),
                None => None,
            };
            if mode == 1 && threads.is_none() {
                return l.refuse("an arrive needs a thread count");
            }
            if let Some((operation, d, p)) = head {
                let (p, negated) = l.predicate(p)?;
                reduction = Some(match operation {
                    0 => (Reduction::Count, l.dest(d)?.0, p, negated),
                    1 => (Reduction::All, l.dest_predicate(d)?, p, negated),
                    _ => (Reduction::Any, l.dest_predicate(d)?, p, negated),
                });
            }
            l.other(Barrier {
                id,
                threads,
                aligned,
                arrive: mode == 1,
                reduction,
            })
        }
        "griddepcontrol" => {
            if m.take_one(&["launch_dependents", "wait"]).is_none() {
                return l.refuse("launch_dependents or wait is missing");
            }
            // Grids run one after the other here.
            l.emit(Op::Nop)
        }
        "membar" => {
            let scope = m.take_one(&["cta", "gl", "sys"]);
            if scope.is_none() {
                return fence(l, i, m);
            }
            l.other(Fence {
                kind: if scope == Some(0) {
                    FenceKind::Cta
                } else {
                    FenceKind::Wide
                },
            })
        }
        _ => fence(l, i, m),
    }
}

fn fence(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    if m.take("proxy") {
        let kind = m.take_map(|n| {
            let known = ["alias", "async", "async.global", "async::generic", "tensormap::generic"];
            (known.contains(&n) || n.starts_with("async")).then(|| n.to_string())
        });
        let Some(kind) = kind else {
            return l.refuse("the proxy is not modelled");
        };
        let _ = m.take_one(&["global", "shared::cta", "shared::cluster"]);
        let _ = m.take_one(&["acquire", "release"]);
        let _ = m.take_one(&["sync_restrict::shared::cta", "sync_restrict::shared::cluster"]);
        let _ = m.take_one(&["cta", "cluster", "gpu", "sys"]);
        let _: &[Operand] = &i.operands;
        return l.other(Fence {
            kind: if kind.starts_with("async") {
                FenceKind::Proxy
            } else {
                FenceKind::Wide
            },
        });
    }
    if m.take("mbarrier_init") {
        let _ = m.take("release");
        let _ = m.take("cluster");
        return l.other(Fence {
            kind: FenceKind::MbarrierInit,
        });
    }
    let _ = m.take_one(&["sc", "acq_rel", "acquire", "release"]);
    let _ = m.take_one(&["sync_restrict::shared::cta", "sync_restrict::shared::cluster"]);
    let scope = m.take_one(&["cta", "cluster", "gpu", "sys"]);
    l.other(Fence {
        kind: if scope == Some(0) {
            FenceKind::Cta
        } else {
            FenceKind::Wide
        },
    })
}
