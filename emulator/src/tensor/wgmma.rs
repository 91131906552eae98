//! `wgmma.mma_async`: arithmetic of one instruction of a warpgroup.
//!
//! The work is split so that the machine can read operands at the moment the memory model allows and write the accumulators
//! later: [`Operands`] decodes A and B to f32, [`Operands::multiply`] forms the block product, and
//! [`Operands::accumulate`] adds it into the registers of a warp.

use super::Element;
use super::descriptor::{Descriptor, Major};
use super::matmul::{multiply, vectorised};
use super::mma::{Accumulator, gather, load_a};
use crate::Lanes;

/// Rows of A and D of every `wgmma`.
pub const M: usize = 64;

/// The immediate and type modifiers of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Columns of B and D: a multiple of 8 up to 256 (integers: see [`Shape::is_modelled`]).
    pub n: usize,
    /// Type of A.
    pub a: Element,
    /// Type of B.
    pub b: Element,
    /// Type of D.
    pub d: Accumulator,
    /// `imm-scale-a` is −1.
    pub negate_a: bool,
    /// `imm-scale-b` is −1.
    pub negate_b: bool,
    /// Layout of a shared-memory A.
    pub a_major: Major,
    /// Layout of B.
    pub b_major: Major,
}

impl Shape {
    /// Whether PTX has this combination and this module models it.
    #[must_use]
    pub fn is_modelled(&self) -> bool {
        let types = match (self.a, self.b, self.d) {
            (Element::F16, Element::F16, Accumulator::F16 | Accumulator::F32)
            | (Element::Bf16, Element::Bf16, Accumulator::F32) => true,
            (Element::Tf32, Element::Tf32, Accumulator::F32)
            | (Element::E4m3 | Element::E5m2, Element::E4m3 | Element::E5m2, Accumulator::F16 | Accumulator::F32) => {
                (self.a_major, self.b_major) == (Major::K, Major::K)
            }
            (Element::S8 | Element::U8, Element::S8 | Element::U8, Accumulator::S32 { .. }) => {
                (self.a_major, self.b_major) == (Major::K, Major::K)
                    && !self.negate_a
                    && !self.negate_b
                    && (self.n <= 32 || self.n.is_multiple_of(16))
            }
            _ => false,
        };
        types && self.n.is_multiple_of(8) && (8..=256).contains(&self.n)
    }

    /// The k extent.
    #[must_use]
    pub const fn k(&self) -> usize {
        self.a.wgmma_k()
    }

    /// Accumulator registers of each thread.
    #[must_use]
    pub const fn d_registers(&self) -> usize {
        self.n / 2 / self.d.per_register()
    }

    /// Multiplications and additions of the instruction.
    #[must_use]
    pub const fn flops(&self) -> u64 {
        (2 * M * self.n * self.k()) as u64
    }
}

/// A shared-memory operand lies outside the memory of the CTA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a wgmma operand reads 16 bytes at shared address {address:#x}, past its end")]
pub struct OutOfBounds {
    /// Address of the 16-byte unit.
    pub address: u32,
}

/// Decoded operands and their product; kept by the machine and reused.
#[derive(Clone, Debug)]
pub struct Operands {
    a: Vec<f32>,
    b: Vec<f32>,
    product: Vec<f32>,
}

impl Default for Operands {
    fn default() -> Self {
        Self {
            a: vec![0.0; M * 32],
            b: vec![0.0; 32 * 256],
            product: vec![0.0; M * 256],
        }
    }
}

impl Operands {
    /// Takes the fragment of A that warp `warp` (0–3) of the warpgroup holds in its four registers.
    pub fn a_registers(&mut self, shape: &Shape, warp: usize, registers: [&Lanes; 4]) {
        let k = shape.k();
        let mut values = [0.0; 128];
        for (r, lanes) in registers.into_iter().enumerate() {
            shape.a.decode_register(lanes, &mut values);
            load_a(shape.a, 16, k, r, &values, &mut self.a[16 * warp * k..]);
        }
    }

