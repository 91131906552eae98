//! Opening folders: whole ones, and every way in which one can be broken.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use models::checkpoint::{CheckpointError, LayerWeight, Layout, Weight, check_index, check_safetensors, tensor_table};
use models::{Checkpoint, Error, ModelConfig, WeightDtype};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView as View};
use serde_json::{Value, json};
use tempfile::TempDir;

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 10, "max_position_embeddings": 32, "tie_word_embeddings": false
    })
}

fn gpt2() -> Value {
    json!({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 10, "n_positions": 16, "n_inner": 12})
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Tensors of every name and shape that `config` demands, filled with its place in the table.
fn tensors(config: &Value) -> Tensors {
    let config = ModelConfig::from_json(config.to_string().as_bytes()).unwrap();
    let fill = |(i, spec): (usize, models::checkpoint::TensorSpec)| {
        let data = vec![half::bf16::from_f32(i as f32); spec.elements() as usize];
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        (spec.name, (Dtype::BF16, spec.shape, bytes))
    };
    tensor_table(&config).into_iter().enumerate().map(fill).collect()
}

fn serialize(tensors: &Tensors) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(n, (d, s, b))| (n.clone(), View::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn folder(config: &Value, weights: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    dir
}

fn shards(dir: &Path, config: &Value, weight_map: &Value, files: &[(&str, Tensors)]) {
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    for (name, tensors) in files {
        fs::write(dir.join(name), serialize(tensors)).unwrap();
    }
}

fn checkpoint_error(dir: &Path) -> CheckpointError {
    match Checkpoint::open(dir) {
        Err(Error::Checkpoint(e)) => e,
        other => panic!("expected an error about the weights, got {other:?}"),
    }
}

#[test]
fn a_whole_folder_opens_and_every_weight_is_the_one_of_its_name() {
    for config in [llama(), gpt2()] {
        let dir = folder(&config, &serialize(&tensors(&config)));
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let table = tensor_table(checkpoint.config());
        assert_eq!(checkpoint.weights().len(), table.len());
        for (i, spec) in table.iter().enumerate() {
            let view = checkpoint.weight(spec.weight).unwrap();
            assert_eq!(
                (view.name, view.shape, view.dtype),
                (spec.name.as_str(), spec.shape.as_slice(), WeightDtype::Bf16)
            );
            assert!(view.to_f32().iter().all(|x| *x == i as f32), "{}", spec.name);
        }
        assert_eq!(checkpoint.bytes(), 2 * checkpoint.config().parameters());
    }
}

#[test]
fn gpt2_matrices_are_input_by_output_and_prefixes_and_buffers_may_be_as_openai_left_them() {
    let config = gpt2();
    let table = tensor_table(&ModelConfig::from_json(config.to_string().as_bytes()).unwrap());
    let up = table
        .iter()
        .find(|s| s.weight == Weight::Layer(0, LayerWeight::Up))
        .unwrap();
    assert_eq!((up.shape.as_slice(), up.layout), ([8, 12].as_slice(), Layout::InOut));
    let mut bare: Tensors = tensors(&config)
        .into_iter()
        .map(|(n, t)| (n.replace("transformer.", ""), t))
        .collect();
    bare.insert("h.0.attn.bias".into(), (Dtype::U8, vec![1, 1, 2, 2], vec![0; 4]));
    let dir = folder(&config, &serialize(&bare));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.weight(Weight::TokenEmbedding).unwrap().name, "wte.weight");
    assert!(checkpoint.weight(Weight::LmHead).is_none(), "tied");
}

#[test]
fn a_tied_head_may_be_there_and_an_untied_one_must() {
    let mut config = llama();
    let all = tensors(&config);
    config["tie_word_embeddings"] = true.into();
    assert!(Checkpoint::open(folder(&config, &serialize(&all)).path()).is_ok());
    config["tie_word_embeddings"] = false.into();
    let mut without = all;
    without.remove("lm_head.weight");
    let error = checkpoint_error(folder(&config, &serialize(&without)).path());
    assert!(
        matches!(&error, CheckpointError::Missing { count: 1, names } if names == &["lm_head.weight"]),
        "{error}"
    );
}

#[test]
fn shapes_dtypes_missing_and_unexpected_tensors_are_named() {
    let config = llama();
    let with = |change: &dyn Fn(&mut Tensors)| {
        let mut t = tensors(&config);
        change(&mut t);
        checkpoint_error(folder(&config, &serialize(&t)).path()).to_string()
    };
    let name = "model.layers.1.self_attn.k_proj.weight";
    // The same number of elements in another shape, as from a checkpoint with other heads.
    let error = with(&|t| t.get_mut(name).unwrap().1 = vec![8, 4]);
    assert_eq!(error, format!("`{name}` has shape [8, 4]: config.json demands [4, 8]"));
    let error = with(&|t| *t.get_mut(name).unwrap() = (Dtype::I8, vec![4, 8], vec![0; 32]));
    assert_eq!(error, format!("`{name}` has dtype I8: F32, F16 and BF16 are allowed"));
    let error = with(&|t| t.retain(|n, _| !n.contains("layers.1.")));
    assert!(
        error.starts_with(
            "9 of the tensors that config.json demands are missing: model.layers.1.input_layernorm.weight, "
        ),
        "{error}"
    );
    assert!(error.ends_with(" and 4 more"), "{error}");
    let bias = "model.layers.0.self_attn.q_proj.bias";
    let error = with(&|t| drop(t.insert(bias.into(), (Dtype::F32, vec![8], vec![0; 32]))));
    assert_eq!(
        error,
        format!("1 tensors have no place in the model that config.json describes: {bias}")
    );
    // Computed buffers of old checkpoints are nothing to speak of.
    let mut t = tensors(&config);
    t.insert(
        "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
        (Dtype::F32, vec![1], vec![0; 4]),
    );
    assert!(Checkpoint::open(folder(&config, &serialize(&t)).path()).is_ok());
}

#[test]
fn shards_open_by_their_index() {
    let (config, all) = (llama(), tensors(&llama()));
    let (first, second): (Tensors, Tensors) = all.clone().into_iter().partition(|(n, _)| n.contains("layers.0."));
    let place = |n: &String| {
        if first.contains_key(n) {
            "a.safetensors"
        } else {
            "b.safetensors"
        }
    };
    let map: BTreeMap<&String, &str> = all.keys().map(|n| (n, place(n))).collect();
    let dir = tempfile::tempdir().unwrap();
    let files = [("a.safetensors", first.clone()), ("b.safetensors", second.clone())];
    shards(dir.path(), &config, &json!(map), &files);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(
        checkpoint.weight(Weight::FinalNorm).unwrap().to_f32()[0],
        (all.len() - 2) as f32
    );

    // The index says b, and it is in a.
    let mut wrong = map.clone();
    let moved = first.keys().next().unwrap();
    wrong.insert(moved, "b.safetensors");
    shards(dir.path(), &config, &json!(wrong), &files);
    let error = checkpoint_error(dir.path()).to_string();
    assert_eq!(
        error,
        format!("the index puts `{moved}` into b.safetensors, and a.safetensors has it")
    );

    // A tensor that the index does not know.
    let mut fewer = map.clone();
    fewer.remove(moved);
    shards(dir.path(), &config, &json!(fewer), &files);
    assert!(matches!(
        checkpoint_error(dir.path()),
        CheckpointError::IndexMismatch { .. }
    ));

    // The same tensor in both files.
    let mut twice = second.clone();
    twice.insert(moved.clone(), first[moved].clone());
    shards(
        dir.path(),
        &config,
        &json!(map),
        &[("a.safetensors", first.clone()), ("b.safetensors", twice)],
    );
    let error = checkpoint_error(dir.path());
    assert!(
        matches!(&error, CheckpointError::Duplicate { tensor, .. } if tensor == moved),
        "{error}"
    );

    fs::remove_file(dir.path().join("b.safetensors")).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Io { path, .. } if path.ends_with("b.safetensors")),
        "{error}"
    );
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    for file in [
        "../b.safetensors",
        "/etc/passwd",
        "sub/b.safetensors",
        "..",
        ".",
        "",
        "a\\b",
        "C:x",
        "a\0b",
    ] {
        let error = check_index(json!({"weight_map": {"t": file}}).to_string().as_bytes()).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::PathEscape { file: f, .. } if f == file),
            "{file:?}: {error}"
        );
    }
    let twice = br#"{"weight_map": {"t": "a", "t": "b"}}"#;
    assert!(
        check_index(twice)
            .unwrap_err()
            .to_string()
            .contains("`t` is there twice")
    );
    for bad in [
        "{}",
        r#"{"weight_map": []}"#,
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": {"t": 1}}"#,
        "[",
        "",
    ] {
        assert!(
            matches!(check_index(bad.as_bytes()), Err(CheckpointError::Index { .. })),
            "{bad}"
        );
    }
    let many: BTreeMap<String, String> = (0..5000).map(|i| (format!("t{i}"), format!("f{i}"))).collect();
    assert!(
        check_index(json!({"weight_map": many}).to_string().as_bytes())
            .unwrap_err()
            .to_string()
            .contains("5000 files")
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = serialize(&tensors(&gpt2()));
    assert_eq!(check_safetensors(&whole), Ok(tensors(&gpt2()).len()));
    for cut in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        assert!(check_safetensors(&whole[..cut]).is_err(), "cut at {cut}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    assert!(check_safetensors(&longer).is_err(), "bytes after the end");
    let error = checkpoint_error(folder(&gpt2(), &whole[..whole.len() - 5]).path()).to_string();
    assert!(error.contains("model.safetensors: the file is truncated"), "{error}");
}

fn with_header(json: &str, data: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn headers_that_lie_are_refused_without_a_panic() {
    let huge = u64::MAX;
    let headers = [
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[2,2]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#.to_owned(),
        r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[1]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_owned(),
        format!(r#"{{"a":{{"dtype":"U8","shape":[{huge},{huge}],"data_offsets":[0,4]}}}}"#),
        format!(r#"{{"a":{{"dtype":"U8","shape":[{huge}],"data_offsets":[0,{huge}]}}}}"#),
        // Sizes whose sum is just below 2^64.
        (0..8u64).fold("{".to_owned(), |s, i| {
            let (n, comma) = ((1u64 << 61) - 1, if i == 0 { "" } else { "," });
            format!(r#"{s}{comma}"t{i}":{{"dtype":"U8","shape":[{n}],"data_offsets":[{},{}]}}"#, i * n, (i + 1) * n)
        }) + "}",
        "{".to_owned(),
        "[]".to_owned(),
        String::new(),
        "\u{FFFD}".to_owned(),
    ];
    for header in headers {
        assert!(check_safetensors(&with_header(&header, 4)).is_err(), "{header}");
    }
    let mut long = u64::MAX.to_le_bytes().to_vec();
    long.extend_from_slice(b"{}");
    assert!(check_safetensors(&long).is_err(), "a header longer than memory");
    assert_eq!(
        check_safetensors(&with_header(
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4
        )),
        Ok(1)
    );
}

#[test]
fn missing_files_are_named_and_other_formats_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    fs::write(dir.path().join("config.json"), llama().to_string()).unwrap();
    assert!(
        checkpoint_error(dir.path())
            .to_string()
            .ends_with("no model.safetensors and no model.safetensors.index.json")
    );
    fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    assert!(
        checkpoint_error(dir.path())
            .to_string()
            .contains("save it again with save_pretrained")
    );
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert!(
        Checkpoint::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("not a regular file")
    );
    assert!(Checkpoint::open("/nowhere/at/all").is_err());
    let empty = folder(&llama(), b"");
    assert!(Checkpoint::open(empty.path()).is_err(), "an empty file");
    fs::write(
        dir.path().join("config.json"),
        json!({"model_type": "llama", "hidden_size": 0, "vocab_size": 9}).to_string(),
    )
    .unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.json: `hidden_size` is 0"), "{error}");
}

#[test]
fn generation_settings_take_precedence_over_the_configuration() {
    let mut config = llama();
    config["eos_token_id"] = 2.into();
    let dir = folder(&config, &serialize(&tensors(&config)));
    assert_eq!(Checkpoint::open(dir.path()).unwrap().eos(), [2]);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [3, 4]}"#).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().eos(), [3, 4]);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": 10}"#).unwrap();
    assert!(
        Checkpoint::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("generation_config.json: `eos_token_id` is 10")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// One changed byte: refused, or still a file whose every tensor lies within it.
    #[test]
    fn a_changed_byte_never_panics(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut file = serialize(&tensors(&gpt2()));
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let at = at.index(header);
        file[at] = to;
        let _ = check_safetensors(&file);
        let _ = Checkpoint::open(folder(&gpt2(), &file).path());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = check_safetensors(&bytes);
        let _ = check_index(&bytes);
        let mut framed = (bytes.len() as u64).to_le_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        let _ = check_safetensors(&framed);
    }
}
