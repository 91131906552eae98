//! Element by element: sums, activations, casts, copies, the optimizer.

use host::{
    DType::{self, BF16, F16, F32, I64, U8},
    ops::{
        self, Activation, AdamW, AdamWState, activation, activation_backward, add, cast, contiguous, gated,
        gated_backward, swiglu, swiglu_backward, vector_add,
    },
};

use super::{Case, FLOATS, case};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("vector-add", "1000 f32", |bed| {
            Ok(vec![vector_add(
                &bed.floats(F32, &[1000])?,
                &bed.floats(F32, &[1000])?,
            )?])
        }),
        case("vector-add", "1 f32", |bed| {
            Ok(vec![vector_add(&bed.floats(F32, &[1])?, &bed.floats(F32, &[1])?)?])
        }),
    ];
    for dtype in FLOATS {
        cases.push(case("activation", format!("GELU of 3×77 {dtype}"), move |bed| {
            Ok(vec![activation(&bed.floats(dtype, &[3, 77])?, Activation::GeluErf)?])
        }));
        cases.push(case("activation", format!("gradients of 1025 {dtype}"), move |bed| {
            let (x, dy) = (bed.floats(dtype, &[1025])?, bed.floats(dtype, &[1025])?);
            [Activation::Silu, Activation::GeluTanh, Activation::Relu]
                .into_iter()
                .map(|kind| activation_backward(&x, &dy, kind))
                .collect()
        }));
    }
    for dtype in FLOATS {
        cases.push(case("gated", format!("GeGLU of 5×40 {dtype}"), move |bed| {
            let (gate, up) = (bed.floats(dtype, &[5, 40])?, bed.floats(dtype, &[5, 40])?);
            Ok(vec![gated(&gate, &up, Activation::GeluErf)?])
        }));
        cases.push(case("gated", format!("gradients of 5×41 {dtype}"), move |bed| {
            let shape = [5, 41];
            let (gate, up) = (bed.floats(dtype, &shape)?, bed.floats(dtype, &shape)?);
            Ok(gated_backward(&gate, &up, &bed.floats(dtype, &shape)?, Activation::Silu)?.to_vec())
        }));
        cases.push(case(
            "gated",
            format!("SwiGLU of a packed pair and its gradient, {dtype}"),
            move |bed| {
                let x = bed.floats(dtype, &[3, 128])?;
                Ok(vec![swiglu(&x)?, swiglu_backward(&x, &bed.floats(dtype, &[3, 64])?)?])
            },
        ));
    }
    for dtype in FLOATS {
        cases.push(case("add", format!("7×33 {dtype}"), move |bed| {
            Ok(vec![add(&bed.floats(dtype, &[7, 33])?, &bed.floats(dtype, &[7, 33])?)?])
        }));
        cases.push(case("add", format!("bias of 7×64 {dtype}"), move |bed| {
            Ok(vec![add(&bed.floats(dtype, &[7, 64])?, &bed.floats(dtype, &[64])?)?])
        }));
        cases.push(case("add", format!("in place, scaled, 300 {dtype}"), move |bed| {
            let (a, b) = (bed.floats(dtype, &[300])?, bed.floats(dtype, &[300])?);
            ops::add_scaled(0.5, &a, 2.0, &b, &a)?;
            Ok(vec![a])
        }));
    }
    for (from, to) in [
        (F32, BF16),
        (F32, F16),
        (F16, F32),
        (F16, BF16),
        (BF16, F32),
        (BF16, F16),
    ] {
        cases.push(case("cast", format!("777 {from} to {to}"), move |bed| {
            Ok(vec![cast(&bed.floats(from, &[777])?, to)?])
        }));
    }
    for dtype in [U8, F16, F32, I64] {
        cases.push(case("copy", format!("transpose of 65×70 {dtype}"), move |bed| {
            Ok(vec![contiguous(&bed.bits(dtype, &[65, 70])?.transpose(0, 1)?)?])
        }));
        cases.push(case("copy", format!("transpose of 72×136 {dtype}"), move |bed| {
            Ok(vec![contiguous(&bed.bits(dtype, &[72, 136])?.transpose(0, 1)?)?])
        }));
        cases.push(case("copy", format!("permutation of 3×4×5×6 {dtype}"), move |bed| {
            Ok(vec![contiguous(
                &bed.bits(dtype, &[3, 4, 5, 6])?.permute(&[2, 0, 3, 1])?,
            )?])
        }));
    }
    for dtype in FLOATS {
        cases.push(case("adamw", format!("2 steps of 130 {dtype}"), move |bed| {
            adamw(bed, dtype)
        }));
    }
    cases
}

fn adamw(bed: &super::Bed, dtype: DType) -> host::Result<Vec<host::AnyTensor>> {
    let options = AdamW {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        grad_scale: 1.0,
    };
    let parameters = bed.floats(dtype, &[130])?;
    let (first, second) = (bed.zeros(F32, &[130])?, bed.zeros(F32, &[130])?);
    let gradient = bed.floats(dtype, &[130])?;
    let master = if dtype == F32 {
        None
    } else {
        Some(cast(&parameters, F32)?)
    };
    let state = AdamWState {
        parameters: &parameters,
        master: master.as_ref(),
        first: &first,
        second: &second,
    };
    options.step(1, &state, &gradient)?;
    options.step(2, &state, &gradient)?;
    Ok(vec![parameters, first, second])
}
