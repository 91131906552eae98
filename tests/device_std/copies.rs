use crate::support::*;
use half::{bf16, f16};
use host::launch::Contract;
use host::tensor_map::{Swizzle, TensorMapRequest};
use host::{AnyTensor, DType, Device};
use kernels_gpu::device_tests::TensorMapTestParams;
use kernels_gpu::device_tests::copies::{BULK_BYTES, CP_ASYNC_BYTES, RING_STAGES, RING_TILE_WORDS, RING_TILES};

#[test]
fn cp_async_copies_and_fills_with_zeros() {
    let input = Random(10).bytes(CP_ASYNC_BYTES as usize);
    let mut expected = input.clone();
    for (start, size) in [(0, 4), (64 * 4, 8), (64 * 12, 16)] {
        for thread in 0..64 {
            let at = start + size * thread;
            expected[at + thread % (size + 1)..at + size].fill(0);
        }
    }
    for device in devices(FROM_SM80) {
        let shared = CP_ASYNC_BYTES as u64;
        let words = launch(
            &device,
            "device_test_cp_async",
            [1; 3],
            shared,
            &input,
            CP_ASYNC_BYTES as usize / 4,
        );
        assert_eq!(bytes_of(&words), expected);
    }
}

#[test]
fn mbarriers_count_arrivals() {
    let input: Vec<u32> = (0..128).map(|t| t * 11 + 1).collect();
    for device in devices(FROM_SM80) {
        let words = launch(
            &device,
            "device_test_mbarrier",
            [1; 3],
            64 + 512,
            &bytes_of(&input),
            128 * 5,
        );
        for (thread, row) in (0u32..).zip(words.chunks_exact(5)) {
            let across = 127 - thread;
            assert_eq!(row, [3 * across, 5 * across, 11 * across + 1, 0, 1], "thread {thread}");
        }
    }
}

#[test]
fn rings_deliver_every_tile_once() {
    let mut random = Random(11);
    let input: Vec<u32> = (0..RING_TILES * RING_TILE_WORDS)
        .map(|_| random.next() as u32)
        .collect();
    let expected: Vec<u32> = (0..RING_TILE_WORDS as usize)
        .map(|word| {
            let tiles = (1u32..).zip(input.chunks_exact(RING_TILE_WORDS as usize));
            tiles.fold(0, |sum: u32, (weight, tile)| {
                sum.wrapping_add(tile[word].wrapping_mul(weight))
            })
        })
        .collect();
    let shared = (128 + RING_STAGES * RING_TILE_WORDS * 4) as u64;
    for (entry, blocks, tiers) in [
        ("device_test_ring_copies", 1, FROM_SM80),
        ("device_test_ring_bulk", 1, SM90),
        ("device_test_ring_multicast", 2, SM90),
    ] {
        for device in devices(tiers) {
            let words = launch(
                &device,
                entry,
                [blocks as u64, 1, 1],
                shared,
                &bytes_of(&input),
                128 * blocks,
            );
            assert_eq!(words, expected.repeat(blocks), "{entry}");
        }
    }
}

