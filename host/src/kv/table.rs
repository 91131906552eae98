//! Padded block tables: which page holds which part of each row of a batch.

use std::collections::HashMap;

use super::config::check_page_size;
use super::{CsrTable, PageId, PoolError, SlotId};

/// A batch's block table, `[rows, columns]` i32 padded with the null page, and its lengths, `[rows]` i32.
///
/// The layout of flash-attn and vLLM (`block_table`, `cache_seqlens`). A value of this type is well-formed: no
/// length is negative or beyond the row, and every entry in use names a page (not the null page).
/// [`BlockTable::check_pages`] and [`BlockTable::check_writes`] hold it against a particular cache and launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockTable {
    page_size: usize,
    columns: usize,
    pages: Vec<i32>,
    lengths: Vec<i32>,
}

impl BlockTable {
    /// A table from outside, such as one made by another framework. Entries beyond a row's length are replaced by
    /// the null page.
    ///
    /// # Errors
    /// [`PoolError::Argument`] for a bad page size or a negative length; [`PoolError::Entries`] unless `pages` has
    /// `lengths.len() * columns` entries; [`PoolError::TableTooNarrow`] if a length needs more columns;
    /// [`PoolError::PageOutOfRange`] if an entry in use is not a page.
    pub fn from_parts(
        page_size: usize,
        columns: usize,
        mut pages: Vec<i32>,
        lengths: Vec<i32>,
    ) -> Result<BlockTable, PoolError> {
        check_page_size(page_size)?;
        let expected = lengths.len().saturating_mul(columns);
        if pages.len() != expected {
            return Err(PoolError::Entries {
                argument: "block_table",
                length: pages.len(),
                expected,
            });
        }
        for (row, &length) in lengths.iter().enumerate() {
            let used = used_columns(length, page_size)?;
            if used > columns {
                return Err(PoolError::TableTooNarrow {
                    row,
                    needed_columns: used,
                    columns,
                });
            }
            let entries = &mut pages[row * columns..(row + 1) * columns];
            entries[used..].fill(PageId::NULL.as_i32());
            if let Some(column) = entries[..used].iter().position(|&page| page <= 0) {
                let page = i64::from(entries[column]);
                return Err(PoolError::PageOutOfRange {
                    row,
                    column,
                    page,
                    pages: i32::MAX as usize,
                });
            }
        }
        Ok(BlockTable {
            page_size,
            columns,
            pages,
            lengths,
        })
    }

    /// A table of a pool's rows: pages and length of each.
    pub(super) fn from_rows(
        page_size: usize,
        columns: Option<usize>,
        rows: Vec<(&[PageId], usize)>,
    ) -> Result<BlockTable, PoolError> {
        let widest = rows.iter().map(|(pages, _)| pages.len()).max().unwrap_or(0);
        let columns = columns.unwrap_or(widest);
        if let Some(row) = rows.iter().position(|(pages, _)| pages.len() > columns) {
            return Err(PoolError::TableTooNarrow {
                row,
                needed_columns: rows[row].0.len(),
                columns,
            });
        }
        let mut pages = vec![PageId::NULL.as_i32(); rows.len().saturating_mul(columns)];
        for (row, (table, _)) in rows.iter().enumerate() {
            for (entry, page) in pages[row * columns..].iter_mut().zip(table.iter()) {
                *entry = page.as_i32();
            }
        }
        // A pool's lengths are at most i32::MAX.
        let lengths = rows.iter().map(|&(_, length)| length as i32).collect();
        Ok(BlockTable {
            page_size,
            columns,
            pages,
            lengths,
        })
    }

    /// Token slots per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Rows: sequences of the batch.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Columns: most pages that a row can name.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The entries, `[rows, columns]` row-major, ready for the device.
    pub fn pages(&self) -> &[i32] {
        &self.pages
    }

    /// Tokens of each row, `[rows]`, ready for the device.
    pub fn lengths(&self) -> &[i32] {
        &self.lengths
    }

    /// The entries of a row that are in use; empty for a row outside the table.
    pub fn row(&self, row: usize) -> &[i32] {
        let used = self
            .lengths
            .get(row)
            .map_or(0, |&length| (length as usize).div_ceil(self.page_size));
        let start = row.saturating_mul(self.columns);
        self.pages.get(start..start + used).unwrap_or(&[])
    }

