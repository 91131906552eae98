//! `ferroflash emulate`: anyone's PTX on the CPU, with tensors from a safetensors file and every access checked.

use std::{fs, path::PathBuf};

use clap::Args;
use emulator::{Argument, Checks, DeviceAddress, Launch, Machine, Module, Target};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{Failure, Outcome};

/// Arguments of `emulate`.
#[derive(Args)]
pub struct EmulateArgs {
    /// PTX text.
    file: PathBuf,
    /// Entry to run; may be left out when the file has one.
    #[arg(long)]
    entry: Option<String>,
    /// CTAs in x, y, z.
    #[arg(long, default_value = "1", value_name = "X[,Y[,Z]]", value_parser = parse_extents)]
    grid: [u32; 3],
    /// Threads of a CTA in x, y, z.
    #[arg(long, value_name = "X[,Y[,Z]]", value_parser = parse_extents)]
    block: [u32; 3],
    /// CTAs of a cluster in x, y, z.
    #[arg(long, default_value = "1", value_name = "X[,Y[,Z]]", value_parser = parse_extents)]
    cluster: [u32; 3],
    /// Dynamic shared memory, bytes.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    shared: u32,
    /// Safetensors file whose tensors are put in global memory.
    #[arg(long = "in", value_name = "X.safetensors")]
    input: Option<PathBuf>,
    /// A further tensor, not initialised: name=dtype:extents, such as y=f32:4,128.
    #[arg(long = "new", value_name = "NAME=DTYPE:EXTENTS", value_parser = parse_new)]
    new: Vec<NewTensor>,
    /// Safetensors file to write all tensors to afterwards.
    #[arg(long = "out", value_name = "Y.safetensors")]
    output: Option<PathBuf>,
    /// The entry's arguments in order: a tensor's name (its address is passed), or type:value with u8, u16, u32, u64,
    /// i32, i64, f32, f64.
    #[arg(long = "arg", value_name = "ARG")]
    arguments: Vec<String>,
    /// GPU to imitate: sm_75, sm_80 or sm_90a.
    #[arg(long, default_value = "sm_90a", value_parser = parse_target)]
    target: Target,
    /// Explore the schedule of this seed instead of running each warp until it blocks.
    #[arg(long)]
    seed: Option<u64>,
    /// Only find what makes going on impossible (such as accesses out of bounds); faster.
    #[arg(long)]
    no_checks: bool,
    /// Warp instructions after which the kernel counts as a runaway.
    #[arg(long, default_value_t = 10_000_000_000, value_name = "N")]
    steps: u64,
    /// Print what the kernel did: instructions by kind, bytes by space, bank conflicts.
    #[arg(long)]
    statistics: bool,
}

/// A tensor of `--new`.
#[derive(Clone, Debug)]
struct NewTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
}

/// A tensor in the machine's memory.
struct Placed {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
    at: DeviceAddress,
}

/// Memory that the emulated GPU has.
const MEMORY_BYTES: u64 = 16 << 30;

fn parse_extents(text: &str) -> Result<[u32; 3], String> {
    let mut extents = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err("expected up to three numbers".into());
    }
    for (extent, part) in extents.iter_mut().zip(parts) {
        *extent = part.parse().map_err(|_| format!("{part:?} is no number below 2³²"))?;
    }
    Ok(extents)
}

fn parse_target(text: &str) -> Result<Target, String> {
    [Target::SM_75, Target::SM_80, Target::SM_90A]
        .into_iter()
        .find(|target| target.name == text)
        .ok_or_else(|| "expected sm_75, sm_80 or sm_90a".into())
}

