//! Moving keys and values into, out of and within a cache: bit for bit, in units of 1, 2, 4 or 16 bytes, or rounded to
//! 8-bit floats on their way in and widened on their way out.
//!
//! A thread has one unit of a token, of keys and of values: 32 registers, so that all threads fit that a multiprocessor can
//! have. More tokens a thread were slower, for there were fewer threads.

use crate::{kernel_params, paging::Paging};

/// Threads of a block.
pub const THREADS: u32 = 256;
/// Elements of a unit where 8-bit floats are made or widened 16 bytes at a time.
pub const CONVERTED: u32 = 16;

kernel_params! {
    /// Arguments of `cache_append_*` and `cache_read_*`. Extents and strides count units of the entry's size; where they
    /// convert, strides count elements and rows units of [`CONVERTED`] elements, or of one.
    pub struct CacheMoveParams {
        /// Where tokens lie in the cache.
        pub paging: Paging,
        /// Keys and values outside the cache, `[sequences, seq, heads, row]` each; 0 for none.
        pub tensors: [u64; 2],
        /// The caches of keys and of values.
        pub caches: [u64; 2],
        /// Strides of the tensors: sequence, token, head.
        pub tensor_strides: [[u64; 3]; 2],
        /// Strides of the caches: page, slot, head.
        pub cache_strides: [[u64; 3]; 2],
        /// Slot of each token, i64; or 0 to take its place from `lengths` and the table.
        pub slots: u64,
        /// Factor of the keys and of the values of each head, f32; 0 for 1.
        pub scales: [u64; 2],
        /// Append: tokens before the first new one, i32; read: tokens of each sequence. 0 for none.
        pub lengths: u64,
        /// Sequences times `seq`.
        pub tokens: u64,
        /// Tokens that a sequence can have in the cache.
        pub capacity: u64,
        /// Tokens of a sequence in the tensors.
        pub seq: u32,
        /// Heads.
        pub heads: u32,
        /// Units of a head's row of keys and of values.
        pub rows: [u32; 2],
        /// Most units of a token's keys or values.
        pub lanes: u32,
        /// Elements of a unit where they are converted: [`CONVERTED`] or 1.
        pub elements: u32,
    }

    /// Arguments of `cache_copy_pages_*`: pages that move as a whole.
    pub struct CopyPagesParams {
        /// Pools.
        pub pools: [u64; 2],
        /// Units from one page to the next, and of a page.
        pub page_units: [u64; 2],
        /// Source and destination of each copy, i32 pairs; no destination is another pair's source or destination.
        pub pairs: u64,
        /// Pairs.
        pub count: u64,
        /// Pages of the pools.
        pub pages: u64,
        /// 1 to exchange the two pages.
        pub swap: u64,
    }
}

