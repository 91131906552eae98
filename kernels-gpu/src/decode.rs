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

use crate::{angles::Rotation, kernel_params, paging::Paging, params::TensorMap};

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
#[cfg(target_arch = "nvptx64")]
mod plan;
#[cfg(target_arch = "nvptx64")]
mod scalar;
#[cfg(target_arch = "nvptx64")]
mod stream;
#[cfg(target_arch = "nvptx64")]
mod tensor;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod wide;

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

kernel_params! {
    /// Arguments of `decode_*` and `decode_merge_*`. Strides count elements.
    pub struct DecodeParams {
        /// Where tokens lie.
        pub paging: Paging,
        /// Queries.
        pub q: u64,
        /// Keys.
        pub k: u64,
        /// Values.
        pub v: u64,
        /// Outputs.
        pub out: u64,
        /// Natural log-sum-exps, f32, `[batch, heads, seq_q]`.
        pub lse: u64,
        /// Partial outputs, f32, `[tile, split, row, value_dim]`.
        pub partial: u64,
        /// Maximum and sum of each partial row, f32 pairs, `[tile, split, row]`.
        pub statistics: u64,
        /// Tokens of each sequence, i32.
        pub lengths: u64,
        /// Tokens at the front that nobody sees, i32; or 0.
        pub left_padding: u64,
        /// ALiBi slopes, f32; or 0.
        pub alibi_slopes: u64,
        /// Logits of sinks, f32; or 0.
        pub sinks: u64,
        /// Factor of the keys of each KV head, f32; or 0 for 1.
        pub k_scale: u64,
        /// Factor of the values of each KV head, f32; or 0 for 1.
        pub v_scale: u64,
        /// Keys of this step, which the kernel rotates and appends; 0 when all are in the cache.
        pub k_new: u64,
        /// Values of this step.
        pub v_new: u64,
        /// Strides of the new keys: batch, token, head.
        pub k_new_strides: [u64; 3],
        /// Strides of the new values.
        pub v_new_strides: [u64; 3],
        /// How queries and new keys are rotated, where there are new keys.
        pub rotation: Rotation,
        /// Strides of Q: batch, row, head.
        pub q_strides: [u64; 3],
        /// Strides of O: batch, row, head.
        pub out_strides: [u64; 3],
        /// Slopes from one batch to the next: 0 or the number of heads.
        pub alibi_batch_stride: u64,
        /// Strides of the keys: page, slot, head; in units of 16 bytes.
        pub k_steps: [u32; 3],
        /// Strides of the values: page, slot, head; in units of 16 bytes.
        pub v_steps: [u32; 3],
        /// Sequences.
        pub batch: u32,
        /// KV heads.
        pub heads_kv: u32,
        /// Query heads of a KV head.
        pub group: u32,
        /// Queries of a sequence.
        pub seq_q: u32,
        /// Elements of a key.
        pub head_dim: u32,
        /// Elements of a value.
        pub value_dim: u32,
        /// Rows of a tile that are ever in use.
        pub rows: u32,
        /// Tiles of a KV head.
        pub tiles: u32,
        /// Most pieces of a tile: what [`split_tokens`] is given, with `least`.
        pub most: u32,
        /// Pieces that the workspace and the grid have room for.
        pub splits: u32,
        /// 1: each block folds all pieces of one tile; 0: the line of pieces is cut into as many parts as there are blocks.
        pub fold: u32,
        /// Added to every length: tokens appended by this step.
        pub appended: u32,
        /// Tokens that a sequence can have.
        pub capacity: u32,
        /// Keys before a query's own position that it sees, or [`UNBOUNDED`].
        pub window_left: u32,
        /// Keys after it, or [`UNBOUNDED`].
        pub window_right: u32,
        /// Factor of the scores.
        pub scale: f32,
        /// Cap of the scores, or 0.
        pub softcap: f32,
        /// 1: a block that has all pieces of a tile folds them though the others are written to the workspace; unless
        /// `fold` is 1. 2: one that has the only piece, or bundle, of a tile does.
        pub whole: u32,
        /// Heads whose parts of the line lie side by side, so that the keys of a token are read at the same time. Divides
        /// `heads_kv`.
        pub side: u32,
        /// Blocks of a cluster, a power of two. From 2 on, each cluster has one tile, and neither workspace nor merging
        /// kernel is needed.
        pub cluster: u32,
        /// Rows that a tile has room for, a power of two.
        pub tile_rows: u32,
        /// Least tokens of a piece, a power of two from [`MIN_SPLIT`] on.
        pub least: u32,
        /// 1: 16 tokens from a multiple of 16 on lie together: in one page, or in a row.
        pub together: u32,
        /// Tokens of a page are two to this power; 32 when they are not.
        pub page_shift: u32,
        /// Pieces that are folded together first, a *bundle*, are two to this power: [`Shape::bundle`].
        pub bundle: u32,
        /// 1: bundles are dealt out, not pieces, and the workspace has their results.
        pub bundled: u32,
        /// A block for each of so many pieces, or bundles, of a tile; 0 where a plan deals them out.
        pub each: u32,
        /// Log₂ of how many times the tokens of other pieces these have: narrower elements are as many bytes.
        pub narrow: u32,
    }

    /// Arguments of kernels that read the cache by tensor maps.
    pub struct MappedParams {
        /// Keys as (dim, slots of a page, heads, pages), box 64 × [`KEYS`] × 1 × 1.
        pub k_map: TensorMap,
        /// Values, in the same way.
        pub v_map: TensorMap,
        /// All else.
        pub decode: DecodeParams,
    }
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

/// Most pieces of `1 << shift` tokens: a small piece costs more to begin and to join than to read. Of elements that are
/// narrower than others by `1 << narrow`, as many bytes are more tokens.
#[inline(always)]
const fn pieces_of(shift: u32, most: u32, narrow: u32) -> u32 {
    let pieces = if shift < 9 + narrow {
        most / 4
    } else if shift < 11 + narrow {
        most / 2
    } else {
        most
    };
    if pieces == 0 { 1 } else { pieces }
}

/// Tokens up to which nothing but the number of steps counts.
pub const SHORT: u32 = 256;

/// Least tokens of a piece of a tile that sees `tokens` keys: narrow rows are cut up further where they are few.
#[inline(always)]
pub const fn least_of(tokens: u32, least: u32) -> u32 {
    if least == 2 * MIN_SPLIT && tokens <= SHORT {
        MIN_SPLIT
    } else {
        least
    }
}

/// Size of a tile's pieces, in tokens, when it sees keys `low..high`: the smallest power of two from [`least_of`] on that
/// gives at most `most / 4` pieces; from 512 tokens on `most / 2`, and from 2048 on `most`, where `narrow` is 0.
#[inline(always)]
pub const fn split_tokens(low: u32, high: u32, most: u32, least: u32, narrow: u32) -> u32 {
    // Where the search begins: anything smaller cannot be enough, since 2^(shift + 1) · most would be too few tokens.
    let mut shift = most.leading_zeros();
    let (tokens, least) = (
        (high - low).leading_zeros(),
        least_of(high - low, least).trailing_zeros(),
    );
    shift = if shift > tokens + least { shift - tokens } else { least };
    while shift < 30 && ((high + (1 << shift) - 1) >> shift) - (low >> shift) > pieces_of(shift, most, narrow) {
        shift += 1;
    }
    1 << shift
}

/// How a kernel cuts up its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Whether a block has a multiprocessor and a tile for itself.
    pub alone: bool,
    /// Groups of such a block, each of which has a part of its tile.
    pub groups: u32,
    /// Warps of a group.
    pub warps: u32,
    /// Keys that a warp takes at a time: a multiple of [`KEYS`].
    pub keys: u32,
    /// Stages of a warp's ring; with one, nothing is loaded ahead and the joining of warps reuses the stages.
    pub stages: u32,
    /// Bytes of a row in a stage.
    pub row_bytes: u32,
    /// Bytes of the queries in shared memory.
    pub query_bytes: u32,
    /// Padded head dim.
    pub dim: u32,
    /// Rows that a tile has room for.
    pub rows: u32,
    /// Rows whose warps are joined at a time.
    pub join_rows: u32,
    /// Whether the warps of a block share out columns of the output instead of keys: nothing of it is joined.
    pub united: bool,
    /// Whether a block may fold all pieces of a tile: where there is room for the totals.
    pub folds: bool,
    /// Bytes of the totals in shared memory; 0 where they are in registers.
    pub total_bytes: u32,
    /// Pieces that are folded together first are two to this power: the more rows a tile has, the more a piece's result weighs
    /// beside its keys.
    pub bundle: u32,
    /// Whether keys and values are read by tensor maps: of rows of 128 bytes.
    pub mapped: bool,
}

