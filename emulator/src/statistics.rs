//! What a launch did, counted.

use std::collections::BTreeMap;

/// Bytes read and written in one state space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

/// Counts of one launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Thread instructions by opcode with modifiers.
    pub instructions: BTreeMap<String, u64>,
    /// Thread instructions by PTX line.
    pub lines: BTreeMap<u32, u64>,
    /// Thread instructions altogether.
    pub thread_instructions: u64,
    /// Warp instructions altogether.
    pub warp_instructions: u64,
    /// Global memory.
    pub global: Traffic,
    /// Shared memory, own and of other CTAs of the cluster.
    pub shared: Traffic,
    /// Local memory.
    pub local: Traffic,
    /// Constant and parameter memory.
    pub constant: Traffic,
    /// Extra passes that shared-memory accesses needed because lanes used different words of one bank.
    pub bank_conflicts: u64,
    /// Floating-point operations; a fused multiply-add counts as two.
    pub flops: u64,
}

impl Statistics {
    /// Floating-point operations per byte of global memory traffic.
    pub fn arithmetic_intensity(&self) -> f64 {
        self.flops as f64 / (self.global.read + self.global.written).max(1) as f64
    }
}

/// Counts of one cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    /// Thread instructions by place in the code.
    pub(crate) threads: Vec<u64>,
    pub(crate) warps: u64,
    /// Global, shared, local, constant.
    pub(crate) traffic: [Traffic; 4],
    pub(crate) bank_conflicts: u64,
    /// Operations of tensor instructions.
    pub(crate) tensor_flops: u64,
}

impl Counters {
    pub(crate) fn new(code: usize) -> Self {
        Counters {
            threads: vec![0; code],
            ..Counters::default()
        }
    }

    pub(crate) fn add(&mut self, other: &Counters) {
        self.threads.resize(self.threads.len().max(other.threads.len()), 0);
        self.threads.iter_mut().zip(&other.threads).for_each(|(a, b)| *a += b);
        self.warps += other.warps;
        for (a, b) in self.traffic.iter_mut().zip(&other.traffic) {
            a.read += b.read;
            a.written += b.written;
        }
        self.bank_conflicts += other.bank_conflicts;
        self.tensor_flops += other.tensor_flops;
    }
}
