//! The weights of a warp's slice of k, tile after tile, by TMA into a ring of its own: what the kernels whose blocks stay
//! share.

use super::params::*;
use core::mem::offset_of;
use cuda_std::{launch::ParamAddress, mbarrier, thread, tma};

/// Loads of this warp, into stage after stage.
pub struct SliceLoads {
    map: *const u8,
    /// Where the ring lies.
    pub ring: u32,
    /// The barriers of its stages.
    pub barriers: u32,
    stages: u32,
    /// First load of the slice.
    pub first: u32,
    /// Loads of the slice.
    pub count: u32,
    gated: bool,
    batch: i32,
    /// Tile of the next load.
    pub tile: u32,
    /// Place of the next load in the slice.
    pub step: u32,
    /// Stage of the next load.
    pub stage: u32,
}

impl SliceLoads {
    /// Those of warp `warp` of the block; rings of all warps lie at `rings`, their barriers at `barriers`.
    #[inline(always)]
    pub fn new(params: &StreamParams, address: ParamAddress, warp: u32, rings: u32, barriers: u32) -> Self {
        let linear = &params.linear;
        let chunks = (linear.k as u32).div_ceil(ROWS_DEPTH);
        let first = warp * params.depth;
        let end = if first + params.depth < chunks {
            first + params.depth
        } else {
            chunks
        };
        let count = if first < end { end - first } else { 0 };
        Self {
            map: address.tensor_map(offset_of!(StreamParams, w_map)),
            ring: rings + warp * params.stages * ROWS8_STAGE,
            barriers: barriers + warp * params.stages * 8,
            stages: params.stages,
            first,
            count,
            gated: linear.gated != 0,
            batch: if linear.w_batch_stride == 0 {
                0
            } else {
                thread::block_idx_z() as i32
            },
            // A warp without a slice has nothing to load.
            tile: if count > 0 {
                thread::block_idx_x()
            } else {
                linear.tiles_n
            },
            step: 0,
            stage: 0,
        }
    }

    /// Initialises the barriers and asks for the map.
    ///
    /// # Safety
    /// - One lane calls this; a fence and a meeting of the warp follow.
    #[inline(always)]
    pub unsafe fn init(&self) {
        // SAFETY: forwarded to the caller.
        unsafe {
            tma::prefetch_tensormap(self.map);
            let mut stage = 0;
            while stage < self.stages {
                mbarrier::init(self.barriers + stage * 8, 1);
                stage += 1;
            }
        }
    }

    /// Starts the next load, if there is one; in the first tile its barrier expects `beside` bytes more.
    ///
    /// # Safety
    /// - The warp calls this, one `leader` among its lanes; the stage is free.
    #[inline(always)]
    pub unsafe fn next(&mut self, tiles: u32, leader: bool, beside: u32) {
        if self.tile >= tiles {
            return;
        }
        let k = ((self.first + self.step) * ROWS_DEPTH) as i32;
        let to = self.ring + self.stage * ROWS8_STAGE;
        let full = self.barriers + self.stage * 8;
        let more = if beside != 0 && self.tile == thread::block_idx_x() {
            beside
        } else {
            0
        };
        // SAFETY: forwarded to the caller.
        unsafe {
            mbarrier::arrive_expect_tx_if(full, ROWS8_STAGE + more, leader);
            if self.gated {
                tma::load_5d_if(to, self.map, [k, 0, 0, self.tile as i32, self.batch], full, leader);
            } else {
                let column = (self.tile * STREAMING_NK_COLUMNS) as i32;
                tma::load_3d_if(to, self.map, [k, column, self.batch], full, leader);
            }
        }
        self.stage = if self.stage + 1 == self.stages {
            0
        } else {
            self.stage + 1
        };
        self.step += 1;
        if self.step == self.count {
            self.step = 0;
            self.tile += thread::grid_dim_x();
        }
    }
}
