//! Arguments of the attention kernels and the tiles they were compiled for.

use crate::{kernel_params, params::TensorMap};

/// Bits of [`AttentionParams::flags`].
pub mod flags {
    /// Keys beyond a right bound are masked: causal (`window_right = 0`) or a window.
    pub const RIGHT: u32 = 1;
    /// Keys before a left bound are masked.
    pub const LEFT: u32 = 2;
    /// Positions count from the first key (PyTorch) and not so that the last query meets the last key.
    pub const TOP_LEFT: u32 = 4;
    /// Sequences are packed: `cu_seqlens_q` and `cu_seqlens_k` say where each begins.
    pub const VARLEN: u32 = 8;
    /// A persistent block takes blocks of query rows in pairs, the first with the last, the second with the last but
    /// one…: under a causal mask each pair has the same work.
    pub const PAIRED: u32 = 16;
}

kernel_params! {
    /// Arguments of `attention_forward_*`. Strides count elements; the last axis of every tensor is dense.
    pub struct AttentionParams {
        /// Q as (head dim, rows, heads, batch), box 64 × tile rows; Hopper only.
        pub q_map: TensorMap,
        /// K, box 64 × tile keys; Hopper only.
        pub k_map: TensorMap,
        /// V, box 64 × tile keys; Hopper only.
        pub v_map: TensorMap,
        /// Q, used where there is no map.
        pub q: u64,
        /// K, used where there is no map.
        pub k: u64,
        /// V, used where there is no map.
        pub v: u64,
        /// O.
        pub out: u64,
        /// LSE, f32, `lse_batch` and `lse_head` apart; 0 when it is not wanted.
        pub lse: u64,
        /// Where the blocks of a packed launch take their tiles: a u32 that is 0 when they begin; Hopper only.
        pub next: u64,
        /// `batch + 1` offsets of packed sequences, i32.
        pub cu_seqlens_q: u64,
        /// `batch + 1` offsets of packed keys, i32.
        pub cu_seqlens_k: u64,
        /// Slopes of ALiBi, f32, or 0.
        pub alibi_slopes: u64,
        /// Logits of sinks, f32, or 0.
        pub sinks: u64,
        /// Strides of Q: batch, row, head.
        pub q_strides: [u64; 3],
        /// Strides of K: batch, row, head.
        pub k_strides: [u64; 3],
        /// Strides of V: batch, row, head.
        pub v_strides: [u64; 3],
        /// Strides of O: batch, row, head.
        pub out_strides: [u64; 3],
        /// Strides of LSE: batch, head.
        pub lse_strides: [u64; 2],
        /// Slopes from one batch to the next: 0 or the number of heads.
        pub alibi_batch_stride: u64,
        /// Sequences.
        pub batch: u32,
        /// Query heads.
        pub heads_q: u32,
        /// Query heads of one key head.
        pub group: u32,
        /// Rows of each sequence of Q, or of the packed Q.
        pub seq_q: u32,
        /// Keys of each sequence, or of the packed K.
        pub seq_kv: u32,
        /// Elements of a query row.
        pub head_dim: u32,
        /// Elements of a value row.
        pub value_dim: u32,
        /// See [`flags`].
        pub flags: u32,
        /// Keys before a query's own position that it sees.
        pub window_left: u32,
        /// Keys after a query's own position that it sees.
        pub window_right: u32,
        /// Factor of the scores.
        pub scale: f32,
        /// The same times log₂ e.
        pub scale_log2: f32,
        /// Cap of the scores, or 0.
        pub softcap: f32,
        /// Heads whose tiles follow each other, so that their keys stay in L2.
        pub section: u32,
        /// Blocks of query rows of a head, in the longest sequence.
        pub row_blocks: u32,
        /// Words of the generator below this drop their probability; 0 is no dropout. Extended kernels only, as the
        /// rest of this.
        pub dropout_threshold: u32,
        /// `1 / (1 − p)`; 1 without dropout.
        pub dropout_factor: f32,
        /// Key of the generator: the seed and the upper half of the offset.
        pub dropout_key: [u32; 2],
        /// Lower half of the offset.
        pub dropout_offset: u32,
    }
}

