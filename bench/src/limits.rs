//! The read bandwidth and int8 rate of a team, measured in the same run as what is compared with them.

use std::hint::black_box;
use std::time::Instant;

use kernels::{Isa, limits};
use runtime::team::{Counters, Team};
use tuning::memory::Arena;

/// What the workers of a team can do together.
pub(crate) struct Limits {
    pub(crate) read_bytes_per_s: f64,
    /// `None` where the instruction set has no int8 unit that is measured.
    pub(crate) int8_operations_per_s: Option<f64>,
    /// What AVX-512 VNNI does, where that is the rate of AMX's tiles: few rows go without these.
    pub(crate) vnni_operations_per_s: Option<f64>,
    /// Fused multiply-adds of f32, two operations each.
    pub(crate) float_operations_per_s: f64,
}

impl Limits {
    pub(crate) fn measure(isa: Isa, team: &Team) -> Self {
        let mut arena = Arena::zeroed(READ_BYTES, None).expect("memory for the bandwidth test");
        arena.as_mut_slice().fill(1);
        let bytes = arena.as_slice();
        let none = Counters::new(0);
        let part = READ_BYTES / team.size();
        let seconds = best(|| {
            team.run(&none, &|member| {
                black_box(limits::read(isa, &bytes[member.index * part..(member.index + 1) * part]));
            });
        });
        let int8 = |isa: Isa| {
            let operations = limits::int8(isa)?;
            let seconds = best(|| {
                team.run(&none, &|_| {
                    black_box(limits::int8(isa));
                });
            });
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let operations = (operations * team.size()) as f64;
            Some(operations / seconds)
        };
        let without_tiles = |isa: &Isa| matches!(isa, Isa::Avx512Vnni(_));
        let vnni = match isa {
            Isa::AmxInt8(_) => Isa::available().into_iter().find(without_tiles).and_then(int8),
            _ => None,
        };
        let float_seconds = best(|| {
            team.run(&none, &|_| {
                black_box(limits::fma(isa));
            });
        });
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let (read, float) = ((part * team.size()) as f64, (limits::fma(isa) * team.size()) as f64);
        Self {
            read_bytes_per_s: read / seconds,
            int8_operations_per_s: int8(isa),
            vnni_operations_per_s: vnni,
            float_operations_per_s: float / float_seconds,
        }
    }
}

impl Limits {
    /// The int8 rate in words, AMX's beside that of AVX-512 VNNI.
    pub(crate) fn int8(&self) -> String {
        match (self.int8_operations_per_s, self.vnni_operations_per_s) {
            (None, _) => "unknown".into(),
            (Some(rate), None) => format!("{:.0} GOPS", rate / 1e9),
            (Some(tiles), Some(vnni)) => format!("{:.0} GOPS by AMX, {:.0} by VNNI", tiles / 1e9, vnni / 1e9),
        }
    }
}

/// The shortest of several runs: a limit is what the machine can do undisturbed.
fn best(mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let started = Instant::now();
        run();
        best = best.min(started.elapsed().as_secs_f64());
    }
    best
}

const READ_BYTES: usize = 512 << 20;
const RUNS: usize = 7;

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
