//! JSON: writing by hand into a buffer, reading through a reused tape.

mod read;
mod write;

pub use read::Reader;
pub(crate) use read::{Kind, Object, Path, Value, items};
pub(crate) use write::write_escaped;
pub use write::{write_f32, write_f64, write_string, write_string_lossy, write_u64};
