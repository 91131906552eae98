//! The table of cases: small inputs that reach every kernel family, with tails in every extent.

use host::{
    DType::{BF16, F16, F32},
    ops::{
        self, Activation, LinearMode, ReduceAxis, ReduceKind, WeightLayout, activation, activation_backward, add,
        attention, cast, contiguous, embedding, embedding_backward, gated, gated_backward, layer_norm, linear,
        log_softmax, reduce, rms_norm, sample, softmax, swiglu, swiglu_backward, vector_add,
    },
};

use super::Case;

/// One line of the table: op, inputs, what runs.
macro_rules! case {
    ($op:literal, $name:literal, $run:expr) => {
        Case {
            op: $op,
            name: $name,
            looks_at_data: false,
            run: $run,
        }
    };
    ($op:literal, $name:literal, looks_at_data, $run:expr) => {
        Case {
            looks_at_data: true,
            ..case!($op, $name, $run)
        }
    };
}

/// Every case; those of one op stand together.
pub fn all() -> Vec<Case> {
    let mut cases = elementwise();
    cases.extend(rows());
    cases.extend(tables());
    cases.extend(layers());
    cases.extend(attentions());
    cases
}

fn elementwise() -> Vec<Case> {
    vec![
        case!("vector-add", "1000 f32", |bed| {
            Ok(vec![vector_add(
                &bed.floats(F32, &[1000])?,
                &bed.floats(F32, &[1000])?,
            )?])
        }),
        case!("vector-add", "1 f32", |bed| {
            Ok(vec![vector_add(&bed.floats(F32, &[1])?, &bed.floats(F32, &[1])?)?])
        }),
        case!("activation", "GELU of 3×77 f32", |bed| {
            Ok(vec![activation(&bed.floats(F32, &[3, 77])?, Activation::GeluErf)?])
        }),
        case!("activation", "tanh GELU of 1025 bf16", |bed| {
            Ok(vec![activation(&bed.floats(BF16, &[1025])?, Activation::GeluTanh)?])
        }),
        case!("activation", "gradient of SiLU of 1025 f16", |bed| {
            let (x, dy) = (bed.floats(F16, &[1025])?, bed.floats(F16, &[1025])?);
            Ok(vec![activation_backward(&x, &dy, Activation::Silu)?])
        }),
        case!("gated", "GeGLU of 5×40 f16", |bed| {
            let (gate, up) = (bed.floats(F16, &[5, 40])?, bed.floats(F16, &[5, 40])?);
            Ok(vec![gated(&gate, &up, Activation::GeluErf)?])
        }),
        case!("gated", "gradients of 5×41 f32", |bed| {
            let shape = [5, 41];
            let (gate, up) = (bed.floats(F32, &shape)?, bed.floats(F32, &shape)?);
            Ok(gated_backward(&gate, &up, &bed.floats(F32, &shape)?, Activation::Silu)?.to_vec())
        }),
        case!("gated", "SwiGLU of a packed pair, bf16", |bed| {
            Ok(vec![swiglu(&bed.floats(BF16, &[3, 128])?)?])
        }),
        case!("gated", "gradient of SwiGLU, bf16", |bed| {
            let dy = bed.floats(BF16, &[3, 64])?;
            Ok(vec![swiglu_backward(&bed.floats(BF16, &[3, 128])?, &dy)?])
        }),
        case!("add", "7×33 f16", |bed| {
            Ok(vec![add(&bed.floats(F16, &[7, 33])?, &bed.floats(F16, &[7, 33])?)?])
        }),
        case!("add", "bias of 7×64 bf16", |bed| {
            Ok(vec![add(&bed.floats(BF16, &[7, 64])?, &bed.floats(BF16, &[64])?)?])
        }),
        case!("add", "in place, scaled, f32", |bed| {
            let (a, b) = (bed.floats(F32, &[300])?, bed.floats(F32, &[300])?);
            ops::add_scaled(0.5, &a, 2.0, &b, &a)?;
            Ok(vec![a])
        }),
        case!("cast", "f32 to bf16", |bed| Ok(vec![cast(
            &bed.floats(F32, &[777])?,
            BF16
        )?])),
        case!("cast", "f16 to f32", |bed| Ok(vec![cast(
            &bed.floats(F16, &[777])?,
            F32
        )?])),
        case!("copy", "transpose of 65×70 f16", |bed| {
            Ok(vec![contiguous(&bed.floats(F16, &[65, 70])?.transpose(0, 1)?)?])
        }),
        case!("copy", "permutation of 3×4×5×6 f32", |bed| {
            Ok(vec![contiguous(
                &bed.floats(F32, &[3, 4, 5, 6])?.permute(&[2, 0, 3, 1])?,
            )?])
        }),
    ]
}

