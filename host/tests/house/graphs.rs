//! Captured graphs: replays, memory, refusals.

use host::{AnyTensor, DType, Device, Tensor, ops::vector_add};

fn tensor(device: &Device, data: &[f32]) -> Tensor<f32> {
    Tensor::from_slice(device, data, &[data.len() as u64]).unwrap()
}

fn values(tensor: &AnyTensor) -> Vec<f32> {
    tensor.typed::<f32>("tensor").unwrap().to_vec().unwrap()
}

#[test]
fn replays_see_new_inputs() {
    let device = super::checked();
    let (a, b) = (tensor(&device, &[1.0; 300]), tensor(&device, &[2.0; 300]));
    vector_add(&a, &b).unwrap();
    let (graph, out) = device.capture(|| vector_add(&vector_add(&a, &b)?, &b)).unwrap();
    for round in 0..3 {
        a.copy_from_slice(&[round as f32; 300]).unwrap();
        graph.launch().unwrap();
        assert_eq!(values(&out), [round as f32 + 4.0; 300]);
    }
}

#[test]
fn recording_runs_nothing() {
    let device = Device::emulator().unwrap();
    let a = tensor(&device, &[1.0; 8]);
    let target = tensor(&device, &[5.0; 8]);
    let (graph, ()) = device.capture(|| target.fill_bytes(0)).unwrap();
    assert_eq!(values(&target), [5.0; 8]);
    graph.launch().unwrap();
    assert_eq!(values(&target), [0.0; 8]);
    assert_eq!(values(&a), [1.0; 8]);
}

#[test]
fn a_graph_keeps_what_it_uses() {
    let device = super::checked();
    let (a, b) = (tensor(&device, &[1.0; 64]), tensor(&device, &[2.0; 64]));
    vector_add(&a, &b).unwrap();
    device.trim().unwrap();
    let (graph, (middle, cleared, out)) = device
        .capture(|| {
            let middle = vector_add(&a, &b)?;
            let cleared = AnyTensor::zeros(&device, DType::F32, &[64])?;
            let out = vector_add(&middle, &b)?;
            Ok((middle, cleared, out))
        })
        .unwrap();
    let used = [a.address(), b.address(), middle.address(), cleared.address()];
    drop((a, b, middle, cleared));
    // Whatever is allocated now must not be what a replay writes.
    let later: Vec<_> = (0..8).map(|_| tensor(&device, &[7.0; 64])).collect();
    assert!(later.iter().all(|tensor| !used.contains(&tensor.address())));
    graph.launch().unwrap();
    assert_eq!(values(&out), [5.0; 64]);
    assert!(later.iter().all(|tensor| values(tensor) == [7.0; 64]));
    let live = device.allocated().0;
    drop(graph);
    assert_eq!(
        device.allocated().0,
        live - 4 * 512,
        "the four come back with the graph"
    );
}

#[test]
fn host_copies_are_refused_while_recording() {
    let device = Device::emulator().unwrap();
    let a = tensor(&device, &[1.0; 8]);
    let (_, (read, write, new)) = device
        .capture(|| {
            let read = a.to_vec().unwrap_err().to_string();
            let write = a.copy_from_slice(&[2.0; 8]).unwrap_err().to_string();
            let new = Tensor::from_slice(&device, &[1.0f32], &[1]).unwrap_err().to_string();
            Ok((read, write, new))
        })
        .unwrap();
    assert_eq!(read, "graph: copying to the host cannot be recorded in a graph");
    assert_eq!(write, "graph: copying from the host cannot be recorded in a graph");
    assert_eq!(new, write);
    assert_eq!(values(&a), [1.0; 8]);
}

/// Ordinary work and another capture both succeed, and nothing stays allocated.
fn assert_usable(device: &Device, a: &Tensor<f32>, live: u64) {
    assert_eq!(device.allocated().0, live);
    assert_eq!(values(&vector_add(a, a).unwrap()), [2.0; 8]);
    let (graph, out) = device.capture(|| vector_add(a, a)).unwrap();
    graph.launch().unwrap();
    assert_eq!(values(&out), [2.0; 8]);
    drop((graph, out));
    assert_eq!(device.allocated().0, live);
}

#[test]
fn an_error_inside_leaves_the_stream_usable() {
    let device = Device::emulator().unwrap();
    let a = tensor(&device, &[1.0; 8]);
    let live = device.allocated().0;
    let outcome = device.capture(|| {
        let sum = vector_add(&a, &a)?;
        sum.to_bytes()
    });
    assert!(outcome.is_err());
    assert_usable(&device, &a, live);
}

#[test]
fn a_panic_inside_leaves_the_stream_usable() {
    let device = Device::emulator().unwrap();
    let a = tensor(&device, &[1.0; 8]);
    let live = device.allocated().0;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = device.capture(|| -> host::Result<()> {
            vector_add(&a, &a)?;
            panic!("as a caller's bug would")
        });
    }));
    assert!(panicked.is_err());
    assert_usable(&device, &a, live);
}

#[test]
fn one_capture_at_a_time_on_a_device() {
    let device = Device::emulator().unwrap();
    let other = Device::emulator().unwrap();
    let (a, b) = (tensor(&device, &[1.0; 8]), tensor(&other, &[1.0; 8]));
    let live = (device.allocated().0, other.allocated().0);
    let (graph, (inner, second, out)) = device
        .capture(|| {
            let inner = device.capture(|| Ok(())).unwrap_err().to_string();
            // Another device may; each graph keeps its own device's memory.
            let second = other.capture(|| vector_add(&b, &b)).unwrap();
            Ok((inner, second, vector_add(&a, &a)?))
        })
        .unwrap();
    assert_eq!(inner, "graph: a capture is already running on this device");
    graph.launch().unwrap();
    second.0.launch().unwrap();
    assert_eq!((values(&out), values(&second.1)), (vec![2.0; 8], vec![2.0; 8]));
    drop((graph, second, out));
    assert_usable(&device, &a, live.0);
    assert_usable(&other, &b, live.1);
}
