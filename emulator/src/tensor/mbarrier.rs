//! The state of an `mbarrier` object as a 64-bit word and its transitions (PTX ISA, "Parallel Synchronization and
//! Communication Instructions: mbarrier").
//!
//! The layout of the word is opaque in PTX; here:
//!
//! | bits | meaning |
//! |---|---|
//! | 0–19 | pending arrivals of the current phase |
//! | 20–39 | expected arrivals of the next phase |
//! | 40–60 | tx-count, two's complement |
//! | 61–62 | number of the phase modulo 4; its low bit is the parity that kernels see |
//! | 63 | the word is a live object |

/// The largest arrival count and transaction count.
pub const LIMIT: u32 = (1 << 20) - 1;

const TX_MASK: u64 = (1 << 21) - 1;

/// A live barrier object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mbarrier {
    /// Arrivals that the current phase still waits for.
    pub pending: u32,
    /// Arrivals that the next phase will wait for.
    pub expected: u32,
    /// Bytes (or other units) expected and not yet completed; negative when completions came first.
    pub tx: i32,
    /// Number of completed phases modulo 4.
    pub phase: u8,
}

/// A misuse of a barrier object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MbarrierError {
    /// The operand is not an initialised barrier.
    #[error("the word is not a live mbarrier object: it was never initialised, was invalidated, or was overwritten")]
    NotLive,
    /// `mbarrier.init` on a live object.
    #[error(
        "mbarrier.init on a live object (pending {pending} of {expected}, phase {phase}); mbarrier.inval must come first"
    )]
    Live {
        /// Pending arrivals.
        pending: u32,
        /// Expected arrivals.
        expected: u32,
        /// Parity of the phase.
        phase: u8,
    },
    /// An arrival count outside 1..=2^20 − 1.
    #[error("arrival count {count} is outside 1..={LIMIT}")]
    Count {
        /// The count given.
        count: u32,
    },
    /// More arrivals than the phase waits for.
    #[error("{count} arrivals but the current phase waits for only {pending} of {expected}")]
    Overflow {
        /// Arrivals of the instruction.
        count: u32,
        /// Pending arrivals.
        pending: u32,
        /// Expected arrivals.
        expected: u32,
    },
    /// The tx-count left its range.
    #[error("tx-count {tx} changed by {change} leaves the range ±{LIMIT}")]
    Tx {
        /// The count before.
        tx: i32,
        /// The change.
        change: i64,
    },
    /// `.noComplete` arrival that would complete the phase.
    #[error("a .noComplete arrival of {count} would complete the phase (pending {pending})")]
    WouldComplete {
        /// Arrivals of the instruction.
        count: u32,
        /// Pending arrivals.
        pending: u32,
    },
    /// A wait on a state token that is neither of the current nor of the preceding phase.
    #[error(
        "the state token is of phase {token} but the barrier is in phase {phase} (modulo 4): only the current and the preceding phase can be waited for"
    )]
    Stale {
        /// Phase of the token modulo 4.
        token: u8,
        /// Phase of the barrier modulo 4.
        phase: u8,
    },
}

impl Mbarrier {
    /// The object in `word`.
    ///
    /// # Errors
    /// [`MbarrierError::NotLive`].
    pub fn decode(word: u64) -> Result<Self, MbarrierError> {
        if word >> 63 == 0 {
            return Err(MbarrierError::NotLive);
        }
        let tx = word >> 40 & TX_MASK;
        Ok(Self {
            pending: word as u32 & LIMIT,
            expected: (word >> 20) as u32 & LIMIT,
            tx: (tx as i32) << 11 >> 11,
            phase: (word >> 61 & 3) as u8,
        })
    }

    /// The word of the object.
    #[must_use]
    pub fn encode(&self) -> u64 {
        u64::from(self.pending)
            | u64::from(self.expected) << 20
            | (self.tx as u64 & TX_MASK) << 40
            | u64::from(self.phase & 3) << 61
            | 1 << 63
    }

    /// `mbarrier.init` over `word` (what memory holds; any garbage is fine, a live object is not).
    ///
    /// # Errors
    /// [`MbarrierError::Live`], [`MbarrierError::Count`].
    pub fn init(word: u64, count: u32) -> Result<Self, MbarrierError> {
        if let Ok(live) = Self::decode(word) {
            return Err(MbarrierError::Live {
                pending: live.pending,
                expected: live.expected,
                phase: live.parity(),
            });
        }
        check_count(count)?;
        Ok(Self {
            pending: count,
            expected: count,
            tx: 0,
            phase: 0,
        })
    }

