//! Any text is PTX or an error with a place; what parses prints as PTX that means the same, and its entries are prepared or
//! refused.
//!
//! Seeds: `mkdir -p fuzz/corpus/ptx_parse && cp emulator/tests/*/*.ptx fuzz/corpus/ptx_parse`.
#![no_main]

use emulator::Module;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(module) = Module::parse(text) else { return };
    let printed = module.syntax().to_string();
    let again = Module::parse(&printed).expect("what was printed parses");
    assert_eq!(again.syntax().to_string(), printed);
    let entries: Vec<String> = module.entries().take(4).map(str::to_owned).collect();
    for entry in entries {
        if let Ok(info) = module.entry(&entry) {
            assert!(info.pack(&[]).is_ok() == info.parameters.is_empty());
        }
    }
});
