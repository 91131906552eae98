//! `ferroflash verify`: seeded random problems and named ones of every op against the f64 reference.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use ferroflash::{
    inventory::{OPS, Op, op, unknown},
    verify::{Drawn, GROUPS, Size, Verdict, check, strategy},
};
use host::{DType, Device, Tier};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{DeviceArgs, Failure, Outcome, bench::Environment, report};

/// Arguments of `verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Ops and named groups to verify (all unless named): see `--list`.
    ops: Vec<String>,
    /// Random problems of each op, dtype and tier: 200 on a GPU, 4 on the emulator.
    #[arg(long, value_name = "N")]
    cases: Option<u64>,
    /// Seed of the first problem; problem I has this seed plus I.
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
    /// Begin no problem after so many seconds; what was not run is counted.
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Only this dtype (f32, f16, bf16).
    #[arg(long, value_parser = parse_dtype)]
    dtype: Option<DType>,
    /// Problems of the emulator's sizes on a GPU too.
    #[arg(long)]
    small: bool,
    /// Problems side by side: as many as the machine has cores, unless told.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print ops and groups and stop.
    #[arg(long)]
    list: bool,
    /// Write the table, failures and environment to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

fn parse_dtype(text: &str) -> Result<DType, String> {
    [DType::F32, DType::F16, DType::BF16]
        .into_iter()
        .find(|dtype| dtype.name() == text)
        .ok_or_else(|| "expected f32, f16 or bf16".into())
}

/// Where a problem comes from.
enum Source {
    /// The op's strategy with this seed.
    Seed(u64),
    /// A named problem of a group.
    Named(String, Drawn),
}

/// A problem to run.
struct Work {
    /// What the table calls it: the op, or the group.
    name: &'static str,
    op: &'static Op,
    dtype: DType,
    /// Index of the device.
    device: usize,
    source: Source,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    op: String,
    dtype: &'static str,
    tier: &'static str,
    cases: usize,
    failures: usize,
    /// Largest error as a share of its bound; absent where outputs must be exact and are.
    worst_share: f64,
    worst_error: f64,
    worst_bound: f64,
    worst_output: String,
    worst_problem: String,
    repeat: String,
}

/// A failure and how to see it again.
#[derive(Clone, Debug, Serialize)]
struct Failed {
    name: String,
    dtype: &'static str,
    tier: &'static str,
    problem: String,
    why: String,
    repeat: String,
}

#[derive(Serialize)]
struct Report {
    environment: Environment,
    seed: u64,
    cases: u64,
    seconds: f64,
    rows: Vec<Row>,
    failures: Vec<Failed>,
}

/// Verifies and prints the table.
pub fn verify(args: VerifyArgs) -> Outcome {
    if args.list {
        OPS.iter().for_each(|op| say!("{:<18} {}", op.name, op.what));
        GROUPS
            .iter()
            .for_each(|group| say!("{:<18} {} ({})", group.name, group.source, group.op));
        return Ok(());
    }
    let names: Vec<&str> = OPS
        .iter()
        .map(|op| op.name)
        .chain(GROUPS.iter().map(|group| group.name))
        .collect();
    if let Some(name) = args.ops.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(Failure::Usage(unknown("op or group", name, names)));
    }
    if let Some(path) = &args.json {
        report::writable(path)?;
    }
    let devices = open(&args)?;
    let emulator = devices[0].is_emulator();
    if emulator {
        say!(
            "on the emulator, with sizes that it affords, as there is no GPU in use ({})",
            devices[0].selection()
        );
    }
    let cases = args.cases.unwrap_or(if emulator { 4 } else { 200 });
    let work = plan(&args, &devices, cases);
    let start = Instant::now();
    let results = run(
        &work,
        &devices,
        args.size(&devices[0]),
        args.threads,
        args.seconds.map(|seconds| start + Duration::from_secs(seconds)),
    );
    let seconds = start.elapsed().as_secs_f64();
    let (rows, failures) = tabulate(&work, &results, &devices, &args);
    print(&rows, &failures);
    say!(
        "{} problems in {seconds:.1} s on {}: {} failures",
        results.iter().flatten().count(),
        devices[0].properties().name,
        failures.len()
    );
    let left = results.iter().filter(|verdict| verdict.is_none()).count();
    let lost = devices.iter().any(|device| device.check_health().is_err());
    if left > 0 && !lost {
        say!("{left} problems were not run: the time was over");
    }
    if let Some(path) = &args.json {
        report::write_json(
            path,
            &Report {
                environment: Environment::of(&devices[0]),
                seed: args.seed,
                cases,
                seconds,
                rows,
                failures: failures.clone(),
            },
        )?;
    }
    match (failures.len(), left) {
        (0, 0) => Ok(()),
        (0, left) if lost => Err(Failure::Failed(format!(
            "the device was lost; {left} problems were not run"
        ))),
        (0, _) => Ok(()),
        (failed, _) => Err(Failure::Failed(format!("{failed} problems failed"))),
    }
}

