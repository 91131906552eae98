//! Loads and stores of global and shared memory, and atomics.

#[cfg(target_arch = "nvptx64")]
use super::{DeviceTestParams, table::write_row};
#[cfg(target_arch = "nvptx64")]
use cuda_std::{
    atomic::{self, AcqRel, Acquire, Cta, Gpu, Relaxed, Release, System},
    barrier, global,
    shared::{self, Shared},
    thread::*,
};

/// Bytes that `device_test_global` and `device_test_shared` copy each time: one value of 16, 8, 4, 2 and 1 bytes a
/// thread, by size.
pub const COPY_BYTES: u64 = 64 * (16 + 8 + 4 + 2 + 1);
/// Copies that `device_test_global` makes: one a load instruction, except the one that sm_75 lacks.
pub const GLOBAL_COPIES: u64 = 8;
/// Copies that `device_test_shared` makes.
pub const SHARED_COPIES: u64 = 2;

/// Copies one value of each size with two given functions.
#[cfg(target_arch = "nvptx64")]
macro_rules! copy_sizes {
    ($load:expr, $store:expr, $thread:expr) => {
        copy_sizes!(@one $load, $store, [f32; 4], 16 * $thread);
        copy_sizes!(@one $load, $store, u64, 64 * 16 + 8 * $thread);
        copy_sizes!(@one $load, $store, f32, 64 * 24 + 4 * $thread);
        copy_sizes!(@one $load, $store, u16, 64 * 28 + 2 * $thread);
        copy_sizes!(@one $load, $store, u8, 64 * 30 + $thread);
    };
    (@one $load:expr, $store:expr, $type:ty, $at:expr) => {
        let value: $type = $load($at);
        $store($at, value);
    };
}

