//! A CUDA driver that runs nothing: memory is host memory, work is done when it is asked for, and every call that
//! matters is written into a log. Compiled to a shared library by the test beside this folder.
#![allow(non_snake_case)]

use std::{
    alloc::{Layout, alloc_zeroed},
    cell::Cell,
    collections::HashMap,
    ffi::{CStr, CString, c_char},
    sync::Mutex,
};

static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
static FAILURES: Mutex<Option<HashMap<String, u32>>> = Mutex::new(None);
static CAPTURING: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static NEXT: Mutex<usize> = Mutex::new(0x1000);
thread_local!(static CURRENT: Cell<usize> = const { Cell::new(0) });

pub struct Module {
    ptx: String,
}
pub struct Function {
    name: String,
    params: usize,
    fixed_shared: i32,
}

fn log(line: String) {
    LOG.lock().unwrap().push(line)
}
fn next() -> usize {
    let mut n = NEXT.lock().unwrap();
    *n += 0x10;
    *n
}
/// The code that the test ordered for this call, once; every later one too if it is a fault.
fn fails(name: &str) -> u32 {
    let mut failures = FAILURES.lock().unwrap();
    let failures = failures.get_or_insert_default();
    failures.remove(name).unwrap_or(0)
}
macro_rules! may_fail {
    ($name:literal) => {
        match fails($name) {
            0 => {}
            code => return code,
        }
    };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_fail(name: *const c_char, code: u32) {
    let name = unsafe { CStr::from_ptr(name) }.to_str().unwrap().to_owned();
    FAILURES.lock().unwrap().get_or_insert_default().insert(name, code);
}
/// Takes the log as one leaked text.
#[unsafe(no_mangle)]
pub extern "C" fn fake_log() -> *const c_char {
    CString::new(std::mem::take(&mut *LOG.lock().unwrap()).join("\n"))
        .unwrap()
        .into_raw()
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: u32) -> u32 {
    may_fail!("cuInit");
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(v: *mut i32) -> u32 {
    unsafe { *v = 12040 };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(n: *mut i32) -> u32 {
    unsafe { *n = 1 };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(d: *mut i32, n: i32) -> u32 {
    unsafe { *d = n };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(out: *mut c_char, n: i32, _: i32) -> u32 {
    let name = c"Fake H200";
    assert!(n as usize > name.count_bytes());
    unsafe { out.copy_from_nonoverlapping(name.as_ptr(), name.count_bytes() + 1) };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(n: *mut usize, _: i32) -> u32 {
    unsafe { *n = 1 << 37 };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(v: *mut i32, which: u32, _: i32) -> u32 {
    unsafe {
        *v = match which {
            16 => 132,
            38 => 50 << 20,
            75 => 9,
            76 => 0,
            81 => 233472,
            97 => 232448,
            _ => return 1,
        }
    };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(c: *mut usize, _: i32) -> u32 {
    may_fail!("cuDevicePrimaryCtxRetain");
    log("retain".into());
    unsafe { *c = 0xc0 };
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_: i32) -> u32 {
    log("release".into());
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(c: *mut usize) -> u32 {
    unsafe { *c = CURRENT.get() };
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(c: usize) -> u32 {
    CURRENT.set(c);
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> u32 {
    log("ctx_synchronize".into());
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    if CURRENT.get() != 0xc0 {
        return 201;
    }
    unsafe { (*free, *total) = (12345, 1 << 37) };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(p: *mut u64, n: usize) -> u32 {
    may_fail!("cuMemAlloc");
    if CURRENT.get() != 0xc0 {
        return 201;
    }
    unsafe { *p = alloc_zeroed(Layout::from_size_align(n, 256).unwrap()) as u64 };
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(_: u64) -> u32 {
    log("free".into());
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(p: *mut usize, n: usize, _: u32) -> u32 {
    unsafe { *p = alloc_zeroed(Layout::from_size_align(n, 4096).unwrap()) as usize };
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(_: usize) -> u32 {
    log("free_host".into());
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(t: u64, s: *const u8, n: usize, _: usize) -> u32 {
    log(format!("htod {n} from={:x}", s as usize));
    unsafe { (t as *mut u8).copy_from(s, n) };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(t: *mut u8, s: u64, n: usize, _: usize) -> u32 {
    unsafe { t.copy_from(s as *const u8, n) };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(t: u64, s: u64, n: usize, _: usize) -> u32 {
    unsafe { (t as *mut u8).copy_from(s as *const u8, n) };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(t: u64, v: u8, n: usize, _: usize) -> u32 {
    unsafe { (t as *mut u8).write_bytes(v, n) };
    0
}

/// "entry NAME params N shared N" stands for PTX; "refuse CODE" is refused, with a log where one is asked for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    m: *mut *mut Module,
    image: *const c_char,
    n: u32,
    options: *const u32,
    values: *const *mut c_char,
) -> u32 {
    let ptx = unsafe { CStr::from_ptr(image) }.to_str().unwrap().to_owned();
    if let Some(code) = ptx.strip_prefix("refuse ") {
        for i in 0..n as usize {
            if unsafe { *options.add(i) } == 5 {
                let text = c"ptxas fatal : line 7";
                unsafe { (*values.add(i)).copy_from(text.as_ptr(), text.count_bytes() + 1) };
            }
        }
        return code.parse().unwrap();
    }
    unsafe { *m = Box::into_raw(Box::new(Module { ptx })) };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(m: *mut Module) -> u32 {
    log("unload".into());
    drop(unsafe { Box::from_raw(m) });
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(f: *mut *mut Function, m: *const Module, n: *const c_char) -> u32 {
    let words: Vec<&str> = unsafe { &(*m).ptx }.split(' ').collect();
    if words[1] != unsafe { CStr::from_ptr(n) }.to_str().unwrap() {
        return 500;
    }
    let function = Function {
        name: words[1].into(),
        params: words[3].parse().unwrap(),
        fixed_shared: words[5].parse().unwrap(),
    };
    unsafe { *f = Box::into_raw(Box::new(function)) };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(v: *mut i32, which: u32, f: *const Function) -> u32 {
    unsafe {
        *v = match which {
            0 => 384,
            1 => (*f).fixed_shared,
            2 => 20,
            3 => 30,
            4 => 168,
            5 => 83,
            6 => 90,
            _ => return 1,
        }
    };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(f: *const Function, which: u32, v: i32) -> u32 {
    log(format!("set {} {which}={v}", unsafe { &(*f).name }));
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetParamInfo(f: *const Function, i: usize, o: *mut usize, n: *mut usize) -> u32 {
    if i > 0 {
        return 1;
    }
    unsafe { (*o, *n) = (0, (*f).params) };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(b: *mut i32, _: usize, t: i32, s: usize) -> u32 {
    unsafe { *b = 2048 / t + s as i32 };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveClusters(c: *mut i32, _: usize, config: *const Config) -> u32 {
    unsafe { *c = (*config).grid[0] as i32 };
    0
}
unsafe fn launched(
    f: *const Function,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    params: *const *const u8,
    more: String,
) {
    let function = unsafe { &*f };
    let bytes = unsafe { std::slice::from_raw_parts(*params, function.params) };
    log(format!(
        "launch {} {grid:?} {block:?} {shared} {bytes:?}{more}",
        function.name
    ));
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    f: *const Function,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    _: usize,
    params: *const *const u8,
    extra: usize,
) -> u32 {
    may_fail!("cuLaunchKernel");
    assert_eq!(extra, 0);
    unsafe { launched(f, [gx, gy, gz], [bx, by, bz], shared, params, String::new()) };
    0
}
#[repr(C)]
pub struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: usize,
    list: *const [u32; 18],
    count: u32,
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    c: *const Config,
    f: *const Function,
    params: *const *const u8,
    _: usize,
) -> u32 {
    let c = unsafe { &*c };
    let list = unsafe { std::slice::from_raw_parts(c.list, c.count as usize) };
    let more = list.iter().map(|a| format!(" {}={:?}", a[0], &a[2..5])).collect();
    unsafe { launched(f, c.grid, c.block, c.shared, params, more) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(s: *mut usize, flags: u32) -> u32 {
    log(format!("stream_create {flags}"));
    unsafe { *s = next() };
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(_: usize) -> u32 {
    log("stream_destroy".into());
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(_: usize) -> u32 {
    may_fail!("cuStreamSynchronize");
    log("stream_synchronize".into());
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(_: usize, _: usize, _: u32) -> u32 {
    log("wait".into());
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(s: usize, v: *mut u32) -> u32 {
    unsafe { *v = CAPTURING.lock().unwrap().contains(&s) as u32 };
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(s: usize, mode: u32) -> u32 {
    log(format!("begin {mode}"));
    CAPTURING.lock().unwrap().push(s);
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(s: usize, g: *mut usize) -> u32 {
    let mut capturing = CAPTURING.lock().unwrap();
    let Some(place) = capturing.iter().position(|&c| c == s) else {
        return 401;
    };
    capturing.remove(place);
    unsafe { *g = next() };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(e: *mut usize, _: usize, _: u64) -> u32 {
    unsafe { *e = next() };
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(_: usize, _: usize) -> u32 {
    log("graph_launch".into());
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(_: usize) -> u32 {
    log("graph_destroy".into());
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(_: usize) -> u32 {
    log("graph_exec_destroy".into());
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(e: *mut usize, _: u32) -> u32 {
    unsafe { *e = next() };
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(_: usize) -> u32 {
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(_: usize, _: usize) -> u32 {
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(_: usize) -> u32 {
    may_fail!("cuEventQuery");
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(_: usize) -> u32 {
    log("event_synchronize".into());
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(t: *mut f32, _: usize, _: usize) -> u32 {
    unsafe { *t = 1.5 };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut [u64; 16],
    element: u32,
    rank: u32,
    address: u64,
    extents: *const u64,
    strides: *const u64,
    boxes: *const u32,
    steps: *const u32,
    interleave: u32,
    swizzle: u32,
    l2: u32,
    fill: u32,
) -> u32 {
    assert_eq!((map as usize) % 64, 0);
    let r = rank as usize;
    unsafe {
        let list = (
            std::slice::from_raw_parts(extents, r),
            std::slice::from_raw_parts(strides, r - 1),
            std::slice::from_raw_parts(boxes, r),
            std::slice::from_raw_parts(steps, r),
        );
        log(format!(
            "map {element} {address:x} {list:?} {interleave} {swizzle} {l2} {fill}"
        ));
        *map = [7; 16];
    }
    0
}
