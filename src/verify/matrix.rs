//! Copies between strides, embeddings.

use host::{
    AnyTensor, Device, Float, Result,
    compare::{Rule, same_bits},
    ops,
    reference::{Eager, Exact, data::indices, data::normal, embedding as reference, widen},
};
use proptest::{prelude::*, strategy::BoxedStrategy};

use super::{Drawn, Finding, Generic, Size, boxed, columns, dense, held, seed, spaced, twice};

#[derive(Debug)]
struct Copy {
    shape: [usize; 4],
    order: [usize; 4],
    seed: u64,
}

pub fn copy(size: Size) -> BoxedStrategy<Drawn> {
    let longest = size.choose(10usize, 40);
    let shape = (1..longest, 1..longest, 1..longest, 1..size.choose(40usize, 90));
    let order = Just([0usize, 1, 2, 3]).prop_shuffle();
    boxed((shape, order, seed()).prop_map(|((a, b, c, d), order, seed)| Copy {
        shape: [a, b, c, d],
        order,
        seed,
    }))
}

impl Generic for Copy {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let x: Vec<T> = normal(self.seed, self.shape.iter().product());
        let y = ops::contiguous(&dense(device, &x, &self.shape)?.permute(&self.order)?)?;
        let out = y.typed::<T>("y")?.to_vec()?;
        let [_, b, c, d] = self.shape;
        let strides = [b * c * d, c * d, d, 1];
        let [shape, strides] = [
            self.order.map(|axis| self.shape[axis]),
            self.order.map(|axis| strides[axis]),
        ];
        let mut wanted = Vec::with_capacity(x.len());
        for i in 0..shape[0] {
            for j in 0..shape[1] {
                for k in 0..shape[2] {
                    let base = i * strides[0] + j * strides[1] + k * strides[2];
                    wanted.extend((0..shape[3]).map(|l| x[base + l * strides[3]]));
                }
            }
        }
        Ok(vec![Finding::bits("y", same_bits(&out, &wanted))])
    }
}

#[derive(Debug)]
struct Embedding {
    rows: usize,
    columns: usize,
    tokens: usize,
    gap: [usize; 2],
    padding: bool,
    seed: u64,
}

pub fn embedding(size: Size) -> BoxedStrategy<Drawn> {
    let tokens = 1..size.choose(60usize, 2000);
    let gap = prop_oneof![Just([0, 0]), Just([8, 8]), Just([1, 2])];
    boxed(
        (1..100usize, columns(size), tokens, gap, any::<bool>(), seed()).prop_map(
            move |(rows, columns, tokens, gap, padding, seed)| {
                let most = (size.choose(8_000, 1_000_000) / columns).max(1);
                Embedding {
                    rows: rows.min(most),
                    columns,
                    tokens: tokens.min(most),
                    gap,
                    padding,
                    seed,
                }
            },
        ),
    )
}

impl Generic for Embedding {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let Embedding {
            rows, columns, tokens, ..
        } = *self;
        let table: Vec<T> = normal(self.seed, rows * columns);
        let dy: Vec<T> = normal(self.seed + 1, tokens * columns);
        let ids = indices(self.seed + 2, tokens, 0, rows as i64 - 1);
        let on_device: AnyTensor = dense(device, &ids, &[tokens])?;
        let out = ops::embedding(&spaced(device, &table, rows, self.gap)?, &on_device)?;
        let padding = self.padding.then_some(ids[0]);
        let dtable = ops::embedding_backward(
            &spaced(device, &dy, tokens, self.gap)?,
            &on_device,
            rows as u64,
            padding,
        )?;
        let wide = widen(&dy);
        Ok(vec![
            held::<T>(
                "out",
                &out,
                &reference::forward(&widen(&table), columns, &ids),
                &[Rule::Exact],
            )?,
            twice::<T>(
                "dtable",
                &dtable,
                &reference::backward::<Exact>(&wide, columns, &ids, rows, padding),
                &reference::backward::<Eager<T>>(&wide, columns, &ids, rows, padding),
            )?,
        ])
    }
}