fn rows() -> Vec<Case> {
    vec![
        case!("reduce", "sum of 5000 f32", |bed| {
            Ok(vec![reduce(
                &bed.floats(F32, &[5000])?,
                ReduceKind::Sum,
                ReduceAxis::All,
            )?])
        }),
        case!("reduce", "mean of rows of 100 bf16", |bed| {
            Ok(vec![reduce(
                &bed.floats(BF16, &[9, 100])?,
                ReduceKind::Mean,
                ReduceAxis::Last,
            )?])
        }),
        case!("reduce", "sum of squares of rows of 3000 f16", |bed| {
            let x = bed.floats(F16, &[3, 3000])?;
            Ok(vec![reduce(&x, ReduceKind::SumOfSquares, ReduceAxis::Last)?])
        }),
        case!("reduce", "maximum of 3000 f16", |bed| {
            Ok(vec![reduce(
                &bed.floats(F16, &[3000])?,
                ReduceKind::Max,
                ReduceAxis::All,
            )?])
        }),
        case!("reduce", "minimum of rows of 3000 f32", |bed| {
            Ok(vec![reduce(
                &bed.floats(F32, &[2, 3000])?,
                ReduceKind::Min,
                ReduceAxis::Last,
            )?])
        }),
        case!("reduce", "argmax of 3000 f32", |bed| {
            Ok(vec![reduce(
                &bed.floats(F32, &[3000])?,
                ReduceKind::Argmax,
                ReduceAxis::All,
            )?])
        }),
        case!("norm", "RMSNorm of rows of 100 f16 with a residual", |bed| {
            let (x, r, w) = (
                bed.floats(F16, &[5, 100])?,
                bed.floats(F16, &[5, 100])?,
                bed.floats(F16, &[100])?,
            );
            let normed = rms_norm(&x).residual(&r).weight(&w).run()?;
            Ok([Some(normed.y), normed.sum].into_iter().flatten().collect())
        }),
        case!("norm", "LayerNorm of rows of 1536 bf16", |bed| {
            let x = bed.floats(BF16, &[3, 1536])?;
            let (w, b) = (bed.floats(BF16, &[1536])?, bed.floats(BF16, &[1536])?);
            Ok(vec![layer_norm(&x).weight(&w).bias(&b).run()?.y])
        }),
        case!("norm", "LayerNorm of rows of 9001 f32", |bed| {
            Ok(vec![layer_norm(&bed.floats(F32, &[2, 9001])?).run()?.y])
        }),
        case!("softmax", "rows of 50 f32", |bed| Ok(vec![
            softmax(&bed.floats(F32, &[6, 50])?).run()?
        ])),
        case!("softmax", "causal, 1×2×20×20 f16", |bed| {
            Ok(vec![
                softmax(&bed.floats(F16, &[1, 2, 20, 20])?)
                    .causal()
                    .scale(0.125)
                    .run()?,
            ])
        }),
        case!("softmax", "logarithm, rows of 5000 bf16", |bed| {
            Ok(vec![log_softmax(&bed.floats(BF16, &[2, 5000])?).run()?])
        }),
        case!("softmax", "gradient, rows of 333 f32", |bed| {
            let dy = bed.floats(F32, &[4, 333])?;
            Ok(vec![softmax(&bed.floats(F32, &[4, 333])?).backward(&dy)?])
        }),
    ]
}

fn tables() -> Vec<Case> {
    vec![
        case!("embedding", "rows of 64 f16", |bed| {
            Ok(vec![embedding(
                &bed.floats(F16, &[40, 64])?,
                &bed.indices(&[3, 11], 40)?,
            )?])
        }),
        case!("embedding", "gradient, rows of 33 f32", |bed| {
            let dy = bed.floats(F32, &[20, 33])?;
            Ok(vec![embedding_backward(&dy, &bed.indices(&[20], 10)?, 10, None)?])
        }),
        case!("sample", "argmax of 2×500", looks_at_data, |bed| {
            Ok(vec![ops::argmax(&bed.floats(F32, &[2, 500])?)?])
        }),
        case!("sample", "top-k 20, top-p 0.9 of 2×500", looks_at_data, |bed| {
            let logits = bed.floats(F32, &[2, 500])?;
            Ok(vec![
                sample(&logits).temperature(0.7).top_k(20).top_p(0.9).seed(3).run()?,
            ])
        }),
        case!("sample", "whole vocabulary of 1×3000 bf16", looks_at_data, |bed| {
            Ok(vec![sample(&bed.floats(BF16, &[1, 3000])?).seed(3).run()?])
        }),
    ]
}

