//! Decode over a cache of 8-bit floats (e4m3), made 16-bit in registers.
//!
//! A matrix that `ldmatrix` loads has 16 elements in a row here, of which a lane gets 4. So the columns of a step along the
//! head dim are dealt out by fours, to keys and queries alike: the sum does not mind. Transposed, a lane gets 2 × 2
//! elements of values: even columns go to one tile of output and odd ones to the next.
//!
//! All products are of f16, into which e4m3 goes exactly. Queries of bf16 do too, once a power of two, the row's own, has put
//! their largest element below 2¹⁵: what is more than 2²⁹ times smaller loses bits, 2⁻³⁹ of the largest one at most.

use super::{
    DecodeParams, Shape, finish,
    stream::{Engine, SM},
    tensor::{self, Scoring, Seen, queries_at, query_word, row_of_turn, staged_row},
    work::Work,
};
use crate::tile::opaque::opaque;
use crate::tile::{
    element::{Bf16, Element, F16},
    fragment,
    mma::Mma,
};
use core::marker::PhantomData;
use cuda_std::{
    half::{cvt_rn_f16x2_e4m3x2, f16x2_from_f32, f32_from_bf16x2},
    math::{fmax, prmt},
    matrix, shared, thread, warp,
};

/// An element type of queries and outputs.
pub trait Query: Element {
    /// Makes f16 of a row's words; gives the factor that undoes it, to be applied to scores.
    ///
    /// # Safety
    /// - The warp calls this together; the row's words are those of four neighbouring lanes.
    unsafe fn halve<const S: usize>(words: &mut [[u32; 2]; S]) -> f32;
}

impl Query for F16 {
    #[inline(always)]
    unsafe fn halve<const S: usize>(_: &mut [[u32; 2]; S]) -> f32 {
        1.0
    }
}

impl Query for Bf16 {
    #[inline(always)]
    unsafe fn halve<const S: usize>(words: &mut [[u32; 2]; S]) -> f32 {
        let mut largest = 0.0f32;
        let mut s = 0;
        while s < S {
            let (a, b) = (f32_from_bf16x2(words[s][0]), f32_from_bf16x2(words[s][1]));
            largest = fmax(
                largest,
                fmax(fmax(a[0].abs(), a[1].abs()), fmax(b[0].abs(), b[1].abs())),
            );
            s += 1;
        }
        // SAFETY: forwarded to the caller.
        let exponent = unsafe { warp::reduce_max::<4>(largest) }.to_bits() >> 23;
        // To 2¹⁴ and above; what is infinite stays so, and what is next to nothing is not made larger than floats are.
        let exponent = if exponent < 16 { 16 } else { exponent };
        let (up, down) = if exponent == 255 {
            (1.0, 1.0)
        } else {
            (
                f32::from_bits((127 + 14 + 127 - exponent) << 23),
                f32::from_bits((exponent - 14) << 23),
            )
        };
        s = 0;
        while s < S {
            let mut h = 0;
            while h < 2 {
                let [low, high] = f32_from_bf16x2(words[s][h]);
                words[s][h] = f16x2_from_f32(low * up, high * up);
                h += 1;
            }
            s += 1;
        }
        down
    }
}

/// A warp's part of a piece: `T = dim / 8` tiles of output columns, `S = dim / 16` steps along the head dim.
pub struct Fp8<E, const DIM: u32, const T: usize, const S: usize> {
    queries: [[u32; 4]; S],
    seen: Seen<T>,
    /// Of each of the lane's two rows.
    scoring: [Scoring; 2],
    types: PhantomData<E>,
}

/// Shared address of a chunk of 16 elements of a row; an even number of chunks further is an XOR with 16 times that.
#[inline(always)]
fn chunk_at<E: Engine>(base: u32, row: u32, chunk: u32) -> u32 {
    base + row * E::SHAPE.row_bytes + (chunk ^ E::swizzle(row)) * 16
}

/// The four elements of a word as f16, two in a word.
#[inline(always)]
pub fn widen(word: u32) -> [u32; 2] {
    [
        cvt_rn_f16x2_e4m3x2(word as u16),
        cvt_rn_f16x2_e4m3x2((word >> 16) as u16),
    ]
}

impl<E: Query, const DIM: u32, const T: usize, const S: usize> Engine for Fp8<E, DIM, T, S> {
    const SHAPE: Shape = Shape::new(SM, 2, 1, DIM);
    const CACHE_BYTES: u32 = 1;

    #[inline(always)]
    unsafe fn stage_queries(_: &DecodeParams) {}

    #[inline(always)]
    fn query_at(_: &DecodeParams, row: u32, column: u32) -> u32 {
        tensor::chunk_at::<DIM>(queries_at::<Self>(), row, column / 8) + column % 8 * 2
    }

