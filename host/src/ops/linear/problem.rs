//! From tensors to a problem: a batch of `x [m, k]`, weights and operands of the epilogue, checked.

use kernels_gpu::linear::{
    ACTIVATION_GELU_ERF, ACTIVATION_GELU_TANH, ACTIVATION_IDENTITY, ACTIVATION_RELU, ACTIVATION_SILU, ClusterParams,
    DTYPE_BF16, DTYPE_F16, DTYPE_F32, HOPPER_DEPTH, HopperParams, LanesParams, LinearParams, NORM_NONE, Operand,
    ROWS_DEPTH, StreamParams,
};

use super::{Linear, plan::Plan, rows::RowsPlan};
use crate::{
    AnyTensor, DType, Error, Result,
    launch::Contract,
    reference::{activation::Activation, linear::WeightLayout},
};

/// A checked layer.
pub(super) struct Problem<'a> {
    pub(super) layer: &'a Linear<'a>,
    /// `[batch, m, k]`.
    x: AnyTensor,
    /// `[batch or 1, columns, k]`, by strides whichever way the weight lies.
    w: AnyTensor,
    n: u64,
    dtype: DType,
}

/// Extents and strides that choose a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) dtype: DType,
    pub(super) batch: u64,
    pub(super) m: u64,
    pub(super) n: u64,
    pub(super) k: u64,
    pub(super) gated: bool,
    /// Whether rows are normalised first.
    pub(super) normed: bool,
    /// Address, row stride, k stride, batch stride.
    pub(super) x: [u64; 4],
    /// Address, column stride, k stride, batch stride.
    pub(super) w: [u64; 4],
    /// Address, row stride and batch stride of y where TMA can store results that nothing is added to: rows of whole 16
    /// bytes.
    pub(super) y: Option<[u64; 3]>,
}

fn check_float(argument: &'static str, tensor: &AnyTensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        dtype => Err(Error::Dtype {
            argument,
            dtype,
            allowed: "f32, f16 or bf16".into(),
        }),
    }
}

/// `tensor [..., columns]` as `[batch, m, columns]`.
fn rows_of(argument: &'static str, tensor: &AnyTensor, batch: Option<u64>) -> Result<AnyTensor> {
    let Some((&columns, outer)) = tensor.shape().split_last() else {
        return Err(Error::shape(argument, tensor.shape(), "at least one axis is needed"));
    };
    if let Some(batch) = batch {
        return match outer {
            [extent, _] if *extent == batch => Ok(tensor.clone()),
            _ => Err(Error::shape(
                argument,
                tensor.shape(),
                format!("[{batch}, rows, columns] is needed for a batch of {batch} weights"),
            )),
        };
    }
    let merged = tensor.reshape(&[1, outer.iter().product(), columns]);
    match (merged, outer) {
        (Ok(merged), _) => Ok(merged),
        // Rows at two strides: the first axis becomes the batch.
        (Err(_), [_, _]) => Ok(tensor.clone()),
        (Err(_), _) => Err(Error::layout(
            argument,
            format!("the axes of {tensor:?} before the last do not merge into one or two strides; make it dense"),
        )),
    }
}

