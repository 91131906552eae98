//! PTX as text: a module's items, and an entry's statements.
//!
//! This is no PTX parser (the emulator has one). It knows what the builder needs: where an item of a module begins
//! and ends, what it is called, which names it mentions, and where one statement ends and the next begins.

/// A module as the compiler wrote it.
#[derive(Debug, Default)]
pub struct Module {
    /// The operand of `.version`.
    pub version: String,
    /// The operand of `.target`.
    pub target: String,
    /// Entries, functions and variables in the order of the file.
    pub items: Vec<Item>,
    /// Comments outside of any item, without the slashes, with their line from 1.
    pub comments: Vec<(usize, String)>,
}

/// What an [`Item`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// `.entry`: a kernel.
    Entry,
    /// `.func`: a function, or the declaration of one.
    Function,
    /// A module-scope variable, or the declaration of one.
    Variable,
}

/// One item of a module.
#[derive(Clone, Debug)]
pub struct Item {
    /// Entry, function or variable.
    pub kind: ItemKind,
    /// Its name.
    pub name: String,
    /// Its text without comments.
    pub text: String,
    /// The line it starts on, from 1.
    pub line: usize,
}

/// Text that is not a PTX module; the line counts from 1.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Where.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// Splits a module into its items.
///
/// # Errors
/// [`Malformed`] when an item has no end or no name, or `.version` or `.target` is missing.
pub fn parse(text: &str) -> Result<Module, Malformed> {
    let mut module = Module::default();
    let mut pending: Option<Pending> = None;
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let (code, comment) = split_comment(raw);
        if let (Some(comment), None) = (comment, &pending) {
            module.comments.push((line, comment.trim().to_string()));
        }
        let code = code.trim_end();
        let word = code.trim_start();
        if word.is_empty() {
            continue;
        }
        if pending.is_none() {
            if let Some(version) = word.strip_prefix(".version") {
                module.version = version.trim().to_string();
                continue;
            }
            if let Some(target) = word.strip_prefix(".target") {
                module.target = target.trim().to_string();
                continue;
            }
            if word.starts_with(".address_size") || is_debug_directive(word) {
                continue;
            }
        }
        if is_debug_directive(word) {
            continue;
        }
        let item = pending.get_or_insert_with(|| Pending::new(line));
        if item.push(code) {
            let item = pending.take().expect("an item was just pushed to");
            module.items.push(item.finish()?);
        }
    }
    if let Some(open) = pending {
        return Err(Malformed {
            line: open.line,
            message: "this item does not end".into(),
        });
    }
    if module.version.is_empty() || module.target.is_empty() {
        return Err(Malformed {
            line: 1,
            message: "no .version or no .target".into(),
        });
    }
    Ok(module)
}

/// Debug line information: it carries paths, and the images are built without it.
fn is_debug_directive(word: &str) -> bool {
    word.starts_with(".loc") && !word.starts_with(".local") || word.starts_with(".file")
}

/// The code and the `//` comment of a line. PTX that the compiler writes has no `//` in strings.
pub(crate) fn split_comment(line: &str) -> (&str, Option<&str>) {
    match line.split_once("//") {
        Some((code, comment)) => (code, Some(comment)),
        None => (line, None),
    }
}

/// An item whose end has not been seen.
struct Pending {
    line: usize,
    text: String,
    depth: usize,
    is_function: Option<bool>,
}

impl Pending {
    fn new(line: usize) -> Pending {
        Pending {
            line,
            text: String::new(),
            depth: 0,
            is_function: None,
        }
    }

    /// Adds a line of code and says whether the item ends with it.
    fn push(&mut self, code: &str) -> bool {
        self.text.push_str(code);
        self.text.push('\n');
        if self.is_function.is_none() && words(code).any(|word| word == ".entry" || word == ".func") {
            self.is_function = Some(true);
        }
        let mut ended = false;
        for byte in code.bytes() {
            match byte {
                b'{' => self.depth += 1,
                b'}' => {
                    self.depth = self.depth.saturating_sub(1);
                    ended |= self.depth == 0 && self.is_function == Some(true);
                }
                // A variable, or the declaration of a function.
                b';' => ended |= self.depth == 0,
                _ => {}
            }
        }
        ended
    }

