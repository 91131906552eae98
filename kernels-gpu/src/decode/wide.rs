//! Decode of up to 32 rows: keys as M of the first product and queries as N; columns of values as M of the second.
//!
//! All query heads of one KV head, or several new tokens of a few, are one tile then: their keys are read once. Each warp has
//! its own keys in the first product; weights go through shared memory, and in the second product each warp has all keys of a
//! step and a part of the columns. So warps meet twice a step, over 64 keys, and no output of 32 rows is ever joined: a piece
//! that ends is folded in registers.

use super::{
    DecodeParams, Shape, WIDE_ROWS, cluster,
    end::End,
    finish::{self, Layout},
    fresh::Quad,
    stream::Engine,
    tensor::{Scoring, chunk_at, finished, query_word},
    work::Work,
};
use crate::tile::opaque::opaque;
use crate::tile::{
    element::{Bf16, F16},
    mma::Mma,
};
use core::marker::PhantomData;
use cuda_std::{
    barrier::syncthreads,
    global,
    math::{ex2, fma, fmax},
    matrix, shared, thread, warp,
};

/// Tiles of eight queries.
const TILES: usize = WIDE_ROWS as usize / 8;
/// Queries of a lane: `2 · pair` and the next one of each tile.
const OWN: usize = 2 * TILES;

/// A warp's part: `S = dim / 16` steps along the head dim, and `C = dim / 64` times 16 columns of output.
pub struct Wide<E, const DIM: u32, const S: usize, const C: usize> {
    /// Queries as B fragments.
    queries: [[[u32; 2]; TILES]; S],
    /// Output of the piece: columns × queries.
    out: [[[f32; 4]; TILES]; C],
    /// The same of the pieces before.
    total: [[[f32; 4]; TILES]; C],
    /// Of the block's keys and query number `lane / 4` of the lane's.
    maximum: f32,
    /// Of this lane's keys.
    sum: [f32; OWN],
    scoring: Scoring,
    types: PhantomData<E>,
}

/// A query of a lane.
#[inline(always)]
fn query(lane: u32, own: usize) -> u32 {
    own as u32 / 2 * 8 + lane % 4 * 2 + own as u32 % 2
}

/// Of each of a lane's queries a value: `combine` of those of all lanes that have the query, of query number `lane / 4` of the
/// lane's.
#[inline(always)]
unsafe fn combined(lane: u32, mut values: [f32; OWN], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = OWN / 2;
    while half > 0 {
        let upper = lane & (half as u32 * 4) != 0;
        let mut i = 0;
        while i < half {
            let (mine, other) = if upper {
                (values[half + i], values[i])
            } else {
                (values[i], values[half + i])
            };
            // SAFETY: forwarded to the caller.
            values[i] = combine(mine, unsafe { warp::shfl_bfly(other, half as u32 * 4) });
            i += 1;
        }
        half /= 2;
    }
    values[0]
}

/// Where the warps put the maxima of a step, then the sums of a piece, 16 bytes a row each, and the maxima of the piece.
#[inline(always)]
fn shared_rows<E: Engine>() -> [u32; 3] {
    let at = E::base() + Layout::<E>::WARPS_AT;
    [at, at + E::SHAPE.rows * 16, E::base() + Layout::<E>::FACTORS_AT]
}

/// Factors of what was folded before and of the piece, for a row.
///
/// # Safety
/// - A barrier lies behind [`End::join_row`].
#[inline(always)]
unsafe fn factors<E: Engine>(row: u32) -> [f32; 2] {
    // SAFETY: forwarded to the caller.
    unsafe { shared::ld(E::base() + Layout::<E>::FOLD_AT + row * 8) }
}

/// Address of a row's output, and the factor that finishes it, behind the last piece.
///
/// # Safety
/// - As for [`factors`].
#[inline(always)]
unsafe fn finished_row<E: Engine>(row: u32) -> (u64, f32) {
    let base = E::base();
    // SAFETY: forwarded to the caller.
    unsafe {
        (
            shared::ld(base + Layout::<E>::OUT_AT + row * 8),
            shared::ld(base + Layout::<E>::FINAL_AT + row * 4),
        )
    }
}

impl<E: Mma, const DIM: u32, const S: usize, const C: usize> Wide<E, DIM, S, C> {
    /// Steps whose queries of the upper two tiles are in registers: weights leave those in shared memory as they are.
    const KEPT: usize = if DIM == 128 { S / 2 } else { S };

