use crate::support::*;
use half::{bf16, f16};
use kernels_gpu::device_tests::arithmetic::{HALF_SM80_WORDS, HALF_SM90_WORDS, HALF_WORDS, MATH_WORDS};

/// Three floats for each of 256 threads: x in −3 to 3, y positive, z anything of moderate size.
fn inputs(seed: u64) -> Vec<[f32; 3]> {
    let mut random = Random(seed);
    (0..256)
        .map(|_| {
            [
                random.between(-3.0, 3.0),
                random.between(0.01, 50.0),
                random.between(-900.0, 900.0),
            ]
        })
        .collect()
}

fn launch_rows(device: &host::Device, entry: &str, inputs: &[[f32; 3]], words: usize) -> Vec<u32> {
    let bits: Vec<u32> = inputs.iter().flatten().map(|x| x.to_bits()).collect();
    launch(
        device,
        entry,
        [inputs.len() as u64 / 64, 1, 1],
        0,
        &bytes_of(&bits),
        inputs.len() * words,
    )
}

#[track_caller]
fn close(found: u32, expected: f64, relative: f64, absolute: f64, what: &str) {
    let found = f32::from_bits(found) as f64;
    let allowed = relative * expected.abs() + absolute;
    assert!(
        (found - expected).abs() <= allowed,
        "{what}: {found}, expected {expected} ± {allowed}"
    );
}

/// `prmt` in its default mode.
fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
    u32::from_le_bytes(std::array::from_fn(|at| {
        let nibble = selector >> (4 * at) & 15;
        let byte = bytes[(nibble & 7) as usize];
        if nibble & 8 == 0 {
            byte
        } else {
            ((byte as i8) >> 7) as u8
        }
    }))
}

fn pair(bits: u32) -> [u16; 2] {
    [bits as u16, (bits >> 16) as u16]
}

fn packed(values: [u16; 2]) -> u32 {
    values[0] as u32 | (values[1] as u32) << 16
}

#[test]
fn arithmetic_is_as_exact_as_documented() {
    let inputs = inputs(4);
    for device in devices(ALL) {
        let words = launch_rows(&device, "device_test_math", &inputs, MATH_WORDS);
        for ([x, y, z], row) in inputs.iter().copied().zip(words.chunks_exact(MATH_WORDS)) {
            let (a, b, c) = (x.to_bits(), y.to_bits(), z.to_bits());
            let (xd, yd) = (x as f64, y as f64);
            let bit = 0.5f64.powi(22);
            assert_eq!(row[0], x.mul_add(y, z).to_bits(), "fma({x}, {y}, {z})");
            close(row[1], xd.exp2(), bit, 0.0, "ex2");
            close(row[2], yd.log2(), bit, bit, "lg2");
            close(row[3], xd.recip(), bit, 0.0, "rcp");
            close(row[4], yd.sqrt().recip(), 1.5 * bit, 0.0, "rsqrt");
            close(row[5], yd.sqrt(), 1.5 * bit, 0.0, "sqrt");
            assert_eq!(row[6], y.sqrt().to_bits(), "sqrt_rn({y})");
            close(row[7], xd.sin(), 0.0, 0.5f64.powi(20), "sin");
            close(row[8], xd.cos(), 0.0, 0.5f64.powi(20), "cos");
            close(row[9], xd.tanh(), 0.5f64.powi(10), 0.0, "tanh");
            let bits = [
                x.max(z).to_bits(),
                x.min(z).to_bits(),
                prmt(a, b, c),
                (a & b) | c,
                a ^ b ^ c,
                ((a as u64 >> (b % 32)) & ((1 << (c % 32)) - 1)) as u32,
                a >> 20,
                prmt(a, b, 0x5410),
            ];
            assert_eq!(row[10..], bits, "x {x}, y {y}, z {z}");
        }
    }
}

#[test]
fn half_precision_rounds_to_nearest() {
    let inputs = inputs(5);
    for device in devices(ALL) {
        let words = launch_rows(&device, "device_test_half", &inputs, HALF_WORDS);
        for ([x, y, z], row) in inputs.iter().copied().zip(words.chunks_exact(HALF_WORDS)) {
            let (p, q) = ([x, y].map(f16::from_f32), [y, z].map(f16::from_f32));
            let (u, v) = ([x, y].map(bf16::from_f32), [y, z].map(bf16::from_f32));
            let each = |op: &dyn Fn(f64, f64) -> f64| {
                packed([0, 1].map(|at| f16::from_f64(op(p[at].to_f64(), q[at].to_f64())).to_bits()))
            };
            let expected = [
                packed(p.map(f16::to_bits)),
                q[0].to_f32().to_bits(),
                q[1].to_f32().to_bits(),
                packed(u.map(bf16::to_bits)),
                v[0].to_f32().to_bits(),
                v[1].to_f32().to_bits(),
                each(&|p, q| p * q + p),
                each(&|p, q| p + q),
                each(&|p, q| p * q),
            ];
            assert_eq!(row[..9], expected, "x {x}, y {y}, z {z}");
            for (argument, (ex2, tanh)) in p.into_iter().zip(pair(row[9]).into_iter().zip(pair(row[10]))) {
                let argument = argument.to_f64();
                // What overflows counts as the largest.
                let value = |bits| f16::from_bits(bits).to_f32().min(65_504.0).to_bits();
                close(
                    value(ex2),
                    argument.exp2().min(65_504.0),
                    0.5f64.powf(9.9),
                    0.0,
                    "ex2.f16x2",
                );
                close(value(tanh), argument.tanh(), 0.0, 0.5f64.powf(10.9), "tanh.f16x2");
            }
        }
    }
}

