//! Registers of asynchronous matrix multiplications (PTX ISA 9.7.15.1, "Async Proxy" and "Asynchronous Multiplications").
//!
//! From `wgmma.mma_async` to the `wgmma.wait_group` that covers it, its accumulators belong to the tensor cores and its
//! A registers may only be read. Between `wgmma.fence` and the first multiplication after it, nothing may write either.

use std::collections::{HashMap, HashSet};

use super::Finding;
use crate::ptx::{Statement, identifiers, split_operand};

/// Registers of multiplications that may still run.
#[derive(Default)]
struct Group<'a> {
    accumulators: HashSet<&'a str>,
    a_registers: HashSet<&'a str>,
}

/// `wgmma-in-flight` and `wgmma-fence`.
pub(super) fn in_flight<'a>(statements: &[Statement<'a>], findings: &mut Vec<Finding>) {
    // Committed groups, oldest first, and the one being filled.
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut open = Group::default();
    // Registers written since the last fence, with the line and opcode of the write.
    let mut written: Option<HashMap<&str, (usize, &str)>> = None;
    for statement in statements {
        let opcode = statement.opcode;
        if opcode.starts_with("wgmma.mma_async") {
            let (accumulators, a_registers) = registers(statement);
            for register in accumulators.iter().chain(&a_registers) {
                if let Some((line, by)) = written.as_mut().and_then(|written| written.remove(register)) {
                    findings.push((
                        "wgmma-fence",
                        line,
                        format!("`{by}` writes `{register}` between wgmma.fence and the wgmma that uses it"),
                    ));
                }
            }
            open.accumulators.extend(accumulators);
            open.a_registers.extend(a_registers);
        } else if opcode.starts_with("wgmma.fence") {
            written = Some(HashMap::new());
        } else if opcode.starts_with("wgmma.commit_group") {
            groups.push(std::mem::take(&mut open));
        } else if opcode.starts_with("wgmma.wait_group") {
            let pending: usize = statement.operands.trim().parse().unwrap_or(0);
            groups.drain(..groups.len().saturating_sub(pending));
            written = None;
        } else if matches!(opcode, "bra" | "bra.uni" | "ret" | "exit") && statement.predicate.is_none() {
            // What follows is reached from elsewhere, where other multiplications are in flight.
            groups.clear();
            open = Group::default();
            written = None;
        } else if !opcode.starts_with('.') {
            let touched: HashSet<&str> = statement.names().filter(|name| name.starts_with('%')).collect();
            let destinations: HashSet<&str> = if writes_registers(statement) {
                statement.destinations().collect()
            } else {
                HashSet::new()
            };
            for group in groups.iter().chain([&open]) {
                if let Some(register) = touched.iter().filter(|name| group.accumulators.contains(*name)).min() {
                    findings.push((
                        "wgmma-in-flight",
                        statement.line,
                        format!("`{opcode}` touches the accumulator `{register}` before wgmma.wait_group"),
                    ));
                } else if let Some(register) = destinations
                    .iter()
                    .filter(|name| group.a_registers.contains(*name))
                    .min()
                {
                    findings.push((
                        "wgmma-in-flight",
                        statement.line,
                        format!("`{opcode}` overwrites `{register}`, an A operand, before wgmma.wait_group"),
                    ));
                }
            }
            if let Some(written) = &mut written {
                written.extend(destinations.into_iter().map(|name| (name, (statement.line, opcode))));
            }
        }
    }
}

/// The accumulators, and the A operand's registers when A does not come from shared memory.
fn registers<'a>(statement: &Statement<'a>) -> (Vec<&'a str>, Vec<&'a str>) {
    let (accumulators, rest) = split_operand(statement.operands);
    let (a, _) = split_operand(rest);
    let list = |operand: &'a str| identifiers(operand).collect();
    (
        list(accumulators),
        if a.starts_with('{') { list(a) } else { Vec::new() },
    )
}

/// Whether the first operand is a destination.
fn writes_registers(statement: &Statement<'_>) -> bool {
    !matches!(
        statement.base(),
        "st" | "red" | "bra" | "bar" | "barrier" | "prefetch" | "fence" | "cp" | "stmatrix"
    )
}
