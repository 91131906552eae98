//! Decode on tensor cores: rows of queries as M, keys as N, `mma.m16n8k16` (`m16n8k8` twice on sm_75).

use super::{
    DecodeParams, JOIN_ROWS, KEYS, ROWS, Shape, UNBOUNDED, finish,
    stream::{Engine, SM},
    work::{Row, Work},
};
#[cfg(not(tier = "sm_75"))]
use crate::tile::element::Bf16;
use crate::tile::opaque::opaque;
use crate::tile::{element::F16, fragment, mma::Mma};
use core::marker::PhantomData;
use cuda_std::{
    global,
    math::{ex2, fma, fmax, rcp},
    matrix, shared, thread, warp,
};

/// What a warp has seen of its rows: `T` tiles of 8 columns of output, and the online softmax. A lane has two rows.
pub struct Seen<const T: usize> {
    pub out: [[f32; 4]; T],
    maximum: [f32; 2],
    sum: [f32; 2],
}

impl<const T: usize> Seen<T> {
    /// Nothing yet.
    #[inline(always)]
    pub const fn new() -> Self {
        Seen {
            out: [[0.0; 4]; T],
            maximum: [f32::NEG_INFINITY; 2],
            sum: [0.0; 2],
        }
    }

    /// Makes weights of the scores of 16 keys, and shrinks what was seen before to their scale. Unless `both`, a lane's
    /// second row is not in use: its weights are 0.
    ///
    /// # Safety
    /// - The warp calls this together.
    #[inline(always)]
    pub unsafe fn weigh(&mut self, x: &mut [f32; 8], both: bool) {
        // SAFETY: forwarded to the caller.
        unsafe {
            self.weigh_row::<0>(x);
            if both {
                self.weigh_row::<1>(x);
            } else {
                (x[2], x[3], x[6], x[7]) = (0.0, 0.0, 0.0, 0.0);
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh_row<const ROW: usize>(&mut self, x: &mut [f32; 8]) {
        let r = 2 * ROW;
        let here = fmax(fmax(x[r], x[r + 1]), fmax(x[r + 4], x[r + 5]));
        // SAFETY: forwarded to the caller.
        let maximum = fmax(self.maximum[ROW], unsafe { warp::reduce_max::<4>(here) });
        let shift = if maximum == f32::NEG_INFINITY { 0.0 } else { maximum };
        let shrink = ex2(self.maximum[ROW] - shift);
        x[r] = ex2(x[r] - shift);
        x[r + 1] = ex2(x[r + 1] - shift);
        x[r + 4] = ex2(x[r + 4] - shift);
        x[r + 5] = ex2(x[r + 5] - shift);
        self.sum[ROW] = fma(self.sum[ROW], shrink, (x[r] + x[r + 1]) + (x[r + 4] + x[r + 5]));
        self.maximum[ROW] = maximum;
        let mut t = 0;
        while t < T {
            self.out[t][r] *= shrink;
            self.out[t][r + 1] *= shrink;
            t += 1;
        }
    }

    /// Writes maximum and sum of the rows in use for [`finish`]; row `first` is the first of these.
    ///
    /// # Safety
    /// - The warp calls this together; `rows` is the number of rows in use.
    #[inline(always)]
    pub unsafe fn put_statistics<E: Engine>(&self, first: u32, rows: u32) {
        unsafe {
            let lane = thread::lane_id();
            let (group, pair, warp) = (lane / 4, lane % 4, thread::uniform_warp_idx());
            let mut half = 0;
            while half < 2 {
                let row = first + group + 8 * half as u32;
                let sum = warp::reduce_sum::<4>(self.sum[half]);
                if row < rows && pair == 0 {
                    finish::put_statistics::<E>(warp, row, self.maximum[half], sum);
                }
                half += 1;
            }
        }
    }
}

/// How raw scores become those that the softmax takes.
#[derive(Clone, Copy)]
pub struct Scoring {
    /// Factor of the raw scores; with a cap, up to the argument of its tanh.
    pub scale: f32,
    /// The cap times log₂ e, or 0.
    pub cap: f32,
}

impl Scoring {
    /// As the parameters say, for a KV head.
    ///
    /// # Safety
    /// - `params` are those of the launch; it has that KV head.
    #[inline(always)]
    pub unsafe fn new(params: &DecodeParams, head: u32) -> Scoring {
        let mut scale = params.scale;
        if params.k_scale != 0 {
            // SAFETY: forwarded to the caller.
            scale *= unsafe { global::ld_nc((params.k_scale + head as u64 * 4) as *const f32) };
        }
        Scoring::of(scale, params.softcap)
    }

    /// For a factor and a cap, 0 for none.
    #[inline(always)]
    pub fn of(factor: f32, softcap: f32) -> Scoring {
        let mut scale = factor;
        let mut cap = 0.0;
        if softcap != 0.0 {
            cap = softcap * core::f32::consts::LOG2_E;
            scale /= softcap;
        } else {
            scale *= core::f32::consts::LOG2_E;
        }
        Scoring { scale, cap }
    }

    /// Makes scores, in units of log₂, of the raw ones of 16 keys from token `first`: with caps and biases, −∞ where a row
    /// does not see the key. Both rows of a lane, of the 16 from row `row`, have their own scoring, and one cap.
    ///
    /// # Safety
    /// - The warp calls this together, behind [`finish::begin`] and a barrier.
    #[inline(always)]
    pub unsafe fn score<E: Engine>(both: [Scoring; 2], params: &DecodeParams, row: u32, x: &mut [f32; 8], first: i32) {
        let mut i = 0;
        while i < 8 {
            x[i] *= both[i / 2 % 2].scale;
            i += 1;
        }
        // SAFETY: forwarded to the caller.
        if unsafe { finish::is_inner::<E>(first, KEYS) } {
            return;
        }
        let lane = thread::lane_id();
        // Nobody has registers for what the rows see, kept from step to step.
        // SAFETY: as above.
        let rows = unsafe { [finish::row::<E>(row + lane / 4), finish::row::<E>(row + lane / 4 + 8)] };
        let cap = both[0].cap;
        i = 0;
        while i < 8 {
            let key = first + fragment::column(lane, i as u32) as i32;
            x[i] = finished(x[i], cap, params, &rows[i / 2 % 2], key);
            i += 1;
        }
    }
}

/// A score, in units of log₂, of one that has its factor: with its cap and bias, −∞ where the row does not see the key.
#[inline(always)]
pub fn finished(score: f32, cap: f32, params: &DecodeParams, row: &Row, key: i32) -> f32 {
    let mut x = score;
    if cap != 0.0 {
        // tanh y = 1 − 2 / (e^2y + 1)
        let e = ex2(x * (2.0 * core::f32::consts::LOG2_E));
        x = cap * fma(-2.0, rcp(e + 1.0), 1.0);
    }
    if params.alibi_slopes != 0 {
        let distance = row.position - key;
        let distance = if distance < 0 { -distance } else { distance };
        x = fma(-row.slope, distance as f32, x);
    }
    if key < row.begin || key >= row.end {
        x = f32::NEG_INFINITY;
    }
    x
}

/// A warp's part of a piece: `T = dim / 8` tiles of output columns, `S = dim / 16` steps along the head dim.
pub struct Tensor<E, const DIM: u32, const T: usize, const S: usize> {
    /// Queries as A fragments, unless they are read from shared memory each time.
    queries: [[u32; 4]; S],
    seen: Seen<T>,
    scoring: Scoring,
    types: PhantomData<E>,
}

/// Shared address of 16 bytes of a row of 16-bit elements: chunks are permuted by the low bits of the row's number. Where
/// `base` is a multiple of a row's bytes, an even number of chunks further is an XOR with 16 times that.
#[inline(always)]
pub const fn chunk_at<const DIM: u32>(base: u32, row: u32, chunk: u32) -> u32 {
    base + row * DIM * 2 + (chunk ^ (row & 7)) * 16
}

/// Where queries are in shared memory, for engines that keep them in registers: where warps are joined later.
#[inline(always)]
pub fn queries_at<E: Engine>() -> u32 {
    let at = if E::SHAPE.query_bytes == 0 {
        E::SHAPE.join_at()
    } else {
        E::SHAPE.header()
    };
    E::base() + at
}

/// Where the first chunk of a staged query of 16-bit elements is; another one is an XOR with 16 times its number away. A row
/// that is not in use gives the last one.
#[inline(always)]
pub fn staged_row<E: Engine, const DIM: u32>(params: &DecodeParams, row: u32) -> u32 {
    let row = if row < params.rows { row } else { params.rows - 1 };
    chunk_at::<DIM>(queries_at::<E>(), row, 0)
}

impl<E: Mma, const DIM: u32, const T: usize, const S: usize> Tensor<E, DIM, T, S> {
    const IN_REGISTERS: bool = Self::SHAPE.query_bytes == 0;
}

impl<E: Mma, const DIM: u32, const T: usize, const S: usize> Engine for Tensor<E, DIM, T, S> {
    const SHAPE: Shape = Shape::new(SM, 2, 2, DIM);
    const CACHE_BYTES: u32 = 2;

    #[inline(always)]
    unsafe fn stage_queries(params: &DecodeParams) {
        unsafe {
            let base = shared::dynamic_base() + Self::SHAPE.header();
            // Nothing of this is kept from tile to tile.
            let mut index = opaque(thread::thread_idx_x());
            while index < ROWS * DIM / 2 {
                let (row, column) = (index / (DIM / 2), index % (DIM / 2) * 2);
                let word = query_word(params, finish::query::<Self>(row), column);
                shared::st(chunk_at::<DIM>(base, row, column / 8) + column % 8 * 2, word);
                index += Self::SHAPE.warps * 32;
            }
        }
    }

    #[inline(always)]
    fn query_at(_: &DecodeParams, row: u32, column: u32) -> u32 {
        chunk_at::<DIM>(queries_at::<Self>(), row, column / 8) + column % 8 * 2
    }

    #[inline(always)]
    unsafe fn new(params: &DecodeParams, work: &Work, staged: bool) -> Self {
        const { assert!(T as u32 * 8 == DIM && S as u32 * 16 == DIM) };
        unsafe {
            // Nothing of this is kept from tile to tile.
            let lane = opaque(thread::lane_id());
            let (group, pair) = (lane / 4, lane % 4);
            let mut queries = [[0; 4]; S];
            if Self::IN_REGISTERS && staged {
                let at = staged_row::<Self, DIM>(params, lane % 16);
                let mut s = 0;
                while s < S {
                    queries[s] = matrix::ldmatrix_x4(at ^ ((s as u32 * 2 + lane / 16) * 16));
                    s += 1;
                }
            } else if Self::IN_REGISTERS {
                let rows = [finish::query::<Self>(group), finish::query::<Self>(group + 8)];
                let mut s = 0;
                while s < S {
                    let column = s as u32 * 16 + pair * 2;
                    queries[s] = [
                        query_word(params, rows[0], column),
                        query_word(params, rows[1], column),
                        query_word(params, rows[0], column + 8),
                        query_word(params, rows[1], column + 8),
                    ];
                    s += 1;
                }
            }
            Tensor {
                queries,
                seen: Seen::new(),
                scoring: Scoring::new(params, work.head),
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
                opaque(thread::lane_id())
            } else {
                thread::lane_id()
            };
            // Two tiles of 8 keys; even and odd steps apart, for shorter chains of products.
            let mut scores = [[0.0f32; 4]; 4];
            // Matrices of queries: rows 0–7 and 8–15 of the first 8 columns, then of the others. Of keys: keys 0–7, both
            // halves of the 16 columns; keys 8–15, the same.
            let queries_at = chunk_at::<DIM>(shared::dynamic_base() + Self::SHAPE.header(), lane % 16, lane / 16);
            let keys_at = chunk_at::<DIM>(keys, lane % 8 + lane / 16 * 8, lane / 8 % 2);
            // Turing's wide heads have no register to spare for fragments of several turns or for a second chain.
            let narrow = SM == 75 && !Self::IN_REGISTERS;
            let chains = if narrow { 1 } else { 2 };
            let turns = if narrow { opaque(S as u32) as usize } else { S };
            let mut pair = 0;
            while pair < turns {
                let mut odd = 0;
                while odd < chains {
                    let s = pair + odd;
                    let a = if Self::IN_REGISTERS {
                        self.queries[s]
                    } else {
                        matrix::ldmatrix_x4(queries_at ^ (s as u32 * 32))
                    };
                    let b = matrix::ldmatrix_x4(keys_at ^ (s as u32 * 32));
                    scores[2 * odd] = E::mma(a, [b[0], b[1]], scores[2 * odd]);
                    scores[2 * odd + 1] = E::mma(a, [b[2], b[3]], scores[2 * odd + 1]);
                    odd += 1;
                }
                pair += chains;
            }
            let mut x = [0.0f32; 8];
            let mut i = 0;
            while i < 8 {
                x[i] = scores[i / 4][i % 4] + scores[2 + i / 4][i % 4];
                i += 1;
            }
            Scoring::score::<Self>([self.scoring; 2], params, 0, &mut x, first);
            self.seen.weigh(&mut x, params.rows > 8);
            let p = fragment::a_from_accumulator(&x, 0, E::pack);
            let mut t = 0;
            let lane = if wide { opaque(lane) } else { lane };
            while narrow && t < T {
                let b = matrix::ldmatrix_x2_trans(chunk_at::<DIM>(values, lane % 16, t as u32));
                self.seen.out[t] = E::mma(p, b, self.seen.out[t]);
                t += 1;
            }
            // Matrices: keys 0–7 and 8–15 of 8 columns, then of the next 8.
            let values_at = chunk_at::<DIM>(values, lane % 16, lane / 16);
            while t < T {
                let b = matrix::ldmatrix_x4_trans(values_at ^ (t as u32 * 16));
                self.seen.out[t] = E::mma(p, [b[0], b[1]], self.seen.out[t]);
                self.seen.out[t + 1] = E::mma(p, [b[2], b[3]], self.seen.out[t + 1]);
                t += 2;
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
            let to = finish::output::<Self>(warp, row, rows) + pair * 8;
            let mut t = 0;
            while t < T {
                unsafe {
                    shared::st(
                        to + t as u32 * 32,
                        [self.seen.out[t][2 * half], self.seen.out[t][2 * half + 1]],
                    )
                };
                t += 1;
            }
        }
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.seen = Seen::new();
    }
}

/// The row that this lane has output of among the four that a warp hands over in a turn, and whether it lies in the upper
/// (0) or lower (1) half of an accumulator.
#[inline(always)]
pub fn row_of_turn(turn: usize, rows: u32) -> Option<(u32, usize)> {
    let group = thread::lane_id() / 4;
    let half = turn / 2;
    let row = group + 8 * half as u32;
    (row < rows && group / JOIN_ROWS == (turn % 2) as u32).then_some((row, half))
}

/// Two neighbouring elements of the query at `row`; 0 beyond its columns, and for no row.
///
/// # Safety
/// - `row` is from [`finish::query`]; `column` is even.
#[inline(always)]
pub unsafe fn query_word(params: &DecodeParams, row: u64, column: u32) -> u32 {
    if row == 0 || column >= params.head_dim {
        return 0;
    }
    // SAFETY: forwarded to the caller.
    unsafe { global::ld_nc((row + column as u64 * 2) as *const u32) }
}

const _: () = assert!(UNBOUNDED < i32::MAX as u32 && KEYS == 16 && JOIN_ROWS == 4);

macro_rules! kernels {
    ($($(#[$attribute:meta])* $name:ident $element:ident $dim:literal)*) => {
        cuda_std::kernel! {$(
            /// Decode attention; see [`crate::decode`].
            ///
            /// # Safety
            /// - The tensors have the extents and strides that the parameters say; table entries in use are pages of the
            ///   pool; outputs and workspace overlap nothing.
            #[launch(threads = Shape::new(SM, 2, 2, $dim).warps * 32, min_blocks = 1, tensor_core = 1)]
            $(#[$attribute])*
            pub fn $name(params: DecodeParams) {
                type Kernel = Tensor<$element, $dim, { $dim / 8 }, { $dim / 16 }>;
                const N: usize = Kernel::SHAPE.totals(ROWS) as usize;
                super::stream::run::<Kernel, $element, N>(&params)
            }
        )*}
    };
}

kernels! {
    decode_f16_d64 F16 64
    decode_f16_d128 F16 128
    decode_f16_d256 F16 256
    #[cfg(not(tier = "sm_75"))]
    decode_bf16_d64 Bf16 64
    #[cfg(not(tier = "sm_75"))]
    decode_bf16_d128 Bf16 128
    #[cfg(not(tier = "sm_75"))]
    decode_bf16_d256 Bf16 256
}

cuda_std::kernel! {
    /// Folds pieces; see [`super::merge::merge`].
    ///
    /// # Safety
    /// - As for the decode kernels; the workspace holds what one of them wrote.
    #[launch(threads = super::MERGE_THREADS, barriers = 0)]
    pub fn decode_merge_f16(params: DecodeParams) {
        super::merge::merge::<F16, { super::merge::AHEAD }>(&params)
    }

    /// Folds pieces; see [`super::merge::merge`].
    ///
    /// # Safety
    /// - As for the decode kernels; the workspace holds what one of them wrote.
    #[launch(threads = super::MERGE_THREADS, barriers = 0)]
    #[cfg(not(tier = "sm_75"))]
    pub fn decode_merge_bf16(params: DecodeParams) {
        super::merge::merge::<Bf16, { super::merge::AHEAD }>(&params)
    }

    /// Folds pieces; see [`super::merge::merge`].
    ///
    /// # Safety
    /// - As for the decode kernels; the workspace holds what one of them wrote.
    #[launch(threads = super::MERGE_THREADS, barriers = 0)]
    pub fn decode_merge_f32(params: DecodeParams) {
        super::merge::merge::<f32, { super::merge::AHEAD }>(&params)
    }
}
