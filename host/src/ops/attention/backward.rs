//! Gradients of attention.

mod kernels;
mod once;

use kernels::Plan;
use kernels_gpu::attention::params::{BackwardParams, DELTA_THREADS, Tiles, delta_rows};

use super::{
    options::{AttentionOptions, Causal, Dropout, Layout},
    plan::{self, Target},
    plan_sm90,
    validate::{Packed, Problem},
};
use crate::{
    AnyTensor, DType, Error, Result, Stream,
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
/// One kernel owns keys, another queries; in f16 and bf16 with as many key heads as query heads, on Hopper with head dims
/// up to 128 and on GPUs of the sm_80 tier whose shared memory has room, one kernel owns keys and adds to dQ in a fixed
/// order. Either way the same inputs give the same bits.
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

    /// What the call needs beside its gradients, in f32: as many as LSE has; where one kernel computes all gradients dQ in
    /// f32, two for each row (of whole tiles of rows) and a counter a tile besides. Nothing of size `Sq · Skv`.
    pub fn work_elements(&self) -> u64 {
        Problem::new(self.q, self.k, self.v, &self.options, self.packed)
            .and_then(|problem| Plan::new(&problem))
            .map_or(self.lse.elements(), |plan| plan.work_elements(self.lse))
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
        let plan = Plan::new(&problem)?;
        self.check_forward(&problem, &plan)?;
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
            None => AnyTensor::empty(device, DType::F32, &[plan.work_elements(self.lse)])?,
        };
        let launches = match &plan.once {
            Some(once) => self.prepare_once(&problem, &plan, once, &gradients, &delta)?,
            None => self.prepare(&problem, &plan, &gradients, &delta)?,
        };
        let all = [
            Some(&gradients.dq),
            Some(&gradients.dk),
            Some(&gradients.dv),
            gradients.dsinks.as_ref(),
        ];
        // Tokens of no sequence have gradient 0, and so has everything when there is nothing to launch.
        let kernels = if plan.once.is_some() { 3 } else { 2 + plan.of_keys.len() };
        let expected = kernels + usize::from(gradients.dsinks.is_some());
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
    fn check_forward(&self, problem: &Problem, plan: &Plan) -> Result<()> {
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
        let needed = plan.work_elements(self.lse);
        if work.elements() < needed {
            let allowed = format!("at least {needed} elements are needed");
            return Err(Error::shape("work", work.shape(), allowed));
        }
        check("work", work, self.q, DType::F32, work.shape())?;
        if !work.is_contiguous() || !work.address().is_multiple_of(16) {
            return Err(Error::layout(
                "work",
                "must be dense and start at a multiple of 16 bytes",
            ));
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
        // Hopper's kernels follow each other before the one in front has ended; the first waits for Δ.
        let follows = |contract: Contract<'b>, launches: &[(Prepared<'b>, BackwardParams)]| {
            if plan.mapped && launches.len() > 1 {
                contract.programmatic()
            } else {
                contract
            }
        };
        for entry in plan.of_keys.iter().filter(|_| keys > 0) {
            let contract = follows(self.contract(entry), &launches)
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
        let contract = follows(self.contract(&plan.of_queries), &launches)
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
            price: [0; 3],
            heads: 0,
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
            statistics: 0,
            dq_sum: 0,
            turns: 0,
            next: 0,
            grad_out_strides: grad_out.strides,
            dq_strides: dq.strides,
            dk_strides: dk.strides,
            dv_strides: dv.strides,
            heads_kv: problem.heads_kv as u32,
            rows: problem.rows as u32,
            query_tile: 0,
            query_tiles: 0,
            plane_tiles: 0,
            key_tiles: 0,
            section: 0,
            ring: 0,
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
