//! The same request gives the same bits: alone or among others, whatever the chunks, the workers and the instruction
//! set.
#![expect(clippy::unwrap_used, reason = "a model that cannot be loaded fails the test")]

mod harness;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gguf::TensorType;
use harness::{ROWS_MAX, Rig, load, load_with};
use kernels::Isa;
use kernels::attention::KvType;
use net::api::Constraint;
use runtime::cli::synth::{self, Preset};
use runtime::engine::{Command, Engine, Event, GenerationId, Guests, Lane, LaneLimits, Link};
use runtime::forward::{Forward, Limits, Step};
use runtime::guide::{Beside, Compiler, Guide, Guided};
use runtime::kv::{KvCache, blocks_for};
use runtime::mailbox::{Doorbell, LeaderBell};
use runtime::metrics::{GenerationMetrics, ShardMetrics};
use runtime::model::{HeadScreen, Model};
use runtime::sampler::SamplingParams;
use runtime::schedule::{NewSequence, StreamId};
use runtime::speculate::Speculation;
use runtime::team::Team;

#[test]
fn chunks_workers_and_isas_change_no_logit_of_tiny_models() {
    for name in TINY {
        // Longer than what attention treats as one split.
        chunks_workers_and_isas_change_no_logit(&tiny(name), 300, 24);
    }
}

#[test]
fn chunks_workers_and_isas_change_no_logit_over_an_int8_cache() {
    for name in TINY {
        chunks_workers_and_isas_change_no_logit_over(KvType::Int8, &tiny(name), 300, 24);
    }
    chunks_workers_and_isas_change_no_logit_over(KvType::Int8, &load(None), 70, 2);
}

#[test]
fn chunks_workers_and_isas_change_no_logit_of_the_default_model() {
    chunks_workers_and_isas_change_no_logit(&load(None), 70, 2);
}

#[test]
fn rows_and_columns_that_are_left_out_change_no_logit() {
    let path = std::env::temp_dir().join(format!("bitnetd-wide-{}.gguf", std::process::id()));
    synth::write(&path, Preset::Wide, TensorType::I2S, TensorType::F16, 8, |_, _| {}).unwrap();
    let model = load(Some(&path));
    std::fs::remove_file(&path).unwrap();
    let layers = 0..model.weights.layers.len();
    let skips = |index| model.weights.up_rows(index).is_some() && model.weights.down_columns(index).is_some();
    assert_eq!(layers.into_iter().all(skips), kernels::ternary::skips(Isa::detect()), "the forms that steps skip with");
    chunks_workers_and_isas_change_no_logit(&model, 40, 3);
    for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::Portable) {
        other_sequences_change_no_logit(&model, isa, 12);
    }
}

#[test]
fn other_sequences_change_no_logit_of_tiny_models() {
    for name in TINY {
        let model = tiny(name);
        for isa in Isa::available() {
            other_sequences_change_no_logit(&model, isa, if isa == Isa::Portable { 5 } else { 60 });
        }
    }
}

#[test]
fn other_sequences_change_no_logit_of_the_default_model() {
    other_sequences_change_no_logit(&load(None), Isa::detect(), 16);
}

#[test]
fn chunks_workers_and_isas_change_no_state_of_embedding_models() {
    for preset in EMBEDDING {
        chunks_workers_and_isas_change_no_logit(&synthesized(preset), 300, 24);
    }
}

#[test]
fn other_sequences_change_no_state_of_embedding_models() {
    for preset in EMBEDDING {
        let model = synthesized(preset);
        for isa in Isa::available() {
            other_sequences_change_no_logit(&model, isa, if isa == Isa::Portable { 5 } else { 60 });
        }
    }
}

/// Portable code computes the first `portable_len` tokens only: what follows changes nothing before it.
fn chunks_workers_and_isas_change_no_logit(model: &Model, len: usize, portable_len: usize) {
    chunks_workers_and_isas_change_no_logit_over(KvType::F16, model, len, portable_len);
}

