//! Gradients of attention.

use host::{
    DType, Device, Float, Result,
    compare::Rule,
    ops,
    reference::{Eager, Exact, attention as reference},
};
use proptest::{prelude::*, strategy::BoxedStrategy};

use super::{
    Drawn, Finding, Generic, Size,
    attention::{Attention, problems},
    boxed, held,
};

/// Forward and backward of a problem.
#[derive(Clone, Debug)]
struct Gradients(Attention);

pub fn attention_backward(size: Size) -> BoxedStrategy<Drawn> {
    boxed(problems(size).prop_map(Gradients))
}

impl Generic for Gradients {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let problem = &self.0;
        let inputs = problem.inputs::<T>(device)?;
        let context = ops::attention(&inputs.q, &inputs.k, &inputs.v)
            .options(inputs.op_options)
            .run_with_context()?;
        let found = context.backward(&inputs.grad_out)?;
        let [q, k, v, grad] = &inputs.exact;
        let exact = reference::backward::<Exact>(&problem.shape, &inputs.options, q, k, v, grad);
        let naive = reference::backward::<Eager<T>>(&problem.shape, &inputs.options, q, k, v, grad);
        let mut findings = Vec::new();
        for (name, tensor, exact, naive) in [
            ("dq", found.dq, &exact.dq, &naive.dq),
            ("dk", found.dk, &exact.dk, &naive.dk),
            ("dv", found.dv, &exact.dv, &naive.dv),
        ] {
            // Where rows see one key dS cancels, and naive attention finds exactly 0.
            let mut rules = vec![Rule::twice(naive)];
            if exact.iter().all(|x| x.abs() < 1e-12) {
                rules.push(Rule::Absolute(1e-5));
            }
            if T::DTYPE == DType::F32 {
                let largest = exact.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
                rules.push(Rule::Relative {
                    relative: 1e-5,
                    absolute: 6e-6 * largest + 1e-6,
                });
            }
            findings.push(held::<T>(name, &problem.in_order(tensor)?, exact, &rules)?);
        }
        if let (Some(found), Some(exact)) = (found.dsinks, exact.dsinks) {
            // Sums over all rows of what rounding O to the element type left of them.
            let relative = match T::DTYPE {
                DType::F32 => 1e-5,
                DType::F16 => 4e-3,
                _ => 3e-2,
            };
            let largest = exact.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
            let rule = Rule::Relative {
                relative,
                absolute: relative * largest + 1e-6,
            };
            findings.push(held::<f32>("dsinks", &found, &exact, &[rule])?);
        }
        Ok(findings)
    }
}
