//! Control flow: `bra`, `brx.idx`, `ret`, `exit`, `trap`, `nanosleep`, `setmaxnreg`.

use super::registers::{Misuse, Pool};
use super::{Context, Operation, Outcome, Step};
use crate::fault::{FaultKind, Stop};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::machine::warp::Wait;
use crate::program::{NOWHERE, Op, Register};
use crate::syntax::ast::{Instruction, Operand};

/// `brx.idx`.
struct Indexed {
    index: Register,
    labels: Vec<u32>,
    places: Vec<u32>,
    join: u32,
}

impl Operation for Indexed {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let mut targets: Vec<(u32, u32)> = Vec::new();
        for lane in cx.lanes() {
            let index = cx.register(self.index)[lane] & 0xFFFF_FFFF;
            let Some(&place) = self.places.get(index as usize) else {
                let message = format!("index {index} of {} branch targets", self.places.len());
                return Err(Stop::new(FaultKind::Operand, message).lane(lane as u32));
            };
            match targets.iter_mut().find(|(p, _)| *p == place) {
                Some((_, mask)) => *mask |= 1 << lane,
                None => targets.push((place, 1 << lane)),
            }
        }
        Ok(Step::Jump {
            targets,
            join: self.join,
        })
    }

    fn link(&mut self, labels: &[u32]) {
        self.places = self.labels.iter().map(|&l| labels[l as usize]).collect();
    }

    fn targets(&self) -> Option<Vec<u32>> {
        Some(self.places.clone())
    }

    fn meet(&mut self, join: u32) {
        self.join = join;
    }
}

/// `trap`, or a call of a function without a body.
struct Halt {
    kind: FaultKind,
    message: String,
}

impl Operation for Halt {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        Err(Stop::new(self.kind, self.message.clone()).lane(cx.mask.trailing_zeros()))
    }
}

/// `nanosleep`: lets others run.
struct Sleep;

impl Operation for Sleep {
    fn run(&self, _: &mut Context<'_>) -> Outcome {
        Ok(Step::Yield)
    }
}

/// `setmaxnreg`.
struct SetRegisters {
    increase: bool,
    count: u32,
}

impl Operation for SetRegisters {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        cx.aligned()?;
        let (warp, count) = (cx.warp.id as usize, self.count);
        let launch = cx.launch;
        let new = || {
            let entry = &launch.program.entry;
            let blocks = entry.blocks_per_multiprocessor.unwrap_or(1).max(1);
            Pool::new(launch.threads(), launch.target.registers / blocks, entry.register_limit)
        };
        let pool = cx.cta().asynchronous.register_pool.get_or_insert_with(new);
        let misuse = |e: Misuse| Stop::new(FaultKind::RegisterBudget, e.to_string());
        if !self.increase {
            pool.decrease(warp, count).map_err(misuse)?;
            return Ok(Step::Next);
        }
        match pool.increase(warp, count).map_err(misuse)? {
            Ok(()) => Ok(Step::Next),
            Err(short) => {
                let need = pool.free + short.missing;
                Ok(Step::Retry(Wait::Registers { need }))
            }
        }
    }
}

/// A call of a function without a body, such as a Rust panic: a fault when it is executed.
pub(crate) fn lower_panic(l: &mut Lowering<'_>, name: &str) -> Lowered {
    l.other(Halt {
        kind: FaultKind::Panic,
        message: format!("the kernel called {name}"),
    })
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    match &*i.opcode {
        "bra" => {
            let _ = m.take("uni");
            let [target] = l.operands(i)?;
            let Operand::Name(name) = target else {
                return l.refuse("the target must be a label");
            };
            let target = l.label(name)?;
            l.emit(Op::Branch { target, join: NOWHERE })
        }
        "brx" => {
            let _ = m.take("uni");
            if !m.take("idx") {
                return l.refuse("only brx.idx is modelled");
            }
            let [index, Operand::Name(list)] = l.operands(i)? else {
                return l.refuse("the list must be a label");
            };
            let index = l.source(index, Type::U32)?;
            let labels = l.branch_targets(list)?;
            l.other(Indexed {
                index,
                labels,
                places: Vec::new(),
                join: NOWHERE,
            })
        }
        "ret" => {
            let _ = m.take("uni");
            match l.return_label() {
                Some(target) => l.emit(Op::Branch { target, join: NOWHERE }),
                None => l.emit(Op::Exit),
            }
        }
        "exit" => l.emit(Op::Exit),
        "trap" => l.other(Halt {
            kind: FaultKind::Trap,
            message: "trap".into(),
        }),
        "brkpt" => l.other(Halt {
            kind: FaultKind::Trap,
            message: "brkpt".into(),
        }),
        "pmevent" => {
            let _ = m.take("mask");
            l.emit(Op::Nop)
        }
        "nanosleep" => {
            let _ = l.ty(m)?;
            l.other(Sleep)
        }
        _ => {
            let Some(direction) = m.take_one(&["inc", "dec"]) else {
                return l.refuse(".inc or .dec is missing");
            };
            let _ = (m.take("sync"), m.take("aligned"));
            let _ = l.ty(m)?;
            let [count] = l.operands(i)?;
            let count = l.literal(count)?;
            if !(24..=256).contains(&count) || count % 8 != 0 {
                return l.refuse("the register count must be a multiple of 8 from 24 to 256");
            }
            l.other(SetRegisters {
                increase: direction == 0,
                count: count as u32,
            })
        }
    }
}
