//! Steps of training: forward, loss, backward, AdamW.

use ferroflash::{
    AdamW, AdamWState, AnyTensor, DType, Device, Dropout, ReduceAxis, ReduceKind, Result, Tensor, cast, cross_entropy,
    reduce, sample,
};

use crate::{
    gpt::{Shape, Weights},
    text::Batch,
};

/// How to train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub shape: Shape,
    /// Sequences of a step.
    pub batch: u64,
    pub learning_rate: f64,
    /// Of matrices; biases and norms have none.
    pub weight_decay: f64,
    /// Of attention's probabilities.
    pub dropout: f32,
    pub seed: u64,
}

/// The optimizer's tensors of a parameter, f32.
struct Moments {
    first: AnyTensor,
    second: AnyTensor,
    /// The parameter itself, where it is of fewer bits.
    master: Option<AnyTensor>,
}

/// A model that is being trained.
pub struct Trainer {
    settings: Settings,
    weights: Weights,
    moments: Vec<Moments>,
    steps: u32,
}

impl Trainer {
    /// A model at its start.
    pub fn new(device: &Device, settings: Settings, dtype: DType) -> Result<Trainer> {
        let weights = Weights::new(device, &settings.shape, dtype, settings.seed)?;
        let moments = weights
            .tensors()
            .into_iter()
            .map(|weight| {
                let zeros = || AnyTensor::zeros(device, DType::F32, weight.shape());
                Ok(Moments {
                    first: zeros()?,
                    second: zeros()?,
                    master: match dtype {
                        DType::F32 => None,
                        _ => Some(cast(weight, DType::F32)?),
                    },
                })
            })
            .collect::<Result<_>>()?;
        Ok(Trainer {
            settings,
            weights,
            moments,
            steps: 0,
        })
    }

    /// Parameters that there are.
    pub fn parameters(&self) -> u64 {
        self.weights.count()
    }

    /// One step; the loss before it, in nats a token. Waits for it.
    pub fn step(&mut self, batch: &Batch) -> Result<f32> {
        let Settings { shape, dropout, .. } = self.settings;
        let dropout = (dropout != 0.0).then_some(Dropout {
            probability: dropout,
            seed: self.settings.seed,
            offset: self.steps.into(),
        });
        let forward = self.weights.forward(&shape, &batch.inputs, shape.context, dropout)?;
        let targets = targets(&forward.logits, batch)?;
        // The gradient of the mean takes the place of the logits.
        let scale = 1.0 / batch.inputs.len() as f32;
        let losses = cross_entropy(&forward.logits, &targets).run_with_gradient_in_place(scale)?;
        let gradients = self.weights.backward(&forward, &forward.logits)?;
        self.steps += 1;
        for ((weight, gradient), moments) in self
            .weights
            .tensors()
            .iter()
            .zip(gradients.tensors())
            .zip(&self.moments)
        {
            let optimizer = AdamW {
                learning_rate: self.settings.learning_rate,
                beta1: 0.9,
                beta2: 0.95,
                weight_decay: if weight.rank() == 2 {
                    self.settings.weight_decay
                } else {
                    0.0
                },
                ..AdamW::default()
            };
            let state = AdamWState {
                parameters: weight,
                master: moments.master.as_ref(),
                first: &moments.first,
                second: &moments.second,
            };
            optimizer.step(self.steps, &state, gradient)?;
        }
        mean(&losses.loss)
    }

    /// The loss of a batch that is not learnt from.
    pub fn evaluate(&self, batch: &Batch) -> Result<f32> {
        let shape = &self.settings.shape;
        let forward = self.weights.forward(shape, &batch.inputs, shape.context, None)?;
        mean(
            &cross_entropy(&forward.logits, targets(&forward.logits, batch)?.any())
                .run()?
                .loss,
        )
    }

    /// Text that follows `prompt`, byte by byte: each time all of the context again, for there is no cache here.
    pub fn write(&self, prompt: &[u8], bytes: u64, temperature: f32) -> Result<Vec<u8>> {
        let shape = &self.settings.shape;
        let mut ids: Vec<i32> = prompt.iter().map(|&byte| i32::from(byte)).collect();
        for offset in 0..bytes {
            let seen = &ids[ids.len().saturating_sub(shape.context as usize)..];
            let forward = self.weights.forward(shape, seen, seen.len() as u64, None)?;
            let last = forward.logits.slice(0, seen.len() as u64 - 1..seen.len() as u64)?;
            let next = sample(&last)
                .temperature(temperature)
                .seed(self.settings.seed)
                .offset(offset)
                .run()?;
            ids.push(next.typed::<i64>("next")?.to_vec()?[0] as i32);
        }
        Ok(ids.into_iter().map(|id| id as u8).collect())
    }
}

fn targets(logits: &AnyTensor, batch: &Batch) -> Result<Tensor<i32>> {
    Tensor::from_slice(logits.device(), &batch.targets, &[batch.targets.len() as u64])
}

fn mean(losses: &AnyTensor) -> Result<f32> {
    let mean = reduce(losses, ReduceKind::Mean, ReduceAxis::All)?;
    Ok(mean.typed::<f32>("loss")?.to_vec()?[0])
}
