//! What the safe path costs on the CPU: checks of a launch, the launch itself beside the bare backend's and the raw driver
//! call, graphs, memory, PTX. On a GPU the kernel runs behind the measured calls; on the emulator its work on 32 elements is part of them.

use std::{
    ffi::{CString, c_void},
    ptr::null_mut,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use driver::{calls, handle};
use host::{
    AnyTensor, DType, Device, DeviceKind, Tier,
    backend::{LaunchRequest, StreamId},
    images::Images,
    kv,
    launch::Contract,
};
use kernels_gpu::params::{KernelParams, VectorAddParams};

/// The emulator, and the first GPU when there is one.
fn devices() -> Vec<Device> {
    [DeviceKind::Emulator, DeviceKind::Cuda(0)]
        .into_iter()
        .filter_map(|kind| Device::with_options(Some(kind), Default::default()).ok())
        .collect()
}

struct Operands {
    a: AnyTensor,
    b: AnyTensor,
    out: AnyTensor,
}

impl Operands {
    fn new(device: &Device) -> Operands {
        let tensor = || AnyTensor::zeros(device, DType::F32, &[32]).expect("a tensor of 128 bytes");
        Operands {
            a: tensor(),
            b: tensor(),
            out: tensor(),
        }
    }

    fn params(&self) -> VectorAddParams {
        VectorAddParams {
            a: self.a.address(),
            b: self.b.address(),
            out: self.out.address(),
            len: 32,
        }
    }

    fn contract<'a>(&'a self, device: &'a Device) -> Contract<'a> {
        Contract::new(device, "vector_add")
            .reads("a", &self.a)
            .reads("b", &self.b)
            .writes("out", &self.out)
    }

    fn launch(&self, device: &Device) {
        let prepared = self.contract(device).prepare().expect("a launch within limits");
        // SAFETY: the argument of this kernel over the tensors of the contract.
        unsafe { prepared.launch(&self.params()) }.expect("a launch");
    }
}

/// Launches between two waits: the driver's queue holds more, so that none of them waits for the GPU.
const BURST: u64 = 256;

/// Time of `count` launches alone, in bursts, each waited for outside of the measured time.
fn bursts(device: &Device, count: u64, mut launch: impl FnMut()) -> Duration {
    let mut total = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let burst = left.min(BURST);
        let begun = Instant::now();
        (0..burst).for_each(|_| launch());
        total += begun.elapsed();
        device.synchronize().expect("no fault");
        left -= burst;
    }
    total
}

/// A kernel and a stream as a program without this crate has them.
struct Raw {
    function: handle::Function,
    stream: handle::Stream,
    threads: [u32; 3],
    _module: cust::module::Module,
}

impl Raw {
    /// The context of the device's backend is current here.
    fn new() -> Raw {
        let image = Images::embedded()
            .load(Tier::Sm80, "vector_add")
            .expect("an embedded kernel");
        let text = CString::new(&*image.ptx).expect("a text");
        let module = cust::module::Module::from_ptx_cstr(&text, &[]).expect("PTX that the driver takes");
        let function = module.get_function("vector_add").expect("its kernel").to_raw();
        let mut stream = handle::Stream(null_mut());
        // SAFETY: a place for a handle; 1 is CU_STREAM_NON_BLOCKING.
        unsafe { calls::stream_create(&mut stream, 1) }.expect("a stream");
        Raw {
            function: handle::Function(function.cast()),
            stream,
            threads: image.info.threads,
            _module: module,
        }
    }

    fn launch(&self, params: &VectorAddParams) {
        let mut argument = params.as_bytes().as_ptr().cast_mut().cast::<c_void>();
        let [x, y, z] = self.threads;
        // SAFETY: kernel and stream are alive; the argument is the kernel's, over tensors that outlive the wait.
        unsafe {
            calls::launch_kernel(
                self.function,
                1,
                1,
                1,
                x,
                y,
                z,
                0,
                self.stream,
                &raw mut argument,
                null_mut(),
            )
        }
        .expect("a launch");
    }
}

