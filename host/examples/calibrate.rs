//! Runs the emulator's test kernels on a GPU and compares: do the expected results, and the emulator's own, hold there?
//!
//! ```text
//! calibrate [--json FILE] FOLDER-OR-FILE.ptx…
//! ```
//!
//! Each file runs in a process of its own, so that one that faults or hangs spoils no other. Exit code 1 when a file
//! disagrees. Without a GPU it says so and does nothing.

use std::{
    ffi::{CString, c_void},
    io::Read,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    ptr::null_mut,
    time::{Duration, Instant},
};

use driver::{LaunchAttribute, LaunchConfig, calls, handle};
use emulator::{DeviceAddress, Launch, Machine, Module, Target};
use host::{
    Error,
    backend::{Backend, cuda::CudaBackend},
};
use serde::{Deserialize, Serialize};

#[path = "../../emulator/tests/common/case.rs"]
mod case;

use case::{Argument, Case};

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: u32 = 8;
/// Longest that a file may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What one file gave.
#[derive(Serialize, Deserialize)]
struct Outcome {
    file: String,
    agrees: bool,
    /// Bytes of results that were compared.
    bytes: usize,
    /// Largest distance of the GPU from the expected values, units of the last place.
    ulp_from_expected: u64,
    /// The same of each buffer of results, in order.
    ulp_by_buffer: Vec<u64>,
    /// Bytes in which the GPU and the emulator differ; approximate functions may.
    bytes_unlike_emulator: usize,
    /// Buffer, element, expected and found bits where they differ: the first few hundred.
    unexpected: Vec<(usize, usize, u64, u64)>,
    problem: String,
}

/// How the problem of a file begins that no GPU runs.
const NOT_FOR_GPU: &str = "not for a GPU";
/// Elements that an outcome lists at most.
const LISTED: usize = 400;

#[derive(Serialize)]
struct Report {
    gpu: String,
    driver_cuda_version: u32,
    outcomes: Vec<Outcome>,
}

/// Results of all buffers, in order.
type Results = Vec<Vec<u8>>;

fn on_emulator(source: &str, case: &Case) -> Result<Results, String> {
    let module = Module::parse(source).map_err(|e| e.to_string())?;
    let entry = case
        .entry
        .clone()
        .or_else(|| module.entries().next().map(str::to_owned));
    let entry = entry.ok_or("no entry")?;
    let machine = Machine::new(Target::SM_90A);
    let (mut arguments, mut buffers) = (Vec::new(), Vec::new());
    for argument in &case.arguments {
        match argument {
            Argument::Scalar(bytes) => arguments.push(emulator::Argument::Bytes(bytes)),
            Argument::Buffer(buffer) => {
                let at: DeviceAddress = machine.allocate(buffer.bytes).map_err(|e| e.to_string())?;
                if let Some(before) = &buffer.before {
                    machine.write(at, before).map_err(|e| e.to_string())?;
                }
                arguments.push(emulator::Argument::Address(at));
                buffers.push((at, buffer.bytes));
            }
        }
    }
    let info = module.entry(&entry).map_err(|e| e.to_string())?;
    let params = info.pack(&arguments).map_err(|e| e.to_string())?;
    let launch = Launch {
        grid: case.grid,
        block: case.block,
        cluster: case.cluster,
        dynamic_shared_bytes: case.shared,
        params: &params,
    };
    machine.launch(&module, &entry, &launch).map_err(|e| e.to_string())?;
    buffers
        .into_iter()
        .map(|(at, bytes)| {
            let mut got = vec![0; bytes];
            machine.read(at, &mut got).map_err(|e| e.to_string())?;
            Ok(got)
        })
        .collect()
}

/// PTX with its version lowered to what a driver takes, when a newer compiler wrote it: CUDA 12.x reads PTX 8.x, 13.x 9.x.
fn for_driver(source: &str, cuda: u32) -> String {
    let (major, minor) = (cuda / 1000 - 4, cuda % 1000 / 10);
    let lower = |line: &str| {
        let version = line.strip_prefix(".version")?.trim();
        let (file_major, file_minor) = version.split_once('.')?;
        let newer = (file_major.parse::<u32>().ok()?, file_minor.parse::<u32>().ok()?) > (major, minor);
        newer.then(|| format!(".version {major}.{minor}"))
    };
    let lines: Vec<String> = source
        .lines()
        .map(|line| lower(line).unwrap_or_else(|| line.to_owned()))
        .collect();
    lines.join("\n")
}

