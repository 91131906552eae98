//! Any bytes are a `config.json`; what is accepted must be usable: frequencies finite, tables of the stated size.
#![no_main]

use models::{GenerationConfig, ModelConfig};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = GenerationConfig::from_json(bytes, 1000);
    let Ok(config) = ModelConfig::from_json(bytes) else {
        return;
    };
    assert!(config.num_heads.is_multiple_of(config.num_kv_heads));
    assert_eq!(config.windows.len(), config.num_layers);
    assert!(config.parameters() > 0);
    if let Some(rope) = config.rope() {
        let frequencies = rope.frequencies(config.max_positions + 1);
        assert_eq!(frequencies.inv_freq.len(), rope.rotary_dim / 2);
    }
});
