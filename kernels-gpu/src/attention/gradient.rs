//! What the backward kernels of all element types share: which block computes what, and the step from scores and `dP`
//! to `P` and `dS`.
//!
//! There are two kernels, and no atomics. One owns a tile of keys of a key head and streams the rows of the group's
//! query heads past it, in a fixed order, for dK and dV; the other owns a tile of query rows and streams keys past it
//! for dQ. Both compute `S' = own · otherᵀ` and `dP'`; with `KEYS` these are the transposes of scores and `dP`, so in
//! either kernel an accumulator's row belongs to the warp and its weights feed the next product where they are.

use super::{
    mask::Mask,
    params::{BackwardParams, flags},
    rows::Rows,
    schedule::{Sequence, Tile},
};
use cuda_std::{
    global,
    math::{ex2, fma},
    shared::st,
    thread,
};

/// log₂ e.
const LOG2_E: f32 = core::f32::consts::LOG2_E;

/// A block's tile: own rows, and what streams past.
pub struct Work {
    /// Sequence of the batch.
    pub batch: u32,
    /// First query head; the others follow it.
    pub head: u32,
    /// Key head.
    pub kv_head: u32,
    /// Query heads.
    pub turns: u32,
    /// First own row.
    pub first: u32,
    /// Own rows of the sequence.
    pub own_len: u32,
    /// Where the sequence begins in a packed Q.
    pub start_q: u32,
    /// Where it begins in packed keys.
    pub start_k: u32,
    /// Bounds; its rows are the own ones, its columns the others.
    pub mask: Mask,
}

impl Work {
    /// The tile of block `index`, `rows` own rows high. The longest come first: with a causal mask the first keys and
    /// the last queries.
    ///
    /// # Safety
    /// - `params` are those of the launch: no extent is 0.
    #[inline(always)]
    pub unsafe fn at<const KEYS: bool>(index: u32, params: &BackwardParams, rows: u32) -> Work {
        // SAFETY: forwarded to the caller.
        unsafe { Work::by_flags::<KEYS>(index, params, params.attention.flags, rows) }
    }

    /// The same with the flags of `params` given apart; see [`Mask::by_flags`].
    ///
    /// # Safety
    /// - As for [`Work::at`].
    #[inline(always)]
    pub unsafe fn by_flags<const KEYS: bool>(index: u32, params: &BackwardParams, all: u32, rows: u32) -> Work {
        let forward = &params.attention;
        // SAFETY: the host launches no kernel for empty extents.
        unsafe {
            if KEYS {
                let planes = forward.batch * params.heads_kv;
                core::hint::assert_unchecked(planes != 0 && params.heads_kv != 0);
                Work::of_keys(params, all, index % planes, index / planes * rows)
            } else {
                let tile = Tile::by_flags(index, forward, all, rows);
                core::hint::assert_unchecked(forward.group != 0);
                Work {
                    batch: tile.batch,
                    head: tile.head,
                    kv_head: tile.head / forward.group,
                    turns: 1,
                    first: tile.row,
                    own_len: tile.seq_q,
                    start_q: tile.start_q,
                    start_k: tile.start_k,
                    mask: tile.mask,
                }
            }
        }
    }

    /// The tile of keys `first` on of a key head, counted over all sequences; flags apart as in [`Mask::by_flags`].
    ///
    /// # Safety
    /// - As for [`Work::at`].
    #[inline(always)]
    pub unsafe fn of_keys(params: &BackwardParams, all: u32, plane: u32, first: u32) -> Work {
        let forward = &params.attention;
        // SAFETY: forwarded to the caller.
        unsafe {
            core::hint::assert_unchecked(params.heads_kv != 0);
            let (batch, kv_head) = (plane / params.heads_kv, plane % params.heads_kv);
            let sequence = Sequence::by_flags(forward, all, batch);
            Work {
                batch,
                head: kv_head * forward.group,
                kv_head,
                turns: forward.group,
                first,
                own_len: sequence.mask.seq_kv as u32,
                start_q: sequence.start_q,
                start_k: sequence.start_k,
                mask: sequence.mask.transposed(sequence.seq_q as i32),
            }
        }
    }

    /// The last of `rows` own rows from `first` on.
    #[inline(always)]
    pub fn last(&self, first: u32, rows: u32) -> i32 {
        let end = if first + rows < self.own_len {
            first + rows
        } else {
            self.own_len
        };
        end as i32 - 1
    }

    /// The index of the sequence in the batch axis: packed sequences share one.
    #[inline(always)]
    pub fn sequence(&self, params: &BackwardParams) -> u64 {
        if params.attention.flags & flags::VARLEN != 0 {
            0
        } else {
            self.batch as u64
        }
    }

