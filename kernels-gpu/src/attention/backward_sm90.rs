//! Attention backward on Hopper: one warpgroup loads by TMA, two compute by wgmma.
//!
//! See [`gradient`](super::gradient) for the kernels: one owns keys, another queries. A computing warpgroup owns 64
//! rows of the block's 128; `S' = own · otherᵀ` and `dP'` are one product each from shared memory, and what becomes of
//! them, `P'` and `dS'`, are the A operands of the products that follow where they are. While a tile's exponentials are
//! computed `dP'` is under way, and `P'·dO` while `dS'` is; in what gaps are left one warpgroup computes for the other.
//! Where dK and dV do not fit the registers together (head dim 256) they have a kernel each. There Q or K and dO or V,
//! of which shared memory has room for different numbers of tiles, have rings of their own.
//!
//! Numerics: scores, `dP`, `P` and sums in f32; `P` and `dS` are rounded to the element type for their products, the
//! gradients once at the end. Rows beyond a sequence are never multiplied: TMA fills zeros beyond the tensor, and the
//! tail of a packed sequence is cleared in shared memory.

mod loads;
mod products;

use super::{
    gradient::Work,
    hopper::{Half, PANEL_BYTES},
    params::{BackwardParams, PANEL},
};
use crate::pipeline::{Cursor, OneThread, Ring, Warps, ring_bytes};
use crate::tile::opaque::opaque;
use cuda_std::{
    barrier, grid_dependency, kernel,
    launch::ParamAddress,
    mbarrier, register,
    shared::dynamic_base,
    thread,
    wgmma::{Bf16, F16, InFlight, MmaShape},
};
use {
    loads::{produce, stage_statistics},
    products::consume,
};

/// Own rows of a block: 64 for each of two computing warpgroups.
const ROWS: u32 = 128;
/// All computing threads, and their warps.
const THREADS: u32 = 256;
type Computing = Warps<8>;
/// Named barrier of all computing warps.
const TOGETHER: u32 = 1;

/// Where the operands lie in shared memory, and the rings that guard them: `OWN` matrices of own rows (dV has no use for V),
/// `STAGES` tiles of Q or K, `LATER` of dO or V.
struct Shared<const S: usize, const O: usize, const OWN: u32, const STAGES: u32, const LATER: u32> {
    base: u32,
}

impl<const S: usize, const O: usize, const OWN: u32, const STAGES: u32, const LATER: u32>
    Shared<S, O, OWN, STAGES, LATER>
{
    const COLUMNS: u32 = 2 * S as u32;
    const DIM: u32 = 2 * O as u32;
    const PANELS: u32 = Self::DIM / PANEL;
    const OWN_PANEL: u32 = ROWS * PANEL_BYTES;
    const OWN_BYTES: u32 = Self::PANELS * Self::OWN_PANEL;
    const OTHER_PANEL: u32 = Self::COLUMNS * PANEL_BYTES;
    const OTHER_BYTES: u32 = Self::PANELS * Self::OTHER_PANEL;
    /// Whether both streamed tiles of a step share a place in a ring: there is room for as many of either.
    const JOINT: bool = STAGES == LATER;
    const OTHER: u32 = OWN * Self::OWN_BYTES;
    const STATISTICS: u32 = Self::OTHER + (STAGES + LATER) * Self::OTHER_BYTES;
    const BARRIERS: u32 = Self::STATISTICS + STAGES * 8 * Self::COLUMNS;

    /// Guards the two own matrices.
    #[inline(always)]
    fn own_ring(&self) -> Ring<1, OneThread, Computing> {
        Ring::new(self.base + Self::BARRIERS)
    }
    /// Guards the streamed tiles of Q or K.
    #[inline(always)]
    fn ring(&self) -> Ring<STAGES, OneThread, Computing> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1))
    }
    /// Guards their statistics.
    #[inline(always)]
    fn statistics_ring(&self) -> Ring<STAGES, Warps<1>, Computing> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1) + ring_bytes(STAGES))
    }
    /// Guards the streamed tiles of dO or V.
    #[inline(always)]
    fn later_ring(&self) -> Ring<LATER, OneThread, Computing> {
        Ring::new(self.base + Self::BARRIERS + ring_bytes(1) + 2 * ring_bytes(STAGES))
    }
    /// Own rows of K or Q (0), of V or dO (1).
    #[inline(always)]
    fn own(&self, which: u32) -> u32 {
        self.base + which * Self::OWN_BYTES
    }
    /// A streamed tile of Q or K.
    #[inline(always)]
    fn other(&self, at: Cursor<STAGES>) -> u32 {
        self.base + Self::OTHER + at.stage() * Self::OTHER_BYTES
    }
    /// A streamed tile of dO or V.
    #[inline(always)]
    fn later(&self, at: Cursor<LATER>) -> u32 {
        self.base + Self::OTHER + (STAGES + at.stage()) * Self::OTHER_BYTES
    }
    /// LSE of a streamed tile of queries (0), Δ (1).
    #[inline(always)]
    fn statistics(&self, at: Cursor<STAGES>, which: u32) -> u32 {
        self.base + Self::STATISTICS + (2 * at.stage() + which) * 4 * Self::COLUMNS
    }
}

