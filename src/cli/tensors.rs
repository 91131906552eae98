//! Named tensors from and to safetensors files.

use std::{collections::BTreeMap, path::Path};

use host::{AnyTensor, DType, Device};
use safetensors::{Dtype as FileDType, SafeTensors, tensor::TensorView};

use super::Failure;

/// The tensors of an input file, by name.
pub struct Inputs {
    path: String,
    tensors: BTreeMap<String, AnyTensor>,
}

/// Everything that an op wrote, by name.
pub type Outputs = BTreeMap<&'static str, AnyTensor>;

fn dtype_of(dtype: FileDType) -> Option<DType> {
    Some(match dtype {
        FileDType::F32 => DType::F32,
        FileDType::F16 => DType::F16,
        FileDType::BF16 => DType::BF16,
        FileDType::F8_E4M3 => DType::E4M3,
        FileDType::I32 => DType::I32,
        FileDType::I64 => DType::I64,
        FileDType::U8 => DType::U8,
        _ => return None,
    })
}

fn file_dtype(dtype: DType) -> Option<FileDType> {
    Some(match dtype {
        DType::F32 => FileDType::F32,
        DType::F16 => FileDType::F16,
        DType::BF16 => FileDType::BF16,
        DType::E4M3 => FileDType::F8_E4M3,
        DType::I32 => FileDType::I32,
        DType::I64 => FileDType::I64,
        DType::U8 => FileDType::U8,
        _ => return None,
    })
}

impl Inputs {
    /// Reads a file and puts all its tensors on the device.
    pub fn load(path: &Path, device: &Device) -> Result<Inputs, Failure> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
        let mut tensors = BTreeMap::new();
        for (tensor, view) in file.tensors() {
            let dtype = dtype_of(view.dtype()).ok_or_else(|| {
                Failure::Failed(format!(
                    "{name}: tensor {tensor} is {:?}; known: F32, F16, BF16, F8_E4M3, I32, I64, U8",
                    view.dtype()
                ))
            })?;
            let shape: Vec<u64> = view.shape().iter().map(|&extent| extent as u64).collect();
            tensors.insert(tensor, AnyTensor::from_bytes(device, dtype, &shape, view.data())?);
        }
        Ok(Inputs { path: name, tensors })
    }

    /// A tensor that must be there.
    pub fn get(&self, name: &str) -> Result<&AnyTensor, Failure> {
        self.tensors.get(name).ok_or_else(|| {
            let there: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
            Failure::Failed(format!(
                "{}: no tensor named {name}; the file has {}",
                self.path,
                there.join(", ")
            ))
        })
    }

    /// A tensor that may be there.
    pub fn optional(&self, name: &str) -> Option<&AnyTensor> {
        self.tensors.get(name)
    }
}

/// Writes an op's outputs.
pub fn save(path: &Path, outputs: &Outputs) -> Result<(), Failure> {
    let name = path.display().to_string();
    let mut dense = Vec::new();
    for (&tensor, value) in outputs {
        let dtype = file_dtype(value.dtype()).ok_or_else(|| {
            Failure::Failed(format!(
                "{name}: {tensor} is {}, which a file cannot hold",
                value.dtype()
            ))
        })?;
        let shape: Vec<usize> = value.shape().iter().map(|&extent| extent as usize).collect();
        dense.push((tensor, dtype, shape, value.to_bytes()?));
    }
    let views: Result<Vec<_>, _> = dense
        .iter()
        .map(|(tensor, dtype, shape, bytes)| TensorView::new(*dtype, shape.clone(), bytes).map(|view| (*tensor, view)))
        .collect();
    let views = views.map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
    safetensors::serialize_to_file(views, None, path).map_err(|error| Failure::Failed(format!("{name}: {error}")))
}
