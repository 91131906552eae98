//! What the driver's refusals become.

use cust::error::CudaError;
use driver::{DriverError, code, code_meaning, code_name};

use super::{CudaBackend, stream::StreamState};
use crate::{Error, Result, images::ImageInfo};

/// Whether a code reports that a kernel or the GPU failed: the context is lost and every later call says so again.
pub(super) fn is_fault(value: u32) -> bool {
    matches!(
        value,
        code::ECC_UNCORRECTABLE
            | code::NVLINK_UNCORRECTABLE
            | code::CONTAINED
            | code::ILLEGAL_ADDRESS
            | code::LAUNCH_TIMEOUT
            | code::CONTEXT_IS_DESTROYED
            | code::ASSERT
            | code::HARDWARE_STACK_ERROR
            | code::ILLEGAL_INSTRUCTION
            | code::MISALIGNED_ADDRESS
            | code::INVALID_ADDRESS_SPACE
            | code::INVALID_PC
            | code::LAUNCH_FAILED
            | code::TENSOR_MEMORY_LEAK
    )
}

/// Name and meaning of a code.
pub(super) fn describe_code(value: u32) -> String {
    format!("{}: {}", code_name(value), code_meaning(value))
}

pub(super) fn no_device(reason: impl Into<String>) -> Error {
    Error::NoDevice { reason: reason.into() }
}

/// A refusal while a device is looked for or opened.
pub(super) fn opening_error(error: &DriverError) -> Error {
    let (function, value) = match error {
        DriverError::Missing { reason } => {
            return no_device(format!("{reason}; install the NVIDIA driver to use a GPU"));
        }
        DriverError::TooOld { .. } => return no_device(error.to_string()),
        &DriverError::Failed { function, code } => (function, code),
        other => return no_device(other.to_string()),
    };
    match value {
        code::OUT_OF_MEMORY => no_device(format!(
            "{function} returned {value} ({}): another process may have filled the GPU",
            describe_code(value)
        )),
        code::NO_DEVICE => no_device(match std::env::var("CUDA_VISIBLE_DEVICES") {
            Ok(visible) => format!("the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES={visible:?})"),
            Err(_) => "the NVIDIA driver is installed but sees no GPU".to_owned(),
        }),
        _ => no_device(format!("{function} returned {value} ({})", describe_code(value))),
    }
}

/// A refusal of a call that `cust` made while a device was opened.
pub(super) fn cust_error(function: &'static str, error: CudaError) -> Error {
    opening_error(&DriverError::Failed {
        function,
        code: error as u32,
    })
}

/// A driver error that is no fault of a kernel.
fn plain_error(error: DriverError) -> Error {
    match error {
        DriverError::Missing { reason } => no_device(reason),
        DriverError::TooOld {
            function,
            needs: (major, minor),
            has,
        } => Error::unsupported(match has {
            Some((own_major, own_minor)) => format!(
                "{function} (it needs an NVIDIA driver for CUDA {major}.{minor}; this one is for {own_major}.{own_minor})"
            ),
            None => format!("{function} (it needs an NVIDIA driver for CUDA {major}.{minor})"),
        }),
        DriverError::Failed { function, code } => Error::Driver {
            call: function,
            code,
            name: describe_code(code),
        },
        other => Error::Driver {
            call: "the driver",
            code: other.code(),
            name: other.to_string(),
        },
    }
}

impl CudaBackend {
    /// Passes a result on; a fault names the kernels last started on any stream.
    #[inline]
    pub(super) fn check(&self, result: driver::Result<()>) -> Result<()> {
        result.map_err(|error| self.error(error, None))
    }

    /// Passes a result on; a fault names the kernels last started on this stream.
    #[inline]
    pub(super) fn check_on(&self, stream: &StreamState, result: driver::Result<()>) -> Result<()> {
        result.map_err(|error| self.error(error, Some(stream)))
    }

    /// As [`CudaBackend::check`], for calls that take memory.
    pub(super) fn check_memory(&self, requested: u64, result: driver::Result<()>) -> Result<()> {
        match result {
            Err(DriverError::Failed {
                code: code::OUT_OF_MEMORY,
                ..
            }) => Err(Error::OutOfMemory {
                requested,
                free: self.memory_info().map_or(0, |info| info.free),
            }),
            other => self.check(other),
        }
    }

