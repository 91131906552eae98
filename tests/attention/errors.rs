//! Bad input is a typed error that names the argument.

use host::ops::{Layout, attention, flash_attn};
use host::{AnyTensor, DType, Device, Error, Tensor, Tier};

use crate::support::devices;

fn tensor(device: &Device, dtype: DType, shape: &[u64]) -> AnyTensor {
    AnyTensor::zeros(device, dtype, shape).unwrap()
}

#[track_caller]
fn names<T>(result: host::Result<T>, argument: &str) {
    let Err(error) = result else {
        panic!("{argument} was accepted")
    };
    let named = match &error {
        Error::Shape { argument, .. }
        | Error::Dtype { argument, .. }
        | Error::Layout { argument, .. }
        | Error::Range { argument, .. }
        | Error::WrongDevice { argument, .. } => *argument,
        other => panic!("{other}"),
    };
    assert_eq!(named, argument, "{error}");
}

#[test]
fn shapes_and_dtypes() {
    for device in devices() {
        let x = |shape: &[u64]| tensor(device, DType::F16, shape);
        let good = x(&[1, 4, 2, 16]);
        names(attention(&x(&[4, 2, 16]), &good, &good).run(), "q");
        names(attention(&good, &x(&[1, 4, 2, 8]), &good).run(), "k");
        names(attention(&good, &x(&[2, 4, 2, 16]), &good).run(), "k");
        names(attention(&good, &good, &x(&[1, 5, 2, 16])).run(), "v");
        names(attention(&good, &good, &x(&[1, 4, 1, 16])).run(), "v");
        names(attention(&x(&[1, 4, 3, 16]), &good, &good).run(), "k");
        names(attention(&good, &x(&[1, 4, 0, 16]), &x(&[1, 4, 0, 16])).run(), "k");
        for dim in [0, 4, 12, 264] {
            let bad = x(&[1, 4, 2, dim]);
            names(attention(&bad, &bad, &bad).run(), "q");
            names(attention(&good, &good, &bad).run(), "v");
        }
        let ints = tensor(device, DType::I32, &[1, 4, 2, 16]);
        names(attention(&ints, &ints, &ints).run(), "q");
        names(
            attention(&good, &tensor(device, DType::F32, &[1, 4, 2, 16]), &good).run(),
            "k",
        );
        // Bhsd reads the second axis as heads: 4 query heads of 3 key heads.
        let three = x(&[1, 3, 2, 16]);
        names(attention(&good, &three, &three).layout(Layout::Bhsd).run(), "k");
        attention(&good, &three, &three).run().unwrap();
    }
}

#[test]
fn strides() {
    for device in devices() {
        let wide = tensor(device, DType::F16, &[1, 4, 2, 32]);
        let good = tensor(device, DType::F16, &[1, 4, 2, 16]);
        // One element off a 16-byte boundary, and rows that are 18 elements apart.
        names(attention(&wide.slice(3, 1..17).unwrap(), &good, &good).run(), "q");
        let odd = tensor(device, DType::F16, &[1, 4, 2, 18]).slice(3, 0..16).unwrap();
        names(attention(&good, &odd, &good).run(), "k");
        let columns = tensor(device, DType::F16, &[1, 4, 16, 2]).transpose(2, 3).unwrap();
        names(attention(&good, &good, &columns).run(), "v");
        names(attention(&good, &good, &good).out(&good).run(), "out");
        names(attention(&good, &good, &good).out(&wide).run(), "out");
    }
}

#[test]
fn options() {
    for device in devices() {
        let x = tensor(device, DType::F16, &[2, 4, 2, 16]);
        let floats = |shape: &[u64]| tensor(device, DType::F32, shape);
        let call = || attention(&x, &x, &x);
        for scale in [f32::NAN, f32::INFINITY] {
            names(call().scale(scale).run(), "scale");
        }
        for cap in [-1.0, f32::NAN, f32::INFINITY] {
            names(call().softcap(cap).run(), "softcap");
        }
        for probability in [-0.1, 1.0, 1.5, f32::NAN, f32::INFINITY] {
            names(call().dropout(probability, 1, 2).run(), "dropout");
        }
        names(call().sinks(&floats(&[3])).run(), "sinks");
        names(call().sinks(&tensor(device, DType::F16, &[2])).run(), "sinks");
        names(call().alibi(&floats(&[2, 3])).run(), "alibi_slopes");
        names(
            call().alibi(&floats(&[4, 2]).slice(0, 0..3).unwrap()).run(),
            "alibi_slopes",
        );
        names(call().block_m(48).run(), "block_m");
        names(call().block_n(1000).run(), "block_n");
        names(flash_attn(&x, &x, &x, false, (-2, 0)), "window.0");
        names(flash_attn(&x, &x, &x, false, (0, 1 << 40)), "window.1");
        let rows = if device.tier() == Tier::Sm90a {
            192
        } else if device.tier() == Tier::Sm80 {
            128
        } else {
            64
        };
        call().block_m(rows).run().unwrap();
    }
}

#[test]
fn packed_bounds() {
    for device in devices() {
        let x = tensor(device, DType::F16, &[6, 2, 16]);
        let cu = Tensor::from_slice(device, &[0i32, 2, 6], &[3]).unwrap();
        let wide = tensor(device, DType::I64, &[3]);
        names(attention(&x, &x, &x).cu_seqlens(&wide, &cu, 4, 4).run(), "cu_seqlens_q");
        names(
            attention(&x, &x, &x)
                .cu_seqlens(&cu, &cu.slice(0, 0..2).unwrap(), 4, 4)
                .run(),
            "cu_seqlens_k",
        );
        names(attention(&x, &x, &x).cu_seqlens(&cu, &cu, 7, 4).run(), "max_q");
        names(attention(&x, &x, &x).cu_seqlens(&cu, &cu, 4, 7).run(), "max_k");
        let dense = tensor(device, DType::F16, &[1, 6, 2, 16]);
        names(attention(&dense, &x, &x).cu_seqlens(&cu, &cu, 4, 4).run(), "q");
    }
}

#[test]
fn what_a_tier_lacks_is_said_by_name() {
    for device in devices().iter().filter(|device| device.tier() == Tier::Sm75) {
        let x = tensor(device, DType::BF16, &[1, 4, 2, 16]);
        let error = attention(&x, &x, &x).run().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Unsupported {
                    tier: Some(Tier::Sm75),
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("bf16"), "{error}");
    }
}

#[test]
fn another_device() {
    let device = &devices()[0];
    let other = Device::emulator().unwrap();
    let (x, y) = (
        tensor(device, DType::F16, &[1, 4, 2, 16]),
        tensor(&other, DType::F16, &[1, 4, 2, 16]),
    );
    names(attention(&x, &y, &x).run(), "k");
}