fn chunks_workers_and_isas_change_no_logit_over(kv_type: KvType, model: &Model, len: usize, portable_len: usize) {
    let mut draw = Draw(1);
    let tokens = draw.tokens(model, len);
    let expected = Rig::over(model, kv_type, Isa::detect(), 1, (1, len)).feed(0, 0, &tokens, ROWS_MAX);
    for (i, isa) in Isa::available().into_iter().enumerate() {
        let len = if isa == Isa::Portable { portable_len } else { len };
        for workers in [1, 2, 3] {
            for (j, chunk) in [1, 7, 64, ROWS_MAX].into_iter().enumerate() {
                // All pairs of these with what the machine runs; others meet each chunk once, and each number of workers.
                if isa != Isa::detect() && (i + j) % 3 != workers - 1 {
                    continue;
                }
                let got = Rig::over(model, kv_type, isa, workers, (1, len)).feed(0, 0, &tokens[..len], chunk);
                let what = format!("{}, {workers} workers, chunks of {chunk}", isa.name());
                same_bits(&got, &expected[..len], &what);
            }
        }
    }
}

/// A sequence that goes through its tokens in chunks, then one by one.
struct Course {
    tokens: Vec<u32>,
    prompt_len: usize,
    computed: usize,
    logits: Vec<Vec<f32>>,
}

impl Course {
    fn next_rows(&self, chunk: usize) -> usize {
        match self.prompt_len.checked_sub(self.computed) {
            None | Some(0) => 1,
            Some(pending) => pending.min(chunk),
        }
    }

    fn is_over(&self) -> bool {
        self.computed == self.tokens.len()
    }
}

/// 33 sequences of all ages share the steps; each one must get what it gets alone.
fn other_sequences_change_no_logit(model: &Model, isa: Isa, len_max: usize) {
    let mut draw = Draw(2);
    let mut alone = Rig::new(model, Isa::detect(), 1, 1, len_max);
    let mut courses = Vec::new();
    for _ in 0..SEQUENCES {
        let len = 1 + draw.below(len_max);
        let (tokens, prompt_len) = (draw.tokens(model, len), 1 + draw.below(len));
        courses.push(Course { tokens, prompt_len, computed: 0, logits: Vec::new() });
    }
    let expected: Vec<_> = courses.iter().map(|course| alone.feed(0, 0, &course.tokens, ROWS_MAX)).collect();
    for workers in [2, 3] {
        let mut rig = Rig::new(model, isa, workers, SEQUENCES, len_max);
        while courses.iter().any(|course| !course.is_over()) {
            // Some wait, so that prefill and decode meet in one step and no row has the same place twice.
            let mut slots: Vec<usize> = (0..SEQUENCES).filter(|&slot| !courses[slot].is_over()).collect();
            slots.retain(|_| draw.below(4) > 0);
            slots.sort_by_cached_key(|_| draw.below(1 << 20));
            let mut step = Step::default();
            for &slot in &slots {
                let course = &courses[slot];
                let rows = course.next_rows(1 + draw.below(10));
                step.push(slot, course.computed, &course.tokens[course.computed..][..rows], false);
            }
            step.logits.extend(0..step.tokens.len());
            let mut logits = rig.run(&step).into_iter();
            for segment in &step.segments {
                courses[segment.slot].logits.extend(logits.by_ref().take(segment.rows));
                courses[segment.slot].computed += segment.rows;
            }
        }
        for (course, expected) in courses.iter_mut().zip(&expected) {
            same_bits(&std::mem::take(&mut course.logits), expected, &format!("{}, {workers} workers", isa.name()));
            course.computed = 0;
        }
    }
}

