//! Caches and rotary embedding.

use host::{
    Device, Float, Result,
    compare::same_bits,
    kv::PageId,
    ops::{self, CacheView, PoolLayout, RopeAngles, RopeFrequencies, RopePairing},
    reference::{
        Eager, Exact, Precision,
        cache::{CacheLayout, append, exchange_axes, gather_padded},
        data::{indices, normal, permutation},
        rope::{Pairing, RopeShape, RopeTable, rope as rotated},
        rope_scaling::Scaling,
        widen,
    },
};
use proptest::{prelude::*, strategy::BoxedStrategy};

use super::{Drawn, Finding, Generic, Size, boxed, dense, laid_out, seed, twice};

#[derive(Debug)]
struct Cache {
    lengths: Vec<usize>,
    page: usize,
    heads: usize,
    dims: (usize, usize),
    layout: PoolLayout,
    seed: u64,
}

pub fn cache(size: Size) -> BoxedStrategy<Drawn> {
    let lengths = proptest::collection::vec(0..size.choose(40usize, 700), 1..5);
    let dim = || prop_oneof![Just(64usize), Just(128), 1..40usize];
    boxed(
        (lengths, 1..20usize, 1..4usize, (dim(), dim()), any::<bool>(), seed()).prop_map(
            |(lengths, page, heads, dims, hnd, seed)| Cache {
                lengths,
                page,
                heads,
                dims,
                layout: if hnd { PoolLayout::Hnd } else { PoolLayout::Nhd },
                seed,
            },
        ),
    )
}

impl Generic for Cache {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let Cache {
            page, heads, layout, ..
        } = *self;
        let batch = self.lengths.len();
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let width = longest.div_ceil(page).max(1);
        let pages = batch * width + 2;
        let order = permutation(self.seed, pages);
        let table: Vec<i32> = order[..batch * width].iter().map(|&page| page as i32).collect();
        let place = CacheLayout::Paged {
            page_size: page,
            table: &table,
            width,
        };
        let mut slots: Vec<i64> = (0..batch)
            .flat_map(|sequence| (0..self.lengths[sequence]).map(move |token| (sequence, token)))
            .map(|(sequence, token)| place.slot(sequence, token) as i64)
            .collect();
        // The last token is skipped.
        slots.push(-1);
        let tokens = slots.len();
        let mut wanted = Vec::new();
        let mut tensors = Vec::new();
        for (which, dim) in [self.dims.0, self.dims.1].into_iter().enumerate() {
            let row = heads * dim;
            let new: Vec<T> = normal(self.seed + which as u64, tokens * row);
            let mut pool: Vec<T> = normal(self.seed + 7 + which as u64, pages * page * row);
            let shape = [pages, page, heads, dim];
            let on_device = laid_out(device, &pool, shape, layout == PoolLayout::Hnd)?;
            append(&mut pool, &new, &slots, row);
            tensors.push((on_device, dense(device, &new, &[tokens, heads, dim])?));
            wanted.push((pool, row, dim));
        }
        let table_tensor = dense(device, &table, &[batch, width])?;
        let view = CacheView::paged(&tensors[0].0, &tensors[1].0, &table_tensor).layout(layout);
        ops::cache_append(&tensors[0].1, &tensors[1].1, view, &dense(device, &slots, &[tokens])?)?;
        let lengths: Vec<i32> = self.lengths.iter().map(|&n| n as i32).collect();
        let read = ops::cache_read(view, &dense(device, &lengths, &[batch])?, longest as u64)?;
        // The two pages outside every table: one copied over the other.
        let spare = [order[pages - 2], order[pages - 1]];
        let id = |page: usize| PageId::new(page as u32).ok_or_else(|| host::Error::unsupported("a page number"));
        ops::copy_pages(&tensors[0].0, &tensors[1].0, &[(id(spare[0])?, id(spare[1])?)])?;
        let mut findings = Vec::new();
        let names = [["k read", "k pool"], ["v read", "v pool"]];
        for (which, read) in [read.0, read.1].iter().enumerate() {
            let (pool, row, dim) = &mut wanted[which];
            let expected = gather_padded(pool, &place, &self.lengths, *row, T::from_f32(0.0));
            let out = read.typed::<T>("read")?.to_vec()?;
            findings.push(Finding::bits(names[which][0], same_bits(&out, &expected)));
            let bytes = page * *row;
            pool.copy_within(spare[0] * bytes..(spare[0] + 1) * bytes, spare[1] * bytes);
            let expected = match layout {
                PoolLayout::Nhd => pool.clone(),
                PoolLayout::Hnd => exchange_axes(pool, (page, heads), *dim),
            };
            let out = tensors[which].0.typed::<T>("pool")?.to_vec()?;
            findings.push(Finding::bits(names[which][1], same_bits(&out, &expected)));
        }
        Ok(findings)
    }
}

