//! A GPU that is lost between two cases, played by the emulator.

use std::process::ExitCode;

use host::{AnyTensor, DType, Error, Result, launch::Contract, ops};
use kernels_gpu::params::VectorAddParams;
use serde_json::Value;

use super::{measure::cases, turns::Rivals, *};
use crate::cli::finish;

const LENGTH: u64 = 1 << 10;

/// A case of one small sum, or of one that reads where nothing is.
fn sum(device: &Device, good: bool) -> Result<Case> {
    let x = AnyTensor::zeros(device, DType::F32, &[LENGTH])?;
    let device = device.clone();
    let run = move |_| {
        if good {
            return ops::vector_add(&x, &x).map(drop);
        }
        let params = VectorAddParams {
            a: 0x10,
            b: x.address(),
            out: x.address(),
            len: LENGTH,
        };
        let launch = Contract::new(&device, "vector_add").writes("out", &x).prepare()?;
        // SAFETY: unsound on a GPU; the emulator finds it, which is the point.
        unsafe { launch.launch(&params) }
    };
    Ok(Case {
        op: "vector-add",
        dtype: DType::F32,
        bytes: 12 * LENGTH,
        flops: LENGTH,
        peer: Value::Null,
        copies: 1,
        run: Box::new(run),
        check: Box::new(|| Ok(None)),
        product: None,
        beside: None,
    })
}

fn spec(name: &str, good: bool) -> Spec {
    Spec::new(name, move |device| sum(device, good))
}

/// What cases leave behind: the report, the file of `--json`, and the program's end.
fn measured(chosen: impl FnOnce() -> Chosen) -> (Report, Report, ExitCode) {
    let device = Device::emulator().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bench.json");
    let mut report = Report {
        environment: Environment::of(&device),
        gpu_after: None,
        ceilings: Ceilings {
            copy: 1.0,
            matrix: 1.0,
            matrix_by_us: true,
        },
        peers: Vec::new(),
        peers_missing: Vec::new(),
        rows: Vec::new(),
        failures: Vec::new(),
    };
    let mut rivals = Rivals::none();
    let harness = Harness::new(&device, true);
    let outcome = cases(
        &device,
        &harness,
        chosen(),
        (&mut rivals, None),
        &mut report,
        Some(&path),
    );
    let end = finish(outcome.and_then(|()| verdict(&report)));
    let file = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    (report, file, end)
}

fn names(report: &Report) -> Vec<(&str, &str)> {
    let rows = report.rows.iter();
    rows.map(|row| (row.suite.as_str(), row.case.as_str())).collect()
}

#[test]
fn what_was_measured_before_the_gpu_was_lost_is_kept_and_the_rest_is_named() {
    let [first, second] = [&SUITES[0], &SUITES[1]];
    let (report, file, end) = measured(|| {
        vec![
            (
                first,
                vec![spec("one", true), spec("loses it", false), spec("three", true)],
            ),
            (second, vec![spec("four", true)]),
        ]
    });
    assert_eq!(names(&report), [(first.name, "one")]);
    assert!(report.rows[0].timing.p50 > 0.0);
    let [lost, third, fourth] = &report.failures[..] else {
        panic!("{:?}", report.failures)
    };
    assert!(
        lost.starts_with(&format!("{} loses it: ", first.name)) && lost.contains("vector_add"),
        "{lost}"
    );
    assert_eq!(*third, format!("{} three: the GPU was lost before", first.name));
    assert_eq!(*fourth, format!("{} four: the GPU was lost before", second.name));
    assert_eq!(end, ExitCode::from(1));
    // The file has the same.
    assert_eq!((names(&file), &file.failures), (names(&report), &report.failures));
}

#[test]
fn a_case_that_fails_by_itself_stops_no_other() {
    let suite = &SUITES[0];
    let refused = Spec::new("refused", |_| Err(Error::range("length", 0, "at least 1")));
    let (report, _, end) = measured(|| vec![(suite, vec![refused, spec("two", true)])]);
    assert_eq!(names(&report), [(suite.name, "two")]);
    assert_eq!(report.failures.len(), 1);
    assert!(report.failures[0].contains("length"), "{}", report.failures[0]);
    assert_eq!(end, ExitCode::from(1));
    let (report, _, end) = measured(|| vec![(suite, vec![spec("one", true)])]);
    assert_eq!((names(&report).len(), end), (1, ExitCode::SUCCESS));
}
