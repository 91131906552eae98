//! NaN, infinities, zeros of both signs, and which of equal elements an argmax is.

use crate::common;
use crate::common::strided;
use crate::support::{Output, run, widened};
use host::{
    Tensor, bf16, f16,
    ops::{ReduceAxis, ReduceKind},
    reference::{
        Exact,
        reduce::{Reduction, argmax, reduce as reference},
    },
};
use proptest::prelude::*;

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
            let x = strided(&device, &data, rows, before, 1);
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
