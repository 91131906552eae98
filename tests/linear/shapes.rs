//! Extents, strides and layouts: every tail, ragged rows and columns, transposes, leading axes, and any of them at random.

use crate::common::devices;
use crate::support::{Case, Data, all_dtypes, check_close, check_exact, check_y, run};
use ferroflash::{Activation, Device, LinearMode, Tensor, Tier, WeightLayout, bf16, f16, linear};
use host::compare::same_bits;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[test]
fn every_tail_of_m() {
    for device in devices() {
        for m in [0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129] {
            let case = Case {
                bias: true,
                residual: true,
                ..Case::new(m, 24, 40)
            };
            all_dtypes!(check_exact(&device, case));
        }
    }
}

#[test]
fn every_layout_and_tail_of_n_and_k() {
    for device in devices() {
        for layout in [WeightLayout::Nk, WeightLayout::Kn] {
            for (n, k) in [
                (0, 8),
                (1, 1),
                (7, 13),
                (8, 0),
                (16, 16),
                (31, 33),
                (63, 64),
                (65, 31),
                (72, 96),
                (130, 32),
            ] {
                let case = Case {
                    layout,
                    bias: true,
                    ..Case::new(5, n, k)
                };
                all_dtypes!(check_exact(&device, case));
                // Rows of 16-byte multiples: the tensor core kernels take ragged extents too.
                let next = |extent: u64| extent.next_multiple_of(8) - extent;
                if next(n) == next(k) {
                    all_dtypes!(check_exact(
                        &device,
                        Case {
                            padding: next(k) + 8,
                            ..case
                        }
                    ));
                }
            }
        }
    }
}

#[test]
fn transposed_inputs() {
    for device in devices() {
        for (m, n, k) in [(24, 40, 16), (17, 9, 5), (72, 64, 33), (8, 8, 1)] {
            for layout in [WeightLayout::Nk, WeightLayout::Kn] {
                let case = Case {
                    x_transposed: true,
                    layout,
                    ..Case::new(m, n, k)
                };
                all_dtypes!(check_exact(&device, case));
                all_dtypes!(check_exact(
                    &device,
                    Case {
                        padding: m.next_multiple_of(8) - m,
                        ..case
                    }
                ));
            }
        }
    }
}

#[test]
fn the_large_tiles() {
    for device in devices() {
        for (layout, x_transposed) in [
            (WeightLayout::Nk, false),
            (WeightLayout::Kn, false),
            (WeightLayout::Kn, true),
        ] {
            // Four multiprocessors, so four tiles of 128 are enough for large ones on the emulator.
            let case = Case {
                layout,
                x_transposed,
                bias: true,
                ..Case::new(136, 248, 72)
            };
            check_exact::<f16>(&device, case);
            check_exact::<bf16>(
                &device,
                Case {
                    gated: true,
                    n: 136,
                    activation: Activation::Relu,
                    k: 40,
                    ..case
                },
            );
        }
    }
}

/// Exact in bf16; in f16 as `n` gated pairs without what is plain.
fn check_plain_and_gated(device: &Device, case: Case, n: u64) {
    check_y(device, case, Data::<bf16>::integers);
    let gated = Case {
        bias: false,
        residual: false,
        gated: true,
        n,
        ..case
    };
    check_y(device, gated, Data::<f16>::integers);
}

/// What Hopper's kernels of clusters take: nothing added to a 16-bit result that TMA can store. Several tiles a block,
/// tiles without rows beside others, ragged rows, columns and depths.
#[test]
fn several_tiles_a_block() {
    for device in devices() {
        for layout in [WeightLayout::Nk, WeightLayout::Kn] {
            for (m, n, k) in [
                (700, 520, 136),
                (129, 264, 200),
                (1030, 72, 72),
                (65, 1032, 64),
                (257, 200, 264),
            ] {
                let case = Case {
                    layout,
                    bias: true,
                    activation: Activation::Relu,
                    ..Case::new(m, n, k)
                };
                check_plain_and_gated(&device, case, n);
            }
        }
    }
}

