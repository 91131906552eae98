//! Whatever else memory bounds: elements, tables, choices, the optimiser, reductions.

use host::{
    AnyTensor, DType, Tensor,
    ops::{self, Activation, AdamWState, ReduceAxis, ReduceKind},
    reference::data::indices,
};
use serde_json::json;

use super::case::{Case, Spec, differs, normal, row, values};
use super::rows::{About, BF16, case};

/// Activation, gated pair, sum, cast, transpose.
pub fn elementwise() -> Vec<Spec> {
    let (rows, columns) = (16384u64, 4096u64);
    let about = move |op, what: &str, bytes| About {
        op,
        dtype: BF16,
        bytes,
        flops: 0,
        peer: json!({"op": what, "dtype": "bf16", "rows": rows, "columns": columns}),
    };
    let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x.powi(3))).tanh());
    let silu = |x: f64| x / (1.0 + (-x).exp());
    vec![
        Spec::new(format!("bf16 gelu_tanh {rows}×{columns}"), move |device| {
            let make = |seed| Ok(vec![normal(device, BF16, &[rows, columns], seed)?]);
            let run = |set: &[AnyTensor]| ops::activation(&set[0], Activation::GeluTanh);
            case(
                device,
                about("activation", "gelu_tanh", 4 * rows * columns),
                make,
                run,
                move |set, y| {
                    let wanted: Vec<f64> = row(&set[0], 5)?.into_iter().map(gelu).collect();
                    Ok(differs("row 5", BF16, &row(y, 5)?, &wanted))
                },
            )
        }),
        Spec::new("bf16 swiglu 8192×(2·14336)", move |device| {
            let (rows, columns) = (8192u64, 14_336u64);
            let make = |seed| Ok(vec![normal(device, BF16, &[rows, 2 * columns], seed)?]);
            let run = |set: &[AnyTensor]| ops::swiglu(&set[0]);
            let about = About {
                peer: json!({"op": "swiglu", "dtype": "bf16", "rows": rows, "columns": columns}),
                ..about("gated", "swiglu", 6 * rows * columns)
            };
            case(device, about, make, run, move |set, y| {
                let x = row(&set[0], 5)?;
                let (gate, up) = x.split_at(columns as usize);
                let wanted: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| silu(*gate) * up).collect();
                Ok(differs("row 5", BF16, &row(y, 5)?, &wanted))
            })
        }),
        Spec::new(format!("bf16 add {rows}×{columns}"), move |device| {
            let make = |seed| {
                let matrix = |seed| normal(device, BF16, &[rows, columns], seed);
                Ok(vec![matrix(seed)?, matrix(seed + 1)?])
            };
            let run = |set: &[AnyTensor]| ops::add(&set[0], &set[1]);
            case(
                device,
                about("add", "add", 6 * rows * columns),
                make,
                run,
                move |set, y| {
                    let (a, b) = (row(&set[0], 7)?, row(&set[1], 7)?);
                    let wanted: Vec<f64> = a.iter().zip(b).map(|(a, b)| a + b).collect();
                    Ok(differs("row 7", BF16, &row(y, 7)?, &wanted))
                },
            )
        }),
        Spec::new(format!("f32 to bf16 {rows}×{columns}"), move |device| {
            let make = |seed| Ok(vec![normal(device, DType::F32, &[rows, columns], seed)?]);
            let run = |set: &[AnyTensor]| ops::cast(&set[0], BF16);
            case(
                device,
                about("cast", "cast", 6 * rows * columns),
                make,
                run,
                move |set, y| Ok(differs("row 7", BF16, &row(y, 7)?, &row(&set[0], 7)?)),
            )
        }),
        Spec::new("bf16 transpose 8192×8192", move |device| {
            let extent = 8192u64;
            let make = |seed| Ok(vec![normal(device, BF16, &[extent, extent], seed)?]);
            let run = |set: &[AnyTensor]| ops::contiguous(&set[0].transpose(0, 1)?);
            let about = About {
                peer: json!({"op": "transpose", "dtype": "bf16", "rows": extent, "columns": extent}),
                ..about("copy", "transpose", 4 * extent * extent)
            };
            case(device, about, make, run, move |set, y| {
                let column = values(&set[0].select(1, 9)?)?;
                Ok(differs("row 9", BF16, &row(y, 9)?, &column))
            })
        }),
    ]
}

