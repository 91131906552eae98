//! Attention of new tokens over a cache.

use kernels_gpu::{
    angles::Rotation,
    decode::{DecodeParams, MERGE_THREADS, ROWS, Shape, UNBOUNDED, packed::PACKED_ROWS, quads_of},
};

mod checks;
mod direct;
mod division;
mod maps;
mod packed;
mod tokens;

use self::{
    checks::Checked,
    division::{Division, Work},
};
use super::{
    cache::CacheView,
    rope::{RopeAngles, RopePairing},
};
use crate::{AnyTensor, DType, Error, Result, Tier, launch::Contract, stream::Stream};

/// Most rows of a tile that Hopper's kernels for few rows take.
const FEW_ROWS: u64 = 8;

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
    fused: Option<bool>,
    options: DecodeOptions<'a>,
    stream: Option<&'a Stream>,
}

/// Attention of `q [batch, seq_q, heads_q, dim]` over a cache, whose last row stands at the last token of its sequence.
///
/// `cache_seqlens` (i32, `[batch]`) are the tokens of each sequence, on the device: a captured graph stays valid while they
/// grow. With [`Decode::append`] they are the tokens before this step. f32, f16 and bf16; head dims up to 256 whose rows
/// in the cache are multiples of 16 bytes; any ratio of heads. Queries of f16 and bf16 take caches of e4m3 too (Hopper, head
/// dims up to 128). A row's bits depend on its own sequence alone.
///
/// Lengths above the capacity are cut to it: check them with [`CacheView::validate`].
pub fn decode<'a>(q: &'a AnyTensor, cache: CacheView<'a>, cache_seqlens: &'a AnyTensor) -> Decode<'a> {
    Decode {
        q,
        cache,
        lengths: cache_seqlens,
        new: None,
        fused: None,
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

    /// Whether new tokens are rotated, appended and attended in one launch (`true`), or in two: the bits are the same. In one where
    /// that is possible, unless told: up to 8 tokens a sequence, on tiers from sm_80 on, without left padding, where rows
    /// start at multiples of four elements, head dims are multiples of 8 (up to 128 in f32) and pairs of 4. On Hopper, where 16-bit
    /// caches lie in rows or in pages of a multiple of 16 tokens, a KV head may not have more than 64 query heads times new tokens.
    pub fn fused(mut self, fused: bool) -> Self {
        self.fused = Some(fused);
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
        let Checked {
            q,
            cache,
            e4m3,
            padded,
            steps: [k_steps, v_steps],
        } = self.check()?;
        let (batch, seq_q, heads_q, dim) = (q.extent(0), q.extent(1), q.extent(2), q.extent(3));
        let (size, cache_size) = (q.dtype().size(), self.cache.k().dtype().size());
        let device = q.device();
        let out = AnyTensor::empty(device, q.dtype(), &[batch, seq_q, heads_q, cache.value_dim])?;
        let lse = AnyTensor::empty(device, DType::F32, &[batch, heads_q, seq_q])?;
        let tier = match device.tier() {
            Tier::Sm75 => 75,
            Tier::Sm80 => 80,
            Tier::Sm90a => 90,
        };
        let group = heads_q / cache.heads;
        let tile_rows = group * seq_q;
        let few = tier == 90 && size == 2 && tile_rows <= FEW_ROWS;
        // Which kernel, and with it the bits, follows from rows and pages alone.
        let many = tier == 90 && size == 2 && !e4m3 && padded <= 128;
        let boxes = if many && !few { packed::box_shift(&cache) } else { None };
        let wide = many && (boxes.is_some() || tile_rows > ROWS.into());
        let shape = if few {
            let shape = Shape::few(cache_size as u32, padded as u32);
            if maps::suit(shape, &cache) {
                shape.by_maps()
            } else {
                shape
            }
        } else if wide {
            Shape::wide(padded as u32)
        } else {
            Shape::new(tier, size as u32, cache_size as u32, padded as u32)
        };
        // A box that holds a token of this launch is read by the block that writes it, and by no other.
        let alone = boxes.is_none() || tile_rows <= PACKED_ROWS.into();
        let empty = out.elements() == 0 && lse.elements() == 0;
        let fresh = if empty || self.fused == Some(false) || !shape.appends(tier) || !alone {
            None
        } else {
            self.fresh(&q, &cache)?
        };
        if self.fused == Some(true) && fresh.is_none() && !empty {
            return Err(Error::unsupported(
                "rotation, append and attention in one launch of such tokens; see Decode::fused",
            ));
        }
        let q = if fresh.is_some() {
            q.clone()
        } else {
            self.prepare_tokens(&q)?
        };
        if empty {
            return Ok(Decoded { out, lse });
        }
        if !q.rows_aligned_to(4) {
            return Err(Error::layout("q", "every row must start at a multiple of 4 bytes"));
        }
        let work = Work {
            shape,
            few,
            hopper: tier == 90,
            cache: &cache,
            cache_size: cache_size as u32,
            padded: padded as u32,
            batch,
            tile_rows,
            fresh_tokens: if fresh.is_some() { seq_q as u32 } else { 0 },
        };
        let multiprocessors = u64::from(device.properties().multiprocessors);
        let block_shared = u64::from(device.properties().shared_per_block);
        let division = if boxes.is_some() {
            packed::divide(&work, multiprocessors, |cluster, shared| {
                let entry = format!("decode_packed_pair_{}_d{padded}", q.dtype().name());
                device.clusters_at_once(&entry, cluster, shared)
            })?
        } else {
            work.divide(multiprocessors, block_shared)
        };
        let Division {
            apart,
            blocks,
            all_tiles,
            rows,
            ..
        } = division;
        let partial_rows = if apart { all_tiles * division.splits * rows } else { 0 };
        let partial = AnyTensor::empty(device, DType::F32, &[partial_rows, cache.value_dim])?;
        // And for each tile whether a block has folded it.
        let marks = if apart { all_tiles } else { 0 };
        let statistics = AnyTensor::empty(device, DType::F32, &[partial_rows + marks, 2])?;
        let strides = |t: &AnyTensor| [t.strides()[0], t.strides()[1], t.strides()[2]];
        let address = |t: Option<&AnyTensor>| t.map_or(0, AnyTensor::address);
        let small = |argument, value: u64| {
            let fits = u32::try_from(value).ok().filter(|value| *value < 1 << 30);
            fits.ok_or_else(|| Error::range(argument, value, "below 2^30"))
        };
        let bound = |window: Option<u32>| window.map_or(UNBOUNDED, |tokens| tokens.min(UNBOUNDED - 1));
        let right = if options.causal { Some(0) } else { options.window_right };
        let slopes = options.alibi_slopes;
        let [k_scale, v_scale] = self.cache.factors();
        let mut params = DecodeParams {
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
            k_scale: address(k_scale),
            v_scale: address(v_scale),
            k_new: address(fresh.as_ref().map(|fresh| &fresh.k)),
            v_new: address(fresh.as_ref().map(|fresh| &fresh.v)),
            k_new_strides: fresh.as_ref().map_or([0; 3], |fresh| strides(&fresh.k)),
            v_new_strides: fresh.as_ref().map_or([0; 3], |fresh| strides(&fresh.v)),
            rotation: fresh.as_ref().map_or(Rotation::NONE, |fresh| fresh.rotation),
            q_strides: strides(&q),
            k_steps,
            v_steps,
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
            tiles: small("seq_q · heads_q", division.tiles)?,
            tile_rows: if boxes.is_some() { PACKED_ROWS } else { shape.rows },
            least: division.least,
            most: division.most as u32,
            splits: division.splits as u32,
            fold: division.fold.into(),
            appended: if self.new.is_some() { small("seq_q", seq_q)? } else { 0 },
            capacity: cache.capacity as u32,
            window_left: bound(options.window_left),
            window_right: bound(right),
            scale: options.scale.unwrap_or(1.0 / (dim as f32).sqrt()),
            softcap: options.softcap.unwrap_or(0.0),
            whole: if boxes.is_some() {
                2
            } else {
                u32::from(division.fold || (apart && blocks < 2 * all_tiles && division.each == 0))
            },
            side: division.side as u32,
            cluster: division.cluster as u32,
            together: work.together().into(),
            page_shift: match cache.paging.page_size {
                size if size.is_power_of_two() => size.trailing_zeros(),
                _ => 32,
            },
            bundle: shape.bundle,
            bundled: division.bundled.into(),
            each: division.each as u32,
            narrow: e4m3.into(),
        };
        let new = fresh.as_ref().map(|fresh| [&fresh.k, &fresh.v]);
        let direct = if few && cache_size == 2 && padded <= 128 {
            direct::direct(&params, padded, [multiprocessors, block_shared], &q, new)
        } else {
            None
        };
        let direct = direct.or_else(|| {
            (few && padded <= 128 && division.cluster == 1 && work.together())
                .then(|| direct::line(&params, padded, &division, &q, new, multiprocessors, e4m3))
                .flatten()
        });
        let apart = direct.as_ref().map_or(apart, |direct| direct.apart);
        if apart && direct.is_some() {
            // Its blocks fold what they have all of.
            params.whole = 1;
        }
        let blocks_of_cluster = match boxes {
            Some(_) => packed::blocks_of_cluster(&division),
            None => division.cluster as u32,
        };
        let (grid, shared, cluster) = direct
            .as_ref()
            .map_or(([blocks, 1, 1], division.shared, blocks_of_cluster), |direct| {
                (direct.grid, direct.shared, direct.cluster)
            });
        let dtype = q.dtype().name();
        let entry = format!(
            "decode_{}{}{dtype}_d{padded}",
            match (&direct, few, wide) {
                (Some(direct), ..) => direct.kernel,
                (_, true, _) if division.alone => "alone_",
                (_, true, _) if shape.mapped => "mapped_",
                (_, true, _) => "few_",
                _ if boxes.is_some() => packed::kind(tile_rows, &division),
                (.., true) => "wide_",
                _ => "",
            },
            if e4m3 { "e4m3_" } else { "" }
        );
        let caches = [("k_cache", self.cache.k()), ("v_cache", self.cache.v())];
        let mut contract = Contract::new(device, &entry)
            .grid(grid)
            .shared(shared)
            .cluster(cluster)
            .on(self.stream)
            .programmatic()
            .reads("q", &q)
            .reads("cache_seqlens", self.lengths)
            .reads_if("block_table", self.cache.table())
            .reads_if("batch_index", self.cache.rows())
            .reads_if("left_padding", options.left_padding)
            .reads_if("alibi_slopes", slopes)
            .reads_if("sinks", options.sinks)
            .reads_if("k_scale", k_scale)
            .reads_if("v_scale", v_scale)
            .writes("out", &out)
            .writes("lse", &lse)
            .writes_if("partial", apart.then_some(&partial))
            .writes_if("statistics", apart.then_some(&statistics));
        for (argument, tensor) in caches {
            contract = if fresh.is_some() {
                contract.writes(argument, tensor)
            } else {
                contract.reads(argument, tensor)
            };
        }
        if let Some(fresh) = &fresh {
            contract = contract.reads("k", &fresh.k).reads("v", &fresh.v);
            if let Some((_, angles)) = options.rotary {
                for (argument, tensor) in angles.tensors() {
                    contract = contract.reads_if(argument, tensor);
                }
            }
        }
        let prepared = contract.prepare()?;
        // SAFETY: the argument structs of these kernels; extents and strides are those of the tensors named above.
        unsafe {
            match (&direct, boxes) {
                (Some(direct), _) => prepared.launch(&direct.params)?,
                (None, Some(box_shift)) => {
                    let items = small("batch", all_tiles * division.splits)?;
                    prepared.launch(&packed::params(params, (&self.cache, &cache), box_shift, items)?)?;
                }
                (None, None) if shape.mapped => prepared.launch(&maps::with(params, &self.cache, &cache)?)?,
                (None, None) => prepared.launch(&params)?,
            }
        }
        if apart {
            let beside = if boxes.is_some() && division.bundled {
                "packed_"
            } else {
                ""
            };
            let entry = format!("decode_merge_{beside}{dtype}");
            let contract = Contract::new(device, &entry)
                .grid([
                    (all_tiles * rows * u64::from(quads_of(params.value_dim))).div_ceil(MERGE_THREADS.into()),
                    1,
                    1,
                ])
                .on(self.stream)
                .programmatic()
                .reads("partial", &partial)
                .reads("statistics", &statistics)
                .reads("cache_seqlens", self.lengths)
                .reads_if("left_padding", options.left_padding)
                .reads_if("sinks", options.sinks)
                .reads_if("v_scale", v_scale)
                .writes("out", &out)
                .writes("lse", &lse);
            // SAFETY: as above; the decode kernel before it in the stream has filled the workspace.
            unsafe { contract.prepare()?.launch(&params)? };
        }
        Ok(Decoded { out, lse })
    }
}