impl Shape {
    /// The shape of the kernel for a padded head dim, elements of `element` bytes (4: without tensor cores) and cache
    /// elements of `cache` bytes, on tier `sm` (75, 80 or 90).
    pub const fn new(sm: u32, element: u32, cache: u32, dim: u32) -> Shape {
        let row_bytes = dim * cache;
        let query_bytes = if element == 4 || dim > 128 {
            ROWS * dim * element
        } else {
            0
        };
        // A stage of a warp is 16 keys and 16 values.
        let stage = 2 * KEYS * row_bytes;
        // Turing has 64 KiB of shared memory, the smallest Ampere 99, Hopper 227.
        let (warps, stages) = if sm == 75 {
            if stage <= 8192 {
                (4, 1)
            } else if stage <= 16384 {
                (2, 1)
            } else {
                (1, 1)
            }
        } else if sm == 80 {
            if stage <= 8192 {
                (4, 2)
            } else if stage <= 16384 {
                (4, 1)
            } else {
                (2, 1)
            }
        } else if stage <= 4096 {
            (4, 5)
        } else if stage <= 8192 {
            (4, 3)
        } else if stage <= 16384 {
            (4, 2)
        } else {
            (4, 1)
        };
        Shape {
            alone: false,
            groups: 1,
            warps,
            keys: KEYS,
            stages,
            row_bytes,
            query_bytes,
            dim,
            rows: ROWS,
            join_rows: JOIN_ROWS,
            united: false,
            folds: query_bytes == 0,
            // What is converted leaves no registers.
            total_bytes: if cache == 1 { ROWS * dim * 4 } else { 0 },
            bundle: 0,
            mapped: false,
        }
    }

