//! Names of full pages by what they contain: a SHA-256 chain over the tokens from the start of the sequence.
//!
//! K and V of a token depend on every token before it, so a page's key covers its parent's key:
//!
//! ```text
//! root     = SHA-256("ferroflash kv root v1"  | len(model) | model | len(dtype) | dtype | page_size)
//! key(p)   = SHA-256("ferroflash kv page v1"  | root | key(parent) or root | tokens)
//! ```
//! Lengths and the page size are u64, tokens u32, all little-endian. Each field is of fixed size or carries its
//! length, so that no two different inputs give the same bytes. There is no shorter fallback hash: prompts are
//! attacker-controlled, and a collision would hand one user's context to another.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::{PageId, PrefixIdentity};

/// The name of a full page's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixKey([u8; 32]);

impl PrefixKey {
    /// The 32 bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Key of the empty prefix for this model, element type and page size.
    pub fn root(identity: &PrefixIdentity, page_size: usize) -> PrefixKey {
        let mut hash = Sha256::new();
        hash.update(b"ferroflash kv root v1");
        for text in [&identity.model, &identity.dtype] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update((page_size as u64).to_le_bytes());
        PrefixKey(hash.finalize().into())
    }

    /// Key of the page that holds `tokens` (a full page of them) after the page or root `parent`.
    pub fn child(root: &PrefixKey, parent: &PrefixKey, tokens: &[u32]) -> PrefixKey {
        let mut hash = Sha256::new();
        hash.update(b"ferroflash kv page v1");
        hash.update(root.0);
        hash.update(parent.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        PrefixKey(hash.finalize().into())
    }
}

/// Where each known prefix lives. Only looked up, never iterated, so that its order cannot matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PrefixIndex {
    pages: HashMap<PrefixKey, PageId>,
}

impl PrefixIndex {
    pub(super) fn get(&self, key: &PrefixKey) -> Option<PageId> {
        self.pages.get(key).copied()
    }

    /// Enters a page unless the same contents are known already; says whether it did.
    pub(super) fn insert(&mut self, key: PrefixKey, page: PageId) -> bool {
        match self.pages.entry(key) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(page);
                true
            }
        }
    }

    pub(super) fn remove(&mut self, key: &PrefixKey) {
        self.pages.remove(key);
    }

    pub(super) fn len(&self) -> usize {
        self.pages.len()
    }
}
