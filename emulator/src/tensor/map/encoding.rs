//! The emulator's encoding of a tensor map.

use super::{DataType, Interleave, OobFill, TensorMap, TensorMapError, Tiled};
use crate::tensor::Swizzle;

const MAGIC: [u8; 8] = *b"ffTMap\x01\0";

impl TensorMap {
    /// The emulator's 128-byte form.
    #[must_use]
    pub fn encode(&self) -> [u8; 128] {
        let t = &self.tiled;
        let mut out = [0u8; 128];
        out[..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&t.address.to_le_bytes());
        for (i, &d) in t.dims.iter().enumerate() {
            out[16 + 4 * i..20 + 4 * i].copy_from_slice(&((d - 1) as u32).to_le_bytes());
            out[72 + 2 * i..74 + 2 * i].copy_from_slice(&(t.box_dims[i] as u16).to_le_bytes());
            out[82 + i] = t.element_strides[i] as u8;
        }
        for (i, &s) in t.strides.iter().enumerate() {
            out[40 + 8 * i..48 + 8 * i].copy_from_slice(&s.to_le_bytes());
        }
        out[87] = t.dims.len() as u8;
        out[88] = t.data_type as u8;
        out[89] = t.swizzle as u8;
        out[90] = t.oob_fill as u8;
        let sum = checksum(&out[..120]);
        out[120..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the form that [`TensorMap::encode`] writes.
    ///
    /// # Errors
    /// [`TensorMapError::NotAMap`] if the bytes are anything else.
    pub fn decode(bytes: &[u8; 128]) -> Result<Self, TensorMapError> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let rank = usize::from(bytes[87]);
        if bytes[..8] != MAGIC || word(120) != checksum(&bytes[..120]) || !(1..=5).contains(&rank) {
            return Err(TensorMapError::NotAMap);
        }
        let swizzle = match bytes[89] {
            0 => Swizzle::None,
            1 => Swizzle::B32,
            2 => Swizzle::B64,
            3 => Swizzle::B128,
            _ => return Err(TensorMapError::NotAMap),
        };
        Self::new(Tiled {
            data_type: *DataType::ALL
                .get(usize::from(bytes[88]))
                .ok_or(TensorMapError::NotAMap)?,
            address: word(8),
            dims: (0..rank)
                .map(|i| u64::from(u32::from_le_bytes(std::array::from_fn(|j| bytes[16 + 4 * i + j]))) + 1)
                .collect(),
            strides: (0..rank - 1).map(|i| word(40 + 8 * i)).collect(),
            box_dims: (0..rank)
                .map(|i| u32::from(u16::from_le_bytes([bytes[72 + 2 * i], bytes[73 + 2 * i]])))
                .collect(),
            element_strides: (0..rank).map(|i| u32::from(bytes[82 + i])).collect(),
            interleave: Interleave::None,
            swizzle,
            oob_fill: if bytes[90] == 0 { OobFill::Zero } else { OobFill::Nan },
        })
    }
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::{super::tests::tiled, *};

    #[test]
    fn encoding_goes_round() {
        let map = TensorMap::new(tiled()).unwrap();
        let bytes = map.encode();
        assert_eq!(TensorMap::decode(&bytes), Ok(map));
        for i in 0..128 {
            let mut bad = bytes;
            bad[i] ^= 4;
            assert_eq!(TensorMap::decode(&bad), Err(TensorMapError::NotAMap), "byte {i}");
        }
        assert_eq!(TensorMap::decode(&[0; 128]), Err(TensorMapError::NotAMap));
    }
}
