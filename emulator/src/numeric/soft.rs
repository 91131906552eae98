//! IEEE-754 arithmetic on integers, for any binary format up to 64 bits and every rounding mode.
//!
//! A finite value is `mantissa · 2^exponent` with a 128-bit mantissa plus a "sticky" flag that says
//! that something non-zero lies below. All operations compute that exactly and round once.

use super::Rounding;

/// A binary interchange format: sign, exponent, mantissa, with infinities and NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Width of the exponent field.
    pub exp_bits: u32,
    /// Width of the stored mantissa.
    pub man_bits: u32,
    /// The NaN that results have.
    pub nan: u64,
}

/// IEEE binary16.
pub const F16: Format = Format {
    exp_bits: 5,
    man_bits: 10,
    nan: super::NAN_F16 as u64,
};
/// bfloat16.
pub const BF16: Format = Format {
    exp_bits: 8,
    man_bits: 7,
    nan: super::NAN_F16 as u64,
};
/// tf32 as a 19-bit value; a PTX register holds it shifted left by 13.
pub const TF32: Format = Format {
    exp_bits: 8,
    man_bits: 10,
    nan: 0x3ffff,
};
/// IEEE binary32.
pub const F32: Format = Format {
    exp_bits: 8,
    man_bits: 23,
    nan: super::NAN_F32 as u64,
};
/// IEEE binary64.
pub const F64: Format = Format {
    exp_bits: 11,
    man_bits: 52,
    nan: super::NAN_F64,
};

impl Format {
    const fn sign_bit(self) -> u64 {
        1 << (self.exp_bits + self.man_bits)
    }
    const fn inf(self) -> u64 {
        ((1 << self.exp_bits) - 1) << self.man_bits
    }
    const fn bias(self) -> i32 {
        (1 << (self.exp_bits - 1)) - 1
    }
    /// Exponent of the smallest subnormal.
    const fn quantum(self) -> i32 {
        1 - self.bias() - self.man_bits as i32
    }
}

/// A decoded value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Not a number.
    Nan,
    /// Infinity; the flag is the sign.
    Inf(bool),
    /// `(-1)^sign · mant · 2^exp`; zero has `mant == 0`.
    Finite {
        /// Whether the value is negative (zero has a sign too).
        sign: bool,
        /// The integer mantissa.
        mant: u128,
        /// The exponent of the mantissa's unit.
        exp: i32,
    },
}

/// Decodes the bit pattern `bits` of `format`.
#[must_use]
pub fn unpack(format: Format, bits: u64) -> Value {
    let sign = bits & format.sign_bit() != 0;
    let magnitude = bits & (format.sign_bit() - 1);
    let field = (magnitude >> format.man_bits) as i32;
    let man = magnitude & ((1 << format.man_bits) - 1);
    if field == (1 << format.exp_bits) - 1 {
        return if man == 0 { Value::Inf(sign) } else { Value::Nan };
    }
    let (mant, exp) = if field == 0 {
        (man, format.quantum())
    } else {
        (man | 1 << format.man_bits, format.quantum() + field - 1)
    };
    Value::Finite {
        sign,
        mant: u128::from(mant),
        exp,
    }
}

/// Rounds `mant · 2^exp` (plus a sticky part below one unit of `mant`) to at most `precision` bits whose unit is
/// at least `2^quantum`. Returns the rounded mantissa and its exponent.
#[must_use]
pub fn round_to(
    sign: bool,
    mant: u128,
    exp: i32,
    sticky: bool,
    precision: u32,
    quantum: i32,
    rounding: Rounding,
) -> (u64, i32) {
    let length = 128 - mant.leading_zeros() as i32;
    let mut q = (exp + length - precision as i32).max(quantum);
    let shift = q - exp;
    let (mut kept, half, rest) = if shift <= 0 {
        ((mant << -shift) as u64, false, sticky)
    } else if shift > 128 {
        (0, false, mant != 0 || sticky)
    } else {
        let kept = if shift == 128 { 0 } else { mant >> shift };
        let half = mant >> (shift - 1) & 1 == 1;
        let rest = mant & ((1u128 << (shift - 1)) - 1) != 0;
        (kept as u64, half, rest || sticky)
    };
    let up = match rounding {
        Rounding::NearestEven => half && (rest || kept & 1 == 1),
        Rounding::NearestAway => half,
        Rounding::Zero => false,
        Rounding::Down => sign && (half || rest),
        Rounding::Up => !sign && (half || rest),
    };
    kept += u64::from(up);
    if kept == 1 << precision {
        kept >>= 1;
        q += 1;
    }
    (kept, q)
}

