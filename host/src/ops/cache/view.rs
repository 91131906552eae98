//! What a cache looks like to a kernel.

use kernels_gpu::paging::Paging;

use super::{expect_extent, expect_integers};
use crate::{AnyTensor, DType, Error, Result};

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
/// A cache may hold 8-bit floats, [`DType::E4M3`]: what is appended as f32, f16 or bf16 is divided by its head's factor and
/// rounded (±448 at most), and multiplied by it where it is read; see [`CacheView::scales`]. These kernels are those of
/// Hopper. Decode attention takes head dims up to 128 then.
///
/// Kernels trust table entries, slots and row numbers that they use: [`CacheView::validate`] checks what comes from outside.
#[derive(Clone, Copy)]
pub struct CacheView<'a> {
    pub(super) k: &'a AnyTensor,
    pub(super) v: &'a AnyTensor,
    layout: PoolLayout,
    pub(super) table: Option<&'a AnyTensor>,
    pub(super) batch_index: Option<&'a AnyTensor>,
    scales: [Option<&'a AnyTensor>; 2],
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
            scales: [None; 2],
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

    /// Factors of the keys and of the values of each head (f32, `[heads_kv]`) of a cache of [`DType::E4M3`]; 1 unless given.
    pub fn scales(mut self, k: Option<&'a AnyTensor>, v: Option<&'a AnyTensor>) -> Self {
        self.scales = [k, v];
        self
    }

    /// The factors of keys and values.
    pub(crate) fn factors(&self) -> [Option<&'a AnyTensor>; 2] {
        self.scales
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
        for (argument, scales) in [("k_scale", self.scales[0]), ("v_scale", self.scales[1])] {
            let Some(scales) = scales else { continue };
            if self.k.dtype() != DType::E4M3 {
                let problem = format!("belongs to a cache of e4m3, but this one is of {}", self.k.dtype());
                return Err(Error::layout(argument, problem));
            }
            expect_integers(argument, scales, DType::F32, 1)?;
            expect_extent(argument, scales, self.k.extent(head_axis))?;
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
}