#[test]
fn sampled_tokens_do_not_depend_on_other_requests_or_workers() {
    let model = Arc::new(load(None));
    let mut draw = Draw(3);
    let prompts: Vec<Vec<u32>> = (0..SEQUENCES).map(|i| draw.tokens(&model, 1 + i * 3 / 2)).collect();
    let streams: Vec<usize> = (0..SEQUENCES).collect();
    let together = generate(&model, 2, (SEQUENCES, 256), &prompts, &streams);
    assert!(together.iter().all(|tokens| tokens.len() == ANSWER_TOKENS));
    assert_eq!(generate(&model, 1, (SEQUENCES, 256), &prompts, &streams), together, "1 worker");
    assert_eq!(generate(&model, 2, (5, 16), &prompts, &streams), together, "5 slots, steps of 16 rows");
    for stream in [0, 1, 2, 17, 32] {
        let alone = generate(&model, 1, (1, 64), &prompts, &[stream]);
        assert_eq!(alone[0], together[stream], "stream {stream} alone");
    }
}

#[test]
fn blocks_that_are_shared_and_blocks_that_are_few_change_no_token() {
    let model = Arc::new(load(None));
    let mut draw = Draw(6);
    let begins = [draw.tokens(&model, 40), draw.tokens(&model, 75), draw.tokens(&model, 64)];
    let prompts: Vec<Vec<u32>> = (0..SEQUENCES)
        .map(|i| {
            let more = i % 7 * 9;
            [&begins[i % 3][..], &draw.tokens(&model, more)].concat()
        })
        .collect();
    let streams: Vec<usize> = (0..SEQUENCES).collect();
    let positions = prompts.iter().map(Vec::len).max().unwrap() + ANSWER_TOKENS;
    // Some prompts end where a block ends: their first token is the first of a new one.
    assert!(prompts.iter().any(|prompt| prompt.len() % 32 == 0));
    for kv_type in [KvType::F16, KvType::Int8] {
        let cache = |slots, blocks| KvCache::new(&model.weights.params, kv_type, positions, slots, blocks);
        let enough = cache(SEQUENCES, SEQUENCES * blocks_for(positions));
        let (expected, _) = run_engine(&model, 2, (SEQUENCES, 256), enough, &prompts, &streams);
        for (slots, rows_max, blocks) in [(8, 48, 400), (33, 256, blocks_for(positions) + 3)] {
            for shares in [false, true] {
                let kv = cache(slots, blocks);
                let kv = if shares { kv.with_prefixes() } else { kv };
                let (got, metrics) = run_engine(&model, 2, (slots, rows_max), kv, &prompts, &streams);
                assert_eq!(got, expected, "{kv_type:?}, {slots} slots, {blocks} blocks, shared: {shares}");
                assert_eq!(metrics.step.prefix_hits.get() > 0, shares);
                assert_eq!(metrics.step.kv_blocks_used.get(), 0);
            }
        }
    }
}

#[test]
fn constrained_answers_that_are_pushed_out_go_on_with_the_same_tokens() {
    const COUNT: usize = 8;
    const TOKENS_MAX: usize = 64;
    let model = Arc::new(load(None));
    let mut draw = Draw(7);
    let prompts: Vec<Vec<u32>> = (0..COUNT).map(|i| draw.tokens(&model, 20 + i)).collect();
    let positions = 20 + COUNT + TOKENS_MAX;
    // Each has the same guide, a choice of its own, and more tokens to come than fit beside the others.
    let pattern = Constraint::Regex("([a-z]{1,9} ){40}end".into());
    let sequences = || -> Vec<NewSequence> {
        let guides = guides(&model, &pattern, COUNT);
        let sequences = guides.into_iter().enumerate().map(|(i, guide)| {
            let sequence = sequence(i as u64, &prompts[i], sampling_of(i));
            NewSequence { tokens_max: TOKENS_MAX, guide: Some(Guided::from(guide)), ..sequence }
        });
        sequences.collect()
    };
    let cache = |blocks| KvCache::new(&model.weights.params, KvType::F16, positions, COUNT, blocks);
    let (expected, metrics) = run_sequences(&model, 2, (COUNT, 256), cache(COUNT * blocks_for(positions)), sequences());
    assert_eq!(metrics.step.preempted.get(), 0);
    for answer in &expected {
        let text: Vec<u8> = answer.iter().flat_map(|token| model.tokenizer.piece(*token)).copied().collect();
        assert!(text.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b' ') && text.len() > 20, "{text:?}");
    }
    // How often depends on how long their guides take, so on what else the machine does.
    let mut preempted = 0;
    for (rows_max, blocks) in [(256, 10), (24, 7), (256, 7), (256, 8)] {
        let (got, metrics) = run_sequences(&model, 2, (COUNT, rows_max), cache(blocks), sequences());
        assert_eq!(got, expected, "{blocks} blocks");
        preempted += metrics.step.preempted.get();
    }
    assert!(preempted > 0, "so few blocks are enough for all");
}