    /// The shape of the kernel for at most eight rows, on Hopper: three blocks on a multiprocessor.
    pub const fn few(cache: u32, dim: u32) -> Shape {
        let shape = Shape::new(90, 2, cache, dim);
        // Half as many maxima and bounds for as many bytes.
        let keys = if cache == 1 { 2 * KEYS } else { KEYS };
        let stage = 2 * keys * shape.row_bytes;
        Shape {
            keys,
            stages: if stage <= 2048 {
                5
            } else if stage <= 4096 {
                4
            } else if stage <= 8192 {
                2
            } else {
                3
            },
            query_bytes: 0,
            folds: true,
            total_bytes: if dim > 128 { 8 * dim * 4 } else { 0 },
            ..shape
        }
    }

    /// The shape of the kernels for at most eight rows whose blocks have a multiprocessor and a tile for themselves.
    pub const fn alone(cache: u32, dim: u32, groups: u32) -> Shape {
        let shape = Shape::few(cache, dim);
        Shape {
            alone: true,
            groups,
            // Measured: more 16-bit rows under way are read more slowly.
            stages: if cache == 2 {
                3
            } else {
                6 * 8192 / (groups * shape.stage_bytes())
            },
            ..shape
        }
    }

    /// The same, reading by tensor maps.
    pub const fn by_maps(self) -> Shape {
        Shape { mapped: true, ..self }
    }

    /// The shape of the kernel for many rows, on Hopper: of heads of 64 or 128 16-bit elements.
    pub const fn wide(dim: u32) -> Shape {
        Shape {
            query_bytes: WIDE_ROWS * dim * 2,
            // Two blocks on a multiprocessor.
            stages: if dim == 128 { 3 } else { 6 },
            rows: WIDE_ROWS,
            united: true,
            folds: true,
            total_bytes: 0,
            bundle: 2,
            ..Shape::new(90, 2, 2, dim)
        }
    }

    /// Whether a kernel of this shape on tier `sm` can rotate and append: Turing has no registers for that, nor have the widest
    /// heads in f32.
    pub const fn appends(self, sm: u32) -> bool {
        sm != 75 && self.row_bytes <= 512
    }

    /// Threads of a block: those of all groups, and the warp that joins several.
    pub const fn threads(self) -> u32 {
        (self.groups * self.warps + (self.groups > 1) as u32) * 32
    }

    /// Bytes of a warp's stage: keys, then values.
    pub const fn stage_bytes(self) -> u32 {
        2 * self.keys * self.row_bytes
    }

    /// Bytes of the header; queries that have room of their own follow.
    pub const fn header(self) -> u32 {
        header_bytes(self.rows)
    }

    /// Groups of four elements that a thread joins at a time.
    pub const fn quads(self) -> u32 {
        (self.join_rows * self.dim).div_ceil(self.warps * 32 * 4)
    }

    /// Totals of tiles with at most `rows` rows that a thread keeps in registers.
    pub const fn totals(self, rows: u32) -> u32 {
        if self.folds && self.total_bytes == 0 {
            rows / self.join_rows * self.quads() * 4
        } else {
            0
        }
    }

    /// Where the totals are that are in shared memory.
    pub const fn totals_at(self) -> u32 {
        self.header() + self.query_bytes
    }

    /// Where the stages begin.
    pub const fn stages_at(self) -> u32 {
        let at = self.totals_at() + self.total_bytes;
        // The swizzle counts from multiples of 1 KiB.
        if self.mapped { at.next_multiple_of(1024) } else { at }
    }

    /// Where the barriers of all stages are, in what the header has left.
    pub const fn barriers_at(self) -> u32 {
        self.header() - self.warps * self.stages * 8
    }

