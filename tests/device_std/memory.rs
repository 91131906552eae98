use crate::support::*;
use host::Tier;
use kernels_gpu::device_tests::memory::{COPY_BYTES, GLOBAL_COPIES, SHARED_COPIES};

#[test]
fn global_loads_and_stores_move_every_size() {
    let input = Random(2).bytes(COPY_BYTES as usize);
    for device in devices(ALL) {
        let copies = GLOBAL_COPIES as usize + 2 * (device.tier() != Tier::Sm75) as usize;
        let output = vec![0; (copies + 1) * input.len()];
        let (_, output) = launch_on(&device, "device_test_global", [1; 3], 0, &input, &output);
        for (copy, image) in output.chunks_exact(input.len()).enumerate() {
            if copy < copies {
                assert_eq!(image, input, "copy {copy} on {}", device.tier());
            } else {
                assert!(image.iter().all(|&byte| byte == 0), "written beyond the last copy");
            }
        }
    }
}

#[test]
fn shared_loads_and_stores_move_every_size() {
    let input = Random(3).bytes(COPY_BYTES as usize);
    for device in devices(ALL) {
        let output = vec![0xFF; SHARED_COPIES as usize * input.len() + 64 * 16];
        let shared = 2 * COPY_BYTES;
        let (_, output) = launch_on(&device, "device_test_shared", [1; 3], shared, &input, &output);
        let (images, rows) = output.split_at(SHARED_COPIES as usize * input.len());
        for image in images.chunks_exact(input.len()) {
            assert_eq!(image, input);
        }
        for (thread, row) in (0u32..).zip(words_of(rows).chunks_exact(4)) {
            let quad = 4 * (thread % 16) + 7;
            assert_eq!(row, [quad, quad + 3, (thread ^ 1) + 7, 12], "thread {thread}");
        }
    }
}

#[test]
fn atomics_lose_nothing() {
    let mut cells = [0u64; 24];
    cells[4] = u32::MAX as u64;
    cells[7] = i32::MIN as u32 as u64;
    cells[8] = u64::MAX;
    cells[10] = u32::MAX as u64;
    cells[17] = 1;
    let input: Vec<u8> = cells.iter().flat_map(|cell| cell.to_le_bytes()).collect();

    let product = (0..128).fold(1u64, |product, _| product * 3 % 65521);
    let expected: [(usize, u64); 20] = [
        (0, 384),
        (1, -256i32 as u32 as u64),
        (2, 128 << 33),
        (3, 64f32.to_bits() as u64),
        (4, 10),
        (5, 137),
        (6, -127i32 as u32 as u64),
        (7, -5i32 as u32 as u64),
        (8, 1 << 32),
        (9, 128 << 32),
        (10, 0xFFFF_0000),
        (11, 0xFFFF),
        (12, (1..=128).fold(0, |a, b| a ^ b)),
        (13, 28),
        (14, 72),
        (17, product),
        (18, 128 * ((1 << 40) + 1)),
        (19, 42),
        (20, 43 << 32),
        (21, 2),
    ];
    for device in devices(ALL) {
        let output = vec![0xFF; 24 * 8 + 128 * 4];
        let (input, output) = launch_on(&device, "device_test_atomics", [2, 1, 1], 16, &input, &output);
        let (seen, possible) = output.split_at(24 * 8);
        assert_eq!(seen, input, "the last block does not see what was done before");
        assert_eq!(
            words_of(possible),
            [1; 128],
            "an operation returned an impossible value"
        );
        let cell = |at: usize| u64::from_le_bytes(input[8 * at..8 * at + 8].try_into().unwrap());
        for (at, value) in expected {
            assert_eq!(cell(at), value, "cell {at} on {}", device.tier());
        }
        assert!((1..=128).contains(&cell(15)));
        assert!(cell(16) % (1 << 35) == 0 && (1..=128).contains(&(cell(16) >> 35)));
    }
}

#[test]
fn shared_atomics_lose_nothing() {
    for device in devices(ALL) {
        let words = launch(&device, "device_test_shared_atomics", [1; 3], 128, &[0; 16], 10);
        let expected = [2016, 16f32.to_bits(), 126, 0xFF, -63i32 as u32, 64, 77, 78, 5, 64];
        assert_eq!(words, expected);
    }
}
