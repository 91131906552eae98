//! Kernels of all gradients: their tiles, and what they keep in the work buffer.

use kernels_gpu::attention::params::{
    ASCENDING, BACKWARD_ONCE, BACKWARD_TURNS, BackwardParams, BackwardTiles, DELTA_THREADS, DESCENDING, delta_rows,
    flags,
};

use super::{AttentionBackward, AttentionGradients, kernels::Plan};
use crate::ops::attention::{plan_sm90, validate::Problem};
use crate::{AnyTensor, Error, Result, Tier, launch::Prepared};

/// Bytes of Q, dO and dQ that share L2 well: without a right bound several heads take turns, two at least, so that nobody
/// waits long.
const SECTION_BYTES: u64 = 16 << 20;
const DESCENDING_BYTES: u64 = 4 << 20;
/// From so many tiles of queries on, rings gain 1 to 2 %; below, they lose.
const RING_TILES: u64 = 64;

/// The kernel of a problem.
pub struct Once {
    pub tiles: BackwardTiles,
    /// Its shared memory, bytes.
    shared: u32,
    /// Whether it loads by tensor maps; its blocks are persistent then.
    mapped: bool,
    /// The kernel.
    pub qkv: String,
    /// The kernel that rounds dQ.
    pub sum: String,
    /// Tiles of queries in the longest sequence.
    pub query_tiles: u64,
    /// Tiles of keys in the longest sequence.
    pub key_tiles: u64,
    /// Tiles of queries of a head, all its sequences where they are packed.
    plane_tiles: u64,
    /// All of them.
    total_tiles: u64,
    /// Counters: a tile of queries of each sequence and head.
    counters: u64,
    head_dim: u64,
}

impl Once {
    /// The kernel of a plain 16-bit problem, if there is one for its head dims.
    ///
    /// # Errors
    /// [`Error::Range`] when its tiles cannot be numbered.
    pub fn new(problem: &Problem) -> Result<Option<Once>> {
        let dim = problem.head_dim.max(problem.value_dim);
        // A block would have the rows of all heads of a group: too few of them, too long, for an even load.
        if problem.group() > 1 {
            return Ok(None);
        }
        let device = problem.q.device();
        let mapped = device.tier() == Tier::Sm90a;
        // Not every GPU of a tier has as much shared memory as its first ones.
        let most = device.properties().shared_per_block;
        let fits = |&(tiles, shared): &(BackwardTiles, u32)| dim <= tiles.dim.into() && shared <= most;
        let found = if mapped {
            let of = |tiles: BackwardTiles| (tiles, tiles.shared_bytes_once());
            BACKWARD_ONCE.map(of).into_iter().find(fits)
        } else {
            let of = |(tiles, exchanged): (BackwardTiles, bool)| (tiles, tiles.shared_bytes_turns(exchanged));
            BACKWARD_TURNS.map(of).into_iter().find(fits)
        };
        let Some((tiles, shared)) = found else {
            return Ok(None);
        };
        let variant = if tiles.stages == 1 { "_lean" } else { "" };
        let rows = u64::from(tiles.other);
        let query_tiles = problem.rows.div_ceil(rows);
        let keys = problem.packed.map_or(problem.seq_kv, |packed| packed.max_k);
        let key_tiles = keys.div_ceil(tiles.own.into());
        // Packed sequences begin anywhere: each may need one tile more than its tokens fill.
        let (planes, plane_tiles) = match problem.packed {
            Some(_) => (problem.heads_q, problem.seq_q / rows + problem.batch + 1),
            None => (problem.batch.saturating_mul(problem.heads_q), query_tiles),
        };
        let total_tiles = planes.saturating_mul(plane_tiles);
        let counters = (problem.batch.saturating_mul(problem.heads_q)).saturating_mul(query_tiles);
        let places = problem.batch.saturating_mul(problem.heads_kv).saturating_mul(key_tiles);
        // The grid of Δ has at most 8 blocks a tile.
        for count in [total_tiles, counters.saturating_mul(8), places] {
            if count > i32::MAX as u64 {
                let value = format!("{} · {} · {query_tiles} or {key_tiles}", problem.batch, problem.heads_q);
                return Err(Error::range(
                    "batch · heads · tiles",
                    value,
                    format!("at most {}", i32::MAX),
                ));
            }
        }
        let dtype = problem.dtype;
        Ok(Some(Once {
            tiles,
            shared,
            mapped,
            qkv: format!("attention_backward_qkv{variant}_{dtype}_d{}", tiles.dim),
            sum: format!("attention_backward_sum_{dtype}_d{}", tiles.dim),
            query_tiles,
            key_tiles,
            plane_tiles,
            total_tiles,
            counters,
            head_dim: problem.head_dim,
        }))
    }

    /// Where statistics, sums of dQ and counters begin in the work buffer, behind Δ; elements.
    fn places(&self, lse: &AnyTensor) -> [u64; 3] {
        let rows = self.total_tiles * u64::from(self.tiles.other);
        let statistics = lse.elements().next_multiple_of(4);
        let sums = statistics + 2 * rows;
        [statistics, sums, sums + rows * self.head_dim]
    }

