//! Lines for the operator, written by control threads only; a shard never formats or writes one while it serves.

use std::fmt;
use std::io::Write;
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

/// Writes one line to standard error. Where its reader is gone or its disk is full there is nobody to tell, and that is no
/// reason to stop.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

macro_rules! info {
    ($($part:tt)*) => {
        if $crate::log::enabled($crate::config::LogLevel::Info) {
            $crate::log::say(format_args!("bitnetd: {}", format_args!($($part)*)));
        }
    };
}

macro_rules! warning {
    ($($part:tt)*) => {
        if $crate::log::enabled($crate::config::LogLevel::Warn) {
            $crate::log::say(format_args!("bitnetd: warning: {}", format_args!($($part)*)));
        }
    };
}

pub(crate) use {info, warning};
