//! `mma.sync.aligned`: arithmetic on the registers of one warp (PTX ISA, "Matrix multiply-accumulate operation using mma").

use super::Element;
use super::fragment::{a_position, accumulator_position};
use super::matmul::{multiply, vectorised};
use crate::Lanes;
use crate::numeric::half::{f16_to_f32, f32_to_f16};
use crate::numeric::{NAN_F32, Rounding};

/// The type of an accumulator matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accumulator {
    /// f32, one a register.
    F32,
    /// f16, two a register.
    F16,
    /// s32, one a register; with `satfinite` sums clamp instead of wrapping.
    S32 {
        /// `.satfinite`.
        saturate: bool,
    },
}

impl Accumulator {
    /// Elements in one register.
    #[must_use]
    pub const fn per_register(self) -> usize {
        match self {
            Self::F16 => 2,
            _ => 1,
        }
    }

    /// Adds block products to one accumulator register; `dot(j)` are those of its element `j`.
    #[inline(always)]
    pub(super) fn add_lanes(self, lanes: &mut Lanes, dot: impl Fn(usize) -> [f32; 32]) {
        #[inline(always)]
        fn each(a: Accumulator, lanes: &mut Lanes, low: &[f32; 32], high: &[f32; 32]) {
            for ((out, low), high) in lanes.iter_mut().zip(low).zip(high) {
                *out = a.add(*out as u32, [*low, *high]).into();
            }
        }
        let low = dot(0);
        match self {
            Self::F32 => each(Self::F32, lanes, &low, &low),
            Self::F16 => each(Self::F16, lanes, &low, &dot(1)),
            other => each(other, lanes, &low, &low),
        }
    }

    /// Adds the exact or rounded block products `dot` to the packed accumulator register `c` of one lane.
    #[inline(always)]
    pub(super) fn add(self, c: u32, dot: [f32; 2]) -> u32 {
        match self {
            Self::F32 => {
                let sum = f32::from_bits(c) + dot[0];
                if sum.is_nan() { NAN_F32 } else { sum.to_bits() }
            }
            Self::F16 => {
                let half = |c: u32, d: f32| {
                    let sum = f32::from_bits(f16_to_f32(c as u16)) + d;
                    u32::from(f32_to_f16(sum.to_bits(), Rounding::NearestEven))
                };
                half(c, dot[0]) | half(c >> 16, dot[1]) << 16
            }
            Self::S32 { saturate } => {
                // A sum of at most 32 products of 8-bit integers is below 2^24, exact in f32.
                let (c, d) = (c as i32, dot[0] as i32);
                (if saturate {
                    c.saturating_add(d)
                } else {
                    c.wrapping_add(d)
                }) as u32
            }
        }
    }
}

/// The shape and types of one `mma` instruction; all are `.row.col`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows of A and D: 16, or 8 for `m8n8k16`.
    pub m: usize,
    /// Columns of A and rows of B.
    pub k: usize,
    /// Type of A.
    pub a: Element,
    /// Type of B.
    pub b: Element,
    /// Type of C.
    pub c: Accumulator,
    /// Type of D.
    pub d: Accumulator,
}

impl Shape {
    /// Whether PTX has this shape and this module models it.
    #[must_use]
    pub fn is_modelled(&self) -> bool {
        use Accumulator::{F16, F32, S32};
        let types = match (self.a, self.b) {
            (Element::F16, Element::F16) => {
                matches!((self.k, self.m), (8 | 16, 16)) && matches!((self.c, self.d), (F16 | F32, F16 | F32))
            }
            (Element::Bf16, Element::Bf16) => {
                matches!((self.k, self.m), (8 | 16, 16)) && (self.c, self.d) == (F32, F32)
            }
            (Element::Tf32, Element::Tf32) => matches!((self.k, self.m), (4 | 8, 16)) && (self.c, self.d) == (F32, F32),
            (Element::E4m3 | Element::E5m2, Element::E4m3 | Element::E5m2) => {
                matches!((self.k, self.m), (16 | 32, 16)) && matches!((self.c, self.d), (F16, F16) | (F32, F32))
            }
            (Element::S8 | Element::U8, Element::S8 | Element::U8) => {
                matches!((self.k, self.m), (16 | 32, 16) | (16, 8))
                    && matches!((self.c, self.d), (S32 { .. }, S32 { .. }))
            }
            _ => false,
        };
        types && (self.c == self.d || self.a == Element::F16)
    }

