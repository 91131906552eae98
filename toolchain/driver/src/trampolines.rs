//! Definitions of the `cu*` symbols that `cust` links to.
//!
//! Each is a few instructions that jump to the driver's function through a slot. An empty slot is filled on the first
//! call: the argument registers are saved, integer and floating-point ones alike, the name is looked up, and the call
//! goes on as if nothing had happened, whatever its signature. The stack is as the caller left it, so arguments there
//! are passed on too. Later calls cost a load, a test and a jump.
//!
//! Every function that `cust_raw` 0.11.3 declares is here, so that whatever of it a program uses links.

use std::{
    ffi::{CStr, c_char},
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{
    calls,
    library::{Lookup, lookup},
    result::{code, known_code},
};

extern "C" fn no_device() -> u32 {
    code::NO_DEVICE
}

extern "C" fn not_found() -> u32 {
    code::NOT_FOUND
}

/// Fills slot `index` and returns what it holds now.
extern "C" fn resolve(index: usize) -> usize {
    let address = match lookup(NAMES[index]) {
        Lookup::Found(address) => address,
        Lookup::NoLibrary(_) => no_device as *const () as usize,
        // The driver is older than the function, or too new to have it still.
        Lookup::NoSymbol => not_found as *const () as usize,
    };
    SLOTS[index].store(address, Ordering::Release);
    address
}

/// System V AMD64: arguments in rdi, rsi, rdx, rcx, r8, r9 and xmm0–xmm7; the index comes in eax; r11 is free.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[unsafe(naked)]
unsafe extern "C" fn first_call() {
    core::arch::naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "sub rsp, 128",
        "movups [rsp], xmm0",
        "movups [rsp + 16], xmm1",
        "movups [rsp + 32], xmm2",
        "movups [rsp + 48], xmm3",
        "movups [rsp + 64], xmm4",
        "movups [rsp + 80], xmm5",
        "movups [rsp + 96], xmm6",
        "movups [rsp + 112], xmm7",
        "mov edi, eax",
        // 8 pushes and the return address make 64 bytes, 128 more keep the alignment of 16.
        "call {resolve}",
        "mov r11, rax",
        "movups xmm0, [rsp]",
        "movups xmm1, [rsp + 16]",
        "movups xmm2, [rsp + 32]",
        "movups xmm3, [rsp + 48]",
        "movups xmm4, [rsp + 64]",
        "movups xmm5, [rsp + 80]",
        "movups xmm6, [rsp + 96]",
        "movups xmm7, [rsp + 112]",
        "add rsp, 128",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "pop rbp",
        "jmp r11",
        resolve = sym resolve,
    )
}

