//! Gradients of attention.

use kernels_gpu::attention::params::{
    BACKWARD_F32, BACKWARD_MMA_SM75, BACKWARD_MMA_SM80, BACKWARD_SM90, BackwardParams, BackwardTiles, DELTA_THREADS,
    Tiles, delta_rows,
};

use super::{
    options::{AttentionOptions, Causal, Dropout, Layout},
    plan::{self, Target},
    plan_sm90,
    validate::{Packed, Problem},
};
use crate::{
    AnyTensor, DType, Error, Result, Stream, Tier,
    launch::{Contract, Prepared},
};

/// Gradients of attention.
#[derive(Clone, Debug)]
pub struct AttentionGradients {
    /// dQ, as Q. 0 in rows without keys.
    pub dq: AnyTensor,
    /// dK, as K. 0 for keys that no query sees.
    pub dk: AnyTensor,
    /// dV, as V.
    pub dv: AnyTensor,
    /// Gradients of the sinks, f32 `[Hq]`, if there were any.
    pub dsinks: Option<AnyTensor>,
}

/// A call of [`attention_backward`] that is being put together.
#[must_use = "nothing happens before run()"]
pub struct AttentionBackward<'a> {
    grad_out: &'a AnyTensor,
    q: &'a AnyTensor,
    k: &'a AnyTensor,
    v: &'a AnyTensor,
    out: &'a AnyTensor,
    lse: &'a AnyTensor,
    options: AttentionOptions,
    packed: Option<Packed<'a>>,
    gradients: Option<[&'a AnyTensor; 3]>,
    work: Option<&'a AnyTensor>,
    stream: Option<&'a Stream>,
}

/// Gradients of `Σ grad_out ∘ out` by queries, keys, values and sinks, for `out` and `lse` of
/// [`attention`](super::attention()) with the same inputs and options.
///
/// Probabilities are computed again from the LSE: with `Δ = rowsum(dO ∘ O)` and `P = exp(S − LSE)`,
/// `dV = Pᵀ·dO`, `dS = P ∘ (dO·Vᵀ − Δ)`, `dQ = scale·dS·K`, `dK = scale·dSᵀ·Q`, `d sink = −Σ exp(sink − LSE)·Δ`.
/// Dropout puts its factors on `P` in dV and on `dO·Vᵀ`.
/// One kernel owns keys, another queries: no atomics, so the same inputs give the same bits.
///
/// ```
/// use host::{Device, Tensor, f16, ops::{attention, attention_backward}};
///
/// let device = Device::new()?;
/// let x = Tensor::from_slice(&device, &[f16::from_f32(0.5); 2 * 5 * 4 * 8], &[2, 5, 4, 8])?;
/// let forward = attention(&x, &x, &x).causal().run()?;
/// let gradients = attention_backward(&x, &x, &x, &x, &forward.out, &forward.lse).causal().run()?;
/// assert_eq!(gradients.dq.shape(), [2, 5, 4, 8]);
/// # Ok::<(), host::Error>(())
/// ```
pub fn attention_backward<'a>(
    grad_out: &'a AnyTensor,
    q: &'a AnyTensor,
    k: &'a AnyTensor,
    v: &'a AnyTensor,
    out: &'a AnyTensor,
    lse: &'a AnyTensor,
) -> AttentionBackward<'a> {
    AttentionBackward {
        grad_out,
        q,
        k,
        v,
        out,
        lse,
        options: AttentionOptions::default(),
        packed: None,
        gradients: None,
        work: None,
        stream: None,
    }
}

/// The tiles of a problem.
struct Plan {
    keys: BackwardTiles,
    queries: BackwardTiles,
    shared: fn(BackwardTiles) -> u32,
    /// Padded dim of values, for Δ.
    delta_dim: u32,
    /// The kernel for Δ.
    delta: String,
    /// Kernels for keys: one, or one for dK and one for dV.
    of_keys: Vec<String>,
    /// The kernel for queries.
    of_queries: String,
    /// Whether kernels load by tensor maps.
    mapped: bool,
}

