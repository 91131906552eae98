//! The kernels that are damaged, and the calls that run them.

use host::{
    AnyTensor, DType, Device, Result, Tensor, Tier, bf16, f16,
    ops::{self, LinearMode, ReduceAxis, ReduceKind},
    reference::data::normal,
};

/// A kernel and what runs it.
pub struct Subject {
    pub name: &'static str,
    pub tier: Tier,
    pub run: fn(&Device) -> Result<Vec<AnyTensor>>,
}

fn floats(device: &Device, dtype: DType, shape: &[u64], seed: u64) -> Result<AnyTensor> {
    let len = shape.iter().product::<u64>() as usize;
    Ok(match dtype {
        DType::F16 => Tensor::from_slice(device, &normal::<f16>(seed, len), shape)?
            .any()
            .clone(),
        DType::BF16 => Tensor::from_slice(device, &normal::<bf16>(seed, len), shape)?
            .any()
            .clone(),
        _ => Tensor::from_slice(device, &normal::<f32>(seed, len), shape)?
            .any()
            .clone(),
    })
}

fn vector_add(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    for len in [1, 1000, 1024, 40_000] {
        let (a, b) = (
            floats(device, DType::F32, &[len], 1)?,
            floats(device, DType::F32, &[len], 2)?,
        );
        results.push(ops::vector_add(&a, &b)?);
    }
    Ok(results)
}

fn reduce(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    for len in [1, 4, 31, 128, 129, 256, 3000, 4096, 4097, 8192, 9000] {
        let x = floats(device, DType::F32, &[len], 3)?;
        results.push(ops::reduce(&x, ReduceKind::Sum, ReduceAxis::All)?);
        let x = floats(device, DType::F32, &[3, len], 4)?;
        results.push(ops::reduce(&x, ReduceKind::Sum, ReduceAxis::Last)?);
    }
    // More than one block a row, and rows that are not dense.
    for len in [32_768, 32_769, 65_536, 70_000] {
        let x = floats(device, DType::F32, &[len], 3)?;
        results.push(ops::reduce(&x, ReduceKind::Sum, ReduceAxis::All)?);
    }
    for (columns, used) in [(40, 33), (5000, 4999), (5000, 4500)] {
        let x = floats(device, DType::F32, &[3, columns], 4)?.slice(1, 0..used)?;
        results.push(ops::reduce(&x, ReduceKind::Sum, ReduceAxis::Last)?);
    }
    Ok(results)
}

fn softmax(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    for columns in [1, 3, 32, 33, 100, 1024, 1025, 2500, 8192] {
        let x = floats(device, DType::F32, &[3, columns], 5)?;
        results.push(ops::softmax(&x).run()?);
        results.push(ops::softmax(&x).causal().run()?);
    }
    // A thread holds chunks of 4 elements: each of them is the first behind the row once, in each chunk.
    for chunk in 0..8 {
        for element in 0..4 {
            let x = floats(device, DType::F32, &[2, 128 * chunk + 4 + element], 5)?;
            results.push(ops::softmax(&x).run()?);
            if chunk > 0 {
                let x = floats(device, DType::F32, &[1, 1024 * chunk + 4 + element], 5)?;
                results.push(ops::softmax(&x).run()?);
            }
        }
    }
    // Causal rows end everywhere; a mask, and rows that are not dense.
    let x = floats(device, DType::F32, &[1, 70, 70], 5)?;
    let mask = floats(device, DType::F32, &[70, 70], 6)?;
    results.push(ops::softmax(&x).causal().mask(&mask).scale(0.5).run()?);
    for used in [64, 61] {
        results.push(
            ops::softmax(&x.slice(2, 0..used)?)
                .mask(&mask.slice(1, 0..used)?)
                .run()?,
        );
    }
    Ok(results)
}

fn linear(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    for (m, n, k) in [(1, 8, 8), (64, 64, 32), (70, 72, 64), (33, 136, 200), (128, 256, 96)] {
        let (x, w) = (
            floats(device, DType::F16, &[m, k], 6)?,
            floats(device, DType::F16, &[n, k], 7)?,
        );
        let bias = floats(device, DType::F16, &[n], 8)?;
        results.push(ops::linear(&x, &w).mode(LinearMode::Tiled).bias(&bias).run()?);
    }
    // Columns that are not pairs, activations, residuals, gated pairs, f32 out.
    let (x, w) = (
        floats(device, DType::F16, &[20, 40], 6)?,
        floats(device, DType::F16, &[66, 40], 7)?,
    );
    let call = || ops::linear(&x, &w).mode(LinearMode::Tiled);
    let residual = floats(device, DType::F16, &[20, 66], 8)?;
    results.push(call().gelu().residual(&residual).run()?);
    results.push(call().gelu_tanh().dtype(DType::F32).run()?);
    results.push(call().relu().run()?);
    results.push(call().swiglu().run()?);
    let w = floats(device, DType::F16, &[65, 40], 7)?;
    results.push(ops::linear(&x, &w).mode(LinearMode::Tiled).silu().run()?);
    Ok(results)
}

