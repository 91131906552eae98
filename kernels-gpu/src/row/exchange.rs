//! How the warps of a block or a cluster give each other values once a row, without a barrier of their threads (sm_90).

use super::Team;
use cuda_std::{barrier::syncwarp, mbarrier, shared, thread, warp};

/// Exchanges between the warps of a team: two sets of slots in turn, and a barrier that each warp arrives at once a row.
/// A warp arrives only when it has read the row before, so nobody is overtaken by more than a row.
pub struct Exchange {
    barrier: u32,
    set: u32,
}

impl Exchange {
    const SLOT: u32 = 32;

    /// By a barrier that expects an arrival of each warp of the team.
    #[inline(always)]
    pub fn new(barrier: u32) -> Exchange {
        Exchange { barrier, set: 0 }
    }

    /// Gives values of this warp to all blocks of the team.
    ///
    /// # Safety
    /// - All lanes come here together with the same values; [`collect`](Self::collect) follows before the next call.
    #[inline(always)]
    pub unsafe fn publish<T: Team, const P: usize>(&self, values: [[f32; 4]; P]) {
        const { assert!(P <= 2) };
        let slots = shared::dynamic_base() + self.set * (T::EXCHANGE / 2);
        let own = slots + (T::rank() * (T::LANES / 32) + thread::warp_idx()) * Self::SLOT;
        let lane = thread::lane_id();
        // SAFETY: a slot a warp; it was read before the barrier of the row between.
        unsafe {
            syncwarp(warp::FULL);
            if T::blocks() == 1 {
                if lane == 0 {
                    let mut i = 0;
                    while i < P {
                        shared::st(own + i as u32 * 16, values[i]);
                        i += 1;
                    }
                }
                mbarrier::arrive_if(self.barrier, lane == 0);
            } else {
                if lane < T::blocks() {
                    let there = shared::mapa(own, lane);
                    let mut i = 0;
                    while i < P {
                        shared::st_cluster(there + i as u32 * 16, values[i]);
                        i += 1;
                    }
                }
                mbarrier::arrive_remote_if(self.barrier, lane, lane < T::blocks());
            }
        }
    }

    /// The values of all warps for the row that was published last: those of slots `lane`, `lane + 32`, … in each lane, and
    /// `none` where there is no such warp.
    ///
    /// # Safety
    /// - All lanes of all warps of the team come here.
    #[inline(always)]
    pub unsafe fn collect<T: Team, const M: usize, const P: usize>(
        &mut self,
        none: [[f32; 4]; P],
    ) -> [[[f32; 4]; P]; M] {
        let slots = shared::dynamic_base() + self.set * (T::EXCHANGE / 2);
        let mut all = [none; M];
        // SAFETY: all warps of the team publish this row.
        unsafe {
            if T::blocks() == 1 {
                mbarrier::wait_parity(self.barrier, self.set);
            } else {
                mbarrier::wait_parity_cluster(self.barrier, self.set);
            }
            self.set ^= 1;
            let mut m = 0;
            while m < M {
                let slot = thread::lane_id() + m as u32 * 32;
                if slot < T::lanes() / 32 {
                    let mut i = 0;
                    while i < P {
                        all[m][i] = shared::ld(slots + slot * Self::SLOT + i as u32 * 16);
                        i += 1;
                    }
                }
                m += 1;
            }
        }
        all
    }
}
