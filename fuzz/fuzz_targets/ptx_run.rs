//! Any kernel that parses runs to its end, or ends in an error or a fault, with and without checks.
//!
//! Seeds: `mkdir -p fuzz/corpus/ptx_run && cp emulator/tests/*/*.ptx fuzz/corpus/ptx_run`. Texts of even length run under
//! all checks.
#![no_main]

use emulator::{Argument, Checks, Launch, Machine, Module, Target};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(module) = Module::parse(text) else { return };
    let checks = if bytes.len() % 2 == 0 {
        Checks::all()
    } else {
        Checks::none()
    };
    let machine = Machine::new(Target::SM_90A)
        .checks(checks)
        .step_budget(2000)
        .threads(1)
        .memory_limit(1 << 24);
    let data = machine.allocate(4096).expect("there is memory");
    let entries: Vec<String> = module.entries().take(2).map(str::to_owned).collect();
    for entry in entries {
        let Ok(info) = module.entry(&entry) else { continue };
        let bytes = data.0.to_le_bytes().repeat(8);
        let arguments: Vec<Argument> = info
            .parameters
            .iter()
            .map(|parameter| Argument::Bytes(&bytes[..parameter.size.min(bytes.len())]))
            .collect();
        let Ok(params) = info.pack(&arguments) else { continue };
        let launch = Launch {
            block: [64, 1, 1],
            params: &params,
            dynamic_shared_bytes: 4096,
            ..Launch::default()
        };
        let _ = machine.launch(&module, &entry, &launch);
    }
});
