//! Tokens to tree, by recursive descent with bounded depth.

mod declaration;
mod expression;
mod statement;

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

    /// The text between `open` and the mark that closes it; none of `never` stands there.
    fn enclosed(&mut self, (open, close): (u8, u8), never: &[u8], wanted: &str) -> Parsed<Name> {
        self.expect(open)?;
        let from = self.tokens.get(self.at).map_or(self.source.len(), |t| t.start as usize);
        let mut depth = 1u32;
        loop {
            let here = self.tokens.get(self.at).map_or(0, |t| t.start as usize);
            match self.next() {
                Some(Token::Mark(mark)) if mark == open => depth += 1,
                Some(Token::Mark(mark)) if mark == close => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(self.source[from..here].trim_end().into());
                    }
                }
                Some(Token::Mark(mark)) if never.contains(&mark) => return self.fail(wanted),
                None => return self.fail(wanted),
                Some(_) => {}
            }
        }
    }

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
                let text = self.enclosed((b'{', b'}'), &[], "'}' to close the section")?;
                return Ok(Item::Section { name, text });
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
}
