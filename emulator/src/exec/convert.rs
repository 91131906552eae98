//! `cvt`, `cvta`, `isspacep` (PTX ISA, "Data Movement and Conversion Instructions").

use super::kernels::{by_type, map1, map2, test2};
use super::{Context, Operation, Outcome, Step};
use crate::exec::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use crate::lower::types::{Modifiers, Type, ones};
use crate::lower::{Lowered, Lowering};
use crate::machine::memory::GLOBAL_BASE;
use crate::numeric::fp8::Fp8;
use crate::numeric::half::{self, Half};
use crate::numeric::soft::{self, Format};
use crate::numeric::{Rounding, convert, single};
use crate::program::{Map1, Map2, Op, Register};
use crate::syntax::ast::Instruction;

/// A function of one lane that carries parameters of its own.
struct PerLane<F> {
    d: Register,
    a: Register,
    f: F,
}

impl<F: Fn(u64) -> u64 + Send + Sync> Operation for PerLane<F> {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        for lane in cx.lanes() {
            let value = (self.f)(cx.register(self.a)[lane]);
            cx.register_mut(self.d)[lane] = value;
        }
        Ok(Step::Next)
    }
}

/// The same of two registers.
struct PerLane2<F> {
    d: Register,
    a: Register,
    b: Register,
    f: F,
}

impl<F: Fn(u64, u64) -> u64 + Send + Sync> Operation for PerLane2<F> {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        for lane in cx.lanes() {
            let value = (self.f)(cx.register(self.a)[lane], cx.register(self.b)[lane]);
            cx.register_mut(self.d)[lane] = value;
        }
        Ok(Step::Next)
    }
}

fn format(ty: Type) -> Option<Format> {
    Some(match ty {
        Type::F16 => soft::F16,
        Type::Bf16 => soft::BF16,
        Type::F32 => soft::F32,
        Type::F64 => soft::F64,
        _ => return None,
    })
}

/// Repeats the sign or zeros from `from` bits up to `to` bits.
fn extend(value: u64, from: u32, to: u32, signed: bool) -> u64 {
    let value = value & ones(from);
    if signed && from < 64 && value >> (from - 1) & 1 != 0 {
        (value | !ones(from)) & ones(to)
    } else {
        value
    }
}

/// Integer to integer without saturation.
fn integer_kernel(from: Type, bits: u32) -> Option<Map1> {
    match bits {
        64 => {
            by_type!(from, [U8 u8, U16 u16, U32 u32, U64 u64, S8 i8, S16 i16, S32 i32, S64 i64, B8 u8, B16 u16, B32 u32, B64 u64], |T| {
                map1!(|a: T| a as i64 as u64)
            })
        }
        32 => {
            by_type!(from, [U8 u8, U16 u16, U32 u32, U64 u64, S8 i8, S16 i16, S32 i32, S64 i64, B8 u8, B16 u16, B32 u32, B64 u64], |T| {
                map1!(|a: T| a as i64 as u32)
            })
        }
        16 => {
            by_type!(from, [U8 u8, U16 u16, U32 u32, U64 u64, S8 i8, S16 i16, S32 i32, S64 i64, B8 u8, B16 u16, B32 u32, B64 u64], |T| {
                map1!(|a: T| a as i64 as u16)
            })
        }
        _ => None,
    }
}