    #[cold]
    pub(super) fn error(&self, error: DriverError, stream: Option<&StreamState>) -> Error {
        match error {
            DriverError::Failed { function, code } if is_fault(code) => Error::Poisoned {
                kernel: self.suspects(stream),
                cause: format!("{} (reported by {function})", describe_code(code)),
            },
            other => plain_error(other),
        }
    }

    /// The kernels that may have faulted: those last started.
    fn suspects(&self, stream: Option<&StreamState>) -> String {
        let mut names: Vec<String> = match stream {
            Some(stream) => self.recent_on(stream),
            None => self
                .streams
                .all()
                .iter()
                .flat_map(|stream| self.recent_on(stream))
                .collect(),
        };
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        match names.len() {
            0 => "unknown (none was started here)".to_owned(),
            1 => names.remove(0),
            _ => format!("{} (the last started; one of them)", names.join(", ")),
        }
    }
}

/// Why a kernel's image was refused, in words. `log` is what the driver's PTX compiler said.
pub(super) fn load_problem(value: u32, info: &ImageInfo, device: &str, log: &str) -> String {
    let said = if log.is_empty() {
        String::new()
    } else {
        format!("; the driver's compiler says: {log}")
    };
    match value {
        code::NO_BINARY_FOR_GPU => {
            format!("its image is for {}, which {device} does not run{said}", info.tier)
        }
        code::UNSUPPORTED_PTX_VERSION => {
            let has = driver::driver_version().map(|(major, minor)| format!(" (CUDA {major}.{minor})"));
            format!(
                "its image is PTX ISA {}, newer than the installed NVIDIA driver{} knows: update the driver{said}",
                info.ptx_version,
                has.unwrap_or_default()
            )
        }
        code::INVALID_PTX | code::INVALID_IMAGE | code::INVALID_SOURCE => {
            format!("{}{said}", describe_code(value))
        }
        code::JIT_COMPILER_NOT_FOUND => {
            "the driver's PTX compiler (libnvidia-ptxjitcompiler) is missing: install the complete driver".to_owned()
        }
        code::JIT_COMPILATION_DISABLED => {
            "compiling PTX is disabled (CUDA_DISABLE_PTX_JIT or CUDA_FORCE_PTX_JIT in the environment)".to_owned()
        }
        code::NOT_FOUND => "its image has no entry of this name".to_owned(),
        _ => format!("{}{said}", describe_code(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Tier;

    fn info() -> ImageInfo {
        ImageInfo {
            entry: "gemm_bf16".into(),
            unit: "linear".into(),
            tier: Tier::Sm90a,
            threads: [384, 1, 1],
            cluster: [1; 3],
            param_bytes: 64,
            ptx_version: "8.3".into(),
            file: "sm_90a/gemm_bf16.ptx".into(),
        }
    }

    #[test]
    fn faults_are_the_sticky_codes() {
        for value in [700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 214, 220, 226] {
            assert!(is_fault(value), "{value}");
        }
        // These leave the context usable.
        for value in [0, 1, 2, 100, 209, 218, 222, 400, 500, 600, 701, 720, 801, 900, 901] {
            assert!(!is_fault(value), "{value}");
        }
    }

    #[test]
    fn load_problems_say_what_to_do() {
        let problem = |value, log| load_problem(value, &info(), "NVIDIA L4 (compute capability 8.9)", log);
        assert_eq!(
            problem(209, ""),
            "its image is for sm_90a, which NVIDIA L4 (compute capability 8.9) does not run"
        );
        assert!(problem(222, "").contains("PTX ISA 8.3, newer than the installed NVIDIA driver"));
        let invalid = problem(218, "ptxas fatal: line 3");
        assert!(
            invalid.starts_with("CUDA_ERROR_INVALID_PTX") && invalid.ends_with("ptxas fatal: line 3"),
            "{invalid}"
        );
    }

    #[test]
    fn opening_errors_say_why_there_is_no_device() {
        let failed = |code| {
            opening_error(&DriverError::Failed {
                function: "cuInit",
                code,
            })
            .to_string()
        };
        assert_eq!(
            failed(803),
            "no usable device: cuInit returned 803 (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: the driver library and the \
             kernel module have different versions)"
        );
        let old = DriverError::TooOld {
            function: "cuX",
            needs: (12, 0),
            has: Some((10, 2)),
        };
        assert!(
            opening_error(&old)
                .to_string()
                .ends_with("cuX needs CUDA 12.0, this one supports CUDA 10.2")
        );
        assert!(matches!(plain_error(old), Error::Unsupported { what, .. } if what.contains("for CUDA 12.0")));
    }
}
