//! Tokens: embeddings, sampling, losses, rotary embeddings, caches of keys and values, attention over them.

use host::{
    AnyTensor,
    DType::{self, BF16, F16, F32},
    Error, Result,
    kv::PageId,
    ops::{
        self, CacheView, DecodeOptions, PoolLayout, RopeAngles, RopeFrequencies, RopePairing, cache_append,
        cache_append_at, cache_read, cache_read_as, copy_pages, cross_entropy, decode, embedding, embedding_backward,
        rope, sample, swap_pages,
    },
};

use super::{Bed, Case, FLOATS, case};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = tables();
    cases.extend(losses());
    cases.extend(ropes());
    cases.extend(caches());
    cases.extend(decodes());
    cases
}

fn tables() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        cases.push(case("embedding", format!("rows of 64 {dtype}"), move |bed| {
            let (table, ids) = (bed.floats(dtype, &[40, 64])?, bed.indices(&[3, 11], 40)?);
            Ok(vec![embedding(&table, &ids)?])
        }));
        cases.push(case("embedding", format!("gradient, rows of 33 {dtype}"), move |bed| {
            let (dy, ids) = (bed.floats(dtype, &[20, 33])?, bed.indices(&[20], 10)?);
            Ok(vec![embedding_backward(&dy, &ids, 10, None)?])
        }));
    }
    cases.push(case("embedding", "indices in range", |bed| {
        let ids = bed.indices(&[300], 10)?;
        ops::check_indices("ids", &ids, 10, None)?;
        Ok(vec![ids])
    }));
    for dtype in FLOATS {
        cases.push(
            case("sample", format!("argmax of 2×500 {dtype}"), move |bed| {
                Ok(vec![ops::argmax(&bed.floats(dtype, &[2, 500])?)?])
            })
            .looks_at_data(),
        );
        cases.push(
            case("sample", format!("top-k 20, top-p 0.9 of 2×500 {dtype}"), move |bed| {
                let logits = bed.floats(dtype, &[2, 500])?;
                let token = sample(&logits).temperature(0.7).top_k(20).top_p(0.9).seed(3).run()?;
                Ok(vec![token])
            })
            .looks_at_data(),
        );
    }
    cases.push(
        case("sample", "argmax of 1×40000 f32", |bed| {
            Ok(vec![ops::argmax(&bed.floats(F32, &[1, 40_000])?)?])
        })
        .looks_at_data(),
    );
    cases.push(
        case("sample", "whole vocabulary of 1×3000 bf16", |bed| {
            Ok(vec![sample(&bed.floats(BF16, &[1, 3000])?).seed(3).run()?])
        })
        .looks_at_data(),
    );
    cases
}

fn losses() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        // Clusters take up to some 230,000 columns of f32 and twice as many of 16 bits.
        let longest = if dtype == F32 { 240_001 } else { 480_001 };
        for (rows, columns) in [(5, 300), (2, 8193), (2, 60_001), (1, longest)] {
            cases.push(case(
                "cross-entropy",
                format!("{rows} rows of {columns} {dtype}"),
                move |bed| {
                    let (logits, targets) = (bed.floats(dtype, &[rows, columns])?, bed.indices(&[rows], columns)?);
                    let losses = cross_entropy(&logits, &targets)
                        .label_smoothing(0.1)
                        .z_loss(0.01)
                        .run()?;
                    let gradient = cross_entropy(&logits, &targets).backward(&bed.floats(F32, &[rows])?)?;
                    let in_place = cross_entropy(&logits, &targets).run_with_gradient_in_place(0.5)?;
                    Ok(vec![losses.loss, losses.lse, gradient, in_place.loss, logits])
                },
            ));
        }
    }
    cases
}

