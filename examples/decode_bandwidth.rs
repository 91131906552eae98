//! How near decode attention, RoPE and cache moves come to the speed of memory. Needs a GPU; prints one line a row.
//!
//! `cargo run --release --example decode_bandwidth`. Each row is captured into a CUDA graph of 10 launches; the median of 11
//! graphs is reported, with the bytes that must move (keys and values once) over the time.

use ferroflash::{
    AnyTensor, CacheView, DType, DecodeOptions, Device, DeviceKind, DeviceOptions, PoolLayout, Result, RopeAngles,
    RopePairing, Tensor, cache_append, cache_read, decode, rope, rope_table,
};

const REPEATS: u32 = 10;

/// Microseconds of `work`.
fn time(device: &Device, work: impl Fn() -> Result<()>) -> Result<f64> {
    work()?;
    device.synchronize()?;
    let (graph, ()) = device.capture(|| (0..REPEATS).try_for_each(|_| work()))?;
    let mut times = Vec::new();
    for _ in 0..12 {
        let begin = device.stream().record()?;
        graph.launch()?;
        let end = device.stream().record()?;
        end.synchronize()?;
        times.push(f64::from(end.elapsed_ms(&begin)?) * 1e3 / f64::from(REPEATS));
    }
    times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn report(name: &str, bytes: u64, microseconds: f64) {
    println!(
        "{name:<60} {microseconds:>10.2} us {:>8.3} TB/s",
        bytes as f64 / microseconds / 1e6
    );
}

fn filled(device: &Device, dtype: DType, shape: &[u64]) -> Result<AnyTensor> {
    let tensor = AnyTensor::empty(device, dtype, shape)?;
    tensor.fill_bytes(0x3c)?;
    Ok(tensor)
}

fn attention(
    device: &Device,
    batch: u64,
    length: u64,
    heads: (u64, u64),
    dim: u64,
    page: Option<(u64, PoolLayout)>,
) -> Result<()> {
    let q = filled(device, DType::BF16, &[batch, 1, heads.0, dim])?;
    let lengths = Tensor::from_slice(device, &vec![length as i32; batch as usize], &[batch])?;
    let (shape, columns) = match page {
        Some((page, PoolLayout::Nhd)) => ([batch * length / page, page, heads.1, dim], length / page),
        Some((page, PoolLayout::Hnd)) => ([batch * length / page, heads.1, page, dim], length / page),
        None => ([batch, length, heads.1, dim], 0),
    };
    let (k, v) = (
        filled(device, DType::BF16, &shape)?,
        filled(device, DType::BF16, &shape)?,
    );
    // A multiplicative shuffle of the pages.
    let pages = shape[0];
    let table: Vec<i32> = (0..batch * columns).map(|i| (i * 7_368_787 % pages) as i32).collect();
    let table = Tensor::from_slice(device, &table, &[batch, columns])?;
    let view = match page {
        Some((_, layout)) => CacheView::paged(&k, &v, &table).layout(layout),
        None => CacheView::contiguous(&k, &v),
    };
    let options = DecodeOptions {
        causal: true,
        ..DecodeOptions::default()
    };
    let us = time(device, || decode(&q, view, &lengths).options(options).run().map(|_| ()))?;
    let kind = page.map_or("contiguous".to_owned(), |(page, layout)| {
        format!("page {page} {layout:?}")
    });
    let name = format!(
        "decode B {batch} L {length} heads {}/{} D {dim} {kind}",
        heads.0, heads.1
    );
    report(&name, 2 * batch * length * heads.1 * dim * 2, us);
    Ok(())
}

fn moves(device: &Device, tokens: u64) -> Result<()> {
    let (hq, hkv, d) = (32, 8, 128);
    let q = filled(device, DType::BF16, &[1, tokens, hq, d])?;
    let k = filled(device, DType::BF16, &[1, tokens, hkv, d])?;
    let v = filled(device, DType::BF16, &[1, tokens, hkv, d])?;
    let pool = || filled(device, DType::BF16, &[tokens / 16, 16, hkv, d]);
    let (kc, vc) = (pool()?, pool()?);
    let frequencies: Vec<f32> = (0..64).map(|i| 10_000f32.powf(-f32::from(i as i16) / 64.0)).collect();
    let (cos, sin) = rope_table(device, tokens, &frequencies, 1.0)?;
    let computed = ferroflash::RopeFrequencies::new(device, &frequencies, 1.0)?;
    let pages = tokens / 16;
    let slots: Vec<i64> = (0..tokens)
        .map(|t| ((t / 16 * 7_368_787 % pages) * 16 + t % 16) as i64)
        .collect();
    let slots = Tensor::from_slice(device, &slots, &[tokens])?;
    let table: Vec<i32> = (0..pages).map(|i| (i * 7_368_787 % pages) as i32).collect();
    let table = Tensor::from_slice(device, &table, &[1, pages])?;
    let lengths = Tensor::from_slice(device, &[tokens as i32], &[1])?;
    let view = CacheView::paged(&kc, &vc, &table);
    let kv = 2 * tokens * hkv * d * 2;
    let both = tokens * (hq + hkv) * d * 2;
    for (name, angles) in [
        ("table", RopeAngles::Table { cos: &cos, sin: &sin }),
        ("in-kernel", RopeAngles::Frequencies(&computed)),
    ] {
        let us = time(device, || {
            rope(&q, RopePairing::HalfSplit, angles)
                .k(&k)
                .in_place()
                .run()
                .map(|_| ())
        })?;
        report(&format!("rope {name} {tokens} tokens, in place"), 2 * both, us);
    }
    let angles = RopeAngles::Frequencies(&computed);
    let us = time(device, || {
        rope(&q, RopePairing::HalfSplit, angles)
            .k(&k)
            .in_place()
            .append(&v, view, &slots)
            .run()
            .map(|_| ())
    })?;
    report(&format!("rope + append {tokens} tokens"), 2 * both + kv, us);
    let flat = |t: &AnyTensor| t.reshape(&[tokens, hkv, d]);
    let (kf, vf) = (flat(&k)?, flat(&v)?);
    let us = time(device, || cache_append(&kf, &vf, view, &slots))?;
    report(&format!("append {tokens} tokens"), 2 * kv, us);
    let us = time(device, || cache_read(view, &lengths, tokens).map(|_| ()))?;
    report(&format!("read {tokens} tokens"), 2 * kv, us);
    Ok(())
}

fn main() -> Result<()> {
    let device = Device::with_options(Some(DeviceKind::Cuda(0)), DeviceOptions::default())?;
    println!("{device}");
    let full = std::env::args().len() < 2;
    let nhd = |page| Some((page, PoolLayout::Nhd));
    for (batch, length) in [
        (1, 1024),
        (1, 4096),
        (1, 131_072),
        (16, 4096),
        (64, 4096),
        (16, 16_384),
        (64, 16_384),
    ] {
        attention(&device, batch, length, (32, 8), 128, None)?;
        if full {
            attention(&device, batch, length, (32, 8), 128, nhd(16))?;
            attention(&device, batch, length, (32, 8), 128, nhd(256))?;
            attention(&device, batch, length, (32, 8), 128, Some((16, PoolLayout::Hnd)))?;
        }
    }
    if full {
        attention(&device, 16, 4096, (32, 32), 128, nhd(16))?;
        attention(&device, 64, 8192, (32, 1), 128, nhd(16))?;
        attention(&device, 32, 8192, (32, 8), 64, nhd(16))?;
        attention(&device, 32, 4096, (32, 8), 256, nhd(16))?;
        for tokens in [16_384, 65_536] {
            moves(&device, tokens)?;
        }
    }
    Ok(())
}
