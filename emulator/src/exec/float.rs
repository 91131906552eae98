//! f32 and f64 arithmetic (PTX ISA, "Floating Point Instructions").

use super::kernels::{by_mode, map1, map2, mode_of};
use crate::Lanes;
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::numeric::{Mode, Rounding, approx, double, single};
use crate::program::{Map1, Map2, Map3, Op};
use crate::syntax::ast::Instruction;

macro_rules! single2 {
    ($name:ident, $f:path) => {
        fn $name<const M: u8>(out: &mut Lanes, a: &Lanes, b: &Lanes) {
            for i in 0..32 {
                out[i] = u64::from($f(a[i] as u32, b[i] as u32, const { mode_of(M) }));
            }
        }
    };
}
single2!(add, single::add);
single2!(sub, single::sub);
single2!(mul, single::mul);
single2!(div, single::div);

fn fma<const M: u8>(out: &mut Lanes, a: &Lanes, b: &Lanes, c: &Lanes) {
    for i in 0..32 {
        out[i] = u64::from(single::fma(a[i] as u32, b[i] as u32, c[i] as u32, const { mode_of(M) }));
    }
}

/// [`fma`] on hosts with the instruction: without it, `mul_add` is a call into the C library.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_native_inner<const M: u8>(out: &mut Lanes, a: &Lanes, b: &Lanes, c: &Lanes) {
    for i in 0..32 {
        out[i] = u64::from(single::fma(a[i] as u32, b[i] as u32, c[i] as u32, const { mode_of(M) }));
    }
}

#[cfg(target_arch = "x86_64")]
fn fma_native<const M: u8>(out: &mut Lanes, a: &Lanes, b: &Lanes, c: &Lanes) {
    // SAFETY: chosen in `fma_kernel` only when the host has AVX2 and FMA.
    unsafe { fma_native_inner::<M>(out, a, b, c) }
}

fn fma_kernel(mode: Mode) -> Map3 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        return by_mode!(mode, fma_native);
    }
    by_mode!(mode, fma)
}

macro_rules! single1 {
    ($name:ident, $f:path) => {
        fn $name<const M: u8>(out: &mut Lanes, a: &Lanes) {
            for i in 0..32 {
                out[i] = u64::from($f(a[i] as u32, const { mode_of(M) }));
            }
        }
    };
}
single1!(rcp, single::rcp);
single1!(sqrt, single::sqrt);

macro_rules! double2 {
    ($name:ident, $f:path) => {
        fn $name(rounding: Rounding) -> Map2 {
            match rounding {
                Rounding::Zero => map2!(|a: u64, b: u64| $f(a, b, Rounding::Zero)),
                Rounding::Down => map2!(|a: u64, b: u64| $f(a, b, Rounding::Down)),
                Rounding::Up => map2!(|a: u64, b: u64| $f(a, b, Rounding::Up)),
                _ => map2!(|a: u64, b: u64| $f(a, b, Rounding::NearestEven)),
            }
        }
    };
}
double2!(add64, double::add);
double2!(sub64, double::sub);
double2!(mul64, double::mul);
double2!(div64, double::div);

macro_rules! double1 {
    ($name:ident, $f:path) => {
        fn $name(rounding: Rounding) -> Map1 {
            match rounding {
                Rounding::Zero => map1!(|a: u64| $f(a, Rounding::Zero)),
                Rounding::Down => map1!(|a: u64| $f(a, Rounding::Down)),
                Rounding::Up => map1!(|a: u64| $f(a, Rounding::Up)),
                _ => map1!(|a: u64| $f(a, Rounding::NearestEven)),
            }
        }
    };
}
double1!(rcp64, double::rcp);
double1!(sqrt64, double::sqrt);

fn fma64(rounding: Rounding) -> Map3 {
    use super::kernels::map3;
    match rounding {
        Rounding::Zero => map3!(|a: u64, b: u64, c: u64| double::fma(a, b, c, Rounding::Zero)),
        Rounding::Down => map3!(|a: u64, b: u64, c: u64| double::fma(a, b, c, Rounding::Down)),
        Rounding::Up => map3!(|a: u64, b: u64, c: u64| double::fma(a, b, c, Rounding::Up)),
        _ => map3!(|a: u64, b: u64, c: u64| double::fma(a, b, c, Rounding::NearestEven)),
    }
}

