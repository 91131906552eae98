//! Rules over the generated PTX: mistakes that Rust's type system lets through and a GPU punishes late or silently.
//!
//! | rule | what it forbids | why |
//! |---|---|---|
//! | `local-memory` | `.local` in a kernel with tensor-core instructions | accumulators in memory: a spill in flight is a wrong result |
//! | `panic` | a call of anything of `core::panicking` | an index, division or unwrap is still checked on the device |
//! | `call` | every other call, and functions that were not inlined | an unknown callee, or registers saved around a call |
//! | `barriers` | another number of block barriers than declared | LLVM copies what it does not know to be convergent |
//! | `wgmma-count` | another number of `wgmma.mma_async` than declared | a loop that was not unrolled, or code that was copied |
//! | `wgmma-in-flight` | touching accumulators before the wait, or overwriting A registers | the result is undefined, or `ptxas` serialises (C7514) |
//! | `wgmma-fence` | writing registers of a `wgmma` between its fence and it | the write may come too late (C7519) |
//! | `generic-shared` | generic loads and stores on addresses known to be shared | slow, and the emulator's checks lose the space |
//! | `undeclared` | names in inline assembly that nothing declares | the driver rejects the module |
//! | `f64` | double precision that is not declared | a stray `as f64` or an `f64` literal; 1/64 of the speed on some GPUs |
//! | `bounds` | no `.reqntid`, or another than declared | registers would be budgeted for the wrong block |
//! | `params` | more parameter bytes than the PTX version allows | the driver rejects the module |
//!
//! The rules read one statement after the other and follow no branches. They find the mistakes that LLVM makes out of
//! wrong device code; the emulator judges what the code does.

mod rules;
#[cfg(test)]
mod tests;
mod wgmma;

use std::fmt;

use crate::image::Image;
use crate::ptx::{self, ItemKind};

/// More findings of one rule in one image are counted, not listed.
const LISTED: usize = 4;

/// A rule broken by an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LintFailure {
    /// The image, `sm_90a/reduce_f32`.
    pub image: String,
    /// The rule.
    pub rule: &'static str,
    /// Line of the image, from 1.
    pub line: usize,
    /// What was found.
    pub message: String,
}

impl fmt::Display for LintFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.ptx, line {}: {} [{}]",
            self.image, self.line, self.message, self.rule
        )
    }
}

/// One finding: rule, line, message.
type Finding = (&'static str, usize, String);

/// What the rules look at.
struct Subject<'a> {
    image: &'a Image,
    module: ptx::Module,
    /// The entry's place among the module's items.
    entry: usize,
}

impl Subject<'_> {
    fn entry(&self) -> &ptx::Item {
        &self.module.items[self.entry]
    }

    fn statements(&self) -> Vec<ptx::Statement<'_>> {
        ptx::statements(&self.entry().text, self.entry().line)
    }
}

/// Checks one image against every rule.
pub fn check(image: &Image) -> Vec<LintFailure> {
    let name = format!("{}/{}", image.arch, image.annotation.name);
    // The text with the compiler's names has the same lines as the image and says more in messages.
    let module = match ptx::parse(&image.raw) {
        Ok(module) => module,
        Err(error) => {
            return vec![LintFailure {
                image: name,
                rule: "syntax",
                line: error.line,
                message: error.message,
            }];
        }
    };
    let is_entry = |item: &ptx::Item| item.kind == ItemKind::Entry && item.name == image.annotation.name;
    let Some(entry) = module.items.iter().position(is_entry) else {
        return vec![LintFailure {
            image: name,
            rule: "syntax",
            line: 1,
            message: "the image has no entry".into(),
        }];
    };
    let subject = Subject { image, module, entry };
    let statements = subject.statements();
    let mut findings: Vec<Finding> = Vec::new();
    rules::local_memory(&subject, &statements, &mut findings);
    rules::calls(&subject, &statements, &mut findings);
    rules::counts(&subject, &statements, &mut findings);
    rules::generic_shared(&subject, &statements, &mut findings);
    rules::undeclared(&subject, &statements, &mut findings);
    rules::double_precision(&subject, &statements, &mut findings);
    rules::bounds(&subject, &mut findings);
    rules::params(&subject, &mut findings);
    wgmma::in_flight(&statements, &mut findings);
    abridge(name, findings)
}

/// The first findings of each rule; the last one listed says how many more there are.
fn abridge(image: String, findings: Vec<Finding>) -> Vec<LintFailure> {
    let mut failures: Vec<LintFailure> = Vec::new();
    for (at, (rule, line, message)) in findings.iter().enumerate() {
        let before = findings[..at].iter().filter(|other| other.0 == *rule).count();
        if before >= LISTED {
            continue;
        }
        let more = findings[at + 1..].iter().filter(|other| other.0 == *rule).count();
        let suffix = if before + 1 == LISTED && more > 0 {
            format!(" (and {more} more)")
        } else {
            String::new()
        };
        failures.push(LintFailure {
            image: image.clone(),
            rule,
            line: *line,
            message: format!("{message}{suffix}"),
        });
    }
    failures
}