/// What slow guides allow is computed beside the steps, which others take meanwhile.
#[test]
fn slow_guides_change_no_token_and_no_company_changes_theirs() {
    const COUNT: usize = 4;
    // So many that the last sets take several times as long as a step may on a fast machine too.
    const TOKENS_MAX: usize = 36;
    let model = Arc::new(load(None));
    let mut draw = Draw(8);
    let prompts: Vec<Vec<u32>> = (0..COUNT).map(|i| draw.tokens(&model, 26 + i)).collect();
    let positions = 26 + COUNT + TOKENS_MAX;
    // Whose answers hardly ever end.
    let ambiguous = Constraint::Grammar("# lark\nstart: e \"~\"\ne: e e | /[a-z ]/".into());
    let free = |i: usize| NewSequence { tokens_max: TOKENS_MAX, ..sequence(i as u64, &prompts[i], sampling_of(i)) };
    // Every other one is free.
    let sequences = || {
        let guides = guides(&model, &ambiguous, COUNT).into_iter().enumerate();
        guides.map(|(i, guide)| NewSequence { guide: (i % 2 == 1).then(|| Guided::from(guide)), ..free(i) })
    };
    let cache = |blocks| KvCache::new(&model.weights.params, KvType::F16, positions, COUNT, blocks);
    let run = |blocks, sequences| run_sequences(&model, 2, (COUNT, 256), cache(blocks), sequences);
    let alone = |sequence| run(blocks_for(positions), vec![sequence]).0.remove(0);
    let expected: Vec<Vec<u32>> = sequences().map(alone).collect();
    for blocks in [COUNT * blocks_for(positions), 5] {
        let (got, metrics) = run(blocks, sequences().collect());
        assert_eq!(got, expected, "{blocks} blocks");
        assert!(metrics.step.guides_beside.get() > 0 && metrics.step.beside.get() == 0);
    }
}

#[test]
fn a_sequence_that_comes_without_its_guide_goes_on_when_that_is_back() {
    const TOKENS_MAX: usize = 6;
    let model = Arc::new(load(None));
    let letter = (0..).find(|token| model.tokenizer.piece(*token) == b"e").unwrap();
    let prompt = Draw(9).tokens(&model, 20);
    let ambiguous = Constraint::Grammar("# lark\nstart: e \"~\"\ne: e e | /[a-z ]/".into());
    // Of another device, which may be gone.
    let mut there = Beside::start(1, 1, &Arc::default()).unwrap();
    let answers = [false, true].map(|is_away| {
        let mut guide = guides(&model, &ambiguous, 1).remove(0);
        (0..300).for_each(|_| guide.push(letter));
        for _ in 0..4 {
            assert!(guide.allowed().is_some());
            guide.push(letter);
        }
        let mut guided = Guided::from(guide);
        if is_away {
            guided.step_aside_if_slow(&mut there, true);
            assert!(guided.is_beside());
        }
        let new = NewSequence { tokens_max: TOKENS_MAX, ..sequence(1, &prompt, sampling_of(0)) };
        let kv = KvCache::new(&model.weights.params, KvType::F16, 64, 1, 2);
        let (mut answers, metrics) =
            run_sequences(&model, 2, (1, 64), kv, vec![NewSequence { guide: Some(guided), ..new }]);
        assert!(metrics.step.guides_beside.get() > u64::from(is_away));
        answers.remove(0)
    });
    assert!(answers[0].len() == TOKENS_MAX && answers[0] == answers[1], "{answers:?}");
}

