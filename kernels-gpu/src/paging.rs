//! Where the tokens of a sequence lie in a cache, for every kernel that reads or writes one.
//!
//! Both orders of a pool, `[pages, page_size, heads, dim]` and `[pages, heads, page_size, dim]`, differ in strides only. A
//! contiguous cache `[rows, capacity, heads, dim]` is a pool without a table whose pages are the rows.

use crate::kernel_params;

kernel_params! {
    /// How tokens are found.
    pub struct Paging {
        /// Pages of each sequence, i32, `table_stride` apart; 0 for a contiguous cache.
        pub table: u64,
        /// Entries from one sequence's pages to the next one's.
        pub table_stride: u64,
        /// Row of each sequence in a contiguous cache, i32; 0 when it is the sequence's number.
        pub batch_index: u64,
        /// Tokens of a page; of a row, in a contiguous cache. Not 0.
        pub page_size: u32,
        /// Pages of the pool, or rows.
        pub pages: u32,
    }
}

/// Page and slot within it.
#[derive(Clone, Copy)]
pub struct Place {
    /// Page, or row of a contiguous cache.
    pub page: u32,
    /// Slot within the page.
    pub slot: u32,
}

impl Place {
    /// No place: nothing is read or written there.
    pub const NONE: Place = Place {
        page: u32::MAX,
        slot: 0,
    };

    /// Whether there is a place.
    #[inline(always)]
    pub const fn exists(self) -> bool {
        self.page != u32::MAX
    }

    /// Elements from the start of a cache with strides `[page, slot, head]`.
    #[inline(always)]
    pub const fn offset(self, strides: &[u64; 3]) -> u64 {
        self.page as u64 * strides[0] + self.slot as u64 * strides[1]
    }
}

impl Paging {
    /// How many whole pages `tokens` fill.
    #[inline(always)]
    const fn page_of(&self, tokens: u32) -> u32 {
        // SAFETY: the host refuses pages without tokens.
        unsafe { core::hint::assert_unchecked(self.page_size != 0) };
        // Nearly all page sizes are powers of two, and a division is twenty instructions.
        if self.page_size & (self.page_size - 1) == 0 {
            tokens >> self.page_size.trailing_zeros()
        } else {
            tokens / self.page_size
        }
    }

    /// The slot of a sequence's token within its page, or row.
    #[inline(always)]
    pub const fn slot(&self, token: u32) -> u32 {
        if self.table == 0 {
            return token;
        }
        token - self.page_of(token) * self.page_size
    }

    /// The place of slot number `slot`; none for a negative one or one beyond the cache.
    #[inline(always)]
    pub const fn of_slot(&self, slot: i64) -> Place {
        // SAFETY: the host refuses pages without tokens.
        unsafe { core::hint::assert_unchecked(self.page_size != 0) };
        if slot < 0 || slot as u64 >= self.page_size as u64 * self.pages as u64 {
            return Place::NONE;
        }
        // 64-bit divisions take four times as long as 32-bit ones.
        let page = if slot >> 32 == 0 {
            self.page_of(slot as u32)
        } else {
            (slot as u64 / self.page_size as u64) as u32
        };
        Place {
            page,
            slot: (slot as u64 - page as u64 * self.page_size as u64) as u32,
        }
    }
}

#[cfg(target_arch = "nvptx64")]
impl Paging {
    /// The place of token `token` of sequence `sequence`.
    ///
    /// # Safety
    /// - The sequence has that token: its table entry is a page of the pool.
    #[inline(always)]
    pub unsafe fn place(&self, sequence: u32, token: u32) -> Place {
        // SAFETY: forwarded to the caller.
        unsafe { self.place_in(sequence, token, self.page_of(token)) }
    }

    /// The place of token `token` of sequence `sequence`, which is in its page number `entry` where there are pages.
    ///
    /// # Safety
    /// - As for [`place`](Paging::place).
    #[inline(always)]
    pub unsafe fn place_in(&self, sequence: u32, token: u32, entry: u32) -> Place {
        // SAFETY: forwarded to the caller; the host refuses pages without tokens.
        unsafe {
            use cuda_std::global::ld_nc;
            if self.table != 0 {
                let at = sequence as u64 * self.table_stride + entry as u64;
                Place {
                    page: ld_nc((self.table + at * 4) as *const u32),
                    slot: token - entry * self.page_size,
                }
            } else if self.batch_index != 0 {
                Place {
                    page: ld_nc((self.batch_index + sequence as u64 * 4) as *const u32),
                    slot: token,
                }
            } else {
                Place {
                    page: sequence,
                    slot: token,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_their_edges() {
        let paging = Paging {
            table: 0,
            table_stride: 0,
            batch_index: 0,
            page_size: 12,
            pages: 3,
        };
        let at = |slot| {
            let place = paging.of_slot(slot);
            place.exists().then_some((place.page, place.slot))
        };
        assert_eq!(
            (at(0), at(11), at(12), at(35)),
            (Some((0, 0)), Some((0, 11)), Some((1, 0)), Some((2, 11)))
        );
        assert_eq!((at(-1), at(36), at(i64::MIN), at(i64::MAX)), (None, None, None, None));
        let large = Paging {
            page_size: 1 << 16,
            pages: 1 << 20,
            ..paging
        };
        let place = large.of_slot((1 << 34) + 5);
        assert_eq!((place.page, place.slot), (1 << 18, 5));
        assert_eq!(paging.of_slot(25).offset(&[100, 10, 7]), 210);
    }
}
