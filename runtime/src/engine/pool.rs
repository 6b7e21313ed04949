//! From the hidden states of a text's tokens to its embedding: one vector of length 1.

use crate::forward::{Segment, Step};
use crate::model::{HyperParameters, Pooling};
use crate::schedule::Scheduler;

/// The states that the sequences of an embedding model have given so far: of each slot a sum, or the one that counts.
pub(super) struct Pool {
    pooling: Pooling,
    hidden: usize,
    sums: Vec<f64>,
}

impl Pool {
    /// For the sequences of `slots` slots; `None` for models that generate.
    pub(super) fn new(params: &HyperParameters, slots: usize) -> Option<Self> {
        let (pooling, hidden) = (params.pooling?, params.hidden);
        Some(Self { pooling, hidden, sums: vec![0.0; slots * hidden] })
    }

    /// Asks for the rows of `step` whose states count.
    pub(super) fn want(&self, step: &mut Step, scheduler: &Scheduler) {
        let segments = std::mem::take(&mut step.segments);
        step.want_rows(segments.iter().flat_map(|segment| {
            let Segment { slot, first_row, rows, first_position } = *segment;
            match self.pooling {
                Pooling::Mean => first_row..first_row + rows,
                Pooling::First if first_position == 0 => first_row..first_row + 1,
                Pooling::Last if scheduler.sequence(slot).is_some_and(|s| s.pending() == rows) => {
                    first_row + rows - 1..first_row + rows
                }
                Pooling::First | Pooling::Last => 0..0,
            }
        }));
        step.segments = segments;
    }

    /// Forgets what the sequence before had in this slot.
    pub(super) fn clear(&mut self, slot: usize) {
        self.sums[slot * self.hidden..][..self.hidden].fill(0.0);
    }

    /// Forgets what there is in every slot.
    pub(super) fn clear_all(&mut self) {
        self.sums.fill(0.0);
    }

    /// Takes the next state of the sequence in `slot`. States come in the order of their positions, so that sums do not
    /// depend on how a text was cut into steps.
    pub(super) fn add(&mut self, slot: usize, state: &[f32]) {
        let sums = &mut self.sums[slot * self.hidden..][..self.hidden];
        // A text that begins behind what others have computed has no first position to clear the slot at.
        if self.pooling != Pooling::Mean {
            sums.fill(0.0);
        }
        sums.iter_mut().zip(state).for_each(|(sum, &value)| *sum += f64::from(value));
    }

    /// The embedding of the sequence in `slot`, whose states are all here; `None` where they have no direction.
    pub(super) fn embedding(&self, slot: usize) -> Option<Box<[f32]>> {
        normalised(&self.sums[slot * self.hidden..][..self.hidden])
    }
}

/// `values` with length 1; a mean is a sum then. `None` where they are no numbers or all zero.
fn normalised(values: &[f64]) -> Option<Box<[f32]>> {
    let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return None;
    }
    Some(values.iter().map(|value| (value / length) as f32).collect())
}

/// The embedding of a text whose states are `states`, first to last, `hidden` values each.
pub(crate) fn pooled(pooling: Pooling, states: &[f32], hidden: usize) -> Option<Box<[f32]>> {
    let mut sums = vec![0.0; hidden];
    let rows = states.chunks_exact(hidden);
    let counted = match pooling {
        Pooling::Mean => states,
        Pooling::First => rows.clone().next()?,
        Pooling::Last => rows.last()?,
    };
    for state in counted.chunks_exact(hidden) {
        sums.iter_mut().zip(state).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    normalised(&sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pooling_takes_its_states_and_gives_length_1() {
        let states = [3.0, 4.0, 0.0, 2.0, -8.0, 0.0];
        let close = |got: Option<Box<[f32]>>, wanted: [f32; 2]| {
            let got = got.unwrap();
            assert!(got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}");
        };
        close(pooled(Pooling::First, &states, 2), [0.6, 0.8]);
        close(pooled(Pooling::Last, &states, 2), [-1.0, 0.0]);
        close(pooled(Pooling::Mean, &states, 2), [-5.0 / 61f32.sqrt(), 6.0 / 61f32.sqrt()]);
    }

    #[test]
    fn states_without_a_direction_give_nothing() {
        assert!(pooled(Pooling::Last, &[0.0; 4], 4).is_none());
        assert!(pooled(Pooling::Mean, &[1.0, f32::NAN], 2).is_none());
        assert!(pooled(Pooling::First, &[f32::INFINITY, 1.0], 2).is_none());
        assert!(pooled(Pooling::Last, &[], 2).is_none());
    }
}