/// AAPCS64: arguments in x0–x7 and v0–v7, the address of a large result in x8; the index comes in w16.
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
#[unsafe(naked)]
unsafe extern "C" fn first_call() {
    core::arch::naked_asm!(
        "stp x29, x30, [sp, #-224]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "stp x2, x3, [sp, #32]",
        "stp x4, x5, [sp, #48]",
        "stp x6, x7, [sp, #64]",
        "str x8, [sp, #80]",
        "stp q0, q1, [sp, #96]",
        "stp q2, q3, [sp, #128]",
        "stp q4, q5, [sp, #160]",
        "stp q6, q7, [sp, #192]",
        "mov w0, w16",
        "bl {resolve}",
        "mov x16, x0",
        "ldp x0, x1, [sp, #16]",
        "ldp x2, x3, [sp, #32]",
        "ldp x4, x5, [sp, #48]",
        "ldp x6, x7, [sp, #64]",
        "ldr x8, [sp, #80]",
        "ldp q0, q1, [sp, #96]",
        "ldp q2, q3, [sp, #128]",
        "ldp q4, q5, [sp, #160]",
        "ldp q6, q7, [sp, #192]",
        "ldp x29, x30, [sp], #224",
        "br x16",
        resolve = sym resolve,
    )
}

macro_rules! trampolines {
    ($($name:ident = $index:literal),* $(,)?) => {
        static NAMES: &[&CStr] = &[$(
            match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a symbol name has no NUL inside"),
            }
        ),*];
        static SLOTS: [AtomicUsize; NAMES.len()] = [const { AtomicUsize::new(0) }; NAMES.len()];

        $(
            #[doc = concat!("The driver's `", stringify!($name), "`, with the signature that `cust_raw` gives it.")]
            ///
            /// # Safety
            /// - Called only with that signature, and as the driver API asks.
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            #[allow(non_snake_case, reason = "the symbol's own name")]
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            pub unsafe extern "C" fn $name() {
                core::arch::naked_asm!(
                    "mov r11, qword ptr [rip + {slots} + {offset}]",
                    "test r11, r11",
                    "je 2f",
                    "jmp r11",
                    "2:",
                    "mov eax, {index}",
                    "jmp {first_call}",
                    slots = sym SLOTS,
                    offset = const $index * 8,
                    index = const $index,
                    first_call = sym first_call,
                )
            }

            #[doc = concat!("The driver's `", stringify!($name), "`, with the signature that `cust_raw` gives it.")]
            ///
            /// # Safety
            /// - Called only with that signature, and as the driver API asks.
            #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
            #[allow(non_snake_case, reason = "the symbol's own name")]
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            pub unsafe extern "C" fn $name() {
                core::arch::naked_asm!(
                    "adrp x16, {slots}",
                    "add x16, x16, :lo12:{slots}",
                    "ldr x16, [x16, #{offset}]",
                    "cbz x16, 2f",
                    "br x16",
                    "2:",
                    "mov w16, #{index}",
                    "b {first_call}",
                    slots = sym SLOTS,
                    offset = const $index * 8,
                    index = const $index,
                    first_call = sym first_call,
                )
            }

            #[doc = concat!("`", stringify!($name), "` on a target without trampolines: no device.")]
            // Reading no argument is right for any signature where the caller clears the stack, as in the C ABI.
            #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
            #[allow(non_snake_case, reason = "the symbol's own name")]
            #[unsafe(no_mangle)]
            pub extern "C" fn $name() -> usize {
                resolve($index);
                code::NO_DEVICE as usize
            }
        )*

        #[cfg(test)]
        const INDICES: &[usize] = &[$($index),*];
    };
}

/// `cuGetErrorName` that knows the common codes without a driver.
///
/// # Safety
/// - `text` may be written.
#[allow(non_snake_case, reason = "the symbol's own name")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: u32, text: *mut *const c_char) -> u32 {
    // SAFETY: passed on as given.
    if unsafe { calls::get_error_name(error, text) }.is_ok() {
        return code::SUCCESS;
    }
    // SAFETY: `text` may be written.
    unsafe { write_text(known_code(error).map(|(name, _)| name), text) }
}

/// `cuGetErrorString` that knows the common codes without a driver: `cust` calls it to show any error.
///
/// # Safety
/// - `text` may be written.
#[allow(non_snake_case, reason = "the symbol's own name")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: u32, text: *mut *const c_char) -> u32 {
    // SAFETY: passed on as given.
    if unsafe { calls::get_error_string(error, text) }.is_ok() {
        return code::SUCCESS;
    }
    // SAFETY: `text` may be written.
    unsafe { write_text(known_code(error).map(|(_, meaning)| meaning), text) }
}

/// # Safety
/// - `target` may be written.
unsafe fn write_text(text: Option<&'static CStr>, target: *mut *const c_char) -> u32 {
    let Some(text) = text else {
        return code::INVALID_VALUE;
    };
    // SAFETY: by contract.
    unsafe { *target = text.as_ptr() };
    code::SUCCESS
}

