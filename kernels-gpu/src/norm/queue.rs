//! Rows that clusters take from a counter (sm_90): multiprocessors have not the same share of memory's speed, and with as many rows
//! each some would end long before others.
//!
//! The first [`FIXED`] rows of a cluster are its own; the index of each later one is taken by the thread of the first block that asks
//! for rows, a row ahead, and given to all blocks by stores that complete on a barrier of theirs. Who takes the last index of all leaves
//! the counter as it was.

use super::turns::STAGES;
use crate::row::{Stage, Team};
use cuda_std::{
    atomic::{self, Gpu, Relaxed},
    global, mbarrier, shared,
};

/// Rows of a cluster that are its own: as many as a ring has stages.
pub const FIXED: u32 = 3;
/// Indices on their way: a block may be this many rows behind the first.
const PLACES: u32 = 8;
/// Shared memory.
pub const QUEUE_BYTES: u32 = PLACES * (mbarrier::BYTES + 4) + STAGES * 4;

/// The queue of a block, at a shared address, of so many rows.
#[derive(Clone, Copy)]
pub struct Queue {
    pub at: u32,
    pub counter: u64,
    pub rows: u32,
}

impl Queue {
    #[inline(always)]
    fn barrier(self, turn: u32) -> u32 {
        self.at + (turn - FIXED) % PLACES * mbarrier::BYTES
    }

    #[inline(always)]
    fn place(self, turn: u32) -> u32 {
        self.at + PLACES * mbarrier::BYTES + (turn - FIXED) % PLACES * 4
    }

    #[inline(always)]
    fn of_stage(self, stage: Stage) -> u32 {
        self.at + PLACES * (mbarrier::BYTES + 4) + stage.index * 4
    }

    /// Makes the barriers.
    ///
    /// # Safety
    /// - One thread of the block; a fence and a barrier of the cluster follow.
    #[inline(always)]
    pub unsafe fn begin(self) {
        let mut place = 0;
        while place < PLACES {
            // SAFETY: forwarded to the caller.
            unsafe { mbarrier::init(self.barrier(FIXED + place), 1) };
            place += 1;
        }
    }

    /// Takes the row of a later turn for all blocks of the cluster.
    ///
    /// # Safety
    /// - One thread of the first block, in order, until there are none.
    #[inline(always)]
    pub unsafe fn take<T: Team>(self, turn: u32) {
        let clusters = T::step() as u32;
        let (own, before) = (FIXED * clusters, (FIXED - 1) * clusters);
        // All that are taken, and one a cluster that is none.
        let later = if self.rows > own { self.rows - own } else { 0 };
        let last = if self.rows > before { self.rows - before } else { 0 };
        let takers = if last < clusters { last } else { clusters };
        // SAFETY: forwarded to the caller; the kernel in front, which had the counter too, has ended.
        unsafe {
            let taken = atomic::add_u32::<Relaxed, Gpu>(self.counter as *mut u32, 1);
            if taken + 1 == later + takers {
                global::st(self.counter as *mut u32, 0);
            }
            let row = f32::from_bits(own + taken);
            let mut block = 0;
            while block < T::blocks() {
                let there = shared::mapa(self.barrier(turn), block);
                shared::st_async_1(shared::mapa(self.place(turn), block), row, there);
                block += 1;
            }
        }
    }

    /// Waits for the row of a later turn.
    ///
    /// # Safety
    /// - One thread of the block, in order.
    #[inline(always)]
    pub unsafe fn taken(self, turn: u32) -> u32 {
        // SAFETY: forwarded to the caller.
        unsafe {
            mbarrier::arrive_expect_tx(self.barrier(turn), 4);
            mbarrier::wait_parity(self.barrier(turn), (turn - FIXED) / PLACES & 1);
            shared::ld(self.place(turn))
        }
    }

    /// Says which row a stage gets.
    ///
    /// # Safety
    /// - The stage is free.
    #[inline(always)]
    pub unsafe fn leave(self, stage: Stage, row: u32) {
        // SAFETY: forwarded to the caller.
        unsafe { shared::st(self.of_stage(stage), row) }
    }

    /// Which row a stage has; none from `rows` on.
    ///
    /// # Safety
    /// - The stage is filled.
    #[inline(always)]
    pub unsafe fn row(self, stage: Stage) -> u32 {
        // SAFETY: forwarded to the caller.
        unsafe { shared::ld(self.of_stage(stage)) }
    }
}
