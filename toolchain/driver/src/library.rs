//! Finds and opens the driver library, once in a process.

use std::{ffi::CStr, sync::OnceLock};

/// Environment variable that names the driver library to load, or `none`.
pub const LIBRARY_VARIABLE: &str = "FERROFLASH_LIBCUDA";

/// Names under which the driver installs itself. A CUDA toolkit's stub has only the second name on its search path and
/// answers every call with `CUDA_ERROR_STUB_LIBRARY`, so the versioned name goes first.
#[cfg(target_os = "linux")]
const NAMES: &[&str] = &["libcuda.so.1", "libcuda.so"];
/// `nvcuda.dll` on Windows: named here for whoever ports the trampolines; nothing is opened on unsupported targets.
#[cfg(not(target_os = "linux"))]
const NAMES: &[&str] = &[];

static LIBRARY: OnceLock<Result<libloading::Library, String>> = OnceLock::new();

fn open() -> Result<libloading::Library, String> {
    let wanted = std::env::var_os(LIBRARY_VARIABLE);
    if wanted.as_ref().is_some_and(|name| name == "none") {
        return Err(format!("{LIBRARY_VARIABLE}=none hides the NVIDIA driver"));
    }
    let names: Vec<_> = match wanted {
        Some(name) if !name.is_empty() => vec![name],
        _ => NAMES.iter().map(Into::into).collect(),
    };
    let mut reason = String::from("this target has no NVIDIA driver library; Linux on x86-64 and aarch64 have");
    for (index, name) in names.iter().enumerate() {
        // SAFETY: loading runs the library's initialisers; the driver's are made to be loaded this way.
        match unsafe { libloading::Library::new(name) } {
            Ok(library) => return Ok(library),
            // The first name is the one to install, so its message is the one worth reading.
            Err(error) if index == 0 => {
                let detail = std::error::Error::source(&error).map_or_else(|| error.to_string(), |e| e.to_string());
                reason = format!("the NVIDIA driver library was not found ({detail})");
            }
            Err(_) => {}
        }
    }
    Err(reason)
}

fn library() -> &'static Result<libloading::Library, String> {
    LIBRARY.get_or_init(open)
}

/// Why the driver library cannot be used, or `None` where it was loaded.
pub fn missing_reason() -> Option<&'static str> {
    library().as_ref().err().map(String::as_str)
}

/// What looking up one driver function gave.
pub(crate) enum Lookup {
    /// Its address.
    Found(usize),
    /// There is no driver library; why.
    NoLibrary(&'static str),
    /// The driver library lacks this function.
    NoSymbol,
}

/// Looks up a driver function by its exported name.
pub(crate) fn lookup(symbol: &CStr) -> Lookup {
    match library() {
        Err(reason) => Lookup::NoLibrary(reason),
        Ok(library) => {
            // SAFETY: only the address is taken; the caller gives it the type of the function of that name. The library
            // is never closed, so the address stays valid.
            let symbol = unsafe { library.get::<unsafe extern "C" fn()>(symbol.to_bytes_with_nul()) };
            symbol.map_or(Lookup::NoSymbol, |function| Lookup::Found(*function as usize))
        }
    }
}
