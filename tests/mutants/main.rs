//! Would a bug be noticed? Real PTX of our kernels is damaged in one place at a time, and each damage ("mutant") must end
//! in a fault or in another result.
//!
//! What is changed, at every place that the kernel reaches:
//! - barriers, waits, fences and arrivals taken out, `cp.async` and `wgmma` waits that wait for one group fewer,
//! - phases of `mbarrier` waits flipped,
//! - arrival counts of `mbarrier.init` by one, expected bytes by 16,
//! - swizzle modes in the descriptors of `wgmma`,
//! - `<` for `<=` and the like.
//!
//! `cargo test --test mutants` tries some of them, always the same; `FERROFLASH_MUTANTS=all` tries all of them and prints
//! the survivors, which docs/mutants.md explains.

mod operators;
mod subjects;

use self::{
    operators::{EXCHANGED, changes, trapped, with_line},
    subjects::{SUBJECTS, Subject},
};
use host::{
    AnyTensor, Device, DeviceOptions, EmulatorOptions, Result, backend::emulated::EmulatedBackend, images::Images,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// One change of one line.
#[derive(Clone, Debug)]
struct Mutant {
    entry: String,
    line: usize,
    kind: &'static str,
    text: String,
}

/// Instructions that one run may take before it is a runaway; the subjects need less than a tenth of it.
const STEPS: u64 = 5_000_000;

/// Runs a subject, with one entry replaced if given; the bytes of all results.
fn run(
    subject: &Subject,
    seed: Option<u64>,
    replaced: Option<(&str, String)>,
) -> Result<(Vec<Vec<u8>>, Arc<EmulatedBackend>)> {
    let options = DeviceOptions {
        tier: Some(subject.tier),
        exact_allocation: true,
        emulator: EmulatorOptions {
            checks: true,
            seed,
            multiprocessors: 2,
            step_budget: STEPS,
            ..EmulatorOptions::default()
        },
        ..DeviceOptions::default()
    };
    let backend = Arc::new(EmulatedBackend::new(&options)?);
    if let Some((entry, ptx)) = replaced {
        backend.replace(entry, ptx);
    }
    let device = Device::from_backend(backend.clone(), Images::embedded(), options, "mutants".into())?;
    let results = (subject.run)(&device)?;
    let bytes = results.iter().map(AnyTensor::to_bytes).collect::<Result<Vec<_>>>()?;
    Ok((bytes, backend))
}

/// What became of the mutants of a subject.
struct Tally {
    killed: BTreeMap<&'static str, usize>,
    survivors: Vec<(Mutant, Fate)>,
}

/// What is known of a mutant that nobody noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The line never runs: not a mutant of this subject.
    Unreached,
    /// `<` and `≤`, and the operands are never equal: nothing was changed.
    NeverEqual,
    /// `<` and `≤`, the operands are equal at times, and either way leads to the same results without a fault.
    EqualEitherWay,
    /// Nobody noticed.
    Survived,
}

/// Why nobody noticed a mutant.
fn fate(subject: &Subject, mutant: &Mutant, source: &str) -> Fate {
    let line = source.lines().nth(mutant.line - 1).unwrap_or_default();
    let traps = |when_equal| {
        trapped(line, when_equal).is_none_or(|text| {
            let changed = with_line(source, mutant.line, &text);
            run(subject, None, Some((&mutant.entry, changed))).is_err()
        })
    };
    if !traps(false) {
        Fate::Unreached
    } else if mutant.kind != EXCHANGED {
        Fate::Survived
    } else if !traps(true) {
        Fate::NeverEqual
    } else {
        Fate::EqualEitherWay
    }
}

/// The subject's PTX by entry, and its mutants.
fn mutants_of(subject: &Subject, backend: &EmulatedBackend) -> (BTreeMap<String, String>, Vec<Mutant>) {
    let mut sources = BTreeMap::new();
    let mut mutants = Vec::new();
    for entry in backend.loaded_entries() {
        let ptx = Images::embedded().load(subject.tier, &entry).unwrap().ptx;
        for (index, line) in ptx.lines().enumerate() {
            mutants.extend(changes(line).into_iter().map(|(kind, text)| Mutant {
                entry: entry.clone(),
                line: index + 1,
                kind,
                text,
            }));
        }
        sources.insert(entry, ptx);
    }
    (sources, mutants)
}

