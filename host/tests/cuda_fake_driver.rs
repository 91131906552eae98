//! The CUDA backend over a driver of our own making, which logs what it is asked for: what reaches the real one is
//! checked here, without a GPU. One test: the driver is looked for once a process.

use std::{
    ffi::{CStr, CString, c_char},
    path::Path,
    process::Command,
};

use host::{
    DType, Error, Tier,
    backend::{
        Backend, KernelId, LaunchRequest, StreamId,
        cuda::{self, CudaBackend},
    },
    images::{Image, ImageInfo},
    tensor_map::{Swizzle, TensorMapRequest},
};

struct Fake(libloading::Library);

impl Fake {
    /// Compiles the fake driver and makes it this process's.
    fn install(folder: &Path) -> Fake {
        let library = folder.join("libcuda_fake.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda/libcuda.rs");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let arguments = ["--edition=2024", "--crate-type=cdylib", "-Cpanic=abort", "-o"];
        let status = Command::new(rustc)
            .args(arguments)
            .arg(&library)
            .arg(source)
            .status()
            .unwrap();
        assert!(status.success());
        // SAFETY: no other thread reads the environment; this is the only test of the process.
        unsafe { std::env::set_var(driver::LIBRARY_VARIABLE, &library) };
        // SAFETY: the library has no initialisers. It is the same copy that the driver crate opens.
        Fake(unsafe { libloading::Library::new(&library) }.unwrap())
    }

    /// Takes the log.
    fn log(&self) -> Vec<String> {
        // SAFETY: the function has this type and returns a text that lives on.
        let text = unsafe { CStr::from_ptr(self.0.get::<extern "C" fn() -> *const c_char>(b"fake_log").unwrap()()) };
        text.to_str().unwrap().lines().map(str::to_owned).collect()
    }

    /// The next call of this name returns this code.
    fn fail(&self, name: &str, code: u32) {
        let name = CString::new(name).unwrap();
        // SAFETY: the function has this type and copies the name.
        unsafe {
            self.0
                .get::<unsafe extern "C" fn(*const c_char, u32)>(b"fake_fail")
                .unwrap()(name.as_ptr(), code)
        }
    }
}

fn image(entry: &str, ptx: &str, param_bytes: u32, cluster: [u32; 3]) -> Image {
    let info = ImageInfo {
        entry: entry.to_owned(),
        unit: "test".to_owned(),
        tier: Tier::Sm90a,
        threads: [128, 1, 1],
        cluster,
        param_bytes,
        ptx_version: "8.3".to_owned(),
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
        grid: [5, 6, 7],
        block: [128, 1, 1],
        cluster: [1; 3],
        dynamic_shared: 1000,
        params,
        stream,
        programmatic: false,
    }
}

fn launch(backend: &CudaBackend, request: &LaunchRequest<'_>) -> Result<(), Error> {
    // SAFETY: the fake driver runs nothing.
    unsafe { backend.launch(request) }
}

#[test]
fn the_backend_asks_the_driver_for_the_right_things() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::install(folder.path());

    refuses_to_open(&fake);
    let backend = CudaBackend::open(0).unwrap();
    assert_eq!(
        fake.log(),
        ["retain", "retain", "release"],
        "one share of the primary context remains"
    );
    memory_and_copies(&fake, &backend);
    launches(&fake, &backend);
    refused_images(&backend);
    graphs(&fake, &backend);
    tensor_maps(&fake, &backend);
    faults(&fake, &backend);

    drop(backend);
    let log = fake.log();
    let at = |what: &str| {
        log.iter()
            .position(|line| line == what)
            .unwrap_or_else(|| panic!("{what} in {log:?}"))
    };
    assert!(at("ctx_synchronize") < at("stream_destroy") && at("ctx_synchronize") < at("unload"));
    assert_eq!(log.last().unwrap(), "release", "the context goes last");
}

