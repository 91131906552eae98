//! Decode in f32, by fused multiply-adds.
//!
//! For the scores, lane `16h + k` has key `k` and the rows `8h` to `8h + 7`; for the output, lane `l` has `W` columns
//! from `W · l` of all rows. Weights go from one to the other through the warp's own place in shared memory: the first
//! row of keys' stage, whose keys are used up by then.

use super::{
    DecodeParams, JOIN_ROWS, KEYS, ROWS, Shape, finish,
    stream::{Engine, SM},
    tensor::{Scoring, finished},
    work::Work,
};
use crate::tile::opaque::opaque;
use cuda_std::{
    barrier::syncwarp,
    global,
    math::{ex2, fma, fmax},
    shared, thread, warp,
};

/// A warp's part of a piece, with a padded head dim of `DIM = 32 · W`.
pub struct Scalar<const DIM: u32, const W: usize> {
    /// Columns of the output of every row.
    out: [[f32; W]; ROWS as usize],
    /// Maximum of the rows of this half-warp.
    maximum: [f32; 8],
    /// This lane's part of their sums.
    sum: [f32; 8],
}

/// Rows of a half-warp.
const HALF: usize = ROWS as usize / 2;

impl<const DIM: u32, const W: usize> Engine for Scalar<DIM, W> {
    const SHAPE: Shape = Shape::new(SM, 4, 4, DIM);
    const CACHE_BYTES: u32 = 4;

    #[inline(always)]
    unsafe fn stage_queries(params: &DecodeParams) {
        unsafe {
            let base = shared::dynamic_base() + Self::SHAPE.header();
            // Nothing of this is kept from tile to tile.
            let mut index = opaque(thread::thread_idx_x());
            while index < ROWS * DIM {
                let (row, column) = (index / DIM, index % DIM);
                let mut value = 0.0;
                let at = finish::query::<Self>(row);
                if at != 0 && column < params.head_dim {
                    value = global::ld_nc((at + column as u64 * 4) as *const f32);
                }
                shared::st(base + index * 4, value);
                index += Self::SHAPE.warps * 32;
            }
        }
    }

    #[inline(always)]
    fn query_at(_: &DecodeParams, row: u32, column: u32) -> u32 {
        shared::dynamic_base() + Self::SHAPE.header() + (row * DIM + column) * 4
    }

    #[inline(always)]
    unsafe fn new(_: &DecodeParams, _: &Work, _: bool) -> Self {
        const { assert!(W as u32 * 32 == DIM) };
        Scalar {
            out: [[0.0; W]; ROWS as usize],
            maximum: [f32::NEG_INFINITY; 8],
            sum: [0.0; 8],
        }
    }