fn layers() -> Vec<Case> {
    vec![
        case!("linear", "FMA, 5×70×33 f32 with bias and GELU", |bed| {
            let (x, w, b) = (
                bed.floats(F32, &[5, 33])?,
                bed.floats(F32, &[70, 33])?,
                bed.floats(F32, &[70])?,
            );
            Ok(vec![linear(&x, &w).bias(&b).gelu().run()?])
        }),
        case!("linear", "70×72×64 f16 with a residual", |bed| {
            let (x, w, r) = (
                bed.floats(F16, &[70, 64])?,
                bed.floats(F16, &[72, 64])?,
                bed.floats(F16, &[70, 72])?,
            );
            Ok(vec![linear(&x, &w).residual(&r).run()?])
        }),
        case!("linear", "130×136×200 bf16", |bed| {
            Ok(vec![
                linear(&bed.floats(BF16, &[130, 200])?, &bed.floats(BF16, &[136, 200])?).run()?,
            ])
        }),
        case!("linear", "weight [k, n], 20×64×96 f16", |bed| {
            let (x, w) = (bed.floats(F16, &[20, 96])?, bed.floats(F16, &[96, 64])?);
            Ok(vec![linear(&x, &w).layout(WeightLayout::Kn).run()?])
        }),
        case!("linear", "mma.sync pinned, 40×64×64 f16", |bed| {
            let (x, w) = (bed.floats(F16, &[40, 64])?, bed.floats(F16, &[64, 64])?);
            Ok(vec![linear(&x, &w).mode(LinearMode::Tiled).run()?])
        }),
        case!("linear", "SwiGLU and what enters it, 16×64×64 bf16", |bed| {
            let (x, w) = (bed.floats(BF16, &[16, 64])?, bed.floats(BF16, &[128, 64])?);
            let (y, z) = linear(&x, &w).swiglu().run_with_pre_activation()?;
            Ok(vec![y, z])
        }),
    ]
}

fn attentions() -> Vec<Case> {
    vec![
        case!("attention", "causal, 2 heads, 70 × 70, head dim 64, f16", |bed| {
            let q = bed.floats(F16, &[1, 70, 2, 64])?;
            let (k, v) = (bed.floats(F16, &[1, 70, 2, 64])?, bed.floats(F16, &[1, 70, 2, 64])?);
            let result = attention(&q, &k, &v).causal().run()?;
            Ok(vec![result.out, result.lse])
        }),
        case!("attention", "grouped heads, 20 × 300, head dim 128, bf16", |bed| {
            let q = bed.floats(BF16, &[2, 20, 4, 128])?;
            let (k, v) = (
                bed.floats(BF16, &[2, 300, 2, 128])?,
                bed.floats(BF16, &[2, 300, 2, 128])?,
            );
            let result = attention(&q, &k, &v).run()?;
            Ok(vec![result.out, result.lse])
        }),
        case!("attention", "window and softcap, 150 × 150, head dim 64, f16", |bed| {
            let q = bed.floats(F16, &[1, 150, 1, 64])?;
            let (k, v) = (bed.floats(F16, &[1, 150, 1, 64])?, bed.floats(F16, &[1, 150, 1, 64])?);
            let result = attention(&q, &k, &v).window(Some(40), Some(0)).softcap(30.0).run()?;
            Ok(vec![result.out, result.lse])
        }),
        case!("attention", "40 × 50, head dim 32, f32", |bed| {
            let q = bed.floats(F32, &[1, 40, 1, 32])?;
            let (k, v) = (bed.floats(F32, &[1, 50, 1, 32])?, bed.floats(F32, &[1, 50, 1, 32])?);
            let result = attention(&q, &k, &v).causal().run()?;
            Ok(vec![result.out, result.lse])
        }),
    ]
}
