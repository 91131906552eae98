//! cuBLASLt as a peer of linear layers: found when the program runs, never linked; the best of its own heuristics.
//!
//! Enumerations are those of `cublasLt.h` and `library_types.h` (cuBLAS 12 and 13), the driver's those of `cuda.h`.

use std::{
    ffi::{c_int, c_uint, c_void},
    path::PathBuf,
    ptr::null_mut,
};

use host::{AnyTensor, DType, Device};
use libloading::Library;

use super::{
    case::Product,
    harness::{TURN, median},
    peers::Rival,
};

type Handle = *mut c_void;
type Status = c_int;

const COMPUTE_32F: c_int = 68;
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
const DESC_TRANSA: c_int = 3;
const DESC_EPILOGUE: c_int = 7;
const DESC_BIAS_POINTER: c_int = 8;
const OP_T: c_int = 1;
const EPILOGUE_GELU_BIAS: c_int = 32 + 4;
const PREFERENCE_MAX_WORKSPACE: c_int = 1;
/// What cuBLAS recommends for Hopper.
const WORKSPACE: u64 = 32 << 20;
/// Heuristics that are tried.
const HEURISTICS: usize = 8;
/// `CU_STREAM_NON_BLOCKING`, `CU_STREAM_CAPTURE_MODE_RELAXED`.
const NON_BLOCKING: c_uint = 1;
const CAPTURE_RELAXED: c_uint = 2;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// Functions of both libraries under the types that their headers give them.
macro_rules! functions {
    ($name:ident { $($field:ident = $symbol:literal: fn($($argument:ty),*);)* }) => {
        #[derive(Clone, Copy)]
        struct $name { $($field: unsafe extern "C" fn($($argument),*) -> Status,)* }
        impl $name {
            fn load(library: &Library) -> Result<$name, String> {
                Ok($name { $($field: {
                    // SAFETY: the type is the header's.
                    let symbol = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> Status>($symbol) };
                    *symbol.map_err(|error| error.to_string())?
                },)* })
            }
        }
    };
}

functions!(Lt {
    create = b"cublasLtCreate": fn(*mut Handle);
    destroy = b"cublasLtDestroy": fn(Handle);
    desc_create = b"cublasLtMatmulDescCreate": fn(*mut Handle, c_int, c_int);
    desc_set = b"cublasLtMatmulDescSetAttribute": fn(Handle, c_int, *const c_void, usize);
    desc_destroy = b"cublasLtMatmulDescDestroy": fn(Handle);
    layout_create = b"cublasLtMatrixLayoutCreate": fn(*mut Handle, c_int, u64, u64, i64);
    layout_destroy = b"cublasLtMatrixLayoutDestroy": fn(Handle);
    preference_create = b"cublasLtMatmulPreferenceCreate": fn(*mut Handle);
    preference_set = b"cublasLtMatmulPreferenceSetAttribute": fn(Handle, c_int, *const c_void, usize);
    preference_destroy = b"cublasLtMatmulPreferenceDestroy": fn(Handle);
    heuristic = b"cublasLtMatmulAlgoGetHeuristic":
        fn(Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Heuristic, *mut c_int);
    matmul = b"cublasLtMatmul":
        fn(Handle, Handle, *const f32, *const c_void, Handle, *const c_void, Handle, *const f32, *const c_void, Handle,
           *mut c_void, Handle, *const [u64; 8], *mut c_void, usize, Handle);
});

