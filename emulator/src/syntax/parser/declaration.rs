//! Functions, their parameters, and variables.

use super::{BEFORE_BODY, DEPTH, Parsed, Parser};
use crate::syntax::{ast::*, lexer::Token};

impl Parser<'_> {
    pub(super) fn function(&mut self, position: Position, linkage: Option<Name>, entry: bool) -> Parsed<Function> {
        let mut directives = Vec::new();
        // `.func .attribute(.unified(…)) (ret) name (params)`
        while self.peek() == Some(Token::Dot("attribute")) {
            directives.push(self.attribute_of_function()?);
        }
        let returns = if !entry && self.is(b'(') {
            self.parameters()?
        } else {
            Vec::new()
        };
        let name = self.name("the function's name")?;
        let parameters = if self.is(b'(') { self.parameters()? } else { Vec::new() };
        while let Some(Token::Dot(_)) = self.peek() {
            if self.peek() == Some(Token::Dot("attribute")) {
                directives.push(self.attribute_of_function()?);
            } else if matches!(self.peek(), Some(Token::Dot(name)) if BEFORE_BODY.contains(&name)) {
                directives.push(self.directive(false)?);
            } else {
                return self.fail("a directive that may stand before a body, or '{'");
            }
        }
        let body = if self.take(b'{') {
            Some(self.body(DEPTH)?)
        } else {
            self.expect(b';')?;
            None
        };
        Ok(Function {
            position,
            linkage,
            entry,
            name,
            returns,
            parameters,
            directives,
            body,
        })
    }

    /// `.attribute( … )` as text between the parentheses.
    fn attribute(&mut self) -> Parsed<Name> {
        self.at += 1;
        self.enclosed((b'(', b')'), b"{};", "')' to close the attribute")
    }

    /// `.attribute( … )` of a function: a directive of it.
    fn attribute_of_function(&mut self) -> Parsed<Directive> {
        let position = self.position();
        let text = self.attribute()?;
        Ok(Directive {
            position,
            name: "attribute".into(),
            operands: vec![Operand::Text(text)],
        })
    }

    fn parameters(&mut self) -> Parsed<Vec<Variable>> {
        self.expect(b'(')?;
        let mut list = Vec::new();
        if self.take(b')') {
            return Ok(list);
        }
        loop {
            list.push(self.variable(false)?);
            if self.take(b')') {
                return Ok(list);
            }
            self.expect(b',')?;
        }
    }

    /// A declaration from its state space up to, not including, `;` (or, in a parameter list, `,` or `)`).
    pub(super) fn variable(&mut self, many: bool) -> Parsed<Variable> {
        let position = self.position();
        let space = match self.peek() {
            Some(Token::Dot("reg")) => Space::Register,
            Some(Token::Dot("global")) => Space::Global,
            Some(Token::Dot("shared")) => Space::Shared,
            Some(Token::Dot("const")) => Space::Constant,
            Some(Token::Dot("local")) => Space::Local,
            Some(Token::Dot("param")) => Space::Parameter,
            _ => return self.fail("a state space (.reg, .global, .shared, .const, .local or .param)"),
        };
        self.at += 1;
        let mut variable = Variable {
            position,
            linkage: None,
            space,
            align: None,
            vector: 1,
            ty: "".into(),
            pointer: None,
            attributes: Vec::new(),
            declared: Vec::new(),
        };
        loop {
            match self.peek() {
                Some(Token::Dot("align")) => {
                    self.at += 1;
                    let align = self.integer("an alignment")?;
                    if !align.is_power_of_two() || align > 1 << 20 {
                        self.at -= 1;
                        return self.fail("an alignment that is a power of two up to 2^20");
                    }
                    variable.align = Some(align);
                }
                Some(Token::Dot("attribute")) => {
                    let text = self.attribute()?;
                    variable.attributes.push(text);
                }
                Some(Token::Dot(v @ ("v2" | "v4" | "v8"))) => {
                    self.at += 1;
                    variable.vector = v.as_bytes()[1] - b'0';
                }
                Some(Token::Dot("ptr")) => {
                    self.at += 1;
                    let mut words: Vec<Name> = Vec::new();
                    while let Some(Token::Dot(word)) = self.peek() {
                        self.at += 1;
                        words.push(word.into());
                        if word == "align" {
                            let align = self.integer("an alignment")?;
                            words.push(align.to_string().into());
                        }
                    }
                    variable.pointer = Some(words);
                }
                // A constant bank: `.const[2]`.
                Some(Token::Mark(b'[')) if space == Space::Constant => {
                    self.at += 1;
                    self.integer("a bank")?;
                    self.expect(b']')?;
                }
                Some(Token::Dot(ty)) => {
                    self.at += 1;
                    if !variable.ty.is_empty() {
                        self.at -= 1;
                        return self.fail("a name");
                    }
                    variable.ty = ty.into();
                }
                _ => break,
            }
        }
        if variable.ty.is_empty() {
            return self.fail("a type");
        }
        if !many && matches!(self.peek(), Some(Token::Mark(b',' | b')'))) {
            let unnamed = Declarator {
                name: "".into(),
                count: None,
                dimensions: Vec::new(),
                initial: None,
            };
            variable.declared.push(unnamed);
            return Ok(variable);
        }
        loop {
            let declarator = self.declarator()?;
            variable.declared.push(declarator);
            if !many || !self.take(b',') {
                return Ok(variable);
            }
        }
    }

    fn declarator(&mut self) -> Parsed<Declarator> {
        let name = self.name("a name")?;
        let mut count = None;
        if self.take(b'<') {
            count = Some(self.small("a register count")?);
            self.expect(b'>')?;
        }
        let mut dimensions = Vec::new();
        while self.take(b'[') {
            if self.take(b']') {
                dimensions.push(None);
            } else {
                let size = match self.expression(DEPTH)? {
                    Immediate::Integer(size) => size,
                    _ => return self.fail("an integer size"),
                };
                dimensions.push(Some(size));
                self.expect(b']')?;
            }
        }
        let initial = if self.take(b'=') {
            Some(self.initial(DEPTH)?)
        } else {
            None
        };
        Ok(Declarator {
            name,
            count,
            dimensions,
            initial,
        })
    }

    fn initial(&mut self, depth: u32) -> Parsed<Initial> {
        if depth == 0 {
            return self.fail("a shallower initialiser");
        }
        if self.take(b'{') {
            let mut list = Vec::new();
            while !self.take(b'}') {
                list.push(self.initial(depth - 1)?);
                if !self.take(b',') {
                    self.expect(b'}')?;
                    break;
                }
            }
            return Ok(Initial::List(list));
        }
        // mask(symbol): 0xFF00(symbol+4)
        if let (Some(Token::Integer(_)), Some(Token::Mark(b'('))) = (self.peek(), self.peek_at(1)) {
            let mask = self.integer("a mask")?;
            self.at += 1;
            let generic = self.peek() == Some(Token::Name("generic")) && self.peek_at(1) == Some(Token::Mark(b'('));
            if generic {
                self.at += 2;
            }
            let symbol = self.name("a symbol")?;
            if generic {
                self.expect(b')')?;
            }
            let offset = self.signed_offset()?;
            self.expect(b')')?;
            return Ok(Initial::Address {
                symbol,
                offset,
                generic,
                mask: Some(mask),
            });
        }
        match self.peek() {
            Some(Token::Name("generic")) if self.peek_at(1) == Some(Token::Mark(b'(')) => {
                self.at += 2;
                let symbol = self.name("a symbol")?;
                let inner = self.signed_offset()?;
                self.expect(b')')?;
                let offset = inner.wrapping_add(self.signed_offset()?);
                Ok(Initial::Address {
                    symbol,
                    offset,
                    generic: true,
                    mask: None,
                })
            }
            Some(Token::Name(name)) if name != "WARP_SZ" => {
                self.at += 1;
                let offset = self.signed_offset()?;
                Ok(Initial::Address {
                    symbol: name.into(),
                    offset,
                    generic: false,
                    mask: None,
                })
            }
            _ => Ok(Initial::Value(self.expression(depth - 1)?)),
        }
    }
}
