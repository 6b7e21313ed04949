//! The machine: topology, placement, pinning and memory.
#![deny(unsafe_code)]

mod affinity;
mod cgroup;
mod cpu;
mod descriptors;
mod error;
pub mod host;
pub mod memory;
mod placement;
mod priority;
mod sysfs;
mod topology;

pub use affinity::{allowed_cpus, current_cpu, name_thread, pin};
pub use cpu::{CpuId, NodeId, format_cpus, parse_cpus};
pub use descriptors::raise_open_files;
pub use error::Error;
pub use placement::{Note, Placement, ShardPlacement, plan};
pub use priority::give_way;
pub use topology::{Core, CoreKind, Node, Topology};
