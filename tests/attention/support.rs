//! A case of attention: data, options, what the op says and what it should say.

use std::sync::OnceLock;

use host::compare::{Rule, compare};
use host::ops::{AttentionOptions, Causal, Dropout, Layout, attention};
use host::reference::attention::{self as reference, AttentionShape};
use host::reference::data::Distribution;
use host::reference::{Eager, Exact, widen};
use host::{AnyTensor, DType, Device, Element as _, Float, Tensor, Tier, bf16};

/// The devices, opened once.
pub fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(crate::common::devices)
}

/// Runs `body` for every device and element type that it has attention for.
#[macro_export]
macro_rules! on_all {
    ($body:ident) => {
        for device in $crate::support::devices() {
            $body::<host::f16>(device);
            if device.tier() != host::Tier::Sm75 {
                $body::<host::bf16>(device);
            }
            $body::<f32>(device);
        }
    };
}

/// A problem and its data, in the layout of the reference: `[batch, tokens, heads, dim]`.
#[derive(Clone, Debug)]
pub struct Case<T> {
    pub shape: AttentionShape,
    pub options: reference::AttentionOptions,
    pub layout: Layout,
    pub q: Vec<T>,
    pub k: Vec<T>,
    pub v: Vec<T>,
    /// Unused elements between the rows of heads, full of NaN.
    pub gap: usize,
}

/// A shape by batch, heads, lengths and head dim.
pub fn shape(
    batch: usize,
    (heads_q, heads_kv): (usize, usize),
    (seq_q, seq_kv): (usize, usize),
    dim: usize,
) -> AttentionShape {
    AttentionShape {
        batch,
        heads_q,
        heads_kv,
        seq_q,
        seq_kv,
        head_dim: dim,
        value_dim: dim,
    }
}

impl<T: Float> Case<T> {
    /// Normal data.
    pub fn new(seed: u64, shape: AttentionShape) -> Self {
        Case::drawn(seed, shape, Distribution::NORMAL)
    }

    pub fn drawn(seed: u64, shape: AttentionShape, distribution: Distribution) -> Self {
        let s = shape;
        let draw = |seed, tokens: usize, heads: usize, dim| distribution.draw::<T>(seed, s.batch * tokens * heads, dim);
        Case {
            shape,
            options: reference::AttentionOptions::default(),
            layout: Layout::Bshd,
            q: draw(seed, s.seq_q, s.heads_q, s.head_dim),
            k: draw(seed + 1, s.seq_kv, s.heads_kv, s.head_dim),
            v: draw(seed + 2, s.seq_kv, s.heads_kv, s.value_dim),
            gap: 0,
        }
    }

    pub fn with(mut self, options: reference::AttentionOptions) -> Self {
        self.options = options;
        self
    }

    /// A view of `data` on the device: rows are `gap` elements apart, and NaN lies between them.
    pub fn upload(&self, device: &Device, data: &[T], tokens: usize, heads: usize, dim: usize) -> AnyTensor {
        let s = &self.shape;
        let width = dim + self.gap;
        let (outer, inner) = if self.layout == Layout::Bshd {
            (tokens, heads)
        } else {
            (heads, tokens)
        };
        let mut all = vec![T::from_f32(f32::NAN); s.batch * outer * inner * width];
        for b in 0..s.batch {
            for t in 0..tokens {
                for h in 0..heads {
                    let from = ((b * tokens + t) * heads + h) * dim;
                    let (x, y) = if self.layout == Layout::Bshd { (t, h) } else { (h, t) };
                    let to = ((b * outer + x) * inner + y) * width;
                    all[to..to + dim].copy_from_slice(&data[from..from + dim]);
                }
            }
        }
        let extents = [s.batch, outer, inner, width].map(|extent| extent as u64);
        let whole = Tensor::from_slice(device, &all, &extents).unwrap();
        whole.any().slice(3, 0..dim as u64).unwrap()
    }

    pub fn tensors(&self, device: &Device) -> [AnyTensor; 3] {
        let s = &self.shape;
        [
            self.upload(device, &self.q, s.seq_q, s.heads_q, s.head_dim),
            self.upload(device, &self.k, s.seq_kv, s.heads_kv, s.head_dim),
            self.upload(device, &self.v, s.seq_kv, s.heads_kv, s.value_dim),
        ]
    }

    /// Runs the op: O as `[batch, tokens, heads, dim]` and LSE.
    pub fn run(&self, device: &Device) -> host::Result<(Vec<T>, Vec<f32>)> {
        let [q, k, v] = self.tensors(device);
        let options = self.op_options(device);
        let shape = q.shape();
        let out = Tensor::<T>::empty(device, &[&shape[..3], &[self.shape.value_dim as u64]].concat())?;
        out.fill_bytes(0xFF)?;
        let result = attention(&q, &k, &v).options(options).out(&out).run()?;
        let out = if self.layout == Layout::Bshd {
            out
        } else {
            out.transpose(1, 2)?
        };
        Ok((out.to_vec()?, result.lse.typed::<f32>("lse")?.to_vec()?))
    }

    pub fn op_options(&self, device: &Device) -> AttentionOptions {
        op_options(device, &self.options, &self.shape, self.layout)
    }

