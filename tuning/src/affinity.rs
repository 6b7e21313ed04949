//! Which cpus the calling thread may run on, and its name.
#![expect(unsafe_code, reason = "affinity, thread names and the current cpu are libc calls")]
use std::ffi::CString;
use std::io;
use std::mem;

use crate::cpu::{CpuId, format_cpus};
use crate::error::Error;

/// Pins the calling thread: to one cpu, or to a set in which the kernel may move it.
///
/// # Errors
/// [`Error::Pin`] if the set is empty, or none of it is online and allowed.
pub fn pin(cpus: &[CpuId]) -> Result<(), Error> {
    let refused = |source| Error::Pin { cpus: format_cpus(cpus), source };
    if cpus.is_empty() || cpus.iter().any(|cpu| cpu.0 as usize >= MASK_CPUS) {
        return Err(refused(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    if let [cpu] = cpus {
        let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: cpu.0 as usize });
        return if pinned { Ok(()) } else { Err(refused(io::Error::last_os_error())) };
    }
    set_mask(cpus).map_err(refused)
}

/// Cpus of the calling thread's affinity mask, ascending. The kernel has already cut it down to the cpuset.
///
/// # Errors
/// [`Error::Affinity`] if the kernel refuses to tell, as it does on more than 1024 cpus.
pub fn allowed_cpus() -> Result<Vec<CpuId>, Error> {
    let mut mask = empty_mask();
    // SAFETY: `mask` is a live, writable cpu_set_t of exactly the size that is passed; pid 0 is the calling thread.
    let status = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut mask) };
    if status != 0 {
        return Err(Error::Affinity { source: io::Error::last_os_error() });
    }
    let is_set = |cpu: usize| {
        // SAFETY: `cpu` is below the number of bits in a cpu_set_t.
        unsafe { libc::CPU_ISSET(cpu, &mask) }
    };
    Ok((0u32..).take(MASK_CPUS).filter(|cpu| is_set(*cpu as usize)).map(CpuId).collect())
}

/// Names the calling thread as `ps -L`, `top -H` and debuggers show it; the kernel keeps 15 bytes.
pub fn name_thread(name: &str) {
    let bytes: Vec<u8> = name.bytes().filter(|byte| *byte != 0).take(NAME_BYTES_MAX).collect();
    let Ok(name) = CString::new(bytes) else { return };
    // SAFETY: `name` is a NUL-terminated string that outlives the call, which copies at most 16 bytes from it.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// The cpu on which the calling thread runs at this moment.
#[must_use]
pub fn current_cpu() -> Option<CpuId> {
    // SAFETY: the call has no arguments and touches no memory of ours.
    let cpu = unsafe { libc::sched_getcpu() };
    u32::try_from(cpu).ok().map(CpuId)
}

fn set_mask(cpus: &[CpuId]) -> io::Result<()> {
    let mut mask = empty_mask();
    for cpu in cpus {
        // SAFETY: `pin` has checked that the cpu is below the number of bits in a cpu_set_t.
        unsafe { libc::CPU_SET(cpu.0 as usize, &mut mask) };
    }
    // SAFETY: `mask` is a live cpu_set_t of exactly the size that is passed; pid 0 is the calling thread.
    let status = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const mask) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn empty_mask() -> libc::cpu_set_t {
    // SAFETY: cpu_set_t is an array of integers, for which all zeros is the empty set.
    unsafe { mem::zeroed() }
}

const MASK_CPUS: usize = 8 * size_of::<libc::cpu_set_t>();
const NAME_BYTES_MAX: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_thread_runs_where_it_was_put() {
        let allowed = allowed_cpus().unwrap();
        for cpu in allowed.iter().copied() {
            let seen = std::thread::spawn(move || pin(&[cpu]).map(|()| (current_cpu(), allowed_cpus().unwrap())));
            let (current, mask) = seen.join().unwrap().unwrap();
            assert_eq!(current, Some(cpu));
            assert_eq!(mask, [cpu]);
        }
    }

    #[test]
    fn set_is_the_whole_mask() {
        let allowed = allowed_cpus().unwrap();
        let wanted = allowed.clone();
        let seen = std::thread::spawn(move || pin(&wanted).map(|()| allowed_cpus().unwrap()));
        assert_eq!(seen.join().unwrap().unwrap(), allowed);
    }

    #[test]
    fn impossible_cpus_are_refused() {
        let join = std::thread::spawn(|| {
            (pin(&[]), pin(&[CpuId(1023)]), pin(&[CpuId(70_000)]), pin(&[CpuId(70_000), CpuId(0)]))
        });
        let (none, offline, past, past_in_set) = join.join().unwrap();
        assert!(none.is_err() && offline.is_err() && past.is_err() && past_in_set.is_err());
    }

    #[test]
    fn thread_name_is_cut_to_what_the_kernel_keeps() {
        let named = std::thread::spawn(|| {
            name_thread("shard-0/worker-12");
            std::fs::read_to_string("/proc/thread-self/comm").unwrap()
        });
        assert_eq!(named.join().unwrap().trim_end(), "shard-0/worker-");
    }
}
