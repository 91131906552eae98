//! From tensors to a problem that the kernels can compute: every check of the inputs is here.

use super::options::{AttentionOptions, Layout};
use crate::{AnyTensor, DType, Error, Result};

/// Longest sequence (or packed total) of either side: positions and windows must add up within 31 bits.
const MAX_TOKENS: u64 = 1 << 28;
/// Largest head dim.
const MAX_DIM: u64 = 256;

/// Bounds of packed sequences.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// First query of each sequence and the total, i32 `[sequences + 1]`.
    pub cu_seqlens_q: &'a AnyTensor,
    /// First key of each sequence and the total, i32 `[sequences + 1]`.
    pub cu_seqlens_k: &'a AnyTensor,
    /// Queries of the longest sequence.
    pub max_q: u64,
    /// Keys of the longest sequence.
    pub max_k: u64,
}

/// A tensor by its axes: strides of (batch, token, head), in elements.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub address: u64,
    pub strides: [u64; 3],
}

/// A checked problem.
pub struct Problem<'a> {
    pub q: &'a AnyTensor,
    pub k: &'a AnyTensor,
    pub v: &'a AnyTensor,
    pub options: &'a AttentionOptions,
    pub packed: Option<Packed<'a>>,
    pub dtype: DType,
    /// Sequences.
    pub batch: u64,
    pub heads_q: u64,
    pub heads_kv: u64,
    /// Rows of each sequence, of all together when packed.
    pub seq_q: u64,
    /// Keys of each sequence, of all together when packed.
    pub seq_kv: u64,
    /// Rows of the longest sequence: the tiles to launch.
    pub rows: u64,
    pub head_dim: u64,
    pub value_dim: u64,
    pub scale: f32,
}

/// Extents of a tensor by meaning.
struct Extents {
    batch: u64,
    tokens: u64,
    heads: u64,
    dim: u64,
}

fn extents(argument: &'static str, tensor: &AnyTensor, packed: bool, layout: Layout) -> Result<Extents> {
    let shape = tensor.shape();
    match (packed, shape) {
        (true, &[tokens, heads, dim]) => Ok(Extents {
            batch: 1,
            tokens,
            heads,
            dim,
        }),
        (true, _) => Err(Error::shape(
            argument,
            shape,
            "packed sequences need [tokens, heads, head dim]",
        )),
        (false, &[batch, a, b, dim]) => {
            let (tokens, heads) = if layout == Layout::Bshd { (a, b) } else { (b, a) };
            Ok(Extents {
                batch,
                tokens,
                heads,
                dim,
            })
        }
        (false, _) => Err(Error::shape(
            argument,
            shape,
            match layout {
                Layout::Bshd => "[batch, tokens, heads, head dim] is needed (layout bshd)",
                Layout::Bhsd => "[batch, heads, tokens, head dim] is needed (layout bhsd)",
            },
        )),
    }
}

fn check_dim(argument: &'static str, tensor: &AnyTensor, dim: u64) -> Result<()> {
    if dim == 0 || dim > MAX_DIM || !dim.is_multiple_of(8) {
        let allowed = format!("a head dim (last axis) that is a multiple of 8 from 8 to {MAX_DIM} is needed");
        return Err(Error::shape(argument, tensor.shape(), allowed));
    }
    Ok(())
}

/// A scale of scores above which what tensor cores cut off becomes visible in f32.
const LARGE_SCALE: f32 = 0.2;