fn ropes() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for (pairing, dim) in [(RopePairing::HalfSplit, 64), (RopePairing::Interleaved, 24)] {
            cases.push(case(
                "rope",
                format!("{pairing:?}, 5 tokens, head dim {dim}, {dtype}"),
                move |bed| {
                    let (q, k) = (bed.floats(dtype, &[5, 3, dim])?, bed.floats(dtype, &[5, 1, dim])?);
                    let inverse: Vec<f32> = (0..dim / 2).map(|i| 0.5f32.powi(i as i32)).collect();
                    let frequencies = RopeFrequencies::new(bed.device(), &inverse, 1.0)?;
                    let positions = bed.integers(&[0, 7, 1000, 131_071, 3], &[5])?;
                    let call = rope(&q, pairing, RopeAngles::Frequencies(&frequencies));
                    let (q, k) = call.k(&k).positions(&positions).run()?;
                    Ok([Some(q), k].into_iter().flatten().collect())
                },
            ));
        }
        for stored in [dtype, DType::E4M3] {
            cases.push(case(
                "rope",
                format!("new keys into pages of {stored}, {dtype}"),
                move |bed| {
                    let pool = Pool::new(bed, stored, 1, 64, 16, PoolLayout::Nhd)?;
                    let (q, k, v) = (
                        bed.floats(dtype, &[3, 2, 64])?,
                        bed.floats(dtype, &[3, 1, 64])?,
                        bed.floats(dtype, &[3, 1, 64])?,
                    );
                    let inverse: Vec<f32> = (0..32).map(|i| 0.7f32.powi(i)).collect();
                    let frequencies = RopeFrequencies::new(bed.device(), &inverse, 1.0)?;
                    let slots = bed.longs(&[17, 2, 40])?;
                    let call = rope(&q, RopePairing::HalfSplit, RopeAngles::Frequencies(&frequencies)).k(&k);
                    let (q, _) = call.append(&v, pool.view(), &slots).run()?;
                    Ok(vec![q, pool.k.clone(), pool.v.clone()])
                },
            ));
        }
    }
    cases
}

/// Four pages and a table of two sequences with two each.
struct Pool {
    k: AnyTensor,
    v: AnyTensor,
    table: AnyTensor,
    layout: PoolLayout,
}

impl Pool {
    fn new(bed: &Bed, dtype: DType, heads: u64, dim: u64, page: u64, layout: PoolLayout) -> Result<Pool> {
        let shape = match layout {
            PoolLayout::Nhd => [4, page, heads, dim],
            PoolLayout::Hnd => [4, heads, page, dim],
        };
        Ok(Pool {
            k: bed.bits(dtype, &shape)?,
            v: bed.bits(dtype, &shape)?,
            table: bed.integers(&[2, 0, 3, 1], &[2, 2])?,
            layout,
        })
    }

    fn view(&self) -> CacheView<'_> {
        CacheView::paged(&self.k, &self.v, &self.table).layout(self.layout)
    }
}

