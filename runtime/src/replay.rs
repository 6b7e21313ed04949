//! A model with a team, buffers and a cache of its own, outside of any shard: feeds it tokens and hands out logits, or
//! the hidden states of an embedding model.
//! For checks of a model that is not served yet.

use kernels::Isa;
use kernels::attention::KvType;

use crate::engine::pooled;
use crate::forward::{Forward, Limits, Step};
use crate::kv::{KvCache, blocks_for};
use crate::model::Model;
use crate::team::Team;

/// One sequence of a model.
pub struct Replay<'m> {
    model: &'m Model,
    team: Team,
    forward: Forward,
    kv: KvCache,
}

impl<'m> Replay<'m> {
    /// For sequences of at most `positions` positions, computed by `workers` threads of which one is the caller.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub fn new(model: &'m Model, isa: Isa, kv_type: KvType, workers: usize, positions: usize) -> std::io::Result<Self> {
        let params = &model.weights.params;
        let rows_max = positions.clamp(1, ROWS_MAX);
        let team = Team::start(workers, |_| {})?;
        let forward = Forward::new(isa, params, workers, Limits { rows_max, logits_max: rows_max });
        let kv = KvCache::new(params, kv_type, positions, 1, blocks_for(positions));
        Ok(Self { model, team, forward, kv })
    }

    /// Feeds a whole sequence from its start; `each` gets position and logits of every one, in order.
    ///
    /// # Panics
    /// When the sequence is longer than the positions that this was made for.
    pub fn sequence(&mut self, tokens: &[u32], each: impl FnMut(usize, &[f32])) {
        self.sequence_in_steps(tokens, self.forward.limits().rows_max, each);
    }

    /// The same in steps of `rows` rows.
    ///
    /// # Panics
    /// As [`Replay::sequence`], or for steps of more rows than it takes.
    pub fn sequence_in_steps(&mut self, tokens: &[u32], rows: usize, mut each: impl FnMut(usize, &[f32])) {
        self.kv.reserve(0, tokens.len()).expect("the cache holds one sequence of any allowed length");
        let mut step = Step::default();
        for (chunk, tokens) in tokens.chunks(rows).enumerate() {
            let first = chunk * rows;
            step.clear();
            step.push(0, first, tokens, false);
            step.logits.extend(0..tokens.len());
            self.run(&step);
            for row in 0..tokens.len() {
                each(first + row, self.forward.logits(row));
            }
        }
        self.kv.release(0);
    }

    /// The embedding of a text, by a model for that; `None` where its states have no direction.
    ///
    /// # Panics
    /// As [`Replay::sequence`], and for a model that generates.
    pub fn embedding(&mut self, tokens: &[u32]) -> Option<Box<[f32]>> {
        let params = &self.model.weights.params;
        let (pooling, hidden) = (params.pooling.expect("an embedding model pools"), params.hidden);
        let mut states = Vec::with_capacity(tokens.len() * hidden);
        self.sequence(tokens, |_, state| states.extend_from_slice(state));
        pooled(pooling, &states, hidden)
    }

    /// The best tokens after `prompt`, `count` of them or up to the end of the answer.
    ///
    /// # Panics
    /// As [`Replay::sequence`], with the answer.
    pub fn greedy(&mut self, prompt: &[u32], count: usize) -> Vec<u32> {
        self.kv.reserve(0, prompt.len() + count).expect("the cache holds one sequence of any allowed length");
        let (mut answer, mut position, mut step) = (Vec::with_capacity(count), 0, Step::default());
        let mut pending = prompt.to_vec();
        while answer.len() < count {
            for tokens in pending.chunks(self.forward.limits().rows_max) {
                step.clear();
                step.push(0, position, tokens, position + tokens.len() == prompt.len() + answer.len());
                position += tokens.len();
                self.run(&step);
            }
            let logits = self.forward.logits(0);
            let token = kernels::softmax::argmax(Isa::detect(), logits) as u32;
            if self.model.tokenizer.is_end_of_generation(token) {
                break;
            }
            answer.push(token);
            pending = vec![token];
        }
        self.kv.release(0);
        answer
    }

    fn run(&mut self, step: &Step) {
        self.forward.run(&self.team, &self.model.weights, &mut self.kv, step, &|_, _, _| {});
    }
}

/// Rows of one step.
const ROWS_MAX: usize = 64;
