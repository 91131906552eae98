//! Attention over caches, against the f64 reference, on every device.

mod common;

use ferroflash::{
    AnyTensor, CacheView, DType, DecodeOptions, Decoded, Device, Error, Float, KvCache, PagedKvCache, PoolLayout,
    Tensor, Tier, attention_with_kv_cache, bf16, cache_append, decode, f16,
    kv::{NewTokens, PoolConfig, PoolError, SequenceId},
};
use host::{
    compare::{Rule, compare, same_bits},
    reference::{
        Eager, Exact, Precision,
        attention::{AttentionOptions, AttentionShape, Causal},
        cache::{CacheLayout, append, exchange_axes},
        data::{normal, permutation},
        decode::{Cache, decode as reference},
        widen,
    },
};

/// A problem: sequences of some lengths over a paged or contiguous cache.
#[derive(Clone, Debug)]
struct Case {
    heads: (usize, usize),
    seq_q: usize,
    dims: (usize, usize),
    lengths: Vec<usize>,
    /// Slots of a page, or nothing for a contiguous cache.
    page: Option<usize>,
    layout: PoolLayout,
    causal: bool,
    window: (Option<u32>, Option<u32>),
    softcap: Option<f32>,
    slopes: bool,
    sinks: bool,
    padding: Option<Vec<usize>>,
    rows: Option<Vec<usize>>,
}

impl Default for Case {
    fn default() -> Case {
        Case {
            heads: (4, 2),
            seq_q: 1,
            dims: (64, 64),
            lengths: vec![5, 70, 0],
            page: Some(16),
            layout: PoolLayout::Nhd,
            causal: true,
            window: (None, None),
            softcap: None,
            slopes: false,
            sinks: false,
            padding: None,
            rows: None,
        }
    }
}

/// What a case amounts to on the CPU.
struct Data<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    table: Vec<i32>,
    width: usize,
    pages: usize,
    page: usize,
    slopes: Vec<f32>,
    sinks: Vec<f32>,
}

impl Case {
    fn batch(&self) -> usize {
        self.lengths.len()
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape {
            batch: self.batch(),
            heads_q: self.heads.0,
            heads_kv: self.heads.1,
            seq_q: self.seq_q,
            seq_kv: 0,
            head_dim: self.dims.0,
            value_dim: self.dims.1,
        }
    }

    /// Random tokens in shuffled pages; NaN in every slot that holds none.
    fn data<T: Float>(&self) -> Data<T> {
        let longest = self.lengths.iter().copied().max().unwrap_or(0).max(1);
        let (page, width) = match self.page {
            Some(page) => (page, longest.div_ceil(page)),
            None => (longest + 3, 1),
        };
        let rows = self
            .rows
            .as_ref()
            .map_or(self.batch(), |rows| rows.iter().max().map_or(0, |row| row + 1));
        let pages = if self.page.is_some() {
            self.batch() * width + 2
        } else {
            rows
        };
        let table: Vec<i32> = match self.page {
            Some(_) => permutation(7, pages)[..self.batch() * width]
                .iter()
                .map(|&page| page as i32)
                .collect(),
            None => Vec::new(),
        };
        let (row_k, row_v) = (self.heads.1 * self.dims.0, self.heads.1 * self.dims.1);
        let nan = T::from_f32(f32::NAN);
        let mut k = vec![nan; pages * page * row_k];
        let mut v = vec![nan; pages * page * row_v];
        let layout = self.reference_layout(&table, width, page);
        for (sequence, &length) in self.lengths.iter().enumerate() {
            let slots: Vec<i64> = (0..length).map(|token| layout.slot(sequence, token) as i64).collect();
            append(&mut k, &normal(100 + sequence as u64, length * row_k), &slots, row_k);
            append(&mut v, &normal(200 + sequence as u64, length * row_v), &slots, row_v);
        }
        Data {
            q: (0..self.batch())
                .flat_map(|b| normal::<T>(300 + b as u64, self.seq_q * self.heads.0 * self.dims.0))
                .collect(),
            k,
            v,
            table,
            width,
            pages,
            page,
            slopes: (0..self.heads.0).map(|head| 0.01 + 0.03 * head as f32).collect(),
            sinks: (0..self.heads.0).map(|head| head as f32 - 1.5).collect(),
        }
    }

