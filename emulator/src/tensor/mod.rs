//! Pure functions behind the tensor and asynchronous instructions: fragment layouts and arithmetic of `mma` and
//! `wgmma`, `ldmatrix`/`stmatrix` layouts, shared-memory descriptors, swizzles, tensor maps and their box
//! iteration, and the `mbarrier` state word.
//!
//! Nothing in this module knows of warps, memory or scheduling: inputs are register values of the 32 lanes
//! (`[u64; 32]` per register, zero-extended) or bytes, outputs are the same.
