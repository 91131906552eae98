//! Matrix products and attention.

use host::{
    AnyTensor,
    DType::{self, BF16, F16, F32},
    Result, Tier,
    ops::{LinearMode, WeightLayout, attention, linear},
};

use super::{Bed, Case, FLOATS, case};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = fma_and_streaming();
    cases.extend(tensor_cores());
    cases.extend(attentions());
    cases.extend(gradients());
    cases
}

const HALVES: [DType; 2] = [F16, BF16];

fn fma_and_streaming() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        cases.push(case(
            "linear",
            format!("FMA, 5×70×33 {dtype} with bias and GELU"),
            move |bed| {
                let (x, w, b) = (
                    bed.floats(dtype, &[5, 33])?,
                    bed.floats(dtype, &[70, 33])?,
                    bed.floats(dtype, &[70])?,
                );
                Ok(vec![linear(&x, &w).bias(&b).gelu().mode(LinearMode::Fma).run()?])
            },
        ));
        cases.push(case("linear", format!("few rows, 3×72×64 {dtype}"), move |bed| {
            let (x, w) = (bed.floats(dtype, &[3, 64])?, bed.floats(dtype, &[72, 64])?);
            Ok(vec![linear(&x, &w).mode(LinearMode::Streaming).run()?])
        }));
        cases.push(case(
            "linear",
            format!("few rows, weight [k, n], 3×72×64 {dtype}"),
            move |bed| {
                let (x, w) = (bed.floats(dtype, &[3, 64])?, bed.floats(dtype, &[64, 72])?);
                let call = linear(&x, &w).layout(WeightLayout::Kn);
                Ok(vec![call.mode(LinearMode::Streaming).run()?])
            },
        ));
    }
    // Few columns and many, up to eight rows, sixteen and sixty-four: a kernel each.
    for dtype in HALVES {
        // Whole tiles have kernels of their own.
        for (m, n) in [(3, 72), (11, 72), (40, 72), (3, 80)] {
            cases.push(case(
                "linear",
                format!("behind a norm, {m}×{n}×64 {dtype}"),
                move |bed| {
                    let (x, w, factor) = (
                        bed.floats(dtype, &[m, 64])?,
                        bed.floats(dtype, &[n, 64])?,
                        bed.floats(dtype, &[64])?,
                    );
                    Ok(vec![
                        linear(&x, &w)
                            .rms_norm(&factor, 1e-5)
                            .mode(LinearMode::Streaming)
                            .run()?,
                    ])
                },
            ));
        }
        for (m, n, k) in [
            (11, 72, 64),
            (40, 72, 64),
            (1, 8200, 8),
            (9, 8200, 8),
            (11, 2200, 1608),
            (3, 2128, 64),
            (2, 32, 4160),
            (11, 32, 1600),
            (11, 32, 2688),
        ] {
            cases.push(case("linear", format!("streaming, {m}×{n}×{k} {dtype}"), move |bed| {
                let (x, w) = (bed.floats(dtype, &[m, k])?, bed.floats(dtype, &[n, k])?);
                Ok(vec![linear(&x, &w).mode(LinearMode::Streaming).run()?])
            }));
        }
        cases.push(case(
            "linear",
            format!("streaming, 11 rows, 32 columns a multiprocessor, {dtype}"),
            move |bed| {
                let n = 32 * u64::from(bed.device().properties().multiprocessors);
                let (x, w) = (bed.floats(dtype, &[11, 1600])?, bed.floats(dtype, &[n, 1600])?);
                Ok(vec![linear(&x, &w).mode(LinearMode::Streaming).run()?])
            },
        ));
    }
    cases
}

