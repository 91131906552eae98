//! Attention of new tokens over a cache.

use kernels_gpu::decode::{DecodeParams, MIN_SPLIT, ROWS, Shape, UNBOUNDED};

use super::{
    cache::{CacheView, cache_append_in, expect_extent, expect_integers, tokens_of},
    rope::{RopeAngles, RopePairing, check_float, rope},
};
use crate::{AnyTensor, DType, Error, Result, Tier, launch::Contract, stream::Stream};

/// Blocks that one sequence alone should be cut into, so that it fills a large GPU.
const WANTED_BLOCKS: u64 = 256;
/// Most pieces of a tile.
const MAX_SPLITS: u64 = 128;
/// Shared memory of a multiprocessor that has most; each block takes 1 KiB more than it asks for.
const SHARED_MEMORY: u64 = 228 << 10;
/// Blocks of a multiprocessor that their registers leave room for.
const MAX_RESIDENT: u64 = 2;
/// Tiles for each block that the GPU holds from which on they need not be cut up to keep all busy.
const ENOUGH_TILES: u64 = 6;
/// Share of the rounds that whole tiles of equal lengths fill from which on that holds for fewer too, in percent.
const FULL_ROUNDS: u64 = 95;

/// Result of [`Decode::run`].
#[derive(Clone, Debug)]
pub struct Decoded {
    /// `[batch, seq_q, heads_q, value_dim]`; 0 in rows without keys.
    pub out: AnyTensor,
    /// Natural log-sum-exp of scaled, masked scores and sinks, f32, `[batch, heads_q, seq_q]`.
    pub lse: AnyTensor,
}

/// What the attention of new tokens over a cache may be asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct DecodeOptions<'a> {
    /// New tokens do not see those behind them.
    pub causal: bool,
    /// Keys before the query's own position that it sees; all unless given.
    pub window_left: Option<u32>,
    /// Keys after the query's own position that it sees; all unless given.
    pub window_right: Option<u32>,
    /// `cap · tanh(score / cap)`; 0 is off.
    pub softcap: Option<f32>,
    /// Factor of the scores; `1 / √dim` unless given.
    pub scale: Option<f32>,
    /// ALiBi slopes, f32, `[heads_q]` or `[batch, heads_q]`.
    pub alibi_slopes: Option<&'a AnyTensor>,
    /// A logit for each query head that takes part in the softmax and carries no value, f32.
    pub sinks: Option<&'a AnyTensor>,
    /// Tokens at the front of each sequence that nobody sees, i32, `[batch]`.
    pub left_padding: Option<&'a AnyTensor>,
    /// Rotates new queries and keys by these tables or frequencies before anything else.
    pub rotary: Option<(RopePairing, RopeAngles<'a>)>,
}

/// A decode step to be run; made by [`decode`].
#[must_use = "nothing happens before run()"]
pub struct Decode<'a> {
    q: &'a AnyTensor,
    cache: CacheView<'a>,
    lengths: &'a AnyTensor,
    new: Option<(&'a AnyTensor, &'a AnyTensor)>,
    options: DecodeOptions<'a>,
    stream: Option<&'a Stream>,
}

/// Attention of `q [batch, seq_q, heads_q, dim]` over a cache, whose last row stands at the last token of its sequence.
///
/// `cache_seqlens` (i32, `[batch]`) are the tokens of each sequence, on the device: a captured graph stays valid while they
/// grow. With [`Decode::append`] they are the tokens before this step. f32, f16 and bf16; head dims up to 256 whose rows
/// are multiples of 16 bytes; any ratio of heads. A row's bits depend on its own sequence alone.
///
/// Lengths above the capacity are cut to it: check them with [`CacheView::validate`].
pub fn decode<'a>(q: &'a AnyTensor, cache: CacheView<'a>, cache_seqlens: &'a AnyTensor) -> Decode<'a> {
    Decode {
        q,
        cache,
        lengths: cache_seqlens,
        new: None,
        options: DecodeOptions::default(),
        stream: None,
    }
}

