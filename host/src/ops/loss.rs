//! Cross-entropy of logits against target indices.

use kernels_gpu::{loss::CrossEntropyParams, row::LARGE_COLUMNS};

use super::{
    contiguous,
    embedding::indices_of,
    rows::{Rows, Slices, Width, check_dtype, check_float},
};
use crate::{AnyTensor, DType, Error, Result, Stream, launch::Contract};

/// Cross-entropy, to be [run](CrossEntropy::run). Made by [`cross_entropy`].
#[derive(Clone, Copy)]
#[must_use = "nothing is computed before `run`"]
pub struct CrossEntropy<'a> {
    logits: &'a AnyTensor,
    targets: &'a AnyTensor,
    ignore_index: i64,
    label_smoothing: f32,
    z_loss: f32,
    stream: Option<&'a Stream>,
}

/// What [`CrossEntropy::run`] computes, one f32 a row.
#[derive(Clone, Debug)]
pub struct RowLosses {
    /// `lse − (1 − ε)·x[target] − ε·mean(x) + z·lse²`; 0 in ignored rows.
    pub loss: AnyTensor,
    /// Log-sum-exp of every row, ignored ones too.
    pub lse: AnyTensor,
}

/// The loss of each row of `logits` (f32, f16, bf16; `[.., vocabulary]`) against its target (i32 or i64, the shape of
/// the logits without their last axis).
///
/// Targets live on the device and are not waited for: a row whose target is neither in the vocabulary nor ignored has
/// loss and gradient NaN. [`check_indices`](super::check_indices) is the way to an error.
pub fn cross_entropy<'a>(logits: &'a AnyTensor, targets: &'a AnyTensor) -> CrossEntropy<'a> {
    CrossEntropy {
        logits,
        targets,
        ignore_index: -100,
        label_smoothing: 0.0,
        z_loss: 0.0,
        stream: None,
    }
}

/// What one launch writes.
#[derive(Default)]
struct Wanted<'a> {
    losses: Option<&'a RowLosses>,
    dlogits: Option<&'a AnyTensor>,
    grad: Option<&'a AnyTensor>,
    scale: f32,
}

impl<'a> CrossEntropy<'a> {
    /// Rows with this target have loss and gradient 0; −100 unless given.
    pub fn ignore_index(mut self, target: i64) -> Self {
        self.ignore_index = target;
        self
    }

    /// ε: share of the target distribution that is spread evenly over the vocabulary, 0 to 1; 0 unless given.
    pub fn label_smoothing(mut self, share: f32) -> Self {
        self.label_smoothing = share;
        self
    }

    /// z: factor of `lse²`, which is added to the loss; 0 unless given.
    pub fn z_loss(mut self, factor: f32) -> Self {
        self.z_loss = factor;
        self
    }

    /// Runs in this stream.
    pub fn on(mut self, stream: &'a Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// The losses.
    ///
    /// # Errors
    /// [`Error::Dtype`], [`Error::Shape`], [`Error::Range`] naming the argument.
    pub fn run(self) -> Result<RowLosses> {
        let losses = self.losses()?;
        self.launch(&Wanted {
            losses: Some(&losses),
            ..Wanted::default()
        })?;
        Ok(losses)
    }

    /// The gradient of `Σ grad ∘ loss` by the logits, in their dtype and shape; `grad` has one f32 a row.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub fn backward(self, grad: &AnyTensor) -> Result<AnyTensor> {
        check_dtype("grad", grad, DType::F32)?;
        if grad.shape() != self.outer()? {
            return Err(Error::shape(
                "grad",
                grad.shape(),
                "one value a row of the logits is needed",
            ));
        }
        let dlogits = AnyTensor::empty(self.logits.device(), self.logits.dtype(), self.logits.shape())?;
        self.launch(&Wanted {
            dlogits: Some(&dlogits),
            grad: Some(&contiguous(grad)?),
            scale: 1.0,
            ..Wanted::default()
        })?;
        Ok(dlogits)
    }

    /// The losses, and `scale` times their gradient written over the logits: one read and one write of them for the
    /// whole of a training step's loss. `scale` is `1/tokens` for the mean. The logits must be dense along their last
    /// axis.
    ///
    /// # Errors
    /// As for [`run`](Self::run), and [`Error::Range`] for a `scale` that is not finite.
    pub fn run_with_gradient_in_place(self, scale: f32) -> Result<RowLosses> {
        if !scale.is_finite() {
            return Err(Error::range("scale", scale, "finite"));
        }
        let losses = self.losses()?;
        self.launch(&Wanted {
            losses: Some(&losses),
            dlogits: Some(self.logits),
            grad: None,
            scale,
        })?;
        Ok(losses)
    }

