//! The machine: topology, placement, pinning and memory.
#![deny(unsafe_code)]

mod affinity;
mod cgroup;
pub mod checks;
mod cpu;

mod error;
pub mod host;
pub mod memory;
mod placement;
mod priority;
mod rlimits;
mod sysfs;
mod topology;

pub use affinity::{allowed_cpus, current_cpu, name_thread, pin};
pub use cpu::{CpuId, NodeId, format_cpus, parse_cpus};
pub use error::Error;
pub use placement::{DevicePlacement, Note, Placement, ShardPlacement, plan, plan_with_devices};
pub use priority::{give_way, take_short_turns, thread_time};
pub use rlimits::{raise_locked_memory, raise_open_files};
pub use sysfs::pci_node;
pub use topology::{Core, CoreKind, Node, Topology};
