//! A serving loop, long enough to meet every state of the pool; graphs that outlive the lengths they were captured at; the
//! same launch over and over.
//!
//! `FERROFLASH_STEPS` sets the steps of the loop and the repetitions (on a GPU 10,000 and 1,000 unless given; fewer on the
//! emulator).

mod common;

use ferroflash::{
    AnyTensor, CacheView, DType, DecodeOptions, Device, Error, PagedKvCache, PoolLayout, Tensor, cache_append_at,
    cache_read, decode, f16,
    kv::{NewTokens, PoolConfig, PoolError, SequenceId},
};
use host::{
    compare::{Rule, compare, same_bits},
    reference::{
        Exact,
        attention::{AttentionOptions, AttentionShape, Causal},
        cache::CacheLayout,
        data::{normal, permutation},
        decode::{Cache, decode as reference},
        widen,
    },
};

const HEADS_Q: usize = 4;
const HEADS: usize = 2;
const DIM: usize = 64;
const ROW: usize = HEADS * DIM;

const CAUSAL: DecodeOptions<'static> = DecodeOptions {
    causal: true,
    window_left: None,
    window_right: None,
    softcap: None,
    scale: None,
    alibi_slopes: None,
    sinks: None,
    left_padding: None,
    rotary: None,
};

/// The emulator and the GPU, if it is there, each with its newest tier.
fn newest() -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    for device in common::devices() {
        devices.retain(|other| other.kind() != device.kind());
        devices.push(device);
    }
    if devices.iter().all(Device::is_emulator) {
        eprintln!("skipped on the GPU: there is none");
    }
    devices
}

fn count(device: &Device, emulator: u64, gpu: u64) -> u64 {
    let given = std::env::var("FERROFLASH_STEPS")
        .ok()
        .map(|steps| steps.parse().expect("FERROFLASH_STEPS"));
    given.unwrap_or(if device.is_emulator() { emulator } else { gpu })
}

/// Numbers from 0 to `below - 1`.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }
}

struct Sequence {
    id: SequenceId,
    k: Vec<f16>,
    v: Vec<f16>,
}

/// What one sequence's new rows must be, by the plain way.
fn expected(sequence: &Sequence, q: &[f16], new: usize) -> Vec<f64> {
    let length = sequence.k.len() / ROW;
    let shape = AttentionShape {
        batch: 1,
        heads_q: HEADS_Q,
        heads_kv: HEADS,
        seq_q: new,
        seq_kv: length,
        head_dim: DIM,
        value_dim: DIM,
    };
    let options = AttentionOptions {
        causal: Causal::BottomRight,
        ..Default::default()
    };
    let layout = CacheLayout::Contiguous {
        capacity: length,
        batch_index: None,
    };
    let cache = Cache {
        k: &widen(&sequence.k),
        v: &widen(&sequence.v),
        layout,
        lengths: &[length],
        left_padding: None,
    };
    reference::<Exact>(&shape, &options, &widen(q), &cache).out
}

