//! What happens to a tile of scores between the product and the softmax: softcap, ALiBi and the mask, in the layout of
//! the accumulators (`tile::fragment`), of which a thread holds parts of two rows.

use super::{
    mask::Mask,
    params::{AttentionParams, flags},
    schedule::Tile,
};
use crate::tile::opaque::opaque;
use cuda_std::{
    global,
    math::{ex2, fma, rcp},
    thread, warp,
};

/// What a computing thread knows of its two rows.
pub struct Rows {
    /// Row of register 0 in the sequence; the other is 8 further.
    first: i32,
    /// First column of register 0 in a tile.
    column: i32,
    /// Sequence times heads and head: whose dropout it is.
    plane: u32,
    mask: Mask,
    scale: f32,
    softcap: f32,
    slope: f32,
}

impl Rows {
    /// This thread's rows of the warp whose first row is `warp_row`.
    ///
    /// # Safety
    /// - `params` are those of the launch, `tile` one of its tiles.
    #[inline(always)]
    pub unsafe fn new<const EXTENDED: bool>(params: &AttentionParams, tile: &Tile, warp_row: u32) -> Self {
        // SAFETY: forwarded to the caller.
        unsafe { Self::of_plane::<EXTENDED>(params, (tile.batch, tile.head), tile.mask, warp_row) }
    }

    /// The same by query plane (batch, head) and mask; with [`Mask::transposed`] rows are keys and columns queries.
    ///
    /// # Safety
    /// - `params` are those of the launch, the plane one of its planes.
    #[inline(always)]
    pub unsafe fn of_plane<const EXTENDED: bool>(
        params: &AttentionParams,
        (batch, head): (u32, u32),
        mask: Mask,
        warp_row: u32,
    ) -> Self {
        let lane = thread::lane_id();
        let slope = if EXTENDED && params.alibi_slopes != 0 {
            let at = batch as u64 * params.alibi_batch_stride + head as u64;
            // SAFETY: there is a slope for every head.
            unsafe { global::ld_nc((params.alibi_slopes + at * 4) as *const f32) }
        } else {
            0.0
        };
        Rows {
            first: (warp_row + lane / 4) as i32,
            column: (lane % 4 * 2) as i32,
            plane: batch * params.heads_q + head,
            mask,
            scale: params.scale,
            softcap: params.softcap,
            slope,
        }
    }

    /// The same thread's rows in the fragment that lies `rows` rows below.
    #[inline(always)]
    pub fn below(&self, rows: i32) -> Self {
        Rows {
            first: self.first + rows,
            ..*self
        }
    }

    /// The plane (batch, head) and the row of register 0.
    #[inline(always)]
    pub fn place(&self) -> (u32, u32) {
        (self.plane, self.first as u32)
    }

    /// Softcap and ALiBi: raw scores become natural logits. Each is a loop of its own, so that one branch serves all.
    #[inline(always)]
    pub fn extend<const S: usize>(&self, scores: &mut [f32; S], first_key: i32) {
        let mut i = 0;
        if self.softcap > 0.0 {
            // As in `bent`, with `c · (1 − 2r)` in one step.
            let steepness = self.scale * (2.0 * core::f32::consts::LOG2_E) / self.softcap;
            let twice = -2.0 * self.softcap;
            while i < S {
                scores[i] = fma(twice, rcp(1.0 + ex2(scores[i] * steepness)), self.softcap);
                i += 1;
            }
        } else {
            while i < S {
                scores[i] *= self.scale;
                i += 1;
            }
        }
        if self.slope != 0.0 {
            // Distances as floats: exact, or as near as a float is.
            let position = self.position(first_key) as f32;
            let mut i = 0;
            while i < S {
                let ahead = position + ((i as i32 / 2 % 2) * 8 - (i as i32 / 4 * 8 + i as i32 % 2)) as f32;
                scores[i] = fma(-self.slope, ahead.abs(), scores[i]);
                i += 1;
            }
        }
    }

    /// Position of register 0's row among the columns of the tile that begins at `first_key`, from its own column.
    #[inline(always)]
    pub fn position(&self, first_key: i32) -> i32 {
        self.first + self.mask.shift - first_key - self.column
    }

    /// Scale and softcap.
    #[inline(always)]
    pub fn bent(&self, score: f32) -> f32 {
        let x = score * self.scale;
        if self.softcap > 0.0 {
            // tanh by exponential and reciprocal: tanh.approx is good to 11 bits only.
            let e = ex2(x * (2.0 * core::f32::consts::LOG2_E) / self.softcap);
            self.softcap * (1.0 - 2.0 * rcp(1.0 + e))
        } else {
            x
        }
    }

