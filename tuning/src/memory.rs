//! Memory for weights and KV, and how much of it there is.
mod allocator;
mod arena;
mod limits;

pub use allocator::map_blocks_from;
pub use arena::{Arena, Binding, PageKind};
pub use limits::{available_memory_bytes, peak_rss_bytes, rss_bytes};
