//! What the tests of every family share.

use host::reference::data::poison;
use host::{Device, DeviceKind, DeviceOptions, Element, EmulatorOptions, Error, Float, Tensor, Tier};
use proptest::test_runner::{Config, RngSeed};

/// Every device that is there, once for each tier it can run: the emulator always, the first GPU when there is one.
///
/// `FERROFLASH_TEST_DEVICE` narrows the choice to `emulator` or `cuda`; without a GPU, `cuda` is a failure.
/// `FERROFLASH_TEST_SEED` lets the emulator take warps in the random order of this seed instead of one after the other.
pub fn devices() -> Vec<Device> {
    let wanted = std::env::var("FERROFLASH_TEST_DEVICE").ok();
    let seed = std::env::var("FERROFLASH_TEST_SEED").ok().map(|seed| {
        seed.parse()
            .unwrap_or_else(|error| panic!("FERROFLASH_TEST_SEED={seed}: {error}"))
    });
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
                    seed,
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

/// An emulated GPU that runs the kernels of sm_80 and has so much shared memory a block.
#[allow(dead_code, reason = "not every family of tests asks for it")]
pub fn ampere(shared_per_block: u32) -> Device {
    let options = DeviceOptions {
        tier: Some(Tier::Sm80),
        emulator: EmulatorOptions {
            checks: true,
            shared_per_block: Some(shared_per_block),
            ..EmulatorOptions::default()
        },
        ..DeviceOptions::default()
    };
    Device::with_options(Some(DeviceKind::Emulator), options).unwrap_or_else(|error| panic!("{error}"))
}

/// So many random problems, the same each time: a change is to blame for what fails. `PROPTEST_RNG_SEED` draws others, and
/// `PROPTEST_CASES` more than asked for here.
#[allow(dead_code, reason = "not every family of tests asks for it")]
pub fn problems(cases: u32) -> Config {
    let config = Config::default();
    Config {
        cases: if std::env::var_os("PROPTEST_CASES").is_some() {
            config.cases
        } else {
            cases
        },
        rng_seed: match config.rng_seed {
            RngSeed::Random => RngSeed::Fixed(1),
            fixed => fixed,
        },
        failure_persistence: None,
        ..config
    }
}

/// A dense tensor.
#[allow(dead_code, reason = "not every family of tests asks for it")]
pub fn dense<T: Element>(device: &Device, data: &[T], shape: &[usize]) -> Tensor<T> {
    let shape: Vec<u64> = shape.iter().map(|&extent| extent as u64).collect();
    Tensor::from_slice(device, data, &shape).unwrap()
}

/// `rows × columns` of a matrix whose rows have `before` and `after` elements of NaN around them.
#[allow(dead_code, reason = "not every family of tests asks for it")]
pub fn strided<T: Float>(device: &Device, data: &[T], rows: usize, before: usize, after: usize) -> Tensor<T> {
    let columns = data.len().checked_div(rows).unwrap_or(0);
    let pitch = before + columns + after;
    let mut all = poison::<T>(rows * pitch);
    for row in 0..rows {
        all[row * pitch + before..][..columns].copy_from_slice(&data[row * columns..][..columns]);
    }
    let whole = Tensor::from_slice(device, &all, &[rows as u64, pitch as u64]).unwrap();
    whole.slice(1, before as u64..(before + columns) as u64).unwrap()
}
