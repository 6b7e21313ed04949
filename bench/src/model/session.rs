//! A loaded model with a team of workers: runs prompts and decodes, and checks that all ways give the same bits.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use kernels::attention::KvType;
use kernels::draw::{self, Draw};
use kernels::{Isa, softmax};
use runtime::cli::load_model;
use runtime::forward::{Findings, Forward, HeadCounts, Limits, Logits, Reach, Step};
use runtime::kv::{KvCache, blocks_for};
use runtime::model::{HeadScreen, LoadOptions, Model};
use runtime::team::Team;
use runtime::tuned::Tuned;

use super::Failure;

pub(super) struct Session {
    model: Model,
    isa: Isa,
    tuned: Tuned,
    team: Team,
    forward: Forward,
    kv: KvCache,
    batch_max: usize,
    /// Seconds of each step that decoded, since they were last taken.
    steps: Vec<f64>,
}

/// Physical cores that this process may use.
pub(crate) fn cores() -> Result<usize, Failure> {
    Ok(tuning::Topology::read(Path::new("/sys"))?.core_count())
}

impl Session {
    pub(super) fn load(
        path: Option<&Path>,
        (isa, tuned): (Isa, Tuned),
        batch_max: usize,
        (head_screen, kv_type): (HeadScreen, KvType),
    ) -> Result<Self, Failure> {
        let threads = cores()?;
        let options = LoadOptions { threads, node: None, context_max: CONTEXT_MAX, head_screen };
        let model = load_model(None, path, options)?;
        let params = &model.weights.params;
        let blocks = blocks_for(model.weights.context) * batch_max;
        let kv = KvCache::new(params, kv_type, model.weights.context, batch_max, blocks);
        let (team, forward) = team_of(&model, (isa, &tuned), 1, batch_max)?;
        Ok(Self { model, isa, tuned, team, forward, kv, batch_max, steps: Vec::new() })
    }

    pub(super) fn use_workers(&mut self, workers: usize) -> Result<(), Failure> {
        (self.team, self.forward) = team_of(&self.model, (self.isa, &self.tuned), workers, self.batch_max)?;
        Ok(())
    }

    /// What the steps since the last call, or since the workers changed, spent their time with.
    pub(super) fn findings(&mut self) -> Findings {
        self.forward.findings()
    }

    /// Seconds of each step that decoded since the last call, ascending.
    pub(super) fn take_steps(&mut self) -> Vec<f64> {
        self.steps.sort_by(f64::total_cmp);
        std::mem::take(&mut self.steps)
    }

    pub(super) fn team(&self) -> &Team {
        &self.team
    }

    pub(super) fn describe(&self) -> String {
        let params = &self.model.weights.params;
        format!(
            "{}: {} {}, {} layers, hidden {}, ffn {}, vocabulary {}, {} MiB of weights",
            self.model.name,
            params.architecture,
            self.model.quantization,
            params.layers,
            params.hidden,
            params.feed_forward,
            params.vocab,
            self.model.weights.packed_bytes() >> 20
        )
    }

