//! Key/value caches on the device: what one looks like to a kernel, appending, reading back, copying pages.

use std::collections::HashMap;

use kernels_gpu::{
    cache::{CacheMoveParams, CopyPagesParams, THREADS},
    paging::Paging,
};

use crate::{
    AnyTensor, DType, Device, Error, Result,
    kv::{PageId, PoolError},
    launch::Contract,
    stream::Stream,
};

/// Order of a pool's axes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PoolLayout {
    /// `[pages, page_size, heads_kv, dim]`: flash-attn's and vLLM's.
    #[default]
    Nhd,
    /// `[pages, heads_kv, page_size, dim]`: the slots of a head lie together.
    Hnd,
}

/// Keys and values of many sequences, and how tokens are found in them.
///
/// A paged cache has a block table `[batch, columns]` (i32): token `t` of sequence `i` is in page `table[i, t / page_size]`.
/// Without a table the cache is contiguous, `[rows, capacity, heads_kv, dim]`, and sequence `i` is row `i`, or row
/// `batch_index[i]`: a paged cache whose pages are whole rows.
///
/// Kernels trust table entries, slots and row numbers that they use: [`CacheView::validate`] checks what comes from outside.
#[derive(Clone, Copy)]
pub struct CacheView<'a> {
    k: &'a AnyTensor,
    v: &'a AnyTensor,
    layout: PoolLayout,
    table: Option<&'a AnyTensor>,
    batch_index: Option<&'a AnyTensor>,
}

/// A cache whose tensors fit together.
pub(crate) struct CheckedCache {
    pub(crate) paging: Paging,
    pub(crate) heads: u64,
    pub(crate) head_dim: u64,
    pub(crate) value_dim: u64,
    /// Strides of keys and values: page, slot, head.
    pub(crate) strides: [[u64; 3]; 2],
    /// Tokens that a sequence can have.
    pub(crate) capacity: u64,
}

impl<'a> CacheView<'a> {
    /// A cache `[rows, capacity, heads_kv, dim]`.
    pub fn contiguous(k: &'a AnyTensor, v: &'a AnyTensor) -> Self {
        CacheView {
            k,
            v,
            layout: PoolLayout::Nhd,
            table: None,
            batch_index: None,
        }
    }

    /// A pool of pages and the pages of each sequence.
    pub fn paged(k: &'a AnyTensor, v: &'a AnyTensor, block_table: &'a AnyTensor) -> Self {
        CacheView {
            table: Some(block_table),
            ..CacheView::contiguous(k, v)
        }
    }

    /// With this order of axes.
    pub fn layout(mut self, layout: PoolLayout) -> Self {
        self.layout = layout;
        self
    }

    /// Sequence `i` is row `index[i]` (i32) of a contiguous cache.
    pub fn batch_index(mut self, index: &'a AnyTensor) -> Self {
        self.batch_index = Some(index);
        self
    }