fn guides(model: &Model, constraint: &Constraint, count: usize) -> Vec<Guide> {
    let (replies, bell) = (Arc::default(), Arc::new(Doorbell::new().unwrap()));
    let compiler = Compiler::start().unwrap();
    let mut compiled = compiler.compile(model, constraint.clone(), count, (&replies, &bell)).unwrap();
    loop {
        match compiled.pop() {
            Ok(guides) => return guides.unwrap(),
            Err(_) => std::thread::yield_now(),
        }
    }
}

#[test]
fn generations_that_share_a_team_change_no_token_of_each_other() {
    let (old, new) = (Arc::new(load(None)), Arc::new(tiny(TINY[0])));
    let mut draw = Draw(4);
    let prompts: [Vec<Vec<u32>>; 2] = [&old, &new].map(|model| (0..6).map(|i| draw.tokens(model, 1 + i * 9)).collect());
    let streams: Vec<usize> = (0..6).collect();
    let alone = [generate(&old, 2, (6, 64), &prompts[0], &streams), generate(&new, 2, (6, 64), &prompts[1], &streams)];

    let (mut commands_in, commands) = rtrb::RingBuffer::new(32);
    let (events, mut events_out) = rtrb::RingBuffer::new(1024);
    let (closed, mut closed_out) = rtrb::RingBuffer::new(2);
    let start = |commands_in: &mut rtrb::Producer<Command>, generation: usize, stream: usize| {
        let id = (generation * 100 + stream) as u64;
        let sequence = Box::new(sequence(id, &prompts[generation][stream], sampling_of(stream)));
        let command = Command::Start { generation: GenerationId(generation as u32), sequence };
        commands_in.push(command).ok().unwrap();
    };
    streams.iter().for_each(|&stream| start(&mut commands_in, 0, stream));
    let kv_of = |model: &Model| KvCache::new(&model.weights.params, KvType::F16, 64, 6, 6 * blocks_for(64));
    let opened = lane(&new, GenerationId(1), 2, (6, 64), kv_of(&new));
    commands_in.push(Command::Open(Box::new(opened))).ok().unwrap();
    streams.iter().for_each(|&stream| start(&mut commands_in, 1, stream));
    commands_in.push(Command::Close(GenerationId(0))).ok().unwrap();
    let first = lane(&old, GenerationId(0), 2, (6, 64), kv_of(&old));
    let team = Team::start(2, |_| {}).unwrap();
    Engine::new(team, vec![first], link(commands, events, closed), Arc::new(ShardMetrics::default())).run();

    assert_eq!(closed_out.pop().ok().map(|lane| lane.id()), Some(GenerationId(0)), "the old lane comes back");
    assert!(closed_out.is_empty(), "the new one stays");
    let mut together = [vec![Vec::new(); 6], vec![Vec::new(); 6]];
    let mut last = Vec::new();
    while let Ok(event) = events_out.pop() {
        if let Event::Token { stream, sampled, finish, .. } = event {
            let (generation, at) = (stream.0 as usize / 100, stream.0 as usize % 100);
            together[generation][at].push(sampled.token);
            last.extend(finish.map(|_| generation));
        }
    }
    assert_eq!(together, alone);
    assert!(last[..6].contains(&1), "neither waits for the other's end: {last:?}");
}

