//! What a contract refuses, and what happens after a fault.

use host::{
    AnyTensor, DType, Device, DeviceKind, DeviceOptions, EmulatorOptions, Error, Tensor, Tier, launch::Contract,
    ops::vector_add,
};
use kernels_gpu::{params::VectorAddParams, reduce::ReduceParams};

fn floats(device: &Device, len: u64) -> AnyTensor {
    AnyTensor::zeros(device, DType::F32, &[len]).unwrap()
}

fn refusal(contract: Contract<'_>) -> Error {
    match contract.prepare() {
        Ok(_) => panic!("the launch was accepted"),
        Err(error) => error,
    }
}

#[test]
fn an_emulated_gpu_has_the_shared_memory_it_was_given() {
    let open = |bytes| {
        let emulator = EmulatorOptions {
            shared_per_block: Some(bytes),
            ..EmulatorOptions::default()
        };
        let options = DeviceOptions {
            tier: Some(Tier::Sm80),
            emulator,
            ..DeviceOptions::default()
        };
        Device::with_options(Some(DeviceKind::Emulator), options)
    };
    for bytes in [48 << 10, 99 << 10, 227 << 10] {
        let device = open(bytes).unwrap();
        assert_eq!(device.properties().shared_per_block, bytes);
        let contract = || Contract::new(&device, "vector_add").grid([1, 1, 1]);
        assert!(contract().shared(bytes.into()).prepare().is_ok());
        let error = refusal(contract().shared(u64::from(bytes) + 1));
        assert!(matches!(error, Error::Range { .. }), "{error}");
    }
    for bytes in [0, (48 << 10) - 1, (227 << 10) + 1] {
        let error = open(bytes).err().unwrap().to_string();
        assert!(
            error.contains("emulator.shared_per_block") && error.contains(&bytes.to_string()),
            "{error}"
        );
    }
}

#[test]
fn grids_and_shared_memory_within_limits() {
    let device = Device::emulator().unwrap();
    let contract = || Contract::new(&device, "vector_add");
    let text = |grid| refusal(contract().grid(grid)).to_string();
    assert_eq!(
        text([0, 1, 1]),
        "grid.x = 0; allowed: 1 to 2147483647 (kernel vector_add)"
    );
    assert_eq!(
        text([1 << 31, 1, 1]),
        "grid.x = 2147483648; allowed: 1 to 2147483647 (kernel vector_add)"
    );
    assert_eq!(
        text([1, 65_536, 1]),
        "grid.y = 65536; allowed: 1 to 65535 (kernel vector_add)"
    );
    assert_eq!(
        text([1, 1, 1 << 40]),
        "grid.z = 1099511627776; allowed: 1 to 65535 (kernel vector_add)"
    );
    assert!(contract().grid([i32::MAX as u64, 65_535, 65_535]).prepare().is_ok());
    let limit = device.properties().shared_per_block as u64;
    assert!(contract().shared(limit).prepare().is_ok());
    for bytes in [limit + 1, 1 << 32, u64::MAX] {
        let error = refusal(contract().shared(bytes));
        assert!(
            matches!(
                error,
                Error::Range {
                    argument: "dynamic shared memory",
                    ..
                }
            ),
            "{error:?}"
        );
    }
}

#[test]
fn kernels_that_are_not_there_are_named_with_the_tier() {
    for device in [Device::emulator().unwrap(), super::checked()] {
        let error = refusal(Contract::new(&device, "vector_sub"));
        assert_eq!(error.to_string(), "kernel vector_sub is not supported on tier sm_90a");
        assert!(error.is_recoverable());
        assert!(device.kernel_attributes("no\0name").is_err());
    }
}

#[test]
fn arguments_of_the_wrong_size() {
    let device = Device::emulator().unwrap();
    let params = ReduceParams {
        x: 0,
        x_indices: 0,
        values: 0,
        indices: 0,
        rows: 0,
        columns: 0,
        row_stride: 0,
        chunk: 0,
        splits: 0,
        scale: 0.0,
        aligned: 0,
    };
    let launch = Contract::new(&device, "vector_add").prepare().unwrap();
    // SAFETY: refused before it starts.
    let error = unsafe { launch.launch(&params) }.unwrap_err();
    let wanted = format!(
        "params: {} bytes, but kernel vector_add takes 32",
        size_of::<ReduceParams>()
    );
    assert_eq!(error.to_string(), wanted);
    assert!(device.check_health().is_ok());
}

#[test]
fn tensors_of_another_device() {
    let (here, there) = (Device::emulator().unwrap(), Device::emulator().unwrap());
    let (a, b) = (floats(&here, 4), floats(&there, 4));
    let error = refusal(Contract::new(&here, "vector_add").reads("a", &a).writes("out", &b));
    assert!(matches!(error, Error::WrongDevice { argument: "out", .. }), "{error:?}");
    // A clone of the handle is the same device.
    let clone = here.clone();
    assert!(Contract::new(&clone, "vector_add").reads("a", &a).prepare().is_ok());
}

