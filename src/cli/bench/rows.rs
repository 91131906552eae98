//! Rows that memory bounds: norms, softmax, cross-entropy.

use host::{AnyTensor, DType, Device, Result, Tensor, ops, reference::data::indices};
use serde_json::{Value, json};

use super::case::{Case, Spec, copies, differs, normal, row, sets, values};

pub(super) const BF16: DType = DType::BF16;

/// What a suite says of a case beside its buffers.
pub(super) struct About {
    pub(super) op: &'static str,
    pub(super) dtype: DType,
    pub(super) bytes: u64,
    pub(super) flops: u64,
    pub(super) peer: Value,
}

/// A case over rotated sets of tensors: `run` makes the output of one set, `wrong` looks at it.
pub(super) fn case(
    device: &Device,
    about: About,
    make: impl Fn(u64) -> Result<Vec<AnyTensor>>,
    run: impl Fn(&[AnyTensor]) -> Result<AnyTensor> + Clone + 'static,
    wrong: impl Fn(&[AnyTensor], &AnyTensor) -> Result<Option<String>> + 'static,
) -> Result<Case> {
    let count = copies(device, about.bytes);
    let buffers = sets(count, make)?;
    let first = buffers[0].clone();
    let again = run.clone();
    Ok(Case {
        op: about.op,
        dtype: about.dtype,
        bytes: about.bytes,
        flops: about.flops,
        peer: about.peer,
        copies: count,
        run: Box::new(move |turn| run(&buffers[turn % buffers.len()]).map(drop)),
        check: Box::new(move || wrong(&first, &again(&first)?)),
        product: None,
        beside: None,
    })
}

/// Rows to look at: the first, one within, the last.
fn some(rows: u64) -> [u64; 3] {
    [0, rows / 3, rows - 1]
}

const MATRICES: [(u64, u64); 5] = [
    (65536, 1024),
    (16384, 4096),
    (8192, 8192),
    (2048, 32768),
    (512, 131_072),
];

fn normed(x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let len = x.len() as f64;
    let mean = if bias.is_some() {
        x.iter().sum::<f64>() / len
    } else {
        0.0
    };
    let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len;
    let factor = 1.0 / (square + 1e-5).sqrt();
    let column = |i: usize, x: f64| (x - mean) * factor * weight[i] + bias.map_or(0.0, |bias| bias[i]);
    x.iter().enumerate().map(|(i, x)| column(i, *x)).collect()
}

