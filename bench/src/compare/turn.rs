//! One run of one side: a shell command, given up after some time.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What the command printed, or why that does not count. Its children end with it: coreutils' `timeout` leads the group.
pub(super) fn run(command: &str, limit: Duration) -> Result<String, String> {
    let output = Command::new("timeout")
        .args(["--kill-after=5", &limit.as_secs().to_string(), "sh", "-c", command])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("can't start `timeout`: {error}"))?;
    let last_line = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim().to_owned()
    };
    match output.status.code() {
        Some(0) => String::from_utf8(output.stdout).map_err(|_| "its output is not UTF-8".to_owned()),
        Some(TIMED_OUT | KILLED) => Err(format!("not done after {} s", limit.as_secs())),
        Some(code) => Err(format!("ended with {code}: {}", last_line(&output.stderr))),
        None => Err("killed by a signal".to_owned()),
    }
}

/// A path as a word of a shell.
pub(super) fn quoted(path: &Path) -> Result<String, super::Failure> {
    let path = path.to_str().ok_or("this program's path is not UTF-8")?;
    Ok(format!("'{}'", path.replace('\'', r"'\''")))
}

/// What `timeout` ends with where the command took too long, also where it had to be killed.
const TIMED_OUT: i32 = 124;
const KILLED: i32 = 137;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gives_its_output_or_the_reason_why_not() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(run("echo 1; echo 2 >&2", minute), Ok("1\n".to_owned()));
        assert_eq!(run("echo warm; echo no such model >&2; exit 3", minute), Err("ended with 3: no such model".into()));
        assert_eq!(run("sleep 60 & sleep 60", second), Err("not done after 1 s".to_owned()));
        assert_eq!(run("printf '\\377'", minute), Err("its output is not UTF-8".to_owned()));
        assert!(run("/nonexistent/bench", minute).unwrap_err().starts_with("ended with 127"));
    }

    #[test]
    fn any_path_is_one_word() {
        let word = quoted(Path::new("/a b/it's")).unwrap();
        assert_eq!(run(&format!("printf %s {word}"), Duration::from_secs(60)), Ok("/a b/it's".to_owned()));
    }
}