    fn finish(self) -> Result<Item, Malformed> {
        let kind = if words(&self.text).any(|word| word == ".entry") {
            ItemKind::Entry
        } else if self.is_function == Some(true) {
            ItemKind::Function
        } else {
            ItemKind::Variable
        };
        let name = match kind {
            ItemKind::Entry => name_after(&self.text, ".entry"),
            ItemKind::Function => name_after(&self.text, ".func"),
            ItemKind::Variable => variable_name(&self.text),
        };
        let name = name.ok_or(Malformed {
            line: self.line,
            message: format!("no name in `{}`", self.text.lines().next().unwrap_or_default().trim()),
        })?;
        Ok(Item {
            kind,
            name,
            text: self.text,
            line: self.line,
        })
    }
}

/// The words of a text: directives with their dot, identifiers, numbers, registers with their `%`.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')))
        .filter(|word| !word.is_empty())
}

/// The identifiers of a text; unlike [`words`], a dot separates them.
pub(crate) fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_identifier_char(c))
        .filter(|word| !word.is_empty())
}

pub(crate) fn is_identifier_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')
}

/// The name of an entry or function: the first identifier after the directive that is not inside parentheses
/// (a function's return parameter stands before its name).
fn name_after(text: &str, directive: &str) -> Option<String> {
    let after = &text[text.find(directive)? + directive.len()..];
    let mut depth = 0;
    let mut name = String::new();
    for c in after.chars() {
        match c {
            '(' if !name.is_empty() => break,
            '(' => depth += 1,
            ')' => depth -= 1,
            c if depth == 0 && is_identifier_char(c) => name.push(c),
            _ if !name.is_empty() => break,
            _ => {}
        }
    }
    (!name.is_empty()).then_some(name)
}

/// The name of a variable: the last identifier before its extent or initialiser.
fn variable_name(text: &str) -> Option<String> {
    let declaration = text.split(['[', '=', ';']).next()?;
    let name = declaration.split_whitespace().next_back()?;
    name.chars().all(is_identifier_char).then(|| name.to_string())
}

/// One statement of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Line of its first word, from 1.
    pub line: usize,
    /// `@%p1` or `@!%p1` in front of it, without the `@`.
    pub predicate: Option<&'a str>,
    /// The opcode with its modifiers (`ld.shared.b32`), or a directive (`.reg`).
    pub opcode: &'a str,
    /// All after the opcode.
    pub operands: &'a str,
}

impl<'a> Statement<'a> {
    /// Whether `part` is one of the dot-separated parts of the opcode: `ld.shared.b32` has `shared`.
    pub fn has(&self, part: &str) -> bool {
        self.opcode
            .split('.')
            .any(|piece| piece == part || piece.split("::").next() == Some(part))
    }

    /// Whether this is a matrix multiplication on tensor cores.
    pub fn is_tensor_core(&self) -> bool {
        matches!(self.base(), "mma" | "wmma") || self.opcode.starts_with("wgmma.mma_async")
    }

    /// The first part of the opcode: `ld` of `ld.shared.b32`.
    pub fn base(&self) -> &'a str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    /// The virtual registers and symbols among the operands, in order.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        identifiers(self.operands).filter(|name| !name.starts_with(|c: char| c.is_ascii_digit()))
    }

    /// The registers the statement writes: those before the first comma outside of braces. Stores, and whatever else
    /// writes no register, give what they would have written; callers ask only where that is right.
    pub fn destinations(&self) -> impl Iterator<Item = &'a str> {
        let (first, _) = split_operand(self.operands);
        identifiers(first).filter(|name| !name.starts_with(|c: char| c.is_ascii_digit()))
    }
}

/// The first operand and the rest after its comma; commas within `{}` and `[]` do not count.
pub(crate) fn split_operand(operands: &str) -> (&str, &str) {
    let mut depth = 0i32;
    for (at, byte) in operands.bytes().enumerate() {
        match byte {
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' => depth -= 1,
            b',' if depth == 0 => return (operands[..at].trim(), operands[at + 1..].trim()),
            _ => {}
        }
    }
    (operands.trim(), "")
}

