//! Drives every part of the CUDA backend on a real GPU and measures what a launch costs beside the driver alone.
//!
//! `cargo run --release -p host --example cuda_smoke`; ends with a fault on purpose, to see it reported.

use std::{ffi::c_void, ptr::null_mut, time::Instant};

use driver::{calls, handle};
use host::{
    DType, Error, Result, Tier,
    backend::{
        Backend, KernelId, LaunchRequest, StreamId,
        cuda::{self, CudaBackend},
    },
    images::{Image, ImageInfo},
    tensor_map::{Swizzle, TensorMapRequest},
};

/// `y[i] += k · i` for one block of threads, through `shared` dynamic shared memory's last word; argument: y, k, shared.
const SCALE: &str = r#"
.version 7.8
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 pool[];
.visible .entry scale(.param .align 8 .b8 scale_param_0[16])
{
    .reg .b64 %rd<4>; .reg .b32 %r<8>;
    ld.param.u64 %rd1, [scale_param_0];
    ld.param.u32 %r1, [scale_param_0+8];
    ld.param.u32 %r2, [scale_param_0+12];
    mov.u32 %r3, pool;
    add.u32 %r3, %r3, %r2;
    st.shared.u32 [%r3+-4], %r1;
    bar.sync 0;
    ld.shared.u32 %r1, [%r3+-4];
    mov.u32 %r4, %tid.x;
    mul.wide.u32 %rd2, %r4, 4;
    add.u64 %rd1, %rd1, %rd2;
    ld.global.u32 %r5, [%rd1];
    mad.lo.u32 %r5, %r4, %r1, %r5;
    st.global.u32 [%rd1], %r5;
    ret;
}
"#;

/// Does nothing: for the cost of a launch.
const EMPTY: &str = r#"
.version 7.8
.target sm_80
.address_size 64
.visible .entry empty(.param .align 8 .b8 empty_param_0[64]) { ret; }
"#;

/// Writes the block's rank in its cluster; argument: y.
const RANK: &str = r#"
.version 7.8
.target sm_90
.address_size 64
.visible .entry rank(.param .align 8 .b8 rank_param_0[8])
{
    .reg .b64 %rd<4>; .reg .b32 %r<4>;
    ld.param.u64 %rd1, [rank_param_0];
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.u64 %rd1, %rd1, %rd2;
    mov.u32 %r2, %cluster_ctarank;
    st.global.u32 [%rd1], %r2;
    ret;
}
"#;

fn image(entry: &str, ptx: &str, param_bytes: u32, cluster: u32) -> Image {
    let info = ImageInfo {
        entry: entry.to_owned(),
        unit: "smoke".to_owned(),
        tier: Tier::Sm80,
        threads: [128, 1, 1],
        cluster: [cluster, 1, 1],
        param_bytes,
        ptx_version: "7.8".to_owned(),
        file: String::new(),
    };
    Image {
        info,
        ptx: ptx.to_owned(),
    }
}

fn request(kernel: KernelId, stream: StreamId, params: &[u8]) -> LaunchRequest<'_> {
    LaunchRequest {
        kernel,
        grid: [1; 3],
        block: [128, 1, 1],
        cluster: [1; 3],
        dynamic_shared: 0,
        params,
        stream,
        programmatic: false,
    }
}

fn words(backend: &CudaBackend, address: u64, stream: StreamId) -> Result<Vec<u32>> {
    let mut bytes = vec![0; 512];
    // SAFETY: every caller's allocation has 512 bytes at least.
    unsafe { backend.read(address, &mut bytes, stream) }?;
    Ok(bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        .collect())
}

