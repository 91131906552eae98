//! `ferroflash bench`: how fast the kernels are, beside the ceilings of the same GPU and beside peers in the same minute.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use ferroflash::inventory::unknown;
use host::Device;
use serde::{Deserialize, Serialize};

use super::{DeviceArgs, Failure, Outcome, report};

mod attention;
mod attention_backward;
mod case;
mod cublaslt;
mod environment;
mod generate;
mod harness;
mod linear;
mod peers;
pub mod plots;
mod rows;
#[cfg(test)]
mod tests;

pub use case::{Case, Spec};
pub use environment::{Environment, GpuState};
use harness::median;
pub use harness::{Harness, Timing};
use peers::{Peers, Rival};

/// Arguments of `bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Suites to measure (all unless named): see `--list`. `generate` measures whole models, and stands alone.
    suites: Vec<String>,
    /// 10 warm-ups and 100 runs instead of 100 and 1000, and no case longer than a second.
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    config: Option<String>,
    /// Print the suites, with `--cases` their cases too, and stop.
    #[arg(long)]
    list: bool,
    /// With `--list`: the cases of each suite.
    #[arg(long, requires = "list")]
    cases: bool,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write one line a case to this file.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Draw one picture a suite into this folder.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Rounds of turns with peers.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Without peers: cuBLASLt and PyTorch are neither looked for nor missed.
    #[arg(long)]
    no_peers: bool,
    /// Leave out torch.compile, which takes seconds a case.
    #[arg(long)]
    no_compile: bool,
    /// The Python that has PyTorch.
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: String,
    /// Run each case once and time nothing: what profilers attach to.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Cases that are measured and drawn together.
pub struct Suite {
    /// What `bench NAME` measures.
    pub name: &'static str,
    /// Where its shapes come from.
    pub what: &'static str,
    /// Its cases.
    pub cases: fn() -> Vec<Spec>,
}

/// Everything that can be measured.
pub const SUITES: &[Suite] = &[
    suite(
        "attention",
        "forward, 16k tokens, the flash-attention grid, bf16",
        attention::grid,
    ),
    suite(
        "flashkernel",
        "attention forward of FlashKernel's configurations",
        attention::flashkernel,
    ),
    suite(
        "flashcore",
        "attention forward of FlashCore's nine configurations",
        attention::flashcore,
    ),
    suite(
        "attention-backward",
        "gradients, 16k tokens, the flash-attention grid, bf16",
        attention_backward::grid,
    ),
    suite("decode", "one new token over caches", attention::decode),
    suite("cache", "append to pages and read back", attention::cache),
    suite(
        "rope",
        "rotation in place, with and without the append",
        attention::rope,
    ),
    suite("linear", "layers of transformers, with cuBLASLt", linear::linear),
    suite("norm", "RMSNorm, LayerNorm, residual, gradients", rows::norm),
    suite("softmax", "softmax and its gradient", rows::softmax),
    suite("cross-entropy", "large vocabularies", rows::cross_entropy),
    suite(
        "elementwise",
        "activation, gated pair, sum, cast, transpose",
        rows::elementwise,
    ),
    suite("embedding", "rows by index, and the gradient", rows::embedding),
    suite("sample", "choice of tokens", rows::sample),
    suite("adamw", "100 million parameters", rows::adamw),
    suite("reduce", "1 GiB, all and rows", rows::reduce),
    suite("vector-add", "1 GiB", rows::vector_add),
];

const fn suite(name: &'static str, what: &'static str, cases: fn() -> Vec<Spec>) -> Suite {
    Suite { name, what, cases }
}

/// A peer's time of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerTime {
    /// Peer.
    pub name: String,
    /// Its median over the rounds, microseconds.
    pub microseconds: f64,
    /// Ours over the same rounds.
    pub ours: f64,
    /// Peer over ours: above 1, ours is faster.
    pub ratio: f64,
    /// Rounds of one turn each.
    pub rounds: u32,
}

