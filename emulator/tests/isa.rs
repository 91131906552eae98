//! One small kernel for each instruction family, with its expected results.

mod common;

use common::{Options, run_all};
use emulator::Checks;

#[test]
fn families_give_their_documented_results() {
    run_all(
        "isa",
        Options {
            checks: Checks::none(),
            seed: None,
        },
    );
}

#[test]
fn families_are_clean_under_all_checks_on_random_schedules() {
    for seed in 0..4 {
        run_all(
            "isa",
            Options {
                checks: Checks::all(),
                seed: Some(seed),
            },
        );
    }
}

#[test]
fn kernels_compiled_by_nvcc_run() {
    run_all(
        "nvcc",
        Options {
            checks: Checks::none(),
            seed: None,
        },
    );
}

#[test]
fn kernels_compiled_by_nvcc_are_clean_under_all_checks() {
    for seed in 0..4 {
        run_all(
            "nvcc",
            Options {
                checks: Checks::all(),
                seed: Some(seed),
            },
        );
    }
}
