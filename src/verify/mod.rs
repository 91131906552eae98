//! Verification: seeded random problems of every op, and named ones, against the f64 reference.
//!
//! `ferroflash verify` prints the table; a problem is repeated by its seed. Problems are proptest strategies, so a failure
//! shrinks to the smallest problem that still fails.

mod attention;
mod attention_backward;
mod cache;
mod elementwise;
mod groups;
mod linear;
mod loss;
mod matrix;
mod rows;

use std::{fmt, sync::Arc};

use host::{
    AnyTensor, DType, Device, Error, Float, Result, Tensor,
    compare::{Difference, Report, Rule, compare},
    reference::cache::exchange_axes,
};
use proptest::{
    strategy::{BoxedStrategy, Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

pub use groups::{GROUPS, Group};

/// How large problems may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// What the emulator does in a fraction of a second.
    Small,
    /// What a GPU and the f64 reference do in a fraction of a second.
    Large,
}

impl Size {
    /// The size for a device.
    pub fn of(device: &Device) -> Size {
        if device.is_emulator() { Size::Small } else { Size::Large }
    }

    /// One of the two.
    pub fn choose<T>(self, small: T, large: T) -> T {
        match self {
            Size::Small => small,
            Size::Large => large,
        }
    }
}

/// One output of a problem, compared.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Which output.
    pub output: &'static str,
    /// Largest error as a share of its bound; above 1 is a failure. Outputs that must be exact have 0 or infinity.
    pub severity: f64,
    /// Largest error.
    pub error: f64,
    /// Bound of the worst element; 0 where the output must be exact.
    pub bound: f64,
    /// Whether the output passes.
    pub ok: bool,
    /// The comparison in words.
    pub text: String,
}

/// Inputs of an op, and how its result is judged.
pub trait Problem: fmt::Debug + Send + Sync {
    /// Runs the op on the device in this dtype and compares every output.
    ///
    /// # Errors
    /// When the op refuses or the device fails.
    fn check(&self, device: &Device, dtype: DType) -> Result<Vec<Finding>>;
}

/// A problem that works in any dtype.
pub(crate) trait Generic: fmt::Debug + Send + Sync {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>>;
}

impl<G: Generic> Problem for G {
    fn check(&self, device: &Device, dtype: DType) -> Result<Vec<Finding>> {
        match dtype {
            DType::F16 => self.judge::<host::f16>(device),
            DType::BF16 => self.judge::<host::bf16>(device),
            DType::F32 => self.judge::<f32>(device),
            other => Err(Error::unsupported(format!("verification in {other}"))),
        }
    }
}

/// A shared problem.
pub type Drawn = Arc<dyn Problem>;

/// How problems of an op are drawn.
pub type Draw = fn(Size) -> BoxedStrategy<Drawn>;

/// The strategy of each op of the [inventory](crate::inventory).
pub const STRATEGIES: &[(&str, Draw)] = &[
    ("attention", attention::attention),
    ("attention-backward", attention_backward::attention_backward),
    ("decode", attention::decode),
    ("cache", cache::cache),
    ("rope", cache::rope),
    ("linear", linear::linear),
    ("norm", rows::norm),
    ("softmax", rows::softmax),
    ("cross-entropy", loss::cross_entropy),
    ("activation", elementwise::activation),
    ("gated", elementwise::gated),
    ("add", elementwise::add),
    ("cast", elementwise::cast),
    ("copy", matrix::copy),
    ("embedding", matrix::embedding),
    ("sample", loss::sample),
    ("adamw", loss::adamw),
    ("reduce", rows::reduce),
    ("vector-add", elementwise::vector_add),
];

/// The strategy of an op.
pub fn strategy(op: &str) -> Option<Draw> {
    STRATEGIES.iter().find(|(name, _)| *name == op).map(|(_, draw)| *draw)
}

/// What became of a problem.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The problem in words.
    pub problem: String,
    /// The worst output, if the op ran.
    pub worst: Option<Finding>,
    /// Why it fails, if it does.
    pub failure: Option<String>,
}

impl Verdict {
    /// Runs a problem.
    pub fn of(problem: &Drawn, device: &Device, dtype: DType) -> Verdict {
        let name = format!("{problem:?}");
        match problem.check(device, dtype) {
            Ok(findings) => {
                let failed = findings.iter().find(|finding| !finding.ok);
                let failure = failed.map(|finding| format!("{}: {}", finding.output, finding.text));
                let worst = match failed {
                    Some(finding) => Some(finding.clone()),
                    None => findings.into_iter().max_by(|a, b| a.severity.total_cmp(&b.severity)),
                };
                Verdict {
                    problem: name,
                    worst,
                    failure,
                }
            }
            Err(error) => Verdict {
                problem: name,
                worst: None,
                failure: Some(error.to_string()),
            },
        }
    }
}

/// Steps of shrinking after a failure.
const SHRINKS: usize = 40;

/// A runner whose choices follow from the seed alone.
fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// The problem of this seed.
pub fn draw_one(draw: Draw, size: Size, seed: u64) -> Option<Drawn> {
    let tree = draw(size).new_tree(&mut runner(seed)).ok()?;
    Some(tree.current())
}

