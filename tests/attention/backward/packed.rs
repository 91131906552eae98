//! Packed sequences.

use host::ops::attention;
use host::reference::attention::{self as reference, AttentionOptions};
use host::reference::data::normal;
use host::reference::{Eager, Exact, widen};
use host::{AnyTensor, Device, Float, Tensor, f16};

use super::{Gradients, causal, judge};
use crate::on_all;
use crate::packed::{DIM, Packed, upload};
use crate::support::devices;

/// Packed sequences, empty members first, in the middle and last; NaN follows the last token, and its gradient is 0.
#[test]
fn packed_sequences() {
    fn body<T: Float>(device: &Device) {
        let lengths: [&[(usize, usize)]; 4] = [
            &[(5, 5), (17, 30), (1, 70)],
            &[(0, 0), (3, 9), (0, 4), (70, 0), (2, 2), (0, 0)],
            &[(33, 90), (90, 33)],
            &[(150, 270), (0, 5), (131, 129)],
        ];
        for lengths in lengths {
            for options in [
                causal(),
                AttentionOptions {
                    window_left: Some(9),
                    window_right: Some(2),
                    sinks: Some(vec![0.1; 4]),
                    ..Default::default()
                },
                AttentionOptions {
                    softcap: Some(2.0),
                    alibi_slopes: Some((0..4 * lengths.len()).map(|i| 0.1 * i as f64).collect()),
                    ..causal()
                },
            ] {
                packed::<T>(device, lengths, options);
            }
        }
    }
    on_all!(body);
}

pub fn packed<T: Float>(device: &Device, lengths: &[(usize, usize)], options: AttentionOptions) {
    let case = Packed::<T>::new(device, lengths, options);
    let (total_q, total_k) = (case.shape.seq_q, case.shape.seq_kv);
    let grad = normal::<T>(23, total_q * 4 * DIM);
    let context = case.call(device).run_with_context().unwrap();
    let result = context.backward(&upload(device, &grad, 4)).unwrap();
    let values = |tensor: &AnyTensor, tokens: usize| {
        let mut all = tensor.typed::<T>("gradient").unwrap().to_vec().unwrap();
        let dead = all.split_off(tokens * tensor.extent(1) as usize * DIM);
        assert!(dead.iter().all(|x| x.to_f32() == 0.0), "gradients of no sequence");
        all
    };
    let found = Gradients {
        dq: values(&result.dq, total_q),
        dk: values(&result.dk, total_k),
        dv: values(&result.dv, total_k),
        dsinks: result
            .dsinks
            .map(|dsinks| dsinks.typed::<f32>("dsinks").unwrap().to_vec().unwrap()),
    };
    let [q, k, v] = &case.wide();
    let (data, bounds) = ((&q[..], &k[..], &v[..]), (&case.cu[0][..], &case.cu[1][..]));
    let grad = widen(&grad);
    let exact = reference::backward_varlen::<Exact>(&case.shape, &case.options, data, bounds, &grad);
    let naive = reference::backward_varlen::<Eager<T>>(&case.shape, &case.options, data, bounds, &grad);
    judge(&found, &exact, &naive)
        .unwrap_or_else(|report| panic!("{device} {} {lengths:?} {:?}: {report}", T::DTYPE, case.options));
}

/// Bounds that leave the tensors or do not ascend are cut: no access outside (the emulator would fault).
#[test]
fn wrong_bounds_stay_inside() {
    for device in devices() {
        let x = Tensor::<f16>::zeros(device, &[10, 2, 16]).unwrap();
        for bounds in [[0, 5, 40], [7, 3, 10], [-4, 2, 10], [0, i32::MAX, i32::MIN]] {
            let cu = Tensor::from_slice(device, &bounds, &[3]).unwrap();
            let context = attention(&x, &x, &x)
                .cu_seqlens(&cu, &cu, 10, 10)
                .run_with_context()
                .unwrap();
            context.backward(&x).unwrap();
            device.synchronize().unwrap();
        }
    }
}
