//! What a pool is made of.

use super::PoolError;

/// The largest page, in token slots.
pub const MAX_PAGE_SIZE: usize = 256;

/// What K and V in a page depend on besides the tokens. Part of every prefix key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixIdentity {
    /// Name of the model with everything that changes its K and V: revision, adapter, RoPE settings, tenant.
    pub model: String,
    /// Element type of the cache, e.g. `bf16`.
    pub dtype: String,
}

/// Shape and policy of a [`PagePool`](super::PagePool).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Token slots per page: a power of two, `1 ..= 256`.
    pub page_size: usize,
    /// Pages of the cache, the null page included: `2 ..= i32::MAX`.
    pub pages: usize,
    /// Pages that the first append of a sequence must leave free, so that running sequences can grow: below `pages - 1`.
    pub watermark: usize,
    /// Pages that one sequence may have (the width of the block table), at least 1; `None`: the whole pool.
    pub max_pages_per_sequence: Option<usize>,
    /// Share full pages of equal prefixes; `None` switches the prefix cache off.
    pub prefix: Option<PrefixIdentity>,
}

impl PoolConfig {
    /// `pages` pages of `page_size` slots, the null page included; no watermark, no prefix cache.
    pub fn new(page_size: usize, pages: usize) -> PoolConfig {
        PoolConfig {
            page_size,
            pages,
            watermark: 0,
            max_pages_per_sequence: None,
            prefix: None,
        }
    }

    /// Keeps this many pages free when a sequence is admitted.
    pub fn watermark(mut self, pages: usize) -> PoolConfig {
        self.watermark = pages;
        self
    }

    /// Bounds the pages of one sequence: the width of the block table.
    pub fn max_pages_per_sequence(mut self, pages: usize) -> PoolConfig {
        self.max_pages_per_sequence = Some(pages);
        self
    }

    /// Shares equal prefixes among sequences of this model and cache element type.
    pub fn prefix_cache(mut self, model: impl Into<String>, dtype: impl Into<String>) -> PoolConfig {
        self.prefix = Some(PrefixIdentity {
            model: model.into(),
            dtype: dtype.into(),
        });
        self
    }

    /// Refuses what no pool can be.
    pub(super) fn validate(&self) -> Result<(), PoolError> {
        let refuse = |argument, value: usize, allowed| {
            Err(PoolError::Argument {
                argument,
                value: i64::try_from(value).unwrap_or(i64::MAX),
                allowed,
            })
        };
        check_page_size(self.page_size)?;
        if self.pages < 2 || self.pages > i32::MAX as usize {
            return refuse("pages", self.pages, "2 ..= 2147483647, the null page included");
        }
        if self.watermark >= self.pages - 1 {
            return refuse(
                "watermark",
                self.watermark,
                "below the number of pages without the null page",
            );
        }
        if self.max_pages_per_sequence == Some(0) {
            return refuse("max_pages_per_sequence", 0, "at least 1");
        }
        Ok(())
    }

    /// The longest sequence, in tokens: bounded by the table, the pool, and 32-bit lengths.
    pub(super) fn capacity_tokens(&self) -> usize {
        let pages = self.max_pages_per_sequence.unwrap_or(usize::MAX).min(self.pages - 1);
        pages.saturating_mul(self.page_size).min(i32::MAX as usize)
    }
}

/// Refuses a page size that is not a power of two in `1 ..= 256`.
pub(super) fn check_page_size(page_size: usize) -> Result<(), PoolError> {
    if page_size.is_power_of_two() && page_size <= MAX_PAGE_SIZE {
        return Ok(());
    }
    let value = i64::try_from(page_size).unwrap_or(i64::MAX);
    Err(PoolError::Argument {
        argument: "page_size",
        value,
        allowed: "a power of two, 1 ..= 256",
    })
}