impl<'a> Problem<'a> {
    /// Checks everything that can be seen without reading device memory.
    pub fn new(
        q: &'a AnyTensor,
        k: &'a AnyTensor,
        v: &'a AnyTensor,
        options: &'a AttentionOptions,
        packed: Option<Packed<'a>>,
    ) -> Result<Problem<'a>> {
        options.check()?;
        let dtype = q.dtype();
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::Dtype {
                argument: "q",
                dtype,
                allowed: "f32, f16 or bf16".into(),
            });
        }
        for (argument, tensor) in [("k", k), ("v", v)] {
            if tensor.dtype() != dtype {
                let allowed = format!("the dtype of q, {dtype}, is needed");
                return Err(Error::Dtype {
                    argument,
                    dtype: tensor.dtype(),
                    allowed,
                });
            }
            if !tensor.device().same(q.device()) {
                return Err(Error::WrongDevice {
                    argument,
                    device: tensor.device().to_string(),
                    expected: q.device().to_string(),
                });
            }
        }
        let layout = options.layout;
        let is_packed = packed.is_some();
        let (qe, ke, ve) = (
            extents("q", q, is_packed, layout)?,
            extents("k", k, is_packed, layout)?,
            extents("v", v, is_packed, layout)?,
        );
        check_dim("q", q, qe.dim)?;
        check_dim("v", v, ve.dim)?;
        if ke.dim != qe.dim {
            return Err(Error::shape(
                "k",
                k.shape(),
                format!("the head dim of q, {}, is needed", qe.dim),
            ));
        }
        for (argument, tensor, e) in [("k", k, &ke), ("v", v, &ve)] {
            if e.batch != qe.batch {
                return Err(Error::shape(
                    argument,
                    tensor.shape(),
                    format!("the batch of q, {}, is needed", qe.batch),
                ));
            }
        }
        if (ve.tokens, ve.heads) != (ke.tokens, ke.heads) {
            let allowed = format!("the {} keys and {} heads of k are needed", ke.tokens, ke.heads);
            return Err(Error::shape("v", v.shape(), allowed));
        }
        if ke.heads == 0 && qe.heads > 0 || ke.heads > 0 && !qe.heads.is_multiple_of(ke.heads) {
            let allowed = format!("heads that divide the {} query heads are needed", qe.heads);
            return Err(Error::shape("k", k.shape(), allowed));
        }
        for (argument, tensor, tokens) in [("q", q, qe.tokens), ("k", k, ke.tokens)] {
            if tokens > MAX_TOKENS {
                return Err(Error::shape(
                    argument,
                    tensor.shape(),
                    format!("at most {MAX_TOKENS} tokens are allowed"),
                ));
            }
        }
        for (argument, tensor) in [("q", q), ("k", k), ("v", v)] {
            if tensor.elements() > 0 && !tensor.rows_aligned_to(16) {
                let problem = "the last axis must be dense and every row must start at a multiple of 16 bytes";
                return Err(Error::layout(argument, format!("{problem}, but it is {tensor:?}")));
            }
        }
        let (batch, rows) = match packed {
            None => (qe.batch, qe.tokens),
            Some(packed) => (check_packed(q, &packed, &qe, &ke)?, packed.max_q),
        };
        check_per_head("sinks", q, options.sinks.as_ref(), &[&[qe.heads]])?;
        check_per_head(
            "alibi_slopes",
            q,
            options.alibi_slopes.as_ref(),
            &[&[qe.heads], &[batch, qe.heads]],
        )?;
        Ok(Problem {
            q,
            k,
            v,
            options,
            packed,
            dtype,
            batch,
            heads_q: qe.heads,
            heads_kv: ke.heads,
            seq_q: qe.tokens,
            seq_kv: ke.tokens,
            rows,
            head_dim: qe.dim,
            value_dim: ve.dim,
            scale: options.scale_for(qe.dim)?,
        })
    }

    /// Strides of `tensor` by axis; all sequences of a packed tensor begin at its start.
    pub fn view(&self, tensor: &AnyTensor) -> View {
        let s = tensor.strides();
        let strides = match (self.packed.is_some(), self.options.layout) {
            (true, _) => [0, s[0], s[1]],
            (false, Layout::Bshd) => [s[0], s[1], s[2]],
            (false, Layout::Bhsd) => [s[0], s[2], s[1]],
        };
        View {
            address: tensor.address(),
            strides,
        }
    }

    /// Shape of O: that of Q with the dim of V.
    pub fn out_shape(&self) -> Vec<u64> {
        let mut shape = self.q.shape().to_vec();
        let last = shape.len() - 1;
        shape[last] = self.value_dim;
        shape
    }

    /// Shape of LSE.
    pub fn lse_shape(&self) -> Vec<u64> {
        match self.packed {
            None => vec![self.batch, self.heads_q, self.seq_q],
            Some(_) => vec![self.heads_q, self.seq_q],
        }
    }

    /// Query heads of a key head.
    pub fn group(&self) -> u64 {
        self.heads_q / self.heads_kv.max(1)
    }

    /// Whether the kernel needs the registers of softcap, ALiBi and dropout. A scale that is not positive goes there too: the
    /// others take the maximum before they scale; and in f32 with head dims from 65 to 128 a large one: there the extended
    /// kernels have tensor cores, which cut sums off, sum 16 columns alone.
    pub fn extended(&self) -> bool {
        let options = self.options;
        let dim = self.head_dim.max(self.value_dim);
        let exact = self.dtype == DType::F32 && (65..=128).contains(&dim) && self.scale > LARGE_SCALE;
        exact
            || options.softcap > 0.0
            || options.alibi_slopes.is_some()
            || options.active_dropout().is_some()
            || self.scale <= 0.0
    }
}

