//! Tiles of up to 64 rows on Hopper: all rows of a KV head are one operand of `wgmma`, and the copy engine fills a ring.
//!
//! Two warps look pages up and start copies of boxes of 16 to 64 tokens, one those of keys, the other those of values: a copy of
//! each lane is an instruction of its own. A warpgroup multiplies, 64 keys at a time, with scores and output in its registers.
//! Tensor cores have so little to do (a third of the time that the bytes of a step take) that rows which do not exist cost
//! nothing; up to 32 rows are eight of each warp, so that a thread has exponentials of one row only. Pieces are folded in
//! registers, in bundles, as [`split_tokens`](super::split_tokens) and [`Shape::bundle`](super::Shape::bundle) say.
//!
//! What the kernel appends itself (see `fresh`) is laid among the keys that arrived, and written to the cache by the block whose
//! item has the token.

use super::DecodeParams;
use crate::{attention::params::PANEL, kernel_params, params::TensorMap};

#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod kernel;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod operands;
#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod produce;

/// Rows of a tile.
pub const PACKED_ROWS: u32 = 64;
/// Keys of a step.
pub const PACKED_KEYS: u32 = 64;
/// Threads of a block: a warpgroup that computes, and two warps that load.
pub const PACKED_THREADS: u32 = 192;
/// Bytes of a panel: 64 rows, swizzled.
pub const PACKED_PANEL_BYTES: u32 = PACKED_KEYS * PANEL * 2;

kernel_params! {
    /// Arguments of `decode_packed_*`.
    pub struct PackedParams {
        /// Keys as (head dim, slot, head, page), boxes of 64 elements and `1 << box_shift` slots.
        pub k_map: TensorMap,
        /// Values.
        pub v_map: TensorMap,
        /// The rest.
        pub decode: DecodeParams,
        /// Slots of a box are two to this power.
        pub box_shift: u32,
        /// Pieces, or bundles of them, of all tiles as long as they can be: `tiles · splits`, tiles side by side.
        pub items: u32,
    }
}

/// Most new tokens of a sequence that a launch rotates and appends itself.
pub const MOST_FRESH: u32 = 8;

/// Shared memory of a block.
#[derive(Clone, Copy, Debug)]
pub struct PackedShape {
    dim: u32,
    tall: bool,
}

impl PackedShape {
    /// For heads of `dim` 16-bit elements; `tall` for tiles of more than 32 rows.
    pub const fn new(dim: u32, tall: bool) -> PackedShape {
        PackedShape { dim, tall }
    }

    /// Blocks on a multiprocessor.
    pub const fn blocks(self) -> u32 {
        if self.tall && self.dim == 128 { 1 } else { 2 }
    }

    /// Stages of the ring.
    pub const fn stages(self) -> u32 {
        (768 / self.dim) / self.blocks()
    }

    /// Bytes of the keys of a step, and of the values.
    pub const fn tile_bytes(self) -> u32 {
        PACKED_KEYS * self.dim * 2
    }

    /// Bytes of a stage: keys, then values.
    pub const fn stage_bytes(self) -> u32 {
        2 * self.tile_bytes()
    }

    /// Where queries are.
    pub const fn queries_at(self) -> u32 {
        self.stages() * self.stage_bytes()
    }

    /// Where the ring's barriers are.
    pub const fn barriers_at(self) -> u32 {
        self.queries_at() + PACKED_ROWS * self.dim * 2
    }

    /// Where the tokens of this launch are, unless rows of queries that do not exist have them.
    pub const fn fresh_at(self) -> u32 {
        (self.barriers_at() + 2 * self.stages() * 8).next_multiple_of(16)
    }

    /// Dynamic shared memory of a block.
    pub const fn shared_bytes(self) -> u32 {
        self.fresh_at() + if self.tall { 2 * MOST_FRESH * self.dim * 2 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_a_multiprocessor_beside_a_merging_one() {
        for dim in [64, 128] {
            for tall in [false, true] {
                let shape = PackedShape::new(dim, tall);
                let block = shape.shared_bytes() + 1024;
                assert!(shape.blocks() * block + 1024 <= 228 << 10, "{shape:?}: {block}");
            }
        }
    }
}
