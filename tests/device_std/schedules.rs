//! The same tests on many schedules of the emulator: what a function returns does not depend on which warp runs first.

use std::process::Command;

/// Schedules.
const SEEDS: u64 = 64;

#[test]
fn every_test_holds_on_64_schedules() {
    let device = std::env::var("FERROFLASH_TEST_DEVICE");
    if device.is_ok_and(|device| device == "cuda") || std::env::var("FERROFLASH_TEST_SEED").is_ok() {
        println!("skipped: not on the emulator, or already on one schedule of the caller's");
        return;
    }
    let program = std::env::current_exe().unwrap();
    for seed in 1..=SEEDS {
        let output = Command::new(&program)
            .env("FERROFLASH_TEST_DEVICE", "emulator")
            .env("FERROFLASH_TEST_SEED", seed.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "seed {seed}:\n{text}");
        // This test and at least twenty others.
        let passed = text.lines().filter(|line| line.ends_with("... ok")).count();
        assert!(passed > 20, "seed {seed}: only {passed} tests ran:\n{text}");
    }
}
