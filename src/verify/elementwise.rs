//! Sums, activations, gated pairs, casts.

use host::{
    DType, Device, Float, Result,
    compare::Rule,
    ops,
    reference::{
        Eager, Exact, activation as reference, activation::Activation, cast, data::Distribution, data::normal,
        elementwise, widen,
    },
};
use proptest::{prelude::*, strategy::BoxedStrategy};

use super::{Drawn, Finding, Generic, Size, boxed, columns, dense, held, rows_for, seed, spaced, twice};

#[derive(Debug)]
struct VectorAdd {
    len: usize,
    seed: u64,
}

pub fn vector_add(size: Size) -> BoxedStrategy<Drawn> {
    boxed((0..size.choose(5_000usize, 1_000_000), seed()).prop_map(|(len, seed)| VectorAdd { len, seed }))
}

impl Generic for VectorAdd {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let [a, b] = [0, 1].map(|step| normal::<T>(self.seed + step, self.len));
        let sum = ops::vector_add(&dense(device, &a, &[self.len])?, &dense(device, &b, &[self.len])?)?;
        let wanted = elementwise::vector_add::<Eager<T>>(&widen(&a), &widen(&b));
        Ok(vec![held::<T>("sum", &sum, &wanted, &[Rule::Exact])?])
    }
}

#[derive(Debug)]
struct Add {
    rows: usize,
    columns: usize,
    gap: [usize; 2],
    seed: u64,
}

/// Rows, columns, gaps around rows, seed.
fn matrices(size: Size) -> impl Strategy<Value = (usize, usize, [usize; 2], u64)> {
    let gap = prop_oneof![
        Just([0, 0]),
        Just([8, 8]),
        (0..4usize, 0..4usize).prop_map(|(a, b)| [a, b])
    ];
    (1..40usize, columns(size), gap, seed())
        .prop_map(move |(rows, columns, gap, seed)| (rows_for(columns, rows, size), columns, gap, seed))
}

pub fn add(size: Size) -> BoxedStrategy<Drawn> {
    boxed(matrices(size).prop_map(|(rows, columns, gap, seed)| Add {
        rows,
        columns,
        gap,
        seed,
    }))
}

impl Generic for Add {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let [a, b] = [0, 1].map(|step| normal::<T>(self.seed + step, self.rows * self.columns));
        let (aw, bw) = (widen(&a), widen(&b));
        let x = spaced(device, &a, self.rows, self.gap)?;
        let y = spaced(device, &b, self.rows, [self.gap[1], self.gap[0]])?;
        let bias = dense(device, &b[..self.columns], &[self.columns])?;
        let sum = ops::add(&x, &y)?;
        let biased = ops::add(&x, &bias)?;
        let scaled: Vec<f64> = aw
            .iter()
            .zip(&bw)
            .map(|(a, b)| T::from_f64(0.5 * a - 2.0 * b).to_f64())
            .collect();
        ops::add_scaled(0.5, &x, -2.0, &y, &x)?;
        let exact = &[Rule::Exact];
        Ok(vec![
            held::<T>("sum", &sum, &elementwise::vector_add::<Eager<T>>(&aw, &bw), exact)?,
            held::<T>(
                "bias",
                &biased,
                &elementwise::bias_add::<Eager<T>>(&aw, &bw[..self.columns]),
                exact,
            )?,
            held::<T>("in place", &x, &scaled, exact)?,
        ])
    }
}

#[derive(Debug)]
struct Activate {
    activation: Activation,
    rows: usize,
    columns: usize,
    gap: [usize; 2],
    seed: u64,
}

fn activations(size: Size) -> impl Strategy<Value = Activate> {
    (matrices(size), proptest::sample::select(Activation::ALL.to_vec())).prop_map(
        |((rows, columns, gap, seed), activation)| Activate {
            activation,
            rows,
            columns,
            gap,
            seed,
        },
    )
}

pub fn activation(size: Size) -> BoxedStrategy<Drawn> {
    boxed(activations(size))
}

