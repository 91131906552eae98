//! The forward pass of every family in f64, as plainly as the formulas stand in the papers.

use models::checkpoint::{LayerWeight, Layout, Weight, tensor_table};
use models::config::{Activation, Norm, Positions};
use models::{Checkpoint, ModelConfig};
use std::collections::HashMap;

type Row = Vec<f64>;

/// A model's weights in f64, matrices one row an output.
pub struct Model {
    config: ModelConfig,
    weights: HashMap<Weight, Vec<f64>>,
}

impl Model {
    pub fn new(checkpoint: &Checkpoint) -> Self {
        let mut weights = HashMap::new();
        for spec in tensor_table(checkpoint.config()) {
            let values = checkpoint.weight(spec.weight).unwrap().to_f32();
            let mut values: Vec<f64> = values.into_iter().map(f64::from).collect();
            if spec.layout == Layout::InOut {
                let (rows, columns) = (spec.shape[0], spec.shape[1]);
                values = (0..columns)
                    .flat_map(|c| (0..rows).map(move |r| (r, c)))
                    .map(|(r, c)| values[r * columns + c])
                    .collect();
            }
            weights.insert(spec.weight, values);
        }
        Self {
            config: checkpoint.config().clone(),
            weights,
        }
    }

    /// The logits of every position.
    pub fn logits(&self, ids: &[u32]) -> Vec<Row> {
        let c = &self.config;
        let row = |w: Weight, i: usize| self.weights[&w][i * c.hidden_size..][..c.hidden_size].to_vec();
        let mut x: Vec<Row> = ids.iter().map(|id| row(Weight::TokenEmbedding, *id as usize)).collect();
        if c.positions == Positions::Learned {
            x.iter_mut()
                .enumerate()
                .for_each(|(p, x)| add(x, &row(Weight::PositionEmbedding, p)));
        }
        for layer in 0..c.num_layers {
            let normed: Vec<Row> = x
                .iter()
                .map(|x| self.norm(x, layer, LayerWeight::AttentionNorm, LayerWeight::AttentionNormBias))
                .collect();
            for (x, out) in x.iter_mut().zip(self.attention(layer, &normed)) {
                add(x, &out);
            }
            for x in &mut x {
                let normed = self.norm(x, layer, LayerWeight::MlpNorm, LayerWeight::MlpNormBias);
                add(x, &self.mlp(layer, &normed));
            }
        }
        let head = if c.tie_word_embeddings {
            Weight::TokenEmbedding
        } else {
            Weight::LmHead
        };
        x.iter()
            .map(|x| {
                let x = self.normalise(x, Weight::FinalNorm, Weight::FinalNormBias);
                product(&self.weights[&head], &x)
            })
            .collect()
    }

    fn attention(&self, layer: usize, x: &[Row]) -> Vec<Row> {
        let c = &self.config;
        let (q_width, kv_width, d) = (c.q_width(), c.kv_width(), c.head_dim);
        let qkv: Vec<[Row; 3]> = x
            .iter()
            .map(|x| {
                if self.weights.contains_key(&Weight::Layer(layer, LayerWeight::Qkv)) {
                    let all = self.linear(layer, LayerWeight::Qkv, LayerWeight::QkvBias, x);
                    [
                        all[..q_width].to_vec(),
                        all[q_width..][..kv_width].to_vec(),
                        all[q_width + kv_width..].to_vec(),
                    ]
                } else {
                    [
                        self.linear(layer, LayerWeight::Query, LayerWeight::QueryBias, x),
                        self.linear(layer, LayerWeight::Key, LayerWeight::KeyBias, x),
                        self.linear(layer, LayerWeight::Value, LayerWeight::ValueBias, x),
                    ]
                }
            })
            .enumerate()
            .map(|(position, [mut q, mut k, v])| {
                for head in q.chunks_mut(d) {
                    self.turn(head, layer, LayerWeight::QueryNorm, position, x.len());
                }
                for head in k.chunks_mut(d) {
                    self.turn(head, layer, LayerWeight::KeyNorm, position, x.len());
                }
                [q, k, v]
            })
            .collect();
        let (scale, group) = (f64::from(c.attention_scale(layer)), c.num_heads / c.num_kv_heads);
        (0..x.len())
            .map(|i| {
                let first = c.windows[layer].map_or(0, |w| (i + 1).saturating_sub(w));
                let mut out = Vec::new();
                for head in 0..c.num_heads {
                    let q = &qkv[i][0][head * d..][..d];
                    let kv = head / group * d;
                    let scores: Vec<f64> = (first..=i).map(|j| scale * dot(q, &qkv[j][1][kv..][..d])).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let sum: f64 = p.iter().sum();
                    let value = |e: usize| p.iter().zip(first..).map(|(p, j)| p * qkv[j][2][kv + e]).sum::<f64>() / sum;
                    out.extend((0..d).map(value));
                }
                self.linear(layer, LayerWeight::AttentionOut, LayerWeight::AttentionOutBias, &out)
            })
            .collect()
    }