/// `min`/`max` by `.ftz`, `.NaN` and `.xorsign.abs`.
fn extremum(max: bool, ftz: bool, nan: bool, xorsign: bool) -> Map2 {
    macro_rules! pick {
        ($f:path, $ftz:literal, $nan:literal) => {
            if xorsign {
                map2!(|a: u32, b: u32| single::xorsign_abs(a, b, |a, b| $f(a, b, $ftz, $nan)))
            } else {
                map2!(|a: u32, b: u32| $f(a, b, $ftz, $nan))
            }
        };
    }
    match (max, ftz, nan) {
        (false, false, false) => pick!(single::min, false, false),
        (false, false, true) => pick!(single::min, false, true),
        (false, true, false) => pick!(single::min, true, false),
        (false, true, true) => pick!(single::min, true, true),
        (true, false, false) => pick!(single::max, false, false),
        (true, false, true) => pick!(single::max, false, true),
        (true, true, false) => pick!(single::max, true, false),
        (true, true, true) => pick!(single::max, true, true),
    }
}

/// Takes `.rn`, `.rz`, `.rm` or `.rp`.
pub(super) fn rounding(m: &mut Modifiers<'_>) -> Option<Rounding> {
    m.take_one(&["rn", "rz", "rm", "rp"])
        .map(|k| [Rounding::NearestEven, Rounding::Zero, Rounding::Down, Rounding::Up][k])
}