fn tensor_cores() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in HALVES {
        // Tiles of 64, 128 and 192 columns, stored by TMA.
        for (m, n) in [(64, 64), (256, 128), (256, 192), (512, 384)] {
            cases.push(case(
                "linear",
                format!("whole tiles, {m}×{n}×72 {dtype}"),
                move |bed| {
                    let (x, w) = (bed.floats(dtype, &[m, 72])?, bed.floats(dtype, &[n, 72])?);
                    Ok(vec![linear(&x, &w).mode(LinearMode::Hopper).run()?])
                },
            ));
        }
        // Tiles of both widths, several a cluster.
        cases.push(case(
            "linear",
            format!("cooperative, 400×600×200 {dtype}"),
            move |bed| {
                let (x, w) = (bed.floats(dtype, &[400, 200])?, bed.floats(dtype, &[600, 200])?);
                Ok(vec![linear(&x, &w).mode(LinearMode::HopperCooperative).run()?])
            },
        ));
        for (m, n) in [(70, 72), (400, 200)] {
            cases.push(case(
                "linear",
                format!("weight [k, n], {m}×{n}×72 {dtype} with a residual"),
                move |bed| {
                    let (x, w) = (bed.floats(dtype, &[m, 72])?, bed.floats(dtype, &[72, n])?);
                    let residual = bed.floats(dtype, &[m, n])?;
                    let call = linear(&x, &w).layout(WeightLayout::Kn).residual(&residual);
                    Ok(vec![call.mode(LinearMode::Hopper).run()?])
                },
            ));
        }
        for (mode, m, n, k) in [
            (LinearMode::Tiled, 70, 72, 64),
            (LinearMode::Tiled, 120, 392, 40),
            (LinearMode::Tiled, 250, 392, 40),
            (LinearMode::Hopper, 70, 72, 64),
            (LinearMode::Hopper, 400, 200, 72),
        ] {
            cases.push(case(
                "linear",
                format!("{mode:?}, {m}×{n}×{k} {dtype} with a residual"),
                move |bed| {
                    let (x, w, r) = (
                        bed.floats(dtype, &[m, k])?,
                        bed.floats(dtype, &[n, k])?,
                        bed.floats(dtype, &[m, n])?,
                    );
                    Ok(vec![linear(&x, &w).residual(&r).mode(mode).run()?])
                },
            ));
            cases.push(case(
                "linear",
                format!("{mode:?}, weight [k, n], {m}×{n}×{k} {dtype}"),
                move |bed| {
                    let (x, w) = (bed.floats(dtype, &[m, k])?, bed.floats(dtype, &[k, n])?);
                    Ok(vec![linear(&x, &w).layout(WeightLayout::Kn).mode(mode).run()?])
                },
            ));
            if mode == LinearMode::Tiled {
                cases.push(case(
                    "linear",
                    format!("{mode:?}, both across k, {m}×{n}×{k} {dtype}"),
                    move |bed| {
                        let m = u64::next_multiple_of(m, 8);
                        let (x, w) = (
                            bed.floats(dtype, &[k, m])?.transpose(0, 1)?,
                            bed.floats(dtype, &[k, n])?,
                        );
                        Ok(vec![linear(&x, &w).layout(WeightLayout::Kn).mode(mode).run()?])
                    },
                ));
            }
        }
        for mode in [LinearMode::Tiled, LinearMode::Hopper] {
            cases.push(case(
                "linear",
                format!("{mode:?}, SwiGLU and what enters it, 24×64×64 {dtype}"),
                move |bed| {
                    let (x, w) = (bed.floats(dtype, &[24, 64])?, bed.floats(dtype, &[128, 64])?);
                    let (y, z) = linear(&x, &w).swiglu().mode(mode).run_with_pre_activation()?;
                    Ok(vec![y, z])
                },
            ));
        }
    }
    cases
}

/// Q of one shape, K and V of another.
fn operands(bed: &Bed, dtype: DType, q: &[u64], kv: &[u64]) -> Result<[AnyTensor; 3]> {
    Ok([bed.floats(dtype, q)?, bed.floats(dtype, kv)?, bed.floats(dtype, kv)?])
}

