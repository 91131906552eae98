//! The tokens of this step: rotated, appended and attended in one launch.
//!
//! No block waits for another. Every block rotates the queries of its tile into shared memory. Keys and values of this
//! step are never read from the cache: a block whose pieces hold such tokens rotates and rounds them as the cache would
//! hold them, keeps those bits in shared memory, and lays them among the keys that arrived when their turn comes. Of the
//! tiles that do so, the one with the token's own query writes them to the cache: it sees them whatever the window is. All
//! bits are those of a rotation, an append and an attention one after the other.

use super::{
    DecodeParams, finish,
    stream::{Engine, SM},
    work::Work,
};
use crate::tile::opaque::opaque;
use crate::{
    angles::INTERLEAVED,
    tile::element::{Bf16, Element, F16},
};
use cuda_std::{
    barrier::syncwarp,
    global::{self, Value},
    math::fma,
    shared, thread, warp,
};

/// Four neighbouring elements.
pub trait Quad: Element {
    /// As they lie in memory.
    type Bits: Value;
    /// Zeros.
    const NOTHING: Self::Bits;
    /// The elements as f32.
    fn widen(bits: Self::Bits) -> [f32; 4];
    /// The nearest elements.
    fn narrow(values: [f32; 4]) -> Self::Bits;
}

impl Quad for f32 {
    type Bits = [f32; 4];
    const NOTHING: [f32; 4] = [0.0; 4];

    #[inline(always)]
    fn widen(bits: [f32; 4]) -> [f32; 4] {
        bits
    }

    #[inline(always)]
    fn narrow(values: [f32; 4]) -> [f32; 4] {
        values
    }
}

macro_rules! sixteen_bits {
    ($($type:ident)*) => {$(
        impl Quad for $type {
            type Bits = [u32; 2];
            const NOTHING: [u32; 2] = [0; 2];

            #[inline(always)]
            fn widen([a, b]: [u32; 2]) -> [f32; 4] {
                let [a, b, c, d, ..] = Self::unpack8(Self::of_words([a, b, 0, 0]));
                [a, b, c, d]
            }

            #[inline(always)]
            fn narrow([a, b, c, d]: [f32; 4]) -> [u32; 2] {
                [Self::pack(a, b), Self::pack(c, d)]
            }
        }
    )*};
}

sixteen_bits! { F16 Bf16 }

/// Whether this launch has new tokens.
#[inline(always)]
pub fn is_on<E: Engine>(params: &DecodeParams) -> bool {
    E::SHAPE.appends(SM) && params.k_new != 0
}

/// Where the keys, then the values of this step are in shared memory, in rows of a stage's width.
#[inline(always)]
fn rows_at<E: Engine>(params: &DecodeParams) -> u32 {
    E::base() + E::SHAPE.shared_bytes(params.rows)
}

/// What becomes of two quads of a row.
pub struct Pair<B> {
    /// The first.
    pub low: B,
    /// The second.
    pub high: B,
    /// Where the first begins in the row.
    pub low_column: u32,
    /// Where the second begins.
    pub high_column: u32,
}

/// Four pairs of elements, rotated.
#[inline(always)]
pub fn turned(x: [f32; 4], y: [f32; 4], sin: [f32; 4], cos: [f32; 4]) -> ([f32; 4], [f32; 4]) {
    let (mut u, mut w) = ([0.0; 4], [0.0; 4]);
    let mut i = 0;
    while i < 4 {
        u[i] = fma(x[i], cos[i], -(y[i] * sin[i]));
        w[i] = fma(y[i], cos[i], x[i] * sin[i]);
        i += 1;
    }
    (u, w)
}

/// The two quads number `item` of a row of `width` elements at `from` (0: of no row), rotated for a position.
///
/// # Safety
/// - The row is there; `params` are those of the launch.
#[inline(always)]
pub unsafe fn rotated<O: Quad>(
    params: &DecodeParams,
    from: u64,
    width: u32,
    item: u32,
    pairs: u32,
    position: i32,
) -> Pair<O::Bits> {
    let rotation = &params.rotation;
    let interleaved = rotation.flags & INTERLEAVED != 0;
    let first = item * 4;
    let split = first < pairs && !interleaved;
    let (low_column, high_column) = if split {
        (first, first + pairs)
    } else {
        (2 * first, 2 * first + 4)
    };
    let mut pair = Pair {
        low: O::NOTHING,
        high: O::NOTHING,
        low_column,
        high_column,
    };
    // Widths are multiples of 8.
    if from == 0 || low_column >= width {
        return pair;
    }
    let size = size_of::<O>() as u64;
    // SAFETY: of the row.
    unsafe {
        pair.low = global::ld_nc((from + low_column as u64 * size) as *const O::Bits);
        pair.high = global::ld_nc((from + high_column as u64 * size) as *const O::Bits);
        if first < pairs {
            let (sin, cos) = rotation.sin_cos4::<O>(position, first);
            let (a, b) = (O::widen(pair.low), O::widen(pair.high));
            let (x, y) = if interleaved {
                ([a[0], a[2], b[0], b[2]], [a[1], a[3], b[1], b[3]])
            } else {
                (a, b)
            };
            let (mut u, mut w) = turned(x, y, sin, cos);
            if interleaved {
                (u, w) = ([u[0], w[0], u[1], w[1]], [u[2], w[2], u[3], w[3]]);
            }
            (pair.low, pair.high) = (O::narrow(u), O::narrow(w));
        }
    }
    pair
}

