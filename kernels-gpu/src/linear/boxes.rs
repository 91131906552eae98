//! How `linear_cluster*` finish accumulators and store them: factor, bias, activation and gate in their registers, then
//! by `stmatrix` into boxes of 16 rows, which TMA carries to memory while the warp goes on.

use super::gemm_sm90::Half;
use super::params::*;
use crate::activation::eight::activate_short;
use cuda_std::{barrier, bulk, math::fma, matrix, shared, thread, tma, warp};

/// Bytes of a buffer for a box that a warp stores: 16 rows of up to 64 columns.
pub const BOX_BYTES: u32 = 16 * 128;

/// Where a warp's results go.
#[derive(Clone, Copy)]
pub struct Destination {
    /// The map of y.
    pub map: *const u8,
    /// Column, row and problem of the first.
    pub at: [i32; 3],
    /// Shared address of the warp's two buffers, aligned to 1024.
    pub buffers: u32,
}

/// Finishes a warp's 16 rows of the accumulator `slab`, of `slabs` below one another, and begins to store them, `2·V`
/// columns at a time. The warp's `B` buffers take turns, from the first one on in each tile.
///
/// # Safety
/// - Whole warps come here; `bias` is the shared address of that of the columns.
/// - The map's boxes have 2·V columns and 16 rows, swizzled as wide as they are; the results belong to this warp.
#[inline(always)]
pub unsafe fn store_rows<E: Half, const R: usize, const V: usize, const B: u32, const GATED: bool>(
    linear: &LinearParams,
    d: &[f32; R],
    bias: u32,
    to: Destination,
    slab: usize,
    slabs: usize,
) {
    let boxes = R / V / if GATED { 2 } else { 1 };
    let lane = thread::lane_id();
    let pair = lane % 4;
    // stmatrix: lane 8·q + r gives the place of row r of the q-th matrix; these are two of rows, two of columns.
    let (row, eight) = (lane % 16, lane / 16);
    let (line, key) = if V == 32 { (128, row % 8) } else { (64, row / 2 % 4) };
    let mut c = 0;
    while c < boxes {
        // SAFETY: forwarded to the caller; the buffer's last store has read it.
        unsafe {
            let (mut z, mut up) = ([0.0; V], [0.0; V]);
            let mut j = 0;
            while j < V / 4 {
                // Eight columns, which are two rows of two of this lane; gates and factors take turns.
                let column = c * (V / 4) + j;
                let column = if GATED { 2 * column } else { column };
                let at = bias + (8 * column as u32 + 2 * pair) * 4;
                let (this, next): ([f32; 2], [f32; 2]) =
                    (shared::ld(at), if GATED { shared::ld(at + 32) } else { [0.0; 2] });
                let mut i = 0;
                while i < 4 {
                    z[4 * j + i] = fma(d[4 * column + i], linear.alpha, this[i % 2]);
                    if GATED {
                        up[4 * j + i] = fma(d[4 * column + 4 + i], linear.alpha, next[i % 2]);
                    }
                    i += 1;
                }
                j += 1;
            }
            let mut value = activate_short(linear.activation, z);
            if GATED {
                let mut i = 0;
                while i < V {
                    value[i] *= up[i];
                    i += 1;
                }
            }
            let number = slab * boxes + c;
            let buffer = to.buffers + (number as u32 % B) * BOX_BYTES;
            if lane == 0 {
                wait_for_buffer::<B>(number as u32, (slabs * boxes) as u32);
            }
            barrier::syncwarp(warp::FULL);
            let mut j = 0;
            while j < V / 4 {
                let place = buffer + row * line + ((j as u32 + eight) ^ key) * 16;
                let v = |i: usize| E::pack(value[4 * j + i], value[4 * j + i + 1]);
                matrix::stmatrix_x4(place, [v(0), v(2), v(4), v(6)]);
                j += 2;
            }
            barrier::fence_proxy_async_shared();
            barrier::syncwarp(warp::FULL);
            if lane == 0 {
                let [column, row, batch] = to.at;
                let at = [column + (2 * V * c) as i32, row + 64 * slab as i32, batch];
                tma::store_3d(to.map, at, buffer);
                bulk::commit_group();
            }
        }
        c += 1;
    }
}

/// Waits until the buffer of box `number` of a tile of `boxes` has been read by its last store: that of the box `B`
/// before, or of this buffer's last box in the tile before.
///
/// # Safety
/// - The thread that starts the warp's stores calls this.
#[inline(always)]
unsafe fn wait_for_buffer<const B: u32>(number: u32, boxes: u32) {
    let since = if number >= B {
        B
    } else {
        let last = (boxes - 1 - number) / B * B + number;
        boxes + number - last
    };
    // SAFETY: forwarded to the caller.
    unsafe {
        match since {
            1 => bulk::wait_group_read::<0>(),
            2 => bulk::wait_group_read::<1>(),
            3 => bulk::wait_group_read::<2>(),
            _ => bulk::wait_group_read::<3>(),
        }
    }
}