    #[inline(always)]
    unsafe fn new(params: &DecodeParams, work: &Work, staged: bool) -> Self {
        const { assert!(T as u32 * 8 == DIM && S as u32 * 16 == DIM && Self::SHAPE.query_bytes == 0) };
        unsafe {
            // Nothing of this is kept from tile to tile.
            let lane = opaque(thread::lane_id());
            let (group, pair) = (lane / 4, lane % 4);
            let mut queries = [[0; 4]; S];
            let scoring = Scoring::new(params, work.head);
            let mut scorings = [scoring; 2];
            let mut half = 0;
            while half < 2 {
                let row = finish::query::<Self>(group + 8 * half as u32);
                let mut words = [[0; 2]; S];
                let mut s = 0;
                if staged {
                    let at = staged_row::<Self, DIM>(params, group + 8 * half as u32);
                    while s < S {
                        let column = s as u32 * 16 + pair * 4;
                        words[s] = shared::ld((at ^ (column / 8 * 16)) + column % 8 * 2);
                        s += 1;
                    }
                } else {
                    while s < S {
                        let column = s as u32 * 16 + pair * 4;
                        words[s] = [query_word(params, row, column), query_word(params, row, column + 2)];
                        s += 1;
                    }
                }
                scorings[half].scale *= E::halve(&mut words);
                s = 0;
                while s < S {
                    (queries[s][half], queries[s][half + 2]) = (words[s][0], words[s][1]);
                    s += 1;
                }
                half += 1;
            }
            Fp8 {
                queries,
                seen: Seen::new(),
                scoring: scorings,
                types: PhantomData,
            }
        }
    }

    #[inline(always)]
    unsafe fn step(&mut self, params: &DecodeParams, keys: u32, values: u32, first: i32) {
        unsafe {
            let lane = thread::lane_id();
            // Two tiles of 8 keys; even and odd steps apart, for shorter chains of products.
            let mut scores = [[0.0f32; 4]; 4];
            // Matrices: keys 0–7 and 8–15 of a step, then of the next.
            let keys_at = chunk_at::<Self>(keys, lane % 16, lane / 16);
            let mut s = 0;
            while s < S {
                let words = matrix::ldmatrix_x4(keys_at ^ (s as u32 * 16));
                let mut i = 0;
                while i < 4 {
                    scores[i] = F16::mma(self.queries[s + i / 2], widen(words[i]), scores[i]);
                    i += 1;
                }
                s += 2;
            }
            let mut x = [0.0f32; 8];
            let mut i = 0;
            while i < 8 {
                x[i] = scores[i / 4][i % 4] + scores[2 + i / 4][i % 4];
                i += 1;
            }
            Scoring::score::<Self>(self.scoring, params, 0, &mut x, first);
            self.seen.weigh(&mut x, params.rows > 8);
            let p = fragment::a_from_accumulator(&x, 0, F16::pack);
            // Matrices: keys 0–7 and 8–15 of a chunk, then of the next.
            let values_at = chunk_at::<Self>(values, lane % 16, lane / 16);
            let mut chunk = 0;
            while chunk < S {
                let words = matrix::ldmatrix_x4_trans(values_at ^ (chunk as u32 * 16));
                let mut c = 0;
                while c < 2 {
                    // Even columns of two keys, then odd ones.
                    let low = widen(prmt(words[2 * c], 0, 0x3120));
                    let high = widen(prmt(words[2 * c + 1], 0, 0x3120));
                    let t = 2 * (chunk + c);
                    self.seen.out[t] = F16::mma(p, [low[0], high[0]], self.seen.out[t]);
                    self.seen.out[t + 1] = F16::mma(p, [low[1], high[1]], self.seen.out[t + 1]);
                    c += 1;
                }
                chunk += 2;
            }
        }
    }

    #[inline(always)]
    unsafe fn put_statistics(&self, rows: u32) {
        // SAFETY: forwarded to the caller.
        unsafe { self.seen.put_statistics::<Self>(0, rows) };
    }

    #[inline(always)]
    unsafe fn put_output(&self, turn: usize, rows: u32) {
        let (pair, warp) = (thread::lane_id() % 4, unsafe { thread::uniform_warp_idx() });
        if let Some((row, half)) = row_of_turn(turn, rows) {
            let to = finish::output::<Self>(warp, row, rows) + pair * 16;
            let out = &self.seen.out;
            let mut chunk = 0;
            while chunk < S {
                let (even, odd) = (out[2 * chunk], out[2 * chunk + 1]);
                let columns = [even[2 * half], odd[2 * half], even[2 * half + 1], odd[2 * half + 1]];
                // SAFETY: the row's turn.
                unsafe { shared::st(to + chunk as u32 * 64, columns) };
                chunk += 1;
            }
        }
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.seen = Seen::new();
    }
}

macro_rules! kernels {
    ($($name:ident $element:ident $dim:literal)*) => {
        cuda_std::kernel! {$(
            /// Decode attention over a cache of e4m3; see [`crate::decode`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs and workspace overlap nothing.
            #[launch(threads = Shape::new(SM, 2, 1, $dim).warps * 32, min_blocks = 1, tensor_core = 1)]
            pub fn $name(params: DecodeParams) {
                type Kernel = Fp8<$element, $dim, { $dim / 8 }, { $dim / 16 }>;
                const N: usize = Kernel::SHAPE.totals(super::ROWS) as usize;
                super::stream::run::<Kernel, $element, N>(&params)
            }
        )*}
    };
}

kernels! {
    decode_e4m3_f16_d64 F16 64
    decode_e4m3_f16_d128 F16 128
    decode_e4m3_bf16_d64 Bf16 64
    decode_e4m3_bf16_d128 Bf16 128
}
