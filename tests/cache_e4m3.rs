//! Caches of 8-bit floats: conversions for every code, appending with and without RoPE, attention; on every device that has
//! the kernels.

#[path = "common/caches.rs"]
mod caches;
mod common;

use caches::{Place, assert_decoded};
use common::dense;
use ferroflash::{
    AnyTensor, CacheView, DType, DecodeOptions, Device, Error, Float, RopeAngles, RopePairing, Tensor, Tier, bf16,
    cache_append, cache_append_at, cache_read_as, decode, f16, rope, rope_table,
};
use host::{
    compare::same_bits,
    reference::{
        Eager, Exact,
        attention::{AttentionOptions, AttentionShape, Causal},
        cast::{e4m3_to_f64, f64_to_e4m3},
        data::normal,
        decode::{Cache, decode as reference},
        widen,
    },
};

fn on_hopper(check: impl Fn(&Device)) {
    let devices = common::devices();
    let hopper: Vec<&Device> = devices.iter().filter(|device| device.tier() == Tier::Sm90a).collect();
    assert!(!hopper.is_empty(), "the emulator has that tier");
    hopper.into_iter().for_each(check);
}

fn bytes(tensor: &AnyTensor) -> Vec<u8> {
    tensor.to_bytes().unwrap()
}

fn pool(device: &Device, codes: &[u8], shape: [usize; 4]) -> AnyTensor {
    AnyTensor::from_bytes(device, DType::E4M3, &shape.map(|n| n as u64), codes).unwrap()
}

/// Reads every code, with and without a factor, in rows of 16 and in odd ones.
fn codes_widen<T: Float>(device: &Device) {
    let codes: Vec<u8> = (0..=255).collect();
    for (heads, dim) in [(2, 32), (4, 16), (1, 1)] {
        let tokens = 256 / (heads * dim);
        let k = pool(device, &codes, [1, tokens, heads, dim]);
        let scales: Vec<f32> = (0..heads).map(|head| 0.37 + head as f32).collect();
        let scale = dense(device, &scales, &[heads]);
        for factor in [None, Some(scale.any())] {
            // Sequences of all tokens, and one of all but the last: zeros behind it.
            let view = CacheView::contiguous(&k, &k).scales(factor, None);
            let seqlens = dense(device, &[tokens as i32 - 1], &[1]);
            let (read, plain) = cache_read_as(view, &seqlens, tokens as u64, T::DTYPE).unwrap();
            let of = |factor: bool| -> Vec<u32> {
                (0..256)
                    .map(|i| {
                        let value = e4m3_to_f64(codes[i]) as f32;
                        let scale = if factor { scales[i / dim % heads] } else { 1.0 };
                        let value = if i >= 256 - heads * dim { 0.0 } else { value * scale };
                        T::from_f32(value).to_f32().to_bits() & if value.is_nan() { 0x7f80_0000 } else { u32::MAX }
                    })
                    .collect()
            };
            for (tensor, wanted) in [(read, of(factor.is_some())), (plain, of(false))] {
                let values = tensor.typed::<T>("read").unwrap().to_vec().unwrap();
                let values: Vec<u32> = values
                    .iter()
                    .map(|x| x.to_f32())
                    .map(|x| x.to_bits() & if x.is_nan() { 0x7f80_0000 } else { u32::MAX })
                    .collect();
                same_bits(&values, &wanted).unwrap_or_else(|e| panic!("{heads} heads of {dim}, {}: {e}", T::DTYPE));
            }
        }
    }
}

