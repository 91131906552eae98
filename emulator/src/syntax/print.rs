//! Prints a tree as PTX that parses to the same tree.

use std::fmt::{Display, Formatter, Result, Write};

use super::ast::*;

fn separated<T>(f: &mut Formatter<'_>, list: &[T], mut print: impl FnMut(&mut Formatter<'_>, &T) -> Result) -> Result {
    for (i, item) in list.iter().enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        print(f, item)?;
    }
    Ok(())
}

fn offset(f: &mut Formatter<'_>, value: i64) -> Result {
    match value {
        0 => Ok(()),
        value => write!(f, "+{value}"),
    }
}

impl Display for Immediate {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match *self {
            Immediate::Integer(v) => write!(f, "{}", v as i64),
            Immediate::Single(v) => write!(f, "0f{v:08X}"),
            Immediate::Double(v) => write!(f, "0d{v:016X}"),
        }
    }
}

impl Display for Operand {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Operand::Name(name) => f.write_str(name),
            Operand::Component(name, component) => write!(f, "{name}.{component}"),
            Operand::Immediate(value) => value.fmt(f),
            Operand::Offset(name, value) => {
                f.write_str(name)?;
                write!(f, "+{value}")
            }
            Operand::Not(name) => write!(f, "!{name}"),
            Operand::Pair(a, b) => write!(f, "{a}|{b}"),
            Operand::Vector(list) => {
                f.write_char('{')?;
                separated(f, list, |f, o| o.fmt(f))?;
                f.write_char('}')
            }
            Operand::Tuple(list) => {
                f.write_char('(')?;
                separated(f, list, |f, o| o.fmt(f))?;
                f.write_char(')')
            }
            Operand::Address {
                base,
                offset: value,
                coordinates,
            } => {
                write!(f, "[{base}")?;
                offset(f, *value)?;
                if let Some(coordinates) = coordinates {
                    write!(f, ", {coordinates}")?;
                }
                f.write_char(']')
            }
            Operand::Text(text) => write!(f, "\"{text}\""),
        }
    }
}

impl Display for Directive {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if &*self.name == "attribute"
            && let [Operand::Text(text)] = &self.operands[..]
        {
            return write!(f, ".attribute({text})");
        }
        write!(f, ".{}", self.name)?;
        if !self.operands.is_empty() {
            f.write_char(' ')?;
        }
        separated(f, &self.operands, |f, o| o.fmt(f))
    }
}

impl Display for Initial {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Initial::Value(value) => value.fmt(f),
            Initial::Address {
                symbol,
                offset: value,
                generic,
                mask,
            } => {
                if let Some(mask) = mask {
                    write!(f, "{mask:#x}(")?;
                }
                match generic {
                    true => write!(f, "generic({symbol})")?,
                    false => f.write_str(symbol)?,
                }
                offset(f, *value)?;
                if mask.is_some() { f.write_char(')') } else { Ok(()) }
            }
            Initial::List(list) => {
                f.write_char('{')?;
                separated(f, list, |f, i| i.fmt(f))?;
                f.write_char('}')
            }
        }
    }
}

impl Display for Variable {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if let Some(linkage) = &self.linkage {
            write!(f, ".{linkage} ")?;
        }
        write!(f, ".{}", self.space.name())?;
        for attribute in &self.attributes {
            write!(f, " .attribute({attribute})")?;
        }
        if let Some(align) = self.align {
            write!(f, " .align {align}")?;
        }
        if self.vector > 1 {
            write!(f, " .v{}", self.vector)?;
        }
        write!(f, " .{}", self.ty)?;
        if let Some(words) = &self.pointer {
            f.write_str(" .ptr")?;
            for word in words {
                match word.parse::<u64>() {
                    Ok(align) => write!(f, " {align}")?,
                    Err(_) => write!(f, " .{word}")?,
                }
            }
        }
        f.write_char(' ')?;
        separated(f, &self.declared, |f, d| {
            f.write_str(&d.name)?;
            if let Some(count) = d.count {
                write!(f, "<{count}>")?;
            }
            for dimension in &d.dimensions {
                match dimension {
                    Some(size) => write!(f, "[{size}]")?,
                    None => f.write_str("[]")?,
                }
            }
            match &d.initial {
                Some(initial) => write!(f, " = {initial}"),
                None => Ok(()),
            }
        })
    }
}

impl Display for Instruction {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if let Some(guard) = &self.guard {
            write!(f, "@{}{} ", if guard.negated { "!" } else { "" }, guard.register)?;
        }
        f.write_str(&self.opcode)?;
        for modifier in &self.modifiers {
            write!(f, ".{modifier}")?;
        }
        if !self.operands.is_empty() {
            f.write_char(' ')?;
        }
        separated(f, &self.operands, |f, o| o.fmt(f))?;
        f.write_char(';')
    }
}

fn statements(f: &mut Formatter<'_>, list: &[Statement], indent: usize) -> Result {
    for statement in list {
        match statement {
            Statement::Label(name) => writeln!(f, "{name}:")?,
            Statement::Instruction(i) => writeln!(f, "{:indent$}{i}", "")?,
            Statement::Block(inner) => {
                writeln!(f, "{:indent$}{{", "")?;
                statements(f, inner, indent + 4)?;
                writeln!(f, "{:indent$}}}", "")?;
            }
            Statement::Variable(v) => writeln!(f, "{:indent$}{v};", "")?,
            Statement::Location {
                file,
                line,
                column,
                extra,
            } => writeln!(f, ".loc {file} {line} {column}{extra}")?,
            Statement::Directive { label, directive } => {
                if let Some(label) = label {
                    write!(f, "{label}: ")?;
                }
                writeln!(f, "{directive};")?;
            }
            Statement::Prototype { label, text } => writeln!(f, "{label}: .callprototype {text};")?,
        }
    }
    Ok(())
}

impl Display for Function {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if let Some(linkage) = &self.linkage {
            write!(f, ".{linkage} ")?;
        }
        f.write_str(if self.entry { ".entry " } else { ".func " })?;
        if !self.returns.is_empty() {
            f.write_char('(')?;
            separated(f, &self.returns, |f, p| p.fmt(f))?;
            f.write_str(") ")?;
        }
        write!(f, "{}(", self.name)?;
        separated(f, &self.parameters, |f, p| write!(f, "\n    {p}"))?;
        f.write_char(')')?;
        for directive in &self.directives {
            write!(f, "\n{directive}")?;
        }
        match &self.body {
            None => writeln!(f, ";"),
            Some(body) => {
                f.write_str("\n{\n")?;
                statements(f, body, 4)?;
                f.write_str("}\n")
            }
        }
    }
}

impl Display for File {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, ".version {}.{}", self.version.0, self.version.1)?;
        f.write_str(".target ")?;
        separated(f, &self.target, |f, t| f.write_str(t))?;
        writeln!(f, "\n.address_size {}\n", self.address_size)?;
        for item in &self.items {
            match item {
                Item::Variable(variable) => writeln!(f, "{variable};")?,
                Item::Function(function) => writeln!(f, "{function}")?,
                Item::File { index, name, extra } => {
                    write!(f, ".file {index} \"{name}\"")?;
                    for number in extra {
                        write!(f, ", {number}")?;
                    }
                    writeln!(f)?;
                }
                Item::Section { name, text } => writeln!(f, ".section {name}\n{{\n{text}\n}}")?,
                Item::Directive(directive) => writeln!(f, "{directive};")?,
            }
        }
        Ok(())
    }
}
