//! Registers, constants, and what names stand for.

use super::*;

impl Lowering<'_> {
    /// A register that no name has.
    pub(crate) fn temporary(&mut self) -> Register {
        self.registers += 1;
        self.registers - 1
    }

    /// The register that always holds a constant.
    pub(crate) fn constant(&mut self, constant: Constant) -> Register {
        if let Some(&register) = self.constant_index.get(&constant) {
            return register;
        }
        let register = self.temporary();
        self.constants.push((register, constant));
        self.constant_index.insert(constant, register);
        register
    }

    /// The register that always holds these bits.
    pub(crate) fn bits(&mut self, bits: u64) -> Register {
        self.constant(Constant::Bits(bits))
    }

    pub(super) fn symbol(&mut self, name: &str) -> Lowered<Symbol> {
        if let Some((symbol, fresh)) = self.scopes.find(name, &mut self.registers, &mut self.predicates) {
            if let (true, Symbol::Register(_, ty)) = (fresh, &symbol) {
                self.used_registers += ty.bits().div_ceil(32);
            }
            return Ok(symbol);
        }
        match self.symbols.lookup(name) {
            Some(crate::module::Global::Shared) => self.module_shared(name),
            Some(crate::module::Global::Variable(index)) => Ok(Symbol::Global(index)),
            Some(crate::module::Global::Function) => Ok(Symbol::Function),
            None => self.refuse(&format!("{name} is not declared")),
        }
    }

    /// The place of a module-level shared variable, given on its first use.
    fn module_shared(&mut self, name: &str) -> Lowered<Symbol> {
        let symbols = self.symbols;
        let Some((variable, declared)) = symbols.shared(name) else {
            return self.refuse(&format!("{name} is not declared"));
        };
        self.place_shared(variable, declared)
    }

    pub(super) fn place_shared(&mut self, variable: &Variable, declared: &Declarator) -> Lowered<Symbol> {
        if let Some(&offset) = self.shared_offsets.get(&declared.name) {
            return Ok(Symbol::Shared(offset));
        }
        let (size, align, unsized_array) = layout(variable, declared)?;
        if align > 4096 {
            return self.refuse("shared variables are aligned to at most 4096 bytes");
        }
        let align = align as u32;
        if unsized_array || variable.linkage.as_deref() == Some("extern") {
            self.dynamic_align = self.dynamic_align.max(align);
            return Ok(Symbol::DynamicShared);
        }
        let offset = u64::from(self.shared_bytes.next_multiple_of(align));
        if offset + size > 1 << 20 {
            return self.refuse("more than 1 MiB of static shared memory");
        }
        self.shared_bytes = (offset + size) as u32;
        self.shared_offsets.insert(declared.name.clone(), offset as u32);
        Ok(Symbol::Shared(offset as u32))
    }

    /// Dynamic shared memory starts behind all static variables, whose size is known only now.
    pub(super) fn finish_shared(&mut self) {
        let start = self.shared_bytes.next_multiple_of(self.dynamic_align);
        for (register, offset) in std::mem::take(&mut self.dynamic_registers) {
            self.constants
                .push((register, Constant::Shared(start.wrapping_add(offset))));
        }
    }

    /// The register that holds the address of a symbol plus an offset, in the symbol's own state space.
    pub(super) fn address_of(&mut self, symbol: &Symbol, offset: i64) -> Lowered<Register> {
        let constant = match *symbol {
            Symbol::Global(symbol) => Constant::Global { symbol, offset },
            Symbol::Shared(at) => Constant::Shared(at.wrapping_add(offset as u32)),
            Symbol::Local(at) => Constant::Local(at.wrapping_add(offset as u32)),
            Symbol::Parameter(at) => Constant::Bits(at.wrapping_add(offset as u64)),
            Symbol::DynamicShared => {
                let known = self.dynamic_registers.iter().find(|(_, o)| *o == offset as u32);
                if let Some((register, _)) = known {
                    return Ok(*register);
                }
                let register = self.temporary();
                self.dynamic_registers.push((register, offset as u32));
                return Ok(register);
            }
            _ => return self.refuse("the operand has no address"),
        };
        Ok(self.constant(constant))
    }

    /// A special register by its name.
    pub(super) fn special(&mut self, name: &str, component: Option<&str>) -> Lowered<Option<Register>> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let axis = match component {
            Some("x") => 0,
            Some("y") => 1,
            Some("z") => 2,
            Some("w") => 3,
            Some(_) => return Ok(None),
            None => u8::MAX,
        };
        let special = match (name, axis) {
            ("%tid", 0..=3) => Special::Tid(axis),
            ("%ntid", 0..=3) => Special::Ntid(axis),
            ("%ctaid", 0..=3) => Special::Ctaid(axis),
            ("%nctaid", 0..=3) => Special::Nctaid(axis),
            ("%clusterid", 0..=3) => Special::ClusterId(axis),
            ("%nclusterid", 0..=3) => Special::NumClusters(axis),
            ("%cluster_ctaid", 0..=3) => Special::ClusterCtaid(axis),
            ("%cluster_nctaid", 0..=3) => Special::ClusterNctaid(axis),
            ("%laneid", u8::MAX) => Special::LaneId,
            ("%warpid", u8::MAX) => Special::WarpId,
            ("%nwarpid", u8::MAX) => Special::NumWarps,
            ("%smid", u8::MAX) => Special::SmId,
            ("%nsmid", u8::MAX) => Special::NumSms,
            ("%gridid", u8::MAX) => Special::GridId,
            ("%lanemask_eq", u8::MAX) => Special::LaneMask(Equal, true),
            ("%lanemask_lt", u8::MAX) => Special::LaneMask(Less, false),
            ("%lanemask_le", u8::MAX) => Special::LaneMask(Less, true),
            ("%lanemask_gt", u8::MAX) => Special::LaneMask(Greater, false),
            ("%lanemask_ge", u8::MAX) => Special::LaneMask(Greater, true),
            ("%cluster_ctarank", u8::MAX) => Special::ClusterRank,
            ("%cluster_nctarank", u8::MAX) => Special::ClusterSize,
            ("%is_explicit_cluster", u8::MAX) => Special::ExplicitCluster,
            ("%dynamic_smem_size", u8::MAX) => Special::DynamicShared,
            ("%total_smem_size", u8::MAX) => Special::TotalShared,
            _ => {
                if let Some(clock) = exec::clock(name).filter(|_| axis == u8::MAX) {
                    let d = self.temporary();
                    self.writes.push(d);
                    let (reads, writes) = (std::mem::take(&mut self.reads), vec![d]);
                    self.writes = writes;
                    self.emit(Op::Other(clock(d)))?;
                    self.reads = reads;
                    return Ok(Some(d));
                }
                return Ok(None);
            }
        };
        Ok(Some(self.constant(Constant::Special(special))))
    }
}
