//! Where the memory of a generation goes, decided before any of it is taken.

use std::fmt;

use super::load::LoadError;
use crate::config::Config;
use crate::kv::{KvCache, blocks_for};
use crate::model::{Footprint, HyperParameters};

/// What there is and who wants it.
#[derive(Clone, Copy, Debug)]
pub struct Wants<'a> {
    pub config: &'a Config,
    /// Memory that may be taken.
    pub free_bytes: u64,
    pub replicas: usize,
    pub shards: usize,
    /// Memory for the KV caches of all shards; `None` takes what is fit.
    pub kv_bytes_max: Option<u64>,
}

/// The memory of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub free_bytes: u64,
    pub replicas: u64,
    pub replica_bytes: u64,
    pub shards: u64,
    /// Activations, logits and samplers of a shard, about.
    pub buffer_bytes: u64,
    /// KV blocks of a shard.
    pub kv_blocks: u64,
    pub kv_block_bytes: u64,
    /// Of a sequence as long as the context.
    pub sequence_blocks: u64,
}

impl Budget {
    /// Weights and buffers first, at least one sequence for each shard next; then KV blocks for every slot at full
    /// context, as far as a third of what is left goes, or as much as the operator said.
    ///
    /// # Errors
    /// [`LoadError::TooBig`].
    pub fn plan(wants: Wants<'_>, footprint: &Footprint) -> Result<Self, LoadError> {
        let Wants { config, free_bytes, .. } = wants;
        let (replicas, shards) = (wants.replicas as u64, wants.shards as u64);
        let Footprint { params, bytes } = footprint;
        let context = params.context.min(config.context_max);
        let slots = (config.slots_max as u64).div_ceil(shards);
        let mut budget = Self {
            free_bytes,
            replicas,
            replica_bytes: *bytes,
            shards,
            buffer_bytes: buffer_bytes(config, params, slots),
            kv_blocks: 0,
            kv_block_bytes: KvCache::block_bytes(params) as u64,
            sequence_blocks: blocks_for(context) as u64,
        };
        let sequence_bytes = budget.sequence_blocks * budget.kv_block_bytes;
        let wanted_bytes = budget.taken_bytes().saturating_add(shards * sequence_bytes);
        if wanted_bytes > free_bytes {
            return Err(LoadError::TooBig { wanted_bytes, free_bytes });
        }
        let kv_bytes_max = wants.kv_bytes_max.or(config.kv_bytes_max);
        let kv_bytes_max =
            kv_bytes_max.unwrap_or((free_bytes - wanted_bytes) / KV_MEMORY_SHARE + shards * sequence_bytes);
        budget.kv_blocks = (budget.sequence_blocks * slots).min(kv_bytes_max / shards / budget.kv_block_bytes);
        if budget.kv_blocks < budget.sequence_blocks {
            return Err(LoadError::TooBig { wanted_bytes: shards * sequence_bytes, free_bytes: kv_bytes_max });
        }
        Ok(budget)
    }

    /// KV caches of all shards.
    #[must_use]
    pub fn kv_bytes(&self) -> u64 {
        self.shards * self.kv_blocks * self.kv_block_bytes
    }

    /// Everything but the KV caches, what packing needs included.
    fn taken_bytes(&self) -> u64 {
        let weights = self.replicas.saturating_mul(self.replica_bytes);
        weights.saturating_add(self.replica_bytes / PACKING_SLACK).saturating_add(self.shards * self.buffer_bytes)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let plural = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        write!(
            f,
            "{} MiB are free; {} of {} MiB, {} with {} MiB of buffers and a KV cache of {} MiB ({} of {} positions, {} of full \
             context); {} MiB are left",
            self.free_bytes >> 20,
            plural(self.replicas, "replica"),
            mib(self.replica_bytes),
            plural(self.shards, "shard"),
            mib(self.buffer_bytes),
            mib(self.kv_blocks * self.kv_block_bytes),
            plural(self.kv_blocks, "block"),
            kernels::attention::BLOCK,
            plural(self.kv_blocks / self.sequence_blocks, "sequence"),
            self.free_bytes.saturating_sub(self.taken_bytes() + self.kv_bytes()) >> 20,
        )
    }
}

fn buffer_bytes(config: &Config, params: &HyperParameters, slots: u64) -> u64 {
    let row = params.hidden + 2 * params.widest() + 2 * params.attention_width() + params.feed_forward;
    // Inputs of queries, keys and values, states to pool.
    let row = if params.pooling.is_some() { row + 6 * params.hidden } else { row };
    4 * (config.rows_max as u64 * row as u64 + slots * params.output_width() as u64)
}

/// What packing holds of the file at a time is less than one part in this many of a replica.
const PACKING_SLACK: u64 = 16;
/// The KV caches take at most one part in this many of the memory that weights and buffers leave.
const KV_MEMORY_SHARE: u64 = 3;

#[cfg(test)]
mod tests {
    use gguf::Gguf;

    use super::*;
    use crate::config::Settings;
    use crate::model::{HeadScreen, Source, footprint};

    fn default_model() -> Footprint {
        let source = Source::embedded();
        let header = source.header().unwrap();
        footprint(&source, &Gguf::parse(&header, source.bytes()).unwrap(), HeadScreen::WhereItPays).unwrap()
    }

    fn plan(settings: Settings, free_bytes: u64, shards: usize) -> Result<Budget, LoadError> {
        let config = settings.validate().unwrap();
        let wants = Wants { config: &config, free_bytes, replicas: shards, shards, kv_bytes_max: None };
        Budget::plan(wants, &default_model())
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let least = match plan(Settings::default(), 0, 2) {
            Err(LoadError::TooBig { wanted_bytes, free_bytes: 0 }) => wanted_bytes,
            other => panic!("{other:?}"),
        };
        assert!(least > 2 * default_model().bytes);
        assert!(matches!(plan(Settings::default(), least - 1, 2), Err(LoadError::TooBig { .. })));
        let budget = plan(Settings::default(), least, 2).unwrap();
        assert_eq!(budget.kv_blocks, budget.sequence_blocks, "one sequence for each shard");
        let one_mib = Settings { kv_cache_mb: Some(1), ..Settings::default() };
        match plan(one_mib, 1 << 40, 2) {
            Err(LoadError::TooBig { wanted_bytes, free_bytes }) => {
                assert_eq!((wanted_bytes, free_bytes), (2 * budget.sequence_blocks * budget.kv_block_bytes, 1 << 20));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kv_caches_grow_with_memory_up_to_what_the_slots_need() {
        let mut before = 0;
        for free_gib in [1, 2, 4, 16, 64, 1 << 20] {
            let budget = plan(Settings::default(), free_gib << 30, 2).unwrap();
            assert!(budget.kv_blocks >= before && budget.kv_blocks <= 50 * budget.sequence_blocks);
            assert!(budget.taken_bytes() + budget.kv_bytes() <= budget.free_bytes);
            before = budget.kv_blocks;
        }
        assert_eq!(before, 50 * plan(Settings::default(), 1 << 50, 2).unwrap().sequence_blocks);
    }

    #[test]
    fn footprint_is_what_loading_takes() {
        let options =
            crate::model::LoadOptions { threads: 2, node: None, context_max: 64, head_screen: HeadScreen::WhereItPays };
        let model = crate::model::Model::load(&Source::embedded(), "x".into(), options, &|_, _| {}).unwrap();
        assert_eq!(default_model().bytes, model.weights.packed_bytes() as u64);
    }
}
