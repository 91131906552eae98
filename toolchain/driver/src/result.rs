//! Result codes of the driver and the error they become.

use std::ffi::{CStr, c_char};

use crate::calls;

/// Result of a typed driver call.
pub type Result<T, E = DriverError> = std::result::Result<T, E>;

/// Why a driver call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// There is no driver library.
    #[error("{reason}")]
    Missing {
        /// What was looked for and what the loader said.
        reason: &'static str,
    },
    /// The driver lacks the function.
    #[error("the NVIDIA driver is too old: {function} needs CUDA {}.{}{}", needs.0, needs.1, present(*has))]
    TooOld {
        /// The driver function.
        function: &'static str,
        /// First version of CUDA whose driver has it, (major, minor).
        needs: (u32, u32),
        /// Version that the installed driver supports, where it can be asked.
        has: Option<(u32, u32)>,
    },
    /// The driver refused.
    #[error("{function} returned {code} ({})", code_name(*code))]
    Failed {
        /// The driver function.
        function: &'static str,
        /// `CUresult`.
        code: u32,
    },
}

fn present(version: Option<(u32, u32)>) -> String {
    version
        .map(|(major, minor)| format!(", this one supports CUDA {major}.{minor}"))
        .unwrap_or_default()
}

impl DriverError {
    /// The `CUresult` that stands for this error: `NO_DEVICE` without a library, `NOT_FOUND` without the function.
    pub fn code(&self) -> u32 {
        match self {
            DriverError::Missing { .. } => code::NO_DEVICE,
            DriverError::TooOld { .. } => code::NOT_FOUND,
            DriverError::Failed { code, .. } => *code,
        }
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        /// `CUresult` values (CUDA Driver API, "Data types used by CUDA driver"), without the `CUDA_ERROR_` prefix.
        pub mod code {
            /// The call succeeded.
            pub const SUCCESS: u32 = 0;
            $(#[doc = $meaning] pub const $name: u32 = $code;)*
        }

        /// Name and meaning of a code, without asking the driver.
        pub(crate) fn known_code(value: u32) -> Option<(&'static CStr, &'static CStr)> {
            const fn c(text: &'static str) -> &'static CStr {
                match CStr::from_bytes_with_nul(text.as_bytes()) {
                    Ok(text) => text,
                    Err(_) => panic!("no NUL inside a text"),
                }
            }
            match value {
                0 => Some((c"CUDA_SUCCESS", c"no error")),
                $($code => Some((
                    const { c(concat!("CUDA_ERROR_", stringify!($name), "\0")) },
                    const { c(concat!($meaning, "\0")) },
                )),)*
                _ => None,
            }
        }
    };
}

codes! {
    INVALID_VALUE = 1, "an argument is out of range";
    OUT_OF_MEMORY = 2, "not enough memory";
    NOT_INITIALIZED = 3, "the driver is not initialised";
    DEINITIALIZED = 4, "the driver is shutting down";
    STUB_LIBRARY = 34, "the library loaded is a CUDA toolkit's stub, not the driver";
    DEVICE_UNAVAILABLE = 46, "the device is busy or forbidden";
    NO_DEVICE = 100, "no CUDA device";
    INVALID_DEVICE = 101, "no device with this ordinal";
    DEVICE_NOT_LICENSED = 102, "the device is not licensed";
    INVALID_IMAGE = 200, "the module image is invalid";
    INVALID_CONTEXT = 201, "no valid context is current";
    MAP_FAILED = 205, "mapping memory failed";
    NO_BINARY_FOR_GPU = 209, "the image holds no code for this GPU";
    ECC_UNCORRECTABLE = 214, "an uncorrectable memory error was found";
    UNSUPPORTED_LIMIT = 215, "the device lacks this limit";
    INVALID_PTX = 218, "the PTX does not compile";
    NVLINK_UNCORRECTABLE = 220, "an uncorrectable NVLink error was found";
    JIT_COMPILER_NOT_FOUND = 221, "the driver's PTX compiler library is missing";
    UNSUPPORTED_PTX_VERSION = 222, "the PTX version is newer than the driver knows";
    JIT_COMPILATION_DISABLED = 223, "compiling PTX is disabled";
    CONTAINED = 226, "a contained memory error ended the context";
    INVALID_SOURCE = 300, "the kernel source is invalid";
    FILE_NOT_FOUND = 301, "a file is missing";
    SHARED_OBJECT_SYMBOL_NOT_FOUND = 302, "a shared library lacks a symbol";
    SHARED_OBJECT_INIT_FAILED = 303, "a shared library did not initialise";
    OPERATING_SYSTEM = 304, "a call of the operating system failed";
    INVALID_HANDLE = 400, "a handle is not valid";
    ILLEGAL_STATE = 401, "an object is in the wrong state for this";
    NOT_FOUND = 500, "the name does not exist";
    NOT_READY = 600, "work is still pending";
    ILLEGAL_ADDRESS = 700, "a kernel touched memory that is not its own";
    LAUNCH_OUT_OF_RESOURCES = 701, "the launch needs more registers or shared memory than there are";
    LAUNCH_TIMEOUT = 702, "a kernel ran too long";
    CONTEXT_IS_DESTROYED = 709, "the context has been destroyed";
    ASSERT = 710, "an assertion in a kernel failed";
    HOST_MEMORY_ALREADY_REGISTERED = 712, "the host memory is page-locked already";
    HOST_MEMORY_NOT_REGISTERED = 713, "the host memory is not page-locked";
    HARDWARE_STACK_ERROR = 714, "a kernel's call stack is corrupt";
    ILLEGAL_INSTRUCTION = 715, "a kernel ran an illegal instruction";
    MISALIGNED_ADDRESS = 716, "a kernel used a misaligned address";
    INVALID_ADDRESS_SPACE = 717, "a kernel used an address of the wrong state space";
    INVALID_PC = 718, "a kernel jumped outside its code";
    LAUNCH_FAILED = 719, "a kernel faulted";
    COOPERATIVE_LAUNCH_TOO_LARGE = 720, "a cooperative launch does not fit the device at once";
    TENSOR_MEMORY_LEAK = 721, "a kernel ended without freeing its tensor memory";
    NOT_PERMITTED = 800, "not permitted";
    NOT_SUPPORTED = 801, "not supported by this device or system";
    SYSTEM_NOT_READY = 802, "the system is not ready to run CUDA (on NVSwitch machines: the fabric manager)";
    SYSTEM_DRIVER_MISMATCH = 803, "the driver library and the kernel module have different versions";
    COMPAT_NOT_SUPPORTED_ON_DEVICE = 804, "forward compatibility is not supported on this device";
    STREAM_CAPTURE_UNSUPPORTED = 900, "not permitted while the stream is being captured";
    STREAM_CAPTURE_INVALIDATED = 901, "an earlier error ended the capture";
    STREAM_CAPTURE_MERGE = 902, "two captures would be merged";
    STREAM_CAPTURE_UNMATCHED = 903, "the capture was not begun in this stream";
    STREAM_CAPTURE_UNJOINED = 904, "a forked stream was not joined before the capture ended";
    STREAM_CAPTURE_ISOLATION = 905, "work outside the capture depends on work inside";
    STREAM_CAPTURE_IMPLICIT = 906, "an implicit dependency on the default stream is not permitted in a capture";
    CAPTURED_EVENT = 907, "the event belongs to a capture";
    STREAM_CAPTURE_WRONG_THREAD = 908, "the capture was begun by another thread";
    UNKNOWN = 999, "unknown error";
}

/// Name of a `CUresult`, `CUDA_ERROR_...`: from the driver where it knows it, else from this crate.
pub fn code_name(value: u32) -> String {
    // SAFETY: `get_error_name` has the driver's signature and its results are static.
    unsafe { ask(value, calls::get_error_name) }
        .or_else(|| known_code(value).map(|(name, _)| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| format!("CUresult {value}"))
}

/// What a `CUresult` means, in a few words.
pub fn code_meaning(value: u32) -> String {
    known_code(value)
        .map(|(_, meaning)| meaning.to_string_lossy().into_owned())
        // SAFETY: `get_error_string` has the driver's signature and its results are static.
        .or_else(|| unsafe { ask(value, calls::get_error_string) })
        .unwrap_or_else(|| format!("CUresult {value}"))
}

/// # Safety
/// - `call` writes either null or a text that lives as long as the program.
unsafe fn ask(value: u32, call: unsafe fn(u32, *mut *const c_char) -> Result<()>) -> Option<String> {
    let mut text = std::ptr::null();
    // SAFETY: by contract.
    unsafe { call(value, &mut text) }.ok()?;
    if text.is_null() {
        return None;
    }
    // SAFETY: by contract.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_names_without_a_driver() {
        assert_eq!(
            known_code(700).map(|(name, _)| name),
            Some(c"CUDA_ERROR_ILLEGAL_ADDRESS")
        );
        assert_eq!(known_code(0).map(|(name, _)| name), Some(c"CUDA_SUCCESS"));
        assert_eq!(known_code(12345), None);
        assert_eq!(code_name(code::NO_DEVICE), "CUDA_ERROR_NO_DEVICE");
        assert_eq!(code_name(12345), "CUresult 12345");
    }

    #[test]
    fn an_old_driver_is_told_what_it_lacks() {
        let error = DriverError::TooOld {
            function: "cuLaunchKernelEx",
            needs: (11, 8),
            has: Some((11, 4)),
        };
        assert_eq!(
            error.to_string(),
            "the NVIDIA driver is too old: cuLaunchKernelEx needs CUDA 11.8, this one supports CUDA 11.4"
        );
        assert_eq!(error.code(), code::NOT_FOUND);
    }
}
