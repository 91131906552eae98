//! `ld`, `st`, `prefetch` and hints to caches (PTX ISA, "Data Movement").

use super::memory::{AccessKind, AccessSpace, read, write};
use super::{Context, Operation, Outcome, Step};
use crate::Lanes;
use crate::lower::types::{Modifiers, Type, ones};
use crate::lower::{Lowered, Lowering, Symbol};
use crate::machine::warp::lanes;
use crate::program::{Op, Register};
use crate::syntax::ast::Instruction;

/// Where the bytes of each lane are: what `ld` and `st` have in common.
struct Access {
    space: AccessSpace,
    address: Register,
    offset: i64,
    /// Bytes of an element.
    size: u32,
    kind: AccessKind,
}

impl Access {
    /// Counts an access of `elements` a lane and finds its bytes: for `all` lanes at once when they are in one piece of
    /// memory, given the piece and each lane's offset in it; else for `each` lane.
    ///
    /// Every lane's bytes are allocated and aligned to their number.
    #[inline(always)]
    fn run(
        &self,
        cx: &mut Context<'_>,
        elements: usize,
        all: impl FnOnce(&mut Context<'_>, *mut u8, &Lanes),
        each: impl Fn(&mut Context<'_>, *mut u8, usize),
    ) -> Outcome {
        let total = u64::from(self.size) * elements as u64;
        let moved = total * u64::from(cx.mask.count_ones());
        if self.kind.reads() {
            cx.count(self.space, moved, 0);
        } else {
            cx.count(self.space, 0, moved);
        }
        if cx.launch.watched && matches!(self.space, AccessSpace::Shared | AccessSpace::Cluster) {
            cx.count_conflicts(self.address, self.offset, total);
        }
        let (addresses, by) = (*cx.register(self.address), self.offset as u64);
        if let Some((pointer, offsets)) = cx.together(self.space, &addresses, by, total, self.kind)? {
            all(cx, pointer, &offsets);
            return Ok(Step::Next);
        }
        for lane in cx.lanes() {
            let address = addresses[lane].wrapping_add(by);
            let pointer = cx.locate(self.space, address, total, self.kind, lane)?;
            each(cx, pointer, lane);
        }
        Ok(Step::Next)
    }
}

/// `ld`.
struct Load {
    access: Access,
    /// Destination of each element.
    to: Vec<Register>,
    /// Bits that the sign is repeated up to; 0 without a sign.
    signed: u32,
}

impl Operation for Load {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        self.access.run(
            cx,
            self.to.len(),
            // SAFETY: `Access::run` found the bytes of all elements.
            |cx, pointer, offsets| unsafe { self.all(cx, pointer, offsets) },
            |cx, pointer, lane| {
                let size = self.access.size;
                for (k, &d) in self.to.iter().enumerate() {
                    // SAFETY: `Access::run` found the bytes of all elements.
                    let value = unsafe { read(pointer.add(k * size as usize), size) };
                    cx.warp.registers[d as usize][lane] = self.widened(value);
                }
            },
        )
    }
}

impl Load {
    /// An element as the register has it: with its sign repeated, if it has one.
    #[inline(always)]
    fn widened(&self, value: u64) -> u64 {
        if self.signed == 0 {
            return value;
        }
        let shift = 64 - 8 * self.access.size;
        ((value << shift) as i64 >> shift) as u64 & ones(self.signed)
    }

    /// Reads for all lanes from one piece of memory.
    ///
    /// # Safety
    /// The bytes of all elements from each lane's offset are allocated, aligned.
    unsafe fn all(&self, cx: &mut Context<'_>, pointer: *mut u8, offsets: &Lanes) {
        for (k, &d) in self.to.iter().enumerate() {
            let d = &mut cx.warp.registers[d as usize];
            macro_rules! all {
                ($size:literal) => {
                    for i in lanes(cx.mask) {
                        // SAFETY: as the function's own contract says; only lanes of the mask are read.
                        d[i] = unsafe { read(pointer.add(offsets[i] as usize + k * $size), $size) };
                    }
                };
            }
            match self.access.size {
                1 => all!(1),
                2 => all!(2),
                4 => all!(4),
                _ => all!(8),
            }
            if self.signed != 0 {
                for i in lanes(cx.mask) {
                    d[i] = self.widened(d[i]);
                }
            }
        }
    }
}

/// `st`.
struct Store {
    access: Access,
    from: Vec<Register>,
}

impl Operation for Store {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        self.access.run(
            cx,
            self.from.len(),
            // SAFETY: `Access::run` found the bytes of all elements.
            |cx, pointer, offsets| unsafe { self.all(cx, pointer, offsets) },
            |cx, pointer, lane| {
                let size = self.access.size;
                for (k, &a) in self.from.iter().enumerate() {
                    let value = cx.register(a)[lane];
                    // SAFETY: `Access::run` found the bytes of all elements.
                    unsafe { write(pointer.add(k * size as usize), size, value) };
                }
            },
        )
    }
}

