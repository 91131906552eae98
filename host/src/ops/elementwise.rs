//! Activations, gated pairs, sums, casts and copies.

use kernels_gpu::{
    activation::{GELU_ERF, GELU_TANH, IDENTITY, RELU, SILU},
    elementwise::{
        AT_ONCE, AXES, CopyParams, ElementwiseParams, THREADS, TILE, TransposeParams, VECTOR_TILE, tile_pitch,
    },
    row::WIDTH,
};

use super::rows::{Rows, check_dtype, check_float, check_like};
use crate::{AnyTensor, DType, Error, Result, launch::Contract, reference::activation::Activation};

/// Elements that a block takes at a time.
const BLOCK: u64 = THREADS as u64 * WIDTH as u64 * AT_ONCE as u64;

/// The kernels' number of an activation.
fn number(activation: Activation) -> u32 {
    match activation {
        Activation::Identity => IDENTITY,
        Activation::Relu => RELU,
        Activation::Silu => SILU,
        Activation::GeluErf => GELU_ERF,
        Activation::GeluTanh => GELU_TANH,
    }
}

/// Operands of an elementwise kernel: up to three read and two written, all of one shape but those that repeat a row.
struct Operands<'a> {
    entry: String,
    reads: [Option<(&'static str, &'a AnyTensor)>; 3],
    writes: [Option<&'a AnyTensor>; 2],
    /// The second operand has one row, which repeats.
    broadcast: bool,
    alpha: f32,
    beta: f32,
    activation: u32,
}

