//! What the steps of these kernels have in common.

use super::{super::KEYS, DIRECT_ROWS, DirectParams, DirectShape};
use cuda_std::{barrier::syncwarp, cp_async, shared, thread, warp};

/// Starts the copies of a warp's step: `LOOKUPS` times 16 keys, then as many values, to `stage`. `units` are their places as
/// lanes `lane`, `lane + 1`, … know them; `left` keys exist.
///
/// # Safety
/// - The warp calls this together; nobody reads the stage.
#[inline(always)]
pub unsafe fn copy<const DIM: u32, const BYTES: u32, const LOOKUPS: usize>(
    params: &DirectParams,
    stage: u32,
    units: [u32; 2],
    lane: u32,
    left: i32,
) {
    let (chunks, row_bytes) = const { (DIM * BYTES / 16, DIM * BYTES) };
    let (chunk, key) = (thread::lane_id() % chunks, thread::lane_id() / chunks);
    let to = stage + key * row_bytes + (chunk ^ key) * 16;
    let left = left - key as i32;
    let pools = [(params.k, params.k_steps[1]), (params.v, params.v_steps[1])];
    let mut pool = 0;
    while pool < 2 {
        let (base, slot) = pools[pool];
        let mut part = 0;
        while part < LOOKUPS as u32 {
            // SAFETY: forwarded to the caller.
            let units = unsafe { warp::shfl_idx(units[pool], lane + part) } + key * slot;
            let base = base + chunk as u64 * 16 + units as u64 * 16;
            let mut turn = 0;
            while turn < const { KEYS * DIM * BYTES / 512 } {
                let first = turn * 32 / chunks;
                let row = part * KEYS + first;
                let bytes = if left > row as i32 { 16 } else { 0 };
                let to = (to ^ (first % 8 * 16)) + (pool as u32 * LOOKUPS as u32 * KEYS + row) * row_bytes;
                // SAFETY: keys that exist, in the warp's stage.
                unsafe { cp_async::copy_16(to, (base + (first * slot) as u64 * 16) as *const u8, bytes) };
                turn += 1;
            }
            part += 1;
        }
        pool += 1;
    }
}

/// Makes −∞ of the scores of 16 keys from token `first` on that are not before the end of what a row sees.
#[inline(always)]
pub fn hide(x: &mut [f32; 4], first: u32, ends: [i32; 2]) {
    let mut i = 0;
    while i < 4 {
        if (first + thread::lane_id() / 4 + i as u32 / 2 * 8) as i32 >= ends[i % 2] {
            x[i] = f32::NEG_INFINITY;
        }
        i += 1;
    }
}

/// Lays tokens `from..until` of this launch, the first of which is token `fresh`, among the `keys` and `values` that arrived, the
/// first of which are token `first`; from the rows at `base`, as [`DirectShape`] has them.
///
/// # Safety
/// - The warp calls this together; the rows are there, and the stage has arrived.
#[inline(always)]
pub unsafe fn lay<const DIM: u32>(
    base: u32,
    [keys, values]: [u32; 2],
    first: u32,
    fresh: u32,
    [from, until]: [u32; 2],
) {
    if from >= until {
        return;
    }
    let (shape, chunks) = const { (DirectShape::new(DIM), DIM / 8) };
    let mut index = thread::lane_id();
    // SAFETY: forwarded to the caller.
    unsafe {
        while index < (until - from) * chunks {
            let (token, chunk) = (from + index / chunks, index % chunks);
            let at = base + shape.fresh_at() + (token - fresh) * shape.row_bytes() + chunk * 16;
            let key = token - first;
            let to = key * shape.row_bytes() + (chunk ^ key % 8) * 16;
            let k: [u32; 4] = shared::ld(at);
            shared::st(keys + to, k);
            let v: [u32; 4] = shared::ld(at + DIRECT_ROWS * shape.row_bytes());
            shared::st(values + to, v);
            index += 32;
        }
        syncwarp(warp::FULL);
    }
}

/// A lane's words of the queries that stand at `base`, as [`DirectShape`] has them.
///
/// # Safety
/// - The queries are there.
#[inline(always)]
pub unsafe fn queries_at<const DIM: u32, const S: usize>(base: u32, rows: u32) -> [[u32; 2]; S] {
    let shape = const { DirectShape::new(DIM) };
    let lane = thread::lane_id();
    let row = lane / 4;
    let row = if row < rows { row } else { rows - 1 };
    let at = base + shape.queries_at() + row * shape.query_bytes() + lane % 4 * 4;
    let mut words = [[0; 2]; S];
    let mut s = 0;
    while s < S {
        // SAFETY: forwarded to the caller.
        words[s] = unsafe { [shared::ld(at + s as u32 * 32), shared::ld(at + s as u32 * 32 + 16)] };
        s += 1;
    }
    words
}
