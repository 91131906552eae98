//! AdamW.

use kernels_gpu::{
    optimizer::{AdamWParams, THREADS},
    row::WIDTH,
};

use super::rows::{check_dtype, check_float, check_like};
use crate::{AnyTensor, DType, Error, Result, launch::Contract};

/// AdamW (Loshchilov and Hutter 2019): Adam with decoupled weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Factor of the gradient, for clipping or loss scaling.
    pub grad_scale: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            grad_scale: 1.0,
        }
    }
}

/// The tensors of one parameter, dense and of one shape.
#[derive(Clone, Copy)]
pub struct AdamWState<'a> {
    /// f32, f16 or bf16; updated.
    pub parameters: &'a AnyTensor,
    /// f32 copy of the parameters: it is updated, and rounded to them. Without one the parameters are updated
    /// themselves.
    pub master: Option<&'a AnyTensor>,
    /// First moment, f32, zeros before the first step; updated.
    pub first: &'a AnyTensor,
    /// Second moment, f32, zeros before the first step; updated.
    pub second: &'a AnyTensor,
}

impl AdamW {
    /// The `step`-th step, from 1, in place:
    /// `p ← p·(1 − lr·decay)`, `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`,
    /// `p ← p − lr · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)`, in f32.
    ///
    /// # Errors
    /// [`Error::Dtype`], [`Error::Shape`], [`Error::Layout`], [`Error::Range`] naming the argument.
    pub fn step(&self, step: u32, state: &AdamWState<'_>, gradient: &AnyTensor) -> Result<()> {
        for (argument, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::range(argument, beta, "0 to 1, below 1"));
            }
        }
        if step == 0 {
            return Err(Error::range("step", step, "1 or more"));
        }
        let numbers = [
            ("learning_rate", self.learning_rate),
            ("epsilon", self.epsilon),
            ("weight_decay", self.weight_decay),
            ("grad_scale", f64::from(self.grad_scale)),
        ];
        for (argument, number) in numbers {
            if !(number >= 0.0 && number.is_finite()) {
                return Err(Error::range(argument, number, "finite, 0 or more"));
            }
        }
        let parameters = state.parameters;
        check_float("parameters", parameters)?;
        check_like("gradient", gradient, parameters, "the parameters")?;
        let moments = [("first", state.first), ("second", state.second)];
        for (argument, tensor) in moments.into_iter().chain(state.master.map(|master| ("master", master))) {
            check_dtype(argument, tensor, DType::F32)?;
            if tensor.shape() != parameters.shape() {
                return Err(Error::shape(
                    argument,
                    tensor.shape(),
                    format!("the shape of the parameters, {:?}, is needed", parameters.shape()),
                ));
            }
        }
        let all = [
            ("parameters", Some(parameters)),
            ("gradient", Some(gradient)),
            ("first", Some(state.first)),
            ("second", Some(state.second)),
            ("master", state.master),
        ];
        let mut aligned = true;
        for (argument, tensor) in all {
            let Some(tensor) = tensor else { continue };
            if !tensor.is_contiguous() {
                return Err(Error::layout(argument, "must be dense"));
            }
            aligned &= tensor.address().is_multiple_of(16);
        }
        let len = parameters.elements();
        if len == 0 {
            return Ok(());
        }
        let entry = format!("adamw_{}", parameters.dtype());
        let block = THREADS as u64 * WIDTH as u64;
        let launch = Contract::new(parameters.device(), &entry)
            .grid([len.div_ceil(block).min(1 << 20), 1, 1])
            .reads("gradient", gradient)
            .writes("parameters", parameters)
            .writes("first", state.first)
            .writes("second", state.second)
            .writes_if("master", state.master)
            .prepare()?;
        let params = AdamWParams {
            parameters: parameters.address(),
            master: state.master.map_or(0, AnyTensor::address),
            gradient: gradient.address(),
            first: state.first.address(),
            second: state.second.address(),
            len,
            keep: (1.0 - self.learning_rate * self.weight_decay) as f32,
            learning_rate: self.learning_rate as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            correction1: (1.0 - self.beta1.powf(f64::from(step))) as f32,
            correction2: (1.0 - self.beta2.powf(f64::from(step))) as f32,
            epsilon: self.epsilon as f32,
            grad_scale: self.grad_scale,
            rest1: (1.0 - self.beta1) as f32,
            rest2: (1.0 - self.beta2) as f32,
            aligned: aligned as u32,
            reserved: 0,
        };
        // SAFETY: the argument struct of these kernels; all tensors are dense with `len` elements.
        unsafe { launch.launch(&params) }
    }
}
