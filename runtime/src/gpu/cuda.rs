//! The calls to the CUDA driver, made in a worker process only.
#![expect(unsafe_code, reason = "the driver's C interface")]

use std::ffi::{CStr, c_char, c_void};

use cudarc::driver::sys;

use super::abi::{self, Phase, Step};
use super::batch::{self, Launch};
use super::images::{Image, image_for};

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: i32,
    pub(super) text: String,
}

/// Memory of the device.
pub(super) type Address = sys::CUdeviceptr;

macro_rules! call {
    ($name:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: the driver is loaded (`load`), and the arguments are alive and of the types that it documents.
        let code = unsafe { sys::$name($($argument),*) };
        check(stringify!($name), code)
    }};
}

/// Whether there is a driver with everything that is called here. Must come before any other call.
pub(super) fn load() -> Result<(), Failure> {
    let fail = |text: String| Failure { code: -1, text };
    // SAFETY: loading the library runs its constructors, which do not depend on this program.
    if !unsafe { sys::is_culib_present() } {
        return Err(fail("no CUDA driver: libcuda.so.1 can't be loaded".into()));
    }
    // SAFETY: it was just found to load.
    let library = unsafe { sys::culib() };
    for name in NEEDED {
        // SAFETY: the symbol is looked up, not called.
        let found = unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) };
        if found.is_err() {
            return Err(fail(format!("the CUDA driver lacks {name}: it is too old")));
        }
    }
    call!(cuInit(0))?;
    let mut version = 0;
    call!(cuDriverGetVersion(&raw mut version))?;
    if version < VERSION_MIN {
        return Err(fail(format!("the CUDA driver is of version {version}, {VERSION_MIN} at least is needed")));
    }
    Ok(())
}

/// How many devices there are.
pub(super) fn count() -> Result<usize, Failure> {
    let mut count = 0;
    call!(cuDeviceGetCount(&raw mut count))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// A device before anything runs on it.
#[derive(Clone, Debug)]
pub(super) struct Card {
    device: sys::CUdevice,
    pub(super) name: String,
    pub(super) capability: (i32, i32),
    pub(super) blocks: usize,
    pub(super) memory_bytes: u64,
    pub(super) bus: String,
}

impl Card {
    pub(super) fn open(ordinal: usize) -> Result<Self, Failure> {
        let mut device = 0;
        call!(cuDeviceGet(&raw mut device, i32::try_from(ordinal).unwrap_or(i32::MAX)))?;
        let mut name: [c_char; 128] = [0; 128];
        call!(cuDeviceGetName(name.as_mut_ptr(), 127, device))?;
        let mut memory_bytes = 0;
        call!(cuDeviceTotalMem_v2(&raw mut memory_bytes, device))?;
        let attribute = |which| {
            let mut value = 0;
            call!(cuDeviceGetAttribute(&raw mut value, which, device)).map(|()| value)
        };
        use sys::CUdevice_attribute as A;
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let blocks = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let mut bus: [c_char; 32] = [0; 32];
        call!(cuDeviceGetPCIBusId(bus.as_mut_ptr(), 31, device))?;
        // SAFETY: the last byte is zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        // SAFETY: likewise.
        let bus = unsafe { CStr::from_ptr(bus.as_ptr()) };
        Ok(Self {
            device,
            name: name.to_string_lossy().into_owned(),
            capability: (major, minor),
            blocks: usize::try_from(blocks).unwrap_or(1).max(1),
            memory_bytes: memory_bytes as u64,
            bus: bus.to_string_lossy().into_owned(),
        })
    }

    pub(super) fn image(&self) -> Option<&'static Image> {
        image_for(self.capability.0, self.capability.1)
    }
}

