//! Load a model and let it write: `cargo run --release --example generate -- [FOLDER [PROMPT]]`.
//!
//! FOLDER is a Hugging Face snapshot of GPT-2, Llama, Mistral, Qwen2 or Qwen3; without one, the small model of this repository.

use std::io::Write;

use ferroflash::Device;
use ferroflash::models::{GenerateOptions, LoadOptions, Model, SamplingOptions, TextStream, small};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let device = Device::new()?; // the first GPU, else the emulator
    let model = match arguments.next() {
        Some(folder) => Model::load(folder, &device, LoadOptions::default())?,
        None => Model::from_checkpoint(&small::stories_llama()?, &device, LoadOptions::default())?,
    };
    let prompt = arguments.next().unwrap_or_else(|| "One morning".to_owned());

    let options = GenerateOptions {
        max_new_tokens: 40,
        sampling: SamplingOptions {
            temperature: 0.8,
            top_k: 50,
            top_p: 0.95,
            seed: 1,
        },
        ..GenerateOptions::default()
    };
    let tokenizer = model.tokenizer().ok_or("the folder has no tokenizer.json")?;
    let mut text = TextStream::new(tokenizer, ["The end."]);
    print!("{prompt}");
    // A generator is an iterator of tokens; dropping it frees its cache.
    for token in model.generate(&model.encode(prompt.as_bytes())?, options)? {
        let piece = text.push(token?)?;
        print!("{}", piece.text);
        std::io::stdout().flush()?;
        if piece.stop.is_some() {
            break;
        }
    }
    println!("{}", text.finish()?);
    Ok(())
}
