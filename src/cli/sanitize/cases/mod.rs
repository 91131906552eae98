//! The table of cases: small inputs that together reach every kernel of the archive, with tails in every extent.

use host::{AnyTensor, DType, Result, Tier};

use super::bed::Bed;

mod elementwise;
mod layers;
mod rows;
mod tokens;

/// An op with one set of inputs.
pub struct Case {
    /// What `sanitize OP` names.
    pub op: &'static str,
    /// Which inputs.
    pub name: String,
    /// The op branches on its data by its nature (the choice of a token, say): it is not run with secrets.
    pub looks_at_data: bool,
    /// A GPU of one tier that has so much shared memory a block; otherwise the first GPU of every tier.
    pub gpu: Option<(Tier, u32)>,
    /// Makes the inputs, runs the op, returns what it wrote.
    pub run: Run,
}

type Run = Box<dyn Fn(&Bed) -> Result<Vec<AnyTensor>> + Send + Sync>;

/// The types that most kernels compute in.
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn case(
    op: &'static str,
    name: impl Into<String>,
    run: impl Fn(&Bed) -> Result<Vec<AnyTensor>> + Send + Sync + 'static,
) -> Case {
    Case {
        op,
        name: name.into(),
        looks_at_data: false,
        gpu: None,
        run: Box::new(run),
    }
}

impl Case {
    fn looks_at_data(self) -> Case {
        Case {
            looks_at_data: true,
            ..self
        }
    }

    fn on(self, tier: Tier, shared_per_block: u32) -> Case {
        Case {
            name: format!("{}, {} KiB of shared memory", self.name, shared_per_block >> 10),
            gpu: Some((tier, shared_per_block)),
            ..self
        }
    }
}

/// Every case; those of one op stand together.
pub fn all() -> Vec<Case> {
    let mut cases = elementwise::cases();
    cases.extend(rows::cases());
    cases.extend(tokens::cases());
    cases.extend(layers::cases());
    cases
}
