//! The page pool: sequences, their life, and launches.

use std::collections::BTreeMap;

use super::allocator::Allocator;
use super::sequence::Sequence;
use super::statistics::Counters;
use super::{BlockTable, CsrTable, Epoch, PageId, PoolConfig, PoolError, PrefixKey, SequenceId};

/// Owner of all pages of one KV cache.
///
/// Single-threaded by design: one scheduler owns it. Equal calls in equal order give equal pages, slots and
/// evictions on every machine. Every failing call leaves the pool equal (`==`) to what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagePool {
    pub(super) config: PoolConfig,
    /// Key of the empty prefix; `None` when the prefix cache is off.
    pub(super) root: Option<PrefixKey>,
    pub(super) allocator: Allocator,
    pub(super) sequences: BTreeMap<SequenceId, Sequence>,
    pub(super) next_sequence: u64,
    pub(super) counters: Counters,
}

impl PagePool {
    /// An empty pool.
    ///
    /// # Errors
    /// [`PoolError::Argument`] if the configuration is outside its ranges.
    pub fn new(config: PoolConfig) -> Result<PagePool, PoolError> {
        config.validate()?;
        Ok(PagePool {
            root: config
                .prefix
                .as_ref()
                .map(|identity| PrefixKey::root(identity, config.page_size)),
            allocator: Allocator::new(config.pages),
            sequences: BTreeMap::new(),
            next_sequence: 1,
            counters: Counters::default(),
            config,
        })
    }

    /// What the pool was made from.
    pub fn config(&self) -> &PoolConfig {
        &self.config
    }

    /// Token slots per page.
    pub fn page_size(&self) -> usize {
        self.config.page_size
    }

    /// Pages of the cache, the null page included.
    pub fn pages(&self) -> usize {
        self.config.pages
    }

    /// The longest possible sequence, in tokens.
    pub fn capacity_tokens(&self) -> usize {
        self.config.capacity_tokens()
    }

    /// Pages that could be handed out now: free ones and cached ones that no launch reads.
    pub fn available_pages(&self) -> usize {
        self.allocator.available()
    }

    /// Starts an empty sequence. It takes no page before its first append.
    pub fn create_sequence(&mut self) -> SequenceId {
        self.adopt(Sequence::default())
    }

    /// Starts a sequence on the cached pages that hold a prefix of `tokens`; returns it with its length.
    ///
    /// Append the rest: `tokens[length..]`, which is never empty unless `tokens` is, since the last token must be
    /// computed for its logits.
    pub fn create_sequence_with_prefix(&mut self, tokens: &[u32]) -> (SequenceId, usize) {
        let mut sequence = Sequence::default();
        for (key, page) in self.cached_prefix(tokens) {
            self.allocator.share(page);
            sequence.keys.push(key);
            sequence.table.push(page);
        }
        sequence.length = sequence.table.len() * self.page_size();
        sequence.tokens.extend_from_slice(&tokens[..sequence.length]);
        let length = sequence.length;
        self.counters.prefix_lookups += 1;
        self.counters.prefix_tokens += tokens.len() as u64;
        self.counters.prefix_hit_tokens += length as u64;
        self.counters.peak_owned_pages = self.counters.peak_owned_pages.max(self.owned_pages());
        (self.adopt(sequence), length)
    }

    /// How many leading tokens [`PagePool::create_sequence_with_prefix`] would find in the cache now.
    pub fn lookup_prefix(&self, tokens: &[u32]) -> usize {
        self.cached_prefix(tokens).len() * self.page_size()
    }

    /// The longest chain of cached pages for `tokens` that leaves at least one token to compute.
    fn cached_prefix(&self, tokens: &[u32]) -> Vec<(PrefixKey, PageId)> {
        let mut found = Vec::new();
        let Some(root) = self.root else { return found };
        let longest = tokens.len().saturating_sub(1).min(self.capacity_tokens());
        let mut parent = root;
        for tokens in tokens[..longest].chunks_exact(self.page_size()) {
            let key = PrefixKey::child(&root, &parent, tokens);
            let Some(page) = self.allocator.index.get(&key) else {
                break;
            };
            found.push((key, page));
            parent = key;
        }
        found
    }

    /// A second sequence with the same contents. Takes no page: what either appends later is copied on write.
    ///
    /// # Errors
    /// [`PoolError::UnknownSequence`].
    pub fn fork(&mut self, sequence: SequenceId) -> Result<SequenceId, PoolError> {
        let copy = self.sequence(sequence)?.clone();
        for &page in &copy.table {
            self.allocator.share(page);
        }
        Ok(self.adopt(copy))
    }

