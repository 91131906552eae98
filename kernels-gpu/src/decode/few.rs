//! Decode of at most eight rows: keys as M, queries as N; values' columns as M, queries as N.
//!
//! The products of [`tensor`](super::tensor) have 16 rows of queries, of which a decode step of grouped heads uses four or
//! eight. Turned round, they have eight, and half the instructions and half the registers of queries and output: three
//! blocks find room on a multiprocessor instead of two. The weights leave the first product with keys as rows and enter the
//! second with keys as columns: two 8×8 matrices are transposed.
//!
//! Caches of 8-bit floats: `ldmatrix` takes 16 of them for 8 halves, so a lane gets 4 elements of a key, dealt out to
//! queries in the same order, and 2 × 2 elements of values: even columns are the upper half of M and odd ones the lower.

use super::{
    DecodeParams, JOIN_ROWS, MappedParams, Shape, finish,
    fp8::{Query, widen},
    stream::Engine,
    tensor::{Scoring, finished, queries_at, query_word, staged_row},
    work::Work,
};
use crate::tile::opaque::opaque;
use crate::tile::{
    element::{Bf16, F16},
    mma::Mma,
};
use core::{marker::PhantomData, mem::offset_of};
use cuda_std::{
    launch::ParamAddress,
    math::{ex2, fma, fmax, prmt},
    matrix, shared, thread, warp,
};

/// A warp's part of a piece: `S = dim / 16` steps along the head dim, and as many tiles of output columns. `BYTES` of a cache
/// element.
pub struct Few<E, const DIM: u32, const S: usize, const BYTES: u32, const GROUPS: u32, const MAPPED: bool> {
    /// Queries as B fragments.
    pub queries: [[u32; 2]; S],
    /// Output: columns × queries.
    pub out: [[f32; 4]; S],
    /// Of the lane's two queries.
    pub maximum: [f32; 2],
    sum: [f32; 2],
    scoring: [Scoring; 2],
    types: PhantomData<E>,
}

/// `movmatrix.sync.aligned.m8n8.trans.b16`: the transpose of an 8×8 matrix that the warp holds (sm_75).
///
/// # Safety
/// - All 32 lanes execute this together, in straight-line code.
#[inline(always)]
unsafe fn transpose(word: u32) -> u32 {
    let result: u32;
    // SAFETY: forwarded to the caller.
    unsafe {
        core::arch::asm!("movmatrix.sync.aligned.m8n8.trans.b16 {0}, {1};", out(reg32) result, in(reg32) word,
            options(nomem, nostack));
    }
    result
}

/// The largest value of the lanes with the same `lane % 4`.
#[inline(always)]
unsafe fn maximum_of_keys(value: f32) -> f32 {
    // SAFETY: forwarded to the caller.
    unsafe {
        let value = fmax(value, warp::shfl_bfly(value, 4));
        let value = fmax(value, warp::shfl_bfly(value, 8));
        fmax(value, warp::shfl_bfly(value, 16))
    }
}

