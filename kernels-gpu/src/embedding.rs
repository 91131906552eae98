//! Rows of a table by index, and the gradient of the table.
//!
//! An index outside the table gives a row of zeros and takes no part in the gradient: a kernel never faults on it.
//! [`index_check`](self) finds such indices.
//!
//! The gradient needs no sorting, and no order of its sums depends on atomics: `embedding_spans` finds the first and the last
//! token of each index, by maxima; then one block a token ends unless the token is the first of its kind, and adds up the
//! rows of all its kind in their order, which it seeks no further than the last.

use crate::kernel_params;

/// Threads of a block.
pub const THREADS: u32 = 256;
/// Threads of a block of the gradient.
pub const BACKWARD_THREADS: u32 = 128;
/// Columns that one block of the gradient takes.
pub const BACKWARD_COLUMNS: u64 = BACKWARD_THREADS as u64 * 8;
/// Tokens among which a block of the gradient seeks at a time.
pub const BACKWARD_TOKENS: u32 = BACKWARD_THREADS * 4;
/// Dynamic shared memory of such a block: two sets of a bit a token, and the list of those that were found.
pub const BACKWARD_BYTES: u64 = 2 * BACKWARD_TOKENS as u64 / 8 + 4 * BACKWARD_TOKENS as u64;
/// What `index_check` writes where no index is outside.
pub const ALL_INSIDE: u64 = u64::MAX;

