//! Special registers that change while a thread runs: clocks.

use super::{Context, Operation, Outcome, Step};
use crate::program::Register;

/// A read of a clock: so many bits of the count of warp instructions.
struct Clock {
    d: Register,
    shift: u32,
    mask: u64,
}

impl Operation for Clock {
    fn run(&self, cx: &mut Context<'_>) -> Outcome {
        // One tick for each warp instruction of the cluster: monotonic, and the same on every run.
        cx.cluster.clock += 1;
        let value = cx.cluster.clock >> self.shift & self.mask;
        for lane in cx.lanes() {
            cx.register_mut(self.d)[lane] = value;
        }
        Ok(Step::Next)
    }
}

/// The operation that reads a clock register.
pub(crate) fn clock(name: &str) -> Option<impl FnOnce(Register) -> Box<dyn Operation> + use<>> {
    let (shift, mask) = match name {
        "%clock" => (0, 0xFFFF_FFFF),
        "%clock_hi" => (32, 0xFFFF_FFFF),
        "%clock64" | "%globaltimer" => (0, !0),
        "%globaltimer_lo" => (0, 0xFFFF_FFFF),
        "%globaltimer_hi" => (32, 0xFFFF_FFFF),
        _ => return None,
    };
    Some(move |d| Box::new(Clock { d, shift, mask }) as Box<dyn Operation>)
}
