//! The rules that need no more than a look at each statement.

use std::collections::HashSet;

use super::{Finding, Subject};
use crate::ptx::{ItemKind, Statement, identifiers, split_operand};

/// State spaces that an access can name; without one it is generic.
const SPACES: [&str; 5] = ["global", "shared", "local", "param", "const"];

/// The size of a parameter block that every PTX version allows, and the one PTX 8.1 raised it to (PTX ISA 5.1.6.2).
const PARAM_BYTES: u32 = 4096;
const PARAM_BYTES_PTX81: u32 = 32764;

/// `local-memory`: no depot, no access to local memory in tensor-core kernels.
pub(super) fn local_memory(subject: &Subject<'_>, statements: &[Statement<'_>], findings: &mut Vec<Finding>) {
    if !subject.image.annotation.tensor_core {
        return;
    }
    for statement in statements {
        if statement.opcode == ".local" {
            let what = statement.operands;
            findings.push((
                "local-memory",
                statement.line,
                format!("`.local {what}`: a variable lives in memory"),
            ));
        } else if statement.has("local") {
            let what = statement.opcode;
            findings.push((
                "local-memory",
                statement.line,
                format!("`{what}` in a tensor-core kernel"),
            ));
        }
    }
}

/// `panic` and `call`.
pub(super) fn calls(subject: &Subject<'_>, statements: &[Statement<'_>], findings: &mut Vec<Finding>) {
    let functions: HashSet<&str> = subject
        .module
        .items
        .iter()
        .filter(|item| item.kind == ItemKind::Function)
        .map(|item| item.name.as_str())
        .collect();
    let mut called: HashSet<&str> = HashSet::new();
    for statement in statements.iter().filter(|statement| statement.base() == "call") {
        let callee = identifiers(statement.operands).find(|name| functions.contains(name));
        called.extend(callee);
        match callee {
            Some(name) if is_panic(name) => findings.push((
                "panic",
                statement.line,
                format!("calls `{name}`: an index, division, overflow or unwrap can panic here"),
            )),
            Some(name) => findings.push(("call", statement.line, format!("calls `{name}`, which was not inlined"))),
            None => findings.push((
                "call",
                statement.line,
                format!("calls through `{}`", statement.operands),
            )),
        }
    }
    // A function that is not called is there for its address.
    for item in subject
        .module
        .items
        .iter()
        .filter(|item| item.kind == ItemKind::Function)
    {
        if !called.contains(item.name.as_str()) {
            findings.push((
                "call",
                item.line,
                format!("the function `{}` is in the image", item.name),
            ));
        }
    }
}

/// The names, mangled or not, of what `core` calls instead of returning.
fn is_panic(name: &str) -> bool {
    [
        "panic",
        "unwrap_failed",
        "expect_failed",
        "slice_error_fail",
        "index_len_fail",
    ]
    .iter()
    .any(|part| name.contains(part))
}

/// `barriers` and `wgmma-count`: as many as the annotation says, where it says.
pub(super) fn counts(subject: &Subject<'_>, statements: &[Statement<'_>], findings: &mut Vec<Finding>) {
    let annotation = &subject.image.annotation;
    let lines = |counted: fn(&Statement<'_>) -> bool| -> Vec<usize> {
        statements
            .iter()
            .filter(|statement| counted(statement))
            .map(|statement| statement.line)
            .collect()
    };
    let barriers = lines(is_block_barrier);
    let multiplications = lines(|statement| statement.opcode.starts_with("wgmma.mma_async"));
    for (rule, declared, found, what) in [
        ("barriers", annotation.barriers, barriers, "block barriers"),
        ("wgmma-count", annotation.wgmma, multiplications, "wgmma.mma_async"),
    ] {
        if let Some(declared) = declared
            && found.len() != declared as usize
        {
            // The first one too many, or the entry when there are too few.
            let line = found.get(declared as usize).copied().unwrap_or(subject.entry().line);
            findings.push((rule, line, format!("{} {what}, declared are {declared}", found.len())));
        }
    }
}

/// `bar.*` and `barrier.*` over threads of a block; those of warps and clusters are others.
fn is_block_barrier(statement: &Statement<'_>) -> bool {
    matches!(statement.base(), "bar" | "barrier")
        && !statement.opcode.starts_with("bar.warp")
        && !statement.opcode.starts_with("barrier.cluster")
}

