//! Where a sequence should run: estimates from measured costs, and the choice among devices. Pure arithmetic.

/// What steps cost on a device, measured: moving averages. Zero is not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Costs {
    /// A step without prompt rows, and how many rows such steps had.
    pub decode_s: f64,
    pub decode_rows: f64,
    /// What a prompt row adds to a step.
    pub prefill_row_s: f64,
}

/// A device as the choice sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    pub costs: Costs,
    /// Sequences that it has, in slots and waiting, and its slots.
    pub sequences: usize,
    pub slots: usize,
    /// Devices of one kind cost the same; what was measured of them differs by their batches and by noise.
    pub kind: usize,
}

/// The work of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub prompt_tokens: usize,
    /// Most tokens of its answer.
    pub tokens_max: usize,
}

impl Load {
    /// Seconds until `work` would be done here; `None` while nothing is known of this device.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "tokens and sequences are few")]
    pub fn estimate_s(&self, work: Work) -> Option<f64> {
        let Costs { decode_s, decode_rows, prefill_row_s } = self.costs;
        if decode_s <= 0.0 {
            return None;
        }
        let batch = (self.sequences + 1).min(self.slots.max(1)) as f64;
        // A step reads the weights once however few its rows are, so it never costs less than those seen, and rows beyond
        // them share what is read: were each taken to cost a step of its own, a burst would leave a device that has
        // seen single rows only for one that is several times as slow.
        let step_s = decode_s * (batch / decode_rows.max(1.0)).max(1.0).powf(FURTHER_ROWS);
        let row_s = if prefill_row_s > 0.0 { prefill_row_s } else { decode_s };
        let own_s = work.prompt_tokens as f64 * row_s + work.tokens_max.min(ANSWER_TOKENS) as f64 * step_s;
        // Those before it keep their slots about as long.
        let ahead = (self.sequences + 1).saturating_sub(self.slots) as f64;
        Some(own_s * (1.0 + ahead / self.slots.max(1) as f64))
    }
}

/// The GPU that would be done soonest, if it is sooner than the CPU: index into `loads`, of which those without a place
/// are `None`.
#[must_use]
pub fn choose(cpu: Load, loads: &[Option<Load>], work: Work) -> Option<usize> {
    let cpu_s = cpu.estimate_s(work).unwrap_or(f64::INFINITY);
    let gpus = loads.iter().enumerate().filter_map(|(index, load)| Some((index, load.as_ref()?.estimate_s(work)?)));
    let gpus: Vec<(usize, f64)> = gpus.filter(|(_, s)| *s <= cpu_s).collect();
    let (soonest, soonest_s) = gpus.iter().copied().min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let kind = |index: usize| loads[index].map(|load| load.kind);
    // Measured costs are not exact: among devices of one kind, and those that are about as soon, load decides.
    gpus.into_iter()
        .filter(|(index, s)| *s <= soonest_s * ABOUT_EQUAL || kind(*index) == kind(soonest))
        .map(|(index, _)| index)
        .min_by_key(|index| loads[*index].map(|load| load.sequences))
}

const ABOUT_EQUAL: f64 = 1.25;
/// The power of the number of rows that a step beyond those seen grows by: on an H100 0.1 from one row to 8, 0.2 from 8 to 32 and
/// 0.5 from 32 to 256, on two cores 0.3 from one row to 8 and 0.8 from 8 to 32 (2B shape).
const FURTHER_ROWS: f64 = 0.5;
/// Answers are seldom as long as they may be.
const ANSWER_TOKENS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a kind of its own, since no two of a test cost the same.
    fn load(decode_s: f64, prefill_row_s: f64, sequences: usize) -> Load {
        let kind = usize::try_from(decode_s.to_bits()).unwrap();
        Load { costs: Costs { decode_s, decode_rows: 1.0, prefill_row_s }, sequences, slots: 8, kind }
    }

    const WORK: Work = Work { prompt_tokens: 100, tokens_max: 100 };

    #[test]
    fn the_sooner_device_is_taken_and_a_queue_counts() {
        let cpu = load(0.05, 0.005, 0);
        assert_eq!(choose(cpu, &[Some(load(0.001, 0.001, 0))], WORK), Some(0));
        assert_eq!(choose(cpu, &[Some(load(1.0, 0.5, 0))], WORK), None, "a slow GPU is no gain");
        let busy = Some(load(0.001, 0.001, 4000));
        assert_eq!(choose(cpu, &[busy], WORK), None);
        assert_eq!(choose(cpu, &[busy, Some(load(0.002, 0.001, 0))], WORK), Some(1));
        assert_eq!(choose(cpu, &[Some(load(0.001, 0.001, 3)), Some(load(0.0011, 0.001, 0))], WORK), Some(1));
        assert_eq!(choose(cpu, &[None, None], WORK), None);
    }

    #[test]
    fn devices_of_one_kind_share_the_load_whatever_was_measured_of_each() {
        let of_kind = |decode_s, sequences| Some(Load { kind: 1, ..load(decode_s, 0.001, sequences) });
        let cpu = load(10.0, 1.0, 0);
        assert_eq!(choose(cpu, &[of_kind(0.001, 1), of_kind(0.009, 0)], WORK), Some(1));
        assert_eq!(choose(cpu, &[of_kind(0.009, 2), of_kind(0.001, 1)], WORK), Some(1));
        assert_eq!(choose(cpu, &[of_kind(0.001, 1), Some(load(0.009, 0.001, 0))], WORK), Some(0));
    }

    #[test]
    fn a_burst_does_not_leave_a_device_that_has_seen_single_rows_only() {
        let (cpu, gpu) = (load(0.008, 0.002, 0), load(0.001, 0.0005, 0));
        for sequences in 0..50 {
            let gpu = Load { sequences, slots: 256, ..gpu };
            assert_eq!(choose(cpu, &[Some(gpu)], WORK), Some(0), "{sequences} sequences");
        }
    }

    #[test]
    fn a_full_device_is_waited_for_as_long_as_the_cpu_would_take_longer() {
        let cpu = load(0.03, 0.002, 0);
        let at = |sequences| Some(Load { sequences, slots: 256, ..load(0.0003, 0.0001, 0) });
        // 0.5 s by 256 rows there, 3.2 s on the CPU.
        for sequences in [255, 256, 511, 1000] {
            assert_eq!(choose(cpu, &[at(sequences)], WORK), Some(0), "{sequences} sequences");
        }
        assert_eq!(choose(cpu, &[at(2000)], WORK), None);
        assert_eq!(choose(cpu, &[at(300), at(256)], WORK), Some(1), "the shorter queue");
    }

    #[test]
    fn long_prompts_go_where_prompts_are_cheap() {
        let (cpu, gpu) = (load(0.01, 0.0001, 0), Some(load(0.002, 0.01, 0)));
        assert_eq!(choose(cpu, &[gpu], Work { prompt_tokens: 10, tokens_max: 200 }), Some(0));
        assert_eq!(choose(cpu, &[gpu], Work { prompt_tokens: 1000, tokens_max: 10 }), None);
    }

    #[test]
    fn unknown_costs_are_no_promise() {
        assert_eq!(choose(load(0.05, 0.0, 0), &[Some(Load::default())], WORK), None);
        assert_eq!(choose(Load::default(), &[Some(load(1.0, 1.0, 0))], WORK), Some(0));
    }
}
