//! Bytes of a text as tokens, and batches of them.

use crate::random::draw;

/// Stream of the seed that batches are drawn from; those below are of parameters.
const BATCHES: u64 = 1 << 32;

/// A text: nine tenths to learn from, the rest held out.
pub struct Text {
    bytes: Vec<u8>,
    train: usize,
}

/// Tokens and the tokens that follow them, both `batch · context` long.
pub struct Batch {
    pub inputs: Vec<i32>,
    pub targets: Vec<i32>,
}

impl Text {
    /// Fails when either part is too short for a context.
    pub fn new(bytes: Vec<u8>, context: u64) -> Result<Text, String> {
        let train = bytes.len() / 10 * 9;
        let shortest = train.min(bytes.len() - train);
        if shortest as u64 <= context + 1 {
            return Err(format!(
                "a text of {} bytes is too short for a context of {context}: more than {} are needed",
                bytes.len(),
                10 * (context + 2)
            ));
        }
        Ok(Text { bytes, train })
    }

    /// Bytes to learn from.
    pub fn train_bytes(&self) -> usize {
        self.train
    }

    /// The batch of step `step`, from 0.
    pub fn batch(&self, seed: u64, step: u64, batch: u64, context: u64) -> Batch {
        let stream = draw(seed, BATCHES);
        let places = (step * batch..(step + 1) * batch).map(|i| draw(stream, i) % (self.train as u64 - context));
        Batch::of(&self.bytes[..self.train], places, context)
    }

    /// Batch `index` of what is held out: the same in every run.
    pub fn held_out(&self, index: u64, batch: u64, context: u64) -> Batch {
        let bytes = &self.bytes[self.train..];
        let places = (index * batch..(index + 1) * batch).map(|i| draw(0, i) % (bytes.len() as u64 - context));
        Batch::of(bytes, places, context)
    }
}

impl Batch {
    fn of(bytes: &[u8], places: impl Iterator<Item = u64>, context: u64) -> Batch {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for place in places {
            let row = &bytes[place as usize..][..context as usize + 1];
            inputs.extend(row[..context as usize].iter().map(|&byte| i32::from(byte)));
            targets.extend(row[1..].iter().map(|&byte| i32::from(byte)));
        }
        Batch { inputs, targets }
    }
}
