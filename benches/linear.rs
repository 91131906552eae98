//! Times linear layers on the GPU for a program that alternates with a peer.
//!
//! Reads lines from standard input: `case M N K DTYPE ACTIVATION MODE LAUNCHES COPIES` prepares a layer (bias when there
//! is an activation, `swiglu` for a gated pair) and records LAUNCHES launches into a graph, over COPIES copies of the
//! weights in turn; `sample` runs it and answers microseconds a launch. `benches/peers/linear.py` drives it beside
//! PyTorch.

use std::io::BufRead;

use ferroflash::{Activation, AnyTensor, DType, Device, Graph, LinearMode, Result, linear};

/// A tensor of N(0, 1) values times `scale`, a million of them drawn.
fn random(device: &Device, dtype: DType, shape: &[u64], seed: u64, scale: f32) -> Result<AnyTensor> {
    let drawn = host::reference::data::normal::<f32>(seed, 1 << 20);
    let bytes: Vec<u8> = match dtype {
        DType::F16 => drawn
            .iter()
            .flat_map(|v| ferroflash::f16::from_f32(v * scale).to_le_bytes())
            .collect(),
        DType::BF16 => drawn
            .iter()
            .flat_map(|v| ferroflash::bf16::from_f32(v * scale).to_le_bytes())
            .collect(),
        _ => drawn.iter().flat_map(|v| (v * scale).to_le_bytes()).collect(),
    };
    let len = shape.iter().product::<u64>() * dtype.size();
    let all: Vec<u8> = bytes.iter().copied().cycle().take(len as usize).collect();
    AnyTensor::from_bytes(device, dtype, shape, &all)
}

fn prepare(device: &Device, words: &[&str]) -> Result<(Graph, u32)> {
    let number = |i: usize| words[i].parse::<u64>().expect("a number");
    let (m, n, k, launches, copies) = (number(1), number(2), number(3), number(7), number(8));
    let dtype = match words[4] {
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        _ => DType::F32,
    };
    let mode = LinearMode::ALL
        .into_iter()
        .find(|mode| format!("{mode:?}") == words[6])
        .expect("a mode");
    let gated = words[5] == "swiglu";
    let columns = if gated { 2 * n } else { n };
    let x = random(device, dtype, &[m, k], 1, 1.0)?;
    let scale = (k as f32).sqrt().recip();
    let w: Vec<AnyTensor> = (0..copies)
        .map(|i| random(device, dtype, &[columns, k], 2 + i, scale))
        .collect::<Result<_>>()?;
    let bias = random(device, dtype, &[columns], 99, 1.0)?;
    let y = AnyTensor::empty(device, dtype, &[m, n])?;
    let run = |w: &AnyTensor| -> Result<()> {
        let layer = linear(&x, w).mode(mode);
        match words[5] {
            "none" => layer.run_into(&y),
            "gelu-tanh" => layer.bias(&bias).activation(Activation::GeluTanh).run_into(&y),
            "gelu" => layer.bias(&bias).activation(Activation::GeluErf).run_into(&y),
            "swiglu" => layer.swiglu().run_into(&y),
            other => panic!("activation {other}"),
        }
    };
    run(&w[0])?;
    device.synchronize()?;
    let (graph, ()) = device.capture(|| (0..launches as usize).try_for_each(|i| run(&w[i % w.len()])))?;
    Ok((graph, launches as u32))
}

fn main() -> Result<()> {
    let device = Device::cuda(0)?;
    let mut case = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("standard input");
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first() {
            Some(&"case") => {
                case = None;
                match prepare(&device, &words) {
                    Ok(prepared) => {
                        case = Some(prepared);
                        println!("ready");
                    }
                    Err(error) => println!("error {error}"),
                }
            }
            Some(&"sample") => match &case {
                Some((graph, launches)) => {
                    let begin = device.stream().record()?;
                    graph.launch()?;
                    let end = device.stream().record()?;
                    device.synchronize()?;
                    println!("{}", end.elapsed_ms(&begin)? as f64 * 1e3 / *launches as f64);
                }
                None => println!("error no case"),
            },
            _ => println!("error {line}"),
        }
    }
    Ok(())
}
