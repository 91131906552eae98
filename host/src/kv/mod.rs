//! Paged KV cache bookkeeping: which page of the cache belongs to which sequence.
//!
//! Pure CPU code that knows nothing of CUDA. A [`PagePool`] hands out pages (fixed numbers of token slots)
//! to sequences, shares them between forks and between equal prefixes, and never touches the cache itself:
//! every operation that needs the device to do something returns a plan of page copies and slots to write.
//!
//! # Words
//! - *page*: `page_size` consecutive token slots of the cache, named by [`PageId`]. Page 0 is the null page:
//!   it is never allocated, and unused table columns point to it.
//! - *slot*: `page * page_size + offset`, named by [`SlotId`]; where one token's K and V live.
//! - *block table*: for each sequence the list of its pages in token order ([`BlockTable`], [`CsrTable`]).
//! - *sealed*: a page that nobody may write any more: it is shared, or it stands in the prefix cache.
//! - *epoch*: one launch (or one step of launches) on the device, from [`PagePool::begin_launch`] until
//!   [`PagePool::complete`].
//!
//! # One step of a serving loop
//! ```
//! use host::kv::{PagePool, PoolConfig};
//!
//! # fn main() -> Result<(), host::kv::PoolError> {
//! let mut pool = PagePool::new(PoolConfig::new(16, 1024).prefix_cache("llama-3-8b", "bf16"))?;
//! let prompt: Vec<u32> = (0..40).collect();
//! let (sequence, shared) = pool.create_sequence_with_prefix(&prompt);
//! let plan = pool.append(sequence, &prompt[shared..])?;
//! assert_eq!(plan.slots.len(), prompt.len() - shared);
//! let table = pool.block_table(&[sequence], None)?;
//! let epoch = pool.begin_launch();
//! // device: copy plan.copies, write K and V at plan.slots, attend through `table`; wait for the event
//! # let _ = table;
//! pool.complete(epoch)?;
//! pool.free(sequence)?;
//! // The two full pages stay in the prefix cache: the next equal prompt computes 8 tokens only.
//! assert_eq!(pool.lookup_prefix(&prompt), 32);
//! # Ok(())
//! # }
//! ```
//!
//! # The twelve invariants
//! [`PagePool::check_invariants`] proves them on the whole state; the tests call it after every operation.
//! 1. Free pages and owned pages are disjoint and together are all pages.
//! 2. A page's reference count is the number of tables that hold it.
//! 3. A page is in a free list exactly when its reference count is 0.
//! 4. Only sealed pages are shared, and only full pages are hashed.
//! 5. A page that a sequence may write in place has exactly one owner; otherwise it is copied first.
//! 6. Freeing twice is an error, and no table or list names a page twice.
//! 7. Allocation is all or nothing; a failed operation leaves the pool bit-identical.
//! 8. A table has `ceil(length / page_size)` entries.
//! 9. Evicting a page removes its hash in the same step.
//! 10. Page 0 is reserved; table padding points to it.
//! 11. A prefix key is SHA-256 over (model, dtype, page size, parent, tokens), domain-separated.
//! 12. A page freed while a launch that may read it is in flight is not reused before that launch completes.

mod allocator;
mod append;
mod config;
mod csr;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod ids;
mod invariants;
mod launches;
mod pool;
mod prefix;
mod sequence;
mod statistics;
mod swap;
mod table;

pub use append::AppendPlan;
pub use config::{MAX_PAGE_SIZE, PoolConfig, PrefixIdentity};
pub use csr::CsrTable;
pub use error::PoolError;
pub use ids::{Epoch, PageId, SequenceId, SlotId};
pub use invariants::InvariantViolation;
pub use pool::PagePool;
pub use prefix::PrefixKey;
pub use sequence::NewTokens;
pub use statistics::Statistics;
pub use swap::SwapPlan;
pub use table::{BlockTable, validate_slots};
