//! Where the addresses of asynchronous and matrix instructions point, and moving bytes there.

use crate::exec::Context;
use crate::exec::asynchronous::Range;
use crate::exec::memory::{AccessKind, AccessSpace, Home};
use crate::fault::{FaultKind, Stop};
use crate::machine::cluster::Cluster;
use crate::machine::launch::LaunchState;
use crate::machine::memory::Purpose;

/// The CTA (position in the cluster) and offset of an address of shared memory; `bytes` there lie inside, at a multiple of `align`.
///
/// # Errors
/// Misaligned, out of bounds, wrong space.
pub(crate) fn shared(
    cx: &mut Context<'_>,
    space: AccessSpace,
    address: u64,
    bytes: u32,
    align: u32,
    lane: usize,
) -> Result<(usize, u32), Box<Stop>> {
    if !address.is_multiple_of(u64::from(align)) {
        let message = format!("shared address {address:#x} must be a multiple of {align}");
        return Err(Stop::new(FaultKind::Misaligned, message)
            .address(address)
            .lane(lane as u32));
    }
    match cx
        .resolve(space, address, u64::from(bytes), AccessKind::Atomic, lane)?
        .1
    {
        Home::Shared(cta, offset) => Ok((cta, offset)),
        _ => {
            let message = format!("the address {address:#x} must be one of shared memory");
            Err(Stop::new(FaultKind::WrongSpace, message)
                .address(address)
                .lane(lane as u32))
        }
    }
}

/// The allocation that holds `bytes` of global memory, and the offset there.
pub(crate) fn global_home(launch: &LaunchState<'_>, address: u64, bytes: u64, write: bool) -> Result<Home, Box<Stop>> {
    let Some(i) = launch.global.find(address, bytes) else {
        let message = format!("{bytes} bytes at global address {address:#x} are not inside one allocation");
        return Err(Stop::new(FaultKind::OutOfBounds, message).address(address));
    };
    let a = &launch.global.allocations[i];
    if write && a.purpose == Purpose::Constant {
        let message = format!("a write of {bytes} bytes to constant memory");
        return Err(Stop::new(FaultKind::WrongSpace, message).address(address));
    }
    Ok(Home::Global(i, address - a.start))
}

/// A pointer to `bytes` of global memory.
pub(crate) fn global(launch: &LaunchState<'_>, address: u64, bytes: u64, write: bool) -> Result<*mut u8, Box<Stop>> {
    match global_home(launch, address, bytes, write)? {
        // SAFETY: `global_home` proved that the range lies within the allocation.
        Home::Global(i, offset) => Ok(unsafe { launch.global.allocations[i].pointer().add(offset as usize) }),
        _ => Err(Stop::new(FaultKind::WrongSpace, "not an address of global memory").address(address)),
    }
}

/// Copies global memory into `to`.
pub(crate) fn read_global(
    cluster: &mut Cluster,
    launch: &LaunchState<'_>,
    address: u64,
    to: &mut [u8],
) -> Result<(), Box<Stop>> {
    let from = global(launch, address, to.len() as u64, false)?;
    // SAFETY: `global` proved the range; other threads of the launch may write it only in a racy kernel, where any bytes will do.
    unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
    cluster.counters.traffic[0].read += to.len() as u64;
    Ok(())
}

/// Copies `from` into global memory.
pub(crate) fn write_global(
    cluster: &mut Cluster,
    launch: &LaunchState<'_>,
    address: u64,
    from: &[u8],
) -> Result<(), Box<Stop>> {
    let to = global(launch, address, from.len() as u64, true)?;
    // SAFETY: as in `read_global`.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    cluster.counters.traffic[0].written += from.len() as u64;
    Ok(())
}

/// Bytes of a CTA's shared memory.
pub(crate) fn bytes(cluster: &mut Cluster, range: Range) -> &mut [u8] {
    &mut cluster.ctas[range.cta].shared.bytes()[range.offset as usize..][..range.bytes as usize]
}

/// Writes shared memory on behalf of the async proxy.
pub(crate) fn write_shared(cluster: &mut Cluster, cta: usize, offset: u32, from: &[u8]) {
    bytes(
        cluster,
        Range {
            cta,
            offset,
            bytes: from.len() as u32,
        },
    )
    .copy_from_slice(from);
    cluster.counters.traffic[1].written += from.len() as u64;
}
