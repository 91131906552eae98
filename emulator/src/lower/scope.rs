//! Names in nested scopes.

use std::collections::HashMap;

use super::types::Type;
use crate::program::{Predicate, Register};

/// What a name stands for.
#[derive(Clone, Debug)]
pub(crate) enum Symbol {
    Register(Register, Type),
    /// First register, element type, number of elements.
    Vector(Register, Type, u8),
    Predicate(Predicate),
    /// Offset in static shared memory.
    Shared(u32),
    DynamicShared,
    /// Offset in local memory.
    Local(u32),
    /// Address in the parameter space.
    Parameter(u64),
    /// Index of a module variable.
    Global(u32),
    Function,
    Label(u32),
    /// `.branchtargets`
    Targets(Vec<Box<str>>),
}

/// Registers that a scope declares; they get an index when first used.
#[derive(Clone, Copy)]
struct Declared {
    ty: Type,
    vector: u8,
    count: Option<u32>,
}

#[derive(Default)]
struct Scope {
    symbols: HashMap<Box<str>, Symbol>,
    registers: HashMap<Box<str>, Declared>,
}

/// The stack of scopes.
#[derive(Default)]
pub(crate) struct Scopes(Vec<Scope>);

impl Scopes {
    pub(crate) fn enter(&mut self) {
        self.0.push(Scope::default());
    }

    pub(crate) fn leave(&mut self) {
        self.0.pop();
    }

    /// Hides all scopes, for an inlined function.
    pub(crate) fn isolate(&mut self) -> Scopes {
        Scopes(std::mem::take(&mut self.0))
    }

    pub(crate) fn restore(&mut self, outside: Scopes) {
        self.0 = outside.0;
    }

    pub(crate) fn define(&mut self, name: &str, symbol: Symbol) {
        if let Some(scope) = self.0.last_mut() {
            scope.symbols.insert(name.into(), symbol);
        }
    }

    pub(crate) fn registers(&mut self, name: &str, count: Option<u32>, ty: Type, vector: u8) {
        if let Some(scope) = self.0.last_mut() {
            scope.symbols.remove(name);
            scope.registers.insert(name.into(), Declared { ty, vector, count });
        }
    }

    /// What a name stands for, and whether it was used for the first time.
    pub(crate) fn find(&mut self, name: &str, registers: &mut u32, predicates: &mut u32) -> Option<(Symbol, bool)> {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = name[stem.len()..].parse::<u32>().ok();
        for scope in self.0.iter_mut().rev() {
            if let Some(symbol) = scope.symbols.get(name) {
                return Some((symbol.clone(), false));
            }
            let exact = scope.registers.get(name).filter(|d| d.count.is_none());
            let ranged = || {
                scope
                    .registers
                    .get(stem)
                    .filter(|d| d.count.zip(number).is_some_and(|(c, n)| n < c))
            };
            // A stem may itself end in digits: `%r1<4>` declares `%r10` to `%r13`.
            let longer = || {
                (stem.len() + 1..name.len()).find_map(|cut| {
                    let number = name[cut..].parse::<u32>().ok()?;
                    scope
                        .registers
                        .get(&name[..cut])
                        .filter(|d| d.count.is_some_and(|c| number < c))
                })
            };
            let Some(declared) = exact.or_else(ranged).or_else(longer).copied() else {
                continue;
            };
            let symbol = match (declared.ty, declared.vector) {
                (Type::Pred, _) => {
                    *predicates += 1;
                    Symbol::Predicate(*predicates - 1)
                }
                (ty, 1) => {
                    *registers += 1;
                    Symbol::Register(*registers - 1, ty)
                }
                (ty, n) => {
                    *registers += u32::from(n);
                    Symbol::Vector(*registers - u32::from(n), ty, n)
                }
            };
            scope.symbols.insert(name.into(), symbol.clone());
            return Some((symbol, true));
        }
        None
    }
}