    fn reference_layout<'a>(&'a self, table: &'a [i32], width: usize, page: usize) -> CacheLayout<'a> {
        match self.page {
            Some(page_size) => CacheLayout::Paged {
                page_size,
                table,
                width,
            },
            None => CacheLayout::Contiguous {
                capacity: page,
                batch_index: self.rows.as_deref(),
            },
        }
    }

    fn expected<T: Float, P: Precision>(&self, data: &Data<T>) -> host::reference::attention::Forward {
        let options = AttentionOptions {
            scale: None,
            causal: if self.causal { Causal::BottomRight } else { Causal::None },
            window_left: self.window.0,
            window_right: self.window.1,
            softcap: self.softcap.map(f64::from),
            alibi_slopes: self
                .slopes
                .then(|| data.slopes.iter().copied().map(f64::from).collect()),
            sinks: self.sinks.then(|| data.sinks.iter().copied().map(f64::from).collect()),
            dropout: None,
        };
        let cache = Cache {
            k: &widen(&data.k),
            v: &widen(&data.v),
            layout: self.reference_layout(&data.table, data.width, data.page),
            lengths: &self.lengths,
            left_padding: self.padding.as_deref(),
        };
        reference::<P>(&self.shape(), &options, &widen(&data.q), &cache)
    }

    fn run<T: Float>(&self, device: &Device, data: &Data<T>) -> host::Result<Decoded> {
        let (heads, dims) = (self.heads, self.dims);
        let tensor = |values: &[T], shape: [usize; 4]| Tensor::from_slice(device, values, &shape.map(|n| n as u64));
        let ints = |values: Vec<i32>, shape: &[u64]| Tensor::from_slice(device, &values, shape);
        let pool = |values: &[T], dim: usize| match self.layout {
            PoolLayout::Nhd => tensor(values, [data.pages, data.page, heads.1, dim]),
            PoolLayout::Hnd => tensor(
                &exchange_axes(values, (data.page, heads.1), dim),
                [data.pages, heads.1, data.page, dim],
            ),
        };
        let batch = self.batch() as u64;
        let q = tensor(&data.q, [self.batch(), self.seq_q, heads.0, dims.0])?;
        let (k, v) = (pool(&data.k, dims.0)?, pool(&data.v, dims.1)?);
        let table = ints(data.table.clone(), &[batch, data.table.len() as u64 / batch.max(1)])?;
        let lengths = ints(self.lengths.iter().map(|&n| n as i32).collect(), &[batch])?;
        let index = self
            .rows
            .as_ref()
            .map(|rows| ints(rows.iter().map(|&n| n as i32).collect(), &[batch]))
            .transpose()?;
        let padding = self
            .padding
            .as_ref()
            .map(|p| ints(p.iter().map(|&n| n as i32).collect(), &[batch]))
            .transpose()?;
        let floats = |values: &[f32]| Tensor::from_slice(device, values, &[values.len() as u64]);
        let (slopes, sinks) = (floats(&data.slopes)?, floats(&data.sinks)?);
        let mut view = match self.page {
            Some(_) => CacheView::paged(&k, &v, &table),
            None => CacheView::contiguous(&k, &v),
        }
        .layout(self.layout);
        if let Some(index) = &index {
            view = view.batch_index(index);
        }
        view.validate(&lengths, 0)?;
        let options = DecodeOptions {
            causal: self.causal,
            window_left: self.window.0,
            window_right: self.window.1,
            softcap: self.softcap,
            alibi_slopes: self.slopes.then_some(&slopes),
            sinks: self.sinks.then_some(&sinks),
            left_padding: padding.as_deref(),
            ..DecodeOptions::default()
        };
        decode(&q, view, &lengths).options(options).run()
    }