    /// Bytes of weights that a step of `batch` rows reads whose heads went as `head` says: the layers, then the head or
    /// its int8 copy and the rows that were computed one by one.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(super) fn bytes_per_step(&self, batch: usize, head: HeadCounts) -> f64 {
        let (weights, screened) = (&self.model.weights, head.screened + head.undecided);
        let full = weights.head().bytes() as f64;
        let layers = weights.bytes_per_token() as f64 - full;
        if screened == 0 {
            return layers + full;
        }
        let exact = head.exact as f64 / screened as f64 * batch as f64 * full / weights.params.vocab as f64;
        let again = if head.undecided + head.full > 0 { full } else { 0.0 };
        layers + weights.screen_bytes() as f64 + exact + again
    }

    /// Bytes of keys and values that a step of `batch` sequences reads behind `positions` positions each.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(super) fn kv_bytes_per_step(&self, batch: usize, positions: usize) -> f64 {
        let block = KvCache::block_bytes(&self.model.weights.params, self.kv.layout().kv_type);
        (batch * positions * block) as f64 / kernels::attention::BLOCK as f64
    }

    /// Products and sums of the ternary layers for one row.
    pub(super) fn int8_operations_per_token(&self) -> usize {
        let layers = &self.model.weights.layers;
        let linears = layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]);
        linears.filter(|linear| linear.is_ternary()).map(|linear| 2 * linear.rows * linear.cols).sum()
    }

    /// Writes keys and values of `depth` positions in `batch` sequences and forgets whose they are: the next ones get the
    /// same blocks.
    pub(super) fn fill(&mut self, batch: usize, depth: usize) -> Result<(), Failure> {
        if depth == 0 {
            return Ok(());
        }
        self.fits(depth)?;
        let prompt = noise(depth, self.model.weights.params.vocab);
        self.hold(batch, depth)?;
        let mut step = Step::default();
        for slot in 0..batch {
            for (index, chunk) in prompt.chunks(ROWS_MAX).enumerate() {
                step.clear();
                step.push(slot, index * ROWS_MAX, chunk, false);
                self.run(&step);
            }
        }
        self.drop_all(batch);
        // Not the steps that are measured.
        let _ = self.findings();
        Ok(())
    }

    /// Runs a prompt of `tokens` tokens from an empty cache, up to the best token behind it.
    pub(super) fn prompt(&mut self, tokens: usize) -> Result<usize, Failure> {
        self.fits(tokens)?;
        let prompt = noise(tokens, self.model.weights.params.vocab);
        self.hold(1, tokens)?;
        let mut step = Step::default();
        for (index, chunk) in prompt.chunks(ROWS_MAX).enumerate() {
            step.clear();
            let last = (index + 1) * ROWS_MAX >= tokens;
            step.push(0, index * ROWS_MAX, chunk, last);
            if last {
                step.want_best(GREEDY, std::iter::empty());
            }
            self.run(&step);
        }
        self.drop_all(1);
        Ok(tokens)
    }

    /// Decodes `tokens` tokens in each of `batch` sequences behind `depth` positions: the best ones, or draws at a
    /// temperature. Counts how their rows went through the head.
    pub(super) fn decode(
        &mut self,
        (batch, tokens, depth): (usize, usize, usize),
        temperature: Option<f32>,
        head: &mut HeadCounts,
    ) -> Result<usize, Failure> {
        self.fits(depth + tokens)?;
        let last: Vec<AtomicU32> =
            noise(batch, self.model.weights.params.vocab).into_iter().map(AtomicU32::new).collect();
        self.hold(batch, depth + tokens)?;
        let isa = self.isa;
        let mut step = Step::default();
        for position in depth..depth + tokens {
            let draw = |slot: usize| {
                let (seed, position) = (slot as u64, position as u64);
                temperature.map(|temperature| Draw { seed, position, factor: 1.0 / temperature })
            };
            step.clear();
            for (slot, token) in last.iter().enumerate() {
                step.push(slot, position, &[token.load(Ordering::Relaxed)], true);
                step.want_best(Reach { draw: draw(slot), ..GREEDY }, std::iter::empty());
            }
            let started = Instant::now();
            let Self { forward, team, model, kv, .. } = self;
            forward.run_to_choose(team, &model.weights, kv, &step, &|slot, logits, _| {
                last[slot].store(choose(isa, draw(slot), &logits), Ordering::Relaxed);
            });
            self.steps.push(started.elapsed().as_secs_f64());
            head.add(self.forward.head_counts());
        }
        self.drop_all(batch);
        Ok(batch * tokens)
    }

    /// Logits after a short prompt must not depend on chunks, workers or the instruction set.
    pub(super) fn check(&mut self, workers: &[usize]) -> Result<(), Failure> {
        let prompt = noise(CHECK_TOKENS, self.model.weights.params.vocab);
        let isa = self.isa;
        let wanted = self.logits(&prompt, CHECK_TOKENS)?;
        if wanted.iter().any(|logit| !logit.is_finite()) {
            return Err("the logits are no numbers".into());
        }
        let best = softmax::argmax(isa, &wanted);
        let best = (best, wanted[best]);
        for &count in workers {
            // The portable path takes minutes on a big model; the kernels' own tests compare it.
            for other in Isa::available().into_iter().filter(|other| *other != Isa::Portable || isa == *other) {
                for chunk in [1, 7, CHECK_TOKENS] {
                    self.isa = other;
                    self.use_workers(count)?;
                    let name = other.name();
                    if self.logits(&prompt, chunk)? != wanted {
                        return Err(format!("{count} workers, {name}, chunks of {chunk}: other logits").into());
                    }
                    if self.best(&prompt, chunk)? != best {
                        return Err(format!("{count} workers, {name}, chunks of {chunk}: another best token").into());
                    }
                }
            }
        }
        self.isa = isa;
        self.use_workers(1)
    }

    fn logits(&mut self, prompt: &[u32], chunk: usize) -> Result<Vec<f32>, Failure> {
        self.hold(1, prompt.len())?;
        let mut step = Step::default();
        for (index, part) in prompt.chunks(chunk).enumerate() {
            step.clear();
            step.push(0, index * chunk, part, true);
            self.run(&step);
        }
        self.drop_all(1);
        Ok(self.forward.logits(0).to_vec())
    }

    /// The best token after a prompt and its logit, by a greedy sampler's head.
    fn best(&mut self, prompt: &[u32], chunk: usize) -> Result<(usize, f32), Failure> {
        self.hold(1, prompt.len())?;
        let mut step = Step::default();
        for (index, part) in prompt.chunks(chunk).enumerate() {
            step.clear();
            step.push(0, index * chunk, part, true);
            step.want_best(GREEDY, std::iter::empty());
            self.run(&step);
        }
        self.drop_all(1);
        let logits = self.forward.logits(0);
        let best = softmax::argmax(self.isa, logits);
        Ok((best, logits[best]))
    }

    fn fits(&self, tokens: usize) -> Result<(), Failure> {
        let context = self.model.weights.context;
        if tokens == 0 || tokens > context {
            return Err(format!("{tokens} tokens in a context of {context}").into());
        }
        Ok(())
    }

    fn hold(&mut self, slots: usize, positions: usize) -> Result<(), Failure> {
        for slot in 0..slots {
            self.kv.reserve(slot, positions).map_err(|short| format!("{short:?}"))?;
        }
        Ok(())
    }

    fn drop_all(&mut self, slots: usize) {
        for slot in 0..slots {
            self.kv.release(slot);
        }
    }

    fn run(&mut self, step: &Step) {
        self.forward.run(&self.team, &self.model.weights, &mut self.kv, step, &|_, _, _| {});
    }
}