/// Prefill, append, fork, decode and free with up to 64 sequences; every output is held against the reference, the cache
/// against a plain copy, bit for bit.
#[test]
fn a_serving_loop_of_64_sequences() {
    for device in newest() {
        let steps = count(&device, 80, 10_000);
        let (pages, longest) = if device.is_emulator() { (110, 40) } else { (400, 160) };
        let config = PoolConfig::new(8, pages);
        let (heads, dim) = (HEADS as u64, DIM as u64);
        let mut cache = PagedKvCache::new(&device, DType::F16, PoolLayout::Nhd, config, 1, heads, dim).unwrap();
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let mut live: Vec<Sequence> = Vec::new();
        let (mut most, mut refused, mut forks) = (0, 0, 0);
        for step in 0..steps {
            // New sequences, all with prompts of one length, or one token more for some of those that are there.
            let prefill = live.len() < 64 && (live.len() < 8 || dice.roll(3) == 0);
            let (batch, new) = if prefill {
                let first = live.len();
                for _ in 0..(1 + dice.roll(16)).min(64 - first) {
                    let id = cache.pool_mut().create_sequence();
                    live.push(Sequence {
                        id,
                        k: Vec::new(),
                        v: Vec::new(),
                    });
                }
                (first..live.len(), 1 + dice.roll(12))
            } else {
                let first = if dice.roll(2) == 0 { 0 } else { dice.roll(live.len()) };
                (first..live.len(), 1)
            };
            let tokens: Vec<_> = live[batch.clone()]
                .iter()
                .map(|s| (s.id, NewTokens::Count(new)))
                .collect();
            let plan = match cache.append(&tokens) {
                Ok(plan) => plan,
                Err(Error::Cache(PoolError::CacheFull { .. })) => {
                    refused += 1;
                    if prefill {
                        for sequence in live.drain(batch) {
                            cache.pool_mut().free(sequence.id).unwrap();
                        }
                    }
                    for _ in 0..live.len() / 4 + 1 {
                        if !live.is_empty() {
                            let sequence = live.swap_remove(dice.roll(live.len()));
                            cache.pool_mut().free(sequence.id).unwrap();
                        }
                    }
                    cache.pool().check_invariants().unwrap();
                    continue;
                }
                Err(error) => panic!("{device}, step {step}: {error}"),
            };
            let rows = batch.len();
            let draw = |seed: u64, width: usize| normal::<f16>(step * 4 + seed, rows * new * width);
            let (k, v, q) = (draw(1, ROW), draw(2, ROW), draw(3, HEADS_Q * DIM));
            for (i, sequence) in live[batch.clone()].iter_mut().enumerate() {
                sequence.k.extend_from_slice(&k[i * new * ROW..][..new * ROW]);
                sequence.v.extend_from_slice(&v[i * new * ROW..][..new * ROW]);
            }
            let (b, n) = (rows as u64, new as u64);
            let on_device = |x: &[f16], shape: &[u64]| Tensor::from_slice(&device, x, shape).unwrap();
            let (kt, vt) = (on_device(&k, &[b * n, heads, dim]), on_device(&v, &[b * n, heads, dim]));
            cache.write(0, &plan, &kt, &vt).unwrap();
            let queries = on_device(&q, &[b, n, HEADS_Q as u64, dim]);
            let out = cache.attend(0, &plan, &queries, CAUSAL).unwrap().out;
            let out = out.typed::<f16>("out").unwrap().to_vec().unwrap();
            if step % 16 == 7 {
                let most = live[batch.clone()].iter().map(|s| s.k.len() / ROW).max().unwrap();
                let view = cache.view(0, &plan).unwrap();
                let (k, v) = cache_read(view, plan.cache_seqlens(), most as u64).unwrap();
                let (k, v) = (
                    k.typed::<f16>("k").unwrap().to_vec().unwrap(),
                    v.typed::<f16>("v").unwrap().to_vec().unwrap(),
                );
                for (i, sequence) in live[batch.clone()].iter().enumerate() {
                    let at = i * most * ROW;
                    same_bits(&k[at..][..sequence.k.len()], &sequence.k).unwrap();
                    same_bits(&v[at..][..sequence.v.len()], &sequence.v).unwrap();
                }
            }
            cache.finish(plan).unwrap();
            let elements = new * HEADS_Q * DIM;
            for (i, sequence) in live[batch].iter().enumerate() {
                let expected = expected(sequence, &q[i * elements..][..elements], new);
                let report = compare(&out[i * elements..][..elements], &expected, Rule::Absolute(3e-3));
                assert!(report.is_ok(), "{device}, step {step}, sequence {i}: {report}");
            }
            most = most.max(live.len());
            // Some go on twice, some end, those that are long always.
            if live.len() < 64 && dice.roll(3) == 0 {
                let parent = &live[dice.roll(live.len())];
                let child = Sequence {
                    id: cache.pool_mut().fork(parent.id).unwrap(),
                    k: parent.k.clone(),
                    v: parent.v.clone(),
                };
                live.push(child);
                forks += 1;
            }
            let mut index = 0;
            while index < live.len() {
                if live[index].k.len() / ROW > longest || dice.roll(200) == 0 {
                    cache.pool_mut().free(live.swap_remove(index).id).unwrap();
                } else {
                    index += 1;
                }
            }
            cache.pool().check_invariants().unwrap();
        }
        for sequence in live {
            cache.pool_mut().free(sequence.id).unwrap();
        }
        cache.pool().check_invariants().unwrap();
        assert_eq!(
            cache.pool().available_pages(),
            PoolConfig::new(8, pages).pages - 1,
            "a page was lost"
        );
        assert!(
            forks > 0 && most > 32,
            "{device}: {steps} steps, {most} sequences, {forks} forks, {refused} refusals"
        );
    }
}

/// Pages in no order, keys and values of `batch` sequences up to `capacity` tokens.
struct Pool {
    k: AnyTensor,
    v: AnyTensor,
    table: AnyTensor,
}

impl Pool {
    fn new(device: &Device, batch: u64, capacity: u64, page: u64) -> Pool {
        let columns = capacity / page;
        let pages = batch * columns;
        let shape = [pages, page, HEADS as u64, DIM as u64];
        let cache = |seed| {
            let values = normal::<f16>(seed, shape.iter().product::<u64>() as usize);
            AnyTensor::clone(&Tensor::from_slice(device, &values, &shape).unwrap())
        };
        let order: Vec<i32> = permutation(5, pages as usize)
            .into_iter()
            .map(|page| page as i32)
            .collect();
        Pool {
            k: cache(1),
            v: cache(2),
            table: AnyTensor::clone(&Tensor::from_slice(device, &order, &[batch, columns]).unwrap()),
        }
    }

