//! Steps for nobody, before a device serves: what steps cost.

use std::time::Instant;

use super::super::device::{Device, Fault, Want};
use super::super::status::State;
use super::{Feeder, Journal, Ports, Rest, Stage, rows as rows_of};

impl<D: Device, J: Journal> Feeder<D, J> {
    /// Begins a step for nobody: of one row, of several rows that decode, or of a prompt. Those of the self test say little of what steps
    /// cost: they are the first of their kind, and give whole rows of scores.
    pub(super) fn try_step(&mut self, index: usize, now: Instant) -> Rest {
        let weights = &self.served.as_ref().expect("a device that is tried has a model").model.weights;
        let prompt = TRIED_PROMPT.min(weights.context).min(self.limits.rows_max);
        let (sequences, rows) = [(1, 1), (TRIED_DECODES.min(self.limits.slots), 1), (1, prompt)][index];
        let tokens: Vec<u32> =
            (0..rows).map(|i| u32::try_from(i % weights.params.vocab).expect("they are few")).collect();
        let mut flight = self.spare.pop().expect("nothing is under way before a trial");
        flight.step.clear();
        flight.wants.clear();
        // As many as there is room for.
        for slot in (0..sequences).take_while(|slot| self.tables.reserve(*slot, rows).is_ok()) {
            flight.step.push(slot, 0, &tokens, true);
            flight.wants.push(Want::Best);
        }
        flight.tensor_rows.clear();
        flight.tensor_rows.resize(flight.wants.len(), 0);
        self.device.submit(&flight.step, &self.tables, &flight.tensor_rows, &flight.wants);
        self.flights.push_back(flight);
        self.stage = Stage::Trying { index, begun: now };
        Rest::None
    }

    pub(super) fn look_at_trial(
        &mut self,
        index: usize,
        begun: Instant,
        now: Instant,
        ports: &mut impl Ports,
    ) -> Result<Rest, Fault> {
        let Some(flight) = self.landed(begun, now)? else { return Ok(Rest::None) };
        let elapsed = now.saturating_duration_since(begun);
        self.device.advance();
        if index == 0 {
            // What rows cost beside each other counts for where a sequence goes.
            self.pace.foresee(&rows_of(&flight.step), elapsed);
        } else {
            self.observe_costs(&flight.step, Some(elapsed));
        }
        flight.step.segments.iter().for_each(|segment| self.tables.release(segment.slot));
        self.spare.push(flight);
        if index + 1 < TRIALS {
            return Ok(self.try_step(index + 1, now));
        }
        self.health.up(now);
        self.status.set_state(State::Healthy);
        self.journal.up(&self.status);
        Ok(self.begin_steps(now, ports))
    }
}

/// Steps that show what steps cost: one row, rows that decode, a prompt; enough of them to know what each kind adds.
const TRIALS: usize = 3;
const TRIED_DECODES: usize = 8;
const TRIED_PROMPT: usize = 16;
