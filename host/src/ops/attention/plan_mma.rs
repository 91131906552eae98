//! Launch of the kernels of sm_75 and sm_80, and of f32 on every tier: one block a tile.

use kernels_gpu::attention::params::{F32, MMA_SM75, MMA_SM80, Tiles};

use super::{
    plan::{self, Blocks, Target},
    validate::Problem,
};
use crate::{DType, Error, Result, Tier};

/// Launches the kernel of the problem.
pub fn launch(problem: &Problem, blocks: &Blocks, target: &Target) -> Result<()> {
    let tier = problem.q.device().tier();
    let table: &[Tiles] = match (problem.dtype, tier) {
        (DType::F32, _) => &F32,
        (DType::BF16, Tier::Sm75) => {
            let what = "attention in bf16 (f16 and f32 are)".into();
            return Err(Error::Unsupported { what, tier: Some(tier) });
        }
        (_, Tier::Sm75) => &MMA_SM75,
        _ => &MMA_SM80,
    };
    let choice = blocks.choose(problem, table, tier)?;
    let tiles = choice.tiles;
    let count = plan::tile_count(problem, tiles)?;
    let shared = if problem.dtype == DType::F32 {
        tiles.shared_bytes_f32()
    } else {
        tiles.shared_bytes_mma()
    };
    let entry = plan::entry(problem, choice);
    plan::start(
        problem,
        target,
        &entry,
        count,
        shared,
        &plan::params(problem, tiles, target),
    )
}