impl<E, const DIM: u32, const S: usize, const BYTES: u32, const GROUPS: u32, const MAPPED: bool>
    Few<E, DIM, S, BYTES, GROUPS, MAPPED>
{
    /// Shared address of a chunk of 16 bytes of a key or value; an even number of chunks further is an XOR with 16 times that.
    #[inline(always)]
    fn chunk_at(base: u32, row: u32, chunk: u32) -> u32 {
        let swizzle = if DIM * BYTES == 64 { row / 2 % 4 } else { row % 8 };
        base + row * DIM * BYTES + (chunk ^ swizzle) * 16
    }

    /// The first query of this lane's scores; the next one is the other.
    #[inline(always)]
    pub fn query() -> u32 {
        thread::lane_id() % 4 * 2
    }

    /// Makes weights of scores, and shrinks what was seen before to their scale.
    #[inline(always)]
    unsafe fn weigh<const H: usize>(&mut self, x: &mut [[f32; 4]; H]) {
        let mut shrinks = [0.0; 2];
        let mut q = 0;
        while q < 2 {
            let mut here = fmax(x[0][q], x[0][q + 2]);
            let mut h = 1;
            while h < H {
                here = fmax(here, fmax(x[h][q], x[h][q + 2]));
                h += 1;
            }
            // SAFETY: forwarded to the caller.
            let maximum = fmax(self.maximum[q], unsafe { maximum_of_keys(here) });
            let shift = if maximum == f32::NEG_INFINITY { 0.0 } else { maximum };
            shrinks[q] = ex2(self.maximum[q] - shift);
            let mut sum = 0.0;
            h = 0;
            while h < H {
                x[h][q] = ex2(x[h][q] - shift);
                x[h][q + 2] = ex2(x[h][q + 2] - shift);
                let both = x[h][q] + x[h][q + 2];
                sum = if h == 0 { both } else { sum + both };
                h += 1;
            }
            self.sum[q] = fma(self.sum[q], shrinks[q], sum);
            self.maximum[q] = maximum;
            q += 1;
        }
        let mut t = 0;
        while t < S {
            let mut i = 0;
            while i < 4 {
                self.out[t][i] *= shrinks[i % 2];
                i += 1;
            }
            t += 1;
        }
    }
}

/// Elements of queries, and the type in which they are multiplied with those of a cache of `BYTES` each.
pub trait Product<const BYTES: u32>: Query {
    /// `A·B + C`.
    ///
    /// # Safety
    /// - As for [`Mma::mma`].
    unsafe fn product(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4];
    /// Two weights in a word.
    fn weights(low: f32, high: f32) -> u32;
}

macro_rules! products {
    ($($type:ident $bytes:literal by $by:ident)*) => {$(
        impl Product<$bytes> for $type {
            #[inline(always)]
            unsafe fn product(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
                // SAFETY: forwarded to the caller.
                unsafe { <$by as Mma>::mma(a, b, c) }
            }

            #[inline(always)]
            fn weights(low: f32, high: f32) -> u32 {
                <$by as crate::tile::element::Element>::pack(low, high)
            }
        }
    )*};
}

products! { F16 2 by F16  Bf16 2 by Bf16  F16 1 by F16  Bf16 1 by F16 }

