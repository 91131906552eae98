//! `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync`.

use crate::Lanes;
use crate::exec::memory::{self, AccessKind, AccessSpace};
use crate::exec::{Context, Operation, Outcome, Step};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::machine::warp::blend;
use crate::program::Register;
use crate::syntax::ast::{Instruction, Operand};
use crate::tensor::Element;
use crate::tensor::fragment;
use crate::tensor::mma::{self, Accumulator, Shape};

struct Matrices {
    store: bool,
    trans: bool,
    space: AccessSpace,
    address: Register,
    offset: i64,
    registers: Vec<Register>,
}

struct Transpose {
    d: Register,
    a: Register,
}

struct Mma {
    shape: Shape,
    a: Vec<Register>,
    b: Vec<Register>,
    c: Vec<Register>,
    d: Vec<Register>,
}

impl Operation for Matrices {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        cx.aligned()?;
        let bytes = 128 * self.registers.len() as u64;
        if self.store {
            cx.count(AccessSpace::Shared, 0, bytes);
        } else {
            cx.count(AccessSpace::Shared, bytes, 0);
        }
        let mut results: Vec<Lanes> = Vec::new();
        for (matrix, &register) in self.registers.iter().enumerate() {
            let mut rows = if self.store {
                fragment::stmatrix(cx.register(register), self.trans)
            } else {
                [[0; 16]; 8]
            };
            for (row, bytes) in rows.iter_mut().enumerate() {
                let lane = matrix * 8 + row;
                let address = cx.register(self.address)[lane].wrapping_add_signed(self.offset);
                let kind = if self.store {
                    AccessKind::Write
                } else {
                    AccessKind::Read
                };
                let there = cx.locate(self.space, address, 16, kind, lane)?;
                for (half, part) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    // SAFETY: `locate` proved 16 bytes, aligned.
                    unsafe {
                        if self.store {
                            memory::write(there.add(8 * half), 8, u64::from_le_bytes(*part));
                        } else {
                            *part = memory::read(there.add(8 * half), 8).to_le_bytes();
                        }
                    }
                }
            }
            if !self.store {
                results.push(fragment::ldmatrix(&rows, self.trans));
            }
        }
        // Only now: a destination may be the address register.
        for (register, value) in self.registers.iter().zip(&results) {
            let mask = cx.mask;
            blend(cx.register_mut(*register), value, mask);
        }
        Ok(Step::Next)
    }
}

impl Operation for Transpose {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        cx.aligned()?;
        let value = fragment::movmatrix_trans(cx.register(self.a));
        let mask = cx.mask;
        blend(cx.register_mut(self.d), &value, mask);
        Ok(Step::Next)
    }
}

impl Operation for Mma {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        cx.aligned()?;
        const NONE: &Lanes = &[0; 32];
        let gather = |list: &[Register]| {
            let mut lanes = [NONE; 8];
            for (slot, register) in lanes.iter_mut().zip(list) {
                *slot = cx.register(*register);
            }
            lanes
        };
        let (a, b, c) = (gather(&self.a), gather(&self.b), gather(&self.c));
        // No shape has more than four registers of results.
        let mut results = [[0; 32]; 4];
        let d = &mut results[..self.d.len()];
        mma::mma(
            &self.shape,
            &a[..self.a.len()],
            &b[..self.b.len()],
            &c[..self.c.len()],
            d,
        );
        let mask = cx.mask;
        for (register, value) in self.d.iter().zip(d.iter()) {
            blend(cx.register_mut(*register), value, mask);
        }
        cx.cluster.counters.tensor_flops += self.shape.flops();
        Ok(Step::Next)
    }
}

/// Lowers `ldmatrix`, `stmatrix`, `movmatrix` and `mma`.
pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    if !(m.take("sync") && m.take("aligned")) {
        return l.refuse(".sync.aligned is missing");
    }
    match &*i.opcode {
        "mma" => lower_mma(l, i, m),
        "movmatrix" => {
            if !(m.take("m8n8") && m.take("trans") && m.take("b16")) {
                return l.refuse("only .m8n8.trans.b16 is modelled");
            }
            let [d, a] = l.operands(i)?;
            let a = l.source(a, Type::B32)?;
            let (d, _) = l.dest(d)?;
            l.other(Transpose { d, a })
        }
        opcode => lower_matrices(l, i, m, opcode == "stmatrix"),
    }
}

