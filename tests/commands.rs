//! `ferroflash emulate` and `ferroflash sanitize` as a user starts them.

use std::{
    path::Path,
    process::{Command, Output},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// `y[i] = a · x[i] + y[i]` for `i < n`, one thread an element.
const SAXPY: &str = ".version 8.0
.target sm_80
.address_size 64
.visible .entry saxpy(.param .u64 x, .param .u64 y, .param .f32 a, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<6>;
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %ctaid.x;
    mad.lo.u32 %r5, %r3, %r4, %r2;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 ret;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    ld.param.f32 %f1, [a];
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    ld.global.f32 %f3, [%rd5];
    fma.rn.f32 %f3, %f1, %f2, %f3;
    st.global.f32 [%rd5], %f3;
    ret;
}
";

fn ferroflash(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferroflash"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// A folder with the kernel, `x` = 0, 1, … and `y` = 100 of 40 elements.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("saxpy.ptx"), SAXPY).unwrap();
    let x: Vec<u8> = (0..40).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let y = 100f32.to_le_bytes().repeat(40);
    let view = |bytes| TensorView::new(Dtype::F32, vec![40], bytes).unwrap();
    safetensors::serialize_to_file(
        [("x", view(&x[..])), ("y", view(&y[..]))],
        None,
        &folder.path().join("in.safetensors"),
    )
    .unwrap();
    folder
}

const ARGUMENTS: [&str; 14] = [
    "emulate",
    "saxpy.ptx",
    "--in",
    "in.safetensors",
    "--out",
    "out.safetensors",
    "--block",
    "32",
    "--arg",
    "x",
    "--arg",
    "y",
    "--arg",
    "f32:0.5",
];

fn emulate(folder: &Path, rest: &[&str]) -> Output {
    let mut arguments = ARGUMENTS.to_vec();
    arguments.extend(rest);
    ferroflash(folder, &arguments)
}

/// With the new tensor `z` in the place of `y`.
fn emulate_into_z(folder: &Path, new: &str, rest: &[&str]) -> Output {
    let mut arguments = ARGUMENTS.to_vec();
    arguments[11] = "z";
    arguments.extend(["--arg", "u32:32", "--new", new]);
    arguments.extend(rest);
    ferroflash(folder, &arguments)
}

#[test]
fn a_stranger_runs_a_kernel_on_named_tensors() {
    let folder = folder();
    let output = emulate(folder.path(), &["--arg", "u32:40", "--grid", "2", "--statistics"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bytes = std::fs::read(folder.path().join("out.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let expected: Vec<f32> = (0..40).map(|i| 100.0 + 0.5 * i as f32).collect();
    assert_eq!(floats(file.tensor("y").unwrap().data()), expected);
    assert_eq!(
        floats(file.tensor("x").unwrap().data())[39],
        39.0,
        "inputs are written back as well"
    );
    let told = text(&output.stdout);
    let fma = told
        .lines()
        .find(|line| line.contains("fma.rn.f32"))
        .expect("counts by instruction");
    assert!(fma.trim().ends_with("40"), "{fma}");
}

#[test]
fn a_fault_is_printed_whole_and_nothing_is_written() {
    let folder = folder();
    let output = emulate(folder.path(), &["--arg", "u32:41", "--grid", "2", "--seed", "7"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    for part in [
        "out_of_bounds",
        "kernel saxpy",
        "CTA (1,0,0)",
        "warp 0",
        "lane 8",
        "seed 7",
        "ld.global.f32 %f2, [%rd4];",
    ] {
        assert!(told.contains(part), "{part:?} is missing in:\n{told}");
    }
    assert!(!folder.path().join("out.safetensors").exists());
}

#[test]
fn a_new_tensor_takes_results_and_its_description_is_checked() {
    let folder = folder();
    let arguments = |new| emulate_into_z(folder.path(), new, &[]);
    let output = arguments("z=f32:4,8");
    assert!(
        text(&output.stderr).contains("uninitialised"),
        "{}",
        text(&output.stderr)
    );
    let output = emulate_into_z(folder.path(), "z=f32:4,8", &["--no-checks"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bytes = std::fs::read(folder.path().join("out.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let z = file.tensor("z").unwrap();
    assert_eq!((z.shape(), floats(z.data())[31]), (&[4, 8][..], 15.5));
    for bad in ["z=f33:4", "z=f32", "z=f32:4,x", "z=f32:99999999999,99999999999"] {
        assert_eq!(arguments(bad).status.code(), Some(2), "{bad}");
    }
    let output = arguments("z=f32:9999999999999");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("out of memory"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn bad_arguments_are_named() {
    let folder = folder();
    let output = emulate(folder.path(), &["--arg", "u64:40"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("8 bytes for parameter n"),
        "{}",
        text(&output.stderr)
    );
    let output = emulate(folder.path(), &["--arg", "n"]);
    assert!(
        text(&output.stderr).contains("the name of a tensor (x, y)"),
        "{}",
        text(&output.stderr)
    );
    let output = emulate(folder.path(), &["--entry", "saxpi", "--arg", "u32:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("saxpy"), "{}", text(&output.stderr));
    std::fs::write(
        folder.path().join("saxpy.ptx"),
        SAXPY.replace("fma.rn.f32", "fma.rn..f32"),
    )
    .unwrap();
    let output = emulate(folder.path(), &["--arg", "u32:40"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("saxpy.ptx:25:"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn sanitize_finds_simple_ops_clean_on_every_tier() {
    let folder = tempfile::tempdir().unwrap();
    let output = ferroflash(folder.path(), &["sanitize", "vector-add", "cast", "--seeds", "3"]);
    let told = text(&output.stdout);
    assert!(output.status.success(), "{told}{}", text(&output.stderr));
    for tier in ["sm_75", "sm_80", "sm_90a"] {
        let line = told
            .lines()
            .find(|line| line.starts_with("vector-add") && line.contains(tier))
            .expect(tier);
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells, ["vector-add", tier, "2", "3", "0"]);
    }
    assert!(told.contains("0 faults"));
}

/// A kernel of the archive that no case launches is one that nobody sanitizes: add a case to `src/cli/sanitize/cases`.
#[test]
fn sanitize_launches_every_kernel_of_the_archive() {
    let folder = tempfile::tempdir().unwrap();
    let output = ferroflash(folder.path(), &["sanitize", "--seeds", "1"]);
    let told = text(&output.stdout);
    assert!(output.status.success(), "{told}{}", text(&output.stderr));
    assert!(!told.contains("never launched"), "{told}");
    let kernels = host::images::Images::embedded().iter();
    let kernels = kernels.filter(|info| info.unit != "device_tests").count();
    assert!(
        told.contains(&format!("\n{kernels} of {kernels} kernels launched")),
        "{told}"
    );
}

#[test]
fn sanitize_proves_that_a_sum_is_constant_time_in_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let output = ferroflash(
        folder.path(),
        &["sanitize", "vector-add", "--taint", "--tier", "sm_80", "--seeds", "1"],
    );
    assert!(output.status.success(), "{}", text(&output.stdout));
    // The choice of a token depends on the logits by its nature and is left out.
    let output = ferroflash(
        folder.path(),
        &["sanitize", "sample", "--taint", "--tier", "sm_80", "--seeds", "1"],
    );
    assert!(text(&output.stdout).contains("–"), "{}", text(&output.stdout));
}

#[test]
fn sanitize_names_the_ops_that_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let output = ferroflash(folder.path(), &["sanitize", "vector-sub"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("vector-add"));
    let output = ferroflash(folder.path(), &["sanitize", "vector-add", "--seeds", "0"]);
    assert_eq!(output.status.code(), Some(2));
}
