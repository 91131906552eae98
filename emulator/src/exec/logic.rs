//! Logic and shifts (PTX ISA, "Logic and Shift Instructions", `prmt`).

use super::kernels::{by_type, map1, map2, map3, map4};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::program::{Map2, Op};
use crate::syntax::ast::{Instruction, Operand};

/// `prmt` in its default mode: each selector nibble picks a byte; its top bit repeats that byte's sign.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |d, i| {
        let s = selector >> (4 * i) & 0xF;
        let byte = (bytes >> (8 * (s & 7))) as u8;
        let byte = if s & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
        d | u32::from(byte) << (8 * i)
    })
}

/// The selector that a special mode of `prmt` stands for.
fn mode_selector(mode: usize, c: u32) -> u32 {
    let n = c & 3;
    match mode {
        0 => (0..4).fold(0, |s, i| s | (n + i) << (4 * i)),
        1 => (0..4).fold(0, |s, i| s | (n.wrapping_sub(i) & 7) << (4 * i)),
        2 => n * 0x1111,
        3 => (0..4).fold(0, |s, i| s | n.max(i) << (4 * i)),
        4 => (0..4).fold(0, |s, i| s | n.min(i) << (4 * i)),
        _ => [0x1010, 0x3232, 0x1010, 0x3232][n as usize],
    }
}

