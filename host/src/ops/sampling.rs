//! Choosing the next token from logits.

use kernels_gpu::sampling::{SHARED_BYTES, SamplingParams, TOP_P_ONE, greedy};

use super::{
    ReduceAxis, ReduceKind, reduce,
    rows::{Rows, check_dtype, check_float},
};
use crate::{AnyTensor, DType, Error, Result, Stream, Tier, launch::Contract};

/// Columns from which on a cluster has work for a row.
const GREEDY_COLUMNS: u64 = 4096;

/// Sampling of tokens, to be [run](Sample::run). Made by [`sample`].
#[derive(Clone, Copy)]
#[must_use = "nothing is computed before `run`"]
pub struct Sample<'a> {
    logits: &'a AnyTensor,
    temperature: f32,
    top_k: Option<u64>,
    top_p: f64,
    seed: u64,
    offset: u64,
    offset_from: Option<&'a AnyTensor>,
    stream: Option<&'a Stream>,
}

/// The index of the largest logit of each row, the first of equals, i64: greedy decoding. A NaN counts as the largest,
/// so that faults do not pass as text.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`].
pub fn argmax(logits: &AnyTensor) -> Result<AnyTensor> {
    argmax_and_copy(logits, None)
}

/// [`argmax`], whose result is written to `copy` (i64, dense, as many elements) too: where the next step of a recorded graph
/// looks for it.
///
/// # Errors
/// [`Error::Dtype`], [`Error::Shape`] naming the argument; [`Error::Layout`] when `copy` is not dense.
pub fn argmax_and_copy(logits: &AnyTensor, copy: Option<&AnyTensor>) -> Result<AnyTensor> {
    check_float("logits", logits)?;
    let rows = Rows::of("logits", logits)?;
    if let Some(copy) = copy {
        check_dtype("copy", copy, DType::I64)?;
        if copy.elements() != rows.rows || !copy.is_contiguous() {
            return Err(Error::shape(
                "copy",
                copy.shape(),
                format!("{} dense elements are needed", rows.rows),
            ));
        }
    }
    let shape = &logits.shape()[..logits.rank() - 1];
    let clusters = logits.device().tier() == Tier::Sm90a && logits.dtype() == DType::F32;
    let fits = (1..=i32::MAX as u64 / u64::from(greedy::CLUSTER)).contains(&rows.rows);
    if !(clusters && fits && rows.columns >= GREEDY_COLUMNS) {
        let found = reduce(&rows.view, ReduceKind::Argmax, ReduceAxis::Last)?.reshape(shape)?;
        if let Some(copy) = copy {
            super::copy(&found.reshape(copy.shape())?, copy)?;
        }
        return Ok(found);
    }
    let out = AnyTensor::empty(logits.device(), DType::I64, shape)?;
    let launch = Contract::new(logits.device(), "greedy_f32")
        .grid([rows.rows * u64::from(greedy::CLUSTER), 1, 1])
        .shared(greedy::SHARED_BYTES.into())
        .programmatic()
        .reads("logits", &rows.view)
        .writes("out", &out)
        .writes_if("copy", copy)
        .prepare()?;
    let params = greedy::GreedyParams {
        x: rows.address(),
        x_stride: rows.stride,
        out: out.address(),
        copy: copy.map_or(0, AnyTensor::address),
        columns: rows.columns as u32,
        aligned: rows.aligned().into(),
    };
    // SAFETY: the argument struct of this kernel; extents and strides are those of the tensors named above.
    unsafe { launch.launch(&params)? };
    Ok(out)
}

/// Draws a token for each row of `logits`, at temperature 1 from the whole vocabulary unless told otherwise.
///
/// In order: logits divided by the temperature; the `top_k` largest kept (of equal ones the lower indices); of those,
/// in falling order, the shortest prefix whose probability reaches `top_p`; one drawn in proportion. The draw walks
/// the kept tokens in order of their index and takes the first whose cumulative probability exceeds the Philox number
/// of (seed, offset, row), see [`reference::sampling`](crate::reference::sampling).
pub fn sample(logits: &AnyTensor) -> Sample<'_> {
    Sample {
        logits,
        temperature: 1.0,
        top_k: None,
        top_p: 1.0,
        seed: 0,
        offset: 0,
        offset_from: None,
        stream: None,
    }
}