/// The statements of an item's body, labels and scopes left out. `text` has no comments; lines count from
/// `first_line` at the start of `text`.
pub fn statements(text: &str, first_line: usize) -> Vec<Statement<'_>> {
    let Some(open) = text.find('{') else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut start = open + 1;
    let (mut line, mut counted) = (first_line, 0);
    let body = &text[..text.rfind('}').unwrap_or(text.len())];
    for (at, _) in body.match_indices(';').filter(|(at, _)| *at > open) {
        let piece = &body[start..at];
        let mut code = piece.trim_start();
        // Scopes open and close, and labels stand, in front of a statement.
        loop {
            let before = code;
            code = code.trim_start_matches(['{', '}']).trim_start();
            code = strip_label(code).trim_start();
            if code.len() == before.len() {
                break;
            }
        }
        // Lines are counted on from the last statement: kernels have thousands.
        let begin = at - code.len();
        line += text[counted..begin].matches('\n').count();
        counted = begin;
        start = at + 1;
        let code_end = code.trim_end();
        if code_end.is_empty() {
            continue;
        }
        let (predicate, rest) = match code_end.strip_prefix('@') {
            Some(rest) => match rest.split_once(char::is_whitespace) {
                Some((predicate, rest)) => (Some(predicate), rest.trim_start()),
                None => continue,
            },
            None => (None, code_end),
        };
        let (opcode, operands) = match rest.split_once(char::is_whitespace) {
            Some((opcode, operands)) => (opcode, operands.trim()),
            None => (rest, ""),
        };
        found.push(Statement {
            line,
            predicate,
            opcode,
            operands,
        });
    }
    found
}

/// `code` without the label (`$L__BB0_1:`) it starts with.
fn strip_label(code: &str) -> &str {
    let end = code.find(|c: char| !is_identifier_char(c)).unwrap_or(code.len());
    match code[end..].strip_prefix(':') {
        Some(rest) if end > 0 && !rest.starts_with(':') => rest,
        _ => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "\
//
// Generated by LLVM NVPTX Back-End
//

.version 8.3
.target sm_90a
.address_size 64

// @kernel name=k threads=32,
.extern .shared .align 16 .b8 pool[];
.global .align 4 .b8 table[8] = {1, 2, 3, 4,
 5, 6, 7, 8};
.extern .func  (.param .b32 func_retval0) helper
(
	.param .b64 helper_param_0
)
;
	// .globl	k
.visible .entry k(
	.param .align 8 .b8 k_param_0[32]
)
{
	.reg .b32 	%r<8>;
	// begin inline asm
	{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%r1], %r2;
	selp.u32 %r3, 1, 0, p; }
	// end inline asm
$L__BB0_2:
	@%p1 bra 	$L__BB0_2;
	ret;

}
";

    #[test]
    fn a_module_splits_into_named_items() {
        let module = parse(MODULE).unwrap();
        assert_eq!((module.version.as_str(), module.target.as_str()), ("8.3", "sm_90a"));
        let items: Vec<_> = module
            .items
            .iter()
            .map(|item| (item.kind, item.name.as_str(), item.line))
            .collect();
        assert_eq!(
            items,
            [
                (ItemKind::Variable, "pool", 10),
                (ItemKind::Variable, "table", 11),
                (ItemKind::Function, "helper", 13),
                (ItemKind::Entry, "k", 19),
            ]
        );
        assert!(
            module
                .comments
                .iter()
                .any(|(line, text)| *line == 9 && text == "@kernel name=k threads=32,")
        );
        assert!(!module.items[3].text.contains("inline asm"));
    }

    #[test]
    fn statements_have_predicates_and_lines_and_no_labels() {
        let text = ".visible .entry k()\n{\n\t.reg .b32 %r<8>;\n\t{ .reg .pred p; setp.ne.b32 p, %r1, 0; }\n$L:\n\t@!%p1 bra $L;\n\tret;\n}\n";
        let found = statements(text, 5);
        let short: Vec<_> = found
            .iter()
            .map(|s| (s.line, s.predicate, s.opcode, s.operands))
            .collect();
        assert_eq!(
            short,
            [
                (7, None, ".reg", ".b32 %r<8>"),
                (8, None, ".reg", ".pred p"),
                (8, None, "setp.ne.b32", "p, %r1, 0"),
                (10, Some("!%p1"), "bra", "$L"),
                (11, None, "ret", ""),
            ]
        );
    }

    #[test]
    fn an_open_item_is_malformed() {
        let error = parse(".version 8.3\n.target sm_90a\n.visible .entry k(\n)\n{\n ret;\n").unwrap_err();
        assert_eq!(error.line, 3);
    }

    #[test]
    fn opcode_parts_ignore_the_scope_of_a_state_space() {
        let statement = Statement {
            line: 1,
            predicate: None,
            opcode: "ld.shared::cta.b32",
            operands: "%r1, [%r2]",
        };
        assert!(statement.has("shared") && statement.base() == "ld" && !statement.has("share"));
        assert_eq!(statement.destinations().collect::<Vec<_>>(), ["%r1"]);
    }
}
