//! Rotary position embedding.

mod angles;

pub use angles::{RopeAngles, RopeFrequencies, rope_table};

use kernels_gpu::{
    angles::{INTERLEAVED, Rotation, TABLE_F32},
    paging::Paging,
    rope::{RopeParams, THREADS, flags},
};

use super::cache::{CacheView, converts, expect_extent, expect_integers, expect_tokens, tokens_of};
use crate::{AnyTensor, DType, Error, Result, launch::Contract, stream::Stream};

/// Which elements of a head form a pair. There is no default: checkpoints come in both kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopePairing {
    /// `(2i, 2i + 1)`: GPT-J, and Llama as Meta publishes it.
    Interleaved,
    /// `(i, i + rotary_dim / 2)`: GPT-NeoX, and Llama as Hugging Face has it.
    HalfSplit,
}

/// A rotation to be run; made by [`rope`].
#[must_use = "nothing happens before run()"]
pub struct Rope<'a> {
    q: &'a AnyTensor,
    k: Option<&'a AnyTensor>,
    pairing: RopePairing,
    angles: RopeAngles<'a>,
    positions: Option<&'a AnyTensor>,
    offset: i32,
    inverse: bool,
    in_place: bool,
    append: Option<(&'a AnyTensor, CacheView<'a>, Destination<'a>)>,
    lengths: Option<&'a AnyTensor>,
    stream: Option<&'a Stream>,
}

/// Tokens whose threads fill every GPU even with eight heads each.
const MANY_TOKENS: u64 = 16_384;

/// Where appended tokens go.
#[derive(Clone, Copy)]
enum Destination<'a> {
    Slots(&'a AnyTensor),
    Lengths,
}

/// Rotates `q [batch, seq, heads, dim]` (or `[tokens, heads, dim]`; f32, f16, bf16; any strides with a dense last axis) by the
/// angle of each token's position: `(a, b)` becomes `(a·cos − b·sin, b·cos + a·sin)`.
///
/// Positions count from 0 in each sequence unless told otherwise; elements from `rotary_dim` on stay as they are.
/// Arithmetic is f32.
pub fn rope<'a>(q: &'a AnyTensor, pairing: RopePairing, angles: RopeAngles<'a>) -> Rope<'a> {
    Rope {
        q,
        k: None,
        pairing,
        angles,
        positions: None,
        offset: 0,
        inverse: false,
        in_place: false,
        append: None,
        lengths: None,
        stream: None,
    }
}

impl<'a> Rope<'a> {
    /// Rotates keys too, in the same launch: as many tokens of the same head dim.
    pub fn k(mut self, k: &'a AnyTensor) -> Self {
        self.k = Some(k);
        self
    }

    /// Position of each token, i32, `[batch, seq]` or `[tokens]`.
    pub fn positions(mut self, positions: &'a AnyTensor) -> Self {
        self.positions = Some(positions);
        self
    }

    /// Position of the first token of every sequence.
    pub fn offset(mut self, offset: i32) -> Self {
        self.offset = offset;
        self
    }

    /// Position of the first token of each sequence, i32, `[batch]`: the tokens that a cache has already.
    pub fn lengths(mut self, lengths: &'a AnyTensor) -> Self {
        self.lengths = Some(lengths);
        self
    }

    /// Rotates by the negative angle: the gradient, and (for a magnitude of 1) the inverse.
    pub fn inverse(mut self) -> Self {
        self.inverse = true;
        self
    }

    /// Overwrites `q` and `k` instead of allocating.
    pub fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// Writes the rotated keys and `v` to the slots (i64, one a token) of a cache, as [`cache_append`](super::cache_append)
    /// would, in the same launch; there is no `k` in the result then.
    pub fn append(mut self, v: &'a AnyTensor, cache: CacheView<'a>, slots: &'a AnyTensor) -> Self {
        self.append = Some((v, cache, Destination::Slots(slots)));
        self
    }

