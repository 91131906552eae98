//! `mbarrier.*` (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier").

use crate::check::shared_object;
use crate::exec::memory::{AccessKind, AccessSpace, Home};
use crate::exec::place::shared;
use crate::exec::{Context, Operation, Outcome, Step};
use crate::fault::{FaultKind, Stop};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::machine::cluster::{Cluster, SHARED_START};
use crate::machine::warp::Wait;
use crate::program::{Predicate, Register};
use crate::syntax::ast::{Instruction, Operand};
use crate::tensor::mbarrier::{Mbarrier, MbarrierError};

/// What an instruction does to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Init,
    Invalidate,
    ExpectTx,
    CompleteTx,
    Arrive { expect: bool },
    ArriveNoComplete,
    Drop { expect: bool },
}

struct Change {
    action: Action,
    space: AccessSpace,
    address: Register,
    offset: i64,
    /// Count or transaction bytes.
    operand: Option<Register>,
    state: Option<Register>,
}

struct Test {
    space: AccessSpace,
    address: Register,
    offset: i64,
    operand: Register,
    parity: bool,
    /// `try_wait`: may block.
    blocks: bool,
    done: Predicate,
}

struct PendingCount {
    d: Register,
    state: Register,
}

/// The word of an object.
fn word(cluster: &Cluster, cta: usize, offset: u32) -> u64 {
    cluster.ctas[cta].shared.word(offset)
}

fn set_word(cluster: &mut Cluster, cta: usize, offset: u32, value: u64) {
    let bytes = cluster.ctas[cta].shared.bytes();
    bytes[offset as usize..offset as usize + 8].copy_from_slice(&value.to_le_bytes());
}

fn misuse(error: MbarrierError, offset: u32) -> Box<Stop> {
    Stop::new(FaultKind::Mbarrier, error.to_string()).address(u64::from(offset + SHARED_START))
}

/// Changes the object at an offset of a CTA's shared memory.
pub(crate) fn update<T>(
    cluster: &mut Cluster,
    cta: usize,
    offset: u32,
    f: impl FnOnce(&mut Mbarrier) -> Result<T, MbarrierError>,
) -> Result<T, Box<Stop>> {
    let mut object = Mbarrier::decode(word(cluster, cta, offset)).map_err(|e| misuse(e, offset))?;
    let result = f(&mut object).map_err(|e| misuse(e, offset))?;
    set_word(cluster, cta, offset, object.encode());
    Ok(result)
}

impl Operation for Change {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        for lane in cx.lanes() {
            let address = cx.register(self.address)[lane].wrapping_add_signed(self.offset);
            let (cta, offset) = shared(cx, self.space, address, 8, 8, lane)?;
            self.order(cx, cta, offset, lane)?;
            let operand = self.operand.map_or(1, |r| cx.register(r)[lane] as u32);
            let token = self
                .apply(cx, cta, offset, operand, lane)
                .map_err(|s| s.lane(lane as u32))?;
            if let Some(state) = self.state {
                cx.register_mut(state)[lane] = token;
            }
        }
        Ok(Step::Next)
    }
}

impl Change {
    /// An arrival releases; initialisation is an ordinary write, which the others must be ordered after.
    fn order(&self, cx: &mut Context<'_>, cta: usize, offset: u32, lane: usize) -> Result<(), Box<Stop>> {
        if !cx.launch.watched {
            return Ok(());
        }
        let plain = matches!(self.action, Action::Init | Action::Invalidate);
        // To the checks an operation on a live object is a read of what its initialisation wrote.
        let kind = if plain {
            AccessKind::Write
        } else {
            update(cx.cluster, cta, offset, |_| Ok(())).map_err(|s| s.lane(lane as u32))?;
            AccessKind::StrongRead
        };
        cx.record(Home::Shared(cta, offset), 8, kind, lane)?;
        if matches!(
            self.action,
            Action::Arrive { .. } | Action::ArriveNoComplete | Action::Drop { .. }
        ) {
            let w = cx.warp_index();
            cx.cluster.order.release(w, shared_object(cta, offset));
        }
        Ok(())
    }

    fn apply(
        &self,
        cx: &mut Context<'_>,
        cta: usize,
        offset: u32,
        operand: u32,
        lane: usize,
    ) -> Result<u64, Box<Stop>> {
        let own = cta == cx.warp.cta;
        match self.action {
            Action::Init => {
                let old = word(cx.cluster, cta, offset);
                let object = Mbarrier::init(old, operand).map_err(|e| misuse(e, offset))?;
                set_word(cx.cluster, cta, offset, object.encode());
                if own && cx.launch.checks.asynchronous {
                    let who = cx.who(lane);
                    cx.cta().asynchronous.mbarriers.insert(offset, who);
                }
                Ok(0)
            }
            Action::Invalidate => {
                update(cx.cluster, cta, offset, |_| Ok(()))?;
                set_word(cx.cluster, cta, offset, 0);
                if own {
                    cx.cta().asynchronous.mbarriers.remove(&offset);
                }
                Ok(0)
            }
            action => update(cx.cluster, cta, offset, |b| match action {
                Action::ExpectTx => b.expect_tx(operand).map(|()| 0),
                Action::CompleteTx => b.complete_tx(operand).map(|_| 0),
                Action::Arrive { expect } => {
                    if expect {
                        b.expect_tx(operand)?;
                    }
                    b.arrive(if expect { 1 } else { operand }).map(|(token, _)| token)
                }
                Action::ArriveNoComplete => b.arrive_no_complete(operand),
                Action::Drop { expect } => {
                    if expect {
                        b.expect_tx(operand)?;
                    }
                    b.arrive_drop(if expect { 1 } else { operand }).map(|(token, _)| token)
                }
                Action::Init | Action::Invalidate => Ok(0),
            }),
        }
    }
}

