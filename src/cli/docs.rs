//! `ferroflash docs`: the parts of README and pages that are made from the inventory and from committed results.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;
use ferroflash::inventory::{OPS, Op};

use super::{
    Failure, Outcome,
    bench::{self, PeerTime, Report, Row, SUITES},
    report, roofline,
};

/// Arguments of `docs`.
#[derive(Args)]
pub struct DocsArgs {
    /// Rewrite what is generated.
    #[arg(long, conflicts_with = "check")]
    write: bool,
    /// Fail when a page is not as it would be generated.
    #[arg(long)]
    check: bool,
    /// The checkout.
    #[arg(long, default_value = ".", value_name = "DIR")]
    root: PathBuf,
}

/// A generated part of a page: file, name of its markers, content.
type Part = (&'static str, &'static str, fn(&Path) -> Result<String, Failure>);

const PARTS: [Part; 4] = [
    ("README.md", "ops", |_| Ok(matrix())),
    ("README.md", "figures", |root| Ok(headline(&results(root)?))),
    ("docs/performance.md", "results", |root| Ok(tables(&results(root)?))),
    ("docs/testing.md", "inventory", |_| Ok(inventory())),
];

/// Runs of `bench --json`, in the order of their names.
const RESULTS: &str = "docs/results/h200";

/// Writes or checks.
pub fn docs(args: DocsArgs) -> Outcome {
    let mut stale = Vec::new();
    for (file, name, make) in PARTS {
        let path = args.root.join(file);
        let text =
            std::fs::read_to_string(&path).map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))?;
        let new = replace(&text, name, &make(&args.root)?)
            .ok_or_else(|| Failure::Failed(format!("{}: no markers of {name}", path.display())))?;
        if new != text {
            if args.write {
                report::write(&path, new)?;
                say!("{file}: {name} rewritten");
            } else {
                stale.push(format!("{file} ({name})"));
            }
        }
    }
    if args.write {
        pictures(&args.root)?;
    }
    if stale.is_empty() {
        Ok(())
    } else {
        let list = stale.join(", ");
        Err(Failure::Failed(format!(
            "not as generated: {list}; `ferroflash docs --write` rewrites them"
        )))
    }
}

/// Draws the committed runs: one picture a suite and the roofline.
fn pictures(root: &Path) -> Outcome {
    let reports = results(root)?;
    let folder = root.join(RESULTS);
    // Of a suite in several runs the first counts, so it is drawn last.
    for report in reports.iter().rev() {
        bench::plot(&folder, report)?;
    }
    match reports.first() {
        Some(report) => roofline::draw(report, &folder.join("roofline.svg")),
        None => Ok(()),
    }
}

/// The committed runs.
fn results(root: &Path) -> Result<Vec<Report>, Failure> {
    let Ok(folder) = std::fs::read_dir(root.join(RESULTS)) else {
        return Ok(Vec::new());
    };
    let name = |path: &PathBuf| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let mut files: Vec<PathBuf> = folder
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| name(path).starts_with("bench") && name(path).ends_with(".json"))
        .collect();
    files.sort();
    files.iter().map(|path| roofline::read(path)).collect()
}

/// `text` with this content between the markers of `name`.
fn replace(text: &str, name: &str, content: &str) -> Option<String> {
    let (start, end) = (format!("<!-- generated: {name} -->\n"), format!("<!-- end: {name} -->"));
    let from = text.find(&start)? + start.len();
    let to = from + text[from..].find(&end)?;
    Some(format!("{}{}\n{}", &text[..from], content.trim_end(), &text[to..]))
}

/// The feature matrix.
fn matrix() -> String {
    let mut table = report::markdown(&["op", "what", "dtypes (tiers, where not all)"]);
    for op in OPS {
        table.add_row(vec![format!("`{}`", op.name), op.what.into(), op.support()]);
    }
    lines(&table)
}

