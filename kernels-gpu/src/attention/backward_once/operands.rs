//! dS on its way to two products, P on its way to dS.

use super::{KEYS, PART, Shared};
use crate::attention::hopper::{Half, PANEL_BYTES};
use crate::tile::opaque::opaque;
use cuda_std::{
    matrix, thread,
    wgmma::{Acc, Descriptor, InFlight, MmaShape, Swizzle, commit_group},
};

/// Writes a warpgroup's dSᵀ as the A operand of dQ: panels of 64 queries, swizzled rows of keys.
///
/// # Safety
/// - The whole warpgroup executes this; nobody reads the buffer.
#[inline(always)]
pub unsafe fn store_slopes<const S: usize>(to: u32, group: u32, slopes: &[u32; S]) {
    let (warp, lane) = (opaque(thread::thread_idx_x()) / 32 % 4, opaque(thread::lane_id()));
    let row = group * 64 + warp * 16 + lane % 16;
    let base = to + row * PANEL_BYTES;
    let (half, turn) = (lane / 16, lane % 8);
    let mut i = 0;
    while i < S / 8 {
        let (panel, chunk) = (i as u32 / 4, i as u32 % 4 * 2);
        let at = base + panel * KEYS * PANEL_BYTES + ((chunk + half) ^ turn) * 16;
        // SAFETY: forwarded to the caller; 16 queries of 16 keys.
        unsafe {
            matrix::stmatrix_x4(
                at,
                [slopes[4 * i], slopes[4 * i + 1], slopes[4 * i + 2], slopes[4 * i + 3]],
            );
        }
        i += 1;
    }
}

/// Four of P as they are kept until dS is computed: rounded, in half the registers; not those that a product reads.
#[inline(always)]
pub fn hold<E: Half>([a, b, c, d]: [f32; 4]) -> [u32; 2] {
    [E::pack(a, c), E::pack(b, d)]
}

/// Registers `4i` to `4i + 3` of what is held.
#[inline(always)]
pub fn held_at<E: Half, const S: usize>(words: &[u32; S], i: usize) -> [f32; 4] {
    let ([a, c], [b, d]) = (E::unpack(words[2 * i]), E::unpack(words[2 * i + 1]));
    [a, b, c, d]
}

/// `sum + dSᵀ·Q` with both from shared memory, issued and committed.
///
/// # Safety
/// - Both operands are there and stay; the whole warpgroup is here.
#[inline(always)]
pub unsafe fn issue_slopes<E: Half, const S: usize, const O: usize>(
    sum: Acc<O>,
    slopes: u32,
    group: u32,
    (q, q_panel): (u32, u32),
) -> InFlight<O>
where
    InFlight<O>: MmaShape,
{
    // SAFETY: forwarded to the caller.
    unsafe {
        let mut sum = sum.start();
        let a = Descriptor::new(opaque(slopes + group * 64 * PANEL_BYTES), 16, 1024, Swizzle::B128);
        let b = Descriptor::new(opaque(q), q_panel, 1024, Swizzle::B128);
        let mut step = 0;
        while step < S as u32 / 8 {
            let a = a.advance(step / 4 * KEYS * PANEL_BYTES + step % 4 * 32);
            sum = sum.mma_shared::<E, false, true>(a, b.advance(16 * PANEL_BYTES * step), true);
            step += 1;
        }
        commit_group();
        sum
    }
}

/// A warpgroup's part of `dS·K`, issued and committed.
///
/// # Safety
/// - Both operands are there and stay; the whole warpgroup is here.
#[inline(always)]
pub unsafe fn issue_queries<E: Half, const S: usize, const O: usize, const STAGES: u32, const PARTS: u32>(
    shared: &Shared<S, O, STAGES, PARTS>,
    buffer: u32,
    group: u32,
) -> InFlight<PART> {
    let (a, b) = if Shared::<S, O, STAGES, PARTS>::BY_ROWS {
        (shared.slopes(buffer) + group * KEYS * PANEL_BYTES, shared.own(0))
    } else {
        (
            shared.slopes(buffer),
            shared.own(0) + group * Shared::<S, O, STAGES, PARTS>::KEY_PANEL,
        )
    };
    // SAFETY: forwarded to the caller.
    unsafe {
        let a = Descriptor::new(opaque(a), KEYS * PANEL_BYTES, 1024, Swizzle::B128);
        let b = Descriptor::new(opaque(b), KEYS * PANEL_BYTES, 1024, Swizzle::B128);
        let mut sum = Acc::<PART>::ZERO.start();
        let mut step = 0;
        while step < KEYS / 16 {
            let on = 16 * PANEL_BYTES * step;
            sum = sum.mma_shared::<E, true, true>(a.advance(on), b.advance(on), step > 0);
            step += 1;
        }
        commit_group();
        sum
    }
}