#[test]
fn elements_of_every_type_convert() {
    let mut random = Random(13);
    let x: Vec<f32> = (0..512).map(|_| random.between(-100.0, 100.0)).collect();
    let f16s: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
    let bf16s: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
    let cases: [(&str, Vec<u8>, Vec<u8>); 3] = [
        (
            "device_test_elements_f32",
            x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            x.iter().flat_map(|x| x.mul_add(2.0, 1.0).to_le_bytes()).collect(),
        ),
        (
            "device_test_elements_f16",
            f16s.iter().flat_map(|x| x.to_le_bytes()).collect(),
            f16s.iter()
                .flat_map(|x| f16::from_f32(x.to_f32().mul_add(2.0, 1.0)).to_le_bytes())
                .collect(),
        ),
        (
            "device_test_elements_bf16",
            bf16s.iter().flat_map(|x| x.to_le_bytes()).collect(),
            bf16s
                .iter()
                .flat_map(|x| bf16::from_f32(x.to_f32().mul_add(2.0, 1.0)).to_le_bytes())
                .collect(),
        ),
    ];
    for device in devices(ALL) {
        for (entry, input, expected) in &cases {
            let (_, output) = launch_on(&device, entry, [1; 3], 0, input, &vec![0xFF; 3 * expected.len()]);
            assert_eq!(output, expected.repeat(3), "{entry} on {}", device.tier());
        }
    }
}

#[test]
fn half_precision_of_sm80() {
    let mut inputs = inputs(6);
    inputs[3][2] = f32::NAN;
    inputs[5][0] = f32::NAN;
    for device in devices(FROM_SM80) {
        let words = launch_rows(&device, "device_test_half_sm80", &inputs, HALF_SM80_WORDS);
        for ([x, y, z], row) in inputs.iter().copied().zip(words.chunks_exact(HALF_SM80_WORDS)) {
            let nan = x.is_nan() || z.is_nan();
            let (least, greatest) = (f32::from_bits(row[7]), f32::from_bits(row[6]));
            if nan {
                assert!(least.is_nan() && greatest.is_nan(), "min.NaN and max.NaN keep NaNs");
                continue;
            }
            assert_eq!((least, greatest), (x.min(z), x.max(z)));
            let (p, q) = ([x, y].map(f16::from_f32), [y, z].map(f16::from_f32));
            let (u, v) = ([x, y].map(bf16::from_f32), [y, z].map(bf16::from_f32));
            let fma = |at: usize| u[at].to_f64() * v[at].to_f64() + u[at].to_f64();
            let expected = [
                packed(p.map(f16::to_bits)),
                packed(u.map(bf16::to_bits)),
                packed([0, 1].map(|at| p[at].max(q[at]).to_bits())),
                packed([0, 1].map(|at| bf16::from_f64(fma(at)).to_bits())),
                packed([0, 1].map(|at| u[at].max(v[at]).to_bits())),
            ];
            assert_eq!(row[..5], expected, "x {x}, y {y}, z {z}");
            assert_eq!(row[5] >> 13, x.to_bits().wrapping_add(0x1000) >> 13, "tf32 of {x}");
            assert_eq!(row[8], v[0].to_f32().to_bits());
        }
    }
}

/// The value of an 8-bit float with `exponent` exponent bits.
fn small_float(code: u8, exponent: i32) -> f64 {
    let mantissa = 7 - exponent;
    let bias = (1 << (exponent - 1)) - 1;
    let e = (code & 0x7F) as i32 >> mantissa;
    let m = (code as i32 & ((1 << mantissa) - 1)) as f64 / (1 << mantissa) as f64;
    let value = if e == 0 {
        m * 2f64.powi(1 - bias)
    } else {
        (1.0 + m) * 2f64.powi(e - bias)
    };
    if code & 0x80 == 0 { value } else { -value }
}

/// The code nearest to `x`, ties to the even one; `largest` is the greatest finite code.
fn nearest(x: f32, exponent: i32, largest: u8) -> u8 {
    let magnitude = (0..=largest)
        .min_by(|&a, &b| {
            let distance = |code| (small_float(code, exponent) - x.abs() as f64).abs();
            distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1)))
        })
        .unwrap();
    magnitude | ((x.is_sign_negative() as u8) << 7)
}

#[test]
fn half_precision_and_fp8_of_sm90() {
    let mut inputs = inputs(7);
    inputs[0] = [1e-4, 0.0, -0.0];
    inputs[1] = [-465.0, 0.0009765625, 1e6];
    inputs[2] = [0.17578125, 17.0, -19.0];
    for device in devices(SM90) {
        let words = launch_rows(&device, "device_test_half_sm90", &inputs, HALF_SM90_WORDS);
        for ([x, y, z], row) in inputs.iter().copied().zip(words.chunks_exact(HALF_SM90_WORDS)) {
            let (u, v) = ([x, y].map(bf16::from_f32), [y, z].map(bf16::from_f32));
            let each = |op: &dyn Fn(f64, f64) -> f64| {
                packed([0, 1].map(|at| bf16::from_f64(op(u[at].to_f64(), v[at].to_f64())).to_bits()))
            };
            let e4m3 = [nearest(x, 4, 0x7E), nearest(y, 4, 0x7E)];
            let e5m2 = [nearest(y, 5, 0x7B), nearest(z, 5, 0x7B)];
            let expected = [
                each(&|u, v| u + v),
                each(&|u, v| u * v),
                u16::from_le_bytes(e4m3) as u32,
                u16::from_le_bytes(e5m2) as u32,
                packed(e4m3.map(|code| f16::from_f64(small_float(code, 4)).to_bits())),
                packed(e5m2.map(|code| f16::from_f64(small_float(code, 5)).to_bits())),
            ];
            assert_eq!(row, expected, "x {x}, y {y}, z {z}");
        }
    }
}