impl<'a> Operands<'a> {
    fn new(entry: String, out: &'a AnyTensor) -> Operands<'a> {
        Operands {
            entry,
            reads: [None; 3],
            writes: [Some(out), None],
            broadcast: false,
            alpha: 1.0,
            beta: 1.0,
            activation: IDENTITY,
        }
    }

    /// Runs the kernel; `out` may also be an operand, as long as it is the same view.
    fn launch(self) -> Result<()> {
        let out = self.writes[0].expect("every kernel writes");
        if out.elements() == 0 {
            return Ok(());
        }
        // Dense tensors are one long row.
        let all = self.reads.iter().flatten().map(|(_, tensor)| *tensor);
        let flat = !self.broadcast
            && all
                .chain(self.writes.into_iter().flatten())
                .all(AnyTensor::is_contiguous);
        let rows = |argument, tensor: &AnyTensor, written: bool| -> Result<Rows> {
            let vector;
            let tensor = if flat {
                vector = tensor.reshape(&[tensor.elements()])?;
                &vector
            } else {
                tensor
            };
            match tensor.rank() {
                // One long row may have any length here.
                _ if flat => Ok(Rows {
                    rows: 1,
                    columns: tensor.elements(),
                    stride: tensor.elements(),
                    view: tensor.clone(),
                }),
                _ if written => Rows::written(argument, tensor),
                _ => Rows::of(argument, tensor),
            }
        };
        let mut reads = [None, None, None];
        for (slot, operand) in reads.iter_mut().zip(self.reads) {
            *slot = operand
                .map(|(argument, tensor)| Ok::<_, Error>((argument, rows(argument, tensor, false)?)))
                .transpose()?;
        }
        let [target, target2] = self
            .writes
            .map(|tensor| tensor.map(|tensor| rows("out", tensor, true)).transpose());
        let (target, target2) = (target?.expect("every kernel writes"), target2?);
        let operand = |at: usize| reads[at].as_ref().map(|(_, rows)| rows);
        let aligned = reads.iter().flatten().all(|(_, rows)| rows.aligned())
            && target.aligned()
            && target2.as_ref().is_none_or(Rows::aligned);
        let params = ElementwiseParams {
            a: operand(0).map_or(0, Rows::address),
            b: operand(1).map_or(0, Rows::address),
            c: operand(2).map_or(0, Rows::address),
            out: target.address(),
            out2: target2.as_ref().map_or(0, Rows::address),
            rows: target.rows,
            columns: target.columns,
            a_stride: operand(0).map_or(0, |rows| rows.stride),
            b_stride: if self.broadcast {
                0
            } else {
                operand(1).map_or(0, |rows| rows.stride)
            },
            c_stride: operand(2).map_or(0, |rows| rows.stride),
            out_stride: target.stride,
            out2_stride: target2.as_ref().map_or(0, |rows| rows.stride),
            alpha: self.alpha,
            beta: self.beta,
            activation: self.activation,
            aligned: aligned as u32,
        };
        let mut contract = Contract::new(out.device(), &self.entry).grid([
            target.columns.div_ceil(BLOCK).min(1 << 20),
            target.rows.min(65_535),
            1,
        ]);
        for (argument, rows) in reads.iter().flatten() {
            // An operand that is the result itself is read and written by the same thread.
            let in_place = rows.view.address() == target.view.address()
                && rows.view.strides() == target.view.strides()
                && rows.view.dtype() == target.view.dtype();
            if !in_place {
                contract = contract.reads(argument, &rows.view);
            }
        }
        let launch = contract
            .writes("out", &target.view)
            .writes_if("out2", target2.as_ref().map(|rows| &rows.view))
            .prepare()?;
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
        unsafe { launch.launch(&params) }
    }
}

/// `act(x)` elementwise, in the dtype and shape of `x` (f32, f16, bf16).
///
/// # Errors
/// [`Error::Dtype`].
pub fn activation(x: &AnyTensor, activation: Activation) -> Result<AnyTensor> {
    check_float("x", x)?;
    let y = AnyTensor::empty(x.device(), x.dtype(), x.shape())?;
    let mut operands = Operands::new(format!("activation_{}", x.dtype()), &y);
    operands.reads[0] = Some(("x", x));
    operands.activation = number(activation);
    operands.launch()?;
    Ok(y)
}

/// `dy · act'(x)` elementwise: the gradient of [`activation`].
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`].
pub fn activation_backward(x: &AnyTensor, dy: &AnyTensor, activation: Activation) -> Result<AnyTensor> {
    check_float("x", x)?;
    check_like("dy", dy, x, "x")?;
    let dx = AnyTensor::empty(x.device(), x.dtype(), x.shape())?;
    let mut operands = Operands::new(format!("activation_backward_{}", x.dtype()), &dx);
    operands.reads = [Some(("x", x)), Some(("dy", dy)), None];
    operands.activation = number(activation);
    operands.launch()?;
    Ok(dx)
}

/// GELU with the exact normal distribution, `x·Φ(x)`.
pub fn gelu(x: &AnyTensor) -> Result<AnyTensor> {
    activation(x, Activation::GeluErf)
}

/// GELU by `tanh`, `x/2·(1 + tanh(√(2/π)·(x + 0.044715x³)))`.
pub fn gelu_tanh(x: &AnyTensor) -> Result<AnyTensor> {
    activation(x, Activation::GeluTanh)
}

/// `x · sigmoid(x)`.
pub fn silu(x: &AnyTensor) -> Result<AnyTensor> {
    activation(x, Activation::Silu)
}

/// `max(x, 0)`.
pub fn relu(x: &AnyTensor) -> Result<AnyTensor> {
    activation(x, Activation::Relu)
}

/// The halves of the last axis of a packed pair.
fn halves(packed: &AnyTensor) -> Result<[AnyTensor; 2]> {
    let axis = packed.rank().checked_sub(1);
    match axis.map(|axis| (axis, packed.extent(axis))) {
        Some((axis, width)) if width.is_multiple_of(2) => {
            Ok([packed.slice(axis, 0..width / 2)?, packed.slice(axis, width / 2..width)?])
        }
        _ => Err(Error::shape(
            "x",
            packed.shape(),
            "a last axis of even extent is needed: gate, then up",
        )),
    }
}

/// `act(gate) · up` elementwise: SwiGLU with SiLU, GeGLU with GELU.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`].
pub fn gated(gate: &AnyTensor, up: &AnyTensor, activation: Activation) -> Result<AnyTensor> {
    check_float("gate", gate)?;
    check_like("up", up, gate, "gate")?;
    let y = AnyTensor::empty(gate.device(), gate.dtype(), gate.shape())?;
    let mut operands = Operands::new(format!("gated_{}", gate.dtype()), &y);
    operands.reads = [Some(("gate", gate)), Some(("up", up)), None];
    operands.activation = number(activation);
    operands.launch()?;
    Ok(y)
}

/// Gradients of [`gated`], of `gate` and of `up`.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`].
pub fn gated_backward(
    gate: &AnyTensor,
    up: &AnyTensor,
    dy: &AnyTensor,
    activation: Activation,
) -> Result<[AnyTensor; 2]> {
    let empty = || AnyTensor::empty(gate.device(), gate.dtype(), gate.shape());
    let gradients = [empty()?, empty()?];
    gated_backward_into(gate, up, dy, activation, &gradients)?;
    Ok(gradients)
}

