//! Reductions on every device and tier, against the f64 reference.

mod common;

use host::{
    AnyTensor, DType, Device, DeviceKind, DeviceOptions, Element, EmulatorOptions, Float, Tensor, bf16, f16,
    ops::{ReduceAxis, ReduceKind, reduce},
    reference::{
        Exact,
        data::{Generator, normal, poison},
        reduce::{Reduction, argmax, reduce as reference},
    },
};
use proptest::prelude::*;

/// Around lanes, vectors, blocks, the longest row of one warp, a split, and a few splits.
const LENGTHS: [usize; 13] = [
    1, 31, 32, 33, 255, 256, 4095, 4096, 4097, 32_767, 32_768, 32_769, 70_001,
];

/// Result of a reduction: values, or indices.
#[derive(Debug, PartialEq)]
enum Output {
    Values(Vec<u32>),
    Indices(Vec<i64>),
}

/// Reduces and downloads; values as bits.
fn run(x: &AnyTensor, kind: ReduceKind, axis: ReduceAxis) -> Output {
    let out = reduce(x, kind, axis).unwrap();
    if kind == ReduceKind::Argmax {
        Output::Indices(out.typed::<i64>("out").unwrap().to_vec().unwrap())
    } else {
        let values = out.typed::<f32>("out").unwrap().to_vec().unwrap();
        Output::Values(values.into_iter().map(f32::to_bits).collect())
    }
}

fn reference_of(kind: ReduceKind) -> Option<Reduction> {
    Some(match kind {
        ReduceKind::Sum => Reduction::Sum,
        ReduceKind::Mean => Reduction::Mean,
        ReduceKind::Max => Reduction::Max,
        ReduceKind::Min => Reduction::Min,
        ReduceKind::SumOfSquares => Reduction::SumOfSquares,
        ReduceKind::Argmax => return None,
    })
}

/// Checks every row of `out` against the reference.
///
/// Sums take at most a hundred additions in a row (32 per lane and split, then trees), so they err by less than 100
/// roundings of Σ|x|; with `exact` data no partial sum rounds and only a mean may, twice.
fn check(out: &Output, data: &[f64], rows: usize, kind: ReduceKind, exact: bool, what: &str) {
    let columns = data.len() / rows;
    let row = |r: usize| &data[r * columns..][..columns];
    match (out, reference_of(kind)) {
        (Output::Indices(indices), None) => {
            let wanted: Vec<i64> = (0..rows).map(|r| argmax(row(r)).unwrap() as i64).collect();
            assert_eq!(*indices, wanted, "{what}");
        }
        (Output::Values(bits), Some(reduction)) => {
            let wanted = reference::<Exact>(reduction, data, rows);
            assert_eq!(bits.len(), rows, "{what}");
            for (r, (&bits, &wanted)) in bits.iter().zip(&wanted).enumerate() {
                let got = f64::from(f32::from_bits(bits));
                let unit = 2f64.powi(-24);
                let scale: f64 = match kind {
                    ReduceKind::Sum => row(r).iter().map(|x| x.abs()).sum(),
                    ReduceKind::Mean => row(r).iter().map(|x| x.abs()).sum::<f64>() / columns as f64,
                    ReduceKind::SumOfSquares => wanted,
                    _ => 0.0,
                };
                let allowed = match (kind, exact) {
                    (ReduceKind::Mean, true) => 3.0 * unit * wanted.abs(),
                    (_, true) => 0.0,
                    (_, false) => 100.0 * unit * scale,
                };
                assert!(
                    (got - wanted).abs() <= allowed,
                    "{what}: row {r} is {got}, not {wanted} within {allowed:e}"
                );
            }
        }
        _ => panic!("{what}: {out:?}"),
    }
}

/// Small integers: every partial sum of them and of their squares is exact in f32.
fn integers<T: Float>(seed: u64, len: usize) -> Vec<T> {
    let mut generator = Generator::new(seed);
    (0..len).map(|_| T::from_f64(generator.integer(-8, 8) as f64)).collect()
}

fn widened<T: Float>(data: &[T]) -> Vec<f64> {
    data.iter().map(|&x| x.to_f64()).collect()
}

fn every_length<T: Float>() {
    for device in common::devices() {
        for len in LENGTHS {
            let data = integers::<T>(len as u64, len);
            let x = Tensor::from_slice(&device, &data, &[len as u64]).unwrap();
            for kind in ReduceKind::ALL {
                let what = format!("{kind:?} of {len} {} on {device}", T::DTYPE);
                let all = run(&x, kind, ReduceAxis::All);
                check(&all, &widened(&data), 1, kind, true, &what);
                assert_eq!(reduce(&x, kind, ReduceAxis::Last).unwrap().rank(), 0);
            }
        }
    }
}