impl Operation for Test {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let mut done = 0u32;
        let mut first = None;
        for lane in cx.lanes() {
            let address = cx.register(self.address)[lane].wrapping_add_signed(self.offset);
            let (cta, offset) = shared(cx, self.space, address, 8, 8, lane)?;
            let value = word(cx.cluster, cta, offset);
            let operand = cx.register(self.operand)[lane];
            let passed = Mbarrier::decode(value)
                .and_then(|b| {
                    if self.parity {
                        Ok(b.passed_parity(operand as u32))
                    } else {
                        b.passed(operand)
                    }
                })
                .map_err(|e| misuse(e, offset).lane(lane as u32))?;
            if cx.launch.watched {
                cx.record(Home::Shared(cta, offset), 8, AccessKind::StrongRead, lane)?;
                if passed {
                    let w = cx.warp_index();
                    cx.cluster.order.acquire(w, shared_object(cta, offset));
                }
            }
            if passed {
                done |= 1 << lane;
            } else {
                first.get_or_insert((cta, offset, value));
            }
        }
        if let (Some((cta, offset, value)), true, 0, false) = (first, self.blocks, done, cx.warp.timed_out) {
            return Ok(Step::Retry(Wait::Memory { cta, offset, value }));
        }
        let p = &mut cx.warp.predicates[self.done as usize];
        *p = *p & !cx.mask | done;
        // A kernel that polls must let the others run.
        Ok(if done == cx.mask { Step::Next } else { Step::Yield })
    }
}

impl Operation for PendingCount {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        for lane in cx.lanes() {
            let count =
                Mbarrier::pending_count(cx.register(self.state)[lane]).map_err(|e| misuse(e, 0).lane(lane as u32))?;
            cx.register_mut(self.d)[lane] = u64::from(count);
        }
        Ok(Step::Next)
    }
}

/// Lowers `mbarrier.…`.
pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let kinds = [
        "init",
        "inval",
        "expect_tx",
        "complete_tx",
        "arrive",
        "arrive_drop",
        "test_wait",
        "try_wait",
        "pending_count",
    ];
    let Some(kind) = m.take_one(&kinds) else {
        return l.refuse("the kind of operation is missing");
    };
    // Ordering is that of the machine, which is sequentially consistent.
    m.take_one(&["acquire", "release", "relaxed"]);
    m.take_one(&["cta", "cluster"]);
    let parity = m.take("parity");
    let expect = matches!(kind, 4 | 5) && m.take("expect_tx");
    let no_complete = kind == 4 && m.take("noComplete");
    let space = AccessSpace::take(m);
    if !m.take("b64") {
        return l.refuse("the type .b64 is missing");
    }
    let action = match kind {
        0 => Action::Init,
        1 => Action::Invalidate,
        2 => Action::ExpectTx,
        3 => Action::CompleteTx,
        4 if no_complete => Action::ArriveNoComplete,
        4 => Action::Arrive { expect },
        5 => Action::Drop { expect },
        6 | 7 => return lower_test(l, i, space, parity, kind == 7),
        _ => {
            let [d, state] = l.operands(i)?;
            let state = l.source(state, Type::B64)?;
            let (d, _) = l.dest(d)?;
            return l.other(PendingCount { d, state });
        }
    };
    let returns = matches!(kind, 4 | 5);
    let (state, rest) = match (&i.operands[..], returns) {
        ([state, rest @ ..], true) => (Some(state), rest),
        (rest, _) => (None, rest),
    };
    let state = match state {
        Some(Operand::Name(name)) if &**name == "_" => None,
        Some(state) => Some(l.dest(state)?.0),
        None => None,
    };
    let needs = matches!(
        action,
        Action::Init | Action::ExpectTx | Action::CompleteTx | Action::ArriveNoComplete
    ) || expect;
    let (address, operand) = match rest {
        [address] if !needs => (address, None),
        [address, operand] if action != Action::Invalidate => (address, Some(operand)),
        _ => return l.refuse("it has the wrong number of operands"),
    };
    let operand = match operand {
        Some(o) => Some(l.source(o, Type::U32)?),
        None => None,
    };
    let (address, offset, _) = l.address(address)?;
    l.other(Change {
        action,
        space,
        address,
        offset,
        operand,
        state,
    })
}

fn lower_test(l: &mut Lowering<'_>, i: &Instruction, space: AccessSpace, parity: bool, blocks: bool) -> Lowered {
    let (done, address, operand) = match &i.operands[..] {
        [done, address, operand] => (done, address, operand),
        [done, address, operand, hint] if blocks => {
            // The suspend-time hint: the machine waits until the phase completes or nothing else can run.
            l.source(hint, Type::U32)?;
            (done, address, operand)
        }
        _ => return l.refuse("it has the wrong number of operands"),
    };
    let operand = l.source(operand, if parity { Type::U32 } else { Type::B64 })?;
    let done = l.dest_predicate(done)?;
    let (address, offset, _) = l.address(address)?;
    l.other(Test {
        space,
        address,
        offset,
        operand,
        parity,
        blocks,
        done,
    })
}
