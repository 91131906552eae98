//! Types and modifiers of instructions.

use crate::syntax::ast::Name;

/// A type modifier of an instruction or a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    E4m3,
    E5m2,
    E4m3x2,
    E5m2x2,
    U16x2,
    S16x2,
}

impl Type {
    pub(crate) fn parse(name: &str) -> Option<Type> {
        Some(match name {
            "pred" => Type::Pred,
            "b8" => Type::B8,
            "b16" => Type::B16,
            "b32" => Type::B32,
            "b64" => Type::B64,
            "b128" => Type::B128,
            "u8" => Type::U8,
            "u16" => Type::U16,
            "u32" => Type::U32,
            "u64" => Type::U64,
            "s8" => Type::S8,
            "s16" => Type::S16,
            "s32" => Type::S32,
            "s64" => Type::S64,
            "f16" => Type::F16,
            "f16x2" => Type::F16x2,
            "bf16" => Type::Bf16,
            "bf16x2" => Type::Bf16x2,
            "tf32" => Type::Tf32,
            "f32" => Type::F32,
            "f64" => Type::F64,
            "e4m3" => Type::E4m3,
            "e5m2" => Type::E5m2,
            "e4m3x2" => Type::E4m3x2,
            "e5m2x2" => Type::E5m2x2,
            "u16x2" => Type::U16x2,
            "s16x2" => Type::S16x2,
            _ => return None,
        })
    }

    pub(crate) fn bits(self) -> u32 {
        use Type::*;
        match self {
            Pred => 1,
            B8 | U8 | S8 | E4m3 | E5m2 => 8,
            B16 | U16 | S16 | F16 | Bf16 | E4m3x2 | E5m2x2 => 16,
            B32 | U32 | S32 | F32 | F16x2 | Bf16x2 | Tf32 | U16x2 | S16x2 => 32,
            B64 | U64 | S64 | F64 => 64,
            B128 => 128,
        }
    }

    pub(crate) fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    pub(crate) fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    pub(crate) fn float(self) -> bool {
        use Type::*;
        matches!(
            self,
            F16 | F16x2 | Bf16 | Bf16x2 | Tf32 | F32 | F64 | E4m3 | E5m2 | E4m3x2 | E5m2x2
        )
    }
}

/// The low `bits` bits set.
pub(crate) fn ones(bits: u32) -> u64 {
    if bits >= 64 { !0 } else { (1 << bits) - 1 }
}

/// The modifiers of one instruction; what a family does not take is refused by name.
pub(crate) struct Modifiers<'a> {
    list: &'a [Name],
    taken: u32,
}

impl<'a> Modifiers<'a> {
    pub(crate) fn new(list: &'a [Name]) -> Self {
        Modifiers { list, taken: 0 }
    }

    fn free(&self) -> impl Iterator<Item = (usize, &'a str)> + use<'a> {
        let taken = self.taken;
        self.list
            .iter()
            .enumerate()
            .filter(move |(i, _)| *i < 32 && taken >> i & 1 == 0)
            .map(|(i, m)| (i, &**m))
    }

    /// Takes a modifier; whether it was there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        let at = self.free().find(|(_, m)| *m == name).map(|(i, _)| i);
        if let Some(i) = at {
            self.taken |= 1 << i;
        }
        at.is_some()
    }

    /// Takes the first modifier that is one of several; its index.
    pub(crate) fn take_one(&mut self, names: &[&str]) -> Option<usize> {
        for (i, m) in self.free() {
            if let Some(k) = names.iter().position(|n| *n == m) {
                self.taken |= 1 << i;
                return Some(k);
            }
        }
        None
    }

    /// Takes the first modifier for which `f` answers.
    pub(crate) fn take_map<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        for (i, m) in self.free() {
            if let Some(value) = f(m) {
                self.taken |= 1 << i;
                return Some(value);
            }
        }
        None
    }

    /// Takes the next type.
    pub(crate) fn ty(&mut self) -> Option<Type> {
        self.take_map(Type::parse)
    }

    /// The next modifier not taken, without taking it.
    pub(crate) fn peek(&self) -> Option<&'a str> {
        self.free().next().map(|(_, m)| m)
    }

    /// The first modifier that nobody took.
    pub(crate) fn left(&self) -> Option<&'a str> {
        self.list
            .iter()
            .enumerate()
            .find(|(i, _)| *i >= 32 || self.taken >> i & 1 == 0)
            .map(|(_, m)| &**m)
    }
}
