//! Figures as lines of a terminal, and as CSV.

use std::path::Path;

use super::Row;
use crate::cli::{Failure, Outcome};

/// The heading of a suite's table.
pub fn head() {
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

/// A line of it.
pub fn print(row: &Row) {
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

/// Writes one line a case.
pub fn write_csv(path: &Path, rows: &[Row]) -> Outcome {
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
