//! Rows on their way from memory: a ring of rows in shared memory that bulk copies fill while the team works on
//! the rows before (sm_90).
//!
//! For teams whose registers are full of other things: the rows that they take later are under way all the time, at no
//! cost of registers, and each pass over a row reads it from shared memory.

use super::values::anew_bits;
use super::{RING_BARRIER_BYTES, Team, WIDTH, column_of, vector_at};
use crate::tile::element::Element;
use cuda_std::{bulk, mbarrier, shared};

/// Whether this tier has bulk copies.
pub const RINGS: bool = cfg!(tier = "sm_90a");

/// The ring of a team, of rows of `M` matrices of the same columns: whole vectors at multiples of 16 bytes.
pub struct Ring<const M: usize> {
    /// Address of each matrix, and bytes from one of its rows to the next.
    matrices: [(u64, u64); M],
    rows: u64,
    columns: u32,
    /// Of a row in this block.
    row_bytes: u32,
    /// Stages.
    pub stages: u32,
    barriers: u32,
    base: u32,
}

/// A stage of a ring, and the parity of the row that it has.
#[derive(Clone, Copy)]
pub struct Stage {
    /// Which it is.
    pub index: u32,
    /// The parity.
    pub phase: u32,
}

impl Stage {
    /// That of the first row.
    pub const FIRST: Stage = Stage { index: 0, phase: 0 };

    /// That of the next row, of a ring of so many.
    #[inline(always)]
    pub fn next(self, stages: u32) -> Stage {
        if self.index + 1 == stages {
            Stage {
                index: 0,
                phase: self.phase ^ 1,
            }
        } else {
            Stage {
                index: self.index + 1,
                ..self
            }
        }
    }
}

impl<const M: usize> Ring<M> {
    /// The ring, its first rows asked for, and the stage of the first.
    ///
    /// # Safety
    /// - All threads of the team come here together; `stages` is at least 2.
    /// - Rows are whole vectors at multiples of 16 bytes, and nothing writes them while the kernel runs.
    /// - The block has [`ring_bytes`](super::ring_bytes), that of a cluster
    ///   [`cluster_ring_bytes`](super::cluster_ring_bytes) of dynamic shared memory.
    #[inline(always)]
    pub unsafe fn new<T: Team, E: Element>(
        matrices: [(u64, u64); M],
        rows: u64,
        columns: u32,
        stages: u32,
    ) -> (Self, Stage) {
        let size = size_of::<E>() as u32;
        let mut row_bytes = columns * size;
        if T::blocks() > 1 {
            let piece = T::LANES * WIDTH;
            // As `ring_columns`, without a division: by a power of two.
            let pieces = ((columns + (piece - 1)) / piece + (T::blocks() - 1)) >> T::blocks().trailing_zeros();
            row_bytes = pieces * piece * size;
        }
        let barriers = shared::dynamic_base() + T::EXCHANGE;
        let ring = Ring {
            matrices,
            rows,
            columns,
            row_bytes,
            stages,
            barriers: barriers + T::index() * stages * mbarrier::BYTES,
            base: barriers + RING_BARRIER_BYTES as u32 + T::index() * stages * M as u32 * row_bytes,
        };
        // SAFETY: forwarded to the caller.
        unsafe {
            if Self::asks::<T>() {
                let mut stage = 0;
                while stage < stages {
                    mbarrier::init(ring.filled(stage), 1);
                    if T::LANES > 32 {
                        mbarrier::init(ring.emptied(stage), T::LANES / 32);
                    }
                    stage += 1;
                }
                if T::LANES > 32 {
                    // Of a cluster two, whose phases end with the bytes that they expect.
                    let arrivals = if T::blocks() == 1 { T::LANES / 32 } else { 1 };
                    mbarrier::init(ring.joined(), arrivals);
                    mbarrier::init(ring.joined() + mbarrier::BYTES, arrivals);
                }
                mbarrier::fence_init();
            }
            T::begin();
            let mut stage = 0;
            while stage < stages {
                ring.ask::<T, E>(T::first() + stage as u64 * T::step(), stage);
                stage += 1;
            }
        }
        (ring, Stage::FIRST)
    }

    /// Whether this thread starts the copies.
    #[inline(always)]
    fn asks<T: Team>() -> bool {
        T::lane() == T::rank() * T::LANES
    }

    /// Completes when a stage has its rows.
    #[inline(always)]
    fn filled(&self, stage: u32) -> u32 {
        self.barriers + stage * mbarrier::BYTES
    }

    /// Completes when each warp of the block is done with a stage.
    #[inline(always)]
    fn emptied(&self, stage: u32) -> u32 {
        self.barriers + (self.stages + stage) * mbarrier::BYTES
    }

    /// The barrier of exchanges between the warps of the team, of one arrival each; of a cluster two, in turn.
    #[inline(always)]
    pub fn joined(&self) -> u32 {
        self.barriers + 2 * self.stages * mbarrier::BYTES
    }

