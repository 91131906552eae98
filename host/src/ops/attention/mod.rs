//! Attention and its gradients: `O = softmax(mask(bias(softcap(scale · Q·Kᵀ)))) · V` and its log-sum-exp, forward and backward.
//!
//! One op and one set of options on every tier and backend. [`validate`] turns tensors into a problem, a plan a tier
//! chooses kernel, tile and grid by fixed rules of the problem's own shape: never of the batch, so that a row's bits do
//! not depend on it.
//!
//! f32 is within 10⁻⁵ of what is summed on every tier: sm_75 multiplies and adds in f32, sm_80 and later multiply on
//! tensor cores, three products of TF32 numbers a product (which makes NaN of the products of an infinite operand).

#[macro_use]
mod options;
mod backward;
mod context;
mod plan;
mod plan_mma;
mod plan_sm90;
mod validate;

pub use backward::{AttentionBackward, AttentionGradients, attention_backward};
pub use context::AttentionContext;
pub use options::{AttentionOptions, Causal, Dropout, Layout};

use self::validate::{Packed, Problem};
use crate::{AnyTensor, DType, Error, Result, Stream, Tier};

/// What attention computes.
#[derive(Clone, Debug)]
pub struct Attention {
    /// O: the shape of Q with the head dim of V, and the dtype of Q. 0 in rows without keys.
    pub out: AnyTensor,
    /// Natural log-sum-exp of the scaled and masked scores and the sink, f32, `[B, Hq, Sq]` or, packed,
    /// `[Hq, tokens]`. In rows without keys the sink, or −∞.
    pub lse: AnyTensor,
}

/// A call of [`attention`] that is being put together.
#[must_use = "nothing happens before run()"]
pub struct AttentionCall<'a> {
    q: &'a AnyTensor,
    k: &'a AnyTensor,
    v: &'a AnyTensor,
    options: AttentionOptions,
    packed: Option<Packed<'a>>,
    block_m: Option<u32>,
    block_n: Option<u32>,
    out: Option<&'a AnyTensor>,
    stream: Option<&'a Stream>,
}

/// Attention of queries `q` over keys `k` and values `v`.
///
/// f32, f16 or bf16 (bf16 from tier sm_80 on), head dims that are multiples of 8 up to 256 (values may have fewer
/// elements than keys), any number of query heads for each key head, any strides that keep rows at multiples of 16
/// bytes. `[B, S, H, D]` unless [`AttentionCall::layout`] says otherwise.
///
/// ```
/// use host::{Device, Tensor, f16, ops::attention};
///
/// let device = Device::new()?;
/// let x = Tensor::from_slice(&device, &[f16::from_f32(0.5); 2 * 5 * 4 * 8], &[2, 5, 4, 8])?;
/// let result = attention(&x, &x, &x).causal().run()?;
/// assert_eq!(result.out.shape(), [2, 5, 4, 8]);
/// assert_eq!(result.lse.shape(), [2, 4, 5]);
/// # Ok::<(), host::Error>(())
/// ```
pub fn attention<'a>(q: &'a AnyTensor, k: &'a AnyTensor, v: &'a AnyTensor) -> AttentionCall<'a> {
    AttentionCall {
        q,
        k,
        v,
        options: AttentionOptions::default(),
        packed: None,
        block_m: None,
        block_n: None,
        out: None,
        stream: None,
    }
}

impl<'a> AttentionCall<'a> {
    option_builders!();

    /// Query rows of a tile, where the kernel of the problem exists with as many.
    pub fn block_m(mut self, rows: u32) -> Self {
        self.block_m = Some(rows);
        self
    }

    /// Keys of a tile, where the kernel of the problem exists with as many.
    pub fn block_n(mut self, keys: u32) -> Self {
        self.block_n = Some(keys);
        self
    }

    /// Writes O into this dense tensor instead of a new one.
    pub fn out(mut self, out: &'a AnyTensor) -> Self {
        self.out = Some(out);
        self
    }

    /// Launches.
    ///
    /// # Errors
    /// - [`Error::Shape`], [`Error::Dtype`], [`Error::Layout`], [`Error::Range`], [`Error::WrongDevice`] naming the
    ///   argument, its value and what is allowed.
    /// - [`Error::Unsupported`] for what the device's tier has no kernel for.
    /// - [`Error::OutOfMemory`], [`Error::Poisoned`].
    pub fn run(self) -> Result<Attention> {
        let (out, lse) = self.launch(true)?;
        let lse = lse.expect("it was asked for");
        Ok(Attention { out, lse })
    }