    /// Where the first queries are, as `ldmatrix` takes them: both chunks of a tile, then of the next.
    #[inline(always)]
    fn queries_at(lane: u32) -> u32 {
        let base = shared::dynamic_base() + Self::SHAPE.header();
        chunk_at::<DIM>(base, lane / 16 * 8 + lane % 8, lane / 8 % 2)
    }

    /// Where eight weights of a query are, two matrices of keys `16 · part` of two tiles of queries each: as `ldmatrix` and
    /// `stmatrix` take them. Two tiles further are 2 KiB. Queries, which are in registers then, lay there.
    #[inline(always)]
    fn weights_at(lane: u32, part: u32) -> u32 {
        let row = lane / 16 * 8 + lane % 8;
        shared::dynamic_base() + Self::SHAPE.header() + row * 128 + (((part * 2 + lane / 8 % 2) ^ (lane % 8)) * 16)
    }

    /// Scores of the warp's 16 keys from token `first`, and a factor that they still lack, not negative: registers `2i + j` of a
    /// tile are key `group + 8i` and query `2 · pair + j`.
    #[inline(always)]
    unsafe fn scores(&self, params: &DecodeParams, keys: u32, first: i32) -> ([[f32; 4]; TILES], f32) {
        unsafe {
            // Where the chunks lie does not change from step to step: there are no registers to keep that.
            let lane = opaque(thread::lane_id());
            // Matrices: keys 0–7 and 8–15 of a chunk, then of the next.
            let keys_at = chunk_at::<DIM>(keys, lane % 16, lane / 16);
            let mut x = [[0.0f32; 4]; TILES];
            let mut s = 0;
            while s < S {
                let a = matrix::ldmatrix_x4(keys_at ^ (s as u32 * 32));
                let mut queries = self.queries[s];
                if s >= Self::KEPT {
                    let words = matrix::ldmatrix_x4((Self::queries_at(lane) ^ (s as u32 * 32)) + 16 * DIM * 2);
                    (queries[2], queries[3]) = ([words[0], words[1]], [words[2], words[3]]);
                }
                let mut j = 0;
                while j < TILES {
                    x[j] = E::mma(a, queries[j], x[j]);
                    j += 1;
                }
                s += 1;
            }
            // Where all rows see all keys, maxima and exponents take the factor, which is not negative then.
            let scale = self.scoring.scale;
            if finish::is_inner::<Self>(first, Self::SHAPE.keys) && scale >= 0.0 {
                return (x, scale);
            }
            let mut j = 0;
            while j < TILES {
                let mut q = 0;
                while q < 2 {
                    let row = finish::row::<Self>(query(lane, 2 * j + q));
                    let key = first + (lane / 4) as i32;
                    x[j][q] = finished(x[j][q] * scale, self.scoring.cap, params, &row, key);
                    x[j][q + 2] = finished(x[j][q + 2] * scale, self.scoring.cap, params, &row, key + 8);
                    q += 1;
                }
                j += 1;
            }
            (x, 1.0)
        }
    }

    /// Gives what this warp has of a piece, or of a bundle, to the blocks of the cluster or to the workspace.
    #[inline(always)]
    unsafe fn write_part(params: &DecodeParams, work: &Work, end: &End, out: &[[[f32; 4]; TILES]; C]) {
        unsafe {
            let lane = opaque(thread::lane_id());
            let first = thread::uniform_warp_idx() * (C as u32 * 16) + lane / 4;
            let mut n = 0;
            while n < OWN {
                let row = query(lane, n);
                if row < work.rows {
                    let to = params.partial + (end.place + row as u64) * params.value_dim as u64 * 4;
                    let mut i = 0;
                    while i < 2 * C {
                        let (column, value) = (first + i as u32 * 8, out[i / 2][n / 2][n % 2 + i % 2 * 2]);
                        if finish::clustered::<Self>(params) {
                            cluster::put_element::<Self>(params, end.split, row, column, value);
                        } else if column < params.value_dim {
                            global::st((to + column as u64 * 4) as *mut f32, value);
                        }
                        i += 1;
                    }
                }
                n += 1;
            }
        }
    }
}

impl<E: Mma, const DIM: u32, const S: usize, const C: usize> Engine for Wide<E, DIM, S, C> {
    const SHAPE: Shape = Shape::wide(DIM);
    const CACHE_BYTES: u32 = 2;

