//! Any bytes are a program of page-pool operations; the pool must stay consistent after each.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| host::kv::fuzzing::run_operations(bytes));
