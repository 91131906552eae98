//! The way from an address to bytes (PTX ISA, "State Spaces").

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::Context;
use crate::Lanes;
use crate::fault::{FaultKind, Stop};
use crate::lower::LOCAL_PARAM;
use crate::lower::types::{Modifiers, ones};
use crate::machine::cluster::{RANK_SHIFT, SHARED_START};
use crate::machine::memory::{GLOBAL_BASE, Purpose};
use crate::program::Register;

/// Generic addresses of shared memory start here.
pub(crate) const SHARED_WINDOW: u64 = 1 << 40;
/// Generic addresses of local memory start here.
pub(crate) const LOCAL_WINDOW: u64 = 2 << 40;
/// Generic addresses of kernel parameters start here.
pub(crate) const PARAM_WINDOW: u64 = 3 << 40;
/// Size of the shared and local windows.
pub(crate) const WINDOW: u64 = 1 << 32;

/// The state space of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessSpace {
    Generic,
    Global,
    /// `.shared::cta` and plain `.shared`: this CTA's.
    Shared,
    /// `.shared::cluster`: any CTA's of the cluster.
    Cluster,
    Local,
    Constant,
    Parameter,
}

impl AccessSpace {
    fn name(self) -> &'static str {
        match self {
            AccessSpace::Generic => "generic",
            AccessSpace::Global => "global",
            AccessSpace::Shared => "shared::cta",
            AccessSpace::Cluster => "shared::cluster",
            AccessSpace::Local => "local",
            AccessSpace::Constant => "const",
            AccessSpace::Parameter => "param",
        }
    }

    /// Takes the state space of an instruction; generic if it names none.
    pub(crate) fn take(m: &mut Modifiers<'_>) -> AccessSpace {
        let names = [
            "global",
            "shared",
            "shared::cta",
            "shared::cluster",
            "local",
            "const",
            "param",
            "param::entry",
            "param::func",
        ];
        match m.take_one(&names) {
            Some(0) => AccessSpace::Global,
            Some(1 | 2) => AccessSpace::Shared,
            Some(3) => AccessSpace::Cluster,
            Some(4) => AccessSpace::Local,
            Some(5) => AccessSpace::Constant,
            Some(_) => AccessSpace::Parameter,
            None => AccessSpace::Generic,
        }
    }
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Read,
    Write,
    Atomic,
    /// With a memory order, or volatile.
    StrongRead,
    StrongWrite,
}

impl AccessKind {
    pub(crate) fn reads(self) -> bool {
        !matches!(self, AccessKind::Write | AccessKind::StrongWrite)
    }

    pub(crate) fn writes(self) -> bool {
        !matches!(self, AccessKind::Read | AccessKind::StrongRead)
    }

    /// Whether it may meet other such accesses without a race.
    pub(crate) fn strong(self) -> bool {
        !matches!(self, AccessKind::Read | AccessKind::Write)
    }
}

/// The memory that an address leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// An allocation, by index, and the offset in it.
    Global(usize, u64),
    /// Shared memory of a CTA of the cluster, and the offset in it.
    Shared(usize, u32),
    Local,
    Parameter,
}