    /// Reads A from shared memory, whose first byte has address `origin`.
    ///
    /// # Errors
    /// [`OutOfBounds`] if the descriptor reaches past `shared`.
    pub fn a_shared(
        &mut self,
        shape: &Shape,
        descriptor: &Descriptor,
        shared: &[u8],
        origin: u32,
    ) -> Result<(), OutOfBounds> {
        // A[m][k]: a K-major unit runs along a row, an MN-major unit down a column.
        let k = shape.k();
        let step = match shape.a_major {
            Major::K => 1,
            Major::Mn => k,
        };
        load(
            &mut self.a,
            shape.a,
            shape.a_major,
            M,
            descriptor,
            (shared, origin),
            step,
            move |mn, at| mn * k + at,
        )
    }

    /// Reads B from shared memory, whose first byte has address `origin`.
    ///
    /// # Errors
    /// [`OutOfBounds`] if the descriptor reaches past `shared`.
    pub fn b_shared(
        &mut self,
        shape: &Shape,
        descriptor: &Descriptor,
        shared: &[u8],
        origin: u32,
    ) -> Result<(), OutOfBounds> {
        let n = shape.n;
        let step = match shape.b_major {
            Major::K => n,
            Major::Mn => 1,
        };
        load(
            &mut self.b,
            shape.b,
            shape.b_major,
            n,
            descriptor,
            (shared, origin),
            step,
            move |mn, at| at * n + mn,
        )
    }

    /// Forms the product of the decoded operands.
    pub fn multiply(&mut self, shape: &Shape) {
        if shape.negate_a != shape.negate_b {
            for x in &mut self.a[..M * shape.k()] {
                *x = -*x;
            }
        }
        let Self { a, b, product } = self;
        vectorised(
            #[inline(always)]
            || multiply(a, b, product, M, shape.n, shape.k()),
        );
    }

    /// Adds the product into accumulator register `register` of warp `warp`, or replaces it when `scale_d` is false.
    #[inline]
    pub fn accumulate(&self, shape: &Shape, warp: usize, register: usize, scale_d: bool, lanes: &mut Lanes) {
        if !scale_d {
            *lanes = [0; 32];
        }
        let tile = &self.product[16 * warp * shape.n..];
        shape.d.add_lanes(lanes, |j| {
            gather(tile, 16, shape.n, register * shape.d.per_register() + j)
        });
    }
}

