use crate::support::*;

#[test]
fn indices_are_those_of_the_launch() {
    for device in devices(ALL) {
        let grid = [2u32, 3, 2];
        let words = launch(&device, "device_test_indices", [2, 3, 2], 1024, &[0; 16], 12 * 64 * 18);
        for (at, row) in words.chunks_exact(18).enumerate() {
            let (block, thread) = (at as u32 / 64, at as u32 % 64);
            let t = [thread % 8, thread / 8 % 4, thread / 32];
            let b = [block % 2, block / 2 % 3, block / 6];
            let lane = thread % 32;
            let global = b[0] * 8 + t[0] + ((2 * 8) << 16);
            let expected = [
                t.as_slice(),
                &[8, 4, 2],
                &b,
                &grid,
                &[lane, (1 << lane) - 1, 1024, 1, global, 1],
            ]
            .concat();
            assert_eq!(row, expected, "block {block}, thread {thread}");
        }
    }
}

#[test]
fn barriers_join_and_count() {
    for device in devices(ALL) {
        let words = launch(&device, "device_test_barriers", [1; 3], 512, &[0; 16], 128 * 8);
        for (thread, row) in (0u32..).zip(words.chunks_exact(8)) {
            let named = match thread / 32 {
                0 | 1 => 5 * (63 - thread),
                2 => 0,
                _ => 5 * (thread - 32),
            };
            assert_eq!(
                row,
                [3 * (127 - thread), 43, 1, 0, 1, 0, named, 7 * (thread ^ 1)],
                "thread {thread}"
            );
        }
    }
}

#[test]
fn warps_exchange() {
    // Warp 0 holds values below 100 with one 7; warp 1 holds one value, in all lanes, above 100.
    let x: Vec<u32> = (0..64).map(|t| if t < 32 { (t * 37 + 7) % 97 } else { 1234 }).collect();
    for device in devices(ALL) {
        let words = launch(&device, "device_test_warp", [1; 3], 0, &bytes_of(&x), 64 * 24);
        for (thread, row) in words.chunks_exact(24).enumerate() {
            let (warp, lane) = (thread / 32, thread % 32);
            let mine = &x[32 * warp..32 * warp + 32];
            let from_up = |delta: usize| if lane < delta { lane } else { lane - delta };
            let from_down = |delta: usize| if lane + delta > 31 { lane } else { lane + delta };
            let mask = |keep: &dyn Fn(u32) -> bool| {
                mine.iter()
                    .enumerate()
                    .map(|(l, &v)| (keep(v) as u32) << l)
                    .sum::<u32>()
            };
            let f = |l: usize| (32 * warp + l) as f32 * 0.5;
            let up = from_up(3);
            let idx = mine[lane] as usize % 32;
            let expected = [
                (32 * warp + up) as u32,
                mine[up],
                mine[from_down(5)],
                mine[lane ^ 6],
                (32 * warp + idx) as u32,
                mine[idx],
                f(lane ^ 16).to_bits(),
                warp as u32,
                (warp == 0) as u32,
                (warp == 0) as u32,
                mask(&|v| v % 2 == 0),
                mask(&|v| v % 4 == mine[lane] % 4),
                mask(&|v| v % 3 == mine[lane] % 3),
                1,
                (warp == 1) as u32,
                u32::MAX,
                (0..32).map(f).sum::<f32>().to_bits(),
                (lane / 4 * 4..lane / 4 * 4 + 4).map(f).sum::<f32>().to_bits(),
                (mine[lane / 8 * 8..lane / 8 * 8 + 8].iter().max().unwrap().to_owned() as f32).to_bits(),
                mine[lane / 16 * 16..lane / 16 * 16 + 16].iter().fold(0, |a, b| a ^ b),
                mine[1],
                mine[from_up(31)],
                mine[from_down(31)],
                warp as u32,
            ];
            assert_eq!(row, expected, "thread {thread}");
        }
    }
}

#[test]
fn redux_reduces_integers() {
    let mut random = Random(1);
    let x: Vec<u32> = (0..64)
        .map(|t| random.next() as u32 | if t < 32 { 0x40 } else { 0 })
        .collect();
    for device in devices(FROM_SM80) {
        let words = launch(&device, "device_test_redux", [1; 3], 0, &bytes_of(&x), 64 * 8);
        for (thread, row) in words.chunks_exact(8).enumerate() {
            let mine = &x[thread / 32 * 32..thread / 32 * 32 + 32];
            let signed = || mine.iter().map(|&v| v as i32);
            let expected = [
                mine.iter().fold(0, |a: u32, &b| a.wrapping_add(b)),
                *mine.iter().min().unwrap(),
                *mine.iter().max().unwrap(),
                signed().min().unwrap() as u32,
                signed().max().unwrap() as u32,
                mine.iter().fold(u32::MAX, |a, b| a & b),
                mine.iter().fold(0, |a, b| a | b),
                mine.iter().fold(0, |a, b| a ^ b),
            ];
            assert_eq!(row, expected, "thread {thread}");
        }
    }
}

#[test]
fn clusters_share() {
    for device in devices(SM90) {
        let words = launch(&device, "device_test_cluster", [4, 1, 1], 256, &[0; 4 * 64], 128 * 14);
        for (at, row) in (0u32..).zip(words.chunks_exact(14)) {
            let (block, lane) = (at / 32, at % 32);
            let (rank, other) = (block % 2, (block % 2) ^ 1);
            let (read, written) = (1000 * other + 31 - lane, 2000 * other + lane);
            let expected = [1, 1, rank, 2, rank, 0, block / 2, 0, 2, read, written, 1, 2, block];
            assert_eq!(row, expected, "block {block}, lane {lane}");
        }
    }
}

#[test]
fn registers_move_between_warpgroups() {
    for device in devices(SM90) {
        let words = launch(&device, "device_test_registers", [1; 3], 0, &[0; 16], 384);
        let expected: Vec<u32> = (0..384).map(|t| if t < 128 { t } else { t + 1000 }).collect();
        assert_eq!(words, expected);
    }
}
