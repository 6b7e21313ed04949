//! A loaded model with all that computes it, for tests that look at logits.

use std::path::Path;

use kernels::Isa;
use kernels::attention::KvType;
use runtime::forward::{Forward, Limits, Step};
use runtime::kv::{KvCache, blocks_for};
use runtime::model::{HeadScreen, LoadOptions, Model, Source};
use runtime::team::Team;

/// Team, buffers and KV cache for some sequences of one model.
pub(crate) struct Rig<'m> {
    pub(crate) model: &'m Model,
    pub(crate) team: Team,
    pub(crate) forward: Forward,
    pub(crate) kv: KvCache,
}

/// The model of a file, or the one inside the binary.
pub(crate) fn load(path: Option<&Path>) -> Model {
    load_with(path, HeadScreen::WhereItPays)
}

/// The same with a choice of the heads that are screened.
pub(crate) fn load_with(path: Option<&Path>, head_screen: HeadScreen) -> Model {
    let source = path.map_or_else(Source::embedded, |path| Source::open(path).unwrap());
    let options = LoadOptions { threads: 2, node: None, context_max: usize::MAX, head_screen };
    Model::load(&source, "tested".into(), options, &|_, _| {}).unwrap()
}

impl<'m> Rig<'m> {
    /// For `slots` sequences of at most `positions` positions each, which are reserved at once.
    pub(crate) fn new(model: &'m Model, isa: Isa, workers: usize, slots: usize, positions: usize) -> Self {
        Self::over(model, KvType::F16, isa, workers, (slots, positions))
    }

    /// The same with a cache of that type.
    pub(crate) fn over(
        model: &'m Model,
        kv_type: KvType,
        isa: Isa,
        workers: usize,
        (slots, positions): (usize, usize),
    ) -> Self {
        let params = &model.weights.params;
        let team = Team::start(workers, |_| {}).unwrap();
        let limits = Limits { rows_max: ROWS_MAX, logits_max: ROWS_MAX };
        let forward = Forward::new(isa, params, workers, limits);
        let mut kv = KvCache::new(params, kv_type, positions, slots, slots * blocks_for(positions));
        (0..slots).for_each(|slot| kv.reserve(slot, positions).unwrap());
        Self { model, team, forward, kv }
    }

    /// Computes `step` and returns the logits it asks for, row by row.
    pub(crate) fn run(&mut self, step: &Step) -> Vec<Vec<f32>> {
        self.forward.run(&self.team, &self.model.weights, &mut self.kv, step, &|_, _, _| {});
        (0..step.logits.len()).map(|i| self.forward.logits(i).to_vec()).collect()
    }

    /// Feeds `tokens` to `slot` from `first_position` on, `chunk` at a time, and returns the logits of every row.
    pub(crate) fn feed(&mut self, slot: usize, first_position: usize, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        let mut logits = Vec::with_capacity(tokens.len());
        for (i, tokens) in tokens.chunks(chunk).enumerate() {
            let mut step = Step::default();
            step.push(slot, first_position + i * chunk, tokens, false);
            step.logits.extend(0..tokens.len());
            logits.extend(self.run(&step));
        }
        logits
    }
}

/// Rows of the largest step.
pub(crate) const ROWS_MAX: usize = 512;
