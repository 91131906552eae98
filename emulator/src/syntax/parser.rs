//! Tokens to tree, by recursive descent with bounded depth.

use super::ast::*;
use super::lexer::{Lexed, Token, lex, position};
use crate::error::ParseError;

/// Deepest nesting of blocks, initialisers and operands.
const DEPTH: u32 = 64;

type Parsed<T> = Result<T, ParseError>;

/// Parses a whole file.
pub(crate) fn parse(source: &str) -> Parsed<File> {
    let tokens = lex(source)?;
    let mut lines = vec![0u32];
    lines.extend(
        source
            .bytes()
            .enumerate()
            .filter(|(_, b)| *b == b'\n')
            .map(|(i, _)| i as u32 + 1),
    );
    Parser {
        source,
        tokens,
        lines,
        at: 0,
    }
    .file()
}

struct Parser<'s> {
    source: &'s str,
    tokens: Vec<Lexed<'s>>,
    lines: Vec<u32>,
    at: usize,
}

/// The directives that may stand between the parameters of a function and its body.
const BEFORE_BODY: [&str; 14] = [
    "maxnreg",
    "maxntid",
    "reqntid",
    "minnctapersm",
    "maxnctapersm",
    "noreturn",
    "pragma",
    "abi_preserve",
    "abi_preserve_control",
    "reqnctapercluster",
    "explicitcluster",
    "maxclusterrank",
    "blocksareclusters",
    "retain",
];

impl<'s> Parser<'s> {
    // ---- cursor -------------------------------------------------------------------------------------------

