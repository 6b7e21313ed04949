//! The KV cache: which blocks the sequences of a device hold, and the pool of blocks of a shard.

mod known;
mod prefix;
mod tables;

use std::sync::Arc;

use kernels::attention::{self, KvLayout, KvType, KvView};
use tuning::NodeId;
use tuning::memory::Arena;

use crate::model::HyperParameters;
use crate::shared::Shared;

pub use known::{KnownBlocks, block_hashes};
pub use prefix::SWEEPS_KEPT;
pub use tables::{BlockTables, OutOfBlocks};

/// Keys and values of all sequences of a shard. Where head blocks are: [`KvLayout`], layer by layer, head by head.
pub struct KvCache {
    pool: Shared<u16>,
    tables: BlockTables,
    layout: KvLayout,
    kv_heads: usize,
}

impl KvCache {
    /// A cache for `slots` sequences of at most `context` positions, with `blocks` blocks in all.
    ///
    /// # Panics
    /// When there is no address space for it.
    #[must_use]
    pub fn new(params: &HyperParameters, kv_type: KvType, context: usize, slots: usize, blocks: usize) -> Self {
        Self::on_node(params, kv_type, context, (slots, blocks), None).expect("address space for the KV cache")
    }

    /// As [`KvCache::new`], with memory of `node`.
    ///
    /// # Errors
    /// When there is no address space for it, or no such node.
    pub fn on_node(
        params: &HyperParameters,
        kv_type: KvType,
        context: usize,
        (slots, blocks): (usize, usize),
        node: Option<NodeId>,
    ) -> Result<Self, tuning::Error> {
        let layout = layout(params, kv_type);
        Ok(Self {
            pool: Shared::in_arena(Arena::reserve(layout.pool_len(blocks) * size_of::<u16>(), node)?),
            tables: BlockTables::new(context, slots, blocks),
            layout,
            kv_heads: params.kv_heads,
        })
    }

    /// The same, with blocks that are kept and shared by their tokens: see [`BlockTables::with_prefixes`].
    #[must_use]
    pub fn with_prefixes(self) -> Self {
        Self { tables: self.tables.with_prefixes(), ..self }
    }

    /// The same, and others read in `known` which blocks it knows.
    #[must_use]
    pub fn published_in(self, known: Arc<KnownBlocks>) -> Self {
        Self { tables: self.tables.published_in(known), ..self }
    }

    /// The same, but of the blocks at most `share` are kept while nobody uses them.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "blocks are few"
    )]
    pub fn keeping_at_most(self, share: f64) -> Self {
        let blocks = (self.tables.blocks() as f64 * share.clamp(0.0, 1.0)) as usize;
        Self { tables: self.tables.keeping_at_most(blocks), ..self }
    }

    /// Gives the memory of a block that nobody needs back to the system; `false` where there is none, see
    /// [`BlockTables::take_idle`].
    pub fn give_back_one(&mut self) -> bool {
        let Some(block) = self.tables.take_idle() else { return false };
        let start = self.layout.start(block as usize, 0);
        // Where the system does not take it, nothing is lost.
        self.pool.give_back(start..start + self.layout.block_len());
        true
    }

    /// Bytes of one block over all layers.
    #[must_use]
    pub fn block_bytes(params: &HyperParameters, kv_type: KvType) -> usize {
        layout(params, kv_type).block_len() * size_of::<u16>()
    }

    /// Where head blocks are, and what is in them.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Who holds which block.
    #[must_use]
    pub fn tables(&self) -> &BlockTables {
        &self.tables
    }

    /// Who holds which block, to change it.
    pub fn tables_mut(&mut self) -> &mut BlockTables {
        &mut self.tables
    }

    /// Takes the blocks for `positions` positions of `slot`, which holds none.
    ///
    /// # Errors
    /// When too few are free; nothing is taken then.
    pub fn reserve(&mut self, slot: usize, positions: usize) -> Result<(), OutOfBlocks> {
        self.tables.reserve(slot, positions)
    }

    /// Gives back everything that `slot` holds.
    pub fn release(&mut self, slot: usize) {
        self.tables.release(slot);
    }

    /// Keys and values of one layer and head of `slot`, as the attention kernel reads them.
    ///
    /// # Safety
    /// No worker stores into this layer and head of this slot in this phase.
    #[expect(unsafe_code, reason = "workers read while others may store into other heads")]
    pub(crate) unsafe fn view(&self, slot: usize, layer: usize, head: usize) -> KvView<'_> {
        KvView {
            // SAFETY: the caller vouches for what the kernel reads, which is this layer and head of the blocks in the table.
            pool: unsafe { self.pool.cells(0..self.pool.len()) }.into(),
            table: self.tables.table(slot),
            layout: self.layout,
            head: layer * self.kv_heads + head,
        }
    }

    /// The head block of one layer and head that holds `position` of `slot`, to store into.
    ///
    /// # Safety
    /// No other worker reads or stores into this layer and head of this slot in this phase.
    #[expect(unsafe_code, reason = "workers store into disjoint heads")]
    #[expect(clippy::mut_from_ref, reason = "the caller vouches for exclusive use")]
    pub(crate) unsafe fn head_block(&self, slot: usize, layer: usize, head: usize, position: usize) -> &mut [u16] {
        let table = self.tables.table(slot);
        let block =
            *table.get(position / attention::BLOCK).expect("a position lies in the blocks of its slot") as usize;
        let start = self.layout.start(block, layer * self.kv_heads + head);
        // SAFETY: the caller vouches for this head; a block that is stored into belongs to one slot, since only full
        // ones are shared.
        unsafe { self.pool.write(start..start + self.layout.head_block_len()) }
    }
}

fn layout(params: &HyperParameters, kv_type: KvType) -> KvLayout {
    KvLayout { kv_type, head_dim: params.head_dim, heads: params.layers * params.kv_heads }
}

/// Blocks that hold `positions` positions.
#[must_use]
pub fn blocks_for(positions: usize) -> usize {
    positions.div_ceil(attention::BLOCK)
}
