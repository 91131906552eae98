//! How the work of a launch is divided among blocks.

use kernels_gpu::decode::{KEYS, MIN_SPLIT, ROWS, SHORT, Shape, least_of};

use crate::ops::cache::CheckedCache;

/// Blocks that one sequence alone should be cut into, so that it fills a large GPU.
pub(super) const WANTED_BLOCKS: u64 = 256;
/// Most pieces of a tile.
pub(super) const MAX_SPLITS: u64 = 128;
/// Shared memory of a multiprocessor that has most; each block takes 1 KiB more than it asks for.
pub(super) const SHARED_MEMORY: u64 = 228 << 10;
/// Blocks of a multiprocessor that their registers leave room for.
pub(super) const MAX_RESIDENT: u64 = 2;
/// The same of kernels for few rows.
const FEW_RESIDENT: u64 = 3;
/// Bytes of a row of a stage from which on blocks of few rows have whole tiles, as many each, where there are enough: half of the
/// time of narrower rows is their instructions, which three blocks share.
const WIDE_ROW: u32 = 256;
/// Tiles for each block that the GPU holds from which on they need not be cut up to keep all busy.
pub(super) const ENOUGH_TILES: u64 = 6;
/// Share of the rounds that whole tiles of equal lengths fill from which on that holds for fewer too, in percent.
const FULL_ROUNDS: u64 = 95;

/// Tokens up to which one sequence alone is attended by a cluster of blocks for each of its tiles: without a workspace and
/// a second launch, but by too few blocks for more.
const LONE_CAPACITY: u64 = 8192;

/// Tokens up to which a tile may be one multiprocessor's: lengths are not known here, and the longest of unequal ones must not
/// take much longer than all of them cut up.
pub(super) const ALONE_CAPACITY: u64 = 32_768;

/// Rounds that tiles of 8-bit floats may take so: the warps of the general kernels wait for each other at each piece, but many
/// short sequences would pay for the beginning of a block in each round.
const ALONE_ROUNDS: u64 = 4;

/// Share of the blocks that the GPU holds from which on bundles of pieces are enough to keep it busy, in percent.
pub(super) const MOST_BLOCKS: u64 = 85;

/// Least tokens of a piece: to join the warps of more rows takes longer, and narrow rows are read sooner.
const fn least_tokens(shape: Shape) -> u32 {
    if shape.rows > ROWS {
        512
    } else if shape.dim > 128 || shape.keys > KEYS {
        256
    } else if shape.row_bytes <= 128 {
        128
    } else {
        MIN_SPLIT
    }
}

/// Rounds up to which tiles of many rows have a block for each piece that the longest sequence could have: shorter ones leave
/// blocks that only find out that there is nothing to do.
const MOST_ROUNDS: u64 = 2;

/// Whether whole tiles of equal lengths leave few of so many places idle.
pub(super) const fn fills(tiles: u64, slots: u64) -> bool {
    tiles * 100 >= tiles.div_ceil(slots) * slots * FULL_ROUNDS
}

/// What a launch has to do.
pub(super) struct Work<'a> {
    pub(super) shape: Shape,
    /// Whether tiles have few rows, as columns of products.
    pub(super) few: bool,
    pub(super) hopper: bool,
    pub(super) cache: &'a CheckedCache,
    /// Bytes of an element of the cache.
    pub(super) cache_size: u32,
    /// Padded head dim.
    pub(super) padded: u32,
    pub(super) batch: u64,
    /// Rows of a key head in a sequence.
    pub(super) tile_rows: u64,
    /// New tokens of a sequence that the launch appends itself.
    pub(super) fresh_tokens: u32,
}

/// Which block takes what.
pub(super) struct Division {
    /// Tiles of a key head in a sequence, and rows of one.
    pub(super) tiles: u64,
    pub(super) rows: u64,
    pub(super) all_tiles: u64,
    /// Least tokens of a piece, most pieces of a tile, and as many as the longest sequence has.
    pub(super) least: u32,
    pub(super) most: u64,
    pub(super) splits: u64,
    /// A block takes all pieces of a tile and adds them up itself.
    pub(super) fold: bool,
    /// A multiprocessor for each tile.
    pub(super) alone: bool,
    /// Blocks that share a tile and meet.
    pub(super) cluster: u64,
    /// Pieces are dealt out to all blocks, and merged by another kernel.
    pub(super) apart: bool,
    /// They are dealt out in bundles.
    pub(super) bundled: bool,
    /// A block for each of so many pieces or bundles of a tile; 0 where a plan deals them out.
    pub(super) each: u64,
    pub(super) blocks: u64,
    /// Heads that blocks take side by side.
    pub(super) side: u64,
    /// Shared memory of a block.
    pub(super) shared: u64,
}

