//! Undefined and secret registers. Both spread from operands to results, lane by lane; an undefined or secret value
//! is reported where it decides something: a branch, a guard, an address.

use crate::exec::Context;
use crate::exec::memory::AccessKind;
use crate::fault::{FaultKind, Stop};
use crate::machine::launch::LaunchState;
use crate::machine::warp::Warp;
use crate::program::{NO_PREDICATE, Op, Predicate};

const UNDEFINED: usize = 0;
const SECRET: usize = 1;

impl Context<'_> {
    /// The lanes that store something undefined, and those that store something secret.
    pub(super) fn stored_masks(&self, kind: AccessKind) -> [u32; 2] {
        if !kind.writes() || self.warp.labels.is_empty() {
            return [0, 0];
        }
        let program = self.launch.program;
        let reads = program.list(program.info[self.pc as usize].reads);
        [UNDEFINED, SECRET].map(|which| reads.iter().fold(0, |m, r| m | self.warp.labels[*r as usize][which]))
    }

    /// Whether what a lane stores is undefined, and whether it is secret.
    pub(super) fn stored_labels(&self, kind: AccessKind, lane: usize) -> (bool, bool) {
        if !kind.writes() || self.warp.labels.is_empty() {
            return (false, false);
        }
        let program = self.launch.program;
        let reads = program.list(program.info[self.pc as usize].reads);
        let any = |which: usize| {
            reads
                .iter()
                .any(|r| self.warp.labels[*r as usize][which] >> lane & 1 != 0)
        };
        (any(UNDEFINED), any(SECRET))
    }
}

impl Warp {
    /// The guard of an instruction decides.
    pub(crate) fn check_guard(
        &self,
        p: Predicate,
        mask: u32,
        branch: bool,
        launch: &LaunchState<'_>,
    ) -> Result<(), Box<Stop>> {
        let labels = self.predicate_labels[p as usize];
        if launch.checks.uninitialised && labels[UNDEFINED] & mask != 0 {
            let what = if branch {
                "a branch"
            } else {
                "the guard of an instruction"
            };
            let message = format!("{what} depends on a predicate computed from registers that were never written");
            let lane = (labels[UNDEFINED] & mask).trailing_zeros();
            return Err(Stop::new(FaultKind::Uninitialised, message).lane(lane));
        }
        if launch.checks.taint && branch && labels[SECRET] & mask != 0 {
            let lane = (labels[SECRET] & mask).trailing_zeros();
            return Err(Stop::new(FaultKind::Secret, "a branch depends on secret data").lane(lane));
        }
        Ok(())
    }

    /// The address of an access decides; so does a guard on an access.
    pub(crate) fn check_before(&mut self, pc: u32, mask: u32, launch: &LaunchState<'_>) -> Result<(), Box<Stop>> {
        self.loaded_secret = 0;
        let Some(address) = launch.program.info[pc as usize].address else {
            return Ok(());
        };
        let labels = self.labels[address as usize];
        if launch.checks.uninitialised && labels[UNDEFINED] & mask != 0 {
            let lane = (labels[UNDEFINED] & mask).trailing_zeros();
            let message = "an address comes from a register that was never written";
            return Err(Stop::new(FaultKind::Uninitialised, message).lane(lane));
        }
        let guard = launch.program.code[pc as usize].guard;
        let guarded = if guard == NO_PREDICATE {
            0
        } else {
            self.predicate_labels[guard as usize][SECRET]
        };
        if launch.checks.taint && (labels[SECRET] | guarded) & mask != 0 {
            let lane = ((labels[SECRET] | guarded) & mask).trailing_zeros();
            return Err(Stop::new(FaultKind::Secret, "an access depends on secret data").lane(lane));
        }
        Ok(())
    }

    /// Results take over the labels of what they were computed from.
    pub(crate) fn check_after(&mut self, pc: u32, mask: u32, launch: &LaunchState<'_>) {
        let program = launch.program;
        let (ins, info) = (&program.code[pc as usize], &program.info[pc as usize]);
        if info.writes.1 == 0 && info.sets.1 == 0 {
            return;
        }
        let mut labels = [0u32; 2];
        for which in [UNDEFINED, SECRET] {
            labels[which] = match ins.op {
                Op::Select { a, b, p, negated, .. } => {
                    let p_label = self.predicate_labels[p as usize][which];
                    let p = self.predicates[p as usize] ^ if negated { !0 } else { 0 };
                    let (a, b) = (self.labels[a as usize][which], self.labels[b as usize][which]);
                    // Two equal choices do not depend on the predicate, but that is left aside.
                    p_label | a & p | b & !p
                }
                _ => {
                    let registers = program.list(info.reads).iter().map(|r| self.labels[*r as usize][which]);
                    let predicates = program
                        .list(info.tests)
                        .iter()
                        .map(|p| self.predicate_labels[*p as usize][which]);
                    registers.chain(predicates).fold(0, |m, l| m | l)
                }
            };
        }
        labels[SECRET] |= self.loaded_secret;
        if ins.guard != NO_PREDICATE {
            labels[SECRET] |= self.predicate_labels[ins.guard as usize][SECRET];
        }
        if let Op::Other(operation) = &ins.op {
            if operation.defines() {
                labels[UNDEFINED] = 0;
            }
            // Lanes exchange values: what one lane's secret reaches is not followed, all of them are secret.
            if operation.crosses_lanes() && labels[SECRET] & mask != 0 {
                labels[SECRET] |= mask;
            }
        }
        for r in program.list(info.writes) {
            for (which, label) in labels.into_iter().enumerate() {
                let l = &mut self.labels[*r as usize][which];
                *l = *l & !mask | label & mask;
            }
        }
        for p in program.list(info.sets) {
            for (which, label) in labels.into_iter().enumerate() {
                let l = &mut self.predicate_labels[*p as usize][which];
                *l = *l & !mask | label & mask;
            }
        }
        // The registers and predicates that stand for "nobody reads this".
        self.labels[0] = [0, 0];
        self.predicate_labels[0] = [0, 0];
    }
}
