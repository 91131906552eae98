//! Views: slices, permutations, reshapes, overlaps, downloads.

use host::{AnyTensor, DType, Device, Error, Tensor};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn counting(device: &Device, shape: &[u64]) -> Tensor<i32> {
    let len: u64 = shape.iter().product();
    let data: Vec<i32> = (0..len as i32).collect();
    Tensor::from_slice(device, &data, shape).unwrap()
}

fn elements(view: &AnyTensor) -> Vec<i32> {
    view.typed::<i32>("view").unwrap().to_vec().unwrap()
}

#[test]
fn cut_turned_and_reshaped() {
    let device = Device::emulator().unwrap();
    let x = counting(&device, &[2, 3, 4]);
    assert_eq!((x.strides(), x.span(), x.is_contiguous()), (&[12, 4, 1][..], 24, true));

    let part = x.slice(1, 1..3).unwrap();
    assert_eq!(
        (part.shape(), part.strides(), part.span()),
        (&[2, 2, 4][..], &[12, 4, 1][..], 20)
    );
    assert_eq!(
        elements(&part),
        [4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23]
    );
    assert_eq!(part.address(), x.address() + 16);
    assert!(!part.is_contiguous() && part.rows_aligned_to(16) && !part.rows_aligned_to(32));

    let row = x.select(1, 2).unwrap().select(0, 1).unwrap();
    assert_eq!((row.shape(), elements(&row)), (&[4][..], vec![20, 21, 22, 23]));

    let turned = x.permute(&[2, 0, 1]).unwrap();
    assert_eq!(turned.shape(), [4, 2, 3]);
    assert_eq!(elements(&turned)[..7], [0, 4, 8, 12, 16, 20, 1]);
    assert_eq!(elements(&turned.permute(&[1, 2, 0]).unwrap()), elements(&x));
    assert_eq!(
        elements(&x.transpose(0, 2).unwrap()),
        elements(&x.permute(&[2, 1, 0]).unwrap())
    );

    // A part whose outer axes are dense among themselves joins them; others need a copy.
    assert_eq!(x.slice(0, 1..2).unwrap().reshape(&[6, 2]).unwrap().strides(), [2, 1]);
    let columns = x.slice(2, 1..3).unwrap();
    assert_eq!(columns.reshape(&[6, 2]).unwrap().strides(), [4, 1]);
    assert_eq!(columns.reshape(&[6, 1, 2, 1]).unwrap().shape(), [6, 1, 2, 1]);
    assert_eq!(elements(&columns.reshape(&[3, 2, 2]).unwrap()), elements(&columns));
    let error = columns.reshape(&[12]).unwrap_err().to_string();
    assert_eq!(
        error,
        "reshape: i32[2, 3, 2] strides [12, 4, 1] on emulator cannot be viewed as [12] without a copy"
    );
}

#[test]
fn mistakes_are_named() {
    let device = Device::emulator().unwrap();
    let x = counting(&device, &[2, 3]);
    let text = |result: host::Result<Tensor<i32>>| result.unwrap_err().to_string();
    assert_eq!(text(x.slice(2, 0..1)), "axis = 2; allowed: below the rank 2");
    assert_eq!(text(x.slice(1, 1..4)), "range = 1..4; allowed: within 0..3");
    #[expect(clippy::reversed_empty_ranges)]
    let reversed = x.slice(1, 2..1);
    assert_eq!(text(reversed), "range = 2..1; allowed: within 0..3");
    assert!(x.select(0, 2).is_err() && x.select(0, u64::MAX).is_err());
    assert_eq!(
        text(x.permute(&[0, 0])),
        "order = [0, 0]; allowed: a permutation of 0..2"
    );
    assert!(x.permute(&[0]).is_err() && x.transpose(0, 2).is_err());
    assert_eq!(text(x.reshape(&[4])), "shape has shape [4]; 6 elements are needed");
    let error = x.typed::<f32>("x").unwrap_err().to_string();
    assert_eq!(error, "x is i32; expected f32");
    assert_eq!(
        text(Tensor::from_slice(&device, &[1, 2, 3], &[2, 2])),
        "data has shape [2, 2]; 12 bytes were given, 16 are needed"
    );
    assert!(x.copy_from_slice(&[1; 5]).is_err());
    assert!(x.transpose(0, 1).unwrap().copy_from_slice(&[1; 6]).is_err());
    assert!(x.transpose(0, 1).unwrap().fill_bytes(0).is_err());
}