impl<'a> Sample<'a> {
    /// Divides the logits; 0 takes the largest.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Keeps at most so many tokens.
    pub fn top_k(mut self, top_k: u64) -> Self {
        self.top_k = Some(top_k);
        self
    }

    /// Keeps the likeliest tokens up to this probability, above 0 and up to 1.
    pub fn top_p(mut self, top_p: f64) -> Self {
        self.top_p = top_p;
        self
    }

    /// Key of the generator; 0 unless given.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Tells steps under one seed apart; 0 unless given.
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Adds what this i64 of one element holds when the kernel runs to the offset: a recorded graph draws anew at each
    /// replay.
    pub fn offset_from(mut self, offset: &'a AnyTensor) -> Self {
        self.offset_from = Some(offset);
        self
    }

    /// Runs in this stream.
    pub fn on(mut self, stream: &'a Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// The tokens, i64, in the shape of the logits without their last axis. A row with a NaN yields the first NaN's
    /// index. Same logits, seed, offset and row give the same token on every device.
    ///
    /// # Errors
    /// - [`Error::Range`]: temperature below 0, infinite or NaN; `top_k` of 0; `top_p` outside (0, 1].
    /// - [`Error::Dtype`]; [`Error::Shape`] for an empty vocabulary.
    pub fn run(self) -> Result<AnyTensor> {
        check_float("logits", self.logits)?;
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::range("temperature", self.temperature, "finite, 0 or more"));
        }
        if self.top_k == Some(0) {
            return Err(Error::range("top_k", 0, "1 or more"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::range("top_p", self.top_p, "above 0 and at most 1"));
        }
        if let Some(offset) = self.offset_from {
            check_dtype("offset_from", offset, DType::I64)?;
            if offset.elements() != 1 {
                return Err(Error::shape("offset_from", offset.shape(), "one element is needed"));
            }
        }
        let rows = Rows::of("logits", self.logits)?;
        let outer = &self.logits.shape()[..self.logits.rank() - 1];
        let device = self.logits.device();
        let tokens = AnyTensor::empty(device, DType::I64, outer)?;
        if rows.rows == 0 {
            return Ok(tokens);
        }
        if rows.columns == 0 {
            return Err(Error::shape("logits", self.logits.shape(), "a vocabulary is needed"));
        }
        let entry = format!("sample_{}", self.logits.dtype());
        let launch = Contract::new(device, &entry)
            .grid([rows.rows.min(1 << 30), 1, 1])
            .shared(SHARED_BYTES)
            .on(self.stream)
            .reads("logits", &rows.view)
            .reads_if("offset_from", self.offset_from)
            .writes("tokens", &tokens)
            .prepare()?;
        // So cold that 1/temperature overflows is greedy.
        let sharpness = 1.0 / self.temperature;
        let greedy = !sharpness.is_finite();
        let params = SamplingParams {
            x: rows.address(),
            out: tokens.address(),
            offset_address: self.offset_from.map_or(0, AnyTensor::address),
            rows: rows.rows,
            x_stride: rows.stride,
            seed: self.seed,
            offset: self.offset,
            top_k: self.top_k.unwrap_or(u64::MAX),
            top_p: ((self.top_p * TOP_P_ONE as f64).round() as u64).clamp(1, TOP_P_ONE),
            columns: rows.columns as u32,
            greedy: greedy as u32,
            sharpness: if greedy { 0.0 } else { sharpness },
            aligned: rows.aligned() as u32,
        };
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
        unsafe { launch.launch(&params)? };
        Ok(tokens)
    }
}
