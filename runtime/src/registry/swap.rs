//! One generation takes another's place: validated beside it, tried on a share of the requests if that is wanted,
//! switched in one step per shard, checked, watched, and taken back where it does worse.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use net::api::{
    Canary, Check, HealthCheckResults, PhaseTimes, QuantizationComparison, RollbackInfo, SwapReply, SwapRequest,
    SwapStatus, SwapStrategy,
};
use net::error::{ApiError, Code};

use super::facts::Facts;
use super::load::identity;
use super::state::Version;
use super::trial::{ANSWER_TOKENS, Tried};
use super::watch::{Sample, judge};
use super::{Held, ORDER_TIMEOUT, Order, Outcome, Registry, describe_load, hex, ms, pause};
use crate::log::info;
use crate::model::Source;

/// A swap in progress: the new generation is known to every shard.
struct Swap<'r> {
    request: &'r SwapRequest,
    /// Of the name in the registry.
    index: usize,
    new: Held,
    tried: Tried,
    checks: Vec<Check>,
    /// Shards whose requests go to the new generation.
    switched: Range<usize>,
    phases: PhaseTimes,
    /// What the old generation counted before the switch.
    before: Sample,
}

impl Registry {
    pub(super) fn swap(&mut self, id: String, request: &SwapRequest) -> Result<SwapReply, ApiError> {
        let started = Instant::now();
        let index = self.index(&request.target_model_id)?;
        let first = Sample::now(&self.names[index].active.metrics);
        let (new, tried) = match self.candidate(index, request, started) {
            Ok(candidate) => candidate,
            Err(error) => {
                self.control.count_swap(SwapStatus::Failed);
                return Err(error);
            }
        };
        let mut swap = Swap {
            request,
            index,
            new,
            tried,
            checks: Vec::new(),
            switched: 0..0,
            phases: PhaseTimes { validation_duration_ms: ms(started.elapsed()), ..PhaseTimes::default() },
            before: first,
        };
        let outcome = self.carry_out(&mut swap);
        let (old, new) = (Arc::clone(&self.names[index].active.facts), Arc::clone(&swap.new.facts));
        let mut reply = SwapReply {
            swap_id: id,
            status: SwapStatus::Completed,
            strategy: request.strategy.as_str(),
            total_duration_ms: 0.0,
            previous_model_metadata: old.metadata(),
            new_model_metadata: new.metadata(),
            swap_phases: swap.phases,
            quantization_comparison: QuantizationComparison {
                format_changed: old.quantization != new.quantization,
                accuracy_delta: swap.tried.agreement.map(|agreement| agreement - 1.0),
                performance_delta: swap.tried.performance_delta,
            },
            health_check_results: HealthCheckResults {
                overall_healthy: outcome.is_ok(),
                individual_checks: std::mem::take(&mut swap.checks),
            },
            rollback_info: RollbackInfo::default(),
        };
        match outcome {
            Ok(()) => self.settle(swap),
            Err(reason) => (reply.status, reply.rollback_info) = self.take_back(swap, reason),
        }
        reply.total_duration_ms = ms(started.elapsed());
        self.control.count_swap(reply.status);
        report(&reply, &new);
        Ok(reply)
    }

    /// The new generation, loaded or on standby, tried and known to every shard; nothing has changed for anyone where
    /// this fails.
    fn candidate(&mut self, index: usize, request: &SwapRequest, started: Instant) -> Result<(Held, Tried), ApiError> {
        let (source, path) = self.config.allowed_directories.open(&request.new_model_path, "new_model_path")?;
        if let Some(standby) = self.take_standby(index, request, &source, &path) {
            let tokenizer = &standby.replicas[0].tokenizer;
            let tokens = |text: &String| {
                let mut tokens = Vec::new();
                tokenizer.encode(text, true, true, &mut tokens);
                tokens
            };
            let prompts: Vec<Vec<u32>> = request.test_prompts.iter().map(tokens).collect();
            let answers = vec![Vec::new(); prompts.len()];
            return Ok((standby, Tried { prompts, answers, ..Tried::default() }));
        }
        let loaded = self.load_file(&source, path, &request.target_model_id, request.sha256, None)?;
        let old = &self.names[index].active;
        let deadline = (started, request.validation_timeout);
        let tried = self.try_loaded(&loaded, Some(old), &request.test_prompts, deadline)?;
        if let (Some(agreement), Some(threshold)) = (tried.agreement, request.accuracy_threshold)
            && agreement < f64::from(threshold)
        {
            let message =
                format!("{agreement:.4} of its best tokens are those of the served model, {threshold} is wanted");
            return Err(ApiError::new(400, Code::CrossValidationFailed, message));
        }
        Ok((self.open(loaded)?, tried))
    }

