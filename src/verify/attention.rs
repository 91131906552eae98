//! Attention over tokens at hand, and over caches.

use host::{
    AnyTensor, DType, Device, Float, Result, Tensor,
    compare::Rule,
    ops::{self, CacheView, DecodeOptions, Layout, PoolLayout},
    reference::{
        Eager, Exact,
        attention::{self as reference, AttentionOptions, AttentionShape, Causal, Dropout, Forward},
        cache::{CacheLayout, append},
        data::{normal, permutation},
        decode as over_cache, widen,
    },
};
use proptest::{prelude::*, strategy::BoxedStrategy};

use super::{Drawn, Finding, Generic, Size, boxed, dense, held, laid_out, seed};

/// A problem of dense attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub shape: AttentionShape,
    pub options: AttentionOptions,
    pub layout: Layout,
    pub seed: u64,
}

pub fn attention(size: Size) -> BoxedStrategy<Drawn> {
    boxed(problems(size))
}

/// Any problem, for forward and backward.
pub(super) fn problems(size: Size) -> impl Strategy<Value = Attention> {
    let longest = size.choose(130usize, 600);
    let dims = prop_oneof![
        2 => proptest::sample::select(vec![(64usize, 64usize), (128, 128)]),
        1 => (1..33usize, 1..33usize).prop_map(|(d, v)| (8 * d, 8 * v)),
    ];
    let sizes = (1..3usize, 1..3usize, 1..4usize, 1..longest, 1..longest, dims);
    let masks = (
        0..3usize,
        proptest::option::of(0..200u32),
        proptest::option::of(0..200u32),
    );
    let extras = (
        proptest::option::of(0.05..0.5f64),
        proptest::option::of(0.5..20.0f64),
        any::<bool>(),
        any::<bool>(),
        proptest::option::of((0.05..0.9f64, any::<u64>(), any::<u64>())),
    );
    // Half of the problems are plain: they have kernels of their own.
    (sizes, masks, extras, any::<bool>(), any::<bool>(), seed()).prop_map(
        |(sizes, masks, (scale, softcap, alibi, sinks, dropout), plain, transposed, seed)| {
            let (batch, heads_kv, group, seq_q, seq_kv, (head_dim, value_dim)) = sizes;
            let (causal, window_left, window_right) = masks;
            let heads_q = heads_kv * group;
            let causal = [Causal::None, Causal::BottomRight, Causal::TopLeft][causal];
            let full = AttentionOptions {
                scale,
                causal,
                window_left,
                window_right,
                softcap,
                alibi_slopes: alibi.then(|| (0..heads_q).map(|head| 0.3 / (1 + head) as f64).collect()),
                sinks: sinks.then(|| (0..heads_q).map(|head| head as f64 - 1.0).collect()),
                dropout: dropout.map(|(probability, seed, offset)| Dropout {
                    // As the op has it.
                    probability: f64::from(probability as f32),
                    seed,
                    offset,
                }),
            };
            let bare = AttentionOptions {
                causal,
                ..AttentionOptions::default()
            };
            Attention {
                shape: AttentionShape {
                    batch,
                    heads_q,
                    heads_kv,
                    seq_q,
                    seq_kv,
                    head_dim,
                    value_dim: if plain { head_dim } else { value_dim },
                },
                options: if plain { bare } else { full },
                layout: if transposed { Layout::Bhsd } else { Layout::Bshd },
                seed,
            }
        },
    )
}

/// f32 numbers of an optional row of options.
fn floats(device: &Device, values: Option<&Vec<f64>>) -> Result<Option<AnyTensor>> {
    let tensor = |values: &Vec<f64>| {
        let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
        dense(device, &values, &[values.len()])
    };
    values.map(tensor).transpose()
}

/// Output and LSE against the reference: the 2× rule, or 10⁻⁵ in f32, where naive attention may be right by luck.
pub(super) fn judge<T: Float>(
    out: &AnyTensor,
    lse: &AnyTensor,
    exact: &Forward,
    naive: &Forward,
) -> Result<Vec<Finding>> {
    let largest = exact.out.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let mut rules = vec![Rule::twice(&naive.out)];
    if T::DTYPE == DType::F32 {
        rules.push(Rule::Relative {
            relative: 1e-5,
            absolute: 3e-6 * largest,
        });
    }
    let close = Rule::Relative {
        relative: 2e-5,
        absolute: 2e-5,
    };
    Ok(vec![
        held::<T>("out", out, &exact.out, &rules)?,
        held::<f32>("lse", lse, &exact.lse, &[close])?,
    ])
}

