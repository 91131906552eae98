//! Kernels under criterion, timed on the GPU itself: `cargo bench --bench kernels`, with `-- attention` for some of them.
//!
//! The measurement is one of CUDA events around all runs of a sample, so criterion's statistics and its comparison with
//! the last run are of GPU time. Without a GPU there is nothing to time, and that is said.

use std::time::Duration;

use criterion::{
    Criterion, Throughput,
    measurement::{Measurement, ValueFormatter},
};
use ferroflash::{AnyTensor, DType, Device, Event, Result, ops};

/// Microseconds between two events of the device's main stream.
struct CudaEvents {
    device: Device,
}

impl CudaEvents {
    fn mark(&self) -> Event {
        self.device.stream().record().expect("an event")
    }
}

impl Measurement for CudaEvents {
    type Intermediate = Event;
    type Value = f64;

    fn start(&self) -> Event {
        self.mark()
    }

    fn end(&self, start: Event) -> f64 {
        let end = self.mark();
        self.device.synchronize().expect("no fault");
        f64::from(end.elapsed_ms(&start).expect("two events that are over")) * 1e3
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Microseconds
    }
}

/// Prints microseconds, and rates of what a run moves or computes.
struct Microseconds;

impl ValueFormatter for Microseconds {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "µs"
    }

    fn scale_throughputs(&self, _typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (count, unit) = match *throughput {
            Throughput::Bytes(bytes) => (bytes, "TB/s"),
            Throughput::Elements(operations) => (operations, "TFLOP/s"),
            _ => (0, "(no rate)"),
        };
        values.iter_mut().for_each(|us| *us = count as f64 / *us / 1e6);
        unit
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "µs"
    }
}

fn normal(device: &Device, shape: &[u64], seed: u64) -> Result<AnyTensor> {
    let drawn = host::reference::data::normal::<f32>(seed, 1 << 16);
    let bytes: Vec<u8> = drawn
        .iter()
        .flat_map(|value| ferroflash::bf16::from_f32(*value).to_le_bytes())
        .collect();
    let len = shape.iter().product::<u64>() * DType::BF16.size();
    let all: Vec<u8> = bytes.into_iter().cycle().take(len as usize).collect();
    AnyTensor::from_bytes(device, DType::BF16, shape, &all)
}

fn kernels(criterion: &mut Criterion<CudaEvents>, device: &Device) -> Result<()> {
    let mut group = criterion.benchmark_group("bf16");
    for (seq, dim) in [(1024u64, 128u64), (4096, 128), (4096, 64)] {
        let shape = [1, 16, seq, dim];
        let [q, k, v] = [1, 2, 3].map(|seed| normal(device, &shape, seed));
        let (q, k, v) = (q?, k?, v?);
        group.throughput(Throughput::Elements(4 * 16 * seq * seq * dim));
        group.bench_function(format!("attention S{seq} D{dim}"), |b| {
            b.iter(|| {
                ops::attention(&q, &k, &v)
                    .layout(ops::Layout::Bhsd)
                    .run_without_lse()
                    .expect("attention")
            })
        });
    }
    for extent in [1024u64, 4096] {
        let (x, w) = (
            normal(device, &[extent, extent], 4)?,
            normal(device, &[extent, extent], 5)?,
        );
        group.throughput(Throughput::Elements(2 * extent.pow(3)));
        group.bench_function(format!("linear {extent}³"), |b| {
            b.iter(|| ops::linear(&x, &w).run().expect("a product"))
        });
    }
    let x = normal(device, &[16384, 4096], 6)?;
    let bytes = 2 * 2 * 16384 * 4096;
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("softmax 16384×4096", |b| {
        b.iter(|| ops::softmax(&x).run().expect("a softmax"))
    });
    group.bench_function("rms_norm 16384×4096", |b| {
        b.iter(|| ops::rms_norm(&x).run().expect("a norm"))
    });
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(why) => {
            println!("no kernel was timed: {why}; `ferroflash profile` counts on the emulator");
            return Ok(());
        }
    };
    let mut criterion = Criterion::default()
        .with_measurement(CudaEvents { device: device.clone() })
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    kernels(&mut criterion, &device)?;
    criterion.final_summary();
    Ok(())
}
