//! Every op in one table: its kernels, dtypes, tests, verification, benchmarks and pages.
//!
//! `ferroflash verify`, `ferroflash bench` and the matrix in the README are made from it, and `tests/inventory.rs` fails
//! when a kernel of the archive belongs to no op, or an op lacks one of these.

use host::{DType, Tier, images::Images};

use DType::{BF16, F16, F32};

/// An op and where everything about it is found.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// What `ferroflash verify` and the tables call it.
    pub name: &'static str,
    /// What it computes, in a few words.
    pub what: &'static str,
    /// How the names of its kernels' entry points begin.
    pub kernels: &'static [&'static str],
    /// Element types of its inputs.
    pub dtypes: &'static [DType],
    /// Files with its tests.
    pub tests: &'static [&'static str],
    /// Suites of `ferroflash bench` that time it.
    pub bench: &'static [&'static str],
    /// Page with its figures.
    pub page: &'static str,
}

/// Entry points that are no op: kernels that test `cuda_std`.
pub const TEST_KERNELS: &str = "device_test";

const ALL: &[DType] = &[F32, F16, BF16];
const ROWS: &str = "docs/performance/rows.md";
const CACHES: &str = "docs/performance/decode.md";

/// All ops.
pub const OPS: &[Op] = &[
    Op {
        name: "attention",
        what: "attention forward: causal, windows, softcap, ALiBi, sinks, dropout, grouped heads, packed sequences",
        kernels: &["attention_forward"],
        dtypes: ALL,
        tests: &[
            "tests/attention/forward.rs",
            "tests/attention/properties.rs",
            "tests/attention/dropout.rs",
        ],
        bench: &["attention", "flashkernel", "flashcore", "attention-windows"],
        page: "docs/performance/attention.md",
    },
    Op {
        name: "attention-backward",
        what: "gradients of attention with every option of the forward pass, without atomics",
        kernels: &["attention_backward"],
        dtypes: ALL,
        tests: &[
            "tests/attention/backward/shapes.rs",
            "tests/attention/backward/properties.rs",
            "tests/attention/backward/packed.rs",
            "tests/attention/backward/calls.rs",
            "tests/attention/dropout.rs",
        ],
        bench: &["attention-backward"],
        page: "docs/performance/backward.md",
    },
    Op {
        name: "decode",
        what: "attention of new tokens over a paged or contiguous cache, in e4m3 too on sm_90a",
        kernels: &["decode"],
        dtypes: ALL,
        tests: &[
            "tests/decode/problems.rs",
            "tests/decode/properties.rs",
            "tests/decode/pool.rs",
            "tests/decode/fused.rs",
            "tests/decode/direct.rs",
            "tests/serving.rs",
            "tests/cache_e4m3.rs",
        ],
        bench: &["decode"],
        page: CACHES,
    },
    Op {
        name: "cache",
        what: "key/value cache: append, read back, copy and swap pages; e4m3 with a factor a head on sm_90a",
        kernels: &["cache"],
        dtypes: ALL,
        tests: &["tests/cache.rs", "tests/cache_e4m3.rs"],
        bench: &["cache"],
        page: CACHES,
    },
    Op {
        name: "rope",
        what: "rotary position embedding, both pairings, fused with the append",
        kernels: &["rope"],
        dtypes: ALL,
        tests: &["tests/rope.rs"],
        bench: &["rope"],
        page: CACHES,
    },
    Op {
        name: "linear",
        what: "linear layer with bias, activation, gated pair, residual, and its gradients",
        kernels: &["linear"],
        dtypes: ALL,
        tests: &[
            "tests/linear/shapes.rs",
            "tests/linear/epilogue.rs",
            "tests/linear/norm.rs",
            "tests/linear/properties.rs",
            "tests/linear/backward.rs",
        ],
        bench: &["linear"],
        page: "docs/performance/linear.md",
    },
    Op {
        name: "norm",
        what: "RMSNorm and LayerNorm with a residual, and their gradients",
        kernels: &["norm"],
        dtypes: ALL,
        tests: &["tests/rows/norm.rs"],
        bench: &["norm"],
        page: ROWS,
    },
    Op {
        name: "softmax",
        what: "softmax and log-softmax with masks, and their gradients",
        kernels: &["softmax"],
        dtypes: ALL,
        tests: &["tests/rows/softmax.rs"],
        bench: &["softmax"],
        page: ROWS,
    },
    Op {
        name: "cross-entropy",
        what: "cross-entropy, and its gradient in place",
        kernels: &["cross_entropy"],
        dtypes: ALL,
        tests: &["tests/rows/loss.rs"],
        bench: &["cross-entropy"],
        page: ROWS,
    },
    Op {
        name: "activation",
        what: "ReLU, SiLU, GELU, and their gradients",
        kernels: &["activation"],
        dtypes: ALL,
        tests: &["tests/rows/elementwise.rs"],
        bench: &["elementwise"],
        page: ROWS,
    },
    Op {
        name: "gated",
        what: "SwiGLU and GeGLU pairs, and their gradients",
        kernels: &["gated"],
        dtypes: ALL,
        tests: &["tests/rows/elementwise.rs"],
        bench: &["elementwise"],
        page: ROWS,
    },
    Op {
        name: "add",
        what: "sums, bias, scaled sums in place",
        kernels: &["add"],
        dtypes: ALL,
        tests: &["tests/rows/elementwise.rs"],
        bench: &["elementwise"],
        page: ROWS,
    },
    Op {
        name: "cast",
        what: "conversion between dtypes",
        kernels: &["cast"],
        dtypes: ALL,
        tests: &["tests/rows/elementwise.rs"],
        bench: &["elementwise"],
        page: ROWS,
    },
    Op {
        name: "copy",
        what: "copies between any strides, transposes",
        kernels: &["copy_strided", "transpose"],
        dtypes: ALL,
        tests: &["tests/rows/elementwise.rs"],
        bench: &["elementwise"],
        page: ROWS,
    },
    Op {
        name: "embedding",
        what: "rows of a table by index, and the table's gradient",
        kernels: &["embedding", "index_check"],
        dtypes: ALL,
        tests: &["tests/rows/embedding.rs"],
        bench: &["embedding"],
        page: ROWS,
    },
    Op {
        name: "sample",
        what: "greedy choice, temperature, top-k, top-p",
        kernels: &["sample", "greedy"],
        dtypes: ALL,
        tests: &["tests/rows/sampling.rs"],
        bench: &["sample"],
        page: ROWS,
    },
    Op {
        name: "adamw",
        what: "AdamW with f32 moments and master copy",
        kernels: &["adamw"],
        dtypes: ALL,
        tests: &["tests/rows/optimizer.rs"],
        bench: &["adamw"],
        page: ROWS,
    },
    Op {
        name: "reduce",
        what: "sum, mean, max, min, argmax, sum of squares",
        kernels: &["reduce"],
        dtypes: ALL,
        tests: &[
            "tests/reduce/values.rs",
            "tests/reduce/extremes.rs",
            "tests/reduce/errors.rs",
        ],
        bench: &["reduce"],
        page: ROWS,
    },
    Op {
        name: "vector-add",
        what: "the elementwise sum, the smallest example of a kernel",
        kernels: &["vector_add"],
        dtypes: &[F32],
        tests: &["tests/vector_add.rs"],
        bench: &["vector-add"],
        page: ROWS,
    },
];

