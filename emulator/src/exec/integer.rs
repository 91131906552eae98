//! Integer arithmetic (PTX ISA, "Integer Arithmetic Instructions" and "Extended-Precision").

use super::kernels::{by_type, map1, map2, map3, map4};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::program::{Constant, Map1, Map2, Map3, Op, Register, Special};
use crate::syntax::ast::Instruction;

/// Arithmetic that the types of all widths share.
pub(crate) trait Integer: Copy + PartialOrd {
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn mul_hi(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    fn rem(self, b: Self) -> Self;
    fn mul_wide(self, b: Self) -> u64;
    fn difference(self, b: Self) -> Self;
}

macro_rules! integers {
    ($($t:ty, $wide:ty, $wide_unsigned:ty, $unsigned:ty);*) => { $(
        impl Integer for $t {
            #[inline(always)]
            fn add(self, b: Self) -> Self { self.wrapping_add(b) }
            #[inline(always)]
            fn sub(self, b: Self) -> Self { self.wrapping_sub(b) }
            #[inline(always)]
            fn mul(self, b: Self) -> Self { self.wrapping_mul(b) }
            #[inline(always)]
            fn mul_hi(self, b: Self) -> Self { ((self as $wide * b as $wide) >> <$t>::BITS) as $t }
            // Division by zero is unspecified; the hardware's result is all ones.
            #[inline(always)]
            fn div(self, b: Self) -> Self { if b == 0 { !0 } else { self.wrapping_div(b) } }
            #[inline(always)]
            fn rem(self, b: Self) -> Self { if b == 0 { self } else { self.wrapping_rem(b) } }
            #[inline(always)]
            fn mul_wide(self, b: Self) -> u64 { (self as $wide).wrapping_mul(b as $wide) as $wide_unsigned as u64 }
            #[inline(always)]
            fn difference(self, b: Self) -> Self {
                if self < b { b.wrapping_sub(self) } else { self.wrapping_sub(b) }
            }
        }
    )* };
}
integers!(u16, u32, u32, u16; i16, i32, u32, u16; u32, u64, u64, u32; i32, i64, u64, u32; u64, u128, u64, u64; i64, i128, u64, u64);

fn binary(opcode: &str, ty: Type) -> Option<Map2> {
    macro_rules! all {
        (|$a:ident, $b:ident| $e:expr) => {
            by_type!(ty, [U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64, B16 u16, B32 u32, B64 u64], |T| {
                map2!(|$a: T, $b: T| $e)
            })
        };
    }
    match opcode {
        "add" => all!(|a, b| a.add(b)),
        "sub" => all!(|a, b| a.sub(b)),
        "mul.lo" => all!(|a, b| a.mul(b)),
        "mul.hi" => all!(|a, b| a.mul_hi(b)),
        "mul.wide" => all!(|a, b| a.mul_wide(b)),
        "div" => all!(|a, b| a.div(b)),
        "rem" => all!(|a, b| a.rem(b)),
        "min" => all!(|a, b| if b < a { b } else { a }),
        "max" => all!(|a, b| if b > a { b } else { a }),
        _ => None,
    }
}

fn packed16(opcode: &str, ty: Type, relu: bool) -> Option<Map2> {
    macro_rules! halves {
        ($t:ty, |$x:ident, $y:ident| $e:expr) => {
            Some(map2!(|a: u32, b: u32| {
                let f = |$x: $t, $y: $t| -> $t { $e };
                let low = f(a as $t, b as $t) as u16;
                let high = f((a >> 16) as $t, (b >> 16) as $t) as u16;
                u32::from(low) | u32::from(high) << 16
            }))
        };
    }
    match (opcode, ty, relu) {
        ("add", Type::U16x2 | Type::S16x2, false) => halves!(u16, |x, y| x.wrapping_add(y)),
        ("min", Type::U16x2, false) => halves!(u16, |x, y| x.min(y)),
        ("max", Type::U16x2, false) => halves!(u16, |x, y| x.max(y)),
        ("min", Type::S16x2, false) => halves!(i16, |x, y| x.min(y)),
        ("max", Type::S16x2, false) => halves!(i16, |x, y| x.max(y)),
        ("min", Type::S16x2, true) => halves!(i16, |x, y| x.min(y).max(0)),
        ("max", Type::S16x2, true) => halves!(i16, |x, y| x.max(y).max(0)),
        _ => None,
    }
}

fn unary(opcode: &str, ty: Type) -> Option<Map1> {
    use Type::*;
    Some(match (opcode, ty) {
        ("abs", S16) => map1!(|a: i16| a.wrapping_abs()),
        ("abs", S32) => map1!(|a: i32| a.wrapping_abs()),
        ("abs", S64) => map1!(|a: i64| a.wrapping_abs()),
        ("neg", S16) => map1!(|a: i16| a.wrapping_neg()),
        ("neg", S32) => map1!(|a: i32| a.wrapping_neg()),
        ("neg", S64) => map1!(|a: i64| a.wrapping_neg()),
        ("popc", B32) => map1!(|a: u32| a.count_ones()),
        ("popc", B64) => map1!(|a: u64| a.count_ones()),
        ("clz", B32) => map1!(|a: u32| a.leading_zeros()),
        ("clz", B64) => map1!(|a: u64| a.leading_zeros()),
        ("brev", B32) => map1!(|a: u32| a.reverse_bits()),
        ("brev", B64) => map1!(|a: u64| a.reverse_bits()),
        ("bfind", U32) => map1!(|a: u32| 31u32.wrapping_sub(a.leading_zeros())),
        ("bfind", U64) => map1!(|a: u64| 63u32.wrapping_sub(a.leading_zeros())),
        ("bfind", S32) => map1!(|a: i32| 31u32.wrapping_sub((if a < 0 { !a } else { a }).leading_zeros())),
        ("bfind", S64) => map1!(|a: i64| 63u32.wrapping_sub((if a < 0 { !a } else { a }).leading_zeros())),
        ("bfind.shiftamt", U32) => map1!(|a: u32| if a == 0 { !0 } else { a.leading_zeros() }),
        ("bfind.shiftamt", U64) => map1!(|a: u64| if a == 0 { !0 } else { a.leading_zeros() }),
        ("bfind.shiftamt", S32) => map1!(|a: i32| {
            let a = if a < 0 { !a } else { a };
            if a == 0 { !0 } else { a.leading_zeros() }
        }),
        ("bfind.shiftamt", S64) => map1!(|a: i64| {
            let a = if a < 0 { !a } else { a };
            if a == 0 { !0 } else { a.leading_zeros() }
        }),
        _ => return None,
    })
}

/// `bfe`: a field of `len` bits at `pos`; bits above the top repeat the sign of the type.
fn extract(a: u64, pos: u64, len: u64, width: u32, signed: bool) -> u64 {
    let (pos, len) = ((pos & 0xFF) as u32, (len & 0xFF) as u32);
    let top = width - 1;
    let sign_at = pos.saturating_add(len).wrapping_sub(1).min(top);
    let sign = signed && len != 0 && a >> sign_at & 1 != 0;
    let field = if pos < width { a >> pos } else { 0 };
    let available = if len == 0 {
        0
    } else {
        len.min(width.saturating_sub(pos))
    };
    let mask = crate::lower::types::ones(available);
    (field & mask | if sign { !mask } else { 0 }) & crate::lower::types::ones(width)
}

/// `bfi`: puts the low `len` bits of `a` into `b` at `pos`.
fn insert(a: u64, b: u64, pos: u64, len: u64, width: u32) -> u64 {
    let (pos, len) = ((pos & 0xFF) as u32, (len & 0xFF) as u32);
    if pos >= width || len == 0 {
        return b;
    }
    let mask = (crate::lower::types::ones(len) << pos) & crate::lower::types::ones(width);
    b & !mask | (a << pos) & mask
}

/// `fns`: the position of the `n`-th set bit from `base`, or all ones.
fn nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    let base = base & 31;
    let mut left = offset.unsigned_abs().saturating_sub(u32::from(offset != 0)) + u32::from(offset == 0);
    if offset == 0 {
        return if mask >> base & 1 != 0 { base } else { !0 };
    }
    let mut at = base as i32;
    while (0..32).contains(&at) {
        if mask >> at & 1 != 0 {
            if left == 0 {
                return at as u32;
            }
            left -= 1;
        }
        at += if offset > 0 { 1 } else { -1 };
    }
    !0
}

