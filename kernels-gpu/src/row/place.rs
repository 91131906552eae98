//! The blocks of a cluster that share one row, and how they agree on sums (sm_90).

use super::{SLICE_CLUSTER, SLICE_JOIN_BYTES, SLICE_JOINS, SLICE_THREADS};
use cuda_std::{
    barrier::{cluster_arrive_relaxed, cluster_wait, syncthreads},
    mbarrier,
    shared::{self, mapa, st_async_4},
    thread, warp,
};

/// This block in its cluster.
#[derive(Clone, Copy)]
pub struct Place {
    /// The cluster's row.
    pub row: u64,
    /// This block among them.
    pub rank: u32,
    /// Blocks of the cluster, a power of two.
    pub blocks: u32,
}

impl Place {
    /// Of this block, which says to its cluster that it runs.
    ///
    /// # Safety
    /// - All threads of the block come here first, and the first [`join`](Self::join) has the number 0.
    #[inline(always)]
    pub unsafe fn begin() -> Place {
        let place = Place {
            row: thread::cluster_idx_x() as u64,
            rank: thread::cluster_block_rank(),
            blocks: thread::cluster_size(),
        };
        if place.blocks > 1 {
            // SAFETY: forwarded to the caller.
            unsafe {
                if thread::thread_idx_x() == 0 {
                    let mut set = 0;
                    while set < SLICE_JOINS {
                        mbarrier::init(Self::joined(set), 1);
                        set += 1;
                    }
                    mbarrier::fence_init();
                }
                cluster_arrive_relaxed();
            }
        }
        place
    }

    /// Completes when this block has the values of all warps of the cluster.
    #[inline(always)]
    fn joined(set: u32) -> u32 {
        shared::dynamic_base() + SLICE_JOINS * SLICE_JOIN_BYTES + (16 + set) * mbarrier::BYTES
    }

    /// Joins values of all threads of the cluster; all get the same. `SET` counts the calls of a kernel from 0.
    ///
    /// # Safety
    /// - All threads of the cluster come here together; `combine` gives the same bits for swapped arguments.
    #[inline(always)]
    pub unsafe fn join<const N: usize, const SET: u32>(
        self,
        mut value: [f32; N],
        identity: [f32; N],
        combine: impl Fn([f32; N], [f32; N]) -> [f32; N],
    ) -> [f32; N] {
        const { assert!(N <= 4 && SET < SLICE_JOINS) };
        let slots = shared::dynamic_base() + SET * SLICE_JOIN_BYTES;
        let (lane, warps) = (thread::lane_id(), SLICE_THREADS / 32);
        // SAFETY: each place is written once; the barrier comes between that and reading.
        unsafe {
            value = Self::over_warp(value, &combine);
            let mut all = [0.0; 4];
            let mut i = 0;
            while i < N {
                all[i] = value[i];
                i += 1;
            }
            let own = slots + (self.rank * warps + thread::warp_idx()) * 16;
            if self.blocks == 1 {
                if lane == 0 {
                    shared::st(own, all);
                }
                syncthreads();
            } else {
                if SET == 0 {
                    // All blocks have begun.
                    cluster_wait();
                }
                let bytes = self.blocks * (warps * 16);
                mbarrier::arrive_expect_tx_if(Self::joined(SET), bytes, thread::thread_idx_x() == 0);
                if lane < self.blocks {
                    // With its own completion: a barrier of the cluster would wait for all memory of the block first, and
                    // empty L1.
                    st_async_4(mapa(own, lane), all, mapa(Self::joined(SET), lane));
                }
                mbarrier::wait_parity(Self::joined(SET), 0);
            }
            value = identity;
            let mut k = 0;
            while k < SLICE_CLUSTER as u32 * warps / 32 {
                let slot = lane + k * 32;
                if slot < self.blocks * warps {
                    let all: [f32; 4] = shared::ld(slots + slot * 16);
                    let mut other = identity;
                    let mut i = 0;
                    while i < N {
                        other[i] = all[i];
                        i += 1;
                    }
                    value = combine(value, other);
                }
                k += 1;
            }
            Self::over_warp(value, &combine)
        }
    }

    /// # Safety
    /// - All lanes come here together.
    #[inline(always)]
    unsafe fn over_warp<const N: usize>(
        mut value: [f32; N],
        combine: &impl Fn([f32; N], [f32; N]) -> [f32; N],
    ) -> [f32; N] {
        let mut lanes = 16;
        while lanes > 0 {
            let mut other = value;
            let mut i = 0;
            while i < N {
                // SAFETY: forwarded to the caller.
                other[i] = unsafe { warp::shfl_bfly(value[i], lanes) };
                i += 1;
            }
            value = combine(value, other);
            lanes /= 2;
        }
        value
    }

    /// Sums over the cluster.
    ///
    /// # Safety
    /// - As for [`join`](Self::join).
    #[inline(always)]
    pub unsafe fn sums<const N: usize, const SET: u32>(self, values: [f32; N]) -> [f32; N] {
        let add = |mut a: [f32; N], b: [f32; N]| {
            let mut i = 0;
            while i < N {
                a[i] += b[i];
                i += 1;
            }
            a
        };
        // SAFETY: forwarded to the caller.
        unsafe { self.join::<N, SET>(values, [0.0; N], add) }
    }
}
