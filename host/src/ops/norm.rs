//! RMSNorm and LayerNorm, with the residual sum in front.

mod backward;

pub use backward::NormGradients;

use kernels_gpu::{
    norm::{NormParams, SPREAD_BYTES, SPREAD_COLUMNS, SPREAD_HELD, SPREAD_THREADS, STREAM_BYTES, STREAM_STAGES},
    row::{LARGE_COLUMNS, WIDE_COLUMNS},
};

use super::rows::{Rows, Slices, Width, address, check_float, check_like, column_vector};
use crate::{AnyTensor, DType, Device, Error, Result, Stream, Tier, counter::Counter, launch::Contract};

/// RMSNorm or LayerNorm of rows, to be [run](Norm::run). Made by [`rms_norm`] and [`layer_norm`].
#[derive(Clone, Copy)]
#[must_use = "nothing is computed before `run`"]
pub struct Norm<'a> {
    x: &'a AnyTensor,
    residual: Option<&'a AnyTensor>,
    weight: Option<&'a AnyTensor>,
    bias: Option<&'a AnyTensor>,
    epsilon: f32,
    centered: bool,
    stream: Option<&'a Stream>,
}

/// What [`Norm::run`] computes.
#[derive(Clone, Debug)]
pub struct Normed {
    /// The normalised rows, in the dtype and shape of `x`.
    pub y: AnyTensor,
    /// `x + residual`, rounded to that dtype, when there is a residual: what was normalised.
    pub sum: Option<AnyTensor>,
}

/// `y = x/√(mean(x²) + ε) · weight` over the last axis (Zhang and Sennrich 2019), ε = 1e-5 unless given.
pub fn rms_norm(x: &AnyTensor) -> Norm<'_> {
    Norm {
        x,
        residual: None,
        weight: None,
        bias: None,
        epsilon: 1e-5,
        centered: false,
        stream: None,
    }
}

/// `y = (x − mean(x))/√(variance(x) + ε) · weight + bias` over the last axis (Ba et al. 2016), with the variance of
/// the whole population; ε = 1e-5 unless given.
pub fn layer_norm(x: &AnyTensor) -> Norm<'_> {
    Norm {
        centered: true,
        ..rms_norm(x)
    }
}