impl<'a> Problem<'a> {
    pub(super) fn new(layer: &'a Linear<'a>) -> Result<Problem<'a>> {
        let Linear { x, w, .. } = *layer;
        check_float("x", x)?;
        if w.dtype() != x.dtype() {
            return Err(Error::Dtype {
                argument: "w",
                dtype: w.dtype(),
                allowed: format!("the dtype of x, {}, is needed", x.dtype()),
            });
        }
        let batch = match w.rank() {
            2 => None,
            3 => Some(w.extent(0)),
            _ => {
                return Err(Error::shape(
                    "w",
                    w.shape(),
                    "two axes, or three for a batch, are needed",
                ));
            }
        };
        let w = match (layer.layout, batch) {
            (WeightLayout::Nk, _) => w.clone(),
            (WeightLayout::Kn, None) => w.transpose(0, 1)?,
            (WeightLayout::Kn, Some(_)) => w.transpose(1, 2)?,
        };
        let (columns, w_k) = (w.extent(w.rank() - 2), w.extent(w.rank() - 1));
        let x = rows_of("x", x, batch)?;
        let k = x.extent(2);
        if w_k != k {
            return Err(Error::shape(
                "w",
                layer.w.shape(),
                format!("its k is {w_k}, but the last axis of x is {k}"),
            ));
        }
        if layer.gated && columns % 2 != 0 {
            return Err(Error::shape(
                "w",
                layer.w.shape(),
                format!("a gated layer needs an even number of columns, not {columns}"),
            ));
        }
        let dtype = layer.dtype.unwrap_or(x.dtype());
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::Dtype {
                argument: "y",
                dtype,
                allowed: "f32, f16 or bf16".into(),
            });
        }
        let problem = Problem {
            layer,
            x,
            w,
            n: if layer.gated { columns / 2 } else { columns },
            dtype,
        };
        if let Some(norm) = &layer.norm {
            norm.check(layer.x)?;
        }
        if let Some(bias) = layer.bias {
            problem.check_bias(bias, columns)?;
        }
        if let Some(residual) = layer.residual {
            problem.check_rows("residual", residual, &problem.y_shape())?;
        }
        Ok(problem)
    }

    fn check_bias(&self, bias: &AnyTensor, columns: u64) -> Result<()> {
        check_float("bias", bias)?;
        let batched = self.w.rank() == 3 && bias.shape() == [self.w.extent(0), columns];
        if bias.shape() != [columns] && !batched {
            return Err(Error::shape("bias", bias.shape(), format!("[{columns}] is needed")));
        }
        check_dense("bias", bias)
    }

    fn check_rows(&self, argument: &'static str, tensor: &AnyTensor, shape: &[u64]) -> Result<()> {
        check_float(argument, tensor)?;
        if tensor.shape() != shape {
            return Err(Error::shape(argument, tensor.shape(), format!("{shape:?} is needed")));
        }
        check_dense(argument, tensor)
    }

    fn shape_with(&self, columns: u64) -> Vec<u64> {
        let mut shape = self.layer.x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = columns;
        }
        shape
    }

    pub(super) fn y_shape(&self) -> Vec<u64> {
        self.shape_with(self.n)
    }

    pub(super) fn z_shape(&self) -> Vec<u64> {
        self.shape_with(if self.layer.gated { 2 * self.n } else { self.n })
    }

    pub(super) fn empty(&self, shape: Vec<u64>) -> Result<AnyTensor> {
        AnyTensor::empty(self.layer.x.device(), self.dtype, &shape)
    }

    fn geometry(&self, y: &Operand, plain: bool) -> Geometry {
        let (x, w) = (&self.x, &self.w);
        let axis = w.rank() - 2;
        Geometry {
            dtype: x.dtype(),
            batch: x.extent(0),
            m: x.extent(1),
            n: self.n,
            k: x.extent(2),
            gated: self.layer.gated,
            normed: self.layer.norm.is_some(),
            x: [x.address(), x.strides()[1], x.strides()[2], x.strides()[0]],
            w: [
                w.address(),
                w.strides()[axis],
                w.strides()[axis + 1],
                if axis == 1 { w.strides()[0] } else { 0 },
            ],
            // A box of TMA is clipped by 16 bytes and not by elements: it would write beyond ragged rows.
            y: (plain && self.dtype == x.dtype() && y.aligned != 0 && self.n.is_multiple_of(8)).then_some([
                y.address,
                y.row_stride,
                y.batch_stride,
            ]),
        }
    }

    /// A matrix of the epilogue, in the batch that x has.
    fn operand(&self, argument: &'static str, tensor: Option<&AnyTensor>) -> Result<Operand> {
        let Some(tensor) = tensor.filter(|tensor| tensor.elements() > 0) else {
            return Ok(Operand {
                address: 0,
                row_stride: 0,
                batch_stride: 0,
                dtype: DTYPE_F32,
                aligned: 0,
            });
        };
        let (batch, m) = (self.x.extent(0), self.x.extent(1));
        let (row_stride, batch_stride) = if argument == "bias" {
            (0, if tensor.rank() == 2 { tensor.strides()[0] } else { 0 })
        } else {
            // x may be a batch where this is one matrix, and the other way round.
            let rows = tensor
                .reshape(&[batch, m, tensor.extent(tensor.rank() - 1)])
                .map_err(|_| {
                    Error::layout(
                        argument,
                        format!("{tensor:?} cannot be viewed as {batch} matrices of {m} rows; make it dense"),
                    )
                })?;
            (rows.strides()[1], rows.strides()[0])
        };
        let size = tensor.dtype().size();
        Ok(Operand {
            address: tensor.address(),
            row_stride,
            batch_stride,
            dtype: match tensor.dtype() {
                DType::F16 => DTYPE_F16,
                DType::BF16 => DTYPE_BF16,
                _ => DTYPE_F32,
            },
            aligned: [tensor.address(), row_stride * size, batch_stride * size]
                .iter()
                .all(|at| at % 16 == 0) as u32,
        })
    }

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
        if let Some(norm) = &layer.norm
            && !(plan.rows.as_ref().is_some_and(RowsPlan::normalises) && norm.fits(layer.x))
        {
            let x = norm.apply(layer.x, plan.rows.is_some(), layer.stream)?;
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
        if plan.cluster.is_some() {
            launch = launch.programmatic();
        }
        if let Some(rows) = &plan.rows {
            launch = launch.programmatic().cluster(rows.cluster());
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
        if let Some(rows) = &plan.rows
            && rows.by_lanes()
        {
            let norm = layer.norm;
            let row = params.w_n_stride * 2;
            let params = LanesParams {
                w: params.w,
                w_row: row,
                w_eight: if layer.gated { geometry.n * row } else { 8 * row },
                w_tile: if layer.gated { 8 * row } else { 16 * row },
                w_batch: params.w_batch_stride * 2,
                tiles: plan.tiles_n,
                depth: rows.order.depth,
                loads: (geometry.k / u64::from(ROWS_DEPTH)) as u32,
                early: layer.constant_weight as u32,
                rows: geometry.m as u32,
                together: rows.order.together,
                x: params.x,
                x_row: params.x_row_stride * 2,
                x_batch: params.x_batch_stride * 2,
                norm_weight: norm.map_or(0, |norm| norm.weight.address()),
                norm_bias: norm.and_then(|norm| norm.bias).map_or(0, AnyTensor::address),
                epsilon: norm.map_or(0.0, |norm| norm.epsilon),
                norm: norm.map_or(NORM_NONE, |norm| norm.kind()),
                reciprocal: (1.0 / geometry.k as f64) as f32,
                ahead: rows.ahead,
                linear: params,
            };
            // SAFETY: LanesParams is the argument of these kernels; their plan holds where tiles and loads are whole and
            // slices short, and shapes, strides and alignment are as below.
            return unsafe { launch.launch(&params) };
        }
        if let Some(rows) = &plan.rows {
            let norm = layer.norm;
            let params = StreamParams {
                w_map: device.backend().encode_tensor_map(&rows.w_map)?,
                x_map: match &rows.x_map {
                    Some(map) => device.backend().encode_tensor_map(map)?,
                    None => [0; 16],
                },
                linear: params,
                norm_weight: norm.map_or(0, |norm| norm.weight.address()),
                norm_bias: norm.and_then(|norm| norm.bias).map_or(0, AnyTensor::address),
                epsilon: norm.map_or(0.0, |norm| norm.epsilon),
                norm: norm.map_or(NORM_NONE, |norm| norm.kind()),
                stages: rows.stages,
                depth: rows.order.depth,
                slices: rows.order.slices,
                together: rows.order.together,
                early: layer.constant_weight as u32,
                reciprocal: (1.0 / geometry.k as f64) as f32,
                ahead: rows.ahead,
                reserved: 0,
            };
            // SAFETY: StreamParams is the argument of the kernels of few rows on Hopper; the map describes the weight, and
            // shapes, strides and alignment are as below.
            return unsafe { launch.launch(&params) };
        }
        let Some([x_map, w_map]) = &plan.maps else {
            // SAFETY: LinearParams is the argument of all linear kernels but Hopper's; shapes, strides and alignment are
            // those of the tensors named above, and the plan took a kernel that their layout allows.
            return unsafe { launch.launch(&params) };
        };
        let tiles = plan.tiles(&geometry) as u32;
        let steps = geometry.k.div_ceil(HOPPER_DEPTH as u64) as u32;
        let backend = device.backend();
        if let Some(cluster) = &plan.cluster {
            let params = ClusterParams {
                x_map: backend.encode_tensor_map(x_map)?,
                w_map: backend.encode_tensor_map(w_map)?,
                y_map: backend.encode_tensor_map(&cluster.y)?,
                linear: params,
                pairs: tiles,
                wide: cluster.wide,
                wide_n: cluster.wide_n,
                steps,
                group: cluster.group,
                reserved: 0,
            };
            // SAFETY: as below, for the kernels of clusters and ClusterParams; the third map describes y.
            return unsafe { launch.launch(&params) };
        }
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
}

fn check_dense(argument: &'static str, tensor: &AnyTensor) -> Result<()> {
    let last = tensor.rank().checked_sub(1);
    if last.is_some_and(|last| tensor.extent(last) > 1 && tensor.strides()[last] != 1) {
        return Err(Error::layout(argument, "the last axis must be dense"));
    }
    Ok(())
}
