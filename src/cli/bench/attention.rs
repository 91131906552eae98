//! Attention forward: the flash-attention grid, 16k tokens in all.

use host::{
    DType, Device, Result,
    ops::{Layout, attention},
};

use super::{Case, memory::normal};

/// Sequence lengths and batches of 16k tokens; heads by head dim so that the model dim is 2048.
pub fn forward(device: &Device) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (dim, heads) in [(64, 32), (128, 16), (256, 8)] {
        for seq in [512, 1024, 2048, 4096, 8192, 16384] {
            for causal in [false, true] {
                cases.push(case(device, 16384 / seq, seq, heads, heads, dim, causal)?);
            }
        }
    }
    for seq in [4096, 8192, 16384] {
        cases.push(case(device, 1, seq, 32, 8, 128, true)?);
        cases.push(case(device, 1, seq, 64, 8, 128, true)?);
    }
    for (seq, batch) in [(128, 32), (256, 32), (512, 16), (512, 32)] {
        cases.push(case(device, batch, seq, 8, 8, 64, false)?);
    }
    Ok(cases)
}

fn case(device: &Device, batch: u64, seq: u64, heads: u64, heads_kv: u64, dim: u64, causal: bool) -> Result<Case> {
    let q = normal(device, DType::BF16, &[batch, heads, seq, dim], 1)?;
    let k = normal(device, DType::BF16, &[batch, heads_kv, seq, dim], 2)?;
    let v = normal(device, DType::BF16, &[batch, heads_kv, seq, dim], 3)?;
    let pairs = seq * seq / if causal { 2 } else { 1 };
    Ok(Case {
        name: format!(
            "B{batch} H{heads}:{heads_kv} S{seq} D{dim}{}",
            if causal { " causal" } else { "" }
        ),
        bytes: 2 * (2 * q.elements() + 2 * k.elements()),
        flops: 4 * batch * heads * pairs * dim,
        run: Box::new(move |_| {
            let call = attention(&q, &k, &v).layout(Layout::Bhsd);
            let call = if causal { call.causal() } else { call };
            call.run_without_lse().map(drop)
        }),
    })
}
