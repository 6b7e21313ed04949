//! A steady decode allocates nothing: neither the forward pass, on any of its workers, nor the sampler.
#![expect(unsafe_code, reason = "a global allocator that counts")]
#![expect(clippy::unwrap_used, reason = "a model that cannot be loaded fails the test")]

mod harness;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::{ROWS_MAX, Rig, load};
use kernels::Isa;
use runtime::forward::Step;
use runtime::sampler::{History, Sampler, SamplingParams};

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
    let vocab = model.weights.params.vocab;
    for (sequences, draft) in [(1, 0), (5, 0), (1, 3)] {
        let mut rig = Rig::new(&model, Isa::detect(), 2, sequences, POSITIONS + draft);
        let mut sampler = Sampler::new(vocab);
        let params: Vec<SamplingParams> = (0..sequences).map(params_of).collect();
        let mut histories: Vec<History> = (0..sequences).map(|_| History::with_capacity(POSITIONS)).collect();
        for (slot, history) in histories.iter_mut().enumerate() {
            rig.feed(slot, 0, &PROMPT, ROWS_MAX);
            history.push_prompt(&PROMPT);
        }
        let mut next = vec![PROMPT[0]; sequences];
        let mut step = Step::default();
        for position in PROMPT.len()..POSITIONS {
            COUNTING.store(position >= PROMPT.len() + WARM_STEPS, Ordering::Relaxed);
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
const POSITIONS: usize = PROMPT.len() + WARM_STEPS + 40;
