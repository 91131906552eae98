//! Shared memory: its carve-up (also on the CPU, where launches compute their sizes), and real `ld.shared` and
//! `st.shared` through 32-bit addresses.

/// Lays out shared memory: hands out aligned ranges one after the other.
///
/// Meant for constants that device and host share:
///
/// ```
/// use cuda_std::shared::Carve;
/// /// Byte offsets of a kernel's buffers.
/// struct Buffers { tile: u32, barriers: u32, bytes: u32 }
/// const BUFFERS: Buffers = {
///     let mut carve = Carve::new();
///     let tile = carve.take(128 * 64 * 2, 1024);
///     let barriers = carve.take(4 * 8, 8);
///     Buffers { tile, barriers, bytes: carve.bytes() }
/// };
/// assert_eq!((BUFFERS.barriers, BUFFERS.bytes), (16384, 16416));
/// ```
#[derive(Debug, Default)]
pub struct Carve {
    bytes: u32,
}

impl Carve {
    /// Starts with nothing handed out.
    pub const fn new() -> Self {
        Self { bytes: 0 }
    }

    /// The offset of the next `bytes` bytes aligned to `align`, a power of two of at most 1024
    /// (the alignment of the whole).
    pub const fn take(&mut self, bytes: u32, align: u32) -> u32 {
        assert!(align.is_power_of_two() && align <= 1024);
        let offset = self.bytes.next_multiple_of(align);
        self.bytes = offset + bytes;
        offset
    }

    /// Bytes handed out so far, padding included: what the launch must ask for.
    pub const fn bytes(&self) -> u32 {
        self.bytes
    }
}

#[cfg(target_arch = "nvptx64")]
pub use device::*;

#[cfg(target_arch = "nvptx64")]
mod device {
    use crate::access::{Value, loads, stores};
    use core::arch::asm;
    use core::marker::PhantomData;

    /// The shared address of the launch's dynamic shared memory, aligned to 1024 bytes.
    #[inline(always)]
    pub fn dynamic_base() -> u32 {
        let address: u32;
        // SAFETY: takes the address of a declared symbol.
        unsafe { asm!("mov.u32 {0}, dynamic_shared;", out(reg32) address, options(pure, nomem, nostack)) };
        address
    }

    loads! {
        /// `ld.shared`: loads from this block's shared memory (PTX ISA 9.7.9.8).
        ///
        /// # Safety
        /// - `address` lies in the block's shared memory and is aligned to the size of `T`.
        /// - No other thread writes it at the same time.
        pub fn ld(u32, reg32) = "ld.shared", (pure, readonly, nostack);
        /// `ld.volatile.shared`: executed once, in order, as written.
        ///
        /// # Safety
        /// - `address` lies in the block's shared memory and is aligned to the size of `T`.
        pub fn ld_volatile(u32, reg32) = "ld.volatile.shared", (nostack);
        /// `ld.shared::cluster`: loads from a block of the cluster, at an address made by [`mapa`] (sm_90).
        ///
        /// # Safety
        /// - `address` lies in the shared memory of a running block of the cluster and is aligned to the size of `T`.
        /// - No thread writes it at the same time.
        pub fn ld_cluster(u32, reg32) = "ld.shared::cluster", (pure, readonly, nostack);
    }

    stores! {
        /// `st.shared`: stores to this block's shared memory (PTX ISA 9.7.9.11).
        ///
        /// # Safety
        /// - `address` lies in the block's shared memory and is aligned to the size of `T`.
        /// - No other thread reads or writes it at the same time.
        pub fn st(u32, reg32) = "st.shared";
        /// `st.volatile.shared`: executed once, in order, as written.
        ///
        /// # Safety
        /// - `address` lies in the block's shared memory and is aligned to the size of `T`.
        pub fn st_volatile(u32, reg32) = "st.volatile.shared";
        /// `st.shared::cluster`: stores to a block of the cluster, at an address made by [`mapa`] (sm_90).
        ///
        /// # Safety
        /// - `address` lies in the shared memory of a running block of the cluster and is aligned to the size of `T`.
        /// - No other thread reads or writes it at the same time.
        pub fn st_cluster(u32, reg32) = "st.shared::cluster";
    }

    /// `mapa.shared::cluster.u32`: the address, in the cluster's window, of what `address` is in block `rank`
    /// (PTX ISA 9.7.9.22, sm_90).
    #[inline(always)]
    pub fn mapa(address: u32, rank: u32) -> u32 {
        let mapped: u32;
        // SAFETY: computes an address.
        unsafe {
            asm!("mapa.shared::cluster.u32 {0}, {1}, {2};", out(reg32) mapped, in(reg32) address, in(reg32) rank,
                options(pure, nomem, nostack));
        }
        mapped
    }

