//! The instruction families: each file lowers its opcodes to [`Op`](crate::program::Op)s and holds the operations
//! that are more than a function of registers.
//!
//! A family is a file with `lower(l, i, m)`, called from [`lower`] by opcode. It takes the modifiers that it models
//! from `m` (what is left over is refused by name), resolves operands in `l`, and emits either an
//! [`Op`](crate::program::Op) over whole registers or an [`Operation`]. An operation may wait:
//! [`Step::Retry`] runs it again when a [`Wait`] is over (`Wait::Memory` for an `mbarrier`; when the wait is given up,
//! [`Warp::timed_out`] is set), [`Step::Wait`] goes on behind it. Asynchronous operations go to
//! [`Cluster::pending`] and complete when the schedule says so. For the checks, an asynchronous operation takes
//! its clocks from `cluster.order.operation(issuer)` when issued, passes each access to
//! `Cluster::watch_asynchronous`, and hands its clocks on with `order.release_clocks(&clocks, object)` on the word
//! that it signals; a wait that succeeds calls `order.acquire(warp, object)`, an arrive `order.release(warp, object)`,
//! with `check::shared_object(cta, offset)` as the object of an `mbarrier`.

pub(crate) mod kernels;

pub(crate) mod asynchronous;
mod atomic;
pub(crate) mod barrier;
mod bulk;
mod compare;
mod control;
mod convert;
mod cp_async;
mod float;
mod half;
mod integer;
mod load_store;
mod logic;
pub(crate) mod mbarrier;
pub(crate) mod memory;
mod mma;
mod moves;
mod place;
pub(crate) mod registers;
mod special;
mod store_async;
mod transfer;
mod warp;
pub(crate) mod wgmma;

use crate::Lanes;
use crate::fault::{FaultKind, Stop};
use crate::lower::{Lowered, Lowering, types::Modifiers};
use crate::machine::cluster::Cluster;
use crate::machine::launch::LaunchState;
use crate::machine::warp::{Wait, Warp, lanes};
use crate::program::Register;
use crate::syntax::ast::Instruction;

/// What an operation works on: one warp at one instruction, with the lanes that execute it.
pub(crate) struct Context<'a> {
    /// The running warp. It is not in `cluster.warps` while it runs.
    pub(crate) warp: &'a mut Warp,
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) launch: &'a LaunchState<'a>,
    /// The active lanes, never none.
    pub(crate) mask: u32,
    /// The place of the instruction.
    pub(crate) pc: u32,
}

/// What happens after an operation.
pub(crate) enum Step {
    /// The next instruction.
    Next,
    /// The next instruction, after other warps had a turn.
    Yield,
    /// The next instruction, once the wait is over.
    Wait(Wait),
    /// This instruction again, once the wait is over; [`Warp::stage`] is kept.
    Retry(Wait),
    /// Groups of lanes go to different places.
    Jump { targets: Vec<(u32, u32)>, join: u32 },
}

/// The result of an operation.
pub(crate) type Outcome = Result<Step, Box<Stop>>;

/// An operation that touches more than the registers of one lane.
pub(crate) trait Operation: Send + Sync {
    /// Executes it for the active lanes.
    fn run(&self, cx: &mut Context<'_>) -> Outcome;

    /// Whether its results are defined whatever its operands are: it checks what it reads itself.
    fn defines(&self) -> bool {
        false
    }

    /// Whether a lane's result depends on other lanes' operands.
    fn crosses_lanes(&self) -> bool {
        false
    }

    /// Sets the places that a branch goes to; only for branches.
    fn link(&mut self, _labels: &[u32]) {}

    /// Where control may go; only for branches.
    fn targets(&self) -> Option<Vec<u32>> {
        None
    }

    /// Whether it is a `wgmma` instruction, whose register accesses have rules of their own.
    fn is_wgmma(&self) -> bool {
        false
    }

    /// Sets where the lanes of a branch meet again; only for branches.
    fn meet(&mut self, _join: u32) {}
}

impl Context<'_> {
    pub(crate) fn register(&self, r: Register) -> &Lanes {
        &self.warp.registers[r as usize]
    }

    pub(crate) fn register_mut(&mut self, r: Register) -> &mut Lanes {
        &mut self.warp.registers[r as usize]
    }

