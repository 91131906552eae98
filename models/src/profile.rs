//! Where the time of a decode step goes, kernel by kernel.

use host::{AnyTensor, Device};

use crate::error::{Error, Result};
use crate::layers::{self, project};
use crate::model::Model;
use crate::session::Session;
use crate::step::Step;

/// Launches of one kind in a decode step.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// What they compute.
    pub name: &'static str,
    /// How many a step has.
    pub launches: usize,
    /// Microseconds of all of them, run one after the other in a graph of their own.
    pub microseconds: f64,
    /// Bytes of weights that they read.
    pub weight_bytes: u64,
}

/// Runs of a graph, of which the fastest counts.
const RUNS: usize = 20;

impl Model {
    /// The parts of a decode step of `sequences` sequences with `context` tokens each: the launches of a kind, over all layers, in
    /// a graph of their own. Together they take longer than a step, whose launches overlap.
    ///
    /// # Errors
    /// Those of [`Model::batch`] and of the device.
    pub fn profile_decode(&self, sequences: usize, context: usize) -> Result<Vec<KernelTime>> {
        let mut session = Session::new(self, sequences * (context + 1), context + 1, sequences)?;
        let (step, cache) = session.probe(sequences, context)?;
        Profile {
            model: self,
            step: &step,
            cache: &cache,
            found: Vec::new(),
        }
        .run()
    }
}

struct Profile<'a> {
    model: &'a Model,
    step: &'a Step,
    cache: &'a [[AnyTensor; 2]],
    found: Vec<KernelTime>,
}

impl Profile<'_> {
    fn run(mut self) -> Result<Vec<KernelTime>> {
        let (m, step, cache) = (self.model, self.step, self.cache);
        let (w, layers) = (&m.weights, m.config.num_layers);
        let bytes = |t: &AnyTensor| t.elements() * t.dtype().size();
        let over = |of: fn(&crate::weights::Block) -> &crate::weights::Affine| -> u64 {
            w.blocks.iter().map(|b| bytes(&of(b).weight)).sum()
        };
        let x = layers::embed(&w.tokens, &step.tokens)?;
        let first = &w.blocks[0];
        let qkv = project(m, step, (&x, Some(&first.attention_norm)), &first.qkv, None, None)?;
        let a = layers::attention(m, 0, &qkv, step, &cache[0])?;
        let activation = m.config.activation;
        let up = |b: &crate::weights::Block| {
            if m.config.gated_mlp {
                layers::gated(m, step, (&x, &b.mlp_norm), &b.up, activation)
            } else {
                project(m, step, (&x, Some(&b.mlp_norm)), &b.up, Some(activation), None)
            }
        };
        let inner = up(first)?;
        self.time("embedding", 1, 0, || layers::embed(&w.tokens, &step.tokens).map(drop))?;
        self.time("norm, QKV product", layers, over(|b| &b.qkv), || {
            w.blocks
                .iter()
                .try_for_each(|b| project(m, step, (&x, Some(&b.attention_norm)), &b.qkv, None, None).map(drop))
        })?;
        self.time("rotation, cache, attention", layers, 0, || {
            (0..layers).try_for_each(|i| layers::attention(m, i, &qkv, step, &cache[i]).map(drop))
        })?;
        self.time("attention's product", layers, over(|b| &b.attention_out), || {
            let mut blocks = w.blocks.iter();
            blocks.try_for_each(|b| project(m, step, (&a, None), &b.attention_out, None, Some(&x)).map(drop))
        })?;
        self.time("norm, MLP in", layers, over(|b| &b.up), || {
            w.blocks.iter().try_for_each(|b| up(b).map(drop))
        })?;
        self.time("MLP out", layers, over(|b| &b.down), || {
            let mut blocks = w.blocks.iter();
            blocks.try_for_each(|b| project(m, step, (&inner, None), &b.down, None, Some(&x)).map(drop))
        })?;
        let logits = AnyTensor::empty(&m.device, host::DType::F32, &[step.batch, m.config.vocab_size as u64])?;
        self.time("last norm, head", 1, bytes(&w.head), || layers::head(m, &x, &logits))?;
        self.time("largest logit", 1, 0, || Ok(host::ops::argmax(&logits).map(drop)?))?;
        self.time("the whole step, alone", 1, 0, || {
            let hidden = if w.positions.is_some() {
                crate::gpt2::forward(m, step, cache)?
            } else {
                crate::llama::forward(m, step, cache)?
            };
            layers::head(m, &hidden, &logits)?;
            Ok(host::ops::argmax(&logits).map(drop)?)
        })?;
        Ok(self.found)
    }

    fn time(
        &mut self,
        name: &'static str,
        launches: usize,
        weight_bytes: u64,
        work: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let device: &Device = &self.model.device;
        work()?;
        let recorded = device.capture(|| {
            work().map_err(|error| match error {
                Error::Device(error) => error,
                error => host::Error::unsupported(error.to_string()),
            })
        });
        let (graph, ()) = recorded?;
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            let begin = device.stream().record()?;
            graph.launch()?;
            let end = device.stream().record()?;
            end.synchronize()?;
            best = best.min(f64::from(end.elapsed_ms(&begin)?) * 1e3);
        }
        self.found.push(KernelTime {
            name,
            launches,
            microseconds: best,
            weight_bytes,
        });
        Ok(())
    }
}
