//! Caches that know their lengths: one row a sequence, or pages from a pool.

use super::{
    cache::{CacheView, PoolLayout, cache_append, copy_pages, tokens_of},
    decode::{DecodeOptions, Decoded, decode},
};
use crate::{
    AnyTensor, DType, Device, Error, Result,
    kv::{BlockTable, Epoch, NewTokens, PagePool, PoolConfig, SequenceId},
};

/// A contiguous cache: `[batch, capacity, heads_kv, dim]` of keys and of values, and the tokens of each sequence.
#[derive(Debug)]
pub struct KvCache {
    k: AnyTensor,
    v: AnyTensor,
    capacity: u64,
    lengths: Vec<u64>,
    device_lengths: AnyTensor,
}

impl KvCache {
    /// An empty cache for `batch` sequences of at most `capacity` tokens.
    ///
    /// # Errors
    /// [`Error::Range`] for a capacity above 2^30 − 1; [`Error::OutOfMemory`].
    pub fn new(device: &Device, dtype: DType, batch: u64, capacity: u64, heads_kv: u64, dim: u64) -> Result<KvCache> {
        if capacity == 0 || capacity >= 1 << 30 {
            return Err(Error::range("capacity", capacity, "1 to 2^30 − 1"));
        }
        let shape = [batch, capacity, heads_kv, dim];
        Ok(KvCache {
            k: AnyTensor::zeros(device, dtype, &shape)?,
            v: AnyTensor::zeros(device, dtype, &shape)?,
            capacity,
            lengths: vec![0; batch as usize],
            device_lengths: AnyTensor::zeros(device, DType::I32, &[batch])?,
        })
    }

    /// Tokens of each sequence.
    pub fn lengths(&self) -> &[u64] {
        &self.lengths
    }

    /// Tokens that a sequence can have.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Sets the tokens of each sequence: 0 to begin anew, fewer to take back, more where a caller has written them.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there is one length a sequence; [`Error::CacheFull`] for one above the capacity. Nothing
    /// changes then.
    pub fn set_lengths(&mut self, lengths: &[u64]) -> Result<()> {
        if lengths.len() != self.lengths.len() {
            let shape = [lengths.len() as u64];
            return Err(Error::shape(
                "lengths",
                &shape,
                format!("{} sequences are cached", self.lengths.len()),
            ));
        }
        self.room(lengths)?;
        let device: Vec<i32> = lengths.iter().map(|&length| length as i32).collect();
        self.device_lengths.write_bytes(bytemuck::cast_slice(&device))?;
        self.lengths.copy_from_slice(lengths);
        Ok(())
    }

    /// The cache as kernels see it.
    pub fn view(&self) -> CacheView<'_> {
        CacheView::contiguous(&self.k, &self.v)
    }

    fn room(&self, lengths: &[u64]) -> Result<()> {
        match lengths.iter().position(|&length| length > self.capacity) {
            Some(sequence) => Err(Error::CacheFull {
                sequence,
                requested: lengths[sequence],
                capacity: self.capacity,
            }),
            None => Ok(()),
        }
    }
}

/// Appends `k [batch, seq, heads_kv, dim]` and `v` at each sequence's own length, then attends with `q`.
///
/// Causal over absolute positions: give `causal` in the options, as every language model does.
///
/// # Errors
/// [`Error::CacheFull`] when a sequence would not fit; those of [`decode`](super::decode()) otherwise. Nothing changes then.
pub fn attention_with_kv_cache(
    q: &AnyTensor,
    k: &AnyTensor,
    v: &AnyTensor,
    cache: &mut KvCache,
    options: DecodeOptions<'_>,
) -> Result<Decoded> {
    let new = tokens_of("k", k)?.extent(1);
    let lengths: Vec<u64> = cache.lengths.iter().map(|length| length.saturating_add(new)).collect();
    cache.room(&lengths)?;
    let decoded = decode(q, cache.view(), &cache.device_lengths)
        .append(k, v)
        .options(options)
        .run()?;
    cache.set_lengths(&lengths)?;
    Ok(decoded)
}

/// Pages of keys and values on the device, for all layers of a model, and the pool that says whose they are.
#[derive(Debug)]
pub struct PagedKvCache {
    layers: Vec<(AnyTensor, AnyTensor)>,
    layout: PoolLayout,
    pool: PagePool,
}

/// Tokens that have been given pages: what one step writes and reads.
#[derive(Debug)]
#[must_use = "the pages are in flight until the step is finished"]
pub struct Step {
    slots: AnyTensor,
    table: AnyTensor,
    lengths: AnyTensor,
    host_table: BlockTable,
    epoch: Epoch,
}

impl Step {
    /// Slot of each new token, i64, sequence after sequence.
    pub fn slots(&self) -> &AnyTensor {
        &self.slots
    }

    /// Pages of each sequence, `[batch, columns]` i32.
    pub fn block_table(&self) -> &AnyTensor {
        &self.table
    }

    /// Tokens of each sequence, the new ones included, i32.
    pub fn cache_seqlens(&self) -> &AnyTensor {
        &self.lengths
    }

    /// Table and lengths on the host.
    pub fn host_table(&self) -> &BlockTable {
        &self.host_table
    }
}

