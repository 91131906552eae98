//! Any bytes are a `model.safetensors.index.json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = models::checkpoint::check_index(bytes);
});
