//! The `ferroflash` command: exit codes, one-line errors, files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

fn ferroflash(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferroflash"))
        .args(arguments)
        .output()
        .unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = ferroflash(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail with this code and one line on standard error; gives the line.
fn fails(code: i32, arguments: &[&str]) -> String {
    let output = ferroflash(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert!(
        errors.starts_with("ferroflash: ") && errors.ends_with('\n'),
        "{errors:?}"
    );
    assert_eq!(errors.lines().count(), 1, "{errors}");
    errors.trim_end().to_owned()
}

/// Input and output files in a folder of their own.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Files {
        let files = Files {
            folder: tempfile::tempdir().unwrap(),
        };
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &files.input()).unwrap();
        files
    }

    fn input(&self) -> PathBuf {
        self.folder.path().join("x.safetensors")
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("y.safetensors")
    }

    /// The arguments of `run OP` on the emulator with these files.
    fn arguments<'a>(&self, op: &[&'a str], paths: &'a mut Vec<String>) -> Vec<&'a str> {
        *paths = vec![path(&self.input()), path(&self.output())];
        let mut all = vec!["run"];
        all.extend(op);
        all.extend(["--device", "emulator", "--in", &paths[0], "--out", &paths[1]]);
        all
    }

    fn run(&self, op: &[&str]) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
        let mut paths = Vec::new();
        let said = succeeds(&self.arguments(op, &mut paths));
        assert!(said.contains("y.safetensors") && said.contains("emulator"), "{said}");
        let bytes = std::fs::read(self.output()).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        file.tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
            .collect()
    }

    fn fails(&self, code: i32, op: &[&str]) -> String {
        let mut paths = Vec::new();
        let line = fails(code, &self.arguments(op, &mut paths));
        assert!(!self.output().exists(), "{op:?} failed and wrote a file");
        line
    }
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn halves(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()
}

#[test]
fn vector_add_of_a_file() {
    let (a, b) = (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![0.5; 6]);
    let files = Files::new(&[
        ("a", Dtype::F32, &[2, 3], bytes(&a)),
        ("b", Dtype::F32, &[2, 3], bytes(&b)),
    ]);
    for tier in ["sm_75", "sm_80", "sm_90a"] {
        let out = files.run(&["vector-add", "--tier", tier]);
        let wanted = (Dtype::F32, vec![2, 3], bytes(&[1.5, 2.5, 3.5, 4.5, 5.5, 6.5]));
        assert_eq!(out, BTreeMap::from([("c".to_owned(), wanted)]), "{tier}");
    }
    let checked = files.run(&["vector-add", "--checks"]);
    assert_eq!(checked["c"].1, [2, 3]);
}

#[test]
fn every_reduction_of_a_file() {
    let x = [1.0, 5.0, -2.0, 4.0, -3.0, 5.0];
    let files = Files::new(&[
        ("x", Dtype::F16, &[2, 3], halves(&x)),
        ("unused", Dtype::U8, &[1], vec![7]),
    ]);
    for (kind, all, rows) in [
        ("sum", 10.0, [4.0, 6.0]),
        ("max", 5.0, [5.0, 5.0]),
        ("min", -3.0, [-2.0, -3.0]),
        ("sumsq", 80.0, [30.0, 50.0]),
        (
            "mean",
            10.0 * (1.0f32 / 6.0),
            [4.0 * (1.0f32 / 3.0), 6.0 * (1.0f32 / 3.0)],
        ),
    ] {
        let out = files.run(&["reduce", "--kind", kind, "--axis", "all"]);
        assert_eq!(out["y"], (Dtype::F32, vec![], bytes(&[all])), "{kind}");
        let out = files.run(&["reduce", "--kind", kind, "--axis", "last"]);
        assert_eq!(out["y"], (Dtype::F32, vec![2], bytes(&rows)), "{kind}");
    }
    let out = files.run(&["reduce", "--kind", "argmax", "--axis", "last"]);
    let wanted: Vec<u8> = [1i64, 2].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(out["y"], (Dtype::I64, vec![2], wanted));
}

