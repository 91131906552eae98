//! Attention backward on Hopper in one pass: a block owns 128 keys, streams queries and adds to dQ in turn.
//!
//! Two warpgroups compute, 64 keys each. `Sᵀ = K·Qᵀ` and `dPᵀ = V·dOᵀ` come from shared memory; `Pᵀ` and `dSᵀ` are the
//! A operands of `dV += Pᵀ·dO` and `dK += dSᵀ·Q` where they are. `dS` goes to shared memory too, since `dQ = dS·K` sums
//! over the keys of both warpgroups; its f32 tile is added to global memory by bulk reduction, in the order of
//! [`backward_turns`](super::backward_turns): same inputs, same bits. Blocks are persistent.
//!
//! Overlap, of tile `m`: while its exponentials are computed `dK` of tile `m − 1` and `dPᵀ` are under way, while `dS` is
//! computed and written `dV` and `Sᵀ` of tile `m + 1`, while dQ is written `dK`.
//!
//! Numerics: scores, `dP`, `P` and sums in f32; `P` and `dS` are rounded to the element type for their products, the
//! gradients once at the end. Rows beyond a sequence are never multiplied: TMA fills zeros beyond the tensor, and the
//! tails of a packed sequence are cleared in shared memory.

mod loads;
mod operands;
mod products;
mod sums;

use super::{
    gradient::Work,
    hopper::{Half, PANEL_BYTES},
    params::{BackwardParams, PANEL},
};
use crate::pipeline::{Cursor, OneThread, Participants, Ring, Warps, ring_bytes};
use cuda_std::{
    barrier, grid_dependency, kernel,
    launch::ParamAddress,
    mbarrier, register,
    shared::dynamic_base,
    thread,
    wgmma::{Bf16, F16, InFlight, MmaShape},
};
use {loads::produce, products::consume};

/// Own keys: 64 for each of two computing warpgroups.
const KEYS: u32 = 128;
/// All computing threads, and their warps.
const THREADS: u32 = 256;
type Computing = Warps<8>;
/// Stages of dO.
const GRAD_STAGES: u32 = 2;
/// Named barrier of all computing warps.
const TOGETHER: u32 = 1;
/// Those of the warpgroups: the other one has read this one's dS.
const FREE: u32 = 2;
/// Registers of a part of dQ: 64 × 64 a warpgroup.
const PART: usize = 32;
/// Bytes of 8 columns of such a part, and of all.
const CHUNK: u32 = 128 * 16;
const PART_BYTES: u32 = 8 * CHUNK;
/// In place of a tile's index: there are no more tiles. Beside it: no query sees the tile.
const END: u32 = u32::MAX;
const EMPTY: u32 = 1 << 31;
/// What the loading thread says of a step: its tile of queries; whether some key sees it in part only; whether a part of
/// it belongs to others; whether it is the last one.
const TILE: u32 = (1 << 24) - 1;
const MASKED: u32 = 1 << 24;
const RAGGED: u32 = 1 << 25;
const LAST: u32 = 1 << 26;

/// The computing warps, and the threads that add dQ, which arrive by themselves.
enum WithWriters {}
impl Participants for WithWriters {
    const ARRIVALS: u32 = 11;

    #[inline(always)]
    unsafe fn arrive(barrier: u32) {
        // SAFETY: forwarded to the caller.
        unsafe { Computing::arrive(barrier) }
    }
}

/// Where everything lies in shared memory, and the rings that guard it. `S` registers of scores (queries of a tile / 2),
/// `O` of a gradient (padded head dim / 2), `STAGES` of Q.
struct Shared<const S: usize, const O: usize, const STAGES: u32, const PARTS: u32> {
    base: u32,
}

impl<const S: usize, const O: usize, const STAGES: u32, const PARTS: u32> Shared<S, O, STAGES, PARTS> {
    const ROWS: u32 = 2 * S as u32;
    const DIM: u32 = 2 * O as u32;
    const PANELS: u32 = Self::DIM / PANEL;
    const KEY_PANEL: u32 = KEYS * PANEL_BYTES;
    const KEY_BYTES: u32 = Self::PANELS * Self::KEY_PANEL;
    const ROW_PANEL: u32 = Self::ROWS * PANEL_BYTES;
    const ROW_BYTES: u32 = Self::PANELS * Self::ROW_PANEL;
    const STATISTICS_BYTES: u32 = 8 * Self::ROWS;
    const SLOPES_BYTES: u32 = 2 * KEYS * Self::ROWS;
    /// Whether a warpgroup computes 64 rows of dQ, or else 64 columns.
    const BY_ROWS: bool = Self::ROWS == 128;

