//! New tokens: in the launch that attends, or before it.

use kernels_gpu::angles::Rotation;

use super::Decode;
use crate::{
    AnyTensor, Error, Result,
    ops::{
        cache::{CheckedCache, cache_append_in, expect_tokens, tokens_of},
        rope::rope,
    },
};

/// Most new tokens of a sequence that the attention rotates and appends itself.
const MAX_FRESH: u64 = 8;

/// New keys and values, `[batch, seq_q, heads_kv, dim]`, for a launch that rotates, appends and attends.
pub(super) struct Fresh {
    pub(super) k: AnyTensor,
    pub(super) v: AnyTensor,
    pub(super) rotation: Rotation,
}

impl Decode<'_> {
    /// The new tokens, where one launch can rotate, append and attend; nothing where it cannot, or where something is wrong that
    /// the other way says better.
    pub(super) fn fresh(&self, q: &AnyTensor, cache: &CheckedCache) -> Result<Option<Fresh>> {
        let Some((k, v)) = self.new else {
            return Ok(None);
        };
        let (k, v) = (tokens_of("k", k)?, tokens_of("v", v)?);
        let mut rotation = Rotation::NONE;
        if let Some((pairing, angles)) = self.options.rotary {
            rotation = rope(q, pairing, angles).rotation(q.extent(3), q.dtype())?;
        }
        let fits = |tensor: &AnyTensor, pool: (&'static str, &AnyTensor), dim| {
            tensor.dtype() == q.dtype()
                && tensor.shape()[..2] == q.shape()[..2]
                && expect_tokens("k", tensor, pool, cache.heads, dim).is_ok()
        };
        let aligned = |tensor: &AnyTensor| tensor.rows_aligned_to(4 * tensor.dtype().size());
        let possible = q.extent(1) <= MAX_FRESH
            && self.options.left_padding.is_none()
            && fits(&k, ("k_cache", self.cache.k()), cache.head_dim)
            && fits(&v, ("v_cache", self.cache.v()), cache.value_dim)
            && [q, &k, &v].into_iter().all(aligned)
            && cache.head_dim.is_multiple_of(8)
            && cache.value_dim.is_multiple_of(8)
            && rotation.pairs.is_multiple_of(4);
        Ok(possible.then_some(Fresh { k, v, rotation }))
    }

    /// Rotates and appends; returns the queries to attend with.
    pub(super) fn prepare_tokens(&self, q: &AnyTensor) -> Result<AnyTensor> {
        match (self.options.rotary, self.new) {
            (None, None) => Ok(q.clone()),
            (None, Some((k, v))) => {
                // In the stream that reads it.
                cache_append_in(k, v, self.cache, self.lengths, self.stream)?;
                Ok(q.clone())
            }
            (Some((pairing, angles)), Some((k, v))) => {
                let mut rope = rope(q, pairing, angles)
                    .k(k)
                    .lengths(self.lengths)
                    .append_at(v, self.cache);
                if let Some(stream) = self.stream {
                    rope = rope.on(stream);
                }
                Ok(rope.run()?.0)
            }
            (Some(_), None) => Err(Error::layout(
                "rotary",
                "rotates new tokens, but no new keys were given",
            )),
        }
    }
}
