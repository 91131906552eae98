//! What a kernel did wrong, and every other error of the crate.

use std::fmt;

use crate::error::ParseError;
use crate::syntax::ast::Position;

/// The kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside every allocation, or across the end of one.
    OutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// An address of one state space used in another, or a write to constant memory.
    WrongSpace,
    /// A read of memory or of a register that was never written.
    Uninitialised,
    /// Two conflicting accesses that nothing orders.
    Race,
    /// An `.aligned` or `.sync` instruction that not all lanes it names execute together.
    BarrierDivergence,
    /// A barrier used with mismatched or impossible thread counts.
    BarrierCount,
    /// A misused `mbarrier`.
    Mbarrier,
    /// A missing proxy fence between generic and asynchronous accesses.
    Proxy,
    /// Registers or shared memory touched while an asynchronous operation still uses them.
    InFlight,
    /// A bulk or `cp.async` operation that was never waited for as its use requires.
    BulkGroup,
    /// A malformed operand of a tensor or bulk operation: descriptor, tensor map, size.
    Operand,
    /// Nobody can make progress.
    Deadlock,
    /// The step budget ran out.
    StepBudget,
    /// More registers used than `setmaxnreg` left.
    RegisterBudget,
    /// A branch or an address depends on secret data.
    Secret,
    /// `trap`, `brkpt`, or a failed assertion.
    Trap,
    /// A call of a function that has no body, such as a Rust panic.
    Panic,
}

impl FaultKind {
    /// The name as used in `// fault:` headers of test files, such as `out_of_bounds`.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::OutOfBounds => "out_of_bounds",
            FaultKind::Misaligned => "misaligned",
            FaultKind::WrongSpace => "wrong_space",
            FaultKind::Uninitialised => "uninitialised",
            FaultKind::Race => "race",
            FaultKind::BarrierDivergence => "barrier_divergence",
            FaultKind::BarrierCount => "barrier_count",
            FaultKind::Mbarrier => "mbarrier",
            FaultKind::Proxy => "proxy",
            FaultKind::InFlight => "in_flight",
            FaultKind::BulkGroup => "bulk_group",
            FaultKind::Operand => "operand",
            FaultKind::Deadlock => "deadlock",
            FaultKind::StepBudget => "step_budget",
            FaultKind::RegisterBudget => "register_budget",
            FaultKind::Secret => "secret",
            FaultKind::Trap => "trap",
            FaultKind::Panic => "panic",
        }
    }
}

/// A place in the program, and who was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Line and column in the PTX.
    pub position: Position,
    /// The instruction's opcode and modifiers.
    pub instruction: String,
    /// Source file and line, when the PTX has `.loc` lines.
    pub source: Option<(String, u32)>,
    /// Index of the CTA in the grid.
    pub cta: [u32; 3],
    /// Index of the warp in its CTA.
    pub warp: u32,
    /// The lane, when one can be named.
    pub lane: Option<u32>,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.cta;
        write!(f, "PTX line {} ({})", self.position, self.instruction)?;
        if let Some((file, line)) = &self.source {
            write!(f, ", {file}:{line}")?;
        }
        write!(f, ", CTA ({x},{y},{z}), warp {}", self.warp)?;
        match self.lane {
            Some(lane) => write!(f, ", lane {lane}"),
            None => Ok(()),
        }
    }
}

/// A fault of a running kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// The entry that was launched.
    pub kernel: String,
    /// Where.
    pub site: Site,
    /// What happened.
    pub message: String,
    /// The address, if the fault is about memory.
    pub address: Option<u64>,
    /// The allocation that the address belongs to or lies next to.
    pub allocation: Option<String>,
    /// The other access, of a race.
    pub other: Option<Site>,
    /// The seed of the schedule.
    pub seed: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} in kernel {} at {}",
            self.kind.name(),
            self.message,
            self.kernel,
            self.site
        )?;
        if let Some(address) = self.address {
            write!(f, "; address {address:#x}")?;
        }
        if let Some(allocation) = &self.allocation {
            write!(f, " ({allocation})")?;
        }
        if let Some(other) = &self.other {
            write!(f, "; the other access: {other}")?;
        }
        write!(f, "; seed {}", self.seed)
    }
}

impl std::error::Error for Fault {}

/// An entry that cannot be prepared: it reaches something that is malformed or not modelled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {message}")]
pub struct LoadError {
    /// Where.
    pub position: Position,
    /// The instruction or declaration, and what is wrong with it.
    pub message: String,
}

/// Every error of the crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not PTX.
    #[error("PTX line {0}")]
    Parse(#[from] ParseError),
    /// The entry cannot be prepared.
    #[error("PTX line {0}")]
    Load(#[from] LoadError),
    /// There is no such entry.
    #[error("there is no entry {name:?} in the module; it has {known}")]
    NoEntry {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A launch argument that the target does not allow.
    #[error("{argument} is {value}, allowed: {allowed}")]
    Argument {
        /// The argument's name.
        argument: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// A host access outside every allocation.
    #[error("host {operation} of {bytes} bytes at {address:#x} is outside every allocation")]
    Address {
        /// `read`, `write`, `fill`, `copy` or `free`.
        operation: &'static str,
        /// First address.
        address: u64,
        /// Length.
        bytes: usize,
    },
    /// The allocation does not fit.
    #[error("out of memory: {requested} bytes asked for, {free} free")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes left under the machine's limit.
        free: u64,
    },
    /// The kernel faulted.
    #[error("{0}")]
    Fault(#[from] Box<Fault>),
}

/// How an instruction stops a kernel; the machine adds who and where.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) kind: FaultKind,
    pub(crate) message: String,
    pub(crate) lane: Option<u32>,
    pub(crate) address: Option<u64>,
    pub(crate) other: Option<Access>,
}

/// Who made an earlier access: enough to print a [`Site`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) pc: u32,
    pub(crate) cta: u32,
    pub(crate) warp: u32,
    pub(crate) lane: u32,
}

impl Stop {
    pub(crate) fn new(kind: FaultKind, message: impl Into<String>) -> Box<Stop> {
        Box::new(Stop {
            kind,
            message: message.into(),
            lane: None,
            address: None,
            other: None,
        })
    }

    pub(crate) fn lane(mut self: Box<Self>, lane: u32) -> Box<Stop> {
        self.lane = Some(lane);
        self
    }

    pub(crate) fn address(mut self: Box<Self>, address: u64) -> Box<Stop> {
        self.address = Some(address);
        self
    }

    pub(crate) fn other(mut self: Box<Self>, other: Access) -> Box<Stop> {
        self.other = Some(other);
        self
    }
}