    /// `st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32`: stores 8 bytes to a block of the cluster and completes them on
    /// a barrier there; both addresses by [`mapa`] (PTX ISA 9.7.9.12, sm_90).
    ///
    /// # Safety
    /// - `address` is aligned to 8 and lies, as `barrier` does, in the shared memory of one running block of the cluster.
    /// - The barrier's phase expects the bytes; nobody else touches them before it ends.
    #[inline(always)]
    pub unsafe fn st_async_2(address: u32, [a, b]: [f32; 2], barrier: u32) {
        // SAFETY: forwarded to the caller.
        unsafe {
            asm!("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [{0}], {{{1}, {2}}}, [{3}];",
                in(reg32) address, in(reg32) a.to_bits(), in(reg32) b.to_bits(), in(reg32) barrier, options(nostack));
        }
    }

    /// [`st_async_2`] of 4 bytes, `.b32`.
    ///
    /// # Safety
    /// - As for [`st_async_2`]; `address` is aligned to 4.
    #[inline(always)]
    pub unsafe fn st_async_1(address: u32, value: f32, barrier: u32) {
        // SAFETY: forwarded to the caller.
        unsafe {
            asm!("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [{0}], {1}, [{2}];",
                in(reg32) address, in(reg32) value.to_bits(), in(reg32) barrier, options(nostack));
        }
    }

    /// [`st_async_2`] of 16 bytes, `.v4.b32`.
    ///
    /// # Safety
    /// - As for [`st_async_2`]; `address` is aligned to 16.
    #[inline(always)]
    pub unsafe fn st_async_4(address: u32, [a, b, c, d]: [f32; 4], barrier: u32) {
        // SAFETY: forwarded to the caller.
        unsafe {
            asm!("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [{0}], {{{1}, {2}, {3}, {4}}}, [{5}];",
                in(reg32) address, in(reg32) a.to_bits(), in(reg32) b.to_bits(), in(reg32) c.to_bits(),
                in(reg32) d.to_bits(), in(reg32) barrier, options(nostack));
        }
    }

    /// A place in shared memory that holds a `T`: a raw pointer of 32 bits.
    ///
    /// It is `Copy` and has no lifetime; as with a raw pointer, who may read or write when is the kernel's business.
    #[repr(transparent)]
    pub struct Shared<T> {
        address: u32,
        place: PhantomData<*mut T>,
    }

    impl<T> Clone for Shared<T> {
        #[inline(always)]
        fn clone(&self) -> Self {
            *self
        }
    }

    impl<T> Copy for Shared<T> {}

    impl<T> Shared<T> {
        /// The place at a shared address.
        #[inline(always)]
        pub const fn from_address(address: u32) -> Self {
            Self {
                address,
                place: PhantomData,
            }
        }

        /// The place `bytes` into dynamic shared memory.
        #[inline(always)]
        pub fn dynamic(bytes: u32) -> Self {
            Self::from_address(dynamic_base() + bytes)
        }

        /// The shared address.
        #[inline(always)]
        pub const fn address(self) -> u32 {
            self.address
        }

        /// The place `count` elements further.
        #[inline(always)]
        #[allow(clippy::should_implement_trait, reason = "the name that pointers have")]
        pub const fn add(self, count: u32) -> Self {
            Self::from_address(self.address.wrapping_add(count.wrapping_mul(size_of::<T>() as u32)))
        }

        /// The place `bytes` bytes further.
        #[inline(always)]
        pub const fn byte_add(self, bytes: u32) -> Self {
            Self::from_address(self.address.wrapping_add(bytes))
        }

        /// The same place holding a `U`, as `Shared<f32>` becomes `Shared<[f32; 4]>`.
        #[inline(always)]
        pub const fn cast<U>(self) -> Shared<U> {
            Shared::from_address(self.address)
        }
    }

    impl<T: Value> Shared<T> {
        /// [`ld`] from here.
        ///
        /// # Safety
        /// - As for [`ld`].
        #[inline(always)]
        pub unsafe fn read(self) -> T {
            // SAFETY: forwarded to the caller.
            unsafe { ld(self.address) }
        }

        /// [`st`] to here.
        ///
        /// # Safety
        /// - As for [`st`].
        #[inline(always)]
        pub unsafe fn write(self, value: T) {
            // SAFETY: forwarded to the caller.
            unsafe { st(self.address, value) }
        }
    }
}

/// Declares the launch-sized shared memory; the kernel crate says it once, at its root.
///
/// The declaration cannot stand in this crate: no code refers to it that LLVM can see, and module-level assembly of a
/// library that nothing refers to is dropped. Its size is given at launch; 1024 bytes is the alignment that 128-byte
/// swizzles need.
#[macro_export]
macro_rules! declare_dynamic_shared {
    () => {
        #[cfg(target_arch = "nvptx64")]
        ::core::arch::global_asm!(".extern .shared .align 1024 .b8 dynamic_shared[];");
    };
}
