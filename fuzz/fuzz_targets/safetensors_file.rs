//! Any bytes are a safetensors file, as they are and as a header with the right length before it.
#![no_main]

use models::checkpoint::check_safetensors;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = check_safetensors(bytes);
    let mut framed = (bytes.len() as u64).to_le_bytes().to_vec();
    framed.extend_from_slice(bytes);
    let _ = check_safetensors(&framed);
});
