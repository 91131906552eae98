//! `mov` in all its forms, `mapa`, `getctarank`.

use super::kernels::map1;
use super::{Context, Operation, Outcome, Step};
use crate::exec::memory::SHARED_WINDOW;
use crate::fault::{FaultKind, Stop};
use crate::lower::types::{Modifiers, Type, ones};
use crate::lower::{Lowered, Lowering};
use crate::machine::cluster::RANK_SHIFT;
use crate::program::{Op, Register};
use crate::syntax::ast::{Immediate, Instruction, Operand};

/// `mov.b64 d, {a, b}`: elements packed from the lowest bits up.
struct Pack {
    d: Register,
    parts: Vec<Register>,
    bits: u32,
}

impl Operation for Pack {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        for lane in cx.lanes() {
            let value = self
                .parts
                .iter()
                .rev()
                .fold(0u64, |v, &r| v << self.bits | cx.register(r)[lane] & ones(self.bits));
            cx.register_mut(self.d)[lane] = value;
        }
        Ok(Step::Next)
    }
}

/// `mov.b64 {a, b}, d`.
struct Unpack {
    parts: Vec<Register>,
    a: Register,
    bits: u32,
}

impl Operation for Unpack {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        for lane in cx.lanes() {
            let mut value = cx.register(self.a)[lane];
            for &r in &self.parts {
                cx.register_mut(r)[lane] = value & ones(self.bits);
                value >>= self.bits;
            }
        }
        Ok(Step::Next)
    }
}

/// `mapa`: an address of this CTA's shared memory, in another CTA of the cluster.
struct MapAddress {
    d: Register,
    a: Register,
    rank: Register,
    generic: bool,
}

impl Operation for MapAddress {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let size = cx.cluster.ctas.len() as u64;
        for lane in cx.lanes() {
            let rank = cx.register(self.rank)[lane] & 0xFFFF_FFFF;
            if rank >= size {
                let message = format!("CTA rank {rank} in a cluster of {size}");
                return Err(Stop::new(FaultKind::Operand, message).lane(lane as u32));
            }
            let address = cx.register(self.a)[lane];
            let base = if self.generic { SHARED_WINDOW } else { 0 };
            let offset = address.wrapping_sub(base) & ones(RANK_SHIFT);
            cx.register_mut(self.d)[lane] = base + (rank << RANK_SHIFT | offset);
        }
        Ok(Step::Next)
    }
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    match &*i.opcode {
        "mapa" => {
            let shared = m.take("shared::cluster");
            let ty = l.ty(m)?;
            let [d, a, b] = l.operands(i)?;
            let (a, rank) = (l.source(a, ty)?, l.source(b, Type::U32)?);
            let (d, _) = l.dest(d)?;
            l.other(MapAddress {
                d,
                a,
                rank,
                generic: !shared,
            })
        }
        "getctarank" => {
            let shared = m.take("shared::cluster");
            let ty = l.ty(m)?;
            let [d, a] = l.operands(i)?;
            let a = l.source(a, ty)?;
            let (d, _) = l.dest(d)?;
            let f = if shared {
                map1!(|a: u64| a >> RANK_SHIFT & 0xFF)
            } else {
                map1!(|a: u64| a.wrapping_sub(SHARED_WINDOW) >> RANK_SHIFT & 0xFF)
            };
            l.emit(Op::Map1 { f, d, a })
        }
        _ => {
            let vector = m.take_one(&["v2", "v4"]);
            let ty = l.ty(m)?;
            let [d, a] = l.operands(i)?;
            if ty == Type::Pred {
                // LLVM writes the constants as 0 and -1. The table then ignores its operands: the sink stands in.
                if let Operand::Immediate(Immediate::Integer(value)) = a {
                    let table = if *value == 0 { 0b0000 } else { 0b1111 };
                    let d = l.dest_predicate(d)?;
                    return l.emit(Op::Logic { d, a: 0, b: 0, table });
                }
                let (a, negated) = l.predicate(a)?;
                let d = l.dest_predicate(d)?;
                return l.emit(Op::Logic {
                    d,
                    a,
                    b: a,
                    table: if negated { 0b0011 } else { 0b1100 },
                });
            }
            let (to, from) = (l.elements(d)?, l.elements(a)?);
            match (to.len(), from.len(), vector) {
                (1, 1, None) => {
                    let a = l.source(&from[0], ty)?;
                    let (d, _) = l.dest(&to[0])?;
                    l.emit(Op::Copy { d, a })
                }
                (n, k, _) if n == k => {
                    // Element by element; through temporaries, as the lists may overlap.
                    let mut held = Vec::new();
                    for operand in &from {
                        let a = l.source(operand, ty)?;
                        let t = l.temporary();
                        l.emit(Op::Copy { d: t, a })?;
                        held.push(t);
                    }
                    for (operand, a) in to.iter().zip(held) {
                        let (d, _) = l.dest(operand)?;
                        l.emit(Op::Copy { d, a })?;
                    }
                    Ok(())
                }
                (1, n @ (2 | 4 | 8), None) if ty.bits() <= 64 && ty.bits() / n as u32 >= 8 => {
                    let bits = ty.bits() / n as u32;
                    let part = part(bits);
                    let mut parts = Vec::new();
                    for operand in &from {
                        parts.push(l.source(operand, part)?);
                    }
                    let (d, _) = l.dest(&to[0])?;
                    l.other(Pack { d, parts, bits })
                }
                (n @ (2 | 4 | 8), 1, None) if ty.bits() <= 64 && ty.bits() / n as u32 >= 8 => {
                    let bits = ty.bits() / n as u32;
                    let a = l.source(&from[0], ty)?;
                    let mut parts = Vec::new();
                    for operand in &to {
                        if matches!(operand, Operand::Name(name) if &**name == "_") {
                            parts.push(0);
                        } else {
                            parts.push(l.dest(operand)?.0);
                        }
                    }
                    l.other(Unpack { parts, a, bits })
                }
                _ => l.refuse("this form is not modelled"),
            }
        }
    }
}

/// An integer type of so many bits.
fn part(bits: u32) -> Type {
    match bits {
        8 => Type::B8,
        16 => Type::B16,
        32 => Type::B32,
        _ => Type::B64,
    }
}
