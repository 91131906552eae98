//! `ferroflash sanitize`: every op on the emulator under all checks, on many schedules and every tier.
//!
//! A case passes when no schedule faults and all schedules give the same bits.

use std::{
    collections::BTreeSet,
    io::IsTerminal,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use clap::Args;
use host::{Error, Tier, images::Images};

use super::{Failure, Outcome};

mod bed;
mod cases;
mod gpu;

use bed::Bed;
use cases::Case;

/// Arguments of `sanitize`.
#[derive(Args)]
pub struct SanitizeArgs {
    /// Ops to run (all unless named): see `--list`.
    ops: Vec<String>,
    /// Schedules of each case: seeds 0 to N − 1.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Run only this seed: a failure again.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Only the images of this tier (sm_75, sm_80, sm_90a).
    #[arg(long, value_parser = |text: &str| text.parse::<Tier>().map_err(|error| error.to_string()))]
    tier: Option<Tier>,
    /// Mark the numbers that an op computes with as secret: a branch or an address that depends on them is a fault.
    #[arg(long)]
    taint: bool,
    /// Run `verify` of the ops on the GPU under compute-sanitizer's four tools instead.
    #[arg(long, conflicts_with_all = ["taint", "list", "seed"])]
    gpu: bool,
    /// With `--gpu`: random problems of each op, dtype and tier.
    #[arg(long, default_value_t = 2, value_name = "N")]
    cases: u64,
    /// With `--gpu`: processes side by side.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    jobs: u64,
    /// With `--gpu`: seconds that one tool may take over one op.
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// With `--gpu`: write what each tool found in each op to this file.
    #[arg(long, value_name = "FILE", requires = "gpu")]
    json: Option<PathBuf>,
    /// Print the ops and their cases and stop.
    #[arg(long)]
    list: bool,
}

/// What became of a case on a tier.
enum Verdict {
    Clean,
    /// The tier has no such kernel, the case is for another, or the op is not for secrets.
    NotThere,
    Fault {
        seed: u64,
        text: String,
    },
}

/// Kernels that were launched, by tier.
type Launched = Mutex<BTreeSet<(Tier, String)>>;

/// Runs one case on the schedules.
fn check(case: &Case, tier: Tier, seeds: std::ops::Range<u64>, taint: bool, launched: &Launched) -> Verdict {
    let other_tier = case.gpu.is_some_and(|(gpu, _)| gpu != tier);
    if other_tier || taint && case.looks_at_data {
        return Verdict::NotThere;
    }
    let mut first: Option<Vec<Vec<u8>>> = None;
    for seed in seeds {
        let outcome = Bed::new(tier, case.gpu.map(|(_, shared)| shared), seed, taint).and_then(|bed| {
            let outputs = (case.run)(&bed);
            // Under the tier of the image: Hopper runs some of sm_80.
            let of = |entry: &str| Images::embedded().info(tier, entry).map_or(tier, |info| info.tier);
            let entries = bed.launched().into_iter().map(|entry| (of(&entry), entry));
            launched.lock().unwrap_or_else(|e| e.into_inner()).extend(entries);
            outputs?
                .iter()
                .map(host::AnyTensor::to_bytes)
                .collect::<host::Result<Vec<_>>>()
        });
        match outcome {
            Ok(bytes) => match &first {
                Some(before) if *before != bytes => {
                    let text = "the result depends on the schedule".into();
                    return Verdict::Fault { seed, text };
                }
                Some(_) => {}
                None => first = Some(bytes),
            },
            Err(Error::Unsupported { .. }) => return Verdict::NotThere,
            Err(error) => {
                return Verdict::Fault {
                    seed,
                    text: error.to_string(),
                };
            }
        }
    }
    Verdict::Clean
}

/// Runs the cases and prints the table.
pub fn sanitize(args: SanitizeArgs) -> Outcome {
    if args.gpu {
        return gpu::sanitize(&args);
    }
    let all = cases::all();
    if args.list {
        all.iter().for_each(|case| println!("{:<22} {}", case.op, case.name));
        return Ok(());
    }
    let mut known: Vec<&str> = all.iter().map(|case| case.op).collect();
    known.dedup();
    if let Some(unknown) = args.ops.iter().find(|op| !known.contains(&op.as_str())) {
        return Err(Failure::Usage(format!("no op {unknown}; known: {}", known.join(", "))));
    }
    let cases: Vec<&Case> = all
        .iter()
        .filter(|case| args.ops.is_empty() || args.ops.iter().any(|op| op == case.op))
        .collect();
    let tiers: Vec<Tier> = args.tier.map_or(Tier::ALL.to_vec(), |tier| vec![tier]);
    let seeds = args.seed.map_or(0..args.seeds, |seed| seed..seed.saturating_add(1));
    let work: Vec<(&Case, Tier)> = cases
        .iter()
        .flat_map(|&case| tiers.iter().map(move |&tier| (case, tier)))
        .collect();
    let start = Instant::now();
    let launched = Launched::default();
    let verdicts = run_all(&work, seeds.clone(), args.taint, &launched);
    let faults = report(&work, &verdicts, &tiers, seeds.end - seeds.start);
    println!(
        "{} cases on {} schedules in {:.1} s: {faults} faults",
        verdicts.iter().filter(|v| !matches!(v, Verdict::NotThere)).count(),
        seeds.end - seeds.start,
        start.elapsed().as_secs_f64()
    );
    let launched = launched.into_inner().unwrap_or_else(|e| e.into_inner());
    coverage(&launched, &tiers, args.ops.is_empty() && !args.taint);
    match faults {
        0 => Ok(()),
        n => Err(Failure::Failed(format!("{n} cases faulted"))),
    }
}

/// Kernels of the archive that no case launched on a tier: `tests/device_std` runs those of `device_tests`.
fn missing(launched: &BTreeSet<(Tier, String)>, tiers: &[Tier]) -> Vec<(Tier, String)> {
    Images::embedded()
        .iter()
        .filter(|info| tiers.contains(&info.tier) && info.unit != "device_tests")
        .map(|info| (info.tier, info.entry.clone()))
        .filter(|key| !launched.contains(key))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Prints how many kernels of the archive were launched, and which were not if all cases ran.
fn coverage(launched: &BTreeSet<(Tier, String)>, tiers: &[Tier], list: bool) {
    let missing = missing(launched, tiers);
    println!(
        "{} of {} kernels launched",
        launched.len(),
        launched.len() + missing.len()
    );
    if list {
        for (tier, entry) in missing {
            println!("  never launched on {tier}: {entry}");
        }
    }
}

/// The verdict of each piece of work, in its order.
fn run_all(work: &[(&Case, Tier)], seeds: std::ops::Range<u64>, taint: bool, launched: &Launched) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let verdicts: Mutex<Vec<Option<Verdict>>> = Mutex::new(work.iter().map(|_| None).collect());
    let progress = std::io::stderr().is_terminal();
    let threads = thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(work.len().max(1));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(case, tier)) = work.get(index) else { break };
                    if progress {
                        eprint!("\r\x1b[K{}/{} {} {} {tier}", index + 1, work.len(), case.op, case.name);
                    }
                    let verdict = check(case, tier, seeds.clone(), taint, launched);
                    verdicts.lock().unwrap_or_else(|e| e.into_inner())[index] = Some(verdict);
                }
            });
        }
    });
    if progress {
        eprint!("\r\x1b[K");
    }
    let verdicts = verdicts.into_inner().unwrap_or_else(|e| e.into_inner());
    verdicts
        .into_iter()
        .map(|verdict| verdict.unwrap_or(Verdict::NotThere))
        .collect()
}

