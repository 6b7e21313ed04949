//! What NVIDIA's management library says of the devices, asked now and then by a thread of its own: its calls may block.
#![expect(unsafe_code, reason = "the library's C interface")]

use std::ffi::{CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use libloading::Library;

use super::status::Status;
use crate::log::{info, warning};

/// Readings of a device, as they were when it was last asked.
#[derive(Debug)]
pub struct Readings([AtomicU64; Reading::ALL.len()]);

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Share of the time in which kernels ran, and in which memory was read or written.
    Utilization,
    MemoryUtilization,
    MemoryUsedBytes,
    TemperatureCelsius,
    PowerWatts,
    ClockHertz,
    MemoryClockHertz,
    /// Errors of memory since the driver was loaded.
    EccCorrected,
    EccUncorrected,
    /// Errors that the driver reported since the server started, and the number of the last.
    XidErrors,
    LastXid,
}

impl Reading {
    pub const ALL: [Self; 11] = [
        Self::Utilization,
        Self::MemoryUtilization,
        Self::MemoryUsedBytes,
        Self::TemperatureCelsius,
        Self::PowerWatts,
        Self::ClockHertz,
        Self::MemoryClockHertz,
        Self::EccCorrected,
        Self::EccUncorrected,
        Self::XidErrors,
        Self::LastXid,
    ];
}

impl Default for Readings {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(ABSENT.to_bits())))
    }
}

impl Readings {
    /// `None` for what the library or the device does not say.
    #[must_use]
    pub fn get(&self, reading: Reading) -> Option<f64> {
        let value = f64::from_bits(self.0[reading as usize].load(Ordering::Relaxed));
        (!value.is_nan()).then_some(value)
    }

    fn set(&self, reading: Reading, value: Option<f64>) {
        self.0[reading as usize].store(value.unwrap_or(ABSENT).to_bits(), Ordering::Relaxed);
    }
}

/// The thread; dropping it ends it.
pub(super) struct Watcher {
    thread: Option<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
}

impl Watcher {
    /// Starts to watch `devices`.
    pub(super) fn start(devices: Vec<Arc<Status>>) -> std::io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stopping);
        let watch = move || match Nvml::open() {
            Ok(nvml) => nvml.watch(&devices, &told),
            Err(reason) => info!("no readings of the GPUs: {reason}"),
        };
        let thread = std::thread::Builder::new().name("nvml".into()).spawn(watch)?;
        Ok(Self { thread: Some(thread), stopping })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warning!("the thread that reads the GPUs ended by itself");
        }
    }
}

type Handle = *mut c_void;

