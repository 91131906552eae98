//! Cross-entropy, sampling, the optimizer.

use host::{
    Device, Float, Result,
    compare::Rule,
    ops::{self, AdamWState},
    reference::{
        Eager, Exact,
        data::{Distribution, indices, normal},
        loss::{LossOptions, backward, forward},
        optimizer,
        sampling::{self, SamplingOptions},
        widen,
    },
};
use proptest::{prelude::*, strategy::BoxedStrategy};

use super::{Drawn, Finding, Generic, Size, boxed, columns, dense, held, rows_for, seed, spaced, twice};

#[derive(Debug)]
struct CrossEntropy {
    rows: usize,
    columns: usize,
    label_smoothing: f32,
    z_loss: f32,
    ignored: bool,
    gap: [usize; 2],
    seed: u64,
}

pub fn cross_entropy(size: Size) -> BoxedStrategy<Drawn> {
    let gap = prop_oneof![Just([0, 0]), Just([8, 8]), Just([3, 2])];
    let options = (
        proptest::sample::select(vec![0.0f32, 0.125]),
        proptest::sample::select(vec![0.0f32, 0.0625]),
        any::<bool>(),
    );
    boxed((1..40usize, columns(size), options, gap, seed()).prop_map(
        move |(rows, columns, (label_smoothing, z_loss, ignored), gap, seed)| CrossEntropy {
            rows: rows_for(columns, rows, size),
            // Of one word there is nothing to learn: loss and gradient are rounding.
            columns: columns.max(2),
            label_smoothing,
            z_loss,
            ignored,
            gap,
            seed,
        },
    ))
}

impl Generic for CrossEntropy {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let CrossEntropy { rows, columns, .. } = *self;
        let logits: Vec<T> = normal(self.seed, rows * columns);
        let grad: Vec<f32> = normal(self.seed + 1, rows);
        let mut targets = indices(self.seed + 2, rows, 0, columns as i64 - 1);
        let options = LossOptions {
            ignore_index: -100,
            label_smoothing: f64::from(self.label_smoothing),
            z_loss: f64::from(self.z_loss),
        };
        if self.ignored {
            targets[rows / 2] = options.ignore_index;
        }
        let (wide, gw) = (widen(&logits), widen(&grad));
        let x = spaced(device, &logits, rows, self.gap)?;
        let (ids, grad) = (dense(device, &targets, &[rows])?, dense(device, &grad, &[rows])?);
        let op = ops::cross_entropy(&x, &ids)
            .ignore_index(-100)
            .label_smoothing(self.label_smoothing)
            .z_loss(self.z_loss);
        let (losses, dx) = (op.run()?, op.backward(&grad)?);
        let exact = forward::<Exact>(&wide, columns, &targets, &options);
        let naive = forward::<Eager<T>>(&wide, columns, &targets, &options);
        Ok(vec![
            twice::<f32>("loss", &losses.loss, &exact.loss, &naive.loss)?,
            twice::<f32>("lse", &losses.lse, &exact.lse, &naive.lse)?,
            twice::<T>(
                "gradient",
                &dx,
                &backward::<Exact>(&wide, columns, &targets, &options, &gw),
                &backward::<Eager<T>>(&wide, columns, &targets, &options, &gw),
            )?,
        ])
    }
}

#[derive(Debug)]
struct Sample {
    rows: usize,
    columns: usize,
    options: SamplingOptions,
    seed: u64,
}

pub fn sample(size: Size) -> BoxedStrategy<Drawn> {
    let top_k = proptest::option::of(1..100usize);
    let temperature = proptest::sample::select(vec![0.0f64, 0.5, 1.0, 1.5]);
    let top_p = prop_oneof![Just(1.0f64), 0.05..1.0f64];
    boxed(
        (
            1..4usize,
            1..size.choose(900usize, 130_000),
            (top_k, temperature, top_p),
            seed(),
            seed(),
        )
            .prop_map(|(rows, columns, (top_k, temperature, top_p), seed, offset)| Sample {
                rows,
                columns,
                options: SamplingOptions {
                    temperature,
                    top_k,
                    top_p,
                    seed,
                    offset: offset << 20,
                },
                seed,
            }),
    )
}