/// Rows of a table, and the gradient.
pub fn embedding() -> Vec<Spec> {
    let spec = |what: &'static str, rows: u64, columns: u64, tokens: u64, backward: bool| {
        Spec::new(format!("bf16 {what} {rows}×{columns}, {tokens} ids"), move |device| {
            let about = About {
                op: "embedding",
                dtype: BF16,
                bytes: if backward {
                    2 * (rows + tokens) * columns
                } else {
                    4 * tokens * columns
                },
                flops: 0,
                peer: json!({"op": if backward { "embedding_backward" } else { "embedding" }, "dtype": "bf16",
                    "rows": rows, "columns": columns, "tokens": tokens}),
            };
            let make = |seed| {
                let ids = indices(seed, tokens as usize, 0, rows as i64 - 1);
                let ids = Tensor::from_slice(device, &ids, &[tokens])?.any().clone();
                let extent = if backward { tokens } else { rows };
                Ok(vec![normal(device, BF16, &[extent, columns], seed)?, ids])
            };
            let run = move |set: &[AnyTensor]| {
                if backward {
                    ops::embedding_backward(&set[0], &set[1], rows, None)
                } else {
                    ops::embedding(&set[0], &set[1])
                }
            };
            case(device, about, make, run, move |set, out| {
                let ids = set[1].typed::<i64>("ids")?.to_vec()?;
                if !backward {
                    return Ok(differs(
                        "row 3",
                        DType::F32,
                        &row(out, 3)?,
                        &row(&set[0], ids[3] as u64)?,
                    ));
                }
                let mut wanted = vec![0.0; columns as usize];
                for (token, _) in ids.iter().enumerate().filter(|(_, id)| **id == ids[3]) {
                    let dy = row(&set[0], token as u64)?;
                    wanted.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
                }
                Ok(differs("a row of the table", BF16, &row(out, ids[3] as u64)?, &wanted))
            })
        })
    };
    vec![
        spec("embedding", 128_256, 4096, 16_384, false),
        spec("embedding backward", 50_257, 1024, 16_384, true),
    ]
}

/// Choice of tokens from a large vocabulary.
pub fn sample() -> Vec<Spec> {
    let mut specs = Vec::new();
    for rows in [1u64, 64] {
        for greedy in [true, false] {
            let columns = 128_256u64;
            let what = if greedy { "argmax" } else { "top-k 50, top-p 0.9" };
            specs.push(Spec::new(format!("f32 {what} {rows}×{columns}"), move |device| {
                let about = About {
                    op: "sample",
                    dtype: DType::F32,
                    bytes: 4 * rows * columns,
                    flops: 0,
                    peer: json!({"op": if greedy { "argmax" } else { "sample" }, "dtype": "f32", "rows": rows,
                        "columns": columns}),
                };
                let make = |seed| Ok(vec![normal(device, DType::F32, &[rows, columns], seed)?]);
                let run = move |set: &[AnyTensor]| {
                    if greedy {
                        return ops::argmax(&set[0]);
                    }
                    ops::sample(&set[0]).top_k(50).top_p(0.9).seed(3).run()
                };
                case(device, about, make, run, move |set, tokens| {
                    let token = tokens.typed::<i64>("tokens")?.to_vec()?[rows as usize - 1];
                    let logits = row(&set[0], rows - 1)?;
                    let chosen = logits[token as usize];
                    let better = logits.iter().filter(|logit| **logit > chosen).count();
                    let most = if greedy { 0 } else { 49 };
                    Ok((better > most).then(|| format!("token {token} has {better} likelier ones")))
                })
            }));
        }
    }
    specs
}

