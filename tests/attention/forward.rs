//! Results: shapes, options, hostile data.

use host::compare::same_bits;
use host::ops::{Layout, attention};
use host::reference::attention::{self as reference, AttentionOptions, AttentionShape, Causal};
use host::reference::data::{Distribution, plant};
use host::reference::{Eager, Exact, widen};
use host::{DType, Device, Float, Tensor, Tier, f16};

use crate::on_all;
use crate::packed::Packed;
use crate::support::{Case, DIMS, causal, devices, every_option, shape};

/// GPUs that run the kernels of sm_80 and have less shared memory than its first ones (sm_86, sm_89) or more (sm_100).
#[test]
fn other_shared_memory() {
    fn body<T: Float>(device: &Device) {
        for dim in DIMS {
            let case = Case::<T>::new(1, shape(1, (2, 1), (70, 133), dim));
            case.with(causal()).check(device);
        }
    }
    for kilobytes in [99, 227] {
        let device = &crate::common::ampere(kilobytes << 10);
        body::<f16>(device);
        body::<f32>(device);
    }
}

/// Every kernel: all head dims, plain and extended, several tiles of rows and keys with ragged ends.
#[test]
fn every_head_dim() {
    fn body<T: Float>(device: &Device) {
        for dim in DIMS {
            Case::<T>::new(1, shape(1, (1, 1), (70, 133), dim))
                .with(causal())
                .check(device);
            let extended = AttentionOptions {
                softcap: Some(3.0),
                ..causal()
            };
            Case::<T>::new(2, shape(1, (1, 1), (35, 133), dim))
                .with(extended)
                .check(device);
        }
    }
    on_all!(body);
}

/// Head dims between the kernels', and values of another dim; NaN lies beyond the ends of rows.
#[test]
fn head_dims_between() {
    fn body<T: Float>(device: &Device) {
        for (dim, value_dim) in [
            (8, 8),
            (16, 72),
            (40, 40),
            (72, 64),
            (104, 120),
            (136, 128),
            (192, 128),
            (200, 248),
        ] {
            let shape = AttentionShape {
                value_dim,
                ..shape(1, (2, 1), (19, 37), dim)
            };
            Case {
                gap: 8,
                ..Case::<T>::new(3, shape)
            }
            .check(device);
        }
    }
    on_all!(body);
}

#[test]
fn ragged_lengths() {
    fn body<T: Float>(device: &Device) {
        let lengths = [
            (1, 1),
            (1, 2),
            (1, 63),
            (1, 129),
            (2, 1),
            (3, 199),
            (63, 65),
            (64, 64),
            (65, 63),
            (113, 203),
            (129, 17),
            (239, 1),
        ];
        for (seq_q, seq_kv) in lengths {
            let shape = shape(1, (1, 1), (seq_q, seq_kv), 32);
            Case::<T>::new(4, shape).check(device);
            Case::<T>::new(5, shape).with(causal()).check(device);
        }
    }
    on_all!(body);
}

#[test]
fn groups_share_keys() {
    fn body<T: Float>(device: &Device) {
        for (heads_q, heads_kv) in [(2, 2), (4, 2), (6, 1), (7, 1), (28, 4), (32, 1)] {
            Case::<T>::new(6, shape(2, (heads_q, heads_kv), (9, 21), 16))
                .with(causal())
                .check(device);
        }
    }
    on_all!(body);
}

#[test]
fn layouts_and_strides() {
    fn body<T: Float>(device: &Device) {
        for layout in [Layout::Bshd, Layout::Bhsd] {
            for gap in [0, 8, 24] {
                Case {
                    layout,
                    gap,
                    ..Case::<T>::new(7, shape(2, (4, 2), (33, 40), 24)).with(causal())
                }
                .check(device);
            }
        }
    }
    on_all!(body);
}

