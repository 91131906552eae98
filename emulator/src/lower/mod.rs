//! From the tree to a [`Program`]: names become indices, calls are inlined, control flow gets its joins.

mod call;
mod flow;
mod operand;
mod register;
mod scope;
mod statement;
pub(crate) mod types;

use std::collections::HashMap;
use std::sync::Arc;

use crate::exec::{self, Operation};
use crate::fault::LoadError;
use crate::module::Symbols;
use crate::program::*;
use crate::syntax::ast::{Declarator, Function, Immediate, Instruction, Operand, Position, Space, Statement, Variable};
use scope::Scopes;
pub(crate) use scope::Symbol;
use types::{Type, ones};

/// The result of lowering something.
pub(crate) type Lowered<T = ()> = Result<T, LoadError>;

/// Most instructions a program may have after inlining.
const LONGEST: usize = 1 << 21;
/// Deepest chain of calls.
const CALLS: u32 = 32;
/// In a `.param` address: the space of a call's parameters, not the kernel's.
pub(crate) const LOCAL_PARAM: u64 = 1 << 32;

/// Where a call returns to, and what it reads and writes.
struct Frame {
    /// Label that `ret` goes to; `None` in the entry.
    end: Option<u32>,
}

/// The state of lowering one entry.
pub(crate) struct Lowering<'a> {
    symbols: &'a Symbols,
    scopes: Scopes,
    code: Vec<Ins>,
    info: Vec<Info>,
    kinds: Vec<String>,
    kind_index: HashMap<String, u32>,
    lists: Vec<u32>,
    registers: u32,
    predicates: u32,
    constants: Vec<(Register, Constant)>,
    constant_index: HashMap<Constant, Register>,
    local_bytes: u32,
    shared_bytes: u32,
    shared_offsets: HashMap<Box<str>, u32>,
    dynamic_align: u32,
    dynamic_registers: Vec<(Register, u32)>,
    /// Place of every label, once known.
    labels: Vec<u32>,
    frames: Vec<Frame>,
    calls: u32,
    position: Position,
    source: Option<(u32, u32)>,
    kind: u32,
    guard: (Predicate, bool),
    reads: Vec<u32>,
    writes: Vec<u32>,
    tests: Vec<u32>,
    sets: Vec<u32>,
    address: Option<Register>,
    name: String,
    order_matters: bool,
    used_registers: u32,
}

/// Lowers an entry.
pub(crate) fn lower(symbols: &Symbols, function: &Function) -> Lowered<Program> {
    let mut l = Lowering {
        symbols,
        scopes: Scopes::default(),
        code: Vec::new(),
        info: Vec::new(),
        kinds: Vec::new(),
        kind_index: HashMap::new(),
        lists: Vec::new(),
        registers: 1,
        predicates: 1,
        constants: Vec::new(),
        constant_index: HashMap::new(),
        local_bytes: 0,
        shared_bytes: 0,
        shared_offsets: HashMap::new(),
        dynamic_align: 16,
        dynamic_registers: Vec::new(),
        labels: Vec::new(),
        frames: vec![Frame { end: None }],
        calls: 0,
        position: function.position,
        source: None,
        kind: 0,
        guard: (NO_PREDICATE, false),
        reads: Vec::new(),
        writes: Vec::new(),
        tests: Vec::new(),
        sets: Vec::new(),
        address: None,
        name: format!("entry {}", function.name),
        order_matters: false,
        used_registers: 0,
    };
    if symbols.address_size != 64 {
        return l.refuse("only .address_size 64 is modelled");
    }
    let mut entry = entry_info(function)?;
    l.scopes.enter();
    for (variable, p) in function.parameters.iter().zip(&entry.parameters) {
        let name = &variable.declared[0].name;
        if !name.is_empty() {
            l.scopes.define(name, Symbol::Parameter(p.offset as u64));
        }
    }
    let Some(body) = &function.body else {
        return l.refuse("the entry has no body");
    };
    l.body(body)?;
    l.name = "exit".into();
    l.guard = (NO_PREDICATE, false);
    l.emit(Op::Exit)?;
    l.finish_shared();
    let Lowering {
        mut code,
        info,
        kinds,
        lists,
        labels,
        ..
    } = l;
    let mut targets = Vec::new();
    for ins in &mut code {
        match &mut ins.op {
            Op::Branch { target, .. } => *target = labels[*target as usize],
            Op::Other(operation) => operation.link(&labels),
            _ => {}
        }
        targets.push(match &ins.op {
            Op::Branch { target, .. } => Some(vec![*target]),
            Op::Other(operation) => operation.targets(),
            _ => None,
        });
    }
    let flow = |pc: usize| match (&code[pc].op, &targets[pc]) {
        (Op::Exit, _) => flow::Flow::End,
        (_, Some(targets)) => flow::Flow::To {
            targets: targets.clone(),
            falls: code[pc].guard != NO_PREDICATE,
        },
        _ => flow::Flow::Next,
    };
    let joins = flow::joins(&code, &flow);
    for (ins, meet) in code.iter_mut().zip(joins) {
        match &mut ins.op {
            Op::Branch { join, .. } => *join = meet,
            Op::Other(operation) => operation.meet(meet),
            _ => {}
        }
    }
    entry.static_shared_bytes = l.shared_bytes;
    entry.registers = l.used_registers;
    Ok(Program {
        name: Arc::from(&*function.name),
        code,
        info,
        kinds,
        lists,
        registers: l.registers,
        predicates: l.predicates,
        constants: l.constants,
        local_bytes: l.local_bytes.next_multiple_of(16),
        dynamic_shared_at: l.shared_bytes.next_multiple_of(l.dynamic_align),
        files: symbols.files.clone(),
        order_matters: l.order_matters,
        entry,
    })
}