impl PagedKvCache {
    /// An empty cache of `layers` layers.
    ///
    /// # Errors
    /// [`Error::Cache`] for a pool that cannot be; [`Error::OutOfMemory`].
    pub fn new(
        device: &Device,
        dtype: DType,
        layout: PoolLayout,
        config: PoolConfig,
        layers: usize,
        heads_kv: u64,
        dim: u64,
    ) -> Result<PagedKvCache> {
        let (pages, page_size) = (config.pages as u64, config.page_size as u64);
        let pool = PagePool::new(config)?;
        let shape = match layout {
            PoolLayout::Nhd => [pages, page_size, heads_kv, dim],
            PoolLayout::Hnd => [pages, heads_kv, page_size, dim],
        };
        let tensor = || AnyTensor::zeros(device, dtype, &shape);
        let layers = (0..layers).map(|_| Ok((tensor()?, tensor()?))).collect::<Result<_>>()?;
        Ok(PagedKvCache { layers, layout, pool })
    }

    /// The pool: lengths, tables, statistics.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// The pool, to create, fork, truncate and free sequences. Appending is [`PagedKvCache::append`]'s.
    pub fn pool_mut(&mut self) -> &mut PagePool {
        &mut self.pool
    }

    /// Keys and values of a layer.
    ///
    /// # Errors
    /// [`Error::Range`] for a layer that there is not.
    pub fn layer(&self, layer: usize) -> Result<(&AnyTensor, &AnyTensor)> {
        let pools = self.layers.get(layer).map(|(k, v)| (k, v));
        pools.ok_or_else(|| Error::range("layer", layer, format!("below {}", self.layers.len())))
    }

    /// Makes room for new tokens of each sequence and copies shared pages that they begin to fill.
    ///
    /// All or nothing: when one sequence finds no page, none has grown.
    ///
    /// # Errors
    /// [`Error::Cache`]; [`Error::OutOfMemory`]. Nothing changes then.
    pub fn append(&mut self, batch: &[(SequenceId, NewTokens<'_>)]) -> Result<Step> {
        let before = self.pool.clone();
        let step = self.try_append(batch);
        if step.is_err() {
            self.pool = before;
        }
        step
    }

    fn try_append(&mut self, batch: &[(SequenceId, NewTokens<'_>)]) -> Result<Step> {
        let (mut slots, mut copies): (Vec<i64>, Vec<_>) = (Vec::new(), Vec::new());
        for &(sequence, tokens) in batch {
            let plan = self.pool.append(sequence, tokens)?;
            slots.extend_from_slice(plan.slot_mapping());
            copies.extend(plan.copies);
        }
        let sequences: Vec<SequenceId> = batch.iter().map(|(sequence, _)| *sequence).collect();
        let host_table = self.pool.block_table(&sequences, None)?;
        let (first, _) = self.layer(0)?;
        let device = first.device().clone();
        let integers = |values: &[i32], shape: &[u64]| {
            AnyTensor::from_bytes(&device, DType::I32, shape, bytemuck::cast_slice(values))
        };
        let rows = host_table.rows() as u64;
        let step = Step {
            slots: AnyTensor::from_bytes(&device, DType::I64, &[slots.len() as u64], bytemuck::cast_slice(&slots))?,
            table: integers(host_table.pages(), &[rows, host_table.columns() as u64])?,
            lengths: integers(host_table.lengths(), &[rows])?,
            host_table,
            epoch: self.pool.begin_launch(),
        };
        for (k, v) in &self.layers {
            copy_pages(k, v, &copies)?;
        }
        Ok(step)
    }

    /// Writes keys and values of the step's new tokens, `[tokens, heads_kv, dim]` each, into a layer.
    ///
    /// # Errors
    /// Those of [`cache_append`](super::cache_append()).
    pub fn write(&self, layer: usize, step: &Step, k: &AnyTensor, v: &AnyTensor) -> Result<()> {
        cache_append(k, v, self.view(layer, step)?, &step.slots)
    }

    /// Attends with the step's new tokens, `q [batch, seq_q, heads_q, dim]`, to all tokens of their sequences.
    ///
    /// # Errors
    /// Those of [`decode`](super::decode()).
    pub fn attend(&self, layer: usize, step: &Step, q: &AnyTensor, options: DecodeOptions<'_>) -> Result<Decoded> {
        decode(q, self.view(layer, step)?, &step.lengths).options(options).run()
    }

    /// A layer as kernels see it during a step.
    ///
    /// # Errors
    /// [`Error::Range`] for a layer that there is not.
    pub fn view<'a>(&'a self, layer: usize, step: &'a Step) -> Result<CacheView<'a>> {
        let (k, v) = self.layer(layer)?;
        Ok(CacheView::paged(k, v, &step.table).layout(self.layout))
    }

    /// The step's launches are in the main stream, and so will be whatever writes its pages next: they may be reused.
    ///
    /// # Errors
    /// [`Error::Cache`] when the step belongs to another cache.
    pub fn finish(&mut self, step: Step) -> Result<()> {
        Ok(self.pool.complete(step.epoch)?)
    }
}