#[test]
fn nothing_in_any_shape() {
    let device = Device::emulator().unwrap();
    let x = Tensor::<i32>::empty(&device, &[4, 0, 3]).unwrap();
    assert_eq!((x.elements(), x.span(), x.address()), (0, 0, 0));
    assert!(x.to_vec().unwrap().is_empty());
    assert_eq!(x.reshape(&[0, 9]).unwrap().shape(), [0, 9]);
    assert!(x.reshape(&[1]).is_err());
    assert_eq!(x.slice(0, 1..3).unwrap().shape(), [2, 0, 3]);
    assert!(!x.overlaps(&x));
    x.copy_from_slice(&[]).unwrap();
    x.fill_bytes(1).unwrap();
    let y = counting(&device, &[4]);
    let none = y.slice(0, 4..4).unwrap();
    assert_eq!((none.elements(), none.to_vec().unwrap()), (0, vec![]));
    // A product that overflows, made harmless by a zero, is refused rather than trusted.
    assert!(AnyTensor::empty(&device, DType::F32, &[1 << 40, 1 << 40, 0]).is_err());
}

#[test]
fn huge_shapes() {
    let device = Device::emulator().unwrap();
    let before = device.memory().unwrap();
    for shape in [
        &[u64::MAX][..],
        &[1 << 62, 4],
        &[1 << 60, 1],
        &[1 << 32, 1 << 32],
        &[u64::MAX, u64::MAX],
    ] {
        let error = AnyTensor::zeros(&device, DType::I64, shape).unwrap_err();
        assert!(
            matches!(error, Error::Shape { .. } | Error::OutOfMemory { .. }),
            "{shape:?}: {error:?}"
        );
        assert!(AnyTensor::from_bytes(&device, DType::I64, shape, &[0; 8]).is_err());
    }
    // One that fits 63 bits but no memory.
    let error = AnyTensor::empty(&device, DType::U8, &[1 << 50]).unwrap_err();
    assert!(
        matches!(error, Error::OutOfMemory { requested, .. } if requested == 1 << 50),
        "{error:?}"
    );
    assert_eq!(device.memory().unwrap(), before);
    assert_eq!(counting(&device, &[3]).to_vec().unwrap(), [0, 1, 2]);
}

/// A view of `flat`: where to begin, which blocks to see, how to cut and turn them.
#[derive(Clone, Debug)]
struct Recipe {
    start: u64,
    shape: [u64; 3],
    cuts: [(u64, u64); 3],
    regroup: bool,
    order: usize,
}

const FLAT: u64 = 200;

fn recipe() -> impl Strategy<Value = Recipe> {
    let shape = [1u64..5, 1u64..5, 1u64..7];
    let cuts = [(0u64..7, 1u64..7), (0u64..7, 1u64..7), (0u64..7, 1u64..7)];
    (0u64..40, shape, cuts, any::<bool>(), 0usize..6).prop_map(|(start, shape, cuts, regroup, order)| Recipe {
        start,
        shape,
        cuts,
        regroup,
        order,
    })
}

