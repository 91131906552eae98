//! Rows on their way from memory: a ring of pairs of rows in shared memory that bulk copies fill while the team works on
//! the rows before (sm_90).
//!
//! For teams whose registers are full of other things: the rows that they take later are under way all the time, at no
//! cost of registers, and each pass over a row reads it from shared memory.

use super::{RING_BARRIER_BYTES, Team, WIDTH, column_of, vector_at};
use crate::tile::element::Element;
use cuda_std::{bulk, mbarrier, shared};

/// Whether this tier has bulk copies.
pub const RINGS: bool = cfg!(tier = "sm_90a");

/// The ring of a team, of rows of two matrices of the same columns: whole vectors at multiples of 16 bytes.
pub struct Ring {
    /// Address of each matrix, and bytes from one of its rows to the next.
    matrices: [(u64, u64); 2],
    rows: u64,
    columns: u32,
    /// Of a row in this block, and of a stage.
    row_bytes: u32,
    stage_bytes: u32,
    stages: u32,
    barriers: u32,
    base: u32,
    stage: u32,
    phase: u32,
}

impl Ring {
    /// The ring, its first rows asked for.
    ///
    /// # Safety
    /// - All threads of the team come here together; the tier has bulk copies; `stages` is at least 1.
    /// - Rows are whole vectors at multiples of 16 bytes, and nothing writes them while the kernel runs.
    /// - The block has [`ring_bytes`](super::ring_bytes) of dynamic shared memory.
    #[inline(always)]
    pub unsafe fn new<T: Team, E: Element>(matrices: [(u64, u64); 2], rows: u64, columns: u32, stages: u32) -> Self {
        let size = size_of::<E>() as u32;
        let mut row_bytes = columns * size;
        let mut stage_bytes = 2 * row_bytes;
        if T::blocks() > 1 {
            let piece = T::LANES * WIDTH;
            // As `ring_columns`, without a division: by a power of two.
            let pieces = ((columns + (piece - 1)) / piece + (T::blocks() - 1)) >> T::blocks().trailing_zeros();
            row_bytes = pieces * piece * size;
            // Behind the rows, the first vector of the first one.
            stage_bytes = 2 * row_bytes + 16;
        }
        let shared = shared::dynamic_base() + T::EXCHANGE;
        let ring = Ring {
            matrices,
            rows,
            columns,
            row_bytes,
            stage_bytes,
            stages,
            barriers: shared + T::index() * stages * mbarrier::BYTES,
            base: shared + RING_BARRIER_BYTES as u32 + T::index() * stages * stage_bytes,
            stage: 0,
            phase: 0,
        };
        // SAFETY: forwarded to the caller.
        unsafe {
            if T::lane() == T::rank() * T::LANES {
                let mut stage = 0;
                while stage < stages {
                    mbarrier::init(ring.barriers + stage * mbarrier::BYTES, 1);
                    stage += 1;
                }
                mbarrier::fence_init();
            }
            T::meet();
            let mut stage = 0;
            while stage < stages {
                ring.ask::<T, E>(T::first() + stage as u64 * T::step(), stage);
                stage += 1;
            }
        }
        ring
    }

    /// Starts the copies of a row of each matrix, if there is one.
    #[inline(always)]
    unsafe fn ask<T: Team, E: Element>(&self, row: u64, stage: u32) {
        if T::lane() == T::rank() * T::LANES && row < self.rows {
            let barrier = self.barriers + stage * mbarrier::BYTES;
            let to = self.base + stage * self.stage_bytes;
            let [(x, x_stride), (y, y_stride)] = self.matrices;
            let rows = [x + row * x_stride, y + row * y_stride].map(|at| at as *const u8);
            let copy = |matrix: u32, from: u32, at: u32, bytes: u32| {
                let to = to + matrix * self.row_bytes + at;
                // SAFETY: the stage is free, the rows are readable.
                unsafe { bulk::load(to, rows[matrix as usize].add(from as usize), bytes, barrier) };
            };
            // SAFETY: as above.
            unsafe {
                if T::blocks() == 1 {
                    mbarrier::arrive_expect_tx(barrier, 2 * self.row_bytes);
                    copy(0, 0, 0, self.row_bytes);
                    copy(1, 0, 0, self.row_bytes);
                    return;
                }
                // Every so many columns are this block's; it arrives when all have been asked for.
                let piece = T::LANES * WIDTH * size_of::<E>() as u32;
                let end = self.columns * size_of::<E>() as u32;
                bulk::load(to + 2 * self.row_bytes, rows[0], 16, barrier);
                let (mut from, mut at, mut bytes) = (T::rank() * piece, 0, 16);
                while from < end {
                    let part = if end - from < piece { end - from } else { piece };
                    copy(0, from, at, part);
                    copy(1, from, at, part);
                    bytes += 2 * part;
                    at += piece;
                    from += piece * T::blocks();
                }
                mbarrier::arrive_expect_tx(barrier, bytes);
            }
        }
    }

    /// Waits for the rows of the current turn.
    ///
    /// # Safety
    /// - All threads of the team come here, and the row exists.
    #[inline(always)]
    pub unsafe fn wait(&self) {
        // SAFETY: somebody asked for it.
        unsafe { mbarrier::wait_parity(self.barriers + self.stage * mbarrier::BYTES, self.phase) }
    }

    /// The first element of the row of the first matrix.
    ///
    /// # Safety
    /// - [`wait`](Self::wait) has returned.
    #[inline(always)]
    pub unsafe fn first<T: Team, E: Element>(&self) -> f32 {
        // SAFETY: within the stage.
        unsafe {
            let stage = self.base + self.stage * self.stage_bytes;
            let at = if T::blocks() == 1 { 0 } else { 2 * self.row_bytes };
            shared::ld::<E>(stage + at).to_f32()
        }
    }

    /// This thread's vector `k` of the row of one of the matrices, zeros beyond the row.
    ///
    /// # Safety
    /// - [`wait`](Self::wait) has returned.
    #[inline(always)]
    pub unsafe fn vector<T: Team, E: Element>(&self, matrix: u32, k: usize) -> E::Packed {
        if column_of::<T>(0, k) >= self.columns {
            return E::ZEROS;
        }
        let row = self.base + self.stage * self.stage_bytes + matrix * self.row_bytes;
        let lane = T::lane() - T::rank() * T::LANES;
        let at = row + (lane + k as u32 * T::LANES) * (WIDTH * size_of::<E>() as u32);
        // SAFETY: within the stage; aligned, as it is a multiple of 16 bytes.
        unsafe { vector_at::<E>(at) }
    }

    /// Gives the stage of `row`, the current one, to a later row.
    ///
    /// # Safety
    /// - All threads of the team come here together, and none reads the stage any more.
    #[inline(always)]
    pub unsafe fn release<T: Team, E: Element>(&mut self, row: u64) {
        // SAFETY: all have read it once they have met.
        unsafe {
            T::meet();
            self.ask::<T, E>(row + self.stages as u64 * T::step(), self.stage);
        }
        self.stage += 1;
        if self.stage == self.stages {
            self.stage = 0;
            self.phase ^= 1;
        }
    }
}
