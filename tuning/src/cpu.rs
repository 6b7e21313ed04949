//! Cpu and node numbers, and the kernel's list notation for them.
use std::fmt;

use crate::error::Error;

/// A logical CPU as the kernel numbers it (`cpu7` in sysfs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub u32);

/// A NUMA node as the kernel numbers it (`node1` in sysfs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu{}", self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}", self.0)
    }
}

/// Reads the kernel's list notation (`0-3,8,10-11`; empty means none), ascending and without repeats.
///
/// # Errors
/// [`Error::CpuList`] for anything else, and for numbers past any kernel's `NR_CPUS`.
pub fn parse_cpus(list: &str) -> Result<Vec<CpuId>, Error> {
    Ok(parse_ids(list)?.into_iter().map(CpuId).collect())
}

/// Writes cpus in the kernel's list notation.
#[must_use]
pub fn format_cpus(cpus: &[CpuId]) -> String {
    let mut text = String::new();
    let mut rest = cpus;
    while let Some(first) = rest.first() {
        let run = rest.iter().zip(first.0..).take_while(|(cpu, expected)| cpu.0 == *expected).count();
        let separator = if text.is_empty() { "" } else { "," };
        let piece = match run {
            1 => format!("{separator}{}", first.0),
            _ => format!("{separator}{}-{}", first.0, rest[run - 1].0),
        };
        text.push_str(&piece);
        rest = &rest[run..];
    }
    text
}

pub(crate) fn parse_ids(list: &str) -> Result<Vec<u32>, Error> {
    let mut ids = Vec::new();
    for part in list.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let malformed = || Error::CpuList { list: list.trim().to_owned(), part: part.to_owned() };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.parse().map_err(|_| malformed())?;
        let last: u32 = last.parse().map_err(|_| malformed())?;
        if first > last || last >= CPUS_MAX {
            return Err(malformed());
        }
        ids.extend(first..=last);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// More logical cpus than any kernel is built for (`NR_CPUS` is at most 8192).
const CPUS_MAX: u32 = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_notation_round_trips() {
        for list in ["", "0", "0-3", "0-3,8", "1,3,5-7,64-127"] {
            assert_eq!(format_cpus(&parse_cpus(list).unwrap()), list);
        }
    }

    #[test]
    fn list_is_sorted_and_without_repeats() {
        assert_eq!(format_cpus(&parse_cpus("8, 0-3,2\n").unwrap()), "0-3,8");
    }

    #[test]
    fn malformed_list_is_an_error() {
        for list in ["x", "3-1", "0-", "-4", "1-2-3", "0-4294967295", "99999999999"] {
            assert!(parse_cpus(list).is_err(), "{list}");
        }
    }
}
