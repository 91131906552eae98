//! Generated kernels: TMA into swizzled stages, `wgmma` from them, `ldmatrix` and `mma.sync`, TMA stores, against naive products.

use std::fmt::Write as _;

use emulator::numeric::half::Half;
use emulator::tensor::map::Interleave;
use emulator::tensor::{DataType, OobFill, Swizzle, TensorMap, Tiled};
use emulator::{Checks, DeviceAddress, Launch, Machine, Module, Target};

/// Small integers, exact in every type and sum.
fn value(i: usize) -> f32 {
    ((i * 7 + i / 13) % 9) as f32 - 4.0
}

/// Without checks, with all, and with all on random schedules.
fn machines() -> Vec<Machine> {
    let mut all = vec![
        Machine::new(Target::SM_90A),
        Machine::new(Target::SM_90A).checks(Checks::all()),
    ];
    all.extend((1..4).map(|seed| Machine::new(Target::SM_90A).checks(Checks::all()).seed(seed)));
    all
}

fn upload(machine: &Machine, bytes: &[u8]) -> DeviceAddress {
    let at = machine.allocate(bytes.len()).unwrap();
    machine.write(at, bytes).unwrap();
    at
}

fn halves(kind: Half, values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|v| kind.narrow(v.to_bits()).to_le_bytes())
        .collect()
}

/// A two-dimensional map with dense rows.
fn map(
    data_type: DataType,
    at: DeviceAddress,
    columns: usize,
    rows: usize,
    size: [u32; 2],
    swizzle: Swizzle,
) -> TensorMap {
    TensorMap::new(Tiled {
        data_type,
        address: at.0,
        dims: vec![columns as u64, rows as u64],
        strides: vec![(columns as u64) * u64::from(data_type.size())],
        box_dims: size.to_vec(),
        element_strides: vec![1, 1],
        interleave: Interleave::None,
        swizzle,
        oob_fill: OobFill::Zero,
    })
    .unwrap()
}

fn launch(machine: &Machine, source: &str, block: u32, shared: u32, arguments: &[u64]) {
    let module = Module::parse(source).unwrap_or_else(|e| panic!("{e}\n{source}"));
    let params: Vec<u8> = arguments.iter().flat_map(|a| a.to_le_bytes()).collect();
    let launch = Launch {
        block: [block, 1, 1],
        dynamic_shared_bytes: shared,
        params: &params,
        ..Launch::default()
    };
    if let Err(e) = machine.launch(&module, "kernel", &launch) {
        panic!("{e}\n{source}");
    }
}

fn floats(machine: &Machine, at: DeviceAddress, count: usize) -> Vec<f32> {
    let mut bytes = vec![0; count * 4];
    machine.read(at, &mut bytes).unwrap();
    bytes
        .chunks(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

const HEAD: &str = ".version 8.3\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 smem[];\n";

/// `D[64][n] = A[64][64] · B`, both through TMA with a 128-byte swizzle; B is `[n][64]` or, MN-major, `[64][n]`.
fn wgmma_kernel(n: usize, ty: &str, b_mn: bool) -> String {
    let registers = |count: usize| (0..count).map(|i| format!("%f{i}")).collect::<Vec<_>>().join(", ");
    let boxes_b = if b_mn { n / 64 } else { 1 };
    let (b_bytes, barrier) = (n * 128, 8192 + n * 128);
    let mut s = String::from(HEAD);
    write!(
        s,
        ".visible .entry kernel(.param .u64 pa, .param .u64 pb, .param .u64 pd) {{
        .reg .pred %p<4>; .reg .b32 %r<32>; .reg .b64 %rd<16>; .reg .f32 %f<{}>;
        ld.param.u64 %rd1, [pa]; ld.param.u64 %rd2, [pb]; ld.param.u64 %rd3, [pd];
        mov.u32 %r1, %tid.x; mov.u32 %r2, smem; add.u32 %r3, %r2, {barrier}; add.u32 %r4, %r2, 8192;
        setp.eq.u32 %p1, %r1, 0; mov.u32 %r5, 0;
        @%p1 mbarrier.init.shared::cta.b64 [%r3], 1;
        @%p1 fence.mbarrier_init.release.cluster;
        bar.sync 0;
        @!%p1 bra $WAIT;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {};
        cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], [%rd1, {{%r5, %r5}}], [%r3];\n",
        n / 2,
        8192 + b_bytes
    )
    .unwrap();
    for tile in 0..boxes_b {
        write!(
            s,
            "mov.u32 %r6, {}; add.u32 %r7, %r4, {};
            cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r7], [%rd2, {{%r6, %r5}}], [%r3];\n",
            tile * 64,
            tile * 8192
        )
        .unwrap();
    }
    s.push_str("$WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0; @!%p2 bra $WAIT;\n");
    for (register, address, major) in [(4, "%r2", false), (5, "%r4", b_mn)] {
        let leading: u64 = if major { 8192 / 16 } else { 1 };
        let bits = 1u64 << 62 | (1024 / 16) << 32 | leading << 16;
        write!(
            s,
            "and.b32 %r8, {address}, 262143; shr.u32 %r8, %r8, 4; cvt.u64.u32 %rd{register}, %r8;
            or.b64 %rd{register}, %rd{register}, {bits};\n"
        )
        .unwrap();
    }
    s.push_str("wgmma.fence.sync.aligned;\n");
    for step in 0..4 {
        writeln!(
            s,
            "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{ty}.{ty} {{{}}}, %rd4, %rd5, {}, 1, 1, 0, {};
            add.u64 %rd4, %rd4, 2; add.u64 %rd5, %rd5, {};",
            registers(n / 2),
            u8::from(step > 0),
            u8::from(b_mn),
            if b_mn { 128 } else { 2 }
        )
        .unwrap();
    }
    s.push_str("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;\n");
    // Row 16·warp + lane / 4, column 2·(lane % 4).
    write!(
        s,
        "shr.u32 %r9, %r1, 5; shl.b32 %r9, %r9, 4; and.b32 %r10, %r1, 31; shr.u32 %r11, %r10, 2; add.u32 %r9, %r9, %r11;
        and.b32 %r10, %r10, 3; shl.b32 %r10, %r10, 1; mad.lo.u32 %r9, %r9, {n}, %r10; mul.wide.u32 %rd6, %r9, 4; add.u64 %rd3, %rd3, %rd6;\n"
    )
    .unwrap();
    for i in 0..n / 2 {
        let at = (i / 2 % 2 * 8 * n + i / 4 * 8 + i % 2) * 4;
        writeln!(s, "st.global.f32 [%rd3+{at}], %f{i};").unwrap();
    }
    s.push_str("ret;\n}\n");
    s
}

