//! Comparison and selection (PTX ISA, "Comparison and Selection Instructions").

use super::kernels::{by_type, map3, test2};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::numeric::half::{bf16_to_f32, f16_to_f32};
use crate::numeric::single;
use crate::program::{Boolean, Combine, Op, Test};
use crate::syntax::ast::{Instruction, Operand};

const OPERATORS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

/// The comparison of two floats, already widened.
macro_rules! float_test {
    ($operator:expr, $t:ty, |$x:ident| $widen:expr) => {{
        macro_rules! test {
            (|$a:ident, $b:ident| $e:expr) => {
                test2!(|p: $t, q: $t| {
                    let f = |$x: $t| $widen;
                    let ($a, $b) = (f(p), f(q));
                    $e
                })
            };
        }
        Some(match OPERATORS[$operator] {
            "eq" => test!(|a, b| a == b),
            "ne" => test!(|a, b| a != b && !a.is_nan() && !b.is_nan()),
            "lt" => test!(|a, b| a < b),
            "le" => test!(|a, b| a <= b),
            "gt" => test!(|a, b| a > b),
            "ge" => test!(|a, b| a >= b),
            "equ" => test!(|a, b| a == b || a.is_nan() || b.is_nan()),
            "neu" => test!(|a, b| a != b),
            "ltu" => test!(|a, b| a < b || a.is_nan() || b.is_nan()),
            "leu" => test!(|a, b| a <= b || a.is_nan() || b.is_nan()),
            "gtu" => test!(|a, b| a > b || a.is_nan() || b.is_nan()),
            "geu" => test!(|a, b| a >= b || a.is_nan() || b.is_nan()),
            "num" => test!(|a, b| !a.is_nan() && !b.is_nan()),
            "nan" => test!(|a, b| a.is_nan() || b.is_nan()),
            _ => return None,
        })
    }};
}

fn flushed(x: u32) -> f32 {
    f32::from_bits(single::flush(x))
}

fn test(operator: usize, ty: Type, ftz: bool) -> Option<Test> {
    use Type::*;
    match (ty, ftz) {
        (F32, false) => float_test!(operator, u32, |x| f32::from_bits(x)),
        (F32, true) => float_test!(operator, u32, |x| flushed(x)),
        (F64, false) => float_test!(operator, u64, |x| f64::from_bits(x)),
        (F16, false) => float_test!(operator, u16, |x| f32::from_bits(f16_to_f32(x))),
        (F16, true) => float_test!(operator, u16, |x| {
            f32::from_bits(f16_to_f32(crate::numeric::half::Half::F16.flush(x)))
        }),
        (Bf16, false) => float_test!(operator, u16, |x| f32::from_bits(bf16_to_f32(x))),
        (_, true) => None,
        _ => {
            macro_rules! all {
                (|$a:ident, $b:ident| $e:expr) => {
                    by_type!(ty, [U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64], |T| {
                        test2!(|$a: T, $b: T| $e)
                    })
                };
            }
            match OPERATORS[operator] {
                "eq" => {
                    by_type!(ty, [B16 u16, B32 u32, B64 u64, U16 u16, U32 u32, U64 u64, S16 u16, S32 u32, S64 u64], |T| {
                        test2!(|a: T, b: T| a == b)
                    })
                }
                "ne" => {
                    by_type!(ty, [B16 u16, B32 u32, B64 u64, U16 u16, U32 u32, U64 u64, S16 u16, S32 u32, S64 u64], |T| {
                        test2!(|a: T, b: T| a != b)
                    })
                }
                "lt" | "lo" => all!(|a, b| a < b),
                "le" | "ls" => all!(|a, b| a <= b),
                "gt" | "hi" => all!(|a, b| a > b),
                "ge" | "hs" => all!(|a, b| a >= b),
                _ => None,
            }
        }
    }
}

