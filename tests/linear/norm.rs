//! A norm in front of the product.

use crate::common::devices;
use crate::support::{Case, Data, padded};
use ferroflash::{DType, Device, Float, LinearMode, Tensor, bf16, f16, linear};
use host::compare::same_bits;

/// A norm in front of a product, `[m, n]` in f32, in the mode that streams.
fn normed<T: Float>(device: &Device, data: &Data<T>, (m, n, k): (u64, u64, u64), centered: bool) -> Vec<f32> {
    let x = padded(device, &data.x[..(m * k) as usize], m, k, 8);
    let w = padded(device, &data.w, n, k, 8);
    let factor = Tensor::from_slice(device, &data.bias[..k as usize], &[k]).unwrap();
    let summand = Tensor::from_slice(device, &data.residual[..k as usize], &[k]).unwrap();
    let layer = linear(&x, &w).dtype(DType::F32).mode(LinearMode::Streaming);
    let layer = if centered {
        layer.layer_norm(&factor, Some(&summand), 1e-5)
    } else {
        layer.rms_norm(&factor, 1e-5)
    };
    let y = layer.constant_weight().run().unwrap();
    y.typed::<f32>("y").unwrap().to_vec().unwrap()
}

fn norms_in_front<T: Float>(device: &Device) {
    // The last one is longer than what threads hold of the factors.
    for (n, k) in [(24u64, 40u64), (72, 520), (48, 576), (16, 4616), (16, 4096)] {
        if k > 1000 && T::DTYPE != DType::F16 {
            continue;
        }
        let largest = Case::new(9, n.max(k), k);
        let data = Data::<T>::normal(&largest, 5);
        for centered in [false, true] {
            let all = normed(device, &data, (9, n, k), centered);
            for m in [1, 8] {
                let few = normed(device, &data, (m, n, k), centered);
                assert_eq!(
                    same_bits(&few, &all[..few.len()]),
                    Ok(()),
                    "{device}, {} {m}×{n}×{k}",
                    T::DTYPE
                );
            }
            for (row, out) in data.x.chunks(k as usize).zip(all.chunks(n as usize)) {
                let x: Vec<f64> = row.iter().map(|x| x.to_f64()).collect();
                let mean = if centered {
                    x.iter().sum::<f64>() / k as f64
                } else {
                    0.0
                };
                let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / k as f64;
                let h = x.iter().enumerate().map(|(i, x)| {
                    let summand = if centered { data.residual[i].to_f64() } else { 0.0 };
                    (x - mean) / (square + 1e-5).sqrt() * data.bias[i].to_f64() + summand
                });
                let h: Vec<f64> = h.collect();
                for (column, out) in out.iter().enumerate() {
                    let w = &data.w[column * k as usize..][..k as usize];
                    let exact: f64 = h.iter().zip(w).map(|(h, w)| h * w.to_f64()).sum();
                    let error = (f64::from(*out) - exact).abs();
                    assert!(
                        error < 0.02,
                        "{device}, {} {n}×{k}, column {column}: {out} for {exact}",
                        T::DTYPE
                    );
                }
            }
        }
    }
}

#[test]
fn a_norm_in_front() {
    for device in devices() {
        norms_in_front::<f32>(&device);
        norms_in_front::<f16>(&device);
        if device.tier() != host::Tier::Sm75 {
            norms_in_front::<bf16>(&device);
        }
    }
}