/// Two keys that are the same share the gradient of the output, and scores have none.
#[test]
fn gradients_of_attention_of_a_file() {
    let row = [1.0, 2.0, 3.0, 4.0, -1.0, -2.0, 0.0, 5.0];
    let (q, twice, half) = (bytes(&row), bytes(&[row, row].concat()), row.map(|x| 0.5 * x));
    let mut tensors = vec![
        ("q", Dtype::F32, &[1, 1, 1, 8][..], q.clone()),
        ("k", Dtype::F32, &[1, 2, 1, 8], twice.clone()),
        ("v", Dtype::F32, &[1, 2, 1, 8], twice),
        ("dout", Dtype::F32, &[1, 1, 1, 8], q.clone()),
    ];
    let files = Files::new(&tensors);
    let out = files.run(&["attention-backward", "--causal"]);
    let near = |name: &str, shape: &[usize], wanted: &[f32]| {
        let (dtype, found, data) = &out[name];
        assert_eq!((*dtype, &found[..]), (Dtype::F32, shape), "{name}");
        for (x, y) in data.chunks_exact(4).zip(wanted) {
            let x = f32::from_le_bytes(x.try_into().unwrap());
            assert!((x - y).abs() < 1e-4, "{name}: {x} instead of {y}");
        }
    };
    near("dv", &[1, 2, 1, 8], &[half, half].concat());
    near("dq", &[1, 1, 1, 8], &[0.0; 8]);
    near("dk", &[1, 2, 1, 8], &[0.0; 16]);
    let forward = files.run(&["attention", "--causal"]);

    tensors.push(("lse", Dtype::F32, &[1, 1, 1], forward["lse"].2.clone()));
    let line = Files::new(&tensors).fails(1, &["attention-backward", "--causal"]);
    assert_eq!(line, "ferroflash: lse is there without out: give both or none");
    tensors.push(("out", Dtype::F32, &[1, 1, 1, 8], forward["out"].2.clone()));
    assert_eq!(Files::new(&tensors).run(&["attention-backward", "--causal"]), out);
}

/// Of two keys that are the same one is dropped; the other counts twice, forward and backward.
#[test]
fn dropout_of_attention_of_a_file() {
    use host::reference::philox::{dropout_keeps, dropout_threshold};
    let row = [1.0, 2.0, 3.0, 4.0, -1.0, -2.0, 0.0, 5.0];
    let (q, twice) = (bytes(&row), bytes(&[row, row].concat()));
    let tensors = [
        ("q", Dtype::F32, &[1, 1, 1, 8][..], q.clone()),
        ("k", Dtype::F32, &[1, 2, 1, 8], twice.clone()),
        ("v", Dtype::F32, &[1, 2, 1, 8], twice),
        ("dout", Dtype::F32, &[1, 1, 1, 8], q.clone()),
    ];
    let files = Files::new(&tensors);
    let kept = |seed, key| dropout_keeps(seed, 9, dropout_threshold(0.5), 0, 0, key);
    let seed = (0..).find(|&seed| kept(seed, 0) && !kept(seed, 1)).unwrap().to_string();
    let options = ["--dropout", "0.5", "--seed", &seed, "--offset", "9"];
    let out = files.run(&[&["attention"], &options[..]].concat());
    let near = |(_, _, data): &(Dtype, Vec<usize>, Vec<u8>), wanted: &[f32]| {
        assert_eq!(data.len(), 4 * wanted.len());
        for (x, y) in data.chunks_exact(4).zip(wanted) {
            let x = f32::from_le_bytes(x.try_into().unwrap());
            assert!((x - y).abs() < 1e-5, "{x} instead of {y}");
        }
    };
    near(&out["out"], &row);
    let gradients = files.run(&[&["attention-backward"], &options[..]].concat());
    near(&gradients["dv"], &[row, [0.0; 8]].concat());
    let line = Files::new(&tensors).fails(1, &["attention", "--dropout", "1"]);
    assert!(line.contains("dropout") && line.contains("less than 1"), "{line}");
}

#[test]
fn failures_are_one_line_and_code_1() {
    let files = Files::new(&[
        ("a", Dtype::F32, &[2], bytes(&[1.0, 2.0])),
        ("z", Dtype::I32, &[1], vec![0; 4]),
    ]);
    let input = path(&files.input());
    assert_eq!(
        files.fails(1, &["vector-add"]),
        format!("ferroflash: {input}: no tensor named b; the file has a, z")
    );
    let line = files.fails(1, &["reduce", "--kind", "sum", "--axis", "all"]);
    assert_eq!(
        line,
        format!("ferroflash: {input}: no tensor named x; the file has a, z")
    );

    let wrong = Files::new(&[
        ("a", Dtype::F32, &[2], bytes(&[1.0, 2.0])),
        ("b", Dtype::F16, &[2], halves(&[1.0, 2.0])),
    ]);
    assert_eq!(wrong.fails(1, &["vector-add"]), "ferroflash: b is f16; f32");
    let unknown = Files::new(&[("x", Dtype::F64, &[1], vec![0; 8])]);
    let line = unknown.fails(1, &["reduce", "--kind", "sum", "--axis", "all"]);
    assert!(
        line.ends_with("tensor x is F64; known: F32, F16, BF16, F8_E4M3, I32, I64, U8"),
        "{line}"
    );
    let empty = Files::new(&[("x", Dtype::F32, &[2, 0], vec![])]);
    let line = empty.fails(1, &["reduce", "--kind", "max", "--axis", "last"]);
    assert_eq!(line, "ferroflash: x has shape [2, 0]; Max of nothing is not defined");
    let sums = empty.run(&["reduce", "--kind", "sum", "--axis", "last"]);
    assert_eq!(sums["y"], (Dtype::F32, vec![2], bytes(&[0.0, 0.0])));
}

