//! Dropout of probabilities: which of a thread's registers are kept, in the layout of the accumulators.
//!
//! Element (plane, row, key), where plane = batch · heads + head, is dropped when word `key % 4` of
//! Philox4x32-10 at counter `[key / 4, row, plane, offset low]` is below `round(p · 2³²)`; the key of the generator is
//! the seed, its upper word XOR the upper half of the offset. Tiles, tiers and neighbours have no part in it.
//!
//! A counter gives the fate of four keys of one row, which different lanes hold. Of each four registers
//! a thread holds, four lanes (two, where rows are queries) need the same counters: each lane computes one, and
//! they exchange the answers, a bit each.

use super::{params::AttentionParams, rows::Rows};
use crate::philox::philox4x32_10;
use crate::tile::opaque::opaque;
use cuda_std::{thread, warp};

/// A bit for each register: whether its probability is kept.
#[derive(Clone, Copy)]
pub struct Kept(u64);

impl Kept {
    /// Without dropout.
    pub const ALL: Kept = Kept(u64::MAX);

    /// For the `S` registers of the tile whose first column is `first_column`, a multiple of 4. With `KEYS` the rows
    /// are keys and the columns queries.
    ///
    /// # Safety
    /// - All lanes of the warp execute this together.
    #[inline(always)]
    pub unsafe fn new<const S: usize, const KEYS: bool>(
        params: &AttentionParams,
        rows: &Rows,
        first_column: i32,
    ) -> Self {
        let lane = opaque(thread::lane_id());
        let (plane, row) = rows.place();
        let column = first_column as u32;
        // The counter of this lane among those of registers 0 to 3.
        let (mut key_block, mut query) = if KEYS {
            ((row + lane / 8 % 2 * 8) / 4, column + lane % 4 * 2 + lane / 4 % 2)
        } else {
            (column / 4 + lane % 4 / 2, row + lane % 2 * 8)
        };
        let mut bits = 0;
        // A loop that the compiler cannot unroll: it would keep too many words in registers.
        let (mut at, end) = (0, opaque(S as u32));
        while at < end {
            // The keys of the rounds are found again for each counter: there are no registers for all of them.
            let key = [opaque(params.dropout_key[0]), opaque(params.dropout_key[1])];
            let words = philox4x32_10([key_block, query, plane, params.dropout_offset], key);
            let mut four = 0u32;
            let mut k = 0;
            while k < 4 {
                four |= ((words[k] >= params.dropout_threshold) as u32) << k;
                k += 1;
            }
            bits |= if S <= 32 {
                (four << at) as u64
            } else {
                (four as u64) << at
            };
            at += 4;
            if KEYS {
                query += 8;
            } else {
                key_block += 2;
            }
        }
        // SAFETY: forwarded to the caller.
        unsafe {
            bits = if KEYS {
                exchange::<S>(exchange::<S>(bits, 8, 2, 0x3333_3333), 4, 1, 0x5555_5555)
            } else {
                exchange::<S>(bits, 1, 2, 0x3333_3333)
            };
        }
        Kept(bits)
    }

    /// What is dropped becomes 0, the rest is multiplied by `factor`.
    #[inline(always)]
    pub fn keep<const S: usize>(self, values: &mut [f32; S], factor: f32) {
        let mut i = 0;
        while i < S {
            values[i] = if self.0 >> i & 1 != 0 { values[i] * factor } else { 0.0 };
            i += 1;
        }
    }
}

/// Swaps one bit of a register's place in its four, the one that moves it by `shift`, with the bit `lanes` of the
/// lane: `low` are the places where the former is 0.
///
/// # Safety
/// - All lanes of the warp execute this together.
#[inline(always)]
unsafe fn exchange<const S: usize>(bits: u64, lanes: u32, shift: u32, low: u32) -> u64 {
    let upper = thread::lane_id() & lanes != 0;
    let of_word = |own: u32| {
        // SAFETY: forwarded to the caller.
        let other = unsafe { warp::shfl_bfly(own, lanes) };
        if upper {
            own & !low | other >> shift & low
        } else {
            own & low | (other & low) << shift
        }
    };
    let word = of_word(bits as u32) as u64;
    if S > 32 {
        word | (of_word((bits >> 32) as u32) as u64) << 32
    } else {
        word
    }
}