/// The common conversions that have a tight loop.
fn fast(to: Type, from: Type, rounding: Rounding, integral: bool) -> Option<Map1> {
    use Rounding::{NearestEven, Zero};
    use Type::*;
    Some(match (to, from, rounding, integral) {
        (F32, S32, NearestEven, false) => map1!(|a: i32| (a as f32).to_bits()),
        (F32, U32, NearestEven, false) => map1!(|a: u32| (a as f32).to_bits()),
        (F32, U16, NearestEven, false) => map1!(|a: u16| f32::from(a).to_bits()),
        (F32, S64, NearestEven, false) => map1!(|a: i64| (a as f32).to_bits()),
        (F32, U64, NearestEven, false) => map1!(|a: u64| (a as f32).to_bits()),
        (S32, F32, Zero, true) => map1!(|a: u32| f32::from_bits(a) as i32),
        (U32, F32, Zero, true) => map1!(|a: u32| f32::from_bits(a) as u32),
        (S32, F32, NearestEven, true) => map1!(|a: u32| f32::from_bits(a).round_ties_even() as i32),
        (F32, F16, _, false) => map1!(|a: u16| half::f16_to_f32(a)),
        (F32, Bf16, _, false) => map1!(|a: u16| half::bf16_to_f32(a)),
        (F16, F32, NearestEven, false) => map1!(|a: u32| half::f32_to_f16(a, Rounding::NearestEven)),
        (Bf16, F32, NearestEven, false) => map1!(|a: u32| half::f32_to_bf16(a, Rounding::NearestEven)),
        (F64, F32, _, false) => map1!(|a: u32| convert::f32_to_f64(a)),
        (F32, F64, NearestEven, false) => map1!(|a: u64| convert::f64_to_f32(a, NearestEven)),
        (F32, F64, Zero, false) => map1!(|a: u64| convert::f64_to_f32(a, Zero)),
        (F32, F64, Rounding::Down, false) => map1!(|a: u64| convert::f64_to_f32(a, Rounding::Down)),
        (F32, F64, Rounding::Up, false) => map1!(|a: u64| convert::f64_to_f32(a, Rounding::Up)),
        (F64, F16, _, false) => map1!(|a: u16| convert::f16_to_f64(a)),
        (F16, F64, NearestEven, false) => map1!(|a: u64| convert::f64_to_f16(a, NearestEven)),
        (F16, F64, Zero, false) => map1!(|a: u64| convert::f64_to_f16(a, Zero)),
        _ => return None,
    })
}

/// Clamps a finished float to [0, 1]; NaN becomes +0.
fn saturate(bits: u64, format: Format) -> u64 {
    let value = f64::from_bits(soft::convert(format, soft::F64, bits, Rounding::Zero));
    if value.is_nan() || value <= 0.0 {
        0
    } else if value >= 1.0 {
        soft::convert(soft::F64, format, 1f64.to_bits(), Rounding::Zero)
    } else {
        bits
    }
}

fn flush_input(x: u64, ty: Type, ftz: bool) -> u64 {
    if ftz && ty == Type::F32 {
        u64::from(single::flush(x as u32))
    } else {
        x
    }
}