    /// As [`append`](Rope::append), behind the tokens that [`lengths`](Rope::lengths) says each sequence has.
    pub fn append_at(mut self, v: &'a AnyTensor, cache: CacheView<'a>) -> Self {
        self.append = Some((v, cache, Destination::Lengths));
        self
    }

    /// Runs in this stream.
    pub fn on(mut self, stream: &'a Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Launches; returns the rotated `q` and, unless it went to a cache, `k`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Dtype`], [`Error::Layout`], [`Error::Range`] naming the argument;
    /// [`Error::OutOfMemory`].
    pub fn run(self) -> Result<(AnyTensor, Option<AnyTensor>)> {
        let q = tokens_of("q", self.q)?;
        check_float("q", &q)?;
        let (batch, seq, dim) = (q.extent(0), q.extent(1), q.extent(3));
        let k = self.k.map(|k| tokens_of("k", k)).transpose()?;
        let mut heads = [q.extent(2), 0, 0];
        if let Some(k) = &k {
            if k.shape()[..2] != q.shape()[..2] {
                return Err(Error::shape(
                    "k",
                    k.shape(),
                    format!("as many tokens as q, {:?}, are needed", q.shape()),
                ));
            }
            heads[1] = k.extent(2);
            expect_tokens("k", k, ("q", &q), heads[1], dim)?;
        }
        let tokens = batch * seq;
        let pairs = self.angles.pairs(dim, q.dtype())?;
        if let Some(positions) = self.positions {
            if positions.dtype() != DType::I32 {
                return Err(Error::Dtype {
                    argument: "positions",
                    dtype: positions.dtype(),
                    allowed: "i32 is needed".into(),
                });
            }
            if positions.elements() != tokens || !positions.is_contiguous() {
                let allowed = format!("one position for each of the {tokens} tokens is needed, dense");
                return Err(Error::shape("positions", positions.shape(), allowed));
            }
        }
        if let Some(lengths) = self.lengths {
            expect_integers("lengths", lengths, DType::I32, 1)?;
            expect_extent("lengths", lengths, batch)?;
        }
        let v = self.append.map(|(v, ..)| tokens_of("v", v)).transpose()?;
        let mut dims = [dim, dim, 0];
        let mut paging = Paging {
            table: 0,
            table_stride: 0,
            batch_index: 0,
            page_size: 1,
            pages: 0,
        };
        let (mut capacity, mut cache_strides, mut slots, mut cache_view) = (0, [[0; 3]; 2], None, None);
        if let Some((_, cache, destination)) = self.append {
            let checked = cache.check(matches!(destination, Destination::Lengths).then_some(batch))?;
            let (Some(k), Some(v)) = (&k, &v) else {
                return Err(Error::layout("append", "needs keys: call k() too"));
            };
            expect_tokens("k", k, ("k_cache", cache.k()), checked.heads, checked.head_dim)?;
            expect_tokens("v", v, ("v_cache", cache.v()), checked.heads, checked.value_dim)?;
            if v.dtype() != q.dtype() {
                let allowed = format!("the dtype of q, {}, is needed", q.dtype());
                return Err(Error::Dtype {
                    argument: "v",
                    dtype: v.dtype(),
                    allowed,
                });
            }
            if v.shape()[..2] != q.shape()[..2] {
                return Err(Error::shape(
                    "v",
                    v.shape(),
                    format!("as many tokens as q, {:?}, are needed", q.shape()),
                ));
            }
            (heads[2], dims[2]) = (checked.heads, checked.value_dim);
            match destination {
                Destination::Slots(given) => {
                    expect_integers("slots", given, DType::I64, 1)?;
                    expect_extent("slots", given, tokens)?;
                    slots = Some(given);
                }
                Destination::Lengths if self.lengths.is_none() => {
                    return Err(Error::layout("append_at", "needs lengths: call lengths() too"));
                }
                Destination::Lengths => {}
            }
            (paging, capacity, cache_strides, cache_view) =
                (checked.paging, checked.capacity, checked.strides, Some(cache));
        }
        let like = |x: &AnyTensor| {
            if self.in_place {
                Ok(x.clone())
            } else {
                AnyTensor::empty(x.device(), x.dtype(), x.shape())
            }
        };
        let q_out = like(&q)?;
        let k_out = match (&k, cache_view) {
            (Some(k), None) => Some(like(k)?),
            _ => None,
        };
        let result = (
            q_out.reshape(self.q.shape())?,
            k_out
                .as_ref()
                .zip(self.k)
                .map(|(out, k)| out.reshape(k.shape()))
                .transpose()?,
        );
        let total_heads: u64 = heads.iter().sum();
        if tokens == 0 || total_heads == 0 || dims == [0; 3] {
            return Ok(result);
        }
        let three = |t: &AnyTensor| [t.strides()[0], t.strides()[1], t.strides()[2]];
        let inputs = [Some(&q), k.as_ref(), v.as_ref()];
        let outputs = [
            Some(&q_out),
            k_out.as_ref().or(cache_view.map(|cache| cache.k())),
            cache_view.map(|cache| cache.v()),
        ];
        let strides_of = |tensors: &[Option<&AnyTensor>; 3]| tensors.map(|t| t.map_or([0; 3], three));
        let input_strides = strides_of(&inputs);
        let mut output_strides = strides_of(&outputs);
        if cache_view.is_some() {
            (output_strides[1], output_strides[2]) = (cache_strides[0], cache_strides[1]);
        }
        let size = q.dtype().size();
        let e4m3 = cache_view.is_some_and(|cache| converts(q.dtype(), cache.k().dtype()));
        // Half a vector of 16-bit elements where 8 bits are stored.
        let stored = |tensor: usize| if e4m3 && tensor > 0 { 2 } else { size };
        let factors = cache_view.map_or([None; 2], |cache| cache.factors());
        let address = |t: Option<&AnyTensor>| t.map_or(0, AnyTensor::address);
        let vector = (inputs.iter().chain(&outputs)).all(|t| address(*t).is_multiple_of(16))
            && input_strides
                .iter()
                .flatten()
                .all(|stride| (stride * size).is_multiple_of(16))
            && (output_strides.iter().enumerate()).all(|(tensor, strides)| {
                strides
                    .iter()
                    .all(|stride| (stride * stored(tensor)).is_multiple_of(16))
            })
            && dims.iter().chain([&pairs]).all(|extent| extent.is_multiple_of(8));
        let width = if vector { 8 } else { 1 };
        let copied = (dim - 2 * pairs).div_ceil(2 * width);
        // More heads a thread share its angles; fewer make more threads.
        let share = match (tokens >= MANY_TOKENS, cache_view.is_some()) {
            (true, false) => 8,
            (true, true) => 6,
            _ => 4,
        };
        let lanes = total_heads.div_ceil(share);
        let mut chunks = pairs / width;
        if !self.in_place || cache_view.is_some() {
            chunks = (chunks + copied).max(dims[2].div_ceil(2 * width));
        }
        if chunks == 0 {
            return Ok(result);
        }
        let (cos, sin, frequencies, table_rows, magnitude, table_f32) = match self.angles {
            RopeAngles::Frequencies(f) => (0, 0, f.inverse.address(), 0, f.magnitude, false),
            RopeAngles::Table { cos, sin } => (
                cos.address(),
                sin.address(),
                0,
                cos.extent(0).min(u32::MAX.into()),
                1.0,
                cos.dtype() == DType::F32,
            ),
        };
        let bits = [
            (self.pairing == RopePairing::Interleaved, flags::INTERLEAVED),
            (self.inverse, flags::INVERSE),
            (vector, flags::VECTOR),
            (table_f32, flags::TABLE_F32),
            (cache_view.is_some(), flags::TO_CACHE),
        ];
        let small =
            |argument, value: u64| u32::try_from(value).map_err(|_| Error::range(argument, value, "below 2^32"));
        let params = RopeParams {
            paging,
            inputs: inputs.map(address),
            outputs: outputs.map(address),
            input_strides,
            output_strides,
            scales: factors.map(address),
            positions: address(self.positions),
            lengths: address(self.lengths),
            slots: address(slots),
            cos,
            sin,
            frequencies,
            tokens,
            capacity,
            heads: [
                small("heads", heads[0])?,
                small("heads", heads[1])?,
                small("heads", heads[2])?,
            ],
            dims: [small("dim", dims[0])?, small("dim", dims[1])?, small("dim", dims[2])?],
            seq: small("tokens", seq)?,
            pairs: pairs as u32,
            table_rows: table_rows as u32,
            offset: self.offset,
            magnitude,
            chunks: chunks as u32,
            lanes: lanes as u32,
            flags: bits.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum(),
        };
        let entry = format!("rope_{}{}", if e4m3 { "e4m3_" } else { "" }, q.dtype().name());
        let mut contract = Contract::new(q.device(), &entry)
            .grid([(tokens * lanes * chunks).div_ceil(THREADS.into()), 1, 1])
            .on(self.stream)
            .reads_if("positions", self.positions)
            .reads_if("lengths", self.lengths)
            .reads_if("slots", slots)
            .reads_if("v", v.as_ref())
            .reads_if("k_scale", factors[0])
            .reads_if("v_scale", factors[1])
            .reads_if("block_table", cache_view.and_then(|cache| cache.table()))
            .reads_if("batch_index", cache_view.and_then(|cache| cache.rows()))
            .writes("q", &q_out)
            .writes_if("k", k_out.as_ref())
            .writes_if("k_cache", cache_view.map(|cache| cache.k()))
            .writes_if("v_cache", cache_view.map(|cache| cache.v()));
        for (argument, tensor) in self.angles.tensors() {
            contract = contract.reads_if(argument, tensor);
        }
        if !self.in_place {
            contract = contract.reads("q", &q);
        }
        if !(self.in_place && k_out.is_some()) {
            contract = contract.reads_if("k", k.as_ref());
        }
        // SAFETY: the argument struct of these kernels; extents and strides are those of the tensors named above.
        unsafe { contract.prepare()?.launch(&params)? };
        Ok(result)
    }

    /// The rotation of heads of `dim` elements, for another kernel.
    pub(super) fn rotation(&self, dim: u64, dtype: DType) -> Result<Rotation> {
        let pairs = self.angles.pairs(dim, dtype)? as u32;
        let interleaved = if self.pairing == RopePairing::Interleaved {
            INTERLEAVED
        } else {
            0
        };
        Ok(match self.angles {
            RopeAngles::Frequencies(f) => Rotation {
                frequencies: f.inverse.address(),
                pairs,
                magnitude: f.magnitude,
                flags: interleaved,
                ..Rotation::NONE
            },
            RopeAngles::Table { cos, sin } => Rotation {
                cos: cos.address(),
                sin: sin.address(),
                pairs,
                table_rows: cos.extent(0).min(u32::MAX.into()) as u32,
                flags: interleaved | if cos.dtype() == DType::F32 { TABLE_F32 } else { 0 },
                ..Rotation::NONE
            },
        })
    }
}

pub(crate) fn check_float(argument: &'static str, tensor: &AnyTensor) -> Result<()> {
    if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::Dtype {
            argument,
            dtype: tensor.dtype(),
            allowed: "f32, f16 or bf16".into(),
        });
    }
    if tensor.extent(3) > 1 && tensor.strides()[3] != 1 {
        return Err(Error::layout(argument, "the last axis must be dense"));
    }
    Ok(())
}