    /// Checks that every entry in use names a page of a cache of `pages` pages (the null page included).
    ///
    /// # Errors
    /// [`PoolError::PageOutOfRange`].
    pub fn check_pages(&self, pages: usize) -> Result<(), PoolError> {
        for row in 0..self.rows() {
            if let Some(column) = self.row(row).iter().position(|&page| page as usize >= pages) {
                let page = i64::from(self.row(row)[column]);
                return Err(PoolError::PageOutOfRange {
                    row,
                    column,
                    page,
                    pages,
                });
            }
        }
        Ok(())
    }

    /// The slots of the last `new[row]` tokens of each row, concatenated: where a launch writes them.
    ///
    /// The lengths of the table include the new tokens. Checks that every page written is held once in the whole
    /// table: full pages may be shared, but a shared page must be copied before it is written.
    ///
    /// # Errors
    /// [`PoolError::Entries`] unless there is one count per row; [`PoolError::LengthOverCapacity`] if a count is
    /// above its row's length; [`PoolError::OverlappingPages`] if a page written is also held elsewhere.
    pub fn check_writes(&self, new: &[usize]) -> Result<Vec<SlotId>, PoolError> {
        if new.len() != self.rows() {
            return Err(PoolError::Entries {
                argument: "new tokens",
                length: new.len(),
                expected: self.rows(),
            });
        }
        let mut total = 0;
        let mut writers: HashMap<i32, usize> = HashMap::new();
        for (row, &count) in new.iter().enumerate() {
            let length = self.lengths[row] as usize;
            let Some(start) = length.checked_sub(count) else {
                return Err(PoolError::LengthOverCapacity {
                    requested_tokens: count,
                    capacity_tokens: length,
                });
            };
            total += count;
            if count > 0 {
                writers.extend(self.row(row)[start / self.page_size..].iter().map(|&page| (page, row)));
            }
        }
        let mut holders: HashMap<i32, usize> = HashMap::new();
        for other_row in 0..self.rows() {
            for page in self.row(other_row) {
                let Some(&row) = writers.get(page) else { continue };
                if let Some(first) = holders.insert(*page, other_row) {
                    let other_row = if first == row { other_row } else { first };
                    return Err(PoolError::OverlappingPages {
                        page: PageId::of_pool(*page as usize),
                        row,
                        other_row,
                    });
                }
            }
        }
        let mut slots = Vec::with_capacity(total);
        for (row, &count) in new.iter().enumerate() {
            let (length, pages) = (self.lengths[row] as usize, self.row(row));
            slots.extend((length - count..length).map(|position| {
                let page = PageId::of_pool(pages[position / self.page_size] as usize);
                SlotId::new(page, position % self.page_size, self.page_size)
            }));
        }
        Ok(slots)
    }

    /// The same table as CSR.
    ///
    /// # Errors
    /// [`PoolError::Argument`] if the rows have more than `i32::MAX` pages in all.
    pub fn to_csr(&self) -> Result<CsrTable, PoolError> {
        CsrTable::from_entries(
            self.page_size,
            (0..self.rows()).map(|row| (self.row(row), self.lengths[row] as usize)),
        )
    }
}

/// Columns that a length takes.
fn used_columns(length: i32, page_size: usize) -> Result<usize, PoolError> {
    match usize::try_from(length) {
        Ok(length) => Ok(length.div_ceil(page_size)),
        Err(_) => Err(PoolError::Argument {
            argument: "cache_seqlens",
            value: i64::from(length),
            allowed: "0 or more",
        }),
    }
}

/// Checks a slot mapping against a cache of `pages` pages: every slot is -1 (the token is skipped) or a slot outside
/// the null page, and no slot is written twice.
///
/// # Errors
/// [`PoolError::Argument`] for a bad page size; [`PoolError::SlotOutOfRange`]; [`PoolError::DuplicateSlot`].
pub fn validate_slots(slots: &[i64], page_size: usize, pages: usize) -> Result<(), PoolError> {
    check_page_size(page_size)?;
    let first = page_size as i64;
    let end = i64::try_from(pages).unwrap_or(i64::MAX).saturating_mul(first);
    let mut seen: HashMap<i64, usize> = HashMap::with_capacity(slots.len());
    for (index, &slot) in slots.iter().enumerate() {
        if slot == -1 {
            continue;
        }
        if !(first..end).contains(&slot) {
            return Err(PoolError::SlotOutOfRange {
                index,
                slot,
                first,
                end,
            });
        }
        if let Some(other_index) = seen.insert(slot, index) {
            return Err(PoolError::DuplicateSlot {
                index,
                other_index,
                slot,
            });
        }
    }
    Ok(())
}