impl VerifyArgs {
    /// How large problems are.
    fn size(&self, device: &Device) -> Size {
        if self.small { Size::Small } else { Size::of(device) }
    }
}

/// The device, once for each tier that it runs and that is wanted.
fn open(args: &VerifyArgs) -> Result<Vec<Device>, Failure> {
    if args.device.tier().is_some() {
        return Ok(vec![args.device.open()?]);
    }
    let mut devices = Vec::new();
    for tier in Tier::ALL {
        match args.device.open_tier(Some(tier)) {
            Ok(device) => devices.push(device),
            Err(host::Error::Unsupported { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if devices.is_empty() {
        return Err(Failure::Failed("no tier runs on this device".into()));
    }
    Ok(devices)
}

fn plan(args: &VerifyArgs, devices: &[Device], cases: u64) -> Vec<Work> {
    let wanted = |name: &str| args.ops.is_empty() || args.ops.iter().any(|op| op == name);
    let mut work = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let has = |op: &Op, dtype: DType| {
            op.dtypes.contains(&dtype)
                && args.dtype.is_none_or(|only| only == dtype)
                && op.tiers(dtype).contains(&device.tier())
        };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for op in OPS.iter().filter(|op| wanted(op.name) && has(op, dtype)) {
                work.extend((0..cases).map(|case| Work {
                    name: op.name,
                    op,
                    dtype,
                    device: index,
                    source: Source::Seed(args.seed.wrapping_add(case)),
                }));
            }
            for group in GROUPS.iter().filter(|group| wanted(group.name)) {
                let Some(op) = op(group.op).filter(|op| has(op, dtype)) else {
                    continue;
                };
                work.extend(
                    (group.problems)(args.size(device))
                        .into_iter()
                        .map(|(name, problem)| Work {
                            name: group.name,
                            op,
                            dtype,
                            device: index,
                            source: Source::Named(name, problem),
                        }),
                );
            }
        }
    }
    work
}

/// The verdict of each piece of work; none where the device was lost or the time was over before.
fn run(
    work: &[Work],
    devices: &[Device],
    size: Size,
    threads: Option<NonZeroUsize>,
    until: Option<Instant>,
) -> Vec<Option<Verdict>> {
    let bar = ProgressBar::new(work.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {elapsed} of about {duration}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    let next = AtomicUsize::new(0);
    let verdicts: Mutex<Vec<Option<Verdict>>> = Mutex::new(vec![None; work.len()]);
    let threads = threads
        .or_else(|| thread::available_parallelism().ok())
        .map_or(1, |n| n.get())
        .min(work.len().max(1));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(piece) = work.get(index) else { break };
                    if until.is_some_and(|until| Instant::now() > until) {
                        break;
                    }
                    let device = &devices[piece.device];
                    if device.check_health().is_err() {
                        break;
                    }
                    bar.set_message(format!("{} {} {}", piece.name, piece.dtype, device.tier()));
                    let verdict = match &piece.source {
                        Source::Seed(seed) => match strategy(piece.op.name) {
                            Some(draw) => check(draw, size, device, piece.dtype, *seed),
                            None => continue,
                        },
                        Source::Named(name, problem) => {
                            let mut verdict = Verdict::of(problem, device, piece.dtype);
                            verdict.problem = format!("{name}: {}", verdict.problem);
                            verdict
                        }
                    };
                    verdicts.lock().unwrap_or_else(|e| e.into_inner())[index] = Some(verdict);
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    verdicts.into_inner().unwrap_or_else(|e| e.into_inner())
}

fn tabulate(
    work: &[Work],
    results: &[Option<Verdict>],
    devices: &[Device],
    args: &VerifyArgs,
) -> (Vec<Row>, Vec<Failed>) {
    let mut rows: BTreeMap<(usize, &str, &str, usize), Row> = BTreeMap::new();
    let mut failures = Vec::new();
    for (piece, verdict) in work.iter().zip(results) {
        let Some(verdict) = verdict else { continue };
        let tier = devices[piece.device].tier().name();
        let dtype = piece.dtype.name();
        let repeat = format!(
            "ferroflash verify {} --device {} --tier {tier} --dtype {dtype}{}{}",
            piece.name,
            args.device.name(),
            if args.small { " --small" } else { "" },
            match piece.source {
                Source::Seed(seed) => format!(" --cases 1 --seed {seed}"),
                Source::Named(..) => String::new(),
            }
        );
        let order = OPS.iter().position(|op| op.name == piece.op.name).unwrap_or(usize::MAX);
        let row = rows
            .entry((order, piece.name, dtype, piece.device))
            .or_insert_with(|| Row {
                name: piece.name.into(),
                op: piece.op.name.into(),
                dtype,
                tier,
                cases: 0,
                failures: 0,
                worst_share: -1.0,
                worst_error: 0.0,
                worst_bound: 0.0,
                worst_output: String::new(),
                worst_problem: String::new(),
                repeat: String::new(),
            });
        row.cases += 1;
        row.failures += usize::from(verdict.failure.is_some());
        if let Some(worst) = &verdict.worst
            && worst.severity > row.worst_share
        {
            row.worst_share = worst.severity;
            row.worst_error = worst.error;
            row.worst_bound = worst.bound;
            row.worst_output = worst.output.into();
            row.worst_problem = verdict.problem.clone();
            row.repeat = repeat.clone();
        }
        if let Some(why) = &verdict.failure {
            failures.push(Failed {
                name: piece.name.into(),
                dtype,
                tier,
                problem: verdict.problem.clone(),
                why: why.clone(),
                repeat,
            });
        }
    }
    // JSON has no infinity.
    let finite = |value: f64| if value.is_finite() { value.max(0.0) } else { f64::MAX };
    let rows = rows
        .into_values()
        .map(|row| Row {
            worst_share: finite(row.worst_share),
            ..row
        })
        .collect();
    (rows, failures)
}

fn print(rows: &[Row], failures: &[Failed]) {
    let mut table = report::table(&[
        "op",
        "dtype",
        "tier",
        "cases",
        "failed",
        "worst ÷ bound",
        "error",
        "output",
        "seed",
    ]);
    for row in rows {
        let exact = row.worst_bound == 0.0 && row.failures == 0;
        table.add_row(vec![
            row.name.clone(),
            row.dtype.into(),
            row.tier.into(),
            row.cases.to_string(),
            row.failures.to_string(),
            if exact {
                "exact".into()
            } else {
                format!("{:.2}", row.worst_share)
            },
            if exact {
                "–".into()
            } else {
                format!("{:.1e}", row.worst_error)
            },
            row.worst_output.clone(),
            row.repeat
                .rsplit_once("--seed ")
                .map_or("–".into(), |(_, seed)| seed.to_owned()),
        ]);
    }
    say!("{table}");
    for failure in failures.iter().take(20) {
        say!(
            "\n{} {} {}: {}\n  {}\n  again: {}",
            failure.name,
            failure.dtype,
            failure.tier,
            failure.problem,
            failure.why,
            failure.repeat
        );
    }
    if failures.len() > 20 {
        say!("\n… and {} more failures", failures.len() - 20);
    }
}
