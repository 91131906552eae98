//! The CUDA backend on a machine without a driver. One test: the driver is looked for once a process.

use host::{
    Error,
    backend::cuda::{self, CudaBackend},
};

#[test]
fn a_machine_without_a_driver_says_so() {
    // SAFETY: no other thread reads the environment; this is the only test of the process.
    unsafe { std::env::set_var(driver::LIBRARY_VARIABLE, "none") };
    for error in [CudaBackend::open(0).unwrap_err(), cuda::devices().unwrap_err()] {
        let Error::NoDevice { reason } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(
            reason,
            "FERROFLASH_LIBCUDA=none hides the NVIDIA driver; install the NVIDIA driver to use a GPU"
        );
    }
}
