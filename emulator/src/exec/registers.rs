//! `setmaxnreg`: the register pool of a CTA (PTX ISA, "Miscellaneous Instructions: setmaxnreg").

/// Registers per thread of each warp, and how many are free.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    /// Registers that no warp holds, in units of one register of 32 threads.
    pub(crate) free: u32,
    /// What each warp holds per thread.
    pub(crate) held: Vec<u32>,
}

/// The wait that `setmaxnreg.inc` needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short {
    /// Registers missing.
    pub(crate) missing: u32,
}

/// A `setmaxnreg` that no program may execute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misuse {
    #[error("setmaxnreg.dec to {to} but the warp holds {held} registers a thread")]
    Rises { to: u32, held: u32 },
    #[error("setmaxnreg.inc to {to} but the warp holds {held} registers a thread")]
    Falls { to: u32, held: u32 },
}

impl Pool {
    /// The pool of a CTA of `threads` threads, which has `registers` of its multiprocessor: each starts with the most
    /// registers that all of them can have, or with what the entry's `.maxnreg` says.
    pub(crate) fn new(threads: u32, registers: u32, limit: Option<u32>) -> Self {
        let warps = threads.div_ceil(32);
        let most = (registers / (warps * 32) / 8 * 8).min(limit.unwrap_or(255)).min(255);
        Pool {
            free: 0,
            held: vec![most; warps as usize],
        }
    }

    /// `setmaxnreg.dec`.
    pub(crate) fn decrease(&mut self, warp: usize, to: u32) -> Result<(), Misuse> {
        let held = self.held[warp];
        if to > held {
            return Err(Misuse::Rises { to, held });
        }
        self.free += held - to;
        self.held[warp] = to;
        Ok(())
    }

    /// `setmaxnreg.inc`; `Err(Short)` inside when it must wait.
    pub(crate) fn increase(&mut self, warp: usize, to: u32) -> Result<Result<(), Short>, Misuse> {
        let held = self.held[warp];
        if to < held {
            return Err(Misuse::Falls { to, held });
        }
        let need = to - held;
        if need > self.free {
            return Ok(Err(Short {
                missing: need - self.free,
            }));
        }
        self.free -= need;
        self.held[warp] = to;
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_of_a_warp_specialised_kernel() {
        // 384 threads on 65536 registers: 168 each. One warpgroup goes to 24, two go to 240.
        let mut pool = Pool::new(384, 65536, None);
        assert_eq!(pool.held[0], 168);
        assert_eq!(pool.increase(4, 240), Ok(Err(Short { missing: 72 })));
        for warp in 0..4 {
            pool.decrease(warp, 24).unwrap();
        }
        for warp in 4..12 {
            assert_eq!(pool.increase(warp, 240), Ok(Ok(())));
        }
        assert_eq!(pool.free, 0);
        assert_eq!(pool.decrease(0, 32), Err(Misuse::Rises { to: 32, held: 24 }));
        assert_eq!(pool.increase(4, 232), Err(Misuse::Falls { to: 232, held: 240 }));
    }
}