fn attention(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    for (rows, keys) in [(1, 1), (70, 70), (30, 150), (128, 256)] {
        let q = floats(device, DType::F16, &[1, rows, 2, 64], 9)?;
        let (k, v) = (
            floats(device, DType::F16, &[1, keys, 1, 64], 10)?,
            floats(device, DType::F16, &[1, keys, 1, 64], 11)?,
        );
        let causal = ops::attention(&q, &k, &v).causal().run()?;
        let full = ops::attention(&q, &k, &v).run()?;
        results.extend([causal.out, causal.lse, full.out, full.lse]);
    }
    // Stages are used again, windows begin and end everywhere, sequences are packed.
    let q = floats(device, DType::F16, &[1, 150, 2, 64], 9)?;
    let (k, v) = (
        floats(device, DType::F16, &[1, 700, 1, 64], 10)?,
        floats(device, DType::F16, &[1, 700, 1, 64], 11)?,
    );
    for (left, right) in [
        (None, None),
        (Some(130), Some(3)),
        (Some(0), Some(40)),
        (Some(300), None),
    ] {
        let result = ops::attention(&q, &k, &v).window(left, right).run()?;
        results.extend([result.out, result.lse]);
    }
    // Each stage is used again so often that a barrier which counts one arrival too few is a whole phase ahead.
    let (k, v) = (
        floats(device, DType::F16, &[1, 3200, 1, 64], 10)?,
        floats(device, DType::F16, &[1, 3200, 1, 64], 11)?,
    );
    let long = ops::attention(&q.slice(1, 0..20)?.slice(2, 0..1)?, &k, &v).run()?;
    results.extend([long.out, long.lse]);
    let ends = Tensor::from_slice(device, &[0i32, 30, 30, 150], &[4])?;
    let packed = |x: &AnyTensor| x.slice(1, 0..150)?.select(0, 0);
    let (q, k, v) = (packed(&q)?, packed(&k)?, packed(&v)?);
    let call = ops::attention(&q, &k, &v).cu_seqlens(ends.any(), ends.any(), 120, 120);
    let result = call.causal().run()?;
    results.extend([result.out, result.lse]);
    Ok(results)
}

/// Gradients by one kernel, of an O and an LSE that no forward pass has to compute.
fn backward(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    let mut add = |rows: u64, keys: u64, heads: u64, causal: bool, window: (Option<u32>, Option<u32>)| -> Result<()> {
        let half = |tokens: u64, seed| floats(device, DType::F16, &[1, tokens, heads, 64], seed);
        let (q, k, v) = (half(rows, 12)?, half(keys, 13)?, half(keys, 14)?);
        let (grad, out) = (half(rows, 15)?, half(rows, 16)?);
        let lse = floats(device, DType::F32, &[1, heads, rows], 17)?;
        let call = ops::attention_backward(&grad, &q, &k, &v, &out, &lse).window(window.0, window.1);
        let gradients = if causal { call.causal() } else { call }.run()?;
        results.extend([gradients.dq, gradients.dk, gradients.dv]);
        Ok(())
    };
    let all = (None, None);
    for (rows, keys) in [(1, 1), (70, 70), (40, 150), (150, 300), (300, 40)] {
        add(rows, keys, 1, false, all)?;
        add(rows, keys, 1, true, all)?;
    }
    // Windows that begin and end everywhere; several heads; rings that are used often.
    for window in [(Some(130), Some(3)), (Some(0), Some(40)), (Some(200), None)] {
        add(150, 300, 2, false, window)?;
    }
    add(1100, 130, 1, false, all)?;
    Ok(results)
}

/// All of them.
pub const SUBJECTS: [Subject; 8] = [
    Subject {
        name: "vector_add",
        tier: Tier::Sm90a,
        run: vector_add,
    },
    Subject {
        name: "reduce",
        tier: Tier::Sm90a,
        run: reduce,
    },
    Subject {
        name: "softmax",
        tier: Tier::Sm90a,
        run: softmax,
    },
    Subject {
        name: "linear, mma.sync",
        tier: Tier::Sm80,
        run: linear,
    },
    Subject {
        name: "attention, mma.sync",
        tier: Tier::Sm80,
        run: attention,
    },
    Subject {
        name: "attention, wgmma",
        tier: Tier::Sm90a,
        run: attention,
    },
    Subject {
        name: "backward, mma.sync",
        tier: Tier::Sm80,
        run: backward,
    },
    Subject {
        name: "backward, wgmma",
        tier: Tier::Sm90a,
        run: backward,
    },
];
