//! Bodies of functions: statements, instructions, operands.

use super::{DEPTH, Parsed, Parser};
use crate::syntax::{ast::*, lexer::Token};

impl Parser<'_> {
    /// Statements up to and including the closing brace.
    pub(super) fn body(&mut self, depth: u32) -> Parsed<Vec<Statement>> {
        if depth == 0 {
            return self.fail("fewer nested blocks");
        }
        let mut list = Vec::new();
        loop {
            match self.peek() {
                Some(Token::Mark(b'}')) => {
                    self.at += 1;
                    return Ok(list);
                }
                Some(Token::Mark(b'{')) => {
                    self.at += 1;
                    list.push(Statement::Block(self.body(depth - 1)?));
                }
                Some(Token::Mark(b';')) => self.at += 1,
                Some(Token::Dot("reg" | "shared" | "local" | "param" | "const" | "global")) => {
                    let variable = self.variable(true)?;
                    self.expect(b';')?;
                    list.push(Statement::Variable(Box::new(variable)));
                }
                Some(Token::Dot("loc")) => list.push(self.location()?),
                Some(Token::Dot(_)) => {
                    let directive = self.directive(true)?;
                    list.push(Statement::Directive { label: None, directive });
                }
                Some(Token::Name(name)) if self.peek_at(1) == Some(Token::Mark(b':')) => {
                    self.at += 2;
                    match self.peek() {
                        Some(Token::Dot("branchtargets" | "calltargets")) => {
                            let directive = self.directive(true)?;
                            list.push(Statement::Directive {
                                label: Some(name.into()),
                                directive,
                            });
                        }
                        Some(Token::Dot("callprototype")) => {
                            self.at += 1;
                            let from = self.tokens.get(self.at).map_or(self.source.len(), |t| t.start as usize);
                            loop {
                                let here = self.tokens.get(self.at).map_or(0, |t| t.start as usize);
                                match self.next() {
                                    Some(Token::Mark(b';')) => {
                                        let text = self.source[from..here].trim_end().into();
                                        list.push(Statement::Prototype {
                                            label: name.into(),
                                            text,
                                        });
                                        break;
                                    }
                                    Some(Token::Mark(b'{' | b'}')) | None => {
                                        return self.fail("';' to close the prototype");
                                    }
                                    Some(_) => {}
                                }
                            }
                        }
                        _ => list.push(Statement::Label(name.into())),
                    }
                }
                Some(Token::Name(_) | Token::Mark(b'@')) => list.push(Statement::Instruction(self.instruction()?)),
                _ => return self.fail("a statement or '}'"),
            }
        }
    }

    fn location(&mut self) -> Parsed<Statement> {
        self.at += 1;
        let file = self.small("a file index")?;
        let line = self.small("a line")?;
        let column = self.small("a column")?;
        let mut extra = String::new();
        while self.take(b',') {
            match self.peek() {
                Some(Token::Name("function_name")) => {
                    self.at += 1;
                    let label = self.name("a label")?;
                    extra.push_str(&format!(", function_name {label}"));
                    if self.take(b'+') {
                        let offset = self.integer("an offset")?;
                        extra.push_str(&format!("+{offset}"));
                    }
                }
                Some(Token::Name("inlined_at")) => {
                    self.at += 1;
                    let (f, l, c) = (
                        self.small("a file index")?,
                        self.small("a line")?,
                        self.small("a column")?,
                    );
                    extra.push_str(&format!(", inlined_at {f} {l} {c}"));
                }
                _ => return self.fail("'function_name' or 'inlined_at'"),
            }
        }
        // LLVM writes no semicolon here; some versions of nvcc's tools do.
        self.take(b';');
        Ok(Statement::Location {
            file,
            line,
            column,
            extra: extra.into(),
        })
    }

    fn instruction(&mut self) -> Parsed<Instruction> {
        let mut guard = None;
        if self.take(b'@') {
            let negated = self.take(b'!');
            guard = Some(Guard {
                negated,
                register: self.name("a predicate register")?,
            });
        }
        let position = self.position();
        let opcode = self.name("an opcode")?;
        let mut modifiers = Vec::new();
        while let Some(Token::Dot(modifier)) = self.peek() {
            self.at += 1;
            modifiers.push(modifier.into());
        }
        let mut operands = Vec::new();
        if !self.take(b';') {
            loop {
                operands.push(self.operand(DEPTH)?);
                if self.take(b';') {
                    break;
                }
                // A few instructions close without a semicolon before `}` in inline assembly; PTX wants one.
                if !self.take(b',') {
                    return self.fail("',' or ';'");
                }
            }
        }
        Ok(Instruction {
            position,
            guard,
            opcode,
            modifiers,
            operands,
        })
    }

    pub(super) fn operand(&mut self, depth: u32) -> Parsed<Operand> {
        if depth == 0 {
            return self.fail("a shallower operand");
        }
        match self.peek() {
            Some(Token::Mark(b'{')) => {
                self.at += 1;
                let list = self.operands_until(b'}', depth - 1)?;
                Ok(Operand::Vector(list))
            }
            Some(Token::Mark(b'[')) => {
                self.at += 1;
                let (base, offset) = match self.operand(depth - 1)? {
                    Operand::Offset(name, offset) => (Operand::Name(name), offset),
                    base @ (Operand::Name(_) | Operand::Component(..)) => {
                        let offset = self.signed_offset()?;
                        (base, offset)
                    }
                    Operand::Immediate(Immediate::Integer(value)) => (Operand::Immediate(Immediate::Integer(value)), 0),
                    _ => return self.fail("a register, a variable or a number in the address"),
                };
                let coordinates = if self.take(b',') {
                    Some(Box::new(self.operand(depth - 1)?))
                } else {
                    None
                };
                self.expect(b']')?;
                Ok(Operand::Address {
                    base: Box::new(base),
                    offset,
                    coordinates,
                })
            }
            Some(Token::Mark(b'!')) if matches!(self.peek_at(1), Some(Token::Name(_))) => {
                self.at += 1;
                Ok(Operand::Not(self.name("a predicate register")?))
            }
            // A tuple of a call, unless it is a constant expression in parentheses.
            Some(Token::Mark(b'('))
                if !matches!(
                    self.peek_at(1),
                    Some(
                        Token::Integer(_)
                            | Token::Bits(_)
                            | Token::Decimal(_)
                            | Token::Dot(_)
                            | Token::Mark(b'(' | b'-')
                    )
                ) =>
            {
                self.at += 1;
                let list = self.operands_until(b')', depth - 1)?;
                Ok(Operand::Tuple(list))
            }
            Some(Token::Text(text)) => {
                self.at += 1;
                Ok(Operand::Text(text.into()))
            }
            Some(Token::Name(name)) if name != "WARP_SZ" => {
                self.at += 1;
                if let Some(Token::Dot(component)) = self.peek() {
                    self.at += 1;
                    return Ok(Operand::Component(name.into(), component.into()));
                }
                if self.take(b'|') {
                    let second = self.operand(depth - 1)?;
                    return Ok(Operand::Pair(Box::new(Operand::Name(name.into())), Box::new(second)));
                }
                if self.is(b'+') || self.is(b'-') {
                    let offset = self.signed_offset()?;
                    return Ok(Operand::Offset(name.into(), offset));
                }
                // `variable[4]`, the array form of an address inside a bracket.
                if self.is(b'[') {
                    self.at += 1;
                    let Immediate::Integer(index) = self.expression(DEPTH)? else {
                        return self.fail("an integer index");
                    };
                    self.expect(b']')?;
                    return Ok(Operand::Offset(name.into(), index as i64));
                }
                Ok(Operand::Name(name.into()))
            }
            _ => Ok(Operand::Immediate(self.expression(depth - 1)?)),
        }
    }

    pub(super) fn operands_until(&mut self, close: u8, depth: u32) -> Parsed<Vec<Operand>> {
        let mut list = Vec::new();
        if self.take(close) {
            return Ok(list);
        }
        loop {
            list.push(self.operand(depth)?);
            if self.take(close) {
                return Ok(list);
            }
            self.expect(b',')?;
        }
    }
}