/// Size and alignment of a declared variable, and whether it is an unsized array.
pub(crate) fn layout(variable: &Variable, declared: &Declarator) -> Lowered<(u64, u64, bool)> {
    let fail = |message: String| LoadError {
        position: variable.position,
        message,
    };
    let ty = Type::parse(&variable.ty)
        .filter(|t| *t != Type::Pred && *t != Type::B128)
        .ok_or_else(|| fail(format!("variables of type .{} are not modelled", variable.ty)))?;
    let element = u64::from(ty.bytes()) * u64::from(variable.vector);
    let align = variable.align.unwrap_or(element).max(u64::from(ty.bytes()));
    let mut size = element;
    let mut unsized_array = false;
    for dimension in &declared.dimensions {
        match dimension {
            Some(n) => {
                size = size
                    .checked_mul(*n)
                    .filter(|s| *s <= 1 << 40)
                    .ok_or_else(|| fail(format!("{} is larger than 2^40 bytes", declared.name)))?;
            }
            None => unsized_array = true,
        }
    }
    Ok((size, align.next_power_of_two(), unsized_array))
}

/// Parameters and directives of an entry.
pub(crate) fn entry_info(function: &Function) -> Lowered<EntryInfo> {
    let mut info = EntryInfo::default();
    for variable in &function.parameters {
        let declared = &variable.declared[0];
        let (size, align, unsized_array) = layout(variable, declared)?;
        let fail = |message: &str| LoadError {
            position: variable.position,
            message: message.into(),
        };
        if unsized_array || variable.space != Space::Parameter {
            return Err(fail("an entry's parameters must be .param variables of known size"));
        }
        let offset = (info.parameter_bytes as u64).next_multiple_of(align);
        if offset + size > 32764 {
            return Err(fail("the parameters need more than 32,764 bytes"));
        }
        info.parameters.push(Parameter {
            name: declared.name.to_string(),
            offset: offset as usize,
            size: size as usize,
            align: align as usize,
        });
        info.parameter_bytes = (offset + size) as usize;
    }
    for directive in &function.directives {
        let numbers: Vec<u32> = directive
            .operands
            .iter()
            .filter_map(|o| match o {
                Operand::Immediate(Immediate::Integer(v)) => u32::try_from(*v).ok(),
                _ => None,
            })
            .collect();
        let triple = || std::array::from_fn(|i| numbers.get(i).copied().unwrap_or(1));
        match &*directive.name {
            "reqntid" => info.required_block = Some(triple()),
            "maxntid" => info.largest_block = Some(triple()),
            "reqnctapercluster" => info.required_cluster = Some(triple()),
            "maxnreg" => info.register_limit = numbers.first().copied(),
            "minnctapersm" => info.blocks_per_multiprocessor = numbers.first().copied(),
            // Hints, and what is said again at launch.
            "maxnctapersm"
            | "explicitcluster"
            | "maxclusterrank"
            | "pragma"
            | "attribute"
            | "noreturn"
            | "blocksareclusters"
            | "abi_preserve"
            | "abi_preserve_control" => {}
            other => {
                let message = format!("the directive .{other} is not modelled");
                return Err(LoadError {
                    position: directive.position,
                    message,
                });
            }
        }
    }
    Ok(info)
}