#[cfg(all(target_arch = "nvptx64", tier = "sm_90a"))]
mod converted;

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::*;
    use crate::paging::Place;
    use cuda_std::{
        global::{self, Value},
        kernel, thread,
    };

    /// What moves at a time.
    pub(super) trait Unit {
        /// A unit in registers.
        type Held: Copy;
        /// What is read where the cache has no token.
        const NOTHING: Self::Held;
        /// Elements or units of a step along a row.
        const STEP: u64;
        /// What strides of the tensors count, in bytes.
        const TENSOR_BYTES: u64;
        /// What strides of the caches count, in bytes.
        const CACHE_BYTES: u64;

        /// Loads a unit.
        ///
        /// # Safety
        /// - It can be read at the address, which is aligned to it.
        unsafe fn load(address: u64) -> Self::Held;

        /// Stores a unit whose head has this factor.
        ///
        /// # Safety
        /// - It can be written at the address, which is aligned to it.
        unsafe fn store(address: u64, held: Self::Held, scale: f32);
    }

    /// Bits as they are.
    struct Bits<T>(core::marker::PhantomData<T>);

    impl<T: Value> Unit for Bits<T> {
        type Held = T;
        // SAFETY: zeros are a value of every integer and array of them.
        const NOTHING: T = unsafe { core::mem::zeroed() };
        const STEP: u64 = 1;
        const TENSOR_BYTES: u64 = size_of::<T>() as u64;
        const CACHE_BYTES: u64 = size_of::<T>() as u64;

        #[inline(always)]
        unsafe fn load(address: u64) -> T {
            // SAFETY: forwarded to the caller.
            unsafe { global::ld(address as *const T) }
        }

        #[inline(always)]
        unsafe fn store(address: u64, held: T, _: f32) {
            // SAFETY: forwarded to the caller.
            unsafe { global::st(address as *mut T, held) };
        }
    }

    /// Appends (`READ` false) or reads back one unit of a token: of its keys and of its values.
    #[inline(always)]
    pub(super) unsafe fn move_token<U: Unit, const READ: bool>(params: &CacheMoveParams) {
        unsafe {
            // Set up while the kernel before this one still ran.
            #[cfg(tier = "sm_90a")]
            {
                cuda_std::grid_dependency::wait();
                cuda_std::grid_dependency::launch_dependents();
            }
            core::hint::assert_unchecked(params.seq != 0);
            core::hint::assert_unchecked(params.lanes != 0);
            let item = thread::block_idx_x() as u64 * THREADS as u64 + thread::thread_idx_x() as u64;
            let number = if item >> 32 == 0 {
                (item as u32 / params.lanes) as u64
            } else {
                item / params.lanes as u64
            };
            if number >= params.tokens {
                return;
            }
            let unit = (item - number * params.lanes as u64) as u32;
            // The host refuses more tokens than 32 bits count.
            let sequence = number as u32 / params.seq;
            let index = number as u32 - sequence * params.seq;
            let place = || {
                if params.slots != 0 {
                    return params
                        .paging
                        .of_slot(global::ld_nc((params.slots + number * 8) as *const i64));
                }
                let length = global::ld_nc((params.lengths + sequence as u64 * 4) as *const i32) as i64;
                if READ {
                    // The table and the length are on their way together.
                    if (index as u64) < params.capacity {
                        let place = params.paging.place(sequence, index);
                        if (index as i64) < length {
                            return place;
                        }
                    }
                } else if length >= 0 && length + (index as i64) < params.capacity as i64 {
                    return params.paging.place(sequence, length as u32 + index);
                }
                Place::NONE
            };
            // What is appended need not wait for its place.
            let mut at = Place::NONE;
            if READ {
                at = place();
            }
            let mut held = [U::NOTHING; 2];
            let mut live = [false; 2];
            let mut tensors = [0; 2];
            let mut caches = [0; 2];
            let mut scales = [1.0; 2];
            let mut which = 0;
            while which < 2 {
                let row = params.rows[which];
                live[which] = unit < row * params.heads;
                if live[which] {
                    // There are units of such rows.
                    core::hint::assert_unchecked(row != 0);
                    let head = unit / row;
                    let column = (unit - head * row) as u64 * U::STEP;
                    let strides = &params.tensor_strides[which];
                    let tensor = sequence as u64 * strides[0] + index as u64 * strides[1] + head as u64 * strides[2];
                    tensors[which] = params.tensors[which] + (tensor + column) * U::TENSOR_BYTES;
                    caches[which] = head as u64 * params.cache_strides[which][2] + column;
                    if params.scales[which] != 0 {
                        scales[which] = global::ld_nc((params.scales[which] + head as u64 * 4) as *const f32);
                    }
                    if !READ {
                        held[which] = U::load(tensors[which]);
                    } else if at.exists() {
                        let cache = caches[which] + at.offset(&params.cache_strides[which]);
                        held[which] = U::load(params.caches[which] + cache * U::CACHE_BYTES);
                    }
                }
                which += 1;
            }
            if !READ {
                at = place();
            }
            which = 0;
            while which < 2 {
                if !live[which] {
                } else if READ {
                    let scale = if at.exists() { scales[which] } else { 1.0 };
                    U::store(tensors[which], held[which], scale);
                } else if at.exists() {
                    let cache = caches[which] + at.offset(&params.cache_strides[which]);
                    U::store(
                        params.caches[which] + cache * U::CACHE_BYTES,
                        held[which],
                        scales[which],
                    );
                }
                which += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn copy_pages<T: Value>(params: &CopyPagesParams) {
        unsafe {
            let size = size_of::<T>() as u64;
            let mut which = 0;
            while which < 2 {
                let units = params.page_units[which];
                let mut item = thread::global_idx_x();
                while item < params.count * units {
                    core::hint::assert_unchecked(units != 0);
                    let pair = item / units;
                    let unit = item - pair * units;
                    let [from, to]: [i32; 2] = global::ld_nc((params.pairs + pair * 8) as *const [i32; 2]);
                    if from >= 0 && to >= 0 && (from as u64) < params.pages && (to as u64) < params.pages {
                        let from = params.pools[which] + (from as u64 * units + unit) * size;
                        let to = params.pools[which] + (to as u64 * units + unit) * size;
                        let value: T = global::ld(from as *const T);
                        if params.swap != 0 {
                            let other: T = global::ld(to as *const T);
                            global::st(from as *mut T, other);
                        }
                        global::st(to as *mut T, value);
                    }
                    item += thread::grid_stride_x();
                }
                which += 1;
            }
        }
    }

    macro_rules! moves {
        ($($append:ident $read:ident $copy:ident $unit:ty)*) => {
            kernel! {$(
                /// Writes tokens to their slots; tokens without a slot are skipped.
                ///
                /// # Safety
                /// - Tensors and caches have the extents and strides that the parameters say; no two tokens have one slot.
                #[launch(threads = THREADS, barriers = 0)]
                pub fn $append(params: CacheMoveParams) {
                    move_token::<Bits<$unit>, false>(&params)
                }

                /// Reads the tokens of each sequence, and zeros behind its last.
                ///
                /// # Safety
                /// - As for the append; table entries in use are pages of the pool.
                #[launch(threads = THREADS, barriers = 0)]
                pub fn $read(params: CacheMoveParams) {
                    move_token::<Bits<$unit>, true>(&params)
                }

                /// Copies or exchanges whole pages.
                ///
                /// # Safety
                /// - The pools have the extents that the parameters say, and the pairs are disjoint.
                #[launch(threads = THREADS, barriers = 0)]
                pub fn $copy(params: CopyPagesParams) {
                    copy_pages::<$unit>(&params)
                }
            )*}
        };
    }

    moves! {
        cache_append_b16 cache_read_b16 cache_copy_pages_b16 [u32; 4]
        cache_append_b4 cache_read_b4 cache_copy_pages_b4 u32
        cache_append_b2 cache_read_b2 cache_copy_pages_b2 u16
        cache_append_b1 cache_read_b1 cache_copy_pages_b1 u8
    }
}
