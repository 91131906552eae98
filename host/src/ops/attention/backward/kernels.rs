//! Which kernels compute the gradients of a problem, with which tiles.

use kernels_gpu::attention::params::{
    BACKWARD_F32_SM75, BACKWARD_MMA_SM75, BACKWARD_MMA_SM80, BACKWARD_SM90, BACKWARD_TF32, BackwardTiles,
};

use super::once::Once;
use crate::ops::attention::validate::Problem;
use crate::{AnyTensor, DType, Error, Result, Tier};

/// The tiles of a problem.
pub struct Plan {
    pub keys: BackwardTiles,
    pub queries: BackwardTiles,
    pub shared: fn(BackwardTiles) -> u32,
    /// Padded dim of values, for Δ.
    pub delta_dim: u32,
    /// The kernel for Δ.
    pub delta: String,
    /// Kernels for keys: one, or one for dK and one for dV.
    pub of_keys: Vec<String>,
    /// The kernel for queries.
    pub of_queries: String,
    /// Whether kernels load by tensor maps.
    pub mapped: bool,
    /// One kernel for all gradients instead.
    pub once: Option<Once>,
}

impl Plan {
    /// The kernels for a problem.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the tier has none, [`Error::Range`] when its tiles cannot be numbered.
    pub fn new(problem: &Problem) -> Result<Plan> {
        let tier = problem.q.device().tier();
        let extended = problem.extended();
        let mma = |tables: [[BackwardTiles; 3]; 2]| (tables, BackwardTiles::shared_bytes_mma as fn(_) -> _);
        let ([keys, queries], shared) = match (problem.dtype, tier) {
            (DType::F32, Tier::Sm75) => ([BACKWARD_F32_SM75; 2], BackwardTiles::shared_bytes_f32 as fn(_) -> _),
            (DType::F32, _) => (BACKWARD_TF32, BackwardTiles::shared_bytes_tf32 as fn(_) -> _),
            (DType::BF16, Tier::Sm75) => {
                let what = "the gradient of attention in bf16 (f16 and f32 are)".into();
                return Err(Error::Unsupported { what, tier: Some(tier) });
            }
            (_, Tier::Sm75) => mma(BACKWARD_MMA_SM75),
            (_, Tier::Sm90a) if !extended => (BACKWARD_SM90, BackwardTiles::shared_bytes_sm90 as fn(_) -> _),
            _ => mma(BACKWARD_MMA_SM80),
        };
        // Dims of 256 at most have been checked, and every table ends there.
        let at = |dim: u64| {
            keys.iter()
                .position(|tiles| dim <= tiles.dim.into())
                .unwrap_or(keys.len() - 1)
        };
        let index = at(problem.head_dim.max(problem.value_dim));
        let mapped = tier == Tier::Sm90a && problem.dtype != DType::F32 && !extended;
        let variant = if extended { "_extended" } else { "" };
        let (dtype, dim, delta_dim) = (problem.dtype, keys[index].dim, keys[at(problem.value_dim)].dim);
        let entry = |kind: &str| format!("attention_backward_{kind}{variant}_{dtype}_d{dim}");
        // A row of both gradients of 256 does not fit the registers of Hopper's kernel.
        let of_keys = if mapped && dim == 256 {
            vec![entry("k"), entry("v")]
        } else {
            vec![entry("kv")]
        };
        let once = if tier != Tier::Sm75 && problem.dtype != DType::F32 && !extended {
            Once::new(problem)?
        } else {
            None
        };
        Ok(Plan {
            once,
            keys: keys[index],
            queries: queries[index],
            shared,
            delta_dim,
            delta: format!("attention_backward_delta_{dtype}_d{delta_dim}"),
            of_keys,
            of_queries: entry("q"),
            mapped,
        })
    }

    /// Elements of the work buffer, f32.
    pub fn work_elements(&self, lse: &AnyTensor) -> u64 {
        self.once.as_ref().map_or(lse.elements(), |once| once.end(lse))
    }
}
