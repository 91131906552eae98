//! `ferroflash profile`: what limits a kernel. Nsight Compute's metrics on a GPU, the emulator's counts without.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
};

use clap::Args;
use ferroflash::{
    inventory::{OPS, op, unknown},
    verify::{Size, Verdict, draw_one, strategy},
};
use host::{DType, Device, DeviceKind, DeviceOptions, Tier, backend::emulated::EmulatedBackend, images::Images};
use serde::Serialize;

use super::{
    Failure, Outcome,
    bench::{Environment, SUITES},
    report,
};

/// Arguments of `profile`.
#[derive(Args)]
pub struct ProfileArgs {
    /// Ops to profile (all unless named).
    ops: Vec<String>,
    /// Count on the emulator even where ncu is there.
    #[arg(long)]
    emulated: bool,
    /// Tier of the emulator's kernels.
    #[arg(long, default_value = "sm_90a", value_parser = |text: &str| text.parse::<Tier>().map_err(|error| error.to_string()))]
    tier: Tier,
    /// Nsight Compute.
    #[arg(long, default_value = "ncu", value_name = "PROGRAM")]
    ncu: String,
    /// Write the metrics to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What FlashKernel's specification asks of a profile: our name, ncu's name.
const METRICS: [(&str, &str); 11] = [
    ("microseconds", "gpu__time_duration.sum"),
    ("occupancy_percent", "sm__warps_active.avg.pct_of_peak_sustained_active"),
    ("memory_percent", "dram__throughput.avg.pct_of_peak_sustained_elapsed"),
    ("compute_percent", "sm__throughput.avg.pct_of_peak_sustained_elapsed"),
    ("registers", "launch__registers_per_thread"),
    ("shared_bytes", "launch__shared_mem_per_block"),
    ("bank_conflicts", "l1tex__data_bank_conflicts_pipe_lsu.sum"),
    (
        "stall_memory",
        "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    ),
    (
        "stall_shared",
        "smsp__average_warps_issue_stalled_short_scoreboard_per_issue_active.ratio",
    ),
    (
        "stall_barrier",
        "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
    ),
    (
        "stall_math",
        "smsp__average_warps_issue_stalled_math_pipe_throttle_per_issue_active.ratio",
    ),
];

/// Metrics of one kernel, by our names.
#[derive(Clone, Debug, Serialize)]
struct Kernel {
    op: String,
    kernel: String,
    metrics: BTreeMap<String, f64>,
}

impl Kernel {
    fn microseconds(&self) -> f64 {
        self.metrics.get("microseconds").copied().unwrap_or(0.0)
    }
}

#[derive(Serialize)]
struct Report<'a> {
    source: &'a str,
    environment: &'a Environment,
    kernels: &'a [Kernel],
    failures: &'a [String],
}

/// Profiles and prints.
pub fn profile(args: ProfileArgs) -> Outcome {
    if let Some(name) = args.ops.iter().find(|name| op(name).is_none()) {
        return Err(Failure::Usage(unknown("op", name, OPS.iter().map(|op| op.name))));
    }
    if let Some(path) = &args.json {
        report::writable(path)?;
    }
    let wanted: Vec<&str> = OPS
        .iter()
        .map(|op| op.name)
        .filter(|name| args.ops.is_empty() || args.ops.iter().any(|op| op == name))
        .collect();
    let there = Command::new(&args.ncu)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let ncu = !args.emulated && there.is_ok_and(|status| status.success()) && host::backend::cuda::devices().is_ok();
    let kind = if ncu { DeviceKind::Cuda(0) } else { DeviceKind::Emulator };
    let options = DeviceOptions {
        tier: (!ncu).then_some(args.tier),
        ..DeviceOptions::default()
    };
    let environment = Environment::of(&Device::with_options(Some(kind), options)?);
    let source = if ncu {
        "ncu".to_owned()
    } else {
        format!("the emulator, {}", args.tier)
    };
    let (mut kernels, mut failures) = (Vec::new(), Vec::new());
    let mut keep = |found: &[Kernel], failed: &[String]| {
        (kernels, failures) = (found.to_vec(), failed.to_vec());
        let Some(path) = &args.json else { return Ok(()) };
        let report = Report {
            source: &source,
            environment: &environment,
            kernels: found,
            failures: failed,
        };
        report::write_json(path, &report)
    };
    if ncu {
        with_ncu(&args.ncu, &wanted, &mut keep)?;
    } else {
        say!(
            "counted on the emulator: {} or a GPU is missing, or --emulated was given",
            args.ncu
        );
        keep(&with_emulator(args.tier, &wanted)?, &[])?;
    }
    print(&kernels);
    if failures.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!("not profiled: {}", failures.join("; "))))
}

