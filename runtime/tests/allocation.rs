//! A steady decode allocates nothing: neither who says what the next step computes, nor the forward pass, on any of its
//! workers, nor the sampler.
#![expect(unsafe_code, reason = "a global allocator that counts")]
#![expect(clippy::unwrap_used, reason = "a model that cannot be loaded fails the test")]

mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use std::time::{Duration, Instant};

use harness::{ROWS_MAX, Rig, load};
use kernels::Isa;
use kernels::attention::KvType;
use runtime::forward::{Limits, Step};
use runtime::kv::{KvCache, blocks_for};
use runtime::model::Model;
use runtime::sampler::{History, Sampler, SamplingParams};
use runtime::schedule::{NewSequence, Pace, Scheduler, StreamId};
use runtime::speculate::{Speculation, Speculator};

/// The system's allocator, which counts what the whole process asks of it while told to.
struct Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    if COUNTING.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

/// One test alone in this binary, so that nothing else allocates between the marks.
#[test]
fn steady_decode_allocates_nothing() {
    let model = load(None);
    steps_and_samples(&model);
    for (sequences, speculation) in [(1, Speculation::Auto), (2, Speculation::Fixed(3)), (5, Speculation::Off)] {
        scheduled_steps(&model, sequences, speculation);
    }
}

fn steps_and_samples(model: &Model) {
    let vocab = model.weights.params.vocab;
    // The last one is long enough for its attention to be cut.
    for (sequences, draft, prompt_len) in [(1, 0, 7), (5, 0, 7), (1, 3, 7), (1, 3, 700)] {
        let positions = prompt_len + WARM_STEPS + 40;
        let prompt: Vec<u32> = PROMPT.into_iter().cycle().take(prompt_len).collect();
        let mut rig = Rig::new(model, Isa::detect(), 2, sequences, positions + draft);
        let mut sampler = Sampler::new(vocab);
        let params: Vec<SamplingParams> = (0..sequences).map(params_of).collect();
        let mut histories: Vec<History> = (0..sequences).map(|_| History::with_capacity(positions)).collect();
        for (slot, history) in histories.iter_mut().enumerate() {
            rig.feed(slot, 0, &prompt, ROWS_MAX);
            history.push_prompt(&prompt);
        }
        let mut next = vec![PROMPT[0]; sequences];
        let mut step = Step::default();
        for position in prompt_len..positions {
            COUNTING.store(position >= prompt_len + WARM_STEPS, Ordering::Relaxed);
            step.clear();
            for (slot, token) in next.iter().enumerate() {
                step.push(slot, position, &[*token], true);
                PROMPT[..draft].iter().for_each(|token| step.push_draft(*token));
            }
            rig.forward.run(&rig.team, &rig.model.weights, &mut rig.kv, &step, &|_, _, _| {});
            for (slot, history) in histories.iter_mut().enumerate() {
                let logits = rig.forward.logits(slot * (1 + draft));
                next[slot] = sampler.sample(logits, &params[slot], history, position as u64).unwrap().token;
                history.push_output(next[slot]);
            }
        }
        COUNTING.store(false, Ordering::Relaxed);
        assert_eq!(ALLOCATIONS.swap(0, Ordering::Relaxed), 0, "{sequences} sequences, drafts of {draft}");
    }
}

