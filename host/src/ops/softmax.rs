//! Softmax and log-softmax of rows, and their gradients.

use kernels_gpu::{
    row::{LARGE_COLUMNS, SLICE_PAIR_LEAST},
    softmax::SoftmaxParams,
};

use super::rows::{Rows, Slices, Width, check_dtype, check_float, check_like};
use crate::{AnyTensor, Error, Result, Stream, launch::Contract};

/// Softmax of rows, to be [run](Softmax::run). Made by [`softmax`] and [`log_softmax`].
#[derive(Clone, Copy)]
#[must_use = "nothing is computed before `run`"]
pub struct Softmax<'a> {
    x: &'a AnyTensor,
    mask: Option<&'a AnyTensor>,
    scale: f32,
    causal: bool,
    log: bool,
    stream: Option<&'a Stream>,
}

/// `exp(x)/Σ exp(x)` over the last axis.
pub fn softmax(x: &AnyTensor) -> Softmax<'_> {
    Softmax {
        x,
        mask: None,
        scale: 1.0,
        causal: false,
        log: false,
        stream: None,
    }
}

/// `x − log Σ exp(x)` over the last axis.
pub fn log_softmax(x: &AnyTensor) -> Softmax<'_> {
    Softmax {
        log: true,
        ..softmax(x)
    }
}

impl<'a> Softmax<'a> {
    /// Factor of `x`; 1 unless given.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = scale;
        self
    }

    /// Added to `x` after scaling, in its dtype: the shape of `x` without some of its leading axes, so that it repeats
    /// along those.
    pub fn mask(mut self, mask: &'a AnyTensor) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Row `i` of the last two axes, `[n, columns]`, sees columns up to `i + columns − n` only.
    pub fn causal(mut self) -> Self {
        self.causal = true;
        self
    }

    /// Runs in this stream.
    pub fn on(mut self, stream: &'a Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// The softmax, in the dtype and shape of `x`.
    ///
    /// What a row does not see is 0 (its logarithm −∞), and so is a row that sees nothing but −∞. A NaN or +∞ makes
    /// all that its row sees NaN. f32, f16 or bf16 with f32 sums; rows of up to 2³¹ − 1 elements.
    ///
    /// # Errors
    /// [`Error::Dtype`], [`Error::Shape`], [`Error::Range`] naming the argument.
    pub fn run(self) -> Result<AnyTensor> {
        self.launch(None)
    }

    /// The gradient by `x` of `Σ dy ∘ y`, in the dtype and shape of `x`; 0 where nothing is seen. It computes `y`
    /// again, which costs no more memory traffic than reading it.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub fn backward(self, dy: &AnyTensor) -> Result<AnyTensor> {
        check_like("dy", dy, self.x, "x")?;
        self.launch(Some(dy))
    }

    fn launch(self, dy: Option<&AnyTensor>) -> Result<AnyTensor> {
        check_float("x", self.x)?;
        if !self.scale.is_finite() {
            return Err(Error::range("scale", self.scale, "finite"));
        }
        let shape = self.x.shape();
        if self.causal && shape.len() < 2 {
            return Err(Error::shape(
                "x",
                shape,
                "a causal mask needs two axes, [rows, columns]",
            ));
        }
        if let Some(mask) = self.mask {
            check_dtype("mask", mask, self.x.dtype())?;
            if mask.rank() == 0 || !shape.ends_with(mask.shape()) {
                return Err(Error::shape(
                    "mask",
                    mask.shape(),
                    format!("the shape of x, {shape:?}, without some of its leading axes is needed"),
                ));
            }
        }
        let (device, dtype) = (self.x.device(), self.x.dtype());
        let y = AnyTensor::empty(device, dtype, shape)?;
        let x = Rows::of("x", self.x)?;
        if self.x.elements() == 0 {
            return Ok(y);
        }
        let mask = self.mask.map(|mask| Rows::of("mask", mask)).transpose()?;
        let dy = dy.map(|dy| Rows::of("dy", dy)).transpose()?;
        let width = if dy.is_some() {
            Width::of_pair(x.columns)
        } else {
            Width::of(x.columns)
        };
        let direction = if dy.is_some() { "_backward" } else { "" };
        // A mask is read as often as it is used, and rows that see a part of themselves only are not worth a cluster.
        let plain = self.mask.is_none() && !self.causal && self.scale > 0.0 && !(self.log && dy.is_some());
        let slices = match plain {
            true if dy.is_some() => Slices::of(device, dtype, x.columns, 2, SLICE_PAIR_LEAST - 1, 2),
            true => Slices::of(device, dtype, x.columns, 1, LARGE_COLUMNS, 4),
            false => None,
        };
        let kind = slices.map_or(width.name(), |_| "slices");
        let entry = format!("softmax_{kind}{direction}_{dtype}");
        let launch = Contract::new(device, &entry)
            .grid(slices.map_or(width.grid(x.rows), |slices| slices.grid(x.rows)))
            .shared(slices.map_or(width.shared(), |slices| slices.shared))
            .cluster(slices.map_or(1, |slices| slices.blocks))
            .programmatic()
            .on(self.stream)
            .reads("x", &x.view)
            .reads_if("mask", mask.as_ref().map(|mask| &mask.view))
            .reads_if("dy", dy.as_ref().map(|dy| &dy.view))
            .writes(if dy.is_some() { "dx" } else { "y" }, &y)
            .prepare()?;
        let out = Rows::written("y", &y)?;
        let aligned = x.aligned()
            && out.aligned()
            && mask.as_ref().is_none_or(Rows::aligned)
            && dy.as_ref().is_none_or(Rows::aligned);
        let params = SoftmaxParams {
            x: x.address(),
            mask: mask.as_ref().map_or(0, Rows::address),
            dy: dy.as_ref().map_or(0, Rows::address),
            y: out.address(),
            rows: x.rows,
            mask_rows: mask.as_ref().map_or(1, |mask| mask.rows),
            causal_rows: if self.causal { shape[shape.len() - 2] } else { 0 },
            x_stride: x.stride,
            mask_stride: mask.as_ref().map_or(0, |mask| mask.stride),
            dy_stride: dy.as_ref().map_or(0, |dy| dy.stride),
            y_stride: out.stride,
            columns: x.columns as u32,
            log: self.log as u32,
            scale: self.scale,
            aligned: aligned as u32,
            ahead: slices.map_or(width.ahead(self.x.device()), |slices| slices.ahead),
            reserved: 0,
        };
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
        unsafe { launch.launch(&params)? };
        Ok(y)
    }
}
