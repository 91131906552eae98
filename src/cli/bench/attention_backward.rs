//! Gradients of attention: the flash-attention grid and the grouped heads of Llama.

use host::{
    AnyTensor, DType,
    ops::{self, Layout},
};
use serde_json::json;

use super::case::{Case, Spec, copies, differs, normal, sets, values};

/// 16k tokens of several lengths; heads by head dim so that the model dim is 2048; grouped heads of Llama.
pub fn grid() -> Vec<Spec> {
    let mut specs = Vec::new();
    for (dim, heads) in [(64, 32), (128, 16), (256, 8)] {
        for seq in [512, 1024, 2048, 4096, 8192, 16384] {
            for causal in [false, true] {
                specs.push(backward(16384 / seq, (heads, heads), seq, dim, causal));
            }
        }
    }
    for (batch, seq) in [(8, 1024), (4, 2048), (1, 4096), (1, 8192)] {
        specs.push(backward(batch, (32, 8), seq, 128, true));
    }
    specs
}

fn backward(batch: u64, (heads, heads_kv): (u64, u64), seq: u64, dim: u64, causal: bool) -> Spec {
    let dtype = DType::BF16;
    let name = format!(
        "{dtype} B{batch} H{heads}:{heads_kv} S{seq} D{dim}{}",
        if causal { " causal" } else { "" }
    );
    Spec::new(name, move |device| {
        // Q, O, dO, dQ; K, V, dK, dV.
        let bytes = dtype.size() * batch * seq * dim * 4 * (heads + heads_kv);
        let count = copies(device, bytes);
        let sets = sets(count, |seed| {
            let tensor = |heads, seed| normal(device, dtype, &[batch, heads, seq, dim], seed);
            let (q, k, v) = (
                tensor(heads, seed)?,
                tensor(heads_kv, seed + 1)?,
                tensor(heads_kv, seed + 2)?,
            );
            let call = ops::attention(&q, &k, &v).layout(Layout::Bhsd);
            let context = if causal { call.causal() } else { call }.run_with_context()?;
            Ok((context, tensor(heads, seed + 3)?))
        })?;
        let first = sets[0].clone();
        Ok(Case {
            op: "attention-backward",
            dtype,
            bytes,
            // Five products where forward has two; of a causal problem half of the pairs count.
            flops: 10 * batch * heads * seq * seq * dim / if causal { 2 } else { 1 },
            peer: json!({"op": "attention-backward", "dtype": dtype.name(), "batch": batch, "heads": heads,
                "heads_kv": heads_kv, "seq": seq, "dim": dim, "causal": causal}),
            copies: count,
            run: Box::new(move |turn| {
                let (context, grad) = &sets[turn % sets.len()];
                context.backward(grad).map(drop)
            }),
            check: Box::new(move || {
                // Every weight of a row of P adds to 1: the sum over keys of dV is the sum over rows of dO, a head.
                let gradients = first.0.backward(&first.1)?;
                let total = |tensor: &AnyTensor, heads: u64, head: u64, count: u64| -> host::Result<Vec<f64>> {
                    let flat = tensor.reshape(&[batch * heads, seq * dim])?;
                    let mut sum = vec![0.0; dim as usize];
                    for h in head..head + count {
                        let plane = values(&flat.select(0, h)?)?;
                        plane.iter().enumerate().for_each(|(i, x)| sum[i % dim as usize] += x);
                    }
                    Ok(sum)
                };
                let group = heads / heads_kv;
                for kv in [0, batch * heads_kv - 1] {
                    let found = total(&gradients.dv, heads_kv, kv, 1)?;
                    let wanted = total(&first.1, heads, kv * group, group)?;
                    if let Some(problem) = differs(&format!("sum of dV of plane {kv}"), dtype, &found, &wanted) {
                        return Ok(Some(problem));
                    }
                }
                Ok(None)
            }),
            product: None,
            beside: None,
        })
    })
}