/// The op of this name.
pub fn op(name: &str) -> Option<&'static Op> {
    OPS.iter().find(|op| op.name == name)
}

/// The op that an entry point belongs to: the one with the longest prefix of its name, up to an underscore.
pub fn op_of_entry(entry: &str) -> Option<&'static Op> {
    let matched = |op: &Op| {
        let begins = |prefix: &&&str| {
            entry
                .strip_prefix(**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        op.kernels.iter().filter(begins).map(|prefix| prefix.len()).max()
    };
    OPS.iter()
        .filter(|op| matched(op).is_some())
        .max_by_key(|op| matched(op))
}

impl Op {
    /// The tiers that run kernels of this op for a dtype, best first. Kernels that name no dtype serve all; those of
    /// 8-bit caches are beside the others and say nothing of a dtype.
    pub fn tiers(&self, dtype: DType) -> Vec<Tier> {
        let entries: Vec<_> = Images::embedded()
            .iter()
            .filter(|image| !image.entry.contains("_e4m3_"))
            .filter(|image| op_of_entry(&image.entry).is_some_and(|op| op.name == self.name))
            .collect();
        let names = |entry: &str, dtype: DType| entry.split('_').any(|part| part == dtype.name());
        let typed = entries.iter().any(|image| names(&image.entry, dtype));
        Tier::ALL
            .into_iter()
            .filter(|tier| {
                entries
                    .iter()
                    .filter(|image| image.tier == *tier || Some(image.tier) == tier.before())
                    .any(|image| !typed || names(&image.entry, dtype))
            })
            .collect()
    }

    /// Dtypes with the tiers that have them, in words.
    pub fn support(&self) -> String {
        let mut groups: Vec<(Vec<Tier>, Vec<&str>)> = Vec::new();
        for dtype in self.dtypes {
            let tiers = self.tiers(*dtype);
            match groups.iter_mut().find(|(of, _)| *of == tiers) {
                Some((_, dtypes)) => dtypes.push(dtype.name()),
                None => groups.push((tiers, vec![dtype.name()])),
            }
        }
        let words = groups.into_iter().map(|(tiers, dtypes)| {
            let dtypes = dtypes.join(", ");
            if tiers.len() == Tier::ALL.len() {
                dtypes
            } else {
                let names: Vec<&str> = tiers.iter().rev().map(|tier| tier.name()).collect();
                format!("{dtypes} ({})", names.join(", "))
            }
        });
        words.collect::<Vec<_>>().join(" · ")
    }
}

/// The names most like `unknown`, for a message: nearest first, none when nothing is near.
pub fn suggestions<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut near: Vec<(f64, &str)> = known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .filter(|(likeness, _)| *likeness > 0.7)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

/// The message for a name that is not there: what is near, or all there is.
pub fn unknown<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let near = suggestions(name, known.clone());
    if near.is_empty() {
        let all: Vec<&str> = known.into_iter().collect();
        format!("no {what} {name}; known: {}", all.join(", "))
    } else {
        format!("no {what} {name}; did you mean {}?", near.join(", "))
    }
}
