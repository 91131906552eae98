//! Decode steps as CUDA graphs: a step of so many sequences is recorded once and then started as one launch.
//!
//! All that changes from step to step lies at fixed addresses: positions, lengths and block tables come in one small copy, and
//! the tokens are where the step before left them when it chose them itself. So the next step can be started before the token
//! of the last one has reached the CPU.

use std::collections::HashMap;

use host::ops::{argmax_and_copy, copy, sample};
use host::{AnyTensor, DType, Device, Graph};

use crate::error::{Error, Result};
use crate::sampling::SamplingOptions;

/// Who chooses the next tokens from the logits of a step, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Choice {
    /// The CPU.
    Host,
    /// The device takes the largest.
    Greedy,
    /// The device draws, for one sequence with number 0.
    Drawn {
        /// Bits of the temperature.
        temperature: u32,
        top_k: u32,
        /// Bits of the share.
        top_p: u32,
        seed: u64,
    },
}

impl Choice {
    /// How the device chooses for one sequence by these options.
    pub(crate) fn of(options: &SamplingOptions) -> Choice {
        if options.is_greedy() {
            return Choice::Greedy;
        }
        Choice::Drawn {
            temperature: options.temperature.to_bits(),
            top_k: options.top_k,
            top_p: options.top_p.to_bits(),
            seed: options.seed,
        }
    }

    /// The chosen tokens, i64 `[rows]`, left in `next` for the next step too; `draw` is the number of the token to draw.
    pub(crate) fn choose(self, logits: &AnyTensor, next: &AnyTensor, draw: &AnyTensor) -> Result<Option<AnyTensor>> {
        let chosen = match self {
            Choice::Host => return Ok(None),
            Choice::Greedy => return Ok(Some(argmax_and_copy(logits, Some(next))?)),
            Choice::Drawn {
                temperature,
                top_k,
                top_p,
                seed,
            } => {
                let mut sample = sample(logits)
                    .temperature(f32::from_bits(temperature))
                    .top_p(f64::from(f32::from_bits(top_p)))
                    .seed(seed)
                    .offset_from(draw);
                if top_k > 0 {
                    sample = sample.top_k(u64::from(top_k));
                }
                sample.run()?
            }
        };
        copy(&chosen, next)?;
        Ok(Some(chosen))
    }
}

/// What a decode step yields.
#[derive(Clone)]
pub(crate) struct Outcome {
    /// f32 `[rows, vocab]`.
    pub(crate) logits: AnyTensor,
    /// i64 `[rows]`, unless the CPU is to choose.
    pub(crate) chosen: Option<AnyTensor>,
}

/// Steps of a number of sequences: their inputs at fixed addresses, and the graphs recorded over them.
pub(crate) struct Lane {
    /// i64 `[rows]`: the session's.
    pub(crate) tokens: AnyTensor,
    /// Positions, lengths, ends and tables: i32.
    pub(crate) packed: AnyTensor,
    /// Number of the token to draw, i64 `[1]`.
    pub(crate) draw: AnyTensor,
    steps: HashMap<Choice, Recorded>,
}

enum Recorded {
    /// It ran once, so that all kernels are loaded.
    Warm,
    Graph(Box<(Graph, Outcome)>),
}

impl Lane {
    pub(crate) fn new(device: &Device, tokens: AnyTensor, packed: u64) -> Result<Lane> {
        Ok(Lane {
            tokens,
            packed: AnyTensor::zeros(device, DType::I32, &[packed])?,
            draw: AnyTensor::zeros(device, DType::I64, &[1])?,
            steps: HashMap::new(),
        })
    }

    /// Runs `work`, which must launch the same each time: the first time as it is, from the second on as a graph.
    pub(crate) fn run(&mut self, choice: Choice, work: impl Fn(&Lane) -> Result<Outcome>) -> Result<Outcome> {
        match self.steps.get(&choice) {
            None => {
                let outcome = work(self)?;
                self.steps.insert(choice, Recorded::Warm);
                Ok(outcome)
            }
            Some(Recorded::Graph(recorded)) => {
                recorded.0.launch()?;
                Ok(recorded.1.clone())
            }
            Some(Recorded::Warm) => {
                let device = self.tokens.device().clone();
                let mut other = None;
                let captured = device.capture(|| {
                    work(self).map_err(|error| match error {
                        Error::Device(error) => error,
                        error => {
                            let told = host::Error::unsupported(error.to_string());
                            other = Some(error);
                            told
                        }
                    })
                });
                let (graph, outcome) = captured.map_err(|error| other.unwrap_or(Error::Device(error)))?;
                graph.launch()?;
                let recorded = Box::new((graph, outcome.clone()));
                self.steps.insert(choice, Recorded::Graph(recorded));
                Ok(outcome)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Sampler;

    #[test]
    fn the_device_draws_what_the_cpu_draws_and_leaves_it_for_the_next_step() {
        let device = Device::emulator().unwrap();
        let tokens = AnyTensor::zeros(&device, DType::I64, &[1]).unwrap();
        let lane = Lane::new(&device, tokens, 1).unwrap();
        let logits: Vec<f32> = (0..300u32).map(|i| ((i * 7919) % 101) as f32 / 25.0).collect();
        let bytes: Vec<u8> = logits.iter().flat_map(|l| l.to_le_bytes()).collect();
        let row = AnyTensor::from_bytes(&device, DType::F32, &[1, 300], &bytes).unwrap();
        let mut seen = Vec::new();
        for (temperature, top_k, top_p) in [(1.0, 0, 1.0), (0.7, 40, 0.9), (0.0, 0, 1.0)] {
            let options = SamplingOptions {
                temperature,
                top_k,
                top_p,
                seed: 11,
            };
            for step in 0..3u64 {
                lane.draw.write_bytes(&step.to_le_bytes()).unwrap();
                let choice = Choice::of(&options);
                let chosen = choice.choose(&row, &lane.tokens, &lane.draw).unwrap().unwrap();
                let token = i64::from_le_bytes(chosen.to_bytes().unwrap().try_into().unwrap());
                let expected = Sampler::new(options).unwrap().sample(&logits, 0, step).unwrap();
                assert_eq!(token, i64::from(expected), "{options:?}, step {step}");
                assert_eq!(lane.tokens.to_bytes().unwrap(), token.to_le_bytes());
                seen.push(token);
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 3, "draws differ: {seen:?}");
        assert!(Choice::Host.choose(&row, &lane.tokens, &lane.draw).unwrap().is_none());
    }
}
