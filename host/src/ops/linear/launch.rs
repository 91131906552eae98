//! From a checked layer to its launch: the chosen kernel and its arguments.

use kernels_gpu::linear::{
    ACTIVATION_GELU_ERF, ACTIVATION_GELU_TANH, ACTIVATION_IDENTITY, ACTIVATION_RELU, ACTIVATION_SILU, ClusterParams,
    HOPPER_DEPTH, HopperParams, LanesParams, LinearParams, NORM_NONE, ROWS_DEPTH, StreamParams,
};
use kernels_gpu::tile::division::Divisor;

use super::{
    Linear,
    clustered::Cluster,
    plan::{Extra, Plan},
    problem::{Geometry, Problem},
    rows::{RowsMaps, RowsPlan},
};
use crate::{
    AnyTensor, Result,
    launch::{Contract, Prepared},
    reference::activation::Activation,
};

impl Problem<'_> {
    /// Launches the layer, and what has to go before it.
    pub(super) fn launch(&self, y: &AnyTensor, z: Option<&AnyTensor>) -> Result<()> {
        self.check_rows("y", y, &self.y_shape())?;
        let layer = self.layer;
        if y.elements() == 0 {
            return Ok(());
        }
        let device = layer.x.device();
        let output = self.operand("y", Some(y))?;
        let geometry = self.geometry(&output, z.is_none() && layer.residual.is_none());
        let plan = Plan::new(&geometry, layer.mode, device)?;
        let rows = match &plan.extra {
            Extra::Rows(rows) => Some(rows),
            _ => None,
        };
        if let Some(norm) = &layer.norm
            && !(rows.is_some_and(RowsPlan::normalises) && norm.fits(layer.x))
        {
            let x = norm.apply(layer.x, rows.is_some(), layer.stream)?;
            let mut after = Linear { x: &x, ..layer.clone() };
            after.norm = None;
            return Problem::new(&after)?.launch(y, z);
        }
        let params = LinearParams {
            x: geometry.x[0],
            w: geometry.w[0],
            m: geometry.m,
            n: geometry.n,
            k: geometry.k,
            x_row_stride: geometry.x[1],
            x_k_stride: geometry.x[2],
            x_batch_stride: geometry.x[3],
            w_n_stride: geometry.w[1],
            w_k_stride: geometry.w[2],
            w_batch_stride: geometry.w[3],
            bias: self.operand("bias", layer.bias)?,
            residual: self.operand("residual", layer.residual)?,
            y: output,
            pre_activation: self.operand("pre-activation", z)?,
            tiles_m: plan.tiles_m,
            tiles_n: plan.tiles_n,
            alpha: layer.alpha,
            activation: match layer.activation {
                Activation::Identity => ACTIVATION_IDENTITY,
                Activation::Relu => ACTIVATION_RELU,
                Activation::Silu => ACTIVATION_SILU,
                Activation::GeluErf => ACTIVATION_GELU_ERF,
                Activation::GeluTanh => ACTIVATION_GELU_TANH,
            },
            gated: layer.gated as u32,
            reserved: 0,
        };
        let mut launch = Contract::new(device, &plan.entry);
        match &plan.extra {
            Extra::Cluster(_) => launch = launch.programmatic(),
            Extra::Rows(rows) => launch = launch.programmatic().cluster(rows.cluster()),
            Extra::Hopper(_) | Extra::None => {}
        }
        let launch = launch
            .on(layer.stream)
            .grid(plan.grid)
            .shared(plan.shared)
            .reads("x", layer.x)
            .reads("w", layer.w)
            .reads_if("bias", layer.bias)
            .reads_if("residual", layer.residual)
            .reads_if("norm weight", layer.norm.map(|norm| norm.weight))
            .reads_if("norm bias", layer.norm.and_then(|norm| norm.bias))
            .writes("y", y)
            .writes_if("pre-activation", z)
            .prepare()?;
        let tiles = plan.tiles(&geometry) as u32;
        let steps = geometry.k.div_ceil(HOPPER_DEPTH as u64) as u32;
        let backend = device.backend();
        match &plan.extra {
            // SAFETY: LinearParams is the argument of all linear kernels but Hopper's; shapes, strides and alignment are
            // those of the tensors named above, and the plan took a kernel that their layout allows.
            Extra::None => unsafe { launch.launch(&params) },
            Extra::Hopper([x_map, w_map]) => {
                let params = HopperParams {
                    x_map: backend.encode_tensor_map(x_map)?,
                    w_map: backend.encode_tensor_map(w_map)?,
                    linear: params,
                    tiles,
                    steps,
                };
                // SAFETY: as above, for the Hopper kernels and HopperParams; the maps describe x and w.
                unsafe { launch.launch(&params) }
            }
            Extra::Cluster(Cluster {
                maps: [x_map, w_map],
                y,
                group,
                wide_n,
                wide,
            }) => {
                let rows = (*group).min(params.tiles_m);
                let widths = [*wide_n, params.tiles_n - wide_n];
                let params = ClusterParams {
                    x_map: backend.encode_tensor_map(x_map)?,
                    w_map: backend.encode_tensor_map(w_map)?,
                    y_map: backend.encode_tensor_map(y)?,
                    pairs: tiles,
                    steps,
                    wide: *wide,
                    wide_n: *wide_n,
                    of_problem: widths.map(|side_by_side| Divisor::new(params.tiles_m * side_by_side)),
                    of_group: widths.map(|side_by_side| Divisor::new(rows * side_by_side)),
                    group: [rows, params.tiles_m % rows].map(Divisor::new),
                    linear: params,
                };
                // SAFETY: as above, for the kernels of clusters and ClusterParams; the third map describes y.
                unsafe { launch.launch(&params) }
            }
            Extra::Rows(rows) => match &rows.maps {
                Some(maps) => self.launch_stream(launch, &geometry, rows, maps, params),
                None => self.launch_lanes(launch, &geometry, rows, params),
            },
        }
    }

    /// `linear_rows*` and `linear_staying16_*`.
    fn launch_stream(
        &self,
        launch: Prepared<'_>,
        geometry: &Geometry,
        rows: &RowsPlan,
        maps: &RowsMaps,
        linear: LinearParams,
    ) -> Result<()> {
        let backend = self.layer.x.device().backend();
        let norm = NormArguments::new(self.layer);
        let params = StreamParams {
            w_map: backend.encode_tensor_map(&maps.w)?,
            x_map: match &maps.x {
                Some(map) => backend.encode_tensor_map(map)?,
                None => [0; 16],
            },
            linear,
            norm_weight: norm.weight,
            norm_bias: norm.bias,
            epsilon: norm.epsilon,
            norm: norm.kind,
            stages: rows.stages,
            depth: rows.order.depth,
            slices: rows.order.slices,
            together: rows.order.together,
            early: self.layer.constant_weight as u32,
            reciprocal: (1.0 / geometry.k as f64) as f32,
            ahead: rows.ahead,
            reserved: 0,
        };
        // SAFETY: StreamParams is the argument of the kernels of few rows on Hopper; the maps describe x and the weight, and
        // shapes, strides and alignment are those of the tensors named in `launch`.
        unsafe { launch.launch(&params) }
    }

    /// `linear_lanes*` and `linear_passing16_*`.
    fn launch_lanes(
        &self,
        launch: Prepared<'_>,
        geometry: &Geometry,
        rows: &RowsPlan,
        linear: LinearParams,
    ) -> Result<()> {
        let norm = NormArguments::new(self.layer);
        let row = linear.w_n_stride * 2;
        let params = LanesParams {
            w: linear.w,
            w_row: row,
            w_eight: if geometry.gated { geometry.n * row } else { 8 * row },
            w_tile: if geometry.gated { 8 * row } else { 16 * row },
            w_batch: linear.w_batch_stride * 2,
            tiles: linear.tiles_n,
            depth: rows.order.depth,
            loads: (geometry.k / u64::from(ROWS_DEPTH)) as u32,
            early: self.layer.constant_weight as u32,
            rows: geometry.m as u32,
            together: rows.order.together,
            x: linear.x,
            x_row: linear.x_row_stride * 2,
            x_batch: linear.x_batch_stride * 2,
            norm_weight: norm.weight,
            norm_bias: norm.bias,
            epsilon: norm.epsilon,
            norm: norm.kind,
            reciprocal: (1.0 / geometry.k as f64) as f32,
            ahead: rows.ahead,
            linear,
        };
        // SAFETY: LanesParams is the argument of these kernels; their plan holds where tiles and loads are whole and slices
        // short enough, and shapes, strides and alignment are those of the tensors named in `launch`.
        unsafe { launch.launch(&params) }
    }
}

/// What a norm in front is to a kernel.
struct NormArguments {
    weight: u64,
    bias: u64,
    epsilon: f32,
    kind: u32,
}

impl NormArguments {
    fn new(layer: &Linear) -> Self {
        let norm = layer.norm;
        Self {
            weight: norm.map_or(0, |norm| norm.weight.address()),
            bias: norm.and_then(|norm| norm.bias).map_or(0, AnyTensor::address),
            epsilon: norm.map_or(0.0, |norm| norm.epsilon),
            kind: norm.map_or(NORM_NONE, |norm| norm.kind()),
        }
    }
}
