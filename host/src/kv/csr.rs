//! CSR page tables: the rows' pages one after another, with offsets.

use super::config::check_page_size;
use super::{BlockTable, PageId, PoolError};

/// A batch's pages in the layout of FlashInfer: `indices[indptr[row] .. indptr[row + 1]]` are the pages of a row, of
/// which the last holds `last_page_len[row]` tokens (1 ..= page size; 0 for a row without pages).
///
/// A value of this type is well-formed: offsets never decrease, and every entry names a page (not the null page).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsrTable {
    page_size: usize,
    indptr: Vec<i32>,
    indices: Vec<i32>,
    last_page_len: Vec<i32>,
}

impl CsrTable {
    /// A table from outside.
    ///
    /// # Errors
    /// [`PoolError::Argument`] for a bad page size or last page length; [`PoolError::Entries`] unless `indptr` has one
    /// entry more than `last_page_len`; [`PoolError::Offsets`] if `indptr` is not a list of offsets into `indices`;
    /// [`PoolError::LengthOverCapacity`] if a row has more than `i32::MAX` tokens;
    /// [`PoolError::PageOutOfRange`] if an index is not a page.
    pub fn from_parts(
        page_size: usize,
        indptr: Vec<i32>,
        indices: Vec<i32>,
        last_page_len: Vec<i32>,
    ) -> Result<CsrTable, PoolError> {
        check_page_size(page_size)?;
        let rows = last_page_len.len();
        if indptr.len() != rows + 1 {
            return Err(PoolError::Entries {
                argument: "indptr",
                length: indptr.len(),
                expected: rows + 1,
            });
        }
        let end = indices.len();
        let offset_error = |index: usize| PoolError::Offsets {
            argument: "indptr",
            index,
            value: i64::from(indptr[index]),
            end,
        };
        if indptr[0] != 0 {
            return Err(offset_error(0));
        }
        if let Some(index) = (1..=rows).find(|&index| indptr[index] < indptr[index - 1]) {
            return Err(offset_error(index));
        }
        if usize::try_from(indptr[rows]) != Ok(end) {
            return Err(offset_error(rows));
        }
        for row in 0..rows {
            let pages = &indices[indptr[row] as usize..indptr[row + 1] as usize];
            if let Some(column) = pages.iter().position(|&page| page <= 0) {
                let page = i64::from(pages[column]);
                return Err(PoolError::PageOutOfRange {
                    row,
                    column,
                    page,
                    pages: i32::MAX as usize,
                });
            }
            let last = last_page_len[row];
            let (allowed_range, allowed) = match pages.len() {
                0 => (0..=0, "0, since the row has no pages"),
                _ => (1..=page_size as i32, "1 ..= page_size"),
            };
            if !allowed_range.contains(&last) {
                return Err(PoolError::Argument {
                    argument: "last_page_len",
                    value: i64::from(last),
                    allowed,
                });
            }
            let tokens = pages.len() as u64 * page_size as u64;
            if tokens > i32::MAX as u64 {
                let requested_tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
                return Err(PoolError::LengthOverCapacity {
                    requested_tokens,
                    capacity_tokens: i32::MAX as usize,
                });
            }
        }
        Ok(CsrTable {
            page_size,
            indptr,
            indices,
            last_page_len,
        })
    }

    /// A table of a pool's rows.
    pub(super) fn from_rows(page_size: usize, rows: Vec<(&[PageId], usize)>) -> Result<CsrTable, PoolError> {
        let tables: Vec<(Vec<i32>, usize)> = rows
            .iter()
            .map(|(pages, length)| (pages.iter().map(|page| page.as_i32()).collect(), *length))
            .collect();
        CsrTable::from_entries(page_size, tables.iter().map(|(pages, length)| (&pages[..], *length)))
    }

    /// A table of well-formed rows: entries in use, and length.
    pub(super) fn from_entries<'a>(
        page_size: usize,
        rows: impl Iterator<Item = (&'a [i32], usize)>,
    ) -> Result<CsrTable, PoolError> {
        let mut table = CsrTable {
            page_size,
            indptr: vec![0],
            indices: Vec::new(),
            last_page_len: Vec::new(),
        };
        for (pages, length) in rows {
            table.indices.extend_from_slice(pages);
            let offset = i32::try_from(table.indices.len()).map_err(|_| PoolError::Argument {
                argument: "pages of the batch",
                value: i64::try_from(table.indices.len()).unwrap_or(i64::MAX),
                allowed: "at most 2147483647",
            })?;
            table.indptr.push(offset);
            table
                .last_page_len
                .push((length - pages.len().saturating_sub(1) * page_size) as i32);
        }
        Ok(table)
    }

    /// Token slots per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Rows: sequences of the batch.
    pub fn rows(&self) -> usize {
        self.last_page_len.len()
    }

    /// Offsets of the rows in the indices, `[rows + 1]`, ready for the device.
    pub fn indptr(&self) -> &[i32] {
        &self.indptr
    }

    /// Pages of all rows, `[indptr[rows]]`, ready for the device.
    pub fn indices(&self) -> &[i32] {
        &self.indices
    }

    /// Tokens in each row's last page, `[rows]`, ready for the device.
    pub fn last_page_len(&self) -> &[i32] {
        &self.last_page_len
    }

    /// Pages of a row; empty for a row outside the table.
    pub fn row(&self, row: usize) -> &[i32] {
        match self.indptr.get(row..row.saturating_add(2)) {
            Some(&[start, end]) => &self.indices[start as usize..end as usize],
            _ => &[],
        }
    }

    /// Tokens of a row; 0 for a row outside the table.
    pub fn length(&self, row: usize) -> usize {
        let last = self.last_page_len.get(row).map_or(0, |&last| last as usize);
        self.row(row).len().saturating_sub(1) * self.page_size + last
    }

    /// The same table padded to `columns`, or as narrow as possible.
    ///
    /// # Errors
    /// [`PoolError::TableTooNarrow`] if a row has more pages than `columns`.
    pub fn to_block_table(&self, columns: Option<usize>) -> Result<BlockTable, PoolError> {
        let rows: Vec<(Vec<PageId>, usize)> = (0..self.rows())
            .map(|row| {
                (
                    self.row(row)
                        .iter()
                        .map(|&page| PageId::of_pool(page as usize))
                        .collect(),
                    self.length(row),
                )
            })
            .collect();
        BlockTable::from_rows(
            self.page_size,
            columns,
            rows.iter().map(|(pages, length)| (&pages[..], *length)).collect(),
        )
    }
}
