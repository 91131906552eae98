//! Runs PTX on the CPU with SIMT semantics and reports faults the way Miri does.
//!
//! ```
//! use emulator::{Argument, Launch, Machine, Module, Target};
//!
//! let module = Module::parse(
//!     ".version 8.0
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry double(.param .u64 data)
//!      {
//!          .reg .b32 %r<3>;
//!          .reg .b64 %rd<4>;
//!          ld.param.u64 %rd1, [data];
//!          mov.u32 %r1, %tid.x;
//!          mul.wide.u32 %rd2, %r1, 4;
//!          add.s64 %rd3, %rd1, %rd2;
//!          ld.global.u32 %r2, [%rd3];
//!          shl.b32 %r2, %r2, 1;
//!          st.global.u32 [%rd3], %r2;
//!          ret;
//!      }",
//! )?;
//! let machine = Machine::new(Target::SM_90A);
//! let data = machine.allocate(32 * 4)?;
//! let numbers: Vec<u8> = (0..32u32).flat_map(u32::to_le_bytes).collect();
//! machine.write(data, &numbers)?;
//! let params = module.entry("double")?.pack(&[Argument::Address(data)])?;
//! machine.launch(&module, "double", &Launch { block: [32, 1, 1], params: &params, ..Launch::default() })?;
//! let mut seven = [0; 4];
//! machine.read(data.offset(7 * 4), &mut seven)?;
//! assert_eq!(u32::from_le_bytes(seven), 14);
//! # Ok::<(), emulator::Error>(())
//! ```

mod arguments;
mod check;
mod checks;
mod error;
mod exec;
mod fault;
mod lower;
mod machine;
mod module;
pub mod numeric;
mod program;
mod statistics;
pub mod syntax;
mod target;
pub mod tensor;

pub use arguments::Argument;
pub use checks::Checks;
pub use error::ParseError;
pub use fault::{Error, Fault, FaultKind, LoadError, Site};
pub use machine::launch::Launch;
pub use machine::{DeviceAddress, Machine};
pub use module::Module;
pub use program::{EntryInfo, Parameter};
pub use statistics::{Statistics, Traffic};
pub use target::Target;

/// One register of a warp: the value of each lane, zero-extended to 64 bits.
///
/// Everything the machine computes goes through this shape; an instruction is a tight loop over it under a mask
/// of active lanes (bit *i* of the mask is lane *i*).
pub type Lanes = [u64; 32];
