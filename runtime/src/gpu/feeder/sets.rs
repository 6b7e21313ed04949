//! What may come next in answers that must look like something: computed while the device computes, or beside all steps.

use std::time::Duration;

use super::super::device::{Device, Want};
use super::{Feeder, Journal, has_logits, waits_for};

impl<D: Device, J: Journal> Feeder<D, J> {
    /// Gives guides that have come back to their sequences.
    pub(super) fn take_guides_back(&mut self) {
        if self.beside.take_news() {
            self.scheduler.take_guides_back();
        }
    }

    /// Computes the sets of allowed tokens that the oldest step wants when it is done, if it has not; whether that took time.
    ///
    /// Before that step is the oldest, others wait for the tokens of one before it.
    pub(super) fn compute_sets(&mut self) -> bool {
        let Self { flights, samplers, scheduler, .. } = self;
        let Some(flight) = flights.front_mut().filter(|flight| flight.sets_due) else { return false };
        flight.sets_due = false;
        samplers.clear();
        let with_logits = flight.step.segments.iter().zip(&flight.streams).filter(|(s, _)| has_logits(&flight.step, s));
        for ((segment, stream), _) in with_logits.zip(&flight.wants).filter(|(_, want)| **want == Want::Scores) {
            let sequence = scheduler.sequence(segment.slot);
            if sequence.is_some_and(|sequence| sequence.is_guided()) && waits_for(sequence, segment, *stream) {
                samplers.add(Some(segment.slot));
            }
        }
        flight.is_unseen = !samplers.is_empty();
        samplers.look_ahead(scheduler);
        flight.is_unseen
    }
}

/// What the sets of a step of `step_s` seconds may take of so many `threads` together: as long as the device computes they hold
/// nobody up.
pub(super) fn sets_time(step_s: f64, threads: usize) -> Duration {
    Duration::try_from_secs_f64(step_s).unwrap_or_default() * u32::try_from(threads).unwrap_or(u32::MAX)
}