    /// Where the warps put their results at the end of a piece.
    pub const fn join_at(self) -> u32 {
        if self.stages == 1 {
            self.stages_at()
        } else {
            self.stages_at() + self.warps * self.stages * self.stage_bytes()
        }
    }

    /// Bytes from one group's shared memory to the next one's: a block has all that there is.
    pub const fn group_bytes(self) -> u32 {
        ((227 << 10) / self.groups) & !511
    }

    /// Dynamic shared memory of a block, or of a group of one that has several, when `rows` rows are in use.
    #[inline(always)]
    pub const fn shared_bytes(self, rows: u32) -> u32 {
        if self.united {
            return self.join_at();
        }
        let rows = if rows < self.join_rows { rows } else { self.join_rows };
        let join = self.join_at() + self.warps * rows * self.dim * 4;
        let stages = self.stages_at() + self.warps * self.stages * self.stage_bytes();
        if join > stages { join } else { stages }
    }

    /// Bytes behind those for keys and values of `tokens` tokens of this step.
    #[inline(always)]
    pub const fn fresh_bytes(self, tokens: u32) -> u32 {
        2 * tokens * self.row_bytes
    }

    /// Where the blocks of a cluster put the results of pieces, behind the keys and values of `tokens` tokens of this step.
    #[inline(always)]
    pub const fn gather_at(self, rows: u32, tokens: u32) -> u32 {
        self.shared_bytes(rows) + self.fresh_bytes(tokens)
    }

    /// Bytes of that for `splits` pieces.
    pub const fn gather_bytes(self, rows: u32, splits: u32, cluster: u32) -> u32 {
        splits * (rows * 8 + gathered(rows, self.dim, cluster) * 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_few_and_as_small_as_that_allows() {
        for (most, least, narrow) in [
            (1, 64, 0),
            (2, 64, 0),
            (7, 512, 0),
            (32, 64, 0),
            (32, 128, 0),
            (32, 256, 1),
            (128, 64, 0),
        ] {
            for (low, high) in [
                (0, 0),
                (0, 1),
                (0, 64),
                (0, 65),
                (63, 65),
                (100, 5000),
                (131_000, 131_073),
                (0, 1_000_000_000),
            ] {
                let size = split_tokens(low, high, most, least, narrow);
                let count = |size: u32| high.div_ceil(size) - low / size;
                assert!(size.is_power_of_two() && size >= least_of(high - low, least));
                assert!(count(size) <= most, "{low}..{high} in {most}");
                assert!(
                    size == least_of(high - low, least)
                        || count(size / 2) > pieces_of((size / 2).trailing_zeros(), most, narrow)
                );
            }
        }
    }

    #[test]
    fn every_kernel_fits_its_smallest_gpu() {
        for (sm, limit) in [(75, 64 << 10), (80, 99 << 10), (90, 227 << 10)] {
            // Only Hopper converts 8-bit floats.
            let pairs: &[(u32, u32)] = if sm == 90 {
                &[(4, 4), (2, 2), (2, 1)]
            } else {
                &[(4, 4), (2, 2)]
            };
            for &(element, cache) in pairs {
                for dim in [64, 128, 256] {
                    let shape = Shape::new(sm, element, cache, dim);
                    assert!(MIN_SPLIT.is_multiple_of(shape.warps * KEYS));
                    assert!(
                        shape.shared_bytes(ROWS) <= limit,
                        "sm_{sm} {element} {cache} {dim}: {shape:?} {}",
                        shape.shared_bytes(ROWS)
                    );
                    assert!(!shape.appends(sm) || shape.shared_bytes(ROWS) + shape.fresh_bytes(8) <= limit);
                }
            }
        }
    }

    #[test]
    fn two_blocks_for_many_rows_fit_a_multiprocessor() {
        for dim in [64, 128] {
            let shape = Shape::wide(dim);
            assert!(shape.folds && shape.appends(90) && MIN_SPLIT.is_multiple_of(shape.warps * KEYS));
            let block = shape.shared_bytes(WIDE_ROWS) + shape.fresh_bytes(8) + 1024;
            assert!(2 * block <= 228 << 10, "{dim}: {shape:?} {block}");
        }
    }

    #[test]
    fn three_blocks_for_few_rows_fit_a_multiprocessor() {
        for cache in [1, 2] {
            for dim in [64, 128] {
                let shape = Shape::few(cache, dim);
                assert!(shape.folds && (cache * MIN_SPLIT).is_multiple_of(2 * KEYS));
                // Each block takes 1 KiB more than it asks for.
                let block = shape.shared_bytes(8) + shape.fresh_bytes(1) + 1024;
                assert!(3 * block <= 228 << 10, "{cache} {dim}: {shape:?} {block}");
            }
        }
    }
}
