//! A warp's copies: which keys and values it needs next, where they lie, and their way into its ring.

use super::{
    DecodeParams, KEYS, fresh,
    plan::{self, Cursor},
    stream::{Engine, SM},
};
use crate::paging::Place;
use crate::tile::opaque::opaque;
use cuda_std::{barrier::syncwarp, shared, thread, warp};

#[cfg(tier = "sm_90a")]
pub mod mapped;

/// A warp's supply of keys and values: the steps of all the block's segments, ahead of what computes with them.
pub struct Loader<'a> {
    params: &'a DecodeParams,
    /// Sequence and head of the segment.
    batch: u32,
    head: u32,
    /// This lane's token of the step that is looked up.
    token: u32,
    /// First token of the segment, and one past its last.
    begin: u32,
    end: u32,
    /// Steps of the segment that are not loaded; 0 when there is no segment more.
    steps: u32,
    /// Where this lane's key of that step lies. Its page is on its way from memory: nothing is computed from it before
    /// it is needed. Blocks that have a multiprocessor for themselves have few warps, and no time for that each step: each lane
    /// has 16 tokens that lie [together](DecodeParams::together) instead, of this step and those behind it: how far keys and
    /// values are from the start of the cache, in units of 16 bytes.
    next: Place,
    /// The lane that has the next 16 tokens; [`LANES`] when none has.
    number: u32,
    /// Tokens of a piece, where groups of warps take them in turns.
    size: u32,
    /// Of keys and values, where these are read by maps.
    maps: [*const u8; 2],
    /// Loads until no stage is left that lanes have written to.
    patched: u32,
}

impl<'a> Loader<'a> {
    /// Of no segment yet.
    #[inline(always)]
    pub fn new(params: &'a DecodeParams, maps: [*const u8; 2]) -> Self {
        Loader {
            params,
            batch: 0,
            head: 0,
            token: 0,
            begin: 0,
            end: 0,
            steps: 0,
            next: Place::NONE,
            number: LANES,
            size: 0,
            maps,
            patched: 0,
        }
    }

    /// Goes to the next segment that has steps, if there is one.
    #[inline(always)]
    unsafe fn advance<E: Engine>(&mut self) {
        unsafe {
            let warp = E::warp();
            let at = plan::place::<E>(warp);
            let mut cursor = Cursor::load(at);
            // All lanes have read it.
            syncwarp(warp::FULL);
            while self.steps == 0 {
                let Some(segment) = cursor.next::<E>(self.params) else {
                    break;
                };
                self.batch = segment.work.batch;
                self.head = segment.work.head;
                self.token = segment.token::<E>(0, warp);
                if !E::SHAPE.mapped {
                    self.token += thread::lane_id() % E::SHAPE.keys;
                }
                self.begin = segment.begin;
                if E::SHAPE.groups > 1 {
                    self.size = segment.work.size;
                }
                self.end = segment.end;
                // What this step appends is not read from the cache.
                if fresh::is_on::<E>(self.params) && segment.work.fresh < self.end {
                    self.end = segment.work.fresh;
                }
                self.steps = segment.steps;
                self.number = LANES;
            }
            cursor.save(at);
            if !Self::keeps::<E>() && thread::lane_id() == 0 {
                shared::st(plan::span::<E>(warp), [self.batch, self.head, self.begin, self.end]);
            }
            syncwarp(warp::FULL);
        }
    }

    /// Whether there are registers for the segment.
    #[inline(always)]
    const fn keeps<E: Engine>() -> bool {
        E::SHAPE.folds && SM != 75 && E::SHAPE.rows <= super::ROWS && E::SHAPE.groups < 2
    }

    /// Sequence, head, first token and one past the last of the segment: from shared memory where registers are few.
    #[inline(always)]
    unsafe fn span<E: Engine>(&self) -> [u32; 4] {
        if Self::keeps::<E>() {
            [self.batch, self.head, self.begin, self.end]
        } else {
            // SAFETY: the warp has put it there.
            unsafe { shared::ld(plan::span::<E>(opaque(E::thread()) / 32)) }
        }
    }