#[test]
fn a_screen_of_the_head_changes_no_token() {
    let paths = TINY.iter().map(|name| Some(folder().join(name))).chain([None]);
    for path in paths {
        let path = path.as_deref();
        let [plain, screened] = [HeadScreen::Off, HeadScreen::Always].map(|screen| Arc::new(load_with(path, screen)));
        assert!(plain.weights.screen().is_none() && screened.weights.screen().is_some());
        let mut draw = Draw(5);
        let prompts: Vec<Vec<u32>> = (0..SEQUENCES).map(|i| draw.tokens(&plain, 1 + i)).collect();
        for (workers, limits, streams) in [(2, (SEQUENCES, 256), (0..SEQUENCES).collect()), (1, (1, 64), vec![5, 6, 7])]
        {
            let (expected, counts) = generate_counted(&plain, workers, limits, &prompts, &streams);
            assert_eq!(counts.map(|count| count > 0), [true, false, false]);
            let (got, [_, decided, undecided]) = generate_counted(&screened, workers, limits, &prompts, &streams);
            assert_eq!(got, expected, "{path:?}");
            assert!(decided > 0, "{path:?}: {decided} decided, {undecided} not");
        }
    }
}

/// Answers of an engine to the requests `streams`, all of which wait when it starts.
fn generate(
    model: &Arc<Model>,
    workers: usize,
    limits: (usize, usize),
    prompts: &[Vec<u32>],
    streams: &[usize],
) -> Vec<Vec<u32>> {
    generate_counted(model, workers, limits, prompts, streams).0
}

/// The same, and how many rows of the head were full, screened and undecided.
fn generate_counted(
    model: &Arc<Model>,
    workers: usize,
    (slots_max, rows_max): (usize, usize),
    prompts: &[Vec<u32>],
    streams: &[usize],
) -> (Vec<Vec<u32>>, [u64; 3]) {
    let positions = prompts.iter().map(Vec::len).max().unwrap() + ANSWER_TOKENS;
    let kv = KvCache::new(&model.weights.params, KvType::F16, positions, slots_max, slots_max * blocks_for(positions));
    let (answers, metrics) = run_engine(model, workers, (slots_max, rows_max), kv, prompts, streams);
    let head = &metrics.step.head;
    (answers, [&head.full, &head.screened, &head.undecided].map(|count| count.get()))
}

/// Answers of an engine with that KV cache to the requests `streams`, all of which wait when it starts.
fn run_engine(
    model: &Arc<Model>,
    workers: usize,
    limits: (usize, usize),
    kv: KvCache,
    prompts: &[Vec<u32>],
    streams: &[usize],
) -> (Vec<Vec<u32>>, Arc<ShardMetrics>) {
    let sequences = streams.iter().map(|&stream| sequence(stream as u64, &prompts[stream], sampling_of(stream)));
    run_sequences(model, workers, limits, kv, sequences.collect())
}

fn run_sequences(
    model: &Arc<Model>,
    workers: usize,
    limits: (usize, usize),
    kv: KvCache,
    sequences: Vec<NewSequence>,
) -> (Vec<Vec<u32>>, Arc<ShardMetrics>) {
    let (mut commands_in, commands) = rtrb::RingBuffer::new(sequences.len());
    let (events, mut events_out) = rtrb::RingBuffer::new(sequences.iter().map(|new| new.tokens_max + 2).sum());
    let (closed, _closed_out) = rtrb::RingBuffer::new(1);
    let streams: Vec<u64> = sequences.iter().map(|new| new.stream.0).collect();
    for sequence in sequences {
        let (generation, sequence) = (GENERATION, Box::new(sequence));
        let is_away = sequence.guide.as_ref().is_some_and(Guided::is_beside);
        let begun =
            if is_away { Command::Resume { generation, sequence } } else { Command::Start { generation, sequence } };
        commands_in.push(begun).ok().unwrap();
    }
    let lane = lane(model, GENERATION, workers, limits, kv);
    let team = Team::start(workers, |_| {}).unwrap();
    let metrics = Arc::new(ShardMetrics::default());
    Engine::new(team, vec![lane], link(commands, events, closed), Arc::clone(&metrics)).run();
    let mut answers = vec![Vec::new(); streams.len()];
    while let Ok(event) = events_out.pop() {
        if let Event::Token { stream, sampled, .. } = event {
            let at = streams.iter().position(|s| *s == stream.0).unwrap();
            answers[at].push(sampled.token);
        }
    }
    (answers, metrics)
}

