//! Moving a sequence between two pools, such as the device's and one in host memory.

use super::sequence::Sequence;
use super::{PageId, PagePool, PoolError, SequenceId};

/// A sequence's new home and the page copies that move its contents there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the pages have to be copied"]
pub struct SwapPlan {
    /// The sequence in the target pool.
    pub sequence: SequenceId,
    /// Page of the source pool, page of the target pool, in token order.
    pub copies: Vec<(PageId, PageId)>,
}

impl PagePool {
    /// Makes a sequence of the same length and tokens in `target`, on pages of its own.
    ///
    /// The copies belong to the next launch of both pools: begin one in each, free the sequence here if it is to
    /// move, copy, and complete both. Not limited by the target's watermark, since the sequence is a running one.
    ///
    /// # Errors
    /// [`PoolError::UnknownSequence`]; [`PoolError::Argument`] if the page sizes differ;
    /// [`PoolError::LengthOverCapacity`] and [`PoolError::CacheFull`] of the target. Nothing changes in these cases.
    pub fn swap_into(&self, sequence: SequenceId, target: &mut PagePool) -> Result<SwapPlan, PoolError> {
        let source = self.sequence(sequence)?;
        if self.page_size() != target.page_size() {
            return Err(PoolError::Argument {
                argument: "target page_size",
                value: target.page_size() as i64,
                allowed: "the source pool's page size",
            });
        }
        let empty = Sequence {
            running: true,
            ..Sequence::default()
        };
        let need = target.need(&empty, source.length)?;
        target.check_room(&empty, need)?;
        // Other weights or another element type: the tokens say nothing about the contents.
        let tokens = if self.root == target.root {
            &source.tokens[..]
        } else {
            &[]
        };
        let moved = target.adopt(empty);
        let _slots = target.append_partly_known(moved, tokens, source.length)?;
        let copies = source
            .table
            .iter()
            .copied()
            .zip(target.table(moved)?.iter().copied())
            .collect();
        Ok(SwapPlan {
            sequence: moved,
            copies,
        })
    }
}
