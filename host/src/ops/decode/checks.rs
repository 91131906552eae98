//! What decode refuses before any launch.

use super::Decode;
use crate::{
    AnyTensor, DType, Error, Result,
    ops::{
        cache::{CheckedCache, expect_extent, expect_integers, tokens_of},
        rope::check_float,
    },
};

/// A problem that may be launched.
pub(super) struct Checked {
    /// Queries, `[batch, seq_q, heads_q, dim]`.
    pub(super) q: AnyTensor,
    pub(super) cache: CheckedCache,
    /// Whether the cache has 8-bit floats.
    pub(super) e4m3: bool,
    /// The head dim of the kernel.
    pub(super) padded: u64,
    /// Strides of keys and values in units of 16 bytes.
    pub(super) steps: [[u32; 3]; 2],
}

/// Strides of a cache in units of 16 bytes, which 32 bits count.
fn steps(argument: &'static str, cache: &AnyTensor, strides: [u64; 3]) -> Result<[u32; 3]> {
    let size = cache.dtype().size();
    if cache.span() * size / 16 >= u64::from(u32::MAX) {
        return Err(Error::shape(argument, cache.shape(), "at most 64 GiB are allowed"));
    }
    // An axis of one entry may have any stride.
    Ok(strides.map(|stride| (stride * size / 16) as u32))
}

impl Decode<'_> {
    /// Checks all arguments but the new tokens.
    pub(super) fn check(&self) -> Result<Checked> {
        let q = tokens_of("q", self.q)?;
        if self.q.rank() != 4 {
            return Err(Error::shape(
                "q",
                self.q.shape(),
                "[batch, seq_q, heads_q, dim] is needed",
            ));
        }
        check_float("q", &q)?;
        let (batch, seq_q, heads_q, dim) = (q.extent(0), q.extent(1), q.extent(2), q.extent(3));
        let cache = self.cache.check(Some(batch))?;
        let e4m3 = self.cache.k().dtype() == DType::E4M3 && q.dtype() != DType::F32;
        if self.cache.k().dtype() != q.dtype() && !e4m3 {
            let allowed = format!(
                "the dtype of q, {}, is needed, or e4m3 with q of f16 or bf16",
                q.dtype()
            );
            return Err(Error::Dtype {
                argument: "k_cache",
                dtype: self.cache.k().dtype(),
                allowed,
            });
        }
        if dim != cache.head_dim {
            let allowed = format!("the head dim of k_cache, {}, is needed", cache.head_dim);
            return Err(Error::shape("q", q.shape(), allowed));
        }
        if cache.heads == 0 || !heads_q.is_multiple_of(cache.heads) {
            return Err(Error::shape(
                "q",
                q.shape(),
                format!("a multiple of the {} KV heads is needed", cache.heads),
            ));
        }
        expect_integers("cache_seqlens", self.lengths, DType::I32, 1)?;
        expect_extent("cache_seqlens", self.lengths, batch)?;
        self.check_options(batch, heads_q)?;
        if let Some((k, _)) = self.new
            && k.extent(1) != seq_q
        {
            return Err(Error::shape(
                "k",
                k.shape(),
                format!("as many tokens as q, {seq_q}, are needed"),
            ));
        }
        let cache_size = self.cache.k().dtype().size();
        let dims = if e4m3 { &[64, 128][..] } else { &[64, 128, 256] };
        let padded = dims.iter().find(|&&padded| dim.max(cache.value_dim) <= padded);
        let whole = |dim: &u64| (dim * cache_size).is_multiple_of(16);
        let Some(&padded) = padded.filter(|_| dim > 0 && [dim, cache.value_dim].iter().all(whole)) else {
            let most = if e4m3 { 128 } else { 256 };
            let what = format!(
                "head dims {dim} and {} (up to {most}, rows of the cache in multiples of 16 bytes)",
                cache.value_dim
            );
            return Err(Error::unsupported(format!("decode attention with {what}")));
        };
        for (argument, tensor) in [("k_cache", self.cache.k()), ("v_cache", self.cache.v())] {
            if !tensor.rows_aligned_to(16) {
                return Err(Error::layout(
                    argument,
                    "every row must start at a multiple of 16 bytes",
                ));
            }
        }
        let steps = [
            steps("k_cache", self.cache.k(), cache.strides[0])?,
            steps("v_cache", self.cache.v(), cache.strides[1])?,
        ];
        Ok(Checked {
            q,
            cache,
            e4m3,
            padded,
            steps,
        })
    }

    fn check_options(&self, batch: u64, heads_q: u64) -> Result<()> {
        let options = &self.options;
        let floats = |argument, tensor: &AnyTensor, shapes: &[&[u64]]| {
            if tensor.dtype() != DType::F32 {
                return Err(Error::Dtype {
                    argument,
                    dtype: tensor.dtype(),
                    allowed: "f32 is needed".into(),
                });
            }
            if !shapes.contains(&tensor.shape()) || !tensor.is_contiguous() {
                return Err(Error::shape(
                    argument,
                    tensor.shape(),
                    format!("one of {shapes:?}, dense, is needed"),
                ));
            }
            Ok(())
        };
        if let Some(slopes) = options.alibi_slopes {
            floats("alibi_slopes", slopes, &[&[heads_q], &[batch, heads_q]])?;
        }
        if let Some(sinks) = options.sinks {
            floats("sinks", sinks, &[&[heads_q]])?;
        }
        if let Some(padding) = options.left_padding {
            expect_integers("left_padding", padding, DType::I32, 1)?;
            expect_extent("left_padding", padding, batch)?;
        }
        if let Some(cap) = options.softcap.filter(|cap| !(cap.is_finite() && *cap >= 0.0)) {
            return Err(Error::range("softcap", cap, "finite and not negative; 0 is off"));
        }
        if let Some(scale) = options.scale.filter(|scale| !scale.is_finite()) {
            return Err(Error::range("scale", scale, "a finite number"));
        }
        Ok(())
    }
}
