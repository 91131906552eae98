//! Norms of the longest rows of 16-bit elements that registers hold, those of the blocks of a cluster (sm_90): with a residual, or at odd
//! addresses. Others of that length go one after the other through the same cluster (`norm_stream_*`), whose order of sums this is.

use super::{
    NormParams, SPREAD_SLOTS,
    device::{Geometry, Statistics},
    held::Held,
    kept::Kept,
    moments::{self, Count},
};
use crate::row::*;
use crate::tile::element::Element;
use cuda_std::{
    barrier::{cluster_arrive_relaxed, cluster_wait, syncthreads},
    mbarrier, shared, thread,
};

/// Completes when this block has the values of all blocks of the cluster.
#[inline(always)]
fn gathered() -> u32 {
    shared::dynamic_base() + SPREAD_SLOTS * 16
}

/// Joins the sums of all warps as `norm_stream_*` does: of the block, then of the cluster.
///
/// # Safety
/// - All threads of the cluster come here together, once; [`gathered`] expects the values, and the cluster has been told.
#[inline(always)]
unsafe fn gather_by_blocks<T: Team, const N: usize, const CENTERED: bool>(columns: u32, own: [f32; 4]) -> [f32; 4] {
    let warps = const { T::LANES / 32 };
    let (of_warps, of_blocks) = (shared::dynamic_base(), shared::dynamic_base() + warps * 16);
    let (lane, warp) = (thread::lane_id(), thread::warp_idx());
    // SAFETY: a slot a warp and a block, written once; a barrier comes between that and reading. No block ends before it has got all.
    unsafe {
        if lane == 0 {
            shared::st(of_warps + warp * 16, own);
        }
        syncthreads();
        let values = shared::ld(of_warps + (lane & (warps - 1)) * 16);
        let all = moments::join_groups::<16, CENTERED>(values, Count::of_warp::<T, N>(columns));
        cluster_wait();
        if warp == 0 && lane < T::blocks() {
            let slot = of_blocks + T::rank() * 16;
            shared::st_async_4(shared::mapa(slot, lane), all, shared::mapa(gathered(), lane));
        }
        mbarrier::wait_parity(gathered(), 0);
        let mut other = [0.0; 4];
        if lane & 7 < T::blocks() {
            other = shared::ld(of_blocks + (lane & 7) * 16);
        }
        moments::join_groups::<8, CENTERED>(other, Count::of_block::<T, N>(columns))
    }
}

/// # Safety
/// - All threads of the cluster come here together, once.
#[inline(always)]
unsafe fn statistics<T: Team, E: Element, const N: usize, const CENTERED: bool, const WHOLE: bool>(
    p: &Geometry,
    part: &Part<E, N>,
) -> Statistics {
    // SAFETY: forwarded to the caller.
    unsafe {
        let own = moments::of_warp::<T, E, N, CENTERED, WHOLE>(p.columns, part);
        let all = gather_by_blocks::<T, N, CENTERED>(p.columns, own);
        moments::statistics::<CENTERED>(all, p.reciprocal, p.epsilon)
    }
}

/// One row of a cluster: of whole vectors at multiples of 16 bytes where it is `WHOLE`. With a `RESIDUAL`, if `p` has one.
///
/// # Safety
/// - The tensors have the extents that the parameters say; a thread holds `N` vectors of its row; dynamic shared memory of
///   `SPREAD_BYTES`.
#[inline(always)]
pub unsafe fn forward<T: Team, E: Kept, const N: usize, const RESIDUAL: bool, const WHOLE: bool>(p: NormParams) {
    // SAFETY: forwarded to the caller.
    unsafe {
        // From the start: where both ways go on together, so do what each keeps in registers.
        if p.centered != 0 {
            one::<T, E, N, RESIDUAL, true, WHOLE>(&p);
        } else {
            one::<T, E, N, RESIDUAL, false, WHOLE>(&p);
        }
    }
}

#[inline(always)]
unsafe fn one<T: Team, E: Kept, const N: usize, const RESIDUAL: bool, const CENTERED: bool, const WHOLE: bool>(
    p: &NormParams,
) {
    let size = size_of::<E>() as u64;
    let row = T::first();
    let two = RESIDUAL && p.residual != 0;
    let matrix = |address, stride| Row::new::<E>(address, row, stride, p.columns, WHOLE as u32 | p.aligned);
    let (x, residual) = (matrix(p.x, p.x_stride), matrix(p.residual, p.residual_stride));
    let (y, stored) = (matrix(p.y, p.y_stride), matrix(p.sum, p.sum_stride));
    let (weight, bias) = (matrix(p.weight, 0), matrix(p.bias, 0));
    let held = Held::of::<T, E>(p.columns);
    let inside = |k: usize| held.has::<T>(k);
    // SAFETY: forwarded to the caller; each element is one thread's.
    unsafe {
        if thread::thread_idx_x() == 0 {
            mbarrier::init(gathered(), 1);
            mbarrier::arrive_expect_tx(gathered(), T::blocks() * 16);
            mbarrier::fence_init();
        }
        cluster_arrive_relaxed();
        let load = #[inline(always)]
        |row: Row| held.load::<T, E, N, WHOLE>(row, inside);
        let mut part = load(x);
        if two {
            let other = load(residual);
            add_parts::<E, N>(&mut part, &other);
        }
        // Of the residual no more is asked for: both together are slower.
        if WHOLE && row + (p.ahead as u64) < p.rows {
            matrix(p.x + p.ahead as u64 * p.x_stride * size, p.x_stride).prefetch::<T, E, N>();
        }
        let statistics = statistics::<T, E, N, CENTERED, WHOLE>(&Geometry::of(p), &part);
        let again = #[inline(always)]
        |row: Row, k: usize| {
            if WHOLE {
                E::unpack8(E::load8_packed_cached(held.at(row, k) as *const E))
            } else {
                row.load_again::<E>(column_of::<T>(0, k))
            }
        };
        let mut k = 0;
        while k < N {
            if inside(k) {
                let sum = E::unpack8(E::anew(part[k]));
                if two && p.sum != 0 {
                    held.store::<T, E, WHOLE>(stored, k, sum);
                }
                let unit = map(sum, |s| statistics.unit(s));
                let given = [p.weight != 0, p.bias != 0];
                let out = affine(unit, given, || again(weight, k), || again(bias, k));
                held.store::<T, E, WHOLE>(y, k, out);
            }
            k += 1;
        }
    }
}