/// One measured case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Suite.
    pub suite: String,
    /// Op of the inventory.
    pub op: String,
    /// Shape and options.
    pub case: String,
    /// Element type.
    pub dtype: String,
    /// Microseconds.
    pub timing: Timing,
    /// Bytes that must move.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes over the median.
    pub terabytes_per_second: f64,
    /// Operations over the median.
    pub teraflops_per_second: f64,
    /// Share of the copy bandwidth.
    pub share_of_copy: f64,
    /// Share of the matrix rate; 16-bit types only.
    pub share_of_matrix: Option<f64>,
    /// Sets of buffers that runs rotated over.
    pub buffers: usize,
    /// Peak bytes of device memory in tensors so far.
    pub peak_bytes: u64,
    /// Peers in turns.
    pub peers: Vec<PeerTime>,
}

/// Ceilings of the GPU, measured in the same run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ceilings {
    /// Copy of 2 GiB, read and written bytes, TB/s.
    pub copy: f64,
    /// The faster of our product of 8192³ and cuBLASLt's, TFLOP/s in 16 bits.
    pub matrix: f64,
    /// Whose product that was.
    pub matrix_by_us: bool,
}

/// A run of the command: figures and where they come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Machine, command, date.
    pub environment: Environment,
    /// The GPU when the run ended.
    pub gpu_after: Option<GpuState>,
    /// Ceilings.
    pub ceilings: Ceilings,
    /// Peers that took part.
    pub peers: Vec<String>,
    /// Peers that did not, and why.
    pub peers_missing: Vec<String>,
    /// Figures.
    pub rows: Vec<Row>,
    /// Cases that were not measured, and why.
    pub failures: Vec<String>,
}

/// Everybody that is measured in turns with us.
struct Rivals {
    script: Option<Peers>,
    /// The Python, whether with torch.compile, and how often it may still be started again.
    python: (String, bool, u32),
    missing: Vec<String>,
    rounds: u32,
}

/// Starts of the script after failures.
const RESTARTS: u32 = 60;

impl Rivals {
    /// Notes why the script left, and starts another one: a failed capture leaves PyTorch unusable.
    fn restart(&mut self, case: &str, why: &str) {
        self.script = None;
        let (python, compile, left) = &mut self.python;
        if *left == 0 {
            self.missing.push(format!("PyTorch from {case} on: {why}"));
            return;
        }
        *left -= 1;
        self.missing.push(format!("PyTorch for {case}: {why}"));
        match Peers::start(python, *compile, PATIENCE) {
            Ok(peers) => self.script = Some(peers),
            Err(why) => self.missing.push(format!("PyTorch from {case} on: {why}")),
        }
    }
}

/// How long a peer may take to answer: torch.compile needs a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whole models, which are no cases of an op.
const MODELS: &str = "generate";

/// Measures and prints.
pub fn bench(args: BenchArgs) -> Outcome {
    if args.suites == [MODELS] && !args.list {
        return models(&args);
    }
    let chosen = choose(&args)?;
    if args.list {
        for (suite, specs) in &chosen {
            say!("{:<16} {:>3} cases: {}", suite.name, specs.len(), suite.what);
            if args.cases {
                specs.iter().for_each(|spec| say!("    {}", spec.name));
            }
        }
        if args.suites.is_empty() {
            say!("{MODELS:<16}           {}", generate::WHAT);
        }
        return Ok(());
    }
    let device = args.device.open()?;
    if args.once {
        return once(&device, chosen);
    }
    if device.is_emulator() {
        return Err(Failure::Failed(format!(
            "bench measures GPUs, and there is none ({}); `cargo bench` measures the emulator, `ferroflash profile` counts",
            device.selection()
        )));
    }
    for path in args.json.iter().chain(&args.csv) {
        report::writable(path)?;
    }
    if let Some(folder) = &args.plots {
        std::fs::create_dir_all(folder).map_err(|error| Failure::Failed(format!("{}: {error}", folder.display())))?;
    }
    let measured = measure(&device, chosen, &args)?;
    measured
        .peers_missing
        .iter()
        .for_each(|missing| say!("missing peer: {missing}"));
    if let Some(path) = &args.csv {
        write_csv(path, &measured.rows)?;
    }
    if let Some(folder) = &args.plots {
        plot(folder, &measured)?;
    }
    verdict(&measured)
}