#[test]
fn every_length_f32() {
    every_length::<f32>();
}

#[test]
fn every_length_f16() {
    every_length::<f16>();
}

#[test]
fn every_length_bf16() {
    every_length::<bf16>();
}

fn rows<T: Float>() {
    for device in common::devices() {
        // Several rows a warp, rows of one block, rows of several splits.
        for (outer, columns) in [
            ([1, 1], 1),
            ([3, 5], 33),
            ([2, 20], 256),
            ([1, 9], 4096),
            ([2, 2], 4097),
            ([1, 3], 33_000),
        ] {
            let count = outer[0] * outer[1];
            let data = normal::<T>(columns as u64, count * columns);
            let shape = [outer[0] as u64, outer[1] as u64, columns as u64];
            let x = Tensor::from_slice(&device, &data, &shape).unwrap();
            for kind in ReduceKind::ALL {
                let what = format!("{kind:?} of {shape:?} {} on {device}", T::DTYPE);
                let out = reduce(&x, kind, ReduceAxis::Last).unwrap();
                assert_eq!(out.shape(), &shape[..2], "{what}");
                let last = run(&x, kind, ReduceAxis::Last);
                check(&last, &widened(&data), count, kind, false, &what);
                let all = run(&x, kind, ReduceAxis::All);
                check(&all, &widened(&data), 1, kind, false, &format!("{what}, all"));
            }
        }
    }
}

#[test]
fn rows_f32() {
    rows::<f32>();
}

#[test]
fn rows_f16() {
    rows::<f16>();
}

#[test]
fn rows_bf16() {
    rows::<bf16>();
}

/// A matrix whose rows have NaN on both sides, cut out of the larger one.
fn embedded<T: Float>(device: &Device, data: &[T], rows: usize, before: usize, after: usize) -> Tensor<T> {
    let columns = data.len() / rows;
    let pitch = before + columns + after;
    let mut all = poison::<T>(rows * pitch);
    for row in 0..rows {
        all[row * pitch + before..][..columns].copy_from_slice(&data[row * columns..][..columns]);
    }
    let whole = Tensor::from_slice(device, &all, &[rows as u64, pitch as u64]).unwrap();
    whole.slice(1, before as u64..(before + columns) as u64).unwrap()
}

