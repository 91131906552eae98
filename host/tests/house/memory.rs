//! The pool: reuse, bookkeeping, exact mode, running out.

use host::{AnyTensor, DType, Device, DeviceKind, DeviceOptions, Error, Tensor, ops::vector_add};

fn bytes(device: &Device, count: u64) -> host::Result<AnyTensor> {
    AnyTensor::empty(device, DType::U8, &[count])
}

#[test]
fn freed_blocks_are_reused() {
    let device = Device::emulator().unwrap();
    let first = bytes(&device, 1000).unwrap();
    let address = first.address();
    assert_eq!(address % 256, 0);
    let view = first.slice(0, 10..20).unwrap();
    drop(first);
    // A view keeps the memory.
    let second = bytes(&device, 1000).unwrap();
    assert_ne!(second.address(), address);
    drop(view);
    // 1000 and 600 bytes take the same kind of block, 100 another.
    let small = bytes(&device, 100).unwrap();
    assert_ne!(small.address(), address);
    assert_eq!(bytes(&device, 600).unwrap().address(), address);
}

#[test]
fn live_and_peak_bytes() {
    let device = Device::emulator().unwrap();
    assert_eq!(device.allocated(), (0, 0));
    let a = bytes(&device, 1024).unwrap();
    let b = bytes(&device, 2048).unwrap();
    assert_eq!(device.allocated(), (3072, 3072));
    drop(a);
    assert_eq!(device.allocated(), (2048, 3072));
    let _empty = bytes(&device, 0).unwrap();
    let _c = bytes(&device, 512).unwrap();
    assert_eq!(device.allocated(), (2560, 3072));
    drop(b);
    assert_eq!(device.allocated(), (512, 3072));
}

#[test]
fn trimming_returns_what_nobody_uses() {
    let device = Device::emulator().unwrap();
    let free = || device.memory().unwrap().free;
    let before = free();
    let kept = bytes(&device, 512).unwrap();
    drop(bytes(&device, 8 << 20).unwrap());
    assert_eq!(free(), before - 512 - (8 << 20), "the pool keeps it");
    device.trim().unwrap();
    assert_eq!(free(), before - 512);
    drop(kept);
    device.trim().unwrap();
    assert_eq!(free(), before);
}

#[test]
fn exact_mode_allocates_what_is_asked_for_and_keeps_nothing() {
    let options = DeviceOptions {
        exact_allocation: true,
        ..DeviceOptions::default()
    };
    let device = Device::with_options(Some(DeviceKind::Emulator), options).unwrap();
    let free = || device.memory().unwrap().free;
    let before = free();
    let x = bytes(&device, 1001).unwrap();
    assert_eq!((before - free(), device.allocated()), (1001, (1001, 1001)));
    drop(x);
    assert_eq!((free(), device.allocated()), (before, (0, 1001)));
}

#[test]
fn running_out_leaves_the_device_usable() {
    let device = Device::emulator().unwrap();
    let total = device.memory().unwrap().total;
    let error = bytes(&device, total + 1).unwrap_err();
    let Error::OutOfMemory { requested, free } = error else {
        panic!("{error:?}")
    };
    assert!(requested > total && free == total && error.is_recoverable());
    assert!(error.to_string().starts_with("out of device memory: "), "{error}");
    // What the pool holds in other sizes is given back before it says no.
    let held = bytes(&device, total / 2 + (4 << 20)).unwrap();
    assert!(matches!(bytes(&device, total / 2), Err(Error::OutOfMemory { .. })));
    drop(held);
    assert!(bytes(&device, total / 4 * 3).is_ok());
    let x = Tensor::from_slice(&device, &[1.0f32, 2.0], &[2]).unwrap();
    let sum = vector_add(&x, &x).unwrap().typed::<f32>("sum").unwrap();
    assert_eq!(sum.to_vec().unwrap(), [2.0, 4.0]);
}

#[test]
fn memory_used_on_another_stream_comes_back() {
    let device = Device::emulator().unwrap();
    let stream = device.create_stream().unwrap();
    let x = bytes(&device, 700).unwrap();
    let event = stream.record().unwrap();
    device.stream().wait(&event).unwrap();
    event.synchronize().unwrap();
    assert!(event.is_done().unwrap());
    let later = stream.record().unwrap();
    assert!(later.elapsed_ms(&event).unwrap() >= 0.0);
    drop(x);
    assert_eq!(device.allocated().0, 0);
}
