//! Arguments of a launch, packed as an entry declares them.

use crate::fault::Error;
use crate::machine::DeviceAddress;
use crate::program::EntryInfo;

/// One argument of an entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument<'a> {
    /// An address in global memory: `.u64`.
    Address(DeviceAddress),
    /// `.u8` or `.b8`.
    U8(u8),
    /// `.u16` or `.b16`; the bits of an f16 too.
    U16(u16),
    /// `.u32` or `.b32`.
    U32(u32),
    /// `.s32`.
    I32(i32),
    /// `.u64` or `.b64`.
    U64(u64),
    /// `.s64`.
    I64(i64),
    /// `.f32`.
    F32(f32),
    /// `.f64`.
    F64(f64),
    /// A structure by value: `.b8 name[n]`.
    Bytes(&'a [u8]),
}

impl Argument<'_> {
    fn put(&self, to: &mut Vec<u8>) {
        match *self {
            Argument::Address(v) => to.extend_from_slice(&v.0.to_le_bytes()),
            Argument::U8(v) => to.push(v),
            Argument::U16(v) => to.extend_from_slice(&v.to_le_bytes()),
            Argument::U32(v) => to.extend_from_slice(&v.to_le_bytes()),
            Argument::I32(v) => to.extend_from_slice(&v.to_le_bytes()),
            Argument::U64(v) => to.extend_from_slice(&v.to_le_bytes()),
            Argument::I64(v) => to.extend_from_slice(&v.to_le_bytes()),
            Argument::F32(v) => to.extend_from_slice(&v.to_le_bytes()),
            Argument::F64(v) => to.extend_from_slice(&v.to_le_bytes()),
            Argument::Bytes(v) => to.extend_from_slice(v),
        }
    }
}

impl EntryInfo {
    /// The parameter buffer of a launch: each argument at the offset of its parameter.
    ///
    /// ```
    /// # use emulator::{Argument, Module};
    /// let module = Module::parse(
    ///     ".version 8.0 .target sm_80 .address_size 64
    ///      .visible .entry e(.param .u32 n, .param .f64 x) { ret; }",
    /// )?;
    /// let params = module.entry("e")?.pack(&[Argument::U32(7), Argument::F64(1.0)])?;
    /// assert_eq!(params.len(), 16);
    /// assert!(module.entry("e")?.pack(&[Argument::U64(7), Argument::F64(1.0)]).is_err());
    /// # Ok::<(), emulator::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Argument`] when there are more or fewer arguments than parameters, or one has another size.
    pub fn pack(&self, arguments: &[Argument<'_>]) -> Result<Vec<u8>, Error> {
        if arguments.len() != self.parameters.len() {
            let names: Vec<&str> = self.parameters.iter().map(|p| p.name.as_str()).collect();
            return Err(Error::Argument {
                argument: "arguments",
                value: arguments.len().to_string(),
                allowed: format!("{}: {}", names.len(), names.join(", ")),
            });
        }
        let mut params = vec![0; self.parameter_bytes];
        let mut bytes = Vec::new();
        for (parameter, argument) in self.parameters.iter().zip(arguments) {
            bytes.clear();
            argument.put(&mut bytes);
            if bytes.len() != parameter.size {
                return Err(Error::Argument {
                    argument: "arguments",
                    value: format!("{} bytes for parameter {}", bytes.len(), parameter.name),
                    allowed: format!("{} bytes", parameter.size),
                });
            }
            params[parameter.offset..][..parameter.size].copy_from_slice(&bytes);
        }
        Ok(params)
    }
}