    const Q: u32 = 2 * Self::KEY_BYTES;
    const GRAD: u32 = Self::Q + STAGES * Self::ROW_BYTES;
    const SLOPES: u32 = Self::GRAD + GRAD_STAGES * Self::ROW_BYTES;
    /// Buffers of dS: with two parts of dQ there is room for one.
    const BUFFERS: u32 = 3 - PARTS;
    const PART: u32 = Self::SLOPES + Self::BUFFERS * Self::SLOPES_BYTES;
    const STATISTICS: u32 = Self::PART + PARTS * 2 * PART_BYTES;
    const BARRIERS: u32 = Self::STATISTICS + STAGES * Self::STATISTICS_BYTES;
    const TURN_RING: u32 =
        Self::BARRIERS + ring_bytes(1) + ring_bytes(PARTS) + ring_bytes(STAGES) + ring_bytes(GRAD_STAGES);
    const SENT_RING: u32 = Self::TURN_RING + ring_bytes(2);
    const SLOT: u32 = Self::SENT_RING + ring_bytes(2);

    /// Guards K, V and the index of their tile.
    #[inline(always)]
    fn own_ring(&self) -> Ring<1, OneThread, WithWriters> {
        Ring::new(self.base + Self::BARRIERS)
    }
    /// Guards both parts of dQ.
    #[inline(always)]
    fn part_ring(&self) -> Ring<PARTS, Computing, OneThread> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1))
    }
    /// Guards Q and its statistics.
    #[inline(always)]
    fn q_ring(&self) -> Ring<STAGES, OneThread, Computing> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1) + ring_bytes(PARTS))
    }
    /// Guards dO.
    #[inline(always)]
    fn grad_ring(&self) -> Ring<GRAD_STAGES, OneThread, Computing> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1) + ring_bytes(PARTS) + ring_bytes(STAGES))
    }
    /// Says that it is this block's turn to add.
    #[inline(always)]
    fn turn_ring(&self) -> Ring<2, OneThread, OneThread> {
        Ring::new(self.base + Self::TURN_RING)
    }
    /// Says that a part of dQ has been added.
    #[inline(always)]
    fn sent_ring(&self) -> Ring<2, OneThread, OneThread> {
        Ring::new(self.base + Self::SENT_RING)
    }
    /// The index of the tile of keys.
    #[inline(always)]
    fn slot(&self) -> u32 {
        self.base + Self::SLOT
    }
    /// What a step is.
    #[inline(always)]
    fn info(&self, at: Cursor<STAGES>) -> u32 {
        self.slot() + 4 + 4 * at.stage()
    }
    /// K (0) and V (1).
    #[inline(always)]
    fn own(&self, which: u32) -> u32 {
        self.base + which * Self::KEY_BYTES
    }
    #[inline(always)]
    fn q(&self, at: Cursor<STAGES>) -> u32 {
        self.base + Self::Q + at.stage() * Self::ROW_BYTES
    }
    #[inline(always)]
    fn grad(&self, at: Cursor<GRAD_STAGES>) -> u32 {
        self.base + Self::GRAD + at.stage() * Self::ROW_BYTES
    }
    /// Base-2 LSE of a tile of queries, then Δ.
    #[inline(always)]
    fn statistics(&self, at: Cursor<STAGES>) -> u32 {
        self.base + Self::STATISTICS + at.stage() * Self::STATISTICS_BYTES
    }
    /// dSᵀ: panels of 64 queries, a row each key.
    #[inline(always)]
    fn slopes(&self, buffer: u32) -> u32 {
        self.base + Self::SLOPES + buffer * Self::SLOPES_BYTES
    }
    /// A warpgroup's part of dQ: chunks of 8 columns, 16 bytes a thread.
    #[inline(always)]
    fn part(&self, at: Cursor<PARTS>, group: u32) -> u32 {
        self.base + Self::PART + (2 * at.stage() + group) * PART_BYTES
    }
}