/// Steps as a lane forms them: admitted, budgeted, drafted, with blocks taken and made known. From the first step on in
/// which all sequences decode nothing grows any more.
fn scheduled_steps(model: &Model, sequences: usize, speculation: Speculation) {
    let (vocab, tokens_max) = (model.weights.params.vocab, 3 * kernels::attention::BLOCK);
    let mut rig = Rig::new(model, Isa::detect(), 2, 1, 1);
    let context = PROMPT.len() + tokens_max;
    let blocks = sequences * blocks_for(context);
    rig.kv = KvCache::new(&model.weights.params, KvType::F16, context, sequences, blocks).with_prefixes();
    let mut scheduler = Scheduler::new(sequences, sequences);
    let mut speculator = Speculator::new(speculation, speculation.rows_max());
    let mut pace = Pace::new(Duration::from_millis(50));
    let mut step = Step::with_capacity(Limits { rows_max: ROWS_MAX, logits_max: ROWS_MAX });
    let mut sampler = Sampler::new(vocab);
    for i in 0..sequences {
        let mut prompt = PROMPT.to_vec();
        prompt[3] += u32::try_from(i).unwrap();
        let stream = StreamId(i as u64);
        scheduler.submit(NewSequence::new(stream, prompt, tokens_max, params_of(i), Instant::now())).unwrap();
    }
    let (mut counted, mut drafted) = (0, 0);
    loop {
        let started = Instant::now();
        scheduler.admit(rig.kv.tables_mut(), |_| {});
        let decodes = scheduler.decoding() == sequences;
        COUNTING.store(decodes, Ordering::Relaxed);
        let budget = pace.prompt_budget(&scheduler.demand(), 0.0, ROWS_MAX);
        speculator.plan(&mut scheduler, ROWS_MAX);
        assert!(scheduler.form(&mut step, rig.kv.tables_mut(), ROWS_MAX, budget), "there is something to compute");
        rig.forward.run(&rig.team, &rig.model.weights, &mut rig.kv, &step, &|_, _, _| {});
        pace.observe(&scheduler.rows_of(&step), started.elapsed());
        speculator.observe(step.tokens.len(), step.tokens.len() - step.segments.len(), started.elapsed());
        let (mut logits, mut over) = (0, false);
        for segment in &step.segments {
            let sequence = scheduler.sequence_mut(segment.slot).unwrap();
            let rows = if sequence.pending() == 1 { segment.rows } else { 1 };
            sequence.computed += segment.rows - rows;
            (counted, drafted) = (counted + rows * usize::from(decodes), drafted + rows - 1);
            let (mut given, mut count) = ([0; 16], 0);
            for ahead in 0..rows {
                let position = sequence.tokens.len() as u64;
                let scores = rig.forward.logits(logits + ahead);
                let token = sampler.sample(scores, &sequence.sampling, &sequence.history, position).unwrap().token;
                sequence.computed += 1;
                sequence.push(token);
                (given[count], count) = (token, count + 1);
                over |= sequence.generated() + 16 > tokens_max;
                if sequence.draft.rows().get(ahead) != Some(&token) {
                    break;
                }
            }
            speculator.learn(&mut sequence.draft, &given[..count]);
            logits += rows;
        }
        COUNTING.store(false, Ordering::Relaxed);
        if over {
            break;
        }
    }
    let what = format!("{sequences} sequences, {speculation:?}");
    assert_eq!(ALLOCATIONS.swap(0, Ordering::Relaxed), 0, "{what}");
    assert!(counted >= 2 * kernels::attention::BLOCK, "{what}: {counted} rows");
    assert!(drafted > 0 || !matches!(speculation, Speculation::Fixed(_)), "{what}: no drafts");
}

/// Every path of the sampler in turn.
fn params_of(slot: usize) -> SamplingParams {
    let base = SamplingParams { temperature: 0.8, seed: slot as u64, ..SamplingParams::default() };
    match slot {
        0 => base,
        1 => SamplingParams { temperature: 0.0, logprobs: Some(5), ..base },
        2 => SamplingParams { top_k: 40, top_p: 0.95, ..base },
        3 => SamplingParams { min_p: 0.05, repetition_penalty: 1.1, presence_penalty: 0.5, logprobs: Some(2), ..base },
        _ => SamplingParams { top_p: 0.9, frequency_penalty: 0.3, ..base },
    }
}

const PROMPT: [u32; 7] = [0, 427, 434, 262, 381, 16, 436];
/// Steps after which every buffer has its size.
const WARM_STEPS: usize = 4;
