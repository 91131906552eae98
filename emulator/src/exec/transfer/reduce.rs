//! The operations of a reduction in memory.

use crate::lower::types::Type;
use crate::numeric::{Mode, half::Half};

/// The operation of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    Add,
    Min,
    Max,
    Increment,
    Decrement,
    And,
    Or,
    Xor,
}

/// `old = old op new`, element by element.
pub(super) fn combine(op: Reduce, ty: Type, old: &mut [u8], new: &[u8]) {
    let size = ty.bytes() as usize;
    for (o, n) in old.chunks_exact_mut(size).zip(new.chunks_exact(size)) {
        let value = |b: &[u8]| b.iter().rev().fold(0u64, |v, &x| v << 8 | u64::from(x));
        let (a, b) = (value(o), value(n));
        let shift = 64 - 8 * size as u32;
        let signed = |v: u64| (v << shift) as i64 >> shift;
        let half = |kind: Half| {
            let (a, b) = (a as u16, b as u16);
            u64::from(match op {
                Reduce::Min => kind.min(a, b, false, false),
                Reduce::Max => kind.max(a, b, false, false),
                _ => kind.add(a, b, Mode::RN),
            })
        };
        let result = match (op, ty) {
            (_, Type::F16) => half(Half::F16),
            (_, Type::Bf16) => half(Half::Bf16),
            (_, Type::F32) => u64::from(crate::numeric::single::add(a as u32, b as u32, Mode::RN)),
            (_, Type::F64) => crate::numeric::double::add(a, b, crate::numeric::Rounding::NearestEven),
            (Reduce::Add, _) => a.wrapping_add(b),
            (Reduce::Min, ty) if ty.signed() => signed(a).min(signed(b)) as u64,
            (Reduce::Max, ty) if ty.signed() => signed(a).max(signed(b)) as u64,
            (Reduce::Min, _) => a.min(b),
            (Reduce::Max, _) => a.max(b),
            (Reduce::Increment, _) => {
                if a >= b {
                    0
                } else {
                    a + 1
                }
            }
            (Reduce::Decrement, _) => {
                if a == 0 || a > b {
                    b
                } else {
                    a - 1
                }
            }
            (Reduce::And, _) => a & b,
            (Reduce::Or, _) => a | b,
            (Reduce::Xor, _) => a ^ b,
        };
        o.copy_from_slice(&result.to_le_bytes()[..size]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions() {
        let run = |op, ty, a: u32, b: u32| {
            let mut old = a.to_le_bytes();
            combine(op, ty, &mut old, &b.to_le_bytes());
            u32::from_le_bytes(old)
        };
        assert_eq!(run(Reduce::Add, Type::U32, u32::MAX, 2), 1);
        assert_eq!(run(Reduce::Min, Type::S32, -3i32 as u32, 2), -3i32 as u32);
        assert_eq!(run(Reduce::Max, Type::U32, u32::MAX, 2), u32::MAX);
        assert_eq!(run(Reduce::Increment, Type::U32, 4, 4), 0);
        assert_eq!(run(Reduce::Decrement, Type::U32, 0, 4), 4);
        assert_eq!(run(Reduce::Xor, Type::U32, 6, 3), 5);
        assert_eq!(
            run(Reduce::Add, Type::F32, 1f32.to_bits(), 2f32.to_bits()),
            3f32.to_bits()
        );
        // Two halves: 1 + 2 and −1 + 0.5.
        assert_eq!(run(Reduce::Add, Type::F16, 0xbc00_3c00, 0x3800_4000), 0xb800_4200);
    }
}
