//! One error type for the whole library.

use crate::{element::DType, images::Tier};

/// Result of every fallible call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, naming the argument, its value and what is allowed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A shape does not fit.
    #[error("{argument} has shape {shape:?}; {allowed}")]
    Shape {
        /// Name of the argument.
        argument: &'static str,
        /// Its shape.
        shape: Vec<u64>,
        /// What would be accepted.
        allowed: String,
    },
    /// A dtype does not fit.
    #[error("{argument} is {dtype}; {allowed}")]
    Dtype {
        /// Name of the argument.
        argument: &'static str,
        /// Its dtype.
        dtype: DType,
        /// What would be accepted.
        allowed: String,
    },
    /// Strides, alignment or overlap do not fit.
    #[error("{argument}: {problem}")]
    Layout {
        /// Name of the argument.
        argument: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// A number is out of range.
    #[error("{argument} = {value}; allowed: {allowed}")]
    Range {
        /// Name of the argument.
        argument: &'static str,
        /// Its value.
        value: String,
        /// Allowed values.
        allowed: String,
    },
    /// Two arguments live on different devices.
    #[error("{argument} is on {device}, the other arguments are on {expected}")]
    WrongDevice {
        /// Name of the argument.
        argument: &'static str,
        /// Where it is.
        device: String,
        /// Where it should be.
        expected: String,
    },
    /// The combination exists, but not in this library or on this GPU tier.
    #[error("{what} is not supported{}", on_tier(.tier))]
    Unsupported {
        /// What was asked for, and what exists instead.
        what: String,
        /// The tier it was asked of, if that matters.
        tier: Option<Tier>,
    },
    /// No memory; nothing changed and the device stays usable.
    #[error("out of device memory: {requested} bytes asked for, {free} bytes free")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes free at the time.
        free: u64,
    },
    /// A kernel faulted; this device handle refuses all further work.
    #[error("the device is poisoned since kernel {kernel} faulted: {cause}")]
    Poisoned {
        /// The kernel, or the last ones launched where the driver cannot tell.
        kernel: String,
        /// What the machine reported.
        cause: String,
    },
    /// No device of the wanted kind.
    #[error("no usable device: {reason}")]
    NoDevice {
        /// Why.
        reason: String,
    },
    /// The CUDA driver refused a call.
    #[error("CUDA driver: {call} returned {code} ({name})")]
    Driver {
        /// The driver function.
        call: &'static str,
        /// CUresult.
        code: u32,
        /// Its name.
        name: String,
    },
    /// The PTX of a kernel could not be loaded.
    #[error("kernel {kernel} could not be loaded: {log}")]
    Load {
        /// Entry name.
        kernel: String,
        /// What the compiler said.
        log: String,
    },
    /// A page pool, block table or slot mapping refused; nothing changed.
    #[error(transparent)]
    Cache(#[from] crate::kv::PoolError),
    /// A sequence of a contiguous cache would be longer than its capacity; nothing changed.
    #[error("cache full: sequence {sequence} would have {requested} tokens, the capacity is {capacity}")]
    CacheFull {
        /// Sequence of the batch.
        sequence: usize,
        /// Tokens it would have.
        requested: u64,
        /// Tokens it can have.
        capacity: u64,
    },
    /// Reading or writing a file failed.
    #[error("{path}: {problem}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        problem: String,
    },
    /// A file's content is wrong.
    #[error("{what}: {problem}")]
    Format {
        /// The file or part.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn on_tier(tier: &Option<Tier>) -> String {
    tier.map(|tier| format!(" on tier {tier}")).unwrap_or_default()
}

impl Error {
    /// Whether the device can still be used after this error.
    pub fn is_recoverable(&self) -> bool {
        !matches!(self, Error::Poisoned { .. })
    }

    /// A [`Error::Range`] from any displayable value.
    pub fn range(argument: &'static str, value: impl std::fmt::Display, allowed: impl Into<String>) -> Error {
        Error::Range {
            argument,
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }

    /// A [`Error::Shape`].
    pub fn shape(argument: &'static str, shape: &[u64], allowed: impl Into<String>) -> Error {
        Error::Shape {
            argument,
            shape: shape.to_vec(),
            allowed: allowed.into(),
        }
    }

    /// A [`Error::Layout`].
    pub fn layout(argument: &'static str, problem: impl Into<String>) -> Error {
        Error::Layout {
            argument,
            problem: problem.into(),
        }
    }

    /// A [`Error::Unsupported`] that no tier has.
    pub fn unsupported(what: impl Into<String>) -> Error {
        Error::Unsupported {
            what: what.into(),
            tier: None,
        }
    }
}
