//! How output leaves the registers of a Hopper kernel.

use super::super::{
    hopper::{Half, PANEL_BYTES},
    params::{AttentionParams, flags},
    schedule::Tile,
};
use cuda_std::{
    barrier::{fence_proxy_async_shared, syncwarp},
    global,
    matrix::stmatrix_x4,
    shared::ld,
    thread,
    warp::FULL,
};

/// Writes a warp's 16 rows of 16-bit elements by way of its part of shared memory, `place` with panels so many bytes apart: a lane
/// then has 16 bytes of a row and its seven neighbours the rest of 128, at fewer instructions than an exchange of words.
///
/// # Safety
/// - All lanes of the warp execute this together.
/// - The rows from `first` below the tile's `seq_q` are rows of its sequence, `out` their sums in the layout of the accumulators.
/// - 16 rows of 128 bytes of every panel are this warp's, and nobody reads what was there; TMA may write there after
///   an arrival.
#[inline(always)]
pub unsafe fn store_staged<E: Half, const O: usize>(
    params: &AttentionParams,
    tile: &Tile,
    first: u32,
    (place, panel): (u32, u32),
    out: &[f32; O],
    factor: [f32; 2],
) {
    let lane = thread::lane_id();
    let sequence = if params.flags & flags::VARLEN != 0 {
        0
    } else {
        tile.batch as u64
    };
    // SAFETY: forwarded to the caller; rows begin at multiples of 16 bytes.
    unsafe {
        let mut i = 0;
        while i < O / 4 {
            let mut words = [0; 4];
            let mut j = 0;
            while j < 4 {
                let at = 4 * (i + j / 2) + 2 * (j % 2);
                words[j] = E::pack(out[at] * factor[j % 2], out[at + 1] * factor[j % 2]);
                j += 1;
            }
            // Matrices of rows 0 and 8, then of the next eight columns; chunks of a row as TMA's swizzle has them, free of conflicts.
            let chunk = (i as u32 + lane / 16) % 8 ^ lane % 8;
            stmatrix_x4(
                place + i as u32 / 8 * panel + lane % 16 * PANEL_BYTES + chunk * 16,
                words,
            );
            i += 2;
        }
        syncwarp(FULL);
        let start = sequence * params.out_strides[0]
            + (tile.start_q + first + lane / 8) as u64 * params.out_strides[1]
            + tile.head as u64 * params.out_strides[2]
            + (lane % 8 * 8) as u64;
        let to = params.out + start * 2;
        let mut column = 0;
        while column < O as u32 * 2 {
            let mut row = 0;
            while row < 16 {
                let chunk = lane % 8 ^ (row + lane / 8) % 8;
                let words: [u32; 4] = ld(place + column / 64 * panel + (row + lane / 8) * PANEL_BYTES + chunk * 16);
                if first + lane / 8 + row < tile.seq_q && column + lane % 8 * 8 < params.value_dim {
                    let at = row as u64 * params.out_strides[1] + column as u64;
                    global::st((to + at * 2) as *mut [u32; 4], words);
                }
                row += 4;
            }
            column += 64;
        }
        fence_proxy_async_shared();
    }
}
