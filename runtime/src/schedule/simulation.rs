//! The scheduler under seeded random loads on a simulated clock, with its promises checked at every step.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::*;
use crate::kv::blocks_for;
use crate::sampler::SamplingParams;

/// Pseudo-random numbers (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).unwrap()
    }
}

/// What a model with one right continuation would say: any mix of contexts shows as a wrong token.
fn next_token(tokens: &[u32]) -> u32 {
    tokens.iter().fold(START, |hash, token| mix(hash, *token)) % 50
}

fn mix(hash: u32, token: u32) -> u32 {
    hash.wrapping_mul(31).wrapping_add(token)
}

const START: u32 = 7;

/// Keys and values as the blocks hold them: each position names all tokens up to it.
struct Memory(Vec<[u32; BLOCK]>);

impl Memory {
    /// Computes a segment as a forward pass would: stores its positions, and reads all before them.
    fn compute(&mut self, sequence: &Sequence, first: usize, rows: usize, table: &[u32]) {
        let mut expected = START;
        for position in 0..first + rows {
            let place = &mut self.0[table[position / BLOCK] as usize][position % BLOCK];
            expected = mix(expected, sequence.tokens[position]);
            if position < first {
                assert_eq!(*place, expected, "position {position} of {:?} is another context's", sequence.stream);
            } else {
                *place = expected;
            }
        }
    }
}

struct Client {
    prompt: Vec<u32>,
    tokens_max: usize,
}

struct World {
    scheduler: Scheduler,
    kv: BlockTables,
    memory: Memory,
    step: Step,
    now: Instant,
    draw: Draw,
    running: HashMap<u64, Client>,
    next_id: u64,
    ended: usize,
    counts: Counts,
    /// Where the clock counts: what it learns of the machine.
    pace: Option<Pace>,
    clients: u64,
    /// Rows that were computed for each client while all had something to do.
    served: Vec<usize>,
    /// Longest steps that running streams felt, and what they were allowed, once costs are known.
    worst: (f64, f64),
}

/// What a step really takes: a fixed part, rows, and the positions that they look at.
fn machine_s(rows: &StepRows) -> f64 {
    let StepRows { decode_rows, decode_positions, prompt_rows, prompt_positions } = *rows;
    let looked = decode_positions as f64 * 1e-6 + prompt_positions as f64 * 5e-7;
    3e-3 + decode_rows as f64 * 4e-4 + prompt_rows as f64 * 2e-4 + looked
}

const CONTEXT: usize = 512;
const ROWS_MAX: usize = 128;
const ITL_TARGET: Duration = Duration::from_millis(15);
const SLOTS: usize = 6;
/// How long it is asked for more than it can do.
const SATURATED: Duration = Duration::from_secs(60);

impl World {
    fn new(seed: u64, blocks: usize, shares: bool) -> Self {
        let kv = BlockTables::new(CONTEXT, SLOTS, blocks);
        Self {
            scheduler: Scheduler::new(SLOTS, 20),
            kv: if shares { kv.with_prefixes() } else { kv },
            memory: Memory(vec![[0; BLOCK]; blocks]),
            step: Step::default(),
            now: Instant::now(),
            draw: Draw(seed),
            running: HashMap::new(),
            next_id: 0,
            ended: 0,
            counts: Counts::default(),
            pace: None,
            clients: 1,
            served: Vec::new(),
            worst: (0.0, 0.0),
        }
    }

    fn arrive(&mut self) {
        let (id, draw) = (self.next_id, &mut self.draw);
        self.next_id += 1;
        let shared = draw.below(3) * 70;
        let own = 1 + draw.below(120);
        let theme = draw.below(2) as u32;
        let mut prompt: Vec<u32> = (0..shared as u32).map(|i| i * 3 % 40 + theme).collect();
        prompt.extend((0..own).map(|_| draw.below(50) as u32));
        let tokens_max = 1 + draw.below(CONTEXT - prompt.len() - 1).min(200);
        let priority = [Priority::Low, Priority::Normal, Priority::High][draw.below(3)];
        let new = NewSequence::new(StreamId(id), prompt.clone(), tokens_max, SamplingParams::default(), self.now);
        let client = ClientId(id % self.clients);
        if self.scheduler.submit(NewSequence { priority, client, ..new }).is_ok() {
            self.running.insert(id, Client { prompt, tokens_max });
        }
    }

    fn leave(&mut self) {
        let mut ids: Vec<u64> = self.running.keys().copied().collect();
        ids.sort_unstable();
        if !ids.is_empty() {
            let id = ids[self.draw.below(ids.len())];
            self.scheduler.cancel(StreamId(id), &mut self.kv);
            self.running.remove(&id);
        }
    }