fn parse_new(text: &str) -> Result<NewTensor, String> {
    let form = "expected name=dtype:extents, such as y=f32:4,128";
    let (name, rest) = text.split_once('=').ok_or(form)?;
    let (dtype, extents) = rest.split_once(':').ok_or(form)?;
    let (dtype, size) = match dtype {
        "f64" => (Dtype::F64, 8),
        "i64" => (Dtype::I64, 8),
        "u64" => (Dtype::U64, 8),
        "f32" => (Dtype::F32, 4),
        "i32" => (Dtype::I32, 4),
        "u32" => (Dtype::U32, 4),
        "f16" => (Dtype::F16, 2),
        "bf16" => (Dtype::BF16, 2),
        "i16" => (Dtype::I16, 2),
        "u16" => (Dtype::U16, 2),
        "i8" => (Dtype::I8, 1),
        "u8" => (Dtype::U8, 1),
        _ => return Err("dtype: expected f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16 or u8".into()),
    };
    let shape: Vec<usize> = extents
        .split(',')
        .map(|extent| extent.parse().map_err(|_| format!("extent {extent:?} is no number")))
        .collect::<Result<_, String>>()?;
    let bytes = shape
        .iter()
        .try_fold(size, |bytes: usize, &extent| bytes.checked_mul(extent))
        .ok_or("too many elements")?;
    Ok(NewTensor {
        name: name.into(),
        dtype,
        shape,
        bytes,
    })
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// The value of `--arg`.
fn argument<'a>(text: &str, tensors: &[Placed]) -> Result<Argument<'a>, Failure> {
    if let Some(tensor) = tensors.iter().find(|tensor| tensor.name == text) {
        return Ok(Argument::Address(tensor.at));
    }
    let bad = || {
        let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        Failure::Usage(format!(
            "--arg {text}: expected the name of a tensor ({}) or type:value such as u32:5, f32:1.5, u64:1, i32:-1",
            if names.is_empty() {
                "there is none".to_owned()
            } else {
                names.join(", ")
            }
        ))
    };
    let (ty, value) = text.split_once(':').ok_or_else(bad)?;
    Ok(match ty {
        "u8" => Argument::U8(value.parse().map_err(|_| bad())?),
        "u16" => Argument::U16(value.parse().map_err(|_| bad())?),
        "u32" => Argument::U32(value.parse().map_err(|_| bad())?),
        "i32" => Argument::I32(value.parse().map_err(|_| bad())?),
        "u64" => Argument::U64(value.parse().map_err(|_| bad())?),
        "i64" => Argument::I64(value.parse().map_err(|_| bad())?),
        "f32" => Argument::F32(value.parse().map_err(|_| bad())?),
        "f64" => Argument::F64(value.parse().map_err(|_| bad())?),
        _ => return Err(bad()),
    })
}

/// Puts the tensors of the file and the new ones in memory.
fn place(args: &EmulateArgs, machine: &Machine) -> Result<Vec<Placed>, Failure> {
    let mut placed = Vec::new();
    if let Some(path) = &args.input {
        let name = path.display();
        let bytes = fs::read(path).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
        for (tensor, view) in file.tensors() {
            let at = machine.allocate(view.data().len()).map_err(failed)?;
            machine.write(at, view.data()).map_err(failed)?;
            placed.push(Placed {
                name: tensor,
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data().len(),
                at,
            });
        }
    }
    for new in &args.new {
        if placed.iter().any(|tensor| tensor.name == new.name) {
            return Err(Failure::Usage(format!(
                "--new {}: there is a tensor of that name",
                new.name
            )));
        }
        placed.push(Placed {
            name: new.name.clone(),
            dtype: new.dtype,
            shape: new.shape.clone(),
            bytes: new.bytes,
            at: machine.allocate(new.bytes).map_err(failed)?,
        });
    }
    Ok(placed)
}

/// Everything that is known of a failed launch, with the line of PTX it stands at.
fn explain(error: emulator::Error, path: &str, source: &str) -> Failure {
    let emulator::Error::Fault(fault) = error else {
        return Failure::Failed(format!("{path}: {error}"));
    };
    let line = |site: &emulator::Site| {
        let text = source.lines().nth((site.position.line as usize).saturating_sub(1));
        format!("\n  {path}:{}: {}", site.position, text.unwrap_or_default().trim())
    };
    let mut text = format!("{fault}{}", line(&fault.site));
    if let Some(other) = &fault.other {
        text += &line(other);
    }
    Failure::Failed(text)
}

/// Runs the entry and writes the tensors.
pub fn emulate(args: EmulateArgs) -> Outcome {
    let path = args.file.display().to_string();
    let source = fs::read_to_string(&args.file).map_err(|error| Failure::Failed(format!("{path}: {error}")))?;
    let module = Module::parse(&source).map_err(|error| Failure::Failed(format!("{path}:{error}")))?;
    let entry = match &args.entry {
        Some(entry) => entry.clone(),
        None => {
            let entries: Vec<&str> = module.entries().collect();
            match entries[..] {
                [entry] => entry.to_owned(),
                _ => return Err(Failure::Usage(format!("--entry: {path} has {}", entries.join(", ")))),
            }
        }
    };
    let info = module.entry(&entry).map_err(|error| explain(error, &path, &source))?;
    let mut machine = Machine::new(args.target)
        .memory_limit(MEMORY_BYTES)
        .step_budget(args.steps)
        .checks(if args.no_checks { Checks::none() } else { Checks::all() });
    if let Some(seed) = args.seed {
        machine = machine.seed(seed);
    }
    let tensors = place(&args, &machine)?;
    let arguments: Vec<Argument> = args
        .arguments
        .iter()
        .map(|text| argument(text, &tensors))
        .collect::<Result<_, _>>()?;
    let params = info
        .pack(&arguments)
        .map_err(|error| Failure::Usage(format!("--arg: {error}")))?;
    let launch = Launch {
        grid: args.grid,
        block: args.block,
        cluster: args.cluster,
        dynamic_shared_bytes: args.shared,
        params: &params,
    };
    let statistics = machine
        .launch(&module, &entry, &launch)
        .map_err(|error| explain(error, &path, &source))?;
    if let Some(path) = &args.output {
        let mut contents = Vec::new();
        for tensor in &tensors {
            let mut bytes = vec![0; tensor.bytes];
            machine.read(tensor.at, &mut bytes).map_err(failed)?;
            contents.push(bytes);
        }
        let views = tensors
            .iter()
            .zip(&contents)
            .map(|(tensor, bytes)| {
                Ok((
                    &tensor.name,
                    TensorView::new(tensor.dtype, tensor.shape.clone(), bytes)?,
                ))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(failed)?;
        safetensors::serialize_to_file(views, None, path)
            .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))?;
    }
    println!(
        "{entry} ran to its end: {} thread instructions, {} warp instructions",
        statistics.thread_instructions, statistics.warp_instructions
    );
    if args.statistics {
        for (kind, count) in &statistics.instructions {
            println!("  {kind:<44} {count:>14}");
        }
        for (space, traffic) in [
            ("global", statistics.global),
            ("shared", statistics.shared),
            ("local", statistics.local),
            ("constant", statistics.constant),
        ] {
            println!(
                "  {space:<10} {:>14} bytes read {:>14} written",
                traffic.read, traffic.written
            );
        }
        println!(
            "  {} bank conflicts, {} flops",
            statistics.bank_conflicts, statistics.flops
        );
    }
    Ok(())
}
