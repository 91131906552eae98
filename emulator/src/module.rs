//! A parsed file and its prepared entries.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::ParseError;
use crate::fault::{Error, LoadError};
use crate::lower::{self, layout, types::Type};
use crate::machine::memory::{GlobalMemory, Purpose};
use crate::program::{EntryInfo, Program};
use crate::statistics::{Counters, Statistics};
use crate::syntax::ast::{Declarator, File, Function, Immediate, Initial, Item, Space, Variable};

/// What a module-level name is.
pub(crate) enum Global {
    Shared,
    Variable(u32),
    Function,
}

/// The names of a module.
pub(crate) struct Symbols {
    file: File,
    functions: HashMap<Box<str>, usize>,
    /// Item and declarator of each variable.
    variables: HashMap<Box<str>, (usize, usize)>,
    /// `.global` and `.const` variables in order.
    placed: Vec<(usize, usize)>,
    placed_index: HashMap<Box<str>, u32>,
    pub(crate) files: Vec<(u32, String)>,
    pub(crate) address_size: u32,
}

impl Symbols {
    fn new(file: File) -> Self {
        let mut symbols = Symbols {
            functions: HashMap::new(),
            variables: HashMap::new(),
            placed: Vec::new(),
            placed_index: HashMap::new(),
            files: Vec::new(),
            address_size: file.address_size,
            file,
        };
        for (i, item) in symbols.file.items.iter().enumerate() {
            match item {
                Item::Function(function)
                    // A definition wins over its forward declarations.
                    if (function.body.is_some() || !symbols.functions.contains_key(&function.name)) => {
                        symbols.functions.insert(function.name.clone(), i);
                    }
                Item::Variable(variable) => {
                    for (k, declared) in variable.declared.iter().enumerate() {
                        symbols.variables.insert(declared.name.clone(), (i, k));
                        if matches!(variable.space, Space::Global | Space::Constant)
                            && !symbols.placed_index.contains_key(&declared.name)
                        {
                            symbols
                                .placed_index
                                .insert(declared.name.clone(), symbols.placed.len() as u32);
                            symbols.placed.push((i, k));
                        }
                    }
                }
                Item::File { index, name, .. } => symbols.files.push((*index, name.to_string())),
                _ => {}
            }
        }
        symbols
    }

    fn variable(&self, (item, declared): (usize, usize)) -> Option<(&Variable, &Declarator)> {
        match self.file.items.get(item) {
            Some(Item::Variable(variable)) => Some((variable, variable.declared.get(declared)?)),
            _ => None,
        }
    }

    pub(crate) fn lookup(&self, name: &str) -> Option<Global> {
        if let Some(&index) = self.placed_index.get(name) {
            return Some(Global::Variable(index));
        }
        if self.functions.contains_key(name) {
            return Some(Global::Function);
        }
        self.shared(name).map(|_| Global::Shared)
    }

    pub(crate) fn shared(&self, name: &str) -> Option<(&Variable, &Declarator)> {
        let found = self.variable(*self.variables.get(name)?)?;
        (found.0.space == Space::Shared).then_some(found)
    }

    pub(crate) fn function(&self, name: &str) -> Option<&Function> {
        match self.file.items.get(*self.functions.get(name)?) {
            Some(Item::Function(function)) => Some(function),
            _ => None,
        }
    }
}

/// A PTX module: parsed once, its entries prepared when first launched and kept.
pub struct Module {
    id: u64,
    symbols: Symbols,
    programs: Mutex<HashMap<String, Result<Arc<Program>, LoadError>>>,
}

