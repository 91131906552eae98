//! Moving keys and values into, out of and within a cache. Bits only: an element is 1, 2, 4 or (several at once) 16 bytes.

use crate::{kernel_params, paging::Paging};

/// Threads of a block.
pub const THREADS: u32 = 256;

kernel_params! {
    /// Arguments of `cache_append_*` and `cache_read_*`. Extents and strides count units of the entry's size.
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

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::*;
    use crate::paging::Place;
    use cuda_std::{
        global::{self, Value},
        kernel, thread,
    };

    /// Appends (`READ` false) or reads back one unit of each head in turn.
    #[inline(always)]
    unsafe fn move_tokens<T: Value + Default, const READ: bool>(params: &CacheMoveParams) {
        unsafe {
            core::hint::assert_unchecked(params.seq != 0);
            let size = size_of::<T>() as u64;
            let mut which = 0;
            while which < 2 {
                let row = params.rows[which] as u64 * params.heads as u64;
                let total = params.tokens * row;
                let (tensor, cache) = (params.tensors[which], params.caches[which]);
                let (tensor_strides, cache_strides) = (&params.tensor_strides[which], &params.cache_strides[which]);
                let mut item = thread::global_idx_x();
                while item < total {
                    core::hint::assert_unchecked(row != 0 && params.rows[which] != 0);
                    let number = item / row;
                    let unit = (item - number * row) as u32;
                    let head = unit / params.rows[which];
                    let column = unit - head * params.rows[which];
                    let sequence = number / params.seq as u64;
                    let index = number - sequence * params.seq as u64;
                    let mut place = Place::NONE;
                    if params.slots != 0 {
                        place = params
                            .paging
                            .of_slot(global::ld_nc((params.slots + number * 8) as *const i64));
                    } else if READ {
                        let length = global::ld_nc((params.lengths + sequence * 4) as *const i32);
                        if (index as i64) < length as i64 && index < params.capacity {
                            place = params.paging.place(sequence as u32, index as u32);
                        }
                    } else {
                        let before = global::ld_nc((params.lengths + sequence * 4) as *const i32);
                        if before >= 0 && (before as u64 + index) < params.capacity {
                            place = params.paging.place(sequence as u32, before as u32 + index as u32);
                        }
                    }
                    let outside =
                        sequence * tensor_strides[0] + index * tensor_strides[1] + head as u64 * tensor_strides[2];
                    let outside = tensor + (outside + column as u64) * size;
                    if place.exists() {
                        let inside = place.offset(cache_strides) + head as u64 * cache_strides[2] + column as u64;
                        let inside = cache + inside * size;
                        if READ {
                            global::st(outside as *mut T, global::ld(inside as *const T));
                        } else {
                            global::st(inside as *mut T, global::ld(outside as *const T));
                        }
                    } else if READ {
                        global::st(outside as *mut T, T::default());
                    }
                    item += thread::grid_stride_x();
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
                    move_tokens::<$unit, false>(&params)
                }

                /// Reads the tokens of each sequence, and zeros behind its last.
                ///
                /// # Safety
                /// - As for the append; table entries in use are pages of the pool.
                #[launch(threads = THREADS, barriers = 0)]
                pub fn $read(params: CacheMoveParams) {
                    move_tokens::<$unit, true>(&params)
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