fn check_packed(q: &AnyTensor, packed: &Packed, qe: &Extents, ke: &Extents) -> Result<u64> {
    let arrays = [
        ("cu_seqlens_q", packed.cu_seqlens_q),
        ("cu_seqlens_k", packed.cu_seqlens_k),
    ];
    for (argument, tensor) in arrays {
        check_device(argument, tensor, q)?;
        if tensor.dtype() != DType::I32 {
            return Err(Error::Dtype {
                argument,
                dtype: tensor.dtype(),
                allowed: "i32".into(),
            });
        }
        if tensor.rank() != 1 || tensor.extent(0) == 0 {
            return Err(Error::shape(argument, tensor.shape(), "[sequences + 1] is needed"));
        }
        if !tensor.is_contiguous() {
            return Err(Error::layout(argument, "must be dense"));
        }
    }
    if packed.cu_seqlens_q.extent(0) != packed.cu_seqlens_k.extent(0) {
        let allowed = format!(
            "as many entries as cu_seqlens_q, {}, are needed",
            packed.cu_seqlens_q.extent(0)
        );
        return Err(Error::shape("cu_seqlens_k", packed.cu_seqlens_k.shape(), allowed));
    }
    for (argument, longest, tokens) in [("max_q", packed.max_q, qe.tokens), ("max_k", packed.max_k, ke.tokens)] {
        if longest > tokens {
            return Err(Error::range(
                argument,
                longest,
                format!("at most the {tokens} tokens that there are"),
            ));
        }
    }
    Ok(packed.cu_seqlens_q.extent(0) - 1)
}

fn check_device(argument: &'static str, tensor: &AnyTensor, q: &AnyTensor) -> Result<()> {
    if tensor.device().same(q.device()) {
        return Ok(());
    }
    Err(Error::WrongDevice {
        argument,
        device: tensor.device().to_string(),
        expected: q.device().to_string(),
    })
}

/// An f32 tensor of one of `shapes`.
fn check_per_head(argument: &'static str, q: &AnyTensor, tensor: Option<&AnyTensor>, shapes: &[&[u64]]) -> Result<()> {
    let Some(tensor) = tensor else { return Ok(()) };
    check_device(argument, tensor, q)?;
    if tensor.dtype() != DType::F32 {
        return Err(Error::Dtype {
            argument,
            dtype: tensor.dtype(),
            allowed: "f32".into(),
        });
    }
    if !shapes.contains(&tensor.shape()) {
        let shapes: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
        return Err(Error::shape(
            argument,
            tensor.shape(),
            format!("{} is needed", shapes.join(" or ")),
        ));
    }
    if !tensor.is_contiguous() {
        return Err(Error::layout(argument, "must be dense"));
    }
    Ok(())
}