kernel_params! {
    /// Arguments of `attention_backward_*`. Strides count elements; the last axis of every tensor is dense.
    pub struct BackwardParams {
        /// dO as (head dim, rows, heads, batch), box 64 × the kernel's rows of queries; Hopper only.
        pub grad_out_map: TensorMap,
        /// Those of the forward pass; `row_blocks` counts the tiles of the kernel at hand, the maps' boxes have its rows.
        pub attention: AttentionParams,
        /// dO.
        pub grad_out: u64,
        /// Δ = rowsum(dO ∘ O), f32, laid out as LSE.
        pub delta: u64,
        /// dQ.
        pub dq: u64,
        /// dK.
        pub dk: u64,
        /// dV.
        pub dv: u64,
        /// Gradients of sinks, f32, a query head each.
        pub dsinks: u64,
        /// Base-2 LSE and Δ of each tile of queries, where all gradients come from one kernel; else 0, as the next three.
        pub statistics: u64,
        /// dQ before it is scaled and rounded, f32, tile by tile.
        pub dq_sum: u64,
        /// How many tiles of keys have added their part, a u32 for each tile of queries of each sequence and head.
        pub turns: u64,
        /// The next tile of keys that nobody has taken, a u32.
        pub next: u64,
        /// Strides of dO: batch, row, head.
        pub grad_out_strides: [u64; 3],
        /// Strides of dQ: batch, row, head.
        pub dq_strides: [u64; 3],
        /// Strides of dK: batch, row, head.
        pub dk_strides: [u64; 3],
        /// Strides of dV: batch, row, head.
        pub dv_strides: [u64; 3],
        /// Key heads.
        pub heads_kv: u32,
        /// Rows of the longest sequence.
        pub rows: u32,
        /// Rows of a tile of queries.
        pub query_tile: u32,
        /// Tiles of queries in the longest sequence.
        pub query_tiles: u32,
        /// Tiles of queries of a head in `statistics` and `dq_sum`: all its sequences where they are packed.
        pub plane_tiles: u32,
        /// Tiles of keys in the longest sequence.
        pub key_tiles: u32,
        /// Key heads whose tiles follow each other.
        pub section: u32,
        /// Tiles of keys that go round the tiles of queries together, each from another one on, or [`ASCENDING`] or
        /// [`DESCENDING`].
        pub ring: u32,
    }
}

/// Instead of rings: a tile of queries takes tiles of keys ascending, each begins at the first tile of queries it meets.
pub const ASCENDING: u32 = 0;
/// The same, but descending.
pub const DESCENDING: u32 = u32::MAX;

/// The tile of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Head dim, padded.
    pub dim: u32,
    /// Query rows.
    pub rows: u32,
    /// Keys.
    pub keys: u32,
    /// Time that a score takes, in percent of the best tile of the head dim: where all rows see all keys, under a
    /// causal mask, in a window.
    pub price: [u32; 3],
    /// Query heads from which on the host takes it: below, smaller tiles leave fewer multiprocessors without any.
    pub heads: u32,
}

impl Tiles {
    const fn new(dim: u32, rows: u32, keys: u32) -> Tiles {
        Tiles {
            dim,
            rows,
            keys,
            price: [100; 3],
            heads: 0,
        }
    }

    const fn price(self, price: [u32; 3]) -> Tiles {
        Tiles { price, ..self }
    }

    const fn heads(self, heads: u32) -> Tiles {
        Tiles { heads, ..self }
    }

    /// Stages of Q and, each, of K and V in a Hopper kernel: what shared memory has room for.
    pub const fn stages(self) -> (u32, u32) {
        match self.dim {
            ..=64 if self.keys == 64 => (2, 8),
            65..=128 if self.keys == 64 => (2, 4),
            65..=128 if self.rows == 192 => (1, 4),
            ..=64 => (2, 3),
            65..=128 => (2, 2),
            _ => (1, 2),
        }
    }

    /// Dynamic shared memory of a Hopper kernel: stages of Q, K and V, tiles handed out, barriers.
    pub const fn shared_bytes(self) -> u32 {
        let width = self.dim.div_ceil(PANEL) * PANEL * 2;
        let (q, kv) = self.stages();
        width * (q * self.rows + 2 * kv * self.keys) + 512
    }

    /// Dynamic shared memory of a kernel of 16-bit elements on sm_75 and sm_80: Q, K and V.
    pub const fn shared_bytes_mma(self) -> u32 {
        2 * self.dim * (self.rows + 2 * self.keys)
    }

    /// Dynamic shared memory of an f32 kernel on sm_80 and later: Q, K and V.
    pub const fn shared_bytes_tf32(self) -> u32 {
        4 * self.dim * (self.rows + 2 * self.keys)
    }

    /// Dynamic shared memory of an f32 kernel on sm_75: Q, K or V, weights; rows are padded.
    pub const fn shared_bytes_f32(self) -> u32 {
        4 * ((self.dim + 4) * (self.rows + self.keys) + self.rows * (self.keys + 4))
    }
}

/// The sm_80 kernels for f16 and bf16.
pub const MMA_SM80: [Tiles; 5] = [
    Tiles::new(64, 128, 64),
    Tiles::new(96, 128, 48),
    Tiles::new(128, 128, 48),
    Tiles::new(192, 128, 64),
    Tiles::new(256, 64, 64),
];

