//! `ferroflash bench`: how fast the kernels are, beside the ceilings of the same GPU and beside peers in the same minute.

use std::path::{Path, PathBuf};

use clap::Args;
use ferroflash::inventory::unknown;
use host::Device;
use serde::Serialize;

use super::{DeviceArgs, Failure, Outcome, report};

mod attention;
mod attention_backward;
mod attention_windows;
mod case;
mod cublaslt;
mod elements;
mod environment;
mod figures;
mod generate;
mod harness;
mod linear;
mod measure;
mod peers;
pub mod plots;
mod rows;
mod table;
#[cfg(test)]
mod tests;
mod turns;

pub use case::{Case, Spec};
pub use environment::{Environment, GpuState};
pub use figures::{Ceilings, PeerTime, Report, Row};
pub use harness::{Harness, Timing};
use measure::measure;
use peers::Peers;
use table::write_csv;

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
        "attention-windows",
        "attention forward that leaves pairs out: a window of 1024 keys at 16k, packed sequences of 1 to 8k tokens",
        attention_windows::windows,
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
        elements::elementwise,
    ),
    suite("embedding", "rows by index, and the gradient", elements::embedding),
    suite("sample", "choice of tokens", elements::sample),
    suite("adamw", "100 million parameters", elements::adamw),
    suite("reduce", "1 GiB, all and rows", elements::reduce),
    suite("vector-add", "1 GiB", elements::vector_add),
];

const fn suite(name: &'static str, what: &'static str, cases: fn() -> Vec<Spec>) -> Suite {
    Suite { name, what, cases }
}

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
    let mut peers = if args.no_peers {
        None
    } else {
        // torch.compile is not what a prompt is compared with.
        match Peers::start(&args.python, false, turns::PATIENCE) {
            Ok(peers) => Some(peers),
            Err(why) => {
                say!("missing peer: PyTorch: {why}");
                None
            }
        }
    };
    let models = generate::run(&device, copy, args.config.as_deref(), &mut peers)?;
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