    /// `m16n8k…` of one element type with f32 sums.
    const fn of_16_rows(k: usize, element: Element) -> Shape {
        Shape {
            m: 16,
            k,
            a: element,
            b: element,
            c: Accumulator::F32,
            d: Accumulator::F32,
        }
    }

    /// Registers of A.
    #[must_use]
    pub const fn a_registers(&self) -> usize {
        self.m * self.k / 32 / self.a.per_register()
    }

    /// Registers of B.
    #[must_use]
    pub const fn b_registers(&self) -> usize {
        self.k / 4 / self.b.per_register()
    }

    /// Registers of C.
    #[must_use]
    pub const fn c_registers(&self) -> usize {
        self.m / 4 / self.c.per_register()
    }

    /// Registers of D.
    #[must_use]
    pub const fn d_registers(&self) -> usize {
        self.m / 4 / self.d.per_register()
    }

    /// Multiplications and additions of the instruction.
    #[must_use]
    pub const fn flops(&self) -> u64 {
        (2 * self.m * 8 * self.k) as u64
    }
}

/// `D = A · B + C`. The register slices have the lengths that [`Shape`] says; `d` receives the result.
///
/// # Panics
/// If a slice has another length (the caller has checked the operand lists).
pub fn mma(shape: &Shape, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes], d: &mut [Lanes]) {
    assert_eq!(
        (a.len(), b.len(), c.len(), d.len()),
        (
            shape.a_registers(),
            shape.b_registers(),
            shape.c_registers(),
            shape.d_registers()
        )
    );
    vectorised(
        #[inline(always)]
        || match *shape {
            // What kernels use most is compiled with its extents and types known.
            TF32 => mma_body::<128, 64>(&TF32, a, b, c, d),
            F16 => mma_body::<256, 128>(&F16, a, b, c, d),
            BF16 => mma_body::<256, 128>(&BF16, a, b, c, d),
            _ => mma_body::<512, 256>(shape, a, b, c, d),
        },
    );
}

const TF32: Shape = Shape::of_16_rows(8, Element::Tf32);
const F16: Shape = Shape::of_16_rows(16, Element::F16);
const BF16: Shape = Shape::of_16_rows(16, Element::Bf16);

/// `A` and `B`: at least the elements of the two matrices.
#[inline(always)]
fn mma_body<const A: usize, const B: usize>(shape: &Shape, a: &[&Lanes], b: &[&Lanes], c: &[&Lanes], d: &mut [Lanes]) {
    let (m, k) = (shape.m, shape.k);
    let mut left = [0.0f32; A];
    let mut right = [0.0f32; B];
    let mut product = [0.0f32; 16 * 8];
    let mut values = [0.0f32; 128];
    for (r, lanes) in a.iter().enumerate() {
        shape.a.decode_register(lanes, &mut values);
        load_a(shape.a, m, k, r, &values, &mut left);
    }
    for (r, lanes) in b.iter().enumerate() {
        shape.b.decode_register(lanes, &mut values);
        // The lanes of a group hold one column: 4 · per_register consecutive k.
        let run = 4 * shape.b.per_register();
        for (column, part) in values.chunks_exact(run).take(8).enumerate() {
            for (i, v) in part.iter().enumerate() {
                right[(run * r + i) * 8 + column] = *v;
            }
        }
    }
    multiply(&left, &right, &mut product, m, 8, k);
    for (r, out) in d.iter_mut().enumerate() {
        let at = |index: usize| gather(&product, m, 8, index);
        match (shape.c, shape.d) {
            (Accumulator::F16, Accumulator::F32) => {
                let dot = at(r);
                for lane in 0..32 {
                    let half = (c[r / 2][lane] >> (16 * (r % 2))) as u16;
                    out[lane] = Accumulator::F32.add(f16_to_f32(half), [dot[lane], 0.0]).into();
                }
            }
            (Accumulator::F32, Accumulator::F16) => {
                let dots = [at(2 * r), at(2 * r + 1)];
                for lane in 0..32 {
                    let half = |j: usize| {
                        let sum = f32::from_bits(c[2 * r + j][lane] as u32) + dots[j][lane];
                        u64::from(f32_to_f16(sum.to_bits(), Rounding::NearestEven))
                    };
                    out[lane] = half(0) | half(1) << 16;
                }
            }
            (_, d) => {
                *out = *c[r];
                d.add_lanes(out, |j| at(r * d.per_register() + j));
            }
        }
    }
}