impl<E: Product<BYTES>, const DIM: u32, const S: usize, const BYTES: u32, const GROUPS: u32, const MAPPED: bool>
    Few<E, DIM, S, BYTES, GROUPS, MAPPED>
{
    /// What has seen no key, with these queries.
    #[inline(always)]
    pub fn of(queries: [[u32; 2]; S], scoring: [Scoring; 2]) -> Self {
        Few {
            queries,
            out: [[0.0; 4]; S],
            maximum: [f32::NEG_INFINITY; 2],
            sum: [0.0; 2],
            scoring,
            types: PhantomData,
        }
    }

    /// Forgets the keys seen.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.out = [[0.0; 4]; S];
        self.maximum = [f32::NEG_INFINITY; 2];
        self.sum = [0.0; 2];
    }

    /// This lane's number, where what follows from it is worked out anew each step: where chunks lie does not change, but the
    /// widest rows have no registers to keep that.
    #[inline(always)]
    pub fn lane() -> u32 {
        if BYTES == 1 && DIM == 128 || DIM == 256 {
            opaque(thread::lane_id())
        } else {
            thread::lane_id()
        }
    }

    /// Scores of 16 keys from token `first`, as [`Scoring::score`] has them, `inner` when all rows see them: registers
    /// `2i + j` are key `group + 8i` and query `2 · pair + j`.
    #[inline(always)]
    unsafe fn score(&self, params: &DecodeParams, x: &mut [f32; 4], first: i32, inner: bool) {
        let mut i = 0;
        while i < 4 {
            x[i] *= self.scoring[i % 2].scale;
            i += 1;
        }
        if inner {
            return;
        }
        let query = Self::query();
        // SAFETY: as above.
        let rows = unsafe { [finish::row::<Self>(query), finish::row::<Self>(query + 1)] };
        let cap = self.scoring[0].cap;
        i = 0;
        while i < 4 {
            let key = first + (thread::lane_id() / 4 + i as u32 / 2 * 8) as i32;
            x[i] = finished(x[i], cap, params, &rows[i % 2], key);
            i += 1;
        }
    }

    /// Products of queries and 16 keys, as [`score`](Few::score) takes them.
    ///
    /// # Safety
    /// - The warp calls this together; `keys` is the shared address of 16 rows, `lane` [`Few::lane`].
    #[inline(always)]
    pub unsafe fn products(&self, keys: u32, lane: u32) -> [f32; 4] {
        unsafe {
            // Even and odd steps apart, for shorter chains of products.
            let mut scores = [[0.0f32; 4]; 2];
            // Matrices: keys 0–7 and 8–15 of a chunk, then of the next.
            let keys_at = Self::chunk_at(keys, lane % 16, lane / 16);
            let mut s = 0;
            while s < S {
                if BYTES == 1 {
                    let words = matrix::ldmatrix_x4(keys_at ^ (s as u32 * 16));
                    let mut odd = 0;
                    while odd < 2 {
                        let (upper, lower) = (widen(words[2 * odd]), widen(words[2 * odd + 1]));
                        let a = [upper[0], lower[0], upper[1], lower[1]];
                        scores[odd] = E::product(a, self.queries[s + odd], scores[odd]);
                        odd += 1;
                    }
                    s += 2;
                } else {
                    let a = matrix::ldmatrix_x4(keys_at ^ (s as u32 * 32));
                    scores[s % 2] = E::product(a, self.queries[s], scores[s % 2]);
                    s += 1;
                }
            }
            let mut x = [0.0f32; 4];
            let mut i = 0;
            while i < 4 {
                x[i] = scores[0][i] + scores[1][i];
                i += 1;
            }
            x
        }
    }

    /// Takes in `16 · H` values with the scores of their keys.
    ///
    /// # Safety
    /// - The warp calls this together; `values` is the shared address of as many rows, `lane` [`Few::lane`].
    #[inline(always)]
    pub unsafe fn attend<const H: usize>(&mut self, mut x: [[f32; 4]; H], values: u32, lane: u32) {
        unsafe {
            self.weigh(&mut x);
            let mut h = 0;
            while h < H {
                let x = &x[h];
                let values = values + h as u32 * (16 * DIM * BYTES);
                let p = [transpose(E::weights(x[0], x[1])), transpose(E::weights(x[2], x[3]))];
                let mut t = 0;
                if BYTES == 1 {
                    // Matrices: keys 0–7 and 8–15 of a chunk, then of the next.
                    let values_at = Self::chunk_at(values, lane % 16, lane / 16);
                    while t < S {
                        let words = matrix::ldmatrix_x4_trans(values_at ^ (t as u32 * 16));
                        let mut odd = 0;
                        while odd < 2 {
                            // Even columns of two keys, then odd ones.
                            let low = widen(prmt(words[2 * odd], 0, 0x3120));
                            let high = widen(prmt(words[2 * odd + 1], 0, 0x3120));
                            let a = [low[0], low[1], high[0], high[1]];
                            self.out[t + odd] = E::product(a, p, self.out[t + odd]);
                            odd += 1;
                        }
                        t += 2;
                    }
                } else {
                    // Matrices: columns 0–7 and 8–15 of keys 0–7, then of keys 8–15.
                    let values_at = Self::chunk_at(values, lane % 8 + lane / 16 * 8, lane / 8 % 2);
                    while t < S {
                        let a = matrix::ldmatrix_x4_trans(values_at ^ (t as u32 * 32));
                        self.out[t] = E::product(a, p, self.out[t]);
                        t += 1;
                    }
                }
                h += 1;
            }
        }
    }

    /// The sum of query `q` of this lane over the keys of all lanes.
    ///
    /// # Safety
    /// - The warp calls this together.
    #[inline(always)]
    pub unsafe fn sum_of_keys(&self, q: usize) -> f32 {
        let mut sum = self.sum[q];
        let mut lanes = 4;
        while lanes < 32 {
            // SAFETY: forwarded to the caller.
            sum += unsafe { warp::shfl_bfly(sum, lanes) };
            lanes *= 2;
        }
        sum
    }
}

