//! Decode on tensor cores: rows of queries as M, keys as N, `mma.m16n8k16` (`m16n8k8` twice on sm_75).

use super::{
    DecodeParams, JOIN_ROWS, KEYS, ROWS, Shape, UNBOUNDED, finish,
    stream::{Engine, Row, SM, Work},
};
use crate::tile::{
    element::{Bf16, Element, F16},
    fragment,
};
use core::marker::PhantomData;
use cuda_std::{
    global,
    math::{ex2, fma, fmax, rcp},
    matrix, shared, thread, warp,
};

/// A type that tensor cores multiply.
pub trait Operand: Element {
    /// `A·B + C` with 16 × 16 by 16 × 8.
    ///
    /// # Safety
    /// - All 32 lanes execute this together.
    unsafe fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4];
}

impl Operand for F16 {
    #[inline(always)]
    unsafe fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        unsafe {
            #[cfg(tier = "sm_75")]
            return matrix::mma_m16n8k8_f16([a[2], a[3]], [b[1]], matrix::mma_m16n8k8_f16([a[0], a[1]], [b[0]], c));
            #[cfg(not(tier = "sm_75"))]
            matrix::mma_m16n8k16_f16(a, b, c)
        }
    }
}

#[cfg(not(tier = "sm_75"))]
impl Operand for Bf16 {
    #[inline(always)]
    unsafe fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
        unsafe { matrix::mma_m16n8k16_bf16(a, b, c) }
    }
}
#[cfg(tier = "sm_75")]
const _: fn(Bf16) -> f32 = Bf16::to_f32;

/// What the cache holds.
pub trait Stored<E: Operand> {
    /// Bytes of an element.
    const BYTES: u32;
}

impl<E: Operand> Stored<E> for E {
    const BYTES: u32 = size_of::<E>() as u32;
}

/// A warp's part of a piece: `T = dim / 8` tiles of output columns, `S = dim / 16` steps along the head dim.
pub struct Tensor<E, C, const DIM: u32, const T: usize, const S: usize> {
    /// Queries as A fragments, unless they are read from shared memory each time.
    queries: [[u32; 4]; S],
    out: [[f32; 4]; T],
    maximum: [f32; 2],
    sum: [f32; 2],
    /// Factor of the raw scores; with a cap, up to the argument of its tanh.
    scale: f32,
    /// The cap times log₂ e, or 0.
    cap: f32,
    types: PhantomData<(E, C)>,
}

/// Shared address of 16 bytes of a 16-bit row: chunks are permuted by the low bits of the row's number.
#[inline(always)]
const fn chunk_at<const DIM: u32>(base: u32, row: u32, chunk: u32) -> u32 {
    base + row * DIM * 2 + (chunk ^ (row & 7)) * 16
}

impl<E: Operand, C: Stored<E>, const DIM: u32, const T: usize, const S: usize> Tensor<E, C, DIM, T, S> {
    const IN_REGISTERS: bool = Self::SHAPE.query_bytes == 0;

    /// Scores and bias in units of log₂, −∞ where the row does not see the key.
    #[inline(always)]
    fn score(&self, params: &DecodeParams, raw: f32, bounds: Row, key: i32) -> f32 {
        let mut x = raw * self.scale;
        if self.cap != 0.0 {
            // tanh y = 1 − 2 / (e^2y + 1)
            let e = ex2(x * (2.0 * core::f32::consts::LOG2_E));
            x = self.cap * fma(-2.0, rcp(e + 1.0), 1.0);
        }
        if params.alibi_slopes != 0 {
            let distance = bounds.position - key;
            let distance = if distance < 0 { -distance } else { distance };
            x = fma(-bounds.slope, distance as f32, x);
        }
        if key >= bounds.begin && key < bounds.end {
            x
        } else {
            f32::NEG_INFINITY
        }
    }
}

impl<E: Operand, C: Stored<E>, const DIM: u32, const T: usize, const S: usize> Engine for Tensor<E, C, DIM, T, S> {
    const SHAPE: Shape = Shape::new(SM, 2, C::BYTES, DIM);
    const CACHE_BYTES: u32 = C::BYTES;
    const SWIZZLE: u32 = 7;

    #[inline(always)]
    unsafe fn stage_queries(params: &DecodeParams, work: &Work) {
        if Self::IN_REGISTERS {
            return;
        }
        unsafe {
            let base = shared::dynamic_base() + super::HEADER_BYTES;
            let mut index = thread::thread_idx_x();
            while index < ROWS * DIM / 2 {
                let (row, column) = (index / (DIM / 2), index % (DIM / 2) * 2);
                let word = query_word(params, work, row, column);
                shared::st(chunk_at::<DIM>(base, row, column / 8) + column % 8 * 2, word);
                index += Self::SHAPE.warps * 32;
            }
        }
    }

