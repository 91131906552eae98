//! The checks: what is remembered about memory and registers so that faults can be found.

use crate::exec::Context;
use crate::exec::barrier::FenceKind;
use crate::exec::memory::{AccessKind, Home};
use crate::fault::Stop;
use crate::machine::launch::LaunchState;
use crate::machine::memory::GlobalMemory;
use crate::machine::warp::Warp;
use crate::program::Predicate;

/// What is remembered about the bytes of one allocation.
#[derive(Default)]
pub(crate) struct Shadow {}

impl Context<'_> {
    pub(crate) fn watch(&mut self, _home: Home, _size: u32, _kind: AccessKind, _lane: usize) -> Result<(), Box<Stop>> {
        Ok(())
    }

    pub(crate) fn barrier_arrival(&mut self, _id: usize, _waits: bool) {}

    pub(crate) fn cluster_arrival(&mut self) {}

    pub(crate) fn warp_synchronised(&mut self) {}

    pub(crate) fn fenced(&mut self, _kind: FenceKind) {}

    pub(crate) fn set_registers(&mut self, _increase: bool, _count: u32) -> Result<(), Box<Stop>> {
        Ok(())
    }
}

impl Warp {
    pub(crate) fn check_guard(
        &self,
        _p: Predicate,
        _mask: u32,
        _branch: bool,
        _launch: &LaunchState<'_>,
    ) -> Result<(), Box<Stop>> {
        Ok(())
    }

    pub(crate) fn check_before(&self, _pc: u32, _mask: u32, _launch: &LaunchState<'_>) -> Result<(), Box<Stop>> {
        Ok(())
    }

    pub(crate) fn check_after(&mut self, _pc: u32, _mask: u32, _launch: &LaunchState<'_>) {}
}

impl GlobalMemory {
    /// The host wrote a range.
    pub(crate) fn defined(&self, _address: u64, _bytes: usize) {}
}