#[test]
fn bulk_copies_move_and_add() {
    let words = BULK_BYTES as usize / 4;
    let mut random = Random(12);
    // Pairs of halves that are of moderate size as f16, as bf16 and, together, as f32.
    let first: Vec<u32> = (0..words)
        .map(|_| {
            let mut half = || f16::from_f32(random.between(1.0, 4.0)).to_bits() as u32;
            half() | half() << 16
        })
        .collect();
    let second: Vec<u32> = (0..words).map(|_| random.next() as u32).collect();
    let start: Vec<u32> = [0x3F80_0000u32, 0x3C00_4000, 0x3F80_4000].to_vec();
    let output: Vec<u32> = [
        vec![7; words],
        vec![start[0]; words],
        vec![start[1]; words],
        vec![start[2]; words],
    ]
    .concat();
    let halves = |word: u32| [word as u16, (word >> 16) as u16];
    let pair = |halves: [u16; 2]| halves[0] as u32 | (halves[1] as u32) << 16;
    let mut expected: Vec<u32> = second.iter().map(|word| word.wrapping_add(1)).collect();
    expected.extend(
        first
            .iter()
            .map(|&word| (f32::from_bits(word) + f32::from_bits(start[0])).to_bits()),
    );
    expected.extend(first.iter().map(|&word| {
        let (a, b) = (halves(word), halves(start[1]));
        let sum = |at: usize| f16::from_f64(f16::from_bits(a[at]).to_f64() + f16::from_bits(b[at]).to_f64()).to_bits();
        pair([sum(0), sum(1)])
    }));
    expected.extend(first.iter().map(|&word| {
        let (a, b) = (halves(word), halves(start[2]));
        let sum =
            |at: usize| bf16::from_f64(bf16::from_bits(a[at]).to_f64() + bf16::from_bits(b[at]).to_f64()).to_bits();
        pair([sum(0), sum(1)])
    }));
    for device in devices(SM90) {
        let input = bytes_of(&[first.clone(), second.clone()].concat());
        let shared = 2 * BULK_BYTES as u64 + 16;
        let (_, output) = launch_on(&device, "device_test_bulk", [1; 3], shared, &input, &bytes_of(&output));
        assert_eq!(words_of(&output), expected);
    }
}

#[test]
fn bulk_copies_cross_the_cluster() {
    let input: Vec<u32> = (0..32).map(|lane| 9000 + lane).collect();
    for device in devices(SM90) {
        let words = launch(
            &device,
            "device_test_bulk_cluster",
            [2, 1, 1],
            1024,
            &bytes_of(&input),
            128,
        );
        for (block, half) in (0u32..).zip(words.chunks_exact(64)) {
            let sent: Vec<u32> = (0..32).map(|lane| 100 * ((block ^ 1) + 1) + lane).collect();
            assert_eq!(half[..32], input, "multicast to block {block}");
            assert_eq!(half[32..], sent, "sent to block {block}");
        }
    }
}

#[test]
fn stores_cross_the_cluster() {
    for device in devices(SM90) {
        let words = launch(&device, "device_test_store_async", [2, 1, 1], 1024, &[0; 4], 448);
        for (block, own) in (0u32..).zip(words.chunks_exact(224)) {
            let word = |lane: u32, i: u32| 1000 * ((block ^ 1) + 1) + lane + 100 * i;
            let twos = (0..32).flat_map(|lane| [0, 1].map(|i| word(lane, i)));
            let fours = (0..32).flat_map(|lane| [2, 3, 4, 5].map(|i| word(lane, i)));
            let ones = (0..32).map(|lane| word(lane, 6));
            assert_eq!(
                own,
                twos.chain(fours).chain(ones).collect::<Vec<u32>>(),
                "to block {block}"
            );
        }
    }
}

/// A tensor of up to five dimensions and a box that hangs over its edges, innermost first.
const EXTENTS: [u64; 5] = [40, 5, 4, 3, 2];
const BOX: [u32; 5] = [32, 3, 2, 2, 2];
const AT: [i32; 5] = [20, -1, 3, 1, 1];
/// Where the boxes of the tests that store begin: loads may begin before the tensor, stores may not.
const STORED_AT: [i32; 5] = [20, 3, 3, 1, 1];

struct Tile {
    rank: usize,
    at: [i32; 5],
    tensor: Vec<f32>,
    expected: Vec<f32>,
    /// The element of the tensor that each element of the box is, if it is one.
    places: Vec<Option<usize>>,
}