fn print(kernels: &[Kernel]) {
    let mut names: Vec<&String> = kernels.iter().flat_map(|kernel| kernel.metrics.keys()).collect();
    names.sort();
    names.dedup();
    let head: Vec<&str> = ["kernel"]
        .into_iter()
        .chain(names.iter().map(|name| name.as_str()))
        .collect();
    let mut table = report::table(&head);
    for kernel in kernels {
        let mut line = vec![kernel.kernel.clone()];
        line.extend(names.iter().map(|name| {
            kernel
                .metrics
                .get(*name)
                .map_or("–".into(), |value| format!("{value:.1}"))
        }));
        table.add_row(line);
    }
    say!("{table}");
}

/// Runs each case of the ops' suites once under ncu, a process a suite; what is profiled is kept when a suite fails.
fn with_ncu(ncu: &str, ops: &[&str], keep: &mut dyn FnMut(&[Kernel], &[String]) -> Outcome) -> Outcome {
    let program = std::env::current_exe().map_err(|error| Failure::Failed(error.to_string()))?;
    let metrics: Vec<&str> = METRICS.iter().map(|(_, metric)| *metric).collect();
    let (mut kernels, mut failures) = (Vec::new(), Vec::new());
    let suites = SUITES
        .iter()
        .map(|suite| suite.name)
        .filter(|suite| OPS.iter().any(|op| ops.contains(&op.name) && op.bench.contains(suite)));
    for suite in suites {
        let output = Command::new(ncu)
            .args(["--csv", "--page", "raw", "--target-processes", "all", "--metrics"])
            .arg(metrics.join(","))
            .arg(&program)
            .args(["bench", "--once", suite])
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| Failure::Failed(format!("{ncu}: {error}")))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let found = if output.status.success() {
            parse(&text)
        } else {
            let last = text.lines().rev().find(|line| line.contains("==ERROR=="));
            Err(last.unwrap_or("no reason given").to_owned())
        };
        match found {
            Ok(found) => {
                say!("{suite}: {} kernels", found.len());
                slowest(
                    &mut kernels,
                    found.into_iter().filter(|kernel| ops.contains(&kernel.op.as_str())),
                );
            }
            Err(why) => failures.push(format!("{suite}: {ncu}: {why}")),
        }
        keep(&kernels, &failures)?;
    }
    Ok(())
}

/// Takes up what another suite found: of a kernel in several suites the slowest launch counts.
fn slowest(kernels: &mut Vec<Kernel>, found: impl Iterator<Item = Kernel>) {
    for new in found {
        match kernels.iter_mut().find(|kernel| kernel.kernel == new.kernel) {
            Some(old) if old.microseconds() >= new.microseconds() => {}
            Some(old) => *old = new,
            None => kernels.push(new),
        }
    }
}