cuda_std::kernel! {
    /// Copies [`COPY_BYTES`] of the input once with each pair of a load and a store, one copy after the other.
    #[launch(threads = 64)]
    pub fn device_test_global(params: DeviceTestParams) {
        let thread = thread_idx_x() as u64;
        let mut output = params.output;
        macro_rules! copy_with {
            ($load:ident, $store:ident) => {
                copy_sizes!(
                    |at| global::$load((params.input + at) as *const _),
                    |at, value| global::$store((output + at) as *mut _, value),
                    thread
                );
                output += COPY_BYTES;
            };
        }
        global::prefetch_l2(params.input as *const u8);
        copy_with!(ld, st);
        copy_with!(ld_nc, st_cg);
        copy_with!(ld_nc_no_allocate, st_cs);
        copy_with!(ld_nc_evict_last, st_wt);
        copy_with!(ld_cg, st_no_allocate);
        copy_with!(ld_cs, st_relaxed);
        copy_with!(ld_relaxed, st_volatile);
        copy_with!(ld_volatile, st);
        #[cfg(not(tier = "sm_75"))]
        {
            copy_with!(ld_nc_no_allocate_l2_256b, st);
            let mut at = thread * 2;
            while at < COPY_BYTES {
                let value: u16 = global::ld((params.input + at) as *const u16);
                global::st16_cache_hint((output + at) as *mut u16, value, cuda_std::bulk::CachePolicy::evict_last());
                at += 128;
            }
            output += COPY_BYTES;
        }
        let _ = output;
    }

    /// Copies [`COPY_BYTES`] through shared memory, by ordinary and by volatile accesses; then 4 words a thread: what
    /// [`Shared`] and its address arithmetic read.
    #[launch(threads = 64)]
    pub fn device_test_shared(params: DeviceTestParams) {
        let thread = thread_idx_x() as u64;
        let place = shared::dynamic_base();
        copy_sizes!(
            |at| global::ld((params.input + at) as *const _),
            |at, value| shared::st(place + at as u32, value),
            thread
        );
        barrier::syncthreads();
        // Another thread's values, back in their places.
        let other = 63 - thread;
        copy_sizes!(
            |at| shared::ld(place + at as u32),
            |at, value| global::st((params.output + at) as *mut _, value),
            other
        );
        barrier::syncthreads();
        copy_sizes!(
            |at| shared::ld_volatile(place + at as u32),
            |at, value| shared::st_volatile(place + COPY_BYTES as u32 + at as u32, value),
            thread
        );
        barrier::syncthreads();
        copy_sizes!(
            |at| shared::ld(place + COPY_BYTES as u32 + at as u32),
            |at, value| global::st((params.output + COPY_BYTES + at) as *mut _, value),
            thread
        );
        barrier::syncthreads();
        let words = Shared::<u32>::dynamic(0);
        words.add(thread as u32).write(thread as u32 + 7);
        barrier::syncthreads();
        let quad = words.cast::<[u32; 4]>().add(thread as u32 % 16).read();
        write_row(params.output + SHARED_COPIES * COPY_BYTES, thread as u32, [
            quad[0], quad[3], words.byte_add(4 * (thread as u32 ^ 1)).read(), words.add(3).address() - place,
        ]);
    }

    /// Atomics on global memory by two blocks of 64 threads. `input` points to 24 cells of 8 bytes (their start values
    /// are the test's), which each thread changes once; `output` gets the last block's view of them and, from each
    /// thread, whether the values that the operations returned are possible.
    #[launch(threads = 64)]
    pub fn device_test_atomics(params: DeviceTestParams) {
        let thread = global_idx_x() as u32;
        let cell = |index: usize| (params.input as *mut u64).add(index);
        let word = |index: usize| cell(index).cast::<u32>();
        let mut possible = true;
        possible &= atomic::add_u32::<Relaxed, Gpu>(word(0), 3) % 3 == 0;
        possible &= atomic::add_i32::<Relaxed, System>(word(1).cast(), -2) <= 0;
        possible &= atomic::add_u64::<AcqRel, Gpu>(cell(2), 1 << 33) % (1 << 33) == 0;
        possible &= atomic::add_f32::<Relaxed, Gpu>(word(3).cast(), 0.5) < 64.0;
        possible &= atomic::min_u32::<Relaxed, Gpu>(word(4), thread + 10) >= 10;
        possible &= atomic::max_u32::<Relaxed, Gpu>(word(5), thread + 10) <= 137;
        possible &= atomic::min_i32::<Relaxed, Gpu>(word(6).cast(), -(thread as i32)) >= -127;
        possible &= atomic::max_i32::<Relaxed, Gpu>(word(7).cast(), -5 - thread as i32) <= -5;
        possible &= atomic::min_u64::<Relaxed, Gpu>(cell(8), (thread as u64 + 1) << 32) >= 1 << 32;
        possible &= atomic::max_u64::<Relaxed, Gpu>(cell(9), (thread as u64 + 1) << 32) <= 128 << 32;
        possible &= atomic::and_b32::<Relaxed, Gpu>(word(10), !(1 << (thread % 16))) >= 0xFFFF_0000;
        possible &= atomic::or_b32::<Acquire, Gpu>(word(11), 1 << (thread % 16)) <= 0xFFFF;
        possible &= atomic::xor_b32::<Release, Gpu>(word(12), thread + 1) < 256;
        possible &= atomic::inc_u32::<Relaxed, Gpu>(word(13), 99) <= 99;
        possible &= atomic::dec_u32::<Relaxed, Gpu>(word(14), 99) <= 99;
        possible &= atomic::exch_u32::<Relaxed, Gpu>(word(15), thread + 1) <= 128;
        possible &= atomic::exch_u64::<Relaxed, Gpu>(cell(16), (thread as u64 + 1) << 35) <= 128 << 35;
        // Two multiplications modulo a prime, which commute, by compare-and-swap.
        let mut seen = atomic::load_u32::<Relaxed, Gpu>(word(17));
        loop {
            let found = atomic::cas_u32::<AcqRel, Gpu>(word(17), seen, seen * 3 % 65521);
            if found == seen {
                break;
            }
            seen = found;
        }
        let mut seen = atomic::load_u64::<Acquire, Gpu>(cell(18));
        loop {
            let found = atomic::cas_u64::<Relaxed, Gpu>(cell(18), seen, seen + (1 << 40) + 1);
            if found == seen {
                break;
            }
            seen = found;
        }
        atomic::store_u32::<Relaxed, Gpu>(word(19), 42);
        atomic::store_u64::<Release, Gpu>(cell(20), 43 << 32);
        global::st((params.output as *mut u32).add(48 + thread as usize), possible as u32);

        // The last block to come sees everything.
        atomic::fence::<Gpu>();
        barrier::syncthreads();
        let last = Shared::<u32>::dynamic(0);
        if thread_idx_x() == 0 {
            last.write(atomic::add_u32::<AcqRel, Gpu>(word(21), 1));
        }
        barrier::syncthreads();
        atomic::fence_sc::<Gpu>();
        if last.read() == grid_dim_x() - 1 && thread_idx_x() < 24 {
            let value = global::ld_relaxed(cell(thread_idx_x() as usize).cast_const());
            global::st((params.output as *mut u64).add(thread_idx_x() as usize), value);
        }
    }

    /// Atomics on shared memory by 64 threads: 8 words and a double word at the start of the output.
    #[launch(threads = 64)]
    pub fn device_test_shared_atomics(params: DeviceTestParams) {
        let thread = thread_idx_x();
        let words = Shared::<u32>::dynamic(0);
        let double = Shared::<u64>::dynamic(64);
        if thread < 16 {
            words.add(thread).write(0);
        }
        if thread == 0 {
            double.write(5);
        }
        barrier::syncthreads();
        atomic::shared::add_u32::<Relaxed, Cta>(words, thread);
        atomic::shared::add_f32::<Relaxed, Cta>(words.add(1).cast(), 0.25);
        atomic::shared::max_u32::<Relaxed, Cta>(words.add(2), thread * 2);
        atomic::shared::or_b32::<AcqRel, Cta>(words.add(3), 1 << (thread % 8));
        atomic::shared::min_i32::<Relaxed, Cta>(words.add(4).cast(), -(thread as i32));
        atomic::shared::inc_u32::<Relaxed, Cta>(words.add(5), 1000);
        atomic::shared::cas_u32::<Relaxed, Cta>(words.add(6), 0, 77);
        atomic::shared::exch_u32::<Relaxed, Cta>(words.add(7), 78);
        atomic::shared::add_u64::<Relaxed, Cta>(double, 1 << 32);
        atomic::fence::<Cta>();
        barrier::syncthreads();
        if thread < 8 {
            global::st((params.output as *mut u32).add(thread as usize), words.add(thread).read());
        }
        if thread == 0 {
            global::st((params.output as *mut u64).add(4), double.read());
        }
    }
}