#[derive(Debug)]
struct Rope {
    tokens: usize,
    heads: (usize, usize),
    dim: usize,
    rotary: usize,
    pairing: RopePairing,
    inverse: bool,
    longest: i64,
    seed: u64,
}

pub fn rope(size: Size) -> BoxedStrategy<Drawn> {
    let dims = prop_oneof![
        2 => Just((128usize, 128usize)),
        2 => Just((64, 32)),
        1 => (1..40usize, 0..40usize).prop_map(|(half, rotary)| (2 * half, 2 * rotary.min(half))),
    ];
    let longest = proptest::sample::select(vec![64i64, 4096, 131_072]);
    let rest = (any::<bool>(), any::<bool>(), longest);
    boxed(
        (1..size.choose(20usize, 500), 1..10usize, 1..4usize, dims, rest, seed()).prop_map(
            |(tokens, heads_q, heads_kv, (dim, rotary), (interleaved, inverse, longest), seed)| Rope {
                tokens,
                heads: (heads_q, heads_kv),
                dim,
                rotary,
                pairing: if interleaved {
                    RopePairing::Interleaved
                } else {
                    RopePairing::HalfSplit
                },
                inverse,
                longest,
                seed,
            },
        ),
    )
}

impl Rope {
    fn expected<P: Precision>(&self, x: &[f64], heads: usize, positions: &[i32], frequencies: &[f32]) -> Vec<f64> {
        let mut table = RopeTable::new::<P>(&[], &[], 1.0);
        for &position in positions {
            for &frequency in frequencies {
                // The angle is f32 by definition; what follows from it is the precision's.
                let angle = f64::from(position as f32 * frequency);
                table.cos.push(P::store(P::step(angle.cos())));
                table.sin.push(P::store(P::step(angle.sin())));
            }
        }
        let shape = RopeShape {
            tokens: self.tokens,
            heads,
            head_dim: self.dim,
            rotary_dim: self.rotary,
        };
        let pairing = match self.pairing {
            RopePairing::Interleaved => Pairing::Interleaved,
            RopePairing::HalfSplit => Pairing::HalfSplit,
        };
        rotated::<P>(x, shape, &table, pairing, self.inverse)
    }
}

impl Generic for Rope {
    fn judge<T: Float>(&self, device: &Device) -> Result<Vec<Finding>> {
        let (frequencies, _) = Scaling::Default.frequencies(self.rotary, 10_000.0);
        let frequencies: Vec<f32> = frequencies.into_iter().map(|f| f as f32).collect();
        let on_device = RopeFrequencies::new(device, &frequencies, 1.0)?;
        let positions: Vec<i32> = indices(self.seed + 2, self.tokens, 0, self.longest)
            .into_iter()
            .map(|position| position as i32)
            .collect();
        let (heads_q, heads_kv) = self.heads;
        let q: Vec<T> = normal(self.seed, self.tokens * heads_q * self.dim);
        let k: Vec<T> = normal(self.seed + 1, self.tokens * heads_kv * self.dim);
        let qt = dense(device, &q, &[self.tokens, heads_q, self.dim])?;
        let kt = dense(device, &k, &[self.tokens, heads_kv, self.dim])?;
        let positions_tensor = dense(device, &positions, &[self.tokens])?;
        let mut op = ops::rope(&qt, self.pairing, RopeAngles::Frequencies(&on_device))
            .k(&kt)
            .positions(&positions_tensor);
        if self.inverse {
            op = op.inverse();
        }
        let (q_out, k_out) = op.run()?;
        let mut findings = Vec::new();
        for (name, out, x, heads) in [("q", Some(q_out), &q, heads_q), ("k", k_out, &k, heads_kv)] {
            let Some(out) = out else { continue };
            let wide = widen(x);
            let exact = self.expected::<Exact>(&wide, heads, &positions, &frequencies);
            let naive = self.expected::<Eager<T>>(&wide, heads, &positions, &frequencies);
            findings.push(twice::<T>(name, &out, &exact, &naive)?);
        }
        Ok(findings)
    }
}