fn caches() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        cases.push(case(
            "cache",
            format!("{dtype} into a cache of e4m3 and back"),
            move |bed| {
                let pool = Pool::new(bed, DType::E4M3, 2, 64, 5, PoolLayout::Nhd)?;
                let (k, v) = (bed.floats(dtype, &[4, 2, 64])?, bed.floats(dtype, &[4, 2, 64])?);
                cache_append(&k, &v, pool.view(), &bed.longs(&[3, 19, -1, 0])?)?;
                let (k, v) = cache_read_as(pool.view(), &bed.integers(&[9, 2], &[2])?, 9, dtype)?;
                Ok(vec![pool.k.clone(), pool.v.clone(), k, v])
            },
        ));
    }
    // Rows whose width divides into units of 16, 4, 2 and 1 bytes.
    for (dtype, dim, unit) in [(F16, 64, 16), (F16, 6, 4), (F16, 5, 2), (DType::E4M3, 5, 1)] {
        let name = move |what: &str| format!("{what} in units of {unit}");
        cases.push(case("cache", name("appends tokens"), move |bed| {
            let pool = Pool::new(bed, dtype, 3, dim, 5, PoolLayout::Hnd)?;
            let (k, v) = (bed.bits(dtype, &[4, 3, dim])?, bed.bits(dtype, &[4, 3, dim])?);
            // A token that is skipped among them.
            cache_append(&k, &v, pool.view(), &bed.longs(&[3, 19, -1, 0])?)?;
            Ok(vec![pool.k.clone(), pool.v.clone()])
        }));
        cases.push(case("cache", name("appends behind each sequence"), move |bed| {
            let pool = Pool::new(bed, dtype, 2, dim, 5, PoolLayout::Nhd)?;
            let (k, v) = (bed.bits(dtype, &[2, 3, 2, dim])?, bed.bits(dtype, &[2, 3, 2, dim])?);
            cache_append_at(&k, &v, pool.view(), &bed.integers(&[0, 4], &[2])?)?;
            Ok(vec![pool.k.clone(), pool.v.clone()])
        }));
        cases.push(case("cache", name("reads sequences"), move |bed| {
            let pool = Pool::new(bed, dtype, 2, dim, 5, PoolLayout::Nhd)?;
            let (k, v) = cache_read(pool.view(), &bed.integers(&[9, 2], &[2])?, 9)?;
            Ok(vec![k, v])
        }));
        cases.push(case("cache", name("copies and exchanges pages"), move |bed| {
            let page = |index| PageId::new(index).ok_or_else(|| Error::range("page", index, "a page"));
            // One token a page and one head: pages are as wide as rows.
            let pool = Pool::new(bed, dtype, 1, dim, 1, PoolLayout::Nhd)?;
            copy_pages(&pool.k, &pool.v, &[(page(1)?, page(3)?)])?;
            swap_pages(&pool.k, &pool.v, &[(page(0)?, page(2)?)])?;
            Ok(vec![pool.k.clone(), pool.v.clone()])
        }));
    }
    cases
}

/// New tokens of `query` and `new` keys and values rotated and appended to a paged cache, and attention over it, in one launch.
fn rotate_append_attend(
    bed: &Bed,
    [query, new]: [&AnyTensor; 2],
    [k, v]: [AnyTensor; 2],
    [table, lengths]: [&AnyTensor; 2],
) -> Result<Vec<AnyTensor>> {
    let pairs = new.shape()[3] / 2;
    let inverse: Vec<f32> = (0..pairs).map(|i| 0.9f32.powi(i as i32)).collect();
    let frequencies = RopeFrequencies::new(bed.device(), &inverse, 1.0)?;
    let options = DecodeOptions {
        causal: true,
        rotary: Some((RopePairing::HalfSplit, RopeAngles::Frequencies(&frequencies))),
        ..DecodeOptions::default()
    };
    let result = decode(query, CacheView::paged(&k, &v, table), lengths)
        .append(new, new)
        .options(options)
        .run()?;
    Ok(vec![result.out, result.lse, k, v])
}