/// A context with the loaded kernels, a stream for them, one for kernels of the same step beside them, and one for copies. Lives
/// until the process ends.
pub(super) struct Context {
    stream: sys::CUstream,
    beside: sys::CUstream,
    /// Where the former two part and meet.
    crossings: [sys::CUevent; 2],
    aside: sys::CUstream,
    kernels: Vec<(&'static CStr, sys::CUfunction)>,
    /// Whether launches may form clusters and overlap.
    sm_90: bool,
}

/// Launches that were recorded. Lives until the process ends, unless it is forgotten.
#[derive(Clone, Copy)]
pub(super) struct Graph(sys::CUgraphExec);

impl Context {
    /// Takes the device, loads `image`, and allows its step kernels `shared_bytes` of shared memory.
    pub(super) fn new(card: &Card, image: &Image, shared_bytes: usize) -> Result<Self, Failure> {
        let mut context = std::ptr::null_mut();
        call!(cuDevicePrimaryCtxRetain(&raw mut context, card.device))?;
        call!(cuCtxSetCurrent(context))?;
        let (mut streams, mut crossings) = ([std::ptr::null_mut(); 3], [std::ptr::null_mut(); 2]);
        for stream in &mut streams {
            call!(cuStreamCreate(&raw mut *stream, NON_BLOCKING))?;
        }
        for crossing in &mut crossings {
            call!(cuEventCreate(&raw mut *crossing, WITHOUT_TIMES))?;
        }
        let [stream, beside, aside] = streams;
        let code =
            image.code().ok_or_else(|| Failure { code: -1, text: format!("image {} is damaged", image.name) })?;
        let step_kernels = [c"step_1", c"step_1_bytes", c"step_8", c"step_16", c"step_32"];
        let first = if image.sm_90 { 0 } else { 2 };
        let mut kernels = Vec::new();
        let batch_shared = if image.sm_90 { BATCH_SHARED_BYTES_SM_90 } else { BATCH_SHARED_BYTES };
        for (code, names, shared) in
            [(&code[0], &step_kernels[first..], shared_bytes), (&code[1], &batch::KERNELS[..], batch_shared)]
        {
            let mut module = std::ptr::null_mut();
            call!(cuModuleLoadData(&raw mut module, code.as_ptr().cast()))?;
            for name in names {
                let mut function = std::ptr::null_mut();
                call!(cuModuleGetFunction(&raw mut function, module, name.as_ptr()))?;
                let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                call!(cuFuncSetAttribute(function, attribute, i32::try_from(shared).unwrap_or(i32::MAX)))?;
                kernels.push((*name, function));
            }
        }
        Ok(Self { stream, beside, crossings, aside, kernels, sm_90: image.sm_90 })
    }

    fn kernel(&self, name: &CStr) -> sys::CUfunction {
        self.kernels.iter().find(|(of, _)| *of == name).expect("every kernel was loaded").1
    }

    /// Free bytes of the device's memory.
    pub(super) fn free_bytes(&self) -> Result<usize, Failure> {
        let (mut free, mut total) = (0, 0);
        call!(cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
        Ok(free)
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<Address, Failure> {
        let mut address = 0;
        call!(cuMemAlloc_v2(&raw mut address, bytes))?;
        Ok(address)
    }

    pub(super) fn zero(&self, at: Address, bytes: usize) -> Result<(), Failure> {
        call!(cuMemsetD8Async(at, 0, bytes, self.stream))
    }

    /// Makes memory of this process reachable for copies that run beside the program, and for the device, which knows it by the
    /// address that comes back.
    pub(super) fn register(&self, memory: *mut c_void, bytes: usize) -> Result<Address, Failure> {
        call!(cuMemHostRegister_v2(memory, bytes, PORTABLE | MAPPED))?;
        let mut address = 0;
        call!(cuMemHostGetDevicePointer_v2(&raw mut address, memory, 0))?;
        Ok(address)
    }

    /// Begins a copy of registered memory to the device.
    pub(super) fn upload(&self, to: Address, from: *const c_void, bytes: usize) -> Result<(), Failure> {
        call!(cuMemcpyHtoDAsync_v2(to, from, bytes, self.stream))
    }

    /// The same beside the kernels that are under way.
    pub(super) fn upload_aside(&self, to: Address, from: *const c_void, bytes: usize) -> Result<(), Failure> {
        call!(cuMemcpyHtoDAsync_v2(to, from, bytes, self.aside))
    }

    /// Waits for such copies, which take some ten microseconds.
    pub(super) fn wait_for_uploads(&self) -> Result<(), Failure> {
        while !is_done(self.aside)? {
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Begins a copy of device memory to registered memory.
    pub(super) fn download(&self, to: *mut c_void, from: Address, bytes: usize) -> Result<(), Failure> {
        call!(cuMemcpyDtoHAsync_v2(to, from, bytes, self.stream))
    }

    /// Begins a launch of the step kernel `name` on `blocks` blocks that meet each other.
    pub(super) fn launch(
        &self,
        name: &CStr,
        blocks: usize,
        shared_bytes: usize,
        (phases, count): (Address, usize),
        step: &Step,
    ) -> Result<(), Failure> {
        let function = self.kernel(name);
        let (mut phases, mut count, mut step) = (phases, i32::try_from(count).unwrap_or(i32::MAX), *step);
        let mut arguments: [*mut c_void; 3] =
            [(&raw mut phases).cast(), (&raw mut count).cast(), (&raw mut step).cast()];
        let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        call!(cuLaunchCooperativeKernel(
            function,
            word(blocks),
            1,
            1,
            word(abi::THREADS),
            1,
            1,
            word(shared_bytes),
            self.stream,
            arguments.as_mut_ptr()
        ))
    }

    /// Begins a launch of a batch kernel.
    pub(super) fn launch_batch(&self, launch: &Launch) -> Result<(), Failure> {
        self.launch_on(self.stream, launch)
    }

    /// The same beside those, between [`Self::part`] and [`Self::meet`].
    pub(super) fn launch_beside(&self, launch: &Launch) -> Result<(), Failure> {
        self.launch_on(self.beside, launch)
    }

    /// What is launched beside comes after what was launched so far.
    pub(super) fn part(&self) -> Result<(), Failure> {
        call!(cuEventRecord(self.crossings[0], self.stream))?;
        call!(cuStreamWaitEvent(self.beside, self.crossings[0], 0))
    }

    /// What is launched from now on comes after what was launched beside.
    pub(super) fn meet(&self) -> Result<(), Failure> {
        call!(cuEventRecord(self.crossings[1], self.beside))?;
        call!(cuStreamWaitEvent(self.stream, self.crossings[1], 0))
    }

    fn launch_on(&self, stream: sys::CUstream, launch: &Launch) -> Result<(), Failure> {
        use sys::CUlaunchAttributeID as Id;
        let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let clusters = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: word(launch.cluster), y: 1, z: 1 };
        let mut attributes = [
            sys::CUlaunchAttribute {
                id: Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue { clusterDim: clusters },
            },
            sys::CUlaunchAttribute {
                id: Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            },
        ];
        let config = sys::CUlaunchConfig {
            gridDimX: word(launch.grid),
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: word(launch.threads),
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: word(launch.shared_bytes),
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: if self.sm_90 { word(attributes.len()) } else { 0 },
        };
        let (mut phase, mut step) = (launch.phase, launch.step);
        let mut arguments: [*mut c_void; 2] = [(&raw mut phase).cast(), (&raw mut step).cast()];
        let function = self.kernel(launch.kernel);
        call!(cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), std::ptr::null_mut()))
    }

    /// Records what `launch` launches instead of launching it, ready to be replayed.
    pub(super) fn record(&self, launch: impl FnOnce() -> Result<(), Failure>) -> Result<Graph, Failure> {
        call!(cuStreamBeginCapture_v2(self.stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))?;
        let launched = launch();
        let mut graph = std::ptr::null_mut();
        // What failed in between ends the recording, too.
        let ended = call!(cuStreamEndCapture(self.stream, &raw mut graph));
        launched.and(ended)?;
        let mut executable = std::ptr::null_mut();
        let made = call!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0));
        let destroyed = call!(cuGraphDestroy(graph));
        made.and(destroyed)?;
        call!(cuGraphUpload(executable, self.stream))?;
        Ok(Graph(executable))
    }

