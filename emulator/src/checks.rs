//! Which faults are looked for.

/// The checks that a [`Machine`](crate::Machine) makes while a kernel runs.
///
/// Out-of-bounds, misaligned and wrong-space accesses, divergent aligned instructions, deadlocks and the step budget
/// are always found: going on after them would be meaningless. The checks here cost time and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Checks {
    /// Reads of memory or registers that were never written.
    pub uninitialised: bool,
    /// Data races in shared and global memory.
    pub races: bool,
    /// Divergent or mismatched barriers.
    pub barriers: bool,
    /// Misuse of asynchronous operations: proxies, in-flight registers, bulk groups, `mbarrier`s.
    pub asynchronous: bool,
    /// Branches and addresses that depend on secret data.
    pub taint: bool,
}

impl Checks {
    /// Every check but taint, which needs secrets to be marked and reports nothing without them; it is on too.
    pub fn all() -> Self {
        Checks {
            uninitialised: true,
            races: true,
            barriers: true,
            asynchronous: true,
            taint: true,
        }
    }

    /// No check beyond those that always run.
    pub fn none() -> Self {
        Checks::default()
    }
}
