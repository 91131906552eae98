//! Copies that run by themselves: what they move, and how they end. `cp.async`, `cp.async.bulk` and `cp.async.bulk.tensor` make
//! these.

mod reduce;

use crate::check::shared_object;
use crate::exec::asynchronous::{self, Issued, Member, Range};
use crate::exec::memory::{AccessKind, Home};
use crate::exec::place::{read_global, write_global, write_shared};
use crate::exec::{Context, mbarrier, place};
use crate::fault::{Access, Stop};
use crate::lower::types::Type;
use crate::machine::cluster::{Cluster, Pending};
use crate::machine::launch::LaunchState;
use crate::tensor::TensorMap;

pub(crate) use reduce::Reduce;
use reduce::combine;

/// One `cp.async` of one lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) from: u64,
    pub(crate) to: u32,
    pub(crate) size: u32,
    /// Bytes read; the rest is filled with zeros.
    pub(crate) source: u32,
}

/// What an operation moves.
pub(crate) enum Work {
    /// Global to shared memory of several CTAs at the same offset.
    Load {
        from: u64,
        ctas: Vec<usize>,
        to: u32,
        bytes: u32,
    },
    /// Shared to shared memory, copied or reduced.
    Send {
        from: Range,
        cta: usize,
        to: u32,
        reduce: Option<(Reduce, Type)>,
    },
    /// Shared to global memory, copied or reduced.
    Store {
        from: Range,
        to: u64,
        reduce: Option<(Reduce, Type)>,
    },
    /// A box of a tensor to shared memory of several CTAs.
    LoadBox {
        map: TensorMap,
        coordinates: Vec<i32>,
        ctas: Vec<usize>,
        to: u32,
        window: u32,
    },
    /// A box of a tensor from shared memory, copied or reduced.
    StoreBox {
        map: TensorMap,
        coordinates: Vec<i32>,
        from: Range,
        window: u32,
        reduce: Option<(Reduce, Type)>,
    },
    /// Registers to a CTA's shared memory: `st.async`.
    Words { cta: usize, to: u32, bytes: Vec<u8> },
    /// `cp.async` of a warp.
    Pieces { cta: usize, pieces: Vec<Piece> },
    /// Nothing (`cp.async.mbarrier.arrive`): completes after the operations it names.
    After(Vec<Member>),
}

/// What an operation signals at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    Nothing,
    /// `complete_tx` of so many bytes on the mbarrier at this offset in every destination CTA.
    Bytes {
        offset: u32,
        bytes: u32,
    },
    /// Arrivals on an mbarrier.
    Arrive {
        cta: usize,
        offset: u32,
        count: u32,
    },
}

/// An operation in flight.
pub(crate) struct Transfer {
    id: u64,
    work: Work,
    signal: Signal,
    issued: Issued,
    /// What was read, of an operation that has not written yet.
    data: Option<Vec<u8>>,
}

impl Work {
    /// Whether it writes global memory.
    const fn stores(&self) -> bool {
        matches!(self, Work::Store { .. } | Work::StoreBox { .. })
    }

    /// CTAs that are written.
    fn destinations(&self) -> Vec<usize> {
        match self {
            Work::Load { ctas, .. } | Work::LoadBox { ctas, .. } => ctas.clone(),
            Work::Send { cta, .. } | Work::Words { cta, .. } => vec![*cta],
            _ => Vec::new(),
        }
    }

    /// Finds accesses of global memory that will fault, so that the fault is the issuing instruction's.
    fn validate(&self, launch: &LaunchState<'_>) -> Result<(), Box<Stop>> {
        let check = |address, bytes: u32, write| place::global(launch, address, u64::from(bytes), write).map(|_| ());
        match self {
            Work::Load { from, bytes, .. } => check(*from, *bytes, false),
            Work::Store { from, to, .. } => check(*to, from.bytes, true),
            Work::LoadBox { map, coordinates, .. } | Work::StoreBox { map, coordinates, .. } => {
                let write = matches!(self, Work::StoreBox { .. });
                let mut result = Ok(());
                map.for_each_unit(0, coordinates, |u| {
                    if u.valid != 0 && result.is_ok() {
                        let u = if write { u.stored() } else { u };
                        result = check(u.global, u.valid, write);
                    }
                });
                result
            }
            Work::Pieces { pieces, .. } => pieces
                .iter()
                .filter(|p| p.source != 0)
                .try_for_each(|p| check(p.from, p.source, false)),
            Work::Send { .. } | Work::Words { .. } | Work::After(_) => Ok(()),
        }
    }