/// A failure that names what was not measured, if there is anything.
fn verdict(measured: &Report) -> Outcome {
    if measured.failures.is_empty() {
        return Ok(());
    }
    let count = measured.failures.len();
    Err(Failure::Failed(format!(
        "{count} cases were not measured: {}",
        measured.failures.join("; ")
    )))
}

/// Measures whole models with random weights.
fn models(args: &BenchArgs) -> Outcome {
    #[derive(Serialize)]
    struct Measured {
        environment: Environment,
        copy: f64,
        models: Vec<generate::ModelRow>,
    }
    let device = args.device.open()?;
    if device.is_emulator() {
        let why = device.selection();
        return Err(Failure::Failed(format!(
            "bench measures GPUs, and there is none ({why})"
        )));
    }
    if let Some(path) = &args.json {
        report::writable(path)?;
    }
    let environment = Environment::of(&device);
    let copy = Harness::new(&device, true).copy_bandwidth()?;
    say!("{}; copy {copy:.3} TB/s", environment.words());
    let models = generate::run(&device, copy, args.config.as_deref())?;
    match &args.json {
        Some(path) => report::write_json(
            path,
            &Measured {
                environment,
                copy,
                models,
            },
        ),
        None => Ok(()),
    }
}

type Chosen = Vec<(&'static Suite, Vec<Spec>)>;

/// The suites and cases that the arguments name.
fn choose(args: &BenchArgs) -> Result<Chosen, Failure> {
    let names = || SUITES.iter().map(|suite| suite.name);
    if let Some(name) = args.suites.iter().find(|name| !names().any(|known| known == *name)) {
        return Err(Failure::Usage(unknown("suite", name, names().collect::<Vec<_>>())));
    }
    let wanted = SUITES
        .iter()
        .filter(|suite| args.suites.is_empty() || args.suites.iter().any(|name| name == suite.name));
    let all: Chosen = wanted.map(|suite| (suite, (suite.cases)())).collect();
    let Some(text) = &args.config else { return Ok(all) };
    let known: Vec<String> = all
        .iter()
        .flat_map(|(_, specs)| specs.iter().map(|spec| spec.name.clone()))
        .collect();
    if !known.iter().any(|name| name.contains(text.as_str())) {
        let near = ferroflash::inventory::suggestions(text, known.iter().map(String::as_str));
        let hint = if near.is_empty() {
            "bench --list --cases shows all".into()
        } else {
            format!("near: {}", near.join(" | "))
        };
        return Err(Failure::Usage(format!("no case contains {text:?}; {hint}")));
    }
    Ok(all
        .into_iter()
        .map(|(suite, specs)| {
            (
                suite,
                specs
                    .into_iter()
                    .filter(|spec| spec.name.contains(text.as_str()))
                    .collect(),
            )
        })
        .filter(|(_, specs): &(_, Vec<Spec>)| !specs.is_empty())
        .collect())
}

/// Runs every case once, checked.
fn once(device: &Device, chosen: Chosen) -> Outcome {
    for (suite, specs) in chosen {
        for spec in specs {
            let name = spec.name.clone();
            let mut case = (spec.make)(device)?;
            (case.run)(0)?;
            device.synchronize()?;
            say!("{} {name}", suite.name);
        }
    }
    Ok(())
}

/// Measures what was chosen, beside ceilings and peers.
fn measure(device: &Device, chosen: Chosen, args: &BenchArgs) -> Result<Report, Failure> {
    let environment = Environment::of(device);
    let harness = Harness::new(device, args.quick);
    let (copy, ours) = (harness.copy_bandwidth()?, harness.matrix_rate()?);
    let mut rivals = Rivals {
        script: None,
        python: (args.python.clone(), !args.no_compile, RESTARTS),
        missing: Vec::new(),
        rounds: args.rounds,
    };
    let mut cublas = None;
    if !args.no_peers {
        match Peers::start(&args.python, !args.no_compile, PATIENCE) {
            Ok(peers) => rivals.script = Some(peers),
            Err(why) => rivals.missing.push(format!("PyTorch: {why}")),
        }
        match cublaslt::CublasLt::open(device) {
            Ok(library) => cublas = Some(library),
            Err(why) => rivals.missing.push(format!("cuBLASLt: {why}")),
        }
    }
    let best = cublas
        .as_ref()
        .and_then(|library| square(device, library).ok())
        .unwrap_or(0.0);
    let ceilings = Ceilings {
        copy,
        matrix: ours.max(best),
        matrix_by_us: ours >= best,
    };
    say!(
        "{device}: copy {copy:.3} TB/s (read and written), product {:.0} TFLOP/s",
        ceilings.matrix
    );
    rivals
        .missing
        .iter()
        .for_each(|missing| say!("missing peer: {missing}"));
    let mut peers: Vec<String> = rivals.script.iter().map(|script| script.version.clone()).collect();
    peers.extend(cublas.as_ref().map(|_| "cuBLASLt, best of its heuristics".to_owned()));
    let mut report = Report {
        environment,
        gpu_after: None,
        ceilings,
        peers,
        peers_missing: Vec::new(),
        rows: Vec::new(),
        failures: Vec::new(),
    };
    cases(
        device,
        &harness,
        chosen,
        (&mut rivals, cublas.as_ref()),
        &mut report,
        args.json.as_deref(),
    )?;
    Ok(report)
}

/// Measures each case into the report, which is written to `json` after each suite. A case that fails does not stop
/// the others; after one that loses the GPU, the others are named as not measured.
fn cases(
    device: &Device,
    harness: &Harness<'_>,
    chosen: Chosen,
    (rivals, cublas): (&mut Rivals, Option<&cublaslt::CublasLt>),
    report: &mut Report,
    json: Option<&Path>,
) -> Outcome {
    for (suite, specs) in chosen {
        say!("\n{}: {}", suite.name, suite.what);
        head();
        for spec in specs {
            let name = format!("{} {}", suite.name, spec.name);
            if device.check_health().is_err() {
                report.failures.push(format!("{name}: the GPU was lost before"));
                continue;
            }
            match one(device, harness, suite, spec, report.ceilings, rivals, cublas) {
                Ok(row) => {
                    print(&row);
                    report.rows.push(row);
                }
                Err(why) => {
                    say!("{name}: {why}");
                    report.failures.push(format!("{name}: {why}"));
                }
            }
            // The next case may need all of the memory.
            let _ = device.trim();
        }
        report.peers_missing = rivals.missing.clone();
        if let host::DeviceKind::Cuda(ordinal) = device.kind() {
            report.gpu_after = GpuState::now(ordinal);
        }
        // What is measured is kept, whatever happens to the next suite.
        if let Some(path) = json {
            report::write_json(path, report)?;
        }
    }
    Ok(())
}

/// TFLOP/s of cuBLASLt on the products of the ceiling.
fn square(device: &Device, library: &cublaslt::CublasLt) -> Result<f64, String> {
    let said = |error: host::Error| error.to_string();
    let mut best = 0.0;
    for extent in harness::SQUARES {
        let tensor = |seed| case::normal(device, host::DType::BF16, &[extent, extent], seed).map_err(said);
        let product = case::Product {
            extents: [extent; 3],
            x: tensor(1)?,
            w: vec![tensor(2)?],
            bias: None,
        };
        let rate = 2.0 * (extent as f64).powi(3) / library.prepare(&product, 10)?.turn()? / 1e6;
        best = f64::max(best, rate);
    }
    Ok(best)
}

/// One case: checked, timed, then in turns with its peers.
fn one(
    device: &Device,
    harness: &Harness<'_>,
    suite: &Suite,
    spec: Spec,
    ceilings: Ceilings,
    rivals: &mut Rivals,
    cublas: Option<&cublaslt::CublasLt>,
) -> Result<Row, String> {
    let said = |error: host::Error| error.to_string();
    let name = spec.name.clone();
    let mut case = (spec.make)(device).map_err(said)?;
    if let Some(problem) = (case.check)().map_err(said)? {
        return Err(format!("the result is wrong: {problem}"));
    }
    let timing = harness.time(&mut case.run).map_err(said)?;
    let peers = in_turns(harness, &mut case, timing.p50, rivals, cublas)?;
    let seconds = timing.p50 * 1e-6;
    let terabytes_per_second = case.bytes as f64 / seconds / 1e12;
    let teraflops_per_second = case.flops as f64 / seconds / 1e12;
    Ok(Row {
        suite: suite.name.into(),
        op: case.op.into(),
        case: name,
        dtype: case.dtype.name().into(),
        timing,
        bytes: case.bytes,
        flops: case.flops,
        terabytes_per_second,
        teraflops_per_second,
        share_of_copy: terabytes_per_second / ceilings.copy,
        share_of_matrix: (case.flops > 0 && case.dtype.size() == 2).then_some(teraflops_per_second / ceilings.matrix),
        buffers: case.copies,
        peak_bytes: device.allocated().1,
        peers,
    })
}

/// A, B, A, B, …: one turn of ours, one of each peer, as many rounds as asked for.
fn in_turns(
    harness: &Harness<'_>,
    case: &mut Case,
    microseconds: f64,
    rivals: &mut Rivals,
    cublas: Option<&cublaslt::CublasLt>,
) -> Result<Vec<PeerTime>, String> {
    let said = |error: host::Error| error.to_string();
    let launches = ((1000.0 / microseconds) as usize).clamp(1, 50).max(case.copies);
    let product = case.product.as_ref();
    let mut library = match (cublas, product) {
        (Some(library), Some(product)) => match library.prepare(product, launches) {
            Ok(prepared) => Some(prepared),
            Err(why) => {
                rivals
                    .missing
                    .push(format!("cuBLASLt for {:?}: {why}", product.extents));
                None
            }
        },
        _ => None,
    };
    let mut names = Vec::new();
    if let Some(script) = &mut rivals.script {
        let op = case.peer["op"].as_str().unwrap_or_default();
        let mut answer = script.prepare(&case.peer, launches, case.copies, true);
        if let Err(why) = &answer {
            // What cannot be captured, or not with all of its memory in graphs, is timed by events around single runs.
            eprintln!("peers of {op}: {why}; once more without graphs");
            rivals.restart(&format!("{op} in graphs"), why);
            answer = match &mut rivals.script {
                Some(script) => script.prepare(&case.peer, launches, case.copies, false),
                None => Ok(Default::default()),
            };
        }
        match answer {
            Ok((ready, failed)) => {
                names = ready;
                for why in failed.iter().map(|why| format!("peer for {op}: {why}")) {
                    if !rivals.missing.contains(&why) {
                        rivals.missing.push(why);
                    }
                }
            }
            Err(why) => rivals.restart(op, &why),
        }
    }
    if names.is_empty() && library.is_none() {
        return Ok(Vec::new());
    }
    let graph = harness.graph(launches, &mut case.run).map_err(said)?;
    harness.turn(&graph, launches).map_err(said)?;
    let mut ours = Vec::new();
    let mut theirs: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..rivals.rounds {
        ours.push(harness.turn(&graph, launches).map_err(said)?);
        if let Some(prepared) = &mut library {
            match prepared.turn() {
                Ok(us) => theirs.entry(prepared.name().to_owned()).or_default().push(us),
                Err(why) => {
                    rivals.missing.push(format!("cuBLASLt: {why}"));
                    library = None;
                }
            }
        }
        for name in &names.clone() {
            let Some(script) = &mut rivals.script else { break };
            match script.turn(name) {
                Ok(us) => theirs.entry(name.clone()).or_default().push(us),
                Err(why) => {
                    rivals.restart(name, &why);
                    names.clear();
                    break;
                }
            }
        }
    }
    let ours = median(&ours);
    let times = theirs.into_iter().map(|(name, samples)| {
        let microseconds = median(&samples);
        PeerTime {
            name,
            microseconds,
            ours,
            ratio: microseconds / ours,
            rounds: samples.len() as u32,
        }
    });
    Ok(times.collect())
}

fn head() {
    say!(
        "{:<52} {:>9} {:>9} {:>9} {:>7} {:>8} {:>6} {:>7}  peers ÷ ours",
        "case",
        "p50 µs",
        "p95 µs",
        "min µs",
        "TB/s",
        "TFLOP/s",
        "copy%",
        "matrix%"
    );
}

fn print(row: &Row) {
    let peers: Vec<String> = row
        .peers
        .iter()
        .map(|peer| format!("{} {:.2} ({:.1} µs)", peer.name, peer.ratio, peer.microseconds))
        .collect();
    say!(
        "{:<52} {:>9.2} {:>9.2} {:>9.2} {:>7.3} {:>8.1} {:>6.1} {:>7}  {}",
        row.case,
        row.timing.p50,
        row.timing.p95,
        row.timing.min,
        row.terabytes_per_second,
        row.teraflops_per_second,
        row.share_of_copy * 100.0,
        row.share_of_matrix
            .map_or("–".into(), |share| format!("{:.1}", share * 100.0)),
        peers.join(", "),
    );
}

fn write_csv(path: &Path, rows: &[Row]) -> Outcome {
    let said = |error: csv::Error| Failure::Failed(format!("{}: {error}", path.display()));
    let mut writer = csv::Writer::from_path(path).map_err(said)?;
    writer
        .write_record([
            "suite",
            "op",
            "case",
            "dtype",
            "samples",
            "mean_us",
            "std_us",
            "min_us",
            "max_us",
            "p50_us",
            "p95_us",
            "p99_us",
            "bytes",
            "flops",
            "TB_per_s",
            "TFLOP_per_s",
            "share_of_copy",
            "peak_bytes",
            "fastest_peer",
            "peer_us",
            "ratio",
        ])
        .map_err(said)?;
    for row in rows {
        let t = &row.timing;
        let fastest = row
            .peers
            .iter()
            .min_by(|a, b| a.microseconds.total_cmp(&b.microseconds));
        let mut record = vec![
            row.suite.clone(),
            row.op.clone(),
            row.case.clone(),
            row.dtype.clone(),
            t.samples.to_string(),
        ];
        record.extend([t.mean, t.std, t.min, t.max, t.p50, t.p95, t.p99].map(|us| format!("{us:.3}")));
        record.extend([row.bytes, row.flops].map(|count| count.to_string()));
        record.extend(
            [row.terabytes_per_second, row.teraflops_per_second, row.share_of_copy].map(|rate| format!("{rate:.4}")),
        );
        record.push(row.peak_bytes.to_string());
        record.extend(match fastest {
            Some(peer) => [
                peer.name.clone(),
                format!("{:.3}", peer.microseconds),
                format!("{:.3}", peer.ratio),
            ],
            None => Default::default(),
        });
        writer.write_record(record).map_err(said)?;
    }
    writer
        .flush()
        .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

/// One picture a suite.
pub fn plot(folder: &Path, report: &Report) -> Outcome {
    for suite in SUITES {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.suite == suite.name).collect();
        if rows.is_empty() {
            continue;
        }
        let title = format!(
            "{}, {}, {}",
            suite.name, report.environment.device, report.environment.date
        );
        plots::suite(&folder.join(format!("{}.svg", suite.name)), &title, &rows).map_err(Failure::Failed)?;
    }
    Ok(())
}

/// Measures suites as `bench --quick --no-peers` does: for the roofline.
pub fn quick(device: &Device, suites: &[&str]) -> Result<Report, Failure> {
    let chosen = SUITES
        .iter()
        .filter(|suite| suites.is_empty() || suites.contains(&suite.name))
        .map(|suite| (suite, (suite.cases)()))
        .collect();
    let args = BenchArgs {
        suites: Vec::new(),
        quick: true,
        config: None,
        list: false,
        cases: false,
        json: None,
        csv: None,
        plots: None,
        rounds: 1,
        no_peers: true,
        no_compile: true,
        python: String::new(),
        once: false,
        device: DeviceArgs::default(),
    };
    measure(device, chosen, &args)
}