    /// One step; whether there was one.
    fn step(&mut self) -> bool {
        self.scheduler.admit(&mut self.kv, |_| {});
        let demand = self.scheduler.demand();
        let budget = match &self.pace {
            Some(pace) => pace.prompt_budget(&demand, 0.0, ROWS_MAX),
            None => PromptBudget::of_rows(1 + self.draw.below(96)),
        };
        let first = self.scheduler.order.first().copied();
        if !self.scheduler.form(&mut self.step, &mut self.kv, ROWS_MAX, budget) {
            assert!(self.running.is_empty(), "whoever is there is computed");
            return false;
        }
        assert!(self.step.tokens.len() <= ROWS_MAX);
        self.pass_time(demand);
        let (mut first_goes_on, mut segments) = (false, self.step.segments.clone());
        // A worker may take any segment first.
        segments.rotate_left(self.draw.below(self.step.segments.len()));
        for segment in segments {
            let sequence = self.scheduler.sequence(segment.slot).unwrap();
            assert_eq!(segment.first_position, sequence.computed);
            self.memory.compute(sequence, segment.first_position, segment.rows, self.kv.table(segment.slot));
            first_goes_on |= Some(segment.slot) == first;
        }
        if let Some(first) = first {
            let decodes = self.scheduler.sequence(first).unwrap().pending() == 1;
            assert!(first_goes_on || !decodes, "who ranks first and decodes is in every step");
        }
        for segment in std::mem::take(&mut self.step.segments) {
            let sequence = self.scheduler.sequence_mut(segment.slot).unwrap();
            sequence.computed += segment.rows;
            if sequence.pending() == 0 {
                sequence.push(next_token(&sequence.tokens));
                if sequence.generated() == sequence.tokens_max {
                    self.finish(segment.slot);
                }
            }
        }
        self.check();
        let counts = self.scheduler.take_counts();
        self.counts.prefix_hits += counts.prefix_hits;
        self.counts.preempted += counts.preempted;
        true
    }

    /// Lets the step take its time, which the pace learns.
    fn pass_time(&mut self, demand: Demand) {
        let rows = self.scheduler.rows_of(&self.step);
        let seconds = machine_s(&rows) * (0.97 + self.draw.below(60) as f64 / 1000.0);
        self.now += Duration::from_secs_f64(seconds);
        let Some(pace) = &mut self.pace else { return };
        let Demand { decodes, crowd, prompts } = demand;
        let decode_s = machine_s(&decodes);
        let each_s = decode_s * (1.0 + prompts as f64 / decodes.decode_rows.max(1) as f64);
        // What the last prompt will make of it, or the smallest chunk; within the target as much as those who wait are many.
        let last_s = LONGER * machine_s(&crowd) + 16.0 * 2e-4;
        let allowed = last_s.max(each_s.min(ITL_TARGET.as_secs_f64()));
        if self.ended > 5 && decodes.decode_rows > 0 && seconds / allowed > self.worst.0 / self.worst.1.max(1e-9) {
            self.worst = (seconds, allowed);
        }
        pace.observe(&rows, Duration::from_secs_f64(seconds));
        for segment in &self.step.segments {
            let client = self.scheduler.sequence(segment.slot).unwrap().client.0 as usize;
            self.served.resize(self.served.len().max(client + 1), 0);
            self.served[client] += segment.rows;
        }
    }

    fn finish(&mut self, slot: usize) {
        let sequence = self.scheduler.sequence(slot).unwrap();
        let client = self.running.remove(&sequence.stream.0).unwrap();
        let mut alone = client.prompt;
        for _ in 0..client.tokens_max {
            alone.push(next_token(&alone));
        }
        assert_eq!(sequence.tokens, alone, "as if it had been alone");
        self.scheduler.finish(slot, &mut self.kv);
        self.ended += 1;
    }

    fn check(&self) {
        let held: usize = (0..SLOTS).map(|slot| self.kv.table(slot).len()).sum();
        let mut distinct: Vec<u32> = (0..SLOTS).flat_map(|slot| self.kv.table(slot)).copied().collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len() + self.kv.blocks_free(), self.kv.blocks(), "no block is lost");
        assert!(held >= distinct.len());
        assert_eq!(self.scheduler.running() + self.scheduler.waiting(), self.running.len(), "nobody is lost");
        let ranks: Vec<Rank> = self.scheduler.order.iter().map(|slot| self.scheduler.rank(*slot)).collect();
        assert!(ranks.is_sorted());
    }
}

