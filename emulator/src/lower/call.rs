//! Calls: bodies are inlined, formals stand for actuals.

use super::*;

impl Lowering<'_> {
    pub(super) fn call(&mut self, i: &Instruction) -> Lowered {
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
