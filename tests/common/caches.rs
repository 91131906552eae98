//! What tests of attention over caches share: where tokens lie, and how a result is judged.

use std::fmt::Debug;

use host::{
    Device, Float,
    compare::{Rule, compare},
    ops::Decoded,
    reference::{attention::Forward, cache::CacheLayout, data::permutation},
};

/// Where the tokens of a problem's sequences lie: in pages of a shuffled table, or in rows of a contiguous cache.
#[derive(Clone)]
pub struct Place {
    /// Slots of a page, or of a row.
    pub page: usize,
    /// Pages of a sequence.
    pub width: usize,
    /// Pages of the pool, or rows.
    pub pages: usize,
    /// Pages of the sequences, `[batch, width]`; empty without pages.
    pub table: Vec<i32>,
    /// Row of each sequence of a contiguous cache; its own unless given.
    pub rows: Option<Vec<usize>>,
}

impl Place {
    /// Room for sequences of these lengths, and `spare` pages or rows that none has.
    pub fn new(lengths: &[usize], page: Option<usize>, rows: Option<Vec<usize>>, spare: usize) -> Place {
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let batch = lengths.len();
        let Some(page) = page else {
            let used = rows
                .as_ref()
                .map_or(batch, |rows| rows.iter().max().map_or(0, |row| row + 1));
            return Place {
                page: longest + 3,
                width: 1,
                pages: used + spare,
                table: Vec::new(),
                rows,
            };
        };
        let width = longest.div_ceil(page);
        let pages = batch * width + spare;
        let order = permutation(7, pages);
        Place {
            page,
            width,
            pages,
            table: order[..batch * width].iter().map(|&page| page as i32).collect(),
            rows,
        }
    }

    /// As the reference has it.
    pub fn layout(&self) -> CacheLayout<'_> {
        if self.table.is_empty() {
            return CacheLayout::Contiguous {
                capacity: self.page,
                batch_index: self.rows.as_deref(),
            };
        }
        CacheLayout::Paged {
            page_size: self.page,
            table: &self.table,
            width: self.width,
        }
    }
}

/// Panics unless a result is within its rules.
pub fn assert_decoded<T: Float>(
    case: &impl Debug,
    device: &Device,
    result: &Decoded,
    exact: &Forward,
    eager: &Forward,
) {
    let out = result.out.typed::<T>("out").unwrap().to_vec().unwrap();
    let lse = result.lse.typed::<f32>("lse").unwrap().to_vec().unwrap();
    // f32 weights are `ex2.approx`, good to 2⁻²² where the naive exponential is good to 2⁻²⁴.
    let factor = if T::DTYPE == host::DType::F32 { 6.0 } else { 2.0 };
    let rule = Rule::Naive {
        naive: &eager.out,
        factor,
    };
    let report = compare(&out, &exact.out, rule);
    assert!(report.is_ok(), "{case:?} on {device}, {}: {report}", T::DTYPE);
    let rule = Rule::Relative {
        relative: 2e-5,
        absolute: 2e-5,
    };
    let report = compare(&lse, &exact.lse, rule);
    assert!(report.is_ok(), "{case:?} on {device}, {}, lse: {report}", T::DTYPE);
}
