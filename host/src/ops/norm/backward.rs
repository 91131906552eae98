//! Gradients of the norms.

use kernels_gpu::norm::backward::{
    BACKWARD_WARPS, BLOCKS, COLUMNS, MULTIPROCESSORS, NormBackwardParams, NormSumParams, ROWS, STAGES, STREAM_BLOCK,
    STREAM_BYTES, STREAM_CLUSTER, STREAM_STAGES, SUM_BYTES, SUM_COLUMNS, SUMS_BLOCK_COLUMNS, SUMS_CLUSTER_BLOCK,
    SUMS_CLUSTER_COLUMNS, SUMS_CLUSTER_THREADS, SUMS_LARGE_COLUMNS, WARP_SUMS, stream_clusters,
};
use kernels_gpu::row::{
    EXCHANGE_BYTES, PAIR_WARP_COLUMNS, cluster_exchange_bytes, cluster_ring_bytes, ring_bytes, ring_columns,
};

use super::{
    super::{
        add,
        rows::{Rows, Width, address, check_like, column_vector},
    },
    Norm,
};
use crate::{AnyTensor, DType, Device, Result, Stream, Tier, launch::Contract};

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

/// Sums of the columns of one or two matrices of partial sums, `[rows, columns]` in f32, rounded to `dtype`, in one launch.
fn sum_columns(
    partials: [Option<&AnyTensor>; 2],
    dtype: DType,
    stream: Option<&Stream>,
) -> Result<[Option<AnyTensor>; 2]> {
    let Some(first) = partials[0].or(partials[1]) else {
        return Ok([None, None]);
    };
    let (device, rows, columns) = (first.device(), first.extent(0), first.extent(1));
    let sums = |partial: Option<&AnyTensor>| partial.map(|_| AnyTensor::empty(device, dtype, &[columns])).transpose();
    let out = [sums(partials[0])?, sums(partials[1])?];
    let given: Vec<_> = partials
        .iter()
        .zip(&out)
        .filter_map(|(partial, out)| Some(((*partial)?, out.as_ref()?)))
        .collect();
    let second = given.get(1);
    let entry = format!("norm_sum_{dtype}");
    let launch = Contract::new(device, &entry)
        .grid([columns.div_ceil(SUM_COLUMNS), given.len() as u64, 1])
        .shared(SUM_BYTES)
        .programmatic()
        .on(stream)
        .reads("partial", given[0].0)
        .reads_if("partial2", second.map(|(partial, _)| *partial))
        .writes("sums", given[0].1)
        .writes_if("sums2", second.map(|(_, out)| *out))
        .prepare()?;
    let params = NormSumParams {
        partial: given[0].0.address(),
        out: given[0].1.address(),
        partial2: address(second.map(|(partial, _)| *partial)),
        out2: address(second.map(|(_, out)| *out)),
        rows,
        columns,
    };
    // SAFETY: the argument struct of these kernels, with the extents of all tensors.
    unsafe { launch.launch(&params)? };
    Ok(out)
}

/// Stages of the rings of a block's teams; none where not one fits.
fn ring_stages(device: &Device, blocks: u64, bytes: impl Fn(u64) -> u64) -> u64 {
    let properties = device.properties();
    // Each block has a kilobyte of its own besides.
    let room = (properties.shared_per_multiprocessor as u64 / blocks).saturating_sub(1024);
    let room = room.min(properties.shared_per_block as u64);
    (1..=STAGES).rev().find(|&stages| bytes(stages) <= room).unwrap_or(0)
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
        let aligned = x.aligned()
            && dy.aligned()
            && out.aligned()
            && dsum.as_ref().is_none_or(Rows::aligned)
            && address(weight.as_ref()).is_multiple_of(16);
        // Rows of 16-bit elements, one after the other by clusters of small blocks, two a multiprocessor.
        let stream = device.tier() == Tier::Sm90a
            && dtype.size() == 2
            && aligned
            && x.columns.is_multiple_of(8)
            && (PAIR_WARP_COLUMNS + 1..=STREAM_BLOCK * STREAM_CLUSTER).contains(&x.columns)
            && (self.centered || self.bias.is_none());
        // Teams of a block, and blocks of a multiprocessor.
        let clusters =
            device.tier() == Tier::Sm90a && x.columns > SUMS_LARGE_COLUMNS && x.columns <= SUMS_CLUSTER_COLUMNS;
        // Blocks of a cluster: as few as hold the row.
        let cluster = match (stream, clusters) {
            (true, _) => x.columns.div_ceil(STREAM_BLOCK).next_power_of_two(),
            (_, true) => x.columns.div_ceil(SUMS_CLUSTER_BLOCK).next_power_of_two(),
            _ => 1,
        };
        let (width, of_block, blocks) = match x.columns {
            0..=PAIR_WARP_COLUMNS => (Width::Warp, BACKWARD_WARPS as u64, 1),
            columns if columns <= SUMS_BLOCK_COLUMNS => (Width::Block, 1, BLOCKS),
            columns if columns <= SUMS_LARGE_COLUMNS || clusters => (Width::Large, 1, 1),
            _ => (Width::Long, 1, 1),
        };
        // Rows of partial sums.
        let most = match cluster {
            _ if stream => stream_clusters(cluster, self.centered),
            1 => MULTIPROCESSORS * blocks,
            2 => MULTIPROCESSORS / 2,
            // As many as find room at a time: multiprocessors come in groups that fours do not fill.
            _ => 30,
        };
        let teams = x.rows.div_ceil(ROWS * of_block).clamp(1, most);
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
        let row_bytes = x.columns * dtype.size();
        let streams = aligned && row_bytes.is_multiple_of(16) && x.columns.is_multiple_of(8) && width != Width::Long;
        let of_cluster = |stages| {
            cluster_ring_bytes(
                SUMS_CLUSTER_THREADS as u64,
                stages,
                2 * ring_columns(x.columns, SUMS_CLUSTER_THREADS as u64, cluster) * dtype.size(),
            )
        };
        let stages = match device.tier() {
            _ if stream => STREAM_STAGES,
            Tier::Sm90a if streams && clusters => ring_stages(device, 1, of_cluster),
            Tier::Sm90a if streams => ring_stages(device, blocks, |stages| ring_bytes(of_block, stages, row_bytes)),
            _ => 0,
        };
        let shared = match (stages, width) {
            _ if stream => STREAM_BYTES,
            (0, _) if clusters => cluster_exchange_bytes(SUMS_CLUSTER_THREADS as u64),
            (_, _) if clusters => of_cluster(stages),
            (0, Width::Warp) => WARP_SUMS,
            (0, _) => EXCHANGE_BYTES,
            (_, Width::Warp) => ring_bytes(of_block, stages, row_bytes).max(WARP_SUMS),
            _ => ring_bytes(of_block, stages, row_bytes),
        };
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
            stages: stages as u32,
        };
        let entry = format!(
            "norm_{}_backward_{dtype}",
            match (stream, clusters) {
                (true, _) => "stream",
                (_, true) => "cluster",
                _ => width.name(),
            }
        );
        let grid = match width {
            Width::Long => width.grid(x.rows),
            _ => [teams * cluster, 1, 1],
        };
        let fused = !apart;
        let launch = Contract::new(device, &entry)
            .grid(grid)
            .shared(shared)
            .cluster(cluster as u32)
            .programmatic()
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
        let [dweight, dbias] = sum_columns([dweight.as_ref(), dbias.as_ref()], dtype, self.stream)?;
        Ok(NormGradients { dx, dweight, dbias })
    }
}
