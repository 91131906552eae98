//! Arguments of the kernels of decode.

use crate::{angles::Rotation, kernel_params, paging::Paging, params::TensorMap};

#[cfg(doc)]
use super::{KEYS, MIN_SPLIT, Shape, UNBOUNDED, split_tokens};

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
