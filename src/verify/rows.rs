//! Norms, softmax, reductions.

use host::{
    Device, Float, Result,
    compare::{Rule, same_bits},
    ops::{self, ReduceAxis, ReduceKind},
    reference::{
        Eager, Exact,
        data::{Distribution, normal},
        norm::{self, NormOptions},
        reduce::{self, Reduction},
        softmax::{self, SoftmaxOptions},
        widen,
    },
};
use proptest::{prelude::*, strategy::BoxedStrategy};

use super::{Drawn, Finding, Generic, Size, boxed, columns, dense, held, rows_for, seed, spaced, twice};

#[derive(Debug)]
struct Norm {
    rows: usize,
    columns: usize,
    centered: bool,
    weight: bool,
    residual: bool,
    gap: [usize; 2],
    seed: u64,
}

fn gaps() -> impl Strategy<Value = [usize; 2]> {
    prop_oneof![
        Just([0, 0]),
        Just([8, 8]),
        (0..4usize, 0..4usize).prop_map(|(a, b)| [a, b])
    ]
}

pub fn norm(size: Size) -> BoxedStrategy<Drawn> {
    let options = (any::<bool>(), any::<bool>(), any::<bool>());
    boxed((1..40usize, columns(size), options, gaps(), seed()).prop_map(
        move |(rows, columns, (centered, weight, residual), gap, seed)| Norm {
            rows: rows_for(columns, rows, size),
            columns,
            centered,
            weight,
            residual,
            gap,
            seed,
        },
    ))
}

impl Generic for Norm {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let Norm { rows, columns, gap, .. } = *self;
        let [x, residual, dy] = [0, 1, 2].map(|step| normal::<T>(self.seed + step, rows * columns));
        let [weight, bias] = [3, 4].map(|step| normal::<T>(self.seed + step, columns));
        let [xw, rw, dw] = [&x, &residual, &dy].map(|values| widen(values));
        let (ww, bw) = (widen(&weight), widen(&bias));
        let options = NormOptions {
            centered: self.centered,
            epsilon: 1e-5,
            weight: self.weight.then_some(&ww[..]),
            bias: (self.weight && self.centered).then_some(&bw[..]),
            residual: self.residual.then_some(&rw[..]),
        };
        // The statistics are those of the sum as it is stored.
        let stored = norm::forward::<Eager<T>>(&xw, columns, &options).sum;
        let at_sum = NormOptions {
            residual: None,
            ..options
        };
        let (weight, bias) = (dense(device, &weight, &[columns])?, dense(device, &bias, &[columns])?);
        let (x, dy) = (spaced(device, &x, rows, gap)?, spaced(device, &dy, rows, gap)?);
        let residual = spaced(device, &residual, rows, [gap[1], gap[0]])?;
        let mut op = if self.centered {
            ops::layer_norm(&x)
        } else {
            ops::rms_norm(&x)
        }
        .epsilon(1e-5);
        if self.weight {
            op = op.weight(&weight);
            if self.centered {
                op = op.bias(&bias);
            }
        }
        if self.residual {
            op = op.residual(&residual);
        }
        let normed = op.run()?;
        let mut findings = vec![twice::<T>(
            "y",
            &normed.y,
            &norm::forward::<Exact>(&stored, columns, &at_sum).y,
            &norm::forward::<Eager<T>>(&stored, columns, &at_sum).y,
        )?];
        if let Some(sum) = &normed.sum {
            findings.push(held::<T>("sum", sum, &stored, &[Rule::Exact])?);
        }
        let gradients = op.backward(&dy, None)?;
        let exact = norm::backward::<Exact>(&stored, columns, &at_sum, &dw, None);
        let naive = norm::backward::<Eager<T>>(&stored, columns, &at_sum, &dw, None);
        findings.push(twice::<T>("dx", &gradients.dx, &exact.dx, &naive.dx)?);
        if let Some(dweight) = &gradients.dweight {
            findings.push(twice::<T>("dweight", dweight, &exact.dweight, &naive.dweight)?);
        }
        if let Some(dbias) = &gradients.dbias {
            findings.push(twice::<T>("dbias", dbias, &exact.dbias, &naive.dbias)?);
        }
        Ok(findings)
    }
}

#[derive(Debug)]
struct Softmax {
    kind: Distribution,
    rows: usize,
    columns: usize,
    log: bool,
    scale: f32,
    mask: bool,
    causal: bool,
    gap: [usize; 2],
    seed: u64,
}

