//! `run rope`, `run cache-append`, `run cache-read` and `run decode`.

use clap::{Args, ValueEnum};
use host::{
    AnyTensor, DType, Device,
    ops::{self, CacheView, DecodeOptions, PoolLayout, RopeAngles, RopeFrequencies, RopePairing},
    reference::rope_scaling::Scaling,
};

use super::{Failure, Inputs, Outputs};

/// Options of `run rope`.
#[derive(Args)]
pub struct RopeOptions {
    /// Base of the wavelengths.
    #[arg(long, default_value_t = 10_000.0)]
    theta: f64,
    /// Elements of a head that are rotated, even; all unless given.
    #[arg(long)]
    rotary_dim: Option<u64>,
    /// Pairs are (2i, 2i + 1) and not (i, i + rotary_dim / 2).
    #[arg(long)]
    interleaved: bool,
    /// Rotate by the negative angles.
    #[arg(long)]
    inverse: bool,
    /// How frequencies change for longer sequences.
    #[arg(long, value_enum, default_value = "default")]
    scaling: ScalingKind,
    /// Longer by this factor (all scalings but default).
    #[arg(long, default_value_t = 1.0)]
    factor: f64,
    /// Length that the model was trained for (dynamic, yarn, longrope, llama3).
    #[arg(long, default_value_t = 4096.0)]
    original_length: f64,
    /// Length at hand (dynamic).
    #[arg(long, default_value_t = 0.0)]
    length: f64,
    /// Turns above which a frequency is kept (yarn).
    #[arg(long, default_value_t = 32.0)]
    beta_fast: f64,
    /// Turns below which a frequency is interpolated (yarn).
    #[arg(long, default_value_t = 1.0)]
    beta_slow: f64,
    /// Factor of cosines and sines (yarn); from the factor unless given.
    #[arg(long)]
    attention_factor: Option<f64>,
    /// Waves longer than the original length over this are interpolated (llama3).
    #[arg(long, default_value_t = 1.0)]
    low_freq_factor: f64,
    /// Waves shorter than the original length over this are kept (llama3).
    #[arg(long, default_value_t = 4.0)]
    high_freq_factor: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScalingKind {
    Default,
    Linear,
    Dynamic,
    Yarn,
    /// Divisors of the frequencies are the tensor `divisors`, f32, one a pair.
    Longrope,
    Llama3,
}

/// Order of a pool's axes.
#[derive(Args)]
pub struct PoolOptions {
    /// nhd is [pages, page, Hkv, D], hnd is [pages, Hkv, page, D].
    #[arg(long, value_enum, default_value = "nhd")]
    pool_layout: Layout,
}

/// Options of `run cache-read`.
#[derive(Args)]
pub struct ReadArgs {
    #[command(flatten)]
    pool: PoolOptions,
    /// What a cache of 8-bit floats is read as, times k_scale and v_scale.
    #[arg(long, value_enum, default_value = "f32")]
    widen: Widened,
}

#[derive(Clone, Copy, ValueEnum)]
enum Widened {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Layout {
    Nhd,
    Hnd,
}

/// Options of `run decode`.
#[derive(Args)]
pub struct DecodeArgs {
    #[command(flatten)]
    pool: PoolOptions,
    /// New tokens do not see those behind them.
    #[arg(long)]
    causal: bool,
    /// Factor of the scores; 1/√D unless given.
    #[arg(long)]
    scale: Option<f32>,
    /// Keys before a query's own position that it sees.
    #[arg(long)]
    window_left: Option<u32>,
    /// Keys after a query's own position that it sees.
    #[arg(long)]
    window_right: Option<u32>,
    /// c · tanh(score / c); 0 is off.
    #[arg(long)]
    softcap: Option<f32>,
    /// With cos and sin: pairs are (2i, 2i + 1) and not (i, i + rotary_dim / 2).
    #[arg(long)]
    interleaved: bool,
}

impl PoolOptions {
    fn layout(&self) -> PoolLayout {
        match self.pool_layout {
            Layout::Nhd => PoolLayout::Nhd,
            Layout::Hnd => PoolLayout::Hnd,
        }
    }
}

fn pairing(interleaved: bool) -> RopePairing {
    if interleaved {
        RopePairing::Interleaved
    } else {
        RopePairing::HalfSplit
    }
}

impl RopeOptions {
    fn scaling(&self, inputs: &Inputs) -> Result<Scaling, Failure> {
        let (factor, trained_len) = (self.factor, self.original_length);
        Ok(match self.scaling {
            ScalingKind::Default => Scaling::Default,
            ScalingKind::Linear => Scaling::Linear { factor },
            ScalingKind::Dynamic => Scaling::Dynamic {
                factor,
                trained_len,
                len: self.length,
            },
            ScalingKind::Yarn => Scaling::Yarn {
                factor,
                trained_len,
                beta_fast: self.beta_fast,
                beta_slow: self.beta_slow,
                magnitude: self.attention_factor,
            },
            ScalingKind::Longrope => {
                let divisors = inputs.get("divisors")?.typed::<f32>("divisors")?.to_vec()?;
                Scaling::LongRope {
                    divisors: divisors.into_iter().map(f64::from).collect(),
                    factor,
                    trained_len,
                }
            }
            ScalingKind::Llama3 => Scaling::Llama3 {
                factor,
                low_frequency_factor: self.low_freq_factor,
                high_frequency_factor: self.high_freq_factor,
                trained_len,
            },
        })
    }
}

/// q, k, positions → q, k.
pub fn rope(device: &Device, inputs: &Inputs, options: &RopeOptions) -> Result<Outputs, Failure> {
    let q = inputs.get("q")?;
    let dim = q.shape().last().copied().unwrap_or(0);
    let rotary_dim = options.rotary_dim.unwrap_or(dim);
    let frequencies = RopeFrequencies::scaled(device, rotary_dim, options.theta, &options.scaling(inputs)?)?;
    let mut rope = ops::rope(q, pairing(options.interleaved), RopeAngles::Frequencies(&frequencies));
    if let Some(k) = inputs.optional("k") {
        rope = rope.k(k);
    }
    if let Some(positions) = inputs.optional("positions") {
        rope = rope.positions(positions);
    }
    if options.inverse {
        rope = rope.inverse();
    }
    let (q, k) = rope.run()?;
    let mut outputs = Outputs::from([("q", q)]);
    outputs.extend(k.map(|k| ("k", k)));
    Ok(outputs)
}

/// k, v, k_cache, v_cache, slots → k_cache, v_cache.
pub fn append(inputs: &Inputs, options: &PoolOptions) -> Result<Outputs, Failure> {
    let (k_cache, v_cache) = (inputs.get("k_cache")?, inputs.get("v_cache")?);
    let slots = inputs.get("slots")?;
    let cache = CacheView::contiguous(k_cache, v_cache)
        .layout(options.layout())
        .scales(inputs.optional("k_scale"), inputs.optional("v_scale"));
    cache.validate_slots(slots)?;
    ops::cache_append(inputs.get("k")?, inputs.get("v")?, cache, slots)?;
    Ok(Outputs::from([
        ("k_cache", k_cache.clone()),
        ("v_cache", v_cache.clone()),
    ]))
}

/// k_cache, v_cache, block_table, cache_seqlens → k, v.
pub fn read(inputs: &Inputs, options: &ReadArgs) -> Result<Outputs, Failure> {
    let cache = view(inputs, &options.pool)?;
    let lengths = inputs.get("cache_seqlens")?;
    cache.validate(lengths, 0)?;
    let longest = lengths
        .typed::<i32>("cache_seqlens")?
        .to_vec()?
        .into_iter()
        .max()
        .unwrap_or(0);
    let dtype = match (cache.k().dtype(), options.widen) {
        (DType::E4M3, Widened::F32) => DType::F32,
        (DType::E4M3, Widened::F16) => DType::F16,
        (DType::E4M3, Widened::Bf16) => DType::BF16,
        (dtype, _) => dtype,
    };
    let (k, v) = ops::cache_read_as(cache, lengths, longest as u64, dtype)?;
    Ok(Outputs::from([("k", k), ("v", v)]))
}

/// The cache of the inputs: paged with a block table, contiguous without.
fn view<'a>(inputs: &'a Inputs, options: &PoolOptions) -> Result<CacheView<'a>, Failure> {
    let (k, v) = (inputs.get("k_cache")?, inputs.get("v_cache")?);
    let mut view = match inputs.optional("block_table") {
        Some(table) => CacheView::paged(k, v, table),
        None => CacheView::contiguous(k, v),
    };
    if let Some(index) = inputs.optional("cache_batch_idx") {
        view = view.batch_index(index);
    }
    Ok(view
        .layout(options.layout())
        .scales(inputs.optional("k_scale"), inputs.optional("v_scale")))
}

