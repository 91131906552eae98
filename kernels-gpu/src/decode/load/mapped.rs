//! A warp's copies by tensor maps: one lane asks for a step's keys and values.

use super::super::{KEYS, finish::Layout, stream::Engine};
use super::{Loader, copy};
use crate::paging::Place;
use cuda_std::{
    barrier::{fence_proxy_async_shared, syncwarp},
    cp_async, mbarrier, thread, tma, warp,
};

/// A warp's waits for its stages: each has a barrier, whose phase changes with every turn of the ring.
pub struct Waits {
    barriers: u32,
    phase: u32,
}

/// The barrier of the stage at `stage`.
#[inline(always)]
fn barrier_of<E: Engine>(stage: u32) -> u32 {
    let number = (stage - E::base() - E::SHAPE.stages_at()) / const { E::SHAPE.stage_bytes() };
    E::base() + E::SHAPE.barriers_at() + number * 8
}

/// Makes the barriers of a warp's stages, from `ring` on.
///
/// # Safety
/// - The warp calls this together, before it loads anything.
#[inline(always)]
pub unsafe fn begin<E: Engine>(ring: u32) -> Waits {
    let barriers = barrier_of::<E>(ring);
    if E::SHAPE.mapped {
        // SAFETY: forwarded to the caller; the barriers are the warp's own.
        unsafe {
            if thread::lane_id() == 0 {
                let mut stage = 0;
                while stage < E::SHAPE.stages {
                    mbarrier::init(barriers + stage * 8, 1);
                    stage += 1;
                }
                mbarrier::fence_init();
            }
            syncwarp(warp::FULL);
        }
    }
    Waits { barriers, phase: 0 }
}

impl Waits {
    /// Waits for stage number `stage` of the ring, the next one; a [`syncwarp`] follows.
    ///
    /// # Safety
    /// - The warp calls this together; the stage is loaded.
    #[inline(always)]
    pub unsafe fn next<E: Engine>(&mut self, stage: u32) {
        // SAFETY: forwarded to the caller.
        unsafe {
            mbarrier::wait_parity(self.barriers + stage * 8, self.phase);
            // The lanes' own copies at the ends of a segment do not arrive on the barrier.
            cp_async::wait_all();
        }
        if stage + 1 == E::SHAPE.stages {
            self.phase ^= 1;
        }
    }
}

impl Loader<'_> {
    /// Looks up where the 16 tokens of the next step are, which lie together.
    #[inline(always)]
    unsafe fn find<E: Engine>(&mut self) {
        self.next = Place::NONE;
        // SAFETY: of the segment.
        let [batch, _, begin, end] = unsafe { self.span::<E>() };
        if self.steps != 0 && self.token + KEYS > begin && self.token < end {
            // SAFETY: the sequence has one of these tokens, and the others would be in the same page.
            self.next = unsafe { self.place(batch, self.token) };
        }
    }

    /// [`load`](Loader::load), by maps.
    ///
    /// # Safety
    /// - As for [`load`](Loader::load).
    #[inline(always)]
    pub unsafe fn load_mapped<E: Engine>(&mut self, stage: u32) {
        // A row is one span of the maps' swizzle, which permutes chunks as the other kernels do.
        const {
            assert!(!E::SHAPE.mapped || E::SHAPE.keys == KEYS && E::SHAPE.row_bytes == 128);
            assert!(!E::SHAPE.mapped || Layout::<E>::END <= E::SHAPE.barriers_at());
        };
        let values_at = const { KEYS * E::SHAPE.row_bytes };
        // SAFETY: forwarded to the caller.
        unsafe {
            if self.steps != 0 {
                let leader = thread::lane_id() == 0;
                let full = barrier_of::<E>(stage);
                let (token, place) = (self.token, self.next);
                let [_, head, begin, end] = self.span::<E>();
                if token >= begin && token + KEYS <= end {
                    if self.patched != 0 {
                        self.patched -= 1;
                        fence_proxy_async_shared();
                        syncwarp(warp::FULL);
                    }
                    mbarrier::arrive_expect_tx_if(full, 2 * values_at, leader);
                    let at = [0, place.slot as i32, head as i32, place.page as i32];
                    tma::load_4d_if(stage, self.maps[0], at, full, leader);
                    tma::load_4d_if(stage + values_at, self.maps[1], at, full, leader);
                } else {
                    self.patched = E::SHAPE.stages;
                    let chunks = const { E::SHAPE.row_bytes / 16 };
                    let params = self.params;
                    let mut index = thread::lane_id();
                    while index < KEYS * chunks {
                        let (key, chunk) = (index / chunks, index % chunks);
                        let live = token + key >= begin && token + key < end;
                        let mut from = [params.k, params.v];
                        if live {
                            let units = |steps: &[u32; 3]| {
                                place.page * steps[0] + (place.slot + key) * steps[1] + head * steps[2] + chunk
                            };
                            from[0] += units(&params.k_steps) as u64 * 16;
                            from[1] += units(&params.v_steps) as u64 * 16;
                        }
                        let to = stage + key * E::SHAPE.row_bytes + (chunk ^ E::swizzle(key)) * 16;
                        copy(to, from[0], live && chunk * 16 < params.head_dim * 2);
                        copy(to + values_at, from[1], live && chunk * 16 < params.value_dim * 2);
                        index += 32;
                    }
                    mbarrier::arrive_if(full, leader);
                }
                self.token += const { E::SHAPE.warps * E::SHAPE.keys };
                self.steps -= 1;
            }
            if self.steps == 0 {
                self.advance::<E>();
            }
            self.find::<E>();
        }
    }
}