    #[inline(always)]
    unsafe fn step(&mut self, params: &DecodeParams, keys: u32, values: u32, first: i32) {
        unsafe {
            // Where the chunks lie does not change from step to step: there are no registers to keep that.
            let lane = opaque(thread::lane_id());
            let (key, half) = (lane % KEYS, lane / KEYS);
            let queries = shared::dynamic_base() + Self::SHAPE.header() + half * HALF as u32 * DIM * 4;
            let mut x = [0.0f32; HALF];
            let mut chunk = 0;
            let chunks = opaque(DIM / 4);
            while chunk < chunks {
                let k: [f32; 4] = shared::ld(keys + key * DIM * 4 + (chunk ^ Self::swizzle(key)) * 16);
                let mut r = 0;
                while r < HALF {
                    let q: [f32; 4] = shared::ld(queries + (r as u32 * DIM + chunk * 4) * 4);
                    x[r] = fma(q[3], k[3], fma(q[2], k[2], fma(q[1], k[1], fma(q[0], k[0], x[r]))));
                    r += 1;
                }
                chunk += 1;
            }
            let token = first + key as i32;
            // Not kept from step to step either.
            let scoring = Scoring::of(f32::from_bits(opaque(params.scale.to_bits())), params.softcap);
            let mut shrinks = [0.0f32; HALF];
            let mut r = 0;
            while r < HALF {
                let bounds = finish::row::<Self>(half * HALF as u32 + r as u32);
                let y = finished(x[r] * scoring.scale, scoring.cap, params, &bounds, token);
                let maximum = fmax(self.maximum[r], warp::reduce_max::<16>(y));
                let shift = if maximum == f32::NEG_INFINITY { 0.0 } else { maximum };
                shrinks[r] = ex2(self.maximum[r] - shift);
                x[r] = ex2(y - shift);
                self.sum[r] = fma(self.sum[r], shrinks[r], x[r]);
                self.maximum[r] = maximum;
                r += 1;
            }
            // All lanes are done with the keys: weights [row, key] and shrinks [row] take their place.
            syncwarp(warp::FULL);
            r = 0;
            while r < HALF {
                let row = half * HALF as u32 + r as u32;
                shared::st(keys + (row * KEYS + key) * 4, x[r]);
                if key == 0 {
                    shared::st(keys + (ROWS * KEYS + row) * 4, shrinks[r]);
                }
                r += 1;
            }
            syncwarp(warp::FULL);
            let lane = opaque(lane);
            r = 0;
            while r < ROWS as usize {
                let shrink: f32 = shared::ld(keys + (ROWS * KEYS + r as u32) * 4);
                let mut w = 0;
                while w < W {
                    self.out[r][w] *= shrink;
                    w += 1;
                }
                r += 1;
            }
            let mut key = 0;
            let keys_here = opaque(KEYS);
            while key < keys_here {
                let mut v = [0.0f32; W];
                let mut w = 0;
                while w < W {
                    let column = lane * W as u32 + w as u32;
                    v[w] =
                        shared::ld(values + key * DIM * 4 + ((column / 4) ^ Self::swizzle(key)) * 16 + column % 4 * 4);
                    w += 1;
                }
                r = 0;
                while r < ROWS as usize {
                    let p: f32 = shared::ld(keys + (r as u32 * KEYS + key) * 4);
                    w = 0;
                    while w < W {
                        self.out[r][w] = fma(p, v[w], self.out[r][w]);
                        w += 1;
                    }
                    r += 1;
                }
                key += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn put_statistics(&self, rows: u32) {
        unsafe {
            let lane = thread::lane_id();
            let (key, half, warp) = (lane % KEYS, lane / KEYS, thread::uniform_warp_idx());
            let mut r = 0;
            while r < HALF {
                let row = half * HALF as u32 + r as u32;
                let sum = warp::reduce_sum::<16>(self.sum[r]);
                if key == 0 && row < rows {
                    finish::put_statistics::<Self>(warp, row, self.maximum[r], sum);
                }
                r += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn put_output(&self, turn: usize, rows: u32) {
        let (lane, warp) = (thread::lane_id(), unsafe { thread::uniform_warp_idx() });
        let mut r = 0;
        while r < JOIN_ROWS as usize {
            let row = turn * JOIN_ROWS as usize + r;
            if (row as u32) < rows {
                let to = finish::output::<Self>(warp, row as u32, rows) + lane * W as u32 * 4;
                let mut w = 0;
                while w < W {
                    unsafe { shared::st(to + w as u32 * 4, self.out[row][w]) };
                    w += 1;
                }
            }
            r += 1;
        }
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.out = [[0.0; W]; ROWS as usize];
        self.maximum = [f32::NEG_INFINITY; 8];
        self.sum = [0.0; 8];
    }
}

macro_rules! kernels {
    ($($name:ident $dim:literal)*) => {
        cuda_std::kernel! {$(
            /// Decode attention in f32; see [`crate::decode`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs and workspace overlap nothing.
            #[launch(threads = Shape::new(SM, 4, 4, $dim).warps * 32, min_blocks = 1)]
            pub fn $name(params: DecodeParams) {
                type Kernel = Scalar<$dim, { $dim / 32 }>;
                const N: usize = Kernel::SHAPE.totals(ROWS) as usize;
                super::stream::run::<Kernel, f32, N>(&params)
            }
        )*}
    };
}

kernels! { decode_f32_d64 64 decode_f32_d128 128 decode_f32_d256 256 }
