//! How `linear_cluster*` finish accumulators and store them: factor, bias, activation and gate in their registers, then
//! by `stmatrix` into boxes of 16 rows, which TMA carries to memory while the warp goes on.

use super::gemm_sm90::Half;
use super::params::*;
use crate::activation::{GELU_TANH, IDENTITY, SILU, eight::activate_short};
use cuda_std::{barrier, bulk, math::fma, matrix, shared, thread, warp};

/// Bytes of a buffer for a box that a warp stores: 16 rows of up to 64 columns.
pub const BOX_BYTES: u32 = 16 * 128;

/// Where a warp's results go.
#[derive(Clone, Copy)]
pub struct Destination {
    /// The map of y.
    pub map: *const u8,
    /// Column, row and problem of the first.
    pub at: [i32; 3],
    /// Shared address of the warp's buffers, aligned to 1024.
    pub buffers: u32,
    /// The buffer of a tile's first box.
    pub first: u32,
}

/// Finishes a warp's 16 rows of the accumulator `slab`, of `slabs` below one another, and begins to store them, `2·V`
/// columns at a time. The warp's `B` buffers take turns, in each tile from the same one on.
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
    let at = [slab, slabs];
    // Each activation has a loop of its own, without branches.
    // SAFETY: forwarded to the caller.
    unsafe {
        match linear.activation {
            IDENTITY => store_rows_by::<E, R, V, B, GATED>(
                linear,
                d,
                bias,
                to,
                at,
                #[inline(always)]
                |z| z,
            ),
            SILU => store_rows_by::<E, R, V, B, GATED>(
                linear,
                d,
                bias,
                to,
                at,
                #[inline(always)]
                |z| activate_short(SILU, z),
            ),
            GELU_TANH => store_rows_by::<E, R, V, B, GATED>(
                linear,
                d,
                bias,
                to,
                at,
                #[inline(always)]
                |z| activate_short(GELU_TANH, z),
            ),
            other => store_rows_by::<E, R, V, B, GATED>(
                linear,
                d,
                bias,
                to,
                at,
                #[inline(always)]
                |z| activate_short(other, z),
            ),
        }
    }
}

/// [`store_rows`] with this activation. A box's values are computed before those of the one in front of it are stored, so
/// that neither waits for the other.
///
/// # Safety
/// - As for `store_rows`.
#[inline(always)]
unsafe fn store_rows_by<E: Half, const R: usize, const V: usize, const B: u32, const GATED: bool>(
    linear: &LinearParams,
    d: &[f32; R],
    bias: u32,
    to: Destination,
    [slab, slabs]: [usize; 2],
    activate: impl Fn([f32; V]) -> [f32; V],
) {
    let boxes = R / V / if GATED { 2 } else { 1 };
    let lane = thread::lane_id();
    let pair = lane % 4;
    // stmatrix: lane 8·q + r gives the place of row r of the q-th matrix; these are two of rows, two of columns.
    let (row, eight) = (lane % 16, lane / 16);
    let (line, key) = if V == 32 { (128, row % 8) } else { (64, row / 2 % 4) };
    let values = #[inline(always)]
    |c: usize| -> [u32; 16] {
        let (mut z, mut up) = ([0.0; V], [0.0; V]);
        let mut j = 0;
        while j < V / 4 {
            // Eight columns, which are two rows of two of this lane; gates and factors take turns.
            let column = c * (V / 4) + j;
            let column = if GATED { 2 * column } else { column };
            let at = bias + (8 * column as u32 + 2 * pair) * 4;
            // SAFETY: forwarded to the caller.
            let (this, next): ([f32; 2], [f32; 2]) =
                unsafe { (shared::ld(at), if GATED { shared::ld(at + 32) } else { [0.0; 2] }) };
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
        let mut value = activate(z);
        if GATED {
            let mut i = 0;
            while i < V {
                value[i] *= up[i];
                i += 1;
            }
        }
        let mut words = [0; 16];
        let mut i = 0;
        while i < V / 2 {
            words[i] = E::pack(value[2 * i], value[2 * i + 1]);
            i += 1;
        }
        words
    };
    // 192 columns of sums leave no registers for that.
    let early = R <= 64;
    let mut next = if early { values(0) } else { [0; 16] };
    let mut c = 0;
    while c < boxes {
        // SAFETY: forwarded to the caller; the buffer's last store has read it.
        unsafe {
            let words = if early { next } else { values(c) };
            if early && c + 1 < boxes {
                next = values(c + 1);
            }
            let number = slab * boxes + c;
            let buffer = to.buffers + ((to.first + number as u32) % B) * BOX_BYTES;
            // Lanes that store nothing wait for nothing.
            wait_for_buffer::<B>(number as u32, (slabs * boxes) as u32);
            barrier::syncwarp(warp::FULL);
            let mut j = 0;
            while j < V / 4 {
                let place = buffer + row * line + ((j as u32 + eight) ^ key) * 16;
                let w = [words[2 * j], words[2 * j + 1], words[2 * j + 2], words[2 * j + 3]];
                matrix::stmatrix_x4(place, w);
                j += 2;
            }
            barrier::fence_proxy_async_shared();
            barrier::syncwarp(warp::FULL);
            let [column, row, batch] = to.at;
            let at = [column + (2 * V * c) as i32, row + 64 * slab as i32, batch];
            store_if(to.map, at, buffer, lane == 0);
            bulk::commit_group();
        }
        c += 1;
    }
}

/// `tma::store_3d` by the lane where `condition` holds.
///
/// # Safety
/// - As for `tma::store_3d`.
#[inline(always)]
unsafe fn store_if(map: *const u8, [x, y, z]: [i32; 3], from: u32, condition: bool) {
    // SAFETY: forwarded to the caller.
    unsafe {
        core::arch::asm!("{{", ".reg .pred p;", "setp.ne.b32 p, {condition}, 0;",
            "@p cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [{map}, {{{x}, {y}, {z}}}], [{from}];",
            "}}", condition = in(reg32) condition as u32, map = in(reg64) map, x = in(reg32) x, y = in(reg32) y,
            z = in(reg32) z, from = in(reg32) from, options(nostack));
    }
}

/// Waits until the buffer of box `number` of a tile of `boxes` has been read by its last store: that of the box `B`
/// before, or of this buffer's last box in the tile before.
///
/// # Safety
/// - The thread that starts the warp's stores calls this, others may.
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