/// AdamW with a master copy over 100 million parameters.
pub fn adamw() -> Vec<Spec> {
    const LEN: u64 = 100_000_000;
    vec![Spec::new(format!("bf16 with a master copy {LEN}"), move |device| {
        let tensor = |dtype, seed| normal(device, dtype, &[LEN], seed);
        let (parameters, gradient) = (tensor(BF16, 1)?, tensor(BF16, 2)?);
        let (master, first) = (tensor(DType::F32, 1)?, tensor(DType::F32, 3)?);
        let second = AnyTensor::zeros(device, DType::F32, &[LEN])?;
        let state = std::rc::Rc::new([parameters, master, first, second, gradient]);
        let again = state.clone();
        let step = |state: &[AnyTensor; 5]| {
            let [parameters, master, first, second, gradient] = state;
            let tensors = AdamWState {
                parameters,
                master: Some(master),
                first,
                second,
            };
            ops::AdamW::default().step(7, &tensors, gradient)
        };
        Ok(Case {
            op: "adamw",
            dtype: BF16,
            bytes: 28 * LEN,
            flops: 0,
            peer: json!({"op": "adamw", "elements": LEN}),
            copies: 1,
            run: Box::new(move |_| step(&state)),
            check: Box::new(move || {
                let part = |tensor: &AnyTensor| values(&tensor.slice(0, 0..1000)?);
                let (before, gradient) = (part(&again[2])?, part(&again[4])?);
                step(&again)?;
                let wanted: Vec<f64> = before.iter().zip(gradient).map(|(m, g)| 0.9 * m + 0.1 * g).collect();
                Ok(differs("first moment", DType::F32, &part(&again[2])?, &wanted))
            }),
            product: None,
            beside: None,
        })
    })]
}

/// Reductions of 1 GiB, over everything and over rows of 1k to 1M.
pub fn reduce() -> Vec<Spec> {
    let mut specs = Vec::new();
    for dtype in [DType::F32, BF16] {
        let elements = (1u64 << 30) / dtype.size();
        let spec = move |kind: ReduceKind, columns: Option<u64>| {
            let over = columns.map_or("all".to_owned(), |columns| format!("rows of {columns}"));
            Spec::new(format!("{dtype} {kind:?} {over} {elements}"), move |device| {
                let about = About {
                    op: "reduce",
                    dtype,
                    bytes: elements * dtype.size(),
                    flops: elements,
                    peer: json!({"op": "reduce", "kind": format!("{kind:?}"), "dtype": dtype.name(),
                        "rows": columns.map_or(1, |columns| elements / columns),
                        "columns": columns.unwrap_or(elements)}),
                };
                let width = columns.unwrap_or(elements);
                let make = |seed| Ok(vec![normal(device, dtype, &[elements / width, width], seed)?]);
                let axis = if columns.is_some() {
                    ReduceAxis::Last
                } else {
                    ReduceAxis::All
                };
                let run = move |set: &[AnyTensor]| ops::reduce(&set[0], kind, axis);
                case(device, about, make, run, move |set, out| {
                    if columns.is_none() || kind != ReduceKind::Sum {
                        // The sums of rows stand for the rest, whose inputs are too large to fetch.
                        return Ok(None);
                    }
                    let at = elements / width - 1;
                    let x = row(&set[0], at)?;
                    let scale: f64 = x.iter().map(|x| x.abs()).sum();
                    let sum: f64 = x.iter().sum();
                    let got = values(&out.slice(0, at..at + 1)?)?[0];
                    Ok(((got - sum).abs() > 1e-5 * scale).then(|| format!("the last sum is {got}, not {sum}")))
                })
            })
        };
        specs.extend(ReduceKind::ALL.map(|kind| spec(kind, None)));
        for columns in [1 << 10, 1 << 12, 1 << 14, 1 << 17, 1 << 20] {
            specs.extend([ReduceKind::Sum, ReduceKind::Argmax].map(|kind| spec(kind, Some(columns))));
        }
    }
    specs
}

/// The sum of two vectors of 1 GiB.
pub fn vector_add() -> Vec<Spec> {
    let elements = 1u64 << 28;
    vec![Spec::new(format!("f32 {elements}"), move |device| {
        let about = About {
            op: "vector-add",
            dtype: DType::F32,
            bytes: 12 * elements,
            flops: elements,
            peer: json!({"op": "add", "dtype": "f32", "rows": 1, "columns": elements}),
        };
        let make = |seed| {
            let vector = |seed| normal(device, DType::F32, &[elements], seed);
            Ok(vec![vector(seed)?, vector(seed + 1)?])
        };
        case(
            device,
            about,
            make,
            |set| ops::vector_add(&set[0], &set[1]),
            |set, sum| {
                let part = |tensor: &AnyTensor| values(&tensor.slice(0, 0..1000)?);
                let wanted: Vec<f64> = part(&set[0])?.iter().zip(part(&set[1])?).map(|(a, b)| a + b).collect();
                Ok(differs("the first thousand", DType::F32, &part(sum)?, &wanted))
            },
        )
    })]
}