functions!(Cuda {
    stream_create = b"cuStreamCreate": fn(*mut Handle, c_uint);
    stream_destroy = b"cuStreamDestroy_v2": fn(Handle);
    event_create = b"cuEventCreate": fn(*mut Handle, c_uint);
    event_record = b"cuEventRecord": fn(Handle, Handle);
    event_synchronize = b"cuEventSynchronize": fn(Handle);
    event_elapsed = b"cuEventElapsedTime": fn(*mut f32, Handle, Handle);
    event_destroy = b"cuEventDestroy_v2": fn(Handle);
    begin_capture = b"cuStreamBeginCapture_v2": fn(Handle, c_uint);
    end_capture = b"cuStreamEndCapture": fn(Handle, *mut Handle);
    instantiate = b"cuGraphInstantiateWithFlags": fn(*mut Handle, Handle, u64);
    graph_destroy = b"cuGraphDestroy": fn(Handle);
    graph_launch = b"cuGraphLaunch": fn(Handle, Handle);
    exec_destroy = b"cuGraphExecDestroy": fn(Handle);
});

/// The two libraries and what every product shares.
pub struct CublasLt {
    lt: Lt,
    cuda: Cuda,
    handle: Handle,
    stream: Handle,
    /// Before and after each graph of a turn.
    events: [[Handle; 2]; TURN],
    workspace: AnyTensor,
    // Last: the functions above live in them.
    _libraries: [Library; 2],
}

fn ok(what: &str, status: Status) -> Result<(), String> {
    if status == 0 {
        Ok(())
    } else {
        Err(format!("{what} returned {status}"))
    }
}

/// Where cuBLASLt may be: where `FERROFLASH_CUBLASLT` says, where the loader looks, beside a CUDA toolkit, in the
/// packages of a Python.
fn candidates() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::env::var_os("FERROFLASH_CUBLASLT")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    let names = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
    paths.extend(names.map(PathBuf::from));
    paths.extend(names.map(|name| PathBuf::from("/usr/local/cuda/lib64").join(name)));
    let python = "import site,sys;print('\\n'.join(site.getsitepackages()+[site.getusersitepackages()]))";
    let output = std::process::Command::new("python3").args(["-c", python]).output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    for folder in text.lines() {
        for package in ["cu13", "cublas"] {
            let lib = PathBuf::from(folder).join("nvidia").join(package).join("lib");
            paths.extend(names.map(|name| lib.join(name)));
        }
    }
    paths
}

impl CublasLt {
    /// Loads both libraries. The device's context must be current on this thread, as after any of its calls.
    ///
    /// # Errors
    /// Why there is no cuBLASLt.
    pub fn open(device: &Device) -> Result<CublasLt, String> {
        // SAFETY: NVIDIA's libraries may be loaded at any time.
        let open = |path: &PathBuf| unsafe { Library::new(path) }.ok();
        let library = candidates()
            .iter()
            .find_map(open)
            .ok_or("no libcublasLt.so found (FERROFLASH_CUBLASLT names one)")?;
        let driver = open(&PathBuf::from("libcuda.so.1")).ok_or("no libcuda.so.1")?;
        let workspace = AnyTensor::empty(device, DType::U8, &[WORKSPACE]).map_err(|error| error.to_string())?;
        let (lt, cuda) = (Lt::load(&library)?, Cuda::load(&driver)?);
        let mut peer = CublasLt {
            lt,
            cuda,
            handle: null_mut(),
            stream: null_mut(),
            events: [[null_mut(); 2]; TURN],
            workspace,
            _libraries: [library, driver],
        };
        // SAFETY: each call writes one handle to a live place.
        unsafe {
            ok("cublasLtCreate", (lt.create)(&mut peer.handle))?;
            ok("cuStreamCreate", (cuda.stream_create)(&mut peer.stream, NON_BLOCKING))?;
            for event in peer.events.as_flattened_mut() {
                ok("cuEventCreate", (cuda.event_create)(event, 0))?;
            }
        }
        Ok(peer)
    }

