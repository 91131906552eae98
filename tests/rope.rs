//! Rotary embedding against the f64 reference, on every device.

mod common;

use ferroflash::{
    CacheView, DType, Device, Error, Float, RopeAngles, RopeFrequencies, RopePairing, Tensor, Tier, bf16, cache_append,
    f16, rope, rope_table,
};
use host::{
    compare::{Rule, compare, same_bits},
    reference::{
        Eager, Exact, Precision,
        data::normal,
        rope::{Pairing, RopeShape, RopeTable, rope as reference},
        rope_scaling::Scaling,
        widen,
    },
};

const POSITIONS: [i32; 5] = [0, 257, 4097, 131_071, 3];

#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    dim: usize,
    rotary: usize,
    pairing: RopePairing,
    inverse: bool,
    magnitude: f32,
}

fn expected<P: Precision>(case: Case, x: &[f64], frequencies: &[f32]) -> Vec<f64> {
    let frequencies: Vec<f64> = frequencies.iter().copied().map(f64::from).collect();
    // Angles are f32 by definition; what follows from them is the precision's.
    let angle = |p: i64, f: f64| f64::from(p as f32 * f as f32);
    let mut table = RopeTable::new::<P>(&[], &[], 1.0);
    for p in POSITIONS {
        for &f in &frequencies {
            table
                .cos
                .push(P::store(P::step(angle(p.into(), f).cos()) * f64::from(case.magnitude)));
            table
                .sin
                .push(P::store(P::step(angle(p.into(), f).sin()) * f64::from(case.magnitude)));
        }
    }
    let shape = RopeShape {
        tokens: POSITIONS.len(),
        heads: case.heads,
        head_dim: case.dim,
        rotary_dim: case.rotary,
    };
    let pairing = match case.pairing {
        RopePairing::Interleaved => Pairing::Interleaved,
        RopePairing::HalfSplit => Pairing::HalfSplit,
    };
    reference::<P>(x, shape, &table, pairing, case.inverse)
}

fn check<T: Float>(device: &Device, case: Case) {
    let (tokens, dim) = (POSITIONS.len() as u64, case.dim as u64);
    let frequencies: Vec<f32> = (0..case.rotary / 2)
        .map(|i| 10_000f64.powf(-2.0 * i as f64 / case.rotary as f64) as f32)
        .collect();
    let angles = RopeFrequencies::new(device, &frequencies, case.magnitude).unwrap();
    let (cos, sin) = rope_table(device, 4100, &frequencies, case.magnitude).unwrap();
    let q = normal::<T>(1, POSITIONS.len() * case.heads * case.dim);
    let k = normal::<T>(2, POSITIONS.len() * case.dim);
    let q_tensor = Tensor::from_slice(device, &q, &[tokens, case.heads as u64, dim]).unwrap();
    let k_tensor = Tensor::from_slice(device, &k, &[tokens, 1, dim]).unwrap();
    let positions = Tensor::from_slice(device, &POSITIONS, &[tokens]).unwrap();
    let run = |angles, in_place: bool| {
        let mut rope = rope(&q_tensor, case.pairing, angles).k(&k_tensor).positions(&positions);
        if case.inverse {
            rope = rope.inverse();
        }
        if in_place {
            rope = rope.in_place();
        }
        let (q, k) = rope.run().unwrap();
        let values = |t: &ferroflash::AnyTensor| t.typed::<T>("x").unwrap().to_vec().unwrap();
        (values(&q), values(&k.unwrap()))
    };
    let (q_out, k_out) = run(RopeAngles::Frequencies(&angles), false);
    for (out, x, heads) in [(&q_out, &q, case.heads), (&k_out, &k, 1)] {
        let case = Case { heads, ..case };
        let (exact, eager) = (
            expected::<Exact>(case, &widen(x), &frequencies),
            expected::<Eager<T>>(case, &widen(x), &frequencies),
        );
        let report = compare(out, &exact, Rule::twice(&eager));
        assert!(report.is_ok(), "{case:?} {} on {device}: {report}", T::DTYPE);
    }
    // A table gives the same; a position that it lacks gives NaN in what is rotated.
    let (q_table, _) = run(RopeAngles::Table { cos: &cos, sin: &sin }, false);
    let row = case.heads * case.dim;
    for (token, &position) in POSITIONS.iter().enumerate() {
        for head in q_table[token * row..][..row].chunks(case.dim) {
            assert_eq!(
                head[..case.rotary].iter().any(|x| x.to_f32().is_nan()),
                position >= 4100 && case.rotary > 0
            );
        }
        if position < 4100 {
            let same = compare(
                &q_table[token * row..][..row],
                &widen(&q_out[token * row..][..row]),
                Rule::Relative {
                    relative: 1e-2,
                    absolute: 1e-2,
                },
            );
            assert!(same.is_ok(), "{case:?}: {same}");
        }
    }
    let (q_in_place, k_in_place) = run(RopeAngles::Frequencies(&angles), true);
    same_bits(&q_in_place, &q_out).unwrap();
    same_bits(&k_in_place, &k_out).unwrap();
    same_bits(&q_tensor.to_vec().unwrap(), &q_out).unwrap();
}