fn on_gpu(source: &str, case: &Case) -> Result<Results, String> {
    if let Some(reason) = &case.emulator_only {
        return Err(format!("{NOT_FOR_GPU}: {reason}"));
    }
    let backend = CudaBackend::open(0).map_err(|e| e.to_string())?;
    let stream = backend.create_stream().map_err(|e| e.to_string())?;
    let entry = match &case.entry {
        Some(entry) => entry.clone(),
        None => {
            let module = Module::parse(source).map_err(|e| e.to_string())?;
            module.entries().next().map(str::to_owned).ok_or("no entry")?
        }
    };
    // The values of the arguments; the driver takes a pointer to each.
    let (mut arguments, mut buffers) = (Vec::new(), Vec::new());
    for argument in &case.arguments {
        match argument {
            Argument::Scalar(bytes) => arguments.push(bytes.clone()),
            Argument::Buffer(buffer) => {
                if buffer.secret {
                    return Err(format!("{NOT_FOR_GPU}: a test of taint"));
                }
                let at = backend
                    .allocate(buffer.bytes.max(16) as u64)
                    .map_err(|e| e.to_string())?;
                let before = buffer.before.clone().unwrap_or_else(|| vec![0; buffer.bytes]);
                // SAFETY: the allocation has at least as many bytes, and nothing uses it yet.
                unsafe { backend.write(at, &before, stream) }.map_err(|e| e.to_string())?;
                arguments.push(at.to_le_bytes().to_vec());
                buffers.push((at, buffer.bytes));
            }
        }
    }
    backend.synchronize(stream).map_err(|e| e.to_string())?;
    let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(|a| a.as_mut_ptr().cast()).collect();
    let text = CString::new(for_driver(source, backend.properties().driver_version)).map_err(|e| e.to_string())?;
    let name = CString::new(entry).map_err(|e| e.to_string())?;
    let attributes = [LaunchAttribute::cluster(case.cluster)];
    let config = LaunchConfig {
        grid: case.grid,
        block: case.block,
        dynamic_shared: case.shared,
        stream: handle::Stream::NULL,
        attributes: attributes.as_ptr(),
        attribute_count: u32::from(case.cluster != [1; 3]),
    };
    // SAFETY: opening the backend made its context current; the argument list has a pointer to the bytes of each
    // parameter of a kernel that the emulator ran with the same arguments, and all outlive the launch, which is waited
    // for.
    unsafe {
        let (module, _) = driver::load_module(&text, None, false).map_err(|e| e.to_string())?;
        let mut function = handle::Function::NULL;
        calls::module_get_function(&mut function, module, name.as_ptr()).map_err(|e| e.to_string())?;
        if case.shared > 48 << 10 {
            calls::func_set_attribute(function, MAX_DYNAMIC_SHARED, case.shared as i32).map_err(|e| e.to_string())?;
        }
        calls::launch_kernel_ex(&config, function, pointers.as_mut_ptr(), null_mut()).map_err(|e| e.to_string())?;
        calls::ctx_synchronize().map_err(|e| e.to_string())?;
    }
    buffers
        .into_iter()
        .map(|(at, bytes)| {
            let mut got = vec![0; bytes];
            // SAFETY: the range was allocated above, and the kernel has ended.
            unsafe { backend.read(at, &mut got, stream) }.map_err(|e| e.to_string())?;
            Ok(got)
        })
        .collect()
}