    fn view(&self) -> CacheView<'_> {
        CacheView::paged(&self.k, &self.v, &self.table)
    }
}

/// A step captured once, at lengths of 0, and replayed while sequences grow, some past several sizes of pieces, is the
/// step run anew each time, bit for bit: out, LSE and what was appended.
#[test]
fn a_captured_step_stays_valid_while_sequences_grow() {
    for device in newest() {
        let (batch, capacity) = if device.is_emulator() {
            (3u64, 256u64)
        } else {
            (8, 8192)
        };
        let growth: Vec<Vec<i32>> = (0..6)
            .map(|step| {
                (0..batch as i32)
                    .map(|i| (capacity as i32 - 1) * step / 5 / (1 + i % 3))
                    .collect()
            })
            .collect();
        let (ours, other) = (
            Pool::new(&device, batch, capacity, 16),
            Pool::new(&device, batch, capacity, 16),
        );
        let new = |seed, heads: usize| {
            let values = normal::<f16>(seed, batch as usize * heads * DIM);
            let shape = [batch, 1, heads as u64, DIM as u64];
            AnyTensor::clone(&Tensor::from_slice(&device, &values, &shape).unwrap())
        };
        let (q, k, v) = (new(11, HEADS_Q), new(12, HEADS), new(13, HEADS));
        let lengths = AnyTensor::zeros(&device, DType::I32, &[batch]).unwrap();
        let step = || decode(&q, ours.view(), &lengths).append(&k, &v).options(CAUSAL).run();
        step().unwrap();
        device.synchronize().unwrap();
        let (graph, captured) = device.capture(step).unwrap();
        for tokens in growth {
            lengths.write_bytes(bytemuck::cast_slice(&tokens)).unwrap();
            captured.out.fill_bytes(0xff).unwrap();
            captured.lse.fill_bytes(0xff).unwrap();
            graph.launch().unwrap();
            cache_append_at(&k, &v, other.view(), &lengths).unwrap();
            let longer: Vec<i32> = tokens.iter().map(|tokens| tokens + 1).collect();
            let longer = Tensor::from_slice(&device, &longer, &[batch]).unwrap();
            let eager = decode(&q, other.view(), &longer).options(CAUSAL).run().unwrap();
            for (replayed, eager) in [(&captured.out, &eager.out), (&captured.lse, &eager.lse)] {
                same_bits(&replayed.to_bytes().unwrap(), &eager.to_bytes().unwrap())
                    .unwrap_or_else(|error| panic!("{device}, lengths {tokens:?}: {error}"));
            }
        }
        // The first, eager step of `ours` wrote slot 0 as well, with the same tokens.
        same_bits(&ours.k.to_bytes().unwrap(), &other.k.to_bytes().unwrap()).unwrap();
        same_bits(&ours.v.to_bytes().unwrap(), &other.v.to_bytes().unwrap()).unwrap();
    }
}

/// The same launch has the same bits every time, whatever ran before it.
#[test]
fn a_step_repeated_has_the_same_bits() {
    for device in newest() {
        let (batch, capacity) = if device.is_emulator() {
            (3u64, 192u64)
        } else {
            (16, 4096)
        };
        let pool = Pool::new(&device, batch, capacity, 16);
        let tokens: Vec<i32> = (0..batch as i32)
            .map(|i| (capacity as i32 - 7 * i) / (1 + i % 2))
            .collect();
        let lengths = Tensor::from_slice(&device, &tokens, &[batch]).unwrap();
        let values = normal::<f16>(3, batch as usize * HEADS_Q * DIM);
        let q = Tensor::from_slice(&device, &values, &[batch, 1, HEADS_Q as u64, DIM as u64]).unwrap();
        let run = || decode(&q, pool.view(), &lengths).options(CAUSAL).run().unwrap();
        let first = run();
        let (out, lse) = (first.out.to_bytes().unwrap(), first.lse.to_bytes().unwrap());
        for repetition in 0..count(&device, 3, 1_000) {
            // Several at once, so that launches overlap where they may.
            let last = [run(), run(), run()];
            for again in last {
                same_bits(&again.out.to_bytes().unwrap(), &out)
                    .and_then(|()| same_bits(&again.lse.to_bytes().unwrap(), &lse))
                    .unwrap_or_else(|error| panic!("{device}, repetition {repetition}: {error}"));
            }
        }
    }
}