fn tile(rank: usize, at: [i32; 5]) -> Tile {
    let elements: u64 = EXTENTS[..rank].iter().product();
    let tensor: Vec<f32> = (0..elements).map(|at| at as f32 + 0.5).collect();
    let count: u32 = BOX[..rank].iter().product();
    let places: Vec<Option<usize>> = (0..count)
        .map(|mut index| {
            let (mut place, mut stride) = (0, 1);
            for axis in 0..rank {
                let coordinate = at[axis] as i64 + (index % BOX[axis]) as i64;
                index /= BOX[axis];
                if coordinate < 0 || coordinate >= EXTENTS[axis] as i64 {
                    return None;
                }
                place += coordinate as u64 * stride;
                stride *= EXTENTS[axis];
            }
            Some(place as usize)
        })
        .collect();
    let expected = places.iter().map(|place| place.map_or(0.0, |at| tensor[at])).collect();
    Tile {
        rank,
        at,
        tensor,
        expected,
        places,
    }
}

/// Launches a TMA test; returns the destination tensor and the output.
fn launch_tma(device: &Device, entry: &str, tile: &Tile, blocks: u64) -> (Vec<f32>, Vec<f32>) {
    let extents = &EXTENTS[..tile.rank];
    let floats = |values: &[f32]| {
        upload(
            device,
            &bytes_of(&values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()),
        )
    };
    let source = floats(&tile.tensor);
    let destination = floats(&vec![0.0; tile.tensor.len()]);
    let bytes = 4 * tile.expected.len() as u64;
    let mut input: Vec<u32> = tile.at.iter().map(|&at| at as u32).collect();
    input.push(bytes as u32);
    let input = upload(device, &bytes_of(&input));
    let output = AnyTensor::zeros(device, DType::F32, &[blocks * bytes / 2]).unwrap();
    output.fill_bytes(0xFF).unwrap();
    let map = |tensor: &AnyTensor| {
        let strides = (1..tile.rank)
            .map(|axis| 4 * extents[..axis].iter().product::<u64>())
            .collect();
        let request = TensorMapRequest {
            dtype: DType::F32,
            address: tensor.address(),
            extents: extents.to_vec(),
            strides,
            box_extents: BOX[..tile.rank].to_vec(),
            swizzle: Swizzle::None,
        };
        request.check().unwrap();
        device.backend().encode_tensor_map(&request).unwrap()
    };
    let params = TensorMapTestParams {
        source: map(&source),
        destination: map(&destination),
        input: input.address(),
        output: output.address(),
    };
    let prepared = Contract::new(device, entry)
        .grid([blocks, 1, 1])
        .shared(2 * bytes + 64)
        .reads("source", &source)
        .reads("input", &input)
        .writes("destination", &destination)
        .writes("output", &output)
        .prepare()
        .unwrap();
    // SAFETY: the TMA tests take these arguments; the output holds two boxes a block.
    unsafe { prepared.launch(&params) }.unwrap_or_else(|error| panic!("{entry}: {error}"));
    let read = |tensor: &AnyTensor| {
        let bytes = tensor.to_bytes().unwrap_or_else(|error| panic!("{entry}: {error}"));
        words_of(&bytes).into_iter().map(f32::from_bits).collect::<Vec<f32>>()
    };
    (read(&destination), read(&output))
}

#[test]
fn tma_loads_stores_and_adds_boxes() {
    for device in devices(SM90) {
        for rank in 1..=5 {
            let tile = tile(rank, STORED_AT);
            let (destination, output) = launch_tma(&device, &format!("device_test_tma_{rank}d"), &tile, 1);
            assert_eq!(output, tile.expected.repeat(2), "rank {rank}: loaded");
            let mut expected = vec![0.0; tile.tensor.len()];
            for place in tile.places.iter().flatten() {
                expected[*place] = 2.0 * tile.tensor[*place];
            }
            assert_eq!(destination, expected, "rank {rank}: stored and added");
        }
    }
}

#[test]
fn tma_multicasts_boxes() {
    for device in devices(SM90) {
        for rank in 1..=5 {
            let tile = tile(rank, AT);
            let (destination, output) = launch_tma(&device, &format!("device_test_tma_{rank}d_multicast"), &tile, 2);
            assert_eq!(output, tile.expected.repeat(4), "rank {rank}");
            assert!(destination.iter().all(|&value| value == 0.0));
        }
    }
}