/// Rounds a finite value into `format`; overflow gives infinity or the largest finite value as the mode demands.
#[must_use]
pub fn pack(format: Format, sign: bool, mant: u128, exp: i32, sticky: bool, rounding: Rounding) -> u64 {
    let s = if sign { format.sign_bit() } else { 0 };
    let (kept, q) = round_to(sign, mant, exp, sticky, format.man_bits + 1, format.quantum(), rounding);
    if kept >> format.man_bits == 0 {
        return s | kept; // zero or subnormal
    }
    let field = q - format.quantum() + 1;
    if field >= (1 << format.exp_bits) - 1 {
        let to_inf = match rounding {
            Rounding::NearestEven | Rounding::NearestAway => true,
            Rounding::Zero => false,
            Rounding::Down => sign,
            Rounding::Up => !sign,
        };
        return s | if to_inf { format.inf() } else { format.inf() - 1 };
    }
    s | (field as u64) << format.man_bits | (kept & ((1 << format.man_bits) - 1))
}

/// Converts between two formats with one rounding.
#[must_use]
pub fn convert(from: Format, to: Format, bits: u64, rounding: Rounding) -> u64 {
    match unpack(from, bits) {
        Value::Nan => to.nan,
        Value::Inf(sign) => to.inf() | if sign { to.sign_bit() } else { 0 },
        Value::Finite { sign, mant, exp } => pack(to, sign, mant, exp, false, rounding),
    }
}

/// Shifts a non-zero mantissa so that its top bit is bit `top`.
fn normalise(mant: u128, exp: i32, top: i32) -> (u128, i32) {
    let shift = top - (127 - mant.leading_zeros() as i32);
    if shift >= 0 {
        (mant << shift, exp - shift)
    } else {
        (mant >> -shift, exp - shift)
    }
}

/// `a · b + c` with one rounding.
#[must_use]
pub fn fma(format: Format, a: u64, b: u64, c: u64, rounding: Rounding) -> u64 {
    let (a, b, c) = (unpack(format, a), unpack(format, b), unpack(format, c));
    let product = match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) => return format.nan,
        (Value::Inf(_), Value::Finite { mant: 0, .. }) | (Value::Finite { mant: 0, .. }, Value::Inf(_)) => {
            return format.nan;
        }
        (Value::Inf(s), Value::Finite { sign, .. } | Value::Inf(sign))
        | (Value::Finite { sign, .. }, Value::Inf(s)) => Value::Inf(s ^ sign),
        (
            Value::Finite { sign, mant, exp },
            Value::Finite {
                sign: s,
                mant: m,
                exp: e,
            },
        ) => Value::Finite {
            sign: sign ^ s,
            mant: mant * m,
            exp: exp + e,
        },
    };
    sum(format, product, c, rounding)
}

/// `a + b`.
#[must_use]
pub fn add(format: Format, a: u64, b: u64, rounding: Rounding) -> u64 {
    sum(format, unpack(format, a), unpack(format, b), rounding)
}

/// `a · b`.
#[must_use]
pub fn mul(format: Format, a: u64, b: u64, rounding: Rounding) -> u64 {
    // Adding a zero of the product's sign changes nothing.
    let zero = (a ^ b) & format.sign_bit();
    fma(format, a, b, zero, rounding)
}

