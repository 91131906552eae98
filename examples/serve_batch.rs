//! The loop of a server: requests come while others run, share the pages of the cache, and leave when they are done.
//! `cargo run --release --example serve_batch -- [FOLDER]`

use ferroflash::Device;
use ferroflash::models::{BatchOptions, GenerateOptions, LoadOptions, Model, RequestId, TextStream, small};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::new()?;
    let model = match std::env::args().nth(1) {
        Some(folder) => Model::load(folder, &device, LoadOptions::default())?,
        None => Model::from_checkpoint(&small::stories_llama()?, &device, LoadOptions::default())?,
    };
    let tokenizer = model.tokenizer().ok_or("the folder has no tokenizer.json")?;
    let beginning = "Once upon a time there was a little fox named Ruby, who lived in a house by the river.";
    let mut arriving = ["", " One day", " Ruby had a friend", " In winter"].into_iter();

    let mut batch = model.batch(BatchOptions {
        max_sequences: 3,
        cache_tokens: 256,
        share_prefixes: true,
    })?;
    let mut texts: Vec<(String, TextStream)> = Vec::new();
    loop {
        // One request arrives in each step.
        if let Some(end) = arriving.next() {
            let prompt = format!("{beginning}{end}");
            let options = GenerateOptions {
                max_new_tokens: 8,
                stream: texts.len() as u64,
                ..GenerateOptions::default()
            };
            let RequestId(number) = batch.submit(&model.encode(prompt.as_bytes())?, options)?;
            println!("request {number} arrives: {end:?}");
            texts.push((end.to_owned(), TextStream::new(tokenizer, Vec::<String>::new())));
        } else if batch.is_idle() {
            break;
        }
        for event in batch.step()? {
            let (text, stream) = &mut texts[event.request.0];
            text.push_str(&stream.push(event.token)?.text);
            if let Some(why) = event.finished {
                text.push_str(&stream.finish()?);
                println!("request {} ends ({why:?}): ...{text}", event.request.0);
            }
        }
    }
    println!("{} prompt tokens were not computed again", batch.shared_tokens());
    Ok(())
}