#[test]
fn whatever_comes_everyone_ends_with_the_right_text_and_no_block_is_lost() {
    for seed in 0..40 {
        let blocks = blocks_for(CONTEXT) + [0, 3, 12, 90][seed % 4];
        let mut world = World::new(seed as u64, blocks, seed % 3 > 0);
        for _ in 0..1500 {
            if world.draw.below(12) == 0 {
                world.arrive();
            }
            if world.draw.below(150) == 0 {
                world.leave();
            }
            world.step();
        }
        let mut steps = 0;
        while world.step() {
            steps += 1;
            assert!(steps < 20_000, "seed {seed}: nobody ends any more");
        }
        assert!(world.ended > 20, "seed {seed}: {} ended", world.ended);
        assert_eq!(world.kv.blocks_free(), blocks, "seed {seed}");
        let counts = world.counts;
        assert_eq!(counts.prefix_hits > 0, seed % 3 > 0, "seed {seed}: {counts:?}");
        assert!(blocks > 40 || counts.preempted > 0, "seed {seed}: {counts:?}");
    }
}

#[test]
fn a_cache_for_one_serves_many_one_after_the_other() {
    let mut world = World::new(1, blocks_for(CONTEXT), true);
    for id in 0..20 {
        let prompt: Vec<u32> = (0..CONTEXT as u32 - 60).map(|i| (i + id) % 50).collect();
        let stream = StreamId(u64::from(id));
        let new = NewSequence::new(stream, prompt.clone(), 60, SamplingParams::default(), world.now);
        world.scheduler.submit(new).unwrap();
        world.running.insert(u64::from(id), Client { prompt, tokens_max: 60 });
    }
    let mut steps = 0;
    while world.step() {
        steps += 1;
        assert!(steps < 20_000, "nobody ends any more");
    }
    assert_eq!((world.ended, world.kv.blocks_free()), (20, blocks_for(CONTEXT)));
}

#[test]
fn steps_that_running_streams_feel_stay_within_the_target() {
    for seed in 0..8 {
        let mut world = World::new(seed, 200, seed % 2 == 0);
        world.pace = Some(Pace::new(ITL_TARGET));
        for _ in 0..3000 {
            if world.draw.below(20) == 0 {
                world.arrive();
            }
            world.step();
        }
        let (seconds, allowed) = world.worst;
        assert!(world.ended > 20 && seconds > 0.5 * allowed, "seed {seed}: prompts fill the steps: {:?}", world.worst);
        assert!(seconds < 1.1 * allowed, "seed {seed}: a step of {seconds} s where {allowed} were allowed");
    }
}

/// What a step of a large model takes: rows cost much, and nearly the same whatever they are.
fn large_s(rows: &StepRows) -> f64 {
    15e-3 + rows.decode_rows as f64 * 5e-3 + rows.prompt_rows as f64 * 4e-3
}

/// 32 prompts at once, whose steps take what `machine` says: the steps that streams felt, and when all prompts were done.
fn many_prompts(mut pace: Pace, mut machine: impl FnMut(&StepRows) -> f64) -> (Vec<f64>, f64) {
    let (count, slots) = (MANY, MANY as usize);
    let mut kv = BlockTables::new(CONTEXT, slots, slots * blocks_for(CONTEXT));
    let (mut scheduler, mut step) = (Scheduler::new(slots, 0), Step::default());
    let start = Instant::now();
    for id in 0..count {
        let prompt = (0..MANY_TOKENS).map(|i| (id * 31 + i * 7) % 50).collect();
        let new = NewSequence::new(StreamId(u64::from(id)), prompt, 64, SamplingParams::default(), start);
        scheduler.submit(new).unwrap();
    }
    let (mut now_s, mut felt_s) = (0.0, Vec::new());
    while scheduler.prompts() > 0 {
        scheduler.admit(&mut kv, |_| {});
        let demand = scheduler.demand();
        assert!(scheduler.form(&mut step, &mut kv, 512, pace.prompt_budget(&demand, 0.0, 512)));
        let seconds = machine(&scheduler.rows_of(&step));
        pace.observe(&scheduler.rows_of(&step), Duration::from_secs_f64(seconds));
        now_s += seconds;
        if demand.decodes.decode_rows > 0 {
            felt_s.push(seconds);
        }
        for segment in &step.segments {
            let sequence = scheduler.sequence_mut(segment.slot).unwrap();
            sequence.computed += segment.rows;
            if sequence.pending() == 0 {
                sequence.push(1);
                if sequence.generated() == sequence.tokens_max {
                    scheduler.finish(segment.slot, &mut kv);
                }
            }
        }
    }
    (felt_s, now_s)
}

const MANY: u32 = 32;
const MANY_TOKENS: u32 = 144;

