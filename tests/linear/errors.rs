//! What a linear layer refuses, and how it says so.

use crate::common::devices;
use ferroflash::{AnyTensor, DType, Error, LinearMode, WeightLayout, linear};

#[test]
fn bad_input_is_named() {
    let device = devices().remove(0);
    let tensor = |dtype, shape: &[u64]| AnyTensor::zeros(&device, dtype, shape).unwrap();
    let x = tensor(DType::F16, &[2, 8]);
    let w = tensor(DType::F16, &[4, 8]);
    let bias = tensor(DType::F16, &[4]);
    let residual = tensor(DType::F16, &[2, 4]);
    let message = |result: Result<AnyTensor, Error>| result.unwrap_err().to_string();
    assert!(linear(&x, &w).bias(&bias).residual(&residual).run().is_ok());
    assert!(message(linear(&tensor(DType::I32, &[2, 8]), &w).run()).starts_with("x is i32"));
    assert!(message(linear(&x, &tensor(DType::BF16, &[4, 8])).run()).starts_with("w is bf16"));
    assert!(message(linear(&x, &tensor(DType::F16, &[4, 9])).run()).contains("its k is 9"));
    assert!(message(linear(&x, &tensor(DType::F16, &[8])).run()).starts_with("w has shape [8]"));
    assert!(message(linear(&x, &w).layout(WeightLayout::Kn).run()).contains("its k is 4"));
    assert!(message(linear(&x, &w).bias(&tensor(DType::F16, &[5])).run()).starts_with("bias has shape [5]"));
    assert!(message(linear(&x, &w).residual(&tensor(DType::F16, &[4, 2])).run()).starts_with("residual has shape"));
    assert!(message(linear(&x, &tensor(DType::F16, &[3, 8])).swiglu().run()).contains("even number of columns"));
    assert!(message(linear(&x, &w).dtype(DType::I64).run()).starts_with("y is i64"));
    assert!(message(linear(&x, &tensor(DType::F16, &[3, 4, 8])).run()).starts_with("x has shape"));
    assert!(
        linear(&x, &w)
            .run_into(&tensor(DType::F16, &[2, 5]))
            .unwrap_err()
            .to_string()
            .starts_with("y has shape")
    );
    let spread = tensor(DType::F16, &[4, 2]).transpose(0, 1).unwrap();
    assert!(message(linear(&x, &w).residual(&spread).run()).contains("the last axis must be dense"));
    // y may not be an input.
    let square = tensor(DType::F16, &[2, 8]);
    let into = linear(&square, &tensor(DType::F16, &[8, 8]))
        .run_into(&square)
        .unwrap_err();
    assert!(matches!(into, Error::Layout { argument: "y", .. }), "{into}");
    let odd = tensor(DType::F16, &[2, 7]);
    let refused = linear(&odd, &tensor(DType::F16, &[4, 7])).mode(LinearMode::Tiled).run();
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
}