/// The data of a problem: as tensors for the op, in f64 for the reference.
pub(super) struct Inputs {
    pub q: AnyTensor,
    pub k: AnyTensor,
    pub v: AnyTensor,
    /// dO, for the backward pass.
    pub grad_out: AnyTensor,
    pub op_options: ops::AttentionOptions,
    /// Q, K, V and dO.
    pub exact: [Vec<f64>; 4],
    /// Rounded as the op's are.
    pub options: AttentionOptions,
}

impl Attention {
    pub(super) fn inputs<T: Float>(&self, device: &Device) -> Result<Inputs> {
        let s = &self.shape;
        let rounded = |values: &Option<Vec<f64>>| {
            values
                .as_ref()
                .map(|values| values.iter().map(|x| f64::from(*x as f32)).collect::<Vec<f64>>())
        };
        let options = AttentionOptions {
            scale: self.options.scale.map(|x| f64::from(x as f32)),
            softcap: self.options.softcap.map(|x| f64::from(x as f32)),
            alibi_slopes: rounded(&self.options.alibi_slopes),
            sinks: rounded(&self.options.sinks),
            ..self.options.clone()
        };
        let q: Vec<T> = normal(self.seed, s.batch * s.seq_q * s.heads_q * s.head_dim);
        let k: Vec<T> = normal(self.seed + 1, s.batch * s.seq_kv * s.heads_kv * s.head_dim);
        let v: Vec<T> = normal(self.seed + 2, s.batch * s.seq_kv * s.heads_kv * s.value_dim);
        let grad_out: Vec<T> = normal(self.seed + 3, s.batch * s.seq_q * s.heads_q * s.value_dim);
        let upload = |values: &[T], tokens: usize, heads: usize, dim: usize| {
            let shape = [s.batch, tokens, heads, dim];
            laid_out(device, values, shape, self.layout == Layout::Bhsd)
        };
        Ok(Inputs {
            q: upload(&q, s.seq_q, s.heads_q, s.head_dim)?,
            k: upload(&k, s.seq_kv, s.heads_kv, s.head_dim)?,
            v: upload(&v, s.seq_kv, s.heads_kv, s.value_dim)?,
            grad_out: upload(&grad_out, s.seq_q, s.heads_q, s.value_dim)?,
            op_options: ops::AttentionOptions {
                layout: self.layout,
                causal: match options.causal {
                    Causal::None => ops::Causal::No,
                    Causal::BottomRight => ops::Causal::BottomRight,
                    Causal::TopLeft => ops::Causal::TopLeft,
                },
                window_left: options.window_left,
                window_right: options.window_right,
                scale: options.scale.map(|scale| scale as f32),
                softcap: options.softcap.unwrap_or(0.0) as f32,
                alibi_slopes: floats(device, options.alibi_slopes.as_ref())?,
                sinks: floats(device, options.sinks.as_ref())?,
                dropout: options.dropout.map(|dropout| ops::Dropout {
                    probability: dropout.probability as f32,
                    seed: dropout.seed,
                    offset: dropout.offset,
                }),
            },
            exact: [&q, &k, &v, &grad_out].map(|values| widen(values)),
            options,
        })
    }

    /// `[batch, tokens, heads, dim]` of a tensor in the problem's layout.
    pub(super) fn in_order(&self, tensor: AnyTensor) -> Result<AnyTensor> {
        match self.layout {
            Layout::Bshd => Ok(tensor),
            Layout::Bhsd => tensor.transpose(1, 2),
        }
    }
}

impl Generic for Attention {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let inputs = self.inputs::<T>(device)?;
        let result = ops::attention(&inputs.q, &inputs.k, &inputs.v)
            .options(inputs.op_options)
            .run()?;
        let out = self.in_order(result.out)?;
        let [q, k, v, _] = &inputs.exact;
        let exact = reference::forward::<Exact>(&self.shape, &inputs.options, q, k, v);
        let naive = reference::forward::<Eager<T>>(&self.shape, &inputs.options, q, k, v);
        judge::<T>(&out, &result.lse, &exact, &naive)
    }
}

/// New tokens over a cache.
#[derive(Clone, Debug)]
pub(super) struct Decode {
    pub heads: (usize, usize),
    pub seq_q: usize,
    pub dim: usize,
    /// Tokens of each sequence, the new ones included.
    pub lengths: Vec<usize>,
    /// Slots of a page; contiguous without.
    pub page: Option<usize>,
    pub layout: PoolLayout,
    pub causal: bool,
    pub window_left: Option<u32>,
    pub softcap: Option<f32>,
    pub seed: u64,
}