    /// The standby generation, if the request names its file.
    fn take_standby(&mut self, index: usize, request: &SwapRequest, source: &Source, path: &PathBuf) -> Option<Held> {
        let facts = &self.names[index].standby.as_ref()?.facts;
        let same_path = facts.path.as_ref() == Some(path);
        let same_file = identity(source).is_ok_and(|identity| identity == facts.identity);
        let same_hash = request.sha256.is_none_or(|wanted| wanted == facts.sha256);
        if !same_path || !same_file || !same_hash {
            return None;
        }
        self.names[index].standby.take()
    }

    /// Canary, switch, checks and watch. An error is why the new generation must not stay.
    fn carry_out(&mut self, swap: &mut Swap<'_>) -> Result<(), String> {
        if let Some(canary) = swap.request.canary {
            self.canary(swap, canary)?;
        }
        let old = Sample::now(&self.names[swap.index].active.metrics);
        swap.before = old - swap.before;
        let started = Instant::now();
        let new_before = Sample::now(&swap.new.metrics);
        if swap.request.strategy == SwapStrategy::Rolling {
            for shard in 0..self.shards.len() {
                self.switch(swap, shard..shard + 1)?;
                self.probe(swap, shard..shard + 1)?;
            }
            swap.phases.swap_duration_ms = ms(started.elapsed());
        } else {
            self.switch(swap, 0..self.shards.len())?;
            swap.phases.swap_duration_ms = ms(started.elapsed());
        }
        let checked = Instant::now();
        let result = self.check(swap, new_before);
        swap.phases.health_check_duration_ms = ms(checked.elapsed());
        result
    }

    fn check(&mut self, swap: &mut Swap<'_>, new_before: Sample) -> Result<(), String> {
        if swap.request.strategy != SwapStrategy::Rolling {
            self.probe(swap, 0..self.shards.len())?;
        }
        self.watch(swap, new_before)?;
        self.save_swapped(swap)
    }

    /// Lets new requests on `shards` take the new generation.
    fn switch(&mut self, swap: &mut Swap<'_>, shards: Range<usize>) -> Result<(), String> {
        let (name, generation) = (swap.request.target_model_id.clone(), swap.new.facts.generation);
        swap.switched.end = shards.end;
        let orders: Vec<u64> = shards.map(|shard| self.route_shard(shard, &name, Some(generation), None)).collect();
        self.wait(&orders, ORDER_TIMEOUT).map(|_| ()).map_err(|error| error.to_string())
    }

    /// Sends the test prompts through `shards`; each answer must be the one of the trial.
    fn probe(&mut self, swap: &mut Swap<'_>, shards: Range<usize>) -> Result<(), String> {
        let generation = swap.new.facts.generation;
        for (index, prompt) in swap.tried.prompts.iter().enumerate() {
            let started = Instant::now();
            let send = |registry: &mut Self, shard| {
                let order = registry.next_order();
                let prompt = prompt.clone().into_boxed_slice();
                registry.send(shard, Order::Probe { order, generation, prompt, tokens_max: ANSWER_TOKENS });
                order
            };
            let orders: Vec<u64> = shards.clone().map(|shard| send(self, shard)).collect();
            let outcomes = self.wait(&orders, PROBE_TIMEOUT).map_err(|error| error.to_string())?;
            for (shard, outcome) in shards.clone().zip(outcomes) {
                let problem = probe_problem(&outcome, &swap.tried.answers[index]);
                swap.checks.push(Check {
                    name: format!("prompt {index} on shard {shard}"),
                    healthy: problem.is_none(),
                    message: problem.clone().unwrap_or_else(|| "answered as in the trial".into()),
                    duration_ms: ms(started.elapsed()),
                });
                if let Some(problem) = problem {
                    return Err(format!("shard {shard}: {problem}"));
                }
            }
        }
        Ok(())
    }

