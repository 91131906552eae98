//! Runs `.ptx` files that carry their launch and their expected results in comments; see [`case`].

use std::path::{Path, PathBuf};

use emulator::{Checks, Error, Launch, Machine, Module, Target};

mod case;

use case::{Argument, Case};

/// How a file is run.
#[derive(Clone, Copy)]
pub struct Options {
    pub checks: Checks,
    pub seed: Option<u64>,
}

/// Runs one file; what went wrong, if anything.
pub fn run(path: &Path, options: Options) -> Result<(), String> {
    let source = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let module = Module::parse(&source).map_err(|e| e.to_string())?;
    let printed = module.syntax().to_string();
    let again = Module::parse(&printed).map_err(|e| format!("the printed module does not parse: {e}\n{printed}"))?;
    if again.syntax().to_string() != printed {
        return Err("printing the printed module changes it".into());
    }
    let case = Case::parse(&source);
    if case.emulator_only.as_deref() == Some("") {
        return Err("`emulator only` needs a reason".into());
    }
    let first = module.entries().next().unwrap_or_default();
    let entry = case.entry.as_deref().unwrap_or(first);
    let target = match case.target.as_str() {
        "sm_75" => Target::SM_75,
        "sm_80" => Target::SM_80,
        _ => Target::SM_90A,
    };
    let mut machine = Machine::new(target)
        .checks(options.checks)
        .step_budget(2_000_000)
        .threads(2);
    if let Some(seed) = options.seed {
        machine = machine.seed(seed);
    }
    let mut arguments = Vec::new();
    let mut buffers = Vec::new();
    for argument in &case.arguments {
        match argument {
            Argument::Scalar(bytes) => arguments.push(emulator::Argument::Bytes(bytes)),
            Argument::Buffer(buffer) => {
                let at = machine.allocate(buffer.bytes).map_err(|e| e.to_string())?;
                if let Some(before) = &buffer.before {
                    machine.write(at, before).map_err(|e| e.to_string())?;
                }
                if buffer.secret {
                    machine.mark_secret(at, buffer.bytes, true).map_err(|e| e.to_string())?;
                }
                arguments.push(emulator::Argument::Address(at));
                buffers.push((buffer, at));
            }
        }
    }
    let info = module.entry(entry).map_err(|e| e.to_string())?;
    let params = info.pack(&arguments).map_err(|e| e.to_string())?;
    let launch = Launch {
        grid: case.grid,
        block: case.block,
        cluster: case.cluster,
        dynamic_shared_bytes: case.shared,
        params: &params,
    };
    match (machine.launch(&module, entry, &launch), case.fault) {
        (Err(Error::Fault(found)), Some(wanted)) => {
            if found.kind.name() != wanted {
                return Err(format!("expected {wanted}, found {found}"));
            }
            match case.line {
                Some(line) if found.site.position.line != line => {
                    return Err(format!("expected line {line}, found {found}"));
                }
                _ => return Ok(()),
            }
        }
        (Ok(_), Some(wanted)) => return Err(format!("expected the fault {wanted}, but the kernel ran to its end")),
        (Err(error), _) => return Err(error.to_string()),
        (Ok(_), None) => {}
    }
    for (buffer, at) in buffers {
        let mut got = vec![0; buffer.bytes];
        machine.read(at, &mut got).map_err(|e| e.to_string())?;
        buffer.compare(&got)?;
    }
    Ok(())
}

/// All `.ptx` files of a folder under `tests`.
pub fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "ptx"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no .ptx files in {}", folder.display());
    files
}

/// Runs every file of a folder and panics with all failures.
pub fn run_all(folder: &str, options: Options) {
    let failures: Vec<String> = files(folder)
        .iter()
        .filter_map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            run(path, options).err().map(|e| format!("{name}: {e}"))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
