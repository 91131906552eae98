//! How the warps of a block or a cluster give each other values once a row, without a barrier of their threads (sm_90).

use super::Team;
use cuda_std::{barrier::syncwarp, mbarrier, shared, thread, warp};

/// Exchanges between the warps of a team: two sets of slots in turn, and a barrier that each warp arrives at once a row.
/// A warp arrives only when it has read the row before, so nobody is overtaken by more than a row.
pub struct Exchange {
    barrier: u32,
    set: u32,
    /// Of the barrier of the set; of a cluster, which has one for each set.
    parity: u32,
}

impl Exchange {
    const SLOT: u32 = 32;

    /// By a barrier that expects an arrival of each warp of the team.
    #[inline(always)]
    pub fn new(barrier: u32) -> Exchange {
        Exchange {
            barrier,
            set: 0,
            parity: 0,
        }
    }

    /// The barrier of the set of a cluster: values of the next row may come before all of this one are there.
    #[inline(always)]
    fn of_set(&self) -> u32 {
        self.barrier + self.set * mbarrier::BYTES
    }

    /// Expects so many bytes of each warp of the cluster.
    #[inline(always)]
    unsafe fn expect<T: Team>(&self, bytes: u32) {
        let first = thread::thread_idx_x() == 0;
        // SAFETY: forwarded to the caller; one arrival a row.
        unsafe { mbarrier::arrive_expect_tx_if(self.of_set(), T::blocks() * (T::LANES / 32) * bytes, first) }
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
                self.expect::<T>(P as u32 * 16);
                if lane < T::blocks() {
                    let (there, barrier) = (shared::mapa(own, lane), shared::mapa(self.of_set(), lane));
                    let mut i = 0;
                    while i < P {
                        shared::st_async_4(there + i as u32 * 16, values[i], barrier);
                        i += 1;
                    }
                }
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
                mbarrier::wait_parity(self.of_set(), self.parity);
                self.parity ^= self.set;
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
