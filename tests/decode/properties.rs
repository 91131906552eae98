//! What a result may depend on: not on the batch, not on where prefill ends, not on who appended.

use ferroflash::{
    AnyTensor, CacheView, DType, DecodeOptions, Error, KvCache, Tensor, attention_with_kv_cache, cache_append, decode,
    f16,
};
use host::{
    compare::{Rule, compare, same_bits},
    reference::{data::normal, widen},
};

use crate::caches::Place;
use crate::support::{Case, Data, on_every_device};

/// A row alone has the bits that it has in a batch, whose size changes how the work is dealt out.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    on_every_device(|device| {
        // Eight rows at most; more, whose pieces are folded in bundles, dealt out one by one or in bundles, to clusters
        // or apart, from pages that boxes fit and others; a tile for each multiprocessor.
        let tiles = device.properties().multiprocessors as usize;
        for (heads, dim, longest, sequences, page) in [
            ((2, 2), 64, 300, 9, 32),
            ((24, 1), 64, 300, 9, 32),
            ((10, 1), 64, 2100, 9, 32),
            ((24, 1), 64, 2100, 2, 32),
            ((24, 1), 64, 2100, 4, 32),
            ((10, 1), 64, 6700, 2, 32),
            ((24, 1), 64, 2100, 9, 32),
            ((40, 1), 64, 2100, 9, 64),
            ((24, 1), 64, 2100, 2, 24),
            ((24, 1), 64, 2100, 9, 24),
            ((8, 2), 128, 300, tiles / 2, 16),
        ] {
            let mut lengths = vec![longest, 5, 64, 129, 0, 200];
            lengths.resize(sequences, 65);
            let many = Case {
                heads,
                dims: (dim, dim),
                lengths,
                page: Some(page),
                // Plain attention of few sequences would be direct.
                window: (Some(2099), None),
                ..Case::default()
            };
            let batch = many
                .run(device, &many.data::<f16>())
                .unwrap()
                .out
                .typed::<f16>("out")
                .unwrap()
                .to_vec()
                .unwrap();
            for row in [0, 3].into_iter().filter(|row| *row < sequences) {
                // The same sequence from the same seeds: sequence `row` of the batch.
                let data = many.data::<f16>();
                let one = Case {
                    lengths: vec![many.lengths[row]],
                    ..many.clone()
                };
                let elements = heads.0 * dim;
                let alone = Data {
                    q: data.q[row * elements..][..elements].to_vec(),
                    place: Place {
                        table: data.place.table[row * data.place.width..][..data.place.width].to_vec(),
                        ..data.place
                    },
                    ..data
                };
                let out = one
                    .run(device, &alone)
                    .unwrap()
                    .out
                    .typed::<f16>("out")
                    .unwrap()
                    .to_vec()
                    .unwrap();
                same_bits(&out, &batch[row * elements..][..elements])
                    .unwrap_or_else(|e| panic!("row {row} of {heads:?} heads on {device}: {e}"));
            }
        }
    });
}

#[test]
fn decode_after_prefill_is_one_long_prefill() {
    on_every_device(|device| {
        const TOKENS: usize = 9;
        const HEADS: usize = 2;
        const DIM: usize = 64;
        let row = HEADS * DIM;
        let [q, k, v] = [1, 2, 3].map(|seed| normal::<f16>(seed, TOKENS * row));
        let tensor = |x: &[f16], tokens: usize| {
            Tensor::from_slice(device, x, &[1, tokens as u64, HEADS as u64, DIM as u64]).unwrap()
        };
        let options = DecodeOptions {
            causal: true,
            ..DecodeOptions::default()
        };
        let run = |cache: &mut KvCache, from: usize, to: usize| {
            let part = |x: &[f16]| tensor(&x[from * row..to * row], to - from);
            let out = attention_with_kv_cache(&part(&q), &part(&k), &part(&v), cache, options)
                .unwrap()
                .out;
            out.typed::<f16>("out").unwrap().to_vec().unwrap()
        };
        let cache = || KvCache::new(device, DType::F16, 1, TOKENS as u64, HEADS as u64, DIM as u64).unwrap();
        let long = run(&mut cache(), 0, TOKENS);
        let mut steps = cache();
        let mut out = run(&mut steps, 0, 4);
        for token in 4..TOKENS {
            out.extend(run(&mut steps, token, token + 1));
        }
        let report = compare(&out, &widen(&long), Rule::Absolute(2e-3));
        assert!(report.is_ok(), "{device}: {report}");
        // Full: nothing changes.
        let one = tensor(&q[..row], 1);
        let error = attention_with_kv_cache(&one, &one, &one, &mut steps, options).unwrap_err();
        assert!(
            matches!(
                error,
                Error::CacheFull {
                    sequence: 0,
                    requested: 10,
                    capacity: 9
                }
            ),
            "{error}"
        );
        assert_eq!(steps.lengths(), [9]);
    });
}

#[test]
fn new_tokens_are_appended_first() {
    on_every_device(|device| {
        let dims = [2, 1, 2, 64];
        let [q, k, v] = [1, 2, 3].map(|seed| Tensor::from_slice(device, &normal::<f16>(seed, 256), &dims).unwrap());
        let pool = |seed| Tensor::from_slice(device, &normal::<f16>(seed, 6 * 4 * 128), &[6, 4, 2, 64]).unwrap();
        let table = Tensor::from_slice(device, &[5i32, 2, 0, 1], &[2, 2]).unwrap();
        let before = Tensor::from_slice(device, &[4i32, 3], &[2]).unwrap();
        let after = Tensor::from_slice(device, &[5i32, 4], &[2]).unwrap();
        let slots = Tensor::from_slice(device, &[8i64, 3], &[2]).unwrap();
        let (k1, v1, k2, v2) = (pool(4), pool(5), pool(4), pool(5));
        let one = decode(&q, CacheView::paged(&k1, &v1, &table), &before)
            .append(&k, &v)
            .run()
            .unwrap();
        let flat = |x: &AnyTensor| x.reshape(&[2, 2, 64]).unwrap();
        cache_append(&flat(&k), &flat(&v), CacheView::paged(&k2, &v2, &table), &slots).unwrap();
        let two = decode(&q, CacheView::paged(&k2, &v2, &table), &after).run().unwrap();
        same_bits(&one.out.to_bytes().unwrap(), &two.out.to_bytes().unwrap()).unwrap();
        same_bits(&k1.to_bytes().unwrap(), &k2.to_bytes().unwrap()).unwrap();
        same_bits(&v1.to_bytes().unwrap(), &v2.to_bytes().unwrap()).unwrap();
    });
}
