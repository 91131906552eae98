//! Rows of a matrix: who takes which element, and how a team of threads agrees on a sum or a maximum.
//!
//! A row belongs to one warp (up to [`WARP_COLUMNS`] elements), one block of [`BLOCK_THREADS`] (up to
//! [`BLOCK_COLUMNS`]), of [`LARGE_THREADS`] or of [`WIDE_THREADS`], and stays in registers as it lies in memory: many small teams, each
//! with all its loads on the way at once, keep memory busy. Longer rows are read again. Lane `l` of a team of `n` takes the elements `8(l + kn)` to
//! `8(l + kn) + 7` for `k = 0, 1, …`: columns alone decide, never addresses, so that a row has the same bits wherever
//! it lies. Where a row starts at a multiple of 16 bytes they are loaded as vectors, elsewhere one by one.

/// Elements of a vector.
pub const WIDTH: u32 = 8;
/// Vectors that a thread holds of its row.
pub const HELD: usize = 4;
/// Threads of a block of the one-warp-a-row kernels.
pub const WARP_THREADS: u32 = 128;
/// Rows that such a block takes at a time.
pub const WARP_ROWS: u32 = WARP_THREADS / 32;
/// Longest row that a warp takes.
pub const WARP_COLUMNS: u64 = 32 * HELD as u64 * WIDTH as u64;
/// Threads of a block for longer rows.
pub const BLOCK_THREADS: u32 = 128;
/// Longest row that such a block holds in registers.
pub const BLOCK_COLUMNS: u64 = BLOCK_THREADS as u64 * HELD as u64 * WIDTH as u64;
/// Threads of a block for rows twice as long.
pub const LARGE_THREADS: u32 = 256;
/// Longest row that such a block holds in registers.
pub const LARGE_COLUMNS: u64 = LARGE_THREADS as u64 * HELD as u64 * WIDTH as u64;
/// Threads of a block for the longest rows that are held.
pub const WIDE_THREADS: u32 = 1024;
/// Longest row that such a block holds in registers.
pub const WIDE_COLUMNS: u64 = WIDE_THREADS as u64 * HELD as u64 * WIDTH as u64;
/// Threads of a block for rows that are read more than once, all but the first time from L2.
pub const LONG_THREADS: u32 = 1024;
/// Vectors of type `E` that such a thread asks for at a time.
pub const fn long<E>() -> usize {
    if size_of::<E>() == 4 { 2 } else { 4 }
}
/// Vectors that a lane of a warp holds of each of two rows.
pub const PAIR_WARP_HELD: usize = 4;
/// Longest pair of rows that a warp takes.
pub const PAIR_WARP_COLUMNS: u64 = 32 * PAIR_WARP_HELD as u64 * WIDTH as u64;
/// Threads of a block for longer pairs.
pub const PAIR_BLOCK_THREADS: u32 = 512;
/// Vectors that such a thread holds of each of two rows.
pub const PAIR_BLOCK_HELD: usize = 2;
/// Longest pair of rows that such a block holds in registers.
pub const PAIR_BLOCK_COLUMNS: u64 = PAIR_BLOCK_THREADS as u64 * PAIR_BLOCK_HELD as u64 * WIDTH as u64;
/// Vectors of each row that a thread asks for at a time where two rows are read again.
pub const PAIR_LONG: usize = 2;
/// Dynamic shared memory of a block that works on one row: two sets of one slot of 8 bytes a warp.
pub const EXCHANGE_BYTES: u64 = 2 * 32 * 8;

#[cfg(target_arch = "nvptx64")]
mod memory;
#[cfg(target_arch = "nvptx64")]
mod part;
#[cfg(target_arch = "nvptx64")]
mod team;
#[cfg(target_arch = "nvptx64")]
mod values;

#[cfg(target_arch = "nvptx64")]
pub use {memory::*, part::*, team::*, values::*};
