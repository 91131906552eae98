//! What the kernels share that take one row after the other, each warp its own part of the work (sm_90): a ring of rows in shared
//! memory, and barriers by which warps pass a row's sums on. Places of sums come in two sets, which rows use in turn.

use super::{
    kept::Kept,
    queue::{FIXED, Queue},
};
use crate::row::*;
use cuda_std::{
    barrier::{cluster_sync, syncthreads},
    bulk, grid_dependency, mbarrier, thread,
};

/// Most stages of a ring.
pub const STAGES: u32 = 8;
/// Shared memory of the barriers.
pub const BARRIER_BYTES: u32 = (6 + 2 * STAGES) * mbarrier::BYTES;

/// Which of two sets of places the `turn`-th row of a team has.
#[inline(always)]
pub fn set(turn: u32) -> u32 {
    turn & 1
}

/// The parity of its barriers.
#[inline(always)]
pub fn parity(turn: u32) -> u32 {
    turn >> 1 & 1
}

/// The barriers of a block, at a shared address.
#[derive(Clone, Copy)]
pub struct Barriers(pub u32);

impl Barriers {
    #[inline(always)]
    fn at(self, index: u32) -> u32 {
        self.0 + index * mbarrier::BYTES
    }

    /// Completes when all warps have left their sums.
    #[inline(always)]
    pub fn summed(self, turn: u32) -> u32 {
        self.at(set(turn))
    }

    /// When all blocks of the cluster have sent theirs.
    #[inline(always)]
    pub fn joined(self, turn: u32) -> u32 {
        self.at(2 + set(turn))
    }

    /// When it is known what they come to.
    #[inline(always)]
    pub fn known(self, turn: u32) -> u32 {
        self.at(4 + set(turn))
    }

    /// When a stage has its row.
    #[inline(always)]
    pub fn filled(self, stage: Stage) -> u32 {
        self.at(6 + stage.index)
    }

    /// When all warps are done with it.
    #[inline(always)]
    pub fn emptied(self, stage: Stage) -> u32 {
        self.at(6 + STAGES + stage.index)
    }

    /// Makes them, for `T::LANES` threads that work on rows; waits until the cluster has done so, and for the kernel in front.
    ///
    /// # Safety
    /// - All threads of the cluster come here first, together.
    #[inline(always)]
    pub unsafe fn begin<T: Team>(self, stages: u32) {
        let warps = T::LANES / 32;
        // SAFETY: forwarded to the caller.
        unsafe {
            if thread::thread_idx_x() == 0 {
                let mut turn = 0;
                while turn < 2 {
                    mbarrier::init(self.summed(turn), warps);
                    mbarrier::init(self.joined(turn), 1);
                    mbarrier::init(self.known(turn), 1);
                    turn += 1;
                }
                let mut stage = Stage::FIRST;
                while stage.index < stages {
                    mbarrier::init(self.filled(stage), 1);
                    mbarrier::init(self.emptied(stage), warps);
                    stage.index += 1;
                }
                mbarrier::fence_init();
            }
            if T::blocks() > 1 {
                cluster_sync();
            } else {
                syncthreads();
            }
            grid_dependency::wait();
        }
    }
}

/// The rows of `M` matrices on their way into a ring.
#[derive(Clone, Copy)]
pub struct Rows<const M: usize> {
    /// Address of each matrix and elements from one row to the next.
    pub matrices: [(u64, u64); M],
    /// Rows.
    pub rows: u64,
    /// Elements of a row.
    pub columns: u32,
    /// Stages of the ring.
    pub stages: u32,
    /// Shared address of the ring.
    pub ring: u32,
}

/// Shared address of piece `k` of `N` of a row of one of `M` matrices, in a stage of a ring at `ring`.
#[inline(always)]
fn piece<T: Team, const N: usize, const M: usize>(ring: u32, stage: Stage, matrix: u32, k: usize) -> u32 {
    let piece = (stage.index * M as u32 + matrix) * N as u32 + k as u32;
    ring + piece * (T::LANES * 16)
}