    const fn name(&self) -> &'static str {
        match self {
            Work::Load { .. } | Work::Send { .. } => "a bulk copy",
            Work::Store { .. } => "a bulk store",
            Work::LoadBox { .. } => "a tensor load",
            Work::StoreBox { .. } => "a tensor store",
            Work::Words { .. } => "an st.async",
            Work::Pieces { .. } => "a cp.async",
            Work::After(_) => "a cp.async.mbarrier.arrive",
        }
    }
}

/// Issues an operation for a lane (or, `cp.async`, for a warp); it completes now or later. Returns its name if later.
pub(crate) fn issue(
    cx: &mut Context<'_>,
    lane: usize,
    work: Work,
    signal: Signal,
) -> Result<Option<(u64, Issued)>, Box<Stop>> {
    let proxy = !matches!(work, Work::Words { .. } | Work::Pieces { .. } | Work::After(_));
    let issued = Issued::new(cx, lane, proxy, work.stores());
    if let Signal::Bytes { offset, .. } = signal {
        for cta in work.destinations() {
            issued.watch(
                cx.cluster,
                cx.launch,
                Home::Shared(cta, offset),
                8,
                AccessKind::StrongRead,
                false,
            )?;
        }
    }
    let id = cx.cluster.asynchronous.fresh();
    let transfer = Box::new(Transfer {
        id,
        work,
        signal,
        issued: issued.clone(),
        data: None,
    });
    if asynchronous::deferred(cx.launch) {
        transfer.work.validate(cx.launch)?;
        cx.cluster.pending.push(transfer);
        Ok(Some((id, issued)))
    } else {
        transfer.run(cx.cluster, cx.launch)?;
        Ok(None)
    }
}

impl Pending for Transfer {
    fn id(&self) -> u64 {
        self.id
    }

    fn reads(&self) -> bool {
        self.data.is_none()
    }

    fn needs_a_wait(&self) -> Option<(&'static str, Access)> {
        let done = self.data.is_some() || matches!(self.work, Work::After(_));
        (!done).then(|| (self.work.name(), self.issued.who))
    }

    fn complete(mut self: Box<Self>, cluster: &mut Cluster, launch: &LaunchState<'_>) -> Result<(), Box<Stop>> {
        if let Work::After(members) = &self.work {
            for member in members {
                asynchronous::complete(cluster, launch, member.id(), false)?;
            }
        }
        if let (Work::Store { from, .. } | Work::StoreBox { from, .. }, None) = (&self.work, &self.data) {
            // Reading the source and writing the destination are two moments.
            let from = *from;
            self.data = Some(self.take(cluster, launch, from)?);
            cluster.pending.push(self);
            return Ok(());
        }
        self.run(cluster, launch)
    }
}

impl Transfer {
    /// Faults of an operation name who issued it.
    fn blame(&self, stop: Box<Stop>) -> Box<Stop> {
        let who = self.issued.who;
        if stop.other.is_none() { stop.other(who) } else { stop }
    }

    /// Reads the source of a store.
    fn take(&self, cluster: &mut Cluster, launch: &LaunchState<'_>, from: Range) -> Result<Vec<u8>, Box<Stop>> {
        let home = Home::Shared(from.cta, from.offset);
        self.issued
            .watch(cluster, launch, home, from.bytes.into(), AccessKind::Read, false)
            .map_err(|s| self.blame(s))?;
        cluster.counters.traffic[1].read += u64::from(from.bytes);
        Ok(place::bytes(cluster, from).to_vec())
    }