    /// The active lanes.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = usize> + use<> {
        lanes(self.mask)
    }

    /// The value that all active lanes have in a register.
    ///
    /// # Errors
    /// A fault when they differ.
    pub(crate) fn uniform(&self, r: Register, what: &str) -> Result<u64, Box<Stop>> {
        let values = self.register(r);
        let first = values[self.mask.trailing_zeros() as usize];
        match self.lanes().find(|&l| values[l] != first) {
            None => Ok(first),
            Some(lane) => Err(Stop::new(
                FaultKind::Operand,
                format!(
                    "{what} must be the same in all lanes; it is {first:#x} and {:#x}",
                    values[lane]
                ),
            )
            .lane(lane as u32)),
        }
    }

    /// Refuses an `.aligned` instruction that not all live lanes of the warp execute together.
    pub(crate) fn aligned(&self) -> Result<(), Box<Stop>> {
        if self.mask == self.warp.live {
            return Ok(());
        }
        let missing = self.warp.live & !self.mask;
        Err(Stop::new(
            FaultKind::BarrierDivergence,
            format!(
                "an .aligned instruction is executed by lanes {:#010x} without lanes {missing:#010x}",
                self.mask
            ),
        )
        .lane(missing.trailing_zeros()))
    }

    /// Splits the active lanes by the member mask they name; `Err(Retry)` while lanes that are named have not come.
    pub(crate) fn members(&self, r: Register) -> Result<Result<Vec<u32>, Step>, Box<Stop>> {
        let masks = self.register(r);
        let live = self.warp.live;
        let first = masks[self.mask.trailing_zeros() as usize] as u32;
        if first & live == self.mask && self.lanes().all(|l| masks[l] as u32 == first) {
            return Ok(Ok(vec![self.mask]));
        }
        let mut groups = Vec::new();
        let mut left = self.mask;
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            let members = masks[lane] as u32;
            if members >> lane & 1 == 0 {
                let message = format!("lane {lane} is not in the member mask {members:#010x} that it names");
                return Err(Stop::new(FaultKind::BarrierDivergence, message).lane(lane as u32));
            }
            if members & live & !self.mask != 0 {
                return Ok(Err(Step::Retry(Wait::Lanes { members })));
            }
            let group = members & live;
            if let Some(other) = lanes(group).find(|&l| masks[l] as u32 != members) {
                let message = format!(
                    "lanes {lane} and {other} name different member masks, {members:#010x} and {:#010x}",
                    masks[other] as u32
                );
                return Err(Stop::new(FaultKind::BarrierDivergence, message).lane(lane as u32));
            }
            groups.push(group);
            left &= !group;
        }
        Ok(Ok(groups))
    }
}

/// Lowers one instruction, whatever its family.
pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Lowered {
    let mut m = Modifiers::new(&i.modifiers);
    let m = &mut m;
    match &*i.opcode {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "abs" | "neg" | "min" | "max" | "sqrt" | "rcp" | "rsqrt"
        | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign" | "testp" => arithmetic(l, i, m)?,
        "addc" | "subc" | "madc" | "mul24" | "mad24" | "sad" | "rem" | "popc" | "clz" | "bfind" | "fns" | "brev"
        | "bfe" | "bfi" | "szext" | "bmsk" | "dp4a" | "dp2a" => integer::lower(l, i, m)?,
        "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl" | "shr" | "shf" | "prmt" => logic::lower(l, i, m)?,
        "setp" | "set" | "selp" | "slct" => compare::lower(l, i, m)?,
        "cvt" | "cvta" | "isspacep" => convert::lower(l, i, m)?,
        "mov" | "mapa" | "getctarank" => moves::lower(l, i, m)?,
        "st" if m.take("async") => store_async::lower(l, i, m)?,
        "ld" | "ldu" | "st" | "prefetch" | "prefetchu" | "discard" | "applypriority" | "createpolicy" => {
            load_store::lower(l, i, m)?
        }
        "atom" | "red" => atomic::lower(l, i, m)?,
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => warp::lower(l, i, m)?,
        "bar" | "barrier" | "membar" | "fence" | "griddepcontrol" => barrier::lower(l, i, m)?,
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "pmevent" | "setmaxnreg" => {
            control::lower(l, i, m)?
        }
        "mbarrier" => mbarrier::lower(l, i, m)?,
        "ldmatrix" | "stmatrix" | "movmatrix" | "mma" => mma::lower(l, i, m)?,
        "wgmma" => wgmma::lower(l, i, m)?,
        "cp" => cp_async::lower(l, i, m)?,
        _ => return l.refuse("the opcode is not modelled"),
    }
    match m.left() {
        Some(modifier) => l.refuse(&format!("the modifier .{modifier} is not modelled here")),
        None => Ok(()),
    }
}

/// The opcodes that integers and floats share: the type decides.
fn arithmetic(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    use crate::lower::types::Type;
    let last = i.modifiers.iter().rev().find_map(|m| Type::parse(m));
    match last {
        Some(Type::F32 | Type::F64) => float::lower(l, i, m),
        Some(Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2) => half::lower(l, i, m),
        _ => integer::lower(l, i, m),
    }
}

pub(crate) use control::lower_panic;
pub(crate) use special::clock;
