//! Lines for the operator, written by control threads only; a shard never formats or writes one while it serves. Where a server
//! runs, one thread writes them: a reader that stops reading holds nobody else.

use std::fmt;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::config::LogLevel;

static LEVEL: AtomicU8 = AtomicU8::new(2);
static OUTLET: OnceLock<SyncSender<String>> = OnceLock::new();
static COUNTS: Counts = Counts { waiting: AtomicU64::new(0), dropped: AtomicU64::new(0) };

/// Lines that wait to be written, and those that found no room to wait.
struct Counts {
    waiting: AtomicU64,
    dropped: AtomicU64,
}

/// Sets the least important level that is printed.
pub fn set_level(level: LogLevel) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Whether lines of `level` are printed.
#[must_use]
pub fn enabled(level: LogLevel) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Has a thread write all lines from now on, and what panics say as well.
///
/// # Errors
/// When there can be no further thread.
pub fn write_beside() -> std::io::Result<()> {
    let (lines, incoming) = sync_channel(LINES_MAX);
    std::thread::Builder::new()
        .name("log".into())
        .spawn(move || write_all(&incoming, &mut std::io::stderr(), &COUNTS))?;
    // Another outlet serves as well.
    let _ = OUTLET.set(lines);
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let backtrace = std::backtrace::Backtrace::capture();
        let words = panic.to_string().replace('\n', " ");
        let is_captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        let trace = if is_captured { format!("\n{backtrace}") } else { String::new() };
        say(format_args!("bitnetd: thread {name} {words}{trace}"));
    }));
    Ok(())
}

/// Writes one line to standard error, or hands it to the thread that does. Where its reader is gone or its disk is full
/// there is nobody to tell, and that is no reason to stop.
pub fn say(line: fmt::Arguments<'_>) {
    let line = format!("{line}\n");
    match OUTLET.get() {
        Some(outlet) => hand_over(line, outlet, &COUNTS),
        None => drop(std::io::stderr().write_all(line.as_bytes())),
    }
}

/// Waits until all lines are written, for a moment at most: the process is about to end.
pub fn finish() {
    let until = Instant::now() + FINISH_MAX;
    while COUNTS.waiting.load(Ordering::Acquire) > 0 && Instant::now() < until {
        pause();
    }
}

/// Lines that nobody has read: there was no room for them to wait.
#[must_use]
pub fn dropped() -> u64 {
    COUNTS.dropped.load(Ordering::Relaxed)
}

fn hand_over(line: String, outlet: &SyncSender<String>, counts: &Counts) {
    counts.waiting.fetch_add(1, Ordering::AcqRel);
    if outlet.try_send(line).is_err() {
        counts.waiting.fetch_sub(1, Ordering::AcqRel);
        counts.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

fn write_all(lines: &Receiver<String>, out: &mut impl Write, counts: &Counts) {
    let mut told = 0;
    while let Ok(line) = lines.recv() {
        let _ = out.write_all(line.as_bytes());
        let dropped = counts.dropped.load(Ordering::Relaxed);
        if dropped > told {
            let lines = dropped - told;
            let _ = out.write_all(format!("bitnetd: warning: {lines} lines were dropped here\n").as_bytes());
            told = dropped;
        }
        counts.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[expect(clippy::disallowed_methods, reason = "the process ends, and its shards have ended")]
fn pause() {
    std::thread::sleep(Duration::from_millis(1));
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

/// Lines that wait for a reader that is slow.
const LINES_MAX: usize = 256;
/// What a reader gets to take the last lines.
const FINISH_MAX: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a line each time that it may.
    struct Slow {
        may_go_on: Receiver<()>,
        written: Vec<u8>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.may_go_on.recv();
            self.written.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_holds_nobody_and_hears_later_what_it_missed() {
        let counts = Counts { waiting: AtomicU64::new(0), dropped: AtomicU64::new(0) };
        let ((lines, incoming), (go_on, may_go_on)) = (sync_channel(2), sync_channel(0));
        let written = std::thread::scope(|scope| {
            let counts = &counts;
            let writing = scope.spawn(move || {
                let mut out = Slow { may_go_on, written: Vec::new() };
                write_all(&incoming, &mut out, counts);
                out.written
            });
            // One may be with the writer, two wait, whatever it has taken so far.
            (0..9).for_each(|number| hand_over(format!("{number}\n"), &lines, counts));
            let dropped = counts.dropped.load(Ordering::Relaxed);
            assert!((6..=7).contains(&dropped), "{dropped}");
            drop((lines, go_on));
            writing.join().unwrap()
        });
        let written = String::from_utf8(written).unwrap();
        let dropped = counts.dropped.load(Ordering::Relaxed);
        assert!(written.starts_with("0\n"), "{written}");
        assert!(written.contains(&format!("bitnetd: warning: {dropped} lines were dropped here\n")), "{written}");
        assert_eq!(counts.waiting.load(Ordering::Acquire), 0);
    }
}