    /// Looks up 16 tokens a lane, from token `first` on.
    #[inline(always)]
    unsafe fn look_up_far<E: Engine>(&mut self, first: u32) {
        let each = const { E::SHAPE.keys / KEYS };
        let lane = thread::lane_id();
        let mut token = first + lane / each * const { E::SHAPE.warps * E::SHAPE.keys } + lane % each * KEYS;
        if E::SHAPE.groups > 1 {
            // Of the pieces from here on, the other groups have all but one in turn.
            token += ((token & !(self.size - 1)) - (first & !(self.size - 1))) * const { E::SHAPE.groups - 1 };
        }
        // SAFETY: of the segment; the sequence has that token.
        unsafe {
            let [batch, _, _, end] = self.span::<E>();
            if token < end {
                let place = self.place(batch, token);
                let units = |steps: &[u32; 3]| place.page * steps[0] + place.slot * steps[1];
                self.next = Place {
                    page: units(&self.params.k_steps),
                    slot: units(&self.params.v_steps),
                };
            }
        }
        self.number = 0;
    }

    /// The place of a token.
    #[inline(always)]
    unsafe fn place(&self, batch: u32, token: u32) -> Place {
        let (paging, shift) = (&self.params.paging, self.params.page_shift);
        // SAFETY: forwarded to the caller.
        unsafe {
            if shift < 32 {
                paging.place_in(batch, token, token >> shift)
            } else {
                paging.place(batch, token)
            }
        }
    }

    /// Looks up the keys of the next step.
    #[inline(always)]
    unsafe fn look_up<E: Engine>(&mut self) {
        self.next = Place::NONE;
        // SAFETY: of the segment.
        let [batch, _, begin, end] = unsafe { self.span::<E>() };
        if self.token >= begin && self.token < end {
            // SAFETY: the sequence has that token.
            self.next = unsafe { self.place(batch, self.token) };
        }
    }

