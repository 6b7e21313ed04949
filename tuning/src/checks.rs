//! What of the host costs latency or speed: each setting as it is, as it should be, why, and what changes it.

mod cpus;
mod kernel;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::topology::Topology;

/// One setting of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub id: &'static str,
    pub level: Level,
    pub current: String,
    pub wanted: String,
    pub why: &'static str,
    /// What makes it as wanted until the next boot; empty where a file can't do it or nothing is to be done.
    pub writes: Vec<Write>,
    /// What makes it as wanted where no file does.
    pub advice: Option<&'static str>,
}

/// How much a setting that is not as wanted matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Good,
    /// Costs little, or only some hosts.
    Advice,
    Warning,
}

/// A value for a file of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub path: PathBuf,
    pub value: String,
    /// What it said before; this undoes the change.
    pub was: String,
}

/// Where the kernel's files are.
#[derive(Clone, Copy, Debug)]
pub struct Roots<'a> {
    pub sys: &'a Path,
    pub proc: &'a Path,
}

impl Roots<'static> {
    /// Those of this machine.
    #[must_use]
    pub fn of_host() -> Self {
        Self { sys: Path::new("/sys"), proc: Path::new("/proc") }
    }
}

/// Looks at everything that this machine has; what it lacks is left out.
///
/// # Errors
/// As [`Topology::read`].
pub fn check(roots: Roots<'_>) -> Result<Vec<Check>, Error> {
    let topology = Topology::read_within(roots.sys, roots.proc, None)?;
    let mut checks = kernel::check(roots, topology.nodes.len());
    checks.extend(cpus::check(roots, &topology));
    Ok(checks)
}

impl Write {
    /// Writes the value, or what was there before.
    ///
    /// # Errors
    /// Whatever the kernel answers; most files want root.
    pub fn apply(&self) -> std::io::Result<()> {
        fs::write(&self.path, &self.value)
    }
}

impl fmt::Display for Write {
    /// A line of a shell script.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "echo {} > {}", self.value, self.path.display())
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, current, wanted, why, advice, .. } = self;
        match self.level {
            Level::Good => return write!(f, "good     {id}: {current}"),
            Level::Advice => write!(f, "advice   ")?,
            Level::Warning => write!(f, "warning  ")?,
        }
        write!(f, "{id}: {current}; wanted: {wanted}. {why}")?;
        advice.map_or(Ok(()), |advice| write!(f, " {advice}"))
    }
}

/// A setting that is one file.
struct Setting {
    id: &'static str,
    level: Level,
    /// Below `/sys` or `/proc`.
    file: File,
    is_good: fn(&str) -> bool,
    wanted: &'static str,
    why: &'static str,
    change: Change,
}

enum File {
    Sys(&'static str),
    Proc(&'static str),
}

/// What makes a setting as wanted: a word for its file, or what there is to do.
enum Change {
    Write(&'static str),
    Advice(&'static str),
}

impl Setting {
    /// `None` where there is no such file.
    fn look(&self, roots: Roots<'_>) -> Option<Check> {
        let path = match self.file {
            File::Sys(path) => roots.sys.join(path),
            File::Proc(path) => roots.proc.join(path),
        };
        let current = chosen(&read(&path)?).to_owned();
        let good = (self.is_good)(&current);
        let (mut writes, mut advice) = (Vec::new(), None);
        match self.change {
            _ if good => {}
            Change::Write(value) => writes.push(Write { path, value: value.to_owned(), was: current.clone() }),
            Change::Advice(words) => advice = Some(words),
        }
        let level = if good { Level::Good } else { self.level };
        Some(Check { id: self.id, level, current, wanted: self.wanted.to_owned(), why: self.why, writes, advice })
    }
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The chosen word of a list like `always [madvise] never`; else all of it.
fn chosen(text: &str) -> &str {
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(text, |(word, _)| word)
}

fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}