#[test]
fn wgmma_from_tensor_maps() {
    for (n, half, b_mn) in [
        (8, Half::F16, false),
        (64, Half::F16, true),
        (128, Half::Bf16, false),
        (128, Half::Bf16, true),
        (256, Half::F16, false),
    ] {
        let (ty, data_type) = match half {
            Half::F16 => ("f16", DataType::F16),
            Half::Bf16 => ("bf16", DataType::Bf16),
        };
        let source = wgmma_kernel(n, ty, b_mn);
        let a: Vec<f32> = (0..64 * 64).map(value).collect();
        let b: Vec<f32> = (0..64 * n).map(|i| value(i + 5)).collect();
        for machine in machines() {
            let pa = upload(&machine, &halves(half, &a));
            let pb = upload(&machine, &halves(half, &b));
            let ma = map(data_type, pa, 64, 64, [64, 64], Swizzle::B128);
            let mb = if b_mn {
                map(data_type, pb, n, 64, [64, 64], Swizzle::B128)
            } else {
                map(data_type, pb, 64, n, [64, n as u32], Swizzle::B128)
            };
            let (ma, mb) = (upload(&machine, &ma.encode()), upload(&machine, &mb.encode()));
            let d = machine.allocate(64 * n * 4).unwrap();
            launch(&machine, &source, 128, 8192 + n as u32 * 128 + 16, &[ma.0, mb.0, d.0]);
            let d = floats(&machine, d, 64 * n);
            for r in 0..64 {
                for c in 0..n {
                    let at = |k: usize| if b_mn { b[k * n + c] } else { b[c * 64 + k] };
                    let want: f32 = (0..64).map(|k| a[r * 64 + k] * at(k)).sum();
                    assert_eq!(d[r * n + c], want, "n {n} {half:?} {b_mn} at {r}, {c}");
                }
            }
        }
    }
}

