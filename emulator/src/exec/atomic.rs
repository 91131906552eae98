//! `atom` and `red` (PTX ISA, "Parallel Synchronization and Communication Instructions").

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::load_store::{take_hints, take_order};
use super::memory::{AccessKind, AccessSpace};
use super::{Context, Operation, Outcome, Step};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::numeric::half::{Half, packed2};
use crate::numeric::{Mode, Rounding, double, single};
use crate::program::Register;
use crate::syntax::ast::{Instruction, Operand};

/// The new value from the old one and the operands.
type Update = fn(u64, u64, u64) -> u64;

struct Atomic {
    space: AccessSpace,
    address: Register,
    offset: i64,
    update: Update,
    /// Bytes of an element.
    size: u32,
    /// Where the old values go; empty for `red`.
    to: Vec<Register>,
    b: Vec<Register>,
    c: Register,
}

/// Replaces a value atomically.
///
/// # Safety
/// * `pointer` points to `size` bytes that stay allocated, aligned to `size`.
/// * Other threads access them only atomically.
pub(crate) unsafe fn update(pointer: *mut u8, size: u32, f: impl Fn(u64) -> u64) -> u64 {
    let order = Ordering::SeqCst;
    macro_rules! swap {
        ($atomic:ty, $t:ty) => {{
            // SAFETY: as the function's own contract says.
            let cell = unsafe { <$atomic>::from_ptr(pointer.cast()) };
            let mut old = cell.load(order);
            loop {
                match cell.compare_exchange(old, f(u64::from(old)) as $t, order, order) {
                    Ok(_) => return u64::from(old),
                    Err(now) => old = now,
                }
            }
        }};
    }
    match size {
        2 => swap!(AtomicU16, u16),
        4 => swap!(AtomicU32, u32),
        _ => swap!(AtomicU64, u64),
    }
}

impl Operation for Atomic {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let total = u64::from(self.size) * self.b.len() as u64;
        let active = u64::from(cx.mask.count_ones());
        cx.count(self.space, total * active, total * active);
        let addresses = *cx.register(self.address);
        for lane in cx.lanes() {
            let address = addresses[lane].wrapping_add(self.offset as u64);
            let pointer = cx.locate(self.space, address, total, AccessKind::Atomic, lane)?;
            let c = cx.register(self.c)[lane];
            for (k, &b) in self.b.iter().enumerate() {
                let b = cx.register(b)[lane];
                // SAFETY: `locate` proved `total` bytes, aligned.
                let old = unsafe {
                    update(pointer.add(k * self.size as usize), self.size, |old| {
                        (self.update)(old, b, c)
                    })
                };
                if let Some(&d) = self.to.get(k) {
                    cx.register_mut(d)[lane] = old;
                }
            }
        }
        Ok(Step::Next)
    }
}