    fn run(mut self: Box<Self>, cluster: &mut Cluster, launch: &LaunchState<'_>) -> Result<(), Box<Stop>> {
        let data = match (&self.work, self.data.take()) {
            (Work::Store { from, .. } | Work::StoreBox { from, .. } | Work::Send { from, .. }, None) => {
                self.take(cluster, launch, *from)?
            }
            (_, data) => data.unwrap_or_default(),
        };
        self.perform(cluster, launch, &data).map_err(|s| self.blame(s))?;
        match self.signal {
            Signal::Nothing => {}
            Signal::Bytes { offset, bytes } => {
                for cta in self.work.destinations() {
                    self.publish(cluster, cta, offset);
                    mbarrier::update(cluster, cta, offset, |b| b.complete_tx(bytes)).map_err(|s| self.blame(s))?;
                }
            }
            Signal::Arrive { cta, offset, count } => {
                self.publish(cluster, cta, offset);
                mbarrier::update(cluster, cta, offset, |b| b.arrive(count)).map_err(|s| self.blame(s))?;
            }
        }
        Ok(())
    }

    /// Who waits on the mbarrier sees what was done.
    fn publish(&self, cluster: &mut Cluster, cta: usize, offset: u32) {
        let object = shared_object(cta, offset);
        if let Some(order) = &self.issued.order {
            cluster.order.release_clocks(&order.clocks, object);
        }
        if let Work::After(members) = &self.work {
            for order in members.iter().filter_map(|m| m.issued().order.as_ref()) {
                cluster.order.release_clocks(&order.clocks, object);
            }
        }
    }

    /// Writes shared memory.
    fn put(
        &self,
        cluster: &mut Cluster,
        launch: &LaunchState<'_>,
        cta: usize,
        offset: u32,
        bytes: &[u8],
    ) -> Result<(), Box<Stop>> {
        self.issued.watch(
            cluster,
            launch,
            Home::Shared(cta, offset),
            bytes.len() as u64,
            AccessKind::Write,
            false,
        )?;
        write_shared(cluster, cta, offset, bytes);
        Ok(())
    }

    /// Reads global memory.
    fn get(&self, cluster: &mut Cluster, launch: &LaunchState<'_>, from: u64, to: &mut [u8]) -> Result<(), Box<Stop>> {
        if self.issued.order.is_some() {
            let home = place::global_home(launch, from, to.len() as u64, false)?;
            self.issued
                .watch(cluster, launch, home, to.len() as u64, AccessKind::Read, false)?;
        }
        read_global(cluster, launch, from, to)
    }

    /// Writes or reduces into global memory.
    fn store(
        &self,
        cluster: &mut Cluster,
        launch: &LaunchState<'_>,
        to: u64,
        source: &[u8],
        reduce: Option<(Reduce, Type)>,
    ) -> Result<(), Box<Stop>> {
        if self.issued.written.is_some() {
            let kind = if reduce.is_some() {
                AccessKind::Atomic
            } else {
                AccessKind::Write
            };
            let home = place::global_home(launch, to, source.len() as u64, true)?;
            self.issued
                .watch(cluster, launch, home, source.len() as u64, kind, true)?;
        }
        match reduce {
            None => write_global(cluster, launch, to, source),
            Some((op, ty)) => {
                let mut old = vec![0; source.len()];
                read_global(cluster, launch, to, &mut old)?;
                combine(op, ty, &mut old, source);
                write_global(cluster, launch, to, &old)
            }
        }
    }

