//! `st.async` (PTX ISA, "Data Movement and Conversion Instructions: st.async"): registers to shared memory of the cluster,
//! completing bytes on an mbarrier beside them.

use super::memory::AccessSpace;
use super::place::shared;
use super::transfer::{Signal, Work, issue};
use super::{Context, Operation, Outcome, Step};
use crate::fault::{FaultKind, Stop};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::program::Register;
use crate::syntax::ast::Instruction;

struct StoreAsync {
    to: (Register, i64),
    mbarrier: (Register, i64),
    from: Vec<Register>,
    /// Bytes of an element.
    size: u32,
}

impl Operation for StoreAsync {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        if cx.launch.cluster == [1; 3] {
            // The ISA does not say so, but an H200 reports an illegal instruction.
            let message = "st.async in a launch without clusters";
            return Err(Stop::new(FaultKind::Operand, message));
        }
        for lane in cx.lanes() {
            let at =
                |cx: &Context<'_>, (base, offset): (Register, i64)| cx.register(base)[lane].wrapping_add_signed(offset);
            let (address, mbarrier) = (at(cx, self.to), at(cx, self.mbarrier));
            let bytes = self.size * self.from.len() as u32;
            let (cta, to) = shared(cx, AccessSpace::Cluster, address, bytes, bytes, lane)?;
            let (home, offset) = shared(cx, AccessSpace::Cluster, mbarrier, 8, 8, lane)?;
            if home != cta {
                let message = format!("the mbarrier is in CTA {home} of the cluster, the bytes go to CTA {cta}");
                return Err(Stop::new(FaultKind::Operand, message)
                    .address(mbarrier)
                    .lane(lane as u32));
            }
            let mut data = Vec::with_capacity(bytes as usize);
            for &register in &self.from {
                data.extend_from_slice(&cx.register(register)[lane].to_le_bytes()[..self.size as usize]);
            }
            let work = Work::Words { cta, to, bytes: data };
            issue(cx, lane, work, Signal::Bytes { offset, bytes }).map_err(|s| s.lane(lane as u32))?;
        }
        Ok(Step::Next)
    }
}

/// Lowers `st.async`; `async` is taken.
pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>) -> Lowered {
    let _ = m.take("weak");
    if !m.take("shared::cluster") || !m.take("mbarrier::complete_tx::bytes") {
        return l.refuse("only .shared::cluster completed by an mbarrier is modelled");
    }
    let vector = m.take_one(&["v2", "v4"]).map_or(1, |k| 2usize << k);
    let ty = l.ty(m)?;
    if !matches!(ty.bytes(), 4 | 8) || ty == Type::Pred || ty.bytes() as usize * vector > 16 {
        return l.refuse("this type is not modelled");
    }
    let [to, data, mbarrier] = l.operands(i)?;
    let mut addresses = [(0, 0); 2];
    for (address, operand) in addresses.iter_mut().zip([to, mbarrier]) {
        let (base, offset, symbol) = l.address(operand)?;
        if symbol.is_some() {
            return l.refuse("an address of the cluster that is a symbol");
        }
        *address = (base, offset);
    }
    let elements = l.elements(data)?;
    if elements.len() != vector {
        return l.refuse(&format!("{vector} elements are named, {} are given", elements.len()));
    }
    let mut from = Vec::new();
    for element in &elements {
        from.push(l.source(element, ty)?);
    }
    l.other(StoreAsync {
        to: addresses[0],
        mbarrier: addresses[1],
        from,
        size: ty.bytes(),
    })
}
