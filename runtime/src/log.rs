//! Lines for the operator, written by control threads only; a shard never formats or writes one while it serves.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::config::LogLevel;

static LEVEL: AtomicU8 = AtomicU8::new(2);

/// Sets the least important level that is printed.
pub fn set_level(level: LogLevel) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Whether lines of `level` are printed.
#[must_use]
pub fn enabled(level: LogLevel) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

macro_rules! info {
    ($($part:tt)*) => {
        if $crate::log::enabled($crate::config::LogLevel::Info) {
            eprintln!("bitnetd: {}", format_args!($($part)*));
        }
    };
}

macro_rules! warning {
    ($($part:tt)*) => {
        if $crate::log::enabled($crate::config::LogLevel::Warn) {
            eprintln!("bitnetd: warning: {}", format_args!($($part)*));
        }
    };
}

pub(crate) use {info, warning};
