//! compute-sanitizer over `ferroflash verify`: bounds, races, initialisation, barriers on a real GPU.

use std::{
    collections::VecDeque,
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use ferroflash::inventory::{OPS, op, unknown};
use host::{Device, DeviceKind, DeviceOptions};
use serde::Serialize;

use super::{
    super::{Failure, Outcome, bench::Environment, report},
    SanitizeArgs,
};

/// The tools of compute-sanitizer.
const TOOLS: [&str; 4] = ["memcheck", "racecheck", "initcheck", "synccheck"];
/// What compute-sanitizer exits with when it found something.
const FOUND: i32 = 86;

/// What one tool said of one op.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Clean,
    Found,
    /// `verify` itself failed: a wrong result, or no device.
    VerifyFailed,
    TimedOut,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    op: &'static str,
    tool: &'static str,
    verdict: Verdict,
    seconds: f64,
    /// The end of what was printed, unless it is clean.
    text: String,
}

#[derive(Serialize)]
struct Report {
    environment: Environment,
    sanitizer: String,
    cases: u64,
    rows: Vec<Row>,
}

/// Runs the ops under every tool; one failure does not hide the next.
pub fn sanitize(args: &SanitizeArgs) -> Outcome {
    if let Some(name) = args.ops.iter().find(|name| op(name).is_none()) {
        return Err(Failure::Usage(unknown("op", name, OPS.iter().map(|op| op.name))));
    }
    if let Some(path) = &args.json {
        report::writable(path)?;
    }
    let version = Command::new("compute-sanitizer").arg("--version").output();
    let Some(version) = version.ok().filter(|output| output.status.success()) else {
        return Err(Failure::Failed(
            "compute-sanitizer of the CUDA toolkit is not on the path".into(),
        ));
    };
    let version = String::from_utf8_lossy(&version.stdout);
    let device = Device::with_options(Some(DeviceKind::Cuda(0)), DeviceOptions::default())?;
    let environment = Environment::of(&device);
    drop(device);
    let mut work: VecDeque<(&str, &str)> = VecDeque::new();
    for op in OPS
        .iter()
        .filter(|op| args.ops.is_empty() || args.ops.iter().any(|name| name == op.name))
    {
        work.extend(TOOLS.map(|tool| (op.name, tool)));
    }
    let program = std::env::current_exe().map_err(|error| Failure::Failed(error.to_string()))?;
    let (work, rows) = (Mutex::new(work), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                loop {
                    let Some((op, tool)) = work.lock().unwrap_or_else(|e| e.into_inner()).pop_front() else {
                        break;
                    };
                    let row = one(args, &program, op, tool);
                    say!("{op:<20} {tool:<10} {:?} after {:.0} s", row.verdict, row.seconds);
                    rows.lock().unwrap_or_else(|e| e.into_inner()).push(row);
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap_or_else(|e| e.into_inner());
    let place = |row: &Row| {
        let (op, tool) = (
            OPS.iter().position(|op| op.name == row.op),
            TOOLS.iter().position(|tool| *tool == row.tool),
        );
        (op, tool)
    };
    rows.sort_by_key(place);
    let bad: Vec<Row> = rows
        .iter()
        .filter(|row| row.verdict != Verdict::Clean)
        .cloned()
        .collect();
    bad.iter()
        .for_each(|row| say!("\n{} {}: {:?}\n{}", row.op, row.tool, row.verdict, row.text));
    say!("{} of {} clean", rows.len() - bad.len(), rows.len());
    if let Some(path) = &args.json {
        let sanitizer = version
            .lines()
            .rev()
            .find(|line| line.contains("Version"))
            .unwrap_or_default()
            .into();
        let report = Report {
            environment,
            sanitizer,
            cases: args.cases,
            rows,
        };
        report::write_json(path, &report)?;
    }
    if bad.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = bad.iter().map(|row| format!("{} under {}", row.op, row.tool)).collect();
    Err(Failure::Failed(format!("not clean: {}", names.join(", "))))
}

/// One op under one tool.
fn one(args: &SanitizeArgs, program: &Path, op: &'static str, tool: &'static str) -> Row {
    let start = Instant::now();
    let attempt = || {
        let mut command = Command::new("compute-sanitizer");
        command
            .args(["--tool", tool, "--error-exitcode", &FOUND.to_string()])
            // initcheck does not see what TMA stores, and would report each copy of such results to the host; that results are
            // whole is checked by the NaN that stood there.
            .args([
                "--check-api-memory-access",
                if tool == "initcheck" { "no" } else { "yes" },
            ])
            .arg(program)
            .args(["verify", op, "--small", "--device", "cuda", "--exact-allocation"])
            // The tools stop launches for one another, and racecheck with launches from many threads comes to no end.
            .args(["--threads", "1"])
            .args(["--cases", &args.cases.to_string()]);
        if let Some(tier) = args.tier {
            command.args(["--tier", tier.name()]);
        }
        run(command, Duration::from_secs(args.limit))
    };
    let (mut verdict, mut text) = attempt();
    // The tool loses track of a launch now and then, and says so; it counts what it saw no more than what it missed.
    if verdict == Verdict::Found && text.contains("Internal Sanitizer Error") {
        (verdict, text) = attempt();
    }
    let text = if verdict == Verdict::Clean {
        String::new()
    } else {
        end_of(&text)
    };
    Row {
        op,
        tool,
        verdict,
        seconds: (10.0 * start.elapsed().as_secs_f64()).round() / 10.0,
        text,
    }
}

/// Runs a program to its end, or for so long.
fn run(mut command: Command, limit: Duration) -> (Verdict, String) {
    let until = Instant::now() + limit;
    // A file takes whatever is printed, so that no pipe runs full while nobody reads.
    let Ok(file) = tempfile::tempfile() else {
        return (Verdict::VerifyFailed, "no temporary file".into());
    };
    let (Ok(out), Ok(errors)) = (file.try_clone(), file.try_clone()) else {
        return (Verdict::VerifyFailed, "no temporary file".into());
    };
    let mut child = match command.stdin(Stdio::null()).stdout(out).stderr(errors).spawn() {
        Ok(child) => child,
        Err(error) => return (Verdict::VerifyFailed, error.to_string()),
    };
    let verdict = loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => break Verdict::Clean,
            Ok(Some(status)) if status.code() == Some(FOUND) => break Verdict::Found,
            Ok(Some(_)) | Err(_) => break Verdict::VerifyFailed,
            Ok(None) if Instant::now() > until => {
                // The tool may have ended just now: then there is nothing to kill.
                let _ = child.kill();
                let _ = child.wait();
                break Verdict::TimedOut;
            }
            Ok(None) => thread::sleep(Duration::from_millis(50)),
        }
    };
    (verdict, printed(file))
}

fn printed(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut bytes = Vec::new();
    match file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => error.to_string(),
    }
}

/// The last lines of a text.
fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (Verdict, String) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, limit)
    }

    #[test]
    fn a_tool_ends_in_one_of_four_ways() {
        let long = Duration::from_secs(60);
        assert_eq!(shell("echo fine", long), (Verdict::Clean, "fine\n".into()));
        assert_eq!(shell("echo race; exit 86", long), (Verdict::Found, "race\n".into()));
        assert_eq!(shell("exit 1", long).0, Verdict::VerifyFailed);
        assert_eq!(shell("exec sleep 60", Duration::from_millis(100)).0, Verdict::TimedOut);
        assert_eq!(end_of(&"a\n".repeat(30)).lines().count(), 20);
    }
}
