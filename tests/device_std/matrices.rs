use crate::support::*;
use half::{bf16, f16};
use kernels_gpu::device_tests::matrices::{WGMMA_CASES, WgmmaCase};
use kernels_gpu::tile::fragment;

/// The bits of a small integer as f16 (0), bf16 (1) or tf32 (2).
fn bits(value: i32, kind: u8) -> u32 {
    match kind {
        0 => f16::from_f32(value as f32).to_bits() as u32,
        1 => bf16::from_f32(value as f32).to_bits() as u32,
        _ => (value as f32).to_bits(),
    }
}

/// Row and k of word `word`, part `part` of lane `lane` of an A fragment (B: its column takes the row's place, and its
/// words are those of A with `word % 2 = 0`).
fn a_place(kind: u8, lane: usize, word: usize, part: usize) -> (usize, usize) {
    let row = lane / 4 + word % 2 * 8;
    if kind == 2 {
        (row, word / 2 * 4 + lane % 4)
    } else {
        (row, word / 2 * 8 + lane % 4 * 2 + part)
    }
}

/// A lane's word of a fragment whose elements `element(row, k)` gives.
fn a_word(kind: u8, lane: usize, word: usize, element: impl Fn(usize, usize) -> i32) -> u32 {
    let parts = if kind == 2 { 1 } else { 2 };
    (0..parts)
        .map(|part| {
            let (row, k) = a_place(kind, lane, word, part);
            bits(element(row, k), kind) << (16 * part)
        })
        .sum()
}

#[test]
fn mma_multiplies() {
    for (entry, kind, depth, tiers) in [
        ("device_test_mma_m16n8k8_f16", 0, 8, ALL),
        ("device_test_mma_m16n8k16_f16", 0, 16, FROM_SM80),
        ("device_test_mma_m16n8k8_bf16", 1, 8, FROM_SM80),
        ("device_test_mma_m16n8k16_bf16", 1, 16, FROM_SM80),
        ("device_test_mma_m16n8k4_tf32", 2, 4, FROM_SM80),
        ("device_test_mma_m16n8k8_tf32", 2, 8, FROM_SM80),
    ] {
        // Small integers: every sum is exact, whatever its order.
        let mut random = Random(depth as u64 + kind as u64);
        let mut matrix = |rows: usize, columns: usize| -> Vec<Vec<i32>> {
            (0..rows)
                .map(|_| (0..columns).map(|_| random.small()).collect())
                .collect()
        };
        let (a, b, c) = (matrix(16, depth), matrix(depth, 8), matrix(16, 8));
        let words = depth / if kind == 2 { 2 } else { 4 };
        let mut input = Vec::new();
        for lane in 0..32 {
            input.extend((0..words).map(|word| a_word(kind, lane, word, |row, k| a[row][k])));
            input.extend((0..words / 2).map(|word| a_word(kind, lane, 2 * word, |column, k| b[k][column])));
            input.extend((0..4).map(|register| {
                let (row, column) = (
                    fragment::row(lane as u32, register),
                    fragment::column(lane as u32, register),
                );
                (c[row as usize][column as usize] as f32).to_bits()
            }));
        }
        for device in devices(tiers) {
            let output = launch(&device, entry, [1; 3], 0, &bytes_of(&input), 128);
            for (at, found) in (0u32..).zip(output) {
                let (lane, register) = (at / 4, at % 4);
                let row = fragment::row(lane, register) as usize;
                let column = fragment::column(lane, register) as usize;
                let expected = c[row][column] + (0..depth).map(|k| a[row][k] * b[k][column]).sum::<i32>();
                assert_eq!(
                    f32::from_bits(found),
                    expected as f32,
                    "{entry}: row {row}, column {column}"
                );
            }
        }
    }
}