impl<'a> Norm<'a> {
    /// Factor of each column, `[columns]`; 1 unless given.
    pub fn weight(mut self, weight: &'a AnyTensor) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Summand of each column, `[columns]`; 0 unless given.
    pub fn bias(mut self, bias: &'a AnyTensor) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Added to `x` first; the sum is rounded to the dtype and returned.
    pub fn residual(mut self, residual: &'a AnyTensor) -> Self {
        self.residual = Some(residual);
        self
    }

    /// What is added to the mean square; finite, 0 or more.
    pub fn epsilon(mut self, epsilon: f32) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Runs in this stream.
    pub fn on(mut self, stream: &'a Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    fn check(&self) -> Result<()> {
        check_float("x", self.x)?;
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return Err(Error::range("epsilon", self.epsilon, "finite, 0 or more"));
        }
        match self.residual {
            Some(residual) => check_like("residual", residual, self.x, "x"),
            None => Ok(()),
        }
    }

    /// Normalises the rows, with f32 statistics around the mean; the result is rounded once.
    ///
    /// f32, f16 or bf16, all arguments alike; rows of up to 2³¹ − 1 elements with any stride. A row that is a constant
    /// gives `bias`; a NaN or infinity in a row makes that row NaN.
    ///
    /// # Errors
    /// [`Error::Dtype`], [`Error::Shape`], [`Error::Range`] naming the argument.
    pub fn run(self) -> Result<Normed> {
        self.check()?;
        let x = Rows::of("x", self.x)?;
        let dtype = self.x.dtype();
        let weight = column_vector("weight", self.weight, x.columns, dtype)?;
        let bias = column_vector("bias", self.bias, x.columns, dtype)?;
        let residual = self.residual.map(|r| Rows::of("residual", r)).transpose()?;
        let device = self.x.device();
        let y = AnyTensor::empty(device, dtype, self.x.shape())?;
        let sum = residual
            .as_ref()
            .map(|_| AnyTensor::empty(device, dtype, self.x.shape()))
            .transpose()?;
        if self.x.elements() == 0 {
            return Ok(Normed { y, sum });
        }
        let dense = |tensor: Option<&AnyTensor>| {
            address(tensor).is_multiple_of(16) && (x.rows <= 1 || (x.columns * dtype.size()).is_multiple_of(16))
        };
        let aligned = x.aligned()
            && residual.as_ref().is_none_or(Rows::aligned)
            && dense(Some(&y))
            && dense(sum.as_ref())
            && address(weight.as_ref()).is_multiple_of(16)
            && address(bias.as_ref()).is_multiple_of(16);
        let two = residual.is_some();
        let dense = aligned && x.columns.is_multiple_of(8);
        let plan = Plan::of(device, dtype, x.rows, x.columns, two, dense)?;
        let entry = format!("norm_{}_{dtype}", plan.kind);
        let counter = plan.counted.then(|| device.counter(self.stream)).transpose()?;
        let launch = Contract::new(device, &entry)
            .grid(plan.grid)
            .shared(plan.shared)
            .cluster(plan.cluster)
            .programmatic()
            .on(self.stream)
            .reads("x", &x.view)
            .reads_if("residual", residual.as_ref().map(|r| &r.view))
            .reads_if("weight", weight.as_ref())
            .reads_if("bias", bias.as_ref())
            .writes("y", &y)
            .writes_if("sum", sum.as_ref())
            .writes_if("counter", counter.as_ref().and_then(Counter::own))
            .prepare()?;
        let params = NormParams {
            x: x.address(),
            residual: residual.as_ref().map_or(0, Rows::address),
            weight: address(weight.as_ref()),
            bias: address(bias.as_ref()),
            y: y.address(),
            sum: address(sum.as_ref()),
            rows: x.rows,
            x_stride: x.stride,
            residual_stride: residual.as_ref().map_or(0, |r| r.stride),
            y_stride: x.columns,
            sum_stride: x.columns,
            next: counter.as_ref().map_or(0, Counter::address),
            columns: x.columns as u32,
            centered: self.centered as u32,
            epsilon: self.epsilon,
            reciprocal: (1.0 / x.columns as f64) as f32,
            aligned: aligned as u32,
            ahead: plan.ahead,
            stages: STREAM_STAGES as u32,
            reserved: 0,
        };
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above, and
        // the outputs are dense.
        unsafe { launch.launch(&params)? };
        Ok(Normed { y, sum })
    }
}

/// Which kernel takes the rows. Their length, their dtype and whether there is a residual decide the order of all sums;
/// whether they are `dense`, whole vectors at multiples of 16 bytes, only how they are loaded.
struct Plan {
    /// Part of the kernel's name.
    kind: String,
    grid: [u64; 3],
    cluster: u32,
    shared: u64,
    /// How many rows ahead a team asks L2 for.
    ahead: u32,
    /// Whether clusters take rows from a counter.
    counted: bool,
}

impl Plan {
    fn of(device: &Device, dtype: DType, rows: u64, columns: u64, residual: bool, dense: bool) -> Result<Plan> {
        let suffix = |kind: &str| match (dense, residual) {
            (true, true) => format!("{kind}_residual"),
            (true, false) => format!("{kind}_dense"),
            (false, _) => kind.to_owned(),
        };
        // Two blocks at least: without a cluster there is no store to another block.
        let clusters = device.tier() == Tier::Sm90a && columns > LARGE_COLUMNS;
        if let Some(deep) =
            (0..SPREAD_COLUMNS.len()).find(|&deep| clusters && dtype.size() == 2 && columns <= SPREAD_COLUMNS[deep])
        {
            let each = SPREAD_THREADS[deep] as u64 * SPREAD_HELD as u64 * 8;
            let cluster = columns.div_ceil(each).next_power_of_two();
            if deep == 1 && dense && !residual {
                let clusters =
                    device.clusters_at_once(&format!("norm_stream_{dtype}"), cluster as u32, STREAM_BYTES)?;
                return Ok(Plan {
                    kind: "stream".into(),
                    grid: [rows.min(clusters) * cluster, 1, 1],
                    cluster: cluster as u32,
                    shared: STREAM_BYTES,
                    ahead: 0,
                    counted: true,
                });
            }
            // About as many as run at a time, with a residual; half of that without.
            let ahead = device.properties().multiprocessors as u64 * if deep == 1 { 2 } else { 4 } / cluster;
            return Ok(Plan {
                kind: suffix(if deep == 1 { "spread_deep" } else { "spread" }),
                grid: [rows.saturating_mul(cluster), 1, 1],
                cluster: cluster as u32,
                shared: SPREAD_BYTES,
                ahead: ahead.max(1) as u32,
                counted: false,
            });
        }
        // Registers of one block hold shorter rows at less cost: weights stay in L1.
        if let Some(slices) = Slices::of(device, dtype, columns, 1 + residual as u32, WIDE_COLUMNS, 4) {
            return Ok(Plan {
                kind: "slices".into(),
                grid: slices.grid(rows),
                cluster: slices.blocks,
                shared: slices.shared,
                ahead: 0,
                counted: false,
            });
        }
        let width = Width::of(columns);
        let hopper = device.tier() == Tier::Sm90a && dtype.size() == 2;
        let kind = match (dense, residual, width) {
            (true, true, Width::Warp | Width::Block | Width::Large | Width::Wide) if device.tier() != Tier::Sm75 => {
                format!("residual_{}", width.name())
            }
            // A team a row.
            (true, false, Width::Warp | Width::Block | Width::Large) if hopper && rows <= 1 << 30 => {
                format!("dense_{}", width.name())
            }
            _ => width.name().to_owned(),
        };
        // With a residual both are asked for, so of fewer rows.
        let ahead = match (residual, width) {
            (false, _) => width.ahead(device),
            (true, Width::Warp) if hopper => 14 * device.properties().multiprocessors,
            (true, Width::Block) if hopper => 2 * device.properties().multiprocessors,
            (true, Width::Large) if hopper => device.properties().multiprocessors,
            _ => 0,
        };
        Ok(Plan {
            kind,
            grid: width.grid(rows),
            cluster: 1,
            shared: width.shared(),
            ahead,
            counted: false,
        })
    }
}
