//! Opaque driver objects, one type each, all the size of a pointer.

use std::ffi::c_void;

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident = $c:literal),* $(,)?) => { $(
        $(#[$doc])*
        #[doc = concat!("\n\n`", $c, "` of the driver API. A plain value: owning it is the holder's business.")]
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub *mut c_void);

        // SAFETY: driver objects may be used from any thread (CUDA Driver API, "Difference between the driver and
        // runtime APIs" and "Stream management"); the value itself is only an address.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}

        impl $name {
            /// The null handle.
            pub const NULL: $name = $name(std::ptr::null_mut());
        }
    )* };
}

handles! {
    /// A context: one device's memory and code of one process.
    Context = "CUcontext",
    /// Loaded code.
    Module = "CUmodule",
    /// A kernel entry of a module.
    Function = "CUfunction",
    /// A queue of work; null is the legacy default stream.
    Stream = "CUstream",
    /// A point in a stream.
    Event = "CUevent",
    /// A recorded graph.
    Graph = "CUgraph",
    /// A graph made ready to run.
    GraphExec = "CUgraphExec",
}