#[test]
fn files_that_cannot_be_read_or_written() {
    let files = Files::new(&[("x", Dtype::F32, &[1], bytes(&[1.0]))]);
    let folder = path(files.folder.path());
    let (input, missing) = (path(&files.input()), format!("{folder}/none.safetensors"));
    let run = |input: &str, output: &str| {
        let reduce = [
            "run", "reduce", "--kind", "sum", "--axis", "all", "--device", "emulator",
        ];
        let arguments: Vec<&str> = reduce.into_iter().chain(["--in", input, "--out", output]).collect();
        fails(1, &arguments)
    };
    let output = path(&files.output());
    assert!(run(&missing, &output).contains("none.safetensors: "));
    assert!(run(&folder, &output).starts_with(&format!("ferroflash: {folder}: ")));
    assert!(run(&input, &format!("{folder}/no/such/folder/y")).contains("no/such/folder/y: "));
    // Damaged: cut short, a header that claims 2^60 bytes, text.
    let whole = std::fs::read(files.input()).unwrap();
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    for damaged in [
        whole[..whole.len() - 1].to_vec(),
        whole[..5].to_vec(),
        huge,
        b"hello".to_vec(),
        Vec::new(),
    ] {
        std::fs::write(files.input(), &damaged).unwrap();
        let line = run(&input, &output);
        assert!(line.starts_with(&format!("ferroflash: {input}: ")), "{line}");
    }
    assert!(!files.output().exists());
}

#[test]
fn bad_usage_is_one_line_and_code_2() {
    for (arguments, said) in [
        (&["fly"][..], "unrecognized subcommand 'fly'"),
        (&["run", "vector-sub"], "unrecognized subcommand 'vector-sub'"),
        (&["info", "--colour"], "unexpected argument '--colour'"),
        (&["run", "vector-add", "--in", "x"], "--out <Y.safetensors>"),
        (
            &["run", "vector-add", "--in", "x", "--out", "y", "--tier", "sm_70"],
            "allowed: sm_75, sm_80 or sm_90a",
        ),
        (
            &["run", "vector-add", "--in", "x", "--out", "y", "--device", "tpu"],
            "expected auto, cuda, cuda:N or emulator",
        ),
        (
            &["run", "vector-add", "--in", "x", "--out", "y", "--device", "cuda:-1"],
            "expected auto, cuda",
        ),
        (
            &[
                "run", "reduce", "--in", "x", "--out", "y", "--kind", "median", "--axis", "all",
            ],
            "median",
        ),
    ] {
        let line = fails(2, arguments);
        assert!(line.contains(said), "{arguments:?}: {line}");
        assert!(!line.contains("error:") && !line.contains("Usage"), "{line}");
    }
}

#[test]
fn help_teaches() {
    let help = succeeds(&["--help"]);
    for command in ["info", "run", "bench"] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
    }
    let ops = succeeds(&["run", "--help"]);
    assert!(
        ops.contains("Tensors: a, b → c") && ops.contains("Tensors: x → y"),
        "{ops}"
    );
    let reduce = succeeds(&["run", "reduce", "--help"]);
    for word in [
        "--in <X.safetensors>",
        "--out <Y.safetensors>",
        "--kind",
        "--axis",
        "--device",
        "--tier",
        "argmax",
        "sumsq",
    ] {
        assert!(reduce.contains(word), "{word} in {reduce}");
    }
    assert!(succeeds(&["--version"]).starts_with(concat!("ferroflash ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn info_as_text_and_as_json() {
    let text = succeeds(&["info"]);
    assert!(
        text.contains("emulator") && text.contains("vector_add") && text.contains("sm_90a"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&succeeds(&["info", "--json"])).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    let devices = json["devices"].as_array().unwrap();
    assert_eq!(devices.last().unwrap()["device"], "emulator");
    // Either a GPU is listed or the reason why none is.
    assert_eq!(devices.len() == 1, json["no_gpu_because"].is_string(), "{json}");
    let kernels = json["kernels"].as_array().unwrap();
    for tier in ["sm_75", "sm_80", "sm_90a"] {
        let kernel = kernels
            .iter()
            .find(|kernel| kernel["entry"] == "vector_add" && kernel["tier"] == tier)
            .unwrap_or_else(|| panic!("vector_add of {tier}"));
        assert_eq!(kernel["param_bytes"], 32);
        assert!(kernel["threads"].as_u64().unwrap() >= 32);
        assert!(
            kernel["registers"].is_null(),
            "registers are asked of a device only with --kernels"
        );
    }
}

#[test]
fn a_gpu_that_is_not_there() {
    let files = Files::new(&[
        ("a", Dtype::F32, &[1], bytes(&[1.0])),
        ("b", Dtype::F32, &[1], bytes(&[2.0])),
    ]);
    let (input, output) = (path(&files.input()), path(&files.output()));
    let line = fails(
        1,
        &[
            "run",
            "vector-add",
            "--in",
            &input,
            "--out",
            &output,
            "--device",
            "cuda:4000",
        ],
    );
    assert!(
        line.starts_with("ferroflash: no usable device: ")
            || line.starts_with("ferroflash: CUDA device = 4000; allowed: 0"),
        "{line}"
    );
}