/// The tiles of queries that a tile of keys meets.
#[inline(always)]
fn steps(params: &BackwardParams, work: &Work, rows: u32) -> (i32, i32) {
    let (begin, end) = work
        .mask
        .tiles(work.first as i32, work.last(work.first, KEYS), rows as i32);
    // A longest sequence that is said to be shorter than one is has no counters for the rest.
    let most = params.query_tiles as i32;
    (begin, if end < most { end } else { most })
}

/// Among them, those that all its keys see whole.
#[inline(always)]
fn whole_steps(work: &Work, rows: u32) -> (i32, i32) {
    if work.first + KEYS > work.own_len {
        (0, 0)
    } else {
        let first = work.first as i32;
        work.mask.whole_tiles(first, first + KEYS as i32 - 1, rows as i32)
    }
}

/// The whole kernel.
#[inline(always)]
unsafe fn backward<E: Half, const S: usize, const O: usize, const STAGES: u32, const PARTS: u32, const HELD: bool>(
    params: &BackwardParams,
    address: ParamAddress,
) where
    InFlight<S>: MmaShape,
    InFlight<O>: MmaShape,
{
    let shared = Shared::<S, O, STAGES, PARTS> { base: dynamic_base() };
    // SAFETY: one thread initialises before all meet; whole warpgroups take each arm; register counts add up.
    unsafe {
        if thread::thread_idx_x() == 0 {
            shared.own_ring().init();
            shared.part_ring().init();
            shared.q_ring().init();
            shared.grad_ring().init();
            shared.turn_ring().init();
            shared.sent_ring().init();
            mbarrier::fence_init();
        }
        barrier::syncthreads();
        grid_dependency::wait();
        // The kernel that rounds dQ finds cleared counters, and may take the multiprocessors of blocks that have ended.
        grid_dependency::launch_dependents();
        let warpgroup = thread::thread_idx_x() / 128;
        if warpgroup == 0 {
            register::setmaxnreg_dec::<40>();
            if thread::thread_idx_x() == 0 {
                produce::<S, O, STAGES, PARTS>(&shared, params, address);
            } else if thread::thread_idx_x() == 32 {
                sums::add(&shared, params);
            } else if thread::thread_idx_x() == 64 {
                sums::await_turns(&shared, params);
            } else if thread::thread_idx_x() == 96 {
                sums::publish(&shared, params);
            }
        } else {
            register::setmaxnreg_inc::<232>();
            consume::<E, S, O, STAGES, PARTS, HELD>(&shared, params, warpgroup - 1);
        }
    }
}

macro_rules! kernels {
    ($($unit:literal: $dim:literal dim, $rows:literal rows, $stages:literal stages, $parts:literal parts, held $held:literal:
        $f16:ident $bf16:ident;)*) => {$(
        kernels! { @one $unit $dim $rows $stages $parts $held $f16 F16 }
        kernels! { @one $unit $dim $rows $stages $parts $held $bf16 Bf16 }
    )*};
    (@one $unit:literal $dim:literal $rows:literal $stages:literal $parts:literal $held:literal $name:ident $element:ident) => {
        kernel! {
            /// Attention backward, all gradients; see [`BackwardParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors, the maps were encoded for this kernel's boxes; statistics have been
            ///   written and counters cleared by `attention_backward_delta_*`.
            /// - Dynamic shared memory of `BackwardTiles::shared_bytes_once`; any grid.
            #[launch(threads = 384, min_blocks = 1, tensor_core = 1, param_align = 64)]
            #[cfg(unit = $unit)]
            pub fn $name(params: BackwardParams, address: ParamAddress) {
                backward::<$element, { $rows / 2 }, { $dim / 2 }, $stages, $parts, $held>(&params, address)
            }
        }
    };
}

// The same tiles as `params::BACKWARD_ONCE`.
kernels! {
    "attention_backward_d64": 64 dim, 128 rows, 3 stages, 2 parts, held true:
        attention_backward_qkv_f16_d64 attention_backward_qkv_bf16_d64;
    "attention_backward_d128": 128 dim, 64 rows, 3 stages, 2 parts, held false:
        attention_backward_qkv_f16_d128 attention_backward_qkv_bf16_d128;
}