#[test]
fn both_pairings_and_odd_sizes() {
    for device in common::devices() {
        for pairing in [RopePairing::Interleaved, RopePairing::HalfSplit] {
            for (heads, dim, rotary) in [(9, 128, 128), (3, 64, 32), (2, 10, 6), (1, 24, 24), (2, 7, 0)] {
                let case = Case {
                    heads,
                    dim,
                    rotary,
                    pairing,
                    inverse: rotary == 32,
                    magnitude: if dim == 24 { 1.25 } else { 1.0 },
                };
                check::<f32>(&device, case);
                check::<f16>(&device, case);
                if device.tier() != Tier::Sm75 || dim == 10 {
                    check::<bf16>(&device, case);
                }
            }
        }
    }
}

#[test]
fn strided_heads_offsets_and_lengths_give_positions() {
    for device in common::devices() {
        let frequencies = RopeFrequencies::scaled(&device, 16, 10_000.0, &Scaling::Default).unwrap();
        let angles = RopeAngles::Frequencies(&frequencies);
        // Heads 1..3 of 4, batch 2, 3 tokens each.
        let all = Tensor::from_slice(&device, &normal::<f16>(1, 2 * 3 * 4 * 16), &[2, 3, 4, 16]).unwrap();
        let q = all.slice(2, 1..3).unwrap();
        let run = |rope: ferroflash::Rope<'_>| rope.run().unwrap().0.to_bytes().unwrap();
        let start = || rope(&q, RopePairing::HalfSplit, angles);
        let positions = |p: [i32; 6]| Tensor::from_slice(&device, &p, &[2, 3]).unwrap();
        let lengths = Tensor::from_slice(&device, &[5i32, 9], &[2]).unwrap();
        same_bits(&run(start()), &run(start().positions(&positions([0, 1, 2, 0, 1, 2])))).unwrap();
        same_bits(
            &run(start().offset(7)),
            &run(start().positions(&positions([7, 8, 9, 7, 8, 9]))),
        )
        .unwrap();
        same_bits(
            &run(start().lengths(&lengths)),
            &run(start().positions(&positions([5, 6, 7, 9, 10, 11]))),
        )
        .unwrap();
    }
}

#[test]
fn rotating_and_appending_in_one_launch_is_both_in_turn() {
    for device in common::devices() {
        let frequencies = RopeFrequencies::scaled(&device, 32, 10_000.0, &Scaling::Linear { factor: 2.0 }).unwrap();
        let angles = RopeAngles::Frequencies(&frequencies);
        let tensor = |seed, shape: &[u64]| {
            Tensor::from_slice(
                &device,
                &normal::<f16>(seed, shape.iter().product::<u64>() as usize),
                shape,
            )
            .unwrap()
        };
        let (q, k, v) = (tensor(1, &[5, 4, 40]), tensor(2, &[5, 2, 40]), tensor(3, &[5, 2, 24]));
        let slots = Tensor::from_slice(&device, &[9i64, -1, 3, 4, 0], &[5]).unwrap();
        let pools = || (tensor(4, &[5, 2, 2, 40]), tensor(5, &[5, 2, 2, 24]));
        let (one, two) = (pools(), pools());
        let (fused, none) = rope(&q, RopePairing::HalfSplit, angles)
            .k(&k)
            .append(&v, CacheView::contiguous(&one.0, &one.1), &slots)
            .run()
            .unwrap();
        assert!(none.is_none());
        let (apart, rotated) = rope(&q, RopePairing::HalfSplit, angles).k(&k).run().unwrap();
        cache_append(&rotated.unwrap(), &v, CacheView::contiguous(&two.0, &two.1), &slots).unwrap();
        same_bits(&fused.to_bytes().unwrap(), &apart.to_bytes().unwrap()).unwrap();
        same_bits(&one.0.to_bytes().unwrap(), &two.0.to_bytes().unwrap()).unwrap();
        same_bits(&one.1.to_bytes().unwrap(), &two.1.to_bytes().unwrap()).unwrap();
    }
}

#[test]
fn refuses_what_it_cannot_rotate() {
    let device = &common::devices()[0];
    let error = RopeFrequencies::scaled(device, 7, 10_000.0, &Scaling::Default).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Range {
                argument: "rotary_dim",
                ..
            }
        ),
        "{error}"
    );
    let error = RopeFrequencies::scaled(device, 8, 0.5, &Scaling::Default).unwrap_err();
    assert!(matches!(error, Error::Range { argument: "theta", .. }), "{error}");
    let frequencies = RopeFrequencies::scaled(device, 16, 10_000.0, &Scaling::Default).unwrap();
    let angles = RopeAngles::Frequencies(&frequencies);
    let q = Tensor::<f16>::zeros(device, &[2, 1, 8]).unwrap();
    let error = rope(&q, RopePairing::HalfSplit, angles).run().unwrap_err();
    assert!(
        matches!(
            error,
            Error::Range {
                argument: "rotary_dim",
                ..
            }
        ),
        "{error}"
    );
    let (q, k) = (
        Tensor::<f16>::zeros(device, &[2, 1, 16]).unwrap(),
        Tensor::<f32>::zeros(device, &[2, 1, 16]).unwrap(),
    );
    let error = rope(&q, RopePairing::HalfSplit, angles).k(&k).run().unwrap_err();
    assert!(
        matches!(
            error,
            Error::Dtype {
                argument: "k",
                dtype: DType::F32,
                ..
            }
        ),
        "{error}"
    );
    let positions = Tensor::<i32>::zeros(device, &[3]).unwrap();
    let error = rope(&q, RopePairing::HalfSplit, angles)
        .positions(&positions)
        .run()
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Shape {
                argument: "positions",
                ..
            }
        ),
        "{error}"
    );
}
