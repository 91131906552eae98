//! Sums and extremes of every length, of rows, and of views; the same bits every time.

use crate::common;
use crate::common::strided;
use crate::support::{Output, check, integers, run, widened};
use host::{
    Device, DeviceKind, DeviceOptions, EmulatorOptions, Float, Tensor, bf16, f16,
    ops::{ReduceAxis, ReduceKind, reduce},
    reference::data::normal,
};

/// Around lanes, vectors, blocks, the longest row of one warp, a split, and a few splits.
const LENGTHS: [usize; 13] = [
    1, 31, 32, 33, 255, 256, 4095, 4096, 4097, 32_767, 32_768, 32_769, 70_001,
];

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

fn strides<T: Float>() {
    for device in common::devices() {
        for columns in [1, 33, 1030, 5003] {
            let count = 5;
            let data = normal::<T>(columns as u64 + 7, count * columns);
            let dense = Tensor::from_slice(&device, &data, &[count as u64, columns as u64]).unwrap();
            for (before, after) in [(0, 8), (1, 0), (3, 4), (8, 8), (7, 2)] {
                let view = strided(&device, &data, count, before, after);
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