fn sum(format: Format, a: Value, b: Value, rounding: Rounding) -> u64 {
    let inf = |sign| format.inf() | if sign { format.sign_bit() } else { 0 };
    match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) => format.nan,
        (Value::Inf(x), Value::Inf(y)) if x != y => format.nan,
        (Value::Inf(s), _) | (_, Value::Inf(s)) => inf(s),
        (
            Value::Finite {
                sign: sa,
                mant: ma,
                exp: ea,
            },
            Value::Finite {
                sign: sb,
                mant: mb,
                exp: eb,
            },
        ) => {
            let zero_sign = if sa == sb { sa } else { rounding == Rounding::Down };
            match (ma, mb) {
                (0, 0) => return if zero_sign { format.sign_bit() } else { 0 },
                (_, 0) => return pack(format, sa, ma, ea, false, rounding),
                (0, _) => return pack(format, sb, mb, eb, false, rounding),
                _ => {}
            }
            let (mut big, mut ebig) = normalise(ma, ea, 125);
            let (mut small, mut esmall) = normalise(mb, eb, 125);
            let mut sign = sa;
            if (esmall, small) > (ebig, big) {
                std::mem::swap(&mut big, &mut small);
                std::mem::swap(&mut ebig, &mut esmall);
                sign = sb;
            }
            let distance = ebig - esmall;
            let (shifted, sticky) = if distance > 126 {
                (0, true)
            } else {
                (small >> distance, small & ((1u128 << distance) - 1) != 0)
            };
            let mant = if sa == sb {
                big + shifted
            } else {
                big - shifted - u128::from(sticky)
            };
            if mant == 0 && !sticky {
                return if zero_sign { format.sign_bit() } else { 0 };
            }
            pack(format, sign, mant, ebig, sticky, rounding)
        }
    }
}

/// `a / b`.
#[must_use]
pub fn div(format: Format, a: u64, b: u64, rounding: Rounding) -> u64 {
    let s = (a ^ b) & format.sign_bit();
    match (unpack(format, a), unpack(format, b)) {
        (Value::Nan, _) | (_, Value::Nan) | (Value::Inf(_), Value::Inf(_)) => format.nan,
        (Value::Finite { mant: 0, .. }, Value::Finite { mant: 0, .. }) => format.nan,
        (Value::Inf(_), _) | (_, Value::Finite { mant: 0, .. }) => s | format.inf(),
        (_, Value::Inf(_)) | (Value::Finite { mant: 0, .. }, _) => s,
        (Value::Finite { mant: ma, exp: ea, .. }, Value::Finite { mant: mb, exp: eb, .. }) => {
            let (ma, ea) = normalise(ma, ea, 126);
            pack(format, s != 0, ma / mb, ea - eb, ma % mb != 0, rounding)
        }
    }
}

/// `√a`.
#[must_use]
pub fn sqrt(format: Format, a: u64, rounding: Rounding) -> u64 {
    match unpack(format, a) {
        Value::Finite { mant: 0, .. } | Value::Inf(false) => a,
        Value::Nan | Value::Inf(true) | Value::Finite { sign: true, .. } => format.nan,
        Value::Finite { mant, exp, .. } => {
            let (mut mant, mut exp) = normalise(mant, exp, 125);
            if exp & 1 != 0 {
                mant <<= 1;
                exp -= 1;
            }
            let root = mant.isqrt();
            pack(format, false, root, exp / 2, root * root != mant, rounding)
        }
    }
}