fn decodes() -> Vec<Case> {
    let mut cases = Vec::new();
    for (dtype, dim) in [(F16, 64), (F16, 128), (BF16, 64), (BF16, 128)] {
        // Few rows and many have kernels of their own.
        for tokens in [1, 5] {
            cases.push(case(
                "decode",
                format!("{tokens} tokens of 2 sequences in pages of e4m3, head dim {dim}, {dtype}"),
                move |bed| {
                    let pool = Pool::new(bed, DType::E4M3, 2, dim, 40, PoolLayout::Nhd)?;
                    let (q, lengths) = (bed.floats(dtype, &[2, tokens, 4, dim])?, bed.integers(&[75, 3], &[2])?);
                    let result = decode(&q, pool.view(), &lengths).causal().run()?;
                    Ok(vec![result.out, result.lse])
                },
            ));
        }
    }
    for (dtype, dim) in [(F16, 64), (F16, 128), (BF16, 64), (BF16, 128)] {
        // A lone sequence has kernels of its own; three new tokens lie in two pieces.
        for tokens in [1, 3] {
            cases.push(case(
                "decode",
                format!(
                    "rotation, append and attention of {tokens} tokens of a lone sequence, head dim {dim}, {dtype}"
                ),
                move |bed| {
                    let (k, v) = (
                        bed.floats(dtype, &[12, 16, 2, dim])?,
                        bed.floats(dtype, &[12, 16, 2, dim])?,
                    );
                    let table = bed.integers(&[2, 0, 3, 1, 8, 9, 10, 11, 4, 5, 6, 7], &[1, 12])?;
                    let (q, new) = (
                        bed.floats(dtype, &[1, tokens, 4, dim])?,
                        bed.floats(dtype, &[1, tokens, 2, dim])?,
                    );
                    let lengths = bed.integers(&[127], &[1])?;
                    rotate_append_attend(bed, [&q, &new], [k, v], [&table, &lengths])
                },
            ));
        }
    }
    for (dtype, dim) in [(F16, 64), (F16, 128), (BF16, 64), (BF16, 128)] {
        // Up to 32 rows, and more: kernels whose keys and values the copy engine loads.
        for tokens in [1, 2] {
            cases.push(case(
                "decode",
                format!("rotation, append and attention of {tokens} tokens of 24 heads, head dim {dim}, {dtype}"),
                move |bed| {
                    let (k, v) = (
                        bed.floats(dtype, &[80, 16, 1, dim])?,
                        bed.floats(dtype, &[80, 16, 1, dim])?,
                    );
                    let pages: Vec<i32> = (0..80).rev().collect();
                    let table = bed.integers(&pages, &[2, 40])?;
                    let (q, new) = (
                        bed.floats(dtype, &[2, tokens, 24, dim])?,
                        bed.floats(dtype, &[2, tokens, 1, dim])?,
                    );
                    let lengths = bed.integers(&[575, 3], &[2])?;
                    rotate_append_attend(bed, [&q, &new], [k, v], [&table, &lengths])
                },
            ));
        }
    }
    for (dtype, dim) in [(F16, 64), (F16, 128), (BF16, 64), (BF16, 128)] {
        // As many sequences as it takes for bundles of pieces to be dealt out: to clusters for each tile, and merged by
        // another kernel. All sequences have the same pages.
        for (halves, pages) in [(1, 210), (2, 66)] {
            cases.push(case(
                "decode",
                format!("12 heads of {halves} sequences for two multiprocessors, head dim {dim}, {dtype}"),
                move |bed| {
                    let batch = u64::from(bed.device().properties().multiprocessors) * halves / 2;
                    let (k, v) = (
                        bed.floats(dtype, &[pages, 32, 1, dim])?,
                        bed.floats(dtype, &[pages, 32, 1, dim])?,
                    );
                    let entries: Vec<i32> = (0..batch).flat_map(|_| 0..pages as i32).collect();
                    let table = bed.integers(&entries, &[batch, pages])?;
                    let longest = pages as i32 * 32 - 12;
                    let tokens: Vec<i32> = (0..batch).map(|i| [longest, 5, 70][i as usize % 3]).collect();
                    let (q, lengths) = (
                        bed.floats(dtype, &[batch, 1, 12, dim])?,
                        bed.integers(&tokens, &[batch])?,
                    );
                    let result = decode(&q, CacheView::paged(&k, &v, &table), &lengths).run()?;
                    Ok(vec![result.out, result.lse])
                },
            ));
        }
    }
    for dtype in [F16, BF16] {
        // Narrow rows of few queries are read by tensor maps where 16 tokens lie together; windows are not for lone sequences' kernels.
        cases.push(case(
            "decode",
            format!("2 tokens of 3 sequences in pages of 16, window, {dtype}"),
            move |bed| {
                let (k, v) = (
                    bed.floats(dtype, &[36, 16, 2, 64])?,
                    bed.floats(dtype, &[36, 16, 2, 64])?,
                );
                let (q, new) = (bed.floats(dtype, &[3, 2, 4, 64])?, bed.floats(dtype, &[3, 2, 2, 64])?);
                let pages: Vec<i32> = (0..36).map(|index| index * 7 % 36).rev().collect();
                let (table, lengths) = (bed.integers(&pages, &[3, 12])?, bed.integers(&[189, 3, 64], &[3])?);
                let options = DecodeOptions {
                    causal: true,
                    window_left: Some(130),
                    ..DecodeOptions::default()
                };
                let result = decode(&q, CacheView::paged(&k, &v, &table), &lengths)
                    .append(&new, &new)
                    .options(options)
                    .run()?;
                Ok(vec![result.out, result.lse, k, v])
            },
        ));
    }
    for dtype in [F16, BF16] {
        // Whole tiles, one for each multiprocessor, and parts of the line of all pieces, in pages that all sequences share.
        for (quarters, cache) in [(2, dtype), (3, dtype), (2, DType::E4M3)] {
            cases.push(case(
                "decode",
                format!("plain attention, {quarters} tiles for 4 multiprocessors twice, {dtype} over {cache}"),
                move |bed| {
                    let batch = u64::from(bed.device().properties().multiprocessors) * quarters / 4;
                    let shape = [65, 16, 2, 128];
                    let floats = |dtype| match dtype {
                        DType::E4M3 => bed.bits(dtype, &shape),
                        _ => bed.floats(dtype, &shape),
                    };
                    let (k, v) = (floats(cache)?, floats(cache)?);
                    let pages: Vec<i32> = (0..batch).flat_map(|_| (0..65).rev()).collect();
                    let table = bed.integers(&pages, &[batch, 65])?;
                    let tokens: Vec<i32> = (0..batch).map(|i| [700, 5, 1040, 0][i as usize % 4]).collect();
                    let (q, lengths) = (
                        bed.floats(dtype, &[batch, 2, 4, 128])?,
                        bed.integers(&tokens, &[batch])?,
                    );
                    let view = CacheView::paged(&k, &v, &table);
                    let result = decode(&q, view, &lengths).causal().run()?;
                    Ok(vec![result.out, result.lse])
                },
            ));
        }
    }
    for (dtype, dim) in [(F16, 64), (F16, 128), (BF16, 64), (BF16, 128)] {
        // Two whole tiles for each multiprocessor; a block may rotate and append the tokens of its own.
        for appends in [false, true] {
            let what = if appends { "rotation, append and " } else { "" };
            cases.push(case(
                "decode",
                format!("{what}plain attention, 2 tiles of heads of {dim} for each multiprocessor, {dtype}"),
                move |bed| {
                    let batch = u64::from(bed.device().properties().multiprocessors);
                    let shape = [batch * 20, 16, 2, dim];
                    let (k, v) = (bed.floats(dtype, &shape)?, bed.floats(dtype, &shape)?);
                    let pages: Vec<i32> = (0..batch as i32 * 20).rev().collect();
                    let table = bed.integers(&pages, &[batch, 20])?;
                    let tokens: Vec<i32> = (0..batch).map(|i| [300, 5, 127, 0][i as usize % 4]).collect();
                    let lengths = bed.integers(&tokens, &[batch])?;
                    let q = bed.floats(dtype, &[batch, 2, 4, dim])?;
                    if appends {
                        let new = bed.floats(dtype, &[batch, 2, 2, dim])?;
                        return rotate_append_attend(bed, [&q, &new], [k, v], [&table, &lengths]);
                    }
                    let result = decode(&q, CacheView::paged(&k, &v, &table), &lengths).causal().run()?;
                    Ok(vec![result.out, result.lse])
                },
            ));
        }
    }
    for (dtype, cache) in [(F16, F16), (BF16, BF16), (F16, DType::E4M3), (BF16, DType::E4M3)] {
        // A tile for each multiprocessor has kernels of its own.
        for tokens in [1, 2] {
            cases.push(case(
                "decode",
                format!("{tokens} tokens of a tile for each multiprocessor over {cache}, {dtype}"),
                move |bed| {
                    let batch = u64::from(bed.device().properties().multiprocessors / 2);
                    let shape = [batch, 520, 2, 128];
                    let floats = |dtype| match dtype {
                        DType::E4M3 => bed.bits(dtype, &shape),
                        _ => bed.floats(dtype, &shape),
                    };
                    let (k, v) = (floats(cache)?, floats(cache)?);
                    let (q, new) = (
                        bed.floats(dtype, &[batch, tokens, 4, 128])?,
                        bed.floats(dtype, &[batch, tokens, 2, 128])?,
                    );
                    let before: Vec<i32> = (0..batch).map(|i| [500, 60, 255][i as usize % 3]).collect();
                    let lengths = bed.integers(&before, &[batch])?;
                    let options = DecodeOptions {
                        causal: true,
                        window_left: Some(510),
                        ..DecodeOptions::default()
                    };
                    let result = decode(&q, CacheView::contiguous(&k, &v), &lengths)
                        .append(&new, &new)
                        .options(options)
                        .run()?;
                    Ok(vec![result.out, result.lse, k, v])
                },
            ));
        }
    }
    for dtype in FLOATS {
        for dim in [64, 128, 256] {
            // Tiles of at most 8, 16 and 32 rows.
            for tokens in [1, 5, 9] {
                cases.push(case(
                    "decode",
                    format!("{tokens} tokens of 2 sequences in pages of 40, head dim {dim}, {dtype}"),
                    move |bed| {
                        let (k, v) = (
                            bed.floats(dtype, &[4, 40, 2, dim])?,
                            bed.floats(dtype, &[4, 40, 2, dim])?,
                        );
                        let table = bed.integers(&[2, 0, 3, 1], &[2, 2])?;
                        let (q, lengths) = (bed.floats(dtype, &[2, tokens, 4, dim])?, bed.integers(&[75, 3], &[2])?);
                        let result = decode(&q, CacheView::paged(&k, &v, &table), &lengths).causal().run()?;
                        Ok(vec![result.out, result.lse])
                    },
                ));
            }
            // The last page of the first sequence ends among its new tokens.
            cases.push(case(
                "decode",
                format!("rotation, append and attention of 6 tokens, head dim {dim}, {dtype}"),
                move |bed| {
                    let (k, v) = (
                        bed.floats(dtype, &[4, 40, 2, dim])?,
                        bed.floats(dtype, &[4, 40, 2, dim])?,
                    );
                    let table = bed.integers(&[2, 0, 3, 1], &[2, 2])?;
                    let (q, new) = (bed.floats(dtype, &[2, 6, 4, dim])?, bed.floats(dtype, &[2, 6, 2, dim])?);
                    let lengths = bed.integers(&[37, 3], &[2])?;
                    rotate_append_attend(bed, [&q, &new], [k, v], [&table, &lengths])
                },
            ));
        }
        cases.push(case(
            "decode",
            format!("a contiguous cache of 600, window, softcap, sinks, {dtype}"),
            move |bed| {
                let (k, v) = (
                    bed.floats(dtype, &[1, 640, 1, 64])?,
                    bed.floats(dtype, &[1, 640, 1, 64])?,
                );
                let (q, lengths) = (bed.floats(dtype, &[1, 3, 2, 64])?, bed.integers(&[600], &[1])?);
                let sinks = bed.floats(F32, &[2])?;
                let options = DecodeOptions {
                    causal: true,
                    window_left: Some(550),
                    softcap: Some(20.0),
                    sinks: Some(&sinks),
                    ..DecodeOptions::default()
                };
                let result = decode(&q, CacheView::contiguous(&k, &v), &lengths)
                    .options(options)
                    .run()?;
                Ok(vec![result.out, result.lse])
            },
        ));
    }
    cases
}