    /// The keys.
    pub fn k(&self) -> &'a AnyTensor {
        self.k
    }

    /// The values.
    pub fn v(&self) -> &'a AnyTensor {
        self.v
    }

    pub(crate) fn table(&self) -> Option<&'a AnyTensor> {
        self.table
    }

    pub(crate) fn rows(&self) -> Option<&'a AnyTensor> {
        self.batch_index
    }

    /// Checks shapes and dtypes, for a launch over `batch` sequences (`None`: by slots only).
    pub(crate) fn check(&self, batch: Option<u64>) -> Result<CheckedCache> {
        let (slot_axis, head_axis) = match self.layout {
            PoolLayout::Nhd => (1, 2),
            PoolLayout::Hnd => (2, 1),
        };
        for (argument, cache) in [("k_cache", self.k), ("v_cache", self.v)] {
            if cache.rank() != 4 {
                return Err(Error::shape(
                    argument,
                    cache.shape(),
                    "four axes are needed: [pages, page_size, heads_kv, dim]",
                ));
            }
            if !matches!(cache.dtype(), DType::F32 | DType::F16 | DType::BF16 | DType::E4M3) {
                return Err(Error::Dtype {
                    argument,
                    dtype: cache.dtype(),
                    allowed: "f32, f16, bf16 or e4m3".into(),
                });
            }
            if cache.extent(3) > 1 && cache.strides()[3] != 1 {
                return Err(Error::layout(argument, "the last axis must be dense"));
            }
        }
        if self.k.dtype() != self.v.dtype() {
            let allowed = format!("the dtype of k_cache, {}, is needed", self.k.dtype());
            return Err(Error::Dtype {
                argument: "v_cache",
                dtype: self.v.dtype(),
                allowed,
            });
        }
        if self.k.shape()[..3] != self.v.shape()[..3] {
            let allowed = format!("all axes but the last must be those of k_cache, {:?}", self.k.shape());
            return Err(Error::shape("v_cache", self.v.shape(), allowed));
        }
        let (pages, page_size) = (self.k.extent(0), self.k.extent(slot_axis));
        for (argument, value) in [("pages of the cache", pages), ("slots of a page", page_size)] {
            if value > i32::MAX as u64 >> 1 {
                return Err(Error::range(argument, value, "at most 2^30 − 1"));
            }
        }
        if page_size == 0 {
            return Err(Error::shape(
                "k_cache",
                self.k.shape(),
                "a page needs at least one slot",
            ));
        }
        let mut capacity = page_size;
        if let Some(table) = self.table {
            if self.batch_index.is_some() {
                return Err(Error::layout(
                    "batch_index",
                    "belongs to a contiguous cache, but there is a block table",
                ));
            }
            expect_integers("block_table", table, DType::I32, 2)?;
            if batch.is_some_and(|batch| table.extent(0) != batch) {
                let allowed = format!("one row for each of the {} sequences", batch.unwrap_or(0));
                return Err(Error::shape("block_table", table.shape(), allowed));
            }
            if table.extent(1) > 1 && table.strides()[1] != 1 {
                return Err(Error::layout("block_table", "the last axis must be dense"));
            }
            capacity = table.extent(1) * page_size;
        } else if let Some(batch) = batch {
            match self.batch_index {
                Some(index) => {
                    expect_integers("batch_index", index, DType::I32, 1)?;
                    expect_extent("batch_index", index, batch)?;
                }
                None if pages < batch => {
                    let allowed = format!("a row for each of the {batch} sequences");
                    return Err(Error::shape("k_cache", self.k.shape(), allowed));
                }
                None => {}
            }
        }
        let strides = |cache: &AnyTensor| {
            [
                cache.strides()[0],
                cache.strides()[slot_axis],
                cache.strides()[head_axis],
            ]
        };
        Ok(CheckedCache {
            paging: Paging {
                table: self.table.map_or(0, AnyTensor::address),
                table_stride: self.table.map_or(0, |table| table.strides()[0]),
                batch_index: self.batch_index.map_or(0, AnyTensor::address),
                page_size: page_size as u32,
                pages: pages as u32,
            },
            heads: self.k.extent(head_axis),
            head_dim: self.k.extent(3),
            value_dim: self.v.extent(3),
            strides: [strides(self.k), strides(self.v)],
            capacity: capacity.min(1 << 30),
        })
    }

    /// Reads table and lengths back and checks them: that every sequence with `appended` tokens more than
    /// `cache_seqlens` (i32, `[batch]`) fits, that all pages in use are pages, and that no page that is written has a
    /// second holder.
    ///
    /// # Errors
    /// [`Error::Cache`] naming the first sequence, column and page that is wrong.
    pub fn validate(&self, cache_seqlens: &AnyTensor, appended: u64) -> Result<()> {
        expect_integers("cache_seqlens", cache_seqlens, DType::I32, 1)?;
        let lengths: Vec<i32> = to_host(cache_seqlens)?;
        let cache = self.check(Some(lengths.len() as u64))?;
        let pages = cache.paging.pages as usize;
        let table: Vec<i32> = self.table.map(to_host).transpose()?.unwrap_or_default();
        let columns = self.table.map_or(0, |table| table.extent(1) as usize);
        let page_size = cache.paging.page_size as usize;
        let rows: Option<Vec<i32>> = self.batch_index.map(to_host).transpose()?;
        let mut written: HashMap<i32, usize> = HashMap::new();
        let mut held: Vec<(i32, usize)> = Vec::new();
        for (row, &before) in lengths.iter().enumerate() {
            let Ok(start) = usize::try_from(before) else {
                let allowed = "0 or more";
                return Err(PoolError::Argument {
                    argument: "cache_seqlens",
                    value: before.into(),
                    allowed,
                }
                .into());
            };
            let length = start.saturating_add(appended as usize);
            if length > cache.capacity as usize {
                return Err(match self.table {
                    Some(_) => PoolError::TableTooNarrow {
                        row,
                        needed_columns: length.div_ceil(page_size),
                        columns,
                    },
                    None => PoolError::LengthOverCapacity {
                        requested_tokens: length,
                        capacity_tokens: cache.capacity as usize,
                    },
                }
                .into());
            }
            let used: Vec<i32> = match (&rows, self.table) {
                (_, Some(_)) => table[row * columns..][..length.div_ceil(page_size)].to_vec(),
                (Some(rows), None) => vec![rows[row]],
                (None, None) => vec![row as i32],
            };
            for (column, &page) in used.iter().enumerate() {
                if page < 0 || page as usize >= pages {
                    return Err(PoolError::PageOutOfRange {
                        row,
                        column,
                        page: page.into(),
                        pages,
                    }
                    .into());
                }
                held.push((page, row));
            }
            if appended > 0 {
                let first = if self.table.is_some() { start / page_size } else { 0 };
                written.extend(used[first.min(used.len())..].iter().map(|&page| (page, row)));
            }
        }
        let mut holders: HashMap<i32, usize> = HashMap::new();
        for (page, row) in held {
            if let (Some(&writer), Some(other)) = (written.get(&page), holders.insert(page, row)) {
                let other_row = if other == writer { row } else { other };
                let page = PageId::new(page as u32).unwrap_or(PageId::NULL);
                return Err(PoolError::OverlappingPages {
                    page,
                    row: writer,
                    other_row,
                }
                .into());
            }
        }
        Ok(())
    }

    /// Reads a slot mapping back and checks it: every slot is negative (skipped) or in the cache, and none comes twice.
    ///
    /// # Errors
    /// [`Error::Cache`] naming the slot.
    pub fn validate_slots(&self, slots: &AnyTensor) -> Result<()> {
        expect_integers("slots", slots, DType::I64, 1)?;
        let cache = self.check(None)?;
        let end = cache.paging.page_size as i64 * cache.paging.pages as i64;
        let mut seen = HashMap::new();
        for (index, slot) in to_host::<i64>(slots)?
            .into_iter()
            .enumerate()
            .filter(|(_, slot)| *slot >= 0)
        {
            if slot >= end {
                return Err(PoolError::SlotOutOfRange {
                    index,
                    slot,
                    first: 0,
                    end,
                }
                .into());
            }
            if let Some(other_index) = seen.insert(slot, index) {
                return Err(PoolError::DuplicateSlot {
                    index,
                    other_index,
                    slot,
                }
                .into());
            }
        }
        Ok(())
    }
}

