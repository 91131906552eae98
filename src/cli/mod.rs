//! The command line: one file a subcommand.
//!
//! Exit codes: 0 success, 1 a failure, 2 bad usage. Errors are one line on standard error.

use std::{process::ExitCode, time::Instant};

/// Prints a line; a reader that has gone away (`ferroflash info | head`) ends the program quietly.
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write;
        if writeln!(std::io::stdout(), $($argument)*).is_err() {
            std::process::exit(0);
        }
    }};
}

use clap::{Args, Parser, Subcommand};
use host::{Device, DeviceKind, DeviceOptions, EmulatorOptions, Tier};

mod bench;
mod docs;
mod emulate;
mod generate;
mod info;
mod perplexity;
mod profile;
mod report;
mod roofline;
mod run;
mod sanitize;
mod tensors;
mod verify;

/// GPU kernels for transformers in pure Rust: run them, check them, measure them. Without a command, a small model tells a story.
#[derive(Parser)]
#[command(name = "ferroflash", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Generate text with a language model.
    Generate(Box<generate::GenerateArgs>),
    /// Measure how well a language model predicts a text.
    Perplexity(perplexity::PerplexityArgs),
    /// Show devices, driver, tiers and the kernels of this build.
    Info(info::InfoArgs),
    /// Check every op against the f64 reference, on random and named problems.
    Verify(verify::VerifyArgs),
    /// Measure the kernels beside the ceilings of the same GPU, and peers in turns.
    Bench(bench::BenchArgs),
    /// Draw every kernel under the ceilings of its GPU.
    Roofline(roofline::RooflineArgs),
    /// Say what limits each kernel: Nsight Compute on a GPU, the emulator's counts without.
    Profile(profile::ProfileArgs),
    /// Rewrite or check what README and pages have from the table of ops and from committed results.
    Docs(docs::DocsArgs),
    /// Apply one op to the named tensors of a safetensors file.
    Run(run::RunArgs),
    /// Run the ops on the emulator under all checks, on many schedules.
    Sanitize(sanitize::SanitizeArgs),
    /// Run anyone's PTX on the emulator.
    Emulate(emulate::EmulateArgs),
}

/// Which machine runs the kernels.
#[derive(Args, Clone, Debug, Default)]
pub struct DeviceArgs {
    /// auto (the first GPU, else the emulator), cuda, cuda:N or emulator.
    #[arg(long, default_value = "auto", value_parser = parse_device, global = true)]
    device: DeviceChoice,
    /// Run the images of this tier (sm_75, sm_80, sm_90a) instead of the best that the device takes.
    #[arg(long, global = true, value_parser = |text: &str| text.parse::<Tier>().map_err(|error| error.to_string()))]
    tier: Option<Tier>,
    /// On the emulator: check every access (bounds, races, initialisation, barriers); slower.
    #[arg(long, global = true)]
    checks: bool,
    /// One driver allocation a tensor: what compute-sanitizer needs to see overruns.
    #[arg(long, global = true, hide = true)]
    exact_allocation: bool,
}

/// What `--device` said.
#[derive(Clone, Copy, Debug, Default)]
enum DeviceChoice {
    #[default]
    Auto,
    Kind(DeviceKind),
}

fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cuda" => Ok(DeviceChoice::Kind(DeviceKind::Cuda(0))),
        "emulator" => Ok(DeviceChoice::Kind(DeviceKind::Emulator)),
        _ => match text.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => Ok(DeviceChoice::Kind(DeviceKind::Cuda(ordinal))),
            _ => Err("expected auto, cuda, cuda:N or emulator".into()),
        },
    }
}

impl DeviceArgs {
    /// Opens the device.
    pub fn open(&self) -> host::Result<Device> {
        self.open_tier(self.tier)
    }

    /// The tier that was asked for.
    pub fn tier(&self) -> Option<Tier> {
        self.tier
    }

    /// What `--device` was given.
    pub fn name(&self) -> String {
        match self.device {
            DeviceChoice::Auto => "auto".into(),
            DeviceChoice::Kind(kind) => kind.to_string(),
        }
    }

    /// Opens the device with the images of a tier.
    pub fn open_tier(&self, tier: Option<Tier>) -> host::Result<Device> {
        let kind = match self.device {
            DeviceChoice::Auto => None,
            DeviceChoice::Kind(kind) => Some(kind),
        };
        let emulator = EmulatorOptions {
            checks: self.checks,
            ..EmulatorOptions::default()
        };
        Device::with_options(
            kind,
            DeviceOptions {
                tier,
                exact_allocation: self.exact_allocation,
                emulator,
                ..DeviceOptions::default()
            },
        )
    }
}

/// Why a command failed.
pub enum Failure {
    /// The command line does not make sense: exit code 2.
    Usage(String),
    /// The work failed: exit code 1.
    Failed(String),
    /// Somebody pressed Ctrl-C: exit code 130.
    Interrupted,
}

impl From<models::Error> for Failure {
    fn from(error: models::Error) -> Self {
        Failure::Failed(error.to_string())
    }
}

impl From<host::Error> for Failure {
    fn from(error: host::Error) -> Self {
        Failure::Failed(error.to_string())
    }
}

/// Outcome of a subcommand.
pub type Outcome = Result<(), Failure>;

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let started = Instant::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error),
    };
    let outcome = match cli.command {
        None => generate::story(started),
        Some(Command::Generate(args)) => generate::generate(*args, started),
        Some(Command::Perplexity(args)) => perplexity::perplexity(args),
        Some(Command::Info(args)) => info::info(args),
        Some(Command::Verify(args)) => verify::verify(args),
        Some(Command::Bench(args)) => bench::bench(args),
        Some(Command::Roofline(args)) => roofline::roofline(args),
        Some(Command::Profile(args)) => profile::profile(args),
        Some(Command::Docs(args)) => docs::docs(args),
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Sanitize(args)) => sanitize::sanitize(args),
        Some(Command::Emulate(args)) => emulate::emulate(args),
    };
    finish(outcome)
}

/// Says why a command failed, and with which code the program ends.
fn finish(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            eprintln!("ferroflash: {text}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(text)) => {
            eprintln!("ferroflash: {text}");
            ExitCode::from(1)
        }
        Err(Failure::Interrupted) => ExitCode::from(130),
    }
}

/// Help and version as clap prints them; a mistake as one line.
fn unparsed(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    let mistake = !matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if mistake {
        eprintln!(
            "ferroflash: {} (--help says more)",
            one_line(&error.render().to_string())
        );
    } else {
        // Nobody reads the help when it cannot be written.
        let _ = error.print();
    }
    ExitCode::from(error.exit_code() as u8)
}

/// clap's message without its usage and help lines.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}
