//! Deliberately broken kernels, each with the fault it must raise.

mod common;

use common::{Options, run_all};
use emulator::Checks;

#[test]
fn every_broken_kernel_raises_its_fault() {
    run_all(
        "fault",
        Options {
            checks: Checks::all(),
            seed: None,
        },
    );
}

#[test]
fn every_broken_kernel_raises_its_fault_on_random_schedules() {
    for seed in 0..8 {
        run_all(
            "fault",
            Options {
                checks: Checks::all(),
                seed: Some(seed),
            },
        );
    }
}