trampolines! {
    cuInit = 0, cuDriverGetVersion = 1, cuDeviceGet = 2, cuDeviceGetCount = 3, cuDeviceGetName = 4,
    cuDeviceGetUuid = 5, cuDeviceGetUuid_v2 = 6, cuDeviceGetLuid = 7, cuDeviceTotalMem_v2 = 8,
    cuDeviceGetTexture1DLinearMaxWidth = 9, cuDeviceGetAttribute = 10, cuDeviceGetNvSciSyncAttributes = 11,
    cuDeviceSetMemPool = 12, cuDeviceGetMemPool = 13, cuDeviceGetDefaultMemPool = 14,
    cuFlushGPUDirectRDMAWrites = 15, cuDeviceGetProperties = 16, cuDeviceComputeCapability = 17,
    cuDevicePrimaryCtxRetain = 18, cuDevicePrimaryCtxRelease_v2 = 19, cuDevicePrimaryCtxSetFlags_v2 = 20,
    cuDevicePrimaryCtxGetState = 21, cuDevicePrimaryCtxReset_v2 = 22, cuDeviceGetExecAffinitySupport = 23,
    cuCtxCreate_v2 = 24, cuCtxCreate_v3 = 25, cuCtxDestroy_v2 = 26, cuCtxPushCurrent_v2 = 27,
    cuCtxPopCurrent_v2 = 28, cuCtxSetCurrent = 29, cuCtxGetCurrent = 30, cuCtxGetDevice = 31, cuCtxGetFlags = 32,
    cuCtxSynchronize = 33, cuCtxSetLimit = 34, cuCtxGetLimit = 35, cuCtxGetCacheConfig = 36,
    cuCtxSetCacheConfig = 37, cuCtxGetSharedMemConfig = 38, cuCtxSetSharedMemConfig = 39, cuCtxGetApiVersion = 40,
    cuCtxGetStreamPriorityRange = 41, cuCtxResetPersistingL2Cache = 42, cuCtxGetExecAffinity = 43, cuCtxAttach = 44,
    cuCtxDetach = 45, cuModuleLoad = 46, cuModuleLoadData = 47, cuModuleLoadDataEx = 48, cuModuleLoadFatBinary = 49,
    cuModuleUnload = 50, cuModuleGetFunction = 51, cuModuleGetGlobal_v2 = 52, cuModuleGetTexRef = 53,
    cuModuleGetSurfRef = 54, cuLinkCreate_v2 = 55, cuLinkAddData_v2 = 56, cuLinkAddFile_v2 = 57, cuLinkComplete = 58,
    cuLinkDestroy = 59, cuMemGetInfo_v2 = 60, cuMemAlloc_v2 = 61, cuMemAllocPitch_v2 = 62, cuMemFree_v2 = 63,
    cuMemGetAddressRange_v2 = 64, cuMemAllocHost_v2 = 65, cuMemFreeHost = 66, cuMemHostAlloc = 67,
    cuMemHostGetDevicePointer_v2 = 68, cuMemHostGetFlags = 69, cuMemAllocManaged = 70, cuDeviceGetByPCIBusId = 71,
    cuDeviceGetPCIBusId = 72, cuIpcGetEventHandle = 73, cuIpcOpenEventHandle = 74, cuIpcGetMemHandle = 75,
    cuIpcOpenMemHandle_v2 = 76, cuIpcCloseMemHandle = 77, cuMemHostRegister_v2 = 78, cuMemHostUnregister = 79,
    cuMemcpy = 80, cuMemcpyPeer = 81, cuMemcpyHtoD_v2 = 82, cuMemcpyDtoH_v2 = 83, cuMemcpyDtoD_v2 = 84,
    cuMemcpyDtoA_v2 = 85, cuMemcpyAtoD_v2 = 86, cuMemcpyHtoA_v2 = 87, cuMemcpyAtoH_v2 = 88, cuMemcpyAtoA_v2 = 89,
    cuMemcpy2D_v2 = 90, cuMemcpy2DUnaligned_v2 = 91, cuMemcpy3D_v2 = 92, cuMemcpy3DPeer = 93, cuMemcpyAsync = 94,
    cuMemcpyPeerAsync = 95, cuMemcpyHtoDAsync_v2 = 96, cuMemcpyDtoHAsync_v2 = 97, cuMemcpyDtoDAsync_v2 = 98,
    cuMemcpyHtoAAsync_v2 = 99, cuMemcpyAtoHAsync_v2 = 100, cuMemcpy2DAsync_v2 = 101, cuMemcpy3DAsync_v2 = 102,
    cuMemcpy3DPeerAsync = 103, cuMemsetD8_v2 = 104, cuMemsetD16_v2 = 105, cuMemsetD32_v2 = 106,
    cuMemsetD2D8_v2 = 107, cuMemsetD2D16_v2 = 108, cuMemsetD2D32_v2 = 109, cuMemsetD8Async = 110,
    cuMemsetD16Async = 111, cuMemsetD32Async = 112, cuMemsetD2D8Async = 113, cuMemsetD2D16Async = 114,
    cuMemsetD2D32Async = 115, cuArrayCreate_v2 = 116, cuArrayGetDescriptor_v2 = 117,
    cuArrayGetSparseProperties = 118, cuMipmappedArrayGetSparseProperties = 119, cuArrayGetPlane = 120,
    cuArrayDestroy = 121, cuArray3DCreate_v2 = 122, cuArray3DGetDescriptor_v2 = 123, cuMipmappedArrayCreate = 124,
    cuMipmappedArrayGetLevel = 125, cuMipmappedArrayDestroy = 126, cuMemAddressReserve = 127, cuMemAddressFree = 128,
    cuMemCreate = 129, cuMemRelease = 130, cuMemMap = 131, cuMemMapArrayAsync = 132, cuMemUnmap = 133,
    cuMemSetAccess = 134, cuMemGetAccess = 135, cuMemExportToShareableHandle = 136,
    cuMemImportFromShareableHandle = 137, cuMemGetAllocationGranularity = 138,
    cuMemGetAllocationPropertiesFromHandle = 139, cuMemRetainAllocationHandle = 140, cuMemFreeAsync = 141,
    cuMemAllocAsync = 142, cuMemPoolTrimTo = 143, cuMemPoolSetAttribute = 144, cuMemPoolGetAttribute = 145,
    cuMemPoolSetAccess = 146, cuMemPoolGetAccess = 147, cuMemPoolCreate = 148, cuMemPoolDestroy = 149,
    cuMemAllocFromPoolAsync = 150, cuMemPoolExportToShareableHandle = 151, cuMemPoolImportFromShareableHandle = 152,
    cuMemPoolExportPointer = 153, cuMemPoolImportPointer = 154, cuPointerGetAttribute = 155,
    cuMemPrefetchAsync = 156, cuMemAdvise = 157, cuMemRangeGetAttribute = 158, cuMemRangeGetAttributes = 159,
    cuPointerSetAttribute = 160, cuPointerGetAttributes = 161, cuStreamCreate = 162,
    cuStreamCreateWithPriority = 163, cuStreamGetPriority = 164, cuStreamGetFlags = 165, cuStreamGetCtx = 166,
    cuStreamWaitEvent = 167, cuStreamAddCallback = 168, cuStreamBeginCapture_v2 = 169,
    cuThreadExchangeStreamCaptureMode = 170, cuStreamEndCapture = 171, cuStreamIsCapturing = 172,
    cuStreamGetCaptureInfo = 173, cuStreamGetCaptureInfo_v2 = 174, cuStreamUpdateCaptureDependencies = 175,
    cuStreamAttachMemAsync = 176, cuStreamQuery = 177, cuStreamSynchronize = 178, cuStreamDestroy_v2 = 179,
    cuStreamCopyAttributes = 180, cuStreamGetAttribute = 181, cuStreamSetAttribute = 182, cuEventCreate = 183,
    cuEventRecord = 184, cuEventRecordWithFlags = 185, cuEventQuery = 186, cuEventSynchronize = 187,
    cuEventDestroy_v2 = 188, cuEventElapsedTime = 189, cuImportExternalMemory = 190,
    cuExternalMemoryGetMappedBuffer = 191, cuExternalMemoryGetMappedMipmappedArray = 192,
    cuDestroyExternalMemory = 193, cuImportExternalSemaphore = 194, cuSignalExternalSemaphoresAsync = 195,
    cuWaitExternalSemaphoresAsync = 196, cuDestroyExternalSemaphore = 197, cuStreamWaitValue32 = 198,
    cuStreamWaitValue64 = 199, cuStreamWriteValue32 = 200, cuStreamWriteValue64 = 201, cuStreamBatchMemOp = 202,
    cuFuncGetAttribute = 203, cuFuncSetAttribute = 204, cuFuncSetCacheConfig = 205, cuFuncSetSharedMemConfig = 206,
    cuFuncGetModule = 207, cuLaunchKernel = 208, cuLaunchCooperativeKernel = 209,
    cuLaunchCooperativeKernelMultiDevice = 210, cuLaunchHostFunc = 211, cuFuncSetBlockShape = 212,
    cuFuncSetSharedSize = 213, cuParamSetSize = 214, cuParamSeti = 215, cuParamSetf = 216, cuParamSetv = 217,
    cuLaunch = 218, cuLaunchGrid = 219, cuLaunchGridAsync = 220, cuParamSetTexRef = 221, cuGraphCreate = 222,
    cuGraphAddKernelNode = 223, cuGraphKernelNodeGetParams = 224, cuGraphKernelNodeSetParams = 225,
    cuGraphAddMemcpyNode = 226, cuGraphMemcpyNodeGetParams = 227, cuGraphMemcpyNodeSetParams = 228,
    cuGraphAddMemsetNode = 229, cuGraphMemsetNodeGetParams = 230, cuGraphMemsetNodeSetParams = 231,
    cuGraphAddHostNode = 232, cuGraphHostNodeGetParams = 233, cuGraphHostNodeSetParams = 234,
    cuGraphAddChildGraphNode = 235, cuGraphChildGraphNodeGetGraph = 236, cuGraphAddEmptyNode = 237,
    cuGraphAddEventRecordNode = 238, cuGraphEventRecordNodeGetEvent = 239, cuGraphEventRecordNodeSetEvent = 240,
    cuGraphAddEventWaitNode = 241, cuGraphEventWaitNodeGetEvent = 242, cuGraphEventWaitNodeSetEvent = 243,
    cuGraphAddExternalSemaphoresSignalNode = 244, cuGraphExternalSemaphoresSignalNodeGetParams = 245,
    cuGraphExternalSemaphoresSignalNodeSetParams = 246, cuGraphAddExternalSemaphoresWaitNode = 247,
    cuGraphExternalSemaphoresWaitNodeGetParams = 248, cuGraphExternalSemaphoresWaitNodeSetParams = 249,
    cuGraphAddMemAllocNode = 250, cuGraphMemAllocNodeGetParams = 251, cuGraphAddMemFreeNode = 252,
    cuGraphMemFreeNodeGetParams = 253, cuDeviceGraphMemTrim = 254, cuDeviceGetGraphMemAttribute = 255,
    cuDeviceSetGraphMemAttribute = 256, cuGraphClone = 257, cuGraphNodeFindInClone = 258, cuGraphNodeGetType = 259,
    cuGraphGetNodes = 260, cuGraphGetRootNodes = 261, cuGraphGetEdges = 262, cuGraphNodeGetDependencies = 263,
    cuGraphNodeGetDependentNodes = 264, cuGraphAddDependencies = 265, cuGraphRemoveDependencies = 266,
    cuGraphDestroyNode = 267, cuGraphInstantiate_v2 = 268, cuGraphInstantiateWithFlags = 269,
    cuGraphExecKernelNodeSetParams = 270, cuGraphExecMemcpyNodeSetParams = 271, cuGraphExecMemsetNodeSetParams = 272,
    cuGraphExecHostNodeSetParams = 273, cuGraphExecChildGraphNodeSetParams = 274,
    cuGraphExecEventRecordNodeSetEvent = 275, cuGraphExecEventWaitNodeSetEvent = 276,
    cuGraphExecExternalSemaphoresSignalNodeSetParams = 277, cuGraphExecExternalSemaphoresWaitNodeSetParams = 278,
    cuGraphUpload = 279, cuGraphLaunch = 280, cuGraphExecDestroy = 281, cuGraphDestroy = 282,
    cuGraphExecUpdate = 283, cuGraphKernelNodeCopyAttributes = 284, cuGraphKernelNodeGetAttribute = 285,
    cuGraphKernelNodeSetAttribute = 286, cuGraphDebugDotPrint = 287, cuUserObjectCreate = 288,
    cuUserObjectRetain = 289, cuUserObjectRelease = 290, cuGraphRetainUserObject = 291,
    cuGraphReleaseUserObject = 292, cuOccupancyMaxActiveBlocksPerMultiprocessor = 293,
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags = 294, cuOccupancyMaxPotentialBlockSize = 295,
    cuOccupancyMaxPotentialBlockSizeWithFlags = 296, cuOccupancyAvailableDynamicSMemPerBlock = 297,
    cuTexRefSetArray = 298, cuTexRefSetMipmappedArray = 299, cuTexRefSetAddress_v2 = 300,
    cuTexRefSetAddress2D_v3 = 301, cuTexRefSetFormat = 302, cuTexRefSetAddressMode = 303,
    cuTexRefSetFilterMode = 304, cuTexRefSetMipmapFilterMode = 305, cuTexRefSetMipmapLevelBias = 306,
    cuTexRefSetMipmapLevelClamp = 307, cuTexRefSetMaxAnisotropy = 308, cuTexRefSetBorderColor = 309,
    cuTexRefSetFlags = 310, cuTexRefGetAddress_v2 = 311, cuTexRefGetArray = 312, cuTexRefGetMipmappedArray = 313,
    cuTexRefGetAddressMode = 314, cuTexRefGetFilterMode = 315, cuTexRefGetFormat = 316,
    cuTexRefGetMipmapFilterMode = 317, cuTexRefGetMipmapLevelBias = 318, cuTexRefGetMipmapLevelClamp = 319,
    cuTexRefGetMaxAnisotropy = 320, cuTexRefGetBorderColor = 321, cuTexRefGetFlags = 322, cuTexRefCreate = 323,
    cuTexRefDestroy = 324, cuSurfRefSetArray = 325, cuSurfRefGetArray = 326, cuTexObjectCreate = 327,
    cuTexObjectDestroy = 328, cuTexObjectGetResourceDesc = 329, cuTexObjectGetTextureDesc = 330,
    cuTexObjectGetResourceViewDesc = 331, cuSurfObjectCreate = 332, cuSurfObjectDestroy = 333,
    cuSurfObjectGetResourceDesc = 334, cuDeviceCanAccessPeer = 335, cuCtxEnablePeerAccess = 336,
    cuCtxDisablePeerAccess = 337, cuDeviceGetP2PAttribute = 338, cuGraphicsUnregisterResource = 339,
    cuGraphicsSubResourceGetMappedArray = 340, cuGraphicsResourceGetMappedMipmappedArray = 341,
    cuGraphicsResourceGetMappedPointer_v2 = 342, cuGraphicsResourceSetMapFlags_v2 = 343,
    cuGraphicsMapResources = 344, cuGraphicsUnmapResources = 345, cuGetProcAddress = 346, cuGetExportTable = 347,
    cuProfilerInitialize = 348, cuProfilerStart = 349, cuProfilerStop = 350,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trampoline_owns_the_slot_of_its_name() {
        assert!(INDICES.iter().enumerate().all(|(place, &index)| place == index));
        assert_eq!(NAMES.len(), INDICES.len());
        assert_eq!(NAMES[0], c"cuInit");
    }

    #[test]
    fn no_name_appears_twice() {
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
    }
}
