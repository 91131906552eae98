//! The tokens of PTX.

use logos::Logos;

use super::ast::Position;
use crate::error::ParseError;

/// One token; names borrow from the source text.
#[derive(Logos, Clone, Copy, Debug, PartialEq)]
#[logos(skip r"[ \t\r\n\f\v]+")]
#[logos(skip(r"//[^\n]*", allow_greedy = true))]
#[logos(skip r"/\*([^*]|\*+[^*/])*\*+/")]
pub(super) enum Token<'s> {
    /// An identifier, register, opcode or label.
    #[regex(r"[A-Za-z_$%][A-Za-z0-9_$]*")]
    #[regex(r"%[A-Za-z0-9_$]+")]
    Name(&'s str),
    /// `.name` or `.name::name`: a directive or a modifier, without its leading dot.
    #[regex(r"\.[A-Za-z0-9_$]+(::[A-Za-z0-9_]+)*", |lex| &lex.slice()[1..])]
    Dot(&'s str),
    /// An integer of any base.
    #[regex(r"0[xX][0-9a-fA-F]+U?")]
    #[regex(r"0[bB][01]+U?")]
    #[regex(r"[0-9]+U?")]
    Integer(&'s str),
    /// `0fXXXXXXXX` or `0dXXXXXXXXXXXXXXXX`.
    #[regex(r"0[fF][0-9a-fA-F]{8}")]
    #[regex(r"0[dD][0-9a-fA-F]{16}")]
    Bits(&'s str),
    /// A decimal floating-point number.
    #[regex(r"[0-9]+\.[0-9]*([eE][+-]?[0-9]+)?")]
    #[regex(r"[0-9]+[eE][+-]?[0-9]+")]
    Decimal(&'s str),
    /// A quoted string, without the quotes.
    #[regex(r#""([^"\\\n]|\\[^\n])*""#, |lex| { let s = lex.slice(); &s[1..s.len() - 1] })]
    Text(&'s str),
    /// An operator of two characters.
    #[token("<<")]
    #[token(">>")]
    #[token("==")]
    #[token("!=")]
    #[token("<=")]
    #[token(">=")]
    #[token("&&")]
    #[token("||")]
    Operator(&'s str),
    /// Any other mark.
    #[regex(r"[{}()\[\]<>,;:=+\-*/!|&^~@?]", |lex| lex.slice().as_bytes()[0])]
    Mark(u8),
}

/// A token and the byte at which it starts.
pub(super) struct Lexed<'s> {
    pub(super) token: Token<'s>,
    pub(super) start: u32,
    pub(super) end: u32,
}

/// Splits the whole text into tokens.
pub(super) fn lex(source: &str) -> Result<Vec<Lexed<'_>>, ParseError> {
    if source.len() > u32::MAX as usize {
        return Err(ParseError::new(
            Position::default(),
            "the text is longer than 4 GiB".into(),
        ));
    }
    let mut tokens = Vec::new();
    for (token, span) in Token::lexer(source).spanned() {
        match token {
            Ok(token) => tokens.push(Lexed {
                token,
                start: span.start as u32,
                end: span.end as u32,
            }),
            Err(()) => {
                let position = position(source, span.start);
                let found = source[span].chars().next().unwrap_or(' ');
                return Err(ParseError::new(position, format!("unexpected character {found:?}")));
            }
        }
    }
    Ok(tokens)
}

/// The line and column of a byte of the text, both from 1.
pub(super) fn position(source: &str, byte: usize) -> Position {
    let before = &source.as_bytes()[..byte.min(source.len())];
    let line = before.iter().filter(|&&b| b == b'\n').count() as u32 + 1;
    let column = before.iter().rev().take_while(|&&b| b != b'\n').count() as u32 + 1;
    Position { line, column }
}
