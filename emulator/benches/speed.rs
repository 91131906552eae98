//! How fast the machine is: thread instructions a second on one core, without and with checks.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use emulator::tensor::mma::{self, Accumulator};
use emulator::tensor::{Descriptor, Element, Major, Swizzle, wgmma};
use emulator::{Checks, Launch, Machine, Module, Target};

/// Index arithmetic, comparisons and a fused multiply-add in a loop of 64 turns.
const SCALAR: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry scalar(.param .u64 out)
{
    .reg .pred %p<3>;
    .reg .b32 %r<12>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mad.lo.s32 %r3, %r2, 256, %r1;
    mov.b32 %r4, 0;
    mov.f32 %f1, 0f3F800000;
    mov.f32 %f2, 0f3F000000;
$LOOP:
    add.s32 %r3, %r3, %r4;
    shl.b32 %r5, %r3, 3;
    xor.b32 %r6, %r5, %r3;
    and.b32 %r7, %r6, 1023;
    mul.lo.s32 %r8, %r7, %r3;
    add.s32 %r3, %r8, %r6;
    fma.rn.f32 %f1, %f1, %f2, %f2;
    setp.gt.s32 %p2, %r3, 0;
    selp.b32 %r3, %r3, %r5, %p2;
    add.s32 %r4, %r4, 1;
    setp.lt.u32 %p1, %r4, 64;
    @%p1 bra $LOOP;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    mul.wide.u32 %rd4, %r2, 1024;
    add.s64 %rd3, %rd3, %rd4;
    st.global.b32 [%rd3], %r3;
    ret;
}";

/// A copy through shared memory, word by word, 64 times.
const MEMORY: &str = "
.version 8.0
.target sm_80
.address_size 64
.shared .align 4 .b8 tile[1024];
.visible .entry memory(.param .u64 out)
{
    .reg .pred %p<3>;
    .reg .b32 %r<12>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    mul.wide.u32 %rd4, %r2, 1024;
    add.s64 %rd3, %rd3, %rd4;
    mov.u32 %r3, tile;
    shl.b32 %r4, %r1, 2;
    add.s32 %r5, %r3, %r4;
    xor.b32 %r6, %r4, 128;
    add.s32 %r6, %r3, %r6;
    mov.b32 %r7, 0;
$LOOP:
    ld.global.b32 %r8, [%rd3];
    st.shared.b32 [%r5], %r8;
    bar.sync 0;
    ld.shared.b32 %r9, [%r6];
    bar.sync 0;
    add.s32 %r9, %r9, %r7;
    st.global.b32 [%rd3], %r9;
    add.s32 %r7, %r7, 1;
    setp.lt.u32 %p1, %r7, 64;
    @%p1 bra $LOOP;
    ret;
}";

fn speed(c: &mut Criterion) {
    let mut group = c.benchmark_group("emulator");
    group.sample_size(10);
    for (name, source) in [("scalar", SCALAR), ("memory", MEMORY)] {
        let module = Module::parse(source).expect("the kernel parses");
        for (label, checks) in [("", Checks::none()), (" checked", Checks::all())] {
            let machine = Machine::new(Target::SM_90A).checks(checks).threads(1);
            let out = machine.allocate(64 * 1024).expect("memory");
            machine.fill(out, 0, 64 * 1024).expect("in range");
            let params = out.0.to_le_bytes();
            let launch = Launch {
                grid: [64, 1, 1],
                block: [256, 1, 1],
                params: &params,
                ..Launch::default()
            };
            let run = || machine.launch(&module, name, &launch).expect("no fault");
            group.throughput(Throughput::Elements(run().thread_instructions));
            group.bench_function(format!("{name}{label}"), |b| b.iter(|| black_box(run())));
        }
    }
    group.finish();
}

/// Operations of the tensor instructions alone: an element is one multiplication or addition.
fn tensor(c: &mut Criterion) {
    let mut group = c.benchmark_group("tensor");
    let shape = wgmma::Shape {
        n: 256,
        a: Element::Bf16,
        b: Element::Bf16,
        d: Accumulator::F32,
        negate_a: false,
        negate_b: false,
        a_major: Major::K,
        b_major: Major::K,
    };
    let shared: Vec<u8> = (0..64 << 10)
        .map(|i| {
            if i % 2 == 0 {
                (i * 7) as u8
            } else {
                0x3c + (i % 5) as u8
            }
        })
        .collect();
    let at = |start| Descriptor {
        start,
        leading: 16,
        stride: 1024,
        base: 0,
        swizzle: Swizzle::B128,
    };
    let mut work = wgmma::Operands::default();
    let mut accumulators = vec![vec![[0u64; 32]; shape.d_registers()]; 4];
    group.throughput(Throughput::Elements(shape.flops()));
    group.bench_function("wgmma m64n256k16 bf16", |b| {
        b.iter(|| {
            work.a_shared(&shape, &at(0), &shared, 0).expect("inside");
            work.b_shared(&shape, &at(0x4000), &shared, 0).expect("inside");
            work.multiply(&shape);
            for (warp, registers) in accumulators.iter_mut().enumerate() {
                for (i, lanes) in registers.iter_mut().enumerate() {
                    work.accumulate(&shape, warp, i, true, lanes);
                }
            }
        });
    });
    for (name, a, k) in [
        ("mma m16n8k16 f16", Element::F16, 16),
        ("mma m16n8k8 tf32", Element::Tf32, 8),
    ] {
        let shape = mma::Shape {
            m: 16,
            k,
            a,
            b: a,
            c: Accumulator::F32,
            d: Accumulator::F32,
        };
        let operand = vec![&[0x3c00_3c00; 32]; shape.a_registers()];
        let c = [&[0; 32]; 4];
        let mut d = [[0; 32]; 4];
        group.throughput(Throughput::Elements(shape.flops()));
        group.bench_function(name, |b| {
            b.iter(|| mma::mma(&shape, &operand, &operand[..shape.b_registers()], black_box(&c), &mut d));
        });
    }
    group.finish();
}

criterion_group!(benches, speed, tensor);
criterion_main!(benches);
