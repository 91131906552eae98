//! `cp.async`: copies of 4, 8 or 16 bytes by each lane (PTX ISA, "Data Movement and Conversion Instructions: Non-bulk copy").

use crate::exec::asynchronous;
use crate::exec::load_store::take_hints;
use crate::exec::memory::{AccessKind, AccessSpace};
use crate::exec::place::shared;
use crate::exec::transfer::{Piece, Signal, Work, issue};
use crate::exec::{Context, Operation, Outcome, Step, bulk, mbarrier};
use crate::fault::{FaultKind, Stop};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::program::{Predicate, Register};
use crate::syntax::ast::Instruction;

struct Copy {
    to: (Register, i64),
    from: (Register, i64),
    size: u32,
    source: Source,
}

/// How much of the source is read.
enum Source {
    All,
    Bytes(Register),
    /// Nothing where the predicate holds (`ignore-src`).
    Unless(Predicate, bool),
}

struct Commit;
struct Wait {
    /// `None`: everything, `cp.async.wait_all`.
    newest: Option<usize>,
}

struct Arrive {
    space: AccessSpace,
    address: (Register, i64),
    counted: bool,
}

impl Operation for Copy {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let mut pieces = Vec::with_capacity(32);
        for lane in cx.lanes() {
            let to = cx.register(self.to.0)[lane].wrapping_add_signed(self.to.1);
            let from = cx.register(self.from.0)[lane].wrapping_add_signed(self.from.1);
            let source = match self.source {
                Source::All => self.size,
                Source::Bytes(r) => (cx.register(r)[lane] as u32).min(self.size),
                Source::Unless(p, negated) => {
                    let set = cx.warp.predicates[p as usize] >> lane & 1 != 0;
                    if set != negated { 0 } else { self.size }
                }
            };
            let (_, to) = shared(cx, AccessSpace::Shared, to, self.size, self.size, lane)?;
            if source != 0 {
                let whole = u64::from(self.size);
                if !from.is_multiple_of(whole) {
                    let message = format!("the source {from:#x} of a cp.async must be a multiple of {whole}");
                    return Err(Stop::new(FaultKind::Misaligned, message)
                        .address(from)
                        .lane(lane as u32));
                }
                cx.resolve(AccessSpace::Global, from, u64::from(source), AccessKind::Read, lane)?;
            }
            pieces.push(Piece {
                from,
                to,
                size: self.size,
                source,
            });
        }
        let (cta, mask) = (cx.warp.cta, cx.mask);
        let first = mask.trailing_zeros() as usize;
        if let Some((id, issued)) = issue(cx, first, Work::Pieces { cta, pieces }, Signal::Nothing)? {
            cx.warp.asynchronous.copies.add(mask, id, issued);
        }
        Ok(Step::Next)
    }
}

impl Operation for Commit {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        if asynchronous::deferred(cx.launch) {
            let mask = cx.mask;
            cx.warp.asynchronous.copies.commit(mask);
        }
        Ok(Step::Next)
    }
}

impl Operation for Wait {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let mask = cx.mask;
        let copies = &mut cx.warp.asynchronous.copies;
        if self.newest.is_none() {
            copies.commit(mask);
        }
        let members = copies.wait(mask, self.newest.unwrap_or(0), false);
        asynchronous::wait(cx, &members, false)?;
        Ok(Step::Next)
    }
}

impl Operation for Arrive {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        for lane in cx.lanes() {
            let address = cx.register(self.address.0)[lane].wrapping_add_signed(self.address.1);
            let (cta, offset) = shared(cx, self.space, address, 8, 8, lane)?;
            if self.counted {
                // Without .noinc the pending count rises now, so that the arrival later is the net of nothing.
                mbarrier::update(cx.cluster, cta, offset, |b| b.add_pending(1)).map_err(|s| s.lane(lane as u32))?;
            }
            let before = cx.warp.asynchronous.copies.all(1 << lane);
            issue(cx, lane, Work::After(before), Signal::Arrive { cta, offset, count: 1 })
                .map_err(|s| s.lane(lane as u32))?;
        }
        Ok(Step::Next)
    }
}

/// Lowers `cp.…`.
pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let reduce = m.take("reduce");
    if !m.take("async") {
        return l.refuse("only cp.async is modelled");
    }
    if m.take("bulk") {
        return bulk::lower(l, i, m, reduce);
    }
    if m.take("commit_group") {
        let [] = l.operands(i)?;
        return l.other(Commit);
    }
    if m.take("wait_all") {
        let [] = l.operands(i)?;
        return l.other(Wait { newest: None });
    }
    if m.take("wait_group") {
        let [newest] = l.operands(i)?;
        let newest = Some(l.literal(newest)? as usize);
        return l.other(Wait { newest });
    }
    if m.take("mbarrier") {
        if !m.take("arrive") {
            return l.refuse("only cp.async.mbarrier.arrive is modelled");
        }
        let counted = !m.take("noinc");
        let space = AccessSpace::take(m);
        if !m.take("b64") {
            return l.refuse("the type .b64 is missing");
        }
        let [address] = l.operands(i)?;
        let (base, offset, _) = l.address(address)?;
        return l.other(Arrive {
            space,
            address: (base, offset),
            counted,
        });
    }
    let cache = m.take_one(&["ca", "cg"]);
    if !(m.take("shared") || m.take("shared::cta")) || !m.take("global") {
        return l.refuse("only copies from .global to .shared are modelled");
    }
    let policy = m.take("L2::cache_hint");
    take_hints(m);
    let [to, from, size, rest @ ..] = &i.operands[..] else {
        return l.refuse("it has too few operands");
    };
    let size = l.literal(size)? as u32;
    if !(size == 16 || cache == Some(0) && matches!(size, 4 | 8)) {
        return l.refuse("the size must be 16, or with .ca 4, 8 or 16");
    }
    let rest = if policy {
        let Some((policy, rest)) = rest.split_last() else {
            return l.refuse("the cache policy is missing");
        };
        l.source(policy, Type::B64)?;
        rest
    } else {
        rest
    };
    let source = match rest {
        [] => Source::All,
        [o] if l.is_predicate(o) => {
            let (p, negated) = l.predicate(o)?;
            Source::Unless(p, negated)
        }
        [o] => Source::Bytes(l.source(o, Type::U32)?),
        _ => return l.refuse("it has too many operands"),
    };
    let (to, to_offset, _) = l.address(to)?;
    let (from, from_offset, _) = l.address(from)?;
    l.other(Copy {
        to: (to, to_offset),
        from: (from, from_offset),
        size,
        source,
    })
}
