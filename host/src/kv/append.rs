//! Growing a sequence: what it needs, and the plan of what the device must do.

use super::sequence::Sequence;
use super::{NewTokens, PageId, PagePool, PoolError, PrefixKey, SequenceId, SlotId};

/// What the device must do for one append.
///
/// Within a plan the copies come before the writes. The plans of several sequences may be batched into one launch
/// of copies followed by one launch of writes, as long as no sequence was forked after its append in the same step.
/// A plan is void once its sequence is truncated or freed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "the device has to carry out the plan"]
pub struct AppendPlan {
    /// Where to write K and V of the new tokens, one slot per token in order.
    pub slots: Vec<SlotId>,
    /// Whole pages to copy first (copy-on-write): source, destination.
    pub copies: Vec<(PageId, PageId)>,
}

impl AppendPlan {
    /// The slots as the slot mapping of the cache kernels, `[tokens]` i64.
    pub fn slot_mapping(&self) -> &[i64] {
        bytemuck::cast_slice(&self.slots)
    }
}

/// Pages that an append takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// Pages to allocate, the copy of the last page included.
    pages: usize,
    /// The last page is shared and part of it is about to be written.
    copy_tail: bool,
}

impl PagePool {
    /// Pages that an append of `tokens` tokens to this sequence would take, a copy of a shared last page included.
    ///
    /// # Errors
    /// [`PoolError::UnknownSequence`], [`PoolError::LengthOverCapacity`].
    pub fn pages_needed(&self, sequence: SequenceId, tokens: usize) -> Result<usize, PoolError> {
        Ok(self.need(self.sequence(sequence)?, tokens)?.pages)
    }