/// Decodes the units of an operand; element `i` of the unit at `(mn, k)` goes to `position(mn, k) + i * step`.
#[expect(clippy::too_many_arguments, reason = "one private loop for both operands")]
#[inline(always)]
fn load(
    out: &mut [f32],
    element: Element,
    major: Major,
    mn: usize,
    descriptor: &Descriptor,
    (shared, origin): (&[u8], u32),
    step: usize,
    position: impl Fn(usize, usize) -> usize,
) -> Result<(), OutOfBounds> {
    let mut failed = None;
    let per_unit = 16 / element.size();
    descriptor.for_each_unit(
        element,
        major,
        mn,
        #[inline(always)]
        |address, row, k| {
            let Some(bytes) = address
                .checked_sub(origin)
                .and_then(|at| shared.get(at as usize..))
                .and_then(|s| s.first_chunk::<16>())
            else {
                failed.get_or_insert(OutOfBounds { address });
                return;
            };
            let mut values = [0.0; 16];
            element.decode16(bytes, &mut values);
            let at = position(row, k);
            for (i, v) in values[..per_unit].iter().enumerate() {
                out[at + i * step] = *v;
            }
        },
    );
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::half::Half;
    use crate::tensor::Swizzle;
    use crate::tensor::fragment::{a_position, accumulator_position};

    fn a_value(r: usize, k: usize) -> f32 {
        ((r * 5 + k * 3) % 9) as f32 - 4.0
    }
    fn b_value(k: usize, n: usize) -> f32 {
        ((k * 2 + n * 7) % 11) as f32 - 5.0
    }

    fn put(shared: &mut [u8], e: Element, address: u32, v: f32) {
        let at = address as usize;
        match e {
            Element::F16 => shared[at..at + 2].copy_from_slice(&Half::F16.narrow(v.to_bits()).to_le_bytes()),
            Element::Bf16 => shared[at..at + 2].copy_from_slice(&Half::Bf16.narrow(v.to_bits()).to_le_bytes()),
            Element::Tf32 => shared[at..at + 4].copy_from_slice(&v.to_le_bytes()),
            Element::S8 => shared[at] = v as i8 as u8,
            other => {
                let kind = if other == Element::E4m3 {
                    crate::numeric::fp8::Fp8::E4m3
                } else {
                    crate::numeric::fp8::Fp8::E5m2
                };
                shared[at] = kind.from_f32(v.to_bits(), false);
            }
        }
    }

    /// Writes a matrix as TMA would: boxes of one swizzle span along the contiguous dimension, `lines` lines each, dense.
    /// `at(line, x)` is the element.
    fn put_boxes(
        shared: &mut [u8],
        e: Element,
        swizzle: Swizzle,
        start: u32,
        lines: usize,
        width: usize,
        at: impl Fn(usize, usize) -> f32,
    ) {
        let per_span = swizzle.span() as usize / e.size();
        for line in 0..lines {
            for x in 0..width {
                let (tile, inside) = (x / per_span, x % per_span);
                let offset =
                    tile * lines * swizzle.span() as usize + line * swizzle.span() as usize + inside * e.size();
                put(shared, e, swizzle.apply(start + offset as u32), at(line, x));
            }
        }
    }

    /// A full product over four k-steps from swizzled, TMA-shaped tiles in shared memory, for both layouts of both operands.
    #[test]
    fn products_from_swizzled_tiles() {
        for e in [
            Element::F16,
            Element::Bf16,
            Element::Tf32,
            Element::E4m3,
            Element::E5m2,
            Element::S8,
        ] {
            for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
                for (a_major, b_major) in [
                    (Major::K, Major::K),
                    (Major::K, Major::Mn),
                    (Major::Mn, Major::K),
                    (Major::Mn, Major::Mn),
                ] {
                    for n in [8usize, 64, 128, 256] {
                        let d = if e == Element::S8 {
                            Accumulator::S32 { saturate: false }
                        } else {
                            Accumulator::F32
                        };
                        let shape = Shape {
                            n,
                            a: e,
                            b: e,
                            d,
                            negate_a: false,
                            negate_b: false,
                            a_major,
                            b_major,
                        };
                        let per_span = swizzle.span() as usize / e.size();
                        // An MN-major operand narrower than its span is not laid out by one box.
                        if !shape.is_modelled() || (b_major == Major::Mn && n < per_span) {
                            continue;
                        }
                        one_product(&shape, swizzle);
                    }
                }
            }
        }
    }

    fn one_product(shape: &Shape, swizzle: Swizzle) {
        let (e, n, depth) = (shape.a, shape.n, 2 * shape.k());
        let mut shared = vec![0u8; 160 * 1024];
        let (a0, b0) = (0x400u32, 0x1_0000u32);
        match shape.a_major {
            Major::K => put_boxes(&mut shared, e, swizzle, a0, M, depth, a_value),
            Major::Mn => put_boxes(&mut shared, e, swizzle, a0, depth, M, |k, m| a_value(m, k)),
        }
        match shape.b_major {
            Major::K => put_boxes(&mut shared, e, swizzle, b0, n, depth, |n, k| b_value(k, n)),
            Major::Mn => put_boxes(&mut shared, e, swizzle, b0, depth, n, b_value),
        }
        let span = swizzle.span();
        let describe = |start: u32, major: Major, mn: usize, step: usize| {
            let k0 = step * shape.k();
            let per_span = span as usize / e.size();
            match major {
                Major::K => Descriptor {
                    // k advances inside the span, then to the next box.
                    start: start + (k0 / per_span * mn * span as usize + k0 % per_span * e.size()) as u32,
                    leading: mn as u32 * span, // next 16 bytes of k without swizzle
                    stride: 8 * span,
                    base: 0,
                    swizzle,
                },
                Major::Mn => {
                    let next_span = depth as u32 * span;
                    let (leading, stride) = if swizzle == Swizzle::None {
                        (8 * span, next_span)
                    } else {
                        (next_span, 8 * span)
                    };
                    Descriptor {
                        start: start + k0 as u32 * span,
                        leading,
                        stride,
                        base: 0,
                        swizzle,
                    }
                }
            }
        };
        let mut acc = vec![vec![[0u64; 32]; shape.d_registers()]; 4];
        let mut work = Operands::default();
        for step in 0..2 {
            work.a_shared(shape, &describe(a0, shape.a_major, M, step), &shared, 0)
                .unwrap();
            work.b_shared(shape, &describe(b0, shape.b_major, n, step), &shared, 0)
                .unwrap();
            work.multiply(shape);
            for (warp, regs) in acc.iter_mut().enumerate() {
                for (r, lanes) in regs.iter_mut().enumerate() {
                    work.accumulate(shape, warp, r, step > 0, lanes);
                }
            }
        }
        for (warp, regs) in acc.iter().enumerate() {
            for (i, lanes) in regs.iter().enumerate() {
                for (lane, &got) in lanes.iter().enumerate() {
                    let (row, col) = accumulator_position(16, lane, i);
                    let want: f32 = (0..depth).map(|k| a_value(16 * warp + row, k) * b_value(k, col)).sum();
                    let got = if e == Element::S8 {
                        got as u32 as i32 as f32
                    } else {
                        f32::from_bits(got as u32)
                    };
                    assert_eq!(got, want, "{shape:?} {swizzle:?} {warp} {lane} {i}");
                }
            }
        }
    }

    #[test]
    fn a_from_registers_negation_and_f16_accumulators() {
        let shape = Shape {
            n: 16,
            a: Element::F16,
            b: Element::F16,
            d: Accumulator::F16,
            negate_a: true,
            negate_b: false,
            a_major: Major::K,
            b_major: Major::Mn,
        };
        let mut shared = vec![0u8; 4096];
        put_boxes(&mut shared, Element::F16, Swizzle::B32, 0, 16, 16, b_value);
        let mut work = Operands::default();
        for warp in 0..4 {
            let regs: [Lanes; 4] = std::array::from_fn(|r| {
                std::array::from_fn(|lane| {
                    (0..2).fold(0, |x, j| {
                        let (row, k) = a_position(Element::F16, 16, lane, r, j);
                        x | u64::from(Half::F16.narrow(a_value(16 * warp + row, k).to_bits())) << (16 * j)
                    })
                })
            });
            work.a_registers(&shape, warp, [&regs[0], &regs[1], &regs[2], &regs[3]]);
        }
        let b = Descriptor {
            start: 0,
            leading: 0,
            stride: 256,
            base: 0,
            swizzle: Swizzle::B32,
        };
        work.b_shared(&shape, &b, &shared, 0).unwrap();
        work.multiply(&shape);
        let one = u64::from(Half::F16.narrow(1f32.to_bits())) * 0x1_0001;
        for warp in 0..4 {
            for r in 0..shape.d_registers() {
                let mut lanes = [one; 32];
                work.accumulate(&shape, warp, r, true, &mut lanes);
                for (lane, got) in lanes.iter().enumerate() {
                    for j in 0..2 {
                        let (row, col) = accumulator_position(16, lane, 2 * r + j);
                        let want = 1.0
                            - (0..16)
                                .map(|k| a_value(16 * warp + row, k) * b_value(k, col))
                                .sum::<f32>();
                        assert_eq!(f32::from_bits(Half::F16.widen((got >> (16 * j)) as u16)), want);
                    }
                }
            }
        }
        assert_eq!(
            work.b_shared(&shape, &Descriptor { start: 4096 - 16, ..b }, &shared, 0),
            Err(OutOfBounds { address: 4096 })
        );
    }
}