pub fn softmax(size: Size) -> BoxedStrategy<Drawn> {
    let kinds = prop_oneof![
        2 => Just(Distribution::NORMAL),
        1 => proptest::sample::select(Distribution::ALL.to_vec())
    ];
    let options = (any::<bool>(), any::<bool>(), any::<bool>());
    let scale = proptest::sample::select(vec![1.0f32, 0.125, 0.3]);
    boxed(
        (kinds, 1..40usize, columns(size), options, scale, gaps(), seed()).prop_map(
            move |(kind, rows, columns, (log, mask, causal), scale, gap, seed)| Softmax {
                // Sums of large values and a mask round in other places than the kernel's.
                mask: mask && kind == Distribution::NORMAL,
                scale: if kind == Distribution::NORMAL { scale } else { 1.0 },
                kind,
                rows: rows_for(columns, rows, size),
                columns,
                log,
                causal,
                gap,
                seed,
            },
        ),
    )
}

impl Generic for Softmax {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let Softmax { rows, columns, gap, .. } = *self;
        let x: Vec<T> = self.kind.draw(self.seed, rows, columns);
        let dy: Vec<T> = normal(self.seed + 1, rows * columns);
        let mask: Vec<T> = normal(self.seed + 2, columns);
        let [xw, dw, mw] = [&x, &dy, &mask].map(|values| widen(values));
        let options = SoftmaxOptions {
            log: self.log,
            scale: f64::from(self.scale),
            mask: self.mask.then_some(&mw[..]),
            causal_rows: self.causal.then_some(rows),
        };
        let (x, dy) = (spaced(device, &x, rows, gap)?, spaced(device, &dy, rows, gap)?);
        let mask = dense(device, &mask, &[columns])?;
        let mut op = if self.log {
            ops::log_softmax(&x)
        } else {
            ops::softmax(&x)
        }
        .scale(self.scale);
        if self.mask {
            op = op.mask(&mask);
        }
        if self.causal {
            op = op.causal();
        }
        Ok(vec![
            twice::<T>(
                "y",
                &op.run()?,
                &softmax::forward::<Exact>(&xw, columns, &options),
                &softmax::forward::<Eager<T>>(&xw, columns, &options),
            )?,
            twice::<T>(
                "dx",
                &op.backward(&dy)?,
                &softmax::backward::<Exact>(&xw, columns, &options, &dw),
                &softmax::backward::<Eager<T>>(&xw, columns, &options, &dw),
            )?,
        ])
    }
}

#[derive(Debug)]
struct Reduce {
    kind: ReduceKind,
    axis: ReduceAxis,
    rows: usize,
    columns: usize,
    seed: u64,
}

pub fn reduce(size: Size) -> BoxedStrategy<Drawn> {
    let kinds = proptest::sample::select(ReduceKind::ALL.to_vec());
    let axis = proptest::sample::select(vec![ReduceAxis::All, ReduceAxis::Last]);
    let long = prop_oneof![3 => columns(size), 1 => size.choose(4_000usize..40_000, 30_000usize..300_000)];
    boxed(
        (kinds, axis, 1..40usize, long, seed()).prop_map(move |(kind, axis, rows, columns, seed)| Reduce {
            kind,
            axis,
            rows: rows_for(columns, rows, size),
            columns,
            seed,
        }),
    )
}

impl Generic for Reduce {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let x: Vec<T> = normal(self.seed, self.rows * self.columns);
        let out = ops::reduce(&dense(device, &x, &[self.rows, self.columns])?, self.kind, self.axis)?;
        let wide = widen(&x);
        let rows = if self.axis == ReduceAxis::All { 1 } else { self.rows };
        let columns = wide.len() / rows;
        let reduction = match self.kind {
            ReduceKind::Argmax => {
                let wanted: Vec<i64> = wide
                    .chunks(columns)
                    .map(|row| reduce::argmax(row).map_or(-1, |at| at as i64))
                    .collect();
                let out = out.typed::<i64>("out")?.to_vec()?;
                return Ok(vec![Finding::bits("indices", same_bits(&out, &wanted))]);
            }
            ReduceKind::Sum => Reduction::Sum,
            ReduceKind::Mean => Reduction::Mean,
            ReduceKind::Max => Reduction::Max,
            ReduceKind::Min => Reduction::Min,
            ReduceKind::SumOfSquares => Reduction::SumOfSquares,
        };
        let exact = reduce::reduce::<Exact>(reduction, &wide, rows);
        // At most a hundred additions one after the other, so less than 100 roundings of Σ|x| of the largest row.
        let magnitude = wide
            .chunks(columns)
            .map(|row| row.iter().map(|x| x.abs()).sum::<f64>())
            .fold(0.0, f64::max);
        let unit = 100.0 * 2f64.powi(-24);
        let rule = match self.kind {
            ReduceKind::Sum => Rule::Absolute(unit * magnitude),
            ReduceKind::Mean => Rule::Absolute(unit * magnitude / columns as f64),
            ReduceKind::SumOfSquares => Rule::Relative {
                relative: unit,
                absolute: 0.0,
            },
            _ => Rule::Exact,
        };
        Ok(vec![held::<f32>("out", &out, &exact, &[rule])?])
    }
}
