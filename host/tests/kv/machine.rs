//! Random programs of pool operations, every step compared with the model.

use std::collections::BTreeSet;

use host::kv::{NewTokens, PageId, PagePool, PoolConfig, PoolError, SequenceId};
use proptest::prelude::*;

use crate::model::{Model, context};

/// One operation; `who` picks a live sequence (or launch), modulo their number.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Create,
    CreateWithPrefix { stream: u32, length: usize },
    Append { who: usize, stream: u32, count: usize },
    AppendUnknown { who: usize, count: usize },
    Fork { who: usize },
    Truncate { who: usize, length: usize },
    Free { who: usize },
    Begin,
    Complete { who: usize },
    Abandon { who: usize },
    ClearPrefixCache,
}

/// Prompts that agree up to a point: stream `s` departs from stream 0 at token `5 * s`.
fn token(stream: u32, position: usize) -> u32 {
    if position < 5 * stream as usize { 7 } else { 7 + stream }
}

struct Machine {
    pool: PagePool,
    model: Model,
    unknown_tokens: u64,
    refused: usize,
}

impl Machine {
    fn new(config: PoolConfig) -> Machine {
        let model = Model {
            page_size: config.page_size,
            memory: vec![u64::MAX; config.page_size * config.pages],
            ..Model::default()
        };
        Machine {
            pool: PagePool::new(config).unwrap(),
            model,
            unknown_tokens: 1 << 40,
            refused: 0,
        }
    }

    fn pick(&self, who: usize) -> Option<SequenceId> {
        self.pool.sequences().nth(who.checked_rem(self.pool.sequences().len())?)
    }

    fn step(&mut self, operation: Operation) {
        let before = self.model.owned(&self.pool);
        self.apply(operation, &before);
        self.model.check(&self.pool, &before);
    }

    fn apply(&mut self, operation: Operation, before: &BTreeSet<PageId>) -> Option<()> {
        match operation {
            Operation::Create => {
                let id = self.pool.create_sequence();
                self.model.sequences.insert(id, Vec::new());
            }
            Operation::CreateWithPrefix { stream, length } => {
                let tokens: Vec<u32> = (0..length).map(|position| token(stream, position)).collect();
                let expected = self.pool.lookup_prefix(&tokens);
                let (id, shared) = self.pool.create_sequence_with_prefix(&tokens);
                assert_eq!(shared, expected);
                assert!(shared < length || length == 0, "one token is left to compute");
                let mut contexts: Vec<u64> = Vec::new();
                for &token in &tokens[..shared] {
                    contexts.push(context(contexts.last().copied().unwrap_or(0), u64::from(token)));
                }
                self.model.sequences.insert(id, contexts);
                self.append(id, NewTokens::Ids(&tokens[shared..]), before);
            }
            Operation::Append { who, stream, count } => {
                let id = self.pick(who)?;
                let length = self.pool.length(id).unwrap();
                let tokens: Vec<u32> = (length..length + count)
                    .map(|position| token(stream, position))
                    .collect();
                self.append(id, NewTokens::Ids(&tokens), before);
            }
            Operation::AppendUnknown { who, count } => {
                let id = self.pick(who)?;
                self.append(id, NewTokens::Count(count), before);
            }
            Operation::Fork { who } => {
                let id = self.pick(who)?;
                let fork = self.pool.fork(id).unwrap();
                let contexts = self.model.sequences[&id].clone();
                self.model.sequences.insert(fork, contexts);
            }
            Operation::Truncate { who, length } => {
                let id = self.pick(who)?;
                let contexts = self.model.sequences.get_mut(&id).unwrap();
                if length <= contexts.len() {
                    contexts.truncate(length);
                    self.pool.truncate(id, length).unwrap();
                } else {
                    let copy = self.pool.clone();
                    assert!(matches!(
                        self.pool.truncate(id, length),
                        Err(PoolError::TruncateBeyondLength { .. })
                    ));
                    assert!(self.pool == copy);
                }
            }
            Operation::Free { who } => {
                let id = self.pick(who)?;
                self.model.sequences.remove(&id);
                self.pool.free(id).unwrap();
                let copy = self.pool.clone();
                assert_eq!(self.pool.free(id), Err(PoolError::DoubleFree { sequence: id }));
                assert!(self.pool == copy);
            }
            Operation::Begin => {
                let epoch = self.pool.begin_launch();
                self.model.begin(&self.pool, epoch);
            }
            Operation::Complete { who } | Operation::Abandon { who } => {
                let which = who.checked_rem(self.model.in_flight.len())?;
                let epoch = *self.model.in_flight.keys().nth(which)?;
                if matches!(operation, Operation::Complete { .. }) {
                    self.pool.complete(epoch).unwrap();
                } else {
                    self.pool.abandon(epoch).unwrap();
                }
                self.model.end(epoch);
                assert_eq!(self.pool.complete(epoch), Err(PoolError::UnknownEpoch { epoch }));
            }
            Operation::ClearPrefixCache => self.pool.clear_prefix_cache(),
        }
        Some(())
    }

