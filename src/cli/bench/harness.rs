//! Timing of GPU work: CUDA events around single runs, or around graphs of runs where one is too short to time.

use host::{AnyTensor, DType, Device, Event, Result};
use serde::Serialize;

/// Runs shorter than this are timed in graphs: an event pair costs a few microseconds itself.
const SHORT_MICROSECONDS: f64 = 100.0;
/// Runs of one graph.
const GRAPH_RUNS: usize = 20;

/// Something to measure.
pub struct Case {
    /// Shape and options.
    pub name: String,
    /// Bytes that must move at least once.
    pub bytes: u64,
    /// Floating-point operations of the maths.
    pub flops: u64,
    /// Runs it once; the argument counts runs, so that buffers can be rotated.
    pub run: Box<dyn FnMut(usize) -> Result<()>>,
}

/// Microseconds of one run.
#[derive(Clone, Copy, Debug, Serialize)]
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
}

impl Harness<'_> {
    /// 100 warm-ups and 1000 runs, or a tenth of both.
    pub fn new(device: &Device, quick: bool) -> Harness<'_> {
        let (warm_ups, runs) = if quick { (10, 100) } else { (100, 1000) };
        Harness { device, warm_ups, runs }
    }

    /// Times `run`.
    pub fn time(&self, run: &mut dyn FnMut(usize) -> Result<()>) -> Result<Timing> {
        for turn in 0..self.warm_ups {
            run(turn)?;
        }
        self.device.synchronize()?;
        let trial = self.sample(10, 1, &mut |turn| run(turn))?;
        if median(&trial) >= SHORT_MICROSECONDS {
            return Ok(statistics(self.sample(self.runs, 1, &mut |turn| run(turn))?, false));
        }
        let (graph, ()) = self.device.capture(|| (0..GRAPH_RUNS).try_for_each(&mut *run))?;
        let samples = (self.runs / GRAPH_RUNS).max(20);
        self.sample(5, GRAPH_RUNS, &mut |_| graph.launch())?;
        Ok(statistics(
            self.sample(samples, GRAPH_RUNS, &mut |_| graph.launch())?,
            true,
        ))
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
}

fn median(samples: &[f64]) -> f64 {
    percentile(&sorted(samples.to_vec()), 0.5)
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}

fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let at = (fraction * (sorted.len().max(1) - 1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn statistics(samples: Vec<f64>, graph: bool) -> Timing {
    let samples = sorted(samples);
    let count = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / count;
    let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / count;
    Timing {
        samples: samples.len(),
        graph,
        mean,
        std: variance.sqrt(),
        min: percentile(&samples, 0.0),
        max: percentile(&samples, 1.0),
        p50: percentile(&samples, 0.5),
        p95: percentile(&samples, 0.95),
        p99: percentile(&samples, 0.99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_samples() {
        let timing = statistics((1..=101).rev().map(f64::from).collect(), false);
        assert_eq!(
            (timing.min, timing.p50, timing.p95, timing.p99, timing.max),
            (1.0, 51.0, 96.0, 100.0, 101.0)
        );
        assert_eq!(timing.mean, 51.0);
        assert!((timing.std - (850.0f64).sqrt()).abs() < 1e-9);
    }
}