impl Plan {
    fn new(problem: &Problem) -> Result<Plan> {
        let tier = problem.q.device().tier();
        let extended = problem.extended();
        let mma = |tables: [[BackwardTiles; 3]; 2]| (tables, BackwardTiles::shared_bytes_mma as fn(_) -> _);
        let ([keys, queries], shared) = match (problem.dtype, tier) {
            (DType::F32, _) => (
                [BACKWARD_F32, BACKWARD_F32],
                BackwardTiles::shared_bytes_f32 as fn(_) -> _,
            ),
            (DType::BF16, Tier::Sm75) => {
                let what = "the gradient of attention in bf16 (f16 and f32 are)".into();
                return Err(Error::Unsupported { what, tier: Some(tier) });
            }
            (_, Tier::Sm75) => mma(BACKWARD_MMA_SM75),
            (_, Tier::Sm90a) if !extended => (BACKWARD_SM90, BackwardTiles::shared_bytes_sm90 as fn(_) -> _),
            _ => mma(BACKWARD_MMA_SM80),
        };
        // Dims of 256 at most have been checked, and every table ends there.
        let at = |dim: u64| {
            keys.iter()
                .position(|tiles| dim <= tiles.dim.into())
                .unwrap_or(keys.len() - 1)
        };
        let index = at(problem.head_dim.max(problem.value_dim));
        let mapped = tier == Tier::Sm90a && problem.dtype != DType::F32 && !extended;
        let variant = if extended { "_extended" } else { "" };
        let (dtype, dim, delta_dim) = (problem.dtype, keys[index].dim, keys[at(problem.value_dim)].dim);
        let entry = |kind: &str| format!("attention_backward_{kind}{variant}_{dtype}_d{dim}");
        // A row of both gradients of 256 does not fit the registers of Hopper's kernel.
        let of_keys = if mapped && dim == 256 {
            vec![entry("k"), entry("v")]
        } else {
            vec![entry("kv")]
        };
        Ok(Plan {
            keys: keys[index],
            queries: queries[index],
            shared,
            delta_dim,
            delta: format!("attention_backward_delta_{dtype}_d{delta_dim}"),
            of_keys,
            of_queries: entry("q"),
            mapped,
        })
    }
}

impl<'a> AttentionBackward<'a> {
    option_builders!();

    /// Writes the gradients of queries, keys and values into these dense tensors instead of new ones.
    pub fn gradients(mut self, dq: &'a AnyTensor, dk: &'a AnyTensor, dv: &'a AnyTensor) -> Self {
        self.gradients = Some([dq, dk, dv]);
        self
    }

    /// Works in this dense f32 tensor of at least [`work_elements`](Self::work_elements) instead of a new one.
    pub fn work(mut self, work: &'a AnyTensor) -> Self {
        self.work = Some(work);
        self
    }

    /// What the call needs beside its gradients: as many f32 as LSE has, and nothing of size `Sq · Skv`.
    pub fn work_elements(&self) -> u64 {
        self.lse.elements()
    }

    /// Launches.
    ///
    /// # Errors
    /// Before anything is launched:
    /// - [`Error::Shape`], [`Error::Dtype`], [`Error::Layout`], [`Error::Range`], [`Error::WrongDevice`] naming the
    ///   argument, its value and what is allowed: O, LSE or dO of another problem, gradients that overlap anything.
    /// - [`Error::Unsupported`] for what the device's tier has no kernel for.
    /// - [`Error::OutOfMemory`] with the bytes asked for, [`Error::Poisoned`].
    pub fn run(self) -> Result<AttentionGradients> {
        let problem = Problem::new(self.q, self.k, self.v, &self.options, self.packed)?;
        self.check_forward(&problem)?;
        let plan = Plan::new(&problem)?;
        let device = self.q.device();
        let like = |tensor: &AnyTensor| AnyTensor::empty(device, problem.dtype, tensor.shape());
        let gradients = AttentionGradients {
            dq: self.gradients.map_or_else(|| like(self.q), |g| Ok(g[0].clone()))?,
            dk: self.gradients.map_or_else(|| like(self.k), |g| Ok(g[1].clone()))?,
            dv: self.gradients.map_or_else(|| like(self.v), |g| Ok(g[2].clone()))?,
            dsinks: match &self.options.sinks {
                Some(sinks) => Some(AnyTensor::empty(device, DType::F32, sinks.shape())?),
                None => None,
            },
        };
        self.check_gradients(&gradients)?;
        let delta = match self.work {
            Some(work) => work.clone(),
            None => AnyTensor::empty(device, DType::F32, self.lse.shape())?,
        };
        let launches = self.prepare(&problem, &plan, &gradients, &delta)?;
        let all = [
            Some(&gradients.dq),
            Some(&gradients.dk),
            Some(&gradients.dv),
            gradients.dsinks.as_ref(),
        ];
        // Tokens of no sequence have gradient 0, and so has everything when there is nothing to launch.
        let expected = 2 + plan.of_keys.len() + usize::from(gradients.dsinks.is_some());
        if problem.packed.is_some() || launches.len() < expected {
            for tensor in all.into_iter().flatten() {
                tensor.fill_bytes_on(0, self.stream)?;
            }
        }
        for (launch, params) in launches {
            // SAFETY: the argument struct of these kernels; addresses, extents and strides are those of the tensors in
            // the contract, and what packed bounds say is cut to the tensors by the kernels.
            unsafe { launch.launch(&params)? };
        }
        Ok(gradients)
    }

