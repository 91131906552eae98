//! `cp.async.bulk`, `cp.reduce.async.bulk` and their tensor forms (PTX ISA, "Data Movement and Conversion Instructions: Bulk copy").

use crate::exec::asynchronous::{self, Range};
use crate::exec::memory::{AccessKind, AccessSpace};
use crate::exec::place::shared;
use crate::exec::transfer::{Reduce, Signal, Work, issue};
use crate::exec::{Context, Operation, Outcome, Step};
use crate::fault::{FaultKind, Stop};
use crate::lower::types::{Modifiers, Type};
use crate::lower::{Lowered, Lowering};
use crate::program::Register;
use crate::syntax::ast::{Instruction, Operand};
use crate::tensor::{DataType, TensorMap};

/// A register plus a constant.
#[derive(Clone, Copy)]
struct Place {
    base: Register,
    offset: i64,
}

/// Where a copy goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// Global to shared memory.
    Load,
    /// Shared memory of this CTA to that of another.
    Send,
    /// Shared to global memory.
    Store,
}

/// The global or remote side.
enum Other {
    /// Plain memory and a size in bytes.
    Bytes { place: Place, size: Register },
    /// A tensor map and the coordinates of the box.
    Box { map: Place, coordinates: Vec<Register> },
}

struct Copy {
    direction: Direction,
    /// This CTA's side: destination of a load, source otherwise.
    shared: Place,
    space: AccessSpace,
    other: Other,
    mbarrier: Option<Place>,
    multicast: Option<Register>,
    reduce: Option<(Reduce, Option<Type>)>,
}

struct Commit;
struct WaitGroup {
    newest: usize,
    read: bool,
}

impl Place {
    fn at(self, cx: &Context<'_>, lane: usize) -> u64 {
        cx.register(self.base)[lane].wrapping_add_signed(self.offset)
    }
}

/// Reads and decodes the tensor map at a generic address.
fn tensor_map(cx: &mut Context<'_>, address: u64, lane: usize) -> Result<TensorMap, Box<Stop>> {
    let refuse = |message: String| {
        Stop::new(FaultKind::Operand, message)
            .address(address)
            .lane(lane as u32)
    };
    if !address.is_multiple_of(64) {
        return Err(refuse(format!(
            "a tensor map at {address:#x} must be at a multiple of 64"
        )));
    }
    let (pointer, _) = cx.resolve(AccessSpace::Generic, address, 128, AccessKind::Read, lane)?;
    let mut bytes = [0u8; 128];
    // SAFETY: `resolve` proved 128 bytes; a kernel that writes a tensor map while it is used is racy, and any bytes will do.
    unsafe { std::ptr::copy_nonoverlapping(pointer, bytes.as_mut_ptr(), 128) };
    TensorMap::decode(&bytes).map_err(|e| refuse(e.to_string()))
}

impl Operation for Copy {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        for lane in cx.lanes() {
            let (work, bytes) = self.work(cx, lane)?;
            let signal = match self.mbarrier {
                None => Signal::Nothing,
                Some(place) => {
                    let address = place.at(cx, lane);
                    let space = if self.space == AccessSpace::Shared {
                        AccessSpace::Cluster
                    } else {
                        self.space
                    };
                    let (_, offset) = shared(cx, space, address, 8, 8, lane)?;
                    Signal::Bytes { offset, bytes }
                }
            };
            let flying = issue(cx, lane, work, signal).map_err(|s| s.lane(lane as u32))?;
            if let (Some((id, issued)), None) = (flying, self.mbarrier) {
                cx.warp.asynchronous.bulk.add(1 << lane, id, issued);
            }
        }
        Ok(Step::Next)
    }
}