#[repr(C)]
#[derive(Default)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[repr(C)]
#[derive(Default)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
struct Event {
    device: Handle,
    kind: c_ulonglong,
    data: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// The library. It is never unloaded: it has threads of its own.
struct Nvml(&'static Library);

/// Calls a function of the library that may be missing in older ones: its result code, if it is there.
macro_rules! call {
    ($nvml:expr, $name:expr, ($($kind:ty),*), $($argument:expr),*) => {{
        // SAFETY: the library documents this function with these types.
        let function = unsafe { $nvml.0.get::<unsafe extern "C" fn($($kind),*) -> c_int>($name) };
        // SAFETY: the arguments are alive and of those types, and the library is initialised, but for the call that does it.
        function.ok().map(|function| unsafe { function($($argument),*) })
    }};
}

impl Nvml {
    fn open() -> Result<Self, String> {
        // SAFETY: the library's constructors do not depend on this program.
        let library = unsafe { Library::new("libnvidia-ml.so.1") }.map_err(|error| error.to_string())?;
        let nvml = Self(Box::leak(Box::new(library)));
        match call!(nvml, b"nvmlInit_v2\0", (),) {
            Some(0) => Ok(nvml),
            Some(code) => Err(format!("nvmlInit_v2: error {code}")),
            None => Err("the management library lacks nvmlInit_v2".into()),
        }
    }

    fn watch(&self, devices: &[Arc<Status>], stopping: &AtomicBool) {
        let handles: Vec<Option<Handle>> = devices.iter().map(|device| self.handle(device)).collect();
        let watched = || devices.iter().zip(&handles).filter_map(|(device, handle)| Some((device, (*handle)?)));
        let events = self.events(watched().map(|(_, handle)| handle));
        if events.is_some() {
            watched().for_each(|(device, _)| device.readings.set(Reading::XidErrors, Some(0.0)));
        }
        while !stopping.load(Ordering::SeqCst) {
            for (device, handle) in watched() {
                self.read(&device.readings, handle);
            }
            match events {
                Some(set) => self.wait(set, watched),
                None => pause(EVERY),
            }
        }
    }

    /// The device at the place on the bus where the driver has it.
    fn handle(&self, device: &Status) -> Option<Handle> {
        let (bus, mut handle) = (CString::new(device.bus.as_str()).ok()?, std::ptr::null_mut());
        let name = b"nvmlDeviceGetHandleByPciBusId_v2\0";
        let code = call!(self, name, (*const c_char, *mut Handle), bus.as_ptr(), &raw mut handle);
        (code == Some(0)).then_some(handle)
    }

    fn read(&self, to: &Readings, device: Handle) {
        let mut rates = Utilization::default();
        let code = call!(self, b"nvmlDeviceGetUtilizationRates\0", (Handle, *mut Utilization), device, &raw mut rates);
        to.set(Reading::Utilization, known(code, f64::from(rates.gpu) / 100.0));
        to.set(Reading::MemoryUtilization, known(code, f64::from(rates.memory) / 100.0));
        let mut memory = Memory::default();
        let code = call!(self, b"nvmlDeviceGetMemoryInfo\0", (Handle, *mut Memory), device, &raw mut memory);
        to.set(Reading::MemoryUsedBytes, known(code, float(memory.used)));
        let mut celsius = 0;
        let name = b"nvmlDeviceGetTemperature\0";
        let code = call!(self, name, (Handle, c_int, *mut c_uint), device, OF_GPU, &raw mut celsius);
        to.set(Reading::TemperatureCelsius, known(code, f64::from(celsius)));
        let mut milliwatts = 0;
        let code = call!(self, b"nvmlDeviceGetPowerUsage\0", (Handle, *mut c_uint), device, &raw mut milliwatts);
        to.set(Reading::PowerWatts, known(code, f64::from(milliwatts) / 1e3));
        for (reading, kind) in [(Reading::ClockHertz, CLOCK_SM), (Reading::MemoryClockHertz, CLOCK_MEMORY)] {
            let mut mhz = 0;
            let name = b"nvmlDeviceGetClockInfo\0";
            let code = call!(self, name, (Handle, c_int, *mut c_uint), device, kind, &raw mut mhz);
            to.set(reading, known(code, f64::from(mhz) * 1e6));
        }
        for (reading, kind) in [(Reading::EccCorrected, CORRECTED), (Reading::EccUncorrected, UNCORRECTED)] {
            let mut count = 0;
            let name = b"nvmlDeviceGetTotalEccErrors\0";
            let code =
                call!(self, name, (Handle, c_int, c_int, *mut c_ulonglong), device, kind, SINCE_LOAD, &raw mut count);
            to.set(reading, known(code, float(count)));
        }
    }

    /// A set of the critical errors of `devices`; `None` where the library has no such events.
    fn events(&self, devices: impl Iterator<Item = Handle>) -> Option<Handle> {
        let mut set = std::ptr::null_mut();
        let code = call!(self, b"nvmlEventSetCreate\0", (*mut Handle), &raw mut set);
        let mut registered = false;
        for device in devices.take_while(|_| code == Some(0)) {
            let name = b"nvmlDeviceRegisterEvents\0";
            let code = call!(self, name, (Handle, c_ulonglong, Handle), device, XID_CRITICAL, set);
            registered |= code == Some(0);
        }
        registered.then_some(set)
    }

    /// Waits for an event until it is time to read again.
    fn wait<'d, I: Iterator<Item = (&'d Arc<Status>, Handle)>>(&self, set: Handle, watched: impl Fn() -> I) {
        let none = std::ptr::null_mut();
        let mut event = Event { device: none, kind: 0, data: 0, gpu_instance: 0, compute_instance: 0 };
        let timeout_ms = c_uint::try_from(EVERY.as_millis()).expect("a short time");
        let name = b"nvmlEventSetWait_v2\0";
        match call!(self, name, (Handle, *mut Event, c_uint), set, &raw mut event, timeout_ms) {
            Some(0) if event.kind == XID_CRITICAL => {
                for (device, _) in watched().filter(|(_, handle)| *handle == event.device) {
                    let count = device.readings.get(Reading::XidErrors).unwrap_or(0.0) + 1.0;
                    device.readings.set(Reading::XidErrors, Some(count));
                    device.readings.set(Reading::LastXid, Some(float(event.data)));
                    warning!("{}: the driver reports Xid {}", device.label(), event.data);
                }
            }
            Some(0 | TIMED_OUT) => {}
            _ => pause(EVERY),
        }
    }
}

fn known(code: Option<c_int>, value: f64) -> Option<f64> {
    (code == Some(0)).then_some(value)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn float(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::disallowed_methods, reason = "a thread that has nothing else to do")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Not known.
const ABSENT: f64 = f64::NAN;
/// How often devices are read; also how long a server waits for this thread at its end, at most.
const EVERY: Duration = Duration::from_secs(1);
/// `NVML_TEMPERATURE_GPU`.
const OF_GPU: c_int = 0;
/// `NVML_CLOCK_SM` and `NVML_CLOCK_MEM`.
const CLOCK_SM: c_int = 1;
const CLOCK_MEMORY: c_int = 2;
/// `NVML_MEMORY_ERROR_TYPE_CORRECTED` and `_UNCORRECTED`, `NVML_VOLATILE_ECC`.
const CORRECTED: c_int = 0;
const UNCORRECTED: c_int = 1;
const SINCE_LOAD: c_int = 0;
/// `nvmlEventTypeXidCriticalError`.
const XID_CRITICAL: c_ulonglong = 8;
/// `NVML_ERROR_TIMEOUT`.
const TIMED_OUT: c_int = 10;