/// Where each op is tested and measured.
fn inventory() -> String {
    let mut table = report::markdown(&["op", "kernels", "tests", "bench suites", "figures"]);
    let code = |names: &[&str]| {
        names
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    for op in OPS {
        let Op {
            name,
            kernels,
            tests,
            bench,
            page,
            ..
        } = op;
        let prefixes: Vec<String> = kernels.iter().map(|kernel| format!("`{kernel}*`")).collect();
        table.add_row(vec![
            format!("`{name}`"),
            prefixes.join(", "),
            code(tests),
            code(bench),
            format!("`{page}`"),
        ]);
    }
    lines(&table)
}

/// comfy-table pads its lines; Markdown does not need it.
fn lines(table: &comfy_table::Table) -> String {
    table
        .to_string()
        .lines()
        .map(|line| format!("{}\n", squeeze(line)))
        .collect()
}

/// Runs of spaces and dashes cut, so that a longer cell changes one line and not the whole table.
fn squeeze(line: &str) -> String {
    if line.trim_start().starts_with("|--") {
        let columns = line.matches('|').count().saturating_sub(1);
        return format!("|{}", "---|".repeat(columns));
    }
    let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
    format!("| {} |", cells.join(" | "))
}

fn fastest(row: &Row) -> Option<&PeerTime> {
    row.peers
        .iter()
        .min_by(|a, b| a.microseconds.total_cmp(&b.microseconds))
}

const NO_RUN: &str = "No run is committed yet.";

/// One line a suite: how its cases stand beside the fastest peer.
fn headline(reports: &[Report]) -> String {
    if reports.is_empty() {
        return NO_RUN.into();
    }
    let head = [
        "suite",
        "cases",
        "best",
        "fastest peer ÷ ours: median",
        "least",
        "most",
        "faster than every peer",
    ];
    let mut table = report::markdown(&head);
    for suite in SUITES {
        // Of a suite in several runs the first counts.
        let of_suite = |report: &&Report| report.rows.iter().any(|row| row.suite == suite.name);
        let Some(report) = reports.iter().find(of_suite) else {
            continue;
        };
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.suite == suite.name).collect();
        let compute = rows.iter().any(|row| row.flops / row.bytes.max(1) > 50);
        let most = |rate: fn(&Row) -> f64| rows.iter().map(|row| rate(row)).fold(0.0, f64::max);
        let best = if compute {
            format!("{:.0} TFLOP/s", most(|row| row.teraflops_per_second))
        } else {
            format!("{:.2} TB/s", most(|row| row.terabytes_per_second))
        };
        // The least favourable ratio that any run has of a case.
        let least = |row: &&Row| {
            let same = |other: &&Row| other.suite == row.suite && other.case == row.case;
            let all = reports.iter().flat_map(|report| report.rows.iter().filter(same));
            all.filter_map(fastest).map(|peer| peer.ratio).min_by(f64::total_cmp)
        };
        let mut ratios: Vec<f64> = rows.iter().filter_map(least).collect();
        ratios.sort_by(f64::total_cmp);
        let mut cells = vec![suite.name.to_owned(), rows.len().to_string(), best];
        match (ratios.first(), ratios.last()) {
            (Some(least), Some(most)) => {
                cells.extend([ratios[ratios.len() / 2], *least, *most].map(|ratio| format!("{ratio:.2}")));
                let won = ratios.iter().filter(|ratio| **ratio > 1.0).count();
                cells.push(format!("{won} of {}", ratios.len()));
            }
            _ => cells.extend(["–"; 4].map(str::to_owned)),
        }
        table.add_row(cells);
    }
    let runs: String = reports.iter().map(|report| format!("- {}\n", run(report))).collect();
    let picture = "![Every kernel under the ceilings of an H200](docs/results/h200/roofline.svg)";
    format!("{}\n{runs}\n{picture}\n", lines(&table))
}

/// A run in words: where, when, ceilings, peers.
fn run(report: &Report) -> String {
    let peers = if report.peers.is_empty() {
        "none".into()
    } else {
        report.peers.join(", ")
    };
    let missing = if report.peers_missing.is_empty() {
        String::new()
    } else {
        format!(" Missing: {}.", report.peers_missing.join("; "))
    };
    format!(
        "{}. Ceilings: copy {:.2} TB/s (read and written bytes), matrix product {:.0} TFLOP/s ({}). Peers in turns: {peers}.{missing}",
        report.environment.words(),
        report.ceilings.copy,
        report.ceilings.matrix,
        if report.ceilings.matrix_by_us {
            "ours"
        } else {
            "cuBLASLt"
        },
    )
}

/// Every case of the committed runs.
fn tables(reports: &[Report]) -> String {
    if reports.is_empty() {
        return NO_RUN.into();
    }
    let mut text = String::new();
    for report in reports {
        let _ = writeln!(text, "{}", run(report));
        if let (Some(before), Some(after)) = (&report.environment.gpu, &report.gpu_after) {
            let _ = writeln!(
                text,
                "Clocks at the start and the end: {} and {} of {} MHz; {} and {} °C.",
                before.sm_mhz, after.sm_mhz, before.max_sm_mhz, before.celsius, after.celsius
            );
        }
        for failure in &report.failures {
            let _ = writeln!(text, "Not measured: {failure}.");
        }
        for suite in SUITES {
            let rows: Vec<&Row> = report.rows.iter().filter(|row| row.suite == suite.name).collect();
            if !rows.is_empty() {
                let _ = write!(text, "\n### {}\n{}.\n\n{}", suite.name, suite.what, of_suite(&rows));
            }
        }
        text += "\n";
    }
    text
}

fn of_suite(rows: &[&Row]) -> String {
    let head = [
        "case",
        "µs (p50)",
        "p95",
        "TB/s",
        "TFLOP/s",
        "of copy",
        "of product",
        "peers: µs, ÷ ours",
    ];
    let mut table = report::markdown(&head);
    for row in rows {
        let peers: Vec<String> = row
            .peers
            .iter()
            .map(|peer| format!("{} {:.1}, {:.2}", peer.name, peer.microseconds, peer.ratio))
            .collect();
        table.add_row(vec![
            row.case.clone(),
            format!("{:.1}", row.timing.p50),
            format!("{:.1}", row.timing.p95),
            format!("{:.2}", row.terabytes_per_second),
            if row.flops > 0 {
                format!("{:.0}", row.teraflops_per_second)
            } else {
                "–".into()
            },
            format!("{:.0} %", 100.0 * row.share_of_copy),
            row.share_of_matrix
                .map_or("–".into(), |share| format!("{:.0} %", 100.0 * share)),
            peers.join("; "),
        ]);
    }
    lines(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let page = "before\n<!-- generated: a -->\nold\n<!-- end: a -->\nafter\n";
        let new = replace(page, "a", "new\n").unwrap();
        assert_eq!(new, "before\n<!-- generated: a -->\nnew\n<!-- end: a -->\nafter\n");
        assert_eq!(replace(&new, "a", "new").unwrap(), new);
        assert!(replace(page, "b", "new").is_none());
    }

    #[test]
    fn tables_are_narrow() {
        assert_eq!(squeeze("| a    | b |"), "| a | b |");
        assert_eq!(squeeze("|------|---|"), "|---|---|");
        assert!(matrix().contains("| `vector-add` |"));
    }
}