#[test]
fn masks() {
    fn body<T: Float>(device: &Device) {
        let windows = [
            (Some(0), Some(0)),
            (Some(5), None),
            (None, Some(3)),
            (Some(17), Some(0)),
            (Some(70), Some(9)),
            (Some(u32::MAX), Some(u32::MAX)),
        ];
        for (seq_q, seq_kv) in [(40, 40), (7, 150), (150, 20)] {
            let base = Case::<T>::new(8, shape(1, (1, 1), (seq_q, seq_kv), 16));
            for causal in [Causal::None, Causal::BottomRight, Causal::TopLeft] {
                base.clone()
                    .with(AttentionOptions {
                        causal,
                        ..Default::default()
                    })
                    .check(device);
                for (window_left, window_right) in windows {
                    let options = AttentionOptions {
                        causal,
                        window_left,
                        window_right,
                        ..Default::default()
                    };
                    base.clone().with(options).check(device);
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
            Case::<T>::new(9, shape).with(options).check(device);
        }
    }
    on_all!(body);
}

/// Rows without keys are 0 with LSE −∞, or that of the sink, however small it is.
#[test]
fn rows_without_keys() {
    fn body<T: Float>(device: &Device) {
        let sinks = [None, Some(vec![-200.0, 0.25])];
        for sinks in sinks {
            let options = AttentionOptions { sinks, ..causal() };
            Case::<T>::new(10, shape(1, (2, 1), (140, 5), 16))
                .with(options.clone())
                .check(device);
            Case::<T>::new(10, shape(2, (2, 2), (3, 0), 16))
                .with(options)
                .check(device);
        }
    }
    on_all!(body);
}

/// Zero work of every kind.
#[test]
fn empty_tensors() {
    fn body<T: Float>(device: &Device) {
        for (batch, heads, lengths) in [
            (0, (2, 2), (3, 3)),
            (1, (2, 2), (0, 3)),
            (1, (0, 0), (3, 3)),
            (0, (0, 0), (0, 0)),
        ] {
            let case = Case::<T>::new(11, shape(batch, heads, lengths, 8));
            let (out, lse) = case.run(device).unwrap();
            assert_eq!((out.len(), lse.len()), (0, 0));
        }
    }
    on_all!(body);
}

/// Logits near −1000 with ragged tails: what is padding must not take part as 0. And all other distributions.
#[test]
fn hostile_data() {
    fn body<T: Float>(device: &Device) {
        let shape = shape(1, (2, 1), (20, 75), 64);
        for distribution in Distribution::ALL {
            let v = Case::<T>::drawn(12, shape, distribution).v;
            Case {
                v,
                ..Case::<T>::new(12, shape).with(causal())
            }
            .check(device);
        }
        let scores = [
            Distribution::Integers { magnitude: 3 },
            Distribution::Extremes { magnitude: 4.0 },
            Distribution::ConstantRows,
        ];
        // Products of constant rows round the same way at every step: 64 of them are beyond 10⁻⁵ in f32, and rightly so.
        let scores = &scores[..if T::DTYPE == DType::F32 { 2 } else { 3 }];
        for &distribution in scores {
            Case::<T>::drawn(12, shape, distribution).with(causal()).check(device);
        }
        // q = −12 and k = 10.4 everywhere: scores of −998.
        let mut case = Case::<T>::new(13, shape);
        case.q.fill(T::from_f32(-12.0));
        case.k.fill(T::from_f32(10.4));
        case.check(device);
        case.with(causal()).check(device);
    }
    on_all!(body);
}

/// NaN and infinity of live inputs arrive where they belong and nowhere else.
#[test]
fn live_nan_stays_in_its_rows() {
    fn body<T: Float>(device: &Device) {
        let base = Case::<T>::new(14, shape(2, (2, 2), (17, 30), 16));
        let mut case = base.clone();
        let row = 2 * 16;
        plant(&mut case.q, [(17 + 4) * row + 3], f32::NAN);
        let (out, lse) = case.run(device).unwrap();
        let (clean, clean_lse) = base.run(device).unwrap();
        for (i, (x, y)) in out.iter().zip(&clean).enumerate() {
            let hit = i / row == 17 + 4 && i % row < 16;
            assert!(
                if hit {
                    x.to_f32().is_nan()
                } else {
                    x.to_f32() == y.to_f32()
                },
                "{} element {i}",
                case.describe(device)
            );
        }
        let hit = |i| i == (2 * 17) + 4;
        assert!((0..lse.len()).all(|i| if hit(i) {
            lse[i].is_nan()
        } else {
            lse[i] == clean_lse[i]
        }));

        let mut case = base.clone();
        plant(&mut case.v, [(5 * 2 + 1) * 16 + 2], f32::NAN);
        let (out, _) = case.run(device).unwrap();
        for (i, (x, y)) in out.iter().zip(&clean).enumerate() {
            let hit = i / row < 17 && i % row == 16 + 2;
            assert!(
                if hit {
                    x.to_f32().is_nan()
                } else {
                    x.to_f32() == y.to_f32()
                },
                "{} element {i}",
                case.describe(device)
            );
        }
    }
    on_all!(body);
}

/// With one key the output is its value: every index must be right.
#[test]
fn one_hot_attention_is_exact() {
    fn body<T: Float>(device: &Device) {
        // Key j is 64 at element j: query i has a score that drowns all others at key (5·i) mod 40.
        let s = shape(2, (2, 1), (50, 40), 40);
        let mut case = Case::<T>::new(15, s).with(AttentionOptions {
            scale: Some(1.0),
            ..Default::default()
        });
        for (i, x) in case.k.iter_mut().enumerate() {
            *x = T::from_f32(if i / 40 % 40 == i % 40 { 64.0 } else { 0.0 });
        }
        for (i, x) in case.q.iter_mut().enumerate() {
            *x = T::from_f32(if i % 40 == 5 * (i / 80 % 50) % 40 { 8.0 } else { 0.0 });
        }
        for (i, x) in case.v.iter_mut().enumerate() {
            *x = T::from_f32((i % 251) as f32 - 125.0);
        }
        let (out, _) = case.run(device).unwrap();
        for (i, x) in out.iter().enumerate() {
            let (batch, row, column) = (i / (50 * 80), i / 80 % 50, i % 40);
            let at = (batch * 40 + 5 * row % 40) * 40 + column;
            assert_eq!(x.to_f32(), case.v[at].to_f32(), "{} element {i}", case.describe(device));
        }
    }
    on_all!(body);
}

/// f16 with normal inputs is within 1e-3.
#[test]
fn f16_is_within_a_thousandth() {
    for device in devices() {
        let case = Case::<f16>::new(16, shape(1, (2, 2), (64, 200), 64));
        let (out, _) = case.run(device).unwrap();
        let exact = reference::forward::<Exact>(
            &case.shape,
            &case.options,
            &widen(&case.q),
            &widen(&case.k),
            &widen(&case.v),
        );
        let worst = out
            .iter()
            .zip(&exact.out)
            .map(|(x, y)| (x.to_f64() - y).abs())
            .fold(0.0, f64::max);
        assert!(worst < 1e-3, "{}: {worst}", case.describe(device));
    }
}

/// f32 is within 10⁻⁵ of each element, also where thousands of values of one sign add up: a sum that is cut off at every
/// step loses as much at each.
#[test]
fn f32_is_within_a_hundred_thousandth() {
    for device in devices() {
        for dim in [64, 128, 256] {
            let mut case = Case::<f32>::new(17, shape(1, (1, 1), (16, 3000), dim));
            case.v.iter_mut().for_each(|x| *x = 1.0 + x.abs());
            let (out, _) = case.run(device).unwrap();
            let exact = reference::forward::<Exact>(
                &case.shape,
                &case.options,
                &widen(&case.q),
                &widen(&case.k),
                &widen(&case.v),
            );
            let errors = out.iter().zip(&exact.out).map(|(x, y)| (f64::from(*x) - y).abs() / y);
            let worst = errors.fold(0.0, f64::max);
            assert!(worst < 1e-5, "{}: {worst}", case.describe(device));
        }
    }
}

/// Packed sequences, empty members first, in the middle and last; NaN follows the last token.
#[test]
fn packed_sequences() {
    fn body<T: Float>(device: &Device) {
        let lengths: [&[(usize, usize)]; 4] = [
            &[(5, 5), (17, 30), (1, 70)],
            &[(0, 0), (3, 9), (0, 4), (70, 0), (2, 2), (0, 0)],
            &[(33, 150), (150, 33)],
            &[(0, 0), (0, 0)],
        ];
        for lengths in lengths {
            for options in [
                AttentionOptions::default(),
                causal(),
                AttentionOptions {
                    causal: Causal::TopLeft,
                    ..Default::default()
                },
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
    let result = case.call(device).run().unwrap();
    let total_q = case.shape.seq_q;
    let out = result
        .out
        .slice(0, 0..total_q as u64)
        .unwrap()
        .typed::<T>("out")
        .unwrap()
        .to_vec()
        .unwrap();
    let lse = result
        .lse
        .slice(1, 0..total_q as u64)
        .unwrap()
        .typed::<f32>("lse")
        .unwrap()
        .to_vec()
        .unwrap();
    let [q, k, v] = &case.wide();
    let (data, bounds) = ((&q[..], &k[..], &v[..]), (&case.cu[0][..], &case.cu[1][..]));
    let exact = reference::forward_varlen::<Exact>(&case.shape, &case.options, data, bounds);
    let naive = reference::forward_varlen::<Eager<T>>(&case.shape, &case.options, data, bounds);
    let [q, k, v] = case.data;
    Case::<T> {
        shape: case.shape,
        options: case.options,
        layout: Layout::Bshd,
        q,
        k,
        v,
        gap: 0,
    }
    .judge(device, &out, &lse, &exact, &naive);
}

/// Bounds that leave the tensors or do not ascend are cut: wrong rows perhaps, but no access outside (the emulator
/// would fault).
#[test]
fn wrong_bounds_stay_inside() {
    for device in devices() {
        let q = Tensor::<f16>::zeros(device, &[10, 2, 16]).unwrap();
        for bounds in [[0, 5, 40], [7, 3, 10], [-4, 2, 10], [0, i32::MAX, i32::MIN]] {
            let cu = Tensor::from_slice(device, &bounds, &[3]).unwrap();
            attention(&q, &q, &q).cu_seqlens(&cu, &cu, 10, 10).run().unwrap();
            device.synchronize().unwrap();
        }
    }
}

/// More planes than the second grid dimension takes.
#[test]
fn more_than_65535_heads() {
    for device in devices().iter().filter(|device| !device.is_emulator()) {
        let case = Case::<f16>::new(30, shape(70_000, (1, 1), (1, 1), 8));
        let (out, _) = case.run(device).unwrap();
        same_bits(&out, &case.v).unwrap();
    }
}

/// Enough tiles under a causal mask for blocks to take them from a counter. Rows that stand at the first keys keep it small.
#[test]
fn tiles_from_a_counter() {
    let top_left = AttentionOptions {
        causal: Causal::TopLeft,
        ..Default::default()
    };
    let window = AttentionOptions {
        causal: Causal::BottomRight,
        window_left: Some(100),
        ..Default::default()
    };
    for device in devices().iter().filter(|device| device.tier() == Tier::Sm90a) {
        for (heads, head_dim) in [(600, 8), (530, 72)] {
            Case::<f16>::new(31, shape(1, (heads, 1), (9, 4096), head_dim))
                .with(top_left.clone())
                .check(device);
            Case::<f16>::new(33, shape(1, (heads, 1), (9, 300), head_dim))
                .with(window.clone())
                .check(device);
        }
    }
}

/// Tiles of as many keys have the same bits, so that the number of sequences and heads may choose the rows.
#[test]
fn rows_of_a_tile_change_no_bits() {
    for device in devices().iter().filter(|device| device.tier() == Tier::Sm90a) {
        let case = Case::<f16>::new(32, shape(1, (2, 1), (300, 330), 64)).with(causal());
        let [q, k, v] = case.tensors(device);
        let run = |rows| {
            let result = attention(&q, &k, &v).causal().block_m(rows).block_n(64).run().unwrap();
            let out = result.out.typed::<f16>("out").unwrap().to_vec().unwrap();
            (out, result.lse.typed::<f32>("lse").unwrap().to_vec().unwrap())
        };
        let ((tall, tall_lse), (low, low_lse)) = (run(256), run(128));
        same_bits(&tall, &low).unwrap();
        same_bits(&tall_lse, &low_lse).unwrap();
    }
}

/// Windows inside which each warpgroup of a tile sees as many tiles of keys, and their ends, where it does not.
#[test]
fn long_windows() {
    for device in devices().iter().filter(|device| device.tier() == Tier::Sm90a) {
        for (heads, head_dim, seq) in [(2, 64, 900), (16, 128, 500)] {
            for (left, right) in [(200, 0), (130, 64)] {
                let options = AttentionOptions {
                    window_left: Some(left),
                    window_right: Some(right),
                    ..Default::default()
                };
                for seq_kv in [seq, seq + 37] {
                    let shape = shape(1, (heads, heads / 2), (seq, seq_kv), head_dim);
                    Case::<f16>::new(33, shape).with(options.clone()).check(device);
                }
            }
        }
    }
}