impl Store {
    /// Writes for all lanes to one piece of memory.
    ///
    /// # Safety
    /// The bytes of all elements from each lane's offset are allocated, aligned.
    unsafe fn all(&self, cx: &mut Context<'_>, pointer: *mut u8, offsets: &Lanes) {
        for (k, &a) in self.from.iter().enumerate() {
            let a = &cx.warp.registers[a as usize];
            macro_rules! all {
                ($size:literal) => {
                    for i in lanes(cx.mask) {
                        // SAFETY: as the function's own contract says.
                        unsafe { write(pointer.add(offsets[i] as usize + k * $size), $size, a[i]) };
                    }
                };
            }
            match self.access.size {
                1 => all!(1),
                2 => all!(2),
                4 => all!(4),
                _ => all!(8),
            }
        }
    }
}

/// Takes modifiers that steer caches or name an ordering, neither of which changes what this machine computes:
/// every access is performed at once and in order.
pub(crate) fn take_hints(m: &mut Modifiers<'_>) {
    while m
        .take_map(|name| {
            let hint = matches!(
                name,
                "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc" | "unified" | "L1" | "L2"
            ) || name.starts_with("L1::")
                || name.starts_with("L2::")
                || name.starts_with("level::");
            hint.then_some(())
        })
        .is_some()
    {}
}

/// Takes the memory order and scope; whether the access is strong.
pub(crate) fn take_order(m: &mut Modifiers<'_>) -> bool {
    let order = m.take_one(&["weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "mmio"]);
    let scope = m.take_one(&["cta", "cluster", "gpu", "sys"]).is_some();
    matches!(order, Some(1..)) || scope
}

pub(super) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let load = matches!(&*i.opcode, "ld" | "ldu");
    if !load && &*i.opcode != "st" {
        return hint(l, i, m);
    }
    let strong = take_order(m);
    let _ = m.take("relaxed");
    let space = AccessSpace::take(m);
    let constant = m.take("nc");
    take_hints(m);
    let policy = m.take("L2::cache_hint");
    let vector = m.take_one(&["v2", "v4", "v8"]).map_or(1, |k| 2usize << k);
    let ty = l.ty(m)?;
    if ty == Type::Pred || ty == Type::B128 {
        return l.refuse("this type is not modelled");
    }
    let extra = usize::from(policy || i.modifiers.iter().any(|m| &**m == "L2::cache_hint"));
    if i.operands.len() != 2 + extra {
        return l.refuse(&format!(
            "it has {} operands instead of {}",
            i.operands.len(),
            2 + extra
        ));
    }
    let (data, place) = if load {
        (&i.operands[0], &i.operands[1])
    } else {
        (&i.operands[1], &i.operands[0])
    };
    let (address, offset, symbol) = l.address(place)?;
    let space = match (space, symbol) {
        // A symbol in a generic address is the generic address of the symbol only for global memory.
        (AccessSpace::Generic, Some(Symbol::Global(_)) | None) => AccessSpace::Generic,
        (AccessSpace::Generic, Some(_)) => return l.refuse("a generic access to a symbol of another space"),
        (space, _) => space,
    };
    let elements = l.elements(data)?;
    if elements.len() != vector || ty.bytes() as usize * vector > 32 {
        return l.refuse(&format!("{vector} elements are named, {} are given", elements.len()));
    }
    let _ = constant;
    let kind = match (load, strong) {
        (true, false) => AccessKind::Read,
        (true, true) => AccessKind::StrongRead,
        (false, false) => AccessKind::Write,
        (false, true) => AccessKind::StrongWrite,
    };
    let access = Access {
        space,
        address,
        offset,
        size: ty.bytes(),
        kind,
    };
    if load {
        let mut to = Vec::new();
        let mut bits = 0;
        for element in &elements {
            let (d, width) = l.dest(element)?;
            to.push(d);
            bits = width;
        }
        let signed = if ty.signed() && bits > ty.bits() { bits } else { 0 };
        l.other(Load { access, to, signed })
    } else {
        let mut from = Vec::new();
        for element in &elements {
            from.push(l.source(element, ty)?);
        }
        l.other(Store { access, from })
    }
}

/// `prefetch` and other instructions that only advise.
fn hint(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let _ = AccessSpace::take(m);
    while m
        .take_map(|n| {
            (n.starts_with("L1") || n.starts_with("L2") || matches!(n, "tensormap" | "fractional" | "range"))
                .then_some(())
        })
        .is_some()
    {}
    match &*i.opcode {
        "createpolicy" => {
            let _ = m.take_one(&["cvt"]);
            let _ = m.ty();
            let Some(d) = i.operands.first() else {
                return l.refuse("the destination is missing");
            };
            let (d, _) = l.dest(d)?;
            let a = l.bits(0);
            l.emit(Op::Copy { d, a })
        }
        _ => l.emit(Op::Nop),
    }
}
