//! Instructions among the lanes of a warp: `shfl`, `vote`, `match`, `redux`, `activemask`, `elect`.

use super::{Context, Operation, Outcome, Step};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::machine::warp::lanes;
use crate::program::{Predicate, Register};
use crate::syntax::ast::{Instruction, Operand};

/// Runs a body for each group of lanes that name the same members, once all of them are here.
macro_rules! groups {
    ($cx:ident, $members:expr, |$group:ident| $body:block) => {
        match $cx.members($members)? {
            Err(step) => Ok(step),
            Ok(groups) => {
                for $group in groups $body
                Ok(Step::Next)
            }
        }
    };
}

#[derive(Clone, Copy)]
enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

struct Shuffle {
    mode: ShuffleMode,
    d: Register,
    p: Option<Predicate>,
    a: Register,
    b: Register,
    c: Register,
    members: Register,
}

impl Operation for Shuffle {
    fn crosses_lanes(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let source = *cx.register(self.a);
        let (b, c) = (*cx.register(self.b), *cx.register(self.c));
        groups!(cx, self.members, |group| {
            let mut valid = 0u32;
            for lane in lanes(group) {
                let b = (b[lane] & 31) as i32;
                let clamp = (c[lane] & 31) as i32;
                let segment = (c[lane] >> 8 & 31) as i32;
                let own = lane as i32;
                let (highest, lowest) = (own & segment | clamp & !segment, own & segment);
                let (from, inside) = match self.mode {
                    ShuffleMode::Up => (own - b, own - b >= highest),
                    ShuffleMode::Down => (own + b, own + b <= highest),
                    ShuffleMode::Butterfly => (own ^ b, own ^ b <= highest),
                    ShuffleMode::Index => {
                        let from = lowest | b & !segment;
                        (from, from <= highest)
                    }
                };
                let from = if inside { from as usize & 31 } else { lane };
                valid |= u32::from(inside) << lane;
                // A lane outside the group leaves the value undefined on hardware; here it is its register's.
                let value = source[from] & 0xFFFF_FFFF;
                cx.register_mut(self.d)[lane] = value;
            }
            if let Some(p) = self.p {
                let p = &mut cx.warp.predicates[p as usize];
                *p = *p & !group | valid & group;
            }
        })
    }
}

#[derive(Clone, Copy)]
enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

struct Vote {
    mode: VoteMode,
    d: u32,
    p: Predicate,
    negated: bool,
    members: Option<Register>,
}

impl Vote {
    fn group(&self, cx: &mut Context<'_>, group: u32) {
        let p = cx.warp.predicates[self.p as usize] ^ if self.negated { !0 } else { 0 };
        let yes = p & group;
        let result = match self.mode {
            VoteMode::All => yes == group,
            VoteMode::Any => yes != 0,
            VoteMode::Uniform => yes == group || yes == 0,
            VoteMode::Ballot => {
                for lane in lanes(group) {
                    cx.register_mut(self.d)[lane] = u64::from(yes);
                }
                return;
            }
        };
        let d = &mut cx.warp.predicates[self.d as usize];
        *d = *d & !group | if result { group } else { 0 };
    }
}

impl Operation for Vote {
    fn crosses_lanes(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let Some(members) = self.members else {
            self.group(cx, cx.mask);
            return Ok(Step::Next);
        };
        groups!(cx, members, |group| { self.group(cx, group) })
    }
}

struct Match {
    all: bool,
    d: Register,
    p: Option<Predicate>,
    a: Register,
    wide: bool,
    members: Register,
}

impl Operation for Match {
    fn crosses_lanes(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let mut a = *cx.register(self.a);
        if !self.wide {
            a.iter_mut().for_each(|v| *v &= 0xFFFF_FFFF);
        }
        groups!(cx, self.members, |group| {
            let first = a[group.trailing_zeros() as usize];
            let same = lanes(group).all(|l| a[l] == first);
            for lane in lanes(group) {
                let mask = if self.all {
                    if same { group } else { 0 }
                } else {
                    lanes(group).filter(|&l| a[l] == a[lane]).fold(0, |m, l| m | 1 << l)
                };
                cx.register_mut(self.d)[lane] = u64::from(mask);
            }
            if let Some(p) = self.p {
                let p = &mut cx.warp.predicates[p as usize];
                *p = *p & !group | if same { group } else { 0 };
            }
        })
    }
}

struct Reduce {
    f: fn(u32, u32) -> u32,
    /// For f32 extrema the order of lanes does not matter either.
    d: Register,
    a: Register,
    members: Register,
}

impl Operation for Reduce {
    fn crosses_lanes(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let a = *cx.register(self.a);
        groups!(cx, self.members, |group| {
            let result = lanes(group).map(|l| a[l] as u32).reduce(self.f).unwrap_or(0);
            for lane in lanes(group) {
                cx.register_mut(self.d)[lane] = u64::from(result);
            }
        })
    }
}

struct ActiveMask {
    d: Register,
}

impl Operation for ActiveMask {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let mask = cx.mask;
        for lane in lanes(mask) {
            cx.register_mut(self.d)[lane] = u64::from(mask);
        }
        Ok(Step::Next)
    }
}

/// `elect.sync`: the lowest lane is the leader.
struct Elect {
    d: Register,
    p: Predicate,
    members: Register,
}

