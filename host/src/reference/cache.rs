//! Key/value caches: where a token lies, appending, reading back.
//!
//! A pool is `[pages, page_size, heads · dim]`; a contiguous cache is a pool whose pages are whole
//! sequences. The functions move elements of any type and change no bit.

/// Where the tokens of each sequence lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheLayout<'a> {
    /// Sequence `i` is row `batch_index[i]` (or `i`) of `[rows, capacity, …]`.
    Contiguous {
        /// Tokens per row.
        capacity: usize,
        /// Row of each sequence.
        batch_index: Option<&'a [usize]>,
    },
    /// Token `t` of sequence `i` is in page `table[i][t / page_size]`.
    Paged {
        /// Tokens per page.
        page_size: usize,
        /// `[batch, width]`, padded with anything.
        table: &'a [i32],
        /// Entries per sequence.
        width: usize,
    },
}

impl CacheLayout<'_> {
    /// Slot of a token: its row in the cache seen as `[slots, heads · dim]`.
    ///
    /// # Panics
    /// When the token does not fit the capacity or the table.
    pub fn slot(&self, sequence: usize, token: usize) -> usize {
        match *self {
            CacheLayout::Contiguous { capacity, batch_index } => {
                assert!(token < capacity, "token {token} of a capacity of {capacity}");
                batch_index.map_or(sequence, |index| index[sequence]) * capacity + token
            }
            CacheLayout::Paged {
                page_size,
                table,
                width,
            } => {
                let entry = token / page_size;
                assert!(
                    entry < width,
                    "token {token} in a table of {width} pages of {page_size}"
                );
                let page = table[sequence * width + entry];
                usize::try_from(page).expect("a negative page") * page_size + token % page_size
            }
        }
    }
}

/// Writes row `i` of `new` to slot `slots[i]`; negative slots are skipped.
///
/// # Panics
/// When a slot is not in the cache.
pub fn append<T: Copy>(cache: &mut [T], new: &[T], slots: &[i64], row: usize) {
    assert_eq!(new.len(), slots.len() * row, "new tokens");
    for (&slot, new) in slots.iter().zip(new.chunks(row.max(1))) {
        if let Ok(slot) = usize::try_from(slot) {
            cache[slot * row..(slot + 1) * row].copy_from_slice(new);
        }
    }
}

/// Tokens `start..end` of a sequence, one after the other.
pub fn gather<T: Copy>(
    cache: &[T],
    layout: &CacheLayout,
    sequence: usize,
    tokens: std::ops::Range<usize>,
    row: usize,
) -> Vec<T> {
    let rows = tokens.map(|token| &cache[layout.slot(sequence, token) * row..][..row]);
    rows.flatten().copied().collect()
}

/// All sequences, `[batch, max(lengths), row]`, padded with `zero`.
pub fn gather_padded<T: Copy>(cache: &[T], layout: &CacheLayout, lengths: &[usize], row: usize, zero: T) -> Vec<T> {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut out = Vec::with_capacity(lengths.len() * longest * row);
    for (sequence, &length) in lengths.iter().enumerate() {
        out.extend(gather(cache, layout, sequence, 0..length, row));
        out.resize((sequence + 1) * longest * row, zero);
    }
    out
}

/// Exchanges the two inner axes of a pool: `[pages, page_size, heads, dim]` to
/// `[pages, heads, page_size, dim]`, or back with the sizes exchanged.
pub fn exchange_axes<T: Copy>(pool: &[T], (outer, inner): (usize, usize), dim: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(pool.len());
    for page in pool.chunks((outer * inner * dim).max(1)) {
        for i in 0..inner {
            for o in 0..outer {
                out.extend_from_slice(&page[(o * inner + i) * dim..][..dim]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_both_layouts() {
        let rows = CacheLayout::Contiguous {
            capacity: 10,
            batch_index: Some(&[3, 1]),
        };
        assert_eq!((rows.slot(0, 4), rows.slot(1, 9)), (34, 19));
        let plain = CacheLayout::Contiguous {
            capacity: 10,
            batch_index: None,
        };
        assert_eq!(plain.slot(1, 0), 10);
        let paged = CacheLayout::Paged {
            page_size: 4,
            table: &[7, 2, 5, -1],
            width: 2,
        };
        assert_eq!((paged.slot(0, 3), paged.slot(0, 4), paged.slot(1, 1)), (31, 8, 21));
    }

    #[test]
    #[should_panic(expected = "token 8 in a table of 2 pages of 4")]
    fn refuses_tokens_beyond_the_table() {
        CacheLayout::Paged {
            page_size: 4,
            table: &[0, 1],
            width: 2,
        }
        .slot(0, 8);
    }

    #[test]
    fn what_is_appended_is_read_back() {
        let mut cache = vec![f32::NAN; 6 * 2];
        append(&mut cache, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, -1, 0], 2);
        assert_eq!(cache.iter().filter(|x| x.is_nan()).count(), 8);
        let layout = CacheLayout::Paged {
            page_size: 1,
            table: &[3, 0, 0, 9],
            width: 2,
        };
        assert_eq!(gather(&cache, &layout, 0, 0..2, 2), [1.0, 2.0, 5.0, 6.0]);
        let padded = gather_padded(&cache, &layout, &[2, 1], 2, 0.0);
        assert_eq!(padded, [1.0, 2.0, 5.0, 6.0, 5.0, 6.0, 0.0, 0.0]);
    }

    #[test]
    fn exchanging_axes_twice_changes_nothing() {
        let pool: Vec<i32> = (0..2 * 3 * 4 * 2).collect();
        let once = exchange_axes(&pool, (3, 4), 2);
        assert_eq!(once[..4], [0, 1, 8, 9]);
        assert_eq!(exchange_axes(&once, (4, 3), 2), pool);
    }
}