/// Content of an integer tensor.
pub(crate) fn to_host<T: bytemuck::Pod>(tensor: &AnyTensor) -> Result<Vec<T>> {
    Ok(bytemuck::allocation::pod_collect_to_vec(&tensor.to_bytes()?))
}

/// Refuses other dtypes and ranks.
pub(crate) fn expect_integers(argument: &'static str, tensor: &AnyTensor, dtype: DType, rank: usize) -> Result<()> {
    if tensor.dtype() != dtype {
        return Err(Error::Dtype {
            argument,
            dtype: tensor.dtype(),
            allowed: format!("{dtype} is needed"),
        });
    }
    if tensor.rank() != rank {
        return Err(Error::shape(
            argument,
            tensor.shape(),
            format!("{rank} axes are needed"),
        ));
    }
    if rank == 1 && !tensor.is_contiguous() {
        return Err(Error::layout(argument, "must be dense"));
    }
    Ok(())
}

/// Refuses another number of entries.
pub(crate) fn expect_extent(argument: &'static str, tensor: &AnyTensor, extent: u64) -> Result<()> {
    if tensor.extent(0) != extent {
        return Err(Error::shape(
            argument,
            tensor.shape(),
            format!("{extent} entries are needed"),
        ));
    }
    Ok(())
}

