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

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use host::{
    AnyTensor, DType, Device, DeviceOptions, EmulatorOptions, Result, Tensor, Tier,
    backend::emulated::EmulatedBackend,
    bf16, f16,
    images::Images,
    ops::{self, LinearMode, ReduceAxis, ReduceKind},
    reference::data::normal,
};

/// A kernel and what runs it.
struct Subject {
    name: &'static str,
    tier: Tier,
    run: fn(&Device) -> Result<Vec<AnyTensor>>,
}

fn floats(device: &Device, dtype: DType, shape: &[u64], seed: u64) -> Result<AnyTensor> {
    let len = shape.iter().product::<u64>() as usize;
    Ok(match dtype {
        DType::F16 => Tensor::from_slice(device, &normal::<f16>(seed, len), shape)?
            .any()
            .clone(),
        DType::BF16 => Tensor::from_slice(device, &normal::<bf16>(seed, len), shape)?
            .any()
            .clone(),
        _ => Tensor::from_slice(device, &normal::<f32>(seed, len), shape)?
            .any()
            .clone(),
    })
}

fn vector_add(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    for len in [1, 1000, 1024, 40_000] {
        let (a, b) = (
            floats(device, DType::F32, &[len], 1)?,
            floats(device, DType::F32, &[len], 2)?,
        );
        results.push(ops::vector_add(&a, &b)?);
    }
    Ok(results)
}

fn reduce(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    for len in [1, 4, 31, 128, 129, 256, 3000, 4096, 4097, 8192, 9000] {
        let x = floats(device, DType::F32, &[len], 3)?;
        results.push(ops::reduce(&x, ReduceKind::Sum, ReduceAxis::All)?);
        let x = floats(device, DType::F32, &[3, len], 4)?;
        results.push(ops::reduce(&x, ReduceKind::Sum, ReduceAxis::Last)?);
    }
    // More than one block a row, and rows that are not dense.
    for len in [32_768, 32_769, 65_536, 70_000] {
        let x = floats(device, DType::F32, &[len], 3)?;
        results.push(ops::reduce(&x, ReduceKind::Sum, ReduceAxis::All)?);
    }
    for (columns, used) in [(40, 33), (5000, 4999), (5000, 4500)] {
        let x = floats(device, DType::F32, &[3, columns], 4)?.slice(1, 0..used)?;
        results.push(ops::reduce(&x, ReduceKind::Sum, ReduceAxis::Last)?);
    }
    Ok(results)
}

fn softmax(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    for columns in [1, 3, 32, 33, 100, 1024, 1025, 2500, 8192] {
        let x = floats(device, DType::F32, &[3, columns], 5)?;
        results.push(ops::softmax(&x).run()?);
        results.push(ops::softmax(&x).causal().run()?);
    }
    // A thread holds chunks of 4 elements: each of them is the first behind the row once, in each chunk.
    for chunk in 0..8 {
        for element in 0..4 {
            let x = floats(device, DType::F32, &[2, 128 * chunk + 4 + element], 5)?;
            results.push(ops::softmax(&x).run()?);
            if chunk > 0 {
                let x = floats(device, DType::F32, &[1, 1024 * chunk + 4 + element], 5)?;
                results.push(ops::softmax(&x).run()?);
            }
        }
    }
    // Causal rows end everywhere; a mask, and rows that are not dense.
    let x = floats(device, DType::F32, &[1, 70, 70], 5)?;
    let mask = floats(device, DType::F32, &[70, 70], 6)?;
    results.push(ops::softmax(&x).causal().mask(&mask).scale(0.5).run()?);
    for used in [64, 61] {
        results.push(
            ops::softmax(&x.slice(2, 0..used)?)
                .mask(&mask.slice(1, 0..used)?)
                .run()?,
        );
    }
    Ok(results)
}