#[test]
fn outputs_overlap_nothing() {
    let device = Device::emulator().unwrap();
    let whole = floats(&device, 100);
    let part = |from: u64, to: u64| whole.slice(0, from..to).unwrap();
    let (a, b, c) = (part(0, 50), part(49, 99), part(50, 100));
    let contract = || Contract::new(&device, "vector_add");
    let error = refusal(contract().reads("a", &a).writes("out", &b));
    assert_eq!(
        error.to_string(),
        "out: is written but shares memory with a; it must not"
    );
    let error = refusal(contract().writes("first", &c).writes("second", &b));
    assert_eq!(
        error.to_string(),
        "second: is written but shares memory with first; it must not"
    );
    assert!(
        contract()
            .reads("a", &a)
            .reads("b", &a)
            .writes("out", &c)
            .prepare()
            .is_ok()
    );
    assert!(
        contract()
            .reads("a", &a)
            .reads_if("b", None)
            .writes_if("out", None)
            .prepare()
            .is_ok()
    );
    assert!(
        contract()
            .reads_if("a", Some(&b))
            .writes_if("out", Some(&b))
            .prepare()
            .is_err()
    );
}

/// Lets a kernel read where nothing is.
fn fault(device: &Device, address: u64) -> Error {
    let out = floats(device, 64);
    let params = VectorAddParams {
        a: address,
        b: out.address(),
        out: out.address(),
        len: 64,
    };
    let launch = Contract::new(device, "vector_add")
        .writes("out", &out)
        .prepare()
        .unwrap();
    // SAFETY: unsound on a GPU; the emulator finds it, which is the point.
    unsafe { launch.launch(&params) }.unwrap_err()
}

#[test]
fn a_fault_poisons_the_device_and_no_other() {
    let (device, other) = (super::checked(), super::checked());
    let x = Tensor::from_slice(&device, &[1.0f32; 64], &[64]).unwrap();
    let (graph, _) = device.capture(|| vector_add(&x, &x)).unwrap();
    let first = fault(&device, 0x10);
    let Error::Poisoned { kernel, cause } = &first else {
        panic!("{first:?}")
    };
    assert_eq!(kernel, "vector_add");
    assert!(!first.is_recoverable() && !cause.is_empty());

    let text = first.to_string();
    let later: Vec<(&str, Option<Error>)> = vec![
        ("check_health", device.check_health().err()),
        ("synchronize", device.synchronize().err()),
        ("op", vector_add(&x, &x).err()),
        ("download", x.to_vec().err()),
        ("upload", x.copy_from_slice(&[0.0; 64]).err()),
        ("fill", x.fill_bytes(0).err()),
        ("allocate", AnyTensor::empty(&device, DType::F32, &[9]).err()),
        ("zeros", AnyTensor::zeros(&device, DType::F32, &[9]).err()),
        ("stream", device.create_stream().err()),
        ("memory", device.memory().err()),
        ("trim", device.trim().err()),
        ("graph", graph.launch().err()),
        ("capture", device.capture(|| Ok(())).err()),
        ("attributes", device.kernel_attributes("vector_add").err()),
        ("a clone", device.clone().synchronize().err()),
    ];
    for (call, error) in later {
        assert_eq!(error.map(|error| error.to_string()), Some(text.clone()), "{call}");
    }
    // Facts stay readable, and dropping what lives on it is harmless.
    assert!(device.is_emulator());
    drop((graph, x));

    let y = Tensor::from_slice(&other, &[1.0f32; 64], &[64]).unwrap();
    let sum = vector_add(&y, &y).unwrap().typed::<f32>("sum").unwrap();
    assert_eq!(sum.to_vec().unwrap(), [2.0; 64]);
}

#[test]
fn the_checks_find_reads_past_the_end_and_of_nothing_written() {
    // One element past a block of the pool.
    let device = super::checked();
    let short = AnyTensor::zeros(&device, DType::F32, &[128]).unwrap();
    assert_eq!(
        short.elements() * 4,
        512,
        "as large as a block of the pool, so that its end is the allocation's"
    );
    let error = fault(&device, short.address() + 512 - 4 * 60);
    assert!(matches!(error, Error::Poisoned { .. }), "{error:?}");
    // Memory that nobody wrote.
    let device = super::checked();
    let fresh = AnyTensor::empty(&device, DType::F32, &[64]).unwrap();
    let error = fault(&device, fresh.address());
    assert!(
        matches!(&error, Error::Poisoned { cause, .. } if cause.contains("initial")),
        "{error:?}"
    );
}