    /// Sets a product up with the best heuristic, as a graph of `launches` runs over the copies of the weight.
    pub fn prepare(&self, product: &Product, launches: usize) -> Result<Prepared<'_>, String> {
        let [m, n, k] = product.extents;
        let kind = match product.x.dtype() {
            DType::BF16 => R_16BF,
            DType::F16 => R_16F,
            _ => R_32F,
        };
        let y = AnyTensor::empty(product.x.device(), product.x.dtype(), &[m, n]).map_err(|error| error.to_string())?;
        product.x.device().synchronize().map_err(|error| error.to_string())?;
        let mut prepared = Prepared {
            peer: self,
            product: product.clone(),
            y,
            desc: null_mut(),
            layouts: [null_mut(); 3],
            exec: null_mut(),
            launches,
        };
        // SAFETY: handles are created before they are used; attributes have the sizes of their types; the bias is a live
        // tensor of n elements.
        unsafe {
            ok(
                "cublasLtMatmulDescCreate",
                (self.lt.desc_create)(&mut prepared.desc, COMPUTE_32F, R_32F),
            )?;
            // Column-major, so yᵀ = wᵀᵀ · xᵀ: the first operand is w, stored k × n.
            let set = |attribute, value: *const c_void, size| {
                ok(
                    "cublasLtMatmulDescSetAttribute",
                    (self.lt.desc_set)(prepared.desc, attribute, value, size),
                )
            };
            set(DESC_TRANSA, std::ptr::from_ref(&OP_T).cast(), 4)?;
            if let Some(bias) = &product.bias {
                let address = bias.address();
                set(DESC_EPILOGUE, std::ptr::from_ref(&EPILOGUE_GELU_BIAS).cast(), 4)?;
                set(DESC_BIAS_POINTER, (&raw const address).cast(), 8)?;
            }
            let extents = [(k, n), (k, m), (n, m)];
            for (layout, (rows, columns)) in prepared.layouts.iter_mut().zip(extents) {
                ok(
                    "cublasLtMatrixLayoutCreate",
                    (self.lt.layout_create)(layout, kind, rows, columns, rows as i64),
                )?;
            }
        }
        let mut best = (f64::INFINITY, None);
        for heuristic in self.heuristics(&prepared)? {
            let Ok(exec) = self.record(&prepared, &heuristic, launches.min(10)) else {
                continue;
            };
            let time = self.time(exec, launches.min(10));
            // SAFETY: the graph is this function's own and has been waited for.
            unsafe { (self.cuda.exec_destroy)(exec) };
            if let Ok(time) = time
                && time < best.0
            {
                best = (time, Some(heuristic));
            }
        }
        let heuristic = best.1.ok_or("no heuristic of cuBLASLt runs")?;
        prepared.exec = self.record(&prepared, &heuristic, launches)?;
        Ok(prepared)
    }

    fn heuristics(&self, prepared: &Prepared<'_>) -> Result<Vec<Heuristic>, String> {
        let mut preference = null_mut();
        let mut results = [Heuristic::default(); HEURISTICS];
        let mut found = 0;
        let [a, b, d] = prepared.layouts;
        // SAFETY: `results` has room for as many as are asked for.
        unsafe {
            ok(
                "cublasLtMatmulPreferenceCreate",
                (self.lt.preference_create)(&mut preference),
            )?;
            (self.lt.preference_set)(
                preference,
                PREFERENCE_MAX_WORKSPACE,
                std::ptr::from_ref(&WORKSPACE).cast(),
                8,
            );
            let status = (self.lt.heuristic)(
                self.handle,
                prepared.desc,
                a,
                b,
                d,
                d,
                preference,
                HEURISTICS as c_int,
                results.as_mut_ptr(),
                &mut found,
            );
            (self.lt.preference_destroy)(preference);
            ok("cublasLtMatmulAlgoGetHeuristic", status)?;
        }
        Ok(results[..(found.max(0) as usize).min(HEURISTICS)]
            .iter()
            .copied()
            .filter(|result| result.state == 0)
            .collect())
    }

    /// A graph of `launches` runs.
    fn record(&self, prepared: &Prepared<'_>, heuristic: &Heuristic, launches: usize) -> Result<Handle, String> {
        let (one, zero) = (1.0f32, 0.0f32);
        let [a, b, d] = prepared.layouts;
        let product = &prepared.product;
        let (mut graph, mut exec) = (null_mut(), null_mut());
        // SAFETY: all tensors are live and have the layouts' extents; the stream is our own and nothing else uses it.
        unsafe {
            ok(
                "cuStreamBeginCapture",
                (self.cuda.begin_capture)(self.stream, CAPTURE_RELAXED),
            )?;
            let mut status = 0;
            for launch in 0..launches {
                let w = product.w[launch % product.w.len()].address() as *const c_void;
                let y = prepared.y.address() as *mut c_void;
                status |= (self.lt.matmul)(
                    self.handle,
                    prepared.desc,
                    &one,
                    w,
                    a,
                    product.x.address() as *const c_void,
                    b,
                    &zero,
                    y,
                    d,
                    y,
                    d,
                    &heuristic.algorithm,
                    self.workspace.address() as *mut c_void,
                    WORKSPACE as usize,
                    self.stream,
                );
            }
            ok("cuStreamEndCapture", (self.cuda.end_capture)(self.stream, &mut graph))?;
            if status == 0 {
                status = (self.cuda.instantiate)(&mut exec, graph, 0);
            }
            (self.cuda.graph_destroy)(graph);
            ok("cublasLtMatmul", status)?;
        }
        Ok(exec)
    }

    /// Microseconds of a run within a graph, as [`Harness::turn`](super::Harness::turn) measures ours.
    fn time(&self, exec: Handle, launches: usize) -> Result<f64, String> {
        let record = |event| {
            // SAFETY: the event and the stream are live.
            ok("cuEventRecord", unsafe { (self.cuda.event_record)(event, self.stream) })
        };
        for [start, end] in self.events {
            record(start)?;
            // SAFETY: the graph and the stream are live.
            ok("cuGraphLaunch", unsafe { (self.cuda.graph_launch)(exec, self.stream) })?;
            record(end)?;
        }
        let last = self.events[TURN - 1][1];
        // SAFETY: the event is live.
        ok("cuEventSynchronize", unsafe { (self.cuda.event_synchronize)(last) })?;
        let mut samples = Vec::new();
        for [start, end] in &self.events[1..] {
            let mut milliseconds = 0.0;
            // SAFETY: both events are live and over.
            let status = unsafe { (self.cuda.event_elapsed)(&mut milliseconds, *start, *end) };
            ok("cuEventElapsedTime", status)?;
            samples.push(f64::from(milliseconds) * 1e3 / launches as f64);
        }
        Ok(median(&samples))
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: the handles are our own, or null where they were never created.
        unsafe {
            if !self.handle.is_null() {
                (self.lt.destroy)(self.handle);
            }
            for event in self.events.into_iter().flatten().filter(|event| !event.is_null()) {
                (self.cuda.event_destroy)(event);
            }
            if !self.stream.is_null() {
                (self.cuda.stream_destroy)(self.stream);
            }
        }
    }
}

/// A product that is ready to be timed.
pub struct Prepared<'a> {
    peer: &'a CublasLt,
    product: Product,
    y: AnyTensor,
    desc: Handle,
    layouts: [Handle; 3],
    exec: Handle,
    launches: usize,
}

impl Rival for Prepared<'_> {
    fn name(&self) -> &str {
        "cuBLASLt"
    }

    fn turn(&mut self) -> Result<f64, String> {
        self.peer.time(self.exec, self.launches)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        // SAFETY: as for [`CublasLt`]; work was waited for after each turn.
        unsafe {
            if !self.exec.is_null() {
                (self.peer.cuda.exec_destroy)(self.exec);
            }
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                (self.peer.lt.layout_destroy)(layout);
            }
            if !self.desc.is_null() {
                (self.peer.lt.desc_destroy)(self.desc);
            }
        }
    }
}