/// Prints ops by tiers, then each fault; how many there are.
fn report(work: &[(&Case, Tier)], verdicts: &[Verdict], tiers: &[Tier], seeds: u64) -> usize {
    let mut ops: Vec<&str> = work.iter().map(|(case, _)| case.op).collect();
    ops.dedup();
    println!(
        "{:<22} {:<8} {:>6} {:>6} {:>7}",
        "op", "tier", "cases", "seeds", "faults"
    );
    for op in ops {
        for &tier in tiers {
            let of_both = || {
                work.iter()
                    .zip(verdicts)
                    .filter(|((case, on), _)| case.op == op && *on == tier)
                    .map(|(_, verdict)| verdict)
            };
            let cases = of_both().filter(|v| !matches!(v, Verdict::NotThere)).count();
            let faults = of_both().filter(|v| matches!(v, Verdict::Fault { .. })).count();
            if cases == 0 {
                println!(
                    "{op:<22} {tier:<8} {:>6} {:>6} {:>7}",
                    "–",
                    "–",
                    "–",
                    tier = tier.name()
                );
            } else {
                println!(
                    "{op:<22} {tier:<8} {cases:>6} {seeds:>6} {faults:>7}",
                    tier = tier.name()
                );
            }
        }
    }
    let mut faults = 0;
    for ((case, tier), verdict) in work.iter().zip(verdicts) {
        if let Verdict::Fault { seed, text } = verdict {
            faults += 1;
            println!("\n{} ({}) on {tier}, seed {seed}:\n  {text}", case.op, case.name);
            println!("  again: ferroflash sanitize {} --tier {tier} --seed {seed}", case.op);
        }
    }
    faults
}