    fn check<T: Float>(&self, device: &Device) {
        let data = self.data::<T>();
        let result = self
            .run(device, &data)
            .unwrap_or_else(|error| panic!("{self:?} on {device}: {error}"));
        let (exact, eager) = (self.expected::<T, Exact>(&data), self.expected::<T, Eager<T>>(&data));
        let out = result.out.typed::<T>("out").unwrap().to_vec().unwrap();
        let lse = result.lse.typed::<f32>("lse").unwrap().to_vec().unwrap();
        // f32 weights are `ex2.approx`, good to 2⁻²² where the naive exponential is good to 2⁻²⁴.
        let factor = if T::DTYPE == DType::F32 { 6.0 } else { 2.0 };
        let report = compare(
            &out,
            &exact.out,
            Rule::Naive {
                naive: &eager.out,
                factor,
            },
        );
        assert!(report.is_ok(), "{self:?} on {device}, {}: {report}", T::DTYPE);
        let report = compare(
            &lse,
            &exact.lse,
            Rule::Relative {
                relative: 2e-5,
                absolute: 2e-5,
            },
        );
        assert!(report.is_ok(), "{self:?} on {device}, {}, lse: {report}", T::DTYPE);
    }
}

fn on_every_device(check: impl Fn(&Device)) {
    common::devices().iter().for_each(check);
}

fn check_all(case: Case) {
    on_every_device(|device| {
        case.check::<f16>(device);
        case.check::<f32>(device);
        if device.tier() != Tier::Sm75 {
            case.check::<bf16>(device);
        }
    });
}

#[test]
fn pages_of_any_size_in_both_orders() {
    for (page, layout) in [
        (1, PoolLayout::Nhd),
        (16, PoolLayout::Nhd),
        (16, PoolLayout::Hnd),
        (5, PoolLayout::Hnd),
    ] {
        check_all(Case {
            page: Some(page),
            layout,
            lengths: vec![67, 0, 16],
            ..Case::default()
        });
    }
}

#[test]
fn contiguous_rows_in_any_order() {
    check_all(Case {
        page: None,
        rows: Some(vec![3, 0, 1]),
        lengths: vec![33, 1, 80],
        ..Case::default()
    });
}

#[test]
fn head_dims_and_ratios() {
    for (heads, dims) in [
        ((8, 1), (128, 128)),
        ((5, 5), (256, 256)),
        ((28, 4), (40, 40)),
        ((3, 3), (96, 64)),
    ] {
        check_all(Case {
            heads,
            dims,
            lengths: vec![37, 3],
            ..Case::default()
        });
    }
    // More rows than a tile has: 40 heads of one KV head.
    check_all(Case {
        heads: (40, 1),
        lengths: vec![70],
        ..Case::default()
    });
}

#[test]
fn several_new_tokens() {
    for (seq_q, causal) in [(2, true), (7, true), (7, false)] {
        // The shortest sequence is shorter than its queries: some rows see nothing.
        check_all(Case {
            seq_q,
            causal,
            lengths: vec![70, 3, 0],
            ..Case::default()
        });
    }
}

#[test]
fn options() {
    let base = Case {
        seq_q: 3,
        lengths: vec![150, 20, 0],
        ..Case::default()
    };
    check_all(Case {
        window: (Some(40), None),
        ..base.clone()
    });
    check_all(Case {
        causal: false,
        window: (Some(70), Some(1)),
        ..base.clone()
    });
    check_all(Case {
        softcap: Some(1.5),
        ..base.clone()
    });
    check_all(Case {
        slopes: true,
        sinks: true,
        ..base.clone()
    });
    check_all(Case {
        padding: Some(vec![64, 20, 1]),
        slopes: true,
        ..base
    });
}