    /// Appends, and predicts from the model whether that must succeed.
    fn append(&mut self, id: SequenceId, tokens: NewTokens<'_>, before: &BTreeSet<PageId>) {
        let (old, page_size) = (self.pool.table(id).unwrap().to_vec(), self.pool.page_size());
        let length = self.pool.length(id).unwrap();
        let shared_tail = !length.is_multiple_of(page_size) && self.model.owners(&self.pool, old[old.len() - 1]) > 1;
        let needed =
            (length + tokens.len()).div_ceil(page_size) - old.len() + usize::from(shared_tail && !tokens.is_empty());
        let available = self.pool.available_pages();
        let copy = self.pool.clone();
        match self.pool.append(id, tokens) {
            Ok(plan) => {
                assert!(needed <= available, "{needed} pages from {available}");
                let new = self.pool.table(id).unwrap();
                for page in new.iter().filter(|page| !old.contains(page)) {
                    assert!(!before.contains(page), "page {page} belongs to another sequence");
                    assert!(
                        self.model.in_flight.values().all(|read| !read.contains(page)),
                        "page {page} is being read"
                    );
                }
                assert_eq!(plan.copies.len(), usize::from(shared_tail && !tokens.is_empty()));
                let written: Vec<u64> = match tokens {
                    NewTokens::Ids(ids) => ids.iter().map(|&token| u64::from(token)).collect(),
                    NewTokens::Count(count) => (0..count as u64).map(|index| self.unknown_tokens + index).collect(),
                };
                self.unknown_tokens += written.len() as u64;
                self.model.write(id, &written, &plan);
            }
            Err(PoolError::CacheFull {
                requested_pages,
                free_pages,
                watermark,
                ..
            }) => {
                assert_eq!((requested_pages, free_pages), (needed, available));
                assert!(needed + watermark > available);
                assert!(self.pool == copy, "a failed append must leave the pool bit-identical");
                self.refused += 1;
            }
            Err(PoolError::LengthOverCapacity { .. }) => {
                assert!(length + tokens.len() > self.pool.capacity_tokens());
                assert!(self.pool == copy, "a failed append must leave the pool bit-identical");
                self.refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn operation() -> impl Strategy<Value = Operation> {
    let who = 0_usize..8;
    prop_oneof![
        1 => Just(Operation::Create),
        3 => (0_u32..4, 0_usize..30).prop_map(|(stream, length)| Operation::CreateWithPrefix { stream, length }),
        5 => (who.clone(), 0_u32..4, 0_usize..20)
            .prop_map(|(who, stream, count)| Operation::Append { who, stream, count }),
        1 => (who.clone(), 0_usize..20).prop_map(|(who, count)| Operation::AppendUnknown { who, count }),
        2 => who.clone().prop_map(|who| Operation::Fork { who }),
        2 => (who.clone(), 0_usize..30).prop_map(|(who, length)| Operation::Truncate { who, length }),
        4 => who.clone().prop_map(|who| Operation::Free { who }),
        3 => Just(Operation::Begin),
        4 => who.clone().prop_map(|who| Operation::Complete { who }),
        1 => who.prop_map(|who| Operation::Abandon { who }),
        1 => Just(Operation::ClearPrefixCache),
    ]
}

proptest! {
    // 128 programs of at least 80 steps: more than 10,000 steps, the pool compared and proved after each.
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn pool_follows_the_model(
        page_size in prop::sample::select(vec![1_usize, 2, 4, 16]),
        pages in 2_usize..40,
        watermark in 0_usize..4,
        prefix in prop::bool::weighted(0.8),
        widest in prop::option::of(1_usize..8),
        program in prop::collection::vec(operation(), 80..120),
    ) {
        let mut config = PoolConfig::new(page_size, pages).watermark(watermark.min(pages - 2));
        if prefix {
            config = config.prefix_cache("model", "bf16");
        }
        config.max_pages_per_sequence = widest;
        let mut machine = Machine::new(config);
        for operation in program {
            machine.step(operation);
        }
    }
}

/// One long life of one pool, long enough for everything to happen; the statistics prove that it did.
#[test]
fn long_run_evicts_shares_copies_and_refuses() {
    let mut machine = Machine::new(PoolConfig::new(4, 24).watermark(2).prefix_cache("model", "bf16"));
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % bound
    };
    for _ in 0..10_000 {
        let (who, stream, count) = (random(8) as usize, random(4) as u32, random(20) as usize);
        let crowded = machine.pool.sequences().len() > 8;
        machine.step(match random(24) {
            _ if crowded => Operation::Free { who },
            0 => Operation::Create,
            1..=4 => Operation::CreateWithPrefix {
                stream,
                length: count + 4,
            },
            5..=9 => Operation::Append { who, stream, count },
            10 => Operation::AppendUnknown { who, count },
            11 | 12 => Operation::Fork { who },
            13 => Operation::Truncate { who, length: count },
            14..=17 => Operation::Free { who },
            18..=19 => Operation::Begin,
            20..=22 => Operation::Complete { who },
            _ if who == 0 => Operation::ClearPrefixCache,
            _ => Operation::Abandon { who },
        });
    }
    let statistics = machine.pool.statistics();
    assert!(statistics.evictions > 100, "{statistics:?}");
    assert!(statistics.copies_on_write > 100, "{statistics:?}");
    assert!(statistics.prefix_hit_tokens > 1_000, "{statistics:?}");
    assert!(machine.refused > 100, "{} appends were refused", machine.refused);
}
