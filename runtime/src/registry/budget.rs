//! Where the memory of a generation goes, decided before any of it is taken.

use std::fmt;

use tuning::NodeId;

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
    /// The same of each node that has shards, and how many it has; where there is one node, or the kernel does not say,
    /// none.
    pub nodes: &'a [NodeRoom],
    pub replicas: usize,
    pub shards: usize,
    /// Memory for the KV caches of all shards; `None` takes what is fit.
    pub kv_bytes_max: Option<u64>,
}

/// What a node has, and who wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRoom {
    pub node: NodeId,
    pub free_bytes: u64,
    pub shards: u64,
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
    /// The node that has least for its shards, where that decides how many KV blocks a shard gets.
    pub tightest: Option<NodeRoom>,
}

impl Budget {
    /// Weights and buffers first, at least one sequence for each shard next; then KV blocks for every slot at full
    /// context, as far as a third of what is left goes, or as much as the operator said.
    ///
    /// # Errors
    /// [`LoadError::TooBig`], [`LoadError::CacheTooBig`], [`LoadError::CacheTooSmall`].
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
            kv_block_bytes: KvCache::block_bytes(params, config.kv_type) as u64,
            sequence_blocks: blocks_for(context) as u64,
            tightest: None,
        };
        let sequence_bytes = budget.sequence_blocks * budget.kv_block_bytes;
        let wanted_bytes = budget.taken_bytes().saturating_add(shards * sequence_bytes);
        if wanted_bytes > free_bytes {
            return Err(LoadError::TooBig { wanted_bytes, free_bytes });
        }
        let asked_for = wants.kv_bytes_max.or(config.kv_bytes_max);
        let kv_bytes_max = asked_for.unwrap_or((free_bytes - wanted_bytes) / KV_MEMORY_SHARE + shards * sequence_bytes);
        budget.kv_blocks = (budget.sequence_blocks * slots).min(kv_bytes_max / shards / budget.kv_block_bytes);
        if asked_for.is_none() {
            budget.fit_nodes(wants.nodes);
        }
        let beside_bytes = free_bytes - budget.taken_bytes();
        if budget.kv_bytes() > beside_bytes {
            return Err(LoadError::CacheTooBig { wanted_bytes: budget.kv_bytes(), free_bytes: beside_bytes });
        }
        if budget.kv_blocks < budget.sequence_blocks {
            return Err(LoadError::CacheTooSmall {
                wanted_bytes: shards * sequence_bytes,
                allowed_bytes: kv_bytes_max,
            });
        }
        Ok(budget)
    }

    /// Leaves a shard no more KV blocks than the node with the least has for each of its own: shards are all alike. One
    /// sequence fits in any case, if need be in another node's memory.
    fn fit_nodes(&mut self, nodes: &[NodeRoom]) {
        let sequence_bytes = self.sequence_blocks * self.kv_block_bytes;
        for room in nodes {
            let taken_bytes = self.replica_bytes + room.shards * (self.buffer_bytes + sequence_bytes);
            let more_bytes = room.free_bytes.saturating_sub(taken_bytes) / KV_MEMORY_SHARE;
            let blocks = self.sequence_blocks + more_bytes / room.shards.max(1) / self.kv_block_bytes;
            if blocks < self.kv_blocks {
                (self.kv_blocks, self.tightest) = (blocks, Some(*room));
            }
        }
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
        )?;
        match self.tightest {
            Some(room) => write!(f, "; {} has {} MiB, which bounds the KV cache", room.node, room.free_bytes >> 20),
            None => Ok(()),
        }
    }
}

fn buffer_bytes(config: &Config, params: &HyperParameters, slots: u64) -> u64 {
    let row = params.hidden + 2 * params.widest() + params.feed_forward.max(2 * params.attention_width());
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
        plan_on(settings, free_bytes, &[], shards)
    }

    fn plan_on(settings: Settings, free_bytes: u64, nodes: &[NodeRoom], shards: usize) -> Result<Budget, LoadError> {
        let config = settings.validate().unwrap();
        let wants = Wants { config: &config, free_bytes, nodes, replicas: shards, shards, kv_bytes_max: None };
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
            Err(LoadError::CacheTooSmall { wanted_bytes, allowed_bytes }) => {
                assert_eq!(
                    (wanted_bytes, allowed_bytes),
                    (2 * budget.sequence_blocks * budget.kv_block_bytes, 1 << 20)
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_cache_that_was_asked_for_is_refused_where_it_would_fill_more_than_there_is() {
        let asked = |mib| Settings { kv_cache_mb: Some(mib), ..Settings::default() };
        match plan(asked(600), 500 << 20, 1) {
            Err(LoadError::CacheTooBig { wanted_bytes, free_bytes }) => {
                assert!((590 << 20..=600 << 20).contains(&wanted_bytes) && free_bytes < 500 << 20);
            }
            other => panic!("{other:?}"),
        }
        assert!(plan(asked(400), 500 << 20, 1).is_ok());
        assert!(plan(asked(1 << 24), 4 << 30, 1).is_ok(), "no more than the slots need is taken of it");
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
    fn the_node_with_the_least_memory_bounds_the_caches_of_all() {
        let room = |node, free_mib: u64, shards| NodeRoom { node: NodeId(node), free_bytes: free_mib << 20, shards };
        let plan = |nodes: &[NodeRoom]| plan_on(Settings::default(), 1 << 40, nodes, 4).unwrap();
        let free = plan(&[]);
        assert_eq!((free.kv_blocks, free.tightest), (25 * free.sequence_blocks, None));
        let roomy = [room(0, 1 << 20, 2), room(1, 1 << 20, 2)];
        assert_eq!(plan(&roomy), free);
        let narrow = [room(0, 1 << 20, 2), room(1, 256, 2)];
        let got = plan(&narrow);
        assert_eq!(got.tightest, Some(narrow[1]));
        assert!(got.kv_blocks > got.sequence_blocks && got.kv_blocks < free.kv_blocks, "{got:?}");
        let on_node = got.replica_bytes + 2 * (got.buffer_bytes + got.kv_blocks * got.kv_block_bytes);
        assert!(on_node <= 256 << 20, "{on_node}");
        assert!(got.to_string().contains("node1 has 256 MiB"), "{got}");
        // A node without any room still serves one sequence, out of another node's memory.
        assert_eq!(plan(&[room(0, 1 << 20, 2), room(1, 0, 2)]).kv_blocks, free.sequence_blocks);
        let told = Settings { kv_cache_mb: Some(1 << 12), ..Settings::default() };
        assert_eq!(plan_on(told, 1 << 40, &narrow, 4).unwrap().kv_blocks, free.kv_blocks, "the operator knows better");
    }

    #[test]
    fn int8_takes_about_half_of_f16() {
        let int8 = Settings { kv_cache_type: Some("int8".into()), ..Settings::default() };
        let [half, whole] = [int8, Settings::default()].map(|settings| plan(settings, 1 << 40, 1).unwrap());
        assert_eq!(half.kv_blocks, whole.kv_blocks);
        let ratio = half.kv_bytes() as f64 / whole.kv_bytes() as f64;
        assert!((0.5..0.54).contains(&ratio), "{ratio}");
    }

    #[test]
    fn footprint_is_what_loading_takes() {
        let options =
            crate::model::LoadOptions { threads: 2, node: None, context_max: 64, head_screen: HeadScreen::WhereItPays };
        let model = crate::model::Model::load(&Source::embedded(), "x".into(), options, &|_, _| {}).unwrap();
        assert_eq!(default_model().bytes, model.weights.packed_bytes() as u64);
    }
}
