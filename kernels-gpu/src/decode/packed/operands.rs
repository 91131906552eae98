//! Queries, and the tokens of this launch, as operands in shared memory.

use super::{
    super::{
        DecodeParams,
        fresh::{Quad, rotated},
        work::Work,
    },
    MOST_FRESH, PACKED_KEYS, PACKED_PANEL_BYTES, PACKED_ROWS, PackedShape,
    kernel::{COMPUTING, TOGETHER, own_thread},
    produce::{Item, base, team},
};
use crate::attention::{hopper::PANEL_BYTES, params::PANEL};
use cuda_std::{barrier, global, shared, warp};

/// Where eight elements of a row are in a swizzled tile of 64 rows at `tile`, or some of them.
#[inline(always)]
pub const fn place_in(tile: u32, row: u32, column: u32) -> u32 {
    tile + column / PANEL * PACKED_PANEL_BYTES
        + row * PANEL_BYTES
        + ((column % PANEL / 8) ^ (row % 8)) * 16
        + column % 8 * 2
}

/// The row of the operand that row `row` of a tile is: up to 32 rows are eight of each warp, and eight of each scheduler's.
#[inline(always)]
pub const fn operand_row(row: u32) -> u32 {
    row % 32 / 8 * 16 + row / 32 * 8 + row % 8
}

/// Where eight elements of a token of this launch are in shared memory, keys before values: in rows of the queries that do not
/// exist, or behind all else.
#[inline(always)]
const fn fresh_at<const DIM: u32, const H: usize, const P: u32>(base: u32, line: u32, column: u32) -> u32 {
    let shape = PackedShape::new(DIM, H == 2, P);
    if H == 1 {
        place_in(base + shape.queries_at(), operand_row(32 + line), column)
    } else {
        base + shape.fresh_at() + line * DIM * 2 + column * 2
    }
}

/// Where a query is; the row exists.
#[inline(always)]
fn query_at(params: &DecodeParams, work: &Work, row: u32) -> u64 {
    let strides = &params.q_strides;
    let (index, head) = (work.query(params, row) as u64, work.query_head(params, row) as u64);
    params.q + (work.batch as u64 * strides[0] + index * strides[1] + head * strides[2]) * 2
}

/// Brings the queries of a tile into L2 while the kernel before this one still runs.
///
/// # Safety
/// - `params` are those of the launch.
#[inline(always)]
pub unsafe fn prefetch_queries<const DIM: u32, const P: u32>(params: &DecodeParams, work: &Work) {
    const LINE: u32 = 64;
    let thread = own_thread::<P>();
    let (row, column) = (thread / const { DIM / LINE }, thread % const { DIM / LINE } * LINE);
    if row < work.rows && column < params.head_dim {
        // SAFETY: an element of the queries.
        unsafe { global::prefetch_l2((query_at(params, work, row) + column as u64 * 2) as *const u8) };
    }
}

/// Where the queries of this lane's rows are, 0 for rows that do not exist.
#[inline(always)]
fn own_queries<const H: usize, const P: u32>(params: &DecodeParams, work: &Work) -> [u64; H] {
    let mut own = [0; H];
    let mut half = 0;
    while half < H {
        let row = own_thread::<P>() % 32 + 32 * half as u32;
        if row < work.rows {
            own[half] = query_at(params, work, row);
        }
        half += 1;
    }
    own
}

/// Where the query of a row is.
///
/// # Safety
/// - The warp calls this together.
#[inline(always)]
unsafe fn query_of<const H: usize>(own: &[u64; H], row: u32) -> u64 {
    // SAFETY: forwarded to the caller.
    let (low, high) = unsafe { (warp::shfl_idx(own[0], row), warp::shfl_idx(own[H - 1], row)) };
    if row < 32 { low } else { high }
}

/// Puts the queries of a tile into shared memory as an operand.
///
/// # Safety
/// - The warpgroup calls this together, and then [`meet`]; nobody reads queries any more once all are here.
#[inline(always)]
pub unsafe fn stage_queries<const DIM: u32, const H: usize, const P: u32>(params: &DecodeParams, work: &Work) {
    let thread = own_thread::<P>();
    let queries = base::<DIM, H, P>() + const { PackedShape::new(DIM, H == 2, P).queries_at() };
    let own = own_queries::<H, P>(params, work);
    // SAFETY: rows that exist, in the block's shared memory.
    unsafe {
        barrier::sync(TOGETHER + team::<P>(), COMPUTING);
        let words = const { DIM / 2 };
        let mut first = 0;
        while first < 32 * H as u32 * words {
            const AT_A_TIME: u32 = 16;
            let place = |turn: u32| {
                let index = first + turn * COMPUTING + thread;
                (index / words, index % words * 2)
            };
            let mut loaded = [0u32; AT_A_TIME as usize];
            let mut turn = 0;
            while turn < AT_A_TIME {
                let (row, column) = place(turn);
                let query = query_of(&own, row);
                if query != 0 && column < params.head_dim {
                    loaded[turn as usize] = global::ld_nc((query + column as u64 * 2) as *const u32);
                }
                turn += 1;
            }
            turn = 0;
            while turn < AT_A_TIME {
                let (row, column) = place(turn);
                if row < PACKED_ROWS {
                    shared::st(place_in(queries, operand_row(row), column), loaded[turn as usize]);
                }
                turn += 1;
            }
            first += AT_A_TIME * COMPUTING;
        }
    }
}