/// RMSNorm, LayerNorm, RMSNorm with a residual, and gradients.
pub fn norm() -> Vec<Spec> {
    let mut specs = Vec::new();
    for (rows, columns) in MATRICES {
        for centered in [false, true] {
            let kind = if centered { "layer_norm" } else { "rms_norm" };
            specs.push(Spec::new(format!("bf16 {kind} {rows}×{columns}"), move |device| {
                let about = About {
                    op: "norm",
                    dtype: BF16,
                    bytes: 4 * rows * columns,
                    flops: 0,
                    peer: json!({"op": kind, "dtype": "bf16", "rows": rows, "columns": columns}),
                };
                let make = |seed| {
                    let vector = |seed| normal(device, BF16, &[columns], seed);
                    Ok(vec![
                        normal(device, BF16, &[rows, columns], seed)?,
                        vector(seed + 1)?,
                        vector(seed + 2)?,
                    ])
                };
                let run = move |set: &[AnyTensor]| {
                    let op = if centered {
                        ops::layer_norm(&set[0]).bias(&set[2])
                    } else {
                        ops::rms_norm(&set[0])
                    };
                    Ok(op.weight(&set[1]).epsilon(1e-5).run()?.y)
                };
                case(device, about, make, run, move |set, y| {
                    let (weight, bias) = (values(&set[1])?, values(&set[2])?);
                    for at in some(rows) {
                        let wanted = normed(&row(&set[0], at)?, &weight, centered.then_some(&bias[..]));
                        if let Some(problem) = differs(&format!("row {at}"), BF16, &row(y, at)?, &wanted) {
                            return Ok(Some(problem));
                        }
                    }
                    Ok(None)
                })
            }));
        }
    }
    for (rows, columns) in [(32768u64, 1024u64), (8192, 4096), (4096, 8192), (1024, 32768)] {
        specs.push(Spec::new(
            format!("bf16 rms_norm + residual {rows}×{columns}"),
            move |device| {
                let about = About {
                    op: "norm",
                    dtype: BF16,
                    bytes: 8 * rows * columns,
                    flops: 0,
                    peer: json!({"op": "rms_norm_residual", "dtype": "bf16", "rows": rows, "columns": columns}),
                };
                let make = |seed| {
                    let matrix = |seed| normal(device, BF16, &[rows, columns], seed);
                    Ok(vec![
                        matrix(seed)?,
                        matrix(seed + 1)?,
                        normal(device, BF16, &[columns], seed + 2)?,
                    ])
                };
                let run = |set: &[AnyTensor]| {
                    Ok(ops::rms_norm(&set[0])
                        .residual(&set[1])
                        .weight(&set[2])
                        .epsilon(1e-5)
                        .run()?
                        .y)
                };
                case(device, about, make, run, move |set, y| {
                    let (x, residual) = (row(&set[0], rows - 1)?, row(&set[1], rows - 1)?);
                    let sum: Vec<f64> = x.iter().zip(residual).map(|(x, r)| x + r).collect();
                    Ok(differs(
                        "last row",
                        BF16,
                        &row(y, rows - 1)?,
                        &normed(&sum, &values(&set[2])?, None),
                    ))
                })
            },
        ));
    }
    for (rows, columns) in [(65536u64, 1024u64), (16384, 4096), (8192, 8192), (4096, 16384)] {
        for centered in [false, true] {
            let kind = if centered { "layer_norm" } else { "rms_norm" };
            specs.push(Spec::new(format!("bf16 {kind} backward {rows}×{columns}"), move |device| {
                let about = About {
                    op: "norm",
                    dtype: BF16,
                    bytes: 6 * rows * columns,
                    flops: 0,
                    peer: json!({"op": format!("{kind}_backward"), "dtype": "bf16", "rows": rows, "columns": columns}),
                };
                let make = |seed| {
                    let matrix = |seed| normal(device, BF16, &[rows, columns], seed);
                    Ok(vec![matrix(seed)?, matrix(seed + 1)?, normal(device, BF16, &[columns], seed + 2)?])
                };
                let run = move |set: &[AnyTensor]| {
                    let op = if centered { ops::layer_norm(&set[0]).bias(&set[2]) } else { ops::rms_norm(&set[0]) };
                    Ok(op.weight(&set[2]).epsilon(1e-5).backward(&set[1], None)?.dx)
                };
                case(device, about, make, run, move |set, dx| {
                    let at = rows / 3;
                    let (x, dy, weight) = (row(&set[0], at)?, row(&set[1], at)?, values(&set[2])?);
                    let len = columns as f64;
                    let mean = if centered { x.iter().sum::<f64>() / len } else { 0.0 };
                    let factor = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len + 1e-5).sqrt();
                    let unit: Vec<f64> = x.iter().map(|x| (x - mean) * factor).collect();
                    let through: Vec<f64> = dy.iter().zip(&weight).map(|(dy, w)| dy * w).collect();
                    let along = through.iter().zip(&unit).map(|(t, u)| t * u).sum::<f64>() / len;
                    let flat = if centered { through.iter().sum::<f64>() / len } else { 0.0 };
                    let wanted: Vec<f64> =
                        through.iter().zip(&unit).map(|(t, u)| factor * (t - flat - along * u)).collect();
                    Ok(differs("a row of dx", BF16, &row(dx, at)?, &wanted))
                })
            }));
        }
    }
    specs
}

