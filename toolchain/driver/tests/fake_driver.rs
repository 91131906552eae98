//! A driver of our own making receives through the trampolines exactly what the caller passed. One test: the library
//! is looked for once a process.

use std::{ffi::c_void, path::Path, process::Command, ptr::null_mut};

use cust::{CudaApiVersion, sys};
use driver::{DriverError, calls, code, handle};

/// Compiled to a shared library. Sums make every argument count, in its place.
const FAKE: &str = r#"
#[unsafe(no_mangle)] pub unsafe extern "C" fn cuDriverGetVersion(out: *mut i32) -> u32 { unsafe { *out = 11040 }; 0 }
#[unsafe(no_mangle)] pub unsafe extern "C" fn cuLaunchKernel(
    f: usize, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, stream: usize,
    params: usize, extra: *mut [usize; 11],
) -> u32 {
    unsafe { *extra = [f, gx as usize, gy as usize, gz as usize, bx as usize, by as usize, bz as usize,
                       shared as usize, stream, params, extra as usize] };
    0
}
// No driver function passes more than one float by value; this one stands in for the whole register file.
#[unsafe(no_mangle)] pub unsafe extern "C" fn cuParamSetf(
    f: *mut [f64; 8], a: f64, b: f64, c: f64, d: f64, e: f64, g: f64, h: f64, i: f64,
) -> u32 { unsafe { *f = [a, b, c, d, e, g, h, i] }; 0 }
#[unsafe(no_mangle)] pub unsafe extern "C" fn cuEventQuery(_: usize) -> u32 { 4321 }
"#;

fn compile(folder: &Path) -> std::path::PathBuf {
    let (source, library) = (folder.join("fake.rs"), folder.join("libfake.so"));
    std::fs::write(&source, FAKE).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition=2024", "--crate-type=cdylib", "-Cpanic=abort", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(status.success());
    library
}

#[test]
fn arguments_and_results_pass_through_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let library = compile(folder.path());
    // SAFETY: no other thread reads the environment; this is the only test of the process.
    unsafe { std::env::set_var(driver::LIBRARY_VARIABLE, &library) };

    // The first call resolves, the second goes straight on: both must carry six registers and five stack slots.
    for round in 0..2 {
        let mut seen = [0usize; 11];
        let extra = (&raw mut seen).cast::<*mut c_void>();
        // SAFETY: the fake writes eleven words to `extra` and reads nothing.
        let result = unsafe {
            sys::cuLaunchKernel(
                0x1111 as *mut _,
                2,
                3,
                4,
                5,
                6,
                7,
                8,
                0x9999 as *mut _,
                0xaaaa as *mut _,
                extra,
            )
        };
        assert_eq!(result, sys::CUresult::CUDA_SUCCESS);
        assert_eq!(
            seen,
            [0x1111, 2, 3, 4, 5, 6, 7, 8, 0x9999, 0xaaaa, extra as usize],
            "round {round}"
        );
    }

    type Floats = unsafe extern "C" fn(*mut [f64; 8], f64, f64, f64, f64, f64, f64, f64, f64) -> u32;
    // SAFETY: the trampoline passes on any signature; the fake has this one.
    let floats = unsafe { std::mem::transmute::<*const (), Floats>(driver::trampolines::cuParamSetf as *const ()) };
    for round in 0..2 {
        let mut seen = [0.0; 8];
        // SAFETY: the fake writes eight numbers to `seen`.
        assert_eq!(unsafe { floats(&mut seen, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5) }, 0);
        assert_eq!(seen, [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5], "round {round}");
    }

    let version = CudaApiVersion::get().unwrap();
    assert_eq!((version.major(), version.minor()), (11, 4));
    assert_eq!(driver::driver_version(), Ok((11, 4)));

    // What this driver lacks: `cust` hears "not found", a typed call says what it takes.
    assert_eq!(
        cust::init(cust::CudaFlags::empty()),
        Err(cust::error::CudaError::NotFound)
    );
    // SAFETY: never reaches a driver.
    let error = unsafe { calls::launch_kernel_ex(null_mut(), handle::Function::NULL, null_mut(), null_mut()) };
    assert_eq!(
        error,
        Err(DriverError::TooOld {
            function: "cuLaunchKernelEx",
            needs: (11, 8),
            has: Some((11, 4))
        })
    );
    // A code that no enumeration knows stays a number.
    // SAFETY: the fake ignores its argument.
    let error = unsafe { calls::event_query(handle::Event::NULL) }.unwrap_err();
    assert_eq!(error.code(), 4321);
    assert_ne!(error.code(), code::NOT_READY);
}