/// Those of them that have an extended kernel too: other head dims take the next larger one.
pub const MMA_SM80_EXTENDED: [Tiles; 3] = [MMA_SM80[0], MMA_SM80[2], MMA_SM80[4]];

/// The sm_75 kernels for f16: 64 KB of shared memory is all there is.
pub const MMA_SM75: [Tiles; 5] = [
    Tiles::new(64, 64, 64),
    Tiles::new(96, 64, 64),
    Tiles::new(128, 64, 64),
    Tiles::new(192, 64, 32),
    Tiles::new(256, 64, 16),
];

/// Those of them that are plain and extended in one.
pub const MMA_SM75_EXTENDED: [Tiles; 3] = [MMA_SM75[0], MMA_SM75[2], MMA_SM75[4]];

/// The f32 kernels of sm_75, which are plain and extended in one.
pub const F32_SM75: [Tiles; 3] = [Tiles::new(64, 64, 32), Tiles::new(128, 64, 32), Tiles::new(256, 32, 16)];

/// The f32 kernels of sm_80 and later, plain and extended.
pub const TF32: [Tiles; 3] = [Tiles::new(64, 64, 64), Tiles::new(128, 64, 32), Tiles::new(256, 64, 16)];

/// The Hopper kernels `attention_forward_*`, by head dim. Of several the host takes the one with the least work for
/// the lengths at hand, and of those with as many keys, whose bits are the same, the one that fills the GPU; all but the first
/// have names that end in their rows and keys.
pub const SM90: [Tiles; 8] = [
    Tiles::new(64, 192, 112).price([100, 107, 120]),
    Tiles::new(64, 256, 64).price([104, 100, 100]),
    Tiles::new(64, 128, 64).price([112, 107, 107]),
    Tiles::new(96, 128, 128),
    Tiles::new(128, 128, 128).price([109, 103, 110]),
    Tiles::new(128, 192, 80).heads(16),
    Tiles::new(192, 128, 112),
    Tiles::new(256, 128, 80),
];

/// The Hopper kernels `attention_forward_extended_*`, which need registers for softcap and ALiBi. Head dims between
/// take the next larger one.
pub const SM90_EXTENDED: [Tiles; 3] = [
    Tiles::new(64, 128, 64),
    Tiles::new(128, 128, 64),
    Tiles::new(256, 128, 32),
];

/// Columns of a panel: 128 bytes of 16-bit elements.
pub const PANEL: u32 = 64;

/// The tile of a backward kernel: its own rows (keys for dK and dV, queries for dQ) and what it streams past them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackwardTiles {
    /// Head dim, padded.
    pub dim: u32,
    /// Own rows.
    pub own: u32,
    /// Rows of a streamed tile.
    pub other: u32,
    /// Buffers of streamed tiles.
    pub stages: u32,
}

impl BackwardTiles {
    const fn new(dim: u32, own: u32, other: u32, stages: u32) -> BackwardTiles {
        BackwardTiles {
            dim,
            own,
            other,
            stages,
        }
    }

    /// Dynamic shared memory of a kernel of 16-bit elements: two own and two streamed matrices, LSE and Δ.
    pub const fn shared_bytes_mma(self) -> u32 {
        4 * self.dim * self.own + self.stages * self.other * (4 * self.dim + 8)
    }

    /// Dynamic shared memory of a Hopper kernel: the same, and barriers. With head dim 256 there is room for one stage of
    /// what dP alone needs, dO or V, and in the place of V, of which dV makes no use, for two more of dO.
    pub const fn shared_bytes_sm90(self) -> u32 {
        let once = if self.dim == 256 { 2 * self.dim * self.other } else { 0 };
        self.shared_bytes_mma() - once + 256
    }

    /// Dynamic shared memory of a Hopper kernel of all gradients: K and V, `stages` of Q and two of dO, dS, two of dQ in
    /// f32, statistics, barriers.
    pub const fn shared_bytes_once(self) -> u32 {
        let streamed = (self.stages + 2) * 2 * self.dim + 2 * self.own + 8 * self.dim + self.stages * 8;
        4 * self.dim * self.own + self.other * streamed + 256
    }

    /// Dynamic shared memory of a kernel of all gradients on sm_80: K and V, `stages` of Q, dO and statistics, dS and, where
    /// warps share their keys, P; the place of a tile.
    pub const fn shared_bytes_turns(self, shared: bool) -> u32 {
        let exchanged = if shared { 2 } else { 1 };
        self.shared_bytes_mma() + 2 * exchanged * self.own * self.other + 16
    }