/// The cooperative kernels: tiles of both widths and several a cluster, fewer steps than stages, ragged ends; the bits of
/// the others.
#[test]
fn cooperative_tiles() {
    for device in devices().into_iter().filter(|device| device.tier() == Tier::Sm90a) {
        let cooperative = Case {
            mode: LinearMode::HopperCooperative,
            bias: true,
            activation: Activation::Relu,
            ..Case::new(700, 1000, 200)
        };
        for (m, n, k) in [
            (700, 1000, 200),
            (257, 392, 64),
            (129, 264, 24),
            (1, 8, 456),
            (520, 760, 1096),
        ] {
            let case = Case { m, n, k, ..cooperative };
            check_plain_and_gated(&device, case, n);
        }
        let data = Data::<bf16>::normal(&cooperative, 5);
        let [one, other] = [LinearMode::Hopper, LinearMode::HopperCooperative]
            .map(|mode| run(&device, &Case { mode, ..cooperative }, &data).0);
        assert_eq!(same_bits(&one, &other), Ok(()));
    }
}

/// Few rows on Hopper: so many tiles that each warp of a block finishes several, and loads that follow x.
#[test]
fn many_tiles_of_few_rows() {
    for device in devices() {
        let blocks = u64::from(device.properties().multiprocessors);
        let many = 16 * blocks * 10 + 8;
        for (m, n, k) in [
            (1, many, 72),
            (2, many, 72),
            (3, many, 72),
            (8, many, 72),
            (1, 1040, 2600),
            (9, 40, 3592),
            (11, 48 * blocks, 1608),
            (16, 32 * blocks + 8, 3600),
        ] {
            let case = Case {
                bias: true,
                residual: true,
                activation: Activation::Relu,
                ..Case::new(m, n, k)
            };
            check_plain_and_gated(&device, case, n / 16 * 8);
        }
    }
}

/// Few rows on Hopper with whole tiles and loads: kernels that keep x in registers, slices of one load to sixteen, warps
/// without a slice, several tiles a block.
#[test]
fn few_rows_of_whole_tiles() {
    for device in devices() {
        let blocks = u64::from(device.properties().multiprocessors);
        for (m, n, k) in [
            (1, 16 * blocks * 10 + 16, 64),
            (4, 32 * blocks, 192),
            (8, 16 * blocks + 16, 576),
            (3, 48, 4096),
            (2, 48, 4160),
            (8, 32, 8192),
            (9, 48 * blocks + 32, 1600),
            (10, 48 * blocks + 16, 2688),
            (16, 16 * blocks, 2048),
            (12, 32 * blocks, 1600),
            (9, 32 * blocks, 4160),
            (13, 48, 4096),
        ] {
            let case = Case {
                bias: true,
                residual: true,
                activation: Activation::Relu,
                ..Case::new(m, n, k)
            };
            check_plain_and_gated(&device, case, n);
        }
    }
}

/// `mma.sync` by each of its tiles, ragged on all sides, in every layout.
#[test]
fn every_tile_of_the_tiled_mode() {
    for device in devices() {
        let n = 98 * u64::from(device.properties().multiprocessors);
        let sizes = [(60, 72, 104), (120, n, 40), (250, n, 72), (250, n, 200)];
        // What has no activation has an end of its own.
        let activations = [Activation::Identity, Activation::Relu];
        for ((m, n, k), activation) in sizes.into_iter().flat_map(|size| activations.map(|act| (size, act))) {
            let case = Case {
                mode: LinearMode::Tiled,
                bias: true,
                residual: true,
                activation,
                ..Case::new(m, n, k)
            };
            check_y(&device, case, Data::<f16>::integers);
            if device.tier() == Tier::Sm75 {
                continue;
            }
            check_plain_and_gated(&device, case, n / 16 * 8);
            let across = Case {
                layout: WeightLayout::Kn,
                padding: n.next_multiple_of(8) - n,
                ..case
            };
            check_y(&device, across, Data::<bf16>::integers);
            let both = Case {
                x_transposed: true,
                padding: 0,
                m: m.next_multiple_of(8),
                n: n.next_multiple_of(8),
                ..across
            };
            check_y(&device, both, Data::<bf16>::integers);
        }
    }
}

