//! GPT-2 by hand: weights, the forward pass, and the backward pass as the chain rule read from the end.
//!
//! Activations are `[tokens, width]`, tokens of a batch one after the other; weights are `[outputs, inputs]` as PyTorch has
//! them. Every gradient is an op of the library, nothing is computed on the host.

use ferroflash::{
    Activation, AnyTensor, AttentionContext, DType, Device, Dropout, Linear, Norm, Result, Tensor, activation_backward,
    add, attention, cast, copy, embedding, embedding_backward, embedding_backward_into, layer_norm, linear,
};

use crate::random::{draw, spread};

/// Tokens that there are: bytes.
pub const VOCABULARY: u64 = 256;

/// The shape of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub layers: u64,
    pub heads: u64,
    /// Features of a token; a head has `width / heads`.
    pub width: u64,
    /// Tokens of a sequence.
    pub context: u64,
}

/// A weight `[outputs, inputs]` or a scale `[width]`, and what is added.
pub struct Affine {
    pub weight: AnyTensor,
    pub bias: AnyTensor,
}

/// The parameters of a layer, or their gradients.
pub struct Block {
    attention_norm: Affine,
    qkv: Affine,
    projection: Affine,
    mlp_norm: Affine,
    up: Affine,
    down: Affine,
}

/// All parameters, or their gradients.
pub struct Weights {
    /// The table of tokens, and the last layer.
    tokens: AnyTensor,
    positions: AnyTensor,
    blocks: Vec<Block>,
    norm: Affine,
}

/// What a layer's backward pass needs.
struct Passed {
    x: AnyTensor,
    normed: AnyTensor,
    attention: AttentionContext,
    attended: AnyTensor,
    /// After attention.
    middle: AnyTensor,
    middle_normed: AnyTensor,
    /// What enters GELU, and what leaves it.
    up: AnyTensor,
    hidden: AnyTensor,
}

/// A forward pass.
pub struct Forward {
    ids: Tensor<i32>,
    positions: Tensor<i32>,
    passed: Vec<Passed>,
    x: AnyTensor,
    normed: AnyTensor,
    /// `[tokens, VOCABULARY]`.
    pub logits: AnyTensor,
}

impl Affine {
    fn linear<'a>(&'a self, x: &'a AnyTensor) -> Linear<'a> {
        linear(x, &self.weight).bias(&self.bias)
    }

    fn norm<'a>(&'a self, x: &'a AnyTensor) -> Norm<'a> {
        layer_norm(x).weight(&self.weight).bias(&self.bias)
    }

    /// Gradients of [`linear`](Self::linear): by x, and by the parameters.
    fn linear_backward(&self, x: &AnyTensor, dz: &AnyTensor) -> Result<(AnyTensor, Affine)> {
        let gradients = self.linear(x).backward(dz)?;
        let bias = gradients.dbias.expect("there is a bias");
        Ok((
            gradients.dx,
            Affine {
                weight: gradients.dw,
                bias,
            },
        ))
    }

    /// Gradients of [`norm`](Self::norm), with what flows back past it added to that by x.
    fn norm_backward(&self, x: &AnyTensor, dy: &AnyTensor, past: Option<&AnyTensor>) -> Result<(AnyTensor, Affine)> {
        let gradients = self.norm(x).backward(dy, past)?;
        let (weight, bias) = (gradients.dweight, gradients.dbias);
        let both = Affine {
            weight: weight.expect("there is a weight"),
            bias: bias.expect("there is a bias"),
        };
        Ok((gradients.dx, both))
    }

    fn tensors(&self) -> [&AnyTensor; 2] {
        [&self.weight, &self.bias]
    }
}

/// Makes parameters, each from a stream of its own.
struct Maker<'a> {
    device: &'a Device,
    dtype: DType,
    seed: u64,
    made: u64,
}

impl Maker<'_> {
    fn upload(&mut self, values: &[f32], shape: &[u64]) -> Result<AnyTensor> {
        self.made += 1;
        cast(Tensor::from_slice(self.device, values, shape)?.any(), self.dtype)
    }

    fn matrix(&mut self, rows: u64, columns: u64, deviation: f64) -> Result<AnyTensor> {
        let stream = draw(self.seed, self.made);
        let values: Vec<f32> = (0..rows * columns).map(|i| spread(stream, i, deviation)).collect();
        self.upload(&values, &[rows, columns])
    }

    fn linear(&mut self, outputs: u64, inputs: u64, deviation: f64) -> Result<Affine> {
        Ok(Affine {
            weight: self.matrix(outputs, inputs, deviation)?,
            bias: self.upload(&vec![0.0; outputs as usize], &[outputs])?,
        })
    }

    fn norm(&mut self, width: u64) -> Result<Affine> {
        Ok(Affine {
            weight: self.upload(&vec![1.0; width as usize], &[width])?,
            bias: self.upload(&vec![0.0; width as usize], &[width])?,
        })
    }
}

impl Weights {
    /// GPT-2's start: deviations of 0.02, less where layers add to the residual stream.
    pub fn new(device: &Device, shape: &Shape, dtype: DType, seed: u64) -> Result<Weights> {
        let (width, residual) = (shape.width, 0.02 / (2.0 * shape.layers as f64).sqrt());
        let mut make = Maker {
            device,
            dtype,
            seed,
            made: 0,
        };
        Ok(Weights {
            tokens: make.matrix(VOCABULARY, width, 0.02)?,
            positions: make.matrix(shape.context, width, 0.02)?,
            blocks: (0..shape.layers)
                .map(|_| {
                    Ok(Block {
                        attention_norm: make.norm(width)?,
                        qkv: make.linear(3 * width, width, 0.02)?,
                        projection: make.linear(width, width, residual)?,
                        mlp_norm: make.norm(width)?,
                        up: make.linear(4 * width, width, 0.02)?,
                        down: make.linear(width, 4 * width, residual)?,
                    })
                })
                .collect::<Result<_>>()?,
            norm: make.norm(width)?,
        })
    }