    /// Shortens a sequence to `length` tokens and releases the pages it no longer needs.
    ///
    /// # Errors
    /// [`PoolError::UnknownSequence`]; [`PoolError::TruncateBeyondLength`] if it is shorter already.
    pub fn truncate(&mut self, sequence: SequenceId, length: usize) -> Result<(), PoolError> {
        let page_size = self.page_size();
        let entry = self
            .sequences
            .get_mut(&sequence)
            .ok_or(PoolError::UnknownSequence { sequence })?;
        if length > entry.length {
            return Err(PoolError::TruncateBeyondLength {
                sequence,
                requested_tokens: length,
                length_tokens: entry.length,
            });
        }
        let released = entry.truncate(length, page_size);
        self.release(&released);
        Ok(())
    }

    /// Ends a sequence and releases its pages. Full pages stay in the prefix cache until they are evicted.
    ///
    /// # Errors
    /// [`PoolError::DoubleFree`] if it was freed before, [`PoolError::UnknownSequence`] if it never existed.
    pub fn free(&mut self, sequence: SequenceId) -> Result<(), PoolError> {
        match self.sequences.remove(&sequence) {
            Some(entry) => {
                self.release(&entry.table);
                Ok(())
            }
            None if (1..self.next_sequence).contains(&sequence.0) => Err(PoolError::DoubleFree { sequence }),
            None => Err(PoolError::UnknownSequence { sequence }),
        }
    }

    /// Releases pages last one first, so that a cached prefix is evicted from its end.
    fn release(&mut self, pages: &[PageId]) {
        for &page in pages.iter().rev() {
            self.allocator.release(page);
        }
    }

    /// Empties the prefix cache and forgets the tokens of all sequences, so that nothing computed so far is shared.
    ///
    /// For when K and V of equal tokens change: new weights, another adapter.
    pub fn clear_prefix_cache(&mut self) {
        self.allocator.forget_all();
        for sequence in self.sequences.values_mut() {
            sequence.tokens.clear();
            sequence.keys.clear();
        }
    }

    /// Begins a launch that reads or writes the cache: everything planned so far belongs to it.
    ///
    /// A page released before [`PagePool::complete`] of this epoch is not handed out again until then.
    pub fn begin_launch(&mut self) -> Epoch {
        self.allocator.launches.begin()
    }

    /// The launch has completed: its event has passed. Epochs may complete in any order.
    ///
    /// The full pages that it wrote enter the prefix cache.
    ///
    /// # Errors
    /// [`PoolError::UnknownEpoch`] if it is not in flight.
    pub fn complete(&mut self, epoch: Epoch) -> Result<(), PoolError> {
        self.allocator.end_launch(epoch, true)
    }

    /// The launch failed or never happened: what it should have written is not entered into the prefix cache.
    ///
    /// The sequences keep their lengths; truncate them to what was written before.
    ///
    /// # Errors
    /// [`PoolError::UnknownEpoch`] if it is not in flight.
    pub fn abandon(&mut self, epoch: Epoch) -> Result<(), PoolError> {
        self.allocator.end_launch(epoch, false)
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    /// [`PoolError::UnknownSequence`].
    pub fn length(&self, sequence: SequenceId) -> Result<usize, PoolError> {
        Ok(self.sequence(sequence)?.length)
    }

    /// Pages of a sequence in token order.
    ///
    /// # Errors
    /// [`PoolError::UnknownSequence`].
    pub fn table(&self, sequence: SequenceId) -> Result<&[PageId], PoolError> {
        Ok(&self.sequence(sequence)?.table)
    }

    /// All sequences, oldest first.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = SequenceId> + '_ {
        self.sequences.keys().copied()
    }

    /// The padded block table of a batch: `[batch, columns]`, or as narrow as possible without `columns`.
    ///
    /// # Errors
    /// [`PoolError::UnknownSequence`]; [`PoolError::TableTooNarrow`] if a sequence has more pages than `columns`.
    pub fn block_table(&self, batch: &[SequenceId], columns: Option<usize>) -> Result<BlockTable, PoolError> {
        let rows = self.rows(batch)?;
        BlockTable::from_rows(self.page_size(), columns, rows)
    }

    /// The CSR page table of a batch.
    ///
    /// # Errors
    /// [`PoolError::UnknownSequence`]; [`PoolError::Argument`] if the batch has more than `i32::MAX` pages.
    pub fn csr_table(&self, batch: &[SequenceId]) -> Result<CsrTable, PoolError> {
        CsrTable::from_rows(self.page_size(), self.rows(batch)?)
    }

    fn rows(&self, batch: &[SequenceId]) -> Result<Vec<(&[PageId], usize)>, PoolError> {
        batch
            .iter()
            .map(|&id| self.sequence(id).map(|entry| (&entry.table[..], entry.length)))
            .collect()
    }

    pub(super) fn sequence(&self, sequence: SequenceId) -> Result<&Sequence, PoolError> {
        self.sequences
            .get(&sequence)
            .ok_or(PoolError::UnknownSequence { sequence })
    }

    pub(super) fn adopt(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.sequences.insert(id, sequence);
        id
    }

    pub(super) fn owned_pages(&self) -> usize {
        self.config.pages - 1 - self.allocator.available() - self.allocator.resting.len()
    }
}
