//! Steps of rows that stand alone, recorded: their launches are replayed by one call, where a call for each of them takes longer
//! than the device needs for it.

use super::abi::SPLIT;
use super::batch::Draws;
use super::cuda::{Context, Failure, Graph};
use super::wire::PLACES;
use crate::log;

/// What a recorded step also gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Nothing beyond the layers.
    Apart,
    /// A token of every row, drawn where it is not the best one.
    Tokens(Draws),
}

/// What recorded launches depend on; all else of a step is in buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Rows, those that fill up a bucket among them.
    pub(super) rows: usize,
    /// Splits of the longest sequence, likewise.
    pub(super) splits: usize,
    /// Whether some are successive rows of a prompt.
    pub(super) stored: bool,
    pub(super) head: Head,
    /// Where the input of the step lies.
    pub(super) place: usize,
}

/// Recorded steps, the one used last at the end.
#[derive(Default)]
pub(super) struct Graphs {
    kept: Vec<(Key, Graph)>,
    /// The driver did not record a step: those that are not kept are launched one by one.
    refused: bool,
}

impl Graphs {
    /// The step of `key`, which `launch` makes the launches of; `None` where they are to be made one by one.
    pub(super) fn get(
        &mut self,
        context: &Context,
        key: Key,
        launch: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Option<Graph>, Failure> {
        if let Some(at) = self.kept.iter().position(|(of, _)| *of == key) {
            self.kept[at..].rotate_left(1);
            return Ok(self.kept.last().map(|(_, graph)| *graph));
        }
        if self.refused {
            return Ok(None);
        }
        if self.kept.len() == GRAPHS_MAX {
            // It may be under way.
            context.synchronize()?;
            context.forget(self.kept.remove(0).1)?;
        }
        match context.record(launch) {
            Ok(graph) => {
                self.kept.push((key, graph));
                Ok(Some(graph))
            }
            // Should the device have failed, the launches that follow will say so.
            Err(failure) => {
                let text = &failure.text;
                log::say(format_args!(
                    "bitnetd gpu-worker: no further steps are recorded, their launches take longer: {text}"
                ));
                self.refused = true;
                Ok(None)
            }
        }
    }
}

/// Rows that so many are filled up to: few sizes, and little to compute for nothing. Linear kernels take rows in tiles of 8, 16,
/// 32, 64 or 128 anyhow.
pub(super) fn padded_rows(rows: usize, rows_max: usize) -> usize {
    let unit = match rows {
        0..=1 => 1,
        2..=4 => 2,
        5..=64 => 8,
        65..=128 => 16,
        129..=256 => 32,
        _ => 64,
    };
    rows.next_multiple_of(unit).min(rows_max)
}

/// Splits that so many are taken for: blocks without one end at once, a fifth of all at most.
pub(super) fn padded_splits(splits: usize, context: usize) -> usize {
    splits.next_multiple_of((splits.next_power_of_two() / 8).max(1)).min(context / SPLIT + 1)
}

/// The rows that steps of up to `slots` sequences are filled up to, ascending.
pub(super) fn buckets(slots: usize) -> impl Iterator<Item = usize> {
    (2..=slots).filter(move |rows| padded_rows(*rows, slots) == *rows)
}

/// Recorded steps that are kept: five kinds of heads, and rows of prompts, at two lengths for 24 sizes.
const GRAPHS_MAX: usize = 6 * 2 * 24 * PLACES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_sizes_fit_all_steps_with_little_left_over() {
        let sizes: Vec<usize> = buckets(512).collect();
        assert_eq!((sizes.len(), &sizes[..4], sizes.last()), (22, &[2, 4, 8, 16][..], Some(&512)));
        for rows in 2..=512 {
            let padded = padded_rows(rows, 512);
            assert!(
                sizes.contains(&padded) && padded >= rows && padded - rows < 64.min((rows / 4).max(8)),
                "{rows}: {padded}"
            );
        }
        assert_eq!((padded_rows(3, 3), buckets(3).collect::<Vec<_>>()), (3, vec![2, 3]), "no more rows than slots");
        for splits in 1..=500 {
            let padded = padded_splits(splits, 500 * SPLIT);
            assert!(padded >= splits && (padded - splits) * 4 <= splits, "{splits}: {padded}");
        }
        assert_eq!(padded_splits(5, 4 * SPLIT), 5, "no more splits than a context has");
    }
}
