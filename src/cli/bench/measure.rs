//! Measures cases, beside the ceilings of the same GPU and peers.

use std::path::Path;

use host::Device;

use super::{
    BenchArgs, Ceilings, Chosen, Environment, GpuState, Harness, Report, Row, Spec, Suite, case,
    cublaslt::CublasLt,
    harness,
    peers::Rival,
    table,
    turns::{Rivals, in_turns},
};
use crate::cli::{Failure, Outcome, report};

/// Measures what was chosen, beside ceilings and peers.
pub fn measure(device: &Device, chosen: Chosen, args: &BenchArgs) -> Result<Report, Failure> {
    let environment = Environment::of(device);
    let harness = Harness::new(device, args.quick);
    let (copy, ours) = (harness.copy_bandwidth()?, harness.matrix_rate()?);
    let mut rivals = Rivals::start(args);
    let mut cublas = None;
    if !args.no_peers {
        match CublasLt::open(device) {
            Ok(library) => cublas = Some(library),
            Err(why) => rivals.missing.push(format!("cuBLASLt: {why}")),
        }
    }
    let best = cublas
        .as_ref()
        .and_then(|library| square(device, library).ok())
        .unwrap_or(0.0);
    let ceilings = Ceilings {
        copy,
        matrix: ours.max(best),
        matrix_by_us: ours >= best,
    };
    say!(
        "{device}: copy {copy:.3} TB/s (read and written), product {:.0} TFLOP/s",
        ceilings.matrix
    );
    rivals
        .missing
        .iter()
        .for_each(|missing| say!("missing peer: {missing}"));
    let mut peers: Vec<String> = rivals.version().into_iter().collect();
    peers.extend(cublas.as_ref().map(|_| "cuBLASLt, best of its heuristics".to_owned()));
    let mut report = Report {
        environment,
        gpu_after: None,
        ceilings,
        peers,
        peers_missing: Vec::new(),
        rows: Vec::new(),
        failures: Vec::new(),
    };
    cases(
        device,
        &harness,
        chosen,
        (&mut rivals, cublas.as_ref()),
        &mut report,
        args.json.as_deref(),
    )?;
    Ok(report)
}

/// Measures each case into the report, which is written to `json` after each suite. A case that fails does not stop
/// the others; after one that loses the GPU, the others are named as not measured.
pub fn cases(
    device: &Device,
    harness: &Harness<'_>,
    chosen: Chosen,
    (rivals, cublas): (&mut Rivals, Option<&CublasLt>),
    report: &mut Report,
    json: Option<&Path>,
) -> Outcome {
    for (suite, specs) in chosen {
        say!("\n{}: {}", suite.name, suite.what);
        table::head();
        for spec in specs {
            let name = format!("{} {}", suite.name, spec.name);
            if device.check_health().is_err() {
                report.failures.push(format!("{name}: the GPU was lost before"));
                continue;
            }
            match one(device, harness, suite, spec, report.ceilings, rivals, cublas) {
                Ok(row) => {
                    table::print(&row);
                    report.rows.push(row);
                }
                Err(why) => {
                    say!("{name}: {why}");
                    report.failures.push(format!("{name}: {why}"));
                }
            }
            // The next case may need all of the memory.
            let _ = device.trim();
        }
        report.peers_missing = rivals.missing.clone();
        if let host::DeviceKind::Cuda(ordinal) = device.kind() {
            report.gpu_after = GpuState::now(ordinal);
        }
        // What is measured is kept, whatever happens to the next suite.
        if let Some(path) = json {
            report::write_json(path, report)?;
        }
    }
    Ok(())
}

/// TFLOP/s of cuBLASLt on the products of the ceiling.
fn square(device: &Device, library: &CublasLt) -> Result<f64, String> {
    let said = |error: host::Error| error.to_string();
    let mut best = 0.0;
    for extent in harness::SQUARES {
        let tensor = |seed| case::normal(device, host::DType::BF16, &[extent, extent], seed).map_err(said);
        let product = case::Product {
            extents: [extent; 3],
            x: tensor(1)?,
            w: vec![tensor(2)?],
            bias: None,
        };
        let rate = 2.0 * (extent as f64).powi(3) / library.prepare(&product, 10)?.turn()? / 1e6;
        best = f64::max(best, rate);
    }
    Ok(best)
}

/// One case: checked, timed, then in turns with its peers.
fn one(
    device: &Device,
    harness: &Harness<'_>,
    suite: &Suite,
    spec: Spec,
    ceilings: Ceilings,
    rivals: &mut Rivals,
    cublas: Option<&CublasLt>,
) -> Result<Row, String> {
    let said = |error: host::Error| error.to_string();
    let name = spec.name.clone();
    let mut case = (spec.make)(device).map_err(said)?;
    if let Some(problem) = (case.check)().map_err(said)? {
        return Err(format!("the result is wrong: {problem}"));
    }
    let timing = harness.time(&mut case.run).map_err(said)?;
    let peers = in_turns(harness, &mut case, timing.p50, rivals, cublas)?;
    let seconds = timing.p50 * 1e-6;
    let terabytes_per_second = case.bytes as f64 / seconds / 1e12;
    let teraflops_per_second = case.flops as f64 / seconds / 1e12;
    Ok(Row {
        suite: suite.name.into(),
        op: case.op.into(),
        case: name,
        dtype: case.dtype.name().into(),
        timing,
        bytes: case.bytes,
        flops: case.flops,
        terabytes_per_second,
        teraflops_per_second,
        share_of_copy: terabytes_per_second / ceilings.copy,
        share_of_matrix: (case.flops > 0 && case.dtype.size() == 2).then_some(teraflops_per_second / ceilings.matrix),
        buffers: case.copies,
        peak_bytes: device.allocated().1,
        peers,
    })
}
