//! Atomic operations on global and shared memory, ordered loads and stores, and fences
//! (PTX ISA 9.7.13.6, 9.7.13.4; memory model: chapter 8).
//!
//! Order and scope are type parameters: `add_u32::<AcqRel, Gpu>(counter, 1)` is `atom.acq_rel.gpu.global.add.u32`.
//! Operations on global memory stand here, those on the block's shared memory in [`shared`].

use core::arch::asm;

/// Orders this operation with nothing else.
pub enum Relaxed {}
/// What follows in this thread sees what was released to it.
pub enum Acquire {}
/// What this thread did before is seen by who acquires.
pub enum Release {}
/// [`Acquire`] and [`Release`].
pub enum AcqRel {}

/// Threads of the block.
pub enum Cta {}
/// Threads of the cluster (sm_90).
pub enum Cluster {}
/// Threads of the GPU.
pub enum Gpu {}
/// Threads of all GPUs and of the CPU.
pub enum System {}

mod sealed {
    pub trait Kind {
        const KIND: u8;
    }
}
use sealed::Kind;

/// Gives marker types their number.
macro_rules! kinds {
    ($($type:ty = $kind:literal),*) => { $(impl Kind for $type { const KIND: u8 = $kind; })* };
}
kinds! { Relaxed = 0, Acquire = 1, Release = 2, AcqRel = 3, Cta = 0, Cluster = 1, Gpu = 2, System = 3 }

/// The order of a read-modify-write operation.
pub trait Order: Kind {}
impl Order for Relaxed {}
impl Order for Acquire {}
impl Order for Release {}
impl Order for AcqRel {}

/// The order of a load.
pub trait LoadOrder: Kind {}
impl LoadOrder for Relaxed {}
impl LoadOrder for Acquire {}

/// The order of a store.
pub trait StoreOrder: Kind {}
impl StoreOrder for Relaxed {}
impl StoreOrder for Release {}

/// The threads that an operation is atomic and ordered for.
pub trait Scope: Kind {}
impl Scope for Cta {}
impl Scope for Cluster {}
impl Scope for Gpu {}
impl Scope for System {}

/// The instruction of one order and scope, chosen at compile time.
macro_rules! with_order {
    ($head:literal, $tail:expr, $O:ident, $S:ident, [$($order:literal $kind:literal),*], $operands:tt) => {
        match $O::KIND {
            $($kind => with_order!(@scope concat!($head, $order), $tail, $S, $operands),)*
            _ => unreachable!(),
        }
    };
    (@scope $head:expr, $tail:expr, $S:ident, ($($operands:tt)*)) => {
        match $S::KIND {
            0 => asm!(concat!($head, ".cta", $tail), $($operands)*),
            1 => asm!(concat!($head, ".cluster", $tail), $($operands)*),
            2 => asm!(concat!($head, ".gpu", $tail), $($operands)*),
            _ => asm!(concat!($head, ".sys", $tail), $($operands)*),
        }
    };
}

/// Functions of one state space that are one `atom` each.
macro_rules! atomics {
    ($space:literal, $class:ident, $pointer:ident, $address:ident => $raw:expr;
     $($name:ident: $type:ty = $operation:literal, $register:ident, $doc:literal;)*) => {
        $(
            #[doc = $doc]
            ///
            /// Returns the value before.
            ///
            /// # Safety
            /// - `address` is valid, aligned, and in the state space of the function.
            /// - Other threads touch it at the same time by atomic operations only.
            #[inline(always)]
            pub unsafe fn $name<O: Order, S: Scope>($address: $pointer<$type>, value: $type) -> $type {
                let old: $type;
                // SAFETY: forwarded to the caller.
                unsafe {
                    with_order!("atom", concat!($space, ".", $operation, " {0}, [{1}], {2};"), O, S,
                        [".relaxed" 0, ".acquire" 1, ".release" 2, ".acq_rel" 3],
                        (out($register) old, in($class) $raw, in($register) value, options(nostack)));
                }
                old
            }
        )*
    };
}

/// Compare-and-swap of one state space.
macro_rules! compare_and_swap {
    ($space:literal, $class:ident, $pointer:ident, $address:ident => $raw:expr;
     $($name:ident: $type:ty = $operation:literal, $register:ident;)*) => {
        $(
            /// `atom.cas`: stores `new` where `expected` is found. Returns the value before.
            ///
            /// # Safety
            /// - `address` is valid, aligned, and in the state space of the function.
            /// - Other threads touch it at the same time by atomic operations only.
            #[inline(always)]
            pub unsafe fn $name<O: Order, S: Scope>($address: $pointer<$type>, expected: $type, new: $type) -> $type {
                let old: $type;
                // SAFETY: forwarded to the caller.
                unsafe {
                    with_order!("atom", concat!($space, ".", $operation, " {0}, [{1}], {2}, {3};"), O, S,
                        [".relaxed" 0, ".acquire" 1, ".release" 2, ".acq_rel" 3],
                        (out($register) old, in($class) $raw, in($register) expected, in($register) new, options(nostack)));
                }
                old
            }
        )*
    };
}

