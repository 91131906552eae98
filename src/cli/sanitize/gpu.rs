//! compute-sanitizer over `ferroflash verify`: bounds, races, initialisation, barriers on a real GPU.

use std::process::{Command, Stdio};

use ferroflash::inventory::{OPS, op, unknown};
use host::Tier;

use super::super::{Failure, Outcome};

/// The tools of compute-sanitizer.
const TOOLS: [&str; 4] = ["memcheck", "racecheck", "initcheck", "synccheck"];
/// What compute-sanitizer exits with when it found something.
const FOUND: i32 = 86;

/// Runs the ops under every tool; one failure does not hide the next.
pub fn sanitize(ops: &[String], tier: Option<Tier>, cases: u64) -> Outcome {
    if let Some(name) = ops.iter().find(|name| op(name).is_none()) {
        return Err(Failure::Usage(unknown("op", name, OPS.iter().map(|op| op.name))));
    }
    let there = Command::new("compute-sanitizer")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if !there.is_ok_and(|status| status.success()) {
        return Err(Failure::Failed(
            "compute-sanitizer of the CUDA toolkit is not on the path".into(),
        ));
    }
    let program = std::env::current_exe().map_err(|error| Failure::Failed(error.to_string()))?;
    let mut failed = Vec::new();
    for tool in TOOLS {
        let mut command = Command::new("compute-sanitizer");
        command
            .args(["--tool", tool, "--error-exitcode", &FOUND.to_string()])
            .arg(&program)
            .arg("verify")
            .args(ops);
        command.args(["--device", "cuda", "--exact-allocation", "--cases", &cases.to_string()]);
        if let Some(tier) = tier {
            command.args(["--tier", tier.name()]);
        }
        let status = command
            .status()
            .map_err(|error| Failure::Failed(format!("compute-sanitizer: {error}")))?;
        say!("{tool}: {}", if status.success() { "clean" } else { "FAILED" });
        if !status.success() {
            failed.push(tool);
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::Failed(format!("failed: {}", failed.join(", "))))
    }
}
