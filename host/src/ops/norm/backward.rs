//! Gradients of the norms.

use kernels_gpu::norm::backward::{
    BLOCK_TEAMS, COLUMNS, NormBackwardParams, NormSumParams, ROWS, SUM_COLUMNS, THREADS, WARP_TEAMS,
};
use kernels_gpu::row::WARP_ROWS;

use super::{
    super::{
        add,
        rows::{Rows, Width, address, check_like, column_vector},
    },
    Norm,
};
use crate::{AnyTensor, DType, Result, Stream, launch::Contract};

/// What [`Norm::backward`] computes.
#[derive(Clone, Debug)]
pub struct NormGradients {
    /// Of `x`, and of the residual, in their dtype and shape.
    pub dx: AnyTensor,
    /// Of the weight, `[columns]`, when there is one.
    pub dweight: Option<AnyTensor>,
    /// Of the bias, `[columns]`, when there is one.
    pub dbias: Option<AnyTensor>,
}

/// Sums of the columns of `partial`, `[rows, columns]` in f32, rounded to `dtype`.
fn sum_columns(partial: &AnyTensor, dtype: DType, stream: Option<&Stream>) -> Result<AnyTensor> {
    let (rows, columns) = (partial.extent(0), partial.extent(1));
    let out = AnyTensor::empty(partial.device(), dtype, &[columns])?;
    let entry = format!("norm_sum_{dtype}");
    let launch = Contract::new(partial.device(), &entry)
        .grid([columns.div_ceil(SUM_COLUMNS), 1, 1])
        .shared(THREADS as u64 * 4)
        .on(stream)
        .reads("partial", partial)
        .writes("sums", &out)
        .prepare()?;
    let params = NormSumParams {
        partial: partial.address(),
        out: out.address(),
        rows,
        columns,
    };
    // SAFETY: the argument struct of these kernels, with the extents of both tensors.
    unsafe { launch.launch(&params)? };
    Ok(out)
}

impl Norm<'_> {
    /// Gradients of `Σ dy ∘ y + Σ dsum ∘ sum`, where `dsum` is what flows back along the residual stream when the sum
    /// was used further.
    ///
    /// Statistics are computed again from `x` (and the residual; give the stored sum as `x` where there is one, and
    /// no residual). Sums over rows are f32, in an order that the shape alone decides. The bias only decides whether
    /// there is a `dbias`.
    ///
    /// # Errors
    /// As for [`run`](Norm::run).
    pub fn backward(self, dy: &AnyTensor, dsum: Option<&AnyTensor>) -> Result<NormGradients> {
        self.check()?;
        check_like("dy", dy, self.x, "x")?;
        if let Some(dsum) = dsum {
            check_like("dsum", dsum, self.x, "x")?;
        }
        let summed;
        let x = match self.residual {
            Some(residual) => {
                summed = add(self.x, residual)?;
                Rows::of("x", &summed)?
            }
            None => Rows::of("x", self.x)?,
        };
        let (device, dtype) = (self.x.device(), self.x.dtype());
        let weight = column_vector("weight", self.weight, x.columns, dtype)?;
        column_vector("bias", self.bias, x.columns, dtype)?;
        let dx = AnyTensor::empty(device, dtype, self.x.shape())?;
        if self.x.elements() == 0 {
            let zeros = |there: bool| AnyTensor::zeros(device, dtype, &[x.columns]).map(|zeros| there.then_some(zeros));
            return Ok(NormGradients {
                dx,
                dweight: zeros(self.weight.is_some())?,
                dbias: zeros(self.bias.is_some())?,
            });
        }
        let dy = Rows::of("dy", dy)?;
        let dsum = dsum.map(|dsum| Rows::of("dsum", dsum)).transpose()?;
        let out = Rows::written("dx", &dx)?;
        let width = Width::of_pair(x.columns);
        let most = if width == Width::Warp { WARP_TEAMS } else { BLOCK_TEAMS };
        let teams = x.rows.div_ceil(ROWS).clamp(1, most);
        // Warps come in whole blocks.
        let teams = match width {
            Width::Warp => teams.next_multiple_of(WARP_ROWS as u64),
            _ => teams,
        };
        let partial = |there: bool| {
            there
                .then(|| AnyTensor::empty(device, DType::F32, &[teams, x.columns]))
                .transpose()
        };
        let (dweight, dbias) = (partial(self.weight.is_some())?, partial(self.bias.is_some())?);
        let apart = width == Width::Long && (dweight.is_some() || dbias.is_some());
        let statistics = apart
            .then(|| AnyTensor::empty(device, DType::F32, &[x.rows, 3]))
            .transpose()?;
        let aligned = x.aligned()
            && dy.aligned()
            && out.aligned()
            && dsum.as_ref().is_none_or(Rows::aligned)
            && address(weight.as_ref()).is_multiple_of(16);
        let params = NormBackwardParams {
            x: x.address(),
            dy: dy.address(),
            dsum: dsum.as_ref().map_or(0, Rows::address),
            weight: address(weight.as_ref()),
            dx: out.address(),
            dweight: address(dweight.as_ref()),
            dbias: address(dbias.as_ref()),
            statistics: address(statistics.as_ref()),
            rows: x.rows,
            x_stride: x.stride,
            dy_stride: dy.stride,
            dsum_stride: dsum.as_ref().map_or(0, |dsum| dsum.stride),
            dx_stride: out.stride,
            teams,
            columns: x.columns as u32,
            centered: self.centered as u32,
            epsilon: self.epsilon,
            reciprocal: (1.0 / x.columns as f64) as f32,
            aligned: aligned as u32,
            reserved: 0,
        };
        let entry = format!("norm_{}_backward_{dtype}", width.name());
        let grid = match width {
            Width::Warp => [teams / WARP_ROWS as u64, 1, 1],
            Width::Long => width.grid(x.rows),
            _ => [teams, 1, 1],
        };
        let fused = !apart;
        let launch = Contract::new(device, &entry)
            .grid(grid)
            .shared(width.shared())
            .on(self.stream)
            .reads("x", &x.view)
            .reads("dy", &dy.view)
            .reads_if("dsum", dsum.as_ref().map(|dsum| &dsum.view))
            .reads_if("weight", weight.as_ref())
            .writes("dx", &dx)
            .writes_if("dweight", dweight.as_ref().filter(|_| fused))
            .writes_if("dbias", dbias.as_ref().filter(|_| fused))
            .writes_if("statistics", statistics.as_ref())
            .prepare()?;
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
        unsafe { launch.launch(&params)? };
        if let Some(statistics) = &statistics {
            let entry = format!("norm_columns_{dtype}");
            let launch = Contract::new(device, &entry)
                .grid([x.columns.div_ceil(COLUMNS), teams, 1])
                .on(self.stream)
                .reads("x", &x.view)
                .reads("dy", &dy.view)
                .reads("statistics", statistics)
                .writes_if("dweight", dweight.as_ref())
                .writes_if("dbias", dbias.as_ref())
                .prepare()?;
            // SAFETY: as above.
            unsafe { launch.launch(&params)? };
        }
        let sums = |partial: Option<AnyTensor>| {
            partial
                .map(|partial| sum_columns(&partial, dtype, self.stream))
                .transpose()
        };
        Ok(NormGradients {
            dx,
            dweight: sums(dweight)?,
            dbias: sums(dbias)?,
        })
    }
}