impl Context<'_> {
    fn out_of_bounds(&self, space: AccessSpace, address: u64, size: u64, kind: AccessKind, lane: usize) -> Box<Stop> {
        let doing = match kind {
            AccessKind::Read | AccessKind::StrongRead => "read",
            AccessKind::Write | AccessKind::StrongWrite => "write",
            AccessKind::Atomic => "atomic access",
        };
        let mut message = format!(
            "{} {doing} of {size} bytes at {address:#x} is outside every allocation",
            space.name()
        );
        let mut fault = FaultKind::OutOfBounds;
        if matches!(space, AccessSpace::Global | AccessSpace::Constant) && address < GLOBAL_BASE {
            let other = match address {
                0..1024 => "it is near null",
                a if a.wrapping_sub(SHARED_WINDOW) < WINDOW || a < WINDOW => {
                    "it looks like an address of shared memory"
                }
                a if a.wrapping_sub(LOCAL_WINDOW) < WINDOW => "it is a generic address of local memory",
                _ => "it is no device address",
            };
            if address >= 1024 {
                fault = FaultKind::WrongSpace;
            }
            message.push_str("; ");
            message.push_str(other);
        }
        if matches!(space, AccessSpace::Shared | AccessSpace::Cluster) {
            if address >= WINDOW {
                fault = FaultKind::WrongSpace;
            }
            let bytes = self.cluster.ctas[self.warp.cta].shared.len();
            message.push_str(&format!(
                "; the CTA has {bytes} bytes of shared memory from {SHARED_START:#x}"
            ));
        }
        Stop::new(fault, message).lane(lane as u32).address(address)
    }

    /// The bytes at an address.
    ///
    /// # Errors
    /// Misaligned, out of bounds, wrong space; and with checks on, uninitialised reads and races.
    #[inline]
    pub(crate) fn locate(
        &mut self,
        space: AccessSpace,
        address: u64,
        size: u64,
        kind: AccessKind,
        lane: usize,
    ) -> Result<*mut u8, Box<Stop>> {
        if address & (size - 1) != 0 {
            let message = format!("{} access of {size} bytes at {address:#x}", space.name());
            return Err(Stop::new(FaultKind::Misaligned, message)
                .lane(lane as u32)
                .address(address));
        }
        let (pointer, home) = self.resolve(space, address, size, kind, lane)?;
        if self.launch.watched {
            self.watch(home, size as u32, kind, lane)
                .map_err(|stop| stop.address(address))?;
        }
        Ok(pointer)
    }

    /// [`Context::locate`] without alignment and checks.
    pub(crate) fn resolve(
        &mut self,
        space: AccessSpace,
        address: u64,
        size: u64,
        kind: AccessKind,
        lane: usize,
    ) -> Result<(*mut u8, Home), Box<Stop>> {
        match space {
            AccessSpace::Global | AccessSpace::Constant => {
                let hint = self.pc as usize & 15;
                let global = self.launch.global;
                let mut index = self.warp.hints[hint] as usize;
                let fits = |a: &crate::machine::memory::Allocation| {
                    size <= a.length && address.wrapping_sub(a.start) <= a.length - size
                };
                if !global.allocations.get(index).is_some_and(fits) {
                    index = match global.find(address, size) {
                        Some(index) => index,
                        None => return Err(self.out_of_bounds(space, address, size, kind, lane)),
                    };
                    self.warp.hints[hint] = index as u32;
                }
                let a = &global.allocations[index];
                if a.purpose == Purpose::Constant && kind.writes() {
                    let message = format!("a write to constant memory at {address:#x}");
                    return Err(Stop::new(FaultKind::WrongSpace, message)
                        .lane(lane as u32)
                        .address(address));
                }
                if space == AccessSpace::Constant && a.purpose != Purpose::Constant {
                    let message = format!("an access to constant memory at {address:#x} reaches global memory");
                    return Err(Stop::new(FaultKind::WrongSpace, message)
                        .lane(lane as u32)
                        .address(address));
                }
                let offset = address - a.start;
                // SAFETY: the offset lies within the allocation.
                Ok((unsafe { a.pointer().add(offset as usize) }, Home::Global(index, offset)))
            }
            AccessSpace::Shared | AccessSpace::Cluster => {
                let own = self.warp.cta;
                let cta = (address >> RANK_SHIFT) as usize;
                let offset = (address & ones(RANK_SHIFT)).wrapping_sub(u64::from(SHARED_START));
                let allowed = cta == own || space == AccessSpace::Cluster && cta < self.cluster.ctas.len();
                if allowed {
                    let length = u64::from(self.cluster.ctas[cta].shared.len());
                    if size <= length && offset <= length - size {
                        let pointer = self.cluster.ctas[cta].shared.pointer();
                        // SAFETY: the offset lies within the shared memory.
                        return Ok((
                            unsafe { pointer.add(offset as usize) },
                            Home::Shared(cta, offset as u32),
                        ));
                    }
                }
                Err(self.out_of_bounds(space, address, size, kind, lane))
            }
            AccessSpace::Local => {
                let length = u64::from(self.launch.program.local_bytes);
                if size > length || address > length - size {
                    return Err(self.out_of_bounds(space, address, size, kind, lane));
                }
                let pointer: *mut u8 = self.warp.local.as_mut_ptr().cast();
                // SAFETY: every lane has `length` bytes, one lane after the other.
                Ok((
                    unsafe { pointer.add(lane * length as usize + address as usize) },
                    Home::Local,
                ))
            }
            AccessSpace::Parameter => {
                if address & LOCAL_PARAM != 0 {
                    return self.resolve(AccessSpace::Local, address & !LOCAL_PARAM, size, kind, lane);
                }
                let length = self.launch.params.len() as u64 * 16;
                if kind.writes() {
                    let message = format!("a write to a kernel parameter at {address:#x}");
                    return Err(Stop::new(FaultKind::WrongSpace, message)
                        .lane(lane as u32)
                        .address(address));
                }
                if size > length || address > length - size {
                    return Err(self.out_of_bounds(space, address, size, kind, lane));
                }
                let pointer: *const u8 = self.launch.params.as_ptr().cast();
                // SAFETY: the offset lies within the buffer; the kind is a read.
                Ok((unsafe { pointer.add(address as usize) }.cast_mut(), Home::Parameter))
            }
            AccessSpace::Generic => {
                if address >= GLOBAL_BASE {
                    self.resolve(AccessSpace::Global, address, size, kind, lane)
                } else if address.wrapping_sub(SHARED_WINDOW) < WINDOW {
                    self.resolve(AccessSpace::Cluster, address - SHARED_WINDOW, size, kind, lane)
                } else if address.wrapping_sub(LOCAL_WINDOW) < WINDOW {
                    self.resolve(AccessSpace::Local, address - LOCAL_WINDOW, size, kind, lane)
                } else if address.wrapping_sub(PARAM_WINDOW) < 2 * WINDOW {
                    self.resolve(AccessSpace::Parameter, address - PARAM_WINDOW, size, kind, lane)
                } else {
                    Err(self.out_of_bounds(space, address, size, kind, lane))
                }
            }
        }
    }

    /// The contiguous memory around an address: its first address, its length, its bytes, and what it is. Not for strong
    /// accesses under checks, which synchronise one by one.
    fn window(
        &mut self,
        space: AccessSpace,
        address: u64,
        size: u64,
        kind: AccessKind,
        lane: usize,
    ) -> Option<(u64, u64, *mut u8, Home)> {
        if self.launch.watched && kind.strong() {
            return None;
        }
        match self.resolve(space, address, size, kind, lane).ok()? {
            (_, Home::Global(index, _)) => {
                let a = &self.launch.global.allocations[index];
                Some((a.start, a.length, a.pointer(), Home::Global(index, 0)))
            }
            (_, Home::Shared(cta, offset)) => {
                let shared = &mut self.cluster.ctas[cta].shared;
                let start = address - u64::from(offset);
                Some((start, u64::from(shared.len()), shared.pointer(), Home::Shared(cta, 0)))
            }
            _ => None,
        }
    }

    /// Where each lane's `total` bytes are, when all lanes' are in one piece of memory, as (where the piece is, each
    /// lane's offset); else nothing, and the slow path sorts it out. Watchers are told.
    #[inline(always)]
    pub(super) fn together(
        &mut self,
        space: AccessSpace,
        addresses: &Lanes,
        by: u64,
        total: u64,
        kind: AccessKind,
    ) -> Result<Option<(*mut u8, Lanes)>, Box<Stop>> {
        let first = self.mask.trailing_zeros() as usize;
        let address = addresses[first].wrapping_add(by);
        let Some((start, length, pointer, home)) = self.window(space, address, total, kind, first) else {
            return Ok(None);
        };
        let Some(offsets) = offsets(addresses, by, total, self.mask, start, length) else {
            return Ok(None);
        };
        if self.launch.watched {
            self.record_all(home, &offsets, total, kind).map_err(|stop| {
                let lane = stop.lane.unwrap_or(0) as usize;
                stop.address(addresses[lane].wrapping_add(by))
            })?;
        }
        Ok(Some((pointer, offsets)))
    }

    /// Adds to the traffic of a space.
    pub(crate) fn count(&mut self, space: AccessSpace, read: u64, written: u64) {
        let i = match space {
            AccessSpace::Global | AccessSpace::Generic => 0,
            AccessSpace::Shared | AccessSpace::Cluster => 1,
            AccessSpace::Local => 2,
            AccessSpace::Constant | AccessSpace::Parameter => 3,
        };
        let traffic = &mut self.cluster.counters.traffic[i];
        traffic.read += read;
        traffic.written += written;
    }

    /// Counts the extra passes of a shared-memory access of `size` bytes a lane: lanes that use different words of
    /// one of the 32 banks go one after the other. Wide accesses go by halves or quarters of the warp.
    pub(super) fn count_conflicts(&mut self, addresses: Register, offset: i64, size: u64) {
        let group = match size {
            16.. => 8,
            8.. => 16,
            _ => 32,
        };
        let addresses = *self.register(addresses);
        for start in (0..32).step_by(group) {
            let mut words: [[u32; 4]; 32] = [[u32::MAX; 4]; 32];
            let mut most = 0;
            let mut used = [0u8; 32];
            for lane in (start..start + group).filter(|l| self.mask >> l & 1 != 0) {
                let first = (addresses[lane].wrapping_add(offset as u64) >> 2) as u32;
                for word in first..first + size.div_ceil(4) as u32 {
                    let bank = (word & 31) as usize;
                    let n = usize::from(used[bank]).min(4);
                    if !words[bank][..n].contains(&word) {
                        if n < 4 {
                            words[bank][n] = word;
                        }
                        used[bank] += 1;
                        most = most.max(used[bank]);
                    }
                }
            }
            self.cluster.counters.bank_conflicts += u64::from(most.saturating_sub(1));
        }
    }
}