/// The warpgroup has staged what products read.
///
/// # Safety
/// - The warpgroup calls this together.
#[inline(always)]
pub unsafe fn meet<const P: u32>() {
    // SAFETY: forwarded to the caller.
    unsafe {
        barrier::fence_proxy_async_shared();
        barrier::sync(TOGETHER + team::<P>(), COMPUTING);
    }
}

/// [`stage_queries`] where this launch has new tokens: rotated, and so are those of its tokens that are the item's.
///
/// # Safety
/// - As for [`stage_queries`].
#[inline(always)]
pub unsafe fn stage_rotated<T: Quad, const DIM: u32, const H: usize, const P: u32>(params: &DecodeParams, item: &Item) {
    let work = &item.work;
    let thread = own_thread::<P>();
    let base = base::<DIM, H, P>();
    let queries = base + const { PackedShape::new(DIM, H == 2, P).queries_at() };
    let own = own_queries::<H, P>(params, work);
    // SAFETY: rows that exist, in the block's shared memory.
    unsafe {
        barrier::sync(TOGETHER + team::<P>(), COMPUTING);
        let items = const { DIM / 8 };
        let mut index = thread;
        while index < 32 * H as u32 * items {
            let (row, item) = (index / items, index % items);
            let from = query_of(&own, row);
            let position = (work.fresh + work.query(params, row)) as i32;
            let pair = rotated::<T>(params, from, params.head_dim, item, params.rotation.pairs, position);
            shared::st(place_in(queries, operand_row(row), pair.low_column), pair.low);
            shared::st(place_in(queries, operand_row(row), pair.high_column), pair.high);
            index += COMPUTING;
        }
        let (from, count) = fresh_tokens(work, item.begin, item.end);
        index = thread;
        while index < 2 * count * items {
            let (line, item) = (index / items, index % items);
            let is_value = line >= count;
            let token = from + line - if is_value { count } else { 0 };
            let (new, strides, width, pairs) = if is_value {
                (params.v_new, &params.v_new_strides, params.value_dim, 0)
            } else {
                (
                    params.k_new,
                    &params.k_new_strides,
                    params.head_dim,
                    params.rotation.pairs,
                )
            };
            let number = token - work.fresh;
            let offset = work.batch as u64 * strides[0] + number as u64 * strides[1] + work.head as u64 * strides[2];
            let pair = rotated::<T>(params, new + offset * 2, width, item, pairs, token as i32);
            let line = number + if is_value { MOST_FRESH } else { 0 };
            let at = |column: u32| fresh_at::<DIM, H, P>(base, line, column / 8 * 8) + column % 8 * 2;
            shared::st(at(pair.low_column), pair.low);
            shared::st(at(pair.high_column), pair.high);
            index += COMPUTING;
        }
    }
}

/// The first token of this launch among tokens `begin..end`, and how many.
#[inline(always)]
fn fresh_tokens(work: &Work, begin: u32, end: u32) -> (u32, u32) {
    let from = if begin > work.fresh { begin } else { work.fresh };
    (from, if end > from { end - from } else { 0 })
}

/// Clears the values of a step that are none of the tile's, since a weight of zero does not silence a NaN, and lays the tokens of
/// this launch among the others, here and in the cache.
///
/// # Safety
/// - The warpgroup calls this together, behind [`stage_queries`]; the stage has arrived.
#[inline(always)]
pub unsafe fn mend<const DIM: u32, const H: usize, const P: u32>(
    params: &DecodeParams,
    work: &Work,
    [keys, values]: [u32; 2],
    first: u32,
) {
    let thread = own_thread::<P>();
    let chunks = const { DIM / 8 };
    let mut chunk = thread;
    // SAFETY: inside the stage, which no product reads before all meet.
    unsafe {
        while chunk < PACKED_KEYS * chunks {
            let key = first + chunk / 8 % PACKED_KEYS;
            if key < work.low || key >= work.high {
                shared::st(values + chunk * 16, [0u32; 4]);
            }
            chunk += COMPUTING;
        }
        if params.k_new != 0 {
            let until = first + PACKED_KEYS;
            let (from, count) = fresh_tokens(work, first, if until < work.high { until } else { work.high });
            let mut index = thread;
            while index < 2 * count * chunks {
                let (line, column) = (index / chunks, index % chunks * 8);
                let is_value = line >= count;
                let token = from + line - if is_value { count } else { 0 };
                let line = token - work.fresh + if is_value { MOST_FRESH } else { 0 };
                let words: [u32; 4] = shared::ld(fresh_at::<DIM, H, P>(base::<DIM, H, P>(), line, column));
                let (tile, width, pool, steps) = if is_value {
                    (values, params.value_dim, params.v, &params.v_steps)
                } else {
                    (keys, params.head_dim, params.k, &params.k_steps)
                };
                shared::st(place_in(tile, token - first, column), words);
                if column < width {
                    let place = params.paging.place(work.batch, token);
                    let units = place.page * steps[0] + place.slot * steps[1] + work.head * steps[2];
                    global::st((pool + units as u64 * 16 + column as u64 * 2) as *mut [u32; 4], words);
                }
                index += COMPUTING;
            }
        }
        barrier::fence_proxy_async_shared();
        barrier::sync(TOGETHER + team::<P>(), COMPUTING);
    }
}
