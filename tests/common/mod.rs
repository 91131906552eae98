//! What the tests of every family share.

use host::{Device, DeviceKind, DeviceOptions, EmulatorOptions, Error, Tier};

/// Every device that is there, once for each tier it can run: the emulator always, the first GPU when there is one.
///
/// `FERROFLASH_TEST_DEVICE` narrows the choice to `emulator` or `cuda`; without a GPU, `cuda` is a failure.
pub fn devices() -> Vec<Device> {
    let wanted = std::env::var("FERROFLASH_TEST_DEVICE").ok();
    let kinds = match wanted.as_deref() {
        None => &[DeviceKind::Emulator, DeviceKind::Cuda(0)][..],
        Some("emulator") => &[DeviceKind::Emulator],
        Some("cuda") => &[DeviceKind::Cuda(0)],
        Some(other) => panic!("FERROFLASH_TEST_DEVICE={other}: expected emulator or cuda"),
    };
    let mut devices = Vec::new();
    for &kind in kinds {
        for tier in Tier::ALL {
            let options = DeviceOptions {
                tier: Some(tier),
                emulator: EmulatorOptions {
                    checks: true,
                    ..EmulatorOptions::default()
                },
                ..DeviceOptions::default()
            };
            match Device::with_options(Some(kind), options) {
                Ok(device) => devices.push(device),
                // A GPU that is not there, or is of a generation that cannot run this tier.
                Err(Error::NoDevice { .. }) if wanted.is_none() => {}
                Err(Error::Unsupported { .. }) => {}
                Err(error) => panic!("{kind}, {tier}: {error}"),
            }
        }
    }
    devices
}