    /// Whether O, LSE and dO are those of the problem.
    fn check_forward(&self, problem: &Problem) -> Result<()> {
        let out_shape = problem.out_shape();
        let lse_shape = problem.lse_shape();
        for (argument, tensor, dtype, shape) in [
            ("grad_out", self.grad_out, problem.dtype, &out_shape),
            ("out", self.out, problem.dtype, &out_shape),
            ("lse", self.lse, DType::F32, &lse_shape),
        ] {
            check(argument, tensor, self.q, dtype, shape)?;
        }
        for (argument, tensor) in [("grad_out", self.grad_out), ("out", self.out)] {
            if tensor.elements() > 0 && !tensor.rows_aligned_to(16) {
                let problem = "the last axis must be dense and every row must start at a multiple of 16 bytes";
                return Err(Error::layout(argument, format!("{problem}, but it is {tensor:?}")));
            }
        }
        if !self.lse.is_contiguous() {
            return Err(Error::layout("lse", "must be dense"));
        }
        let Some(work) = self.work else { return Ok(()) };
        if work.elements() < self.work_elements() {
            let allowed = format!("at least {} elements are needed", self.work_elements());
            return Err(Error::shape("work", work.shape(), allowed));
        }
        check("work", work, self.q, DType::F32, work.shape())?;
        if !work.is_contiguous() {
            return Err(Error::layout("work", "must be dense"));
        }
        Ok(())
    }

    fn check_gradients(&self, gradients: &AttentionGradients) -> Result<()> {
        let outputs = [
            ("dq", &gradients.dq, self.q),
            ("dk", &gradients.dk, self.k),
            ("dv", &gradients.dv, self.v),
        ];
        let options = &self.options;
        let inputs = [
            ("grad_out", Some(self.grad_out)),
            ("q", Some(self.q)),
            ("k", Some(self.k)),
            ("v", Some(self.v)),
            ("out", Some(self.out)),
            ("lse", Some(self.lse)),
            ("work", self.work),
            ("alibi_slopes", options.alibi_slopes.as_ref()),
            ("sinks", options.sinks.as_ref()),
        ];
        for (i, (argument, tensor, like)) in outputs.into_iter().enumerate() {
            check(argument, tensor, self.q, self.q.dtype(), like.shape())?;
            if !tensor.is_contiguous() || (tensor.elements() > 0 && !tensor.rows_aligned_to(16)) {
                let problem = "must be dense and start at a multiple of 16 bytes";
                return Err(Error::layout(argument, problem));
            }
            let others = outputs[..i].iter().map(|&(name, other, _)| (name, Some(other)));
            for (name, other) in inputs.into_iter().chain(others) {
                if other.is_some_and(|other| tensor.overlaps(other)) {
                    return Err(Error::layout(argument, format!("overlaps {name}")));
                }
            }
        }
        Ok(())
    }