impl Operation for Elect {
    fn crosses_lanes(&self) -> bool {
        true
    }

    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        groups!(cx, self.members, |group| {
            let leader = group.trailing_zeros();
            for lane in lanes(group) {
                cx.register_mut(self.d)[lane] = u64::from(leader);
            }
            let p = &mut cx.warp.predicates[self.p as usize];
            *p = *p & !group | 1 << leader;
        })
    }
}

/// Takes `d|p` apart.
fn pair(operand: &Operand) -> (&Operand, Option<&Operand>) {
    match operand {
        Operand::Pair(d, p) => (d, Some(p)),
        d => (d, None),
    }
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let sync = m.take("sync");
    match &*i.opcode {
        "shfl" => {
            let mode = match m.take_one(&["up", "down", "bfly", "idx"]) {
                Some(0) => ShuffleMode::Up,
                Some(1) => ShuffleMode::Down,
                Some(2) => ShuffleMode::Butterfly,
                Some(3) => ShuffleMode::Index,
                _ => return l.refuse("the mode is missing"),
            };
            let ty = l.ty(m)?;
            let [d, a, b, c, members] = l.operands(i)?;
            if !sync || ty.bits() != 32 {
                return l.refuse("only shfl.sync of 32 bits is modelled");
            }
            let (a, b, c) = (l.source(a, ty)?, l.source(b, Type::U32)?, l.source(c, Type::U32)?);
            let members = l.source(members, Type::U32)?;
            let (d, p) = pair(d);
            let (d, _) = l.dest(d)?;
            let p = p.map(|p| l.dest_predicate(p)).transpose()?;
            l.other(Shuffle {
                mode,
                d,
                p,
                a,
                b,
                c,
                members,
            })
        }
        "vote" => {
            let mode = match m.take_one(&["all", "any", "uni", "ballot"]) {
                Some(0) => VoteMode::All,
                Some(1) => VoteMode::Any,
                Some(2) => VoteMode::Uniform,
                Some(3) => VoteMode::Ballot,
                _ => return l.refuse("the mode is missing"),
            };
            let _ = l.ty(m)?;
            let wanted = 2 + usize::from(sync);
            if i.operands.len() != wanted {
                return l.refuse(&format!("it has {} operands instead of {wanted}", i.operands.len()));
            }
            let (p, negated) = l.predicate(&i.operands[1])?;
            let members = match i.operands.get(2) {
                Some(members) => Some(l.source(members, Type::U32)?),
                None => None,
            };
            let d = match mode {
                VoteMode::Ballot => l.dest(&i.operands[0])?.0,
                _ => l.dest_predicate(&i.operands[0])?,
            };
            l.other(Vote {
                mode,
                d,
                p,
                negated,
                members,
            })
        }
        "match" => {
            let all = match m.take_one(&["any", "all"]) {
                Some(k) => k == 1,
                None => return l.refuse("the mode is missing"),
            };
            let ty = l.ty(m)?;
            let [d, a, members] = l.operands(i)?;
            let (a, members) = (l.source(a, ty)?, l.source(members, Type::U32)?);
            let (d, p) = pair(d);
            let (d, _) = l.dest(d)?;
            let p = p.map(|p| l.dest_predicate(p)).transpose()?;
            if !sync {
                return l.refuse("only match.sync is modelled");
            }
            l.other(Match {
                all,
                d,
                p,
                a,
                wide: ty.bits() == 64,
                members,
            })
        }
        "redux" => {
            let Some(operation) = m.take_one(&["add", "min", "max", "and", "or", "xor"]) else {
                return l.refuse("the operation is missing");
            };
            let (magnitude, nan) = (m.take("abs"), m.take("NaN"));
            let ty = l.ty(m)?;
            let [d, a, members] = l.operands(i)?;
            let (a, members) = (l.source(a, ty)?, l.source(members, Type::U32)?);
            let (d, _) = l.dest(d)?;
            if magnitude || nan || !sync {
                return l.refuse("this form is not modelled");
            }
            let f: fn(u32, u32) -> u32 = match (operation, ty) {
                (0, Type::U32 | Type::S32) => u32::wrapping_add,
                (1, Type::U32) => u32::min,
                (2, Type::U32) => u32::max,
                (1, Type::S32) => |a, b| (a as i32).min(b as i32) as u32,
                (2, Type::S32) => |a, b| (a as i32).max(b as i32) as u32,
                (3, Type::B32) => |a, b| a & b,
                (4, Type::B32) => |a, b| a | b,
                (5, Type::B32) => |a, b| a ^ b,
                _ => return l.refuse("this type is not modelled"),
            };
            l.other(Reduce { f, d, a, members })
        }
        "activemask" => {
            let _ = l.ty(m)?;
            let [d] = l.operands(i)?;
            let (d, _) = l.dest(d)?;
            l.other(ActiveMask { d })
        }
        _ => {
            let [d, members] = l.operands(i)?;
            let members = l.source(members, Type::U32)?;
            let (d, p) = pair(d);
            let (d, _) = l.dest(d)?;
            let Some(p) = p else {
                return l.refuse("the predicate is missing");
            };
            let p = l.dest_predicate(p)?;
            l.other(Elect { d, p, members })
        }
    }
}
