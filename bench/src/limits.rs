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
        let int8 = limits::int8(isa).map(|operations| {
            let seconds = best(|| {
                team.run(&none, &|_| {
                    black_box(limits::int8(isa));
                });
            });
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let operations = (operations * team.size()) as f64;
            operations / seconds
        });
        let float_seconds = best(|| {
            team.run(&none, &|_| {
                black_box(limits::fma(isa));
            });
        });
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let (read, float) = ((part * team.size()) as f64, (limits::fma(isa) * team.size()) as f64);
        Self {
            read_bytes_per_s: read / seconds,
            int8_operations_per_s: int8,
            float_operations_per_s: float / float_seconds,
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