/// Reads an aligned value of 1, 2, 4 or 8 bytes.
///
/// # Safety
/// * `pointer` points to `size` bytes that stay allocated, aligned to `size`.
/// * Other threads access them only through such functions.
#[inline(always)]
pub(crate) unsafe fn read(pointer: *mut u8, size: u32) -> u64 {
    // SAFETY: as the function's own contract says.
    unsafe {
        match size {
            1 => u64::from(AtomicU8::from_ptr(pointer).load(Ordering::Relaxed)),
            2 => u64::from(AtomicU16::from_ptr(pointer.cast()).load(Ordering::Relaxed)),
            4 => u64::from(AtomicU32::from_ptr(pointer.cast()).load(Ordering::Relaxed)),
            _ => AtomicU64::from_ptr(pointer.cast()).load(Ordering::Relaxed),
        }
    }
}

/// Writes an aligned value of 1, 2, 4 or 8 bytes.
///
/// # Safety
/// As [`read`].
#[inline(always)]
pub(crate) unsafe fn write(pointer: *mut u8, size: u32, value: u64) {
    // SAFETY: as the function's own contract says.
    unsafe {
        match size {
            1 => AtomicU8::from_ptr(pointer).store(value as u8, Ordering::Relaxed),
            2 => AtomicU16::from_ptr(pointer.cast()).store(value as u16, Ordering::Relaxed),
            4 => AtomicU32::from_ptr(pointer.cast()).store(value as u32, Ordering::Relaxed),
            _ => AtomicU64::from_ptr(pointer.cast()).store(value, Ordering::Relaxed),
        }
    }
}

/// Where each lane's bytes are within one piece of memory; `None` when a lane's are elsewhere or misaligned, which the
/// slow path sorts out.
#[inline(always)]
fn offsets(addresses: &Lanes, by: u64, total: u64, mask: u32, start: u64, length: u64) -> Option<Lanes> {
    let mut offsets = [0; 32];
    let last = length - total;
    let mut bad = 0u64;
    for i in 0..32 {
        let address = addresses[i].wrapping_add(by);
        let offset = address.wrapping_sub(start);
        let active = mask >> i & 1 != 0;
        bad |= u64::from(active && (offset > last || address & (total - 1) != 0));
        offsets[i] = offset;
    }
    (bad == 0).then_some(offsets)
}