impl<'a> Lowering<'a> {
    /// The error for the instruction at hand.
    pub(crate) fn refuse<T>(&self, why: &str) -> Lowered<T> {
        Err(LoadError {
            position: self.position,
            message: format!("{}: {why}", self.name),
        })
    }

    /// Appends an instruction.
    pub(crate) fn emit(&mut self, op: Op) -> Lowered {
        if self.code.len() >= LONGEST {
            return self.refuse("the entry has more than 2^21 instructions after inlining");
        }
        match &op {
            Op::Nop | Op::Exit | Op::Branch { .. } => {}
            Op::Copy { d, a } | Op::Map1 { d, a, .. } => self.note(&[*a], &[*d], &[], &[]),
            Op::Map2 { d, a, b, .. } => self.note(&[*a, *b], &[*d], &[], &[]),
            Op::Map3 { d, a, b, c, .. } => self.note(&[*a, *b, *c], &[*d], &[], &[]),
            Op::Map4 { d, s, .. } => self.note(s, &[*d], &[], &[]),
            Op::Test {
                p, q, a, b, combine, ..
            } => {
                let with: Vec<u32> = combine.iter().map(|c| c.predicate).collect();
                self.note(&[*a, *b], &[], &with, &[*p, *q]);
            }
            Op::TestValue { d, a, b, combine, .. } => {
                let with: Vec<u32> = combine.iter().map(|c| c.predicate).collect();
                self.note(&[*a, *b], &[*d], &with, &[]);
            }
            Op::Select { d, a, b, p, .. } => self.note(&[*a, *b], &[*d], &[*p], &[]),
            Op::Logic { d, a, b, .. } => self.note(&[], &[], &[*a, *b], &[*d]),
            Op::Other(_) => {}
        }
        let mut list = |from: &mut Vec<u32>| {
            let start = self.lists.len() as u32;
            self.lists.append(from);
            (start, self.lists.len() as u32 - start)
        };
        let (reads, writes) = (list(&mut self.reads), list(&mut self.writes));
        let (tests, sets) = (list(&mut self.tests), list(&mut self.sets));
        let address = self.address.take();
        self.code.push(Ins {
            op,
            guard: self.guard.0,
            negated: self.guard.1,
        });
        self.info.push(Info {
            position: self.position,
            kind: self.kind,
            source: self.source,
            reads,
            writes,
            tests,
            sets,
            address,
        });
        Ok(())
    }

    fn note(&mut self, reads: &[u32], writes: &[u32], tests: &[u32], sets: &[u32]) {
        self.reads = reads.to_vec();
        self.writes = writes.to_vec();
        self.tests = tests.to_vec();
        self.sets = sets.to_vec();
    }

    /// Appends an operation; its operands are those resolved since the last instruction.
    pub(crate) fn other(&mut self, operation: impl Operation + 'static) -> Lowered {
        self.emit(Op::Other(Box::new(operation)))
    }

    /// The result of the kernel may depend on the order in which CTAs run.
    pub(crate) fn order_matters(&mut self) {
        self.order_matters = true;
    }

    /// Marks a register as the address of the operation at hand.
    pub(crate) fn is_address(&mut self, r: Register) {
        self.address = Some(r);
    }
}
