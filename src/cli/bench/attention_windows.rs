//! Attention that leaves pairs out: windows, and packed sequences of mixed lengths. Only pairs that a query sees count
//! as work, so that the rate is to be held against that of a dense problem.

use host::{
    AnyTensor, DType, Result, Tensor,
    ops::{self, Layout},
};
use serde_json::json;

use super::{
    attention::attend,
    case::{Beside, Case, Spec, copies, differs, normal, row, sets, values},
};

/// Lengths from 1 to 8k as requests bring them: long and short ones mixed.
const LENGTHS: [u64; 16] = [
    8192, 1, 517, 4096, 1024, 6001, 64, 2048, 129, 7777, 300, 3333, 5120, 17, 900, 1500,
];

/// A window of 1024 keys at 16k, on both sides or under a causal mask, and sequences of 1 to 8k tokens, with heads so that the model dim is 2048.
pub fn windows() -> Vec<Spec> {
    let mut specs = Vec::new();
    for (dim, heads) in [(64, 32), (128, 16)] {
        for causal in [false, true] {
            specs.push(problem(dim, heads, vec![16_384], Some(1024), causal));
            specs.push(problem(dim, heads, LENGTHS.to_vec(), None, causal));
        }
    }
    specs
}

/// The keys that query `row` of `length` sees.
fn seen(row: u64, length: u64, window: Option<u64>, causal: bool) -> std::ops::Range<u64> {
    let begin = window.map_or(0, |left| row.saturating_sub(left));
    let right = if causal { 0 } else { window.unwrap_or(length) };
    begin..length.min(row + right + 1)
}

/// Packed sequences of these lengths.
fn problem(dim: u64, heads: u64, lengths: Vec<u64>, window: Option<u64>, causal: bool) -> Spec {
    let what = match window {
        Some(left) => format!("S{} window {left}", lengths[0]),
        None => format!("{} sequences of 1 to 8k", lengths.len()),
    };
    let name = format!("bf16 H{heads} D{dim} {what}{}", if causal { " causal" } else { "" });
    Spec::new(name, move |device| {
        let dtype = DType::BF16;
        let tokens: u64 = lengths.iter().sum();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let bytes = dtype.size() * tokens * heads * dim * 4;
        let count = copies(device, bytes);
        let buffers = sets(count, |seed| {
            let draw = |seed| normal(device, dtype, &[tokens, heads, dim], seed);
            Ok([draw(seed)?, draw(seed + 1)?, draw(seed + 2)?])
        })?;
        let mut starts = vec![0];
        for length in &lengths {
            starts.push(starts[starts.len() - 1] + length);
        }
        let bounds: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
        let bounds = Tensor::from_slice(device, &bounds, &[bounds.len() as u64])?
            .any()
            .clone();
        let packed = lengths.len() > 1;
        let first = buffers[0].clone();
        let run = move |[q, k, v]: &[AnyTensor; 3]| -> Result<AnyTensor> {
            let batched = |x: &AnyTensor| x.reshape(&[1, tokens, heads, dim]);
            let dense = [batched(q)?, batched(k)?, batched(v)?];
            let call = if packed {
                ops::attention(q, k, v).cu_seqlens(&bounds, &bounds, longest, longest)
            } else {
                ops::attention(&dense[0], &dense[1], &dense[2]).layout(Layout::Bshd)
            };
            let side = window.map(|keys| keys as u32);
            if causal {
                call.window(side, None).causal()
            } else {
                call.window(side, side)
            }
            .run_without_lse()
        };
        let pairs: u64 = lengths
            .iter()
            .flat_map(|&length| (0..length).map(move |row| seen(row, length, window, causal)))
            .map(|keys| keys.end - keys.start)
            .sum();
        let peer = json!({"op": "attention-packed", "dtype": dtype.name(), "heads": heads, "dim": dim, "lengths": lengths,
            "window": window.map_or(-1, |keys| keys as i64), "causal": causal});
        let again = run.clone();
        // The same without the window: half of all pairs count under a causal mask, as in the dense problems.
        let whole = buffers.clone();
        let beside = window.map(|_| Beside {
            name: if causal { "causal, by FLOPs" } else { "full, by FLOPs" },
            part: pairs as f64 * if causal { 2.0 } else { 1.0 } / (tokens * tokens) as f64,
            run: Box::new(move |turn| {
                let [q, k, v] = &whole[turn % whole.len()];
                let batched = |x: &AnyTensor| x.reshape(&[1, tokens, heads, dim]);
                let (q, k, v) = (batched(q)?, batched(k)?, batched(v)?);
                let call = ops::attention(&q, &k, &v).layout(Layout::Bshd);
                let call = if causal { call.causal() } else { call };
                call.run_without_lse().map(drop)
            }),
        });
        Ok(Case {
            op: "attention",
            dtype,
            bytes,
            flops: 4 * heads * dim * pairs,
            peer,
            copies: count,
            run: Box::new(move |turn| run(&buffers[turn % buffers.len()]).map(drop)),
            check: Box::new(move || {
                let out = again(&first)?.reshape(&[tokens * heads, dim])?;
                for (sequence, &length) in lengths.iter().enumerate() {
                    let (place, head) = (length - 1 - length / 3, sequence as u64 % heads);
                    let at = (starts[sequence] + place) * heads + head;
                    let keys = seen(place, length, window, causal);
                    let block = |tensor: &AnyTensor| {
                        let all = tensor.select(1, head)?;
                        values(&all.slice(0, starts[sequence] + keys.start..starts[sequence] + keys.end)?)
                    };
                    let query = first[0].reshape(&[tokens * heads, dim])?;
                    let wanted = attend(&row(&query, at)?, &block(&first[1])?, &block(&first[2])?);
                    if let Some(problem) = differs(&format!("row {at}"), dtype, &row(&out, at)?, &wanted) {
                        return Ok(Some(problem));
                    }
                }
                Ok(None)
            }),
            product: None,
            beside,
        })
    })
}
