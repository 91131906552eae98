//! Operands of instructions.

use super::*;

impl Lowering<'_> {
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
}