impl<'a> Decode<'a> {
    /// Appends `k [batch, seq_q, heads_kv, dim]` and `v` to the cache first.
    pub fn append(mut self, k: &'a AnyTensor, v: &'a AnyTensor) -> Self {
        self.new = Some((k, v));
        self
    }

    /// With all these options.
    pub fn options(mut self, options: DecodeOptions<'a>) -> Self {
        self.options = options;
        self
    }

    /// New tokens do not see those behind them.
    pub fn causal(mut self) -> Self {
        self.options.causal = true;
        self
    }

    /// Runs in this stream.
    pub fn on(mut self, stream: &'a Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Launches.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Dtype`], [`Error::Layout`], [`Error::Range`] naming the argument;
    /// [`Error::Unsupported`] for head dims without a kernel; [`Error::OutOfMemory`].
    pub fn run(self) -> Result<Decoded> {
        let options = &self.options;
        let q = tokens_of("q", self.q)?;
        if self.q.rank() != 4 {
            return Err(Error::shape(
                "q",
                self.q.shape(),
                "[batch, seq_q, heads_q, dim] is needed",
            ));
        }
        check_float("q", &q)?;
        let (batch, seq_q, heads_q, dim) = (q.extent(0), q.extent(1), q.extent(2), q.extent(3));
        let cache = self.cache.check(Some(batch))?;
        if self.cache.k().dtype() != q.dtype() {
            let allowed = format!("the dtype of q, {}, is needed", q.dtype());
            return Err(Error::Dtype {
                argument: "k_cache",
                dtype: self.cache.k().dtype(),
                allowed,
            });
        }
        if dim != cache.head_dim {
            let allowed = format!("the head dim of k_cache, {}, is needed", cache.head_dim);
            return Err(Error::shape("q", q.shape(), allowed));
        }
        if cache.heads == 0 || !heads_q.is_multiple_of(cache.heads) {
            return Err(Error::shape(
                "q",
                q.shape(),
                format!("a multiple of the {} KV heads is needed", cache.heads),
            ));
        }
        expect_integers("cache_seqlens", self.lengths, DType::I32, 1)?;
        expect_extent("cache_seqlens", self.lengths, batch)?;
        self.check_options(batch, heads_q)?;
        if let Some((k, _)) = self.new
            && k.extent(1) != seq_q
        {
            return Err(Error::shape(
                "k",
                k.shape(),
                format!("as many tokens as q, {seq_q}, are needed"),
            ));
        }
        let size = q.dtype().size();
        let padded = [64, 128, 256]
            .into_iter()
            .find(|&padded| dim.max(cache.value_dim) <= padded);
        let Some(padded) =
            padded.filter(|_| dim > 0 && [dim, cache.value_dim].iter().all(|dim| (dim * size).is_multiple_of(16)))
        else {
            let what = format!(
                "head dims {dim} and {} (up to 256, rows in multiples of 16 bytes)",
                cache.value_dim
            );
            return Err(Error::unsupported(format!("decode attention with {what}")));
        };
        for (argument, tensor) in [("k_cache", self.cache.k()), ("v_cache", self.cache.v())] {
            if !tensor.rows_aligned_to(16) {
                return Err(Error::layout(
                    argument,
                    "every row must start at a multiple of 16 bytes",
                ));
            }
        }
        let device = q.device();
        let out = AnyTensor::empty(device, q.dtype(), &[batch, seq_q, heads_q, cache.value_dim])?;
        let lse = AnyTensor::empty(device, DType::F32, &[batch, heads_q, seq_q])?;
        let q = self.prepare_tokens(&q)?;
        if out.elements() == 0 && lse.elements() == 0 {
            return Ok(Decoded { out, lse });
        }
        if !q.rows_aligned_to(4) {
            return Err(Error::layout("q", "every row must start at a multiple of 4 bytes"));
        }
        let tier = match device.tier() {
            Tier::Sm75 => 75,
            Tier::Sm80 => 80,
            Tier::Sm90a => 90,
        };
        let shape = Shape::new(tier, size as u32, size as u32, padded as u32);
        let group = heads_q / cache.heads;
        let tile_rows = group * seq_q;
        let tiles = tile_rows.div_ceil(ROWS.into());
        // These follow from the sequence's own problem, never from the batch: they decide how its sums are ordered.
        let most = (WANTED_BLOCKS / (cache.heads * tiles)).clamp(1, MAX_SPLITS);
        let splits = most.min(cache.capacity.div_ceil(MIN_SPLIT.into())).max(1);
        let all_tiles = batch * cache.heads * tiles;
        let rows = tile_rows.min(ROWS.into());
        // This may follow from the batch: both ways give the same bits.
        let shared = u64::from(shape.shared_bytes(rows as u32));
        let resident = (SHARED_MEMORY / (shared + 1024)).clamp(1, MAX_RESIDENT);
        let slots = resident * u64::from(device.properties().multiprocessors);
        let full = all_tiles * 100 >= all_tiles.div_ceil(slots) * slots * FULL_ROUNDS;
        let fold = splits == 1 || (shape.folds() && (full || all_tiles >= ENOUGH_TILES * slots));
        let apart = !fold;
        let blocks = if fold { all_tiles } else { slots.min(all_tiles * splits) };
        let partial_rows = if apart { all_tiles * splits * rows } else { 0 };
        let partial = AnyTensor::empty(device, DType::F32, &[partial_rows, cache.value_dim])?;
        let statistics = AnyTensor::empty(device, DType::F32, &[partial_rows, 2])?;
        let strides = |t: &AnyTensor| [t.strides()[0], t.strides()[1], t.strides()[2]];
        let address = |t: Option<&AnyTensor>| t.map_or(0, AnyTensor::address);
        let small = |argument, value: u64| {
            let fits = u32::try_from(value).ok().filter(|value| *value < 1 << 30);
            fits.ok_or_else(|| Error::range(argument, value, "below 2^30"))
        };
        let bound = |window: Option<u32>| window.map_or(UNBOUNDED, |tokens| tokens.min(UNBOUNDED - 1));
        let right = if options.causal { Some(0) } else { options.window_right };
        let slopes = options.alibi_slopes;
        let params = DecodeParams {
            paging: cache.paging,
            q: q.address(),
            k: self.cache.k().address(),
            v: self.cache.v().address(),
            out: out.address(),
            lse: lse.address(),
            partial: partial.address(),
            statistics: statistics.address(),
            lengths: self.lengths.address(),
            left_padding: address(options.left_padding),
            alibi_slopes: address(slopes),
            sinks: address(options.sinks),
            k_scale: 0,
            v_scale: 0,
            q_strides: strides(&q),
            k_strides: cache.strides[0],
            v_strides: cache.strides[1],
            out_strides: strides(&out),
            alibi_batch_stride: if slopes.is_some_and(|slopes| slopes.rank() == 2) {
                heads_q
            } else {
                0
            },
            batch: small("batch", batch)?,
            heads_kv: small("heads_kv", cache.heads)?,
            group: small("heads_q", group)?,
            seq_q: small("seq_q", seq_q)?,
            head_dim: dim as u32,
            value_dim: cache.value_dim as u32,
            rows: rows as u32,
            tiles: small("seq_q · heads_q", tiles)?,
            most: most as u32,
            splits: splits as u32,
            fold: fold.into(),
            appended: if self.new.is_some() { small("seq_q", seq_q)? } else { 0 },
            capacity: cache.capacity as u32,
            window_left: bound(options.window_left),
            window_right: bound(right),
            scale: options.scale.unwrap_or(1.0 / (dim as f32).sqrt()),
            softcap: options.softcap.unwrap_or(0.0),
            whole: u32::from(fold || blocks < 2 * all_tiles),
        };
        let dtype = q.dtype().name();
        let entry = format!("decode_{dtype}_d{padded}");
        let contract = Contract::new(device, &entry)
            .grid([blocks, 1, 1])
            .shared(shared)
            .on(self.stream)
            .programmatic()
            .reads("q", &q)
            .reads("k_cache", self.cache.k())
            .reads("v_cache", self.cache.v())
            .reads("cache_seqlens", self.lengths)
            .reads_if("block_table", self.cache.table())
            .reads_if("batch_index", self.cache.rows())
            .reads_if("left_padding", options.left_padding)
            .reads_if("alibi_slopes", slopes)
            .reads_if("sinks", options.sinks)
            .writes("out", &out)
            .writes("lse", &lse)
            .writes_if("partial", apart.then_some(&partial))
            .writes_if("statistics", apart.then_some(&statistics));
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
        unsafe { contract.prepare()?.launch(&params)? };
        if apart {
            let entry = format!("decode_merge_{dtype}");
            let contract = Contract::new(device, &entry)
                .grid([all_tiles * rows, 1, 1])
                .on(self.stream)
                .programmatic()
                .reads("partial", &partial)
                .reads("statistics", &statistics)
                .reads("cache_seqlens", self.lengths)
                .reads_if("left_padding", options.left_padding)
                .reads_if("sinks", options.sinks)
                .writes("out", &out)
                .writes("lse", &lse);
            // SAFETY: as above; the decode kernel before it in the stream has filled the workspace.
            unsafe { contract.prepare()?.launch(&params)? };
        }
        Ok(Decoded { out, lse })
    }

    /// Rotates and appends; returns the queries to attend with.
    fn prepare_tokens(&self, q: &AnyTensor) -> Result<AnyTensor> {
        match (self.options.rotary, self.new) {
            (None, None) => Ok(q.clone()),
            (None, Some((k, v))) => {
                // In the stream that reads it.
                cache_append_in(k, v, self.cache, self.lengths, self.stream)?;
                Ok(q.clone())
            }
            (Some((pairing, angles)), Some((k, v))) => {
                let mut rope = rope(q, pairing, angles)
                    .k(k)
                    .lengths(self.lengths)
                    .append_at(v, self.cache);
                if let Some(stream) = self.stream {
                    rope = rope.on(stream);
                }
                Ok(rope.run()?.0)
            }
            (Some(_), None) => Err(Error::layout(
                "rotary",
                "rotates new tokens, but no new keys were given",
            )),
        }
    }

    fn check_options(&self, batch: u64, heads_q: u64) -> Result<()> {
        let options = &self.options;
        let floats = |argument, tensor: &AnyTensor, shapes: &[&[u64]]| {
            if tensor.dtype() != DType::F32 {
                return Err(Error::Dtype {
                    argument,
                    dtype: tensor.dtype(),
                    allowed: "f32 is needed".into(),
                });
            }
            if !shapes.contains(&tensor.shape()) || !tensor.is_contiguous() {
                return Err(Error::shape(
                    argument,
                    tensor.shape(),
                    format!("one of {shapes:?}, dense, is needed"),
                ));
            }
            Ok(())
        };
        if let Some(slopes) = options.alibi_slopes {
            floats("alibi_slopes", slopes, &[&[heads_q], &[batch, heads_q]])?;
        }
        if let Some(sinks) = options.sinks {
            floats("sinks", sinks, &[&[heads_q]])?;
        }
        if let Some(padding) = options.left_padding {
            expect_integers("left_padding", padding, DType::I32, 1)?;
            expect_extent("left_padding", padding, batch)?;
        }
        if let Some(cap) = options.softcap.filter(|cap| !(cap.is_finite() && *cap >= 0.0)) {
            return Err(Error::range("softcap", cap, "finite and not negative; 0 is off"));
        }
        if let Some(scale) = options.scale.filter(|scale| !scale.is_finite()) {
            return Err(Error::range("scale", scale, "a finite number"));
        }
        Ok(())
    }
}
