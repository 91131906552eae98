//! Attention: the flash-attention grid and the shapes of FlashKernel and FlashCore, decode, caches, RoPE.

use host::{
    AnyTensor, DType, Device, Result, Tensor,
    ops::{self, CacheView, DecodeOptions, Layout, RopeAngles, RopeFrequencies, RopePairing},
};
use serde_json::json;

use super::case::{Case, Spec, copies, differs, normal, row, sets, values};

/// A problem of forward attention, `[batch, heads, seq, dim]`.
#[derive(Clone, Copy)]
struct Shape {
    batch: u64,
    heads: u64,
    heads_kv: u64,
    seq: u64,
    dim: u64,
    causal: bool,
    dtype: DType,
}

/// Sequence lengths and batches of 16k tokens; heads by head dim so that the model dim is 2048; grouped heads of Llama.
pub fn grid() -> Vec<Spec> {
    let shape = |batch, (heads, heads_kv), seq, dim, causal| Shape {
        batch,
        heads,
        heads_kv,
        seq,
        dim,
        causal,
        dtype: DType::BF16,
    };
    let mut specs = Vec::new();
    for (dim, heads) in [(64, 32), (128, 16), (256, 8)] {
        for seq in [512, 1024, 2048, 4096, 8192, 16384] {
            for causal in [false, true] {
                specs.push(forward(shape(16384 / seq, (heads, heads), seq, dim, causal)));
            }
        }
    }
    for seq in [4096, 8192, 16384] {
        specs.push(forward(shape(1, (32, 8), seq, 128, true)));
        specs.push(forward(shape(1, (64, 8), seq, 128, true)));
    }
    specs
}

/// FlashKernel's configurations: S 512 to 4096, D 64 and 128, B 1, 4 and 8, f16 and f32.
pub fn flashkernel() -> Vec<Spec> {
    let mut specs = Vec::new();
    for dtype in [DType::F16, DType::F32] {
        for dim in [64, 128] {
            for batch in [1, 4, 8] {
                for seq in [512, 1024, 2048, 4096] {
                    specs.push(forward(Shape {
                        batch,
                        heads: 8,
                        heads_kv: 8,
                        seq,
                        dim,
                        causal: false,
                        dtype,
                    }));
                }
            }
        }
    }
    specs
}

/// FlashCore's nine configurations, f16, head dim 64.
pub fn flashcore() -> Vec<Spec> {
    [
        (1, 8, 128),
        (1, 8, 256),
        (1, 8, 512),
        (8, 8, 512),
        (16, 8, 512),
        (32, 8, 128),
        (32, 8, 256),
        (16, 16, 512),
        (32, 8, 512),
    ]
    .into_iter()
    .map(|(batch, heads, seq)| {
        forward(Shape {
            batch,
            heads,
            heads_kv: heads,
            seq,
            dim: 64,
            causal: false,
            dtype: DType::F16,
        })
    })
    .collect()
}