    /// Elements of the work buffer.
    pub fn end(&self, lse: &AnyTensor) -> u64 {
        self.places(lse)[2] + self.counters + 1
    }

    /// What the kernels are told of it.
    pub fn fill(&self, problem: &Problem, lse: &AnyTensor, work: &AnyTensor, params: &mut BackwardParams) {
        let [statistics, sums, counters] = self.places(lse).map(|place| work.address() + 4 * place);
        params.statistics = statistics;
        params.dq_sum = sums;
        params.turns = counters;
        params.next = counters + 4 * self.counters;
        params.query_tile = self.tiles.other;
        params.query_tiles = self.query_tiles as u32;
        params.plane_tiles = self.plane_tiles as u32;
        params.key_tiles = self.key_tiles as u32;
        let planes = problem.batch * problem.heads_kv;
        let bytes = (self.query_tiles * u64::from(self.tiles.other) * problem.group())
            .saturating_mul(6 * problem.head_dim + 2 * problem.value_dim)
            .max(1);
        // Early queries see early keys only: each tile of keys begins at its diagonal.
        let causal = problem.options.mask_flags() & flags::RIGHT != 0;
        let resident = u64::from(problem.q.device().properties().multiprocessors);
        let (ring, section) = if self.mapped && self.rings(problem) {
            // Two tiles of queries and more between those that follow each other, and all of a ring at work together.
            let most = (self.query_tiles / 2).clamp(1, resident);
            let ring = self.key_tiles.div_ceil(self.key_tiles.div_ceil(most).max(1)).max(1);
            (ring as u32, resident / ring)
        } else if causal {
            (DESCENDING, DESCENDING_BYTES / bytes)
        } else {
            (ASCENDING, (SECTION_BYTES / bytes).max(2))
        };
        params.ring = ring;
        params.section = section.clamp(1, planes.max(1)) as u32;
    }

    /// Whether every tile of keys meets every tile of queries, and enough of them.
    fn rings(&self, problem: &Problem) -> bool {
        let whole = problem.options.mask_flags() & (flags::LEFT | flags::RIGHT) == 0;
        whole && problem.packed.is_none() && self.query_tiles >= RING_TILES
    }
}

impl AttentionBackward<'_> {
    /// Every launch that the problem needs where one kernel computes all gradients, checked, in order.
    pub(super) fn prepare_once<'b>(
        &'b self,
        problem: &Problem,
        plan: &'b Plan,
        once: &'b Once,
        gradients: &'b AttentionGradients,
        work: &'b AnyTensor,
    ) -> Result<Vec<(Prepared<'b>, BackwardParams)>> {
        let mut launches = Vec::new();
        if problem.batch * problem.heads_q * problem.rows == 0 {
            return Ok(launches);
        }
        let tiles = once.tiles;
        let params = |rows: u32| {
            let mut params = self.params(problem, rows, gradients, work);
            once.fill(problem, self.lse, work, &mut params);
            params
        };
        // Statistics of whole tiles of rows.
        let rows = delta_rows(plan.delta_dim);
        let mut delta = params(rows);
        delta.attention.row_blocks = (once.query_tiles as u32 * tiles.other).div_ceil(rows);
        let blocks = u64::from(delta.attention.row_blocks) * problem.batch * problem.heads_q;
        let contract = self
            .contract(&plan.delta)
            .grid([blocks, 1, 1])
            .reads("out", self.out)
            .writes("work", work);
        launches.push((contract.prepare()?, delta));

        let resident = if once.mapped {
            u64::from(problem.q.device().properties().multiprocessors)
        } else {
            u64::MAX
        };
        let keys = problem.batch * problem.heads_kv * once.key_tiles;
        if keys > 0 {
            let contract = self
                .contract(&once.qkv)
                .programmatic()
                .grid([keys.min(resident), 1, 1])
                .shared(once.shared.into())
                .writes("work", work)
                .writes("dk", &gradients.dk)
                .writes("dv", &gradients.dv);
            let mut params = params(tiles.other);
            if once.mapped {
                plan_sm90::backward_maps(problem, self.grad_out, [tiles.other, tiles.own], &mut params)?;
            }
            launches.push((contract.prepare()?, params));
        }
        let blocks = problem.rows.div_ceil(64) * problem.batch * problem.heads_q;
        let contract = self
            .contract(&once.sum)
            .programmatic()
            .grid([blocks, 1, 1])
            .reads("work", work)
            .writes("dq", &gradients.dq);
        let mut sum = params(64);
        // Heads one after the other, as they become complete.
        sum.attention.section = 1;
        launches.push((contract.prepare()?, sum));
        if let Some(dsinks) = &gradients.dsinks {
            let contract = self
                .contract("attention_backward_sinks")
                .grid([problem.heads_q, 1, 1])
                .shared(u64::from(DELTA_THREADS / 32 * 4))
                .reads("work", work)
                .writes("dsinks", dsinks);
            launches.push((contract.prepare()?, params(tiles.other)));
        }
        Ok(launches)
    }
}
