//! Runs PTX on the CPU with SIMT semantics and reports faults the way Miri does.

pub mod numeric;
pub mod tensor;

/// One register of a warp: the value of each lane, zero-extended to 64 bits.
///
/// Everything the machine computes goes through this shape; an instruction is a tight loop over it under a mask
/// of active lanes (bit *i* of the mask is lane *i*).
pub type Lanes = [u64; 32];