fn main() -> Result<()> {
    for properties in cuda::devices()? {
        println!("{properties:?}");
    }
    let backend = CudaBackend::open(0)?;
    let stream = backend.create_stream()?;
    let address = backend.allocate(1 << 20)?;
    println!("memory {:?}, address {address:#x}", backend.memory()?);

    // SAFETY: the argument of `scale` is an address of 512 live bytes and two numbers; it writes there alone. Copies stay
    // inside the allocation.
    unsafe {
        backend.fill(address, 0, 1 << 20, stream)?;
        let scale = backend.load(&image("scale", SCALE, 16, 1))?;
        println!(
            "scale {:?}, {} blocks an SM",
            backend.kernel_attributes(scale)?,
            backend.occupancy(scale, 128, 0)?
        );
        let shared = backend.properties().shared_per_block;
        let mut params = address.to_le_bytes().to_vec();
        params.extend([3u32.to_le_bytes(), shared.to_le_bytes()].concat());
        let scaled = LaunchRequest {
            dynamic_shared: shared,
            ..request(scale, stream, &params)
        };
        backend.launch(&scaled)?;
        let expected = |times: u32| (0..128).map(|i| times * 3 * i).collect::<Vec<u32>>();
        assert_eq!(words(&backend, address, stream)?, expected(1));
        println!("launch with {shared} bytes of dynamic shared memory: ok");

        let too_much = LaunchRequest {
            dynamic_shared: shared + 1,
            ..scaled.clone()
        };
        println!("refused as it should be: {}", backend.launch(&too_much).unwrap_err());

        backend.launch(&LaunchRequest {
            programmatic: true,
            ..scaled.clone()
        })?;
        assert_eq!(words(&backend, address, stream)?, expected(2));
        backend.begin_capture(stream)?;
        backend.launch(&scaled)?;
        backend.launch(&scaled)?;
        println!(
            "refused as it should be: {}",
            backend.write(address, &[0; 4], stream).unwrap_err()
        );
        let graph = backend.end_capture(stream)?;
        assert_eq!(words(&backend, address, stream)?, expected(2), "recorded, not run");
        backend.launch_graph(graph, stream)?;
        backend.launch_graph(graph, stream)?;
        assert_eq!(words(&backend, address, stream)?, expected(6));
        backend.destroy_graph(graph);
        println!("graph: ok");

        // Many small writes from one buffer that changes at once, each followed by a copy that reads it.
        let mut row = [0u8; 4096];
        for round in 0..200u32 {
            row.fill(round as u8);
            backend.write(address + 4096, &row, stream)?;
            backend.copy(address + 8192 + 4 * round as u64, address + 4096, 4, stream)?;
        }
        let copied = words(&backend, address + 8192, stream)?;
        assert!(
            copied
                .iter()
                .enumerate()
                .all(|(i, &word)| word == i as u32 * 0x0101_0101)
        );
        println!("staged writes: ok");

        if backend.properties().compute_capability.0 >= 9 {
            let rank = backend.load(&image("rank", RANK, 8, 16))?;
            for cluster in [2, 8, 16] {
                let params = address.to_le_bytes();
                let clustered = LaunchRequest {
                    grid: [16, 1, 1],
                    cluster: [cluster, 1, 1],
                    ..request(rank, stream, &params)
                };
                backend.launch(&clustered)?;
                let ranks = words(&backend, address, stream)?;
                assert_eq!(ranks[..16], (0..16).map(|block| block % cluster).collect::<Vec<_>>());
            }
            println!("clusters of 2, 8 and 16: ok");
            let map = TensorMapRequest {
                dtype: DType::BF16,
                address,
                extents: vec![128, 64],
                strides: vec![256],
                box_extents: vec![64, 64],
                swizzle: Swizzle::B128,
            };
            println!("tensor map {:x?}", backend.encode_tensor_map(&map)?);
        }
        println!(
            "refused as it should be: {}",
            backend.load(&image("broken", "this is no PTX", 0, 1)).unwrap_err()
        );
        println!("refused as it should be: {}", backend.allocate(1 << 50).unwrap_err());
        println!("refused as it should be: {}", CudaBackend::open(99).unwrap_err());

        launch_cost(&backend, stream)?;

        let mut wild = params.clone();
        wild[..8].copy_from_slice(&0x10u64.to_le_bytes());
        backend.launch(&LaunchRequest {
            params: &wild,
            ..scaled
        })?;
        let fault = backend.synchronize(stream).unwrap_err();
        assert!(matches!(fault, Error::Poisoned { .. }));
        println!("a fault: {fault}");
        println!("and afterwards: {}", backend.allocate(4).unwrap_err());
    }
    Ok(())
}

/// Microseconds of a launch on the CPU, through the backend and through the driver alone, in turn.
///
/// # Safety
/// - None beyond the backend's: the kernel does nothing.
unsafe fn launch_cost(backend: &CudaBackend, stream: StreamId) -> Result<()> {
    const LAUNCHES: usize = 500;
    let empty = backend.load(&image("empty", EMPTY, 64, 1))?;
    let params = [0u8; 64];
    let driver_error = |error: driver::DriverError| Error::Driver {
        call: "a driver call",
        code: error.code(),
        name: error.to_string(),
    };
    let text = std::ffi::CString::new(EMPTY).expect("no NUL inside");
    let (mut function, mut raw) = (handle::Function::NULL, handle::Stream::NULL);
    // SAFETY: the backend has made its context current on this thread; the outputs are live locals.
    unsafe {
        let (module, _) = driver::load_module(&text, None, false).map_err(|failure| driver_error(failure.cause))?;
        calls::module_get_function(&mut function, module, c"empty".as_ptr()).map_err(driver_error)?;
        calls::stream_create(&mut raw, 1).map_err(driver_error)?;
    }
    let mut best = [f64::MAX; 2];
    for _ in 0..40 {
        let start = Instant::now();
        for _ in 0..LAUNCHES {
            // SAFETY: the kernel takes 64 bytes and touches nothing.
            unsafe { backend.launch(&request(empty, stream, &params)) }?;
        }
        best[0] = best[0].min(start.elapsed().as_secs_f64());
        backend.synchronize(stream)?;
        let start = Instant::now();
        for _ in 0..LAUNCHES {
            let mut argument = params.as_ptr().cast_mut().cast::<c_void>();
            // SAFETY: as above.
            unsafe { calls::launch_kernel(function, 1, 1, 1, 128, 1, 1, 0, raw, &mut argument, null_mut()) }
                .map_err(driver_error)?;
        }
        best[1] = best[1].min(start.elapsed().as_secs_f64());
        // SAFETY: the stream is alive.
        unsafe { calls::stream_synchronize(raw) }.map_err(driver_error)?;
    }
    let [ours, alone] = best.map(|seconds| seconds / LAUNCHES as f64 * 1e6);
    println!("a launch costs {ours:.2} µs, of which the driver {alone:.2} µs");
    Ok(())
}