fn linear(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    for (m, n, k) in [(1, 8, 8), (64, 64, 32), (70, 72, 64), (33, 136, 200), (128, 256, 96)] {
        let (x, w) = (
            floats(device, DType::F16, &[m, k], 6)?,
            floats(device, DType::F16, &[n, k], 7)?,
        );
        let bias = floats(device, DType::F16, &[n], 8)?;
        results.push(ops::linear(&x, &w).mode(LinearMode::Tiled).bias(&bias).run()?);
    }
    // Columns that are not pairs, activations, residuals, gated pairs, f32 out.
    let (x, w) = (
        floats(device, DType::F16, &[20, 40], 6)?,
        floats(device, DType::F16, &[66, 40], 7)?,
    );
    let call = || ops::linear(&x, &w).mode(LinearMode::Tiled);
    let residual = floats(device, DType::F16, &[20, 66], 8)?;
    results.push(call().gelu().residual(&residual).run()?);
    results.push(call().gelu_tanh().dtype(DType::F32).run()?);
    results.push(call().relu().run()?);
    results.push(call().swiglu().run()?);
    let w = floats(device, DType::F16, &[65, 40], 7)?;
    results.push(ops::linear(&x, &w).mode(LinearMode::Tiled).silu().run()?);
    Ok(results)
}

fn attention(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    for (rows, keys) in [(1, 1), (70, 70), (30, 150), (128, 256)] {
        let q = floats(device, DType::F16, &[1, rows, 2, 64], 9)?;
        let (k, v) = (
            floats(device, DType::F16, &[1, keys, 1, 64], 10)?,
            floats(device, DType::F16, &[1, keys, 1, 64], 11)?,
        );
        let causal = ops::attention(&q, &k, &v).causal().run()?;
        let full = ops::attention(&q, &k, &v).run()?;
        results.extend([causal.out, causal.lse, full.out, full.lse]);
    }
    // Stages are used again, windows begin and end everywhere, sequences are packed.
    let q = floats(device, DType::F16, &[1, 150, 2, 64], 9)?;
    let (k, v) = (
        floats(device, DType::F16, &[1, 700, 1, 64], 10)?,
        floats(device, DType::F16, &[1, 700, 1, 64], 11)?,
    );
    for (left, right) in [
        (None, None),
        (Some(130), Some(3)),
        (Some(0), Some(40)),
        (Some(300), None),
    ] {
        let result = ops::attention(&q, &k, &v).window(left, right).run()?;
        results.extend([result.out, result.lse]);
    }
    // Each stage is used again so often that a barrier which counts one arrival too few is a whole phase ahead.
    let (k, v) = (
        floats(device, DType::F16, &[1, 3200, 1, 64], 10)?,
        floats(device, DType::F16, &[1, 3200, 1, 64], 11)?,
    );
    let long = ops::attention(&q.slice(1, 0..20)?.slice(2, 0..1)?, &k, &v).run()?;
    results.extend([long.out, long.lse]);
    let ends = Tensor::from_slice(device, &[0i32, 30, 30, 150], &[4])?;
    let packed = |x: &AnyTensor| x.slice(1, 0..150)?.select(0, 0);
    let (q, k, v) = (packed(&q)?, packed(&k)?, packed(&v)?);
    let call = ops::attention(&q, &k, &v).cu_seqlens(ends.any(), ends.any(), 120, 120);
    let result = call.causal().run()?;
    results.extend([result.out, result.lse]);
    Ok(results)
}

/// Gradients by one kernel, of an O and an LSE that no forward pass has to compute.
fn backward(device: &Device) -> Result<Vec<AnyTensor>> {
    let mut results = Vec::new();
    let mut add = |rows: u64, keys: u64, heads: u64, causal: bool, window: (Option<u32>, Option<u32>)| -> Result<()> {
        let half = |tokens: u64, seed| floats(device, DType::F16, &[1, tokens, heads, 64], seed);
        let (q, k, v) = (half(rows, 12)?, half(keys, 13)?, half(keys, 14)?);
        let (grad, out) = (half(rows, 15)?, half(rows, 16)?);
        let lse = floats(device, DType::F32, &[1, heads, rows], 17)?;
        let call = ops::attention_backward(&grad, &q, &k, &v, &out, &lse).window(window.0, window.1);
        let gradients = if causal { call.causal() } else { call }.run()?;
        results.extend([gradients.dq, gradients.dk, gradients.dv]);
        Ok(())
    };
    let all = (None, None);
    for (rows, keys) in [(1, 1), (70, 70), (40, 150), (150, 300), (300, 40)] {
        add(rows, keys, 1, false, all)?;
        add(rows, keys, 1, true, all)?;
    }
    // Windows that begin and end everywhere; several heads; rings that are used often.
    for window in [(Some(130), Some(3)), (Some(0), Some(40)), (Some(200), None)] {
        add(150, 300, 2, false, window)?;
    }
    add(1100, 130, 1, false, all)?;
    Ok(results)
}

