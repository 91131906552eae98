//! Launch of the kernels of sm_75 and sm_80, and of f32 on every tier: one block a tile.

use kernels_gpu::attention::params::{F32_SM75, MMA_SM75, MMA_SM75_EXTENDED, MMA_SM80, MMA_SM80_EXTENDED, TF32, Tiles};

use super::{
    plan::{self, Blocks, Target},
    validate::Problem,
};
use crate::{DType, Error, Result, Tier};

/// Launches the kernel of the problem.
pub fn launch(problem: &Problem, blocks: &Blocks, target: &Target) -> Result<()> {
    let tier = problem.q.device().tier();
    let table: &[Tiles] = match (problem.dtype, tier) {
        (DType::F32, Tier::Sm75) => &F32_SM75,
        (DType::F32, _) => &TF32,
        (DType::BF16, Tier::Sm75) => {
            let what = "attention in bf16 (f16 and f32 are)".into();
            return Err(Error::Unsupported { what, tier: Some(tier) });
        }
        (_, Tier::Sm75) if problem.extended() => &MMA_SM75_EXTENDED,
        (_, Tier::Sm75) => &MMA_SM75,
        _ if problem.extended() => &MMA_SM80_EXTENDED,
        _ => &MMA_SM80,
    };
    let choice = blocks.choose(problem, table, tier)?;
    let tiles = choice.tiles;
    let count = plan::tile_count(problem, tiles)?;
    let shared = match (problem.dtype, tier) {
        (DType::F32, Tier::Sm75) => tiles.shared_bytes_f32(),
        (DType::F32, _) => tiles.shared_bytes_tf32(),
        _ => tiles.shared_bytes_mma(),
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