    /// Compares what the new generation does to real requests with what the old one did, for the watch time.
    fn watch(&mut self, swap: &mut Swap<'_>, new_before: Sample) -> Result<(), String> {
        let started = Instant::now();
        let ratio = size_ratio(&self.names[swap.index].active.facts, &swap.new.facts);
        // Gaps count only while the old generation is not running beside.
        let (mut last, mut alone) = (new_before, Sample::default());
        let mut problem = None;
        while started.elapsed() < self.config.swap_watch && problem.is_none() && !self.control.is_draining() {
            pause(WATCH_EVERY);
            let now = Sample::now(&swap.new.metrics);
            let old_runs = self.names[swap.index].active.metrics.iter().any(|shard| shard.running.get() > 0);
            let step = now - last;
            last = now;
            if !old_runs {
                alone.gaps += step.gaps;
                alone.gaps_us += step.gaps_us;
            }
            let total = now - new_before;
            alone.succeeded = total.succeeded;
            alone.failed = total.failed;
            problem = judge(&alone, &swap.before, ratio, None);
        }
        swap.checks.push(Check {
            name: "live requests".into(),
            healthy: problem.is_none(),
            message: problem.clone().unwrap_or_else(|| {
                let gap = alone.mean_gap_ms().map_or("not measured".into(), |gap| format!("{gap:.1} ms"));
                let before = swap.before.mean_gap_ms().map_or("not measured".into(), |gap| format!("{gap:.1} ms"));
                format!("{} ended, {} failed, gap {gap}, before {before}", alone.requests(), alone.failed)
            }),
            duration_ms: ms(started.elapsed()),
        });
        problem.map_or(Ok(()), Err)
    }

    /// Gives the new generation a share of the requests until it has shown enough.
    fn canary(&mut self, swap: &mut Swap<'_>, canary: Canary) -> Result<(), String> {
        let started = Instant::now();
        let (old, new) = (Arc::clone(&self.names[swap.index].active.facts), Arc::clone(&swap.new.facts));
        let share = Some((new.generation, canary.share));
        let (old_before, new_before) =
            (Sample::now(&self.names[swap.index].active.metrics), Sample::now(&swap.new.metrics));
        self.route(&swap.request.target_model_id, Some(old.generation), share).map_err(|error| error.to_string())?;
        let (mut seen, mut problem) = (Sample::default(), None);
        while problem.is_none() && seen.requests() < u64::from(canary.requests) {
            if started.elapsed() > canary.timeout || self.control.is_draining() {
                problem = Some(format!("only {} of {} requests came", seen.requests(), canary.requests));
                break;
            }
            pause(WATCH_EVERY);
            seen = Sample::now(&swap.new.metrics) - new_before;
            let beside = Sample::now(&self.names[swap.index].active.metrics) - old_before;
            problem = judge(&seen, &beside, size_ratio(&old, &new), swap.request.accuracy_threshold.map(f64::from));
        }
        swap.checks.push(Check {
            name: "canary".into(),
            healthy: problem.is_none(),
            message: problem.clone().unwrap_or_else(|| {
                let same =
                    seen.agreement().map_or("none compared".into(), |part| format!("{part:.4} of {}", seen.compared));
                format!("{} requests, {} failed, equal greedy tokens: {same}", seen.requests(), seen.failed)
            }),
            duration_ms: ms(started.elapsed()),
        });
        problem.map_or(Ok(()), |problem| Err(format!("canary: {problem}")))
    }

