//! Tables, lengths and slots read back and checked, for what comes from outside.

use std::collections::HashMap;

use super::{CacheView, expect_integers};
use crate::{
    AnyTensor, DType, Result,
    kv::{PageId, PoolError},
};

impl CacheView<'_> {
    /// Reads table and lengths back and checks them: that every sequence with `appended` tokens more than
    /// `cache_seqlens` (i32, `[batch]`) fits, that all pages in use are pages, and that no page that is written has a
    /// second holder.
    ///
    /// # Errors
    /// [`Error::Cache`](crate::Error::Cache) naming the first sequence, column and page that is wrong.
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
    /// [`Error::Cache`](crate::Error::Cache) naming the slot.
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
fn to_host<T: bytemuck::Pod>(tensor: &AnyTensor) -> Result<Vec<T>> {
    Ok(bytemuck::allocation::pod_collect_to_vec(&tensor.to_bytes()?))
}