fn scalar(
    l: &mut Lowering<'_>,
    i: &Instruction,
    to: Type,
    from: Type,
    rounding: Option<(Rounding, bool)>,
    (ftz, sat, relu): (bool, bool, bool),
) -> Lowered {
    let [d, a] = l.operands(i)?;
    let a = l.source(a, from)?;
    let (d, bits) = l.dest(d)?;
    let bits = bits.max(to.bits());
    let (mode, integral) = rounding.unwrap_or((
        if to.float() {
            Rounding::NearestEven
        } else {
            Rounding::Zero
        },
        !to.float(),
    ));
    match (from.float(), to.float()) {
        (false, false) => {
            if relu || rounding.is_some() || ftz {
                return l.refuse("this form is not modelled");
            }
            if !sat {
                let source = if to.bits() <= from.bits() { to } else { from };
                if (to.bits() <= from.bits() || bits == to.bits())
                    && let Some(f) = integer_kernel(source, bits)
                {
                    return l.emit(Op::Map1 { f, d, a });
                }
            }
            let (low, high) = if to.signed() {
                (-(1i128 << (to.bits() - 1)), (1i128 << (to.bits() - 1)) - 1)
            } else {
                (0, (1i128 << to.bits()) - 1)
            };
            l.other(PerLane {
                d,
                a,
                f: move |x| {
                    let x = extend(x, from.bits(), 64, from.signed());
                    let wide = if from.signed() {
                        i128::from(x as i64)
                    } else {
                        i128::from(x)
                    };
                    let value = if sat { wide.clamp(low, high) } else { wide };
                    extend(value as u64, to.bits(), bits, to.signed())
                },
            })
        }
        (true, false) => {
            let Some(format) = format(from) else {
                return l.refuse("this source type is not modelled");
            };
            if relu || !integral {
                return l.refuse("a conversion to an integer needs .rni, .rzi, .rmi or .rpi");
            }
            if !ftz
                && bits == to.bits()
                && let Some(f) = fast(to, from, mode, true)
            {
                return l.emit(Op::Map1 { f, d, a });
            }
            l.other(PerLane {
                d,
                a,
                f: move |x| {
                    let x = flush_input(x & ones(from.bits()), from, ftz);
                    let value = convert::float_to_int(format, x, to.bits(), to.signed(), mode);
                    extend(value, to.bits(), bits, to.signed())
                },
            })
        }
        (false, true) => {
            let Some(format) = format(to) else {
                return l.refuse("this result type is not modelled");
            };
            if relu || integral || rounding.is_none() {
                return l.refuse("a conversion from an integer needs .rn, .rz, .rm or .rp");
            }
            if !sat && let Some(f) = fast(to, from, mode, false) {
                return l.emit(Op::Map1 { f, d, a });
            }
            l.other(PerLane {
                d,
                a,
                f: move |x| {
                    let value = convert::int_to_float(format, x & ones(from.bits()), from.bits(), from.signed(), mode);
                    if sat { saturate(value, format) } else { value }
                },
            })
        }
        (true, true) => {
            if to == Type::Tf32 && from == Type::F32 {
                let f: Map1 = match (mode, relu) {
                    (Rounding::NearestAway, false) => {
                        map1!(|a: u32| convert::f32_to_tf32(a, Rounding::NearestAway, false))
                    }
                    (Rounding::NearestEven, false) => {
                        map1!(|a: u32| convert::f32_to_tf32(a, Rounding::NearestEven, false))
                    }
                    (Rounding::NearestEven, true) => {
                        map1!(|a: u32| convert::f32_to_tf32(a, Rounding::NearestEven, true))
                    }
                    (Rounding::Zero, false) => map1!(|a: u32| convert::f32_to_tf32(a, Rounding::Zero, false)),
                    (Rounding::Zero, true) => map1!(|a: u32| convert::f32_to_tf32(a, Rounding::Zero, true)),
                    _ => return l.refuse("this form is not modelled"),
                };
                return l.emit(Op::Map1 { f, d, a });
            }
            let (Some(source), Some(result)) = (format(from), format(to)) else {
                return l.refuse("this pair of types is not modelled");
            };
            if rounding.is_none() && to.bits() < from.bits() || mode == Rounding::NearestAway {
                return l.refuse("a narrowing conversion needs .rn, .rz, .rm or .rp");
            }
            if !ftz
                && !sat
                && !relu
                && !integral
                && let Some(f) = fast(to, from, mode, false)
            {
                return l.emit(Op::Map1 { f, d, a });
            }
            let kind = if to == Type::Bf16 { Half::Bf16 } else { Half::F16 };
            if relu && !matches!(to, Type::F16 | Type::Bf16) {
                return l.refuse(".relu is only for f16 and bf16 results");
            }
            l.other(PerLane {
                d,
                a,
                f: move |x| {
                    let x = flush_input(x & ones(from.bits()), from, ftz);
                    let value = if from == to && integral {
                        convert::round_to_integral(source, x, mode)
                    } else {
                        let x = if integral {
                            convert::round_to_integral(source, x, mode)
                        } else {
                            x
                        };
                        soft::convert(source, result, x, mode)
                    };
                    let value = flush_input(value, to, ftz);
                    let value = if sat { saturate(value, result) } else { value };
                    if relu {
                        u64::from(kind.relu(value as u16))
                    } else {
                        value
                    }
                },
            })
        }
    }
}

