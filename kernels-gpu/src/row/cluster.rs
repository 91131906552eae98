//! The blocks of a cluster as one team (sm_90): sums pass through distributed shared memory.

use super::{Team, cluster_exchange_bytes};
use cuda_std::{
    barrier::{cluster_arrive, cluster_sync, cluster_wait, syncthreads},
    global,
    shared::{self, mapa, st_cluster},
    thread,
    warp::{self, Shuffle},
};

/// The blocks of a cluster, of `THREADS` each.
pub struct Cluster<const THREADS: u32>;

impl<const THREADS: u32> Cluster<THREADS> {
    const WARPS: u32 = THREADS / 32;

    /// Gives every block the value of each warp; their slots are returned, 16 bytes apart, in the order of the warps.
    #[inline(always)]
    unsafe fn exchange<V: global::Value>(value: V, turn: &mut u32) -> u32 {
        let slots = shared::dynamic_base() + *turn * (Self::EXCHANGE / 2);
        let (lane, blocks) = (thread::lane_id(), thread::cluster_size());
        *turn ^= 1;
        let own = slots + (thread::cluster_block_rank() * Self::WARPS + thread::warp_idx()) * 16;
        // SAFETY: two sets in turn, as for a block: who writes a set again has passed the barrier of the other.
        unsafe {
            if lane < blocks {
                st_cluster(mapa(own, lane), value);
            }
            cluster_arrive();
            cluster_wait();
        }
        slots
    }
}

impl<const THREADS: u32> Team for Cluster<THREADS> {
    const LANES: u32 = THREADS;
    #[inline(always)]
    fn lanes() -> u32 {
        THREADS * thread::cluster_size()
    }
    #[inline(always)]
    fn rank() -> u32 {
        thread::cluster_block_rank()
    }
    #[inline(always)]
    fn blocks() -> u32 {
        thread::cluster_size()
    }
    #[inline(always)]
    fn lane() -> u32 {
        thread::cluster_block_rank() * THREADS + thread::thread_idx_x()
    }
    #[inline(always)]
    fn first() -> u64 {
        thread::cluster_idx_x() as u64
    }
    #[inline(always)]
    fn step() -> u64 {
        thread::grid_clusters_x() as u64
    }
    #[inline(always)]
    fn index() -> u32 {
        0
    }
    const EXCHANGE: u32 = cluster_exchange_bytes(THREADS as u64) as u32;

    /// Of this block: its shared memory is its own.
    #[inline(always)]
    unsafe fn meet() {
        // SAFETY: forwarded to the caller.
        unsafe { syncthreads() }
    }
    #[inline(always)]
    unsafe fn begin() {
        // SAFETY: forwarded to the caller.
        unsafe { cluster_sync() }
    }
    #[inline(always)]
    unsafe fn join<S: Shuffle + global::Value>(
        value: S,
        identity: S,
        turn: &mut u32,
        combine: impl Fn(S, S) -> S + Copy,
    ) -> S {
        // SAFETY: forwarded to the caller.
        unsafe {
            let slots = Self::exchange(warp::reduce::<S, 32>(value, combine), turn);
            let mut value = identity;
            let mut slot = thread::lane_id();
            while slot < thread::cluster_size() * Self::WARPS {
                value = combine(value, shared::ld(slots + slot * 16));
                slot += 32;
            }
            warp::reduce::<S, 32>(value, combine)
        }
    }
    #[inline(always)]
    unsafe fn sums<const N: usize>(values: [f32; N], turn: &mut u32) -> [f32; N] {
        const { assert!(N <= 4) };
        // SAFETY: forwarded to the caller.
        unsafe {
            let values = super::team::warp_sums::<N, 32>(values);
            let mut all = [0.0f32; 4];
            let mut i = 0;
            while i < N {
                all[i] = values[i];
                i += 1;
            }
            let slots = Self::exchange(all, turn);
            let mut sums = [0.0; N];
            let mut slot = thread::lane_id();
            while slot < thread::cluster_size() * Self::WARPS {
                let other: [f32; 4] = shared::ld(slots + slot * 16);
                let mut i = 0;
                while i < N {
                    sums[i] += other[i];
                    i += 1;
                }
                slot += 32;
            }
            super::team::warp_sums::<N, 32>(sums)
        }
    }
}
