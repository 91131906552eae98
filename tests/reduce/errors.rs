//! What reductions refuse, and those of nothing.

use crate::common;
use crate::support::{Output, run};
use host::{
    AnyTensor, DType, Device, Element, Tensor,
    ops::{ReduceAxis, ReduceKind, reduce},
};

#[test]
fn of_nothing() {
    for device in common::devices() {
        let empty = |shape: &[u64]| AnyTensor::empty(&device, DType::F32, shape).unwrap();
        for kind in [ReduceKind::Sum, ReduceKind::SumOfSquares] {
            assert_eq!(run(&empty(&[0]), kind, ReduceAxis::All), Output::Values(vec![0]));
            assert_eq!(run(&empty(&[3, 0]), kind, ReduceAxis::All), Output::Values(vec![0]));
            assert_eq!(run(&empty(&[3, 0]), kind, ReduceAxis::Last), Output::Values(vec![0; 3]));
        }
        for (kind, name) in [
            (ReduceKind::Mean, "Mean"),
            (ReduceKind::Max, "Max"),
            (ReduceKind::Min, "Min"),
            (ReduceKind::Argmax, "Argmax"),
        ] {
            let error = reduce(&empty(&[3, 0]), kind, ReduceAxis::Last).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("x has shape [3, 0]; {name} of nothing is not defined")
            );
            assert!(reduce(&empty(&[0]), kind, ReduceAxis::All).is_err());
            // No rows: nothing is asked of any.
            assert_eq!(reduce(&empty(&[0, 3]), kind, ReduceAxis::Last).unwrap().shape(), [0]);
        }
        assert_eq!(
            reduce(&empty(&[0, 0]), ReduceKind::Max, ReduceAxis::Last)
                .unwrap()
                .shape(),
            [0]
        );
    }
}

#[test]
fn bad_arguments_are_named() {
    for device in common::devices() {
        let text = |x: &AnyTensor, axis| reduce(x, ReduceKind::Sum, axis).unwrap_err().to_string();
        let integers = AnyTensor::zeros(&device, DType::I32, &[4]).unwrap();
        assert_eq!(text(&integers, ReduceAxis::All), "x is i32; f32, f16 or bf16");
        let matrix = AnyTensor::zeros(&device, DType::F32, &[4, 6]).unwrap();
        let turned = matrix.transpose(0, 1).unwrap();
        assert_eq!(text(&turned, ReduceAxis::Last), "x: the last axis must be dense");
        let gaps = matrix.slice(1, 0..3).unwrap();
        assert_eq!(
            text(&gaps, ReduceAxis::All),
            format!(
                "reshape: f32[4, 3] strides [6, 1] on {} cannot be viewed as [1, 12] without a copy",
                device.kind()
            )
        );
        let scalar = AnyTensor::zeros(&device, DType::F32, &[]).unwrap();
        assert_eq!(
            text(&scalar, ReduceAxis::Last),
            "x has shape []; at least one axis is needed to reduce the last one"
        );
        assert_eq!(run(&scalar, ReduceKind::Sum, ReduceAxis::All), Output::Values(vec![0]));
        assert!(reduce(&matrix, ReduceKind::Sum, ReduceAxis::Last).is_ok());
    }
}

/// `Element` is what a tensor of any type needs; a type that reductions do not take is refused by name.
#[test]
fn types_without_a_kernel() {
    fn refused<T: Element>(device: &Device) {
        let x = Tensor::<T>::zeros(device, &[8]).unwrap();
        let error = reduce(&x, ReduceKind::Max, ReduceAxis::All).unwrap_err().to_string();
        assert_eq!(error, format!("x is {}; f32, f16 or bf16", T::DTYPE));
    }
    let device = Device::emulator().unwrap();
    refused::<i32>(&device);
    refused::<i64>(&device);
    refused::<u8>(&device);
    refused::<host::E4M3>(&device);
}
