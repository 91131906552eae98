//! Rows of a table by index, and the gradient of the table.
//!
//! An index outside the table gives a row of zeros and takes no part in the gradient: a kernel never faults on it.
//! [`index_check`](self) finds such indices.
//!
//! The gradient needs neither atomics nor sorting: one block a token looks for the token's index among the earlier
//! ones. Where it is the first of its kind, the block adds up the rows of all its kind in their order; else it ends.

use crate::kernel_params;

/// Threads of a block.
pub const THREADS: u32 = 256;
/// Columns that one block of the gradient takes.
pub const BACKWARD_COLUMNS: u64 = 2048;
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
    use crate::row::{Row, Vector, WIDTH};
    use crate::tile::element::{Bf16, Element, F16};
    use cuda_std::{
        atomic::{Gpu, Relaxed, min_u64},
        barrier::{syncthreads, syncthreads_or},
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

    #[inline(always)]
    unsafe fn scatter<E: Element>(p: EmbeddingParams) {
        let token = thread::block_idx_x() as u64;
        let me = thread::thread_idx_x();
        // SAFETY: the host gives the extents, and shared memory of a word a warp. All threads of the block take the
        // same way through the barriers: what decides is the same in all of them.
        unsafe {
            let row = index(p.indices, token, p.wide);
            if row < 0 || row as u64 >= p.table_rows || row == p.padding {
                return;
            }
            let mut begin = 0;
            while begin < token {
                let at = begin + me as u64;
                let same = at < token && index(p.indices, at, p.wide) == row;
                if syncthreads_or(same) {
                    return;
                }
                begin += THREADS as u64;
            }
            // This is the first of its kind: add up all that follow, in order.
            let column = thread::block_idx_y() * BACKWARD_COLUMNS as u32 + me * WIDTH;
            let target = Row::new::<E>(p.table, row as u64, p.table_stride, p.columns as u32, p.aligned);
            let takes = column < target.columns;
            let mut total: Vector = [0.0; 8];
            if takes && p.accumulate != 0 {
                total = target.load_mut::<E>(column, 0.0);
            }
            let masks = Shared::<u32>::dynamic(0);
            let mut begin = token;
            while begin < p.tokens {
                let at = begin + me as u64;
                let same = at < p.tokens && index(p.indices, at, p.wide) == row;
                let ballot = warp::vote_ballot(u32::MAX, same);
                if thread::lane_id() == 0 {
                    masks.add(thread::warp_idx()).write(ballot);
                }
                syncthreads();
                let mut part = 0;
                while part < THREADS / 32 {
                    let mut mask = masks.add(part).read();
                    while mask != 0 {
                        let other = begin + (part * 32 + mask.trailing_zeros()) as u64;
                        if takes {
                            let dy = Row::new::<E>(p.out, other, p.out_stride, p.columns as u32, p.aligned);
                            let dy = dy.load::<E>(column, 0.0);
                            let mut i = 0;
                            while i < 8 {
                                total[i] += dy[i];
                                i += 1;
                            }
                        }
                        mask &= mask - 1;
                    }
                    part += 1;
                }
                syncthreads();
                begin += THREADS as u64;
            }
            if takes {
                target.store::<E>(column, total);
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
        ($($name:ident $element:ty;)*) => {
            kernel! {$(
                /// The table's gradient: rows of equal index added in the order of the tokens. Block `(i, j)` takes
                /// token `i` and the `j`-th [`BACKWARD_COLUMNS`]; dynamic shared memory of a word a warp.
                ///
                /// # Safety
                /// - The tensors have the extents that the parameters say; `table` overlaps nothing.
                #[launch(threads = THREADS, min_blocks = 4)]
                pub fn $name(params: EmbeddingParams) {
                    scatter::<$element>(params)
                }
            )*}
        };
    }

    backwards! {
        embedding_backward_f32 f32;
        embedding_backward_f16 F16;
        embedding_backward_bf16 Bf16;
    }
}