    /// The parity of the current phase.
    #[must_use]
    pub const fn parity(&self) -> u8 {
        self.phase & 1
    }

    /// `mbarrier.arrive` with a count. Returns the state token (the word before the arrival) and whether the phase completed.
    ///
    /// # Errors
    /// [`MbarrierError::Count`], [`MbarrierError::Overflow`].
    pub fn arrive(&mut self, count: u32) -> Result<(u64, bool), MbarrierError> {
        check_count(count)?;
        let token = self.encode();
        let Some(pending) = self.pending.checked_sub(count) else {
            return Err(MbarrierError::Overflow {
                count,
                pending: self.pending,
                expected: self.expected,
            });
        };
        self.pending = pending;
        Ok((token, self.settle()))
    }

    /// `mbarrier.arrive.noComplete`.
    ///
    /// # Errors
    /// As [`Mbarrier::arrive`], and [`MbarrierError::WouldComplete`].
    pub fn arrive_no_complete(&mut self, count: u32) -> Result<u64, MbarrierError> {
        check_count(count)?;
        let token = self.encode();
        if count >= self.pending {
            return Err(MbarrierError::WouldComplete {
                count,
                pending: self.pending,
            });
        }
        self.pending -= count;
        Ok(token)
    }

    /// `mbarrier.arrive_drop`: the following phases expect `count` fewer arrivals, and `count` arrive now.
    ///
    /// # Errors
    /// As [`Mbarrier::arrive`].
    pub fn arrive_drop(&mut self, count: u32) -> Result<(u64, bool), MbarrierError> {
        check_count(count)?;
        let Some(expected) = self.expected.checked_sub(count) else {
            return Err(MbarrierError::Overflow {
                count,
                pending: self.pending,
                expected: self.expected,
            });
        };
        if count > self.pending {
            return Err(MbarrierError::Overflow {
                count,
                pending: self.pending,
                expected: self.expected,
            });
        }
        self.expected = expected;
        self.arrive(count)
    }

    /// Raises the pending count of the current phase, as `cp.async.mbarrier.arrive` without `.noinc` does.
    ///
    /// # Errors
    /// [`MbarrierError::Overflow`].
    pub fn add_pending(&mut self, count: u32) -> Result<(), MbarrierError> {
        match self.pending.checked_add(count).filter(|&p| p <= LIMIT) {
            Some(pending) => {
                self.pending = pending;
                Ok(())
            }
            None => Err(MbarrierError::Overflow {
                count,
                pending: self.pending,
                expected: self.expected,
            }),
        }
    }

    /// `expect-tx`: the phase also waits for `amount` units.
    ///
    /// # Errors
    /// [`MbarrierError::Tx`].
    pub fn expect_tx(&mut self, amount: u32) -> Result<(), MbarrierError> {
        self.add_tx(i64::from(amount))
    }

    /// `complete-tx`: `amount` units have arrived. Returns whether the phase completed.
    ///
    /// # Errors
    /// [`MbarrierError::Tx`].
    pub fn complete_tx(&mut self, amount: u32) -> Result<bool, MbarrierError> {
        self.add_tx(-i64::from(amount))?;
        Ok(self.settle())
    }

    fn add_tx(&mut self, change: i64) -> Result<(), MbarrierError> {
        let tx = i64::from(self.tx) + change;
        if tx.abs() > i64::from(LIMIT) {
            return Err(MbarrierError::Tx { tx: self.tx, change });
        }
        self.tx = tx as i32;
        Ok(())
    }

    fn settle(&mut self) -> bool {
        let done = self.pending == 0 && self.tx == 0;
        if done {
            self.pending = self.expected;
            self.phase = (self.phase + 1) & 3;
        }
        done
    }

    /// `test_wait.parity` and `try_wait.parity`: whether the phase of that parity has completed.
    #[must_use]
    pub const fn passed_parity(&self, parity: u32) -> bool {
        self.parity() as u32 != parity & 1
    }

