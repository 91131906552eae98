//! RoPE frequencies against values computed by hand from the formulas in the papers, in double precision.

use models::{RopeConfig, RopeScaling};

fn close(found: f32, expected: f64, what: &str) {
    let error = (f64::from(found) - expected).abs() / expected.abs();
    assert!(
        error < 1e-6,
        "{what}: {found} for {expected}, relative error {error:.1e}"
    );
}

fn check(config: &RopeConfig, length: usize, expected: &[(usize, f64)], factor: f64) {
    let f = config.frequencies(length);
    assert_eq!(f.inv_freq.len(), config.rotary_dim / 2);
    for &(i, value) in expected {
        close(f.inv_freq[i], value, &format!("pair {i} of {config:?}"));
    }
    close(f.attention_factor, factor, "attention factor");
}

fn config(theta: f64, rotary_dim: usize, scaling: RopeScaling) -> RopeConfig {
    RopeConfig {
        theta,
        rotary_dim,
        scaling,
    }
}

#[test]
fn without_scaling_wavelengths_are_a_geometric_series() {
    let c = config(10_000.0, 128, RopeScaling::Default);
    check(
        &c,
        1,
        &[(0, 1.0), (1, 8.659643234e-1), (32, 1e-2), (63, 1.154781985e-4)],
        1.0,
    );
    assert!(!c.depends_on_length(1, 1 << 20));
}

#[test]
fn linear_divides_every_frequency() {
    let c = config(10_000.0, 128, RopeScaling::Linear { factor: 4.0 });
    check(&c, 9, &[(0, 0.25), (32, 2.5e-3), (63, 2.886954962e-5)], 1.0);
}

#[test]
fn dynamic_changes_the_base_only_beyond_the_trained_length() {
    let c = config(
        10_000.0,
        128,
        RopeScaling::Dynamic {
            factor: 2.0,
            max_positions: 4096,
        },
    );
    check(&c, 4096, &[(1, 8.659643234e-1), (63, 1.154781985e-4)], 1.0);
    // Base 10000 · (2·6000/4096 − 1)^(128/126) = 19499.2776.
    check(
        &c,
        6000,
        &[
            (0, 1.0),
            (1, 8.569756075e-1),
            (32, 7.161281383e-3),
            (63, 5.984295305e-5),
        ],
        1.0,
    );
    assert!(c.depends_on_length(4096, 4097) && c.depends_on_length(5000, 5001) && !c.depends_on_length(1, 4096));
}

/// Qwen2.5 at 128 k: the ramp goes from pair 23 to pair 40.
#[test]
fn yarn_keeps_high_frequencies_and_divides_low_ones() {
    let c = config(1e6, 128, yarn(4.0, 32_768, None, None, true));
    let expected = [
        (0, 1.0),
        (23, 6.978305849e-3),
        (24, 5.375321491e-3),
        (30, 1.064360981e-3),
        (39, 6.490394321e-5),
        (40, 4.445698525e-5),
        (63, 3.102344402e-7),
    ];
    check(&c, 1, &expected, 1.138629436111989);
}

/// The ramp of gpt-oss, whose ends are not rounded to whole pairs.
#[test]
fn yarn_without_truncation_and_with_weights_of_the_logarithm() {
    let c = config(150_000.0, 64, yarn(32.0, 4096, None, None, false));
    let expected = [
        (8, 5.081327482e-2),
        (9, 3.170569618e-2),
        (12, 6.794959490e-3),
        (17, 1.293187012e-4),
        (18, 3.830881237e-5),
        (31, 3.023511428e-7),
    ];
    check(&c, 1, &expected, 1.0 + 0.1 * 32f64.ln());
    let weighted = config(10_000.0, 64, yarn(40.0, 4096, Some(1.0), Some(0.8), true));
    close(
        weighted.frequencies(1).attention_factor,
        1.0569662567531275,
        "attention factor with mscale",
    );
    // A weight of 0 means that it is not set.
    let zero = config(10_000.0, 64, yarn(40.0, 4096, Some(1.0), Some(0.0), true));
    close(
        zero.frequencies(1).attention_factor,
        1.0 + 0.1 * 40f64.ln(),
        "attention factor without mscale_all_dim",
    );
}

fn yarn(factor: f64, original: usize, mscale: Option<f64>, all: Option<f64>, truncate: bool) -> RopeScaling {
    RopeScaling::Yarn {
        factor,
        original_max_positions: original,
        attention_factor: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale,
        mscale_all_dim: all,
        truncate,
    }
}

#[test]
fn longrope_takes_its_divisors_by_length_and_scales_by_the_logarithms() {
    let (short, long) = (vec![1.0, 1.5, 2.0, 3.0], vec![1.25, 2.0, 4.0, 8.0]);
    let scaling = RopeScaling::LongRope {
        short_factor: short,
        long_factor: long,
        factor: 32.0,
        original_max_positions: 4096,
        attention_factor: None,
    };
    let c = config(10_000.0, 8, scaling);
    // ln 32 / ln 4096 = 5/12.
    let factor = (17.0f64 / 12.0).sqrt();
    check(
        &c,
        4096,
        &[(0, 1.0), (1, 0.1 / 1.5), (2, 0.01 / 2.0), (3, 0.001 / 3.0)],
        factor,
    );
    check(
        &c,
        4097,
        &[(0, 0.8), (1, 0.1 / 2.0), (2, 0.01 / 4.0), (3, 0.001 / 8.0)],
        factor,
    );
    assert!(c.depends_on_length(4096, 4097) && !c.depends_on_length(4097, 9999) && !c.depends_on_length(1, 4096));
}

#[test]
fn llama3_blends_between_its_two_wavelengths() {
    let llama3 = |factor| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    let of_8b = [
        (0, 1.0),
        (20, 1.656044008e-2),
        (28, 3.211445995e-3),
        (29, 2.166570764e-3),
        (31, 8.567514129e-4),
        (34, 1.785078128e-4),
        (35, 9.556212354e-5),
        (63, 3.068925989e-7),
    ];
    check(&config(500_000.0, 128, llama3(8.0)), 1, &of_8b, 1.0);
    let of_1b = [
        (14, 3.211445995e-3),
        (15, 1.290547928e-3),
        (16, 4.295567966e-4),
        (17, 9.708287803e-5),
        (31, 9.418306725e-8),
    ];
    check(&config(500_000.0, 64, llama3(32.0)), 1, &of_1b, 1.0);
}

#[test]
fn tables_hold_cosine_and_sine_of_the_rounded_angle_times_the_attention_factor() {
    let f = config(1e6, 128, yarn(4.0, 32_768, None, None, true)).frequencies(1);
    let (cos, sin) = f.cos_sin([0, 1, 100_000]);
    assert_eq!((cos.len(), sin.len()), (3 * 64, 3 * 64));
    assert!(cos[..64].iter().all(|c| *c == f.attention_factor) && sin[..64].iter().all(|s| *s == 0.0));
    let angle = f64::from(100_000f32 * f.inv_freq[5]);
    close(cos[2 * 64 + 5], angle.cos() * f64::from(f.attention_factor), "cosine");
    close(
        sin[64 + 1],
        f64::from(f.inv_freq[1]).sin() * f64::from(f.attention_factor),
        "sine",
    );
}