    /// ALiBi for register `i`, where register 0 is at [`position`](Self::position).
    #[inline(always)]
    pub fn biased(&self, logit: f32, position: i32, i: usize) -> f32 {
        let ahead = position + (i as i32 / 2 % 2) * 8 - (i as i32 / 4 * 8 + i as i32 % 2);
        let distance = if ahead < 0 { -ahead } else { ahead };
        logit - self.slope * distance as f32
    }

    /// The derivative of [`bent`](Self::bent) by the scaled score, from its value.
    #[inline(always)]
    pub fn slope_of_bent(&self, logit: f32) -> f32 {
        if self.softcap > 0.0 {
            let tanh = logit / self.softcap;
            1.0 - tanh * tanh
        } else {
            1.0
        }
    }

    /// Scores of keys beyond each row's last become −∞.
    #[inline(always)]
    pub fn mask_end<const S: usize>(&self, scores: &mut [f32; S], first_key: i32) {
        let bounds = [0, 8].map(|below| self.mask.end(self.first + below) - first_key - self.column);
        mask_columns(scores, |h, column| column < bounds[h]);
    }

    /// Scores of keys before each row's first become −∞.
    #[inline(always)]
    pub fn mask_begin<const S: usize>(&self, scores: &mut [f32; S], first_key: i32) {
        let bounds = [0, 8].map(|below| self.mask.begin(self.first + below) - first_key - self.column);
        mask_columns(scores, |h, column| column >= bounds[h]);
    }

    /// As [`mask`](Self::mask), in fewer instructions and one more register: what the forward kernels can afford.
    #[inline(always)]
    pub fn mask_tile<const S: usize>(&self, scores: &mut [f32; S], first_key: i32) {
        let mut h = 0;
        while h < 2 {
            let row = self.first + 8 * h as i32;
            let (begin, end) = (self.mask.begin(row), self.mask.end(row));
            // Forgotten, or the compiler asks for each score whether the row has keys at all.
            let width = opaque(if end > begin { (end - begin) as u32 } else { 0 });
            let origin = (first_key + self.column - begin) as u32;
            let mut i = 2 * h;
            while i < S {
                let inside = origin.wrapping_add((i / 4 * 8 + i % 2) as u32) < width;
                scores[i] = if inside { scores[i] } else { f32::NEG_INFINITY };
                i += if i % 2 == 0 { 1 } else { 3 };
            }
            h += 1;
        }
    }

    /// Masked scores become −∞.
    #[inline(always)]
    pub fn mask<const S: usize>(&self, scores: &mut [f32; S], first_key: i32) {
        self.mask_within(scores, first_key, i32::MAX);
    }

    /// The same, and all scores of rows from `rows` on, which do not exist.
    #[inline(always)]
    pub fn mask_within<const S: usize>(&self, scores: &mut [f32; S], first_key: i32, rows: i32) {
        let mut h = 0;
        while h < 2 {
            let row = self.first + 8 * h as i32;
            let (begin, end) = (self.mask.begin(row), self.mask.end(row));
            let width = if end > begin && row < rows {
                (end - begin) as u32
            } else {
                0
            };
            let origin = first_key + self.column - begin;
            let mut i = 0;
            while i < S / 4 {
                let mut j = 0;
                while j < 2 {
                    let inside = ((origin + (8 * i + j) as i32) as u32) < width;
                    let at = 4 * i + 2 * h + j;
                    scores[at] = if inside { scores[at] } else { f32::NEG_INFINITY };
                    j += 1;
                }
                i += 1;
            }
            h += 1;
        }
    }
}

/// Scores whose column, counted from the thread's first, is not `seen` by its row 0 or 1 become −∞.
#[inline(always)]
fn mask_columns<const S: usize>(scores: &mut [f32; S], seen: impl Fn(usize, i32) -> bool) {
    let mut i = 0;
    while i < S {
        let column = (i / 4 * 8 + i % 2) as i32;
        scores[i] = if seen(i / 2 % 2, column) {
            scores[i]
        } else {
            f32::NEG_INFINITY
        };
        i += 1;
    }
}

