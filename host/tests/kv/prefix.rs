//! Prefix sharing: what may be found, when, and what must never be found again.

use host::kv::{PrefixIdentity, PrefixKey};

use crate::bugs::{pool, written};

// vllm #4761: an evicted block stayed in the prefix cache and handed out other tokens' contents.
#[test]
fn evicted_page_is_not_found_again() {
    let mut pool = pool(4, 4);
    let tokens: Vec<u32> = (0..9).collect();
    let a = written(&mut pool, &tokens);
    pool.free(a).unwrap();
    assert_eq!((pool.lookup_prefix(&tokens), pool.statistics().cached_pages), (8, 2));
    let b = pool.create_sequence();
    let _ = pool.append(b, 5).unwrap();
    // The tail of the cached chain went first, so its head is still of use.
    assert_eq!((pool.lookup_prefix(&tokens), pool.statistics().evictions), (4, 1));
    let _ = pool.append(b, 4).unwrap();
    assert_eq!((pool.lookup_prefix(&tokens), pool.statistics().hashed_pages), (0, 0));
    pool.check_invariants().unwrap();
}

#[test]
fn least_recently_used_prefix_is_evicted_first() {
    let mut pool = pool(2, 4);
    let prompts: [[u32; 3]; 3] = [[1, 1, 9], [2, 2, 9], [3, 3, 9]];
    for prompt in &prompts[..2] {
        let sequence = written(&mut pool, prompt);
        pool.free(sequence).unwrap();
    }
    let again = written(&mut pool, &prompts[0]);
    pool.free(again).unwrap();
    let third = written(&mut pool, &prompts[2]);
    assert_eq!(prompts.map(|prompt| pool.lookup_prefix(&prompt)), [2, 0, 2]);
    pool.free(third).unwrap();
    pool.check_invariants().unwrap();
}

// vllm #15297 and others: equal tokens after different prefixes are different contents.
#[test]
fn prefix_keys_chain_and_separate_their_domains() {
    let identity = |model: &str, dtype: &str| PrefixIdentity {
        model: model.into(),
        dtype: dtype.into(),
    };
    let root = PrefixKey::root(&identity("ab", "c"), 16);
    assert_ne!(
        root,
        PrefixKey::root(&identity("a", "bc"), 16),
        "field borders are part of the key"
    );
    assert_ne!(
        root,
        PrefixKey::root(&identity("ab", "c"), 32),
        "page size is part of the key"
    );
    let child = |parent: &PrefixKey| PrefixKey::child(&root, parent, &[1, 2]);
    assert_ne!(child(&root), child(&child(&root)), "the parent is part of the key");
    let other = PrefixKey::root(&identity("ab", "d"), 16);
    assert_ne!(
        child(&root),
        PrefixKey::child(&other, &root, &[1, 2]),
        "the element type is part of every key"
    );

    let mut pool = pool(2, 16);
    let _ = written(&mut pool, &[1, 1, 5, 5, 9]);
    assert_eq!(pool.lookup_prefix(&[2, 2, 5, 5, 9]), 0);
    assert_eq!(pool.lookup_prefix(&[1, 1, 5, 5, 9]), 4);
    assert_eq!(pool.lookup_prefix(&[1, 1, 5, 6, 9]), 2);
}

#[test]
fn prefix_key_is_the_documented_sha256() {
    use sha2::{Digest, Sha256};
    let root = PrefixKey::root(
        &PrefixIdentity {
            model: "m".into(),
            dtype: "f16".into(),
        },
        2,
    );
    let mut bytes = b"ferroflash kv root v1".to_vec();
    bytes.extend([
        1, 0, 0, 0, 0, 0, 0, 0, b'm', 3, 0, 0, 0, 0, 0, 0, 0, b'f', b'1', b'6', 2, 0, 0, 0, 0, 0, 0, 0,
    ]);
    assert_eq!(root.as_bytes()[..], Sha256::digest(&bytes)[..]);
    let mut bytes = b"ferroflash kv page v1".to_vec();
    bytes.extend(
        root.as_bytes()
            .iter()
            .chain(root.as_bytes())
            .chain(&[7, 0, 0, 0, 0, 1, 0, 0]),
    );
    assert_eq!(
        PrefixKey::child(&root, &root, &[7, 256]).as_bytes()[..],
        Sha256::digest(&bytes)[..]
    );
}