    /// Dynamic shared memory of an f32 kernel on sm_80 and later: two own and two streamed matrices, LSE and Δ.
    pub const fn shared_bytes_tf32(self) -> u32 {
        8 * self.dim * (self.own + self.other) + 8 * self.other
    }

    /// Dynamic shared memory of an f32 kernel of four warps on sm_75; rows are padded.
    pub const fn shared_bytes_f32(self) -> u32 {
        4 * (2 * (self.dim + 4) * (self.own + self.other) + 2 * self.other + 64 * (self.other + 4))
    }
}

/// `attention_backward_kv_*` (with head dim 256 `_k_*` and `_v_*`) and `attention_backward_q_*` for f16 and bf16 on
/// sm_90a; the extended ones are those of sm_80.
pub const BACKWARD_SM90: [[BackwardTiles; 3]; 2] = [
    [
        BackwardTiles::new(64, 128, 96, 3),
        BackwardTiles::new(128, 128, 64, 3),
        BackwardTiles::new(256, 128, 64, 2),
    ],
    [
        BackwardTiles::new(64, 128, 128, 3),
        BackwardTiles::new(128, 128, 128, 2),
        BackwardTiles::new(256, 128, 64, 2),
    ],
];

/// `attention_backward_qkv_*`, all gradients at once, for f16 and bf16 on sm_90a: own keys, streamed queries.
pub const BACKWARD_ONCE: [BackwardTiles; 2] =
    [BackwardTiles::new(64, 128, 128, 3), BackwardTiles::new(128, 128, 64, 3)];

/// `attention_backward_qkv_*` for f16 and bf16 on sm_80: own keys, streamed queries; whether warps share their keys. Of
/// several for a head dim the host takes the first that fits the GPU's shared memory; those of one stage are named
/// `attention_backward_qkv_lean_*`.
pub const BACKWARD_TURNS: [(BackwardTiles, bool); 4] = [
    (BackwardTiles::new(64, 128, 32, 2), false),
    (BackwardTiles::new(128, 128, 64, 2), true),
    (BackwardTiles::new(256, 64, 64, 2), true),
    (BackwardTiles::new(256, 64, 64, 1), true),
];

/// `attention_backward_kv_*` and `attention_backward_q_*` for f16 and bf16 on sm_80 and later.
pub const BACKWARD_MMA_SM80: [[BackwardTiles; 3]; 2] = [
    [
        BackwardTiles::new(64, 64, 64, 2),
        BackwardTiles::new(128, 64, 32, 2),
        BackwardTiles::new(256, 64, 16, 2),
    ],
    [
        BackwardTiles::new(64, 64, 64, 2),
        BackwardTiles::new(128, 64, 64, 2),
        BackwardTiles::new(256, 64, 16, 2),
    ],
];

/// The same on sm_75, whose shared memory is 64 KB.
pub const BACKWARD_MMA_SM75: [[BackwardTiles; 3]; 2] = [
    [
        BackwardTiles::new(64, 64, 32, 1),
        BackwardTiles::new(128, 64, 16, 1),
        BackwardTiles::new(256, 32, 16, 1),
    ],
    [
        BackwardTiles::new(64, 64, 32, 1),
        BackwardTiles::new(128, 64, 32, 1),
        BackwardTiles::new(256, 32, 16, 1),
    ],
];

/// `attention_backward_kv_*` and `attention_backward_q_*` for f32 on sm_80 and later.
pub const BACKWARD_TF32: [[BackwardTiles; 3]; 2] = [
    [
        BackwardTiles::new(64, 64, 32, 1),
        BackwardTiles::new(128, 64, 16, 1),
        BackwardTiles::new(256, 32, 8, 1),
    ],
    [
        BackwardTiles::new(64, 64, 64, 1),
        BackwardTiles::new(128, 64, 32, 1),
        BackwardTiles::new(256, 32, 16, 1),
    ],
];

/// The f32 kernels of both kinds on sm_75.
pub const BACKWARD_F32_SM75: [BackwardTiles; 3] = [
    BackwardTiles::new(64, 64, 16, 1),
    BackwardTiles::new(128, 32, 16, 1),
    BackwardTiles::new(256, 16, 8, 1),
];

/// Threads of the kernels `attention_backward_delta_*` and `attention_backward_sinks`.
pub const DELTA_THREADS: u32 = 256;

/// Rows of a thread of `attention_backward_delta_*`.
pub const DELTA_ROWS: u32 = 4;

/// Rows of a block of `attention_backward_delta_*`, of which a thread takes 8 columns.
pub const fn delta_rows(dim: u32) -> u32 {
    DELTA_ROWS * DELTA_THREADS * 8 / dim
}