    /// Batch, token and head at which the queries of turn `turn` begin.
    #[inline(always)]
    pub fn queries(&self, params: &BackwardParams, turn: u32) -> (u64, u64, u64) {
        (self.sequence(params), self.start_q as u64, (self.head + turn) as u64)
    }

    /// Batch, token and head at which the keys begin.
    #[inline(always)]
    pub fn keys(&self, params: &BackwardParams) -> (u64, u64, u64) {
        (self.sequence(params), self.start_k as u64, self.kv_head as u64)
    }

    /// Base-2 LSE and Δ of query `row` in turn `turn`; such that `P` is 0 where there is no row or it sees no key.
    ///
    /// # Safety
    /// - `params` are those of the launch.
    #[inline(always)]
    pub unsafe fn statistics(&self, params: &BackwardParams, turn: u32, row: u32, rows: u32) -> [f32; 2] {
        let nothing = [f32::INFINITY, 0.0];
        if row >= rows {
            return nothing;
        }
        let (sequence, start, head) = self.queries(params, turn);
        let strides = &params.attention.lse_strides;
        let at = 4 * (sequence * strides[0] + head * strides[1] + start + row as u64);
        // SAFETY: the row exists.
        let (lse, delta): (f32, f32) = unsafe {
            (
                global::ld_nc((params.attention.lse + at) as *const f32),
                global::ld_nc((params.delta + at) as *const f32),
            )
        };
        if lse == f32::NEG_INFINITY {
            nothing
        } else {
            [lse * LOG2_E, delta]
        }
    }

    /// Puts the statistics of a streamed tile of queries where [`of_columns`] finds them.
    ///
    /// # Safety
    /// - `to` is shared memory for 8 bytes a column; all threads of the block take part, at least as many as columns.
    #[inline(always)]
    pub unsafe fn stage_statistics(&self, params: &BackwardParams, turn: u32, first: i32, columns: u32, to: u32) {
        let thread = thread::thread_idx_x();
        if thread < columns {
            // SAFETY: forwarded to the caller.
            unsafe {
                let rows = self.mask.seq_kv as u32;
                st(
                    to + 8 * thread,
                    self.statistics(params, turn, first as u32 + thread, rows),
                );
            }
        }
    }
}

/// Statistics of registers `4i` to `4i + 3` where queries are columns.
///
/// # Safety
/// - [`Work::stage_statistics`] wrote at `from`, and a barrier has passed.
#[inline(always)]
pub unsafe fn of_columns(from: u32, i: usize) -> [[f32; 2]; 4] {
    // SAFETY: columns `8i + 2·(lane % 4)` and the next.
    let [a, b, c, d]: [f32; 4] = unsafe { cuda_std::shared::ld(from + 64 * i as u32 + thread::lane_id() % 4 * 16) };
    [[a, b], [c, d], [a, b], [c, d]]
}

/// From scores to `P`, and from `dP` to `dS = P ∘ (dP − Δ)` (times the derivative of softcap), in place. The factor
/// `scale` is left to the end.
///
/// `statistics` gives base-2 LSE and Δ of registers `4i` to `4i + 3`.
#[inline(always)]
pub fn weigh<const S: usize, const EXTENDED: bool>(
    rows: &Rows,
    scale_log2: f32,
    scores: &mut [f32; S],
    gradients: &mut [f32; S],
    (first_column, partial): (i32, bool),
    statistics: impl Fn(usize) -> [[f32; 2]; 4],
) {
    if EXTENDED {
        let mut i = 0;
        while i < S {
            scores[i] = rows.bent(scores[i]);
            i += 1;
        }
    }
    if partial {
        rows.mask(scores, first_column);
    }
    let position = rows.position(first_column);
    let mut i = 0;
    while i < S / 4 {
        let of_four = statistics(i);
        let mut j = 0;
        while j < 4 {
            let at = 4 * i + j;
            let [lse, delta] = of_four[j];
            let score = scores[at];
            if EXTENDED {
                let p = ex2(fma(rows.biased(score, position, at), LOG2_E, -lse));
                let ds = p * (gradients[at] - delta) * rows.slope_of_bent(score);
                // The derivative at a masked score, −∞, is no number.
                gradients[at] = if score == f32::NEG_INFINITY { 0.0 } else { ds };
                scores[at] = p;
            } else {
                let p = ex2(fma(score, scale_log2, -lse));
                gradients[at] = p * (gradients[at] - delta);
                scores[at] = p;
            }
            j += 1;
        }
        i += 1;
    }
}