    #[inline(always)]
    unsafe fn stage_queries(params: &DecodeParams) {
        unsafe {
            // Nothing of this is kept from tile to tile; all loads are under way before the first store.
            let thread = opaque(thread::thread_idx_x());
            let place = |turn: usize| {
                let index = turn as u32 * const { Self::SHAPE.warps * 32 } + thread;
                (index / (DIM / 2), index % (DIM / 2) * 2)
            };
            let mut words = [0; 16];
            let mut turn = 0;
            while turn < S * 2 {
                let (row, column) = place(turn);
                words[turn] = query_word(params, finish::query::<Self>(row), column);
                turn += 1;
            }
            turn = 0;
            while turn < S * 2 {
                let (row, column) = place(turn);
                shared::st(Self::query_at(params, row, column), words[turn]);
                turn += 1;
            }
        }
    }

    #[inline(always)]
    fn query_at(_: &DecodeParams, row: u32, column: u32) -> u32 {
        chunk_at::<DIM>(shared::dynamic_base() + Self::SHAPE.header(), row, column / 8) + column % 8 * 2
    }

    #[inline(always)]
    unsafe fn new(params: &DecodeParams, work: &Work, _: bool) -> Self {
        const {
            assert!(S as u32 * 16 == DIM && C as u32 * 64 == DIM && Self::SHAPE.warps == 4);
            assert!(Self::SHAPE.query_bytes >= WIDE_ROWS * 64 * 2);
        };
        unsafe {
            let lane = opaque(thread::lane_id());
            let queries_at = Self::queries_at(lane);
            let mut queries = [[[0; 2]; TILES]; S];
            let mut s = 0;
            while s < S {
                let mut j = 0;
                while j < TILES {
                    let words = matrix::ldmatrix_x4((queries_at ^ (s as u32 * 32)) + j as u32 * 8 * DIM * 2);
                    (queries[s][j], queries[s][j + 1]) = ([words[0], words[1]], [words[2], words[3]]);
                    j += 2;
                }
                s += 1;
            }
            Wide {
                queries,
                out: [[[0.0; 4]; TILES]; C],
                total: [[[0.0; 4]; TILES]; C],
                maximum: f32::NEG_INFINITY,
                sum: [0.0; OWN],
                scoring: Scoring::new(params, work.head),
                types: PhantomData,
            }
        }
    }

    #[inline(always)]
    unsafe fn step(&mut self, _: &DecodeParams, _: u32, _: u32, _: i32) {}