/// Writes a warp's 16-bit rows and, once a quad, the row's LSE. The row is that of registers `4i + 2h` and the next;
/// `pack` rounds two neighbours into a word. Rows that are not `live` do not exist.
///
/// The lanes of a quad, which hold two columns of eight each, exchange them first: a lane then writes 16 bytes, a quad
/// whole sectors. Without `exchange`, for kernels whose registers are full, each writes what it holds.
///
/// # Safety
/// - All lanes of the warp execute this together.
/// - A live row is a row of the tile's sequence, `out` its sums in the layout of the accumulators.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a row is just that")]
pub unsafe fn store_row<const O: usize>(
    params: &AttentionParams,
    tile: &Tile,
    row: u32,
    live: bool,
    exchange: bool,
    h: usize,
    out: &[f32; O],
    factor: f32,
    lse: f32,
    pack: impl Fn(f32, f32) -> u32,
) {
    let start = start_of_row(params, tile, row);
    // SAFETY: forwarded to the caller.
    unsafe {
        let mut i = 0;
        while i < O / 4 {
            store_columns(params, start, live, exchange, [h, i], out, factor, &pack);
            i += 4;
        }
        store_lse(params, tile, row, live, lse);
    }
}

/// Where a row of O begins, in elements.
#[inline(always)]
pub fn start_of_row(params: &AttentionParams, tile: &Tile, row: u32) -> u64 {
    let row = (tile.start_q + row) as u64;
    sequence(params, tile) * params.out_strides[0]
        + row * params.out_strides[1]
        + tile.head as u64 * params.out_strides[2]
}

/// The sequence of a tensor's row: packed ones are one.
#[inline(always)]
fn sequence(params: &AttentionParams, tile: &Tile) -> u64 {
    if params.flags & flags::VARLEN != 0 {
        0
    } else {
        tile.batch as u64
    }
}

/// The part of [`store_row`] that writes columns `8i` to `8i + 31` of the row that begins at `start`.
///
/// # Safety
/// - As for [`store_row`].
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "as for a row")]
pub unsafe fn store_columns<const O: usize>(
    params: &AttentionParams,
    start: u64,
    live: bool,
    exchange: bool,
    [h, i]: [usize; 2],
    out: &[f32; O],
    factor: f32,
    pack: &impl Fn(f32, f32) -> u32,
) {
    let lane = thread::lane_id();
    // SAFETY: a live row exists; columns below the value dim, a multiple of 8, are its own; rows begin at multiples of
    // 16 bytes.
    unsafe {
        let mut words = [0; 4];
        let mut j = 0;
        while j < 4 {
            let at = 4 * (i + j) + 2 * h;
            words[j] = pack(out[at] * factor, out[at + 1] * factor);
            j += 1;
        }
        if exchange {
            let words = transpose_quad(words);
            let column = 8 * (i as u32 + lane % 4);
            if live && column < params.value_dim {
                global::st((params.out + (start + column as u64) * 2) as *mut [u32; 4], words);
            }
        } else {
            let mut j = 0;
            while j < 4 {
                let column = 8 * (i + j) as u32 + lane % 4 * 2;
                if live && column < params.value_dim {
                    global::st((params.out + (start + column as u64) * 2) as *mut u32, words[j]);
                }
                j += 1;
            }
        }
    }
}

/// The part of [`store_row`] that writes the LSE, where one is wanted.
///
/// # Safety
/// - As for [`store_row`].
#[inline(always)]
pub unsafe fn store_lse(params: &AttentionParams, tile: &Tile, row: u32, live: bool, lse: f32) {
    if live && params.lse != 0 && thread::lane_id() % 4 == 0 {
        let row = (tile.start_q + row) as u64;
        let at = sequence(params, tile) * params.lse_strides[0] + tile.head as u64 * params.lse_strides[1] + row;
        // SAFETY: a row that exists.
        unsafe { global::st((params.lse + at * 4) as *mut f32, lse) };
    }
}

/// Word `j` of lane `l` of a quad becomes word `l` of lane `j`.
///
/// # Safety
/// - All lanes of the warp execute this together.
#[inline(always)]
pub unsafe fn transpose_quad(words: [u32; 4]) -> [u32; 4] {
    let lane = thread::lane_id();
    let [a, b, c, d] = words;
    // SAFETY: forwarded to the caller.
    unsafe {
        let upper = lane & 2 != 0;
        let (x, y) = if upper { (a, b) } else { (c, d) };
        let (x, y) = (warp::shfl_bfly(x, 2), warp::shfl_bfly(y, 2));
        let (a, b, c, d) = if upper { (x, y, c, d) } else { (a, b, x, y) };
        let odd = lane & 1 != 0;
        let (x, y) = if odd { (a, c) } else { (b, d) };
        let (x, y) = (warp::shfl_bfly(x, 1), warp::shfl_bfly(y, 1));
        if odd { [x, b, y, d] } else { [a, x, c, y] }
    }
}
