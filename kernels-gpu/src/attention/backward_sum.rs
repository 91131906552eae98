//! After the kernel of all gradients, on Hopper beside its last tiles: dQ scaled and rounded.

#[cfg(tier = "sm_80")]
use super::backward_products::store;
#[cfg(tier = "sm_90a")]
use super::hopper::{Half, store_rows};
use super::{
    backward_turns as turns,
    params::{BackwardParams, flags},
    schedule::{Sequence, Tile},
};
#[cfg(tier = "sm_80")]
use crate::tile::{
    element::{Bf16, F16},
    mma::Mma as Half,
};
#[cfg(tier = "sm_90a")]
use cuda_std::{
    atomic::{self, Acquire, Gpu},
    barrier, grid_dependency,
    wgmma::{Bf16, F16},
};
use cuda_std::{global, kernel, thread};

/// Rows of a block: those of a warpgroup's accumulator.
const ROWS: u32 = 64;

/// Rounds 64 rows, `O` registers a thread (padded head dim / 2) in the layout of accumulators.
#[inline(always)]
unsafe fn sum<E: Half, const O: usize, const KEYS: u32>(params: &BackwardParams) {
    let forward = &params.attention;
    let thread = thread::thread_idx_x();
    // SAFETY: `params` are those of the launch; whole warps store.
    unsafe {
        let tile = Tile::at(thread::block_idx_x(), forward, ROWS);
        if tile.row >= tile.seq_q {
            ended();
            return;
        }
        core::hint::assert_unchecked(params.query_tile != 0);
        let sequence = Sequence::at(forward, tile.batch);
        // On Hopper a tile of queries has all rows of a block.
        let row = if cfg!(tier = "sm_90a") {
            tile.row
        } else {
            tile.row + thread / 32 * 16
        };
        let (begin, end) = if row < tile.seq_q {
            turns::of_queries::<KEYS>(params, &sequence, row / params.query_tile)
        } else {
            (0, 0)
        };
        let mut values = [0.0; O];
        // Rows without keys have got nothing.
        if begin < end {
            #[cfg(tier = "sm_90a")]
            {
                let counter = turns::counter(params, tile.batch, tile.head) + row / params.query_tile;
                // Of a sequence that is longer than the longest is said to be, tiles are left out.
                let end = if end < params.key_tiles as i32 {
                    end
                } else {
                    params.key_tiles as i32
                };
                arrived(turns::address(params, counter), end - begin);
            }
            let place = turns::place(params, tile.batch, tile.start_q, tile.head);
            let row = place as u64 * params.query_tile as u64 + row as u64;
            let mut from = params.dq_sum + 4 * row * forward.head_dim as u64;
            // Hopper's bulk reductions want a thread's registers together, those of older tiers a warp's.
            if cfg!(tier = "sm_90a") {
                from += 16 * thread as u64;
            } else {
                from += 4 * thread::lane_id() as u64;
            }
            let mut i = 0;
            while i < O / 4 {
                if 8 * (i as u32) < forward.head_dim {
                    let four = if cfg!(tier = "sm_90a") {
                        global::ld_cg((from + i as u64 * 4 * 8 * ROWS as u64) as *const [f32; 4])
                    } else {
                        [0, 1, 2, 3].map(|j| global::ld_nc_no_allocate((from + i as u64 * 512 + 128 * j) as *const f32))
                    };
                    let mut j = 0;
                    while j < 4 {
                        values[4 * i + j] = four[j];
                        j += 1;
                    }
                }
                i += 1;
            }
        }
        let plane = if forward.flags & flags::VARLEN != 0 {
            0
        } else {
            tile.batch as u64
        };
        let to = (
            params.dq,
            &params.dq_strides,
            (plane, tile.start_q as u64, tile.head as u64),
        );
        let place = (tile.row + thread / 32 * 16, tile.seq_q);
        #[cfg(tier = "sm_90a")]
        store_rows::<E, O>(to, place, forward.head_dim, &values, forward.scale);
        #[cfg(tier = "sm_80")]
        store::<E, O>(to, place, (0, forward.head_dim), &values, forward.scale);
        ended();
    }
}

/// Waits until a tile of dQ is complete: on Hopper this kernel starts where blocks of the one before have run out of work.
///
/// # Safety
/// - The whole block calls this, after the counters have been cleared; somebody is at work on the tile.
#[cfg(tier = "sm_90a")]
#[inline(always)]
unsafe fn arrived(counter: *mut u32, whole: i32) {
    // SAFETY: forwarded to the caller.
    unsafe {
        if thread::thread_idx_x() == 0 {
            while (atomic::load_u32::<Acquire, Gpu>(counter) as i32) < whole {
                core::arch::asm!("nanosleep.u32 500;", options(nomem, nostack));
            }
        }
        barrier::syncthreads();
    }
}

/// What follows in the stream waits for this kernel alone, so this one waits for the one before it.
#[inline(always)]
unsafe fn ended() {
    #[cfg(tier = "sm_90a")]
    if thread::block_idx_x() + 1 == thread::grid_dim_x() {
        // SAFETY: waits.
        unsafe { grid_dependency::wait() };
    }
}

macro_rules! kernels {
    ($($unit:literal: $dim:literal dim, $keys:literal keys: $f16:ident $bf16:ident;)*) => {$(
        kernels! { @one $unit $dim $keys $f16 F16 }
        kernels! { @one $unit $dim $keys $bf16 Bf16 }
    )*};
    (@one $unit:literal $dim:literal $keys:literal $name:ident $element:ident) => {
        kernel! {
            /// dQ from its sums; see [`BackwardParams`].
            ///
            /// # Safety
            /// - The parameters describe live tensors; `attention_backward_qkv_*` has summed dQ.
            /// - A grid of one block for 64 rows.
            #[launch(threads = 128, param_align = 64)]
            #[cfg(unit = $unit)]
            pub fn $name(params: BackwardParams) {
                sum::<$element, { $dim / 2 }, $keys>(&params)
            }
        }
    };
}

kernels! {
    "attention_backward_d64": 64 dim, 128 keys: attention_backward_sum_f16_d64 attention_backward_sum_bf16_d64;
    "attention_backward_d128": 128 dim, 128 keys: attention_backward_sum_f16_d128 attention_backward_sum_bf16_d128;
}
#[cfg(tier = "sm_80")]
kernels! {
    "attention_backward_d256": 256 dim, 64 keys: attention_backward_sum_f16_d256 attention_backward_sum_bf16_d256;
}
