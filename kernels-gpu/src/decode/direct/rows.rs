//! Queries, and keys and values of this step: rotated, where all warps of the block find them.

use crate::{
    angles::sin_cos_of,
    decode::{
        direct::{DIRECT_ROWS, DirectParams, DirectShape},
        fresh::{Quad, turned},
    },
};
use cuda_std::{global, shared};

/// Two quads of a row and what they are rotated by, on their way from memory.
pub struct Fetched<B> {
    low: B,
    high: B,
    frequencies: [f32; 4],
}

/// What a block knows of its tile before it knows a length.
#[derive(Clone, Copy)]
pub struct Tile<'a, const DIM: u32> {
    pub params: &'a DirectParams,
    pub batch: u32,
    pub head: u32,
}

/// The tokens of this step that a block attends.
#[derive(Clone, Copy)]
pub struct Fresh {
    /// The first token of this step, whosever it is.
    pub first: u32,
    /// One past the last.
    pub end: u32,
    /// Tokens of a piece are two to this power.
    pub shift: u32,
    /// The block's pieces are those with this number, modulo the blocks of the cluster.
    pub rank: u32,
}

impl<const DIM: u32> Tile<'_, DIM> {
    const SHAPE: DirectShape = DirectShape::new(DIM);
    /// Pairs of quads of a row.
    const ITEMS: u32 = DIM / 8;

    /// Pairs of quads of queries, then of keys, then of values of this step.
    #[inline(always)]
    pub fn items(&self) -> u32 {
        let new = if self.params.k_new != 0 {
            2 * self.params.seq_q
        } else {
            0
        };
        (self.params.rows + new) * Self::ITEMS
    }

    /// Query and query head of a row.
    #[inline(always)]
    pub fn query(&self, row: u32) -> (u32, u32) {
        let query = row * self.params.per_group >> 16;
        (query, self.head * self.params.group + row - query * self.params.group)
    }

    /// The columns of an item's quads, and whether they are rotated.
    #[inline(always)]
    fn columns(&self, line: u32, item: u32) -> (u32, u32, bool) {
        let first = item * 4;
        if first < self.params.pairs && line < self.params.rows + self.params.seq_q {
            (first, first + self.params.pairs, true)
        } else {
            (2 * first, 2 * first + 4, false)
        }
    }

    /// Loads an item.
    ///
    /// # Safety
    /// - What wrote the tensors is over.
    #[inline(always)]
    pub unsafe fn fetch<E: Quad>(&self, index: u32) -> Fetched<E::Bits> {
        let params = self.params;
        let mut fetched = Fetched {
            low: E::NOTHING,
            high: E::NOTHING,
            frequencies: [0.0; 4],
        };
        if index < self.items() {
            let (line, item) = (index / Self::ITEMS, index % Self::ITEMS);
            let new = line - params.rows;
            let (from, number, head, strides) = if line < params.rows {
                let (query, head) = self.query(line);
                (params.q, query, head, params.q_strides)
            } else if new < params.seq_q {
                (params.k_new, new, self.head, params.k_new_strides)
            } else {
                (params.v_new, new - params.seq_q, self.head, params.v_new_strides)
            };
            let offset = self.batch * strides[0] + number * strides[1] + head * strides[2];
            let from = from + offset as u64 * 2;
            let (low, high, rotated) = self.columns(line, item);
            // SAFETY: of the row.
            unsafe {
                fetched.low = global::ld_nc((from + low as u64 * 2) as *const E::Bits);
                fetched.high = global::ld_nc((from + high as u64 * 2) as *const E::Bits);
                if rotated {
                    fetched.frequencies = global::ld_nc((params.frequencies + item as u64 * 16) as *const [f32; 4]);
                }
            }
        }
        fetched
    }

    /// Units of 16 bytes from the start of keys and of values to a token's.
    ///
    /// # Safety
    /// - The sequence has that token: its table entry is a page of the pool.
    #[inline(always)]
    pub unsafe fn place(&self, token: u32) -> [u32; 2] {
        let params = self.params;
        let entry = token >> params.page_shift;
        let slot = token - (entry << params.page_shift);
        let mut page = self.batch;
        if params.table != 0 {
            let at = self.batch * params.table_stride + entry;
            // SAFETY: forwarded to the caller.
            page = unsafe { global::ld_nc((params.table + at as u64 * 4) as *const u32) };
        }
        [
            page * params.k_steps[0] + slot * params.k_steps[1] + self.head * params.k_steps[2],
            page * params.v_steps[0] + slot * params.v_steps[1] + self.head * params.v_steps[2],
        ]
    }

    /// Rotates an item and puts it into shared memory, at `base`; of this step's tokens those that the block attends, which
    /// it writes to the cache too.
    ///
    /// # Safety
    /// - Barriers lie around it.
    #[inline(always)]
    pub unsafe fn put<E: Quad>(&self, base: u32, index: u32, fetched: Fetched<E::Bits>, fresh: Fresh) {
        if index >= self.items() {
            return;
        }
        let params = self.params;
        let (line, item) = (index / Self::ITEMS, index % Self::ITEMS);
        let (low_column, high_column, rotated) = self.columns(line, item);
        let is_query = line < params.rows;
        let new = line - params.rows;
        let values = new >= params.seq_q;
        let number = if is_query {
            self.query(line).0
        } else {
            new - if values { params.seq_q } else { 0 }
        };
        let token = fresh.first + number;
        let (mut low, mut high) = (fetched.low, fetched.high);
        if rotated {
            let (sin, cos) = sin_cos_of(token as i32, fetched.frequencies, params.magnitude);
            let (u, w) = turned(E::widen(low), E::widen(high), sin, cos);
            (low, high) = (E::narrow(u), E::narrow(w));
        }
        let mask = (1 << params.cluster_shift) - 1;
        // SAFETY: forwarded to the caller; the sequence has room for the token.
        unsafe {
            if is_query {
                let at = base + Self::SHAPE.queries_at() + line * Self::SHAPE.query_bytes();
                shared::st(at + low_column * 2, low);
                shared::st(at + high_column * 2, high);
            } else if token < fresh.end && (token >> fresh.shift) & mask == fresh.rank {
                let row = number + if values { DIRECT_ROWS } else { 0 };
                let at = base + Self::SHAPE.fresh_at() + row * Self::SHAPE.row_bytes();
                shared::st(at + low_column * 2, low);
                shared::st(at + high_column * 2, high);
                let [k_units, v_units] = self.place(token);
                let to = if values {
                    params.v + v_units as u64 * 16
                } else {
                    params.k + k_units as u64 * 16
                };
                global::st((to + low_column as u64 * 2) as *mut E::Bits, low);
                global::st((to + high_column as u64 * 2) as *mut E::Bits, high);
            }
        }
    }
}
