//! Runs `.ptx` files that carry their launch and their expected results in comments.
//!
//! Header lines, all optional but the arguments, which stand in the order of the entry's parameters:
//!
//! ```text
//! // entry: name            (default: the only entry)
//! // grid: 2 1 1
//! // block: 32 1 1          (default)
//! // cluster: 2 1 1
//! // shared: 1024           dynamic shared memory in bytes
//! // target: sm_90a
//! // in u32: 1 2 3          a buffer with these values
//! // in u32: iota 64        0, 1, 2, …
//! // out u32: 2 4 6         a buffer that must hold these values afterwards
//! // out f32 ulp 2: 1.5 2   within two units in the last place
//! // inout u32: 1 2 -> 3 4   a buffer with values before and after
//! // scratch u32: 64        a buffer of so many elements that nobody looks at
//! // arg u32: 7             a scalar
//! // fault: race            the launch must end in this fault
//! // line: 20               at this line of the PTX
//! ```
//!
//! Values are decimal, hexadecimal (`0x…`, bit patterns) or floats; `v*n` repeats a value.

use std::path::{Path, PathBuf};

use emulator::{Checks, DeviceAddress, Error, Launch, Machine, Module, Target};

/// The bytes of one value.
fn value(ty: &str, text: &str) -> Vec<u8> {
    let width = match ty.trim_start_matches(|c: char| c.is_ascii_alphabetic()) {
        "8" => 1,
        "16" => 2,
        "32" => 4,
        "64" => 8,
        other => panic!("unknown type {ty} ({other})"),
    };
    let bits = if let Some(hex) = text.strip_prefix("0x") {
        u64::from_str_radix(hex, 16).unwrap_or_else(|_| panic!("bad number {text}"))
    } else if ty == "f32" {
        u64::from(
            text.parse::<f32>()
                .unwrap_or_else(|_| panic!("bad number {text}"))
                .to_bits(),
        )
    } else if ty == "f64" {
        text.parse::<f64>()
            .unwrap_or_else(|_| panic!("bad number {text}"))
            .to_bits()
    } else if text.starts_with('-') {
        text.parse::<i64>().unwrap_or_else(|_| panic!("bad number {text}")) as u64
    } else {
        text.parse::<u64>().unwrap_or_else(|_| panic!("bad number {text}"))
    };
    bits.to_le_bytes()[..width].to_vec()
}

fn values(ty: &str, text: &str) -> Vec<u8> {
    let words: Vec<&str> = text.split_whitespace().collect();
    if let ["iota", n] = words[..] {
        return (0..n.parse::<u64>().unwrap())
            .flat_map(|i| value(ty, &i.to_string()))
            .collect();
    }
    words
        .iter()
        .flat_map(|word| match word.split_once('*') {
            Some((v, n)) => value(ty, v).repeat(n.parse().unwrap()),
            None => value(ty, word),
        })
        .collect()
}