    fn peek(&self) -> Option<Token<'s>> {
        self.tokens.get(self.at).map(|t| t.token)
    }

    fn peek_at(&self, ahead: usize) -> Option<Token<'s>> {
        self.tokens.get(self.at + ahead).map(|t| t.token)
    }

    fn next(&mut self) -> Option<Token<'s>> {
        let token = self.peek()?;
        self.at += 1;
        Some(token)
    }

    fn position(&self) -> Position {
        match self.tokens.get(self.at) {
            Some(token) => {
                let line = self.lines.partition_point(|&start| start <= token.start);
                Position {
                    line: line as u32,
                    column: token.start - self.lines[line - 1] + 1,
                }
            }
            None => position(self.source, self.source.len()),
        }
    }

    fn fail<T>(&self, wanted: &str) -> Parsed<T> {
        let found = match self.tokens.get(self.at) {
            Some(t) => {
                let text = &self.source[t.start as usize..t.end as usize];
                format!("{:?}", text.chars().take(40).collect::<String>())
            }
            None => "the end of the text".into(),
        };
        Err(ParseError::new(
            self.position(),
            format!("expected {wanted}, found {found}"),
        ))
    }

    fn is(&self, mark: u8) -> bool {
        self.peek() == Some(Token::Mark(mark))
    }

    fn take(&mut self, mark: u8) -> bool {
        let found = self.is(mark);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: u8) -> Parsed<()> {
        if self.take(mark) {
            Ok(())
        } else {
            self.fail(&format!("'{}'", mark as char))
        }
    }

    fn take_dot(&mut self, name: &str) -> bool {
        let found = self.peek() == Some(Token::Dot(name));
        self.at += usize::from(found);
        found
    }

    fn name(&mut self, wanted: &str) -> Parsed<Name> {
        match self.peek() {
            Some(Token::Name(name)) => {
                self.at += 1;
                Ok(name.into())
            }
            _ => self.fail(wanted),
        }
    }

    // ---- numbers ------------------------------------------------------------------------------------------

    fn integer(&mut self, wanted: &str) -> Parsed<u64> {
        match self.peek() {
            Some(Token::Integer(text)) => match integer(text) {
                Some(value) => {
                    self.at += 1;
                    Ok(value)
                }
                None => self.fail("an integer below 2^64"),
            },
            _ => self.fail(wanted),
        }
    }

    fn small(&mut self, wanted: &str) -> Parsed<u32> {
        let at = self.at;
        let value = self.integer(wanted)?;
        u32::try_from(value).or_else(|_| {
            self.at = at;
            self.fail("an integer below 2^32")
        })
    }

    /// A constant expression: literals, unary `-`, `!`, `~`, parentheses, and binary operators.
    fn expression(&mut self, depth: u32) -> Parsed<Immediate> {
        self.binary(0, depth)
    }

    fn binary(&mut self, lowest: u8, depth: u32) -> Parsed<Immediate> {
        let mut left = self.unary(depth)?;
        loop {
            let (operator, level) = match self.peek() {
                Some(Token::Operator("||")) => ("||", 1),
                Some(Token::Operator("&&")) => ("&&", 2),
                Some(Token::Mark(b'|')) => ("|", 3),
                Some(Token::Mark(b'^')) => ("^", 4),
                Some(Token::Mark(b'&')) => ("&", 5),
                Some(Token::Operator(op @ ("==" | "!="))) => (op, 6),
                Some(Token::Operator(op @ ("<=" | ">="))) => (op, 7),
                Some(Token::Operator(op @ ("<<" | ">>"))) => (op, 8),
                Some(Token::Mark(b'+')) => ("+", 9),
                Some(Token::Mark(b'-')) => ("-", 9),
                Some(Token::Mark(b'*')) => ("*", 10),
                Some(Token::Mark(b'/')) => ("/", 10),
                _ => return Ok(left),
            };
            if level < lowest.max(1) {
                return Ok(left);
            }
            self.at += 1;
            if depth == 0 {
                return self.fail("a shallower expression");
            }
            let right = self.binary(level + 1, depth - 1)?;
            let (Immediate::Integer(a), Immediate::Integer(b)) = (left, right) else {
                return self.fail("integers on both sides of an operator");
            };
            let shift = u32::try_from(b).unwrap_or(64);
            left = Immediate::Integer(match operator {
                "||" => u64::from(a != 0 || b != 0),
                "&&" => u64::from(a != 0 && b != 0),
                "|" => a | b,
                "^" => a ^ b,
                "&" => a & b,
                "==" => u64::from(a == b),
                "!=" => u64::from(a != b),
                "<=" => u64::from(a as i64 <= b as i64),
                ">=" => u64::from(a as i64 >= b as i64),
                "<<" => a.checked_shl(shift).unwrap_or(0),
                ">>" => (a as i64).checked_shr(shift).unwrap_or(0) as u64,
                "+" => a.wrapping_add(b),
                "-" => a.wrapping_sub(b),
                "*" => a.wrapping_mul(b),
                _ => match (a as i64).checked_div(b as i64) {
                    Some(quotient) => quotient as u64,
                    None => return self.fail("a divisor other than zero"),
                },
            });
        }
    }

    fn unary(&mut self, depth: u32) -> Parsed<Immediate> {
        if depth == 0 {
            return self.fail("a shallower expression");
        }
        let immediate = match self.peek() {
            Some(Token::Mark(mark @ (b'-' | b'+' | b'~' | b'!'))) => {
                self.at += 1;
                let value = self.unary(depth - 1)?;
                return match (mark, value) {
                    (b'+', value) => Ok(value),
                    (b'-', Immediate::Integer(v)) => Ok(Immediate::Integer(v.wrapping_neg())),
                    (b'-', Immediate::Single(v)) => Ok(Immediate::Single(v ^ 1 << 31)),
                    (b'-', Immediate::Double(v)) => Ok(Immediate::Double(v ^ 1 << 63)),
                    (b'~', Immediate::Integer(v)) => Ok(Immediate::Integer(!v)),
                    (b'!', Immediate::Integer(v)) => Ok(Immediate::Integer(u64::from(v == 0))),
                    _ => self.fail("an integer after the operator"),
                };
            }
            Some(Token::Mark(b'(')) => {
                self.at += 1;
                // A cast, `(.s64) x` or `(.u64) x`, changes no bit of a 64-bit constant.
                if let (Some(Token::Dot("s64" | "u64")), Some(Token::Mark(b')'))) = (self.peek(), self.peek_at(1)) {
                    self.at += 2;
                    return self.unary(depth - 1);
                }
                let value = self.binary(0, depth - 1)?;
                self.expect(b')')?;
                return Ok(value);
            }
            Some(Token::Integer(_)) => return Ok(Immediate::Integer(self.integer("a number")?)),
            Some(Token::Bits(text)) => match (text.as_bytes()[1] | 0x20, u64::from_str_radix(&text[2..], 16)) {
                (b'f', Ok(bits)) => Immediate::Single(bits as u32),
                (_, Ok(bits)) => Immediate::Double(bits),
                _ => return self.fail("a number"),
            },
            Some(Token::Decimal(text)) => match text.parse::<f64>() {
                Ok(value) => Immediate::Double(value.to_bits()),
                Err(_) => return self.fail("a number"),
            },
            Some(Token::Name("WARP_SZ")) => Immediate::Integer(32),
            _ => return self.fail("a number"),
        };
        self.at += 1;
        Ok(immediate)
    }

    fn signed_offset(&mut self) -> Parsed<i64> {
        // After a base: `+4`, `+-4`, `-4`; a chain of them adds up.
        let mut total = 0i64;
        while self.is(b'+') || self.is(b'-') {
            let negative = self.take(b'-') || {
                self.at += 1;
                false
            };
            let value = match self.unary(DEPTH)? {
                Immediate::Integer(v) => v as i64,
                _ => return self.fail("an integer offset"),
            };
            total = total.wrapping_add(if negative { value.wrapping_neg() } else { value });
        }
        Ok(total)
    }

    // ---- module -------------------------------------------------------------------------------------------

    fn file(&mut self) -> Parsed<File> {
        let mut file = File {
            address_size: 32,
            ..File::default()
        };
        if !self.take_dot("version") {
            return self.fail("'.version'");
        }
        let Some(Token::Decimal(text)) = self.peek() else {
            return self.fail("a version such as 8.3");
        };
        file.version = match text.split_once('.') {
            Some((major, minor)) => match (major.parse(), minor.parse()) {
                (Ok(major), Ok(minor)) => (major, minor),
                _ => return self.fail("a version such as 8.3"),
            },
            None => return self.fail("a version such as 8.3"),
        };
        self.at += 1;
        while let Some(token) = self.peek() {
            match token {
                Token::Dot("target") => {
                    self.at += 1;
                    loop {
                        file.target.push(self.name("a target such as sm_90a")?);
                        if !self.take(b',') {
                            break;
                        }
                    }
                }
                Token::Dot("address_size") => {
                    self.at += 1;
                    file.address_size = self.small("32 or 64")?;
                }
                // The target comes before everything that depends on it.
                _ if file.target.is_empty() => return self.fail("'.target'"),
                _ => {
                    let item = self.item()?;
                    file.items.push(item);
                }
            }
        }
        if file.target.is_empty() {
            return self.fail("'.target'");
        }
        Ok(file)
    }

    fn item(&mut self) -> Parsed<Item> {
        let start = self.position();
        match self.peek() {
            Some(Token::Dot("file")) => {
                self.at += 1;
                let index = self.small("a file index")?;
                let Some(Token::Text(name)) = self.next() else {
                    self.at -= 1;
                    return self.fail("a file name in quotes");
                };
                let mut extra = Vec::new();
                while self.take(b',') {
                    extra.push(self.integer("a number")?);
                }
                return Ok(Item::File {
                    index,
                    name: name.into(),
                    extra,
                });
            }
            Some(Token::Dot("section")) => {
                self.at += 1;
                let name: Name = match self.next() {
                    Some(Token::Dot(name)) => format!(".{name}").into(),
                    Some(Token::Name(name)) => name.into(),
                    _ => {
                        self.at -= 1;
                        return self.fail("a section name");
                    }
                };
                self.expect(b'{')?;
                let from = self.tokens.get(self.at).map_or(self.source.len(), |t| t.start as usize);
                let mut depth = 1u32;
                loop {
                    let here = self.tokens.get(self.at).map_or(0, |t| t.start as usize);
                    match self.next() {
                        Some(Token::Mark(b'{')) => depth += 1,
                        Some(Token::Mark(b'}')) => {
                            depth -= 1;
                            if depth == 0 {
                                let text = self.source[from..here].trim_end().into();
                                return Ok(Item::Section { name, text });
                            }
                        }
                        Some(_) => {}
                        None => return self.fail("'}' to close the section"),
                    }
                }
            }
            Some(Token::Dot("pragma" | "alias")) => {
                return Ok(Item::Directive(self.directive(true)?));
            }
            _ => {}
        }
        let mut linkage = None;
        while let Some(Token::Dot(name @ ("extern" | "visible" | "weak" | "common"))) = self.peek() {
            self.at += 1;
            linkage = Some(name.into());
        }
        match self.peek() {
            Some(Token::Dot(kind @ ("entry" | "func"))) => {
                self.at += 1;
                Ok(Item::Function(Box::new(self.function(
                    start,
                    linkage,
                    kind == "entry",
                )?)))
            }
            Some(Token::Dot(
                "global" | "const" | "shared" | "reg" | "local" | "param" | "tex" | "surf" | "sampler",
            )) => {
                let mut variable = self.variable(true)?;
                variable.linkage = linkage;
                variable.position = start;
                self.expect(b';')?;
                Ok(Item::Variable(variable))
            }
            _ => self.fail("a directive that may stand at module level"),
        }
    }

    /// `.name operands` up to `;` (or, for directives before a body, as many operands as there are).
    fn directive(&mut self, semicolon: bool) -> Parsed<Directive> {
        let position = self.position();
        let Some(Token::Dot(name)) = self.next() else {
            self.at -= 1;
            return self.fail("a directive");
        };
        let mut operands = Vec::new();
        while let Some(Token::Integer(_) | Token::Text(_) | Token::Name(_)) = self.peek() {
            operands.push(self.operand(DEPTH)?);
            if !self.take(b',') {
                break;
            }
            if !matches!(self.peek(), Some(Token::Integer(_) | Token::Text(_) | Token::Name(_))) {
                return self.fail("an operand after ','");
            }
        }
        if semicolon {
            self.expect(b';')?;
        }
        Ok(Directive {
            position,
            name: name.into(),
            operands,
        })
    }

    fn function(&mut self, position: Position, linkage: Option<Name>, entry: bool) -> Parsed<Function> {
        let mut directives = Vec::new();
        // `.func .attribute(.unified(…)) (ret) name (params)`
        while self.peek() == Some(Token::Dot("attribute")) {
            let at = self.position();
            let text = self.attribute()?;
            directives.push(Directive {
                position: at,
                name: "attribute".into(),
                operands: vec![Operand::Text(text)],
            });
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
                let at = self.position();
                let text = self.attribute()?;
                directives.push(Directive {
                    position: at,
                    name: "attribute".into(),
                    operands: vec![Operand::Text(text)],
                });
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
        self.expect(b'(')?;
        let from = self.tokens.get(self.at).map_or(self.source.len(), |t| t.start as usize);
        let mut depth = 1u32;
        loop {
            let here = self.tokens.get(self.at).map_or(0, |t| t.start as usize);
            match self.next() {
                Some(Token::Mark(b'(')) => depth += 1,
                Some(Token::Mark(b')')) => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(self.source[from..here].trim_end().into());
                    }
                }
                Some(Token::Mark(b'{' | b'}' | b';')) | None => return self.fail("')' to close the attribute"),
                Some(_) => {}
            }
        }
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
    fn variable(&mut self, many: bool) -> Parsed<Variable> {
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

    // ---- bodies -------------------------------------------------------------------------------------------

    /// Statements up to and including the closing brace.
    fn body(&mut self, depth: u32) -> Parsed<Vec<Statement>> {
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

    fn operand(&mut self, depth: u32) -> Parsed<Operand> {
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

    fn operands_until(&mut self, close: u8, depth: u32) -> Parsed<Vec<Operand>> {
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

/// An integer literal of any base, or `None` when it does not fit 64 bits.
fn integer(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('U').unwrap_or(text);
    let bytes = digits.as_bytes();
    match bytes {
        [b'0', b'x' | b'X', ..] => u64::from_str_radix(&digits[2..], 16).ok(),
        [b'0', b'b' | b'B', ..] => u64::from_str_radix(&digits[2..], 2).ok(),
        [b'0', _, ..] => u64::from_str_radix(&digits[1..], 8).ok(),
        _ => digits.parse().ok(),
    }
}
