//! What a run of the command gives: figures, and where they come from.

use serde::{Deserialize, Serialize};

use super::{Environment, GpuState, Timing};

/// A peer's time of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerTime {
    /// Peer.
    pub name: String,
    /// Its median over the rounds, microseconds.
    pub microseconds: f64,
    /// Ours over the same rounds.
    pub ours: f64,
    /// Peer over ours: above 1, ours is faster.
    pub ratio: f64,
    /// Rounds of one turn each.
    pub rounds: u32,
}

/// One measured case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Suite.
    pub suite: String,
    /// Op of the inventory.
    pub op: String,
    /// Shape and options.
    pub case: String,
    /// Element type.
    pub dtype: String,
    /// Microseconds.
    pub timing: Timing,
    /// Bytes that must move.
    pub bytes: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes over the median.
    pub terabytes_per_second: f64,
    /// Operations over the median.
    pub teraflops_per_second: f64,
    /// Share of the copy bandwidth.
    pub share_of_copy: f64,
    /// Share of the matrix rate; 16-bit types only.
    pub share_of_matrix: Option<f64>,
    /// Sets of buffers that runs rotated over.
    pub buffers: usize,
    /// Peak bytes of device memory in tensors so far.
    pub peak_bytes: u64,
    /// Peers in turns.
    pub peers: Vec<PeerTime>,
}

/// Ceilings of the GPU, measured in the same run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ceilings {
    /// Copy of 2 GiB, read and written bytes, TB/s.
    pub copy: f64,
    /// The faster of our product of 8192³ and cuBLASLt's, TFLOP/s in 16 bits.
    pub matrix: f64,
    /// Whose product that was.
    pub matrix_by_us: bool,
}

/// A run of the command: figures and where they come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Machine, command, date.
    pub environment: Environment,
    /// The GPU when the run ended.
    pub gpu_after: Option<GpuState>,
    /// Ceilings.
    pub ceilings: Ceilings,
    /// Peers that took part.
    pub peers: Vec<String>,
    /// Peers that did not, and why.
    pub peers_missing: Vec<String>,
    /// Figures.
    pub rows: Vec<Row>,
    /// Cases that were not measured, and why.
    pub failures: Vec<String>,
}