impl Copy {
    fn work(&self, cx: &mut Context<'_>, lane: usize) -> Result<(Work, u32), Box<Stop>> {
        let refuse = |message: String| Stop::new(FaultKind::Operand, message).lane(lane as u32);
        let window = self.shared.at(cx, lane);
        match &self.other {
            Other::Bytes { place, size } => {
                let bytes = cx.register(*size)[lane] as u32;
                if !bytes.is_multiple_of(16) {
                    return Err(refuse(format!(
                        "the size of a bulk copy, {bytes}, must be a multiple of 16"
                    )));
                }
                let far = place.at(cx, lane);
                if !far.is_multiple_of(16) {
                    let message = format!("the address {far:#x} of a bulk copy must be a multiple of 16");
                    return Err(Stop::new(FaultKind::Misaligned, message).address(far).lane(lane as u32));
                }
                let (cta, offset) = shared(cx, self.space, window, bytes, 16, lane)?;
                let near = Range { cta, offset, bytes };
                let reduce = self.reduce.and_then(|(op, ty)| Some((op, ty?)));
                let work = match self.direction {
                    Direction::Load => Work::Load {
                        from: far,
                        ctas: self.targets(cx, cta, lane)?,
                        to: offset,
                        bytes,
                    },
                    Direction::Send => {
                        let (cta, to) = shared(cx, AccessSpace::Cluster, far, bytes, 16, lane)?;
                        Work::Send {
                            from: near,
                            cta,
                            to,
                            reduce,
                        }
                    }
                    Direction::Store => Work::Store {
                        from: near,
                        to: far,
                        reduce,
                    },
                };
                Ok((work, bytes))
            }
            Other::Box { map, coordinates } => {
                let address = map.at(cx, lane);
                let map = tensor_map(cx, address, lane)?;
                if map.rank() != coordinates.len() {
                    return Err(refuse(format!(
                        "the instruction is {}-dimensional but the tensor map has {} dimensions",
                        coordinates.len(),
                        map.rank()
                    )));
                }
                let coordinates: Vec<i32> = coordinates.iter().map(|&r| cx.register(r)[lane] as i32).collect();
                let bytes = map.box_bytes();
                let (cta, offset) = shared(cx, self.space, window, bytes, 128, lane)?;
                let window = window as u32;
                let work = if self.direction == Direction::Load {
                    Work::LoadBox {
                        map,
                        coordinates,
                        ctas: self.targets(cx, cta, lane)?,
                        to: offset,
                        window,
                    }
                } else {
                    // The CUDA programming guide forbids it, and an H200 calls it an illegal instruction; loads may begin there.
                    if let Some(negative) = coordinates.iter().find(|&&c| c < 0) {
                        return Err(refuse(format!(
                            "the box of a tensor store or reduction begins at the negative coordinate {negative}"
                        )));
                    }
                    let reduce = match self.reduce {
                        None => None,
                        Some((op, _)) => Some((op, reducible(op, map.tiled().data_type).map_err(refuse)?)),
                    };
                    Work::StoreBox {
                        map,
                        coordinates,
                        from: Range { cta, offset, bytes },
                        window,
                        reduce,
                    }
                };
                Ok((work, bytes))
            }
        }
    }

    /// The CTAs that a load writes.
    fn targets(&self, cx: &Context<'_>, own: usize, lane: usize) -> Result<Vec<usize>, Box<Stop>> {
        let Some(register) = self.multicast else {
            return Ok(vec![own]);
        };
        let mask = cx.register(register)[lane] as u16;
        let count = cx.cluster.ctas.len();
        if mask == 0 || (u32::from(mask) >> count) != 0 {
            let message = format!("the multicast mask {mask:#06x} names CTAs outside a cluster of {count}, or none");
            return Err(Stop::new(FaultKind::Operand, message).lane(lane as u32));
        }
        Ok((0..count).filter(|c| mask >> c & 1 != 0).collect())
    }
}

/// The element type that a tensor reduction works on.
fn reducible(op: Reduce, ty: DataType) -> Result<Type, String> {
    use DataType as D;
    Ok(match (op, ty) {
        (Reduce::Add, D::U32) => Type::U32,
        (Reduce::Add, D::S32) => Type::S32,
        (Reduce::Add, D::U64) => Type::U64,
        (Reduce::Add, D::F32) => Type::F32,
        (Reduce::Add | Reduce::Min | Reduce::Max, D::F16) => Type::F16,
        (Reduce::Add | Reduce::Min | Reduce::Max, D::Bf16) => Type::Bf16,
        (Reduce::Min | Reduce::Max, D::U32) => Type::U32,
        (Reduce::Min | Reduce::Max, D::S32) => Type::S32,
        (Reduce::Min | Reduce::Max, D::U64) => Type::U64,
        (Reduce::Min | Reduce::Max, D::S64) => Type::S64,
        (Reduce::Increment | Reduce::Decrement, D::U32) => Type::U32,
        (Reduce::And | Reduce::Or | Reduce::Xor, D::U32 | D::S32) => Type::B32,
        (Reduce::And | Reduce::Or | Reduce::Xor, D::U64 | D::S64) => Type::B64,
        _ => return Err(format!("a tensor of {ty:?} cannot be reduced with {op:?}")),
    })
}

impl Operation for Commit {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        if asynchronous::deferred(cx.launch) {
            let mask = cx.mask;
            cx.warp.asynchronous.bulk.commit(mask);
        }
        Ok(Step::Next)
    }
}

impl Operation for WaitGroup {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        let mask = cx.mask;
        let members = cx.warp.asynchronous.bulk.wait(mask, self.newest, self.read);
        asynchronous::wait(cx, &members, self.read)?;
        Ok(Step::Next)
    }
}