/// A row alone has the bits that it has in a batch, whose size changes how the work is dealt out.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    on_every_device(|device| {
        let mut lengths = vec![300, 5, 64, 129, 0, 200];
        lengths.resize(9, 65);
        let many = Case {
            heads: (2, 2),
            dims: (64, 64),
            lengths,
            page: Some(32),
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
        for row in [0, 3] {
            // The same sequence from the same seeds: sequence `row` of the batch.
            let data = many.data::<f16>();
            let one = Case {
                lengths: vec![many.lengths[row]],
                ..many.clone()
            };
            let elements = 2 * 64;
            let alone = Data {
                q: data.q[row * elements..][..elements].to_vec(),
                table: data.table[row * data.width..][..data.width].to_vec(),
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
                .unwrap_or_else(|e| panic!("row {row} on {device}: {e}"));
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

/// Prefill, append, fork, decode and free over a page pool; every output is held against the reference.
#[test]
fn a_loop_of_sequences() {
    let device = &common::devices()[0];
    const HEADS_Q: usize = 4;
    const HEADS: usize = 2;
    const DIM: usize = 64;
    const PAGE: usize = 4;
    let row = HEADS * DIM;
    let config = PoolConfig::new(PAGE, 24);
    let mut cache =
        PagedKvCache::new(device, DType::F16, PoolLayout::Nhd, config, 1, HEADS as u64, DIM as u64).unwrap();
    let mut live: Vec<(SequenceId, Vec<f16>, Vec<f16>)> = Vec::new();
    let mut refused = 0;
    for step in 0..40u64 {
        match step % 8 {
            0 => live.push((cache.pool_mut().create_sequence(), Vec::new(), Vec::new())),
            3 if !live.is_empty() => {
                let (id, k, v) = live[0].clone();
                live.push((cache.pool_mut().fork(id).unwrap(), k, v));
            }
            7 if live.len() > 3 => {
                let (id, ..) = live.remove(0);
                cache.pool_mut().free(id).unwrap();
            }
            _ => {}
        }
        let new = if step % 8 == 0 { 5 } else { 1 };
        let batch: Vec<(SequenceId, NewTokens)> = live.iter().map(|(id, ..)| (*id, NewTokens::Count(new))).collect();
        let plan = match cache.append(&batch) {
            Ok(plan) => plan,
            Err(Error::Cache(PoolError::CacheFull { .. })) => {
                refused += 1;
                let (id, ..) = live.remove(0);
                cache.pool_mut().free(id).unwrap();
                cache.pool().check_invariants().unwrap();
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let draw = |seed: u64, width: usize| normal::<f16>(step * 10 + seed, live.len() * new * width);
        let (k, v, q) = (draw(1, row), draw(2, row), draw(3, HEADS_Q * DIM));
        for (i, (_, keys, values)) in live.iter_mut().enumerate() {
            keys.extend_from_slice(&k[i * new * row..][..new * row]);
            values.extend_from_slice(&v[i * new * row..][..new * row]);
        }
        let (b, n, d) = (live.len() as u64, new as u64, DIM as u64);
        let k = Tensor::from_slice(device, &k, &[b * n, HEADS as u64, d]).unwrap();
        let v = Tensor::from_slice(device, &v, &[b * n, HEADS as u64, d]).unwrap();
        let queries = Tensor::from_slice(device, &q, &[b, n, HEADS_Q as u64, d]).unwrap();
        cache.write(0, &plan, &k, &v).unwrap();
        let options = DecodeOptions {
            causal: true,
            ..DecodeOptions::default()
        };
        let out = cache
            .attend(0, &plan, &queries, options)
            .unwrap()
            .out
            .typed::<f16>("out")
            .unwrap()
            .to_vec()
            .unwrap();
        cache.finish(plan).unwrap();
        cache.pool().check_invariants().unwrap();
        for (i, (_, keys, values)) in live.iter().enumerate() {
            let length = keys.len() / row;
            let shape = AttentionShape {
                batch: 1,
                heads_q: HEADS_Q,
                heads_kv: HEADS,
                seq_q: new,
                seq_kv: length,
                head_dim: DIM,
                value_dim: DIM,
            };
            let plain = Cache {
                k: &widen(keys),
                v: &widen(values),
                layout: CacheLayout::Contiguous {
                    capacity: length,
                    batch_index: None,
                },
                lengths: &[length],
                left_padding: None,
            };
            let elements = new * HEADS_Q * DIM;
            let options = AttentionOptions {
                causal: Causal::BottomRight,
                ..Default::default()
            };
            let expected = reference::<Exact>(&shape, &options, &widen(&q[i * elements..][..elements]), &plain);
            let report = compare(&out[i * elements..][..elements], &expected.out, Rule::Absolute(3e-3));
            assert!(report.is_ok(), "step {step}, sequence {i}: {report}");
        }
    }
    assert!(refused > 0, "the pool never filled up");
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

#[test]
fn refuses_what_does_not_fit() {
    let device = &common::devices()[0];
    let tensor = |dtype, shape: &[u64]| AnyTensor::zeros(device, dtype, shape).unwrap();
    let q = tensor(DType::F16, &[2, 1, 4, 64]);
    let pool = tensor(DType::F16, &[6, 4, 2, 64]);
    let table = Tensor::from_slice(device, &[1i32, 2, 3, 4], &[2, 2]).unwrap();
    let lengths = Tensor::from_slice(device, &[8i32, 3], &[2]).unwrap();
    let view = CacheView::paged(&pool, &pool, &table);
    let refused = |q: &AnyTensor, pool: &AnyTensor, lengths: &AnyTensor| {
        decode(q, CacheView::paged(pool, pool, &table), lengths)
            .run()
            .unwrap_err()
            .to_string()
    };
    let message = refused(&tensor(DType::BF16, &[2, 1, 4, 64]), &pool, &lengths);
    assert!(message.contains("k_cache is f16"), "{message}");
    let message = refused(&tensor(DType::F16, &[2, 1, 3, 64]), &pool, &lengths);
    assert!(message.contains("a multiple of the 2 KV heads"), "{message}");
    let message = refused(&tensor(DType::F16, &[3, 1, 4, 64]), &pool, &lengths);
    assert!(message.contains("block_table"), "{message}");
    let message = refused(
        &tensor(DType::F16, &[2, 1, 4, 20]),
        &tensor(DType::F16, &[6, 4, 2, 20]),
        &lengths,
    );
    assert!(message.contains("head dims 20"), "{message}");
    let message = refused(&q, &pool, &tensor(DType::I64, &[2]));
    assert!(message.contains("cache_seqlens is i64"), "{message}");
    view.validate(&lengths, 0).unwrap();
    let error = view.validate(&lengths, 1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Cache(PoolError::TableTooNarrow {
                row: 0,
                needed_columns: 3,
                columns: 2
            })
        ),
        "{error}"
    );
    let wrong = Tensor::from_slice(device, &[1i32, 6, 3, 4], &[2, 2]).unwrap();
    let error = CacheView::paged(&pool, &pool, &wrong)
        .validate(&lengths, 0)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Cache(PoolError::PageOutOfRange {
                row: 0,
                column: 1,
                page: 6,
                pages: 6
            })
        ),
        "{error}"
    );
    let shared = Tensor::from_slice(device, &[1i32, 2, 2, 4], &[2, 2]).unwrap();
    CacheView::paged(&pool, &pool, &shared).validate(&lengths, 0).unwrap();
    let error =
        CacheView::paged(&pool, &pool, &shared).validate(&Tensor::from_slice(device, &[7i32, 3], &[2]).unwrap(), 1);
    assert!(
        matches!(error, Err(Error::Cache(PoolError::OverlappingPages { .. }))),
        "{error:?}"
    );
}
