//! The read bandwidth and int8 rate of a team, measured just before and after what is compared with them.

use std::hint::black_box;
use std::time::{Duration, Instant};

use kernels::{Isa, limits};
use runtime::team::{Counters, Team};
use tuning::memory::Arena;

/// What the workers of a team can do together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) read_bytes_per_s: f64,
    /// `None` where the instruction set has no int8 unit that is measured.
    pub(crate) int8_operations_per_s: Option<f64>,
    /// What AVX-512 VNNI does, where that is the rate of AMX's tiles: few rows go without these.
    pub(crate) vnni_operations_per_s: Option<f64>,
    /// Fused multiply-adds of f32, two operations each.
    pub(crate) float_operations_per_s: f64,
}

/// Measures limits as often as it is asked to: a clock drifts within minutes, so what is timed is compared with what was
/// measured just before and just after it.
pub(crate) struct Gauge {
    isa: Isa,
    memory: Arena,
}

impl Gauge {
    pub(crate) fn new(isa: Isa) -> Self {
        let mut memory = Arena::zeroed(READ_BYTES, None).expect("memory for the bandwidth test");
        memory.as_mut_slice().fill(1);
        Self { isa, memory }
    }

    /// Takes a quarter of a second. The int8 rate comes last: its instructions are those that a prompt begins with.
    pub(crate) fn limits(&self, team: &Team) -> Limits {
        let without_tiles = |isa: &Isa| matches!(isa, Isa::Avx512Vnni(_));
        let vnni = match self.isa {
            Isa::AmxInt8(_) => Isa::available().into_iter().find(without_tiles),
            _ => None,
        };
        Limits {
            read_bytes_per_s: self.read(team),
            float_operations_per_s: rate(team, limits::fma(self.isa), || limits::fma(self.isa)),
            vnni_operations_per_s: vnni.and_then(|isa| int8(isa, team)),
            int8_operations_per_s: int8(self.isa, team),
        }
    }

    fn read(&self, team: &Team) -> f64 {
        let (bytes, none) = (self.memory.as_slice(), Counters::new(0));
        let part = READ_BYTES / team.size();
        let seconds = usual(|| {
            team.run(&none, &|member| {
                black_box(limits::read(self.isa, &bytes[member.index * part..(member.index + 1) * part]));
            });
        });
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let read = (part * team.size()) as f64;
        read / seconds
    }
}

fn int8(isa: Isa, team: &Team) -> Option<f64> {
    limits::int8(isa).map(|operations| rate(team, operations, || limits::int8(isa)))
}

/// Operations per second of all workers, each of which does so many in a call.
fn rate<T>(team: &Team, operations: usize, call: impl Fn() -> T + Sync) -> f64 {
    let none = Counters::new(0);
    let seconds = usual(|| {
        team.run(&none, &|_| {
            black_box(call());
        });
    });
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let operations = (operations * team.size()) as f64;
    operations / seconds
}

impl Limits {
    /// What lies between two measurements of the same.
    pub(crate) fn mean(&self, other: &Self) -> Self {
        let both = |a: Option<f64>, b: Option<f64>| Some(f64::midpoint(a?, b?));
        Self {
            read_bytes_per_s: f64::midpoint(self.read_bytes_per_s, other.read_bytes_per_s),
            int8_operations_per_s: both(self.int8_operations_per_s, other.int8_operations_per_s),
            vnni_operations_per_s: both(self.vnni_operations_per_s, other.vnni_operations_per_s),
            float_operations_per_s: f64::midpoint(self.float_operations_per_s, other.float_operations_per_s),
        }
    }

    /// The int8 rate in words, AMX's beside that of AVX-512 VNNI.
    pub(crate) fn int8(&self) -> String {
        match (self.int8_operations_per_s, self.vnni_operations_per_s) {
            (None, _) => "unknown".into(),
            (Some(rate), None) => format!("{:.0} GOPS", rate / 1e9),
            (Some(tiles), Some(vnni)) => format!("{:.0} GOPS by AMX, {:.0} by VNNI", tiles / 1e9, vnni / 1e9),
        }
    }
}

/// The median time of as many runs as some time takes. The shortest one would be what a clock reaches for less than a
/// millisecond: of int8 798 GOPS where 748 last.
fn usual(mut run: impl FnMut()) -> f64 {
    let (mut times, since) = (Vec::new(), Instant::now());
    while times.len() < RUNS_MIN || since.elapsed() < TIME {
        let started = Instant::now();
        run();
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

const READ_BYTES: usize = 512 << 20;
const RUNS_MIN: usize = 3;
const TIME: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_peaks_are_named_where_there_are_two() {
        let said = |int8_operations_per_s, vnni_operations_per_s| {
            let (read_bytes_per_s, float_operations_per_s) = (1e9, 1e9);
            Limits { read_bytes_per_s, int8_operations_per_s, vnni_operations_per_s, float_operations_per_s }.int8()
        };
        assert_eq!(said(None, None), "unknown");
        assert_eq!(said(Some(748e9), None), "748 GOPS");
        assert_eq!(said(Some(5.5e12), Some(1.4e12)), "5500 GOPS by AMX, 1400 by VNNI");
    }
}
