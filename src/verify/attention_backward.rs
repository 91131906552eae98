//! Gradients of attention.

use std::cell::LazyCell;

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

/// One gradient of all.
type Part = fn(&reference::Gradients) -> &[f64];

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
        // The kernels have Δ from the stored O: where that rules the error, naive gradients may have it from there too.
        let from_output = LazyCell::new(|| {
            reference::backward_from_output::<Eager<T>>(&problem.shape, &inputs.options, q, k, v, grad, T::DTYPE)
        });
        let mut findings = Vec::new();
        let parts: [(_, _, Part); 3] = [
            ("dq", found.dq, |all| &all.dq),
            ("dk", found.dk, |all| &all.dk),
            ("dv", found.dv, |all| &all.dv),
        ];
        for (name, tensor, part) in parts {
            let (tensor, exact) = (problem.in_order(tensor)?, part(&exact));
            let mut rules = vec![Rule::twice(part(&naive))];
            if T::DTYPE == DType::F32 {
                let largest = exact.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
                // dP and Δ, of size 10, cancel in few keys: what their last bits leave does not shrink with the gradient.
                rules.push(Rule::Relative {
                    relative: 1e-5,
                    absolute: 6e-6 * largest + 5e-6,
                });
            }
            let mut finding = held::<T>(name, &tensor, exact, &rules)?;
            if !finding.ok {
                rules.push(Rule::twice(part(&from_output)));
                finding = held::<T>(name, &tensor, exact, &rules)?;
            }
            findings.push(finding);
        }
        if let (Some(found), Some(sinks)) = (found.dsinks, &exact.dsinks) {
            for (head, sink) in sinks.iter().enumerate() {
                let found = found.slice(0, head as u64..head as u64 + 1)?;
                let rule = exact.dsink_rule(head, T::DTYPE);
                findings.push(held::<f32>("dsinks", &found, &[*sink], &[rule])?);
            }
        }
        Ok(findings)
    }
}