const SUBJECTS: [Subject; 8] = [
    Subject {
        name: "vector_add",
        tier: Tier::Sm90a,
        run: vector_add,
    },
    Subject {
        name: "reduce",
        tier: Tier::Sm90a,
        run: reduce,
    },
    Subject {
        name: "softmax",
        tier: Tier::Sm90a,
        run: softmax,
    },
    Subject {
        name: "linear, mma.sync",
        tier: Tier::Sm80,
        run: linear,
    },
    Subject {
        name: "attention, mma.sync",
        tier: Tier::Sm80,
        run: attention,
    },
    Subject {
        name: "attention, wgmma",
        tier: Tier::Sm90a,
        run: attention,
    },
    Subject {
        name: "backward, mma.sync",
        tier: Tier::Sm80,
        run: backward,
    },
    Subject {
        name: "backward, wgmma",
        tier: Tier::Sm90a,
        run: backward,
    },
];

/// The kind of mutants whose damage shows only where two numbers are equal.
const EXCHANGED: &str = "< and ≤ exchanged";

/// One change of one line.
#[derive(Clone, Debug)]
struct Mutant {
    entry: String,
    line: usize,
    kind: &'static str,
    text: String,
}

/// The instruction of a line, without predicate.
fn instruction(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix('@') {
        Some(rest) => rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim()),
        None => line,
    }
}

