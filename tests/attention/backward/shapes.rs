//! Shapes, layouts, masks, options.

use host::ops::Layout;
use host::reference::attention::{AttentionOptions, AttentionShape, Causal};
use host::{Device, Float, Tier, bf16, f16};

use super::{causal, check, grad_of, run};
use crate::on_all;
use crate::support::{Case, devices, every_option, shape};

/// Every kernel: all head dims, plain and extended, several tiles of rows and keys with ragged ends.
#[test]
fn every_head_dim() {
    fn body<T: Float>(device: &Device) {
        for dim in [64, 128, 256] {
            check(
                &Case::<T>::new(1, shape(1, (1, 1), (70, 85), dim)).with(causal()),
                device,
            );
            let extended = AttentionOptions {
                softcap: Some(3.0),
                ..causal()
            };
            check(
                &Case::<T>::new(2, shape(1, (1, 1), (35, 70), dim)).with(extended),
                device,
            );
        }
    }
    on_all!(body);
}

/// GPUs that run the kernels of sm_80 and have less shared memory than its first ones (sm_86, sm_89) or more (sm_100).
#[test]
fn other_shared_memory() {
    fn body<T: Float>(device: &Device) {
        for dim in [64, 128, 256] {
            for heads in [(1, 1), (2, 1)] {
                check(
                    &Case::<T>::new(3, shape(1, heads, (70, 85), dim)).with(causal()),
                    device,
                );
            }
        }
    }
    for kilobytes in [99, 227] {
        let device = &crate::common::ampere(kilobytes << 10);
        body::<f16>(device);
        body::<bf16>(device);
        body::<f32>(device);
    }
}

/// Head dims between the kernels', and values of another dim; NaN lies beyond the ends of rows.
#[test]
fn head_dims_between() {
    fn body<T: Float>(device: &Device) {
        for (dim, value_dim) in [(8, 8), (16, 72), (96, 40), (136, 128), (192, 128), (64, 200)] {
            let shape = AttentionShape {
                value_dim,
                ..shape(1, (2, 1), (19, 37), dim)
            };
            let case = Case {
                gap: 8,
                ..Case::<T>::new(3, shape)
            };
            check(&case, device);
        }
    }
    on_all!(body);
}

#[test]
fn ragged_lengths() {
    fn body<T: Float>(device: &Device) {
        for lengths in [(1, 1), (1, 129), (3, 99), (65, 63), (64, 64), (129, 17), (139, 1)] {
            let shape = shape(1, (1, 1), lengths, 32);
            check(&Case::<T>::new(4, shape), device);
            check(&Case::<T>::new(5, shape).with(causal()), device);
        }
    }
    on_all!(body);
}

/// More tiles than a kernel has buffers, own tiles beyond the first, packed ends in the midst of a tile.
#[test]
fn many_tiles() {
    fn body<T: Float>(device: &Device) {
        for dim in [64, 128, 256] {
            let shape = shape(1, (2, 1), (410, 150), dim);
            check(&Case::<T>::new(21, shape).with(causal()), device);
            let shape = AttentionShape {
                seq_q: 150,
                seq_kv: 410,
                ..shape
            };
            check(&Case::<T>::new(22, shape).with(causal()), device);
        }
    }
    for device in devices().iter().filter(|device| device.tier() != Tier::Sm75) {
        body::<bf16>(device);
    }
}

/// So many tiles of queries that tiles of keys go round them in a ring, which begins in their midst and has ragged ends.
#[test]
fn rings() {
    fn body<T: Float>(device: &Device) {
        check(&Case::<T>::new(23, shape(1, (2, 2), (4100, 300), 72)), device);
    }
    for device in devices().iter().filter(|device| device.tier() == Tier::Sm90a) {
        body::<f16>(device);
    }
}

#[test]
fn groups_share_keys() {
    fn body<T: Float>(device: &Device) {
        for heads in [(2, 2), (4, 2), (7, 1), (28, 4)] {
            check(&Case::<T>::new(6, shape(2, heads, (9, 21), 16)).with(causal()), device);
        }
    }
    on_all!(body);
}

#[test]
fn layouts_and_strides() {
    fn body<T: Float>(device: &Device) {
        for layout in [Layout::Bshd, Layout::Bhsd] {
            for gap in [0, 24] {
                let case = Case {
                    layout,
                    gap,
                    ..Case::<T>::new(7, shape(2, (4, 2), (33, 40), 24)).with(causal())
                };
                check(&case, device);
            }
        }
    }
    on_all!(body);
}

#[test]
fn masks() {
    fn body<T: Float>(device: &Device) {
        let windows = [
            (None, None),
            (Some(0), Some(0)),
            (Some(5), None),
            (None, Some(3)),
            (Some(70), Some(9)),
            (Some(u32::MAX), Some(u32::MAX)),
        ];
        for (seq_q, seq_kv) in [(20, 20), (7, 90), (70, 20)] {
            for causal in [Causal::None, Causal::BottomRight, Causal::TopLeft] {
                for (window_left, window_right) in windows {
                    let options = AttentionOptions {
                        causal,
                        window_left,
                        window_right,
                        ..Default::default()
                    };
                    check(
                        &Case::<T>::new(8, shape(1, (1, 1), (seq_q, seq_kv), 16)).with(options),
                        device,
                    );
                }
            }
        }
    }
    on_all!(body);
}

#[test]
fn options() {
    fn body<T: Float>(device: &Device) {
        let shape = shape(2, (4, 2), (37, 70), 32);
        for options in every_option() {
            check(&Case::<T>::new(9, shape).with(options), device);
        }
    }
    on_all!(body);
}

/// Rows without keys, and keys without rows, have gradients of exactly 0.
#[test]
fn rows_without_keys() {
    fn body<T: Float>(device: &Device) {
        for sinks in [None, Some(vec![-200.0, 0.25])] {
            let options = AttentionOptions { sinks, ..causal() };
            let case = Case::<T>::new(10, shape(1, (2, 1), (140, 5), 16)).with(options.clone());
            check(&case, device);
            let found = run(&case, device, &grad_of(&case)).unwrap();
            assert!(found.dq[..135 * 2 * 16].iter().all(|x| x.to_f32() == 0.0));
            check(
                &Case::<T>::new(10, shape(2, (2, 2), (3, 0), 16)).with(options.clone()),
                device,
            );
            check(&Case::<T>::new(10, shape(2, (2, 2), (0, 3), 16)).with(options), device);
        }
        let window = AttentionOptions {
            causal: Causal::TopLeft,
            ..Default::default()
        };
        let case = Case::<T>::new(10, shape(1, (1, 1), (3, 90), 16)).with(window);
        let found = run(&case, device, &grad_of(&case)).unwrap();
        let keys = found.dk[3 * 16..].iter().chain(&found.dv[3 * 16..]);
        assert!(keys.clone().count() == 2 * 87 * 16 && keys.into_iter().all(|x| x.to_f32() == 0.0));
    }
    on_all!(body);
}