/// Appends all numbers that can go wrong and looks at the codes.
fn numbers_round<T: Float>(device: &Device, numbers: &[T]) {
    for (heads, dim, scaled) in [(2, 32, false), (2, 32, true), (2, 5, true)] {
        let row = heads * dim;
        let mut numbers = numbers.to_vec();
        numbers.resize(numbers.len().next_multiple_of(row), T::from_f32(0.0));
        let tokens = numbers.len() / row;
        let new = dense(device, &numbers, &[tokens, heads, dim]);
        // One slot more, at the front, which keeps what it has.
        let caches = [0, 1].map(|_| pool(device, &vec![0x55; (tokens + 1) * row], [1, tokens + 1, heads, dim]));
        let scales = [3.0f32, 0.1];
        let scale = dense(device, &scales, &[heads]);
        let view = CacheView::contiguous(&caches[0], &caches[1]).scales(scaled.then_some(scale.any()), None);
        let slots: Vec<i64> = (1..=tokens as i64).collect();
        let slots = Tensor::from_slice(device, &slots, &[tokens as u64]).unwrap();
        cache_append(&new, &new, view, &slots).unwrap();
        for (cache, scaled) in [(&caches[0], scaled), (&caches[1], false)] {
            let wanted: Vec<u8> = (0..row)
                .map(|_| 0x55)
                .chain(numbers.iter().enumerate().map(|(i, x)| {
                    let scale = if scaled { scales[i / dim % heads] } else { 1.0 };
                    f64_to_e4m3(f64::from(x.to_f32() / scale))
                }))
                .collect();
            same_bits(&bytes(cache), &wanted)
                .unwrap_or_else(|e| panic!("{heads} heads of {dim}, scaled {scaled}, {}: {e}", T::DTYPE));
        }
    }
}

#[test]
fn every_code_and_every_tie() {
    on_hopper(|device| {
        codes_widen::<f32>(device);
        codes_widen::<f16>(device);
        codes_widen::<bf16>(device);
        // Codes, the midpoints between them, and the floats beside those; what saturates; what is no number.
        let mut numbers = vec![
            448.0,
            464.0,
            465.0,
            480.0,
            1e9,
            f32::INFINITY,
            f32::NAN,
            0.0,
            1e-9,
            2f32.powi(-10),
        ];
        for code in 0..0x7e {
            let (low, high) = (e4m3_to_f64(code) as f32, e4m3_to_f64(code + 1) as f32);
            let middle = (low + high) / 2.0;
            numbers.extend([low, middle, middle.next_up(), middle.next_down()]);
        }
        let negative: Vec<f32> = numbers.iter().map(|x| -x).collect();
        numbers.extend(negative);
        numbers_round::<f32>(device, &numbers);
        let bits = || 0..=u16::MAX;
        // All numbers that there are, but every seventh on the emulator, which is slow.
        let step = if matches!(device.kind(), ferroflash::DeviceKind::Cuda(_)) {
            1
        } else {
            7
        };
        numbers_round::<f16>(device, &bits().step_by(step).map(f16::from_bits).collect::<Vec<_>>());
        numbers_round::<bf16>(device, &bits().step_by(step).map(bf16::from_bits).collect::<Vec<_>>());
    });
}

/// A decode step over a cache of codes.
#[derive(Clone, Debug)]
struct Case {
    heads: (usize, usize),
    seq_q: usize,
    dims: (usize, usize),
    lengths: Vec<usize>,
    page: Option<usize>,
    window_left: Option<u32>,
    softcap: Option<f32>,
    /// Queries are this much larger, and the scale as much smaller.
    magnitude: f32,
}

