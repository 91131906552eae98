//! Linear layers: squares and Llama's shapes, few rows, gated pairs.

use host::{
    AnyTensor, DType, Result,
    ops::{self, LinearMode},
};
use serde_json::json;

use super::case::{Case, Product, Spec, copies, differs, normal, row, scaled, sets, values};

const GEMM: [(u64, u64, u64); 8] = [
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (8192, 28672, 4096),
    (4096, 16384, 4096),
    (4096, 3072, 768),
    (4096, 4096, 14336),
];

/// What surrounds the product.
#[derive(Clone, Copy, PartialEq)]
enum Around {
    Nothing,
    /// Bias and tanh GELU.
    Gelu,
    /// A gated pair: twice the columns.
    Swiglu,
}

/// All of them.
pub fn linear() -> Vec<Spec> {
    let mut specs = Vec::new();
    for (m, n, k) in GEMM {
        specs.push(layer(m, n, k, Around::Nothing, LinearMode::Auto));
        specs.push(layer(m, n, k, Around::Gelu, LinearMode::Auto));
    }
    for m in [1, 4, 16] {
        for (n, k) in [(4096, 4096), (14336, 4096), (128_256, 2048)] {
            specs.push(layer(m, n, k, Around::Nothing, LinearMode::Auto));
        }
    }
    for m in [4096, 1] {
        specs.push(layer(m, 14336, 4096, Around::Swiglu, LinearMode::Auto));
    }
    specs.push(layer(4096, 4096, 4096, Around::Nothing, LinearMode::Tiled));
    specs
}

fn layer(m: u64, n: u64, k: u64, around: Around, mode: LinearMode) -> Spec {
    let words = match around {
        Around::Nothing => "",
        Around::Gelu => " bias GELU",
        Around::Swiglu => " SwiGLU",
    };
    let pinned = if mode == LinearMode::Auto {
        String::new()
    } else {
        format!(" {mode:?}")
    };
    Spec::new(format!("bf16 {m}×{n}×{k}{words}{pinned}"), move |device| {
        let dtype = DType::BF16;
        let columns = if around == Around::Swiglu { 2 * n } else { n };
        let bytes = 2 * (columns * k + m * k + m * n);
        let count = copies(device, bytes);
        let x = normal(device, dtype, &[m, k], 1)?;
        let w = sets(count, |seed| {
            scaled(device, dtype, &[columns, k], seed, (k as f32).powf(-0.5))
        })?;
        let bias = normal(device, dtype, &[columns], 99)?;
        let product = Product {
            extents: [m, n, k],
            x: x.clone(),
            w: w.clone(),
            bias: (around == Around::Gelu).then(|| bias.clone()),
        };
        let (x_again, w_again, bias_again) = (x.clone(), w[0].clone(), bias.clone());
        let run = move |x: &AnyTensor, w: &AnyTensor, bias: &AnyTensor| -> Result<AnyTensor> {
            // Written once, long before.
            let layer = ops::linear(x, w).mode(mode).constant_weight();
            match around {
                Around::Nothing => layer.run(),
                Around::Gelu => layer.bias(bias).gelu_tanh().run(),
                Around::Swiglu => layer.swiglu().run(),
            }
        };
        Ok(Case {
            op: "linear",
            dtype,
            bytes,
            flops: 2 * m * columns * k,
            peer: json!({"op": "linear", "dtype": "bf16", "m": m, "n": n, "k": k, "around": match around {
                Around::Nothing => "none", Around::Gelu => "gelu-tanh", Around::Swiglu => "swiglu" }}),
            copies: count,
            run: Box::new(move |turn| run(&x, &w[turn % w.len()], &bias).map(drop)),
            check: Box::new(move || {
                let y = run(&x_again, &w_again, &bias_again)?;
                let (at, bias) = (m - 1, values(&bias_again)?);
                let x = row(&x_again, at)?;
                let line = |column: u64| -> Result<f64> {
                    let w = row(&w_again, column)?;
                    Ok(x.iter().zip(w).map(|(x, w)| x * w).sum())
                };
                let some: Vec<u64> = (0..8).map(|i| i * (n - 1) / 7).collect();
                let mut wanted = Vec::new();
                for &column in &some {
                    let z = line(column)?;
                    wanted.push(match around {
                        Around::Nothing => z,
                        Around::Gelu => {
                            let z = z + bias[column as usize];
                            0.5 * z * (1.0 + (0.797_884_560_802_865_4 * (z + 0.044_715 * z.powi(3))).tanh())
                        }
                        Around::Swiglu => z / (1.0 + (-z).exp()) * line(n + column)?,
                    });
                }
                let out = row(&y, at)?;
                let out: Vec<f64> = some.iter().map(|column| out[*column as usize]).collect();
                Ok(differs("the last row", dtype, &out, &wanted))
            }),
            product: (around != Around::Swiglu && mode == LinearMode::Auto).then_some(product),
            beside: None,
        })
    })
}