/// The register that holds the condition code of extended-precision arithmetic.
fn carry(l: &mut Lowering<'_>) -> Register {
    l.constant(Constant::Special(Special::ConditionCode))
}

fn add_with(
    l: &mut Lowering<'_>,
    subtract: bool,
    ty: Type,
    d: Register,
    abc: [Register; 2],
    cc: (bool, bool),
) -> Lowered {
    let [a, b] = abc;
    let c = carry(l);
    let zero = l.bits(0);
    let wide = ty.bits() == 64;
    let input = if cc.0 { c } else { zero };
    let sum: Map3 = match (subtract, wide) {
        (false, false) => map3!(|a: u32, b: u32, c: u32| a.wrapping_add(b).wrapping_add(c)),
        (false, true) => map3!(|a: u64, b: u64, c: u64| a.wrapping_add(b).wrapping_add(c)),
        (true, false) => map3!(|a: u32, b: u32, c: u32| a.wrapping_sub(b).wrapping_sub(c)),
        (true, true) => map3!(|a: u64, b: u64, c: u64| a.wrapping_sub(b).wrapping_sub(c)),
    };
    let over: Map3 = match (subtract, wide) {
        (false, false) => map3!(|a: u32, b: u32, c: u32| (u64::from(a) + u64::from(b) + u64::from(c)) >> 32 != 0),
        (false, true) => map3!(|a: u64, b: u64, c: u64| (u128::from(a) + u128::from(b) + u128::from(c)) >> 64 != 0),
        (true, false) => map3!(|a: u32, b: u32, c: u32| u64::from(a) < u64::from(b) + u64::from(c)),
        (true, true) => map3!(|a: u64, b: u64, c: u64| u128::from(a) < u128::from(b) + u128::from(c)),
    };
    let out = l.temporary();
    l.emit(Op::Map3 {
        f: sum,
        d: out,
        a,
        b,
        c: input,
    })?;
    if cc.1 {
        l.emit(Op::Map3 {
            f: over,
            d: c,
            a,
            b,
            c: input,
        })?;
    }
    l.emit(Op::Copy { d, a: out })
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let opcode = &*i.opcode;
    match opcode {
        "add" | "sub" | "addc" | "subc" => {
            let (sat, cc) = (m.take("sat"), m.take("cc"));
            let ty = l.ty(m)?;
            let [d, a, b] = l.operands(i)?;
            let (a, b) = (l.source(a, ty)?, l.source(b, ty)?);
            let (d, _) = l.dest(d)?;
            if cc || opcode.ends_with('c') {
                if sat || ty.bits() < 32 || ty.float() {
                    return l.refuse("this type is not modelled with .cc");
                }
                return add_with(l, opcode.starts_with("sub"), ty, d, [a, b], (opcode.ends_with('c'), cc));
            }
            let f = match (sat, ty, opcode) {
                (true, Type::S32, "add") => Some(map2!(|a: i32, b: i32| a.saturating_add(b))),
                (true, Type::S32, _) => Some(map2!(|a: i32, b: i32| a.saturating_sub(b))),
                (true, ..) => None,
                (false, Type::U16x2 | Type::S16x2, _) => packed16(opcode, ty, false),
                (false, ..) => binary(opcode, ty),
            };
            let Some(f) = f else {
                return l.refuse("this type is not modelled");
            };
            l.emit(Op::Map2 { f, d, a, b })
        }
        "mul" | "mad" | "madc" => {
            let kind = m.take_one(&["lo", "hi", "wide"]);
            let (sat, cc) = (m.take("sat"), m.take("cc"));
            let ty = l.ty(m)?;
            let Some(kind) = kind else {
                return l.refuse("one of .lo, .hi and .wide is missing");
            };
            if ty.float() || kind == 2 && ty.bits() == 64 {
                return l.refuse("this type is not modelled");
            }
            let name = ["mul.lo", "mul.hi", "mul.wide"][kind];
            let Some(f) = binary(name, ty) else {
                return l.refuse("this type is not modelled");
            };
            if opcode == "mul" {
                let [d, a, b] = l.operands(i)?;
                let (a, b) = (l.source(a, ty)?, l.source(b, ty)?);
                let (d, _) = l.dest(d)?;
                return if sat || cc {
                    l.refuse("mul has no .sat or .cc")
                } else {
                    l.emit(Op::Map2 { f, d, a, b })
                };
            }
            let [d, a, b, c] = l.operands(i)?;
            let sum = match (kind, ty) {
                (2, Type::U16) => Type::U32,
                (2, Type::S16) => Type::S32,
                (2, Type::U32) => Type::U64,
                (2, Type::S32) => Type::S64,
                _ => ty,
            };
            let (a, b, c) = (l.source(a, ty)?, l.source(b, ty)?, l.source(c, sum)?);
            let (d, _) = l.dest(d)?;
            if cc || opcode == "madc" {
                if sat || ty.bits() < 32 {
                    return l.refuse("this type is not modelled with .cc");
                }
                let product = l.temporary();
                l.emit(Op::Map2 { f, d: product, a, b })?;
                return add_with(l, false, sum, d, [product, c], (opcode == "madc", cc));
            }
            let fused: Option<Map3> = match (kind, ty, sat) {
                (1, Type::S32, true) => Some(map3!(|a: i32, b: i32, c: i32| a.mul_hi(b).saturating_add(c))),
                (_, _, true) => None,
                (0, ..) => by_type!(ty, [U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64, B32 u32, B64 u64], |T| {
                    map3!(|a: T, b: T, c: T| a.mul(b).add(c))
                }),
                (1, ..) => by_type!(ty, [U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64], |T| {
                    map3!(|a: T, b: T, c: T| a.mul_hi(b).add(c))
                }),
                (_, Type::U16 | Type::S16, _) => by_type!(ty, [U16 u16, S16 i16], |T| {
                    map3!(|a: T, b: T, c: u32| (a.mul_wide(b) as u32).wrapping_add(c))
                }),
                _ => by_type!(ty, [U32 u32, S32 i32], |T| map3!(|a: T, b: T, c: u64| a.mul_wide(b).wrapping_add(c))),
            };
            let Some(f) = fused else {
                return l.refuse("this type is not modelled");
            };
            l.emit(Op::Map3 { f, d, a, b, c })
        }
        "mul24" | "mad24" => {
            let Some(kind) = m.take_one(&["lo", "hi"]) else {
                return l.refuse("one of .lo and .hi is missing");
            };
            let sat = m.take("sat");
            let ty = l.ty(m)?;
            fn u24(a: u32) -> u64 {
                u64::from(a & 0xFF_FFFF)
            }
            fn s24(a: i32) -> i64 {
                i64::from(a << 8 >> 8)
            }
            let f: Option<Map2> = match (kind, ty) {
                (0, Type::U32) => Some(map2!(|a: u32, b: u32| (u24(a) * u24(b)) as u32)),
                (1, Type::U32) => Some(map2!(|a: u32, b: u32| ((u24(a) * u24(b)) >> 16) as u32)),
                (0, Type::S32) => Some(map2!(|a: i32, b: i32| (s24(a) * s24(b)) as i32)),
                (1, Type::S32) => Some(map2!(|a: i32, b: i32| ((s24(a) * s24(b)) >> 16) as i32)),
                _ => None,
            };
            let Some(f) = f else {
                return l.refuse("this type is not modelled");
            };
            if opcode == "mul24" {
                let [d, a, b] = l.operands(i)?;
                let (a, b) = (l.source(a, ty)?, l.source(b, ty)?);
                let (d, _) = l.dest(d)?;
                return if sat {
                    l.refuse("mul24 has no .sat")
                } else {
                    l.emit(Op::Map2 { f, d, a, b })
                };
            }
            let [d, a, b, c] = l.operands(i)?;
            let (a, b, c) = (l.source(a, ty)?, l.source(b, ty)?, l.source(c, ty)?);
            let (d, _) = l.dest(d)?;
            let product = l.temporary();
            l.emit(Op::Map2 { f, d: product, a, b })?;
            let f = match (sat, kind, ty) {
                (false, ..) => map2!(|a: u32, b: u32| a.wrapping_add(b)),
                (true, 1, Type::S32) => map2!(|a: i32, b: i32| a.saturating_add(b)),
                _ => return l.refuse(".sat is only for .hi.s32"),
            };
            l.emit(Op::Map2 { f, d, a: product, b: c })
        }
        "sad" => {
            let ty = l.ty(m)?;
            let [d, a, b, c] = l.operands(i)?;
            let (a, b, c) = (l.source(a, ty)?, l.source(b, ty)?, l.source(c, ty)?);
            let (d, _) = l.dest(d)?;
            let f = by_type!(ty, [U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64], |T| {
                map3!(|a: T, b: T, c: T| a.difference(b).add(c))
            });
            let Some(f) = f else {
                return l.refuse("this type is not modelled");
            };
            l.emit(Op::Map3 { f, d, a, b, c })
        }
        "div" | "rem" | "min" | "max" => {
            let relu = m.take("relu");
            let ty = l.ty(m)?;
            let [d, a, b] = l.operands(i)?;
            let (a, b) = (l.source(a, ty)?, l.source(b, ty)?);
            let (d, _) = l.dest(d)?;
            let f = match (ty, relu) {
                (Type::U16x2 | Type::S16x2, _) => packed16(opcode, ty, relu),
                (Type::S32, true) if opcode == "min" => Some(map2!(|a: i32, b: i32| a.min(b).max(0))),
                (Type::S32, true) if opcode == "max" => Some(map2!(|a: i32, b: i32| a.max(b).max(0))),
                (_, true) => None,
                (Type::B16 | Type::B32 | Type::B64, _) => None,
                _ => binary(opcode, ty),
            };
            let Some(f) = f else {
                return l.refuse("this type is not modelled");
            };
            l.emit(Op::Map2 { f, d, a, b })
        }
        "abs" | "neg" | "popc" | "clz" | "brev" | "bfind" => {
            let shift = opcode == "bfind" && m.take("shiftamt");
            let ty = l.ty(m)?;
            let [d, a] = l.operands(i)?;
            let a = l.source(a, ty)?;
            let (d, _) = l.dest(d)?;
            let Some(f) = unary(if shift { "bfind.shiftamt" } else { opcode }, ty) else {
                return l.refuse("this type is not modelled");
            };
            l.emit(Op::Map1 { f, d, a })
        }
        "bfe" => {
            let ty = l.ty(m)?;
            let [d, a, b, c] = l.operands(i)?;
            let (a, b, c) = (l.source(a, ty)?, l.source(b, Type::U32)?, l.source(c, Type::U32)?);
            let (d, _) = l.dest(d)?;
            let f = match ty {
                Type::U32 => map3!(|a: u64, b: u64, c: u64| extract(a, b, c, 32, false)),
                Type::S32 => map3!(|a: u64, b: u64, c: u64| extract(a, b, c, 32, true)),
                Type::U64 => map3!(|a: u64, b: u64, c: u64| extract(a, b, c, 64, false)),
                Type::S64 => map3!(|a: u64, b: u64, c: u64| extract(a, b, c, 64, true)),
                _ => return l.refuse("this type is not modelled"),
            };
            l.emit(Op::Map3 { f, d, a, b, c })
        }
        "bfi" => {
            let ty = l.ty(m)?;
            let [d, a, b, p, n] = l.operands(i)?;
            let s = [
                l.source(a, ty)?,
                l.source(b, ty)?,
                l.source(p, Type::U32)?,
                l.source(n, Type::U32)?,
            ];
            let (d, _) = l.dest(d)?;
            let f = match ty {
                Type::B32 => map4!(|a: u64, b: u64, p: u64, n: u64| insert(a, b, p, n, 32)),
                Type::B64 => map4!(|a: u64, b: u64, p: u64, n: u64| insert(a, b, p, n, 64)),
                _ => return l.refuse("this type is not modelled"),
            };
            l.emit(Op::Map4 { f, d, s })
        }
        "szext" | "bmsk" => {
            let clamp = m.take_one(&["clamp", "wrap"]);
            let ty = l.ty(m)?;
            let [d, a, b] = l.operands(i)?;
            let (a, b) = (l.source(a, Type::U32)?, l.source(b, Type::U32)?);
            let (d, _) = l.dest(d)?;
            let f = match (opcode, clamp, ty) {
                ("bmsk", Some(0), Type::B32) => map2!(|a: u32, b: u32| {
                    if a >= 32 {
                        0
                    } else {
                        (crate::lower::types::ones(b.min(32)) << a) & 0xFFFF_FFFF
                    }
                }),
                ("bmsk", Some(1), Type::B32) => {
                    map2!(|a: u32, b: u32| crate::lower::types::ones(b & 31) << (a & 31) & 0xFFFF_FFFF)
                }
                ("szext", Some(0), Type::U32) => {
                    map2!(|a: u32, b: u32| a & crate::lower::types::ones(b.min(32)) as u32)
                }
                ("szext", Some(1), Type::U32) => map2!(|a: u32, b: u32| a & crate::lower::types::ones(b & 31) as u32),
                ("szext", Some(0), Type::S32) => map2!(|a: i32, b: u32| match b {
                    0 => 0,
                    32.. => a,
                    b => a << (32 - b) >> (32 - b),
                }),
                ("szext", Some(1), Type::S32) => map2!(|a: i32, b: u32| match b & 31 {
                    0 => 0,
                    b => a << (32 - b) >> (32 - b),
                }),
                _ => return l.refuse("this form is not modelled"),
            };
            l.emit(Op::Map2 { f, d, a, b })
        }
        "fns" => {
            let _ = l.ty(m)?;
            let [d, a, b, c] = l.operands(i)?;
            let (a, b, c) = (
                l.source(a, Type::B32)?,
                l.source(b, Type::U32)?,
                l.source(c, Type::S32)?,
            );
            let (d, _) = l.dest(d)?;
            l.emit(Op::Map3 {
                f: map3!(|a: u32, b: u32, c: i32| nth_set(a, b, c)),
                d,
                a,
                b,
                c,
            })
        }
        "dp4a" | "dp2a" => {
            let half = if opcode == "dp2a" {
                m.take_one(&["lo", "hi"])
            } else {
                Some(0)
            };
            let (ta, tb) = (l.ty(m)?, l.ty(m)?);
            let [d, a, b, c] = l.operands(i)?;
            let (a, b, c) = (l.source(a, ta)?, l.source(b, tb)?, l.source(c, Type::B32)?);
            let (d, _) = l.dest(d)?;
            macro_rules! dot4 {
                ($ta:ty, $tb:ty) => {
                    map3!(|a: u32, b: u32, c: u32| {
                        (0..4).fold(c, |c, k| {
                            let product = i32::from((a >> (8 * k)) as $ta) * i32::from((b >> (8 * k)) as $tb);
                            c.wrapping_add(product as u32)
                        })
                    })
                };
            }
            macro_rules! dot2 {
                ($ta:ty, $tb:ty, $shift:expr) => {
                    map3!(|a: u32, b: u32, c: u32| {
                        (0..2).fold(c, |c, k| {
                            let x = i64::from((a >> (16 * k)) as $ta);
                            let y = i64::from((b >> ($shift + 8 * k)) as $tb);
                            c.wrapping_add((x * y) as u32)
                        })
                    })
                };
            }
            let f = match (opcode, half, ta, tb) {
                ("dp4a", _, Type::U32, Type::U32) => dot4!(u8, u8),
                ("dp4a", _, Type::U32, Type::S32) => dot4!(u8, i8),
                ("dp4a", _, Type::S32, Type::U32) => dot4!(i8, u8),
                ("dp4a", _, Type::S32, Type::S32) => dot4!(i8, i8),
                ("dp2a", Some(0), Type::U32, Type::U32) => dot2!(u16, u8, 0),
                ("dp2a", Some(0), Type::U32, Type::S32) => dot2!(u16, i8, 0),
                ("dp2a", Some(0), Type::S32, Type::U32) => dot2!(i16, u8, 0),
                ("dp2a", Some(0), Type::S32, Type::S32) => dot2!(i16, i8, 0),
                ("dp2a", Some(1), Type::U32, Type::U32) => dot2!(u16, u8, 16),
                ("dp2a", Some(1), Type::U32, Type::S32) => dot2!(u16, i8, 16),
                ("dp2a", Some(1), Type::S32, Type::U32) => dot2!(i16, u8, 16),
                ("dp2a", Some(1), Type::S32, Type::S32) => dot2!(i16, i8, 16),
                _ => return l.refuse("this form is not modelled"),
            };
            l.emit(Op::Map3 { f, d, a, b, c })
        }
        _ => l.refuse("the opcode is not modelled for this type"),
    }
}
