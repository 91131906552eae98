//! A block's way through its keys, whatever computes with them.

use super::{
    DecodeParams, Shape, finish,
    fresh::{self, Quad},
    load::{Loader, wait},
    plan::{self, Cursor, Segment},
    work::Work,
};
use crate::tile::opaque::opaque;
use cuda_std::{
    barrier::{syncthreads, syncwarp},
    shared, thread, warp,
};

/// The tier, as [`Shape::new`] wants it.
pub const SM: u32 = if cfg!(tier = "sm_75") {
    75
} else if cfg!(tier = "sm_80") {
    80
} else {
    90
};

/// What computes with keys and values in shared memory: a warp's part of a piece.
pub trait Engine: Sized {
    /// Cut of the work.
    const SHAPE: Shape;
    /// Bytes of a cache element.
    const CACHE_BYTES: u32;
    /// Most rows of a tile in use.
    const ROWS: u32 = Self::SHAPE.rows;
    /// This thread's group of warps.
    #[inline(always)]
    fn group() -> u32 {
        if Self::SHAPE.groups > 1 {
            // Nobody has a register for it.
            opaque(thread::thread_idx_x()) / const { Self::SHAPE.warps * 32 }
        } else {
            0
        }
    }

    /// This thread's number in its group.
    #[inline(always)]
    fn thread() -> u32 {
        if Self::SHAPE.groups > 1 {
            thread::thread_idx_x() % (Self::SHAPE.warps * 32)
        } else {
            thread::thread_idx_x()
        }
    }

    /// This warp's number in its group.
    ///
    /// # Safety
    /// - The warp calls this together.
    #[inline(always)]
    unsafe fn warp() -> u32 {
        // SAFETY: forwarded to the caller.
        let warp = unsafe { thread::uniform_warp_idx() };
        if Self::SHAPE.groups > 1 {
            warp % Self::SHAPE.warps
        } else {
            warp
        }
    }

    /// Where the group's shared memory begins.
    #[inline(always)]
    fn base() -> u32 {
        Self::base_of(Self::group())
    }

    /// Where a group's shared memory begins.
    #[inline(always)]
    fn base_of(group: u32) -> u32 {
        shared::dynamic_base() + group * const { Self::SHAPE.group_bytes() }
    }

    /// A barrier of the group.
    ///
    /// # Safety
    /// - All threads of the group call this together.
    #[inline(always)]
    unsafe fn sync() {
        // SAFETY: forwarded to the caller.
        unsafe {
            if Self::SHAPE.groups > 1 {
                cuda_std::barrier::sync(1 + Self::group(), Self::SHAPE.warps * 32);
            } else {
                syncthreads();
            }
        }
    }

    /// What a row's 16-byte chunks are permuted by: their number is XORed with this for key number `key`.
    #[inline(always)]
    fn swizzle(key: u32) -> u32 {
        if Self::SHAPE.row_bytes == 64 {
            key / 2 % 4
        } else {
            key % 8
        }
    }

    /// Puts queries into shared memory, where the shape has room for them; barriers lie around it.
    ///
    /// # Safety
    /// - All threads of the block call this together.
    unsafe fn stage_queries(params: &DecodeParams);

    /// Where [`fresh`](super::fresh) puts four elements of a row's query in shared memory: on the stages of nobody, where the
    /// shape has no room of its own for queries.
    fn query_at(params: &DecodeParams, row: u32, column: u32) -> u32;

    /// Takes the queries: from where [`fresh`](super::fresh) put them, when `staged`.
    ///
    /// # Safety
    /// - All threads of the block call this together, behind the barrier.
    unsafe fn new(params: &DecodeParams, work: &Work, staged: bool) -> Self;

    /// Attends to the keys of a step from token `first`.
    ///
    /// # Safety
    /// - The warp calls this together; `keys` and `values` are shared addresses of as many rows each.
    unsafe fn step(&mut self, params: &DecodeParams, keys: u32, values: u32, first: i32);

    /// The same where warps are [united](Shape::united): `feed` starts copies into the stage that was read before, which all
    /// warps have read once they have met.
    ///
    /// # Safety
    /// - As for [`step`](Engine::step), and all warps of the block call this together, with the same stage.
    #[inline(always)]
    unsafe fn step_united(&mut self, _params: &DecodeParams, _keys: u32, _first: i32, _feed: impl FnOnce()) {}

    /// Folds a piece, or writes it to the workspace, where warps are [united](Shape::united); behind the `last` piece of a
    /// `whole` tile, writes output and LSE.
    ///
    /// # Safety
    /// - All threads of the block call this together.
    #[inline(always)]
    unsafe fn fold<O: Quad>(&mut self, _params: &DecodeParams, _work: &Work, _whole: bool, _piece: u32, _last: bool) {}