impl Case {
    fn check<T: Float>(&self, device: &Device) {
        let batch = self.lengths.len();
        let place = Place::new(&self.lengths, self.page, None, 1);
        let (page, pages, layout) = (place.page, place.pages, place.layout());
        // NaN in every slot that holds no token.
        let codes = |seed: u64, dim: usize| {
            let row = self.heads.1 * dim;
            let mut codes = vec![0x7f; pages * page * row];
            for (sequence, &length) in self.lengths.iter().enumerate() {
                let numbers = normal::<f32>(seed + sequence as u64, length * row);
                for token in 0..length {
                    let slot = layout.slot(sequence, token);
                    for i in 0..row {
                        // Up to the last finite code and down to zero.
                        codes[slot * row + i] = f64_to_e4m3(f64::from(numbers[token * row + i]) * 60.0);
                    }
                }
            }
            codes
        };
        let (k, v) = (codes(100, self.dims.0), codes(200, self.dims.1));
        let scales = |seed: u32| -> Vec<f32> {
            (0..self.heads.1)
                .map(|head| (1.0 + 0.3 * (head as f32 + seed as f32)) / 60.0)
                .collect()
        };
        let (k_scales, v_scales) = (scales(0), scales(1));
        let values = |codes: &[u8], scales: &[f32], dim: usize| -> Vec<f64> {
            let scale = |i: usize| f64::from(scales[i / dim % scales.len()]);
            codes
                .iter()
                .enumerate()
                .map(|(i, &code)| e4m3_to_f64(code) * scale(i))
                .collect()
        };
        let q: Vec<T> = normal::<f32>(300, batch * self.seq_q * self.heads.0 * self.dims.0)
            .iter()
            .map(|x| T::from_f32(x * self.magnitude))
            .collect();
        let scale = 1.0 / (self.dims.0 as f32).sqrt() / self.magnitude;
        let view_tensors = (
            pool(device, &k, [pages, page, self.heads.1, self.dims.0]),
            pool(device, &v, [pages, page, self.heads.1, self.dims.1]),
        );
        let table_tensor = dense(device, &place.table, &[batch, place.table.len() / batch]);
        let view = match self.page {
            Some(_) => CacheView::paged(&view_tensors.0, &view_tensors.1, &table_tensor),
            None => CacheView::contiguous(&view_tensors.0, &view_tensors.1),
        };
        let factors = [&k_scales, &v_scales].map(|scales| dense(device, scales, &[self.heads.1]));
        let lengths: Vec<i32> = self.lengths.iter().map(|&n| n as i32).collect();
        let result = decode(
            &dense(device, &q, &[batch, self.seq_q, self.heads.0, self.dims.0]),
            view.scales(Some(&factors[0]), Some(&factors[1])),
            &dense(device, &lengths, &[batch]),
        )
        .options(DecodeOptions {
            causal: true,
            window_left: self.window_left,
            softcap: self.softcap,
            scale: Some(scale),
            ..DecodeOptions::default()
        })
        .run()
        .unwrap_or_else(|error| panic!("{self:?}: {error}"));
        let shape = AttentionShape {
            batch,
            heads_q: self.heads.0,
            heads_kv: self.heads.1,
            seq_q: self.seq_q,
            seq_kv: 0,
            head_dim: self.dims.0,
            value_dim: self.dims.1,
        };
        let options = AttentionOptions {
            scale: Some(f64::from(scale)),
            causal: Causal::BottomRight,
            window_left: self.window_left,
            window_right: None,
            softcap: self.softcap.map(f64::from),
            alibi_slopes: None,
            sinks: None,
            dropout: None,
        };
        let (k, v) = (values(&k, &k_scales, self.dims.0), values(&v, &v_scales, self.dims.1));
        let cache = Cache {
            k: &k,
            v: &v,
            layout,
            lengths: &self.lengths,
            left_padding: None,
        };
        let q = widen(&q);
        let (exact, eager) = (
            reference::<Exact>(&shape, &options, &q, &cache),
            reference::<Eager<T>>(&shape, &options, &q, &cache),
        );
        assert_decoded::<T>(self, device, &result, &exact, &eager);
    }
}

#[test]
fn attention_over_codes() {
    let base = Case {
        heads: (4, 2),
        seq_q: 1,
        dims: (64, 64),
        lengths: vec![5, 150, 0],
        page: Some(16),
        window_left: None,
        softcap: None,
        magnitude: 1.0,
    };
    let cases = [
        base.clone(),
        Case {
            dims: (128, 112),
            lengths: vec![70, 3],
            page: None,
            ..base.clone()
        },
        Case {
            heads: (6, 1),
            seq_q: 3,
            dims: (48, 64),
            window_left: Some(40),
            softcap: Some(3.0),
            ..base.clone()
        },
        // One sequence of many pieces.
        Case {
            dims: (128, 128),
            lengths: vec![300],
            page: Some(5),
            ..base.clone()
        },
    ];
    on_hopper(|device| {
        for case in &cases {
            case.check::<f16>(device);
            case.check::<bf16>(device);
        }
        // Queries that no f16 holds.
        for magnitude in [2f32.powi(70), 2f32.powi(-70)] {
            let case = Case {
                magnitude,
                ..base.clone()
            };
            case.check::<bf16>(device);
        }
    });
}