struct Expected {
    ty: String,
    ulp: u64,
    bytes: Vec<u8>,
    at: DeviceAddress,
}

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
    let mut launch = Launch {
        block: [32, 1, 1],
        ..Launch::default()
    };
    let mut entry = module.entries().next().unwrap_or_default().to_string();
    let mut target = Target::SM_90A;
    let mut fault: Option<String> = None;
    let mut line: Option<u32> = None;
    let mut arguments: Vec<(String, String, String)> = Vec::new();
    for text in source.lines().map_while(|l| l.strip_prefix("//")) {
        let Some((key, rest)) = text.trim().split_once(':') else {
            continue;
        };
        let rest = rest.trim();
        let triple = || {
            let mut n = rest.split_whitespace().map(|v| v.parse::<u32>().unwrap());
            [n.next().unwrap(), n.next().unwrap_or(1), n.next().unwrap_or(1)]
        };
        let words: Vec<&str> = key.split_whitespace().collect();
        match words[..] {
            ["entry"] => entry = rest.into(),
            ["grid"] => launch.grid = triple(),
            ["block"] => launch.block = triple(),
            ["cluster"] => launch.cluster = triple(),
            ["shared"] => launch.dynamic_shared_bytes = rest.parse().unwrap(),
            ["target"] => {
                target = match rest {
                    "sm_75" => Target::SM_75,
                    "sm_80" => Target::SM_80,
                    _ => Target::SM_90A,
                }
            }
            ["fault"] => fault = Some(rest.into()),
            ["line"] => line = Some(rest.parse().unwrap()),
            [kind @ ("in" | "out" | "inout" | "arg" | "scratch" | "secret"), ty, ..] => {
                let ulp = words.iter().position(|w| *w == "ulp").map_or("0", |i| words[i + 1]);
                arguments.push((format!("{kind} {ulp}"), ty.into(), rest.into()));
            }
            _ => {}
        }
    }
    let mut machine = Machine::new(target)
        .checks(options.checks)
        .step_budget(2_000_000)
        .threads(2);
    if let Some(seed) = options.seed {
        machine = machine.seed(seed);
    }
    let info = module.entry(&entry).map_err(|e| e.to_string())?;
    if info.parameters.len() != arguments.len() {
        return Err(format!(
            "{} parameters, {} arguments",
            info.parameters.len(),
            arguments.len()
        ));
    }
    let mut params = vec![0; info.parameter_bytes];
    let mut expected = Vec::new();
    for (parameter, (kind, ty, text)) in info.parameters.iter().zip(&arguments) {
        let (kind, ulp) = kind.split_once(' ').unwrap();
        let bytes = match kind {
            "arg" => values(ty, text),
            "scratch" => {
                let n: usize = text.parse().unwrap();
                let at = machine.allocate(n * value(ty, "0").len()).map_err(|e| e.to_string())?;
                at.0.to_le_bytes().to_vec()
            }
            "inout" => {
                let (before, after) = text.split_once("->").unwrap();
                let (before, after) = (values(ty, before), values(ty, after));
                let at = machine.allocate(before.len()).map_err(|e| e.to_string())?;
                machine.write(at, &before).map_err(|e| e.to_string())?;
                expected.push(Expected {
                    ty: ty.clone(),
                    ulp: ulp.parse().unwrap(),
                    bytes: after,
                    at,
                });
                at.0.to_le_bytes().to_vec()
            }
            _ => {
                let bytes = values(ty, text);
                let at = machine.allocate(bytes.len()).map_err(|e| e.to_string())?;
                if kind == "out" {
                    expected.push(Expected {
                        ty: ty.clone(),
                        ulp: ulp.parse().unwrap(),
                        bytes,
                        at,
                    });
                } else {
                    machine.write(at, &bytes).map_err(|e| e.to_string())?;
                    if kind == "secret" {
                        machine.mark_secret(at, bytes.len(), true).map_err(|e| e.to_string())?;
                    }
                }
                at.0.to_le_bytes().to_vec()
            }
        };
        if bytes.len() != parameter.size {
            return Err(format!(
                "{} has {} bytes, {} given",
                parameter.name,
                parameter.size,
                bytes.len()
            ));
        }
        params[parameter.offset..parameter.offset + parameter.size].copy_from_slice(&bytes);
    }
    launch.params = &params;
    match (machine.launch(&module, &entry, &launch), fault) {
        (Err(Error::Fault(found)), Some(wanted)) => {
            if found.kind.name() != wanted {
                return Err(format!("expected {wanted}, found {found}"));
            }
            match line {
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
    for Expected { ty, ulp, bytes, at } in expected {
        let mut got = vec![0; bytes.len()];
        machine.read(at, &mut got).map_err(|e| e.to_string())?;
        let width = value(&ty, "0").len();
        let number = |b: &[u8]| b.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
        for (i, (w, g)) in bytes.chunks(width).zip(got.chunks(width)).enumerate() {
            let (w, g) = (number(w), number(g));
            if w.abs_diff(g) > ulp {
                let float = if ty == "f32" {
                    format!(" ({} and {})", f32::from_bits(w as u32), f32::from_bits(g as u32))
                } else {
                    String::new()
                };
                return Err(format!("element {i}: expected {w:#x}, found {g:#x}{float}"));
            }
        }
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