    /// `test_wait` and `try_wait` with a state token: whether its phase has completed.
    ///
    /// # Errors
    /// [`MbarrierError::NotLive`] if the token is none, [`MbarrierError::Stale`].
    pub fn passed(&self, token: u64) -> Result<bool, MbarrierError> {
        let token = Self::decode(token)?;
        match (self.phase + 4 - token.phase) & 3 {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(MbarrierError::Stale {
                token: token.phase,
                phase: self.phase,
            }),
        }
    }

    /// `mbarrier.pending_count` of a state token.
    ///
    /// # Errors
    /// [`MbarrierError::NotLive`] if the token is none.
    pub fn pending_count(token: u64) -> Result<u32, MbarrierError> {
        Ok(Self::decode(token)?.pending)
    }
}

fn check_count(count: u32) -> Result<(), MbarrierError> {
    if (1..=LIMIT).contains(&count) {
        Ok(())
    } else {
        Err(MbarrierError::Count { count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases() {
        let mut b = Mbarrier::init(0, 2).unwrap();
        let (token, done) = b.arrive(1).unwrap();
        assert!(!done && !b.passed_parity(0) && b.passed_parity(1));
        assert_eq!(Mbarrier::pending_count(token), Ok(2));
        assert_eq!(b.passed(token), Ok(false));
        assert!(b.arrive(1).unwrap().1);
        assert!(b.passed_parity(0) && !b.passed_parity(1));
        assert_eq!(b.passed(token), Ok(true));
        assert_eq!((b.pending, b.parity()), (2, 1));
        assert!(b.arrive(2).unwrap().1);
        assert_eq!(b.passed(token), Err(MbarrierError::Stale { token: 0, phase: 2 }));
        assert_eq!(Mbarrier::decode(b.encode()), Ok(b));
    }

    #[test]
    fn transactions() {
        let mut b = Mbarrier::init(0, 1).unwrap();
        b.expect_tx(4096).unwrap();
        assert!(!b.arrive(1).unwrap().1);
        assert!(!b.complete_tx(2048).unwrap());
        assert!(b.complete_tx(2048).unwrap());
        // Completion before expectation.
        assert!(!b.complete_tx(16).unwrap());
        assert_eq!(Mbarrier::decode(b.encode()).unwrap().tx, -16);
        b.expect_tx(16).unwrap();
        assert!(b.arrive(1).unwrap().1);
        b.expect_tx(LIMIT).unwrap();
        assert_eq!(
            b.expect_tx(1),
            Err(MbarrierError::Tx {
                tx: LIMIT as i32,
                change: 1
            })
        );
    }

    #[test]
    fn misuse() {
        assert_eq!(Mbarrier::decode(0), Err(MbarrierError::NotLive));
        let b = Mbarrier::init(0x1234, 3).unwrap();
        assert_eq!(
            Mbarrier::init(b.encode(), 3),
            Err(MbarrierError::Live {
                pending: 3,
                expected: 3,
                phase: 0
            })
        );
        assert_eq!(Mbarrier::init(0, 0), Err(MbarrierError::Count { count: 0 }));
        assert_eq!(
            Mbarrier::init(0, LIMIT + 1),
            Err(MbarrierError::Count { count: LIMIT + 1 })
        );
        let mut c = b;
        assert_eq!(
            c.arrive(4),
            Err(MbarrierError::Overflow {
                count: 4,
                pending: 3,
                expected: 3
            })
        );
        assert_eq!(
            c.arrive_no_complete(3),
            Err(MbarrierError::WouldComplete { count: 3, pending: 3 })
        );
        c.arrive_no_complete(1).unwrap();
        c.expect_tx(8).unwrap();
        c.arrive(2).unwrap();
        // The arrivals are all in, only the transaction is missing: one more is an error.
        assert_eq!(
            c.arrive(1),
            Err(MbarrierError::Overflow {
                count: 1,
                pending: 0,
                expected: 3
            })
        );
    }

    #[test]
    fn drop_lowers_the_next_phase() {
        let mut b = Mbarrier::init(0, 3).unwrap();
        b.arrive_drop(1).unwrap();
        assert_eq!((b.pending, b.expected), (2, 2));
        assert!(b.arrive(2).unwrap().1);
        assert_eq!(b.pending, 2);
    }
}
