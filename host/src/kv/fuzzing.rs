//! Body of the fuzz target `kv_operations`: any bytes are a program of pool operations.

use super::{Epoch, NewTokens, PagePool, PoolConfig, SequenceId};

/// Runs the operations that `bytes` spell and checks the pool after each.
///
/// The first bytes choose the pool, then each operation takes an opcode and up to two operands; a program that ends
/// early is complete. Tokens come from an alphabet of two, so that prefixes meet.
///
/// # Panics
/// If an invariant breaks, a failed operation changes the pool, or a plan has the wrong number of slots: that is
/// what the fuzzer looks for.
pub fn run_operations(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let mut next = || bytes.next();
    let (Some(shape), Some(pages)) = (next(), next()) else {
        return;
    };
    let config = PoolConfig::new(1 << (shape % 4), 2 + usize::from(pages % 32)).prefix_cache("fuzz", "f32");
    let Ok(mut pool) = PagePool::new(config.watermark(usize::from(pages % 2).min(usize::from(pages % 32)))) else {
        return;
    };
    let mut names: Vec<SequenceId> = Vec::new();
    let mut launches: Vec<Epoch> = Vec::new();
    while let (Some(operation), Some(operand)) = (next(), next()) {
        let before = pool.clone();
        let pick = |names: &[SequenceId]| {
            let unknown = SequenceId::new(u64::MAX);
            names
                .get(usize::from(operand) % (names.len() + 1))
                .copied()
                .unwrap_or(unknown)
        };
        let name = pick(&names);
        let amount = usize::from(next().unwrap_or(0));
        let tokens: Vec<u32> = (0..amount % 40)
            .map(|index| u32::from(operand >> (index % 8)) & 1)
            .collect();
        let failed = match operation % 9 {
            0 => {
                names.push(pool.create_sequence());
                false
            }
            1 => {
                let (name, shared) = pool.create_sequence_with_prefix(&tokens);
                assert_eq!(shared, before.lookup_prefix(&tokens), "lookup and sharing disagree");
                names.push(name);
                let created = pool.clone();
                let failed = pool.append(name, &tokens[shared..]).is_err();
                assert!(!failed || pool == created, "a failed append changed the pool");
                false
            }
            2 | 3 => {
                let added = if operation % 9 == 2 {
                    NewTokens::Ids(&tokens)
                } else {
                    NewTokens::Count(amount)
                };
                match pool.append(name, added) {
                    Ok(plan) => {
                        assert_eq!(plan.slots.len(), added.len(), "one slot per token");
                        false
                    }
                    Err(_) => true,
                }
            }
            4 => pool.fork(name).map(|fork| names.push(fork)).is_err(),
            5 => pool.truncate(name, amount).is_err(),
            6 => pool.free(name).is_err(),
            7 => {
                launches.push(pool.begin_launch());
                false
            }
            _ if launches.is_empty() => {
                pool.clear_prefix_cache();
                false
            }
            _ => {
                let epoch = launches.swap_remove(usize::from(operand) % launches.len());
                if amount % 4 == 0 {
                    pool.abandon(epoch).is_err()
                } else {
                    pool.complete(epoch).is_err()
                }
            }
        };
        assert!(!failed || pool == before, "a failed operation changed the pool");
        if let Err(violation) = pool.check_invariants() {
            panic!("{violation}");
        }
    }
}