fn lower_matrices(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>, store: bool) -> Lowered {
    if !m.take("m8n8") {
        return l.refuse("only .m8n8 is modelled");
    }
    let count = match m.take_one(&["x1", "x2", "x4"]) {
        Some(n) => 1 << n,
        None => return l.refuse("the number of matrices is missing"),
    };
    let trans = m.take("trans");
    let space = AccessSpace::take(m);
    if !m.take("b16") {
        return l.refuse("only .b16 is modelled");
    }
    let [first, second] = l.operands(i)?;
    let (registers, address) = if store { (second, first) } else { (first, second) };
    let list = list(l, registers, count, store)?;
    let (address, offset, _) = l.address(address)?;
    l.other(Matrices {
        store,
        trans,
        space,
        address,
        offset,
        registers: list,
    })
}

/// The registers of a vector operand of known length.
pub(crate) fn list(l: &mut Lowering<'_>, operand: &Operand, count: usize, read: bool) -> Lowered<Vec<Register>> {
    let elements = l.elements(operand)?;
    if elements.len() != count {
        return l.refuse(&format!(
            "an operand has {} registers instead of {count}",
            elements.len()
        ));
    }
    elements
        .iter()
        .map(|e| {
            if read {
                l.source(e, Type::B32)
            } else {
                l.dest(e).map(|(r, _)| r)
            }
        })
        .collect()
}

fn lower_mma(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let shape = m.take_map(|name| match name {
        "m16n8k4" => Some((16, 4)),
        "m16n8k8" => Some((16, 8)),
        "m16n8k16" => Some((16, 16)),
        "m16n8k32" => Some((16, 32)),
        "m8n8k16" => Some((8, 16)),
        _ => None,
    });
    let Some((rows, k)) = shape else {
        return l.refuse("the shape is not modelled");
    };
    if !(m.take("row") && m.take("col")) {
        return l.refuse("only .row.col is modelled");
    }
    let saturate = m.take("satfinite");
    let [Some(d), Some(a), Some(b), Some(c)] = [m.ty(), m.ty(), m.ty(), m.ty()] else {
        return l.refuse("four types are needed");
    };
    let (Some(ea), Some(eb)) = (element(a), element(b)) else {
        return l.refuse("the types of A and B are not modelled");
    };
    let (Some(cc), Some(dd)) = (accumulator(c, saturate), accumulator(d, saturate)) else {
        return l.refuse("the types of C and D are not modelled");
    };
    let shape = Shape {
        m: rows,
        k,
        a: ea,
        b: eb,
        c: cc,
        d: dd,
    };
    if !shape.is_modelled() || saturate && !ea.is_integer() {
        return l.refuse("this combination of shape and types is not modelled");
    }
    let [d, a, b, c] = l.operands(i)?;
    let a = list(l, a, shape.a_registers(), true)?;
    let b = list(l, b, shape.b_registers(), true)?;
    let c = list(l, c, shape.c_registers(), true)?;
    let d = list(l, d, shape.d_registers(), false)?;
    l.other(Mma { shape, a, b, c, d })
}

/// The operand type of a matrix.
pub(crate) fn element(ty: Type) -> Option<Element> {
    Some(match ty {
        Type::F16 => Element::F16,
        Type::Bf16 => Element::Bf16,
        Type::Tf32 => Element::Tf32,
        Type::E4m3 => Element::E4m3,
        Type::E5m2 => Element::E5m2,
        Type::S8 => Element::S8,
        Type::U8 => Element::U8,
        _ => return None,
    })
}

/// The accumulator type of a matrix.
pub(crate) fn accumulator(ty: Type, saturate: bool) -> Option<Accumulator> {
    Some(match ty {
        Type::F32 => Accumulator::F32,
        Type::F16 => Accumulator::F16,
        Type::S32 => Accumulator::S32 { saturate },
        _ => return None,
    })
}