/// `generic-shared`: follows addresses of shared memory through moves and sums to generic accesses.
pub(super) fn generic_shared(subject: &Subject<'_>, statements: &[Statement<'_>], findings: &mut Vec<Finding>) {
    let mut shared: HashSet<&str> = subject
        .module
        .items
        .iter()
        .filter(|item| item.kind == ItemKind::Variable && item.text.contains(".shared"))
        .map(|item| item.name.as_str())
        .collect();
    for statement in statements {
        let base = statement.base();
        if matches!(base, "ld" | "st" | "atom" | "red" | "ldu") {
            let address = statement
                .operands
                .split_once('[')
                .and_then(|(_, rest)| rest.split(']').next())
                .unwrap_or("");
            let generic = !SPACES.iter().any(|space| statement.has(space));
            if generic && let Some(name) = identifiers(address).find(|name| shared.contains(name)) {
                let opcode = statement.opcode;
                findings.push((
                    "generic-shared",
                    statement.line,
                    format!("`{opcode}` through `{name}`, which is known to point to shared memory"),
                ));
            }
        }
        let (destination, sources) = split_operand(statement.operands);
        let flows = match base {
            "cvta" => statement.has("shared") && !statement.has("to"),
            "mov" | "add" | "sub" | "or" | "selp" | "mad" => identifiers(sources).any(|name| shared.contains(name)),
            _ => false,
        };
        if flows {
            shared.insert(destination);
        }
    }
}

/// `undeclared`: symbols that inline assembly names and nothing declares; the driver would reject the module.
pub(super) fn undeclared(subject: &Subject<'_>, statements: &[Statement<'_>], findings: &mut Vec<Finding>) {
    let entry = subject.entry();
    let head = entry.text.split('{').next().unwrap_or_default();
    let mut declared: HashSet<&str> = subject.module.items.iter().map(|item| item.name.as_str()).collect();
    declared.extend(identifiers(head));
    let declarations = statements
        .iter()
        .filter(|s| matches!(s.opcode, ".reg" | ".shared" | ".local" | ".param"));
    declared.extend(declarations.flat_map(|statement| identifiers(statement.operands)));
    for statement in statements.iter().filter(|statement| !statement.opcode.starts_with('.')) {
        let brackets = statement
            .operands
            .split('[')
            .skip(1)
            .filter_map(|part| part.split(']').next());
        let source = (statement.base() == "mov").then(|| split_operand(statement.operands).1);
        for name in brackets.chain(source).flat_map(identifiers) {
            let is_symbol = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '$' || c == '_') && name != "_";
            // `%tid.x` falls apart into `%tid` and `x`.
            let is_component = matches!(name, "x" | "y" | "z" | "w");
            if is_symbol && !is_component && name != "WARP_SZ" && !declared.contains(name) {
                let opcode = statement.opcode;
                findings.push((
                    "undeclared",
                    statement.line,
                    format!("`{opcode}` names `{name}`, which nothing declares"),
                ));
            }
        }
    }
}

/// `f64`: double precision only where it is declared.
pub(super) fn double_precision(subject: &Subject<'_>, statements: &[Statement<'_>], findings: &mut Vec<Finding>) {
    if subject.image.annotation.f64 {
        return;
    }
    for statement in statements.iter().filter(|s| !s.opcode.starts_with('.') && s.has("f64")) {
        findings.push((
            "f64",
            statement.line,
            format!("`{}`, but f64 is not declared", statement.opcode),
        ));
    }
}

/// `bounds`: the block's shape stands in the image.
pub(super) fn bounds(subject: &Subject<'_>, findings: &mut Vec<Finding>) {
    let entry = subject.entry();
    let head = entry.text.split('{').next().unwrap_or_default();
    let [x, y, z] = subject.image.annotation.threads;
    let wanted = format!(".reqntid {x}, {y}, {z}");
    if !head.lines().any(|line| line.trim() == wanted) {
        findings.push(("bounds", entry.line, format!("no `{wanted}` on the entry")));
    }
}

/// `params`: the block of parameters fits.
pub(super) fn params(subject: &Subject<'_>, findings: &mut Vec<Finding>) {
    let bytes = subject.image.params.last().map_or(0, |last| last.offset + last.bytes);
    let version = subject.image.ptx_version.split_once('.').and_then(|(major, minor)| {
        let number = |text: &str| text.parse::<u32>().ok();
        Some((number(major)?, number(minor)?))
    });
    let limit = if version >= Some((8, 1)) {
        PARAM_BYTES_PTX81
    } else {
        PARAM_BYTES
    };
    if bytes > limit {
        let version = &subject.image.ptx_version;
        let line = subject.entry().line;
        findings.push((
            "params",
            line,
            format!("{bytes} bytes of parameters; PTX {version} allows {limit}"),
        ));
    }
}