#[test]
fn batches_and_leading_axes() {
    for device in devices() {
        // Hopper's kernels take this batch by tiles of two widths, a problem alone by one.
        batch_of(&device, [3, 200, 320, 24]);
        // Whole loads have kernels of their own.
        for [b, m, n, k] in [[3, 5, 16, 24], [3, 5, 16, 192]] {
            let (x, w) = batch_of(&device, [b, m, n, k]);

            // One weight for all: leading axes merge, or stay two strides.
            let w = w.select(0, 0).unwrap();
            let merged = linear(&x, &w).run().unwrap();
            let swapped = x.transpose(0, 1).unwrap();
            let y = linear(&swapped, &w).run().unwrap();
            assert_eq!(y.shape(), [m, b, n]);
            let back = y.transpose(0, 1).unwrap().typed::<f16>("y").unwrap().to_vec().unwrap();
            assert_eq!(
                same_bits(&back, &merged.typed::<f16>("y").unwrap().to_vec().unwrap()),
                Ok(())
            );
            let vector = linear(&x.select(0, 0).unwrap().select(0, 0).unwrap(), &w)
                .run()
                .unwrap();
            assert_eq!(vector.shape(), [n]);
        }
    }
}

/// A batch has the bits of its problems one by one; its inputs are returned.
fn batch_of(device: &Device, [b, m, n, k]: [u64; 4]) -> (Tensor<f16>, Tensor<f16>) {
    let case = Case {
        bias: true,
        ..Case::new(m, n, k)
    };
    let data: Vec<Data<f16>> = (0..b).map(|i| Data::normal(&case, 100 + i)).collect();
    let join = |part: fn(&Data<f16>) -> &Vec<f16>| data.iter().flat_map(|d| part(d).clone()).collect::<Vec<f16>>();
    let x = Tensor::from_slice(device, &join(|d| &d.x), &[b, m, k]).unwrap();
    let w = Tensor::from_slice(device, &join(|d| &d.w), &[b, n, k]).unwrap();
    let bias = Tensor::from_slice(device, &join(|d| &d.bias), &[b, n]).unwrap();
    let y = linear(&x, &w).bias(&bias).run().unwrap();
    assert_eq!(y.shape(), [b, m, n]);
    let batched = y.typed::<f16>("y").unwrap().to_vec().unwrap();
    let mut single = Vec::new();
    for i in 0..b {
        let (x, w, bias) = (
            x.select(0, i).unwrap(),
            w.select(0, i).unwrap(),
            bias.select(0, i).unwrap(),
        );
        single.extend(
            linear(&x, &w)
                .bias(&bias)
                .run()
                .unwrap()
                .typed::<f16>("y")
                .unwrap()
                .to_vec()
                .unwrap(),
        );
    }
    assert_eq!(same_bits(&batched, &single), Ok(()));
    (x, w)
}

#[test]
fn any_shape_and_option() {
    let cases = (
        (0u64..70, 0u64..70, 0u64..70),
        (any::<bool>(), any::<bool>(), 0u64..9),
        (0usize..5, any::<bool>(), any::<bool>(), any::<bool>()),
        prop_oneof![Just(1.0f32), Just(-0.5), Just(2.0)],
    )
        .prop_map(
            |((m, n, k), (kn, x_transposed, padding), (activation, gated, bias, residual), alpha)| Case {
                m,
                n,
                k,
                layout: if kn { WeightLayout::Kn } else { WeightLayout::Nk },
                padding,
                x_transposed,
                activation: Activation::ALL[activation],
                gated,
                alpha,
                bias,
                residual,
                mode: LinearMode::Auto,
            },
        );
    for device in devices() {
        TestRunner::new(crate::common::problems(24))
            .run(&cases, |case| {
                all_dtypes!(check_close(&device, case, 21));
                Ok(())
            })
            .unwrap();
    }
}
