//! The tiles of a block of a packed launch, one after the other.
//!
//! Dense tiles follow the fixed order of [`schedule`](super::super::schedule). Packed sequences differ in length, so that fixed turns would end
//! apart (by a quarter with lengths of 1 to 8k): a block takes the next tile that nobody has, from a counter, and rows
//! that no sequence has are never anybody's. Which block computes a tile changes none of its bits.

use super::super::{
    params::{AttentionParams, flags},
    schedule::{Sequence, Tile},
};
use crate::tile::opaque::opaque;
use cuda_std::{
    atomic::{self, Gpu, Relaxed},
    shared::{ld_volatile, st},
};

/// Bytes of shared memory of a [`Queue`].
pub const QUEUE_BYTES: u32 = 8;

/// Where the loading thread stands among the packed sequences: the last one that had a tile for it, and the number of
/// tiles before that. In shared memory, as the thread has few registers.
pub struct Queue(u32);

impl Queue {
    /// The start of all sequences; `slot` is the shared address of [`QUEUE_BYTES`] bytes.
    ///
    /// # Safety
    /// - The bytes are this thread's alone.
    #[inline(always)]
    pub unsafe fn start(slot: u32) -> Queue {
        // SAFETY: forwarded to the caller.
        unsafe { st(slot, [0u32; 2]) };
        Queue(slot)
    }

    /// The next tile that nobody has, `rows` rows high; none is the end.
    ///
    /// # Safety
    /// - One thread calls this, with the `params` of a packed launch, whose counter was 0.
    #[inline(always)]
    pub unsafe fn take(&self, params: &AttentionParams, rows: u32) -> Option<Tile> {
        // SAFETY: the thread's own bytes, a counter that exists, sequences that exist; blocks of a sequence that has rows
        // are not 0, and the host launches no kernel without heads.
        unsafe {
            let taken = atomic::add_u32::<Relaxed, Gpu>(params.next as *mut u32, 1);
            let [mut batch, mut first]: [u32; 2] = ld_volatile(self.0);
            while batch < params.batch {
                let sequence = Sequence::by_flags(params, flags::VARLEN | opaque(params.flags), batch);
                let blocks = sequence.seq_q.div_ceil(rows);
                let place = taken - first;
                if place >= blocks * params.heads_q {
                    first += blocks * params.heads_q;
                    batch += 1;
                    continue;
                }
                st(self.0, [batch, first]);
                // Heads of one key head follow each other, the longest tiles first, as in the fixed order. What divides
                // is found again: the thread has no registers for what could be kept.
                let width = opaque(params.section);
                core::hint::assert_unchecked(width != 0 && blocks != 0);
                let (of_block, head) = (place / width, place % width);
                let (section, block) = (of_block / blocks, of_block % blocks);
                return Some(Tile {
                    batch,
                    head: section * width + head,
                    row: (blocks - 1 - block) * rows,
                    seq_q: sequence.seq_q,
                    start_q: sequence.start_q,
                    start_k: sequence.start_k,
                    mask: sequence.mask,
                });
            }
            None
        }
    }
}