/// New keys or values as `[batch, seq, heads, dim]`; `[tokens, heads, dim]` is one sequence.
pub(crate) fn tokens_of(argument: &'static str, tensor: &AnyTensor) -> Result<AnyTensor> {
    match *tensor.shape() {
        [_, _, _, _] => Ok(tensor.clone()),
        [tokens, heads, dim] => tensor.reshape(&[1, tokens, heads, dim]),
        _ => Err(Error::shape(
            argument,
            tensor.shape(),
            "[tokens, heads, dim] or [batch, seq, heads, dim] is needed",
        )),
    }
}

/// Refuses new tokens that do not fit the cache; they are rank 4.
pub(crate) fn expect_tokens(
    argument: &'static str,
    tokens: &AnyTensor,
    cache: (&'static str, &AnyTensor),
    heads: u64,
    dim: u64,
) -> Result<()> {
    if tokens.dtype() != cache.1.dtype() {
        let allowed = format!("the dtype of {}, {}, is needed", cache.0, cache.1.dtype());
        return Err(Error::Dtype {
            argument,
            dtype: tokens.dtype(),
            allowed,
        });
    }
    if tokens.extent(2) != heads || tokens.extent(3) != dim {
        let allowed = format!("{heads} heads of {dim} elements are needed, as in {}", cache.0);
        return Err(Error::shape(argument, tokens.shape(), allowed));
    }
    if dim > 1 && tokens.strides()[3] != 1 {
        return Err(Error::layout(argument, "the last axis must be dense"));
    }
    Ok(())
}

/// Where tokens go or come from.
enum Places<'a> {
    Slots(&'a AnyTensor),
    Lengths(&'a AnyTensor),
}

/// Writes keys and values of `k [tokens, heads_kv, dim]` and `v` to the slots of a cache, bit for bit.
///
/// `slots` (i64, one a token) are `page · page_size + offset`; tokens with a negative slot, or one beyond the cache, are
/// skipped. Two tokens must not have the same slot: see [`CacheView::validate_slots`].
///
/// # Errors
/// [`Error::Shape`], [`Error::Dtype`], [`Error::Layout`] naming the argument.
pub fn cache_append(k: &AnyTensor, v: &AnyTensor, cache: CacheView<'_>, slots: &AnyTensor) -> Result<()> {
    expect_integers("slots", slots, DType::I64, 1)?;
    move_tokens(k, v, cache, Places::Slots(slots), false, None)
}

/// Writes `k [batch, seq, heads_kv, dim]` and `v` behind the first `cache_seqlens[i]` tokens of each sequence.
///
/// Tokens beyond the capacity are not written: see [`CacheView::validate`].
///
/// # Errors
/// [`Error::Shape`], [`Error::Dtype`], [`Error::Layout`] naming the argument.
pub fn cache_append_at(k: &AnyTensor, v: &AnyTensor, cache: CacheView<'_>, cache_seqlens: &AnyTensor) -> Result<()> {
    cache_append_in(k, v, cache, cache_seqlens, None)
}

/// [`cache_append_at`] in a stream; the main one unless given.
pub(crate) fn cache_append_in(
    k: &AnyTensor,
    v: &AnyTensor,
    cache: CacheView<'_>,
    cache_seqlens: &AnyTensor,
    stream: Option<&Stream>,
) -> Result<()> {
    expect_integers("cache_seqlens", cache_seqlens, DType::I32, 1)?;
    move_tokens(k, v, cache, Places::Lengths(cache_seqlens), false, stream)
}

/// Reads the first `cache_seqlens[i]` tokens of each sequence as `[batch, longest, heads_kv, dim]`, zeros behind them.
///
/// # Errors
/// [`Error::Shape`], [`Error::Dtype`], [`Error::Layout`] naming the argument; [`Error::OutOfMemory`].
pub fn cache_read(cache: CacheView<'_>, cache_seqlens: &AnyTensor, longest: u64) -> Result<(AnyTensor, AnyTensor)> {
    expect_integers("cache_seqlens", cache_seqlens, DType::I32, 1)?;
    let checked = cache.check(Some(cache_seqlens.extent(0)))?;
    let shape = |dim| [cache_seqlens.extent(0), longest, checked.heads, dim];
    let k = AnyTensor::empty(cache.k.device(), cache.k.dtype(), &shape(checked.head_dim))?;
    let v = AnyTensor::empty(cache.k.device(), cache.v.dtype(), &shape(checked.value_dim))?;
    move_tokens(&k, &v, cache, Places::Lengths(cache_seqlens), true, None)?;
    Ok((k, v))
}

fn move_tokens(
    k: &AnyTensor,
    v: &AnyTensor,
    cache: CacheView<'_>,
    places: Places<'_>,
    read: bool,
    stream: Option<&Stream>,
) -> Result<()> {
    let (k, v) = (tokens_of("k", k)?, tokens_of("v", v)?);
    let by_length = matches!(places, Places::Lengths(_));
    let checked = cache.check(by_length.then(|| k.extent(0)))?;
    expect_tokens("k", &k, ("k_cache", cache.k), checked.heads, checked.head_dim)?;
    expect_tokens("v", &v, ("v_cache", cache.v), checked.heads, checked.value_dim)?;
    if k.shape()[..2] != v.shape()[..2] {
        return Err(Error::shape(
            "v",
            v.shape(),
            format!("as many tokens as k, {:?}, are needed", k.shape()),
        ));
    }
    let tokens = k.extent(0) * k.extent(1);
    match places {
        Places::Slots(slots) => expect_extent("slots", slots, tokens)?,
        Places::Lengths(lengths) => expect_extent("cache_seqlens", lengths, k.extent(0))?,
    }
    let dims = [checked.head_dim, checked.value_dim];
    if tokens == 0 || checked.heads == 0 || dims == [0, 0] {
        return Ok(());
    }
    let size = k.dtype().size();
    let strides = |t: &AnyTensor| [t.strides()[0], t.strides()[1], t.strides()[2]];
    let tensor_strides = [strides(&k), strides(&v)];
    let addresses = [k.address(), v.address(), cache.k.address(), cache.v.address()];
    let steps = tensor_strides.iter().chain(&checked.strides).flatten().chain(&dims);
    // The widest unit that all rows start and end at a multiple of.
    let unit = [16, 4, 2, 1].into_iter().find(|unit| {
        addresses.iter().all(|address| address.is_multiple_of(*unit))
            && steps.clone().all(|step| (step * size).is_multiple_of(*unit))
    });
    let unit = unit.unwrap_or(1);
    let scale = |strides: [u64; 3]| strides.map(|stride| stride * size / unit);
    let (slots, lengths) = match places {
        Places::Slots(slots) => (Some(slots), None),
        Places::Lengths(lengths) => (None, Some(lengths)),
    };
    let params = CacheMoveParams {
        paging: checked.paging,
        tensors: [k.address(), v.address()],
        caches: [cache.k.address(), cache.v.address()],
        tensor_strides: tensor_strides.map(scale),
        cache_strides: checked.strides.map(scale),
        slots: slots.map_or(0, AnyTensor::address),
        lengths: lengths.map_or(0, AnyTensor::address),
        tokens,
        capacity: checked.capacity,
        seq: u32::try_from(k.extent(1)).map_err(|_| Error::range("tokens", k.extent(1), "below 2^32"))?,
        heads: checked.heads as u32,
        rows: dims.map(|dim| (dim * size / unit) as u32),
    };
    let entry = format!("cache_{}_b{unit}", if read { "read" } else { "append" });
    let units = tokens * checked.heads * u64::from(params.rows[0].max(params.rows[1]));
    let mut contract = Contract::new(k.device(), &entry)
        .grid([blocks(k.device(), units), 1, 1])
        .on(stream)
        .reads_if("slots", slots)
        .reads_if("cache_seqlens", lengths)
        .reads_if("block_table", cache.table)
        .reads_if("batch_index", cache.batch_index);
    let (tensors, caches) = ([("k", &k), ("v", &v)], [("k_cache", cache.k), ("v_cache", cache.v)]);
    for ((name, tensor), (cache_name, cache)) in tensors.into_iter().zip(caches) {
        contract = match read {
            true => contract.reads(cache_name, cache).writes(name, tensor),
            false => contract.reads(name, tensor).writes(cache_name, cache),
        };
    }
    // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
    unsafe { contract.prepare()?.launch(&params) }
}

/// Blocks for a grid-stride loop over `units`.
fn blocks(device: &Device, units: u64) -> u64 {
    let resident = u64::from(device.properties().multiprocessors) * 16;
    units.div_ceil(u64::from(THREADS)).clamp(1, resident)
}

/// Copies whole pages within a pool, source to destination, all at once. No page may be a destination twice, nor a source
/// and a destination.
///
/// # Errors
/// [`Error::Cache`] for pages outside the pool or pairs that overlap; [`Error::Layout`] unless the pools are dense.
pub fn copy_pages(k_cache: &AnyTensor, v_cache: &AnyTensor, copies: &[(PageId, PageId)]) -> Result<()> {
    move_pages(k_cache, v_cache, copies, false)
}

/// Exchanges the contents of pairs of pages within a pool; no page may be in two pairs.
///
/// # Errors
/// As for [`copy_pages`].
pub fn swap_pages(k_cache: &AnyTensor, v_cache: &AnyTensor, pairs: &[(PageId, PageId)]) -> Result<()> {
    move_pages(k_cache, v_cache, pairs, true)
}

fn move_pages(k_cache: &AnyTensor, v_cache: &AnyTensor, pairs: &[(PageId, PageId)], swap: bool) -> Result<()> {
    for (argument, pool) in [("k_cache", k_cache), ("v_cache", v_cache)] {
        if !pool.is_contiguous() {
            return Err(Error::layout(argument, "must be dense to move whole pages"));
        }
    }
    if k_cache.extent(0) != v_cache.extent(0) {
        let allowed = format!("as many pages as k_cache, {}, are needed", k_cache.extent(0));
        return Err(Error::shape("v_cache", v_cache.shape(), allowed));
    }
    let pages = k_cache.extent(0) as usize;
    let mut written = HashMap::new();
    for (row, &(from, to)) in pairs.iter().enumerate() {
        for (column, page) in [from, to].into_iter().enumerate() {
            if page.index() >= pages {
                return Err(PoolError::PageOutOfRange {
                    row,
                    column,
                    page: page.index() as i64,
                    pages,
                }
                .into());
            }
        }
        for page in if swap { vec![from, to] } else { vec![to] } {
            if let Some(other_row) = written.insert(page, row) {
                return Err(PoolError::OverlappingPages { page, row, other_row }.into());
            }
        }
    }
    for (other_row, (from, _)) in pairs.iter().enumerate() {
        if let (false, Some(&row)) = (swap, written.get(from)) {
            return Err(PoolError::OverlappingPages {
                page: *from,
                row,
                other_row,
            }
            .into());
        }
    }
    let units = |pool: &AnyTensor| pool.elements() / pool.extent(0).max(1) * pool.dtype().size();
    let bytes = [units(k_cache), units(v_cache)];
    if pairs.is_empty() || bytes == [0, 0] {
        return Ok(());
    }
    let flat: Vec<i32> = pairs
        .iter()
        .flat_map(|(from, to)| [from.as_i32(), to.as_i32()])
        .collect();
    let device = k_cache.device();
    let list = AnyTensor::from_bytes(
        device,
        DType::I32,
        &[pairs.len() as u64, 2],
        bytemuck::cast_slice(&flat),
    )?;
    let fits = |unit: &u64| {
        bytes
            .iter()
            .chain(&[k_cache.address(), v_cache.address()])
            .all(|value| value.is_multiple_of(*unit))
    };
    let unit = [16, 4, 2, 1].into_iter().find(fits).unwrap_or(1);
    let params = CopyPagesParams {
        pools: [k_cache.address(), v_cache.address()],
        page_units: bytes.map(|bytes| bytes / unit),
        pairs: list.address(),
        count: pairs.len() as u64,
        pages: pages as u64,
        swap: u64::from(swap),
    };
    let entry = format!("cache_copy_pages_b{unit}");
    let launch = Contract::new(device, &entry)
        .grid([
            blocks(device, params.count * params.page_units[0].max(params.page_units[1])),
            1,
            1,
        ])
        .reads("pairs", &list)
        .writes("k_cache", k_cache)
        .writes("v_cache", v_cache)
        .prepare()?;
    // SAFETY: the argument struct of these kernels; the pairs are in range and disjoint.
    unsafe { launch.launch(&params) }
}