    /// The shape of one value a row.
    fn outer(&self) -> Result<&'a [u64]> {
        let shape = self.logits.shape();
        match shape.split_last() {
            Some((_, outer)) => Ok(outer),
            None => Err(Error::shape("logits", shape, "[.., vocabulary] is needed")),
        }
    }

    fn losses(&self) -> Result<RowLosses> {
        let empty = || AnyTensor::empty(self.logits.device(), DType::F32, self.outer()?);
        Ok(RowLosses {
            loss: empty()?,
            lse: empty()?,
        })
    }

    fn launch(&self, wanted: &Wanted<'_>) -> Result<()> {
        check_float("logits", self.logits)?;
        let targets = indices_of("targets", self.targets)?;
        let outer = self.outer()?;
        if targets.shape() != outer {
            return Err(Error::shape(
                "targets",
                targets.shape(),
                format!("the shape of the logits without their last axis, {outer:?}, is needed"),
            ));
        }
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return Err(Error::range("label_smoothing", self.label_smoothing, "0 to 1"));
        }
        if !(self.z_loss >= 0.0 && self.z_loss.is_finite()) {
            return Err(Error::range("z_loss", self.z_loss, "finite, 0 or more"));
        }
        let in_place = wanted.dlogits.is_some_and(|out| std::ptr::eq(out, self.logits));
        let logits = if in_place {
            Rows::written("logits", self.logits)?
        } else {
            Rows::of("logits", self.logits)?
        };
        if logits.rows == 0 {
            return Ok(());
        }
        if logits.columns == 0 {
            return Err(Error::shape("logits", self.logits.shape(), "a vocabulary is needed"));
        }
        let dlogits = wanted.dlogits.map(|out| Rows::written("dlogits", out)).transpose()?;
        // Three kernels: rows that 256 threads hold, those that a cluster holds, and all longer ones.
        let width = match Width::of(logits.columns) {
            Width::Warp | Width::Block | Width::Large => Width::Block,
            _ => Width::Long,
        };
        let (device, dtype) = (self.logits.device(), self.logits.dtype());
        let slices = Slices::of(device, dtype, logits.columns, 1, LARGE_COLUMNS, 3);
        let kind = slices.map_or(width.name(), |_| "slices");
        let entry = format!("cross_entropy_{kind}_{dtype}");
        let mut contract = Contract::new(device, &entry)
            .grid(slices.map_or(width.grid(logits.rows), |slices| slices.grid(logits.rows)))
            .shared(slices.map_or(width.shared(), |slices| slices.shared))
            .cluster(slices.map_or(1, |slices| slices.blocks))
            .programmatic()
            .on(self.stream)
            .reads("targets", &targets)
            .reads_if("grad", wanted.grad)
            .writes_if("loss", wanted.losses.map(|losses| &losses.loss))
            .writes_if("lse", wanted.losses.map(|losses| &losses.lse))
            .writes_if("dlogits", dlogits.as_ref().map(|rows| &rows.view));
        if !in_place {
            contract = contract.reads("logits", &logits.view);
        }
        let launch = contract.prepare()?;
        let params = CrossEntropyParams {
            logits: logits.address(),
            targets: targets.address(),
            loss: wanted.losses.map_or(0, |losses| losses.loss.address()),
            lse: wanted.losses.map_or(0, |losses| losses.lse.address()),
            grad: wanted.grad.map_or(0, AnyTensor::address),
            dlogits: dlogits.as_ref().map_or(0, Rows::address),
            rows: logits.rows,
            stride: logits.stride,
            dlogits_stride: dlogits.as_ref().map_or(0, |rows| rows.stride),
            ignore_index: self.ignore_index,
            columns: logits.columns as u32,
            wide: (targets.dtype() == DType::I64) as u32,
            smoothing: self.label_smoothing,
            z_loss: self.z_loss,
            grad_scale: wanted.scale,
            aligned: (logits.aligned() && dlogits.as_ref().is_none_or(Rows::aligned)) as u32,
            ahead: slices.map_or(0, |slices| slices.ahead),
            reserved: 0,
        };
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above, and
        // in place each element is read and written by one thread.
        unsafe { launch.launch(&params) }
    }
}