    #[inline(always)]
    unsafe fn new(params: &DecodeParams, work: &Work) -> Self {
        const { assert!(T as u32 * 8 == DIM && S as u32 * 16 == DIM && C::BYTES == 2) };
        unsafe {
            let lane = thread::lane_id();
            let (group, pair) = (lane / 4, lane % 4);
            let mut queries = [[0; 4]; S];
            if Self::IN_REGISTERS {
                let mut s = 0;
                while s < S {
                    let column = s as u32 * 16 + pair * 2;
                    queries[s] = [
                        query_word(params, work, group, column),
                        query_word(params, work, group + 8, column),
                        query_word(params, work, group, column + 8),
                        query_word(params, work, group + 8, column + 8),
                    ];
                    s += 1;
                }
            }
            let mut scale = params.scale;
            if params.k_scale != 0 {
                scale *= global::ld_nc((params.k_scale + work.head as u64 * 4) as *const f32);
            }
            let mut cap = 0.0;
            if params.softcap != 0.0 {
                cap = params.softcap * core::f32::consts::LOG2_E;
                scale /= params.softcap;
            } else {
                scale *= core::f32::consts::LOG2_E;
            }
            Tensor {
                queries,
                out: [[0.0; 4]; T],
                maximum: [f32::NEG_INFINITY; 2],
                sum: [0.0; 2],
                scale,
                cap,
                types: PhantomData,
            }
        }
    }

    #[inline(always)]
    unsafe fn step(&mut self, params: &DecodeParams, keys: u32, values: u32, first: i32) {
        unsafe {
            // Where the chunks lie does not change from step to step: wide heads have no registers to keep that.
            let wide = !Self::IN_REGISTERS;
            let lane = if wide {
                super::stream::opaque(thread::lane_id())
            } else {
                thread::lane_id()
            };
            // Two tiles of 8 keys; even and odd steps apart, for shorter chains of products.
            let mut scores = [[0.0f32; 4]; 4];
            let queries_at = shared::dynamic_base() + super::HEADER_BYTES;
            // Turing's wide heads have no register to spare for fragments of several turns or for a second chain.
            let narrow = SM == 75 && !Self::IN_REGISTERS;
            let chains = if narrow { 1 } else { 2 };
            let turns = if narrow {
                super::stream::opaque(S as u32) as usize
            } else {
                S
            };
            let mut pair = 0;
            while pair < turns {
                let mut odd = 0;
                while odd < chains {
                    let s = pair + odd;
                    let a = if Self::IN_REGISTERS {
                        self.queries[s]
                    } else {
                        // Matrices: rows 0–7 and 8–15 of the first 8 columns, then of the others.
                        matrix::ldmatrix_x4(chunk_at::<DIM>(queries_at, lane % 16, 2 * s as u32 + lane / 16))
                    };
                    // Matrices: keys 0–7, both halves of the 16 columns; keys 8–15, the same.
                    let b = matrix::ldmatrix_x4(chunk_at::<DIM>(
                        keys,
                        lane % 8 + lane / 16 * 8,
                        2 * s as u32 + lane / 8 % 2,
                    ));
                    scores[2 * odd] = E::mma(a, [b[0], b[1]], scores[2 * odd]);
                    scores[2 * odd + 1] = E::mma(a, [b[2], b[3]], scores[2 * odd + 1]);
                    odd += 1;
                }
                pair += chains;
            }
            // Nobody has registers for what the rows see, kept from step to step.
            let rows = [finish::row(lane / 4), finish::row(lane / 4 + 8)];
            let mut x = [0.0f32; 8];
            let mut i = 0;
            while i < 8 {
                let raw = scores[i / 4][i % 4] + scores[2 + i / 4][i % 4];
                let key = first + fragment::column(lane, i as u32) as i32;
                x[i] = self.score(params, raw, rows[i / 2 % 2], key);
                i += 1;
            }
            let mut row = 0;
            while row < 2 {
                let r = 2 * row;
                let here = fmax(fmax(x[r], x[r + 1]), fmax(x[r + 4], x[r + 5]));
                let maximum = fmax(self.maximum[row], warp::reduce_max::<4>(here));
                let shift = if maximum == f32::NEG_INFINITY { 0.0 } else { maximum };
                let shrink = ex2(self.maximum[row] - shift);
                x[r] = ex2(x[r] - shift);
                x[r + 1] = ex2(x[r + 1] - shift);
                x[r + 4] = ex2(x[r + 4] - shift);
                x[r + 5] = ex2(x[r + 5] - shift);
                self.sum[row] = fma(self.sum[row], shrink, (x[r] + x[r + 1]) + (x[r + 4] + x[r + 5]));
                self.maximum[row] = maximum;
                let mut t = 0;
                while t < T {
                    self.out[t][r] *= shrink;
                    self.out[t][r + 1] *= shrink;
                    t += 1;
                }
                row += 1;
            }
            let p = fragment::a_from_accumulator(&x, 0, E::pack);
            let mut t = 0;
            let lane = if wide { super::stream::opaque(lane) } else { lane };
            while narrow && t < T {
                let b = matrix::ldmatrix_x2_trans(chunk_at::<DIM>(values, lane % 16, t as u32));
                self.out[t] = E::mma(p, b, self.out[t]);
                t += 1;
            }
            while t < T {
                // Matrices: keys 0–7 and 8–15 of 8 columns, then of the next 8.
                let b = matrix::ldmatrix_x4_trans(chunk_at::<DIM>(values, lane % 16, t as u32 + lane / 16));
                self.out[t] = E::mma(p, [b[0], b[1]], self.out[t]);
                self.out[t + 1] = E::mma(p, [b[2], b[3]], self.out[t + 1]);
                t += 2;
            }
        }
    }