    /// Starts the copies of the step that was looked up into the stage at `stage`, and looks up the next. Copies nothing the
    /// first time.
    ///
    /// # Safety
    /// - The warp calls this together; nobody reads the stage any more.
    #[inline(always)]
    pub unsafe fn load<E: Engine>(&mut self, stage: u32) {
        unsafe {
            #[cfg(tier = "sm_90a")]
            if E::SHAPE.mapped {
                self.load_mapped::<E>(stage);
                return;
            }
            let params = self.params;
            if self.steps != 0 {
                let chunks = const { E::SHAPE.row_bytes / 16 };
                let lane = if E::SHAPE.folds && SM != 75 {
                    thread::lane_id()
                } else {
                    opaque(thread::lane_id())
                };
                // This lane's chunk of the keys that a turn of all lanes copies, and which of those keys.
                let (chunk, key) = (lane % chunks, lane / chunks);
                let to = key * E::SHAPE.row_bytes + (chunk ^ E::swizzle(key)) * 16;
                let keys = const { E::SHAPE.keys };
                let (k_bytes, v_bytes) = (params.head_dim * E::CACHE_BYTES, params.value_dim * E::CACHE_BYTES);
                let turns = const { E::SHAPE.keys * E::SHAPE.row_bytes / 512 };
                // Copies of a turn, from keys and values whose distance from the start of the cache `own` says, in units of
                // 16 bytes, and which are `further` slots on.
                let [_, head, ..] = self.span::<E>();
                let (k_own, v_own) = (head * params.k_steps[2] + chunk, head * params.v_steps[2] + chunk);
                let copy_turn = |turn: u32, own: [u32; 2], further: u32, live: [bool; 2]| {
                    let (first_key, first_chunk) = (turn * 32 / chunks, turn * 32 % chunks);
                    // What is not there is zero: nothing of the cache is read for it.
                    let at = (first_chunk + chunk) * 16;
                    let (k_live, v_live) = (at < k_bytes && live[0], at < v_bytes && live[1]);
                    // Nobody looks where it lies then.
                    let (k_own, v_own) = (k_own.wrapping_add(own[0]), v_own.wrapping_add(own[1]));
                    let k_from = params.k + k_own as u64 * 16 + params.k_steps[1] as u64 * (further * 16) as u64;
                    let v_from = params.v + v_own as u64 * 16 + params.v_steps[1] as u64 * (further * 16) as u64;
                    let (k_from, v_from) = (k_from + first_chunk as u64 * 16, v_from + first_chunk as u64 * 16);
                    let to =
                        stage + (to ^ (E::swizzle(first_key) * 16)) + first_key * E::SHAPE.row_bytes + first_chunk * 16;
                    copy(to, k_from, k_live);
                    copy(to + keys * E::SHAPE.row_bytes, v_from, v_live);
                };
                // Known to be as many to the compiler, it would keep more addresses than there are registers for.
                let turns = opaque(turns);
                let mut turn = 0;
                let at_once = const {
                    let turns = KEYS * E::SHAPE.row_bytes / 512;
                    if turns < 4 { turns } else { 4 }
                };
                let ([_, _, begin, end], step) = (self.span::<E>(), self.token - lane % keys);
                if E::SHAPE.alone && step >= begin && step + keys <= end {
                    if self.number == LANES {
                        self.look_up_far::<E>(step);
                    }
                    while turn < turns {
                        let of_16 = turn * 32 / chunks / KEYS;
                        let own = [
                            warp::shfl_idx(self.next.page, self.number + of_16) + key * params.k_steps[1],
                            warp::shfl_idx(self.next.slot, self.number + of_16) + key * params.v_steps[1],
                        ];
                        let mut u = 0;
                        while u < at_once {
                            copy_turn(turn + u, own, (turn + u) * 32 / chunks - of_16 * KEYS, [true; 2]);
                            u += 1;
                        }
                        turn += at_once;
                    }
                    self.number += keys / KEYS;
                } else {
                    if E::SHAPE.alone {
                        self.next = Place::NONE;
                        self.number = LANES;
                        self.look_up::<E>();
                    }
                    let place = self.next;
                    let slot = if E::SHAPE.folds && SM != 75 {
                        place.slot
                    } else {
                        params.paging.slot(self.token)
                    };
                    let units = |steps: &[u32; 3]| {
                        if place.exists() {
                            place.page * steps[0] + slot * steps[1]
                        } else {
                            NOWHERE
                        }
                    };
                    // With a lane for each of 16 tokens twice, the lower half says where its token's key is, the other where
                    // its value is.
                    let (own, own_value) = if keys == 32 {
                        (units(&params.k_steps), units(&params.v_steps))
                    } else {
                        let own = units(if thread::lane_id() < keys {
                            &params.k_steps
                        } else {
                            &params.v_steps
                        });
                        (own, own)
                    };
                    let all = E::SHAPE.folds && SM != 75 && warp::vote_all(warp::FULL, own != NOWHERE);
                    if all && !E::SHAPE.alone && params.together != 0 {
                        // Of 16 tokens that lie together, the first says where they are.
                        while turn < turns {
                            let lead = turn * 32 / chunks & !(KEYS - 1);
                            let own = [
                                warp::shfl_idx(own, lead) + key * params.k_steps[1],
                                warp::shfl_idx(own_value, lead + keys % 32) + key * params.v_steps[1],
                            ];
                            let mut u = 0;
                            while u < at_once {
                                copy_turn(turn + u, own, (turn + u) * 32 / chunks - lead, [true; 2]);
                                u += 1;
                            }
                            turn += at_once;
                        }
                    }
                    while turn < turns {
                        let first = turn * 32 / chunks + key;
                        let own = [warp::shfl_idx(own, first), warp::shfl_idx(own_value, first + keys % 32)];
                        copy_turn(turn, own, 0, own.map(|own| own != NOWHERE));
                        turn += 1;
                    }
                }
                self.token += const { E::SHAPE.warps * E::SHAPE.keys };
                if E::SHAPE.groups > 1 && self.token & (self.size - 1) < const { E::SHAPE.warps * E::SHAPE.keys } {
                    self.token += self.size * const { E::SHAPE.groups - 1 };
                }
                self.steps -= 1;
            }
            #[cfg(not(tier = "sm_75"))]
            cuda_std::cp_async::commit_group();
            if self.steps == 0 {
                self.advance::<E>();
            }
            if !E::SHAPE.alone {
                self.look_up::<E>();
            }
        }
    }
}

/// Lanes of a warp.
const LANES: u32 = 32;

