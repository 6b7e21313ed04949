//! Which cpus the calling thread may run on, and its name.
#![expect(unsafe_code, reason = "affinity, thread names and the current cpu are libc calls")]
use std::ffi::CString;
use std::io;

use crate::cpu::{CpuId, format_cpus};
use crate::error::Error;

/// Pins the calling thread: to one cpu, or to a set in which the kernel may move it.
///
/// # Errors
/// [`Error::Pin`] if the set is empty, or none of it is online and allowed.
pub fn pin(cpus: &[CpuId]) -> Result<(), Error> {
    let refused = |source| Error::Pin { cpus: format_cpus(cpus), source };
    if cpus.is_empty() || cpus.iter().any(|cpu| cpu.0 as usize >= MASK_CPUS_MAX) {
        return Err(refused(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    if let [cpu] = cpus
        && (cpu.0 as usize) < FIXED_MASK_CPUS
    {
        let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: cpu.0 as usize });
        return if pinned { Ok(()) } else { Err(refused(io::Error::last_os_error())) };
    }
    set_mask(cpus).map_err(refused)
}

/// Cpus of the calling thread's affinity mask, ascending. The kernel has already cut it down to the cpuset.
///
/// # Errors
/// [`Error::Affinity`] if the kernel refuses to tell.
pub fn allowed_cpus() -> Result<Vec<CpuId>, Error> {
    let mut mask = Mask::with_room_for(FIXED_MASK_CPUS);
    loop {
        // SAFETY: `mask` is live and writable, of exactly the size that is passed; pid 0 is the calling thread.
        let status = unsafe { libc::sched_getaffinity(0, mask.bytes(), mask.0.as_mut_ptr().cast()) };
        if status == 0 {
            return Ok(mask.cpus());
        }
        let source = io::Error::last_os_error();
        // The kernel knows more cpus than the mask has bits.
        if source.raw_os_error() != Some(libc::EINVAL) || mask.bytes() * 8 >= MASK_CPUS_MAX {
            return Err(Error::Affinity { source });
        }
        mask = Mask::with_room_for(mask.bytes() * 16);
    }
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
    let mask = Mask::of(cpus);
    // SAFETY: `mask` is live, of exactly the size that is passed; pid 0 is the calling thread.
    let status = unsafe { libc::sched_setaffinity(0, mask.bytes(), mask.0.as_ptr().cast()) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A set of cpus as the kernel takes it: a bit for each, in words of the machine, as many as it takes.
#[derive(Debug, PartialEq, Eq)]
struct Mask(Vec<libc::c_ulong>);

impl Mask {
    fn with_room_for(cpus: usize) -> Self {
        Self(vec![0; cpus.div_ceil(WORD_BITS).max(1)])
    }

    fn of(cpus: &[CpuId]) -> Self {
        let last = cpus.iter().map(|cpu| cpu.0 as usize).max().unwrap_or(0);
        let mut mask = Self::with_room_for(last + 1);
        for cpu in cpus.iter().map(|cpu| cpu.0 as usize) {
            mask.0[cpu / WORD_BITS] |= 1 << (cpu % WORD_BITS);
        }
        mask
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.0[..])
    }

    fn cpus(&self) -> Vec<CpuId> {
        let is_set = |cpu: &u32| self.0[*cpu as usize / WORD_BITS] & 1 << (*cpu as usize % WORD_BITS) != 0;
        (0u32..).take(self.0.len() * WORD_BITS).filter(is_set).map(CpuId).collect()
    }
}

const WORD_BITS: usize = libc::c_ulong::BITS as usize;
/// Bits of the mask that the C library's own functions have.
const FIXED_MASK_CPUS: usize = 8 * size_of::<libc::cpu_set_t>();
/// More than any kernel can be built for.
const MASK_CPUS_MAX: usize = 1 << 16;
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
    fn a_mask_holds_any_cpu_that_a_kernel_may_have() {
        for cpus in [&[0][..], &[63, 64], &[1023, 1024, 8191], &[65_535]] {
            let cpus: Vec<CpuId> = cpus.iter().copied().map(CpuId).collect();
            assert_eq!(Mask::of(&cpus).cpus(), cpus);
        }
        assert_eq!(Mask::of(&[CpuId(0)]).bytes(), size_of::<libc::c_ulong>());
        assert!(Mask::with_room_for(FIXED_MASK_CPUS).cpus().is_empty());
    }

    #[test]
    fn cpus_past_the_fixed_mask_are_for_the_kernel_to_judge() {
        let allowed = allowed_cpus().unwrap();
        let far = [&allowed[..], &[CpuId(5000)]].concat();
        let thread = std::thread::spawn(move || (pin(&[CpuId(5000)]), pin(&far).map(|()| allowed_cpus().unwrap())));
        let (alone, with_others) = thread.join().unwrap();
        // The kernel leaves out what is not there, and refuses a set of which nothing is.
        assert!(alone.is_err());
        assert_eq!(with_others.unwrap(), allowed);
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