fn lane(
    model: &Arc<Model>,
    id: GenerationId,
    workers: usize,
    (slots_max, rows_max): (usize, usize),
    kv: KvCache,
) -> Lane {
    let params = &model.weights.params;
    let forward = Forward::new(Isa::detect(), params, workers, Limits { rows_max, logits_max: slots_max });
    let limits = LaneLimits {
        slots_max,
        waiting_max: SEQUENCES,
        itl_target: Duration::from_millis(20),
        speculation: Speculation::Off,
        kv_idle: None,
    };
    Lane::new(id, Arc::clone(model), workers, forward, kv, limits, Arc::new(GenerationMetrics::default()))
}

fn link(commands: rtrb::Consumer<Command>, events: rtrb::Producer<Event>, closed: rtrb::Producer<Lane>) -> Link {
    let bell = Arc::new(LeaderBell::default());
    Link {
        commands,
        events,
        closed,
        guests: Guests::default(),
        beside: Beside::start(0, 1, &bell).unwrap(),
        doorbell: Arc::new(Doorbell::new().unwrap()),
        bell,
        stopping: Arc::new(AtomicBool::new(true)),
    }
}

fn sequence(stream: u64, prompt: &[u32], sampling: SamplingParams) -> NewSequence {
    let new = NewSequence::new(StreamId(stream), prompt.to_vec(), ANSWER_TOKENS, sampling, Instant::now());
    NewSequence { stop_at_end: false, ..new }
}

fn sampling_of(stream: usize) -> SamplingParams {
    let base = SamplingParams { temperature: 0.8, seed: stream as u64 / 2, ..SamplingParams::default() };
    match stream % 4 {
        0 => base,
        1 => SamplingParams { temperature: 0.0, ..base },
        2 => SamplingParams { top_k: 40, top_p: 0.95, ..base },
        _ if stream % 16 == 11 => SamplingParams { min_p: 0.02, ..base },
        _ => SamplingParams { min_p: 0.02, repetition_penalty: 1.1, frequency_penalty: 0.2, ..base },
    }
}

fn same_bits(got: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        let different = got.iter().zip(expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert!(different == 0 && got.len() == expected.len(), "{what}: {different} logits of row {row} differ");
    }
}

/// A model of random weights.
fn synthesized(preset: Preset) -> Model {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("bitnetd-rig-{}-{number}.gguf", std::process::id());
    let path = std::env::temp_dir().join(name);
    synth::write(&path, preset, TensorType::I2S, TensorType::F16, 11, |_, _| {}).unwrap();
    let model = load(Some(&path));
    std::fs::remove_file(&path).unwrap();
    model
}

fn tiny(name: &str) -> Model {
    load(Some(&folder().join(name)))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracle/models")
}

/// Pseudo-random numbers (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).unwrap()
    }

    fn tokens(&mut self, model: &Model, len: usize) -> Vec<u32> {
        (0..len).map(|_| u32::try_from(self.below(model.weights.params.vocab)).unwrap()).collect()
    }
}

const TINY: [&str; 3] = ["tiny-b158-i2_s.gguf", "tiny-bitnet-i2_s.gguf", "tiny-llama-hd-i2_s.gguf"];
const EMBEDDING: [Preset; 2] = [Preset::TinyQwen3, Preset::TinyGemma3];
const GENERATION: GenerationId = GenerationId(0);
const SEQUENCES: usize = 33;
const ANSWER_TOKENS: usize = 12;