fn refuses_to_open(fake: &Fake) {
    fake.fail("cuInit", 803);
    assert!(
        cuda::devices()
            .unwrap_err()
            .to_string()
            .contains("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH")
    );
    fake.fail("cuInit", 100);
    assert!(matches!(cuda::devices(), Err(Error::NoDevice { reason }) if reason.contains("no GPU")));
    // A code that `cust` does not know.
    fake.fail("cuDevicePrimaryCtxRetain", 46);
    let busy = CudaBackend::open(0).unwrap_err().to_string();
    assert!(busy.contains("CUDA_ERROR_DEVICE_UNAVAILABLE"), "{busy}");
    let missing = CudaBackend::open(3).unwrap_err().to_string();
    assert_eq!(missing, "CUDA device = 3; allowed: 0, the only GPU of this machine");

    let devices = cuda::devices().unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!(
        (devices[0].name.as_str(), devices[0].compute_capability),
        ("Fake H200", (9, 0))
    );
    assert_eq!(
        (devices[0].multiprocessors, devices[0].shared_per_block),
        (132, 232_448)
    );
    assert_eq!((devices[0].driver_version, devices[0].memory_bytes), (12_040, 1 << 37));
    fake.log();
}

fn memory_and_copies(fake: &Fake, backend: &CudaBackend) {
    let stream = backend.create_stream().unwrap();
    assert_eq!(
        fake.log(),
        ["stream_create 1"],
        "does not synchronise with the default stream"
    );

    fake.fail("cuMemAlloc", 2);
    let full = backend.allocate(1 << 20).unwrap_err();
    assert!(
        matches!(
            full,
            Error::OutOfMemory {
                requested: 1_048_576,
                free: 12_345
            }
        ),
        "{full:?}"
    );
    assert!(full.is_recoverable());

    // On another thread no context is current until the backend makes it so.
    let bytes = 100_000;
    let address = std::thread::scope(|scope| scope.spawn(|| backend.allocate(bytes)).join().unwrap()).unwrap();
    assert_eq!(address % 256, 0);

    let small: Vec<u8> = (0..200).collect();
    let large: Vec<u8> = (0..90_000u32).map(|i| (i % 251) as u8).collect();
    let mut back = vec![0; large.len()];
    // SAFETY: every range lies in the allocation.
    unsafe {
        backend.write(address, &large, stream).unwrap();
        let log = fake.log();
        assert_eq!(log[0], format!("htod 90000 from={:x}", large.as_ptr() as usize));
        assert_eq!(log[1], "stream_synchronize", "the source may be reused at once");
        backend.read(address, &mut back, stream).unwrap();
        assert!(back == large);
        fake.log();

        // Small copies do not wait for the stream: the source is copied aside first. More of them than there are slots.
        for round in 0..40u8 {
            let mut source = small.clone();
            source[0] = round;
            backend.write(address + 256 * round as u64, &source, stream).unwrap();
            let copied = fake.log();
            assert!(!copied.contains(&"stream_synchronize".to_owned()));
            assert!(
                !copied.contains(&format!("htod 200 from={:x}", source.as_ptr() as usize)),
                "{copied:?}"
            );
        }
        let mut one = [0; 200];
        for round in 0..40u8 {
            backend.read(address + 256 * round as u64, &mut one, stream).unwrap();
            assert_eq!((one[0], one[1], one[199]), (round, 1, 199));
        }

        backend.fill(address, 9, 100, stream).unwrap();
        backend.copy(address + 1000, address, 50, stream).unwrap();
        backend.read(address + 1000, &mut one, stream).unwrap();
        assert_eq!(one[..50], [9; 50]);
        backend.free(address).unwrap();
    }
    backend.destroy_stream(stream);
    let gone = backend.synchronize(stream).unwrap_err();
    assert!(matches!(gone, Error::Range { argument: "stream", .. }), "{gone:?}");
    fake.log();
}

