//! `verify`, `bench`, `roofline` and `profile` as a user starts them, and a damaged kernel that verification must find.

use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use ferroflash::{
    Device, DeviceOptions, Tier,
    images::Images,
    verify::{Size, check, strategy},
};
use host::{DType, backend::emulated::EmulatedBackend};
use serde_json::Value;

fn ferroflash(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferroflash"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_damaged_kernel_is_found_and_shrunk() {
    let options = DeviceOptions {
        tier: Some(Tier::Sm80),
        ..DeviceOptions::default()
    };
    let backend = Arc::new(EmulatedBackend::new(&options).unwrap());
    let ptx = Images::embedded().load(Tier::Sm80, "vector_add").unwrap().ptx;
    // The tail alone is wrong: elements that no vector of four holds.
    let damaged = ptx.replacen("add.rn.f32", "sub.rn.f32", 1);
    assert_ne!(ptx, damaged);
    backend.replace("vector_add", damaged);
    let device = Device::from_backend(backend, Images::embedded(), options, "test".into()).unwrap();
    let draw = strategy("vector-add").unwrap();
    let verdicts: Vec<_> = (0..3)
        .map(|seed| check(draw, Size::Small, &device, DType::F32, seed))
        .collect();
    let failed = verdicts
        .iter()
        .find(|verdict| verdict.failure.is_some())
        .expect("a failure");
    assert!(failed.failure.as_ref().unwrap().contains("sum"), "{failed:?}");
    assert!(failed.problem.contains("shrunk from"), "{failed:?}");
    assert!(failed.worst.as_ref().unwrap().severity > 1.0);
}

#[test]
fn verify_prints_a_table_and_writes_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("verify.json");
    let file = path.to_str().unwrap();
    let output = ferroflash(&[
        "verify",
        "vector-add",
        "cast",
        "--device",
        "emulator",
        "--tier",
        "sm_80",
        "--cases",
        "2",
        "--seed",
        "5",
        "--json",
        file,
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("on the emulator"));
    let report = json(&path);
    let rows = report["rows"].as_array().unwrap();
    // vector-add in f32, cast in three dtypes.
    assert_eq!(rows.len(), 4);
    assert!(
        rows.iter()
            .all(|row| row["cases"] == 2 && row["failures"] == 0 && row["tier"] == "sm_80")
    );
    assert!(
        rows[0]["repeat"]
            .as_str()
            .unwrap()
            .starts_with("ferroflash verify cast --device emulator")
    );
    assert_eq!(report["failures"].as_array().unwrap().len(), 0);
}

#[test]
fn unknown_names_come_with_suggestions() {
    for (arguments, hint) in [
        (&["verify", "atention"][..], "did you mean attention"),
        (&["bench", "nrom"], "did you mean norm"),
        (&["bench", "linear", "--config", "no such case"], "no case contains"),
        (&["profile", "redcue"], "did you mean reduce"),
        (&["sanitize", "--gpu", "ropee"], "did you mean rope"),
    ] {
        let output = ferroflash(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            text(&output.stderr).contains(hint),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn files_that_cannot_be_written_are_named_before_any_work() {
    let output = ferroflash(&[
        "verify",
        "vector-add",
        "--device",
        "emulator",
        "--json",
        "/nowhere/verify.json",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nowhere/verify.json") && output.stdout.is_empty());
}

#[test]
fn bench_needs_a_gpu_and_says_so() {
    let output = ferroflash(&["bench", "vector-add", "--device", "emulator"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("bench measures GPUs"));
    let output = ferroflash(&["bench", "flashcore", "--list", "--cases"]);
    assert_eq!(text(&output.stdout).lines().count(), 1 + 9);
}

#[test]
fn the_roofline_of_the_committed_run_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/results/h200/bench_attention.json");
    let from = results.to_str().unwrap();
    let draw = |name: &str| {
        let path = folder.path().join(name);
        let output = ferroflash(&["roofline", "--from", from, "--out", path.to_str().unwrap()]);
        (output, std::fs::read(path).unwrap_or_default())
    };
    let (output, svg) = draw("a.svg");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&svg).starts_with("<svg") && text(&svg).contains("attention"));
    assert!(draw("a.png").1.starts_with(b"\x89PNG"));
    let (output, _) = draw("a.gif");
    assert!(!output.status.success() && text(&output.stderr).contains(".svg or .png"));
    let nonsense = folder.path().join("nonsense.json");
    std::fs::write(&nonsense, "{}").unwrap();
    let output = ferroflash(&["roofline", "--from", nonsense.to_str().unwrap(), "--out", "x.svg"]);
    assert!(text(&output.stderr).contains("not a file of `bench --json`"));
}

#[test]
fn the_emulator_counts_where_ncu_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profile.json");
    let output = ferroflash(&["profile", "vector-add", "--emulated", "--json", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let kernel = &json(&path)["kernels"][0];
    assert_eq!(kernel["op"], "vector-add");
    assert!(kernel["metrics"]["warp_instructions"].as_f64().unwrap() > 0.0);
    // Two operands are read and one result is written.
    let bytes = |name: &str| kernel["metrics"][name].as_f64().unwrap();
    assert_eq!(bytes("global_read_bytes"), 2.0 * bytes("global_written_bytes"));
}
