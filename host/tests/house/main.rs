//! Tensors, memory, graphs, launches and images, on the emulator.

mod graphs;
mod images;
mod launches;
mod memory;
mod tensors;

use host::{Device, DeviceKind, DeviceOptions, EmulatorOptions};

/// An emulator with all checks.
fn checked() -> Device {
    let emulator = EmulatorOptions {
        checks: true,
        ..EmulatorOptions::default()
    };
    let options = DeviceOptions {
        emulator,
        ..DeviceOptions::default()
    };
    Device::with_options(Some(DeviceKind::Emulator), options).unwrap()
}