    /// Runs the op and holds it against the reference: the 2× rule for O, absolute 2⁻¹⁶-ish bounds for LSE.
    #[track_caller]
    pub fn check(&self, device: &Device) {
        let (q, k, v) = (widen(&self.q), widen(&self.k), widen(&self.v));
        let exact = reference::forward::<Exact>(&self.shape, &self.options, &q, &k, &v);
        let naive = reference::forward::<Eager<T>>(&self.shape, &self.options, &q, &k, &v);
        let (out, lse) = self
            .run(device)
            .unwrap_or_else(|error| panic!("{}: {error}", self.describe(device)));
        self.judge(device, &out, &lse, &exact, &naive);
    }

    #[track_caller]
    pub fn judge(
        &self,
        device: &Device,
        out: &[T],
        lse: &[f32],
        exact: &reference::Forward,
        naive: &reference::Forward,
    ) {
        if let Err(report) = compare(out, &exact.out, Rule::twice(&naive.out)).check() {
            // f32 has another way to pass: 10⁻⁵ of the element, or a part of that of the largest one where values cancel.
            let largest = exact.out.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
            let close = Rule::Relative {
                relative: 1e-5,
                absolute: 3e-6 * largest,
            };
            if T::DTYPE != DType::F32 || !compare(out, &exact.out, close).is_ok() {
                panic!("{}: out: {report}", self.describe(device));
            }
        }
        // Scores are sums in f32: what they lose grows with their size.
        let width = self.shape.head_dim as f64;
        let size = self.options.scale.unwrap_or(1.0 / width.sqrt()) * width.sqrt();
        let rule = Rule::Relative {
            relative: 4e-6,
            absolute: 1e-5 * size.abs().max(1.0),
        };
        if let Err(report) = compare(lse, &exact.lse, rule).check() {
            panic!("{}: lse: {report}", self.describe(device));
        }
    }

    pub fn describe(&self, device: &Device) -> String {
        format!(
            "{} {}, {}, {:?}, {:?}, {:?}, gap {}",
            device.kind(),
            device.tier(),
            T::DTYPE,
            self.layout,
            self.shape,
            self.options,
            self.gap
        )
    }
}

/// The op's options for those of the reference.
pub fn op_options(
    device: &Device,
    options: &reference::AttentionOptions,
    shape: &AttentionShape,
    layout: Layout,
) -> AttentionOptions {
    let floats =
        |values: &Vec<f64>, shape: &[u64]| Tensor::<f32>::from_f64(device, values, shape).unwrap().any().clone();
    let heads = shape.heads_q as u64;
    AttentionOptions {
        layout,
        causal: match options.causal {
            reference::Causal::None => Causal::No,
            reference::Causal::BottomRight => Causal::BottomRight,
            reference::Causal::TopLeft => Causal::TopLeft,
        },
        window_left: options.window_left,
        window_right: options.window_right,
        scale: options.scale.map(|scale| scale as f32),
        softcap: options.softcap.unwrap_or(0.0) as f32,
        alibi_slopes: options.alibi_slopes.as_ref().map(|slopes| {
            let rows = slopes.len() as u64 / heads;
            if rows == 1 {
                floats(slopes, &[heads])
            } else {
                floats(slopes, &[rows, heads])
            }
        }),
        sinks: options.sinks.as_ref().map(|sinks| floats(sinks, &[heads])),
        dropout: options.dropout.map(|dropout| Dropout {
            probability: dropout.probability as f32,
            seed: dropout.seed,
            offset: dropout.offset,
        }),
    }
}

/// Whether the device's tier has kernels for `T`.
pub fn has<T: Float>(device: &Device) -> bool {
    device.tier() != Tier::Sm75 || T::DTYPE != bf16::DTYPE
}

/// Head dims of each kernel.
pub const DIMS: [usize; 5] = [64, 96, 128, 192, 256];

/// Causal, and nothing else.
pub fn causal() -> reference::AttentionOptions {
    reference::AttentionOptions {
        causal: reference::Causal::BottomRight,
        ..Default::default()
    }
}

/// Each option, alone and with a causal mask, and all together; for two sequences of four heads.
pub fn every_option() -> Vec<reference::AttentionOptions> {
    let slopes = |count: usize| (0..count).map(|i| 0.5 / (1 + i) as f64).collect::<Vec<_>>();
    let plain = reference::AttentionOptions::default;
    vec![
        reference::AttentionOptions {
            scale: Some(0.3),
            ..plain()
        },
        reference::AttentionOptions {
            scale: Some(-0.3),
            ..plain()
        },
        reference::AttentionOptions {
            scale: Some(0.0),
            ..causal()
        },
        reference::AttentionOptions {
            softcap: Some(1.5),
            ..plain()
        },
        reference::AttentionOptions {
            softcap: Some(30.0),
            ..causal()
        },
        reference::AttentionOptions {
            alibi_slopes: Some(slopes(4)),
            ..causal()
        },
        reference::AttentionOptions {
            alibi_slopes: Some(slopes(8)),
            ..plain()
        },
        reference::AttentionOptions {
            sinks: Some(vec![0.5, -3.0, 4.0, f64::NEG_INFINITY]),
            ..causal()
        },
        reference::AttentionOptions {
            scale: Some(0.2),
            window_left: Some(20),
            window_right: Some(4),
            softcap: Some(5.0),
            alibi_slopes: Some(slopes(8)),
            sinks: Some(vec![1.0; 4]),
            ..plain()
        },
    ]
}