/// q, k_cache, v_cache, block_table, cache_seqlens and, appended first, k, v (rotated by cos, sin) → out, lse, caches.
pub fn decode(inputs: &Inputs, options: &DecodeArgs) -> Result<Outputs, Failure> {
    let cache = view(inputs, &options.pool)?;
    let lengths = inputs.get("cache_seqlens")?;
    let new = match (inputs.optional("k"), inputs.optional("v")) {
        (Some(k), Some(v)) => Some((k, v)),
        (None, None) => None,
        _ => return Err(Failure::Failed("k and v come together or not at all".into())),
    };
    let tokens = |tensor: &AnyTensor| {
        if tensor.rank() == 4 {
            tensor.extent(1)
        } else {
            tensor.extent(0)
        }
    };
    cache.validate(lengths, new.map_or(0, |(k, _)| tokens(k)))?;
    let rotary = match (inputs.optional("cos"), inputs.optional("sin")) {
        (Some(cos), Some(sin)) => {
            // Positions beyond the tables would give NaN.
            if let Some((k, _)) = new.filter(|_| lengths.dtype() == DType::I32) {
                let longest = lengths
                    .typed::<i32>("cache_seqlens")?
                    .to_vec()?
                    .into_iter()
                    .max()
                    .unwrap_or(0);
                let positions = longest as u64 + tokens(k);
                if positions > cos.extent(0) {
                    let shape = cos.shape();
                    return Err(host::Error::shape("cos", shape, format!("{positions} positions are needed")).into());
                }
            }
            Some((pairing(options.interleaved), RopeAngles::Table { cos, sin }))
        }
        (None, None) => None,
        _ => return Err(Failure::Failed("cos and sin come together or not at all".into())),
    };
    let decode_options = DecodeOptions {
        causal: options.causal,
        window_left: options.window_left,
        window_right: options.window_right,
        softcap: options.softcap,
        scale: options.scale,
        alibi_slopes: inputs.optional("alibi_slopes"),
        sinks: inputs.optional("sinks"),
        left_padding: inputs.optional("leftpad_k"),
        rotary,
    };
    let mut decode = ops::decode(inputs.get("q")?, cache, lengths).options(decode_options);
    if let Some((k, v)) = new {
        decode = decode.append(k, v);
    }
    let decoded = decode.run()?;
    let mut outputs = Outputs::from([("out", decoded.out), ("lse", decoded.lse)]);
    if new.is_some() {
        outputs.extend([("k_cache", cache.k().clone()), ("v_cache", cache.v().clone())]);
    }
    Ok(outputs)
}