/// The raw page of ncu as CSV: a line of names, a line of units, a line a launch. The slowest launch of a kernel counts.
fn parse(text: &str) -> Result<Vec<Kernel>, String> {
    let start = text.find("\"ID\"").ok_or("no table in what it printed")?;
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_reader(&text.as_bytes()[start..]);
    let head = reader.headers().map_err(|error| error.to_string())?.clone();
    let column = |name: &str| head.iter().position(|field| field == name);
    let kernel_at = column("Kernel Name").ok_or("no kernel names in its table")?;
    let mut kernels: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    let mut units = csv::StringRecord::new();
    for record in reader.records() {
        let record = record.map_err(|error| error.to_string())?;
        let name = record.get(kernel_at).unwrap_or_default();
        if name.is_empty() {
            units = record;
            continue;
        }
        let metrics: BTreeMap<String, f64> = METRICS
            .iter()
            .filter_map(|(ours, theirs)| {
                let at = column(theirs)?;
                let value: f64 = record.get(at)?.replace(',', "").parse().ok()?;
                let scale = match units.get(at).unwrap_or_default() {
                    "ns" | "nsecond" => 1e-3,
                    "ms" | "msecond" => 1e3,
                    "Kbyte/block" => 1e3,
                    _ => 1.0,
                };
                Some(((*ours).to_owned(), value * scale))
            })
            .collect();
        let time = |metrics: &BTreeMap<String, f64>| metrics.get("microseconds").copied().unwrap_or(0.0);
        let entry = kernels.entry(name.to_owned()).or_default();
        if entry.is_empty() || time(&metrics) > time(entry) {
            *entry = metrics;
        }
    }
    Ok(kernels
        .into_iter()
        .filter_map(|(kernel, metrics)| {
            let op = ferroflash::inventory::op_of_entry(&kernel)?.name.to_owned();
            Some(Kernel { op, kernel, metrics })
        })
        .collect())
}

/// One small problem of each op on the emulator.
fn with_emulator(tier: Tier, ops: &[&str]) -> Result<Vec<Kernel>, Failure> {
    let mut kernels = Vec::new();
    for name in ops {
        let (Some(entry), Some(draw)) = (op(name), strategy(name)) else {
            continue;
        };
        let dtype = [DType::F16, DType::F32]
            .into_iter()
            .find(|dtype| entry.dtypes.contains(dtype));
        let Some(dtype) = dtype.filter(|dtype| entry.tiers(*dtype).contains(&tier)) else {
            continue;
        };
        let options = DeviceOptions {
            tier: Some(tier),
            ..DeviceOptions::default()
        };
        let backend = Arc::new(EmulatedBackend::new(&options)?);
        let device = Device::from_backend(backend.clone(), Images::embedded(), options, "profile".into())?;
        let Some(problem) = draw_one(draw, Size::of(&device), 1) else {
            continue;
        };
        let verdict = Verdict::of(&problem, &device, dtype);
        if let Some(failure) = verdict.failure {
            return Err(Failure::Failed(format!("{name}: {}: {failure}", verdict.problem)));
        }
        let counts = backend.statistics();
        let metrics = [
            ("warp_instructions", counts.warp_instructions),
            ("flops", counts.flops),
            ("global_read_bytes", counts.global.read),
            ("global_written_bytes", counts.global.written),
            ("shared_bytes", counts.shared.read + counts.shared.written),
            ("local_bytes", counts.local.read + counts.local.written),
            ("bank_conflicts", counts.bank_conflicts),
        ];
        kernels.push(Kernel {
            op: (*name).to_owned(),
            kernel: format!("{name}: {}", backend.loaded_entries().join(" ")),
            metrics: metrics
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count as f64))
                .collect(),
        });
    }
    Ok(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_raw_page() {
        let text = "==PROF== Connected\n\"ID\",\"Kernel Name\",\"gpu__time_duration.sum\",\"launch__registers_per_thread\"\n\
            \"\",\"\",\"ns\",\"register/thread\"\n\
            \"0\",\"reduce_long_sum_f32\",\"1,500\",\"40\"\n\"1\",\"reduce_long_sum_f32\",\"9,000\",\"40\"\n\"2\",\"other\",\"1\",\"1\"\n";
        let kernels = parse(text).unwrap();
        assert_eq!(kernels.len(), 1);
        assert_eq!(
            (kernels[0].op.as_str(), kernels[0].metrics["microseconds"]),
            ("reduce", 9.0)
        );
        assert!(parse("==ERROR== no permission").is_err());
        let mut all = kernels.clone();
        let mut longer = kernels.clone();
        longer[0].metrics.insert("microseconds".into(), 20.0);
        slowest(&mut all, longer.into_iter());
        slowest(&mut all, kernels.into_iter());
        assert_eq!((all.len(), all[0].microseconds()), (1, 20.0));
    }
}