/// Both ways in turns, and how much the safe one costs more: what issue and docs quote.
fn overhead(device: &Device, operands: &Operands, raw: &Raw) {
    let params = operands.params();
    let (mut safe, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..101 {
        let nanoseconds = |time: Duration| time.as_nanos() as f64 / BURST as f64;
        safe.push(nanoseconds(bursts(device, BURST, || operands.launch(device))));
        bare.push(nanoseconds(bursts(device, BURST, || raw.launch(&params))));
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (safe, bare) = (median(safe), median(bare));
    println!(
        "launch overhead on {device}: safe path {safe:.0} ns, raw cuLaunchKernel {bare:.0} ns, {:.0} ns over it (at most 1000)",
        safe - bare
    );
}

fn launches(criterion: &mut Criterion) {
    for device in devices() {
        let operands = Operands::new(&device);
        operands.launch(&device);
        let mut group = criterion.benchmark_group(format!("launch on {}", device.kind()));
        group.bench_function("contract and checks", |b| {
            b.iter(|| operands.contract(&device).prepare().is_ok())
        });
        group.bench_function("safe path", |b| {
            b.iter_custom(|count| bursts(&device, count, || operands.launch(&device)))
        });

        let backend = device.backend();
        let image = Images::embedded()
            .load(device.tier(), "vector_add")
            .expect("an embedded kernel");
        let kernel = backend.load(&image).expect("a kernel that the device takes");
        let params = operands.params();
        let request = LaunchRequest {
            kernel,
            grid: [1; 3],
            block: image.info.threads,
            cluster: [1; 3],
            dynamic_shared: 0,
            params: params.as_bytes(),
            stream: StreamId(device.stream().id().0),
            programmatic: false,
        };
        group.bench_function("bare backend", |b| {
            b.iter_custom(|count| {
                bursts(&device, count, || {
                    // SAFETY: as above.
                    unsafe { backend.launch(&request) }.expect("a launch")
                })
            })
        });
        if let DeviceKind::Cuda(_) = device.kind() {
            let raw = Raw::new();
            group.bench_function("raw driver call", |b| {
                b.iter_custom(|count| bursts(&device, count, || raw.launch(&params)))
            });
            overhead(&device, &operands, &raw);
        }

        let record = || {
            for _ in 0..20 {
                operands.launch(&device);
            }
            Ok(())
        };
        let (graph, ()) = device.capture(record).expect("a graph");
        group.bench_function("graph of 20", |b| b.iter(|| graph.launch().expect("a replay")));
        device.synchronize().expect("no fault");
        group.bench_function("tensor from the pool", |b| {
            b.iter(|| AnyTensor::empty(&device, DType::F32, &[32]).is_ok())
        });
        group.finish();
    }
}

fn views(criterion: &mut Criterion) {
    let device = Device::emulator().expect("the emulator");
    let qkv = AnyTensor::zeros(&device, DType::F16, &[4, 128, 3, 8, 64]).expect("a tensor");
    let part = |index| qkv.select(2, index).expect("one of three");
    let (q, k) = (part(0), part(1));
    criterion.bench_function("overlap of two parts of packed QKV", |b| b.iter(|| q.overlaps(&k)));
}

fn images(criterion: &mut Criterion) {
    let device = Device::emulator().expect("the emulator");
    criterion.bench_function("unpack and parse vector_add", |b| {
        b.iter_batched(
            || (),
            |()| {
                let image = Images::embedded()
                    .load(Tier::Sm90a, "vector_add")
                    .expect("an embedded kernel");
                device.backend().load(&image).expect("PTX that the emulator takes")
            },
            BatchSize::SmallInput,
        )
    });
}

fn pages(criterion: &mut Criterion) {
    let config = kv::PoolConfig::new(16, 4096).prefix_cache("model", "bf16");
    let pool = kv::PagePool::new(config).expect("a pool within limits");
    let tokens: Vec<u32> = (0..1000).collect();
    criterion.bench_function("page pool: a sequence of 1000 tokens comes and goes", |b| {
        b.iter_batched_ref(
            || pool.clone(),
            |pool| {
                let (sequence, cached) = pool.create_sequence_with_prefix(&tokens);
                // No device is there to carry out the plan.
                let _plan = pool
                    .append(sequence, kv::NewTokens::Ids(&tokens[cached..]))
                    .expect("enough pages");
                pool.free(sequence).expect("a live sequence");
            },
            BatchSize::SmallInput,
        )
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(std::time::Duration::from_millis(200)).measurement_time(std::time::Duration::from_secs(1));
    targets = launches, views, images, pages
}
criterion_main!(benches);
