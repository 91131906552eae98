//! What several test files need: the fixtures that transformers made.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use models::Checkpoint;
use models::checkpoint::tensor_table;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

/// A path below `models/`.
pub fn path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

/// The configurations under `tests/fixtures/variants`, by name.
pub fn variants() -> Vec<String> {
    let entries = fs::read_dir(path("tests/fixtures/variants")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A model folder of the variant `name` with its made-up weights. It lives as long as the first value.
pub fn variant(name: &str) -> (TempDir, Checkpoint) {
    let from = path("tests/fixtures/variants").join(name);
    let dir = tempfile::tempdir().unwrap();
    let config = fs::read(from.join("config.json")).unwrap();
    fs::write(dir.path().join("config.json"), &config).unwrap();
    let table = tensor_table(&models::ModelConfig::from_json(&config).unwrap());
    let data: Vec<Vec<u8>> = table
        .iter()
        .map(|spec| {
            made_up(&spec.name, spec.elements() as usize)
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect()
        })
        .collect();
    let views = table.iter().zip(&data).map(|(spec, bytes)| {
        (
            spec.name.clone(),
            TensorView::new(Dtype::F32, spec.shape.clone(), bytes).unwrap(),
        )
    });
    fs::write(
        dir.path().join("model.safetensors"),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

/// The weights of the variants: `made_up` of `tools/train_small.py`.
pub fn made_up(name: &str, elements: usize) -> Vec<f32> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3)
    });
    let norm = name.split('.').any(|p| p.contains("norm") || p.starts_with("ln_"));
    let embedding = name.split('.').any(|p| ["embed_tokens", "wte", "wpe"].contains(&p));
    (1..=elements as u64)
        .map(|i| {
            let mut z = i.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let v = i32::from(((z ^ (z >> 31)) >> 56) as u8 as i8);
            match () {
                () if name.ends_with(".bias") => v as f32 / 1024.0,
                () if norm => 1.0 + v.div_euclid(16) as f32 / 32.0,
                () if embedding => v as f32 / 128.0,
                () => v as f32 / 512.0,
            }
        })
        .collect()
}

/// The tensors of a reference file: f32 as they are, i64 as token ids in f32's place.
pub struct Reference {
    pub floats: HashMap<String, Vec<f32>>,
    pub ids: HashMap<String, Vec<u32>>,
}

pub fn reference(file: &Path) -> Reference {
    let bytes = fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut r = Reference {
        floats: HashMap::new(),
        ids: HashMap::new(),
    };
    for (name, view) in tensors.tensors() {
        match view.dtype() {
            Dtype::F32 => {
                let values = view
                    .data()
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|b| f32::from_le_bytes(*b))
                    .collect();
                r.floats.insert(name, values);
            }
            Dtype::I64 => {
                let id = |b: &[u8; 8]| u32::try_from(i64::from_le_bytes(*b)).unwrap();
                r.ids
                    .insert(name, view.data().as_chunks::<8>().0.iter().map(id).collect());
            }
            other => panic!("{name} has dtype {other:?}"),
        }
    }
    r
}