fn lookup3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|i| table >> i & 1 != 0).fold(0, |d, i| {
        let pick = |x: u32, bit: u32| if i & bit != 0 { x } else { !x };
        d | pick(a, 4) & pick(b, 2) & pick(c, 1)
    })
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let opcode = &*i.opcode;
    match opcode {
        "and" | "or" | "xor" | "not" | "cnot" => {
            let ty = l.ty(m)?;
            if ty == Type::Pred {
                let table = match opcode {
                    "and" => 0b1000,
                    "or" => 0b1110,
                    "xor" => 0b0110,
                    "not" => 0b0011,
                    _ => return l.refuse("this type is not modelled"),
                };
                let list = &i.operands;
                let wanted = if opcode == "not" { 2 } else { 3 };
                if list.len() != wanted {
                    return l.refuse(&format!("it has {} operands instead of {wanted}", list.len()));
                }
                let (a, na) = l.predicate(&list[1])?;
                let (b, nb) = l.predicate(&list[wanted - 1])?;
                let d = l.dest_predicate(&list[0])?;
                // A negated operand exchanges rows of the table.
                let table = (0..4u8).fold(0, |t, k| {
                    let from = k ^ u8::from(na) << 1 ^ u8::from(nb && opcode != "not");
                    t | (table >> from & 1) << k
                });
                return l.emit(Op::Logic { d, a, b, table });
            }
            if !matches!(ty, Type::B16 | Type::B32 | Type::B64) {
                return l.refuse("this type is not modelled");
            }
            if let "not" | "cnot" = opcode {
                let [d, a] = l.operands(i)?;
                let a = l.source(a, ty)?;
                let (d, _) = l.dest(d)?;
                let f = if opcode == "not" {
                    by_type!(ty, [B16 u16, B32 u32, B64 u64], |T| map1!(|a: T| !a))
                } else {
                    by_type!(ty, [B16 u16, B32 u32, B64 u64], |T| map1!(|a: T| a == 0))
                };
                let Some(f) = f else {
                    return l.refuse("this type is not modelled");
                };
                return l.emit(Op::Map1 { f, d, a });
            }
            let [d, a, b] = l.operands(i)?;
            let (a, b) = (l.source(a, ty)?, l.source(b, ty)?);
            let (d, _) = l.dest(d)?;
            let f: Map2 = match (opcode, ty) {
                ("and", Type::B64) => map2!(|a: u64, b: u64| a & b),
                ("or", Type::B64) => map2!(|a: u64, b: u64| a | b),
                ("xor", Type::B64) => map2!(|a: u64, b: u64| a ^ b),
                ("and", Type::B32) => map2!(|a: u32, b: u32| a & b),
                ("or", Type::B32) => map2!(|a: u32, b: u32| a | b),
                ("xor", Type::B32) => map2!(|a: u32, b: u32| a ^ b),
                ("and", _) => map2!(|a: u16, b: u16| a & b),
                ("or", _) => map2!(|a: u16, b: u16| a | b),
                _ => map2!(|a: u16, b: u16| a ^ b),
            };
            l.emit(Op::Map2 { f, d, a, b })
        }
        "lop3" => {
            if let Some(modifier) = m.take_one(&["or", "and"]) {
                return l.refuse(
                    [
                        "the form .or with a predicate is not modelled",
                        "the form .and with a predicate is not modelled",
                    ][modifier],
                );
            }
            let ty = l.ty(m)?;
            let [d, a, b, c, table] = l.operands(i)?;
            if ty != Type::B32 {
                return l.refuse("this type is not modelled");
            }
            let table = l.literal(table)?;
            let s = [
                l.source(a, ty)?,
                l.source(b, ty)?,
                l.source(c, ty)?,
                l.bits(table & 0xFF),
            ];
            let (d, _) = l.dest(d)?;
            l.emit(Op::Map4 {
                f: map4!(|a: u32, b: u32, c: u32, t: u32| lookup3(a, b, c, t)),
                d,
                s,
            })
        }
        "shl" | "shr" => {
            let ty = l.ty(m)?;
            let [d, a, b] = l.operands(i)?;
            let (a, b) = (l.source(a, ty)?, l.source(b, Type::U32)?);
            let (d, _) = l.dest(d)?;
            let f = if opcode == "shl" {
                by_type!(ty, [B16 u16, B32 u32, B64 u64], |T| {
                    map2!(|a: T, b: u32| if b >= T::BITS { 0 } else { a << (b & (T::BITS - 1)) })
                })
            } else if ty.signed() {
                by_type!(ty, [S16 i16, S32 i32, S64 i64], |T| map2!(|a: T, b: u32| a >> b.min(T::BITS - 1)))
            } else {
                by_type!(ty, [B16 u16, B32 u32, B64 u64, U16 u16, U32 u32, U64 u64], |T| {
                    map2!(|a: T, b: u32| if b >= T::BITS { 0 } else { a >> (b & (T::BITS - 1)) })
                })
            };
            let Some(f) = f else {
                return l.refuse("this type is not modelled");
            };
            l.emit(Op::Map2 { f, d, a, b })
        }
        "shf" => {
            let direction = m.take_one(&["l", "r"]);
            let mode = m.take_one(&["clamp", "wrap"]);
            let ty = l.ty(m)?;
            let [d, a, b, c] = l.operands(i)?;
            let (a, b, c) = (
                l.source(a, Type::B32)?,
                l.source(b, Type::B32)?,
                l.source(c, Type::U32)?,
            );
            let (d, _) = l.dest(d)?;
            fn wide(a: u32, b: u32) -> u64 {
                u64::from(b) << 32 | u64::from(a)
            }
            let f = match (direction, mode, ty) {
                (Some(0), Some(0), Type::B32) => {
                    map3!(|a: u32, b: u32, c: u32| (wide(a, b) << c.min(32) >> 32) as u32)
                }
                (Some(0), Some(1), Type::B32) => map3!(|a: u32, b: u32, c: u32| (wide(a, b) << (c & 31) >> 32) as u32),
                (Some(1), Some(0), Type::B32) => map3!(|a: u32, b: u32, c: u32| (wide(a, b) >> c.min(32)) as u32),
                (Some(1), Some(1), Type::B32) => map3!(|a: u32, b: u32, c: u32| (wide(a, b) >> (c & 31)) as u32),
                _ => return l.refuse("this form is not modelled"),
            };
            l.emit(Op::Map3 { f, d, a, b, c })
        }
        _ => {
            let ty = l.ty(m)?;
            let mode = m.take_one(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]);
            let [d, a, b, c] = l.operands(i)?;
            if ty != Type::B32 {
                return l.refuse("this type is not modelled");
            }
            let (a, b) = (l.source(a, ty)?, l.source(b, ty)?);
            let selector = match (mode, c) {
                (None, c) => l.source(c, Type::B32)?,
                (Some(mode), Operand::Immediate(_)) => {
                    let c = l.literal(c)?;
                    l.bits(u64::from(mode_selector(mode, c as u32)))
                }
                (Some(mode), c) => {
                    let c = l.source(c, Type::B32)?;
                    let f = match mode {
                        0 => map1!(|c: u32| mode_selector(0, c)),
                        1 => map1!(|c: u32| mode_selector(1, c)),
                        2 => map1!(|c: u32| mode_selector(2, c)),
                        3 => map1!(|c: u32| mode_selector(3, c)),
                        4 => map1!(|c: u32| mode_selector(4, c)),
                        _ => map1!(|c: u32| mode_selector(5, c)),
                    };
                    let selector = l.temporary();
                    l.emit(Op::Map1 { f, d: selector, a: c })?;
                    selector
                }
            };
            let (d, _) = l.dest(d)?;
            l.emit(Op::Map3 {
                f: map3!(|a: u32, b: u32, s: u32| permute(a, b, s)),
                d,
                a,
                b,
                c: selector,
            })
        }
    }
}
