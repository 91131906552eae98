//! Attention alone, for somebody's own model: `cargo run --release --example attention`.

use ferroflash::{Device, Tensor, attention, f16};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::new()?;
    // Two sequences of 70 tokens, 4 query heads that share 2 key heads, head dim 64: [batch, tokens, heads, dim].
    let wave = |shape: [u64; 4], step: f32| {
        let values: Vec<f16> = (0..shape.iter().product::<u64>())
            .map(|i| f16::from_f32((i as f32 * step).sin()))
            .collect();
        Tensor::from_slice(&device, &values, &shape)
    };
    let q = wave([2, 70, 4, 64], 0.37)?;
    let (k, v) = (wave([2, 70, 2, 64], 0.61)?, wave([2, 70, 2, 64], 0.23)?);

    // Each token sees itself and the 31 before it.
    let result = attention(&q, &k, &v).causal().window(Some(31), None).run()?;
    let out = result.out.typed::<f16>("out")?.to_vec()?;
    println!("{device}: out {:?}, lse {:?}", result.out.shape(), result.lse.shape());

    // The first token sees only itself: its output is its value.
    let first = v.to_vec()?[..64].to_vec();
    assert_eq!(out[..64], first[..]);
    Ok(())
}