    /// As [`run`](Self::run), without the log-sum-exp.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub fn run_without_lse(self) -> Result<AnyTensor> {
        Ok(self.launch(false)?.0)
    }

    /// As [`run`](Self::run), together with everything that the backward pass needs.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub fn run_with_context(self) -> Result<AttentionContext> {
        let (out, lse) = self.launch(true)?;
        let lse = lse.expect("it was asked for");
        Ok(AttentionContext::new(
            [self.q, self.k, self.v],
            Attention { out, lse },
            self.options,
            self.packed,
        ))
    }

    fn launch(&self, with_lse: bool) -> Result<(AnyTensor, Option<AnyTensor>)> {
        let problem = Problem::new(self.q, self.k, self.v, &self.options, self.packed)?;
        let device = self.q.device();
        let out_shape = problem.out_shape();
        let out = match self.out {
            None => AnyTensor::empty(device, problem.dtype, &out_shape)?,
            Some(out) => {
                if out.dtype() != problem.dtype {
                    let allowed = format!("the dtype of q, {}, is needed", problem.dtype);
                    return Err(Error::Dtype {
                        argument: "out",
                        dtype: out.dtype(),
                        allowed,
                    });
                }
                if out.shape() != out_shape {
                    return Err(Error::shape("out", out.shape(), format!("{out_shape:?} is needed")));
                }
                if !out.is_contiguous() {
                    return Err(Error::layout("out", "must be dense"));
                }
                if out.address() % 16 != 0 {
                    return Err(Error::layout("out", "must begin at a multiple of 16 bytes"));
                }
                out.clone()
            }
        };
        let lse = with_lse
            .then(|| AnyTensor::empty(device, DType::F32, &problem.lse_shape()))
            .transpose()?;
        let target = plan::Target {
            out: &out,
            lse: lse.as_ref(),
            stream: self.stream,
        };
        let blocks = plan::Blocks {
            rows: self.block_m,
            keys: self.block_n,
        };
        if problem.batch * problem.heads_q * problem.rows > 0 {
            match (device.tier(), problem.dtype) {
                (Tier::Sm90a, DType::F16 | DType::BF16) => plan_sm90::launch(&problem, &blocks, &target)?,
                _ => plan_mma::launch(&problem, &blocks, &target)?,
            }
        }
        Ok((out, lse))
    }
}

/// flash-attn's `flash_attn_func`: `[B, S, H, D]`, scale `1 / √D`, windows of −1 for none.
///
/// # Errors
/// As for [`AttentionCall::run`].
pub fn flash_attn(q: &AnyTensor, k: &AnyTensor, v: &AnyTensor, causal: bool, window: (i64, i64)) -> Result<AnyTensor> {
    flash(attention(q, k, v), causal, window)?.run_without_lse()
}

/// flash-attn's `flash_attn_varlen_func`: packed sequences, see [`AttentionCall::cu_seqlens`].
///
/// # Errors
/// As for [`AttentionCall::run`].
#[allow(clippy::too_many_arguments, reason = "flash-attn's arguments")]
pub fn flash_attn_varlen(
    q: &AnyTensor,
    k: &AnyTensor,
    v: &AnyTensor,
    cu_seqlens_q: &AnyTensor,
    cu_seqlens_k: &AnyTensor,
    max_seqlen_q: u64,
    max_seqlen_k: u64,
    causal: bool,
    window: (i64, i64),
) -> Result<AnyTensor> {
    let call = attention(q, k, v).cu_seqlens(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k);
    flash(call, causal, window)?.run_without_lse()
}

fn flash<'a>(call: AttentionCall<'a>, causal: bool, (left, right): (i64, i64)) -> Result<AttentionCall<'a>> {
    let side = |argument, window: i64| match u32::try_from(window) {
        Ok(window) => Ok(Some(window)),
        Err(_) if window == -1 => Ok(None),
        Err(_) => Err(Error::range(argument, window, "−1 (all) to 2^32 − 1")),
    };
    let call = call.window(side("window.0", left)?, side("window.1", right)?);
    Ok(if causal { call.causal() } else { call })
}
