//! The order in which tiles of keys add their part to a tile of dQ, and where that is kept.
//!
//! Sums of floats depend on their order, so each tile of queries has one: its tiles of keys ascending, or descending
//! where a mask lets early queries see early keys only: there a tile of keys begins at its diagonal, and the next one
//! has passed every tile of queries a step before. A counter says how many have added. Tiles of keys are taken in the same
//! order, from a counter: whom a block waits for has been taken before, so somebody is at work on it.
//!
//! Without a mask all tiles of keys would begin at the first tile of queries, each a step behind the one before it, where
//! whatever holds one up holds up all. There `ring` of them go round the tiles of queries together instead: tile `j` of a
//! ring begins at tile `j·n/ring` of `n`, so who adds to a tile before it did so steps ago. They wait for each other, so
//! the host takes no larger rings than there are multiprocessors for all heads whose tiles are taken in turns.

use super::{
    gradient::Work,
    params::{ASCENDING, BackwardParams, DESCENDING, flags},
    ring::Ring,
    schedule::Sequence,
};
use crate::tile::opaque::opaque;

/// How many tiles of keys there are to take.
#[inline(always)]
pub fn tiles(params: &BackwardParams) -> u32 {
    params.attention.batch * params.heads_kv * params.key_tiles
}

/// The tile of `KEYS` keys of place `index` in the order.
///
/// # Safety
/// - `params` are those of the launch: no extent is 0; `index` is below [`tiles`].
#[inline(always)]
pub unsafe fn tile<const KEYS: u32>(params: &BackwardParams, index: u32) -> Work {
    // Found again at each call: kernels that call this often have no registers to keep what follows from parameters.
    let planes = opaque(params.attention.batch) * params.heads_kv;
    // SAFETY: forwarded to the caller; a section that exists has a head.
    unsafe {
        core::hint::assert_unchecked(params.section != 0 && params.key_tiles != 0);
        let per_section = opaque(params.section) * params.key_tiles;
        core::hint::assert_unchecked(per_section != 0);
        let section = index / per_section;
        let rest = index - section * per_section;
        let first = section * params.section;
        let width = if planes - first < params.section {
            planes - first
        } else {
            params.section
        };
        core::hint::assert_unchecked(width != 0);
        let (tile, plane) = (rest / width, first + rest % width);
        let tile = if descending(params) {
            params.key_tiles - 1 - tile
        } else {
            tile
        };
        Work::of_keys(params, opaque(params.attention.flags), plane, tile * KEYS)
    }
}

/// The place of the first tile of queries of a sequence and head in `statistics` and `dq_sum`.
#[inline(always)]
pub fn place(params: &BackwardParams, batch: u32, start_q: u32, head: u32) -> u32 {
    let forward = &params.attention;
    // SAFETY: the host gives the tile of the kernel.
    unsafe { core::hint::assert_unchecked(params.query_tile != 0) };
    let (plane, first) = if forward.flags & flags::VARLEN != 0 {
        // Packed sequences begin anywhere: each may need one tile more than its tokens fill.
        (head, start_q / params.query_tile + batch)
    } else {
        (batch * forward.heads_q + head, 0)
    };
    plane * params.plane_tiles + first
}

/// The index of the counter of a sequence's and head's first tile of queries.
#[inline(always)]
pub fn counter(params: &BackwardParams, batch: u32, head: u32) -> u32 {
    (batch * params.attention.heads_q + head) * params.query_tiles
}

/// The address of a counter.
#[inline(always)]
pub fn address(params: &BackwardParams, counter: u32) -> *mut u32 {
    (params.turns + 4 * counter as u64) as *mut u32
}

/// The tile of queries, `begin` or one after it, at which the tile of keys `work` begins.
///
/// # Safety
/// - `params` are those of the launch, `work` one of its tiles.
#[inline(always)]
pub unsafe fn start<const KEYS: u32>(params: &BackwardParams, work: &Work, begin: i32) -> i32 {
    if !rings(params) {
        return begin;
    }
    // SAFETY: forwarded to the caller.
    unsafe { ring::<KEYS>(params, work) }.begin() as i32
}

/// The tile of queries after tile `n` of `begin..end`.
#[inline(always)]
pub fn next(n: i32, (begin, end): (i32, i32)) -> i32 {
    if n + 1 == end { begin } else { n + 1 }
}

/// Whether a tile of queries takes tiles of keys from the last to the first.
#[inline(always)]
fn descending(params: &BackwardParams) -> bool {
    // A comparison with 0 takes no register, and those of sm_80 are all in use.
    if cfg!(tier = "sm_90a") {
        params.ring == DESCENDING
    } else {
        params.ring != ASCENDING
    }
}

/// Whether tiles of keys go round in rings: on Hopper only.
#[inline(always)]
fn rings(params: &BackwardParams) -> bool {
    // Kernels of sm_80 are not persistent, so nothing says that those of a ring are at work together.
    cfg!(tier = "sm_90a") && params.ring != ASCENDING && params.ring != DESCENDING
}

/// The place of a tile of keys in its ring.
#[inline(always)]
unsafe fn ring<const KEYS: u32>(params: &BackwardParams, work: &Work) -> Ring {
    // SAFETY: forwarded to the caller: there are rings and tiles.
    unsafe { Ring::of(work.first / KEYS, params.key_tiles, params.ring, params.query_tiles) }
}

/// How many tiles of keys add to tile `n` of queries before the tile `work` does.
///
/// # Safety
/// - `params` are those of the launch, `work` one of its tiles.
#[inline(always)]
pub unsafe fn before<const KEYS: u32>(params: &BackwardParams, work: &Work, n: u32) -> u32 {
    if rings(params) {
        // SAFETY: forwarded to the caller.
        return unsafe { ring::<KEYS>(params, work) }.before(n);
    }
    // SAFETY: forwarded to the caller.
    let sequence = unsafe { Sequence::at(&params.attention, opaque(work.batch)) };
    let (lowest, highest) = of_queries::<KEYS>(params, &sequence, n);
    let mine = (work.first / KEYS) as i32;
    let before = if descending(params) {
        highest - 1 - mine
    } else {
        mine - lowest
    };
    before as u32
}

/// The tiles of `KEYS` keys that add to a tile of queries, as (first, one past the last).
#[inline(always)]
pub fn of_queries<const KEYS: u32>(params: &BackwardParams, sequence: &Sequence, tile: u32) -> (i32, i32) {
    let first = tile * params.query_tile;
    let end = if first + params.query_tile < sequence.seq_q {
        first + params.query_tile
    } else {
        sequence.seq_q
    };
    sequence.mask.tiles(first as i32, end as i32 - 1, KEYS as i32)
}