/// Every change of a line that the operators make: a kind and the new line.
fn changes(line: &str) -> Vec<(&'static str, String)> {
    let text = instruction(line);
    let mut found = Vec::new();
    let mut without = |kind| found.push((kind, String::new()));
    let opcode = text.split(|c: char| c.is_whitespace() || c == ';').next().unwrap_or("");
    if opcode.starts_with("bar.") || opcode.starts_with("barrier.") {
        without("barrier removed");
    } else if opcode.contains(".wait_group") || opcode.contains(".wait_all") {
        without("wait removed");
    } else if opcode.starts_with("fence.") || opcode.starts_with("membar") || opcode == "wgmma.fence.sync.aligned" {
        without("fence removed");
    } else if opcode.starts_with("mbarrier.arrive") || opcode.starts_with("cp.async.mbarrier.arrive") {
        without("arrival removed");
    } else if opcode.contains("commit_group") {
        without("commit removed");
    }
    // The last operand, to be changed.
    let last = |change: &dyn Fn(&str) -> Option<String>| -> Option<String> {
        let end = line.rfind(';')?;
        let start = line[..end].rfind(|c: char| c == ',' || c.is_whitespace())? + 1;
        let operand = change(line[start..end].trim())?;
        Some(format!("{}{}{}", &line[..start], operand, &line[end..]))
    };
    let number = |by: i64| {
        move |operand: &str| {
            operand
                .parse::<i64>()
                .ok()
                .map(|n| n + by)
                .filter(|&n| n >= 0)
                .map(|n| n.to_string())
        }
    };
    // A register operand is changed in a copy, in a scope of its own.
    let through = |change: &str| -> Option<String> {
        let end = line.rfind(';')?;
        let start = line[..end].rfind(|c: char| c == ',' || c.is_whitespace())? + 1;
        let operand = line[start..end].trim().to_owned();
        operand.starts_with('%').then(|| {
            let changed = change.replace("OPERAND", &operand);
            format!(
                "{{ .reg .b32 mutant; {changed} {} mutant{} }}",
                line[..start].trim_end(),
                &line[end..]
            )
        })
    };
    if opcode.contains(".wait_group") {
        found.extend(last(&number(1)).map(|line| ("wait for one group fewer", line)));
    }
    if opcode.starts_with("mbarrier.init") {
        for (kind, by) in [("arrival count + 1", 1), ("arrival count − 1", -1)] {
            let line = last(&number(by)).or_else(|| through(&format!("add.s32 mutant, OPERAND, {by};")));
            found.extend(line.map(|line| (kind, line)));
        }
    }
    if opcode.contains("expect_tx") {
        for (kind, by) in [("expected bytes + 16", 16), ("expected bytes − 16", -16)] {
            let line = last(&number(by)).or_else(|| through(&format!("add.s32 mutant, OPERAND, {by};")));
            found.extend(line.map(|line| (kind, line)));
        }
    }
    if opcode.contains("wait.parity") {
        let line = last(&|operand| operand.parse::<u32>().ok().map(|n| (n ^ 1).to_string()))
            .or_else(|| through("xor.b32 mutant, OPERAND, 1;"));
        found.extend(line.map(|line| ("phase flipped", line)));
    }
    // A descriptor of `wgmma` begins with a constant: 128-byte swizzling (1 in its two highest bits) becomes 64-byte (2).
    if matches!(opcode, "or.b64" | "add.s64") {
        let other = last(&|operand| {
            let descriptor = operand.parse::<i64>().ok()?;
            (descriptor as u64 >> 62 == 1).then(|| (descriptor ^ (3 << 62)).to_string())
        });
        found.extend(other.map(|line| ("swizzle mode", line)));
    }
    if opcode.starts_with("setp.") {
        for (from, to) in [
            ("setp.lt.", "setp.le."),
            ("setp.le.", "setp.lt."),
            ("setp.gt.", "setp.ge."),
            ("setp.ge.", "setp.gt."),
        ] {
            if opcode.starts_with(from) {
                found.push((EXCHANGED, line.replacen(from, to, 1)));
            }
        }
    }
    found
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

/// The line behind a trap: on every path, or when the operands of a comparison are equal.
fn trapped(line: &str, when_equal: bool) -> Option<String> {
    if !when_equal {
        return Some(format!("trap; {line}"));
    }
    let text = instruction(line);
    let (opcode, operands) = text.split_once(char::is_whitespace)?;
    let ty = opcode.rsplit('.').next()?;
    let operands: Vec<&str> = operands
        .trim()
        .trim_end_matches(';')
        .split(',')
        .map(str::trim)
        .collect();
    let [_, a, b] = operands[..] else { return None };
    Some(format!(
        "{{ .reg .pred mutant; setp.eq.{ty} mutant, {a}, {b}; @mutant trap; }} {line}"
    ))
}

/// The source with a line exchanged.
fn with_line(source: &str, number: usize, text: &str) -> String {
    let lines: Vec<&str> = source
        .lines()
        .enumerate()
        .map(|(index, line)| if index + 1 == number { text } else { line })
        .collect();
    lines.join("\n")
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

#[test]
fn the_operators_change_what_they_say() {
    let kinds = |line| changes(line).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
    assert_eq!(kinds("\tbar.sync \t0;"), ["barrier removed"]);
    assert_eq!(kinds("@%p1 mbarrier.arrive.shared.b64 _, [%r1];"), ["arrival removed"]);
    assert_eq!(
        changes("cp.async.wait_group 1;")[1],
        ("wait for one group fewer", "cp.async.wait_group 2;".to_owned())
    );
    assert_eq!(
        changes("setp.ge.u32 \t%p1, %r1, %r2;"),
        [("< and ≤ exchanged", "setp.gt.u32 \t%p1, %r1, %r2;".to_owned())]
    );
    assert_eq!(
        changes("mbarrier.init.shared.b64 [%r1], 4;")[1].1,
        "mbarrier.init.shared.b64 [%r1], 3;"
    );
    let flipped = &changes("mbarrier.try_wait.parity.shared::cta.b64 p, [%r1], %r2;")[0].1;
    assert!(
        flipped.contains("xor.b32 mutant, %r2, 1;") && flipped.ends_with("[%r1], mutant; }"),
        "{flipped}"
    );
    assert_eq!(
        changes("or.b64 %rd2, %rd1, 4611686293305360384;"),
        [("swizzle mode", "or.b64 %rd2, %rd1, -9223371761976803328;".to_owned())]
    );
    assert!(changes("add.s64 %rd2, %rd1, 64;").is_empty());
    assert!(changes("add.s32 %r1, %r2, 1;").is_empty());
}
