//! What a result may depend on: not on the number of rows, not on the run, not on NaN of another row.

use crate::common::devices;
use crate::support::{Case, Data, run};
use ferroflash::{Activation, AnyTensor, DType, Device, Float, LinearMode, WeightLayout, bf16, f16, linear};
use host::compare::same_bits;

/// The modes that take a dtype on a device.
fn modes(device: &Device, dtype: DType) -> Vec<LinearMode> {
    let x = AnyTensor::zeros(device, dtype, &[2, 32]).unwrap();
    let w = AnyTensor::zeros(device, dtype, &[32, 32]).unwrap();
    LinearMode::ALL
        .into_iter()
        .filter(|&mode| linear(&x, &w).mode(mode).run().is_ok())
        .collect()
}

fn rows_do_not_depend_on_m<T: Float>(device: &Device) {
    for mode in modes(device, T::DTYPE) {
        if mode == LinearMode::Auto {
            continue;
        }
        for layout in [WeightLayout::Nk, WeightLayout::Kn] {
            let whole = Case {
                mode,
                layout,
                bias: true,
                activation: Activation::GeluTanh,
                ..Case::new(130, 136, 328)
            };
            parts_equal_the_whole::<T>(device, &whole, &[1, 3, 16, 17]);
        }
    }
    // Every tile of products by `mma.sync` has a kernel of its own, with the same bits.
    let blocks = u64::from(device.properties().multiprocessors);
    let tiled = Case {
        mode: LinearMode::Tiled,
        ..Case::new(250, 98 * blocks, 72)
    };
    if T::DTYPE != DType::F32 {
        parts_equal_the_whole::<T>(device, &tiled, &[17, 120]);
    }
    // Deep slices of k have kernels of their own.
    let deep = Case {
        mode: LinearMode::Streaming,
        bias: true,
        ..Case::new(20, 40, 3656)
    };
    parts_equal_the_whole::<T>(device, &deep, &[1, 8, 9, 16]);
    parts_equal_the_whole::<T>(device, &Case { k: 1608, ..deep }, &[1, 8, 9, 16]);
    // So have whole tiles.
    for k in [64, 1088, 4096, 4160] {
        parts_equal_the_whole::<T>(device, &Case { n: 48, k, ..deep }, &[1, 5, 8, 9, 16]);
    }
    let passing = Case {
        n: 32 * blocks,
        k: 1600,
        ..deep
    };
    parts_equal_the_whole::<T>(device, &passing, &[1, 8, 9, 16]);
}

/// So many rows of `whole` alone have the bits that they have in it.
fn parts_equal_the_whole<T: Float>(device: &Device, whole: &Case, parts: &[u64]) {
    let data = Data::<T>::normal(whole, 3);
    let (all, _) = run(device, whole, &data);
    for &m in parts {
        let part = Data {
            x: data.x[..(m * whole.k) as usize].to_vec(),
            w: data.w.clone(),
            bias: data.bias.clone(),
            residual: data.residual[..(m * whole.n) as usize].to_vec(),
        };
        let (y, _) = run(device, &Case { m, ..*whole }, &part);
        assert_eq!(
            same_bits(&y, &all[..y.len()]),
            Ok(()),
            "{device}, {} in {:?}, {m} rows",
            T::DTYPE,
            whole.mode
        );
    }
}

#[test]
fn a_row_does_not_depend_on_the_number_of_rows() {
    for device in devices() {
        rows_do_not_depend_on_m::<f16>(&device);
        rows_do_not_depend_on_m::<f32>(&device);
    }
}

#[test]
fn same_inputs_same_bits() {
    for device in devices() {
        for m in [1, 4, 70] {
            let case = Case {
                bias: true,
                activation: Activation::Silu,
                ..Case::new(m, 72, 264)
            };
            let data = Data::<bf16>::normal(&case, 8);
            let (first, _) = run(&device, &case, &data);
            for _ in 0..2 {
                assert_eq!(same_bits(&run(&device, &case, &data).0, &first), Ok(()));
            }
        }
    }
}

#[test]
fn a_live_nan_stays_in_its_row() {
    for device in devices() {
        let case = Case::new(4, 16, 32);
        let mut data = Data::<f16>::integers(&case);
        data.x[32 + 5] = f16::NAN;
        let (y, _) = run(&device, &case, &data);
        for (i, y) in y.iter().enumerate() {
            assert_eq!(y.is_nan(), i / 16 == 1, "element {i}");
        }
    }
}
