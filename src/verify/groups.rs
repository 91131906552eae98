//! Problems with names: those of the projects that this one grew from.

use std::sync::Arc;

use host::{
    ops::{Layout, LinearMode, PoolLayout, WeightLayout},
    reference::{
        activation::Activation,
        attention::{AttentionOptions, AttentionShape, Causal},
    },
};

use super::{
    Drawn, Size,
    attention::{Attention, Decode},
    linear::Linear,
};

/// A named group of problems of one op.
pub struct Group {
    /// What `verify` calls it.
    pub name: &'static str,
    /// The op.
    pub op: &'static str,
    /// Where the shapes come from.
    pub source: &'static str,
    /// The problems with their names.
    pub problems: fn(Size) -> Vec<(String, Drawn)>,
}

/// All groups.
pub const GROUPS: &[Group] = &[
    Group {
        name: "flashcore",
        op: "attention",
        source: "FlashCore's expert validation: nine configurations, head dim 64",
        problems: flashcore,
    },
    Group {
        name: "flashcore-causal",
        op: "attention",
        source: "FlashCore's causal suite",
        problems: flashcore_causal,
    },
    Group {
        name: "flashcore-gqa",
        op: "attention",
        source: "FlashCore's grouped-heads suite",
        problems: flashcore_gqa,
    },
    Group {
        name: "flashcore-kv",
        op: "decode",
        source: "FlashCore's key/value-cache suite: prefill, then single tokens",
        problems: flashcore_kv,
    },
    Group {
        name: "flashkernel",
        op: "attention",
        source: "FlashKernel's test lengths, divisible by the tile and not",
        problems: flashkernel,
    },
    Group {
        name: "flashkernel-gelu",
        op: "linear",
        source: "FlashKernel's fused GELU and linear layer",
        problems: flashkernel_gelu,
    },
];

/// Lengths that the emulator affords.
fn tokens(seq: usize, size: Size) -> usize {
    size.choose(seq / 8, seq).max(1)
}

fn dense(batch: usize, heads: (usize, usize), seq: (usize, usize), dim: usize, causal: Causal) -> Drawn {
    Arc::new(Attention {
        shape: AttentionShape {
            batch,
            heads_q: heads.0,
            heads_kv: heads.1,
            seq_q: seq.0,
            seq_kv: seq.1,
            head_dim: dim,
            value_dim: dim,
        },
        options: AttentionOptions {
            causal,
            ..AttentionOptions::default()
        },
        layout: Layout::Bhsd,
        seed: 42,
    })
}

/// Batches and heads as they are on a GPU; one batch and two heads where the emulator runs them.
fn smaller(batch: usize, heads: usize, size: Size) -> (usize, usize) {
    (size.choose(1, batch), size.choose(heads.min(2), heads))
}

fn flashcore(size: Size) -> Vec<(String, Drawn)> {
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
        let name = format!("B{batch} H{heads} S{seq} D64");
        let (batch, heads) = smaller(batch, heads, size);
        let seq = tokens(seq, size);
        (name, dense(batch, (heads, heads), (seq, seq), 64, Causal::None))
    })
    .collect()
}

fn flashcore_causal(size: Size) -> Vec<(String, Drawn)> {
    [(1, 8, 64), (2, 8, 128), (2, 8, 256), (4, 16, 512), (1, 8, 1)]
        .into_iter()
        .map(|(batch, heads, seq)| {
            let name = format!("causal B{batch} H{heads} S{seq} D64");
            let (batch, heads) = smaller(batch, heads, size);
            let seq = tokens(seq, size);
            (name, dense(batch, (heads, heads), (seq, seq), 64, Causal::BottomRight))
        })
        .collect()
}

fn flashcore_gqa(size: Size) -> Vec<(String, Drawn)> {
    [(32, 8), (32, 1), (16, 4), (8, 8), (28, 4), (32, 4)]
        .into_iter()
        .map(|(heads_q, heads_kv)| {
            let seq = tokens(256, size);
            let batch = size.choose(1, 2);
            (
                format!("heads {heads_q}:{heads_kv} B2 S256 D64"),
                dense(batch, (heads_q, heads_kv), (seq, seq), 64, Causal::BottomRight),
            )
        })
        .collect()
}

fn flashcore_kv(size: Size) -> Vec<(String, Drawn)> {
    let mut problems = Vec::new();
    for (past, new) in [(0usize, 128usize), (128, 1), (511, 1), (1024, 1), (4095, 1), (256, 4)] {
        for (page, heads) in [(None, (8, 8)), (Some(16), (8, 2))] {
            let (past_here, new_here) = (past / size.choose(16, 1), new.min(size.choose(4, 128)));
            let kind = page.map_or("contiguous".to_owned(), |page: usize| format!("pages of {page}"));
            let decode = Decode {
                heads,
                seq_q: new_here,
                dim: 64,
                lengths: vec![past_here + new_here; size.choose(1, 2)],
                page,
                layout: PoolLayout::Nhd,
                causal: true,
                window_left: None,
                softcap: None,
                seed: 42,
            };
            problems.push((
                format!("{new} new after {past}, heads {}:{}, {kind}", heads.0, heads.1),
                Arc::new(decode) as Drawn,
            ));
        }
    }
    problems
}

fn flashkernel(size: Size) -> Vec<(String, Drawn)> {
    let mut problems = Vec::new();
    for seq in [64usize, 65, 100, 127, 128, 256, 512, 1000] {
        for dim in [64, 128] {
            for causal in [Causal::None, Causal::BottomRight] {
                let (batch, heads) = smaller(2, 4, size);
                let here = seq.min(size.choose(130, 1000));
                let mark = if causal == Causal::None { "" } else { " causal" };
                problems.push((
                    format!("B2 H4 S{seq} D{dim}{mark}"),
                    dense(batch, (heads, heads), (here, here), dim, causal),
                ));
            }
        }
    }
    problems
}

fn flashkernel_gelu(size: Size) -> Vec<(String, Drawn)> {
    let mut problems = Vec::new();
    for (m, n, k) in [(128, 3072, 768), (1, 3072, 768), (33, 257, 129), (64, 64, 64)] {
        for (activation, with_z) in [
            (Activation::GeluErf, true),
            (Activation::GeluErf, false),
            (Activation::GeluTanh, true),
            (Activation::GeluTanh, false),
        ] {
            let smaller = |extent: usize| extent.min(size.choose(136, extent));
            let layer = Linear {
                m: smaller(m),
                n: smaller(n),
                k: smaller(k),
                layout: WeightLayout::Nk,
                activation,
                gated: false,
                alpha: 1.0,
                bias: true,
                residual: false,
                with_z,
                mode: LinearMode::Auto,
                padding: 0,
                seed: 42,
            };
            let stored = if with_z { " and what enters it" } else { "" };
            problems.push((format!("{activation:?} {m}×{n}×{k}{stored}"), Arc::new(layer) as Drawn));
        }
    }
    problems
}