/// Tries every mutant, or at most `most` of them spread evenly.
fn try_mutants(subject: &Subject, most: usize) -> Tally {
    let seeds = [None, Some(1)];
    let expected: Vec<_> = seeds
        .iter()
        .map(|&seed| run(subject, seed, None).unwrap_or_else(|e| panic!("{}: {e}", subject.name)))
        .collect();
    let executed = expected[0].1.statistics().lines;
    let (sources, mut mutants) = mutants_of(subject, &expected[0].1);
    // With several entries a line number may be another entry's; such a mutant is tried for nothing.
    mutants.retain(|mutant| executed.contains_key(&(mutant.line as u32)));
    let step = mutants.len().div_ceil(most).max(1);
    let chosen: Vec<Mutant> = mutants.into_iter().step_by(step).collect();
    let next = AtomicUsize::new(0);
    let tally = Mutex::new(Tally {
        killed: BTreeMap::new(),
        survivors: Vec::new(),
    });
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                while let Some(mutant) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let source = &sources[&mutant.entry];
                    let changed = with_line(source, mutant.line, &mutant.text);
                    let killed = seeds.iter().zip(&expected).any(|(&seed, (bytes, _))| {
                        run(subject, seed, Some((&mutant.entry, changed.clone())))
                            .map_or(true, |(got, _)| got != *bytes)
                    });
                    let fate = (!killed).then(|| fate(subject, mutant, source));
                    let mut tally = tally.lock().unwrap();
                    match fate {
                        None => *tally.killed.entry(mutant.kind).or_default() += 1,
                        Some(fate) => tally.survivors.push((mutant.clone(), fate)),
                    }
                }
            });
        }
    });
    let mut tally = tally.into_inner().unwrap();
    tally
        .survivors
        .sort_by(|(a, _), (b, _)| (&a.entry, a.line).cmp(&(&b.entry, b.line)));
    tally.survivors.retain(|(_, fate)| *fate != Fate::Unreached);
    for (survivor, fate) in &tally.survivors {
        let line = sources[&survivor.entry]
            .lines()
            .nth(survivor.line - 1)
            .unwrap_or_default();
        println!(
            "survivor ({fate:?}): {} line {}: {}: {}",
            survivor.entry,
            survivor.line,
            survivor.kind,
            line.trim()
        );
    }
    tally
}

#[test]
fn damaged_kernels_are_noticed() {
    let all = std::env::var("FERROFLASH_MUTANTS").is_ok_and(|value| value == "all");
    let only = std::env::var("FERROFLASH_MUTANTS_OF").unwrap_or_default();
    let most = if all { usize::MAX } else { 12 };
    // Of each kind: noticed, never equal, equal either way, survived.
    let mut kinds: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    for subject in SUBJECTS.iter().filter(|subject| subject.name.contains(&only)) {
        let tally = try_mutants(subject, most);
        let dead: usize = tally.killed.values().sum();
        let survived = tally
            .survivors
            .iter()
            .filter(|(_, fate)| *fate == Fate::Survived)
            .count();
        println!(
            "{} on {}: {dead} noticed, {survived} survived, {} changed nothing",
            subject.name,
            subject.tier,
            tally.survivors.len() - survived
        );
        for (&kind, &count) in &tally.killed {
            kinds.entry(kind).or_default()[0] += count;
        }
        for (survivor, fate) in &tally.survivors {
            let column = match fate {
                Fate::Unreached => continue,
                Fate::NeverEqual => 1,
                Fate::EqualEitherWay => 2,
                Fate::Survived => 3,
            };
            kinds.entry(survivor.kind).or_default()[column] += 1;
        }
    }
    println!(
        "  {:<26} {:>7} {:>11} {:>17} {:>8}",
        "kind", "noticed", "never equal", "equal either way", "survived"
    );
    for (kind, [dead, never, either, survived]) in &kinds {
        println!("  {kind:<26} {dead:>7} {never:>11} {either:>17} {survived:>8}");
    }
    let sum = |column: usize| kinds.values().map(|counts| counts[column]).sum::<usize>();
    let (killed, survived) = (sum(0), sum(3));
    println!(
        "{killed} of {} that change something noticed, {} that change nothing",
        killed + survived,
        sum(1) + sum(2)
    );
    assert!(killed > 0, "no subject is named {only:?}");
    assert!(
        killed * 100 >= (killed + survived) * 85,
        "only {killed} of {} mutants were noticed",
        killed + survived
    );
}
