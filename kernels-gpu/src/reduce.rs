//! Reductions of rows to one value: sum, sum of squares, maximum, minimum, index of the maximum.
//!
//! A row is cut into *splits* of `chunk` elements; one warp (short rows, and every argmax) or one block (long rows) reduces
//! a split and writes one partial result, and further launches reduce the partials. Which lane takes which element depends on
//! the element's column alone, so a row's bits depend neither on other rows nor on its address. Accumulation is f32:
//! lanes over strided vectors, then butterflies in the warp, then a tree over warps. A NaN propagates; of equal
//! maxima the first wins.

use crate::kernel_params;

/// Threads of a block.
pub const THREADS: u32 = 256;
/// Warps of a block, and rows that a block of the short-row kernels takes at a time.
pub const WARPS: u32 = THREADS / 32;
/// Longest row that one warp reduces.
pub const WARP_COLUMNS: u64 = 4096;
/// Elements of a split of longer rows. Fixed, so that a result does not depend on the device.
pub const CHUNK: u64 = 32_768;
/// Elements of the shortest and of the longest split of an argmax, which no choice of splits changes. The shortest are for
/// inputs that would leave warps without work.
pub const ARGMAX_CHUNKS: [u64; 2] = [1024, 8192];
/// Partial maxima that a block joins.
pub const MERGED: u64 = 1024;

kernel_params! {
    /// Arguments of the `reduce_*` kernels.
    pub struct ReduceParams {
        /// Values, `rows` rows of `columns` elements.
        pub x: u64,
        /// Index of each value, i64, for `reduce_argmax_merge`; else unused.
        pub x_indices: u64,
        /// Results, f32, `rows × splits`; 0 when only indices are wanted.
        pub values: u64,
        /// Columns of the maxima, i64, `rows × splits`; unused by other kinds.
        pub indices: u64,
        /// Rows.
        pub rows: u64,
        /// Elements of a row.
        pub columns: u64,
        /// Elements from one row to the next.
        pub row_stride: u64,
        /// Elements of a split, a multiple of 8.
        pub chunk: u64,
        /// Splits of a row.
        pub splits: u64,
        /// What results are multiplied by (sums only).
        pub scale: f32,
        /// 1 when every row starts at a multiple of 16 bytes.
        pub aligned: u32,
    }
}

#[cfg(target_arch = "nvptx64")]
mod argmax;
#[cfg(target_arch = "nvptx64")]
mod rows;