impl Generic for Activate {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let x: Vec<T> = Distribution::Normal { deviation: 3.0 }.draw(self.seed, self.rows, self.columns);
        let dy: Vec<T> = normal(self.seed + 1, x.len());
        let (xw, dw, act) = (widen(&x), widen(&dy), self.activation);
        let [x, dy] = [
            spaced(device, &x, self.rows, self.gap)?,
            spaced(device, &dy, self.rows, self.gap)?,
        ];
        let (y, dx) = (ops::activation(&x, act)?, ops::activation_backward(&x, &dy, act)?);
        Ok(vec![
            twice::<T>(
                "y",
                &y,
                &reference::forward::<Exact>(act, &xw),
                &reference::forward::<Eager<T>>(act, &xw),
            )?,
            twice::<T>(
                "dx",
                &dx,
                &reference::backward::<Exact>(act, &xw, &dw),
                &reference::backward::<Eager<T>>(act, &xw, &dw),
            )?,
        ])
    }
}

#[derive(Debug)]
struct Gated(Activate);

pub fn gated(size: Size) -> BoxedStrategy<Drawn> {
    boxed(activations(size).prop_map(Gated))
}

impl Generic for Gated {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let Activate {
            activation: act,
            rows,
            columns,
            gap,
            seed,
        } = self.0;
        let gate: Vec<T> = Distribution::Normal { deviation: 3.0 }.draw(seed, rows, columns);
        let [up, dy] = [1, 2].map(|step| normal::<T>(seed + step, gate.len()));
        let [gw, uw, dw] = [&gate, &up, &dy].map(|values| widen(values));
        let (gate, up) = (spaced(device, &gate, rows, gap)?, spaced(device, &up, rows, gap)?);
        let dy = spaced(device, &dy, rows, gap)?;
        let y = ops::gated(&gate, &up, act)?;
        let [dgate, dup] = ops::gated_backward(&gate, &up, &dy, act)?;
        let exact = reference::gated_backward::<Exact>(act, &gw, &uw, &dw);
        let naive = reference::gated_backward::<Eager<T>>(act, &gw, &uw, &dw);
        Ok(vec![
            twice::<T>(
                "y",
                &y,
                &reference::gated::<Exact>(act, &gw, &uw),
                &reference::gated::<Eager<T>>(act, &gw, &uw),
            )?,
            twice::<T>("dgate", &dgate, &exact.0, &naive.0)?,
            twice::<T>("dup", &dup, &exact.1, &naive.1)?,
        ])
    }
}

#[derive(Debug)]
struct Cast {
    len: usize,
    deviation: f64,
    seed: u64,
}

/// From tiny values, which are subnormal in f16, to those that overflow it.
pub fn cast(size: Size) -> BoxedStrategy<Drawn> {
    let deviations = proptest::sample::select(vec![1e-7, 1e-4, 1.0, 3e4]);
    boxed(
        (0..size.choose(3_000usize, 1_000_000), deviations, seed()).prop_map(|(len, deviation, seed)| Cast {
            len,
            deviation,
            seed,
        }),
    )
}

impl Generic for Cast {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let x: Vec<T> = Distribution::Normal {
            deviation: self.deviation,
        }
        .draw(self.seed, 1, self.len);
        let tensor = dense(device, &x, &[self.len])?;
        let exact = &[Rule::Exact];
        let mut findings = Vec::new();
        for to in [DType::F32, DType::F16, DType::BF16]
            .into_iter()
            .filter(|to| *to != T::DTYPE)
        {
            let y = ops::cast(&tensor, to)?;
            findings.push(match to {
                DType::F32 => held::<f32>("to f32", &y, &widen(&cast::cast::<T, f32>(&x)), exact)?,
                DType::F16 => held::<host::f16>("to f16", &y, &widen(&cast::cast::<T, host::f16>(&x)), exact)?,
                _ => held::<host::bf16>("to bf16", &y, &widen(&cast::cast::<T, host::bf16>(&x)), exact)?,
            });
        }
        Ok(findings)
    }
}