    /// Norm of a head where the family has one, then its rotation.
    fn turn(&self, head: &mut [f64], layer: usize, norm: LayerWeight, position: usize, length: usize) {
        if let (Some(w), Norm::RmsNorm { eps }) = (self.weights.get(&Weight::Layer(layer, norm)), self.config.norm) {
            let mean = dot(head, head) / head.len() as f64;
            head.iter_mut()
                .zip(w)
                .for_each(|(x, w)| *x = *x / (mean + f64::from(eps)).sqrt() * w);
        }
        let Some(rope) = self.config.rope() else { return };
        let (cos, sin) = rope.frequencies(length).cos_sin([position as u32]);
        let half = rope.rotary_dim / 2;
        for i in 0..half {
            let (a, b, cos, sin) = (head[i], head[i + half], f64::from(cos[i]), f64::from(sin[i]));
            (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
        }
    }

    fn mlp(&self, layer: usize, x: &[f64]) -> Row {
        let mut inner = self.linear(layer, LayerWeight::Up, LayerWeight::UpBias, x);
        let act = |x: f64| match self.config.activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + (std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            Activation::GeluErf => panic!("no fixture has it"),
        };
        if self.config.gated_mlp {
            let gate = self.linear(layer, LayerWeight::Gate, LayerWeight::GateBias, x);
            inner.iter_mut().zip(gate).for_each(|(u, g)| *u *= act(g));
        } else {
            inner.iter_mut().for_each(|u| *u = act(*u));
        }
        self.linear(layer, LayerWeight::Down, LayerWeight::DownBias, &inner)
    }

    fn linear(&self, layer: usize, weight: LayerWeight, bias: LayerWeight, x: &[f64]) -> Row {
        let mut y = product(&self.weights[&Weight::Layer(layer, weight)], x);
        if let Some(b) = self.weights.get(&Weight::Layer(layer, bias)) {
            add(&mut y, b);
        }
        y
    }

    fn norm(&self, x: &[f64], layer: usize, weight: LayerWeight, bias: LayerWeight) -> Row {
        self.normalise(x, Weight::Layer(layer, weight), Weight::Layer(layer, bias))
    }

    fn normalise(&self, x: &[f64], weight: Weight, bias: Weight) -> Row {
        let n = x.len() as f64;
        let (mean, eps) = match self.config.norm {
            Norm::LayerNorm { eps } => (x.iter().sum::<f64>() / n, eps),
            Norm::RmsNorm { eps } => (0.0, eps),
        };
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        let mut y: Row = x
            .iter()
            .zip(&self.weights[&weight])
            .map(|(x, w)| (x - mean) * scale * w)
            .collect();
        if let Some(b) = self.weights.get(&bias) {
            add(&mut y, b);
        }
        y
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `W·x` for a matrix with one row an output.
fn product(w: &[f64], x: &[f64]) -> Row {
    w.chunks(x.len()).map(|row| dot(row, x)).collect()
}