/// The vectors of this thread in a row of a matrix, zeros beyond the row.
///
/// # Safety
/// - The ring has the stage, which is filled.
#[inline(always)]
pub unsafe fn vectors<T: Team, E: Kept, const N: usize, const M: usize>(
    ring: u32,
    columns: u32,
    stage: Stage,
    matrix: u32,
) -> Part<E, N> {
    let mut part = [E::ZEROS; N];
    let mut k = 0;
    while k < N {
        if column_of::<T>(0, k) < columns {
            let at = piece::<T, N, M>(ring, stage, matrix, k) + thread::thread_idx_x() * 16;
            // SAFETY: forwarded to the caller.
            part[k] = unsafe { vector_at::<E>(at) };
        }
        k += 1;
    }
    part
}

impl<const M: usize> Rows<M> {
    /// Starts the copies of this block's `N` pieces of a row into a stage.
    ///
    /// # Safety
    /// - One thread of the block calls this; the barriers have begun, and the stage is free.
    /// - The matrices have these extents; rows are whole vectors at multiples of 16 bytes.
    #[inline(always)]
    unsafe fn ask_one<T: Team, E: Kept, const N: usize>(self, barriers: Barriers, stage: Stage, row: u64) {
        let columns = T::LANES * WIDTH;
        let size = size_of::<E>() as u32;
        let mut bytes = 0;
        let mut k = 0;
        // SAFETY: forwarded to the caller.
        unsafe {
            while k < N {
                let column = (k as u32 * T::blocks() + T::rank()) * columns;
                if column < self.columns {
                    let rest = self.columns - column;
                    let part = (if rest < columns { rest } else { columns }) * size;
                    let mut matrix = 0;
                    while matrix < M {
                        let (address, stride) = self.matrices[matrix];
                        let source = address + (row * stride + column as u64) * size as u64;
                        let to = piece::<T, N, M>(self.ring, stage, matrix as u32, k);
                        bulk::load(to, source as *const u8, part, barriers.filled(stage));
                        matrix += 1;
                    }
                    bytes += M as u32 * part;
                }
                k += 1;
            }
            mbarrier::arrive_expect_tx(barriers.filled(stage), bytes);
        }
    }

    /// Asks for one row of a team after the other, `N` pieces each.
    ///
    /// # Safety
    /// - One thread of the block calls this; the barriers have begun.
    /// - The matrices have these extents; rows are whole vectors at multiples of 16 bytes.
    #[inline(always)]
    pub unsafe fn ask<T: Team, E: Kept, const N: usize>(self, barriers: Barriers) {
        let mut stage = Stage::FIRST;
        let mut row = T::first();
        while row < self.rows {
            // SAFETY: forwarded to the caller.
            unsafe {
                mbarrier::wait_parity(barriers.emptied(stage), stage.phase ^ 1);
                self.ask_one::<T, E, N>(barriers, stage, row);
            }
            stage = stage.next(self.stages);
            row += T::step();
        }
    }

    /// As [`ask`](Self::ask), of rows that come from a queue; the stage behind the last one is left without a row.
    ///
    /// # Safety
    /// - As for [`ask`](Self::ask); the queue has begun, and has as many rows.
    #[inline(always)]
    pub unsafe fn ask_queued<T: Team, E: Kept, const N: usize>(self, barriers: Barriers, queue: Queue) {
        let mut stage = Stage::FIRST;
        let mut row = T::first() as u32;
        let mut turn = 0;
        loop {
            // SAFETY: forwarded to the caller.
            unsafe {
                if turn >= FIXED {
                    row = queue.taken(turn);
                }
                let more = row < queue.rows;
                if more && turn + 1 >= FIXED && T::rank() == 0 {
                    queue.take::<T>(turn + 1);
                }
                mbarrier::wait_parity(barriers.emptied(stage), stage.phase ^ 1);
                queue.leave(stage, row);
                if !more {
                    mbarrier::arrive(barriers.filled(stage));
                    break;
                }
                self.ask_one::<T, E, N>(barriers, stage, row as u64);
            }
            stage = stage.next(self.stages);
            row += T::step() as u32;
            turn += 1;
        }
    }
}