    /// Remembers the new version before the old one is let go.
    fn save_swapped(&mut self, swap: &mut Swap<'_>) -> Result<(), String> {
        let name = &mut self.names[swap.index];
        std::mem::swap(&mut name.active, &mut swap.new);
        let old = &swap.new.facts;
        let earlier = name.earlier.clone();
        if let Some(path) = old.path.clone() {
            let sha256 = hex(&old.sha256);
            name.earlier.retain(|version| version.path != path);
            name.earlier.insert(0, Version { path, sha256 });
            name.earlier.truncate(EARLIER_MAX);
        }
        let active_path = name.active.facts.path.clone();
        name.earlier.retain(|version| Some(&version.path) != active_path.as_ref());
        let saved = self.save();
        let name = &mut self.names[swap.index];
        if saved.is_err() {
            name.earlier = earlier;
        }
        std::mem::swap(&mut name.active, &mut swap.new);
        saved.map_err(|error| error.to_string())
    }

    /// The new generation stays; the old one leaves or waits for a swap back.
    fn settle(&mut self, swap: Swap<'_>) {
        let name = &mut self.names[swap.index];
        let old = std::mem::replace(&mut name.active, swap.new);
        let (leaving, standby) =
            if swap.request.strategy == SwapStrategy::BlueGreen { (None, Some(old)) } else { (Some(old), None) };
        let previous_standby = std::mem::replace(&mut name.standby, standby);
        for held in leaving.into_iter().chain(previous_standby) {
            self.close(held);
        }
    }

    /// What happens where the new generation did not pass.
    fn take_back(&mut self, swap: Swap<'_>, reason: String) -> (SwapStatus, RollbackInfo) {
        let started = Instant::now();
        if !swap.request.rollback_on_failure && !swap.switched.is_empty() {
            let name = &mut self.names[swap.index];
            let old = std::mem::replace(&mut name.active, swap.new);
            self.close(old);
            let info = RollbackInfo { rollback_reason: Some(reason), ..RollbackInfo::default() };
            return (SwapStatus::Failed, info);
        }
        let generation = self.names[swap.index].active.facts.generation;
        // A shard that does not answer is ending: nothing more can be done for it.
        let _ = self.route(&swap.request.target_model_id, Some(generation), None);
        self.close(swap.new);
        let info = RollbackInfo {
            rollback_performed: true,
            rollback_reason: Some(reason),
            rollback_duration_ms: Some(ms(started.elapsed())),
        };
        (SwapStatus::RolledBack, info)
    }
}

fn probe_problem(outcome: &Outcome, wanted: &[u32]) -> Option<String> {
    let Outcome::Probed { answer, failed } = outcome else { return Some("the probe was not made".into()) };
    if let Some(failed) = failed {
        return Some((*failed).to_owned());
    }
    if answer.is_empty() {
        return Some("the answer is empty".into());
    }
    (!wanted.is_empty() && answer != wanted).then(|| "the answer is another one than in the trial".into())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn size_ratio(old: &Facts, new: &Facts) -> f64 {
    new.bytes_per_token as f64 / old.bytes_per_token as f64
}

fn report(reply: &SwapReply, new: &Facts) {
    let PhaseTimes { validation_duration_ms, swap_duration_ms, health_check_duration_ms } = reply.swap_phases;
    info!(
        "swap {} of `{}` to {}: {:?} in {:.0} ms: validation {validation_duration_ms:.0} ms ({}), switch \
         {swap_duration_ms:.1} ms, health check {health_check_duration_ms:.0} ms{}",
        reply.swap_id,
        new.name,
        &hex(&new.sha256)[..12],
        reply.status,
        reply.total_duration_ms,
        describe_load(new),
        reply.rollback_info.rollback_reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}")),
    );
}

/// Versions that are remembered behind the active one.
const EARLIER_MAX: usize = 2;
const WATCH_EVERY: Duration = Duration::from_millis(50);
/// A probe waits behind running steps only: it goes before other requests.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