/// One warp: A and B by `cp.async` to shared memory, `ldmatrix`, `mma.sync`, `stmatrix`, and out through a TMA store with a box that
/// hangs over the tensor's edge.
fn store_kernel(row: i32) -> String {
    format!(
        "{HEAD}.visible .entry kernel(.param .u64 pa, .param .u64 pb, .param .u64 pm) {{
        .reg .pred %p<4>; .reg .b32 %r<32>; .reg .b64 %rd<16>;
        ld.param.u64 %rd1, [pa]; ld.param.u64 %rd2, [pb]; ld.param.u64 %rd3, [pm];
        mov.u32 %r1, %tid.x; mov.u32 %r2, smem; shl.b32 %r3, %r1, 4; cvt.u64.u32 %rd4, %r3;
        add.u64 %rd1, %rd1, %rd4; add.u32 %r4, %r2, %r3;
        cp.async.cg.shared.global [%r4], [%rd1], 16;
        setp.lt.u32 %p1, %r1, 16; add.u64 %rd2, %rd2, %rd4;
        @%p1 cp.async.cg.shared.global [%r4+512], [%rd2], 16;
        cp.async.commit_group; cp.async.wait_group 0; bar.warp.sync 0xffffffff;
        // A is 16 x 16: lane gives row lane % 16, half lane / 16. Register 1 is rows 8 to 15, register 2 the right half.
        and.b32 %r5, %r1, 15; shl.b32 %r5, %r5, 5; shr.u32 %r6, %r1, 4; shl.b32 %r6, %r6, 4; add.u32 %r5, %r5, %r6; add.u32 %r5, %r5, %r2;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r5];
        and.b32 %r7, %r1, 15; shl.b32 %r7, %r7, 4; add.u32 %r7, %r7, %r2;
        ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {{%r14, %r15}}, [%r7+512];
        mov.u32 %r20, 0;
        mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {{%r16, %r17}}, {{%r10, %r11, %r12, %r13}}, {{%r14, %r15}}, {{%r20, %r20}};
        stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r7+1024], {{%r16, %r17}};
        fence.proxy.async; bar.warp.sync 0xffffffff;
        setp.ne.u32 %p2, %r1, 0; @%p2 bra $END;
        mov.u32 %r21, 0; mov.u32 %r22, {row}; add.u32 %r2, %r2, 1024;
        cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd3, {{%r21, %r22}}], [%r2];
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
        $END: ret; }}"
    )
}

#[test]
fn ldmatrix_mma_stmatrix_and_a_store_over_the_edge() {
    let source = store_kernel(4);
    let a: Vec<f32> = (0..256).map(value).collect();
    let b: Vec<f32> = (0..128).map(|i| value(i + 3)).collect();
    for machine in machines() {
        let pa = upload(&machine, &halves(Half::F16, &a));
        let pb = upload(&machine, &halves(Half::F16, &b));
        let out = upload(&machine, &[0xcc; 12 * 8 * 2]);
        let m = map(DataType::F16, out, 8, 12, [8, 16], Swizzle::None);
        let pm = upload(&machine, &m.encode());
        launch(&machine, &source, 32, 1280, &[pa.0, pb.0, pm.0]);
        let mut bytes = vec![0; 12 * 8 * 2];
        machine.read(out, &mut bytes).unwrap();
        assert!(bytes[..4 * 8 * 2].iter().all(|&b| b == 0xcc), "rows above the box");
        for r in 4..12 {
            for c in 0..8 {
                let at = (r * 8 + c) * 2;
                let got = f32::from_bits(Half::F16.widen(u16::from_le_bytes([bytes[at], bytes[at + 1]])));
                let want: f32 = (0..16).map(|k| a[(r - 4) * 16 + k] * b[k * 8 + c]).sum();
                assert_eq!(got, want, "{r}, {c}");
            }
        }
    }
}

/// Hardware clips the box of a store by 16 bytes and not by elements: what follows a row of 5 is overwritten.
#[test]
fn a_store_fills_the_last_sixteen_bytes_of_a_row() {
    for machine in machines() {
        let pa = upload(&machine, &halves(Half::F16, &[1.0; 256]));
        let pb = upload(&machine, &halves(Half::F16, &[1.0; 128]));
        let out = upload(&machine, &[0xcc; 12 * 8 * 2]);
        let mut tiled = map(DataType::F16, out, 8, 12, [8, 16], Swizzle::None).tiled().clone();
        tiled.dims[0] = 5;
        let pm = upload(&machine, &TensorMap::new(tiled).unwrap().encode());
        launch(&machine, &store_kernel(0), 32, 1280, &[pa.0, pb.0, pm.0]);
        let mut bytes = vec![0; 12 * 8 * 2];
        machine.read(out, &mut bytes).unwrap();
        let sixteen = halves(Half::F16, &[16.0; 12 * 8]);
        assert_eq!(bytes, sixteen);
    }
}

/// Hardware takes a store that begins at a negative coordinate for an illegal instruction.
#[test]
fn a_store_does_not_begin_before_the_tensor() {
    let machine = Machine::new(Target::SM_90A);
    let pa = upload(&machine, &[0; 512]);
    let pb = upload(&machine, &[0; 256]);
    let out = upload(&machine, &[0; 12 * 8 * 2]);
    let pm = upload(
        &machine,
        &map(DataType::F16, out, 8, 12, [8, 16], Swizzle::None).encode(),
    );
    let module = Module::parse(&store_kernel(-2)).unwrap();
    let params: Vec<u8> = [pa, pb, pm].iter().flat_map(|a| a.0.to_le_bytes()).collect();
    let launch = Launch {
        block: [32, 1, 1],
        dynamic_shared_bytes: 1280,
        params: &params,
        ..Launch::default()
    };
    match machine.launch(&module, "kernel", &launch) {
        Err(emulator::Error::Fault(fault)) => assert!(fault.to_string().contains("negative coordinate -2"), "{fault}"),
        other => panic!("{other:?}"),
    }
}