impl Work<'_> {
    /// Whether 16 tokens, at multiples of 16, lie together.
    pub(super) fn together(&self) -> bool {
        self.cache.paging.table == 0 || self.cache.paging.page_size.is_multiple_of(KEYS)
    }

    /// For a GPU of so many multiprocessors, whose blocks may have so many bytes of shared memory.
    pub(super) fn divide(&self, multiprocessors: u64, block_shared: u64) -> Division {
        let Work {
            shape, few, tile_rows, ..
        } = *self;
        let tiles = tile_rows.div_ceil(shape.rows.into());
        // These follow from the sequence's own problem, never from the batch: they decide how its sums are ordered.
        let most = (WANTED_BLOCKS / (self.cache.heads * tiles)).clamp(1, MAX_SPLITS);
        let least = least_tokens(shape);
        let pieces = |tokens: u64| tokens.div_ceil(least_of(tokens as u32, least).into());
        let short = pieces(self.cache.capacity.min(SHORT.into())) + 1;
        let splits = most.min(pieces(self.cache.capacity).max(short)).max(1);
        let all_tiles = self.batch * self.cache.heads * tiles;
        let rows = tile_rows.min(shape.rows.into());
        // This may follow from the batch: both ways give the same bits.
        let fresh_tokens = self.fresh_tokens;
        let shared = u64::from(shape.shared_bytes(rows as u32) + shape.fresh_bytes(fresh_tokens));
        let resident = (SHARED_MEMORY / (shared + 1024)).clamp(1, if few { FEW_RESIDENT } else { MAX_RESIDENT });
        let slots = resident * multiprocessors;
        let fills = |slots: u64| fills(all_tiles, slots);
        // Measured: where two blocks of few rows on each multiprocessor have a tile each, a third would only cut them up.
        let two = MAX_RESIDENT.min(resident) * multiprocessors;
        let pairs = few && self.cache_size == 2 && all_tiles <= two && fills(two);
        let full = fills(slots) || pairs;
        let bundles = splits.div_ceil(1 << shape.bundle);
        let fold = splits == 1
            || (shape.folds && (shape.bundle == 0 || bundles == 1) && (full || all_tiles >= ENOUGH_TILES * slots));
        let lone = self.hopper && !fold && shape.folds && self.batch == 1 && self.cache.capacity <= LONE_CAPACITY;
        let gathered = |cluster: u64| u64::from(shape.gather_bytes(rows as u32, splits as u32, cluster as u32));
        let fits = |cluster: u64| {
            let shared = shared + gathered(cluster);
            all_tiles * cluster <= slots && splits <= 2 * cluster && shared <= block_shared
        };
        let cluster = [16, 8, 4, 2]
            .into_iter()
            // No more blocks than there are pieces.
            .find(|cluster| lone && cluster / 2 < splits && fits(*cluster))
            .unwrap_or(1);
        // Bundles are dealt out where they give nearly all blocks something to do.
        let bundled = shape.bundle != 0
            && !fold
            && cluster == 1
            && (all_tiles * bundles >= 2 * slots || all_tiles * bundles * 100 >= slots * MOST_BLOCKS);
        // A multiprocessor for each tile, where that leaves few idle: no plan, and no kernel that merges. Rows of 8-bit floats are
        // half instructions, which two groups of warps share; four warps have no time to look up each token.
        let groups = if self.cache_size == 1 { 2 } else { 1 };
        let own = Shape::alone(self.cache_size, self.padded, groups);
        let alone = few
            && self.padded == 128
            && self.together()
            && splits > 1
            && self.cache.capacity <= ALONE_CAPACITY
            && all_tiles <= multiprocessors * if groups > 1 { ALONE_ROUNDS } else { 1 }
            && fills(multiprocessors)
            && own.shared_bytes(rows as u32) + own.fresh_bytes(fresh_tokens) <= own.group_bytes();
        let fold = fold || alone;
        let cluster = if alone { 1 } else { cluster };
        let apart = !fold && cluster == 1;
        let dealt = if bundled { bundles } else { splits };
        let each = if apart && shape.bundle != 0 && all_tiles * dealt <= MOST_ROUNDS * slots {
            dealt
        } else {
            0
        };
        let blocks = if fold {
            all_tiles
        } else if each > 0 {
            all_tiles * each
        } else if cluster > 1 {
            all_tiles * cluster
        } else if few && shape.row_bytes >= WIDE_ROW && all_tiles >= slots {
            all_tiles / all_tiles.div_ceil(slots)
        } else {
            slots.min(all_tiles * splits)
        };
        // Heads side by side, as many as leave few blocks over.
        let leaves_few =
            |side: u64| self.cache.heads.is_multiple_of(side) && blocks / side * side * 100 >= blocks * FULL_ROUNDS;
        let side = (1..=self.cache.heads)
            .rev()
            .find(|side| apart && each == 0 && leaves_few(*side))
            .unwrap_or(1);
        let blocks = if apart { blocks / side * side } else { blocks };
        let shared = if alone {
            u64::from(own.groups * own.group_bytes())
        } else if cluster > 1 {
            shared + gathered(cluster)
        } else if few && blocks > multiprocessors && blocks <= two {
            // Blocks of the next launch come when there is room. A third beside the two of each multiprocessor would come early,
            // others where the first ones end first: some multiprocessors would have three of the next, and some one.
            shared.max(SHARED_MEMORY / (MAX_RESIDENT + 1))
        } else {
            shared
        };
        Division {
            tiles,
            rows,
            all_tiles,
            least,
            most,
            splits,
            fold,
            alone,
            cluster,
            apart,
            bundled,
            each,
            blocks,
            side,
            shared,
        }
    }
}