    /// All tensors, parameters and gradients in the same order.
    pub fn tensors(&self) -> Vec<&AnyTensor> {
        let mut all = vec![&self.tokens, &self.positions];
        for block in &self.blocks {
            all.extend(block.affines().into_iter().flat_map(Affine::tensors));
        }
        all.extend(self.norm.tensors());
        all
    }

    /// Parameters that there are.
    pub fn count(&self) -> u64 {
        self.tensors().into_iter().map(AnyTensor::elements).sum()
    }

    /// Logits of `ids`, sequences of `tokens` tokens one after the other; and all that [`backward`](Self::backward) needs.
    pub fn forward(&self, shape: &Shape, ids: &[i32], tokens: u64, dropout: Option<Dropout>) -> Result<Forward> {
        let device = self.tokens.device();
        let all = ids.len() as u64;
        let places: Vec<i32> = (0..all).map(|i| (i % tokens) as i32).collect();
        let (ids, positions) = (
            Tensor::from_slice(device, ids, &[all])?,
            Tensor::from_slice(device, &places, &[all])?,
        );
        let mut x = add(
            &embedding(&self.tokens, &ids)?,
            &embedding(&self.positions, &positions)?,
        )?;
        let heads = [all / tokens, tokens, 3, shape.heads, shape.width / shape.heads];
        let mut passed = Vec::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            let normed = block.attention_norm.norm(&x).run()?.y;
            let qkv = block.qkv.linear(&normed).run()?.reshape(&heads)?;
            let (q, k, v) = (qkv.select(2, 0)?, qkv.select(2, 1)?, qkv.select(2, 2)?);
            let mut call = attention(&q, &k, &v).causal();
            if let Some(Dropout {
                probability,
                seed,
                offset,
            }) = dropout
            {
                call = call.dropout(probability, seed, offset * shape.layers + layer as u64);
            }
            let attention = call.run_with_context()?;
            let attended = attention.attention().out.reshape(&[all, shape.width])?;
            let middle = block.projection.linear(&attended).residual(&x).run()?;
            let middle_normed = block.mlp_norm.norm(&middle).run()?.y;
            let (hidden, up) = block.up.linear(&middle_normed).gelu_tanh().run_with_pre_activation()?;
            let out = block.down.linear(&hidden).residual(&middle).run()?;
            passed.push(Passed {
                x: std::mem::replace(&mut x, out),
                normed,
                attention,
                attended,
                middle,
                middle_normed,
                up,
                hidden,
            });
        }
        let normed = self.norm.norm(&x).run()?.y;
        let logits = linear(&normed, &self.tokens).run()?;
        Ok(Forward {
            ids,
            positions,
            passed,
            x,
            normed,
            logits,
        })
    }

    /// Gradients of `Σ dlogits ∘ logits` by all parameters.
    pub fn backward(&self, forward: &Forward, dlogits: &AnyTensor) -> Result<Weights> {
        let last = linear(&forward.normed, &self.tokens).backward(dlogits)?;
        let (mut dx, norm) = self.norm.norm_backward(&forward.x, &last.dx, None)?;
        let mut blocks = Vec::new();
        for (block, passed) in self.blocks.iter().zip(&forward.passed).rev() {
            let (dhidden, down) = block.down.linear_backward(&passed.hidden, &dx)?;
            let dup = activation_backward(&passed.up, &dhidden, Activation::GeluTanh)?;
            let (dnormed, up) = block.up.linear_backward(&passed.middle_normed, &dup)?;
            let (dmiddle, mlp_norm) = block.mlp_norm.norm_backward(&passed.middle, &dnormed, Some(&dx))?;

            let (dattended, projection) = block.projection.linear_backward(&passed.attended, &dmiddle)?;
            let out = &passed.attention.attention().out;
            let gradients = passed.attention.backward(&dattended.reshape(out.shape())?)?;
            let &[batch, tokens, heads, dim] = out.shape() else {
                unreachable!("attention of four axes")
            };
            let dqkv = AnyTensor::empty(out.device(), out.dtype(), &[batch, tokens, 3, heads, dim])?;
            for (i, gradient) in [gradients.dq, gradients.dk, gradients.dv].iter().enumerate() {
                copy(gradient, &dqkv.select(2, i as u64)?)?;
            }
            let dqkv = dqkv.reshape(&[batch * tokens, 3 * heads * dim])?;
            let (dnormed, qkv) = block.qkv.linear_backward(&passed.normed, &dqkv)?;
            let (dbefore, attention_norm) = block
                .attention_norm
                .norm_backward(&passed.x, &dnormed, Some(&dmiddle))?;
            dx = dbefore;
            blocks.push(Block {
                attention_norm,
                qkv,
                projection,
                mlp_norm,
                up,
                down,
            });
        }
        blocks.reverse();
        // The table of tokens is also the last layer: its two gradients add up.
        embedding_backward_into(&dx, &forward.ids, &last.dw, None)?;
        Ok(Weights {
            tokens: last.dw,
            positions: embedding_backward(&dx, &forward.positions, self.positions.extent(0), None)?,
            blocks,
            norm,
        })
    }
}

impl Block {
    fn affines(&self) -> [&Affine; 6] {
        [
            &self.attention_norm,
            &self.qkv,
            &self.projection,
            &self.mlp_norm,
            &self.up,
            &self.down,
        ]
    }
}