kernel_params! {
    /// Arguments of the `embedding_*` kernels.
    pub struct EmbeddingParams {
        /// `table_rows × columns`; the gradient's target in the backward.
        pub table: u64,
        /// `tokens` indices, i32 or i64.
        pub indices: u64,
        /// Output, `tokens × columns`; the gradient of the output in the backward.
        pub out: u64,
        /// Of the gradient: u32, `2 × table_rows`, zeros before `embedding_spans`. For each row of the table, `u32::MAX` less the
        /// number of its first token, and 1 more than that of its last.
        pub spans: u64,
        /// Number of indices.
        pub tokens: u64,
        /// Rows of the table.
        pub table_rows: u64,
        /// Elements of a row.
        pub columns: u64,
        /// Elements from one row of the table to the next.
        pub table_stride: u64,
        /// Elements from one row of `out` to the next.
        pub out_stride: u64,
        /// Index without a gradient; −1 for none.
        pub padding: i64,
        /// 1 when indices are i64.
        pub wide: u32,
        /// 1 when every row starts at a multiple of 16 bytes.
        pub aligned: u32,
        /// 1 when the gradient is added to the target (backward only).
        pub accumulate: u32,
        /// Zero.
        pub reserved: u32,
    }

    /// Arguments of `index_check`.
    pub struct IndexCheckParams {
        /// `len` indices, i32 or i64.
        pub indices: u64,
        /// u64: least position of an index outside; it holds [`ALL_INSIDE`] before.
        pub first: u64,
        /// Number of indices.
        pub len: u64,
        /// Indices from 0 to below this are inside.
        pub bound: u64,
        /// An index that is allowed besides.
        pub ignore: i64,
        /// 1 when indices are i64.
        pub wide: u32,
        /// 1 when `ignore` is.
        pub ignores: u32,
    }
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::*;
    use crate::row::{Row, Vector, WIDTH, zip};
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{
        atomic::{Gpu, Relaxed, max_u32, min_u64},
        barrier::syncthreads,
        global,
        global::Value,
        kernel,
        shared::Shared,
        thread, warp,
    };

    /// Index `at` of i32 or i64 ones.
    #[inline(always)]
    unsafe fn index(indices: u64, at: u64, wide: u32) -> i64 {
        // SAFETY: the host gives the extents.
        unsafe {
            if wide != 0 {
                global::ld_nc((indices + at * 8) as *const i64)
            } else {
                global::ld_nc((indices + at * 4) as *const i32) as i64
            }
        }
    }

    /// Copies rows, as 16 bytes a thread where they are aligned.
    #[inline(always)]
    unsafe fn gather<V: Value + Default>(p: EmbeddingParams) {
        let size = size_of::<V>() as u64;
        let mut token = thread::block_idx_y() as u64;
        while token < p.tokens {
            // SAFETY: the host gives the extents; the index is compared with the table's.
            unsafe {
                let row = index(p.indices, token, p.wide);
                let inside = row >= 0 && (row as u64) < p.table_rows;
                let from = p.table + if inside { row as u64 * p.table_stride * size } else { 0 };
                let to = p.out + token * p.out_stride * size;
                let vectors = if p.aligned != 0 { p.columns * size / 16 } else { 0 };
                let mut i = thread::global_idx_x();
                while i < vectors {
                    let value = if inside {
                        global::ld_nc((from + i * 16) as *const [u32; 4])
                    } else {
                        [0; 4]
                    };
                    global::st((to + i * 16) as *mut [u32; 4], value);
                    i += thread::grid_stride_x();
                }
                let mut i = vectors * 16 / size + thread::global_idx_x();
                while i < p.columns {
                    let value = if inside {
                        global::ld_nc((from as *const V).add(i as usize))
                    } else {
                        V::default()
                    };
                    global::st((to as *mut V).add(i as usize), value);
                    i += thread::grid_stride_x();
                }
            }
            token += thread::grid_dim_y() as u64;
        }
    }

    /// The row of the table that a token adds to, if any.
    #[inline(always)]
    unsafe fn target(p: &EmbeddingParams, token: u64) -> Option<u64> {
        // SAFETY: forwarded to the caller.
        let row = unsafe { index(p.indices, token, p.wide) };
        (row >= 0 && (row as u64) < p.table_rows && row != p.padding).then_some(row as u64)
    }

    /// Sums of rows of equal index, `BATCH` rows asked for at a time.
    #[inline(always)]
    unsafe fn scatter<E: Element, const BATCH: usize>(p: EmbeddingParams) {
        let token = thread::block_idx_x();
        let me = thread::thread_idx_x();
        // SAFETY: the host gives the extents, and shared memory of `BACKWARD_BYTES`. All threads of the block take the
        // same way through the barriers: what decides is the same in all of them.
        unsafe {
            let Some(row) = target(&p, token as u64) else { return };
            let spans = p.spans as *const u32;
            if u32::MAX - global::ld_nc(spans.add(row as usize)) != token {
                return;
            }
            let end = global::ld_nc(spans.add((p.table_rows + row) as usize));
            let column = thread::block_idx_y() * BACKWARD_COLUMNS as u32 + me * WIDTH;
            let to = Row::new::<E>(p.table, row, p.table_stride, p.columns as u32, p.aligned);
            let takes = column < to.columns;
            let gradient = |other: u32| Row::new::<E>(p.out, other as u64, p.out_stride, p.columns as u32, p.aligned);
            let mut total: Vector = [0.0; 8];
            if takes {
                if p.accumulate != 0 {
                    total = to.load_mut::<E>(column, 0.0);
                }
                total = zip(total, gradient(token).load::<E>(column, 0.0), |sum, dy| sum + dy);
            }
            const WORDS: u32 = BACKWARD_TOKENS / 32;
            const WARPS: u32 = BACKWARD_THREADS / 32;
            let list = Shared::<u32>::dynamic(2 * WORDS * 4);
            let mut set = 0;
            let mut begin = token + 1;
            while begin < end {
                // One set is written while others may still read the one before.
                let masks = Shared::<u32>::dynamic(set * WORDS * 4);
                set ^= 1;
                let mut own = [0; (BACKWARD_TOKENS / BACKWARD_THREADS) as usize];
                let mut j = 0;
                while j < own.len() {
                    let at = begin + j as u32 * BACKWARD_THREADS + me;
                    let same = at < end && index(p.indices, at as u64, p.wide) == row as i64;
                    own[j] = warp::vote_ballot(u32::MAX, same);
                    j += 1;
                }
                let mut j = 0;
                while j < own.len() {
                    if thread::lane_id() == 0 {
                        masks.add(j as u32 * WARPS + thread::warp_idx()).write(own[j]);
                    }
                    j += 1;
                }
                syncthreads();
                let mut found = 0;
                let mut word = 0;
                while word < WORDS {
                    let mask = masks.add(word).read();
                    if word % WARPS == thread::warp_idx() && mask >> thread::lane_id() & 1 != 0 {
                        let before = mask & ((1 << thread::lane_id()) - 1);
                        list.add(found + before.count_ones())
                            .write(begin + word / WARPS * BACKWARD_THREADS + me);
                    }
                    found += mask.count_ones();
                    word += 1;
                }
                if found != 0 {
                    syncthreads();
                    let mut at = 0;
                    while at < found {
                        let mut batch = [E::ZEROS; BATCH];
                        let mut i = 0;
                        while i < BATCH {
                            if at + (i as u32) < found && takes {
                                let dy = gradient(list.add(at + i as u32).read());
                                batch[i] = dy.load_packed::<E>(column);
                            }
                            i += 1;
                        }
                        let mut i = 0;
                        while i < BATCH {
                            if at + (i as u32) < found {
                                total = zip(total, E::unpack8(batch[i]), |sum, dy| sum + dy);
                            }
                            i += 1;
                        }
                        at += BATCH as u32;
                    }
                }
                begin += BACKWARD_TOKENS;
            }
            if takes {
                to.store::<E>(column, total);
            }
        }
    }

    kernel! {
        /// `out[i] = table[indices[i]]`, elements of 16 bits.
        ///
        /// # Safety
        /// - The tensors have the extents that the parameters say; `out` overlaps nothing.
        #[launch(threads = THREADS, barriers = 0)]
        pub fn embedding_b16(params: EmbeddingParams) {
            gather::<u16>(params)
        }

        /// `out[i] = table[indices[i]]`, elements of 32 bits.
        ///
        /// # Safety
        /// - The tensors have the extents that the parameters say; `out` overlaps nothing.
        #[launch(threads = THREADS, barriers = 0)]
        pub fn embedding_b32(params: EmbeddingParams) {
            gather::<u32>(params)
        }

        /// First and last token of each index, for the gradient of the table.
        ///
        /// # Safety
        /// - The tensors have the extents that the parameters say; `spans` holds zeros.
        #[launch(threads = THREADS, barriers = 0)]
        pub fn embedding_spans(params: EmbeddingParams) {
            let token = thread::global_idx_x();
            if token < params.tokens && let Some(row) = target(&params, token) {
                let spans = params.spans as *mut u32;
                max_u32::<Relaxed, Gpu>(spans.add(row as usize), u32::MAX - token as u32);
                max_u32::<Relaxed, Gpu>(spans.add((params.table_rows + row) as usize), token as u32 + 1);
            }
        }

        /// Finds the first index outside `0..bound`.
        ///
        /// # Safety
        /// - `indices` holds `len` of them, `first` one u64.
        #[launch(threads = THREADS, barriers = 0)]
        pub fn index_check(params: IndexCheckParams) {
            let mut at = thread::global_idx_x();
            while at < params.len {
                let found = index(params.indices, at, params.wide);
                let ignored = params.ignores != 0 && found == params.ignore;
                if !ignored && (found < 0 || found as u64 >= params.bound) {
                    min_u64::<Relaxed, Gpu>(params.first as *mut u64, at);
                }
                at += thread::grid_stride_x();
            }
        }
    }

    macro_rules! backwards {
        ($($name:ident $element:ty, $batch:literal;)*) => {
            kernel! {$(
                /// The table's gradient: rows of equal index added in the order of the tokens. Block `(i, j)` takes
                /// token `i` and the `j`-th [`BACKWARD_COLUMNS`]; dynamic shared memory of [`BACKWARD_BYTES`].
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; `table` overlaps nothing; `spans` is what
                ///   `embedding_spans` leaves.
                #[launch(threads = BACKWARD_THREADS, min_blocks = 8)]
                pub fn $name(params: EmbeddingParams) {
                    scatter::<$element, $batch>(params)
                }
            )*}
        };
    }

    backwards! {
        embedding_backward_f32 f32, 3;
        embedding_backward_f16 F16, 8;
        embedding_backward_bf16 Bf16, 8;
    }
}
