//! The GPU that is imitated.

/// Limits of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name as in `.target`, such as `sm_90a`.
    pub name: &'static str,
    /// Compute capability times ten.
    pub capability: u32,
    /// Largest shared memory of a CTA in bytes, static and dynamic together.
    pub shared_bytes: u32,
    /// Largest number of threads of a CTA.
    pub block_threads: u32,
    /// Largest number of CTAs of a cluster; 1 where there are no clusters.
    pub cluster_ctas: u32,
    /// Registers of a multiprocessor.
    pub registers: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
}

impl Target {
    /// Turing, such as the T4.
    pub const SM_75: Target = Target {
        name: "sm_75",
        capability: 75,
        shared_bytes: 64 << 10,
        block_threads: 1024,
        cluster_ctas: 1,
        registers: 65536,
        multiprocessors: 40,
    };
    /// Ampere, such as the A100.
    pub const SM_80: Target = Target {
        name: "sm_80",
        capability: 80,
        shared_bytes: 163 << 10,
        multiprocessors: 108,
        ..Target::SM_75
    };
    /// Hopper with its architecture-specific instructions: H100, H200.
    pub const SM_90A: Target = Target {
        name: "sm_90a",
        capability: 90,
        shared_bytes: 227 << 10,
        cluster_ctas: 16,
        multiprocessors: 132,
        ..Target::SM_75
    };
}
