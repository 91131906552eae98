//! What is wrong with a folder of weights.

use std::path::PathBuf;

use super::WeightDtype;

/// What is wrong with the weights. Paths are those that were opened; tensors go by the names in the files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The folder has no weights in a form that can be loaded.
    #[error("{}: no model.safetensors and no model.safetensors.index.json{hint}", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What is there instead, if it is known.
        hint: &'static str,
    },
    /// A file is not in the safetensors format, or not all of it is there.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The index is malformed.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The index names a file outside the folder.
    #[error("{}: the file of `{tensor}` is {file:?}: a plain file name beside the index is allowed", path.display())]
    PathEscape {
        /// The index file.
        path: PathBuf,
        /// The tensor said to be there.
        tensor: String,
        /// The file name in the index.
        file: String,
    },
    /// The index says that a file has a tensor, and it has not; or a file has a tensor that the index does not say it has.
    #[error("the index puts `{tensor}` into {stated}, and {found} has it")]
    IndexMismatch {
        /// The tensor.
        tensor: String,
        /// Where the index says it is.
        stated: String,
        /// Where it is.
        found: String,
    },
    /// Two files, or one file twice, have a tensor of the same name.
    #[error("`{tensor}` is there twice: in {first} and in {second}")]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// One place.
        first: String,
        /// The other.
        second: String,
    },
    /// Tensors that the configuration demands are not there.
    #[error("{count} of the tensors that config.json demands are missing: {}", list(names, *count))]
    Missing {
        /// How many.
        count: usize,
        /// The first few.
        names: Vec<String>,
    },
    /// Tensors are there for which the configuration has no place: most often it describes another model.
    #[error("{count} tensors have no place in the model that config.json describes: {}", list(names, *count))]
    Unexpected {
        /// How many.
        count: usize,
        /// The first few.
        names: Vec<String>,
    },
    /// A tensor has another shape than the configuration demands.
    #[error("`{tensor}` has shape {found:?}: config.json demands {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape it must have.
        expected: Vec<usize>,
    },
    /// A tensor has a dtype that cannot be loaded.
    #[error("`{tensor}` has dtype {found}: F32, F16 and BF16 are allowed")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its dtype in the file.
        found: String,
    },
}

/// Names as a list that says how many more there are.
fn list(names: &[String], count: usize) -> String {
    let mut text = names.join(", ");
    if count > names.len() {
        text.push_str(&format!(" and {} more", count - names.len()));
    }
    text
}

/// The dtype of a tensor in a file, if weights can be in it.
pub(super) fn dtype(tensor: &str, found: safetensors::Dtype) -> Result<WeightDtype, CheckpointError> {
    match found {
        safetensors::Dtype::F32 => Ok(WeightDtype::F32),
        safetensors::Dtype::F16 => Ok(WeightDtype::F16),
        safetensors::Dtype::BF16 => Ok(WeightDtype::Bf16),
        other => Err(CheckpointError::Dtype {
            tensor: tensor.to_owned(),
            found: format!("{other:?}"),
        }),
    }
}