pub fn decode(size: Size) -> BoxedStrategy<Drawn> {
    let longest = size.choose(150usize, 3000);
    let heads = prop_oneof![
        Just((4usize, 2usize)),
        Just((8, 1)),
        Just((2, 2)),
        Just((5, 5)),
        Just((12, 3))
    ];
    let dims = proptest::sample::select(vec![64usize, 128, 256, 40, 96]);
    let page = prop_oneof![
        Just(None),
        Just(Some(16usize)),
        Just(Some(1)),
        Just(Some(5)),
        Just(Some(64))
    ];
    let options = (
        any::<bool>(),
        any::<bool>(),
        proptest::option::of(1..200u32),
        proptest::option::of(0.5..20.0f32),
    );
    let lengths = proptest::collection::vec(0..longest, 1..5);
    boxed((heads, 1..5usize, dims, lengths, page, options, seed()).prop_map(
        |(heads, seq_q, dim, lengths, page, (hnd, causal, window_left, softcap), seed)| Decode {
            heads,
            seq_q,
            dim,
            lengths,
            page,
            layout: if hnd && page.is_some() {
                PoolLayout::Hnd
            } else {
                PoolLayout::Nhd
            },
            causal,
            window_left,
            softcap,
            seed,
        },
    ))
}

impl Generic for Decode {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let (batch, (heads_q, heads_kv), dim) = (self.lengths.len(), self.heads, self.dim);
        let longest = self.lengths.iter().copied().max().unwrap_or(0).max(1);
        let (page, width) = self
            .page
            .map_or((longest + 3, 1), |page| (page, longest.div_ceil(page)));
        let pages = if self.page.is_some() { batch * width + 2 } else { batch };
        let table: Vec<i32> = permutation(self.seed, pages)
            .into_iter()
            .take(batch * width)
            .map(|page| page as i32)
            .collect();
        let layout = match self.page {
            Some(page_size) => CacheLayout::Paged {
                page_size,
                table: &table,
                width,
            },
            None => CacheLayout::Contiguous {
                capacity: page,
                batch_index: None,
            },
        };
        // NaN in every slot that holds no token.
        let row = heads_kv * dim;
        let nan = vec![T::from_f32(f32::NAN); pages * page * row];
        let mut pools = [nan.clone(), nan];
        for (sequence, &length) in self.lengths.iter().enumerate() {
            let slots: Vec<i64> = (0..length).map(|token| layout.slot(sequence, token) as i64).collect();
            for (which, pool) in pools.iter_mut().enumerate() {
                let seed = self.seed + 10 * sequence as u64 + which as u64;
                append(pool, &normal(seed, length * row), &slots, row);
            }
        }
        let q: Vec<T> = normal(self.seed + 1000, batch * self.seq_q * heads_q * dim);
        let upload = |pool: &[T]| {
            let shape = [pages, page, heads_kv, dim];
            laid_out(device, pool, shape, self.layout == PoolLayout::Hnd)
        };
        let (kt, vt) = (upload(&pools[0])?, upload(&pools[1])?);
        let qt = dense(device, &q, &[batch, self.seq_q, heads_q, dim])?;
        let table_tensor = dense(device, &table, &[batch, width])?;
        let lengths: Vec<i32> = self.lengths.iter().map(|&n| n as i32).collect();
        let lengths = Tensor::from_slice(device, &lengths, &[batch as u64])?;
        let view = match self.page {
            Some(_) => CacheView::paged(&kt, &vt, &table_tensor),
            None => CacheView::contiguous(&kt, &vt),
        }
        .layout(self.layout);
        view.validate(&lengths, 0)?;
        let decoded = ops::decode(&qt, view, &lengths)
            .options(DecodeOptions {
                causal: self.causal,
                window_left: self.window_left,
                softcap: self.softcap,
                ..DecodeOptions::default()
            })
            .run()?;
        let shape = AttentionShape {
            batch,
            heads_q,
            heads_kv,
            seq_q: self.seq_q,
            seq_kv: 0,
            head_dim: dim,
            value_dim: dim,
        };
        let options = AttentionOptions {
            causal: if self.causal { Causal::BottomRight } else { Causal::None },
            window_left: self.window_left,
            softcap: self.softcap.map(f64::from),
            ..AttentionOptions::default()
        };
        let [k, v] = [widen(&pools[0]), widen(&pools[1])];
        let cache = over_cache::Cache {
            k: &k,
            v: &v,
            layout,
            lengths: &self.lengths,
            left_padding: None,
        };
        let q = widen(&q);
        let exact = over_cache::decode::<Exact>(&shape, &options, &q, &cache);
        let naive = over_cache::decode::<Eager<T>>(&shape, &options, &q, &cache);
        judge::<T>(&decoded.out, &decoded.lse, &exact, &naive)
    }
}