    /// Begins the launches of a recording.
    pub(super) fn replay(&self, graph: Graph) -> Result<(), Failure> {
        call!(cuGraphLaunch(graph.0, self.stream))
    }

    /// Frees a recording of which nothing is under way.
    pub(super) fn forget(&self, graph: Graph) -> Result<(), Failure> {
        let Graph(executable) = graph;
        call!(cuGraphExecDestroy(executable))
    }

    /// Waits for everything that was begun.
    pub(super) fn synchronize(&self) -> Result<(), Failure> {
        call!(cuStreamSynchronize(self.stream))
    }

    /// Whether everything that was begun is done, but for copies aside.
    pub(super) fn is_idle(&self) -> Result<bool, Failure> {
        is_done(self.stream)
    }

    /// Copies `values` to the device and waits for it.
    pub(super) fn upload_phases(&self, to: Address, values: &[Phase]) -> Result<(), Failure> {
        self.upload(to, values.as_ptr().cast(), size_of_val(values))?;
        self.synchronize()
    }
}

fn is_done(stream: sys::CUstream) -> Result<bool, Failure> {
    // SAFETY: streams live as long as the process.
    let code = unsafe { sys::cuStreamQuery(stream) };
    if code == sys::CUresult::CUDA_ERROR_NOT_READY {
        return Ok(false);
    }
    check("cuStreamQuery", code).map(|()| true)
}

fn check(call: &str, code: sys::CUresult) -> Result<(), Failure> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name: *const c_char = std::ptr::null();
    // SAFETY: the driver is loaded, since it answered; the name is its own and lives as long.
    let named = unsafe { sys::cuGetErrorName(code, &raw mut name) };
    let name = if named == sys::CUresult::CUDA_SUCCESS && !name.is_null() {
        // SAFETY: a C string of the driver.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    } else {
        "unknown".into()
    };
    Err(Failure { code: code as i32, text: format!("{call}: {name} ({})", code as i32) })
}

/// What every device of compute capability 8.0 allows a block; batch kernels take less, or say so when launched.
const BATCH_SHARED_BYTES: usize = 99 << 10;
/// What devices of 9.0 allow.
const BATCH_SHARED_BYTES_SM_90: usize = 227 << 10;
/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const WITHOUT_TIMES: u32 = 2;
/// `CU_MEMHOSTREGISTER_PORTABLE`.
const PORTABLE: u32 = 1;
/// `CU_MEMHOSTREGISTER_DEVICEMAP`.
const MAPPED: u32 = 2;
/// The driver of CUDA 12.4, which reads the images.
const VERSION_MIN: i32 = 12040;

const NEEDED: [&str; 36] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceGetPCIBusId",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemsetD8Async",
    "cuMemHostRegister_v2",
    "cuMemHostGetDevicePointer_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuStreamCreate",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchCooperativeKernel",
    "cuLaunchKernelEx",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphUpload",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGetErrorName",
];
