//! What the plans of all tiers share: tiles, parameters, the contract of a launch.

use kernels_gpu::attention::params::{AttentionParams, Tiles, flags};

use super::{options::Dropout, validate::Problem};
use crate::{AnyTensor, Error, Result, Stream, Tier, launch::Contract, reference::philox};

/// What a launch writes, and where it runs.
pub struct Target<'a> {
    pub out: &'a AnyTensor,
    pub lse: Option<&'a AnyTensor>,
    pub stream: Option<&'a Stream>,
}

/// Tile sizes that the caller insists on.
pub struct Blocks {
    pub rows: Option<u32>,
    pub keys: Option<u32>,
}

/// Bytes of keys and values that the heads of a section may have together: a part of the L2 cache that leaves room for
/// what streams through.
const SECTION_BYTES: u64 = 32 << 20;

impl Blocks {
    /// The tile of `table` for the problem's head dims: of the smallest that holds them the one that has the least work
    /// with the longest sequence, what it computes beyond the ends included, unless the caller insists on another. Only the
    /// lengths, heads and options of a sequence choose the number of keys, on which bits depend.
    ///
    /// # Errors
    /// - [`Error::Unsupported`] when there is none.
    /// - [`Error::Range`] when the caller insists on a size that no kernel has.
    pub fn choose(&self, problem: &Problem, table: &[Tiles], tier: Tier) -> Result<Choice> {
        let dim = problem.head_dim.max(problem.value_dim);
        let Some(first) = table.iter().position(|tiles| u64::from(tiles.dim) >= dim) else {
            let largest = table.last().map_or(0, |tiles| tiles.dim);
            let what = format!("attention in {} with head dim {dim} (at most {largest})", problem.dtype);
            return Err(Error::Unsupported { what, tier: Some(tier) });
        };
        let candidates = table[first..].iter().take_while(|tiles| tiles.dim == table[first].dim);
        let sides = problem.options.mask_flags();
        let mask = match (sides & flags::LEFT != 0, sides & flags::RIGHT != 0) {
            _ if problem.packed.is_some() => 0,
            (false, false) => 0,
            (false, true) => 1,
            (true, _) => 2,
        };
        let fits = |wanted: Option<u32>, there: u32| wanted.is_none_or(|wanted| wanted == there);
        let keys = problem.packed.map_or(problem.seq_kv, |packed| packed.max_k);
        let work = |tiles: &Tiles| {
            let padded = |extent: u64, tile: u32| u128::from(extent.next_multiple_of(tile.into()));
            padded(problem.rows, tiles.rows) * padded(keys, tiles.keys) * u128::from(tiles.price[mask])
        };
        // How long the GPU takes for all of them, by rows.
        let multiprocessors = u128::from(problem.q.device().properties().multiprocessors.max(1));
        let rounds = |tiles: &Tiles| {
            let planes = u128::from(problem.batch) * u128::from(problem.heads_q);
            let count = planes * u128::from(problem.rows.div_ceil(tiles.rows.into()));
            count.div_ceil(multiprocessors) * u128::from(tiles.rows) * u128::from(tiles.price[mask])
        };
        let chosen = candidates
            .clone()
            .enumerate()
            .filter(|(_, tiles)| fits(self.rows, tiles.rows) && fits(self.keys, tiles.keys))
            .filter(|(_, tiles)| problem.heads_q >= tiles.heads.into() || self.rows.or(self.keys).is_some())
            .min_by_key(|(_, tiles)| work(tiles));
        // Tiles with as many keys give the same bits: of those the number of sequences and heads may choose.
        let chosen = chosen.and_then(|(_, best)| {
            candidates
                .clone()
                .enumerate()
                .filter(|(_, tiles)| fits(self.rows, tiles.rows) && tiles.keys == best.keys)
                .min_by_key(|(_, tiles)| rounds(tiles))
        });
        if let Some((place, &tiles)) = chosen {
            return Ok(Choice {
                tiles,
                first: place == 0,
            });
        }
        let there: Vec<String> = candidates
            .map(|tiles| format!("{} × {}", tiles.rows, tiles.keys))
            .collect();
        let allowed = format!(
            "{} (block_m × block_n, head dim {dim}, {}, tier {tier})",
            there.join(" or "),
            problem.dtype
        );
        let (argument, wanted) = match (self.rows, self.keys) {
            (Some(rows), None) => ("block_m", rows.to_string()),
            (None, Some(keys)) => ("block_n", keys.to_string()),
            (rows, keys) => (
                "block_m × block_n",
                format!("{} × {}", rows.unwrap_or_default(), keys.unwrap_or_default()),
            ),
        };
        Err(Error::range(argument, wanted, allowed))
    }
}

/// A row of a table of tiles.
#[derive(Clone, Copy)]
pub struct Choice {
    pub tiles: Tiles,
    /// Whether it is the first of its head dim, whose kernel's name does not say the keys.
    pub first: bool,
}

/// The name of the kernel. On sm_75 those that can be are plain and extended in one.
pub fn entry(problem: &Problem, Choice { tiles, first }: Choice) -> String {
    let both = problem.q.device().tier() == Tier::Sm75;
    let variant = if problem.extended() && !both { "_extended" } else { "" };
    let keys = if first {
        String::new()
    } else {
        format!("_{}x{}", tiles.rows, tiles.keys)
    };
    format!("attention_forward{variant}_{}_d{}{keys}", problem.dtype, tiles.dim)
}