/// Puts a decoded register of A (see [`Element::decode_register`]) into a tile with rows of `k` values.
///
/// The four lanes of a group hold one row: 4 · `per_register` consecutive k.
#[inline(always)]
pub(super) fn load_a(element: Element, m: usize, k: usize, register: usize, values: &[f32; 128], tile: &mut [f32]) {
    let run = 4 * element.per_register();
    let (row0, column) = a_position(element, m, 0, register, 0);
    for (group, part) in values.chunks_exact(run).take(8).enumerate() {
        tile[(row0 + group) * k + column..][..run].copy_from_slice(part);
    }
}

/// Accumulator element `index` of every lane, out of a tile with rows of `n` values.
#[inline(always)]
pub(super) fn gather(tile: &[f32], m: usize, n: usize, index: usize) -> [f32; 32] {
    let (row0, column) = accumulator_position(m, 0, index);
    let mut out = [0.0; 32];
    for (group, four) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let line = &tile[(row0 + group) * n + column..][..7];
        *four = [line[0], line[2], line[4], line[6]];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::fp8::Fp8;
    use crate::numeric::half::Half;
    use crate::tensor::fragment::{b_position, ldmatrix, stmatrix};

    fn refs(list: &[Lanes]) -> Vec<&Lanes> {
        list.iter().collect()
    }

    fn encode(e: Element, x: f32) -> u32 {
        match e {
            Element::F16 => Half::F16.narrow(x.to_bits()).into(),
            Element::Bf16 => Half::Bf16.narrow(x.to_bits()).into(),
            Element::Tf32 => x.to_bits() | 0x1fff, // the low bits must not matter
            Element::E4m3 => Fp8::E4m3.from_f32(x.to_bits(), false).into(),
            Element::E5m2 => Fp8::E5m2.from_f32(x.to_bits(), false).into(),
            Element::S8 => (x as i8 as u8).into(),
            Element::U8 => (x as u8).into(),
        }
    }

    /// Small integers, exact in every type; unsigned types get non-negative ones.
    fn value(e: Element, i: usize) -> f32 {
        let v = (i * 7 + 3) % 5;
        if e == Element::U8 { v as f32 } else { v as f32 - 2.0 }
    }

    #[test]
    fn every_shape_equals_the_naive_product() {
        use Accumulator::{F16, F32, S32};
        let wrap = S32 { saturate: false };
        let shapes = [
            (16, 8, Element::F16, F16, F16),
            (16, 8, Element::F16, F32, F32),
            (16, 16, Element::F16, F16, F16),
            (16, 16, Element::F16, F32, F32),
            (16, 16, Element::F16, F16, F32),
            (16, 16, Element::F16, F32, F16),
            (16, 8, Element::Bf16, F32, F32),
            (16, 16, Element::Bf16, F32, F32),
            (16, 4, Element::Tf32, F32, F32),
            (16, 8, Element::Tf32, F32, F32),
            (16, 32, Element::E4m3, F32, F32),
            (16, 32, Element::E5m2, F16, F16),
            (16, 32, Element::S8, wrap, wrap),
            (16, 16, Element::U8, wrap, wrap),
            (8, 16, Element::S8, wrap, wrap),
        ];
        for (m, k, e, c, d) in shapes {
            let shape = Shape { m, k, a: e, b: e, c, d };
            assert!(shape.is_modelled(), "{shape:?}");
            let at = |r: usize, x: usize| value(e, r * 11 + x);
            let bt = |x: usize, n: usize| value(e, x * 3 + n * 13 + 1);
            let ct = |r: usize, n: usize| (r as f32) - (n as f32) * 2.0;
            let mut a = vec![[0u64; 32]; shape.a_registers()];
            let mut b = vec![[0u64; 32]; shape.b_registers()];
            let mut cc = vec![[0u64; 32]; shape.c_registers()];
            let mut dd = vec![[0u64; 32]; shape.d_registers()];
            let bits = 8 * e.size();
            for lane in 0..32 {
                for (r, reg) in a.iter_mut().enumerate() {
                    for j in 0..e.per_register() {
                        let (row, col) = a_position(e, m, lane, r, j);
                        reg[lane] |= u64::from(encode(e, at(row, col))) << (bits * j);
                    }
                }
                for (r, reg) in b.iter_mut().enumerate() {
                    for j in 0..e.per_register() {
                        let (row, col) = b_position(e, lane, r, j);
                        reg[lane] |= u64::from(encode(e, bt(row, col))) << (bits * j);
                    }
                }
                for i in 0..m / 4 {
                    let (row, col) = accumulator_position(m, lane, i);
                    let v = ct(row, col);
                    match c {
                        F32 => cc[i][lane] = v.to_bits().into(),
                        F16 => cc[i / 2][lane] |= u64::from(Half::F16.narrow(v.to_bits())) << (16 * (i % 2)),
                        S32 { .. } => cc[i][lane] = (v as i32 as u32).into(),
                    }
                }
            }
            mma(&shape, &refs(&a), &refs(&b), &refs(&cc), &mut dd);
            let packed = if d == F16 { 2 } else { 1 };
            for i in 0..m / 4 {
                for (lane, &got) in dd[i / packed].iter().enumerate() {
                    let (row, col) = accumulator_position(m, lane, i);
                    let want: f32 = ct(row, col) + (0..k).map(|x| at(row, x) * bt(x, col)).sum::<f32>();
                    let got = match d {
                        F32 => f32::from_bits(got as u32),
                        F16 => f32::from_bits(f16_to_f32((got >> (16 * (i % 2))) as u16)),
                        S32 { .. } => got as u32 as i32 as f32,
                    };
                    assert_eq!(got, want, "{shape:?} lane {lane} element {i}");
                }
            }
        }
    }

    /// Shared memory → ldmatrix → mma → stmatrix → memory equals the naive product, as kernels chain them.
    #[test]
    fn ldmatrix_mma_stmatrix_round_trip() {
        let half = |v: f32| Half::F16.narrow(v.to_bits());
        let a: [[f32; 16]; 16] = std::array::from_fn(|r| std::array::from_fn(|c| ((r * 5 + c * 3) % 9) as f32 - 4.0));
        let b: [[f32; 8]; 16] = std::array::from_fn(|r| std::array::from_fn(|c| ((r * 2 + c * 7) % 11) as f32 - 5.0));
        let row = |v: [f32; 8]| {
            let mut out = [0u8; 16];
            for (i, x) in v.iter().enumerate() {
                out[2 * i..2 * i + 2].copy_from_slice(&half(*x).to_le_bytes());
            }
            out
        };
        // A row-major: matrices (0,0) (8,0) (0,8) (8,8) are registers 0..4 without transposition.
        let sub = |r0: usize, c0: usize| std::array::from_fn(|r| row(std::array::from_fn(|c| a[r0 + r][c0 + c])));
        let ra = [(0, 0), (8, 0), (0, 8), (8, 8)].map(|(r, c)| ldmatrix(&sub(r, c), false));
        // B stored k-major (row k, n contiguous): needs .trans.
        let rb = [0, 8].map(|k0| ldmatrix(&std::array::from_fn(|r| row(b[k0 + r])), true));
        let shape = Shape {
            m: 16,
            k: 16,
            a: Element::F16,
            b: Element::F16,
            c: Accumulator::F16,
            d: Accumulator::F16,
        };
        let mut d = [[0u64; 32]; 2];
        mma(&shape, &refs(&ra), &refs(&rb), &[&[0; 32]; 2], &mut d);
        for (block, register) in d.iter().enumerate() {
            let rows = stmatrix(register, false);
            for (r, bytes) in rows.iter().enumerate() {
                for c in 0..8 {
                    let got = f16_to_f32(u16::from_le_bytes([bytes[2 * c], bytes[2 * c + 1]]));
                    let want: f32 = (0..16).map(|x| a[block * 8 + r][x] * b[x][c]).sum();
                    assert_eq!(f32::from_bits(got), want);
                }
            }
        }
    }

    #[test]
    fn integer_saturation() {
        let sat = Accumulator::S32 { saturate: true };
        assert_eq!(sat.add(i32::MAX as u32, [5.0, 0.0]), i32::MAX as u32);
        assert_eq!(
            Accumulator::S32 { saturate: false }.add(i32::MAX as u32, [1.0, 0.0]),
            i32::MIN as u32
        );
    }
}
