//! Causal attention of grouped queries over a paged KV cache, F16 or int8.
//!
//! The bits of a result depend on the query, the cached keys and values, and the positions alone: dot products run in
//! chains of [`CHAIN`] dimensions, softmax in splits of [`SPLIT`] absolute positions that are merged in order. How the
//! queries are cut into calls and tiles changes nothing.

mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx_bytes;
mod attend;
mod bytes;
mod cache;
mod halves;
mod pool;
mod rows;
mod tile;
mod wide;

pub use ahead::Reading;
pub use attend::{PART_ROWS_MAX, Parts, Queries, Scratch, Shape, Then, attend, attend_splits, merge, part_vectors};
pub use cache::{KvLayout, KvType, KvView, NoSuchKvType, store};
pub use pool::KvPool;
pub use tile::RowState;

/// Positions interleaved in K: the lanes of one vector.
pub const GROUP: usize = 16;
/// Positions of one KV block.
pub const BLOCK: usize = 32;
/// Positions of one softmax split; splits start at its multiples.
pub const SPLIT: usize = 256;
/// Dimensions of one chain of fused products; the chains of a dot product are added in order.
pub const CHAIN: usize = 32;

const _: () = assert!(BLOCK == 2 * GROUP && SPLIT.is_multiple_of(BLOCK) && GROUP == crate::simd::LANES);
