//! Global memory: allocations with guard gaps between them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Mutex;

use crate::fault::Error;

/// First address of global memory.
pub(crate) const GLOBAL_BASE: u64 = 0x7000_0000_0000;
/// Every allocation starts at a multiple of this, as `cuMemAlloc`'s do.
const ALIGNMENT: u64 = 256;
/// Unmapped bytes between two allocations, at least.
const GAP: u64 = 4096;

/// Bytes that the threads of a launch read and write concurrently, through raw pointers.
struct Bytes {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Bytes` is only an owner of raw memory; who may touch it when is the machine's affair (its lock).
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    fn zeroed(length: usize) -> Option<Bytes> {
        let layout = Layout::from_size_align(length.max(16).checked_next_multiple_of(16)?, 256).ok()?;
        // SAFETY: the layout's size is at least 16.
        let pointer = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Bytes { pointer, layout })
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) }
    }
}

/// What an allocation is for; decides what may be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `Machine::allocate` and `.global` variables.
    Global,
    /// `.const` variables.
    Constant,
}

/// One allocation.
pub(crate) struct Allocation {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) purpose: Purpose,
    pub(crate) name: String,
    pub(crate) shadow: Mutex<crate::check::Shadow>,
    bytes: Bytes,
}

impl Allocation {
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.bytes.pointer.as_ptr()
    }
}

/// All of global memory.
pub(crate) struct GlobalMemory {
    /// Sorted by address.
    pub(crate) allocations: Vec<Allocation>,
    next: u64,
    used: u64,
    limit: u64,
    count: u64,
    /// Which bytes were written is remembered.
    pub(crate) tracked: bool,
}

impl GlobalMemory {
    pub(crate) fn new(limit: u64) -> Self {
        GlobalMemory {
            allocations: Vec::new(),
            next: GLOBAL_BASE,
            used: 0,
            limit,
            count: 0,
            tracked: false,
        }
    }

    pub(crate) fn allocate(&mut self, length: u64, purpose: Purpose, name: Option<String>) -> Result<u64, Error> {
        let refused = Error::OutOfMemory {
            requested: length,
            free: self.limit - self.used,
        };
        if length > self.limit - self.used {
            return Err(refused);
        }
        let size = usize::try_from(length).map_err(|_| refused.clone())?;
        let bytes = Bytes::zeroed(size).ok_or(refused)?;
        let start = self.next;
        self.next = (start + length + GAP).next_multiple_of(ALIGNMENT);
        self.used += length;
        self.count += 1;
        let name = name.unwrap_or_else(|| format!("allocation {}", self.count));
        let shadow = Mutex::default();
        self.allocations.push(Allocation {
            start,
            length,
            purpose,
            name,
            shadow,
            bytes,
        });
        Ok(start)
    }

    pub(crate) fn free(&mut self, start: u64) -> Result<(), Error> {
        match self.allocations.binary_search_by_key(&start, |a| a.start) {
            Ok(i) if self.allocations[i].purpose == Purpose::Global => {
                self.used -= self.allocations[i].length;
                self.allocations.remove(i);
                Ok(())
            }
            _ => Err(Error::Address {
                operation: "free",
                address: start,
                bytes: 0,
            }),
        }
    }

    /// Index of the allocation that holds the whole range.
    pub(crate) fn find(&self, address: u64, bytes: u64) -> Option<usize> {
        let i = self
            .allocations
            .partition_point(|a| a.start <= address)
            .checked_sub(1)?;
        let a = &self.allocations[i];
        (bytes <= a.length && address - a.start <= a.length - bytes).then_some(i)
    }

    /// Describes where an address lies, for messages.
    pub(crate) fn describe(&self, address: u64) -> Option<String> {
        let i = self
            .allocations
            .partition_point(|a| a.start <= address)
            .checked_sub(1)?;
        let a = &self.allocations[i];
        let offset = address - a.start;
        Some(if offset < a.length {
            format!("byte {offset} of {}, {} bytes at {:#x}", a.name, a.length, a.start)
        } else {
            format!(
                "{} bytes behind the end of {}, {} bytes at {:#x}",
                offset - a.length,
                a.name,
                a.length,
                a.start
            )
        })
    }

    /// The bytes of a range, if it is allocated.
    pub(crate) fn range(&self, operation: &'static str, address: u64, bytes: usize) -> Result<*mut u8, Error> {
        let i = self.find(address, bytes as u64).ok_or(Error::Address {
            operation,
            address,
            bytes,
        })?;
        let a = &self.allocations[i];
        // SAFETY: `find` proved that the offset lies within the allocation.
        Ok(unsafe { a.pointer().add((address - a.start) as usize) })
    }
}
