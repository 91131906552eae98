//! The CUDA driver library, found when the program runs and never when it is built.
//!
//! Three things stand here:
//! - **Trampolines** ([`trampolines`]): a definition of every `cu*` symbol that `cust` links to. The first call of each
//!   looks it up in `libcuda.so.1` and later calls jump there; without a driver each returns
//!   `CUDA_ERROR_NO_DEVICE`. So one binary starts on machines with and without an NVIDIA driver, and none of them
//!   needs CUDA to build it.
//! - **Typed calls** ([`calls`]): driver functions that `cust` 0.3.2 lacks or types too narrowly — tensor maps, function
//!   attributes, `cuLaunchKernelEx`, graphs, load logs — which return [`DriverError`], and say which driver they need
//!   when the installed one is too old.
//! - **Result codes** ([`code`], [`code_name`], [`code_meaning`]): named without a driver, too.
//!
//! What a crate that depends on this one sets up is in this crate's README.
//!
//! Supported: Linux on x86-64 and aarch64. On every other target each call answers as if there were no driver.
//!
//! `FERROFLASH_LIBCUDA` names another library file to load, or `none` for a machine whose driver is to be ignored.

pub mod calls;
pub mod handle;
mod launch;
mod library;
mod module;
mod result;
pub mod trampolines;

pub use launch::{LaunchAttribute, LaunchConfig};
pub use library::{LIBRARY_VARIABLE, missing_reason};
pub use module::{LoadFailure, LoadLog, load_module};
pub use result::{DriverError, Result, code, code_meaning, code_name};

/// Version of CUDA that the installed driver supports, as (major, minor).
pub fn driver_version() -> Result<(u32, u32)> {
    let mut version = 0;
    // SAFETY: writes one int to a live local.
    unsafe { calls::driver_get_version(&mut version) }?;
    let version = version.max(0) as u32;
    Ok((version / 1000, version % 1000 / 10))
}