fn launches(fake: &Fake, backend: &CudaBackend) {
    let stream = backend.create_stream().unwrap();
    let plain = backend
        .load(&image("add", "entry add params 16 shared 1024", 16, [1; 3]))
        .unwrap();
    assert_eq!(
        fake.log()[1..],
        ["set add 8=231424", "set add 14=1"],
        "all shared memory but the 1024 bytes it declares; a kernel without clusters of its own may be launched in any"
    );
    let clustered = backend
        .load(&image("gemm", "entry gemm params 8 shared 0", 8, [16, 1, 1]))
        .unwrap();
    assert_eq!(
        fake.log(),
        ["set gemm 8=232448", "set gemm 14=1"],
        "16 blocks are more than is portable"
    );

    let params: Vec<u8> = (1..=16).collect();
    launch(backend, &request(plain, stream, &params)).unwrap();
    assert_eq!(
        fake.log(),
        ["launch add [5, 6, 7] [128, 1, 1] 1000 [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]"]
    );
    launch(
        backend,
        &LaunchRequest {
            cluster: [2, 1, 1],
            ..request(clustered, stream, &params[..8])
        },
    )
    .unwrap();
    launch(
        backend,
        &LaunchRequest {
            programmatic: true,
            ..request(clustered, stream, &params[..8])
        },
    )
    .unwrap();
    let both = LaunchRequest {
        cluster: [1, 2, 4],
        programmatic: true,
        ..request(clustered, stream, &params[..8])
    };
    launch(backend, &both).unwrap();
    let common = "launch gemm [5, 6, 7] [128, 1, 1] 1000 [1, 2, 3, 4, 5, 6, 7, 8]";
    assert_eq!(
        fake.log(),
        [
            format!("{common} 4=[2, 1, 1]"),
            format!("{common} 6=[1, 0, 0]"),
            format!("{common} 4=[1, 2, 4] 6=[1, 0, 0]")
        ]
    );

    let short = launch(backend, &request(plain, stream, &params[..15])).unwrap_err();
    assert_eq!(short.to_string(), "params: 15 bytes, but kernel add takes 16");
    let unknown = launch(backend, &request(KernelId(99), stream, &params)).unwrap_err();
    assert!(
        matches!(unknown, Error::Range { argument: "kernel", .. }),
        "{unknown:?}"
    );
    fake.fail("cuLaunchKernel", 701);
    let refused = launch(backend, &request(plain, stream, &params)).unwrap_err();
    let text = refused.to_string();
    assert!(
        refused.is_recoverable() && text.contains("kernel add, grid [5, 6, 7]"),
        "{text}"
    );
    assert!(text.contains("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "{text}");

    let attributes = backend.kernel_attributes(plain).unwrap();
    assert_eq!(
        (attributes.registers, attributes.static_shared, attributes.local),
        (168, 1024, 30)
    );
    assert_eq!(
        (
            attributes.ptx_version,
            attributes.binary_version,
            attributes.max_threads
        ),
        (83, 90, 384)
    );
    assert_eq!(backend.occupancy(plain, 128, 5).unwrap(), 21);
    assert_eq!(backend.clusters(&request(plain, stream, &[])).unwrap(), 5);

    let (start, end) = (backend.create_event().unwrap(), backend.create_event().unwrap());
    backend.record(start, stream).unwrap();
    backend.record(end, stream).unwrap();
    backend.wait(stream, end).unwrap();
    assert_eq!(backend.elapsed_ms(start, end).unwrap(), 1.5);
    fake.fail("cuEventQuery", 600);
    assert!(!backend.query(end).unwrap());
    assert!(backend.query(end).unwrap());
    fake.log();
}

fn refused_images(backend: &CudaBackend) {
    let problem = |ptx: &str, bytes| match backend.load(&image("add", ptx, bytes, [1; 3])).unwrap_err() {
        Error::Load { kernel, log } => {
            assert_eq!(kernel, "add");
            log
        }
        other => panic!("{other:?}"),
    };
    assert!(problem("refuse 218", 0).ends_with("the driver's compiler says: ptxas fatal : line 7"));
    assert!(problem("refuse 209", 0).contains("sm_90a, which Fake H200 (compute capability 9.0) does not run"));
    assert!(problem("refuse 222", 0).contains("PTX ISA 8.3, newer than the installed NVIDIA driver (CUDA 12.4)"));
    assert_eq!(
        problem("entry other params 16 shared 0", 16),
        "its image has no entry of this name"
    );
    assert_eq!(
        problem("entry add params 16 shared 0", 24),
        "its PTX declares an argument of 16 bytes, the manifest says 24"
    );
    assert!(problem("entry\0add", 16).contains("NUL byte at 5"));
    let full = backend.load(&image("add", "refuse 2", 0, [1; 3])).unwrap_err();
    assert!(matches!(full, Error::OutOfMemory { .. }), "{full:?}");
}

fn graphs(fake: &Fake, backend: &CudaBackend) {
    let stream = backend.create_stream().unwrap();
    let kernel = backend
        .load(&image("step", "entry step params 4 shared 0", 4, [1; 3]))
        .unwrap();
    let address = backend.allocate(64).unwrap();
    fake.log();
    backend.begin_capture(stream).unwrap();
    launch(backend, &request(kernel, stream, &[1; 4])).unwrap();
    // SAFETY: the ranges lie in the allocation.
    unsafe {
        let refused = backend.write(address, &[1; 4], stream).unwrap_err().to_string();
        assert!(
            refused.contains("while the stream is recorded into a graph"),
            "{refused}"
        );
        assert!(backend.read(address, &mut [0; 4], stream).is_err());
    }
    let graph = backend.end_capture(stream).unwrap();
    assert!(matches!(
        backend.end_capture(stream),
        Err(Error::Driver { code: 401, .. })
    ));
    // SAFETY: the fake driver runs nothing.
    unsafe { backend.launch_graph(graph, stream) }.unwrap();
    fake.fail("cuStreamSynchronize", 700);
    let fault = backend.synchronize(stream).unwrap_err().to_string();
    assert!(fault.contains("step, a CUDA graph that ends with step"), "{fault}");
    backend.destroy_graph(graph);
    // SAFETY: as above.
    assert!(unsafe { backend.launch_graph(graph, stream) }.is_err());
    let log = fake.log();
    assert_eq!(
        (log[0].as_str(), log.last().unwrap().as_str()),
        ("begin 2", "graph_exec_destroy")
    );
    assert_eq!(log.iter().filter(|line| *line == "graph_launch").count(), 1);
    backend.destroy_stream(stream);
}

fn tensor_maps(fake: &Fake, backend: &CudaBackend) {
    fake.log();
    let mut request = TensorMapRequest {
        dtype: DType::BF16,
        address: 0x1000,
        extents: vec![128, 500, 3],
        strides: vec![256, 128_000],
        box_extents: vec![64, 128, 1],
        swizzle: Swizzle::B128,
    };
    assert_eq!(backend.encode_tensor_map(&request).unwrap(), [7; 16]);
    assert_eq!(
        fake.log(),
        ["map 9 1000 ([128, 500, 3], [256, 128000], [64, 128, 1], [1, 1, 1]) 0 3 2 0"]
    );
    request.address += 8;
    assert!(
        backend
            .encode_tensor_map(&request)
            .unwrap_err()
            .to_string()
            .contains("a multiple of 16")
    );
}

fn faults(fake: &Fake, backend: &CudaBackend) {
    let stream = backend.create_stream().unwrap();
    let kernels = ["k0", "k1", "k2", "k3", "k4"].map(|name| {
        backend
            .load(&image(name, &format!("entry {name} params 4 shared 0"), 4, [1; 3]))
            .unwrap()
    });
    for kernel in kernels {
        launch(backend, &request(kernel, stream, &[0; 4])).unwrap();
    }
    for code in [700, 702, 714, 715, 716, 717, 718, 719] {
        fake.fail("cuStreamSynchronize", code);
        let Err(Error::Poisoned { kernel, cause }) = backend.synchronize(stream) else {
            panic!("code {code}")
        };
        assert_eq!(kernel, "k1, k2, k3, k4 (the last started; one of them)");
        assert!(cause.contains("cuStreamSynchronize"), "{cause}");
    }
    // A call without a stream names what any stream started.
    fake.fail("cuMemAlloc", 719);
    let Err(Error::Poisoned { kernel, cause }) = backend.allocate(8) else {
        panic!()
    };
    assert!(kernel.contains("k4") && kernel.contains("add"), "{kernel}");
    assert!(cause.starts_with("CUDA_ERROR_LAUNCH_FAILED"), "{cause}");
}
