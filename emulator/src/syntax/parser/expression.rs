//! Numbers and constant expressions.

use super::{DEPTH, Parsed, Parser};
use crate::syntax::{ast::*, lexer::Token};

impl Parser<'_> {
    pub(super) fn integer(&mut self, wanted: &str) -> Parsed<u64> {
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

    pub(super) fn small(&mut self, wanted: &str) -> Parsed<u32> {
        let at = self.at;
        let value = self.integer(wanted)?;
        u32::try_from(value).or_else(|_| {
            self.at = at;
            self.fail("an integer below 2^32")
        })
    }

    /// A constant expression: literals, unary `-`, `!`, `~`, parentheses, and binary operators.
    pub(super) fn expression(&mut self, depth: u32) -> Parsed<Immediate> {
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

    pub(super) fn unary(&mut self, depth: u32) -> Parsed<Immediate> {
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

    pub(super) fn signed_offset(&mut self) -> Parsed<i64> {
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
