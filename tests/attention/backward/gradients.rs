//! A problem's gradients: what the op says, and what the reference allows.

use host::compare::{Rule, compare};
use host::ops::{Layout, attention, attention_backward};
use host::reference::attention as reference;
use host::reference::data::normal;
use host::reference::{Eager, Exact, widen};
use host::{AnyTensor, DType, Device, Float, Tensor};

use crate::support::Case;

/// What the op says, in the layout of the reference.
#[derive(Clone, Debug)]
pub struct Gradients<T> {
    pub dq: Vec<T>,
    pub dk: Vec<T>,
    pub dv: Vec<T>,
    pub dsinks: Option<Vec<f32>>,
}

pub fn grad_of<T: Float>(case: &Case<T>) -> Vec<T> {
    let s = &case.shape;
    normal::<T>(77, s.batch * s.seq_q * s.heads_q * s.value_dim)
}

/// Forward and backward on the device; whatever is written begins as NaN.
pub fn run<T: Float>(case: &Case<T>, device: &Device, grad: &[T]) -> host::Result<Gradients<T>> {
    let s = &case.shape;
    let [q, k, v] = case.tensors(device);
    let grad = case.upload(device, grad, s.seq_q, s.heads_q, s.value_dim);
    let options = case.op_options(device);
    let forward = attention(&q, &k, &v).options(options.clone()).run()?;
    let fresh = |tensor: &AnyTensor| -> host::Result<Tensor<T>> {
        let fresh = Tensor::<T>::empty(device, tensor.shape())?;
        fresh.fill_bytes(0xFF)?;
        Ok(fresh)
    };
    let (dq, dk, dv) = (fresh(&q)?, fresh(&k)?, fresh(&v)?);
    let call = attention_backward(&grad, &q, &k, &v, &forward.out, &forward.lse)
        .options(options)
        .gradients(&dq, &dk, &dv);
    let work = Tensor::<f32>::empty(device, &[call.work_elements()])?;
    work.fill_bytes(0xFF)?;
    let result = call.work(&work).run()?;
    let values = |tensor: Tensor<T>| {
        if case.layout == Layout::Bshd {
            tensor.to_vec()
        } else {
            tensor.transpose(1, 2)?.to_vec()
        }
    };
    Ok(Gradients {
        dq: values(dq)?,
        dk: values(dk)?,
        dv: values(dv)?,
        dsinks: match result.dsinks {
            Some(dsinks) => Some(dsinks.typed::<f32>("dsinks")?.to_vec()?),
            None => None,
        },
    })
}

pub fn judge<T: Float>(
    found: &Gradients<T>,
    exact: &reference::Gradients,
    naive: &reference::Gradients,
) -> Result<(), String> {
    for (name, found, exact, naive) in [
        ("dq", &found.dq, &exact.dq, &naive.dq),
        ("dk", &found.dk, &exact.dk, &naive.dk),
        ("dv", &found.dv, &exact.dv, &naive.dv),
    ] {
        if let Err(report) = compare(found, exact, Rule::twice(naive)).check() {
            // As for the forward pass: f32 may be within 10⁻⁵ instead, or a part of that of the largest element.
            let largest = exact.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
            let close = Rule::Relative {
                relative: 1e-5,
                absolute: 6e-6 * largest + 1e-6,
            };
            if T::DTYPE != DType::F32 || !compare(found, exact, close).is_ok() {
                return Err(format!("{name}: {report}"));
            }
        }
    }
    let (Some(found), Some(sinks)) = (&found.dsinks, &exact.dsinks) else {
        assert_eq!(found.dsinks.is_some(), exact.dsinks.is_some());
        return Ok(());
    };
    assert_eq!(found.len(), sinks.len());
    for (head, (found, sink)) in found.iter().zip(sinks).enumerate() {
        let rule = exact.dsink_rule(head, T::DTYPE);
        if let Err(report) = compare(&[*found], &[*sink], rule).check() {
            return Err(format!("dsinks, head {head}: {report}"));
        }
    }
    Ok(())
}

#[track_caller]
pub fn check<T: Float>(case: &Case<T>, device: &Device) {
    let grad = grad_of(case);
    let wide = (widen(&case.q), widen(&case.k), widen(&case.v), widen(&grad));
    let (q, k, v, g) = (&wide.0, &wide.1, &wide.2, &wide.3);
    let exact = reference::backward::<Exact>(&case.shape, &case.options, q, k, v, g);
    let naive = reference::backward::<Eager<T>>(&case.shape, &case.options, q, k, v, g);
    let found = run(case, device, &grad).unwrap_or_else(|error| panic!("{}: {error}", case.describe(device)));
    if judge(&found, &exact, &naive).is_err() {
        // The kernels have Δ from the stored O: where that rules the error, naive gradients may have it from there too.
        let naive = reference::backward_from_output::<Eager<T>>(&case.shape, &case.options, q, k, v, g, T::DTYPE);
        judge(&found, &exact, &naive).unwrap_or_else(|report| panic!("{}: {report}", case.describe(device)));
    }
}