fn gated_backward_into(
    gate: &AnyTensor,
    up: &AnyTensor,
    dy: &AnyTensor,
    activation: Activation,
    [dgate, dup]: &[AnyTensor; 2],
) -> Result<()> {
    check_float("gate", gate)?;
    check_like("up", up, gate, "gate")?;
    check_like("dy", dy, gate, "gate")?;
    let mut operands = Operands::new(format!("gated_backward_{}", gate.dtype()), dgate);
    operands.reads = [Some(("gate", gate)), Some(("up", up)), Some(("dy", dy))];
    operands.writes[1] = Some(dup);
    operands.activation = number(activation);
    operands.launch()
}

/// `silu(gate) · up` of a packed pair `[.., 2n]`, gate first, to `[.., n]`.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`].
pub fn swiglu(x: &AnyTensor) -> Result<AnyTensor> {
    let [gate, up] = halves(x)?;
    gated(&gate, &up, Activation::Silu)
}

/// The gradient of [`swiglu`], `[.., 2n]`.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`].
pub fn swiglu_backward(x: &AnyTensor, dy: &AnyTensor) -> Result<AnyTensor> {
    let [gate, up] = halves(x)?;
    let dx = AnyTensor::empty(x.device(), x.dtype(), x.shape())?;
    gated_backward_into(&gate, &up, dy, Activation::Silu, &halves(&dx)?)?;
    Ok(dx)
}

/// `a + b` elementwise, rounded once; `b` has the shape of `a`, or is a bias of its last axis.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`].
pub fn add(a: &AnyTensor, b: &AnyTensor) -> Result<AnyTensor> {
    let out = AnyTensor::empty(a.device(), a.dtype(), a.shape())?;
    add_into(a, b, &out)?;
    Ok(out)
}

/// [`add`] into `out`, which may be `a` or `b` itself.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`], [`Error::Layout`] when `out` overlaps an operand otherwise.
pub fn add_into(a: &AnyTensor, b: &AnyTensor, out: &AnyTensor) -> Result<()> {
    add_scaled(1.0, a, 1.0, b, out)
}

/// `out = alpha · a + beta · b`, computed in f32 and rounded once; `out` may be `a` or `b` itself. `b` has the shape
/// of `a`, or is a bias of its last axis.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`], [`Error::Layout`] when `out` overlaps an operand otherwise.
pub fn add_scaled(alpha: f32, a: &AnyTensor, beta: f32, b: &AnyTensor, out: &AnyTensor) -> Result<()> {
    check_float("a", a)?;
    check_dtype("b", b, a.dtype())?;
    check_like("out", out, a, "a")?;
    let columns = a.shape().last().copied();
    let broadcast = b.shape() != a.shape();
    if broadcast && (b.rank() != 1 || Some(b.extent(0)) != columns) {
        return Err(Error::shape(
            "b",
            b.shape(),
            format!("the shape of a, {:?}, or of its last axis is needed", a.shape()),
        ));
    }
    let mut operands = Operands::new(format!("add_{}", a.dtype()), out);
    operands.reads = [Some(("a", a)), Some(("b", b)), None];
    operands.broadcast = broadcast;
    (operands.alpha, operands.beta) = (alpha, beta);
    operands.launch()
}

/// `alpha · x` into `out`, which may be `x` itself.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`], [`Error::Layout`].
pub fn scale(alpha: f32, x: &AnyTensor, out: &AnyTensor) -> Result<()> {
    check_float("x", x)?;
    check_like("out", out, x, "x")?;
    let mut operands = Operands::new(format!("add_{}", x.dtype()), out);
    operands.reads[0] = Some(("x", x));
    operands.alpha = alpha;
    operands.launch()
}

/// `x` in another dtype (f32, f16, bf16), rounded to nearest even; the same tensor where nothing changes.
///
/// # Errors
/// [`Error::Dtype`].
pub fn cast(x: &AnyTensor, dtype: DType) -> Result<AnyTensor> {
    check_float("x", x)?;
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::Dtype {
            argument: "dtype",
            dtype,
            allowed: "f32, f16 or bf16".into(),
        });
    }
    let out = AnyTensor::empty(x.device(), dtype, x.shape())?;
    let mut operands = Operands::new(format!("cast_{}_{dtype}", x.dtype()), &out);
    operands.reads[0] = Some(("x", x));
    operands.launch()?;
    Ok(out)
}

