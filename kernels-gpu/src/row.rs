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
/// Vectors that a thread of a block or a cluster holds of each of two rows.
pub const PAIR_HELD: usize = 2;
/// Threads of a block for longer pairs.
pub const PAIR_BLOCK_THREADS: u32 = 256;
/// Longest pair of rows that such a block takes.
pub const PAIR_BLOCK_COLUMNS: u64 = PAIR_BLOCK_THREADS as u64 * PAIR_HELD as u64 * WIDTH as u64;
/// Threads of a block for pairs twice as long.
pub const PAIR_LARGE_THREADS: u32 = 512;
/// Longest pair of rows that such a block takes.
pub const PAIR_LARGE_COLUMNS: u64 = PAIR_LARGE_THREADS as u64 * PAIR_HELD as u64 * WIDTH as u64;
/// Vectors of each row that a thread asks for at a time where two rows are read again.
pub const PAIR_LONG: usize = 2;
/// Dynamic shared memory of a block that works on one row: two sets of one slot of 16 bytes a warp.
pub const EXCHANGE_BYTES: u64 = 2 * 32 * 16;
/// The same of a block of a cluster: two sets of one slot of 32 bytes for each warp of up to 8 blocks.
pub const fn cluster_exchange_bytes(threads: u64) -> u64 {
    2 * 8 * threads
}
/// Shared memory of the barriers of the rings of a block: up to 64 stages of all its teams.
pub const RING_BARRIER_BYTES: u64 = 64 * 8;

/// Dynamic shared memory of a block of `teams` whose rings have `stages` of two rows of `bytes` each.
pub const fn ring_bytes(teams: u64, stages: u64, bytes: u64) -> u64 {
    EXCHANGE_BYTES + RING_BARRIER_BYTES + teams * stages * 2 * bytes
}

/// Threads of a block of a cluster that holds a row in shared memory.
pub const SLICE_THREADS: u32 = 256;
/// Blocks of them that a multiprocessor has registers for.
pub const SLICE_BLOCKS: u32 = 4;
/// Shortest pair of rows that is worth such a block.
pub const SLICE_PAIR_LEAST: u64 = 4096;
/// Most blocks of such a cluster.
pub const SLICE_CLUSTER: u64 = 8;
/// Exchanges of values between the blocks of a cluster, each at its own place.
pub const SLICE_JOINS: u32 = 3;
/// Bytes of the values of an exchange: 16 for each warp of the largest cluster.
pub const SLICE_JOIN_BYTES: u32 = SLICE_CLUSTER as u32 * SLICE_THREADS / 32 * 16;
/// Where the block's own exchanges lie: a vector of eight values a warp, and one value.
pub const SLICE_OWN_AT: u32 = SLICE_JOINS * SLICE_JOIN_BYTES + (16 + 4) * 8;
/// Shared memory before the slices: exchanges, the barriers of up to 16 parts, and those of the exchanges. Bulk copies are slower to
/// places that are no multiple of 128.
pub const SLICES_AT: u32 = (SLICE_OWN_AT + SLICE_THREADS / 32 * (32 + 4)).next_multiple_of(128);

/// Columns of a row that each block of a cluster takes; the last one may have fewer.
#[inline(always)]
pub const fn slice_columns(columns: u32, blocks: u32) -> u32 {
    // A power of two: no division.
    let log = blocks.trailing_zeros();
    let each = columns.div_ceil(64);
    ((each + blocks - 1) >> log) * 64
}

/// Shared memory of the slice of a row: with room for the bytes before its first element up to a multiple of 16, and
/// for what is read beyond its end.
#[inline(always)]
pub const fn slice_bytes(columns: u32, blocks: u32, size: u32) -> u32 {
    slice_columns(columns, blocks) * size + 64
}

/// Dynamic shared memory of a block that holds slices of `rows` rows.
pub const fn slices_bytes(rows: u32, columns: u32, blocks: u32, size: u32) -> u64 {
    SLICES_AT as u64 + rows as u64 * slice_bytes(columns, blocks, size) as u64
}

/// Columns of a row that a block of a cluster of `blocks` of `threads` has in its ring.
#[inline(always)]
pub const fn ring_columns(columns: u64, threads: u64, blocks: u64) -> u64 {
    columns.div_ceil(threads * blocks * WIDTH as u64) * threads * WIDTH as u64
}

/// Dynamic shared memory of a block of `threads` of a cluster whose ring has `stages`, each of `bytes` in this block.
pub const fn cluster_ring_bytes(threads: u64, stages: u64, bytes: u64) -> u64 {
    cluster_exchange_bytes(threads) + RING_BARRIER_BYTES + stages * bytes
}

#[cfg(tier = "sm_90a")]
mod cluster;
#[cfg(tier = "sm_90a")]
mod exchange;
#[cfg(target_arch = "nvptx64")]
mod memory;
#[cfg(target_arch = "nvptx64")]
mod ordered;
#[cfg(target_arch = "nvptx64")]
mod part;
#[cfg(tier = "sm_90a")]
mod place;
#[cfg(tier = "sm_90a")]
mod powers;
#[cfg(target_arch = "nvptx64")]
mod ring;
#[cfg(tier = "sm_90a")]
mod slice;
#[cfg(target_arch = "nvptx64")]
mod team;
#[cfg(target_arch = "nvptx64")]
mod values;

#[cfg(tier = "sm_90a")]
pub use {cluster::*, exchange::*, place::*, powers::*, slice::*};
#[cfg(target_arch = "nvptx64")]
pub use {memory::*, ordered::*, part::*, ring::*, team::*, values::*};
