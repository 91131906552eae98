//! One sequence: its length, its pages, and what is known of its tokens.

use super::{PageId, PrefixKey};

/// Tokens to append: their ids, or only how many.
///
/// Pages of tokens without ids are never shared by prefix, nor is anything after them.
#[derive(Clone, Copy, Debug)]
pub enum NewTokens<'a> {
    /// The token ids.
    Ids(&'a [u32]),
    /// A number of tokens whose ids the pool need not know.
    Count(usize),
}

impl NewTokens<'_> {
    /// How many tokens.
    pub fn len(&self) -> usize {
        match self {
            NewTokens::Ids(ids) => ids.len(),
            NewTokens::Count(count) => *count,
        }
    }

    /// Whether there is nothing to append.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn ids(&self) -> &[u32] {
        match self {
            NewTokens::Ids(ids) => ids,
            NewTokens::Count(_) => &[],
        }
    }
}

impl From<usize> for NewTokens<'_> {
    fn from(count: usize) -> Self {
        NewTokens::Count(count)
    }
}

impl<'a> From<&'a [u32]> for NewTokens<'a> {
    fn from(ids: &'a [u32]) -> Self {
        NewTokens::Ids(ids)
    }
}

impl<'a> From<&'a Vec<u32>> for NewTokens<'a> {
    fn from(ids: &'a Vec<u32>) -> Self {
        NewTokens::Ids(ids)
    }
}

impl<'a, const N: usize> From<&'a [u32; N]> for NewTokens<'a> {
    fn from(ids: &'a [u32; N]) -> Self {
        NewTokens::Ids(ids)
    }
}

/// The state of one sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sequence {
    /// Tokens in the cache.
    pub(super) length: usize,
    /// Pages in token order.
    pub(super) table: Vec<PageId>,
    /// Ids of the leading tokens; shorter than `length` once tokens without ids were appended.
    pub(super) tokens: Vec<u32>,
    /// Keys of the full pages among `tokens`.
    pub(super) keys: Vec<PrefixKey>,
    /// Whether an append has succeeded, so that the watermark no longer binds.
    pub(super) running: bool,
}

impl Sequence {
    /// Shortens to `length` tokens and returns the pages that are no longer needed, in token order.
    pub(super) fn truncate(&mut self, length: usize, page_size: usize) -> Vec<PageId> {
        self.length = length;
        self.tokens.truncate(length);
        self.keys.truncate(self.tokens.len() / page_size);
        self.table.split_off(length.div_ceil(page_size))
    }

    /// Takes note of the ids of the tokens that begin at `self.length`, if all tokens before them are known.
    pub(super) fn learn(&mut self, ids: &[u32]) {
        if self.tokens.len() == self.length {
            self.tokens.extend_from_slice(ids);
        }
    }
}