/// Runs one file in this process.
fn one(path: &Path) -> Outcome {
    let mut outcome = Outcome {
        file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        agrees: false,
        bytes: 0,
        ulp_from_expected: 0,
        ulp_by_buffer: Vec::new(),
        bytes_unlike_emulator: 0,
        unexpected: Vec::new(),
        problem: String::new(),
    };
    let results = std::fs::read_to_string(path)
        .map_err(|e| e.to_string())
        .and_then(|source| {
            let case = Case::parse(&source);
            let emulated = on_emulator(&source, &case).map_err(|e| format!("emulator: {e}"))?;
            let real = on_gpu(&source, &case).map_err(|e| format!("GPU: {e}"))?;
            Ok((case, emulated, real))
        });
    let (case, emulated, real) = match results {
        Ok(results) => results,
        Err(problem) => return Outcome { problem, ..outcome },
    };
    let buffers = case.arguments.iter().filter_map(|argument| match argument {
        Argument::Buffer(buffer) => Some(buffer),
        Argument::Scalar(_) => None,
    });
    for (index, ((buffer, emulated), real)) in buffers.zip(&emulated).zip(&real).enumerate() {
        if buffer.after.is_none() {
            continue;
        }
        let differing = buffer.differences(real);
        let ulp = differing.iter().map(|(_, w, g)| w.abs_diff(*g)).max().unwrap_or(0);
        outcome.ulp_by_buffer.push(ulp);
        outcome.ulp_from_expected = outcome.ulp_from_expected.max(ulp);
        let listed = differing
            .into_iter()
            .map(|(element, expected, found)| (index, element, expected, found));
        outcome.unexpected.extend(listed.take(LISTED));
        outcome.bytes += real.len();
        outcome.bytes_unlike_emulator += real.iter().zip(emulated).filter(|(a, b)| a != b).count();
        if let Err(problem) = buffer.compare(real) {
            outcome.problem = problem;
        }
    }
    outcome.agrees = outcome.problem.is_empty();
    outcome
}

/// Runs one file in another process.
fn guarded(program: &Path, path: &Path) -> Outcome {
    let lost = |problem: String| Outcome {
        file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        agrees: false,
        bytes: 0,
        ulp_from_expected: 0,
        ulp_by_buffer: Vec::new(),
        bytes_unlike_emulator: 0,
        unexpected: Vec::new(),
        problem,
    };
    let child = Command::new(program)
        .arg("--one")
        .arg(path)
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return lost(error.to_string()),
    };
    // Read while it runs: more than a pipe holds would stop it.
    let mut pipe = child.stdout.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        pipe.read_to_end(&mut text).map(|_| text)
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() > LIMIT => {
                let _ = child.kill();
                let _ = child.wait();
                return lost(format!("did not end within {} s", LIMIT.as_secs()));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return lost(error.to_string()),
        }
    };
    match reader.join() {
        Ok(Ok(text)) => serde_json::from_slice(&text).unwrap_or_else(|_| lost(format!("ended with {status}"))),
        Ok(Err(error)) => lost(error.to_string()),
        Err(_) => lost("its output could not be read".into()),
    }
}

fn files(of: &Path) -> std::io::Result<Vec<PathBuf>> {
    if of.is_file() {
        return Ok(vec![of.to_owned()]);
    }
    let mut files = std::fs::read_dir(of)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "ptx"));
    files.sort();
    Ok(files)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == "--one").is_some() {
        let outcome = one(Path::new(&arguments.next().unwrap_or_default()));
        println!("{}", serde_json::to_string(&outcome).expect("plain fields"));
        return ExitCode::SUCCESS;
    }
    let mut json = None;
    let mut paths = Vec::new();
    while let Some(argument) = arguments.next() {
        if argument == "--json" {
            json = arguments.next().map(PathBuf::from);
        } else {
            match files(Path::new(&argument)) {
                Ok(found) => paths.extend(found),
                Err(error) => {
                    eprintln!("{}: {error}", argument.display());
                    return ExitCode::from(2);
                }
            }
        }
    }
    let properties = match CudaBackend::open(0) {
        Ok(backend) => backend.properties().clone(),
        Err(Error::NoDevice { reason }) => {
            println!("skipped: {reason}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let program = std::env::current_exe().expect("the program has a path");
    let mut report = Report {
        gpu: properties.name,
        driver_cuda_version: properties.driver_version,
        outcomes: Vec::new(),
    };
    println!("{} · driver for CUDA {}", report.gpu, report.driver_cuda_version);
    println!("{:<44} {:>6} {:>8} {:>13}", "file", "bytes", "max ulp", "≠ emulator");
    for path in paths {
        let outcome = guarded(&program, &path);
        println!(
            "{:<44} {:>6} {:>8} {:>13} {}",
            outcome.file, outcome.bytes, outcome.ulp_from_expected, outcome.bytes_unlike_emulator, outcome.problem
        );
        report.outcomes.push(outcome);
    }
    report.outcomes.retain(|outcome| !outcome.problem.contains(NOT_FOR_GPU));
    let agreeing = report.outcomes.iter().filter(|outcome| outcome.agrees).count();
    println!("{agreeing} of {} files agree", report.outcomes.len());
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&report).expect("plain fields");
        if let Err(error) = std::fs::write(&path, text) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    if agreeing == report.outcomes.len() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
