//! Attention of new tokens over a cache: few queries, many keys, at the speed of memory.
//!
//! # Work
//! The rows of a *tile* are 16 (query, query head) pairs of one KV head, query-major: all heads that share the KV head
//! read its keys once. The keys that a tile sees are cut into *pieces* at multiples of a size that follows from the
//! row alone ([`split_tokens`]); a piece is attended by the warps of one block, each of which has a stream of 16 keys at a
//! time through its own ring of `cp.async` stages, so that no barrier stands in the loop. At the end of a piece the
//! warps are joined in shared memory, while the copies of the next one, be it of another sequence, are under way.
//!
//! # The same bits in every batch
//! A tile's result is the left fold over its pieces in order. Either one block has all pieces and folds them as it goes, or
//! each piece is written to the workspace and `decode_merge_*` folds: the same operations in the same order, so the
//! choice, which depends on the batch, changes no bit. (Tiles of many rows fold bundles of pieces first, then the bundles.) All lengths are read on the device, which plans from them who does
//! what; the grid depends on capacities only: a captured graph stays valid while sequences grow.
//!
//! # Many rows
//! Tiles of more rows than that are 32 rows on Hopper, or 64 where the copy engine can load their keys ([`packed`]).
//!
//! # Few sequences
//! Plain attention of at most eight rows a tile, over few slots, has kernels without a plan: [`direct`]. The pieces are the
//! same, and so are the bits.
//!
//! Scores are kept in units of log₂: `x = (scale·q·k, capped, minus slope·distance) · log₂ e`.

#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod cluster;
pub mod direct;
#[cfg(target_arch = "nvptx64")]
mod end;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod few;
#[cfg(target_arch = "nvptx64")]
mod finish;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod fp8;
#[cfg(target_arch = "nvptx64")]
mod fresh;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod joiner;
#[cfg(target_arch = "nvptx64")]
mod load;
#[cfg(target_arch = "nvptx64")]
mod merge;
pub mod packed;
mod params;
mod pieces;
#[cfg(target_arch = "nvptx64")]
mod plan;
#[cfg(target_arch = "nvptx64")]
mod scalar;
mod shape;
#[cfg(target_arch = "nvptx64")]
mod stream;
#[cfg(target_arch = "nvptx64")]
mod tensor;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod wide;
#[cfg(target_arch = "nvptx64")]
mod work;

pub use params::*;
pub use pieces::{SHORT, least_of, split_tokens};
pub use shape::Shape;

/// Rows of a tile.
pub const ROWS: u32 = 16;
/// Rows of a tile of Hopper's kernels for many rows.
pub const WIDE_ROWS: u32 = 32;
/// Rows whose warps are joined at a time.
pub const JOIN_ROWS: u32 = 4;
/// Keys that a warp takes at a time.
pub const KEYS: u32 = 16;
/// Smallest piece; a multiple of what a block takes at a time.
pub const MIN_SPLIT: u32 = 64;
/// No bound of a window.
pub const UNBOUNDED: u32 = 1 << 30;
/// Threads of a merging block.
pub const MERGE_THREADS: u32 = 128;
/// Bytes at the front of shared memory for tiles of so many rows: the plan, bounds, statistics and factors of the rows. A
/// multiple of the widest row of 16-bit elements, so that stages and queries begin at a multiple of theirs.
pub const fn header_bytes(rows: u32) -> u32 {
    (656 + 100 * rows).next_multiple_of(512)
}

/// `n / d`, for `d` that is not 0: nearly always a power of two, and a division is twenty instructions, one waiting for the other.
#[inline(always)]
pub const fn quotient(n: u32, d: u32) -> u32 {
    // SAFETY: the host launches no kernel for nothing.
    unsafe { core::hint::assert_unchecked(d != 0) };
    if d & (d - 1) == 0 {
        n >> d.trailing_zeros()
    } else {
        n / d
    }
}

/// Threads of the merging kernel that a row of so many elements has: each folds four.
#[inline(always)]
pub const fn quads_of(value_dim: u32) -> u32 {
    if value_dim < 4 { 1 } else { value_dim / 4 }
}

/// Elements of a tile that a block of a cluster owns in a row.
pub const GATHER_GRAIN: u32 = 32;

/// Elements of a tile that each block of a cluster owns.
#[inline(always)]
pub const fn gathered(rows: u32, dim: u32, cluster: u32) -> u32 {
    let all = GATHER_GRAIN << cluster.trailing_zeros();
    ((rows * dim + all - 1) >> all.trailing_zeros()) * GATHER_GRAIN
}
