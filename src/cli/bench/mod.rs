//! `ferroflash bench`: how fast the kernels are, beside the ceilings of the same GPU in the same run.

use std::path::PathBuf;

use clap::Args;
use host::Device;
use serde::Serialize;

use super::{DeviceArgs, Failure, Outcome};

mod attention;
mod harness;
mod memory;

pub use harness::{Case, Harness, Timing};

/// Arguments of `bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Ops to measure (all unless named): see `--list`.
    ops: Vec<String>,
    /// 10 warm-ups and 100 runs instead of 100 and 1000.
    #[arg(long)]
    quick: bool,
    /// Print the names of the ops and stop.
    #[arg(long)]
    list: bool,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Cases of one op: what `bench NAME` measures.
type Suite = (&'static str, fn(&Device) -> host::Result<Vec<Case>>);

/// Everything that can be measured.
const SUITES: [Suite; 3] = [
    ("attention", attention::forward),
    ("vector-add", memory::vector_add),
    ("reduce", memory::reduce),
];

/// One measured case.
#[derive(Serialize)]
struct Row {
    op: &'static str,
    case: String,
    timing: Timing,
    bytes: u64,
    flops: u64,
    terabytes_per_second: f64,
    teraflops_per_second: f64,
    fraction_of_copy: f64,
}

/// A run of the command: figures and where they come from.
#[derive(Serialize)]
struct Report {
    command: String,
    device: String,
    driver_cuda_version: u32,
    unix_seconds: u64,
    copy_terabytes_per_second: f64,
    rows: Vec<Row>,
}

/// Measures and prints.
pub fn bench(args: BenchArgs) -> Outcome {
    if args.list {
        SUITES.iter().for_each(|(name, _)| say!("{name}"));
        return Ok(());
    }
    let known: Vec<&str> = SUITES.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = args.ops.iter().find(|op| !known.contains(&op.as_str())) {
        return Err(Failure::Usage(format!(
            "unknown op {unknown}; known: {}",
            known.join(", ")
        )));
    }
    let device = args.device.open()?;
    if device.is_emulator() {
        return Err(Failure::Failed(format!(
            "bench measures GPUs, and there is none ({}); `cargo bench` measures the emulator",
            device.selection()
        )));
    }
    let harness = Harness::new(&device, args.quick);
    let copy = harness.copy_bandwidth()?;
    say!("{device}: copy {copy:.3} TB/s (read and written bytes)");
    say!(
        "{:<44} {:>10} {:>10} {:>10} {:>8} {:>8} {:>6}",
        "case",
        "p50 µs",
        "p95 µs",
        "min µs",
        "TB/s",
        "TFLOP/s",
        "copy%"
    );
    let mut rows = Vec::new();
    for (op, cases) in SUITES
        .iter()
        .filter(|(name, _)| args.ops.is_empty() || args.ops.iter().any(|op| op == name))
    {
        for case in cases(&device)? {
            let row = measure(&harness, op, case, copy)?;
            say!(
                "{:<44} {:>10.2} {:>10.2} {:>10.2} {:>8.3} {:>8.1} {:>6.1}",
                format!("{op} {}", row.case),
                row.timing.p50,
                row.timing.p95,
                row.timing.min,
                row.terabytes_per_second,
                row.teraflops_per_second,
                row.fraction_of_copy * 100.0,
            );
            rows.push(row);
        }
    }
    let Some(path) = args.json else { return Ok(()) };
    let report = Report {
        command: std::env::args().collect::<Vec<_>>().join(" "),
        device: device.properties().name.clone(),
        driver_cuda_version: device.properties().driver_version,
        unix_seconds: std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |t| t.as_secs()),
        copy_terabytes_per_second: copy,
        rows,
    };
    let text = serde_json::to_string_pretty(&report).map_err(|error| Failure::Failed(error.to_string()))?;
    std::fs::write(&path, text + "\n").map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

fn measure(harness: &Harness<'_>, op: &'static str, mut case: Case, copy: f64) -> host::Result<Row> {
    let timing = harness.time(&mut case.run)?;
    let seconds = timing.p50 * 1e-6;
    let terabytes_per_second = case.bytes as f64 / seconds / 1e12;
    Ok(Row {
        op,
        case: case.name,
        timing,
        bytes: case.bytes,
        flops: case.flops,
        terabytes_per_second,
        teraflops_per_second: case.flops as f64 / seconds / 1e12,
        fraction_of_copy: terabytes_per_second / copy,
    })
}