    /// Starts the copies of a row of each matrix, if there is one.
    #[inline(always)]
    unsafe fn ask<T: Team, E: Element>(&self, row: u64, stage: u32) {
        if Self::asks::<T>() && row < self.rows {
            let barrier = self.filled(stage);
            let to = self.base + stage * M as u32 * self.row_bytes;
            let copy = |from: u32, at: u32, bytes: u32| {
                let mut i = 0;
                while i < M {
                    let (matrix, stride) = self.matrices[i];
                    let source = (matrix + row * stride + from as u64) as *const u8;
                    // SAFETY: the stage is free, the rows are readable.
                    unsafe { bulk::load(to + i as u32 * self.row_bytes + at, source, bytes, barrier) };
                    i += 1;
                }
            };
            // SAFETY: as above.
            unsafe {
                if T::blocks() == 1 {
                    mbarrier::arrive_expect_tx(barrier, M as u32 * self.row_bytes);
                    copy(0, 0, self.row_bytes);
                    return;
                }
                // Every so many columns are this block's; it arrives when all have been asked for.
                let piece = T::LANES * WIDTH * size_of::<E>() as u32;
                let end = self.columns * size_of::<E>() as u32;
                let (mut from, mut at, mut bytes) = (T::rank() * piece, 0, 0);
                while from < end {
                    let part = if end - from < piece { end - from } else { piece };
                    copy(from, at, part);
                    bytes += M as u32 * part;
                    at += piece;
                    from += piece * T::blocks();
                }
                mbarrier::arrive_expect_tx(barrier, bytes);
            }
        }
    }

    /// The stage after one.
    #[inline(always)]
    pub fn after(&self, stage: Stage) -> Stage {
        stage.next(self.stages)
    }

    /// Waits for the rows of a stage.
    ///
    /// # Safety
    /// - All threads of the team come here, and the row exists.
    #[inline(always)]
    pub unsafe fn wait(&self, stage: Stage) {
        // SAFETY: somebody asked for it.
        unsafe { mbarrier::wait_parity(self.filled(stage.index), stage.phase) }
    }

    /// This thread's vector `k` of the row of one of the matrices, zeros beyond the row.
    ///
    /// # Safety
    /// - [`wait`](Self::wait) has returned.
    #[inline(always)]
    pub unsafe fn vector<T: Team, E: Element>(&self, stage: Stage, matrix: u32, k: usize) -> E::Packed {
        if column_of::<T>(0, k) >= self.columns {
            return E::ZEROS;
        }
        let row = self.base + (stage.index * M as u32 + matrix) * self.row_bytes;
        let lane = T::lane() - T::rank() * T::LANES;
        let at = row + (lane + k as u32 * T::LANES) * (WIDTH * size_of::<E>() as u32);
        // SAFETY: within the stage; aligned, as it is a multiple of 16 bytes.
        unsafe { vector_at::<E>(at) }
    }

    /// This thread's vector `k` of the row of one of the matrices, zeros beyond the row,
    /// read again: registers do not keep it from before.
    ///
    /// # Safety
    /// - [`wait`](Self::wait) has returned.
    #[inline(always)]
    pub unsafe fn vector_anew<T: Team, E: Element>(&self, stage: Stage, matrix: u32, k: usize) -> E::Packed {
        if column_of::<T>(0, k) >= self.columns {
            return E::ZEROS;
        }
        let row = self.base + (stage.index * M as u32 + matrix) * self.row_bytes;
        let lane = anew_bits(T::lane()) - T::rank() * T::LANES;
        let at = row + (lane + k as u32 * T::LANES) * (WIDTH * size_of::<E>() as u32);
        // SAFETY: within the stage; aligned, as it is a multiple of 16 bytes.
        unsafe { vector_at::<E>(at) }
    }

    /// The first element of the row of the first matrix, of a team of one block.
    ///
    /// # Safety
    /// - [`wait`](Self::wait) has returned.
    #[inline(always)]
    pub unsafe fn first<E: Element>(&self, stage: Stage) -> f32 {
        // SAFETY: within the stage.
        unsafe { shared::ld::<E>(self.base + stage.index * M as u32 * self.row_bytes).to_f32() }
    }

    /// This warp is done with a stage.
    ///
    /// # Safety
    /// - All lanes come here together, once for each row.
    #[inline(always)]
    pub unsafe fn release<T: Team>(&self, stage: Stage) {
        // SAFETY: forwarded to the caller.
        unsafe {
            cuda_std::barrier::syncwarp(cuda_std::warp::FULL);
            if T::LANES > 32 {
                mbarrier::arrive_if(self.emptied(stage.index), cuda_std::thread::lane_id() == 0);
            }
        }
    }

    /// Gives a stage to `row`, once all warps of the block have [released](Self::release) it.
    ///
    /// # Safety
    /// - All lanes of the warp come here together; this warp has released the stage.
    #[inline(always)]
    pub unsafe fn refill_released<T: Team, E: Element>(&self, stage: Stage, row: u64) {
        // SAFETY: forwarded to the caller.
        unsafe {
            if T::LANES > 32 && Self::asks::<T>() && row < self.rows {
                mbarrier::wait_parity(self.emptied(stage.index), stage.phase);
            }
            self.refill::<T, E>(stage, row);
        }
    }

    /// Gives a stage to `row`.
    ///
    /// # Safety
    /// - All lanes of the warp come here together; no warp of the block reads the stage any more.
    #[inline(always)]
    pub unsafe fn refill<T: Team, E: Element>(&self, stage: Stage, row: u64) {
        // SAFETY: forwarded to the caller.
        unsafe {
            self.ask::<T, E>(row, stage.index);
            cuda_std::barrier::syncwarp(cuda_std::warp::FULL);
        }
    }
}