    /// Makes room for new tokens at the end of a sequence.
    ///
    /// Pages that become full enter the prefix cache when the launch that writes them completes
    /// ([`PagePool::begin_launch`], [`PagePool::complete`]).
    ///
    /// # Errors
    /// [`PoolError::UnknownSequence`]; [`PoolError::LengthOverCapacity`] if the sequence can never be that long;
    /// [`PoolError::CacheFull`] if too few pages are free now. Nothing changes in any of these cases.
    pub fn append<'a>(
        &mut self,
        sequence: SequenceId,
        tokens: impl Into<NewTokens<'a>>,
    ) -> Result<AppendPlan, PoolError> {
        let tokens = tokens.into();
        self.append_partly_known(sequence, tokens.ids(), tokens.len())
    }

    /// Names the next tokens of a sequence that were appended without ids, in their order; all before them are known. Their full
    /// pages enter the prefix cache with the next launch that completes.
    ///
    /// # Errors
    /// [`PoolError::UnknownSequence`]; [`PoolError::LengthOverCapacity`] for more ids than tokens. Nothing changes then.
    pub fn name(&mut self, id: SequenceId, ids: &[u32]) -> Result<(), PoolError> {
        let sequence = self.sequence(id)?;
        let (requested_tokens, capacity_tokens) = (sequence.tokens.len() + ids.len(), sequence.length);
        if requested_tokens > capacity_tokens {
            return Err(PoolError::LengthOverCapacity {
                requested_tokens,
                capacity_tokens,
            });
        }
        let Some(mut sequence) = self.root.and_then(|_| self.sequences.remove(&id)) else {
            return Ok(());
        };
        sequence.tokens.extend_from_slice(ids);
        if let Some(root) = self.root {
            self.stage_full_pages(&mut sequence, &root);
        }
        self.sequences.insert(id, sequence);
        Ok(())
    }

    /// Appends `count` tokens of which the first `ids.len()` are known.
    pub(super) fn append_partly_known(
        &mut self,
        id: SequenceId,
        ids: &[u32],
        count: usize,
    ) -> Result<AppendPlan, PoolError> {
        let sequence = self.sequence(id)?;
        let need = self.need(sequence, count)?;
        if count == 0 {
            return Ok(AppendPlan::default());
        }
        self.check_room(sequence, need)?;
        // From here on nothing fails. The sequence is taken out so that it and the allocator can be borrowed at once.
        let Some(mut sequence) = self.sequences.remove(&id) else {
            return Err(PoolError::UnknownSequence { sequence: id });
        };
        let plan = self.grow(&mut sequence, need, ids, count);
        self.sequences.insert(id, sequence);
        Ok(plan)
    }

    /// The pages an append takes, or why the sequence can never be that long.
    pub(super) fn need(&self, sequence: &Sequence, tokens: usize) -> Result<Need, PoolError> {
        let requested_tokens = sequence.length.saturating_add(tokens);
        let capacity_tokens = self.capacity_tokens();
        if requested_tokens > capacity_tokens {
            return Err(PoolError::LengthOverCapacity {
                requested_tokens,
                capacity_tokens,
            });
        }
        let tail_is_partial = !sequence.length.is_multiple_of(self.page_size());
        let copy_tail = tokens > 0
            && tail_is_partial
            && sequence
                .table
                .last()
                .is_some_and(|&page| self.allocator.page(page).references > 1);
        let new = requested_tokens.div_ceil(self.page_size()) - sequence.table.len();
        Ok(Need {
            pages: new + usize::from(copy_tail),
            copy_tail,
        })
    }

    /// Refuses an append for which too few pages are free now.
    pub(super) fn check_room(&self, sequence: &Sequence, need: Need) -> Result<(), PoolError> {
        let free_pages = self.allocator.available();
        let watermark = if sequence.running { 0 } else { self.config.watermark };
        if need.pages > 0 && need.pages + watermark > free_pages {
            return Err(PoolError::CacheFull {
                requested_pages: need.pages,
                free_pages,
                in_flight_pages: self.allocator.resting.len(),
                watermark,
            });
        }
        Ok(())
    }

    /// Carries out an append that is known to fit.
    fn grow(&mut self, sequence: &mut Sequence, need: Need, ids: &[u32], count: usize) -> AppendPlan {
        let page_size = self.page_size();
        let end = sequence.length + count;
        let mut copies = Vec::new();
        if need.copy_tail
            && let Some(tail) = sequence.table.last_mut()
            && let Some(copy) = self.allocator.acquire()
        {
            copies.push((*tail, copy));
            self.allocator.keep_for_copy(*tail);
            self.allocator.release(*tail);
            *tail = copy;
            self.counters.copies_on_write += 1;
        }
        let mut slots = Vec::with_capacity(count);
        let mut position = sequence.length;
        while position < end {
            let (column, offset) = (position / page_size, position % page_size);
            if column == sequence.table.len() {
                let page = self.allocator.acquire();
                sequence.table.push(page.expect("check_room has counted the pages"));
            }
            let page = sequence.table[column];
            let offset_end = page_size.min(offset + end - position);
            self.allocator.write(page, offset_end);
            slots.extend((offset..offset_end).map(|offset| SlotId::new(page, offset, page_size)));
            position += offset_end - offset;
        }
        if let Some(root) = self.root {
            sequence.learn(ids);
            self.stage_full_pages(sequence, &root);
        }
        sequence.length = end;
        sequence.running = true;
        self.counters.appended_tokens += count as u64;
        self.counters.peak_owned_pages = self.counters.peak_owned_pages.max(self.owned_pages());
        AppendPlan { slots, copies }
    }

    /// Names the pages that have become full.
    fn stage_full_pages(&mut self, sequence: &mut Sequence, root: &PrefixKey) {
        let page_size = self.page_size();
        for column in sequence.keys.len()..sequence.tokens.len() / page_size {
            let tokens = &sequence.tokens[column * page_size..(column + 1) * page_size];
            let key = PrefixKey::child(root, sequence.keys.last().unwrap_or(root), tokens);
            sequence.keys.push(key);
            self.allocator.stage(sequence.table[column], key);
        }
    }
}