fn attentions() -> Vec<Case> {
    let mut cases = Vec::new();
    let dims = |dtype| {
        if dtype == F32 {
            &[64, 128, 256][..]
        } else {
            &[64, 96, 128, 192, 256]
        }
    };
    for dtype in FLOATS {
        for &dim in dims(dtype) {
            cases.push(case(
                "attention",
                format!("causal, 70 × 90, head dim {dim}, {dtype}"),
                move |bed| {
                    let [q, k, v] = operands(bed, dtype, &[1, 70, 2, dim], &[1, 90, 1, dim])?;
                    let result = attention(&q, &k, &v).causal().run()?;
                    Ok(vec![result.out, result.lse])
                },
            ));
            cases.push(case(
                "attention",
                format!("window and softcap, 33 × 50, head dim {dim}, {dtype}"),
                move |bed| {
                    let [q, k, v] = operands(bed, dtype, &[1, 33, 1, dim], &[1, 50, 1, dim])?;
                    let call = attention(&q, &k, &v).window(Some(20), Some(0)).softcap(30.0);
                    let result = call.run()?;
                    Ok(vec![result.out, result.lse])
                },
            ));
        }
    }
    // Every tile that Hopper has for these head dims, whatever the lengths would choose.
    for dtype in HALVES {
        for (dim, rows, keys) in [
            (64, 192, 112),
            (64, 256, 64),
            (64, 128, 64),
            (128, 128, 128),
            (128, 192, 80),
        ] {
            cases.push(case(
                "attention",
                format!("causal, 150 × 100 in tiles of {rows} × {keys}, head dim {dim}, {dtype}"),
                move |bed| {
                    let [q, k, v] = operands(bed, dtype, &[1, 150, 1, dim], &[1, 100, 1, dim])?;
                    let mut call = attention(&q, &k, &v).causal();
                    if q.device().tier() == Tier::Sm90a {
                        call = call.block_m(rows).block_n(keys);
                    }
                    let result = call.run()?;
                    Ok(vec![result.out, result.lse])
                },
            ));
        }
    }
    cases.push(case(
        "attention",
        "2 sequences, grouped heads, 20 × 300, head dim 128, bf16",
        |bed| {
            let [q, k, v] = operands(bed, BF16, &[2, 20, 4, 128], &[2, 300, 2, 128])?;
            let result = attention(&q, &k, &v).run()?;
            Ok(vec![result.out, result.lse])
        },
    ));
    cases.push(case(
        "attention",
        "packed sequences of 9 and 40, head dim 64, f16",
        |bed| {
            let [q, k, v] = operands(bed, F16, &[49, 2, 64], &[49, 1, 64])?;
            let ends = bed.integers(&[0, 9, 49], &[3])?;
            let result = attention(&q, &k, &v).cu_seqlens(&ends, &ends, 40, 40).causal().run()?;
            Ok(vec![result.out, result.lse])
        },
    ));
    cases
}

fn gradients() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in FLOATS {
        for dim in [64, 128, 256] {
            for extended in [false, true] {
                let what = if extended {
                    "window, softcap, sinks and dropout"
                } else {
                    "causal"
                };
                cases.push(case(
                    "attention-backward",
                    format!("{what}, grouped heads, 35 × 50, head dim {dim}, {dtype}"),
                    move |bed| {
                        let (q, grad) = (
                            bed.floats(dtype, &[1, 35, 2, dim])?,
                            bed.floats(dtype, &[1, 35, 2, dim])?,
                        );
                        let (k, v) = (
                            bed.floats(dtype, &[1, 50, 1, dim])?,
                            bed.floats(dtype, &[1, 50, 1, dim])?,
                        );
                        let sinks = bed.floats(F32, &[2])?;
                        let call = attention(&q, &k, &v);
                        let call = if extended {
                            call.window(Some(20), Some(0))
                                .softcap(30.0)
                                .sinks(&sinks)
                                .dropout(0.2, 7, 1)
                        } else {
                            call.causal()
                        };
                        let gradients = call.run_with_context()?.backward(&grad)?;
                        let all = [gradients.dq, gradients.dk, gradients.dv];
                        Ok(all.into_iter().chain(gradients.dsinks).collect())
                    },
                ));
            }
        }
    }
    for dtype in HALVES {
        for causal in [false, true] {
            for dim in [64, 128, 256] {
                cases.push(packed_gradients(dtype, dim, causal));
            }
        }
        // Two stages of rows of 256 need more shared memory than GPUs of sm_80 have, and as much as Blackwell has.
        cases.push(packed_gradients(dtype, 256, true).on(Tier::Sm80, 227 << 10));
    }
    cases
}

/// Several tiles of keys add to the same rows of dQ.
fn packed_gradients(dtype: DType, dim: u64, causal: bool) -> Case {
    case(
        "attention-backward",
        format!("packed sequences of 140 and 9, 270 keys and 130, head dim {dim}, causal {causal}, {dtype}"),
        move |bed| {
            let (q, grad) = (bed.floats(dtype, &[149, 1, dim])?, bed.floats(dtype, &[149, 1, dim])?);
            let (k, v) = (bed.floats(dtype, &[400, 1, dim])?, bed.floats(dtype, &[400, 1, dim])?);
            let (ends, key_ends) = (bed.integers(&[0, 140, 149], &[3])?, bed.integers(&[0, 270, 400], &[3])?);
            let call = attention(&q, &k, &v).cu_seqlens(&ends, &key_ends, 140, 270);
            let call = if causal { call.causal() } else { call };
            let gradients = call.run_with_context()?.backward(&grad)?;
            Ok(vec![gradients.dq, gradients.dk, gradients.dv])
        },
    )
}
