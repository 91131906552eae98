//! The pre-decoded form of a kernel: registers are indices, immediates are registers that were filled in
//! advance, calls are inlined, and every instruction is one [`Op`] that works on all 32 lanes.

use std::fmt;
use std::sync::Arc;

use crate::Lanes;
use crate::exec::Operation;
use crate::syntax::ast::Position;

/// Index of a register of a warp.
pub(crate) type Register = u32;
/// Index of a predicate of a warp; its value is a mask of lanes.
pub(crate) type Predicate = u32;

/// A pure function of one register, computed for every lane (the caller blends under its mask).
pub(crate) type Map1 = fn(&mut Lanes, &Lanes);
/// A pure function of two registers.
pub(crate) type Map2 = fn(&mut Lanes, &Lanes, &Lanes);
/// A pure function of three registers.
pub(crate) type Map3 = fn(&mut Lanes, &Lanes, &Lanes, &Lanes);
/// A pure function of four registers.
pub(crate) type Map4 = fn(&mut Lanes, &Lanes, &Lanes, &Lanes, &Lanes);
/// A comparison of two registers, as a mask.
pub(crate) type Test = fn(&Lanes, &Lanes) -> u32;

/// `and`, `or`, `xor` with a further predicate, in `setp` and `set`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Boolean {
    And,
    Or,
    Xor,
}

impl Boolean {
    pub(crate) fn apply(self, a: u32, b: u32) -> u32 {
        match self {
            Boolean::And => a & b,
            Boolean::Or => a | b,
            Boolean::Xor => a ^ b,
        }
    }
}

/// A predicate with which the result of a comparison is combined.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Combine {
    pub(crate) with: Boolean,
    pub(crate) predicate: Predicate,
    pub(crate) negated: bool,
}

/// What an instruction does.
pub(crate) enum Op {
    Nop,
    Copy {
        d: Register,
        a: Register,
    },
    Map1 {
        f: Map1,
        d: Register,
        a: Register,
    },
    Map2 {
        f: Map2,
        d: Register,
        a: Register,
        b: Register,
    },
    Map3 {
        f: Map3,
        d: Register,
        a: Register,
        b: Register,
        c: Register,
    },
    Map4 {
        f: Map4,
        d: Register,
        s: [Register; 4],
    },
    /// `setp`: `p` gets the result, `q` the result of the negated comparison.
    Test {
        f: Test,
        p: Predicate,
        q: Predicate,
        a: Register,
        b: Register,
        combine: Option<Combine>,
    },
    /// `set`: the result as a number, `one` for true.
    TestValue {
        f: Test,
        d: Register,
        a: Register,
        b: Register,
        one: u64,
        combine: Option<Combine>,
    },
    Select {
        d: Register,
        a: Register,
        b: Register,
        p: Predicate,
        negated: bool,
    },
    /// Predicate logic: bit `2a+b` of `table` is the result.
    Logic {
        d: Predicate,
        a: Predicate,
        b: Predicate,
        table: u8,
    },
    Branch {
        target: u32,
        join: u32,
    },
    Exit,
    /// Anything that touches more than the registers of one lane.
    Other(Box<dyn Operation>),
}

/// The guard of an instruction that has none.
pub(crate) const NO_PREDICATE: Predicate = u32::MAX;
/// "No such place in the code": a branch without a post-dominator.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// One instruction.
pub(crate) struct Ins {
    pub(crate) op: Op,
    pub(crate) guard: Predicate,
    pub(crate) negated: bool,
}

/// What is only looked at by checks, statistics and messages.
pub(crate) struct Info {
    /// Where the instruction stands in the PTX.
    pub(crate) position: Position,
    /// Index of its opcode in [`Program::kinds`].
    pub(crate) kind: u32,
    /// The last `.loc` before it: file index and line.
    pub(crate) source: Option<(u32, u32)>,
    /// Registers read, as a range of [`Program::lists`].
    pub(crate) reads: (u32, u32),
    /// Registers written.
    pub(crate) writes: (u32, u32),
    /// Predicates read, apart from the guard.
    pub(crate) tests: (u32, u32),
    /// Predicates written.
    pub(crate) sets: (u32, u32),
    /// Must a definedness or taint fault be raised when an operand register is undefined or secret (an address)?
    pub(crate) address: Option<Register>,
}

/// A value that a register has from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    /// An immediate.
    Bits(u64),
    /// The address of a module variable (`.global`, `.const`), plus an offset.
    Global { symbol: u32, offset: i64 },
    /// An offset into the CTA's shared memory.
    Shared(u32),
    /// An offset into the lane's local memory.
    Local(u32),
    /// A special register.
    Special(Special),
}

/// Special registers that do not change while a thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NumWarps,
    SmId,
    NumSms,
    GridId,
    LaneMask(std::cmp::Ordering, bool),
    ClusterId(u8),
    NumClusters(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterRank,
    ClusterSize,
    ExplicitCluster,
    DynamicShared,
    TotalShared,
    /// The carry of extended-precision arithmetic; the one that instructions write.
    ConditionCode,
}

/// A parameter of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// The name in the PTX.
    pub name: String,
    /// Bytes from the start of the parameter buffer.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
}

/// What a launch must know of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryInfo {
    /// Its parameters in order.
    pub parameters: Vec<Parameter>,
    /// Size of the whole parameter buffer in bytes.
    pub parameter_bytes: usize,
    /// Static shared memory in bytes.
    pub static_shared_bytes: u32,
    /// `.reqntid`, when present: the only block allowed.
    pub required_block: Option<[u32; 3]>,
    /// `.maxntid`, when present.
    pub largest_block: Option<[u32; 3]>,
    /// `.reqnctapercluster`, when present.
    pub required_cluster: Option<[u32; 3]>,
    /// `.maxnreg`, when present.
    pub register_limit: Option<u32>,
    /// `.minnctapersm`, when present: blocks that share a multiprocessor's registers.
    pub blocks_per_multiprocessor: Option<u32>,
    /// Virtual registers that the entry and what it calls use, in units of 32 bits.
    pub registers: u32,
}

/// A prepared entry.
pub(crate) struct Program {
    pub(crate) name: Arc<str>,
    pub(crate) code: Vec<Ins>,
    pub(crate) info: Vec<Info>,
    pub(crate) kinds: Vec<String>,
    pub(crate) lists: Vec<u32>,
    pub(crate) registers: u32,
    pub(crate) predicates: u32,
    pub(crate) constants: Vec<(Register, Constant)>,
    pub(crate) local_bytes: u32,
    /// Offset of dynamic shared memory behind the static part, relative to the start of shared memory.
    pub(crate) dynamic_shared_at: u32,
    pub(crate) files: Vec<(u32, String)>,
    /// The order in which CTAs run may show in the result (float reductions, atomics whose result is used).
    pub(crate) order_matters: bool,
    pub(crate) entry: EntryInfo,
}

impl Program {
    pub(crate) fn list(&self, range: (u32, u32)) -> &[u32] {
        &self.lists[range.0 as usize..(range.0 + range.1) as usize]
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("name", &self.name)
            .field("instructions", &self.code.len())
            .finish()
    }
}
