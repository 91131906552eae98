//! Tiles of up to 64 rows on Hopper: all rows of a KV head are one operand of `wgmma`, and the copy engine fills a ring.
//!
//! Two warps look pages up and start copies of boxes of 16 to 64 tokens, one those of keys, the other those of values: a copy of
//! each lane is an instruction of its own. A warpgroup multiplies, 64 keys at a time, with scores and output in its registers.
//! Tensor cores have so little to do (a third of the time that the bytes of a step take) that rows which do not exist cost
//! nothing; up to 32 rows are eight of each warp, so that a thread has exponentials of one row only. Pieces are folded in
//! registers, in bundles, as [`split_tokens`](super::split_tokens) and [`Shape::bundle`](super::Shape::bundle) say.
//!
//! Where clusters of blocks for all tiles fit the GPU at once (`decode_packed_pair_*`), a block has two such teams, each of which
//! has a bundle, and the teams of a cluster a tile: they give each other the parts of the rows that each block folds (see
//! `gather`). Neither workspace nor merging kernel is needed. Clusters of twice as many blocks of one team leave too many
//! multiprocessors over.
//!
//! What the kernel appends itself (see `fresh`) is laid among the keys that arrived, and written to the cache by the block whose
//! item has the token.

use super::DecodeParams;
use crate::{attention::params::PANEL, kernel_params, params::TensorMap};

#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod gather;
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
/// Threads of a team: a warpgroup that computes, and two warps that load. A block has one team, or two where it shares a tile.
pub const PACKED_THREADS: u32 = 192;
/// Teams of such a block.
pub const PAIR: u32 = 2;
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

/// Most teams that share a tile.
pub const CLUSTER_MOST: u32 = 8;

/// Most new tokens of a sequence that a launch rotates and appends itself.
pub const MOST_FRESH: u32 = 8;

/// Shared memory of a block.
#[derive(Clone, Copy, Debug)]
pub struct PackedShape {
    dim: u32,
    tall: bool,
    teams: u32,
}

impl PackedShape {
    /// For heads of `dim` 16-bit elements; `tall` for tiles of more than 32 rows; of so many teams.
    pub const fn new(dim: u32, tall: bool, teams: u32) -> PackedShape {
        PackedShape { dim, tall, teams }
    }

    /// Blocks on a multiprocessor.
    pub const fn blocks(self) -> u32 {
        if self.teams > 1 || self.tall && self.dim == 128 {
            1
        } else {
            2
        }
    }

    /// Stages of a team's ring. Two teams of a multiprocessor read faster with fewer bytes under way.
    pub const fn stages(self) -> u32 {
        if self.teams > 1 {
            if self.dim == 128 { 2 } else { 3 }
        } else {
            (768 / self.dim) / self.blocks()
        }
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

    /// Shared memory of a team.
    pub const fn team_bytes(self) -> u32 {
        let bytes = self.fresh_at() + if self.tall { 2 * MOST_FRESH * self.dim * 2 } else { 0 };
        if self.teams > 1 {
            bytes.next_multiple_of(1024)
        } else {
            bytes
        }
    }

    /// Where a barrier is for what comes of the block's rows from the teams of its cluster, and behind it maximum and sum of each
    /// row of each team.
    pub const fn given_at(self) -> u32 {
        self.teams * self.team_bytes()
    }

    /// Where the outputs of those rows are.
    pub const fn given_output_at(self) -> u32 {
        self.given_at() + 16 + self.given_rows() * 8
    }

    /// Rows that a block is given: a cluster has `teams` teams for each part of the 32 rows.
    const fn given_rows(self) -> u32 {
        if self.teams > 1 { 32 * self.teams } else { 0 }
    }

    /// Dynamic shared memory of a block.
    pub const fn shared_bytes(self) -> u32 {
        if self.teams > 1 {
            self.given_output_at() + self.given_rows() * self.dim * 4
        } else {
            self.team_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_a_multiprocessor_beside_a_merging_one() {
        for dim in [64, 128] {
            for (tall, teams) in [(false, 1), (true, 1), (false, PAIR)] {
                let shape = PackedShape::new(dim, tall, teams);
                let block = shape.shared_bytes() + 1024;
                assert!(shape.blocks() * block + 1024 <= 228 << 10, "{shape:?}: {block}");
            }
        }
    }
}