/// No place in the cache.
const NOWHERE: u32 = u32::MAX;

/// Starts the copy of 16 bytes, or of 16 zeros.
#[inline(always)]
unsafe fn copy(to: u32, from: u64, live: bool) {
    unsafe {
        #[cfg(not(tier = "sm_75"))]
        cuda_std::cp_async::copy_16(to, from as *const u8, if live { 16 } else { 0 });
        #[cfg(tier = "sm_75")]
        {
            let mut bits = [0u32; 4];
            if live {
                bits = cuda_std::global::ld(from as *const [u32; 4]);
            }
            shared::st(to, bits);
        }
    }
}

/// Waits until all but the newest `STAGES − 1` steps have arrived, or one less where the next one is loaded behind that.
///
/// # Safety
/// - Each step so far has been committed.
#[inline(always)]
pub unsafe fn wait<E: Engine>() {
    #[cfg(not(tier = "sm_75"))]
    unsafe {
        use cuda_std::cp_async::wait_group;
        match E::SHAPE.stages - E::SHAPE.united as u32 {
            1 => wait_group::<0>(),
            2 => wait_group::<1>(),
            3 => wait_group::<2>(),
            4 => wait_group::<3>(),
            5 => wait_group::<4>(),
            _ => wait_group::<5>(),
        }
    }
}

/// Tokens of each tile that are brought into L2 ahead.
#[cfg(tier = "sm_90a")]
const AHEAD: u32 = 256;

/// Brings a block's queries and first keys and values into L2 while the kernel before this one still runs. What that kernel
/// writes is not needed for it: lengths and tables as they stand only say what to bring, and nothing is taken from it.
///
/// # Safety
/// - All threads of the block call this together; `params` are those of the launch.
#[cfg(tier = "sm_90a")]
#[inline(always)]
pub unsafe fn prefetch<E: Engine>(params: &DecodeParams) {
    unsafe {
        let (batch, head, tile) = plan::place_of(params, thread::block_idx_x());
        let paging = &params.paging;
        let length: i32 = cuda_std::global::ld_relaxed((params.lengths + batch as u64 * 4) as *const i32);
        let length = if length < 0 { 0 } else { length as u32 };
        let length = if length < params.capacity {
            length
        } else {
            params.capacity
        };
        let until = if length < AHEAD { length } else { AHEAD };
        let threads = const { E::SHAPE.groups * E::SHAPE.warps * 32 };
        let thread = thread::thread_idx_x();
        let mut row = thread;
        while tile == 0 && row < params.group {
            let strides = &params.q_strides;
            let at = batch as u64 * strides[0] + (head * params.group + row) as u64 * strides[2];
            // 16-bit elements.
            bring(params.q + at * 2, params.head_dim * 2);
            row += threads;
        }
        let mut token = thread;
        while tile == 0 && token < until {
            let mut place = Place {
                page: batch,
                slot: token,
            };
            if paging.table != 0 {
                let entry = super::quotient(token, paging.page_size);
                let at = batch as u64 * paging.table_stride + entry as u64;
                place.page = cuda_std::global::ld_relaxed((paging.table + at * 4) as *const u32);
                place.slot = token - entry * paging.page_size;
            } else if paging.batch_index != 0 {
                place.page = cuda_std::global::ld_relaxed((paging.batch_index + batch as u64 * 4) as *const u32);
            }
            if place.page < paging.pages {
                let units = |steps: &[u32; 3]| (place.page * steps[0] + place.slot * steps[1] + head * steps[2]) as u64;
                bring(params.k + units(&params.k_steps) * 16, params.head_dim * E::CACHE_BYTES);
                bring(
                    params.v + units(&params.v_steps) * 16,
                    params.value_dim * E::CACHE_BYTES,
                );
            }
            token += threads;
        }
    }
}

/// Brings a row into L2.
#[cfg(tier = "sm_90a")]
#[inline(always)]
unsafe fn bring(from: u64, bytes: u32) {
    let mut at = 0;
    while at < bytes {
        // SAFETY: forwarded to the caller.
        unsafe { cuda_std::global::prefetch_l2((from + at as u64) as *const u8) };
        at += 128;
    }
}
