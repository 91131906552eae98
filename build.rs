//! Build script of the `host` crate: puts the archive of PTX images where `host` embeds it from.
//!
//! The archive in the repository is taken when it was made from the device sources beside it; otherwise the kernels
//! are built from source, which needs the device toolchain (it is installed through rustup when missing).
//! `FERROFLASH_BUILD_KERNELS=1` builds from source in any case.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=../build.rs");
    let Some(repository) = Path::new(env!("CARGO_MANIFEST_DIR")).parent() else {
        eprintln!("error: the host crate lies in no repository");
        return ExitCode::FAILURE;
    };
    match cuda_builder::script::embed(&repository.join("kernels-gpu")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