/// The classes of `testp`.
fn class(name: usize, ty: Type) -> Option<crate::program::Test> {
    use super::kernels::test2;
    macro_rules! classes {
        ($bits:ty, $float:ty) => {
            Some(match name {
                0 => test2!(|a: $bits, _b: $bits| <$float>::from_bits(a).is_finite()),
                1 => test2!(|a: $bits, _b: $bits| <$float>::from_bits(a).is_infinite()),
                2 => test2!(|a: $bits, _b: $bits| !<$float>::from_bits(a).is_nan()),
                3 => test2!(|a: $bits, _b: $bits| <$float>::from_bits(a).is_nan()),
                // PTX counts zeros among the normal numbers.
                4 => test2!(|a: $bits, _b: $bits| {
                    let a = <$float>::from_bits(a);
                    a.is_normal() || a == 0.0
                }),
                _ => test2!(|a: $bits, _b: $bits| <$float>::from_bits(a).is_subnormal()),
            })
        };
    }
    match ty {
        Type::F32 => classes!(u32, f32),
        Type::F64 => classes!(u64, f64),
        _ => None,
    }
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let opcode = &*i.opcode;
    if opcode == "testp" {
        let names = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
        let Some(name) = m.take_one(&names) else {
            return l.refuse("the class is missing");
        };
        let ty = l.ty(m)?;
        let [p, a] = l.operands(i)?;
        let a = l.source(a, ty)?;
        let p = l.dest_predicate(p)?;
        let Some(f) = class(name, ty) else {
            return l.refuse("this type is not modelled");
        };
        return l.emit(Op::Test {
            f,
            p,
            q: 0,
            a,
            b: a,
            combine: None,
        });
    }
    let rounded = rounding(m);
    let approximate = m.take("approx");
    let full = m.take("full");
    let (ftz, sat) = (m.take("ftz"), m.take("sat"));
    let nan = m.take("NaN");
    let xorsign = m.take("xorsign");
    let magnitude = xorsign && m.take("abs");
    let ty = l.ty(m)?;
    let mode = Mode {
        rounding: rounded.unwrap_or_default(),
        ftz,
        sat,
    };
    let wide = ty == Type::F64;
    if wide && (sat || ftz && !approximate || nan || xorsign || full) || xorsign != magnitude {
        return l.refuse("this form is not modelled");
    }
    if sat && !matches!(opcode, "add" | "sub" | "mul" | "fma" | "mad") {
        return l.refuse(".sat is not modelled here");
    }
    match opcode {
        "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => {
            let [d, a, b] = l.operands(i)?;
            let (a, b) = (l.source(a, ty)?, l.source(b, ty)?);
            let (d, _) = l.dest(d)?;
            let f: Map2 = match (opcode, wide) {
                ("add", false) => by_mode!(mode, add),
                ("sub", false) => by_mode!(mode, sub),
                ("mul", false) => by_mode!(mode, mul),
                ("div", false) if approximate && ftz => map2!(|a: u32, b: u32| approx::div(a, b, true)),
                ("div", false) if approximate => map2!(|a: u32, b: u32| approx::div(a, b, false)),
                ("div", false) if full && ftz => map2!(|a: u32, b: u32| approx::div_full(a, b, true)),
                ("div", false) if full => map2!(|a: u32, b: u32| approx::div_full(a, b, false)),
                ("div", false) => by_mode!(mode, div),
                ("min", false) => extremum(false, ftz, nan, xorsign),
                ("max", false) => extremum(true, ftz, nan, xorsign),
                ("copysign", false) => map2!(|a: u32, b: u32| b & 0x7FFF_FFFF | a & 0x8000_0000),
                ("add", true) => add64(mode.rounding),
                ("sub", true) => sub64(mode.rounding),
                ("mul", true) => mul64(mode.rounding),
                ("div", true) if !approximate => div64(mode.rounding),
                ("min", true) => map2!(|a: u64, b: u64| double::min(a, b)),
                ("max", true) => map2!(|a: u64, b: u64| double::max(a, b)),
                ("copysign", true) => map2!(|a: u64, b: u64| b & !(1 << 63) | a & 1 << 63),
                _ => return l.refuse("this form is not modelled"),
            };
            l.emit(Op::Map2 { f, d, a, b })
        }
        "fma" | "mad" => {
            let [d, a, b, c] = l.operands(i)?;
            let (a, b, c) = (l.source(a, ty)?, l.source(b, ty)?, l.source(c, ty)?);
            let (d, _) = l.dest(d)?;
            let f = if wide { fma64(mode.rounding) } else { fma_kernel(mode) };
            l.emit(Op::Map3 { f, d, a, b, c })
        }
        _ => {
            let [d, a] = l.operands(i)?;
            let a = l.source(a, ty)?;
            let (d, _) = l.dest(d)?;
            macro_rules! approximation {
                ($f:path) => {
                    if ftz {
                        map1!(|a: u32| $f(a, true))
                    } else {
                        map1!(|a: u32| $f(a, false))
                    }
                };
            }
            let f: Map1 = match (opcode, wide, approximate) {
                ("abs", false, false) => approximation!(single::abs),
                ("neg", false, false) => approximation!(single::neg),
                ("abs", true, false) => map1!(|a: u64| double::abs(a)),
                ("neg", true, false) => map1!(|a: u64| double::neg(a)),
                ("rcp", false, true) => approximation!(approx::rcp),
                ("rcp", true, true) if ftz => map1!(|a: u64| approx::rcp_f64(a)),
                ("rcp", false, false) if rounded.is_some() => by_mode!(mode, rcp),
                ("rcp", true, false) if rounded.is_some() => rcp64(mode.rounding),
                ("sqrt", false, true) => approximation!(approx::sqrt),
                ("sqrt", false, false) if rounded.is_some() => by_mode!(mode, sqrt),
                ("sqrt", true, false) if rounded.is_some() => sqrt64(mode.rounding),
                ("rsqrt", false, true) => approximation!(approx::rsqrt),
                ("rsqrt", true, true) => map1!(|a: u64| approx::rsqrt_f64(a)),
                ("sin", false, true) => approximation!(approx::sin),
                ("cos", false, true) => approximation!(approx::cos),
                ("lg2", false, true) => approximation!(approx::lg2),
                ("ex2", false, true) => approximation!(approx::ex2),
                ("tanh", false, true) if !ftz => map1!(|a: u32| approx::tanh(a)),
                _ => return l.refuse("this form is not modelled"),
            };
            l.emit(Op::Map1 { f, d, a })
        }
    }
}
