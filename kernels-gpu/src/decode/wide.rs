//! Decode of up to 32 rows: the products of [`tensor`](super::tensor), twice for each fragment of keys and values.
//!
//! All query heads of one KV head, or several new tokens of a few, are one tile then: their keys are read once. Output takes
//! half of a thread's registers, so queries and totals stay in shared memory.

use super::{
    DecodeParams, Shape, WIDE_ROWS, finish,
    stream::{Engine, Work, opaque},
    tensor::{Scoring, Seen, chunk_at, query_word},
};
use crate::tile::{
    element::{Bf16, F16},
    fragment,
    mma::Mma,
};
use core::marker::PhantomData;
use cuda_std::{matrix, shared, thread};

/// Sixteen rows each.
const HALVES: usize = WIDE_ROWS as usize / 16;

/// A warp's part of a piece: `T = dim / 8` tiles of output columns.
pub struct Wide<E, const DIM: u32, const T: usize> {
    seen: [Seen<T>; HALVES],
    scoring: Scoring,
    types: PhantomData<E>,
}

impl<E: Mma, const DIM: u32, const T: usize> Engine for Wide<E, DIM, T> {
    const SHAPE: Shape = Shape::wide(DIM);
    const CACHE_BYTES: u32 = 2;

    #[inline(always)]
    unsafe fn stage_queries(params: &DecodeParams) {
        unsafe {
            // Nothing of this is kept from tile to tile.
            let mut index = opaque(thread::thread_idx_x());
            while index < WIDE_ROWS * DIM / 2 {
                let (row, column) = (index / (DIM / 2), index % (DIM / 2) * 2);
                let word = query_word(params, finish::query::<Self>(row), column);
                shared::st(Self::query_at(params, row, column), word);
                index += Self::SHAPE.warps * 32;
            }
        }
    }

    #[inline(always)]
    fn query_at(_: &DecodeParams, row: u32, column: u32) -> u32 {
        chunk_at::<DIM>(shared::dynamic_base() + Self::SHAPE.header(), row, column / 8) + column % 8 * 2
    }

    #[inline(always)]
    unsafe fn new(params: &DecodeParams, work: &Work, _: bool) -> Self {
        const { assert!(T as u32 * 8 == DIM && Self::SHAPE.query_bytes != 0) };
        Wide {
            seen: [const { Seen::new() }; HALVES],
            // SAFETY: forwarded to the caller.
            scoring: unsafe { Scoring::new(params, work.head) },
            types: PhantomData,
        }
    }

    #[inline(always)]
    unsafe fn step(&mut self, params: &DecodeParams, keys: u32, values: u32, first: i32) {
        unsafe {
            // Where the chunks lie does not change from step to step: there are no registers to keep that.
            let lane = opaque(thread::lane_id());
            // Two tiles of 8 keys for each half of the rows.
            let mut scores = [[[0.0f32; 4]; 2]; HALVES];
            // Matrices of queries: rows 0–7 and 8–15 of the first 8 columns, then of the others. Of keys: keys 0–7, both
            // halves of the 16 columns; keys 8–15, the same.
            let queries = shared::dynamic_base() + Self::SHAPE.header();
            let queries_at = chunk_at::<DIM>(queries, lane % 16, lane / 16);
            let keys_at = chunk_at::<DIM>(keys, lane % 8 + lane / 16 * 8, lane / 8 % 2);
            let mut s = 0;
            while s < DIM / 16 {
                let b = matrix::ldmatrix_x4(keys_at ^ (s * 32));
                let mut half = 0;
                while half < HALVES {
                    let a = matrix::ldmatrix_x4((queries_at ^ (s * 32)) + half as u32 * 16 * DIM * 2);
                    scores[half][0] = E::mma(a, [b[0], b[1]], scores[half][0]);
                    scores[half][1] = E::mma(a, [b[2], b[3]], scores[half][1]);
                    half += 1;
                }
                s += 1;
            }
            let mut weights = [[0; 4]; HALVES];
            let mut half = 0;
            while half < HALVES {
                let [a, b] = scores[half];
                let mut x = [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]];
                Scoring::score::<Self>([self.scoring; 2], params, half as u32 * 16, &mut x, first);
                self.seen[half].weigh(&mut x, true);
                weights[half] = fragment::a_from_accumulator(&x, 0, E::pack);
                half += 1;
            }
            // Matrices: keys 0–7 and 8–15 of 8 columns, then of the next 8.
            let values_at = chunk_at::<DIM>(values, lane % 16, lane / 16);
            let mut t = 0;
            while t < T {
                let b = matrix::ldmatrix_x4_trans(values_at ^ (t as u32 * 16));
                half = 0;
                while half < HALVES {
                    let out = &mut self.seen[half].out;
                    out[t] = E::mma(weights[half], [b[0], b[1]], out[t]);
                    out[t + 1] = E::mma(weights[half], [b[2], b[3]], out[t + 1]);
                    half += 1;
                }
                t += 2;
            }
        }
    }

    #[inline(always)]
    unsafe fn put_statistics(&self, rows: u32) {
        let mut half = 0;
        while half < HALVES {
            // SAFETY: forwarded to the caller.
            unsafe { self.seen[half].put_statistics::<Self>(half as u32 * 16, rows) };
            half += 1;
        }
    }

    #[inline(always)]
    unsafe fn put_output(&self, turn: usize, rows: u32) {
        let (lane, warp) = (thread::lane_id(), unsafe { thread::uniform_warp_idx() });
        let (half, part) = (turn / 2, turn % 2);
        let row = turn as u32 * 8 + lane / 4;
        if row < rows {
            let to = finish::output::<Self>(warp, row, rows);
            let at = finish::column_at::<Self>(row, lane % 4 * 2);
            let out = &self.seen[half].out;
            let mut t = 0;
            while t < T {
                // SAFETY: the row's turn.
                unsafe { shared::st(to + (at ^ (t as u32 * 32)), [out[t][2 * part], out[t][2 * part + 1]]) };
                t += 1;
            }
        }
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.seen = [const { Seen::new() }; HALVES];
    }
}

macro_rules! kernels {
    ($($name:ident $element:ident $dim:literal)*) => {
        cuda_std::kernel! {$(
            /// Decode attention of up to 32 rows; see [`crate::decode`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs and workspace overlap nothing.
            #[launch(threads = Shape::wide($dim).warps * 32, min_blocks = 1, tensor_core = 1)]
            pub fn $name(params: DecodeParams) {
                type Kernel = Wide<$element, $dim, { $dim / 8 }>;
                super::stream::run::<Kernel, $element, 0>(&params)
            }
        )*}
    };
}

kernels! {
    decode_wide_f16_d64 F16 64
    decode_wide_f16_d128 F16 128
    decode_wide_bf16_d64 Bf16 64
    decode_wide_bf16_d128 Bf16 128
}
