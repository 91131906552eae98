//! The checks: what is remembered about memory, registers and order so that faults can be found.
//!
//! * [`shadow`]: which bytes were written, which are secret, and who accessed each word last.
//! * [`clocks`]: the happens-before order of warps, as vector clocks.
//! * [`labels`]: undefined and secret registers.
//! * [`access`]: puts them together for every access.

mod access;
pub(crate) mod clocks;
mod labels;
pub(crate) mod shadow;

pub(crate) use access::shared_object;
pub(crate) use clocks::Clocks;
pub(crate) use shadow::Shadow;

use crate::exec::Context;
use crate::exec::barrier::FenceKind;
use crate::machine::memory::GlobalMemory;

impl Context<'_> {
    /// A fence was executed.
    pub(crate) fn fenced(&mut self, kind: FenceKind) {
        // A fence.mbarrier_init makes more visible here than its barriers; a fence.proxy.async usually follows it anyway.
        if matches!(kind, FenceKind::Proxy | FenceKind::MbarrierInit) && self.launch.watched {
            let w = self.warp_index();
            self.cluster.order.fence_proxy(w);
        }
    }
}

impl GlobalMemory {
    /// The host wrote a range.
    pub(crate) fn defined(&self, address: u64, bytes: usize) {
        self.mark(address, bytes, |shadow, offset, bytes| {
            shadow.define(offset, bytes as u64)
        });
    }

    /// The host says that a range is secret, or is not any more.
    pub(crate) fn secret(&self, address: u64, bytes: usize, secret: bool) {
        self.mark(address, bytes, |shadow, offset, bytes| {
            shadow.taint(offset, bytes as u64, secret)
        });
    }

    fn mark(&self, address: u64, bytes: usize, f: impl Fn(&mut Shadow, u64, usize)) {
        if !self.tracked {
            return;
        }
        if let Some(i) = self.find(address, bytes as u64) {
            let a = &self.allocations[i];
            let mut shadow = a.shadow.lock().unwrap_or_else(|e| e.into_inner());
            shadow.fit(a.length);
            f(&mut shadow, address - a.start, bytes);
        }
    }

    /// A launch begins: what happened before is ordered before it.
    pub(crate) fn forget_accesses(&self) {
        for a in &self.allocations {
            a.shadow.lock().unwrap_or_else(|e| e.into_inner()).forget();
        }
    }
}