/// Tiles of query rows, all heads and sequences.
///
/// # Errors
/// [`Error::Range`] when they cannot be numbered.
pub fn tile_count(problem: &Problem, tiles: Tiles) -> Result<u64> {
    let blocks = problem.rows.div_ceil(tiles.rows.into());
    let count = problem
        .batch
        .checked_mul(problem.heads_q)
        .and_then(|heads| heads.checked_mul(blocks));
    count.filter(|&count| count <= i32::MAX as u64).ok_or_else(|| {
        let value = format!("{} · {} · {blocks}", problem.batch, problem.heads_q);
        Error::range("batch · heads · row tiles", value, format!("at most {}", i32::MAX))
    })
}

/// The kernel's argument, without tensor maps.
pub fn params(problem: &Problem, tiles: Tiles, target: &Target) -> AttentionParams {
    let (q, k, v) = (
        problem.view(problem.q),
        problem.view(problem.k),
        problem.view(problem.v),
    );
    let out = problem.view(target.out);
    let options = problem.options;
    let packed = problem.packed;
    let (window_left, window_right) = options.windows();
    let dropout = options.active_dropout().unwrap_or(Dropout {
        probability: 0.0,
        seed: 0,
        offset: 0,
    });
    let [seed_low, seed_high] = philox::key(dropout.seed);
    let planes = problem.batch * problem.heads_q;
    let keys = packed.map_or(problem.seq_kv, |packed| packed.max_k).max(1);
    // Of a window, what the tiles see that are under way at a time.
    let multiprocessors = u64::from(problem.q.device().properties().multiprocessors);
    let under_way = multiprocessors.div_ceil(planes.max(1)) * u64::from(tiles.rows);
    let keys = keys.min(u64::from(window_left) + u64::from(window_right) + under_way);
    let head_bytes = keys * (problem.head_dim + problem.value_dim) * problem.dtype.size();
    let section = (SECTION_BYTES / head_bytes)
        .max(1)
        .saturating_mul(problem.group())
        .min(planes);
    AttentionParams {
        q_map: [0; 16],
        k_map: [0; 16],
        v_map: [0; 16],
        q: q.address,
        k: k.address,
        v: v.address,
        out: out.address,
        lse: target.lse.map_or(0, AnyTensor::address),
        next: 0,
        cu_seqlens_q: packed.map_or(0, |packed| packed.cu_seqlens_q.address()),
        cu_seqlens_k: packed.map_or(0, |packed| packed.cu_seqlens_k.address()),
        alibi_slopes: options.alibi_slopes.as_ref().map_or(0, AnyTensor::address),
        sinks: options.sinks.as_ref().map_or(0, AnyTensor::address),
        q_strides: q.strides,
        k_strides: k.strides,
        v_strides: v.strides,
        out_strides: out.strides,
        lse_strides: [problem.heads_q * problem.seq_q, problem.seq_q],
        alibi_batch_stride: options
            .alibi_slopes
            .as_ref()
            .map_or(0, |slopes| if slopes.rank() == 2 { problem.heads_q } else { 0 }),
        batch: problem.batch as u32,
        heads_q: problem.heads_q as u32,
        group: problem.group() as u32,
        seq_q: problem.seq_q as u32,
        seq_kv: problem.seq_kv as u32,
        head_dim: problem.head_dim as u32,
        value_dim: problem.value_dim as u32,
        flags: options.mask_flags() | if packed.is_some() { flags::VARLEN } else { 0 },
        window_left,
        window_right,
        scale: problem.scale,
        scale_log2: problem.scale * std::f32::consts::LOG2_E,
        softcap: options.softcap,
        section: section as u32,
        row_blocks: problem.rows.div_ceil(tiles.rows.into()) as u32,
        dropout_threshold: philox::dropout_threshold(dropout.probability.into()),
        dropout_factor: 1.0 / (1.0 - dropout.probability),
        dropout_key: [seed_low, seed_high ^ (dropout.offset >> 32) as u32],
        dropout_offset: dropout.offset as u32,
    }
}

/// Starts the kernel.
pub fn start(
    problem: &Problem,
    target: &Target,
    entry: &str,
    blocks: u64,
    shared: u32,
    params: &AttentionParams,
) -> Result<()> {
    start_with(problem, target, (entry, blocks, shared), params, |contract| contract)
}

/// Starts a kernel that waits itself for what comes before it in the stream; blocks of packed launches take their tiles
/// from the `counter`.
pub fn start_early(
    problem: &Problem,
    target: &Target,
    (entry, blocks, shared): (&str, u64, u32),
    params: &AttentionParams,
    counter: Option<&AnyTensor>,
) -> Result<()> {
    start_with(problem, target, (entry, blocks, shared), params, |contract| {
        contract.programmatic().writes_if("counter", counter)
    })
}

fn start_with<'a>(
    problem: &'a Problem,
    target: &'a Target,
    (entry, blocks, shared): (&'a str, u64, u32),
    params: &AttentionParams,
    how: impl FnOnce(Contract<'a>) -> Contract<'a>,
) -> Result<()> {
    let options = problem.options;
    let launch = how(Contract::new(problem.q.device(), entry))
        .grid([blocks, 1, 1])
        .shared(shared.into())
        .on(target.stream)
        .reads("q", problem.q)
        .reads("k", problem.k)
        .reads("v", problem.v)
        .reads_if("cu_seqlens_q", problem.packed.map(|packed| packed.cu_seqlens_q))
        .reads_if("cu_seqlens_k", problem.packed.map(|packed| packed.cu_seqlens_k))
        .reads_if("alibi_slopes", options.alibi_slopes.as_ref())
        .reads_if("sinks", options.sinks.as_ref())
        .writes("out", target.out)
        .writes_if("lse", target.lse)
        .prepare()?;
    // SAFETY: the argument struct of these kernels; addresses, extents and strides are those of the tensors above, and
    // what packed bounds say is cut to the tensors by the kernel.
    unsafe { launch.launch(params) }
}