impl<E: Product<BYTES>, const DIM: u32, const S: usize, const BYTES: u32, const GROUPS: u32, const MAPPED: bool> Engine
    for Few<E, DIM, S, BYTES, GROUPS, MAPPED>
{
    const SHAPE: Shape = {
        let shape = if GROUPS > 0 {
            Shape::alone(BYTES, DIM, GROUPS)
        } else {
            Shape::few(BYTES, DIM)
        };
        if MAPPED { shape.by_maps() } else { shape }
    };
    const CACHE_BYTES: u32 = BYTES;
    const ROWS: u32 = 8;

    #[inline(always)]
    unsafe fn stage_queries(_: &DecodeParams) {}

    #[inline(always)]
    fn query_at(_: &DecodeParams, row: u32, column: u32) -> u32 {
        super::tensor::chunk_at::<DIM>(queries_at::<Self>(), row, column / 8) + column % 8 * 2
    }

    #[inline(always)]
    unsafe fn new(params: &DecodeParams, work: &Work, staged: bool) -> Self {
        const { assert!(S as u32 * 16 == DIM && Self::SHAPE.query_bytes == 0) };
        unsafe {
            // Nothing of this is kept from tile to tile.
            let lane = opaque(thread::lane_id());
            let (group, pair) = (lane / 4, lane % 4);
            let mut queries = [[0; 2]; S];
            // Of 16-bit caches the words are columns 2·pair and 8 + 2·pair of a step, of others 4·pair and 4·pair + 2.
            let (width, other) = const { if BYTES == 1 { (4, 2) } else { (2, 8) } };
            if staged {
                let at = staged_row::<Self, DIM>(params, group);
                let mut s = 0;
                while s < S {
                    let column = s as u32 * 16 + pair * width;
                    if BYTES == 1 {
                        queries[s] = shared::ld((at ^ (column / 8 * 16)) + column % 8 * 2);
                    } else {
                        queries[s] = [
                            shared::ld((at ^ (s as u32 * 32)) + pair * 4),
                            shared::ld((at ^ (s as u32 * 32 + 16)) + pair * 4),
                        ];
                    }
                    s += 1;
                }
            } else {
                let row = finish::query::<Self>(group);
                let mut s = 0;
                while s < S {
                    let column = s as u32 * 16 + pair * width;
                    queries[s] = [query_word(params, row, column), query_word(params, row, column + other)];
                    s += 1;
                }
            }
            let mut scoring = [Scoring::new(params, work.head); 2];
            if BYTES == 1 {
                let factor = E::halve(&mut queries);
                scoring[0].scale *= warp::shfl_idx(factor, Self::query() * 4);
                scoring[1].scale *= warp::shfl_idx(factor, Self::query() * 4 + 4);
            }
            Few::of(queries, scoring)
        }
    }

    #[inline(always)]
    unsafe fn step(&mut self, params: &DecodeParams, keys: u32, values: u32, first: i32) {
        unsafe {
            let lane = Self::lane();
            let inner = finish::is_inner::<Self>(first, Self::SHAPE.keys);
            let mut x = [self.products(keys, lane)];
            self.score(params, &mut x[0], first, inner);
            if BYTES == 2 {
                self.attend(x, values, lane);
                return;
            }
            let mut more = self.products(keys + 16 * DIM * BYTES, lane);
            self.score(params, &mut more, first + 16, inner);
            self.attend([x[0], more], values, lane);
        }
    }

    #[inline(always)]
    unsafe fn put_statistics(&self, rows: u32) {
        unsafe {
            let warp = Self::warp();
            let mut q = 0;
            while q < 2 {
                let row = Self::query() + q as u32;
                let sum = self.sum_of_keys(q);
                if row < rows && thread::lane_id() < 4 {
                    finish::put_statistics::<Self>(warp, row, self.maximum[q], sum);
                }
                q += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn put_output(&self, turn: usize, rows: u32) {
        let (group, warp) = (opaque(thread::lane_id()) / 4, unsafe { Self::warp() });
        let mut q = 0;
        while q < 2 {
            let row = Self::query() + q as u32;
            if row < rows && row / JOIN_ROWS == turn as u32 {
                let to = finish::output::<Self>(warp, row, rows);
                let mut t = 0;
                while t < S {
                    let (upper, lower) = (self.out[t][q], self.out[t][q + 2]);
                    let at = to + t as u32 * 64;
                    // SAFETY: the row's turn.
                    unsafe {
                        if BYTES == 1 {
                            shared::st(at + group * 8, [upper, lower]);
                        } else {
                            shared::st(at + group * 4, upper);
                            shared::st(at + group * 4 + 32, lower);
                        }
                    }
                    t += 1;
                }
            }
            q += 1;
        }
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.forget();
    }
}

macro_rules! kernels {
    ($($name:ident $element:ident $dim:literal $bytes:literal $groups:literal $blocks:literal)*) => {
        cuda_std::kernel! {$(
            /// Decode attention of at most eight rows; see [`crate::decode`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs and workspace overlap nothing; there are at most eight rows and one tile of a KV head;
            ///   `alone` kernels are launched where 16 tokens lie together.
            #[launch(threads = Shape::alone($bytes, $dim, if $groups > 0 { $groups } else { 1 }).threads(), min_blocks = $blocks, tensor_core = 1)]
            pub fn $name(params: DecodeParams) {
                type Kernel = Few<$element, $dim, { $dim / 16 }, $bytes, $groups, false>;
                const N: usize = if $groups > 1 { 0 } else { Kernel::SHAPE.totals(8) as usize };
                super::stream::run::<Kernel, $element, N>(&params)
            }
        )*}
    };
}

macro_rules! mapped {
    ($($name:ident $element:ident $dim:literal $blocks:literal)*) => {
        cuda_std::kernel! {$(
            /// Decode attention of at most eight rows that reads the cache by tensor maps; see [`crate::decode`].
            ///
            /// # Safety
            /// - As for the other kernels of at most eight rows; 16 tokens lie together, and the maps are of the cache.
            #[launch(threads = Shape::few(2, $dim).threads(), min_blocks = $blocks, param_align = 64, tensor_core = 1)]
            pub fn $name(params: MappedParams, address: ParamAddress) {
                type Kernel = Few<$element, $dim, { $dim / 16 }, 2, 0, true>;
                const N: usize = Kernel::SHAPE.totals(8) as usize;
                let maps = [
                    address.tensor_map(offset_of!(MappedParams, k_map)),
                    address.tensor_map(offset_of!(MappedParams, v_map)),
                ];
                super::stream::run_by::<Kernel, $element, N>(&params.decode, maps)
            }
        )*}
    };
}

mapped! {
    decode_mapped_f16_d64 F16 64 3
    decode_mapped_bf16_d64 Bf16 64 3
}

kernels! {
    decode_few_f16_d64 F16 64 2 0 3
    decode_few_f16_d128 F16 128 2 0 3
    decode_few_f16_d256 F16 256 2 0 1
    decode_few_bf16_d64 Bf16 64 2 0 3
    decode_few_bf16_d128 Bf16 128 2 0 3
    decode_few_bf16_d256 Bf16 256 2 0 1
    decode_few_e4m3_f16_d64 F16 64 1 0 3
    decode_few_e4m3_f16_d128 F16 128 1 0 3
    decode_few_e4m3_bf16_d64 Bf16 64 1 0 3
    decode_few_e4m3_bf16_d128 Bf16 128 1 0 3
    decode_alone_f16_d128 F16 128 2 1 1
    decode_alone_bf16_d128 Bf16 128 2 1 1
    decode_alone_e4m3_f16_d128 F16 128 1 2 1
    decode_alone_e4m3_bf16_d128 Bf16 128 1 2 1
}