impl Generic for Sample {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let data: Vec<T> = Distribution::NORMAL.draw(self.seed, self.rows, self.columns);
        let logits = dense(device, &data, &[self.rows, self.columns])?;
        let mut op = ops::sample(&logits)
            .temperature(self.options.temperature as f32)
            .top_p(self.options.top_p)
            .seed(self.options.seed)
            .offset(self.options.offset);
        if let Some(top_k) = self.options.top_k {
            op = op.top_k(top_k as u64);
        }
        let tokens = op.run()?.typed::<i64>("tokens")?.to_vec()?;
        let wide = widen(&data);
        let wrong = tokens
            .iter()
            .zip(wide.chunks(self.columns))
            .enumerate()
            .find_map(|(row, (&token, logits))| {
                let wanted = sampling::sample(logits, row as u32, &self.options)?;
                // The kernel's probabilities are f32: where less than that decides, another token is right too.
                let right = token == wanted.token as i64
                    || (wanted.margin <= 1e-6 && (0..self.columns as i64).contains(&token));
                (!right).then(|| format!("row {row}: token {token} instead of {wanted:?}"))
            });
        Ok(vec![Finding {
            output: "tokens",
            severity: if wrong.is_none() { 0.0 } else { f64::INFINITY },
            error: 0.0,
            bound: 0.0,
            ok: wrong.is_none() && tokens.len() == self.rows,
            text: wrong.unwrap_or_else(|| format!("{} tokens for {} rows", tokens.len(), self.rows)),
        }])
    }
}

#[derive(Debug)]
struct AdamW {
    len: usize,
    step: u32,
    master: bool,
    seed: u64,
}

pub fn adamw(size: Size) -> BoxedStrategy<Drawn> {
    boxed(
        (1..size.choose(4_000usize, 1_000_000), 1..2000u32, any::<bool>(), seed()).prop_map(
            |(len, step, master, seed)| AdamW {
                len,
                step,
                master,
                seed,
            },
        ),
    )
}

impl Generic for AdamW {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let len = self.len;
        let (start, gradient): (Vec<T>, Vec<T>) = (normal(self.seed, len), normal(self.seed + 1, len));
        let first: Vec<f32> = normal(self.seed + 2, len);
        let second: Vec<f32> = normal::<f32>(self.seed + 3, len).iter().map(|x| x * x).collect();
        let options = ops::AdamW {
            learning_rate: 0.01,
            beta2: 0.95,
            weight_decay: 0.1,
            ..ops::AdamW::default()
        };
        let reference = optimizer::AdamW {
            learning_rate: options.learning_rate,
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: options.weight_decay,
        };
        let state = || (widen(&start), widen(&first), widen(&second));
        let (mut exact, mut naive) = (state(), state());
        let wide = widen(&gradient);
        reference.step::<Exact>(self.step, &mut exact.0, &wide, &mut exact.1, &mut exact.2);
        reference.step::<Eager<T>>(self.step, &mut naive.0, &wide, &mut naive.1, &mut naive.2);
        let start_wide: Vec<f32> = start.iter().map(|p| p.to_f64() as f32).collect();
        let p = dense(device, &start, &[len])?;
        let master = dense(device, &start_wide, &[len])?;
        let (m, v) = (dense(device, &first, &[len])?, dense(device, &second, &[len])?);
        let state = AdamWState {
            parameters: &p,
            master: self.master.then_some(&master),
            first: &m,
            second: &v,
        };
        options.step(self.step, &state, &dense(device, &gradient, &[len])?)?;
        let moment = &[Rule::Relative {
            relative: 1e-6,
            absolute: 1e-7,
        }];
        Ok(vec![
            twice::<T>("parameters", &p, &exact.0, &naive.0)?,
            held::<f32>("first moment", &m, &exact.1, moment)?,
            held::<f32>("second moment", &v, &exact.2, moment)?,
        ])
    }
}
