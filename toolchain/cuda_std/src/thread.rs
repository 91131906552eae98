//! Where a thread stands: in its warp, its block, its cluster and the grid (PTX ISA 10, *Special Registers*).

use core::arch::asm;

/// Threads in a warp.
pub const WARP_SIZE: u32 = 32;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.x"]
    safe fn tid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.y"]
    safe fn tid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.tid.z"]
    safe fn tid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ntid.x"]
    safe fn ntid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ntid.y"]
    safe fn ntid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ntid.z"]
    safe fn ntid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.x"]
    safe fn ctaid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.y"]
    safe fn ctaid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.ctaid.z"]
    safe fn ctaid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.x"]
    safe fn nctaid_x() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.y"]
    safe fn nctaid_y() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.nctaid.z"]
    safe fn nctaid_z() -> u32;
    #[link_name = "llvm.nvvm.read.ptx.sreg.laneid"]
    safe fn laneid() -> u32;
}

/// Functions that read one special register each.
macro_rules! special_registers {
    ($($(#[$doc:meta])* $name:ident = $call:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u32 { $call() }
    )*};
}

special_registers! {
    /// `%tid.x`: this thread within its block.
    thread_idx_x = tid_x;
    /// `%tid.y`: this thread within its block.
    thread_idx_y = tid_y;
    /// `%tid.z`: this thread within its block.
    thread_idx_z = tid_z;
    /// `%ntid.x`: threads of a block.
    block_dim_x = ntid_x;
    /// `%ntid.y`: threads of a block.
    block_dim_y = ntid_y;
    /// `%ntid.z`: threads of a block.
    block_dim_z = ntid_z;
    /// `%ctaid.x`: this block within the grid.
    block_idx_x = ctaid_x;
    /// `%ctaid.y`: this block within the grid.
    block_idx_y = ctaid_y;
    /// `%ctaid.z`: this block within the grid.
    block_idx_z = ctaid_z;
    /// `%nctaid.x`: blocks of the grid.
    grid_dim_x = nctaid_x;
    /// `%nctaid.y`: blocks of the grid.
    grid_dim_y = nctaid_y;
    /// `%nctaid.z`: blocks of the grid.
    grid_dim_z = nctaid_z;
    /// `%laneid`: this thread within its warp, 0 to 31.
    lane_id = laneid;
}

/// This thread's warp within a one-dimensional block, `%tid.x / 32`.
///
/// Every lane of the warp computes the same value but the compiler does not know it; [`uniform_warp_idx`] tells it.
#[inline(always)]
pub fn warp_idx() -> u32 {
    thread_idx_x() / WARP_SIZE
}

/// [`warp_idx`] broadcast from lane 0, which lets `ptxas` keep what depends on it in uniform registers.
///
/// # Safety
/// - All 32 lanes of the warp execute this together.
#[inline(always)]
pub unsafe fn uniform_warp_idx() -> u32 {
    // SAFETY: the caller promises a converged warp.
    unsafe { crate::warp::shfl_idx(warp_idx(), 0) }
}

/// This thread's index in the grid, `block_idx_x · block_dim_x + thread_idx_x`, in 64 bits.
#[inline(always)]
pub fn global_idx_x() -> u64 {
    block_idx_x() as u64 * block_dim_x() as u64 + thread_idx_x() as u64
}

/// Threads in the grid's x direction, the stride of a grid-stride loop, in 64 bits.
#[inline(always)]
pub fn grid_stride_x() -> u64 {
    grid_dim_x() as u64 * block_dim_x() as u64
}

/// Functions that read one special register that has no intrinsic of a stable name.
macro_rules! assembly_registers {
    ($($(#[$doc:meta])* $name:ident = $register:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u32 {
            let value: u32;
            // SAFETY: reading a special register has no precondition and no effect.
            unsafe {
                asm!(concat!("mov.u32 {0}, ", $register, ";"), out(reg32) value, options(pure, nomem, nostack));
            }
            value
        }
    )*};
}

assembly_registers! {
    /// `%cluster_ctarank`: this block within its cluster (sm_90).
    cluster_block_rank = "%cluster_ctarank";
    /// `%cluster_nctarank`: blocks of a cluster (sm_90).
    cluster_size = "%cluster_nctarank";
    /// `%cluster_ctaid.x`: this block within its cluster (sm_90).
    cluster_block_idx_x = "%cluster_ctaid.x";
    /// `%cluster_ctaid.y`: this block within its cluster (sm_90).
    cluster_block_idx_y = "%cluster_ctaid.y";
    /// `%clusterid.x`: this cluster within the grid (sm_90).
    cluster_idx_x = "%clusterid.x";
    /// `%clusterid.y`: this cluster within the grid (sm_90).
    cluster_idx_y = "%clusterid.y";
    /// `%nclusterid.x`: clusters of the grid (sm_90).
    grid_clusters_x = "%nclusterid.x";
    /// `%smid`: the multiprocessor this block runs on.
    sm_id = "%smid";
    /// `%nsmid`: one more than the largest multiprocessor number.
    sm_count = "%nsmid";
    /// `%dynamic_smem_size`: bytes of dynamic shared memory of this launch.
    dynamic_shared_bytes = "%dynamic_smem_size";
    /// `%lanemask_lt`: the lanes below this one.
    lane_mask_lt = "%lanemask_lt";
}

/// `%globaltimer`: nanoseconds since some moment, the same for the whole GPU.
///
/// # Safety
/// - None beyond what the device guarantees; each call reads the timer anew and is not moved past other volatile
///   instructions.
#[inline(always)]
pub unsafe fn global_timer() -> u64 {
    let value: u64;
    // SAFETY: reading a special register has no precondition.
    unsafe { asm!("mov.u64 {0}, %globaltimer;", out(reg64) value, options(nostack)) };
    value
}
