//! From the tree to a [`Program`]: names become indices, calls are inlined, control flow gets its joins.

mod flow;
mod scope;
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
            // Hints, and what is said again at launch.
            "minnctapersm"
            | "maxnctapersm"
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
    // ---- errors -------------------------------------------------------------------------------------------

    /// The error for the instruction at hand.
    pub(crate) fn refuse<T>(&self, why: &str) -> Lowered<T> {
        Err(LoadError {
            position: self.position,
            message: format!("{}: {why}", self.name),
        })
    }

    // ---- emission -----------------------------------------------------------------------------------------

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

    // ---- registers ----------------------------------------------------------------------------------------

    /// A register that no name has.
    pub(crate) fn temporary(&mut self) -> Register {
        self.registers += 1;
        self.registers - 1
    }

    /// The register that always holds a constant.
    pub(crate) fn constant(&mut self, constant: Constant) -> Register {
        if let Some(&register) = self.constant_index.get(&constant) {
            return register;
        }
        let register = self.temporary();
        self.constants.push((register, constant));
        self.constant_index.insert(constant, register);
        register
    }

    /// The register that always holds these bits.
    pub(crate) fn bits(&mut self, bits: u64) -> Register {
        self.constant(Constant::Bits(bits))
    }

    fn symbol(&mut self, name: &str) -> Lowered<Symbol> {
        if let Some((symbol, fresh)) = self.scopes.find(name, &mut self.registers, &mut self.predicates) {
            if let (true, Symbol::Register(_, ty)) = (fresh, &symbol) {
                self.used_registers += ty.bits().div_ceil(32);
            }
            return Ok(symbol);
        }
        match self.symbols.lookup(name) {
            Some(crate::module::Global::Shared) => self.module_shared(name),
            Some(crate::module::Global::Variable(index)) => Ok(Symbol::Global(index)),
            Some(crate::module::Global::Function) => Ok(Symbol::Function),
            None => self.refuse(&format!("{name} is not declared")),
        }
    }

    /// The place of a module-level shared variable, given on its first use.
    fn module_shared(&mut self, name: &str) -> Lowered<Symbol> {
        let symbols = self.symbols;
        let Some((variable, declared)) = symbols.shared(name) else {
            return self.refuse(&format!("{name} is not declared"));
        };
        self.place_shared(variable, declared)
    }

    fn place_shared(&mut self, variable: &Variable, declared: &Declarator) -> Lowered<Symbol> {
        if let Some(&offset) = self.shared_offsets.get(&declared.name) {
            return Ok(Symbol::Shared(offset));
        }
        let (size, align, unsized_array) = layout(variable, declared)?;
        if align > 4096 {
            return self.refuse("shared variables are aligned to at most 4096 bytes");
        }
        let align = align as u32;
        if unsized_array || variable.linkage.as_deref() == Some("extern") {
            self.dynamic_align = self.dynamic_align.max(align);
            return Ok(Symbol::DynamicShared);
        }
        let offset = u64::from(self.shared_bytes.next_multiple_of(align));
        if offset + size > 1 << 20 {
            return self.refuse("more than 1 MiB of static shared memory");
        }
        self.shared_bytes = (offset + size) as u32;
        self.shared_offsets.insert(declared.name.clone(), offset as u32);
        Ok(Symbol::Shared(offset as u32))
    }

    /// Dynamic shared memory starts behind all static variables, whose size is known only now.
    fn finish_shared(&mut self) {
        let start = self.shared_bytes.next_multiple_of(self.dynamic_align);
        for (register, offset) in std::mem::take(&mut self.dynamic_registers) {
            self.constants
                .push((register, Constant::Shared(start.wrapping_add(offset))));
        }
    }

    /// The register that holds the address of a symbol plus an offset, in the symbol's own state space.
    fn address_of(&mut self, symbol: &Symbol, offset: i64) -> Lowered<Register> {
        let constant = match *symbol {
            Symbol::Global(symbol) => Constant::Global { symbol, offset },
            Symbol::Shared(at) => Constant::Shared(at.wrapping_add(offset as u32)),
            Symbol::Local(at) => Constant::Local(at.wrapping_add(offset as u32)),
            Symbol::Parameter(at) => Constant::Bits(at.wrapping_add(offset as u64)),
            Symbol::DynamicShared => {
                let known = self.dynamic_registers.iter().find(|(_, o)| *o == offset as u32);
                if let Some((register, _)) = known {
                    return Ok(*register);
                }
                let register = self.temporary();
                self.dynamic_registers.push((register, offset as u32));
                return Ok(register);
            }
            _ => return self.refuse("the operand has no address"),
        };
        Ok(self.constant(constant))
    }

    /// A special register by its name.
    fn special(&mut self, name: &str, component: Option<&str>) -> Lowered<Option<Register>> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let axis = match component {
            Some("x") => 0,
            Some("y") => 1,
            Some("z") => 2,
            Some("w") => 3,
            Some(_) => return Ok(None),
            None => u8::MAX,
        };
        let special = match (name, axis) {
            ("%tid", 0..=3) => Special::Tid(axis),
            ("%ntid", 0..=3) => Special::Ntid(axis),
            ("%ctaid", 0..=3) => Special::Ctaid(axis),
            ("%nctaid", 0..=3) => Special::Nctaid(axis),
            ("%clusterid", 0..=3) => Special::ClusterId(axis),
            ("%nclusterid", 0..=3) => Special::NumClusters(axis),
            ("%cluster_ctaid", 0..=3) => Special::ClusterCtaid(axis),
            ("%cluster_nctaid", 0..=3) => Special::ClusterNctaid(axis),
            ("%laneid", u8::MAX) => Special::LaneId,
            ("%warpid", u8::MAX) => Special::WarpId,
            ("%nwarpid", u8::MAX) => Special::NumWarps,
            ("%smid", u8::MAX) => Special::SmId,
            ("%nsmid", u8::MAX) => Special::NumSms,
            ("%gridid", u8::MAX) => Special::GridId,
            ("%lanemask_eq", u8::MAX) => Special::LaneMask(Equal, true),
            ("%lanemask_lt", u8::MAX) => Special::LaneMask(Less, false),
            ("%lanemask_le", u8::MAX) => Special::LaneMask(Less, true),
            ("%lanemask_gt", u8::MAX) => Special::LaneMask(Greater, false),
            ("%lanemask_ge", u8::MAX) => Special::LaneMask(Greater, true),
            ("%cluster_ctarank", u8::MAX) => Special::ClusterRank,
            ("%cluster_nctarank", u8::MAX) => Special::ClusterSize,
            ("%is_explicit_cluster", u8::MAX) => Special::ExplicitCluster,
            ("%dynamic_smem_size", u8::MAX) => Special::DynamicShared,
            ("%total_smem_size", u8::MAX) => Special::TotalShared,
            _ => {
                if let Some(clock) = exec::clock(name).filter(|_| axis == u8::MAX) {
                    let d = self.temporary();
                    self.writes.push(d);
                    let (reads, writes) = (std::mem::take(&mut self.reads), vec![d]);
                    self.writes = writes;
                    self.emit(Op::Other(clock(d)))?;
                    self.reads = reads;
                    return Ok(Some(d));
                }
                return Ok(None);
            }
        };
        Ok(Some(self.constant(Constant::Special(special))))
    }

    // ---- operands -----------------------------------------------------------------------------------------

    /// A source operand: the register that holds its value.
    pub(crate) fn source(&mut self, operand: &Operand, ty: Type) -> Lowered<Register> {
        let register = match operand {
            Operand::Immediate(value) => {
                let bits = self.immediate(*value, ty)?;
                self.bits(bits)
            }
            Operand::Name(name) => match self.special(name, None)? {
                Some(register) => register,
                None => match self.symbol(name)? {
                    Symbol::Register(register, _) => register,
                    Symbol::Predicate(_) => return self.refuse(&format!("{name} is a predicate")),
                    Symbol::Function => return self.refuse("addresses of functions are not modelled"),
                    symbol => self.address_of(&symbol, 0)?,
                },
            },
            Operand::Offset(name, offset) => {
                let symbol = self.symbol(name)?;
                self.address_of(&symbol, *offset)?
            }
            Operand::Component(name, component) => match self.special(name, Some(component))? {
                Some(register) => register,
                None => match self.symbol(name)? {
                    Symbol::Vector(first, _, n) => {
                        let i = match &**component {
                            "x" | "r" => 0,
                            "y" | "g" => 1,
                            "z" | "b" => 2,
                            "w" | "a" => 3,
                            _ => n,
                        };
                        if i >= n {
                            return self.refuse(&format!("{name} has no component .{component}"));
                        }
                        first + u32::from(i)
                    }
                    _ => return self.refuse(&format!("{name}.{component} is not modelled")),
                },
            },
            _ => return self.refuse(&format!("the operand {operand} cannot be read here")),
        };
        self.reads.push(register);
        Ok(register)
    }

    /// The bits of a literal as a value of a type.
    fn immediate(&self, value: Immediate, ty: Type) -> Lowered<u64> {
        Ok(match (value, ty) {
            (Immediate::Integer(v), Type::F32) => u64::from((v as i64 as f32).to_bits()),
            (Immediate::Integer(v), Type::F64) => (v as i64 as f64).to_bits(),
            (Immediate::Integer(v), ty) => v & ones(ty.bits()),
            (Immediate::Single(v), Type::F64) => f64::from(f32::from_bits(v)).to_bits(),
            (Immediate::Single(v), ty) if ty.bits() == 32 => u64::from(v),
            (Immediate::Double(v), Type::F32) => u64::from((f64::from_bits(v) as f32).to_bits()),
            (Immediate::Double(v), ty) if ty.bits() == 64 => v,
            _ => return self.refuse(&format!("the literal {value} cannot be of type {ty:?}")),
        })
    }

    /// An operand that must be an integer literal.
    pub(crate) fn literal(&mut self, operand: &Operand) -> Lowered<u64> {
        match operand {
            Operand::Immediate(Immediate::Integer(v)) => Ok(*v),
            _ => self.refuse(&format!("the operand {operand} must be an integer literal")),
        }
    }

    /// A destination register and the bits of its type; `_` is a register that nobody reads.
    pub(crate) fn dest(&mut self, operand: &Operand) -> Lowered<(Register, u32)> {
        let (register, bits) = match operand {
            Operand::Name(name) if &**name == "_" => (0, 64),
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register(register, ty) => (register, ty.bits()),
                _ => return self.refuse(&format!("{name} is not a register")),
            },
            Operand::Component(name, component) => match self.symbol(name)? {
                Symbol::Vector(first, ty, n) => {
                    let i = "xyzw".find(&**component).map_or(n, |i| i as u8);
                    if i >= n {
                        return self.refuse(&format!("{name} has no component .{component}"));
                    }
                    (first + u32::from(i), ty.bits())
                }
                _ => return self.refuse(&format!("{name} is not a vector register")),
            },
            _ => return self.refuse(&format!("the operand {operand} cannot be written")),
        };
        self.writes.push(register);
        Ok((register, bits))
    }

    /// A destination predicate.
    pub(crate) fn dest_predicate(&mut self, operand: &Operand) -> Lowered<Predicate> {
        let predicate = match operand {
            Operand::Name(name) if &**name == "_" => 0,
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Predicate(p) => p,
                _ => return self.refuse(&format!("{name} is not a predicate")),
            },
            _ => return self.refuse(&format!("the operand {operand} is not a predicate")),
        };
        self.sets.push(predicate);
        Ok(predicate)
    }

    /// A source predicate, and whether it is negated.
    pub(crate) fn predicate(&mut self, operand: &Operand) -> Lowered<(Predicate, bool)> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            _ => return self.refuse(&format!("the operand {operand} is not a predicate")),
        };
        match self.symbol(name)? {
            Symbol::Predicate(p) => {
                self.tests.push(p);
                Ok((p, negated))
            }
            _ => self.refuse(&format!("{name} is not a predicate")),
        }
    }

    /// Whether an operand names a predicate.
    pub(crate) fn is_predicate(&mut self, operand: &Operand) -> bool {
        match operand {
            Operand::Not(_) => true,
            Operand::Name(name) => matches!(self.symbol(name), Ok(Symbol::Predicate(_))),
            _ => false,
        }
    }

    /// The elements of a vector operand; a single operand, or a vector register, counts as its elements.
    pub(crate) fn elements(&mut self, operand: &Operand) -> Lowered<Vec<Operand>> {
        match operand {
            Operand::Vector(list) => Ok(list.clone()),
            Operand::Name(name) if &**name != "_" => match self.special(name, None)? {
                Some(_) => Ok(vec![operand.clone()]),
                None => match self.symbol(name)? {
                    Symbol::Vector(_, _, n) => Ok("xyzw"
                        .chars()
                        .take(usize::from(n))
                        .map(|c| Operand::Component(name.clone(), c.to_string().into()))
                        .collect()),
                    _ => Ok(vec![operand.clone()]),
                },
            },
            _ => Ok(vec![operand.clone()]),
        }
    }

    /// The base register and offset of an address operand, and the symbol if it is based on one.
    pub(crate) fn address(&mut self, operand: &Operand) -> Lowered<(Register, i64, Option<Symbol>)> {
        let Operand::Address {
            base,
            offset,
            coordinates: None,
        } = operand
        else {
            return self.refuse(&format!("the operand {operand} is not a plain address"));
        };
        match &**base {
            Operand::Immediate(_) => {
                let register = self.source(base, Type::B64)?;
                Ok((register, *offset, None))
            }
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register(register, _) => {
                    self.reads.push(register);
                    self.is_address(register);
                    Ok((register, *offset, None))
                }
                symbol => Ok((self.address_of(&symbol, *offset)?, 0, Some(symbol))),
            },
            _ => self.refuse(&format!("the operand {operand} is not an address")),
        }
    }

    /// Exactly `N` operands.
    pub(crate) fn operands<'i, const N: usize>(&self, i: &'i Instruction) -> Lowered<&'i [Operand; N]> {
        match <&[Operand; N]>::try_from(&i.operands[..]) {
            Ok(operands) => Ok(operands),
            Err(_) => self.refuse(&format!("it has {} operands instead of {N}", i.operands.len())),
        }
    }

    /// The type modifier, which must be there.
    pub(crate) fn ty(&self, m: &mut types::Modifiers<'_>) -> Lowered<Type> {
        match m.ty() {
            Some(ty) => Ok(ty),
            None => self.refuse("the type is missing"),
        }
    }

    // ---- statements ---------------------------------------------------------------------------------------

    /// A new label, not yet placed.
    pub(crate) fn new_label(&mut self) -> u32 {
        self.labels.push(NOWHERE);
        self.labels.len() as u32 - 1
    }

    fn place_label(&mut self, label: u32) {
        self.labels[label as usize] = self.code.len() as u32;
    }

    /// The label of a name.
    pub(crate) fn label(&mut self, name: &str) -> Lowered<u32> {
        match self.symbol(name)? {
            Symbol::Label(label) => Ok(label),
            _ => self.refuse(&format!("{name} is not a label")),
        }
    }

    /// The labels of a `.branchtargets` list.
    pub(crate) fn branch_targets(&mut self, name: &str) -> Lowered<Vec<u32>> {
        match self.symbol(name)? {
            Symbol::Targets(names) => names.iter().map(|n| self.label(n)).collect(),
            _ => self.refuse(&format!("{name} is not a .branchtargets list")),
        }
    }

    /// Where `ret` goes; `None` in an entry.
    pub(crate) fn return_label(&self) -> Option<u32> {
        self.frames.last().and_then(|f| f.end)
    }

    fn body(&mut self, body: &[Statement]) -> Lowered {
        self.scopes.enter();
        for statement in body {
            match statement {
                Statement::Label(name) => {
                    let label = self.new_label();
                    self.scopes.define(name, Symbol::Label(label));
                }
                Statement::Directive {
                    label: Some(name),
                    directive,
                } if &*directive.name == "branchtargets" => {
                    let names = directive.operands.iter().map(|o| o.to_string().into()).collect();
                    self.scopes.define(name, Symbol::Targets(names));
                }
                _ => {}
            }
        }
        for statement in body {
            match statement {
                Statement::Label(name) => {
                    let label = self.label(name)?;
                    self.place_label(label);
                }
                Statement::Instruction(instruction) => self.instruction(instruction)?,
                Statement::Block(inner) => self.body(inner)?,
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Location { file, line, .. } => self.source = Some((*file, *line)),
                Statement::Directive { directive, .. } => match &*directive.name {
                    "pragma" | "branchtargets" | "calltargets" => {}
                    other => {
                        let message = format!("the directive .{other} is not modelled");
                        return Err(LoadError {
                            position: directive.position,
                            message,
                        });
                    }
                },
                Statement::Prototype { .. } => {}
            }
        }
        self.scopes.leave();
        Ok(())
    }

    fn variable(&mut self, variable: &Variable) -> Lowered {
        self.position = variable.position;
        self.name = format!("declaration of {}", variable.declared[0].name);
        for declared in &variable.declared {
            let symbol = match variable.space {
                Space::Register => {
                    let ty = match Type::parse(&variable.ty) {
                        Some(ty) if ty != Type::B128 => ty,
                        _ => return self.refuse(&format!("registers of type .{} are not modelled", variable.ty)),
                    };
                    self.scopes
                        .registers(&declared.name, declared.count, ty, variable.vector);
                    continue;
                }
                Space::Shared => self.place_shared(variable, declared)?,
                Space::Local | Space::Parameter => {
                    let (size, align, unsized_array) = layout(variable, declared)?;
                    let at = u64::from(self.local_bytes).next_multiple_of(align);
                    if unsized_array || at + size > 512 << 10 {
                        return self.refuse("more than 512 KiB of local memory");
                    }
                    self.local_bytes = (at + size) as u32;
                    if variable.space == Space::Local {
                        Symbol::Local(at as u32)
                    } else {
                        Symbol::Parameter(LOCAL_PARAM | at)
                    }
                }
                Space::Global | Space::Constant => {
                    return self.refuse("module variables inside a body are not modelled");
                }
            };
            self.scopes.define(&declared.name, symbol);
        }
        Ok(())
    }

    fn instruction(&mut self, i: &Instruction) -> Lowered {
        self.position = i.position;
        self.name = i.full_name();
        self.kind = match self.kind_index.get(&self.name) {
            Some(&kind) => kind,
            None => {
                self.kinds.push(self.name.clone());
                self.kind_index.insert(self.name.clone(), self.kinds.len() as u32 - 1);
                self.kinds.len() as u32 - 1
            }
        };
        self.reads.clear();
        self.writes.clear();
        self.tests.clear();
        self.sets.clear();
        self.address = None;
        self.guard = match &i.guard {
            None => (NO_PREDICATE, false),
            Some(guard) => match self.symbol(&guard.register)? {
                Symbol::Predicate(p) => (p, guard.negated),
                _ => return self.refuse(&format!("{} is not a predicate", guard.register)),
            },
        };
        if &*i.opcode == "call" {
            self.call(i)
        } else {
            exec::lower(self, i)
        }
    }

    // ---- calls --------------------------------------------------------------------------------------------

    fn call(&mut self, i: &Instruction) -> Lowered {
        if let Some(modifier) = i.modifiers.iter().find(|m| &***m != "uni") {
            return self.refuse(&format!("the modifier .{modifier} is not modelled here"));
        }
        let mut rest = &i.operands[..];
        let mut tuple = || match rest {
            [Operand::Tuple(list), tail @ ..] => {
                rest = tail;
                list.clone()
            }
            _ => Vec::new(),
        };
        let first = tuple();
        let (returned, rest) = (first, rest);
        let [Operand::Name(name), rest @ ..] = rest else {
            return self.refuse("the function's name is missing");
        };
        let given = match rest {
            [Operand::Tuple(list), ..] => list.clone(),
            _ => Vec::new(),
        };
        let symbols = self.symbols;
        let Some(function) = symbols.function(name) else {
            return self.refuse(&format!(
                "{name} is not a function of this module; indirect calls are not modelled"
            ));
        };
        let Some(body) = &function.body else {
            let noreturn = function.directives.iter().any(|d| &*d.name == "noreturn");
            if noreturn || matches!(&**name, "__assertfail" | "__assert_fail") {
                return exec::lower_panic(self, name);
            }
            return self.refuse(&format!("the function {name} has no body in this module"));
        };
        if self.calls >= CALLS {
            return self.refuse("calls nest more than 32 deep (recursion is not modelled)");
        }
        if given.len() != function.parameters.len() || returned.len() != function.returns.len() {
            return self.refuse(&format!("{name} has other numbers of parameters or results"));
        }
        // A guarded call becomes a branch around the inlined body.
        let end = self.new_label();
        if self.guard.0 != NO_PREDICATE {
            self.guard.1 = !self.guard.1;
            self.emit(Op::Branch {
                target: end,
                join: NOWHERE,
            })?;
            self.guard = (NO_PREDICATE, false);
        }
        let mut bound = Vec::new();
        let mut results = Vec::new();
        for (formal, actual) in function.parameters.iter().zip(&given) {
            bound.push((formal.declared[0].name.clone(), self.bind(formal, actual, true)?));
        }
        for (formal, actual) in function.returns.iter().zip(&returned) {
            let symbol = self.bind(formal, actual, false)?;
            if let Symbol::Register(r, _) = symbol {
                let (d, _) = self.dest(actual)?;
                results.push((d, r));
            }
            bound.push((formal.declared[0].name.clone(), symbol));
        }
        let outside = self.scopes.isolate();
        self.scopes.enter();
        for (name, symbol) in bound {
            if !name.is_empty() {
                self.scopes.define(&name, symbol);
            }
        }
        self.frames.push(Frame { end: Some(end) });
        self.calls += 1;
        let kept = (self.position, self.source, self.kind, self.name.clone());
        self.body(body)?;
        (self.position, self.source, self.kind, self.name) = kept;
        self.calls -= 1;
        self.frames.pop();
        self.scopes.restore(outside);
        self.guard = (NO_PREDICATE, false);
        self.place_label(end);
        for (d, a) in results {
            self.emit(Op::Copy { d, a })?;
        }
        Ok(())
    }

    /// What a formal parameter stands for in an inlined body.
    fn bind(&mut self, formal: &Variable, actual: &Operand, input: bool) -> Lowered<Symbol> {
        match formal.space {
            Space::Register => {
                let Some(ty) = Type::parse(&formal.ty) else {
                    return self.refuse(&format!("parameters of type .{} are not modelled", formal.ty));
                };
                let r = self.temporary();
                if input {
                    let a = self.source(actual, ty)?;
                    self.emit(Op::Copy { d: r, a })?;
                }
                Ok(Symbol::Register(r, ty))
            }
            _ => match actual {
                Operand::Name(name) => match self.symbol(name)? {
                    symbol @ Symbol::Parameter(_) => Ok(symbol),
                    _ => self.refuse("a .param formal needs a .param variable"),
                },
                _ => self.refuse("a .param formal needs a .param variable"),
            },
        }
    }
}