/// Converts an integer to `format`.
#[must_use]
pub fn from_int(format: Format, negative: bool, magnitude: u64, rounding: Rounding) -> u64 {
    if magnitude == 0 {
        return 0;
    }
    pack(format, negative, u128::from(magnitude), 0, false, rounding)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [Rounding; 4] = [Rounding::NearestEven, Rounding::Zero, Rounding::Down, Rounding::Up];

    /// Interesting and random f64 patterns.
    fn samples(n: usize) -> Vec<u64> {
        let mut out = vec![
            0,
            1,
            2,
            0x8000_0000_0000_0000,
            0x000f_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
            0x3ff0_0000_0000_0000,
            0xbff0_0000_0000_0000,
            0x3ff0_0000_0000_0001,
            0x7fef_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0000,
        ];
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        for i in 0..n {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let r = x ^ x >> 29;
            // Half of them near 1 so that cancellation happens.
            out.push(if i % 2 == 0 {
                r
            } else {
                (r & 0x800f_ffff_ffff_ffff) | (0x3f0 + (r >> 52 & 31)) << 52
            });
        }
        out
    }

    fn same(got: u64, want: f64) {
        if want.is_nan() {
            assert_eq!(got, F64.nan);
        } else {
            assert_eq!(got, want.to_bits(), "{:e} {want:e}", f64::from_bits(got));
        }
    }

    #[test]
    fn nearest_even_matches_the_host_in_f64() {
        let s = samples(300);
        let f = f64::from_bits;
        for &a in &s {
            same(sqrt(F64, a, Rounding::NearestEven), f(a).sqrt());
            for &b in &s {
                same(add(F64, a, b, Rounding::NearestEven), f(a) + f(b));
                same(mul(F64, a, b, Rounding::NearestEven), f(a) * f(b));
                same(div(F64, a, b, Rounding::NearestEven), f(a) / f(b));
                let c = s[(a ^ b) as usize % s.len()];
                same(fma(F64, a, b, c, Rounding::NearestEven), f(a).mul_add(f(b), f(c)));
                let near = (-(f(a) * f(b))).to_bits();
                same(fma(F64, a, b, near, Rounding::NearestEven), f(a).mul_add(f(b), f(near)));
            }
        }
    }

    #[test]
    fn nearest_even_matches_the_host_in_f32() {
        let s: Vec<u32> = samples(400).iter().map(|x| (x >> 29) as u32 ^ (*x as u32)).collect();
        for &a in &s {
            for &b in &s {
                let (x, y) = (f32::from_bits(a), f32::from_bits(b));
                for (got, want) in [
                    (add(F32, a.into(), b.into(), Rounding::NearestEven), x + y),
                    (mul(F32, a.into(), b.into(), Rounding::NearestEven), x * y),
                    (div(F32, a.into(), b.into(), Rounding::NearestEven), x / y),
                ] {
                    let want = if want.is_nan() { 0x7fff_ffff } else { want.to_bits() };
                    assert_eq!(got as u32, want);
                }
            }
        }
    }

    /// Directed results bracket the exact value: for each operation rm ≤ rn ≤ rp, they are neighbours or equal,
    /// rz is the one nearer zero, and equality means the operation was exact.
    #[test]
    fn directed_modes_bracket() {
        let s = samples(150);
        type Op = fn(u64, u64, Rounding) -> u64;
        let ops: [Op; 4] = [
            |a, b, m| add(F64, a, b, m),
            |a, b, m| mul(F64, a, b, m),
            |a, b, m| div(F64, a, b, m),
            |a, b, m| fma(F64, a, b, 0x3ff0_0000_0000_0003, m),
        ];
        for op in ops {
            for &a in &s {
                for &b in &s {
                    let [n, z, d, u] = MODES.map(|m| f64::from_bits(op(a, b, m)));
                    if n.is_nan() {
                        assert!(z.is_nan() && d.is_nan() && u.is_nan());
                        continue;
                    }
                    assert!(d <= n && n <= u);
                    assert!(u == d || u == d.next_up() || d == u.next_down());
                    assert_eq!(z, if d >= 0.0 { d } else { u });
                }
            }
        }
        // 1 + 2^-60: inexact upward.
        let one = 1f64.to_bits();
        let tiny = 2f64.powi(-60).to_bits();
        assert_eq!(add(F64, one, tiny, Rounding::Up), one + 1);
        assert_eq!(add(F64, one, tiny, Rounding::Down), one);
        assert_eq!(add(F64, one, tiny | 1 << 63, Rounding::Zero), one - 1);
        assert_eq!(add(F64, one, one | 1 << 63, Rounding::Down), 1 << 63);
    }

    #[test]
    fn integers_and_narrowing() {
        assert_eq!(
            from_int(F32, false, 0xffff_ffff, Rounding::NearestEven),
            u64::from((4294967296f32).to_bits())
        );
        assert_eq!(
            from_int(F32, false, 0xffff_ffff, Rounding::Zero),
            u64::from((4294967040f32).to_bits())
        );
        assert_eq!(
            from_int(F32, true, 16_777_217, Rounding::Down),
            u64::from((-16_777_218f32).to_bits())
        );
        assert_eq!(
            convert(F32, F16, 65520f32.to_bits().into(), Rounding::NearestEven),
            0x7c00
        );
        assert_eq!(convert(F32, F16, 65520f32.to_bits().into(), Rounding::Zero), 0x7bff);
        assert_eq!(
            convert(
                F32,
                TF32,
                (1.0 + 2f32.powi(-11)).to_bits().into(),
                Rounding::NearestAway
            ),
            0x1fc01
        );
    }
}