/// Takes a lane of packed halves apart: `setp.f16x2` compares both.
fn packed_half(l: &mut Lowering<'_>, a: u32, high: bool) -> Lowered<u32> {
    let d = l.temporary();
    let f = if high {
        super::kernels::map1!(|a: u32| (a >> 16) as u16)
    } else {
        super::kernels::map1!(|a: u32| a as u16)
    };
    l.emit(Op::Map1 { f, d, a })?;
    Ok(d)
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    match &*i.opcode {
        "selp" => {
            let ty = l.ty(m)?;
            let [d, a, b, p] = l.operands(i)?;
            let (a, b) = (l.source(a, ty)?, l.source(b, ty)?);
            let (p, negated) = l.predicate(p)?;
            let (d, _) = l.dest(d)?;
            l.emit(Op::Select { d, a, b, p, negated })
        }
        "slct" => {
            let ftz = m.take("ftz");
            let (ty, tc) = (l.ty(m)?, l.ty(m)?);
            let [d, a, b, c] = l.operands(i)?;
            let (a, b, c) = (l.source(a, ty)?, l.source(b, ty)?, l.source(c, tc)?);
            let (d, _) = l.dest(d)?;
            let f = match (tc, ftz) {
                (Type::S32, false) => map3!(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
                (Type::F32, false) => map3!(|a: u64, b: u64, c: u32| if f32::from_bits(c) >= 0.0 { a } else { b }),
                (Type::F32, true) => map3!(|a: u64, b: u64, c: u32| if flushed(c) >= 0.0 { a } else { b }),
                _ => return l.refuse("this type is not modelled"),
            };
            l.emit(Op::Map3 { f, d, a, b, c })
        }
        opcode => {
            let Some(operator) = m.take_one(&OPERATORS) else {
                return l.refuse("the comparison is missing");
            };
            let with = m.take_one(&["and", "or", "xor"]);
            let ftz = m.take("ftz");
            // `set` has two types, the result's first; `setp` one.
            let result = if opcode == "set" { Some(l.ty(m)?) } else { None };
            let ty = l.ty(m)?;
            let list = &i.operands;
            if list.len() != 3 + usize::from(with.is_some()) {
                return l.refuse(&format!("it has {} operands", list.len()));
            }
            let combine = match with {
                None => None,
                Some(k) => {
                    let (predicate, negated) = l.predicate(&list[3])?;
                    Some(Combine {
                        with: [Boolean::And, Boolean::Or, Boolean::Xor][k],
                        predicate,
                        negated,
                    })
                }
            };
            let (a, b) = (l.source(&list[1], ty)?, l.source(&list[2], ty)?);
            if let (Type::F16x2 | Type::Bf16x2, None, Operand::Pair(p, q)) = (ty, result, &list[0]) {
                let (p, q) = (l.dest_predicate(p)?, l.dest_predicate(q)?);
                let half = if ty == Type::F16x2 { Type::F16 } else { Type::Bf16 };
                let Some(f) = test(operator, half, ftz) else {
                    return l.refuse("this form is not modelled");
                };
                let low = (packed_half(l, a, false)?, packed_half(l, b, false)?);
                let high = (packed_half(l, a, true)?, packed_half(l, b, true)?);
                l.emit(Op::Test {
                    f,
                    p,
                    q: 0,
                    a: low.0,
                    b: low.1,
                    combine,
                })?;
                return l.emit(Op::Test {
                    f,
                    p: q,
                    q: 0,
                    a: high.0,
                    b: high.1,
                    combine,
                });
            }
            let Some(f) = test(operator, ty, ftz) else {
                return l.refuse("this form is not modelled");
            };
            match result {
                None => {
                    let (p, q) = match &list[0] {
                        Operand::Pair(p, q) => (l.dest_predicate(p)?, l.dest_predicate(q)?),
                        p => (l.dest_predicate(p)?, 0),
                    };
                    l.emit(Op::Test { f, p, q, a, b, combine })
                }
                Some(result) => {
                    let one = match result {
                        Type::U32 | Type::S32 => 0xFFFF_FFFF,
                        Type::U16 | Type::S16 => 0xFFFF,
                        Type::F32 => u64::from(1f32.to_bits()),
                        Type::F16 => 0x3C00,
                        Type::Bf16 => 0x3F80,
                        _ => return l.refuse("this result type is not modelled"),
                    };
                    let (d, _) = l.dest(&list[0])?;
                    l.emit(Op::TestValue {
                        f,
                        d,
                        a,
                        b,
                        one,
                        combine,
                    })
                }
            }
        }
    }
}