    #[inline(always)]
    unsafe fn put_statistics(&self, rows: u32) {
        unsafe {
            let lane = thread::lane_id();
            let (group, pair, warp) = (lane / 4, lane % 4, thread::uniform_warp_idx());
            let mut half = 0;
            while half < 2 {
                let row = group + 8 * half as u32;
                let sum = warp::reduce_sum::<4>(self.sum[half]);
                if row < rows && pair == 0 {
                    finish::put_statistics(warp, row, self.maximum[half], sum);
                }
                half += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn put_output(&self, turn: usize, rows: u32) {
        let lane = thread::lane_id();
        let (group, pair, warp) = (lane / 4, lane % 4, unsafe { thread::uniform_warp_idx() });
        // Four rows of an accumulator's upper or lower half.
        let half = turn / 2;
        let row = group + 8 * half as u32;
        if row < rows && group / JOIN_ROWS == (turn % 2) as u32 {
            let to = finish::output::<Self>(warp, row, rows) + pair * 8;
            let mut t = 0;
            while t < T {
                unsafe { shared::st(to + t as u32 * 32, [self.out[t][2 * half], self.out[t][2 * half + 1]]) };
                t += 1;
            }
        }
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.out = [[0.0; 4]; T];
        self.maximum = [f32::NEG_INFINITY; 2];
        self.sum = [0.0; 2];
    }
}

/// Two neighbouring elements of a query; 0 beyond its rows and columns.
#[inline(always)]
unsafe fn query_word(params: &DecodeParams, work: &Work, row: u32, column: u32) -> u32 {
    if row >= work.rows || column >= params.head_dim {
        return 0;
    }
    let strides = &params.q_strides;
    let (query, head) = (work.query(params, row) as u64, work.query_head(params, row) as u64);
    let at = work.batch as u64 * strides[0] + query * strides[1] + head * strides[2] + column as u64;
    unsafe { global::ld_nc((params.q + at * 2) as *const u32) }
}

const _: () = assert!(UNBOUNDED < i32::MAX as u32 && KEYS == 16 && JOIN_ROWS == 4);

macro_rules! kernels {
    ($($(#[$attribute:meta])* $name:ident $element:ident $stored:ident $dim:literal)*) => {
        cuda_std::kernel! {$(
            /// Decode attention; see [`crate::decode`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs and workspace overlap nothing.
            #[launch(threads = Shape::new(SM, 2, <$stored as Stored<$element>>::BYTES, $dim).warps * 32, min_blocks = 1, tensor_core = 1)]
            $(#[$attribute])*
            pub fn $name(params: DecodeParams) {
                type Kernel = Tensor<$element, $stored, $dim, { $dim / 8 }, { $dim / 16 }>;
                const N: usize = if Kernel::SHAPE.folds() { (ROWS * $dim / (Kernel::SHAPE.warps * 32)) as usize } else { 0 };
                super::stream::run::<Kernel, $element, N>(&params)
            }
        )*}
    };
}

kernels! {
    decode_f16_d64 F16 F16 64
    decode_f16_d128 F16 F16 128
    decode_f16_d256 F16 F16 256
    #[cfg(not(tier = "sm_75"))]
    decode_bf16_d64 Bf16 Bf16 64
    #[cfg(not(tier = "sm_75"))]
    decode_bf16_d128 Bf16 Bf16 128
    #[cfg(not(tier = "sm_75"))]
    decode_bf16_d256 Bf16 Bf16 256
}

cuda_std::kernel! {
    /// Folds pieces; see [`finish::merge`].
    ///
    /// # Safety
    /// - As for the decode kernels; the workspace holds what one of them wrote.
    #[launch(threads = super::MERGE_THREADS, barriers = 0)]
    pub fn decode_merge_f16(params: DecodeParams) {
        finish::merge::<F16>(&params)
    }

    /// Folds pieces; see [`finish::merge`].
    ///
    /// # Safety
    /// - As for the decode kernels; the workspace holds what one of them wrote.
    #[launch(threads = super::MERGE_THREADS, barriers = 0)]
    #[cfg(not(tier = "sm_75"))]
    pub fn decode_merge_bf16(params: DecodeParams) {
        finish::merge::<Bf16>(&params)
    }

    /// Folds pieces; see [`finish::merge`].
    ///
    /// # Safety
    /// - As for the decode kernels; the workspace holds what one of them wrote.
    #[launch(threads = super::MERGE_THREADS, barriers = 0)]
    pub fn decode_merge_f32(params: DecodeParams) {
        finish::merge::<f32>(&params)
    }
}