#[test]
fn tokens_named_after_they_were_appended_are_found() {
    let mut pool = pool(4, 16);
    let tokens: Vec<u32> = (0..9).collect();
    let a = written(&mut pool, &tokens[..3]);
    let _ = pool.append(a, 5).unwrap();
    let end_launch = |pool: &mut host::kv::PagePool| {
        let epoch = pool.begin_launch();
        pool.complete(epoch).unwrap();
    };
    end_launch(&mut pool);
    assert_eq!(pool.lookup_prefix(&tokens), 0, "nobody knows what was written");
    pool.name(a, &tokens[3..5]).unwrap();
    end_launch(&mut pool);
    assert_eq!(pool.lookup_prefix(&tokens), 4);
    assert!(pool.name(a, &tokens[5..9]).is_err(), "three tokens have no name");
    pool.name(a, &tokens[5..8]).unwrap();
    end_launch(&mut pool);
    assert_eq!(pool.lookup_prefix(&tokens), 8);
    // From here on appended with ids again.
    let _ = pool.append(a, &[8u32, 9, 10, 11]).unwrap();
    end_launch(&mut pool);
    assert_eq!(pool.lookup_prefix(&(0..13).collect::<Vec<u32>>()), 12);
    pool.check_invariants().unwrap();
}

#[test]
fn prefix_leaves_one_token_to_compute() {
    let mut pool = pool(4, 16);
    let tokens: Vec<u32> = (0..8).collect();
    let _ = written(&mut pool, &tokens);
    assert_eq!(
        pool.lookup_prefix(&tokens),
        4,
        "the last page is computed again for the last token's logits"
    );
    assert_eq!(pool.lookup_prefix(&tokens[..0]), 0);
}

#[test]
fn unwritten_and_failed_pages_are_not_shared() {
    let mut pool = pool(4, 16);
    let tokens: Vec<u32> = (0..9).collect();
    let (a, _) = pool.create_sequence_with_prefix(&tokens);
    let _ = pool.append(a, &tokens).unwrap();
    assert_eq!(pool.lookup_prefix(&tokens), 0, "planned");
    let epoch = pool.begin_launch();
    assert_eq!(pool.lookup_prefix(&tokens), 0, "in flight");
    pool.abandon(epoch).unwrap();
    assert_eq!(pool.lookup_prefix(&tokens), 0, "failed");
    pool.free(a).unwrap();
    let a = written(&mut pool, &tokens);
    pool.free(a).unwrap();
    assert_eq!(pool.lookup_prefix(&tokens), 8);
}

#[test]
fn sequence_freed_while_its_launch_runs_still_fills_the_prefix_cache() {
    let mut pool = pool(4, 16);
    let tokens: Vec<u32> = (0..9).collect();
    let a = pool.create_sequence();
    let _ = pool.append(a, &tokens).unwrap();
    let epoch = pool.begin_launch();
    pool.free(a).unwrap();
    pool.complete(epoch).unwrap();
    assert_eq!(pool.lookup_prefix(&tokens), 8);
    pool.check_invariants().unwrap();
}

#[test]
fn rewritten_page_leaves_the_prefix_cache() {
    let mut pool = pool(4, 16);
    let tokens: Vec<u32> = (0..9).collect();
    let a = written(&mut pool, &tokens);
    pool.truncate(a, 6).unwrap();
    assert_eq!(pool.lookup_prefix(&tokens), 8, "truncation alone writes nothing");
    let _ = pool.append(a, &[70, 71]).unwrap();
    assert_eq!(pool.lookup_prefix(&tokens), 4);
    pool.check_invariants().unwrap();
}

#[test]
fn tokens_without_ids_are_never_shared() {
    let mut pool = pool(2, 16);
    let a = pool.create_sequence();
    let _ = pool.append(a, &[1, 1]).unwrap();
    let _ = pool.append(a, 2).unwrap();
    let _ = pool.append(a, &[3, 3]).unwrap();
    let epoch = pool.begin_launch();
    pool.complete(epoch).unwrap();
    assert_eq!(pool.statistics().hashed_pages, 1);
    pool.truncate(a, 2).unwrap();
    let _ = pool.append(a, &[2, 2]).unwrap();
    let epoch = pool.begin_launch();
    pool.complete(epoch).unwrap();
    assert_eq!(
        pool.lookup_prefix(&[1, 1, 2, 2, 9]),
        4,
        "known again once the unknown part is gone"
    );
}

#[test]
fn cleared_prefix_cache_shares_nothing_computed_before() {
    let mut pool = pool(2, 16);
    let a = written(&mut pool, &[1, 1, 2]);
    pool.clear_prefix_cache();
    let _ = pool.append(a, &[2, 3, 3]).unwrap();
    let epoch = pool.begin_launch();
    pool.complete(epoch).unwrap();
    assert_eq!(pool.statistics().hashed_pages, 0);
    pool.check_invariants().unwrap();
}