    fn perform(&self, cluster: &mut Cluster, launch: &LaunchState<'_>, data: &[u8]) -> Result<(), Box<Stop>> {
        match &self.work {
            Work::Load { from, ctas, to, bytes } => {
                let mut buffer = vec![0; *bytes as usize];
                self.get(cluster, launch, *from, &mut buffer)?;
                for &cta in ctas {
                    self.put(cluster, launch, cta, *to, &buffer)?;
                }
            }
            Work::Send { from, cta, to, reduce } => {
                let mut new = data.to_vec();
                if let Some((op, ty)) = reduce {
                    let there = Range {
                        cta: *cta,
                        offset: *to,
                        bytes: from.bytes,
                    };
                    new.copy_from_slice(place::bytes(cluster, there));
                    combine(*op, *ty, &mut new, data);
                }
                self.put(cluster, launch, *cta, *to, &new)?;
            }
            Work::Words { cta, to, bytes } => self.put(cluster, launch, *cta, *to, bytes)?,
            Work::Store { to, reduce, .. } => self.store(cluster, launch, *to, data, *reduce)?,
            Work::LoadBox {
                map,
                coordinates,
                ctas,
                to,
                window,
            } => {
                let fill: [u8; 16] = std::array::from_fn(|i| map.fill()[i % 8]);
                let bytes = map.box_bytes() as usize;
                let mut image = vec![0u8; bytes];
                let mut result = Ok(());
                let mut lines: Vec<(u64, u64)> = Vec::new();
                let mut near = (0u64, 0u64, std::ptr::null_mut::<u8>());
                map.for_each_unit(*window, coordinates, |u| {
                    if result.is_err() {
                        return;
                    }
                    let mut unit = fill;
                    if u.valid != 0 {
                        // Most units lie in the allocation of the one before.
                        let end = u.global + u64::from(u.valid);
                        if u.global < near.0 || end > near.1 {
                            match launch.global.find(u.global, u.valid.into()) {
                                Some(i) => {
                                    let a = &launch.global.allocations[i];
                                    near = (a.start, a.start + a.length, a.pointer());
                                }
                                None => {
                                    result = place::global(launch, u.global, u.valid.into(), false).map(|_| ());
                                    return;
                                }
                            }
                        }
                        let part = &mut unit[u.skip as usize..(u.skip + u.valid) as usize];
                        // SAFETY: `near` is an allocation that holds the bytes; see `read_global` about races.
                        unsafe {
                            let from = near.2.add((u.global - near.0) as usize);
                            std::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), part.len());
                        }
                        cluster.counters.traffic[0].read += u64::from(u.valid);
                        if self.issued.order.is_some() {
                            match lines.last_mut() {
                                Some((start, bytes)) if *start + *bytes == u.global => *bytes += u64::from(u.valid),
                                _ => lines.push((u.global, u.valid.into())),
                            }
                        }
                    }
                    let at = u.shared.wrapping_sub(*window) as usize;
                    // A swizzle moves units inside the box when the box starts at a multiple of the pattern, else up to a period away.
                    match image.get_mut(at..at + 16) {
                        Some(to) => to.copy_from_slice(&unit),
                        None => result = Err(outside_box(u.shared)),
                    }
                });
                result?;
                for (address, bytes) in lines {
                    let home = place::global_home(launch, address, bytes, false)?;
                    self.issued
                        .watch(cluster, launch, home, bytes, AccessKind::Read, false)?;
                }
                for &cta in ctas {
                    self.put(cluster, launch, cta, *to, &image)?;
                }
            }
            Work::StoreBox {
                map,
                coordinates,
                window,
                reduce,
                ..
            } => {
                let mut units = Vec::new();
                map.for_each_unit(*window, coordinates, |u| {
                    if u.valid != 0 {
                        units.push(u.stored());
                    }
                });
                for u in units {
                    let at = u.shared.wrapping_sub(*window) as usize + u.skip as usize;
                    let Some(part) = data.get(at..at + u.valid as usize) else {
                        return Err(outside_box(u.shared));
                    };
                    self.store(cluster, launch, u.global, part, *reduce)?;
                }
            }
            Work::Pieces { cta, pieces } => {
                for p in pieces {
                    let mut buffer = [0u8; 16];
                    if p.source != 0 {
                        self.get(cluster, launch, p.from, &mut buffer[..p.source as usize])?;
                    }
                    self.put(cluster, launch, *cta, p.to, &buffer[..p.size as usize])?;
                }
            }
            Work::After(_) => {}
        }
        Ok(())
    }
}

fn outside_box(address: u32) -> Box<Stop> {
    Stop::new(
        crate::fault::FaultKind::Operand,
        "a swizzled tensor box must start at a multiple of the swizzle's period, or it writes outside itself",
    )
    .address(address.into())
}