impl Recipe {
    fn view(&self, flat: &AnyTensor) -> AnyTensor {
        let [a, b, c] = self.shape;
        let dense = flat.slice(0, self.start..self.start + a * b * c).unwrap();
        let mut view = dense.reshape(&self.shape).unwrap();
        for (axis, &(from, len)) in self.cuts.iter().enumerate() {
            let extent = view.extent(axis);
            let from = from % extent;
            view = view.slice(axis, from..(from + len).min(extent)).unwrap();
        }
        // Splits the last axis in two, so that strides need not be multiples of one another.
        let last = view.extent(2);
        if self.regroup && last.is_multiple_of(2) {
            let shape = [view.extent(0), view.extent(1), last / 2, 2];
            view = view
                .reshape(&shape)
                .unwrap()
                .slice(3, 0..1)
                .unwrap()
                .reshape(&shape[..3])
                .unwrap();
        }
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        view.permute(&orders[self.order]).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn overlap_is_what_the_elements_say(a in recipe(), b in recipe()) {
        let device = Device::emulator().unwrap();
        let flat = counting(&device, &[FLAT]);
        let (a, b) = (a.view(&flat), b.view(&flat));
        let set = |view: &AnyTensor| elements(view).into_iter().collect::<BTreeSet<i32>>();
        let (first, second) = (set(&a), set(&b));
        let wanted = !first.is_disjoint(&second);
        prop_assert_eq!(a.overlaps(&b), wanted, "{:?} {:?} and {:?} {:?}", a, first, b, second);
        prop_assert_eq!(b.overlaps(&a), wanted);
        prop_assert!(a.overlaps(&a));
        // The span reaches from the first element to the last.
        prop_assert_eq!(a.span(), (first.last().unwrap() - first.first().unwrap() + 1) as u64);
        prop_assert_eq!(first.len() as u64, a.elements());
    }
}

#[test]
fn strides_that_do_not_divide_one_another() {
    let device = Device::emulator().unwrap();
    let flat = counting(&device, &[100]);
    // Elements 10·i + 3·j from a start: those from 0 and 7 meet at 10, those from 0 and 1 never.
    let view = |start| {
        let rows = flat.slice(0, start..start + 40).unwrap().reshape(&[4, 10]).unwrap();
        let blocks = rows.slice(1, 0..9).unwrap().reshape(&[4, 3, 3]).unwrap();
        blocks.slice(2, 0..1).unwrap()
    };
    assert!(view(0).overlaps(&view(7)) && view(7).overlaps(&view(0)));
    assert!(!view(0).overlaps(&view(1)));
}

#[test]
fn columns_of_one_matrix_do_not_overlap() {
    let device = Device::emulator().unwrap();
    // Packed QKV, whatever the number of tokens: with one token an axis disappears.
    for tokens in [1, 5] {
        let qkv = AnyTensor::empty(&device, DType::F16, &[tokens, 3, 4, 8]).unwrap();
        let parts: Vec<_> = (0..3).map(|i| qkv.select(1, i).unwrap()).collect();
        for i in 0..3 {
            for j in 0..3 {
                assert_eq!(parts[i].overlaps(&parts[j]), i == j, "{tokens} tokens, {i} and {j}");
            }
            assert!(parts[i].overlaps(&qkv));
        }
        let other = AnyTensor::empty(&device, DType::F16, &[tokens, 3, 4, 8]).unwrap();
        assert!(!qkv.overlaps(&other));
    }
}

#[test]
fn every_dtype_travels() {
    let device = Device::emulator().unwrap();
    for dtype in [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::E4M3,
        DType::I32,
        DType::I64,
        DType::U8,
    ] {
        let bytes: Vec<u8> = (0..12 * dtype.size() as u8).collect();
        let x = AnyTensor::from_bytes(&device, dtype, &[3, 4], &bytes).unwrap();
        assert_eq!(x.to_bytes().unwrap(), bytes);
        let size = dtype.size() as usize;
        let column: Vec<u8> = (0..3)
            .flat_map(|row| bytes[(row * 4 + 2) * size..][..size].to_vec())
            .collect();
        assert_eq!(x.select(1, 2).unwrap().to_bytes().unwrap(), column, "{dtype}");
    }
}
