//! Timing of GPU work: CUDA events around single runs, or around graphs of runs where one is too short to time.

use std::time::Instant;

use host::{AnyTensor, DType, Device, Event, Graph, Result, ops};
use serde::{Deserialize, Serialize};
use statrs::statistics::{Data, Max, Min, OrderStatistics, Statistics};

use super::case::normal;

/// Runs shorter than this are timed in graphs: an event pair costs a few microseconds itself.
const SHORT_MICROSECONDS: f64 = 100.0;
/// Extents of the products of which the fastest is the ceiling: the largest runs into the limit of power.
pub const SQUARES: [u64; 2] = [4096, 8192];
/// Microseconds of a graph, at most [`MOST_GRAPH_RUNS`] runs: its own start takes four.
const GRAPH_MICROSECONDS: f64 = 1000.0;
/// Runs of a graph, at least and at most.
const LEAST_GRAPH_RUNS: usize = 20;
const MOST_GRAPH_RUNS: usize = 200;
/// Microseconds of graphs before the first that counts: clocks settle, and the driver clears memory that was freed.
const SETTLING_MICROSECONDS: f64 = 50_000.0;

/// Graphs of a turn, of everybody's: one after the other without a wait, which would let the GPU rest and cool. The first,
/// behind somebody else's turn, does not count.
pub const TURN: usize = 6;

/// Microseconds of one run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// Number of runs (or of graphs of runs).
    pub samples: usize,
    /// Whether runs were timed in graphs.
    pub graph: bool,
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// Fastest.
    pub min: f64,
    /// Slowest.
    pub max: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// Times work on one device.
pub struct Harness<'a> {
    device: &'a Device,
    warm_ups: usize,
    runs: usize,
    /// Seconds after which a case is not repeated further.
    patience: f64,
}

impl Harness<'_> {
    /// 100 warm-ups and 1000 runs, or a tenth of both.
    pub fn new(device: &Device, quick: bool) -> Harness<'_> {
        let (warm_ups, runs, patience) = if quick { (10, 100, 0.3) } else { (100, 1000, 60.0) };
        Harness {
            device,
            warm_ups,
            runs,
            patience,
        }
    }

    /// Times `run`.
    pub fn time(&self, run: &mut dyn FnMut(usize) -> Result<()>) -> Result<Timing> {
        let begun = Instant::now();
        for turn in 0..self.warm_ups {
            run(turn)?;
            if begun.elapsed().as_secs_f64() > self.patience {
                break;
            }
        }
        self.device.synchronize()?;
        let trial = median(&self.sample(10, 1, &mut |turn| run(turn))?);
        if trial >= SHORT_MICROSECONDS {
            let runs = self.runs.min((self.patience * 1e6 / trial) as usize).max(10);
            return Ok(statistics(self.sample(runs, 1, &mut |turn| run(turn))?, false));
        }
        let runs = ((GRAPH_MICROSECONDS / trial) as usize).clamp(LEAST_GRAPH_RUNS, MOST_GRAPH_RUNS);
        let graph = self.graph(runs, run)?;
        let settling = (SETTLING_MICROSECONDS / (trial * runs as f64)) as usize;
        self.sample(settling.clamp(1, 200), runs, &mut |_| graph.launch())?;
        let samples = (self.runs / runs).max(20);
        Ok(statistics(self.sample(samples, runs, &mut |_| graph.launch())?, true))
    }

    /// A graph of `launches` runs, for turns with a peer.
    pub fn graph(&self, launches: usize, run: &mut dyn FnMut(usize) -> Result<()>) -> Result<Graph> {
        Ok(self.device.capture(|| (0..launches).try_for_each(&mut *run))?.0)
    }

    /// Microseconds of a run within one turn of a graph: the median of [`TURN`] but the first.
    pub fn turn(&self, graph: &Graph, launches: usize) -> Result<f64> {
        Ok(median(&self.sample(TURN, launches, &mut |_| graph.launch())?[1..]))
    }

    /// Microseconds of each of `samples` turns, each of which holds `runs` runs.
    fn sample(&self, samples: usize, runs: usize, turn: &mut dyn FnMut(usize) -> Result<()>) -> Result<Vec<f64>> {
        let mut marks: Vec<(Event, Event)> = Vec::with_capacity(samples);
        for index in 0..samples {
            let start = self.device.stream().record()?;
            turn(index)?;
            marks.push((start, self.device.stream().record()?));
        }
        self.device.synchronize()?;
        marks
            .iter()
            .map(|(start, end)| Ok(end.elapsed_ms(start)? as f64 * 1e3 / runs as f64))
            .collect()
    }

    /// TB/s of a device-to-device copy of 2 GiB, read and written bytes counted.
    pub fn copy_bandwidth(&self) -> Result<f64> {
        const BYTES: u64 = 2 << 30;
        let source = AnyTensor::zeros(self.device, DType::U8, &[BYTES])?;
        let target = AnyTensor::empty(self.device, DType::U8, &[BYTES])?;
        let stream = self.device.stream().id();
        let timing = self.time(&mut |_| {
            // SAFETY: two live buffers of `BYTES` bytes.
            unsafe {
                self.device
                    .backend()
                    .copy(target.address(), source.address(), BYTES, stream)
            }
        })?;
        Ok(2.0 * BYTES as f64 / timing.p50 / 1e6)
    }

    /// TFLOP/s of our products of two normal square matrices in bf16 (f16 where the tier has no bf16): the fastest.
    pub fn matrix_rate(&self) -> Result<f64> {
        let dtype = if self.device.tier() == host::Tier::Sm75 {
            DType::F16
        } else {
            DType::BF16
        };
        let mut best = 0.0;
        for extent in SQUARES {
            let [x, w] = [1, 2].map(|seed| normal(self.device, dtype, &[extent, extent], seed));
            let (x, w) = (x?, w?);
            let timing = self.time(&mut |_| ops::linear(&x, &w).run().map(drop))?;
            best = f64::max(best, 2.0 * (extent as f64).powi(3) / timing.p50 / 1e6);
        }
        Ok(best)
    }
}

/// Median of some samples; NaN of none.
pub fn median(samples: &[f64]) -> f64 {
    Data::new(samples.to_vec()).median()
}

fn statistics(samples: Vec<f64>, graph: bool) -> Timing {
    let (mean, std) = ((&samples).mean(), (&samples).population_std_dev());
    let count = samples.len();
    let mut data = Data::new(samples);
    Timing {
        samples: count,
        graph,
        mean,
        std,
        min: data.min(),
        max: data.max(),
        p50: data.median(),
        p95: data.percentile(95),
        p99: data.percentile(99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_the_samples() {
        let timing = statistics((1..=101).rev().map(f64::from).collect(), false);
        assert_eq!((timing.min, timing.p50, timing.max), (1.0, 51.0, 101.0));
        assert!((timing.p95 - 96.0).abs() < 1.0 && (timing.p99 - 100.0).abs() < 1.0);
        assert!((timing.mean - 51.0).abs() < 1e-9);
        assert!((timing.std - (850.0f64).sqrt()).abs() < 1e-9);
    }
}