/// A tile that a block has for itself has the bits that it has alone.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    on_hopper(|device| {
        const CAPACITY: usize = 2112;
        const HEADS: usize = 2;
        const DIM: usize = 128;
        const PAGE: usize = 16;
        const PAGES: usize = CAPACITY / PAGE;
        let multiprocessors = device.properties().multiprocessors as usize;
        let lengths: Vec<i32> = (0..multiprocessors).map(|i| [2100, 0, 300, 1025, 5][i % 5]).collect();
        let factors = [[0.5f32, 3.0], [0.25, 1.5]].map(|factors| dense(device, &factors, &[HEADS]));
        // Windows of all tokens are none, but only the general kernels have windows.
        for (rows, batch, paged, window_left) in [
            (4, multiprocessors / HEADS, false, None),
            (4, multiprocessors / HEADS, false, Some(CAPACITY as u32)),
            (4, multiprocessors / HEADS, true, None),
            (8, multiprocessors, false, None),
            (8, multiprocessors, true, None),
        ] {
            let q = normal::<bf16>(1, batch * HEADS * rows * DIM);
            // A prime number of codes over and over: no two rows are alike, and a whole GPU's caches are there at once.
            let codes = |seed| -> Vec<u8> {
                let numbers = normal::<f16>(seed, 1_000_003);
                let codes: Vec<u8> = numbers.iter().map(|x| f64_to_e4m3(x.to_f64())).collect();
                codes.into_iter().cycle().take(batch * CAPACITY * HEADS * DIM).collect()
            };
            let (k, v) = (codes(2), codes(3));
            let run = |of: std::ops::Range<usize>, window_left| {
                let (count, row) = (of.len(), HEADS * rows * DIM);
                let q = dense(device, &q[of.start * row..of.end * row], &[count, 1, HEADS * rows, DIM]);
                let slots = CAPACITY * HEADS * DIM;
                let shape = if paged {
                    [count * PAGES, PAGE, HEADS, DIM]
                } else {
                    [count, CAPACITY, HEADS, DIM]
                };
                let [k, v] = [&k, &v].map(|codes| pool(device, &codes[of.start * slots..of.end * slots], shape));
                // The pages of a sequence from its last one on.
                let pages: Vec<i32> = (0..count * PAGES)
                    .map(|page| (page + PAGES - 1 - 2 * (page % PAGES)) as i32)
                    .collect();
                let table = dense(device, &pages, &[count, PAGES]);
                let view = if paged {
                    CacheView::paged(&k, &v, &table)
                } else {
                    CacheView::contiguous(&k, &v)
                };
                let lengths = dense(device, &lengths[of], &[count]);
                let step = decode(
                    q.any(),
                    view.scales(Some(&factors[0]), Some(&factors[1])),
                    lengths.any(),
                );
                let options = DecodeOptions {
                    window_left,
                    ..DecodeOptions::default()
                };
                bytes(&step.options(options).run().unwrap().out)
            };
            let all = run(0..batch, window_left);
            for i in (0..batch).take(5) {
                let own = all.len() / batch;
                for window_left in [None, Some(CAPACITY as u32)] {
                    same_bits(&run(i..i + 1, window_left), &all[i * own..][..own])
                        .unwrap_or_else(|e| panic!("sequence {i}, {rows} rows, {paged}: {e}"));
                }
            }
        }
    });
}

