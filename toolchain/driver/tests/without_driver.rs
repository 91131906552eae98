//! What `cust` and the typed calls answer when there is no driver. One test: the library is looked for once a process.

use cust::{CudaFlags, device::Device, error::CudaError};

#[test]
fn without_a_driver_every_call_says_no_device() {
    // SAFETY: no other thread reads the environment; this is the only test of the process.
    unsafe { std::env::set_var(driver::LIBRARY_VARIABLE, "none") };

    assert_eq!(cust::init(CudaFlags::empty()), Err(CudaError::NoDevice));
    assert_eq!(Device::num_devices(), Err(CudaError::NoDevice));
    assert_eq!(cust::CudaApiVersion::get(), Err(CudaError::NoDevice));
    // Twice: the first call fills the slot, the second goes through it.
    assert_eq!(cust::init(CudaFlags::empty()), Err(CudaError::NoDevice));
    assert!(
        CudaError::NoDevice.to_string().contains("no CUDA device"),
        "{}",
        CudaError::NoDevice
    );

    let error = driver::driver_version().unwrap_err();
    assert_eq!(error.code(), driver::code::NO_DEVICE);
    assert!(error.to_string().contains("FERROFLASH_LIBCUDA=none"), "{error}");
    assert_eq!(
        driver::missing_reason(),
        Some("FERROFLASH_LIBCUDA=none hides the NVIDIA driver")
    );
}