/// The function of an operation on a type. Wrapping behaviour is the type's; f32 additions on memory flush
/// subnormals only where the ISA says so, which is for global `.f32` `red`/`atom`: they do not.
fn operation(name: &str, ty: Type) -> Option<Update> {
    use Type::*;
    Some(match (name, ty) {
        ("exch", B32 | B64 | U32 | U64 | S32 | S64) => |_, b, _| b,
        ("cas", B16 | B32 | B64 | U32 | U64 | S32 | S64) => |old, b, c| if old == b { c } else { old },
        ("and", B32 | B64) => |old, b, _| old & b,
        ("or", B32 | B64) => |old, b, _| old | b,
        ("xor", B32 | B64) => |old, b, _| old ^ b,
        ("add", U32 | S32) => |old, b, _| u64::from((old as u32).wrapping_add(b as u32)),
        ("add", U64 | S64) => |old, b, _| old.wrapping_add(b),
        ("min", U32 | U64) => |old, b, _| old.min(b),
        ("max", U32 | U64) => |old, b, _| old.max(b),
        ("min", S32) => |old, b, _| u64::from((old as i32).min(b as i32) as u32),
        ("max", S32) => |old, b, _| u64::from((old as i32).max(b as i32) as u32),
        ("min", S64) => |old, b, _| (old as i64).min(b as i64) as u64,
        ("max", S64) => |old, b, _| (old as i64).max(b as i64) as u64,
        ("inc", U32) => |old, b, _| if old >= b { 0 } else { old + 1 },
        ("dec", U32) => |old, b, _| if old == 0 || old > b { b } else { old - 1 },
        ("add", F32) => |old, b, _| u64::from(single::add(old as u32, b as u32, Mode::RN)),
        ("add", F64) => |old, b, _| double::add(old, b, Rounding::NearestEven),
        ("add", F16) => |old, b, _| u64::from(Half::F16.add(old as u16, b as u16, Mode::RN)),
        ("add", Bf16) => |old, b, _| u64::from(Half::Bf16.add(old as u16, b as u16, Mode::RN)),
        ("min", F16) => |old, b, _| u64::from(Half::F16.min(old as u16, b as u16, false, false)),
        ("max", F16) => |old, b, _| u64::from(Half::F16.max(old as u16, b as u16, false, false)),
        ("min", Bf16) => |old, b, _| u64::from(Half::Bf16.min(old as u16, b as u16, false, false)),
        ("max", Bf16) => |old, b, _| u64::from(Half::Bf16.max(old as u16, b as u16, false, false)),
        ("add", F16x2) => |old, b, _| u64::from(packed2(old as u32, b as u32, |x, y| Half::F16.add(x, y, Mode::RN))),
        ("add", Bf16x2) => |old, b, _| u64::from(packed2(old as u32, b as u32, |x, y| Half::Bf16.add(x, y, Mode::RN))),
        ("min", F16x2) => {
            |old, b, _| u64::from(packed2(old as u32, b as u32, |x, y| Half::F16.min(x, y, false, false)))
        }
        ("max", F16x2) => {
            |old, b, _| u64::from(packed2(old as u32, b as u32, |x, y| Half::F16.max(x, y, false, false)))
        }
        ("min", Bf16x2) => {
            |old, b, _| u64::from(packed2(old as u32, b as u32, |x, y| Half::Bf16.min(x, y, false, false)))
        }
        ("max", Bf16x2) => {
            |old, b, _| u64::from(packed2(old as u32, b as u32, |x, y| Half::Bf16.max(x, y, false, false)))
        }
        _ => return None,
    })
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let atom = &*i.opcode == "atom";
    if m.take("async") {
        return l.refuse("red.async is not modelled");
    }
    let _ = take_order(m);
    let space = AccessSpace::take(m);
    let names = ["exch", "cas", "and", "or", "xor", "add", "min", "max", "inc", "dec"];
    let Some(name) = m.take_one(&names) else {
        return l.refuse("the operation is missing");
    };
    let name = names[name];
    let _ = m.take("noftz");
    let vector = m.take_one(&["v2", "v4", "v8"]).map_or(1, |k| 2usize << k);
    take_hints(m);
    let ty = l.ty(m)?;
    let Some(update) = operation(name, ty) else {
        return l.refuse("this type is not modelled");
    };
    let hinted = i.modifiers.iter().any(|m| &**m == "L2::cache_hint");
    let wanted = 2 + usize::from(atom) + usize::from(name == "cas") + usize::from(hinted);
    if i.operands.len() != wanted || !atom && matches!(name, "exch" | "cas") {
        return l.refuse(&format!("it has {} operands instead of {wanted}", i.operands.len()));
    }
    let at = usize::from(atom);
    let (address, offset, _) = l.address(&i.operands[at])?;
    let sources = l.elements(&i.operands[at + 1])?;
    if sources.len() != vector || ty.bytes() as usize * vector > 16 {
        return l.refuse(&format!("{vector} elements are named, {} are given", sources.len()));
    }
    let mut b = Vec::new();
    for source in &sources {
        b.push(l.source(source, ty)?);
    }
    let c = if name == "cas" {
        l.source(&i.operands[at + 2], ty)?
    } else {
        0
    };
    let mut to = Vec::new();
    if atom && !matches!(&i.operands[0], Operand::Name(name) if &**name == "_") {
        for element in &l.elements(&i.operands[0])? {
            to.push(l.dest(element)?.0);
        }
        if to.len() != vector {
            return l.refuse(&format!("{vector} elements are named, {} are given", to.len()));
        }
    }
    let shared = matches!(space, AccessSpace::Shared | AccessSpace::Cluster);
    if !shared && (!to.is_empty() || name == "add" && ty.float()) {
        l.order_matters();
    }
    l.other(Atomic {
        space,
        address,
        offset,
        update,
        size: ty.bytes(),
        to,
        b,
        c,
    })
}