fn cvt(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    if m.take("pack") {
        return l.refuse("cvt.pack is not modelled");
    }
    const ROUNDINGS: [(&str, Rounding, bool); 9] = [
        ("rn", Rounding::NearestEven, false),
        ("rz", Rounding::Zero, false),
        ("rm", Rounding::Down, false),
        ("rp", Rounding::Up, false),
        ("rna", Rounding::NearestAway, false),
        ("rni", Rounding::NearestEven, true),
        ("rzi", Rounding::Zero, true),
        ("rmi", Rounding::Down, true),
        ("rpi", Rounding::Up, true),
    ];
    let rounding = m.take_map(|n| ROUNDINGS.iter().find(|r| r.0 == n)).map(|r| (r.1, r.2));
    let (ftz, sat) = (m.take("ftz"), m.take("sat"));
    // `.satfinite` may come before or after `.relu`.
    let satfinite = m.take("satfinite");
    let relu = m.take("relu");
    let to = l.ty(m)?;
    let from = l.ty(m)?;
    match (to, from) {
        (Type::F16x2 | Type::Bf16x2, Type::F32) => {
            let [d, a, b] = l.operands(i)?;
            let (a, b) = (l.source(a, Type::F32)?, l.source(b, Type::F32)?);
            let (d, _) = l.dest(d)?;
            if satfinite || ftz || sat {
                return l.refuse("this form is not modelled");
            }
            macro_rules! pair {
                ($f:ident, $kind:expr, $r:expr, $relu:literal) => {
                    map2!(|a: u32, b: u32| {
                        let one = |x: u32| {
                            let h = half::$f(x, $r);
                            u32::from(if $relu { $kind.relu(h) } else { h })
                        };
                        one(a) << 16 | one(b)
                    })
                };
            }
            let f: Map2 = match (to, rounding, relu) {
                (Type::F16x2, Some((Rounding::NearestEven, false)), false) => {
                    pair!(f32_to_f16, Half::F16, Rounding::NearestEven, false)
                }
                (Type::F16x2, Some((Rounding::NearestEven, false)), true) => {
                    pair!(f32_to_f16, Half::F16, Rounding::NearestEven, true)
                }
                (Type::F16x2, Some((Rounding::Zero, false)), false) => {
                    pair!(f32_to_f16, Half::F16, Rounding::Zero, false)
                }
                (Type::F16x2, Some((Rounding::Zero, false)), true) => {
                    pair!(f32_to_f16, Half::F16, Rounding::Zero, true)
                }
                (_, Some((Rounding::NearestEven, false)), false) => {
                    pair!(f32_to_bf16, Half::Bf16, Rounding::NearestEven, false)
                }
                (_, Some((Rounding::NearestEven, false)), true) => {
                    pair!(f32_to_bf16, Half::Bf16, Rounding::NearestEven, true)
                }
                (_, Some((Rounding::Zero, false)), false) => pair!(f32_to_bf16, Half::Bf16, Rounding::Zero, false),
                (_, Some((Rounding::Zero, false)), true) => pair!(f32_to_bf16, Half::Bf16, Rounding::Zero, true),
                _ => return l.refuse("this rounding is not modelled"),
            };
            l.emit(Op::Map2 { f, d, a, b })
        }
        (Type::E4m3x2 | Type::E5m2x2, Type::F32 | Type::F16x2) => {
            let kind = if to == Type::E4m3x2 { Fp8::E4m3 } else { Fp8::E5m2 };
            if rounding != Some((Rounding::NearestEven, false)) || !satfinite {
                return l.refuse("it needs .rn.satfinite");
            }
            if from == Type::F32 {
                let [d, a, b] = l.operands(i)?;
                let (a, b) = (l.source(a, from)?, l.source(b, from)?);
                let (d, _) = l.dest(d)?;
                let f = move |a, b| {
                    u64::from(kind.from_f32(a as u32, relu)) << 8 | u64::from(kind.from_f32(b as u32, relu))
                };
                return l.other(PerLane2 { d, a, b, f });
            }
            let [d, a] = l.operands(i)?;
            let a = l.source(a, from)?;
            let (d, _) = l.dest(d)?;
            let one = move |h: u64| u64::from(kind.from_f32(half::f16_to_f32(h as u16), relu));
            l.other(PerLane {
                d,
                a,
                f: move |x| one(x >> 16) << 8 | one(x),
            })
        }
        (Type::F16x2, Type::E4m3x2 | Type::E5m2x2) => {
            let kind = if from == Type::E4m3x2 { Fp8::E4m3 } else { Fp8::E5m2 };
            let [d, a] = l.operands(i)?;
            let a = l.source(a, from)?;
            let (d, _) = l.dest(d)?;
            let one = move |x: u64| {
                let h = half::f32_to_f16(kind.to_f32(x as u8), Rounding::NearestEven);
                u64::from(if relu { Half::F16.relu(h) } else { h })
            };
            l.other(PerLane {
                d,
                a,
                f: move |x| one(x >> 8) << 16 | one(x),
            })
        }
        _ if satfinite => l.refuse(".satfinite is not modelled here"),
        _ => scalar(l, i, to, from, rounding, (ftz, sat, relu)),
    }
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    match &*i.opcode {
        "cvt" => cvt(l, i, m),
        "cvta" => {
            let to = m.take("to");
            let Some(space) = m.take_one(&[
                "global",
                "shared",
                "local",
                "const",
                "param",
                "shared::cta",
                "shared::cluster",
                "param::entry",
            ]) else {
                return l.refuse("the state space is missing");
            };
            let ty = l.ty(m)?;
            let [d, a] = l.operands(i)?;
            if ty.bits() != 64 {
                return l.refuse("only 64-bit addresses are modelled");
            }
            let a = l.source(a, ty)?;
            let (d, _) = l.dest(d)?;
            let f: Map1 = match (space, to) {
                (0 | 3, _) => return l.emit(Op::Copy { d, a }),
                (1 | 5 | 6, false) => map1!(|a: u64| SHARED_WINDOW.wrapping_add(a)),
                (1 | 5 | 6, true) => map1!(|a: u64| a.wrapping_sub(SHARED_WINDOW)),
                (2, false) => map1!(|a: u64| LOCAL_WINDOW.wrapping_add(a)),
                (2, true) => map1!(|a: u64| a.wrapping_sub(LOCAL_WINDOW)),
                (_, false) => map1!(|a: u64| PARAM_WINDOW.wrapping_add(a)),
                (_, true) => map1!(|a: u64| a.wrapping_sub(PARAM_WINDOW)),
            };
            l.emit(Op::Map1 { f, d, a })
        }
        _ => {
            let Some(space) = m.take_one(&[
                "global",
                "shared",
                "local",
                "const",
                "param",
                "shared::cta",
                "shared::cluster",
                "param::entry",
            ]) else {
                return l.refuse("the state space is missing");
            };
            let [p, a] = l.operands(i)?;
            let a = l.source(a, Type::B64)?;
            let p = l.dest_predicate(p)?;
            let rank = l.constant(crate::program::Constant::Shared(0));
            let f = match space {
                0 | 3 => test2!(|a: u64, _b: u64| a >= GLOBAL_BASE),
                1 | 6 => test2!(|a: u64, _b: u64| a.wrapping_sub(SHARED_WINDOW) < WINDOW),
                5 => test2!(|a: u64, b: u64| a.wrapping_sub(SHARED_WINDOW) < WINDOW
                    && (a.wrapping_sub(SHARED_WINDOW) ^ b) >> crate::machine::cluster::RANK_SHIFT == 0),
                2 => test2!(|a: u64, _b: u64| a.wrapping_sub(LOCAL_WINDOW) < WINDOW),
                _ => test2!(|a: u64, _b: u64| a.wrapping_sub(PARAM_WINDOW) < 2 * WINDOW),
            };
            l.emit(Op::Test {
                f,
                p,
                q: 0,
                a,
                b: rank,
                combine: None,
            })
        }
    }
}