/// Draws the problem of this size and seed and runs it; a failure is shrunk.
pub fn check(draw: Draw, size: Size, device: &Device, dtype: DType, seed: u64) -> Verdict {
    let mut runner = runner(seed);
    let mut tree = match draw(size).new_tree(&mut runner) {
        Ok(tree) => tree,
        Err(reason) => {
            return Verdict {
                problem: format!("seed {seed}"),
                worst: None,
                failure: Some(format!("no problem could be drawn: {reason}")),
            };
        }
    };
    let mut verdict = Verdict::of(&tree.current(), device, dtype);
    if verdict.failure.is_none() {
        return verdict;
    }
    let first = verdict.problem.clone();
    for _ in 0..SHRINKS {
        if device.check_health().is_err() || !tree.simplify() {
            break;
        }
        let mut smaller = Verdict::of(&tree.current(), device, dtype);
        while smaller.failure.is_none() && tree.complicate() {
            smaller = Verdict::of(&tree.current(), device, dtype);
        }
        if smaller.failure.is_none() {
            break;
        }
        verdict = smaller;
    }
    if verdict.problem != first {
        verdict.problem = format!("{} (shrunk from {first})", verdict.problem);
    }
    verdict
}

impl Finding {
    fn new(output: &'static str, report: &Report) -> Finding {
        let mean = report
            .mean
            .map_or(0.0, |(error, bound)| error / bound.max(f64::MIN_POSITIVE));
        Finding {
            output,
            severity: report.severity().max(mean),
            error: report.max_error,
            bound: report.bound,
            ok: report.is_ok(),
            text: report.to_string(),
        }
    }

    /// An output that must have these bits.
    pub(crate) fn bits(output: &'static str, result: std::result::Result<(), Difference>) -> Finding {
        Finding {
            output,
            severity: if result.is_ok() { 0.0 } else { f64::INFINITY },
            error: 0.0,
            bound: 0.0,
            ok: result.is_ok(),
            text: result
                .err()
                .map_or_else(|| "same bits".into(), |difference| difference.to_string()),
        }
    }
}

/// An output under the 2× rule. f32 may instead be within eight units in the last place of the largest element: the naive
/// version of a few roundings happens to be exact where another order of them is not.
pub(crate) fn twice<T: Float>(name: &'static str, out: &AnyTensor, exact: &[f64], naive: &[f64]) -> Result<Finding> {
    let mut rules = vec![Rule::twice(naive)];
    if T::DTYPE == DType::F32 {
        let finite = exact.iter().map(|x| x.abs()).filter(|x| x.is_finite());
        rules.push(Rule::Absolute(finite.fold(0.0, f64::max) * 2f64.powi(-21)));
    }
    held::<T>(name, out, exact, &rules)
}

/// An output that must meet one of these rules; the first is reported when none is met.
pub(crate) fn held<T: Float>(
    name: &'static str,
    out: &AnyTensor,
    exact: &[f64],
    rules: &[Rule<'_>],
) -> Result<Finding> {
    let out = out.typed::<T>(name)?.to_vec()?;
    let reports: Vec<Report> = rules.iter().map(|rule| compare(&out, exact, *rule)).collect();
    let chosen = reports.iter().find(|report| report.is_ok()).unwrap_or(&reports[0]);
    Ok(Finding::new(name, chosen))
}

/// A dense tensor.
pub(crate) fn dense<T: host::Element>(device: &Device, data: &[T], shape: &[usize]) -> Result<AnyTensor> {
    let shape: Vec<u64> = shape.iter().map(|&extent| extent as u64).collect();
    Ok(Tensor::from_slice(device, data, &shape)?.any().clone())
}

/// `data [a, b, c, d]`; `[a, c, b, d]` where the inner axes are to be exchanged.
pub(crate) fn laid_out<T: host::Element>(
    device: &Device,
    data: &[T],
    [a, b, c, d]: [usize; 4],
    exchange: bool,
) -> Result<AnyTensor> {
    if exchange {
        dense(device, &exchange_axes(data, (b, c), d), &[a, c, b, d])
    } else {
        dense(device, data, &[a, b, c, d])
    }
}

/// `[rows, data / rows]`, with `gap` elements of NaN around each row.
pub(crate) fn spaced<T: Float>(device: &Device, data: &[T], rows: usize, gap: [usize; 2]) -> Result<AnyTensor> {
    let columns = data.len().checked_div(rows).unwrap_or(0);
    let pitch = gap[0] + columns + gap[1];
    let mut all = vec![T::from_f32(f32::NAN); rows * pitch];
    for row in 0..rows {
        all[row * pitch + gap[0]..][..columns].copy_from_slice(&data[row * columns..][..columns]);
    }
    dense(device, &all, &[rows, pitch])?.slice(1, gap[0] as u64..(gap[0] + columns) as u64)
}

/// Extents around the boundaries between kernels, and anything between.
pub(crate) fn columns(size: Size) -> BoxedStrategy<usize> {
    use proptest::prelude::*;
    let edges = [1usize, 7, 8, 31, 33, 64, 256, 1000, 1024, 1025, 1536];
    prop_oneof![
        3 => 1usize..size.choose(600, 5000),
        2 => proptest::sample::select(edges.to_vec()),
        1 => size.choose(1000usize, 8000)..size.choose(1800, 40_000),
    ]
    .boxed()
}

/// Rows for so many columns: few where rows are long.
pub(crate) fn rows_for(columns: usize, wanted: usize, size: Size) -> usize {
    wanted.clamp(1, (size.choose(6_000, 1_000_000) / columns.max(1)).max(1))
}

/// A seed that does not shrink: smaller numbers are no simpler.
pub(crate) fn seed() -> impl Strategy<Value = u64> {
    use proptest::prelude::*;
    any::<u32>().prop_map(u64::from).no_shrink()
}

/// Boxes a strategy of problems.
pub(crate) fn boxed<P: Problem + 'static>(strategy: impl Strategy<Value = P> + 'static) -> BoxedStrategy<Drawn> {
    strategy.prop_map(|problem| Arc::new(problem) as Drawn).boxed()
}