fn soft(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// Softmax and its gradient.
pub fn softmax() -> Vec<Spec> {
    let mut specs = Vec::new();
    for (rows, columns) in MATRICES {
        specs.push(Spec::new(format!("bf16 softmax {rows}×{columns}"), move |device| {
            let about = About {
                op: "softmax",
                dtype: BF16,
                bytes: 4 * rows * columns,
                flops: 0,
                peer: json!({"op": "softmax", "dtype": "bf16", "rows": rows, "columns": columns}),
            };
            let make = |seed| Ok(vec![normal(device, BF16, &[rows, columns], seed)?]);
            let run = |set: &[AnyTensor]| ops::softmax(&set[0]).run();
            case(device, about, make, run, move |set, y| {
                let at = rows - 1;
                Ok(differs("last row", BF16, &row(y, at)?, &soft(&row(&set[0], at)?)))
            })
        }));
    }
    for (rows, columns) in [(16384u64, 4096u64), (8192, 8192)] {
        specs.push(Spec::new(
            format!("bf16 softmax backward {rows}×{columns}"),
            move |device| {
                let about = About {
                    op: "softmax",
                    dtype: BF16,
                    bytes: 6 * rows * columns,
                    flops: 0,
                    peer: json!({"op": "softmax_backward", "dtype": "bf16", "rows": rows, "columns": columns}),
                };
                let make = |seed| {
                    let matrix = |seed| normal(device, BF16, &[rows, columns], seed);
                    Ok(vec![matrix(seed)?, matrix(seed + 1)?])
                };
                let run = |set: &[AnyTensor]| ops::softmax(&set[0]).backward(&set[1]);
                case(device, about, make, run, move |set, dx| {
                    let at = rows / 2;
                    let (p, dy) = (soft(&row(&set[0], at)?), row(&set[1], at)?);
                    let total: f64 = p.iter().zip(&dy).map(|(p, dy)| p * dy).sum();
                    let wanted: Vec<f64> = p.iter().zip(&dy).map(|(p, dy)| p * (dy - total)).collect();
                    Ok(differs("a row of dx", BF16, &row(dx, at)?, &wanted))
                })
            },
        ));
    }
    specs
}

/// Cross-entropy of large vocabularies: forward, and with the gradient in place of the logits.
pub fn cross_entropy() -> Vec<Spec> {
    let mut specs = Vec::new();
    for (rows, columns) in [(4096u64, 50_257u64), (4096, 128_256)] {
        for gradient in [false, true] {
            let what = if gradient {
                "with its gradient in place"
            } else {
                "forward"
            };
            specs.push(Spec::new(format!("bf16 {what} {rows}×{columns}"), move |device| {
                let about = About {
                    op: "cross-entropy",
                    dtype: BF16,
                    bytes: if gradient { 4 } else { 2 } * rows * columns,
                    flops: 0,
                    peer: json!({"op": if gradient { "cross_entropy_gradient" } else { "cross_entropy" },
                        "dtype": "bf16", "rows": rows, "columns": columns}),
                };
                let make = |seed| {
                    let targets = indices(seed, rows as usize, 0, columns as i64 - 1);
                    let targets = Tensor::from_slice(device, &targets, &[rows])?.any().clone();
                    Ok(vec![normal(device, BF16, &[rows, columns], seed)?, targets])
                };
                let run = move |set: &[AnyTensor]| {
                    let op = ops::cross_entropy(&set[0], &set[1]);
                    Ok(if gradient {
                        op.run_with_gradient_in_place(1.0)?
                    } else {
                        op.run()?
                    }
                    .loss)
                };
                case(device, about, make, run, move |set, loss| {
                    // The gradient stands where the logits were: only their sum, 0, can be told of it.
                    if gradient {
                        let total: f64 = row(&set[0], 0)?.iter().sum();
                        return Ok((total.abs() > 0.05).then(|| format!("a row of the gradient sums to {total}")));
                    }
                    let x = row(&set[0], rows - 1)?;
                    let target = set[1].typed::<i64>("targets")?.to_vec()?[rows as usize - 1];
                    let wanted = x.iter().map(|x| x.exp()).sum::<f64>().ln() - x[target as usize];
                    Ok(differs(
                        "last loss",
                        DType::F16,
                        &[values(loss)?[rows as usize - 1]],
                        &[wanted],
                    ))
                })
            }));
        }
    }
    specs
}
