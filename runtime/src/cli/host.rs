//! `bitnetd tune check`, `apply` and `script`: what of the host costs latency or speed, and what changes it.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::json;
use tuning::checks::{self, Check, Level, Roots};

type Result = std::result::Result<ExitCode, Box<dyn std::error::Error>>;

/// Says what is as wanted and what is not.
///
/// # Errors
/// When the kernel's files are malformed or nobody takes the report.
pub(super) fn check(as_json: bool) -> Result {
    let checks = checks::check(Roots::of_host())?;
    let mut out = std::io::stdout().lock();
    if as_json {
        let list: Vec<_> = checks.iter().map(to_json).collect();
        serde_json::to_writer_pretty(&mut out, &list)?;
        writeln!(out)?;
    } else {
        for check in &checks {
            writeln!(out, "{check}")?;
            for write in &check.writes {
                writeln!(out, "         {write}")?;
            }
        }
        let writes = checks.iter().filter(|check| !check.writes.is_empty()).count();
        if writes > 0 {
            writeln!(
                out,
                "`bitnetd tune apply` changes {writes} of these until the next boot, `bitnetd tune script` prints how"
            )?;
        }
    }
    let warned = checks.iter().any(|check| check.level == Level::Warning);
    Ok(if warned { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Makes all that is not as wanted so, until the next boot, and says how to undo it.
///
/// # Errors
/// As [`check`]; a file that can't be written is said and leaves exit code 1.
pub(super) fn apply() -> Result {
    let checks = checks::check(Roots::of_host())?;
    let mut out = std::io::stdout().lock();
    let mut failed = false;
    for write in checks.iter().flat_map(|check| &check.writes) {
        match write.apply() {
            Ok(()) => writeln!(out, "{write}    # was {}", write.was)?,
            Err(error) => {
                failed = true;
                writeln!(out, "{}: {error}", write.path.display())?;
            }
        }
    }
    for check in checks.iter().filter(|check| check.level != Level::Good && check.writes.is_empty()) {
        writeln!(out, "{check}")?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A shell script that does the same, with what undoes it as comments.
///
/// # Errors
/// As [`check`].
pub(super) fn script() -> Result {
    let checks = checks::check(Roots::of_host())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "#!/bin/sh\n# Settings of this host for bitnetd, until the next boot. To be run as root.\nset -eu")?;
    for check in checks.iter().filter(|check| check.level != Level::Good) {
        writeln!(out, "\n# {check}")?;
        for write in &check.writes {
            writeln!(out, "{write}    # was {}", write.was)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn to_json(check: &Check) -> serde_json::Value {
    let level = match check.level {
        Level::Good => "good",
        Level::Advice => "advice",
        Level::Warning => "warning",
    };
    let writes = check.writes.iter().map(|write| json!({"path": write.path, "value": write.value, "was": write.was}));
    json!({
        "id": check.id, "level": level, "current": check.current, "wanted": check.wanted, "why": check.why,
        "writes": writes.collect::<Vec<_>>(), "advice": check.advice,
    })
}