    /// Every launch that the problem needs, checked, in order.
    fn prepare<'b>(
        &'b self,
        problem: &Problem,
        plan: &'b Plan,
        gradients: &'b AttentionGradients,
        delta: &'b AnyTensor,
    ) -> Result<Vec<(Prepared<'b>, BackwardParams)>> {
        let mut launches = Vec::new();
        if problem.batch * problem.heads_q * problem.rows == 0 {
            return Ok(launches);
        }
        let blocks = |heads: u64, tokens: u64, tile: u32, what: &'static str| {
            let tiles = tokens.div_ceil(tile.into());
            let count = problem
                .batch
                .checked_mul(heads)
                .and_then(|planes| planes.checked_mul(tiles));
            count.filter(|&count| count <= i32::MAX as u64).ok_or_else(|| {
                let value = format!("{} · {heads} · {tiles}", problem.batch);
                Error::range(what, value, format!("at most {}", i32::MAX))
            })
        };
        const ROWS: &str = "batch · heads · row tiles";
        const KEYS: &str = "batch · key heads · key tiles";

        let rows = delta_rows(plan.delta_dim);
        let contract = self
            .contract(&plan.delta)
            .grid([blocks(problem.heads_q, problem.rows, rows, ROWS)?, 1, 1])
            .reads("out", self.out)
            .writes("work", delta);
        launches.push((contract.prepare()?, self.params(problem, rows, gradients, delta)));

        let keys = self.packed.map_or(problem.seq_kv, |packed| packed.max_k);
        let (tiles, shared) = (plan.keys, (plan.shared)(plan.keys));
        for entry in plan.of_keys.iter().filter(|_| keys > 0) {
            let contract = self
                .contract(entry)
                .grid([blocks(problem.heads_kv, keys, tiles.own, KEYS)?, 1, 1])
                .shared(shared.into())
                .reads("work", delta)
                .writes("dk", &gradients.dk)
                .writes("dv", &gradients.dv);
            let mut params = self.params(problem, tiles.own, gradients, delta);
            if plan.mapped {
                plan_sm90::backward_maps(problem, self.grad_out, [tiles.other, tiles.own], &mut params)?;
            }
            launches.push((contract.prepare()?, params));
        }
        let (tiles, shared) = (plan.queries, (plan.shared)(plan.queries));
        let contract = self
            .contract(&plan.of_queries)
            .grid([blocks(problem.heads_q, problem.rows, tiles.own, ROWS)?, 1, 1])
            .shared(shared.into())
            .reads("work", delta)
            .writes("dq", &gradients.dq);
        let mut params = self.params(problem, tiles.own, gradients, delta);
        if plan.mapped {
            plan_sm90::backward_maps(problem, self.grad_out, [tiles.own, tiles.other], &mut params)?;
        }
        launches.push((contract.prepare()?, params));
        if let Some(dsinks) = &gradients.dsinks {
            let contract = self
                .contract("attention_backward_sinks")
                .grid([problem.heads_q, 1, 1])
                .shared(u64::from(DELTA_THREADS / 32 * 4))
                .reads("work", delta)
                .writes("dsinks", dsinks);
            launches.push((contract.prepare()?, self.params(problem, tiles.own, gradients, delta)));
        }
        Ok(launches)
    }

    /// A launch that reads all inputs.
    fn contract<'b>(&'b self, entry: &'b str) -> Contract<'b> {
        Contract::new(self.q.device(), entry)
            .on(self.stream)
            .reads("grad_out", self.grad_out)
            .reads("q", self.q)
            .reads("k", self.k)
            .reads("v", self.v)
            .reads("lse", self.lse)
            .reads_if("cu_seqlens_q", self.packed.map(|packed| packed.cu_seqlens_q))
            .reads_if("cu_seqlens_k", self.packed.map(|packed| packed.cu_seqlens_k))
            .reads_if("alibi_slopes", self.options.alibi_slopes.as_ref())
            .reads_if("sinks", self.options.sinks.as_ref())
    }

    /// The argument of a kernel with tiles of `rows` query rows.
    fn params(
        &self,
        problem: &Problem,
        rows: u32,
        gradients: &AttentionGradients,
        delta: &AnyTensor,
    ) -> BackwardParams {
        let target = Target {
            out: self.out,
            lse: Some(self.lse),
            stream: self.stream,
        };
        // Only the rows of the tile matter here.
        let tiles = Tiles {
            dim: 0,
            rows,
            keys: 0,
            price: 0,
        };
        let view = |tensor| problem.view(tensor);
        let (grad_out, dq, dk, dv) = (
            view(self.grad_out),
            view(&gradients.dq),
            view(&gradients.dk),
            view(&gradients.dv),
        );
        BackwardParams {
            grad_out_map: [0; 16],
            attention: plan::params(problem, tiles, &target),
            grad_out: grad_out.address,
            delta: delta.address(),
            dq: dq.address,
            dk: dk.address,
            dv: dv.address,
            dsinks: gradients.dsinks.as_ref().map_or(0, AnyTensor::address),
            grad_out_strides: grad_out.strides,
            dq_strides: dq.strides,
            dk_strides: dk.strides,
            dv_strides: dv.strides,
            heads_kv: problem.heads_kv as u32,
            rows: problem.rows as u32,
        }
    }
}

/// Device, dtype and shape of an argument.
fn check(argument: &'static str, tensor: &AnyTensor, q: &AnyTensor, dtype: DType, shape: &[u64]) -> Result<()> {
    if !tensor.device().same(q.device()) {
        return Err(Error::WrongDevice {
            argument,
            device: tensor.device().to_string(),
            expected: q.device().to_string(),
        });
    }
    if tensor.dtype() != dtype {
        return Err(Error::Dtype {
            argument,
            dtype: tensor.dtype(),
            allowed: format!("{dtype} is needed"),
        });
    }
    if tensor.shape() != shape {
        return Err(Error::shape(argument, tensor.shape(), format!("{shape:?} is needed")));
    }
    Ok(())
}
