//! Loading PTX with the compiler's words.

use std::ffi::{CStr, c_void};

use crate::{DriverError, calls, handle};

/// What the driver's PTX compiler said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadLog {
    /// Notes: registers, shared memory and spills of each kernel (with `verbose`).
    pub info: String,
    /// Errors and warnings, with PTX line numbers.
    pub error: String,
}

/// A module that was refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{cause}{}{}", if log.error.is_empty() { "" } else { ": " }, log.error)]
pub struct LoadFailure {
    /// The refusal.
    pub cause: DriverError,
    /// What the compiler said.
    pub log: LoadLog,
}

const LOG_BYTES: usize = 16 << 10;

/// `CUjit_option`.
mod option {
    pub const MAX_REGISTERS: u32 = 0;
    pub const INFO_LOG_BUFFER: u32 = 3;
    pub const INFO_LOG_BUFFER_SIZE_BYTES: u32 = 4;
    pub const ERROR_LOG_BUFFER: u32 = 5;
    pub const ERROR_LOG_BUFFER_SIZE_BYTES: u32 = 6;
    pub const LOG_VERBOSE: u32 = 12;
}

/// Loads PTX into the current context (`cuModuleLoadDataEx`) and keeps the compiler's log.
///
/// `max_registers` limits the registers of one thread; `verbose` asks for each kernel's resources in the log.
///
/// # Safety
/// - A context is current on this thread.
pub unsafe fn load_module(
    ptx: &CStr,
    max_registers: Option<u32>,
    verbose: bool,
) -> Result<(handle::Module, LoadLog), LoadFailure> {
    let mut info = vec![0u8; LOG_BYTES];
    let mut error = vec![0u8; LOG_BYTES];
    // Values that fit a pointer travel in the pointer itself.
    let number = |value: usize| value as *mut c_void;
    let mut options = vec![
        (option::INFO_LOG_BUFFER, info.as_mut_ptr().cast::<c_void>()),
        (option::INFO_LOG_BUFFER_SIZE_BYTES, number(LOG_BYTES - 1)),
        (option::ERROR_LOG_BUFFER, error.as_mut_ptr().cast::<c_void>()),
        (option::ERROR_LOG_BUFFER_SIZE_BYTES, number(LOG_BYTES - 1)),
        (option::LOG_VERBOSE, number(verbose as usize)),
    ];
    options.extend(max_registers.map(|limit| (option::MAX_REGISTERS, number(limit as usize))));
    let (mut keys, mut values): (Vec<u32>, Vec<*mut c_void>) = options.into_iter().unzip();
    let mut module = handle::Module::NULL;
    // SAFETY: the image ends in NUL; both lists have the same length; both buffers outlive the call and are one byte
    // longer than the driver is told, so they stay terminated.
    let loaded = unsafe {
        calls::module_load_data_ex(
            &mut module,
            ptx.as_ptr().cast(),
            keys.len() as u32,
            keys.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    let log = LoadLog {
        info: text(&info),
        error: text(&error),
    };
    match loaded {
        Ok(()) => Ok((module, log)),
        Err(cause) => Err(LoadFailure { cause, log }),
    }
}

fn text(buffer: &[u8]) -> String {
    let end = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..end]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_ends_at_its_terminator() {
        assert_eq!(text(b" ptxas fatal : x\n\0garbage"), "ptxas fatal : x");
        assert_eq!(text(b"full"), "full");
        assert_eq!(text(b"\0\0"), "");
    }
}