/// Stores a quad of a token where the block keeps it and, unless `cache` is 0, in the cache, as the cache holds it.
#[inline(always)]
unsafe fn keep<E: Engine, O: Quad>(bits: O::Bits, at: u32, cache: u64, column: u32, _scale: f32) {
    let offset = column * E::CACHE_BYTES;
    // SAFETY: forwarded to the caller.
    unsafe {
        if E::CACHE_BYTES as usize == size_of::<O>() {
            shared::st(at + offset, bits);
            if cache != 0 {
                global::st((cache + offset as u64) as *mut O::Bits, bits);
            }
        }
        #[cfg(tier = "sm_90a")]
        if E::CACHE_BYTES == 1 {
            use crate::tile::quantise::quantise2;
            let [a, b, c, d] = O::widen(bits);
            let word = quantise2(a, b, _scale) as u32 | (quantise2(c, d, _scale) as u32) << 16;
            shared::st(at + offset, word);
            if cache != 0 {
                global::st((cache + offset as u64) as *mut u32, word);
            }
        }
    }
}

/// Puts the rotated queries of a tile into shared memory, and of its tokens `begin..end` those of this step; writes these to the
/// cache. Barriers lie around it.
///
/// # Safety
/// - All threads of the block call this together, with what [`finish::begin`] was given.
#[inline(always)]
pub unsafe fn stage<E: Engine, O: Quad>(params: &DecodeParams, work: &Work, begin: u32, end: u32) {
    unsafe {
        let items = const { E::SHAPE.dim / 8 };
        // Engines that read queries from shared memory each time read all rows.
        let rows = if E::SHAPE.query_bytes == 0 {
            params.rows
        } else {
            E::ROWS
        };
        let first = if begin > work.fresh { begin } else { work.fresh };
        let count = if end > first { end - first } else { 0 };
        let size = size_of::<O>() as u64;
        // Nothing of this is kept from tile to tile.
        let mut index = opaque(E::thread());
        while index < (rows + 2 * count) * items {
            let (line, item) = (index / items, index % items);
            if line < rows {
                let position = (work.fresh + work.query(params, line)) as i32;
                let from = finish::query::<E>(line);
                let pair = rotated::<O>(params, from, params.head_dim, item, params.rotation.pairs, position);
                shared::st(E::query_at(params, line, pair.low_column), pair.low);
                shared::st(E::query_at(params, line, pair.high_column), pair.high);
            } else {
                let values = line - rows >= count;
                let token = first + (line - rows) - if values { count } else { 0 };
                let number = token - work.fresh;
                let (new, strides, width, pairs, pool, steps, scales) = if values {
                    (
                        params.v_new,
                        &params.v_new_strides,
                        params.value_dim,
                        0,
                        params.v,
                        &params.v_steps,
                        params.v_scale,
                    )
                } else {
                    (
                        params.k_new,
                        &params.k_new_strides,
                        params.head_dim,
                        params.rotation.pairs,
                        params.k,
                        &params.k_steps,
                        params.k_scale,
                    )
                };
                let offset =
                    work.batch as u64 * strides[0] + number as u64 * strides[1] + work.head as u64 * strides[2];
                let pair = rotated::<O>(params, new + offset * size, width, item, pairs, token as i32);
                // The tile of the query at that position.
                let query = token + params.seq_q - work.length as u32;
                let mut cache = 0;
                // And the group of warps whose turn its piece is.
                let shift = work.size.trailing_zeros();
                let own =
                    E::SHAPE.groups == 1 || ((token >> shift) - (work.low >> shift)) % E::SHAPE.groups == E::group();
                if own && query * params.group / E::SHAPE.rows == work.tile && pair.low_column < width {
                    let place = params.paging.place(work.batch, token);
                    let units = place.page * steps[0] + place.slot * steps[1] + work.head * steps[2];
                    cache = pool + units as u64 * 16;
                }
                let mut scale = 1.0;
                if E::CACHE_BYTES == 1 && scales != 0 {
                    scale = global::ld_nc((scales + work.head as u64 * 4) as *const f32);
                }
                let row = number + if values { params.seq_q } else { 0 };
                let at = rows_at::<E>(params) + row * E::SHAPE.row_bytes;
                keep::<E, O>(pair.low, at, cache, pair.low_column, scale);
                keep::<E, O>(pair.high, at, cache, pair.high_column, scale);
            }
            index += const { E::SHAPE.warps * 32 };
        }
    }
}

/// Lays the tokens of this step among the keys and values of a step from token `first`, if some are among them; `begin`, `end` and
/// the first of them are those of the segment.
///
/// # Safety
/// - The warp calls this together; `keys` is its stage, which has arrived.
#[inline(always)]
pub unsafe fn lay<E: Engine>(params: &DecodeParams, [begin, end, fresh]: [u32; 3], keys: u32, first: u32) {
    let from = if first > fresh { first } else { fresh };
    let from = if from > begin { from } else { begin };
    let keys_here = const { E::SHAPE.keys };
    let until = if first + keys_here < end {
        first + keys_here
    } else {
        end
    };
    if from >= until {
        return;
    }
    let chunks = const { E::SHAPE.row_bytes / 16 };
    let mut index = opaque(thread::lane_id());
    while index < (until - from) * chunks {
        let (token, chunk) = (from + index / chunks, index % chunks);
        let at = rows_at::<E>(params) + (token - fresh) * E::SHAPE.row_bytes + chunk * 16;
        let key = token - first;
        let to = keys + key * E::SHAPE.row_bytes + (chunk ^ E::swizzle(key)) * 16;
        // SAFETY: `stage` and a barrier lie before; the warp's copies into its stage have arrived.
        unsafe {
            let k: [u32; 4] = shared::ld(at);
            shared::st(to, k);
            let v: [u32; 4] = shared::ld(at + params.seq_q * E::SHAPE.row_bytes);
            shared::st(to + keys_here * E::SHAPE.row_bytes, v);
        }
        index += 32;
    }
    // SAFETY: the warp is here together.
    unsafe { syncwarp(warp::FULL) };
}
