//! `vector_add` on every device and tier.

mod common;

use host::{AnyTensor, DType, Error, Tensor, ops::vector_add, reference::data::normal};

/// Around warps, blocks and the number of blocks that run at once.
const LENGTHS: [usize; 9] = [1, 31, 32, 33, 255, 256, 257, 4097, 70_001];

#[test]
fn adds_every_length_exactly() {
    for device in common::devices() {
        for len in LENGTHS {
            let (a, b) = (normal::<f32>(1, len), normal::<f32>(2, len));
            let shape = [len as u64];
            let (x, y) = (
                Tensor::from_slice(&device, &a, &shape).unwrap(),
                Tensor::from_slice(&device, &b, &shape).unwrap(),
            );
            let out = vector_add(&x, &y).unwrap();
            assert_eq!(out.shape(), shape);
            let wanted: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            assert_eq!(
                out.typed::<f32>("out").unwrap().to_vec().unwrap(),
                wanted,
                "{len} on {device}"
            );
        }
    }
}

#[test]
fn parts_of_a_tensor_and_one_tensor_twice() {
    for device in common::devices() {
        let data = normal::<f32>(3, 103);
        let whole = Tensor::from_slice(&device, &data, &[103]).unwrap();
        let sum = |start: u64| {
            let (a, b) = (
                whole.slice(0, start..start + 49).unwrap(),
                whole.slice(0, 52..101).unwrap(),
            );
            vector_add(&a, &b).map(|out| out.typed::<f32>("out").unwrap().to_vec().unwrap())
        };
        for start in [0, 4, 48] {
            let wanted: Vec<f32> = (0..49).map(|i| data[start as usize + i] + data[52 + i]).collect();
            assert_eq!(sum(start).unwrap(), wanted, "from {start} on {device}");
        }
        for start in 1..4 {
            let error = sum(start).unwrap_err().to_string();
            assert_eq!(error, "a: must be dense and aligned to 16 bytes", "from {start}");
        }
        let twice = vector_add(&whole, &whole)
            .unwrap()
            .typed::<f32>("out")
            .unwrap()
            .to_vec()
            .unwrap();
        assert!(twice.iter().zip(&data).all(|(sum, x)| *sum == 2.0 * x));
    }
}

#[test]
fn nothing_and_scalars() {
    for device in common::devices() {
        let empty = Tensor::<f32>::empty(&device, &[3, 0]).unwrap();
        assert_eq!(vector_add(&empty, &empty).unwrap().shape(), [3, 0]);
        let scalar = Tensor::from_slice(&device, &[2.5f32], &[]).unwrap();
        let sum = vector_add(&scalar, &scalar).unwrap();
        assert_eq!(
            (sum.rank(), sum.typed::<f32>("sum").unwrap().to_vec().unwrap()),
            (0, vec![5.0])
        );
    }
}

#[test]
fn special_values() {
    for device in common::devices() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let a = Tensor::from_slice(&device, &[inf, inf, nan, -0.0, f32::MAX, 1e-45], &[6]).unwrap();
        let b = Tensor::from_slice(&device, &[1.0, -inf, 1.0, -0.0, f32::MAX, 1e-45], &[6]).unwrap();
        let out = vector_add(&a, &b)
            .unwrap()
            .typed::<f32>("out")
            .unwrap()
            .to_vec()
            .unwrap();
        assert_eq!((out[0], out[4], out[5]), (inf, inf, 1e-45 + 1e-45), "{device}");
        assert!(out[1].is_nan() && out[2].is_nan());
        assert_eq!(out[3].to_bits(), (-0.0f32).to_bits());
    }
}

#[test]
fn bad_arguments_are_named() {
    for device in common::devices() {
        let floats = |shape: &[u64]| AnyTensor::zeros(&device, DType::F32, shape).unwrap();
        let text = |a: &AnyTensor, b: &AnyTensor| vector_add(a, b).unwrap_err().to_string();
        let halves = AnyTensor::zeros(&device, DType::F16, &[4]).unwrap();
        assert_eq!(text(&floats(&[4]), &halves), "b is f16; f32");
        assert_eq!(
            text(&floats(&[2, 3]), &floats(&[3, 2])),
            "b has shape [3, 2]; the shape of a, [2, 3], is needed"
        );
        let turned = floats(&[3, 2]).transpose(0, 1).unwrap();
        assert_eq!(
            text(&turned, &floats(&[2, 3])),
            "a: must be dense and aligned to 16 bytes"
        );
        let other = host::Device::emulator().unwrap();
        let elsewhere = AnyTensor::zeros(&other, DType::F32, &[4]).unwrap();
        assert!(matches!(
            vector_add(&floats(&[4]), &elsewhere),
            Err(Error::WrongDevice { argument: "b", .. })
        ));
        // None of it harmed the device.
        assert!(vector_add(&floats(&[4]), &floats(&[4])).is_ok());
    }
}
