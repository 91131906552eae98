//! What follows the product: gated pairs, activations, results of another dtype.

use crate::common::devices;
use crate::support::{Case, Data, all_dtypes, check_close, check_exact};
use ferroflash::{Activation, DType, Tensor, WeightLayout, bf16, f16, linear};
use host::compare::{Rule, compare};
use host::reference::Exact;

#[test]
fn gated_pairs() {
    for device in devices() {
        for layout in [WeightLayout::Nk, WeightLayout::Kn] {
            for (m, n, k) in [(3, 24, 40), (2, 7, 9), (66, 33, 16), (1, 8, 8)] {
                let case = Case {
                    layout,
                    gated: true,
                    activation: Activation::Relu,
                    bias: true,
                    residual: true,
                    ..Case::new(m, n, k)
                };
                all_dtypes!(check_exact(&device, case));
                all_dtypes!(check_close(
                    &device,
                    Case {
                        activation: Activation::Silu,
                        ..case
                    },
                    11
                ));
            }
        }
    }
}

#[test]
fn activations_within_the_rule() {
    for device in devices() {
        for activation in Activation::ALL {
            let case = Case {
                activation,
                bias: true,
                residual: true,
                alpha: 0.75,
                ..Case::new(9, 40, 72)
            };
            all_dtypes!(check_close(&device, case, 5));
            all_dtypes!(check_close(&device, Case { gated: true, ..case }, 6));
        }
    }
}

/// Activations at any argument, by a product with the identity.
#[test]
fn activations_from_minus_to_plus_infinity() {
    let points = [
        f32::NEG_INFINITY,
        -1e38,
        -1e4,
        -100.0,
        -40.0,
        -13.0,
        -6.5,
        -5.0,
        -3.0,
        -1.0,
        -0.7517916,
        -0.5,
        -1e-3,
        -1e-20,
        -0.0,
        0.0,
        1e-20,
        1e-3,
        0.5,
        1.0,
        2.0,
        3.0,
        5.0,
        6.5,
        13.0,
        100.0,
        1e4,
        1e38,
        f32::INFINITY,
        f32::NAN,
    ];
    for device in devices() {
        let n = points.len() as u64;
        let x = Tensor::<f32>::from_slice(&device, &[], &[1, 0]).unwrap();
        let w = Tensor::<f32>::from_slice(&device, &[], &[n, 0]).unwrap();
        let bias = Tensor::from_slice(&device, &points, &[n]).unwrap();
        for activation in Activation::ALL {
            let y = linear(&x, &w).bias(&bias).activation(activation).run().unwrap();
            let y = y.typed::<f32>("y").unwrap().to_vec().unwrap();
            for (&point, y) in points.iter().zip(y) {
                let exact = activation.value::<Exact>(point as f64);
                // Relative to the result where it is normal: also far out, where the result nearly vanishes.
                let close = (y as f64 - exact).abs() <= 4e-6 * exact.abs() + 1e-37;
                let same = y as f64 == exact || (y.is_nan() && exact.is_nan());
                assert!(close || same, "{device}, {activation:?}({point}) = {y}, not {exact}");
                assert!(
                    y.is_nan() || exact == 0.0 || y == 0.0 || (y > 0.0) == (exact > 0.0),
                    "{activation:?}({point}) = {y}"
                );
            }
        }
    }
}

#[test]
fn outputs_of_another_dtype() {
    for device in devices() {
        let case = Case {
            bias: true,
            ..Case::new(5, 19, 24)
        };
        let data = Data::<f16>::integers(&case);
        let expected = data.expected::<Exact>(&case).y;
        let x = Tensor::from_slice(&device, &data.x, &[5, 24]).unwrap();
        let w = Tensor::from_slice(&device, &data.w, &[19, 24]).unwrap();
        let wide: Vec<f32> = data.bias.iter().map(|b| b.to_f32()).collect();
        let bias = Tensor::from_slice(&device, &wide, &[19]).unwrap();
        let layer = linear(&x, &w).bias(&bias);
        let y = layer
            .clone()
            .dtype(DType::F32)
            .run()
            .unwrap()
            .typed::<f32>("y")
            .unwrap()
            .to_vec()
            .unwrap();
        assert!(compare(&y, &expected, Rule::Exact).is_ok());
        let y = layer
            .dtype(DType::BF16)
            .run()
            .unwrap()
            .typed::<bf16>("y")
            .unwrap()
            .to_vec()
            .unwrap();
        assert!(compare(&y, &expected, Rule::Exact).is_ok());
    }
}
