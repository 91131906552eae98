//! f16 and bf16 arithmetic, single and packed (PTX ISA, "Half Precision Floating-Point Instructions").

use super::float::rounding;
use super::kernels::{map1, map2, map3};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::numeric::half::{Half, packed1, packed2, packed3};
use crate::numeric::{Mode, Rounding, approx};
use crate::program::{Map1, Map2, Map3, Op};
use crate::syntax::ast::Instruction;

/// A kernel for each of f16, f16x2, bf16, bf16x2 from a function of halves.
macro_rules! each {
    ($ty:expr, $map:ident, $packed:ident, $kind:ident, |$($x:ident),*| $e:expr) => {
        match $ty {
            Type::F16 => { const $kind: Half = Half::F16; $map!(|$($x: u16),*| $e) }
            Type::Bf16 => { const $kind: Half = Half::Bf16; $map!(|$($x: u16),*| $e) }
            Type::F16x2 => { const $kind: Half = Half::F16; $map!(|$($x: u32),*| $packed($($x,)* |$($x),*| $e)) }
            _ => { const $kind: Half = Half::Bf16; $map!(|$($x: u32),*| $packed($($x,)* |$($x),*| $e)) }
        }
    };
}

/// The same for every `.ftz`/`.sat`.
macro_rules! modes {
    ($mode:expr, $ty:expr, $map:ident, $packed:ident, |$($x:ident),*| ($m:ident, $kind:ident) $e:expr) => {
        match ($mode.ftz, $mode.sat) {
            (false, false) => { const $m: Mode = Mode::RN; each!($ty, $map, $packed, $kind, |$($x),*| $e) }
            (true, false) => { const $m: Mode = Mode::RN.ftz(true); each!($ty, $map, $packed, $kind, |$($x),*| $e) }
            (false, true) => { const $m: Mode = Mode::RN.sat(true); each!($ty, $map, $packed, $kind, |$($x),*| $e) }
            (true, true) => {
                const $m: Mode = Mode::RN.ftz(true).sat(true);
                each!($ty, $map, $packed, $kind, |$($x),*| $e)
            }
        }
    };
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let opcode = &*i.opcode;
    let rounded = rounding(m);
    if rounded.is_some_and(|r| r != Rounding::NearestEven) {
        return l.refuse("only .rn exists here");
    }
    let approximate = m.take("approx");
    let (ftz, sat, relu) = (m.take("ftz"), m.take("sat"), m.take("relu"));
    let nan = m.take("NaN");
    let xorsign = m.take("xorsign");
    let magnitude = xorsign && m.take("abs");
    let ty = l.ty(m)?;
    let mode = Mode::RN.ftz(ftz).sat(sat);
    if xorsign != magnitude {
        return l.refuse("this form is not modelled");
    }
    match opcode {
        "add" | "sub" | "mul" | "min" | "max" => {
            let [d, a, b] = l.operands(i)?;
            let (a, b) = (l.source(a, ty)?, l.source(b, ty)?);
            let (d, _) = l.dest(d)?;
            if relu {
                return l.refuse(".relu is not modelled here");
            }
            macro_rules! extremum {
                ($f:ident) => {
                    match (ftz, nan, xorsign) {
                        (false, false, false) => each!(ty, map2, packed2, K, |x, y| K.$f(x, y, false, false)),
                        (true, false, false) => each!(ty, map2, packed2, K, |x, y| K.$f(x, y, true, false)),
                        (false, true, false) => each!(ty, map2, packed2, K, |x, y| K.$f(x, y, false, true)),
                        (true, true, false) => each!(ty, map2, packed2, K, |x, y| K.$f(x, y, true, true)),
                        (ftz, nan, true) => {
                            if ftz {
                                return l.refuse(".ftz with .xorsign.abs is not modelled");
                            }
                            if nan {
                                each!(ty, map2, packed2, K, |x, y| xorsign_abs(
                                    K,
                                    x,
                                    y,
                                    K.$f(x & 0x7FFF, y & 0x7FFF, false, true)
                                ))
                            } else {
                                each!(ty, map2, packed2, K, |x, y| xorsign_abs(
                                    K,
                                    x,
                                    y,
                                    K.$f(x & 0x7FFF, y & 0x7FFF, false, false)
                                ))
                            }
                        }
                    }
                };
            }
            let f: Map2 = match opcode {
                "add" => modes!(mode, ty, map2, packed2, |x, y| (M, K) K.add(x, y, M)),
                "sub" => modes!(mode, ty, map2, packed2, |x, y| (M, K) K.sub(x, y, M)),
                "mul" => modes!(mode, ty, map2, packed2, |x, y| (M, K) K.mul(x, y, M)),
                _ if sat => return l.refuse(".sat is not modelled here"),
                "min" => extremum!(min),
                _ => extremum!(max),
            };
            l.emit(Op::Map2 { f, d, a, b })
        }
        "fma" => {
            let [d, a, b, c] = l.operands(i)?;
            let (a, b, c) = (l.source(a, ty)?, l.source(b, ty)?, l.source(c, ty)?);
            let (d, _) = l.dest(d)?;
            if m.take("oob") {
                return l.refuse(".oob is not modelled");
            }
            let f: Map3 = if relu {
                modes!(mode, ty, map3, packed3, |x, y, z| (M, K) K.relu(K.fma(x, y, z, M)))
            } else {
                modes!(mode, ty, map3, packed3, |x, y, z| (M, K) K.fma(x, y, z, M))
            };
            l.emit(Op::Map3 { f, d, a, b, c })
        }
        _ => {
            let [d, a] = l.operands(i)?;
            let a = l.source(a, ty)?;
            let (d, _) = l.dest(d)?;
            if sat || relu {
                return l.refuse("this form is not modelled");
            }
            let f: Map1 = match (opcode, approximate) {
                ("abs", false) if ftz => each!(ty, map1, packed1, K, |x| canonical(K, K.flush(x) & 0x7FFF)),
                ("abs", false) => each!(ty, map1, packed1, K, |x| canonical(K, x & 0x7FFF)),
                ("neg", false) if ftz => each!(ty, map1, packed1, K, |x| canonical(K, K.flush(x) ^ 0x8000)),
                ("neg", false) => each!(ty, map1, packed1, K, |x| canonical(K, x ^ 0x8000)),
                ("ex2", true) if ftz => each!(ty, map1, packed1, K, |x| approx::half(K, x, true, f64::exp2)),
                ("ex2", true) => each!(ty, map1, packed1, K, |x| approx::half(K, x, false, f64::exp2)),
                ("tanh", true) if !ftz => each!(ty, map1, packed1, K, |x| approx::half(K, x, false, f64::tanh)),
                _ => return l.refuse("this form is not modelled"),
            };
            l.emit(Op::Map1 { f, d, a })
        }
    }
}

/// NaN results are canonical.
fn canonical(kind: Half, x: u16) -> u16 {
    if kind.is_nan(x) { crate::numeric::NAN_F16 } else { x }
}

/// `r`, a minimum or maximum of magnitudes, with the exclusive or of the signs.
fn xorsign_abs(kind: Half, a: u16, b: u16, r: u16) -> u16 {
    if kind.is_nan(r) {
        r
    } else {
        r & 0x7FFF | (a ^ b) & 0x8000
    }
}