fn strides<T: Float>() {
    for device in common::devices() {
        for columns in [1, 33, 1030, 5003] {
            let count = 5;
            let data = normal::<T>(columns as u64 + 7, count * columns);
            let dense = Tensor::from_slice(&device, &data, &[count as u64, columns as u64]).unwrap();
            for (before, after) in [(0, 8), (1, 0), (3, 4), (8, 8), (7, 2)] {
                let view = embedded(&device, &data, count, before, after);
                for kind in ReduceKind::ALL {
                    let what = format!(
                        "{kind:?} of {columns} {} between {before} and {after} on {device}",
                        T::DTYPE
                    );
                    let wanted = run(&dense, kind, ReduceAxis::Last);
                    assert_eq!(run(&view, kind, ReduceAxis::Last), wanted, "{what}");
                    // A row alone.
                    let alone = run(&view.select(0, 3).unwrap(), kind, ReduceAxis::All);
                    match (wanted, alone) {
                        (Output::Values(rows), Output::Values(row)) => assert_eq!(rows[3..4], row, "{what}, alone"),
                        (Output::Indices(rows), Output::Indices(row)) => assert_eq!(rows[3..4], row, "{what}, alone"),
                        other => panic!("{what}: {other:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn views_and_single_rows_have_the_bits_of_the_dense_matrix_f32() {
    strides::<f32>();
}

#[test]
fn views_and_single_rows_have_the_bits_of_the_dense_matrix_16_bit() {
    strides::<f16>();
    strides::<bf16>();
}

#[test]
fn nan_comes_through_wherever_it_stands() {
    for device in common::devices() {
        for columns in [40usize, 4100, 33_000] {
            let mut data = vec![0f32; columns * 4];
            let places = [0, columns / 2 + 1, columns - 1];
            for (row, place) in places.into_iter().enumerate() {
                data[row * columns + place] = f32::NAN;
                // Infinities on both sides must not hide it, and of several NaN the first counts.
                data[row * columns + (place + 5) % columns] = f32::INFINITY;
                data[row * columns + (place + 6) % columns] = f32::NEG_INFINITY;
                if place + 9 < columns {
                    data[row * columns + place + 9] = f32::NAN;
                }
            }
            let x = Tensor::from_slice(&device, &data, &[4, columns as u64]).unwrap();
            for kind in ReduceKind::ALL {
                match run(&x, kind, ReduceAxis::Last) {
                    Output::Values(bits) => {
                        let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
                        assert!(
                            values[..3].iter().all(|x| x.is_nan()),
                            "{kind:?} of {columns}: {values:?} on {device}"
                        );
                        assert_eq!(values[3], 0.0, "{kind:?}: the row without NaN, on {device}");
                    }
                    Output::Indices(indices) => {
                        let wanted = [places[0] as i64, places[1] as i64, places[2] as i64, 0];
                        assert_eq!(indices, wanted, "{columns} on {device}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_of_infinities() {
    for device in common::devices() {
        for columns in [1u64, 33, 4100, 33_000] {
            for infinity in [f32::NEG_INFINITY, f32::INFINITY] {
                let x = Tensor::from_slice(&device, &vec![infinity; columns as usize], &[1, columns]).unwrap();
                let bits = Output::Values(vec![infinity.to_bits()]);
                for kind in [ReduceKind::Max, ReduceKind::Min, ReduceKind::Sum, ReduceKind::Mean] {
                    assert_eq!(
                        run(&x, kind, ReduceAxis::Last),
                        bits,
                        "{kind:?} of {columns} on {device}"
                    );
                }
                assert_eq!(
                    run(&x, ReduceKind::Argmax, ReduceAxis::Last),
                    Output::Indices(vec![0]),
                    "{columns} on {device}"
                );
            }
        }
    }
}

#[test]
fn of_equal_maxima_the_first_wins() {
    for device in common::devices() {
        let columns = 70_001usize;
        // Within a vector, across lanes, across warps, across splits; and −0 equals 0.
        for places in [
            [3, 4],
            [3, 3 + 8],
            [5, 2000],
            [100, 32_768],
            [32_767, 69_999],
            [33_000, 70_000],
        ] {
            let mut data = vec![-1f32; columns];
            data[places[0]] = 0.0;
            data[places[1]] = -0.0;
            for len in [columns, 4096, 33] {
                if places[1] >= len {
                    continue;
                }
                for (first, second) in [(0.0, -0.0), (-0.0, 0.0), (7.0, 7.0)] {
                    data[places[0]] = first;
                    data[places[1]] = second;
                    let x = Tensor::from_slice(&device, &data[..len], &[len as u64]).unwrap();
                    let wanted = Output::Indices(vec![places[0] as i64]);
                    assert_eq!(
                        run(&x, ReduceKind::Argmax, ReduceAxis::All),
                        wanted,
                        "{places:?} of {len} on {device}"
                    );
                }
            }
        }
    }
}

/// Rows that a warp holds, the next one on its way meanwhile: more of them than warps, with ties, zeros of both signs, NaN and
/// nothing but −∞.
#[test]
fn an_argmax_of_many_rows_of_a_thousand() {
    for device in common::devices() {
        for columns in [768usize, 1000, 1024] {
            let rows = 1100;
            let mut data: Vec<bf16> = (0..rows * columns)
                .map(|i| bf16::from_f32(((i * 7919 + i / 61) % 97) as f32 - 96.0))
                .collect();
            let row = |r: usize| r * columns..(r + 1) * columns;
            data[row(1)].fill(bf16::NEG_INFINITY);
            data[row(2)][columns - 1] = bf16::NAN;
            data[row(3)][5] = -bf16::NAN;
            data[row(3)][columns / 2] = bf16::NAN;
            data[row(4)].fill(bf16::from_f32(-0.0));
            data[row(4)][columns - 1] = bf16::from_f32(0.0);
            data[row(1099)][columns - 1] = bf16::from_f32(1.0);
            let wide: Vec<f64> = data.iter().map(|x| x.to_f64()).collect();
            let wanted: Vec<i64> = wide.chunks(columns).map(|row| argmax(row).unwrap() as i64).collect();
            assert_eq!(
                [wanted[1], wanted[2], wanted[3], wanted[4]],
                [0, columns as i64 - 1, 5, 0]
            );
            let x = Tensor::from_slice(&device, &data, &[rows as u64, columns as u64]).unwrap();
            assert_eq!(
                run(&x, ReduceKind::Argmax, ReduceAxis::Last),
                Output::Indices(wanted),
                "{columns} on {device}"
            );
        }
    }
}

/// More splits than one block joins.
#[test]
fn an_argmax_of_a_million_elements_joins_its_splits_in_rounds() {
    for device in common::devices() {
        let columns = 1_100_003usize;
        let mut data = vec![f16::from_f32(-2.0); columns];
        for place in [1_100_002, 1_099_999, 700_001] {
            data[place] = f16::from_f32(3.0);
            let x = Tensor::from_slice(&device, &data, &[columns as u64]).unwrap();
            let wanted = Output::Indices(vec![place as i64]);
            assert_eq!(
                run(&x, ReduceKind::Argmax, ReduceAxis::All),
                wanted,
                "{place} on {device}"
            );
        }
    }
}

#[test]
fn same_bits_every_time_on_every_schedule_and_machine_size() {
    let emulator = |seed, multiprocessors, checks| {
        let emulator = EmulatorOptions {
            checks,
            seed,
            multiprocessors,
            ..EmulatorOptions::default()
        };
        let options = DeviceOptions {
            emulator,
            ..DeviceOptions::default()
        };
        Device::with_options(Some(DeviceKind::Emulator), options).unwrap()
    };
    let (rows, columns) = (37, 4500);
    let data = normal::<f32>(11, rows * columns);
    let mut bits: Option<Vec<Output>> = None;
    // One multiprocessor runs 32 blocks: each takes several rows.
    let mut devices = vec![
        emulator(None, 1, true),
        emulator(Some(1), 4, false),
        emulator(Some(2), 64, true),
    ];
    devices.extend(common::devices());
    for device in devices {
        let x = Tensor::from_slice(&device, &data, &[rows as u64, columns as u64]).unwrap();
        let flat = x.reshape(&[(rows * columns) as u64]).unwrap();
        for _ in 0..2 {
            let now: Vec<Output> = ReduceKind::ALL
                .into_iter()
                .flat_map(|kind| [run(&x, kind, ReduceAxis::Last), run(&flat, kind, ReduceAxis::All)])
                .collect();
            match &bits {
                Some(bits) => assert_eq!(now, *bits, "{device}"),
                None => bits = Some(now),
            }
        }
    }
}

#[test]
fn more_short_rows_than_warps() {
    for device in common::devices().into_iter().filter(Device::is_emulator).take(1) {
        let rows = 3001;
        let data = integers::<f16>(5, rows * 7);
        let x = Tensor::from_slice(&device, &data, &[rows as u64, 7]).unwrap();
        for kind in ReduceKind::ALL {
            check(
                &run(&x, kind, ReduceAxis::Last),
                &widened(&data),
                rows,
                kind,
                true,
                &format!("{kind:?}"),
            );
        }
    }
}

#[test]
fn f16_sums_do_not_overflow_nor_stall_in_f16() {
    for device in common::devices() {
        // 65504 is the largest f16, and 2049 ones cannot be counted in f16.
        let x = Tensor::from_slice(&device, &vec![f16::from_f32(60_000.0); 5000], &[5000]).unwrap();
        assert_eq!(
            run(&x, ReduceKind::Sum, ReduceAxis::All),
            Output::Values(vec![3e8f32.to_bits()])
        );
        let x = Tensor::from_slice(&device, &vec![f16::ONE; 5000], &[5000]).unwrap();
        assert_eq!(
            run(&x, ReduceKind::Sum, ReduceAxis::All),
            Output::Values(vec![5e3f32.to_bits()])
        );
    }
}

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

/// Any finite or special value, often repeated.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -4.0f32..4.0,
        2 => prop::sample::select(vec![0.0, -0.0, 1.0, f32::MAX, f32::MIN_POSITIVE, 1e-45]),
        1 => prop::sample::select(vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN]),
    ]
}

proptest! {
    #![proptest_config(crate::common::problems(24))]

    #[test]
    fn extremes_of_anything(data in prop::collection::vec(value(), 1..300), rows in 1usize..5, before in 0usize..9) {
        let columns = data.len().div_ceil(rows);
        let mut data = data;
        data.resize(rows * columns, -1.0);
        let wide = widened(&data);
        for device in common::devices() {
            let x = embedded(&device, &data, rows, before, 1);
            let indices: Vec<i64> = wide.chunks(columns).map(|row| argmax(row).unwrap() as i64).collect();
            prop_assert_eq!(run(&x, ReduceKind::Argmax, ReduceAxis::Last), Output::Indices(indices));
            for (kind, reduction) in [(ReduceKind::Max, Reduction::Max), (ReduceKind::Min, Reduction::Min)] {
                let Output::Values(bits) = run(&x, kind, ReduceAxis::Last) else { panic!() };
                for (bits, wanted) in bits.iter().zip(reference::<Exact>(reduction, &wide, rows)) {
                    let got = f64::from(f32::from_bits(*bits));
                    prop_assert!(got == wanted || (got.is_nan() && wanted.is_nan()), "{kind:?}: {got}, not {wanted}");
                }
            }
        }
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