#[test]
fn of_many_prompts_at_once_none_makes_longer_steps_than_the_last_and_all_are_soon_done() {
    let (felt_s, now_s) = many_prompts(Pace::new(ITL_TARGET), large_s);
    let (longest_s, alone_s) = (felt_s.iter().copied().fold(0.0, f64::max), f64::from(MANY * MANY_TOKENS) * 4e-3);
    println!(
        "all prompts after {now_s:.1} s, alone {alone_s:.1} s; {} steps, the longest {longest_s:.3} s",
        felt_s.len()
    );
    let last_s = LONGER * (15e-3 + 31.0 * 5e-3);
    assert!(longest_s < 1.1 * last_s, "a step of {longest_s} s where the last prompt makes them {last_s} s long");
    assert!(now_s < 1.75 * alone_s, "{now_s} s, of which prompts alone take {alone_s} s");
}

#[test]
fn the_first_prompts_make_no_longer_steps_also_where_rows_of_both_kinds_cost_more_than_each_alone() {
    let mut worst: f64 = 0.0;
    for seed in 0..16 {
        let mut draw = Draw(seed);
        let mut machine = |rows: &StepRows| {
            let beside = if rows.decode_rows > 0 && rows.prompt_rows > 0 { 1.15 } else { 1.0 };
            let few = 12e-3 * f64::min(1.0, (rows.decode_rows + rows.prompt_rows) as f64 / 40.0);
            let looked = rows.decode_positions as f64 * 3e-6 + rows.prompt_positions as f64 * 5e-7;
            let rows_s = rows.decode_rows as f64 * 1.6e-3 + rows.prompt_rows as f64 * 1.05e-3;
            (20e-3 + few + rows_s + looked) * beside * (0.92 + draw.below(160) as f64 / 1000.0)
        };
        let mut pace = Pace::new(ITL_TARGET);
        let (mut one, mut many, mut prompt) = <(StepRows, StepRows, StepRows)>::default();
        one.add_decode(0, 1);
        many.add_decode(0, 32);
        prompt.add_prompt(0, 64);
        for rows in [one, many, prompt] {
            pace.foresee(&rows, Duration::from_secs_f64(machine(&rows)));
        }
        let mut crowd = StepRows::default();
        (0..31).for_each(|_| crowd.add_decode(MANY_TOKENS as usize + 32, 1));
        let last_s = LONGER * (32e-3 + 31.0 * 1.6e-3 + crowd.decode_positions as f64 * 3e-6);
        let (felt_s, _) = many_prompts(pace, machine);
        worst = felt_s.iter().copied().fold(worst, |worst, seconds| worst.max(seconds / last_s));
    }
    println!("the longest step was {worst:.2} times as long as the last prompt makes it");
    assert!(worst < 1.6, "{worst}");
}

/// Sequences that end in a second where so many come, those that the queue has no room for left out.
fn goodput(seed: u64, per_second: f64) -> f64 {
    let mut world = World::new(seed, 200, false);
    world.pace = Some(Pace::new(ITL_TARGET));
    let start = world.now;
    let mut next = start;
    while world.now < start + SATURATED {
        while next <= world.now {
            world.arrive();
            // Half to one and a half of the mean.
            next += Duration::from_secs_f64((500 + world.draw.below(1000)) as f64 / 1000.0 / per_second);
        }
        if !world.step() {
            world.now = next;
        }
    }
    while world.step() {}
    world.ended as f64 / (world.now - start).as_secs_f64()
}

#[test]
fn what_is_asked_beyond_the_capacity_costs_none_of_it() {
    for seed in 0..3 {
        let capacity = goodput(seed, 1000.0);
        let rates = [0.8, 1.0, 2.0, 5.0, 10.0].map(|factor| goodput(seed, factor * capacity));
        let best = rates.iter().copied().fold(0.0, f64::max);
        println!("seed {seed}: capacity {capacity:.2}/s, done at 0.8, 1, 2, 5 and 10 times: {rates:.2?}");
        assert!(rates[3] >= 0.95 * best && rates[4] >= 0.95 * best, "seed {seed}: {rates:?}");
    }
}

#[test]
fn clients_that_always_want_more_get_about_the_same() {
    for seed in 0..6 {
        let mut world = World::new(100 + seed, 200, false);
        (world.pace, world.clients) = (Some(Pace::new(ITL_TARGET)), 3);
        for _ in 0..4000 {
            // Each has something waiting at any time, the first one most of what there is.
            for (client, wanted) in [(0, 10), (1, 2), (2, 2)] {
                let of_client = |waiting: &&Waiting| waiting.new.client == ClientId(client);
                while world.scheduler.waiting.iter().filter(of_client).count() < wanted {
                    world.next_id = world.next_id.next_multiple_of(3) + client;
                    world.arrive();
                }
            }
            world.step();
        }
        let (least, most) = (world.served.iter().min().unwrap(), world.served.iter().max().unwrap());
        let bound = QUANTUM_ROWS as usize + SLOTS * CONTEXT;
        assert!(*most - *least <= bound && *least > 2 * bound, "seed {seed}: {:?}", world.served);
    }
}