    /// Writes maximum and sum of the rows in use for [`finish`].
    ///
    /// # Safety
    /// - The warp calls this together; `rows` is the number of rows in use.
    unsafe fn put_statistics(&self, rows: u32);

    /// Writes the output of turn `turn` of the rows in use, as many as [`Shape`] says, for [`finish`].
    ///
    /// # Safety
    /// - The warp calls this together; `rows` is the number of rows in use; `turn` is known to the compiler.
    unsafe fn put_output(&self, turn: usize, rows: u32);

    /// Forgets the keys seen.
    fn clear(&mut self);
}

/// A decode kernel: a block attends all its segments; see [`plan`].
///
/// # Safety
/// - The parameters describe the tensors; shared memory is [`Shape::shared_bytes`].
#[inline(always)]
pub unsafe fn run<E: Engine, O: Quad, const N: usize>(params: &DecodeParams) {
    // SAFETY: forwarded to the caller.
    unsafe { run_by::<E, O, N>(params, [core::ptr::null(); 2]) }
}

/// The same, with tensor maps of keys and values where the shape is [mapped](Shape::mapped).
///
/// # Safety
/// - As for [`run`]; the maps are those of the launch.
#[inline(always)]
pub unsafe fn run_by<E: Engine, O: Quad, const N: usize>(params: &DecodeParams, maps: [*const u8; 2]) {
    unsafe {
        #[cfg(tier = "sm_90a")]
        {
            if E::SHAPE.alone {
                super::load::prefetch::<E>(params);
            }
            // Set up while the kernel before this one still ran; the merging kernel is set up while this one runs.
            cuda_std::grid_dependency::wait();
            cuda_std::grid_dependency::launch_dependents();
            if super::cluster::is_on::<E>(params) {
                cuda_std::barrier::cluster_arrive_relaxed();
            }
            if E::SHAPE.groups > 1 && super::joiner::begin::<E>() {
                super::joiner::run::<E, O>(params);
                return;
            }
        }
        let Some(cursor) = plan::begin::<E>(params) else {
            return;
        };
        let warp = E::warp();
        // What is seldom needed stands in shared memory, a copy a warp: the registers are for keys on their way.
        let own_cursor = || plan::place::<E>(4 + opaque(E::thread()) / 32);
        let own_work = || plan::place::<E>(8 + opaque(E::thread()) / 32 * 2);
        cursor.save(plan::place::<E>(warp));
        cursor.save(own_cursor());
        syncwarp(warp::FULL);
        let mut loader = Loader::new(params, maps);
        let ring = E::base() + E::SHAPE.stages_at() + warp * E::SHAPE.stages * E::SHAPE.stage_bytes();
        #[cfg(tier = "sm_90a")]
        let mut waits = super::load::mapped::begin::<E>(ring);
        // The stage that is read next, the one that is filled next, and the loads before the first wait: one that only
        // looks up, and one a stage. They stand once in the code, since a lone sequence waits for every instruction to be
        // fetched; but apart where registers are few.
        let (mut read, mut fill, mut ahead) = (0, E::SHAPE.stages - 1, E::SHAPE.stages);
        if !(E::SHAPE.folds && SM != 75) {
            while ahead > 0 {
                loader.load::<E>(ring + fill * E::SHAPE.stage_bytes());
                fill = if fill + 1 == E::SHAPE.stages { 0 } else { fill + 1 };
                ahead -= 1;
            }
        }
        #[cfg(tier = "sm_90a")]
        let mut alone = super::cluster::is_on::<E>(params);
        let block_keys = const { E::SHAPE.warps * E::SHAPE.keys };
        #[cfg(tier = "sm_90a")]
        let mut filled = 0;
        loop {
            let mut cursor = Cursor::load(own_cursor());
            syncwarp(warp::FULL);
            let Some(segment) = cursor.next::<E>(params) else {
                break;
            };
            cursor.save(own_cursor());
            segment.save::<E>(params, own_work());
            syncwarp(warp::FULL);
            let own_size = segment.work.size;
            let mut steps = segment.steps;
            let mut first = segment.token::<E>(0, warp);
            let mut fold = finish::Fold::<O, N>::new();
            // All else that a tile needs; copies are under way meanwhile.
            let prepare = || {
                let (work, _) = Segment::load(own_work());
                finish::begin::<E, O>(params, &work);
                E::sync();
                let staged = fresh::is_on::<E>(params);
                if staged {
                    // The join of the tile before is behind a barrier, and so must be the next one.
                    let [begin, end, first] = Segment::tokens(own_work());
                    let work = Work { fresh: first, ..work };
                    fresh::stage::<E, O>(params, &work, begin, end);
                    E::sync();
                } else if E::SHAPE.query_bytes != 0 {
                    E::stage_queries(params);
                    E::sync();
                }
                let engine = E::new(params, &work, staged);
                if staged && E::SHAPE.query_bytes == 0 {
                    E::sync();
                }
                Some(engine)
            };
            let mut engine = None;
            if !(E::SHAPE.folds && SM != 75) {
                engine = prepare();
                // Turing has not one register to spare.
                #[cfg(tier = "sm_75")]
                {
                    steps = shared::ld(own_work() + 44);
                }
            }
            loop {
                // A tile that sees no key has one piece without a step.
                let mut boundary = steps == 0;
                if steps > 0 {
                    loop {
                        // Warps that are united load once they have met.
                        if E::SHAPE.united && ahead == 0 {
                            break;
                        }
                        loader.load::<E>(ring + fill * E::SHAPE.stage_bytes());
                        fill = if fill + 1 == E::SHAPE.stages { 0 } else { fill + 1 };
                        if ahead == 0 {
                            break;
                        }
                        ahead -= 1;
                    }
                }
                if E::SHAPE.folds && SM != 75 && engine.is_none() {
                    engine = prepare();
                    // All blocks of the cluster have begun: their memory may be written.
                    #[cfg(tier = "sm_90a")]
                    if alone {
                        alone = false;
                        cuda_std::barrier::cluster_wait();
                    }
                }
                // SAFETY: the first turn made it.
                let engine: &mut E = engine.as_mut().unwrap_unchecked();
                if steps > 0 {
                    if E::SHAPE.mapped {
                        #[cfg(tier = "sm_90a")]
                        waits.next::<E>(read);
                    } else {
                        wait::<E>();
                    }
                    syncwarp(warp::FULL);
                    let keys = ring + read * E::SHAPE.stage_bytes();
                    // At most 8 tokens, at the end of the segment.
                    if fresh::is_on::<E>(params) && steps <= 2 {
                        fresh::lay::<E>(params, Segment::tokens(own_work()), keys, first);
                    }
                    if E::SHAPE.united {
                        engine.step_united(params, keys, first as i32, || {
                            loader.load::<E>(ring + fill * E::SHAPE.stage_bytes());
                            fill = if fill + 1 == E::SHAPE.stages { 0 } else { fill + 1 };
                        });
                    } else {
                        engine.step(params, keys, keys + E::SHAPE.keys * E::SHAPE.row_bytes, first as i32);
                    }
                    syncwarp(warp::FULL);
                    read = if read + 1 == E::SHAPE.stages { 0 } else { read + 1 };
                    steps -= 1;
                    first += block_keys;
                    let size = if E::SHAPE.folds && SM != 75 {
                        own_size
                    } else {
                        Segment::size(own_work())
                    };
                    // Where all warps of the block begin next.
                    boundary = steps == 0 || first & (size - 1) & !(block_keys - 1) == 0;
                }
                if boundary {
                    if E::SHAPE.stages == 1 {
                        // Joining reuses the stages: all warps are done with them.
                        E::sync();
                    }
                    let last = steps == 0;
                    #[cfg(tier = "sm_90a")]
                    if E::SHAPE.groups > 1 {
                        filled = super::joiner::leave::<E>(params.rows, engine, filled);
                        engine.clear();
                        // Groups take pieces in turns.
                        first += own_size * const { E::SHAPE.groups - 1 };
                        if last {
                            // There is no other tile.
                            return;
                        }
                        continue;
                    }
                    let (work, whole) = Segment::load(own_work());
                    // The piece of the keys before.
                    let shift = work.size.trailing_zeros();
                    let mut piece = 0;
                    if work.high > work.low {
                        piece = (((first & !(block_keys - 1)) - 1) >> shift) - (work.low >> shift);
                    }
                    if E::SHAPE.united {
                        engine.fold::<O>(params, &work, whole, piece, last);
                    } else {
                        fold.join_warps::<E>(params, &work, whole, engine, piece, last);
                    }
                    engine.clear();
                    if last {
                        break;
                    }
                }
            }
        }
        #[cfg(tier = "sm_90a")]
        if super::cluster::is_on::<E>(params) {
            if alone {
                cuda_std::barrier::cluster_wait();
            }
            super::cluster::merge::<E, O>(params);
        }
    }
}