impl Module {
    /// Parses PTX.
    ///
    /// # Errors
    /// [`ParseError`] with line and column. Instructions are looked at only when an entry that reaches them is
    /// prepared.
    pub fn parse(source: &str) -> Result<Module, ParseError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let file = crate::syntax::parse(source)?;
        Ok(Module {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            symbols: Symbols::new(file),
            programs: Mutex::default(),
        })
    }

    /// The syntax tree; printing it gives PTX again.
    pub fn syntax(&self) -> &File {
        &self.symbols.file
    }

    /// The names of all entries.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.symbols.file.items.iter().filter_map(|item| match item {
            Item::Function(f) if f.entry && f.body.is_some() => Some(&*f.name),
            _ => None,
        })
    }

    /// What a launch must know of an entry. Prepares it.
    ///
    /// # Errors
    /// [`Error::NoEntry`]; [`Error::Load`] when the entry reaches something that is not modelled.
    pub fn entry(&self, name: &str) -> Result<EntryInfo, Error> {
        Ok(self.program(name)?.entry.clone())
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn program(&self, name: &str) -> Result<Arc<Program>, Error> {
        let mut programs = self.programs.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(program) = programs.get(name) {
            return Ok(program.clone()?);
        }
        let function = self.symbols.function(name).filter(|f| f.entry && f.body.is_some());
        let Some(function) = function else {
            let known: Vec<&str> = self.entries().take(20).collect();
            return Err(Error::NoEntry {
                name: name.into(),
                known: known.join(", "),
            });
        };
        let program = lower::lower(&self.symbols, function).map(Arc::new);
        programs.insert(name.into(), program.clone());
        Ok(program?)
    }

    /// Allocates and initialises the module's `.global` and `.const` variables; their addresses in order.
    pub(crate) fn place(&self, memory: &mut GlobalMemory) -> Result<Vec<u64>, Error> {
        let mut addresses = Vec::new();
        for &place in &self.symbols.placed {
            let Some((variable, declared)) = self.symbols.variable(place) else {
                continue;
            };
            let (mut size, _, unsized_array) = layout(variable, declared)?;
            if unsized_array {
                size *= match &declared.initial {
                    Some(Initial::List(list)) => list.len() as u64,
                    _ => 0,
                };
            }
            let purpose = if variable.space == Space::Constant {
                Purpose::Constant
            } else {
                Purpose::Global
            };
            addresses.push(memory.allocate(size, purpose, Some(format!("variable {}", declared.name)))?);
        }
        for (&place, &address) in self.symbols.placed.iter().zip(&addresses) {
            let Some((variable, declared)) = self.symbols.variable(place) else {
                continue;
            };
            let (size, ..) = layout(variable, declared)?;
            let Some(initial) = &declared.initial else {
                memory.defined(address, size as usize);
                continue;
            };
            let Some(ty) = Type::parse(&variable.ty) else { continue };
            let mut bytes = Vec::new();
            self.initialise(initial, ty, &addresses, &mut bytes, variable)?;
            let length = memory
                .allocations
                .iter()
                .find(|a| a.start == address)
                .map_or(0, |a| a.length as usize);
            if bytes.len() > length {
                let message = format!(
                    "{} has {} bytes of initialisers for {length} bytes",
                    declared.name,
                    bytes.len()
                );
                return Err(LoadError {
                    position: variable.position,
                    message,
                }
                .into());
            }
            let to = memory.range("write", address, bytes.len())?;
            // SAFETY: `range` found the bytes allocated, and `memory` is borrowed exclusively.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
            memory.defined(address, length);
        }
        Ok(addresses)
    }

    fn initialise(
        &self,
        initial: &Initial,
        ty: Type,
        addresses: &[u64],
        bytes: &mut Vec<u8>,
        variable: &Variable,
    ) -> Result<(), Error> {
        let fail = |message: String| {
            Error::from(LoadError {
                position: variable.position,
                message,
            })
        };
        let width = ty.bytes() as usize;
        let value = match initial {
            Initial::List(list) => {
                return list
                    .iter()
                    .try_for_each(|i| self.initialise(i, ty, addresses, bytes, variable));
            }
            Initial::Value(Immediate::Integer(v)) => match ty {
                Type::F32 => u64::from((*v as i64 as f32).to_bits()),
                Type::F64 => (*v as i64 as f64).to_bits(),
                _ => *v,
            },
            Initial::Value(Immediate::Single(v)) => match ty {
                Type::F64 => f64::from(f32::from_bits(*v)).to_bits(),
                _ => u64::from(*v),
            },
            Initial::Value(Immediate::Double(v)) => match ty {
                Type::F32 => u64::from((f64::from_bits(*v) as f32).to_bits()),
                _ => *v,
            },
            Initial::Address {
                symbol, offset, mask, ..
            } => {
                let Some(Global::Variable(index)) = self.symbols.lookup(symbol) else {
                    return Err(fail(format!(
                        "the address of {symbol} in an initialiser is not modelled"
                    )));
                };
                let address = addresses[index as usize].wrapping_add(*offset as u64);
                match mask {
                    Some(0) => return Err(fail("a mask of zero".into())),
                    Some(mask) => (address & mask) >> mask.trailing_zeros(),
                    None => address,
                }
            }
        };
        bytes.extend_from_slice(&value.to_le_bytes()[..width.min(8)]);
        Ok(())
    }
}

impl Program {
    /// Counts by place, summed by opcode and line.
    pub(crate) fn statistics(&self, counters: &Counters) -> Statistics {
        let mut s = Statistics {
            warp_instructions: counters.warps,
            ..Statistics::default()
        };
        for (info, &count) in self.info.iter().zip(&counters.threads) {
            if count == 0 {
                continue;
            }
            let Some(kind) = self.kinds.get(info.kind as usize) else {
                continue;
            };
            *s.instructions.entry(kind.clone()).or_default() += count;
            *s.lines.entry(info.position.line).or_default() += count;
            s.thread_instructions += count;
            let float = [".f32", ".f64", ".f16", ".bf16", ".f16x2", ".bf16x2"]
                .iter()
                .any(|t| kind.contains(t));
            let packed = if kind.contains("x2") { 2 } else { 1 };
            let operations = match kind.split('.').next() {
                Some(
                    "add" | "sub" | "mul" | "div" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh",
                ) => 1,
                Some("fma" | "mad") => 2,
                _ => 0,
            };
            if float {
                s.flops += operations * packed * count;
            }
        }
        s.flops += counters.tensor_flops;
        [s.global, s.shared, s.local, s.constant] = counters.traffic;
        s.bank_conflicts = counters.bank_conflicts;
        s
    }
}
