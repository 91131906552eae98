//! Counters by which blocks divide work among themselves.

use crate::{AnyTensor, DType, Device, Result, Stream};

/// A counter of 32 bits that is 0 when its kernel begins, and must be when it ends.
pub(crate) struct Counter {
    address: u64,
    own: Option<AnyTensor>,
}

impl Counter {
    /// Its address.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// What holds it, if it is of one launch.
    pub(crate) fn own(&self) -> Option<&AnyTensor> {
        self.own.as_ref()
    }
}

impl Device {
    /// A counter for one kernel. The main stream, where graphs run too, has one for all of its kernels: they begin one after the
    /// other, and each leaves it as it was. For other streams, one is made and filled.
    pub(crate) fn counter(&self, stream: Option<&Stream>) -> Result<Counter> {
        if stream.is_none_or(|stream| stream.id() == self.stream().id())
            && let Some(address) = self.guard(self.inner().pool.counter())?
        {
            return Ok(Counter { address, own: None });
        }
        let own = AnyTensor::empty(self, DType::I32, &[1])?;
        own.fill_bytes_on(0, stream)?;
        Ok(Counter {
            address: own.address(),
            own: Some(own),
        })
    }
}
