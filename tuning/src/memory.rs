//! Memory for weights and KV, and how much of it there is.
mod allocator;
mod arena;
mod backing;
mod code;
mod limits;
mod pages;
mod syscalls;

pub use allocator::{give_back_free, map_blocks_from, untouched};
pub use arena::Arena;
pub use backing::{Backing, Binding, Locking, Residency};
pub use code::give_back_program;
pub use limits::{available_memory_bytes, available_node_bytes, peak_rss_bytes, rss_bytes};
pub use pages::{PageKind, Shortage};
pub use syscalls::prefer_huge_pages;