#[test]
fn rope_and_append_is_rope_then_append() {
    on_hopper(|device| {
        for (dim, pairing) in [
            (64, RopePairing::HalfSplit),
            (64, RopePairing::Interleaved),
            (10, RopePairing::HalfSplit),
        ] {
            const BATCH: usize = 2;
            const SEQ: usize = 3;
            let (heads_q, heads) = (4, 2);
            let q = dense(
                device,
                &normal::<bf16>(1, BATCH * SEQ * heads_q * dim),
                &[BATCH, SEQ, heads_q, dim],
            );
            let [k, v] = [2, 3].map(|seed| {
                let numbers = normal::<bf16>(seed, BATCH * SEQ * heads * dim);
                dense(device, &numbers, &[BATCH, SEQ, heads, dim])
            });
            let frequencies: Vec<f32> = (0..dim / 2).map(|i| 0.9f32.powi(i as i32)).collect();
            let (cos, sin) = rope_table(device, 20, &frequencies, 1.0).unwrap();
            let angles = RopeAngles::Table { cos: &cos, sin: &sin };
            let lengths = dense(device, &[4i32, 0], &[2]);
            let scales = [
                dense(device, &[0.01f32, 0.02], &[2]),
                dense(device, &[0.03f32, 0.005], &[2]),
            ];
            let caches =
                || [0; 2].map(|_| pool(device, &[0x11; 2 * 8 * 2 * 64][..2 * 8 * 2 * dim], [2, 8, heads, dim]));
            let (one, two) = (caches(), caches());
            let view = |[k, v]: &'_ [AnyTensor; 2], run: &dyn Fn(CacheView<'_>)| {
                run(CacheView::contiguous(k, v).scales(Some(&scales[0]), Some(&scales[1])));
            };
            view(&one, &|cache| {
                rope(&q, pairing, angles)
                    .k(&k)
                    .lengths(&lengths)
                    .append_at(&v, cache)
                    .run()
                    .unwrap();
            });
            let rotated = rope(&q, pairing, angles).k(&k).lengths(&lengths).run().unwrap();
            view(&two, &|cache| {
                cache_append_at(rotated.1.as_ref().unwrap(), &v, cache, &lengths).unwrap();
            });
            for i in 0..2 {
                same_bits(&bytes(&one[i]), &bytes(&two[i])).unwrap_or_else(|e| panic!("dim {dim} {pairing:?}: {e}"));
                assert_ne!(bytes(&one[i]), bytes(&caches()[i]));
            }
            if dim != 64 {
                continue;
            }
            // A decode step does the same and attends.
            let three = caches();
            let options = DecodeOptions {
                causal: true,
                rotary: Some((pairing, angles)),
                ..DecodeOptions::default()
            };
            view(&three, &|cache| {
                let step = decode(&q, cache, &lengths)
                    .append(&k, &v)
                    .options(options)
                    .run()
                    .unwrap();
                let after = dense(device, &[7i32, 3], &[2]);
                view(&two, &|cache| {
                    let plain = DecodeOptions {
                        rotary: None,
                        ..options
                    };
                    let apart = decode(&rotated.0, cache, &after).options(plain).run().unwrap();
                    same_bits(&bytes(&step.out), &bytes(&apart.out)).unwrap();
                });
            });
            same_bits(&bytes(&three[0]), &bytes(&two[0])).unwrap();
        }
    });
}

#[test]
fn refuses_what_does_not_fit() {
    for device in common::devices() {
        let cache = pool(&device, &[0; 4 * 64], [1, 4, 1, 64]);
        let lengths = dense(&device, &[2i32], &[1]);
        let q = dense(&device, &normal::<f16>(1, 64), &[1, 1, 1, 64]);
        let view = CacheView::contiguous(&cache, &cache);
        if device.tier() != Tier::Sm90a {
            let error = decode(&q, view, &lengths).run().unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            continue;
        }
        let wide = dense(&device, &normal::<f32>(1, 64), &[1, 1, 1, 64]);
        let error = decode(&wide, view, &lengths).run().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Dtype {
                    argument: "k_cache",
                    ..
                }
            ),
            "{error}"
        );
        let two = dense(&device, &[1.0f32; 2], &[2]);
        let error = decode(&q, view.scales(None, Some(&two)), &lengths).run().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Shape {
                    argument: "v_scale",
                    ..
                }
            ),
            "{error}"
        );
        let error = decode(&q, view.scales(Some(&q), None), &lengths).run().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Dtype {
                    argument: "k_scale",
                    ..
                }
            ),
            "{error}"
        );
        let halves = dense(&device, &normal::<f16>(1, 256), &[1, 4, 1, 64]);
        let one = dense(&device, &[1.0f32], &[1]);
        let plain = CacheView::contiguous(&halves, &halves).scales(Some(&one), None);
        let error = decode(&q, plain, &lengths).run().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Layout {
                    argument: "k_scale",
                    ..
                }
            ),
            "{error}"
        );
        let large = pool(&device, &[0; 256], [1, 1, 1, 256]);
        let q = dense(&device, &normal::<f16>(1, 256), &[1, 1, 1, 256]);
        let error = decode(&q, CacheView::contiguous(&large, &large), &lengths)
            .run()
            .unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        // Codes move as they are.
        let codes = AnyTensor::from_bytes(&device, DType::E4M3, &[1, 1, 64], &[0x3a; 64]).unwrap();
        let slots = Tensor::from_slice(&device, &[1i64], &[1]).unwrap();
        let other = pool(&device, &[0; 4 * 64], [1, 4, 1, 64]);
        cache_append(&codes, &codes, CacheView::contiguous(&cache, &other), &slots).unwrap();
        assert_eq!(bytes(&cache)[64..128], [0x3a; 64]);
    }
}