/// Lowers `cp.async.bulk…` and `cp.reduce.async.bulk…`; `async` and `bulk` are taken.
pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>, reduce: bool) -> Lowered {
    if m.take("commit_group") {
        let [] = l.operands(i)?;
        return l.other(Commit);
    }
    if m.take("wait_group") {
        let read = m.take("read");
        let [newest] = l.operands(i)?;
        let newest = l.literal(newest)? as usize;
        return l.other(WaitGroup { newest, read });
    }
    let prefetch = m.take("prefetch");
    let tensor = m.take("tensor");
    let rank = if tensor {
        m.take_one(&["1d", "2d", "3d", "4d", "5d"]).map(|r| r + 1)
    } else {
        None
    };
    if tensor && rank.is_none() {
        return l.refuse("the number of dimensions is missing");
    }
    let spaces = ["shared::cluster", "shared::cta", "shared", "global", "L2"];
    let destination = m.take_one(&spaces);
    let source = m.take_one(&spaces);
    if tensor
        && !m.take("tile")
        && m.peek()
            .is_some_and(|p| p.starts_with("im2col") || p.starts_with("tile::"))
    {
        return l.refuse("only .tile is modelled");
    }
    if prefetch {
        return lower_prefetch(l, i, m, rank);
    }
    let (direction, space) = match (destination, source) {
        (Some(0), Some(3)) => (Direction::Load, AccessSpace::Cluster),
        (Some(1 | 2), Some(3)) => (Direction::Load, AccessSpace::Shared),
        (Some(0), Some(1 | 2)) => (Direction::Send, AccessSpace::Shared),
        (Some(3), Some(1 | 2)) => (Direction::Store, AccessSpace::Shared),
        _ => return l.refuse("the state spaces are not modelled"),
    };
    let by_mbarrier = m.take("mbarrier::complete_tx::bytes");
    if by_mbarrier == m.take("bulk_group") || by_mbarrier == (direction == Direction::Store) {
        return l.refuse("the completion mechanism is missing or wrong");
    }
    let multicast = m.take("multicast::cluster");
    let policy = m.take("L2::cache_hint");
    let reduce = if reduce {
        let names = ["add", "min", "max", "inc", "dec", "and", "or", "xor"];
        let ops = [
            Reduce::Add,
            Reduce::Min,
            Reduce::Max,
            Reduce::Increment,
            Reduce::Decrement,
            Reduce::And,
            Reduce::Or,
            Reduce::Xor,
        ];
        let Some(op) = m.take_one(&names) else {
            return l.refuse("the reduction is missing");
        };
        let _ = m.take("noftz");
        let ty = if tensor { None } else { Some(l.ty(m)?) };
        // Reductions of concurrent CTAs must not be lost, and floats must be added in one order.
        l.order_matters();
        Some((ops[op], ty))
    } else {
        None
    };
    let mut operands = i.operands.iter();
    let mut next = |l: &Lowering<'_>| match operands.next() {
        Some(o) => Ok(o),
        None => l.refuse("it has too few operands"),
    };
    let first = next(l)?;
    let second = next(l)?;
    let (near, far) = if direction == Direction::Load {
        (first, second)
    } else {
        (second, first)
    };
    let other = match rank {
        Some(rank) => {
            let (map, coordinates) = tensor_operand(l, far, rank)?;
            Other::Box { map, coordinates }
        }
        None => {
            let place = place(l, far)?;
            let size = next(l)?;
            Other::Bytes {
                place,
                size: l.source(size, Type::U32)?,
            }
        }
    };
    let mbarrier = if by_mbarrier { Some(next(l)?) } else { None };
    let multicast = if multicast { Some(next(l)?) } else { None };
    if policy {
        let policy = next(l)?;
        l.source(policy, Type::B64)?;
    }
    let mbarrier = match mbarrier {
        Some(o) => Some(place(l, o)?),
        None => None,
    };
    let multicast = match multicast {
        Some(o) => Some(l.source(o, Type::U16)?),
        None => None,
    };
    if operands.next().is_some() {
        return l.refuse("it has too many operands");
    }
    let shared = place(l, near)?;
    l.other(Copy {
        direction,
        shared,
        space,
        other,
        mbarrier,
        multicast,
        reduce,
    })
}

fn place(l: &mut Lowering<'_>, operand: &Operand) -> Lowered<Place> {
    let (base, offset, _) = l.address(operand)?;
    Ok(Place { base, offset })
}

/// `[map, {c0, c1, …}]`.
fn tensor_operand(l: &mut Lowering<'_>, operand: &Operand, rank: usize) -> Lowered<(Place, Vec<Register>)> {
    let Operand::Address {
        base,
        offset,
        coordinates: Some(coordinates),
    } = operand
    else {
        return l.refuse(&format!("the operand {operand} is not a tensor map with coordinates"));
    };
    let plain = Operand::Address {
        base: base.clone(),
        offset: *offset,
        coordinates: None,
    };
    let map = place(l, &plain)?;
    let list = l.elements(coordinates)?;
    if list.len() != rank {
        return l.refuse(&format!("{} coordinates are given for {rank} dimensions", list.len()));
    }
    let coordinates = list.iter().map(|c| l.source(c, Type::S32)).collect::<Lowered<_>>()?;
    Ok((map, coordinates))
}

/// Prefetches have no effect on results; their operands are checked all the same.
fn lower_prefetch(l: &mut Lowering<'_>, i: &Instruction, m: &mut Modifiers<'_>, rank: Option<usize>) -> Lowered {
    let _ = m.take("L2::cache_hint");
    match (rank, &i.operands[..]) {
        (Some(rank), [map, ..]) => {
            tensor_operand(l, map, rank)?;
        }
        (None, [from, size, ..]) => {
            place(l, from)?;
            l.source(size, Type::U32)?;
        }
        _ => return l.refuse("it has too few operands"),
    }
    l.emit(crate::program::Op::Nop)
}