fn forward(shape: Shape) -> Spec {
    let Shape {
        batch,
        heads,
        heads_kv,
        seq,
        dim,
        causal,
        dtype,
    } = shape;
    let name = format!(
        "{dtype} B{batch} H{heads}:{heads_kv} S{seq} D{dim}{}",
        if causal { " causal" } else { "" }
    );
    Spec::new(name, move |device| {
        let bytes = dtype.size() * batch * seq * dim * 2 * (heads + heads_kv);
        let count = copies(device, bytes);
        let buffers = sets(count, |seed| {
            Ok([
                normal(device, dtype, &[batch, heads, seq, dim], seed)?,
                normal(device, dtype, &[batch, heads_kv, seq, dim], seed + 1)?,
                normal(device, dtype, &[batch, heads_kv, seq, dim], seed + 2)?,
            ])
        })?;
        let first = buffers[0].clone();
        let run = move |[q, k, v]: &[AnyTensor; 3]| {
            let call = ops::attention(q, k, v).layout(Layout::Bhsd);
            if causal { call.causal() } else { call }.run_without_lse()
        };
        Ok(Case {
            op: "attention",
            dtype,
            bytes,
            // Of a causal problem half of the pairs count, as everybody counts them.
            flops: 4 * batch * heads * seq * seq * dim / if causal { 2 } else { 1 },
            peer: json!({"op": "attention", "dtype": dtype.name(), "batch": batch, "heads": heads, "heads_kv": heads_kv,
                "seq": seq, "dim": dim, "causal": causal}),
            copies: count,
            run: Box::new(move |turn| run(&buffers[turn % buffers.len()]).map(drop)),
            check: Box::new(move || {
                let out = run(&first)?;
                for (b, h, s) in [
                    (0, 0, 0),
                    (batch - 1, heads - 1, seq - 1),
                    (batch / 2, heads / 2, seq / 3),
                ] {
                    let at = (b * heads + h) * seq + s;
                    let kv = (b * heads_kv + h * heads_kv / heads) * seq;
                    let seen = if causal { s + 1 } else { seq };
                    let block = |tensor: &AnyTensor| {
                        values(
                            &tensor
                                .reshape(&[batch * heads_kv * seq, dim])?
                                .slice(0, kv..kv + seen)?,
                        )
                    };
                    let wanted = attend(&row(&first[0], at)?, &block(&first[1])?, &block(&first[2])?);
                    if let Some(problem) = differs(&format!("row {at}"), dtype, &row(&out, at)?, &wanted) {
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

/// One row of attention in f64.
pub fn attend(q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let dim = q.len();
    let scale = (dim as f64).powf(-0.5);
    let scores: Vec<f64> = k
        .chunks(dim)
        .map(|k| scale * k.iter().zip(q).map(|(a, b)| a * b).sum::<f64>())
        .collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; dim];
    for (weight, v) in weights.iter().zip(v.chunks(dim)) {
        out.iter_mut().zip(v).for_each(|(out, v)| *out += weight / total * v);
    }
    out
}

/// A decode step: sequences, tokens of each, query and key/value heads, elements of a head.
#[derive(Clone, Copy)]
struct Step {
    batch: u64,
    length: u64,
    heads: u64,
    heads_kv: u64,
    dim: u64,
    /// What the cache holds.
    cache: DType,
    /// Whether the last token of each is new: rotated, appended, and then attended to.
    new: bool,
}

/// One new token a sequence over caches of several lengths: 32 query and 8 key/value heads of 128, then other ratios and
/// head dims.
pub fn decode() -> Vec<Spec> {
    let base = Step {
        batch: 1,
        length: 1024,
        heads: 32,
        heads_kv: 8,
        dim: 128,
        cache: DType::BF16,
        new: false,
    };
    let lengths = [
        (1, 1024),
        (1, 4096),
        (1, 131_072),
        (16, 4096),
        (64, 4096),
        (16, 16_384),
        (64, 16_384),
    ]
    .map(|(batch, length)| Step { batch, length, ..base });
    // As many bytes as 16 sequences of 4,096 tokens have, or twice that.
    let others = [
        (16, 4096, 32, 128, DType::BF16),
        (64, 8192, 1, 128, DType::BF16),
        (32, 8192, 8, 64, DType::BF16),
        (16, 8192, 8, 64, DType::BF16),
        (16, 4096, 8, 256, DType::BF16),
        (16, 8192, 8, 128, DType::E4M3),
        (64, 8192, 8, 128, DType::E4M3),
    ]
    .map(|(batch, length, heads_kv, dim, cache)| Step {
        batch,
        length,
        heads_kv,
        dim,
        cache,
        ..base
    });
    let appended = [
        (1, 1024, 32, 8, 128),
        (1, 192, 12, 12, 64),
        (16, 4096, 32, 8, 128),
        (64, 1024, 32, 8, 64),
        (64, 4096, 32, 8, 128),
        (16, 1024, 32, 8, 64),
        (64, 8192, 32, 1, 128),
    ]
    .map(|(batch, length, heads, heads_kv, dim)| Step {
        batch,
        length,
        heads,
        heads_kv,
        dim,
        new: true,
        ..base
    });
    let long = lengths.into_iter().filter(|case| case.batch > 1);
    let large = long.map(|case| step(case, Some(256)));
    let read = lengths.into_iter().chain(others);
    let read = read.flat_map(|case| [None, Some(16)].map(|page| step(case, page)));
    let read = read.chain(large);
    let appended = appended.map(|case| step(case, Some(16)));
    read.chain(appended).collect()
}

/// The page of logical page `index` of `pages`: a shuffle that spreads neighbours.
fn shuffled(index: u64, pages: u64) -> u64 {
    index * 7_368_787 % pages
}

/// Frequencies of a rotation of whole heads: those of heads of 128, or the first of them.
fn frequencies(device: &Device, dim: u64) -> Result<RopeFrequencies> {
    let frequencies: Vec<f32> = (0..dim / 2).map(|i| 10_000f32.powf(-(i as f32) / 64.0)).collect();
    RopeFrequencies::new(device, &frequencies, 1.0)
}

fn step(step: Step, page: Option<u64>) -> Spec {
    let Step {
        batch,
        length,
        heads,
        heads_kv,
        dim,
        cache,
        new,
    } = step;
    let dtype = DType::BF16;
    let kind = page.map_or("contiguous".to_owned(), |page| format!("pages of {page}"));
    Spec::new(
        format!(
            "{dtype}{} B{batch} L{length} H{heads}:{heads_kv} D{dim} {kind}{}",
            if cache == dtype { "" } else { " over e4m3" },
            if new { ", RoPE, append" } else { "" }
        ),
        move |device| {
            let bytes = 2 * batch * length * heads_kv * dim * cache.size();
            let count = copies(device, bytes);
            let (rows, slots) = page.map_or((batch, length), |page| (batch * length / page, page));
            let buffers = sets(count, |seed| {
                Ok([
                    normal(device, dtype, &[batch, 1, heads, dim], seed)?,
                    normal(device, cache, &[rows, slots, heads_kv, dim], seed + 1)?,
                    normal(device, cache, &[rows, slots, heads_kv, dim], seed + 2)?,
                ])
            })?;
            let table: Vec<i32> = match page {
                Some(_) => (0..rows).map(|index| shuffled(index, rows) as i32).collect(),
                None => Vec::new(),
            };
            let width = table.len() as u64 / batch;
            let host_table = table.clone();
            let table = Tensor::from_slice(device, &table, &[batch, width])?;
            let before = length as i32 - i32::from(new);
            let lengths = Tensor::from_slice(device, &vec![before; batch as usize], &[batch])?;
            let token = |seed| normal(device, dtype, &[batch, 1, heads_kv, dim], seed);
            let (k_new, v_new) = (token(11)?, token(12)?);
            let frequencies = frequencies(device, dim)?;
            let first = buffers[0].clone();
            let run = move |[q, k, v]: &[AnyTensor; 3]| {
                let view = match page {
                    Some(_) => CacheView::paged(k, v, &table),
                    None => CacheView::contiguous(k, v),
                };
                let mut options = DecodeOptions {
                    causal: true,
                    ..DecodeOptions::default()
                };
                let mut step = ops::decode(q, view, &lengths);
                if new {
                    options.rotary = Some((RopePairing::HalfSplit, RopeAngles::Frequencies(&frequencies)));
                    step = step.append(&k_new, &v_new);
                }
                Ok(step.options(options).run()?.out)
            };
            let run = std::rc::Rc::new(run);
            let again = run.clone();
            Ok(Case {
                op: "decode",
                dtype,
                bytes,
                flops: 4 * batch * heads * length * dim,
                peer: json!({"op": if page == Some(16) { "decode-paged" } else { "decode" }, "dtype": dtype.name(), "batch": batch, "heads": heads, "heads_kv": heads_kv,
                "length": length, "dim": dim, "paged": page.is_some()}),
                copies: count,
                run: Box::new(move |turn| run(&buffers[turn % buffers.len()]).map(drop)),
                check: Box::new(move || {
                    let out = again(&first)?;
                    let (sequence, head) = (batch - 1, heads - 1);
                    let gather = |tensor: &AnyTensor| -> Result<Vec<f64>> {
                        let of_head = tensor.select(2, head * heads_kv / heads)?;
                        let mut tokens = Vec::new();
                        match page {
                            Some(page) => {
                                for index in 0..length / page {
                                    let entry = host_table[(sequence * width + index) as usize] as u64;
                                    tokens.extend(values(&of_head.select(0, entry)?)?);
                                }
                            }
                            None => tokens.extend(values(&of_head.select(0, sequence)?)?),
                        }
                        Ok(tokens)
                    };
                    // The long ones are as the short ones, and take seconds to fetch.
                    if new || length > 20_000 || (page.is_some() && length > 5_000) {
                        return Ok(None);
                    }
                    let at = sequence * heads + head;
                    let wanted = attend(&row(&first[0], at)?, &gather(&first[1])?, &gather(&first[2])?);
                    Ok(differs("last row", dtype, &row(&out, at)?, &wanted))
                }),
                product: None,
                beside: None,
            })
        },
    )
}

/// Tokens of a step, their rotation and their place in a cache of pages of 16.
struct Tokens {
    q: AnyTensor,
    k: AnyTensor,
    v: AnyTensor,
    k_cache: AnyTensor,
    v_cache: AnyTensor,
    slots: AnyTensor,
    table: AnyTensor,
    lengths: AnyTensor,
    frequencies: RopeFrequencies,
}

const HEADS: (u64, u64, u64) = (32, 8, 128);

impl Tokens {
    fn new(device: &Device, tokens: u64) -> Result<Tokens> {
        let (heads, heads_kv, dim) = HEADS;
        let tensor = |shape: &[u64], seed| normal(device, DType::BF16, shape, seed);
        let pages = tokens / 16;
        let slots: Vec<i64> = (0..tokens)
            .map(|t| (shuffled(t / 16, pages) * 16 + t % 16) as i64)
            .collect();
        let table: Vec<i32> = (0..pages).map(|page| shuffled(page, pages) as i32).collect();
        Ok(Tokens {
            q: tensor(&[1, tokens, heads, dim], 1)?,
            k: tensor(&[1, tokens, heads_kv, dim], 2)?,
            v: tensor(&[1, tokens, heads_kv, dim], 3)?,
            k_cache: tensor(&[pages, 16, heads_kv, dim], 4)?,
            v_cache: tensor(&[pages, 16, heads_kv, dim], 5)?,
            slots: Tensor::from_slice(device, &slots, &[tokens])?.any().clone(),
            table: Tensor::from_slice(device, &table, &[1, pages])?.any().clone(),
            lengths: Tensor::from_slice(device, &[tokens as i32], &[1])?.any().clone(),
            frequencies: frequencies(device, dim)?,
        })
    }

    fn view(&self) -> CacheView<'_> {
        CacheView::paged(&self.k_cache, &self.v_cache, &self.table)
    }
}

const TOKENS: u64 = 65_536;

/// Append and read back.
pub fn cache() -> Vec<Spec> {
    let (_, heads_kv, dim) = HEADS;
    let bytes = 2 * 2 * TOKENS * heads_kv * dim * 2;
    let case = move |what: &'static str, read: bool| {
        Spec::new(format!("bf16 {what} {TOKENS} tokens, pages of 16"), move |device| {
            let tokens = std::rc::Rc::new(Tokens::new(device, TOKENS)?);
            let again = tokens.clone();
            let flat = |tensor: &AnyTensor| tensor.reshape(&[TOKENS, heads_kv, dim]);
            let (k, v) = (flat(&tokens.k)?, flat(&tokens.v)?);
            Ok(Case {
                op: "cache",
                dtype: DType::BF16,
                bytes,
                flops: 0,
                peer: if read {
                    json!({"op": "copy", "bytes": bytes / 2})
                } else {
                    json!({"op": "cache-append", "dtype": "bf16", "tokens": TOKENS, "heads_kv": heads_kv, "dim": dim})
                },
                copies: 1,
                run: Box::new(move |_| {
                    if read {
                        ops::cache_read(tokens.view(), &tokens.lengths, TOKENS).map(drop)
                    } else {
                        ops::cache_append(&k, &v, tokens.view(), &tokens.slots)
                    }
                }),
                check: Box::new(move || {
                    let (k, v) = (
                        again.k.reshape(&[TOKENS, heads_kv, dim])?,
                        again.v.reshape(&[TOKENS, heads_kv, dim])?,
                    );
                    ops::cache_append(&k, &v, again.view(), &again.slots)?;
                    let (read, _) = ops::cache_read(again.view(), &again.lengths, TOKENS)?;
                    let at = (TOKENS - 1) * heads_kv;
                    Ok(differs(
                        "the last token",
                        DType::F32,
                        &row(&read, at)?,
                        &row(&again.k, at)?,
                    ))
                }),
                product: None,
                beside: None,
            })
        })
    };
    vec![case("append", false), case("read", true)]
}

/// Rotation in place, alone and with the append.
pub fn rope() -> Vec<Spec> {
    let (heads, heads_kv, dim) = HEADS;
    let rotated = 2 * TOKENS * (heads + heads_kv) * dim * 2;
    let case = move |what: &'static str, append: bool| {
        Spec::new(
            format!("bf16 {what} {TOKENS} tokens H{heads}:{heads_kv} D{dim}"),
            move |device| {
                let tokens = std::rc::Rc::new(Tokens::new(device, TOKENS)?);
                let again = tokens.clone();
                Ok(Case {
                    op: "rope",
                    dtype: DType::BF16,
                    bytes: rotated + if append { 2 * TOKENS * heads_kv * dim * 2 } else { 0 },
                    flops: 0,
                    peer: json!({"op": if append { "rope-append" } else { "rope" }, "dtype": "bf16", "tokens": TOKENS,
                    "heads": heads, "heads_kv": heads_kv, "dim": dim}),
                    copies: 1,
                    run: Box::new(move |_| {
                        let angles = RopeAngles::Frequencies(&tokens.frequencies);
                        let op = ops::rope(&tokens.q, RopePairing::HalfSplit, angles)
                            .k(&tokens.k)
                            .in_place();
                        if append {
                            op.append(&tokens.v, tokens.view(), &tokens.slots).run().map(drop)
                        } else {
                            op.run().map(drop)
                        }
                    }),
                    check: Box::new(move || {
                        // The rotation keeps the length of every pair: of the whole row too.
                        let angles = RopeAngles::Frequencies(&again.frequencies);
                        let (q, _) = ops::rope(&again.q, RopePairing::HalfSplit, angles).run()?;
                        let at = (TOKENS / 3) * heads;
                        let pairs = |x: Vec<f64>| -> Vec<f64> {
                            let half = x.len() / 2;
                            (0..half).map(|i| x[i].hypot(x[i + half])).collect()
                        };
                        let (before, after) = (row(&again.q, at)?, row(&q, at)?);
                        if before == after {
                            return Ok(Some("nothing was rotated".into()));
                        }
                        Ok(differs("lengths of pairs", DType::BF16, &pairs(after), &pairs(before)))
                    }),
                    product: None,
                    beside: None,
                })
            },
        )
    };
    vec![case("rope", false), case("rope and append", true)]
}