#[test]
fn ldmatrix_distributes_rows_and_columns() {
    let input = Random(8).bytes(512);
    let halves: Vec<u16> = input
        .chunks_exact(2)
        .map(|half| u16::from_le_bytes([half[0], half[1]]))
        .collect();
    let element = |matrix: usize, row: usize, column: usize| halves[(8 * matrix + row) * 8 + column] as u32;
    for device in devices(ALL) {
        let words = launch(&device, "device_test_ldmatrix", [1; 3], 512, &input, 32 * 14);
        for (lane, row) in words.chunks_exact(14).enumerate() {
            let (r, p) = (lane / 4, lane % 4);
            let plain = |m| element(m, r, 2 * p) | element(m, r, 2 * p + 1) << 16;
            let transposed = |m| element(m, 2 * p, r) | element(m, 2 * p + 1, r) << 16;
            let expected: Vec<u32> = [0, 0, 1, 0, 1, 2, 3]
                .into_iter()
                .map(plain)
                .chain([0, 0, 1, 0, 1, 2, 3].into_iter().map(transposed))
                .collect();
            assert_eq!(row, expected, "lane {lane}");
        }
    }
}

#[test]
fn stmatrix_gathers_rows_and_columns() {
    let input = Random(9).bytes(512);
    let words = words_of(&input);
    let mut expected = vec![0u16; 6 * 256];
    for (region, (matrices, transposed)) in [(1, false), (2, false), (4, false), (1, true), (2, true), (4, true)]
        .into_iter()
        .enumerate()
    {
        for (lane, m, part) in (0..32 * matrices * 2).map(|i| (i / 2 / matrices, i / 2 % matrices, i % 2)) {
            let (r, c) = (lane / 4, lane % 4 * 2 + part);
            let (row, column) = if transposed { (c, r) } else { (r, c) };
            expected[256 * region + (8 * m + row) * 8 + column] = (words[4 * lane + m] >> (16 * part)) as u16;
        }
    }
    for device in devices(SM90) {
        let output = launch(&device, "device_test_stmatrix", [1; 3], 3072, &input, 6 * 128);
        let halves: Vec<u16> = output
            .iter()
            .flat_map(|word| [*word as u16, (word >> 16) as u16])
            .collect();
        assert_eq!(halves, expected);
    }
}

#[test]
fn wgmma_multiplies() {
    for device in devices(SM90) {
        for case in WGMMA_CASES {
            wgmma(&device, case);
        }
    }
}

fn wgmma(device: &host::Device, case: &WgmmaCase) {
    let &WgmmaCase { n, k, kind, .. } = case;
    let mut random = Random(n as u64 + k as u64);
    let mut matrix =
        |rows: u32| -> Vec<Vec<i32>> { (0..rows).map(|_| (0..k).map(|_| random.small()).collect()).collect() };
    // B by columns: b[n][k].
    let (a, b) = (matrix(64), matrix(n));

    let b_at = case.a.bytes().next_multiple_of(1024);
    let mut input = vec![0u8; (b_at + case.b.bytes()) as usize];
    let element_bytes = if kind == 2 { 4 } else { 2 };
    let mut place = |offset: u32, value: i32| {
        let at = offset as usize;
        input[at..at + element_bytes].copy_from_slice(&bits(value, kind).to_le_bytes()[..element_bytes]);
    };
    for at in 0..k {
        for (m, row) in (0..).zip(&a) {
            let offset = if case.transpose_a {
                case.a.offset(at, m)
            } else {
                case.a.offset(m, at)
            };
            place(offset, row[at as usize]);
        }
        for (n, column) in (0..).zip(&b) {
            let offset = if case.transpose_b {
                case.b.offset(at, n)
            } else {
                case.b.offset(n, at)
            };
            place(b_at + offset, column[at as usize]);
        }
    }
    let shared = input.len() as u64;
    let step_depth = if kind == 2 { 8 } else { 16 };
    for thread in 0..128 {
        for step in 0..(k as usize / step_depth) {
            for word in 0..4 {
                let element = |row: usize, at: usize| a[16 * (thread / 32) + row][step * step_depth + at];
                input.extend(a_word(kind, thread % 32, word, element).to_le_bytes());
            }
        }
    }

    let registers = n as usize / 2;
    let output = launch(device, case.entry, [1; 3], shared, &input, 128 * registers);
    for (thread, row) in (0u32..).zip(output.chunks_exact(registers)) {
        for (register, &found) in (0u32..).zip(row) {
            let m = fragment::warpgroup_row(thread, register) as usize;
            let n = fragment::column(thread % 32, register) as usize;
            let expected = 2 * (0..k as usize).map(|at| a[m][at] * b[n][at]).sum::<i32>();
            assert_eq!(
                f32::from_bits(found),
                expected as f32,
                "{}: row {m}, column {n}",
                case.entry
            );
        }
    }
}