/// The tensor itself where it is dense, else a dense copy.
///
/// # Errors
/// [`Error::Shape`] for more than five axes.
pub fn contiguous(x: &AnyTensor) -> Result<AnyTensor> {
    if x.is_contiguous() {
        return Ok(x.clone());
    }
    let out = AnyTensor::empty(x.device(), x.dtype(), x.shape())?;
    copy(x, &out)?;
    Ok(out)
}

/// Copies `x` to `out`, of one dtype and shape, between any strides. A transpose of the last two axes goes through
/// shared memory, at the speed of a plain copy.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`] (more than five axes among others), [`Error::Layout`] where they overlap.
pub fn copy(x: &AnyTensor, out: &AnyTensor) -> Result<()> {
    check_like("out", out, x, "x")?;
    if x.rank() > AXES {
        return Err(Error::shape(
            "x",
            x.shape(),
            format!("at most {AXES} axes can be copied"),
        ));
    }
    if x.elements() == 0 {
        return Ok(());
    }
    let bits = 8 * x.dtype().size();
    if let Some(params) = as_transpose(x, out) {
        let vectors = bits == 16 && by_vectors(&params);
        let (kind, tile, shared) = match vectors {
            true => ("_vectors", VECTOR_TILE, 0),
            false => ("", TILE, TILE * tile_pitch(x.dtype().size()) * x.dtype().size()),
        };
        let entry = format!("transpose{kind}_b{bits}");
        let launch = Contract::new(x.device(), &entry)
            .grid([
                params.columns.div_ceil(tile),
                params.rows.div_ceil(tile),
                params.batch.min(65_535),
            ])
            .shared(shared)
            .reads("x", x)
            .writes("out", out)
            .prepare()?;
        // SAFETY: the argument struct of these kernels, with the extents and strides of both tensors.
        return unsafe { launch.launch(&params) };
    }
    let mut params = CopyParams {
        x: x.address(),
        out: out.address(),
        len: x.elements(),
        shape: [1; AXES],
        x_strides: [0; AXES],
        out_strides: [0; AXES],
    };
    let first = AXES - x.rank();
    params.shape[first..].copy_from_slice(x.shape());
    params.x_strides[first..].copy_from_slice(x.strides());
    params.out_strides[first..].copy_from_slice(out.strides());
    let entry = format!("copy_strided_b{bits}");
    let launch = Contract::new(x.device(), &entry)
        .grid([params.len.div_ceil(THREADS as u64).min(1 << 20), 1, 1])
        .reads("x", x)
        .writes("out", out)
        .prepare()?;
    // SAFETY: as above.
    unsafe { launch.launch(&params) }
}

/// Whether matrices of 16-bit elements are whole vectors at multiples of 16 bytes both ways.
fn by_vectors(p: &TransposeParams) -> bool {
    let strides = [
        p.x_batch_stride,
        p.x_stride,
        p.out_batch_stride,
        p.out_stride,
        p.rows,
        p.columns,
    ];
    p.x.is_multiple_of(16) && p.out.is_multiple_of(16) && strides.iter().all(|stride| stride.is_multiple_of(8))
}

/// The copy as a batch of transposes, when it is one: `x` is dense along its last axis but one, `out` along its last.
fn as_transpose(x: &AnyTensor, out: &AnyTensor) -> Option<TransposeParams> {
    let rank = x.rank();
    if !(2..=3).contains(&rank) {
        return None;
    }
    let (rows, columns) = (rank - 1, rank - 2);
    // In the kernel's words, the source's columns are the axis that is dense in `x`.
    let fits = x.strides()[columns] == 1
        && out.strides()[rows] == 1
        && x.extent(rows).div_ceil(TILE) <= 65_535
        && x.extent(columns) > 1
        && x.extent(rows) > 1;
    fits.then(|| TransposeParams {
        x: x.address(),
        out: out.address(),
        batch: if rank == 3 { x.extent(0) } else { 1 },
        rows: x.extent(rows),
        columns: x.extent(columns),
        x_batch_stride: if rank == 3 { x.strides()[0] } else { 0 },
        x_stride: x.strides()[rows],
        out_batch_stride: if rank == 3 { out.strides()[0] } else { 0 },
        out_stride: out.strides()[columns],
    })
}