/// All operations of one state space.
macro_rules! state_space {
    ($($space:tt)*) => {
        atomics! { $($space)*
            add_u32: u32 = "add.u32", reg32, "`atom.add.u32`: adds, modulo 2³².";
            add_i32: i32 = "add.s32", reg32, "`atom.add.s32`: adds, modulo 2³².";
            add_u64: u64 = "add.u64", reg64, "`atom.add.u64`: adds, modulo 2⁶⁴.";
            add_f32: f32 = "add.f32", reg32, "`atom.add.f32`: adds; the order of several additions is not fixed.";
            min_u32: u32 = "min.u32", reg32, "`atom.min.u32`: keeps the smaller.";
            max_u32: u32 = "max.u32", reg32, "`atom.max.u32`: keeps the greater.";
            min_i32: i32 = "min.s32", reg32, "`atom.min.s32`: keeps the smaller.";
            max_i32: i32 = "max.s32", reg32, "`atom.max.s32`: keeps the greater.";
            min_u64: u64 = "min.u64", reg64, "`atom.min.u64`: keeps the smaller.";
            max_u64: u64 = "max.u64", reg64, "`atom.max.u64`: keeps the greater.";
            and_b32: u32 = "and.b32", reg32, "`atom.and.b32`: keeps the bits set in both.";
            or_b32: u32 = "or.b32", reg32, "`atom.or.b32`: sets bits.";
            xor_b32: u32 = "xor.b32", reg32, "`atom.xor.b32`: flips bits.";
            inc_u32: u32 = "inc.u32", reg32, "`atom.inc.u32`: adds 1, and goes to 0 from `value` or more.";
            dec_u32: u32 = "dec.u32", reg32, "`atom.dec.u32`: subtracts 1, and goes to `value` from 0 or from more than `value`.";
            exch_u32: u32 = "exch.b32", reg32, "`atom.exch.b32`: stores.";
            exch_u64: u64 = "exch.b64", reg64, "`atom.exch.b64`: stores.";
        }
        compare_and_swap! { $($space)*
            cas_u32: u32 = "cas.b32", reg32;
            cas_u64: u64 = "cas.b64", reg64;
        }
    };
}

/// `*mut T` as a generic type, which the macros need it to be.
type Pointer<T> = *mut T;

state_space! { ".global", reg64, Pointer, address => address; }

/// Atomic operations on the block's shared memory.
pub mod shared {
    use super::{Order, Scope};
    use crate::shared::Shared;
    use core::arch::asm;

    state_space! { ".shared", reg32, Shared, address => address.address(); }
}

/// Loads and stores of one width.
macro_rules! ordered_accesses {
    ($($load:ident, $store:ident: $type:ty = $width:literal, $register:ident;)*) => {$(
        /// `ld.ORDER.SCOPE.global`: a load that may race with atomic operations of other threads.
        ///
        /// # Safety
        /// - `address` is readable global memory, aligned.
        #[inline(always)]
        pub unsafe fn $load<O: LoadOrder, S: Scope>(address: *const $type) -> $type {
            let value: $type;
            // SAFETY: forwarded to the caller.
            unsafe {
                with_order!("ld", concat!(".global", $width, " {0}, [{1}];"), O, S, [".relaxed" 0, ".acquire" 1],
                    (out($register) value, in(reg64) address, options(nostack)));
            }
            value
        }

        /// `st.ORDER.SCOPE.global`: a store that may race with atomic operations of other threads.
        ///
        /// # Safety
        /// - `address` is writable global memory, aligned.
        #[inline(always)]
        pub unsafe fn $store<O: StoreOrder, S: Scope>(address: *mut $type, value: $type) {
            // SAFETY: forwarded to the caller.
            unsafe {
                with_order!("st", concat!(".global", $width, " [{0}], {1};"), O, S, [".relaxed" 0, ".release" 2],
                    (in(reg64) address, in($register) value, options(nostack)));
            }
        }
    )*};
}

ordered_accesses! {
    load_u32, store_u32: u32 = ".b32", reg32;
    load_u64, store_u64: u64 = ".b64", reg64;
}

/// `fence.acq_rel.SCOPE`: orders this thread's earlier accesses before its later ones, as the scope's threads see it.
///
/// # Safety
/// - None of its own: it makes accesses visible that are themselves allowed.
#[inline(always)]
pub unsafe fn fence<S: Scope>() {
    // SAFETY: a fence has no precondition.
    unsafe { with_order!(@scope "fence.acq_rel", ";", S, (options(nostack))) }
}

/// `fence.sc.SCOPE`: as [`fence`], and all such fences have one order.
///
/// # Safety
/// - As for [`fence`].
#[inline(always)]
pub unsafe fn fence_sc<S: Scope>() {
    // SAFETY: a fence has no precondition.
    unsafe { with_order!(@scope "fence.sc", ";", S, (options(nostack))) }
}