    #[inline(always)]
    unsafe fn step_united(&mut self, params: &DecodeParams, keys: u32, first: i32, feed: impl FnOnce()) {
        unsafe {
            let own_warp = thread::uniform_warp_idx();
            let (mut x, factor) = self.scores(params, keys, first);
            let lane = opaque(thread::lane_id());
            let mut here = [0.0; OWN];
            let mut n = 0;
            while n < OWN {
                here[n] = fmax(x[n / 2][n % 2], x[n / 2][n % 2 + 2]);
                n += 1;
            }
            let [maxima, ..] = shared_rows::<Self>();
            let here = combined(lane, here, fmax) * factor;
            let own = query(lane, 0) + lane / 8 * 8 + lane / 4 % 2;
            shared::st(maxima + own * 16 + own_warp * 4, here);
            // All warps have keys and values, and have read the stage before and its weights.
            syncthreads();
            let [a, b, c, d]: [f32; 4] = shared::ld(maxima + own * 16);
            let maximum = fmax(fmax(a, b), fmax(c, d));
            let maximum = fmax(self.maximum, maximum);
            let shift = finish::shift(maximum);
            let shrink = ex2(self.maximum - shift);
            self.maximum = maximum;
            n = 0;
            while n < OWN {
                let shrink = warp::shfl_idx(shrink, lane % 4 + n as u32 * 4);
                self.sum[n] *= shrink;
                let mut c = 0;
                while c < C {
                    self.out[c][n / 2][n % 2] *= shrink;
                    self.out[c][n / 2][n % 2 + 2] *= shrink;
                    c += 1;
                }
                n += 1;
            }
            n = 0;
            while n < OWN {
                let shift = warp::shfl_idx(shift, lane % 4 + n as u32 * 4);
                let (tile, q) = (n / 2, n % 2);
                x[tile][q] = ex2(fma(x[tile][q], factor, -shift));
                x[tile][q + 2] = ex2(fma(x[tile][q + 2], factor, -shift));
                self.sum[n] += x[tile][q] + x[tile][q + 2];
                n += 1;
            }
            let weights = Self::weights_at(lane, own_warp);
            let mut tile = 0;
            while tile < TILES {
                let (a, b) = (x[tile], x[tile + 1]);
                let words = [
                    E::pack(a[0], a[1]),
                    E::pack(a[2], a[3]),
                    E::pack(b[0], b[1]),
                    E::pack(b[2], b[3]),
                ];
                matrix::stmatrix_x4_trans(weights + tile as u32 * 1024, words);
                tile += 2;
            }
            syncthreads();
            feed();
            let lane = opaque(thread::lane_id());
            // Matrices: columns 0–7 and 8–15 of keys 0–7, then of keys 8–15.
            let from_warp = const { Self::SHAPE.stages * Self::SHAPE.stage_bytes() };
            let values = keys - own_warp * from_warp + Self::SHAPE.keys * Self::SHAPE.row_bytes;
            let values_at = chunk_at::<DIM>(
                values,
                lane % 8 + lane / 16 * 8,
                own_warp * (C as u32 * 2) + lane / 8 % 2,
            );
            let mut part = 0;
            while part < 4 {
                let weights = Self::weights_at(lane, part);
                let near = matrix::ldmatrix_x4(weights);
                let far = matrix::ldmatrix_x4(weights + 2048);
                let mut c = 0;
                while c < C {
                    let a = matrix::ldmatrix_x4_trans((values_at ^ (c as u32 * 32)) + part * from_warp);
                    let out = &mut self.out[c];
                    out[0] = E::mma(a, [near[0], near[1]], out[0]);
                    out[1] = E::mma(a, [near[2], near[3]], out[1]);
                    out[2] = E::mma(a, [far[0], far[1]], out[2]);
                    out[3] = E::mma(a, [far[2], far[3]], out[3]);
                    c += 1;
                }
                part += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn fold<O: Quad>(&mut self, params: &DecodeParams, work: &Work, whole: bool, piece: u32, last: bool) {
        unsafe {
            let own_warp = thread::uniform_warp_idx();
            let lane = opaque(thread::lane_id());
            let [_, sums, maxima] = shared_rows::<Self>();
            let own = query(lane, 0) + lane / 8 * 8 + lane / 4 % 2;
            let sum = combined(lane, self.sum, |a, b| a + b);
            shared::st(sums + own * 16 + own_warp * 4, sum);
            if own_warp == 0 {
                shared::st(maxima + own * 4, self.maximum);
            }
            syncthreads();
            let end = End::new::<Self>(params, work, whole, piece, last);
            let row = thread::thread_idx_x();
            if row < work.rows {
                let [a, b, c, d]: [f32; 4] = shared::ld(sums + row * 16);
                end.join_row::<Self>(params, work, row, [shared::ld(maxima + row * 4), ((a + b) + c) + d]);
            }
            syncthreads();
            if !end.apart || end.bundled {
                let mut n = 0;
                while n < OWN {
                    // Rows that are not in use have any factors.
                    let row = query(lane, n);
                    let factors = factors::<Self>(if row < work.rows { row } else { 0 });
                    let (tile, q) = (n / 2, n % 2);
                    let mut i = 0;
                    while i < 2 * C {
                        let register = q + i % 2 * 2;
                        let before = if end.begins {
                            0.0
                        } else {
                            self.total[i / 2][tile][register]
                        };
                        self.total[i / 2][tile][register] =
                            finish::fold(before, factors, self.out[i / 2][tile][register]);
                        i += 1;
                    }
                    n += 1;
                }
            }
            if end.apart && !end.bundled {
                let out = self.out;
                Self::write_part(params, work, &end, &out);
            } else if end.bundled && end.ends {
                let out = self.total;
                Self::write_part(params, work, &end, &out);
            } else if last {
                let first = own_warp * (C as u32 * 16) + lane / 4;
                let mut n = 0;
                while n < OWN {
                    let row = query(lane, n);
                    if row < work.rows {
                        let (to, factor) = finished_row::<Self>(row);
                        let mut i = 0;
                        while i < 2 * C {
                            let value = self.total[i / 2][n / 2][n % 2 + i % 2 * 2];
                            let column = first + i as u32 * 8;
                            if column < params.value_dim {
                                finish::write_output::<O>(to, column, value * factor);
                            }
                            i += 1;
                        }
                    }
                    n += 1;
                }
            }
            if last {
                syncthreads();
            }
        }
    }

    #[inline(always)]
    unsafe fn put_statistics(&self, _: u32) {}

    #[inline(always)]
    unsafe fn put_output(&self, _: usize, _: u32) {}

    #[inline(always)]
    fn clear(&mut self) {
        self.out = [[[0.0; 4]; TILES]; C];
        self.maximum = f32::NEG_INFINITY;
        self.sum = [0.0; OWN];
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
            #[launch(threads = Shape::wide($dim).warps * 32, min_blocks = 2, tensor_core = 1)]
            pub fn $name(params: DecodeParams) {
                type Kernel = Wide<$element, $dim, { $dim / 16 }, { $dim / 64 }>;
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