/// The best token, or the one that `draw` gives.
fn choose(isa: Isa, draw: Option<Draw>, logits: &Logits<'_>) -> u32 {
    let token = match (logits, draw) {
        (Logits::All(logits), None) => softmax::argmax(isa, logits),
        (Logits::All(logits), Some(draw)) => draw::draw(isa, draw, logits).expect("some logit is a number"),
        (Logits::Few(few), None) => return few.tokens[softmax::argmax(isa, few.logits)],
        (Logits::Few(few), Some(draw)) => return draw::draw_of(isa, draw, few.each()).expect("some logit is a number"),
    };
    u32::try_from(token).expect("a vocabulary has 32-bit ids")
}

fn team_of(
    model: &Model,
    (isa, tuned): (Isa, &Tuned),
    workers: usize,
    batch_max: usize,
) -> Result<(Team, Forward), Failure> {
    let params = &model.weights.params;
    let team = start_team(workers)?;
    let limits = Limits { rows_max: ROWS_MAX, logits_max: batch_max };
    let mut forward = Forward::new(isa, params, workers, limits).tuned(tuned);
    forward.probe();
    Ok((team, forward))
}

/// A team of so many pinned workers, this thread among them.
pub(crate) fn start_team(workers: usize) -> Result<Team, Failure> {
    let topology = tuning::Topology::read(Path::new("/sys"))?;
    let cpus = tuning::plan(&topology, Some(1), Some(workers))?.shards[0].workers.clone();
    let team = Team::start(workers, move |index| {
        // An unpinned worker computes the same.
        let _ = tuning::pin(&cpus[index..=index]);
    })?;
    Ok(team)
}

/// Tokens without a pattern that a cache or a branch predictor could learn.
fn noise(count: usize, vocab: usize) -> Vec<u32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u32::try_from(state % vocab as u64).expect("a vocabulary has 32-bit ids")
    };
    std::iter::repeat_with(next).take(count).collect()
}

const GREEDY: Reach = Reach { count: 1, distance: 0.0, draw: None };
const ROWS_MAX: usize = 512;
const CONTEXT_MAX: usize = 4096;
const CHECK_TOKENS: usize = 16;
