//! Lowering of `wgmma.…`: its modifiers and operands.

use std::sync::Arc;

use super::{A, Commit, Fence, Instr, MmaAsync, Scale, WaitGroup};
use crate::exec::mma::{accumulator, element, list};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::syntax::ast::{Immediate, Instruction, Operand};
use crate::tensor::Major;
use crate::tensor::wgmma::Shape;

/// Lowers `wgmma.…`.
pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let Some(kind) = m.take_one(&["mma_async", "fence", "commit_group", "wait_group"]) else {
        return l.refuse("the kind of operation is missing");
    };
    if m.take("sp") {
        return l.refuse("sparse operands are not modelled");
    }
    if !(m.take("sync") && m.take("aligned")) {
        return l.refuse(".sync.aligned is missing");
    }
    match kind {
        0 => lower_mma(l, i, m),
        1 => {
            let [] = l.operands(i)?;
            l.other(Fence)
        }
        2 => {
            let [] = l.operands(i)?;
            l.other(Commit)
        }
        _ => {
            let [newest] = l.operands(i)?;
            let newest = l.literal(newest)? as usize;
            l.other(WaitGroup { newest })
        }
    }
}

fn lower_mma(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let shape = m.take_map(|name| {
        let (n, k) = name.strip_prefix("m64n")?.split_once('k')?;
        Some((n.parse::<usize>().ok()?, k.parse::<usize>().ok()?))
    });
    let Some((n, k)) = shape else {
        return l.refuse("the shape is missing");
    };
    let saturate = m.take("satfinite");
    let [Some(d), Some(a), Some(b)] = [m.ty(), m.ty(), m.ty()] else {
        return l.refuse("three types are needed");
    };
    let (Some(d), Some(a), Some(b)) = (accumulator(d, saturate), element(a), element(b)) else {
        return l.refuse("the types are not modelled");
    };
    let [od, oa, ob, scale, immediates @ ..] = &i.operands[..] else {
        return l.refuse("it has too few operands");
    };
    let in_registers = matches!(oa, Operand::Vector(_));
    let mut values = Vec::new();
    for o in immediates {
        values.push(l.literal(o)? as i64);
    }
    let scales = if a.is_integer() { 0 } else { 2 };
    let transposes = if a.size() != 2 {
        0
    } else {
        2 - usize::from(in_registers)
    };
    if values.len() != scales + transposes {
        return l.refuse(&format!(
            "it has {} immediate operands instead of {}",
            values.len(),
            scales + transposes
        ));
    }
    let (factors, majors) = values.split_at(scales);
    if factors.iter().any(|f| ![1, -1, i64::from(u32::MAX)].contains(f)) || majors.iter().any(|t| ![0, 1].contains(t)) {
        return l.refuse("a scale is not 1 or -1, or a transposition is not 0 or 1");
    }
    let negative = |i: usize| factors.get(i).is_some_and(|&f| f != 1);
    let major = |i: Option<usize>| match i.and_then(|i| majors.get(i)) {
        Some(1) => Major::Mn,
        _ => Major::K,
    };
    let shape = Shape {
        n,
        a,
        b,
        d,
        negate_a: negative(0),
        negate_b: negative(1),
        a_major: major(if in_registers { None } else { Some(0) }),
        b_major: major(Some(usize::from(!in_registers))),
    };
    if !shape.is_modelled() || k != shape.k() || saturate && !a.is_integer() {
        return l.refuse("this combination of shape and types is not modelled");
    }
    let (a, mut registers) = if in_registers {
        let fragments = list(l, oa, 4, true)?;
        (A::Registers(fragments.clone()), fragments)
    } else {
        (A::Descriptor(l.source(oa, Type::B64)?), Vec::new())
    };
    let b = l.source(ob, Type::B64)?;
    let scale = match scale {
        Operand::Immediate(Immediate::Integer(v)) => Scale::Always(*v != 0),
        other => {
            let (p, negated) = l.predicate(other)?;
            Scale::Predicate(p, negated)
        }
    };
    let accumulators = list(l, od, shape.d_registers(), false)?;
    registers.extend(&accumulators);
    let instruction = Arc::new(Instr {
        shape,
        accumulators,
        registers: registers.into(),
    });
    l.other(MmaAsync {
        instruction,
        a,
        b,
        scale,
    })
}