/// The block's tile, found again wherever it is needed rather than kept in registers.
#[inline(always)]
unsafe fn own_work<const KEYS: bool>(params: &BackwardParams) -> Work {
    // SAFETY: `params` are those of the launch.
    unsafe {
        let (index, all) = (opaque(thread::block_idx_x()), opaque(params.attention.flags));
        Work::by_flags::<KEYS>(index, params, all, ROWS)
    }
}

/// The tiles of `columns` streamed rows that `rows` own rows from `first` on need.
#[inline(always)]
fn tiles(work: &Work, first: u32, rows: u32, columns: u32) -> (i32, i32) {
    if first >= work.own_len {
        // Of a sequence that is shorter than the longest one.
        return (0, 0);
    }
    work.mask.tiles(first as i32, work.last(first, rows), columns as i32)
}

/// The whole kernel: `S` registers of scores (streamed rows of a tile / 2), `O` of a gradient (padded head dim / 2).
/// Own rows are `KEYS` or queries; it sums dQ or dK (`FIRST`), and dV (`SECOND`).
#[inline(always)]
unsafe fn backward<
    E: Half,
    const S: usize,
    const O: usize,
    const OWN: u32,
    const STAGES: u32,
    const LATER: u32,
    const KEYS: bool,
    const FIRST: bool,
    const SECOND: bool,
>(
    params: &BackwardParams,
    address: ParamAddress,
) where
    InFlight<S>: MmaShape,
    InFlight<O>: MmaShape,
{
    let shared = Shared::<S, O, OWN, STAGES, LATER> { base: dynamic_base() };
    // SAFETY: one thread initialises before all meet; whole warpgroups take each arm; register counts add up.
    unsafe {
        // The kernels of a problem need nothing of one another: the next one takes the multiprocessors that this one's last
        // tiles leave idle. Each ends after the one before, so that the last one's end is that of all.
        grid_dependency::launch_dependents();
        if thread::thread_idx_x() == 0 {
            shared.own_ring().init();
            shared.ring().init();
            shared.statistics_ring().init();
            shared.later_ring().init();
            mbarrier::fence_init();
        }
        barrier::syncthreads();
        let warpgroup = thread::thread_idx_x() / 128;
        if warpgroup == 0 {
            register::setmaxnreg_dec::<40>();
            if thread::thread_idx_x() == 0 {
                produce::<S, O, OWN, STAGES, LATER, KEYS>(&shared, params, address);
            } else if KEYS && thread::thread_idx_x() / 32 == 1 {
                stage_statistics::<S, O, OWN, STAGES, LATER>(&shared, params);
            }
        } else {
            register::setmaxnreg_inc::<232>();
            consume::<E, S, O, OWN, STAGES, LATER, KEYS, FIRST, SECOND>(&shared, params, warpgroup - 1);
        }
        grid_dependency::wait();
    }
}

macro_rules! kernels {
    ($($unit:literal: $dim:literal dim, $other:literal other, own $own:literal, $stages:literal and $later:literal stages,
        keys $keys:literal, first $first:literal, second $second:literal: $f16:ident $bf16:ident;)*) => {$(
        kernels! { @one $unit $dim $other $own $stages $later $keys $first $second $f16 F16 }
        kernels! { @one $unit $dim $other $own $stages $later $keys $first $second $bf16 Bf16 }
    )*};
    (@one $unit:literal $dim:literal $other:literal $own:literal $stages:literal $later:literal
        $keys:literal $first:literal $second:literal $name:ident $element:ident) => {
        kernel! {
            /// Attention backward; see [`BackwardParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors, the maps were encoded for this kernel's boxes; Δ has been written.
            /// - Dynamic shared memory of `BackwardTiles::shared_bytes_sm90`; a grid of one block a tile.
            #[launch(threads = 384, min_blocks = 1, tensor_core = 1, param_align = 64)]
            #[cfg(unit = $unit)]
            pub fn $name(params: BackwardParams, address: ParamAddress) {
                backward::<$element, { $other / 2 }, { $dim / 2 }, $own, $stages, $later, $keys, $first, $second>(
                    &params, address,
                )
            }
        }
    };
}

// The same tiles as `params::BACKWARD_SM90`.
kernels! {
    "attention_backward_d64": 64 dim, 96 other, own 2, 3 and 3 stages, keys true, first true, second true:
        attention_backward_kv_f16_d64 attention_backward_kv_bf16_d64;
    "attention_backward_d64": 64 dim, 128 other, own 2, 3 and 3 stages, keys false, first true, second false:
        attention_backward_q_f16_d64 attention_backward_q_bf16_d64;
    "attention_backward_d128": 128 dim, 64 other, own 2, 3 and 3 stages, keys true, first true, second true:
        attention_backward_kv_f16_d128 attention_backward_kv_bf16_d128;
    "attention_backward_d128": 128 dim, 128 other, own 2, 2 and 2 stages, keys false, first true, second false:
        attention_backward_q_f16_d128 attention_backward_q_bf16_d128;
    "attention_backward_d256": 256 dim, 64 other, own 2, 2 and 1 stages, keys true, first true, second false:
        attention_backward_k_f16_d256 attention_backward_k_bf16_d256;
    "attention_backward_d256": 256 dim, 64 other, own 1, 2 and 3 stages, keys true, first false, second true:
        attention_backward_v_f16_d256 attention_backward_v_bf16_d256;
    "attention_backward_d256": 256 dim, 64 other, own 2, 2 and 1 stages, keys false, first true, second false:
        attention_backward_q_f16_d256 attention_backward_q_bf16_d256;
}
