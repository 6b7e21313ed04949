//! The scheduler case by case.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use net::api::Constraint;

use super::*;
use crate::guide::tests::{default_tokenizer, letter};
use crate::guide::{Beside, Library};
use crate::sampler::SamplingParams;

fn cache(slots: usize, blocks: usize) -> BlockTables {
    BlockTables::new(128, slots, blocks)
}

fn sequence(id: u64, prompt: usize, tokens_max: usize, priority: Priority) -> NewSequence {
    with_tokens(id, (0..prompt as u32).collect(), tokens_max, priority)
}

fn with_tokens(id: u64, tokens: Vec<u32>, tokens_max: usize, priority: Priority) -> NewSequence {
    let new = NewSequence::new(StreamId(id), tokens, tokens_max, SamplingParams::default(), start());
    NewSequence { priority, ..new }
}

/// One moment for all.
fn start() -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    *START
}

fn submit(scheduler: &mut Scheduler, id: u64, prompt: usize, tokens_max: usize) {
    scheduler.submit(sequence(id, prompt, tokens_max, Priority::Normal)).unwrap();
}

fn admitted(scheduler: &mut Scheduler, kv: &mut BlockTables) -> Vec<u64> {
    let mut ids = Vec::new();
    scheduler.admit(kv, |stream| ids.push(stream.0));
    ids
}

/// Pretends that the step was computed and every complete sequence got token 7.
fn compute(scheduler: &mut Scheduler, step: &Step) {
    for segment in &step.segments {
        let sequence = scheduler.sequence_mut(segment.slot).unwrap();
        assert_eq!(segment.first_position, sequence.computed);
        sequence.computed += segment.rows;
        if sequence.computed == sequence.tokens.len() {
            sequence.push(7);
        }
    }
}

#[test]
fn a_full_queue_gives_the_sequence_back_and_free_slots_are_places_in_it() {
    let (mut scheduler, mut kv) = (Scheduler::new(1, 1), cache(1, 4));
    submit(&mut scheduler, 1, 4, 4);
    submit(&mut scheduler, 2, 4, 4);
    let refused = scheduler.submit(sequence(3, 4, 4, Priority::High)).unwrap_err();
    assert_eq!(refused.0.stream, StreamId(3));
    assert_eq!(admitted(&mut scheduler, &mut kv), [1]);
    assert!(scheduler.submit(sequence(3, 4, 4, Priority::High)).is_err());
    scheduler.cancel(StreamId(1), &mut kv);
    submit(&mut scheduler, 3, 4, 4);

    let mut scheduler = Scheduler::new(1, 0);
    submit(&mut scheduler, 1, 4, 4);
    assert!(scheduler.submit(sequence(2, 4, 4, Priority::High)).is_err());
}

#[test]
fn higher_priorities_go_first_and_equals_in_order_of_arrival() {
    let (mut scheduler, mut kv) = (Scheduler::new(4, 8), cache(4, 16));
    for (id, priority) in [(1, Priority::Low), (2, Priority::Normal), (3, Priority::High), (4, Priority::Normal)] {
        scheduler.submit(sequence(id, 4, 4, priority)).unwrap();
    }
    assert_eq!(admitted(&mut scheduler, &mut kv), [3, 2, 4, 1]);
}

#[test]
fn decode_rows_come_before_chunks_and_the_budget_bounds_the_chunks() {
    let (mut scheduler, mut kv) = (Scheduler::new(3, 8), cache(3, 12));
    let mut step = Step::default();
    submit(&mut scheduler, 1, 3, 8);
    admitted(&mut scheduler, &mut kv);
    assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(64)));
    compute(&mut scheduler, &step);
    submit(&mut scheduler, 2, 50, 8);
    submit(&mut scheduler, 3, 10, 8);
    admitted(&mut scheduler, &mut kv);
    assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(20)));
    let rows: Vec<usize> = step.segments.iter().map(|segment| segment.rows).collect();
    assert_eq!((rows, step.logits.as_slice()), (vec![1, 20], &[0][..]));
    compute(&mut scheduler, &step);
    assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(40)));
    let rows: Vec<usize> = step.segments.iter().map(|segment| segment.rows).collect();
    assert_eq!(rows, [1, 30, 10]);
    assert_eq!(step.logits, [0, 30, 40]);
}

#[test]
fn blocks_are_taken_as_positions_come_and_nobody_is_let_in_to_be_pushed_out() {
    let (mut scheduler, mut kv) = (Scheduler::new(2, 8), cache(2, 4));
    let mut step = Step::default();
    submit(&mut scheduler, 1, 60, 60);
    submit(&mut scheduler, 2, 40, 60);
    // The first will soon have three blocks, the second would want as many.
    assert_eq!((admitted(&mut scheduler, &mut kv), kv.blocks_free()), (vec![1], 4));
    assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(40)));
    assert_eq!(kv.blocks_free(), 2);
    scheduler.cancel(StreamId(1), &mut kv);
    assert_eq!((admitted(&mut scheduler, &mut kv), kv.blocks_free()), (vec![2], 4));
}

#[test]
fn the_one_that_ranks_last_is_pushed_out_and_goes_on_first_with_what_it_has() {
    let (mut scheduler, mut kv) = (Scheduler::new(3, 8), cache(3, 4));
    let mut step = Step::default();
    scheduler.submit(sequence(1, 31, 90, Priority::Low)).unwrap();
    scheduler.submit(with_tokens(2, vec![9; 31], 90, Priority::Normal)).unwrap();
    assert_eq!(admitted(&mut scheduler, &mut kv), [2, 1]);
    submit(&mut scheduler, 3, 31, 90);
    let (mut steps, mut preempted) = (0, 0);
    while preempted == 0 {
        assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(64)));
        compute(&mut scheduler, &step);
        preempted += scheduler.take_counts().preempted;
        steps += 1;
        assert!(steps < 100, "the blocks run short");
    }
    let rest = scheduler.sequence(0).unwrap();
    assert_eq!((rest.stream.0, scheduler.running(), scheduler.waiting()), (2, 1, 2), "the low one was pushed out");
    let generated = rest.generated();
    scheduler.cancel(StreamId(2), &mut kv);
    assert_eq!(admitted(&mut scheduler, &mut kv), [3], "the one of higher priority goes first");
    scheduler.cancel(StreamId(3), &mut kv);
    assert_eq!(admitted(&mut scheduler, &mut kv), [0; 0], "it was admitted before");
    let low = (0..3).find_map(|slot| scheduler.sequence(slot).filter(|s| s.stream.0 == 1)).unwrap();
    assert_eq!((low.tokens.len(), low.prompt_len, low.tokens_max), (31 + generated - 1, 31, 90));
}

#[test]
fn a_low_priority_waits_long_but_not_for_ever() {
    let (mut scheduler, mut kv) = (Scheduler::new(4, 8), cache(4, 16));
    let later = |seconds| start() + Duration::from_secs(seconds);
    for (id, priority, arrival) in
        [(1, Priority::Low, 0), (2, Priority::High, 59), (3, Priority::High, 61), (4, Priority::Normal, 44)]
    {
        let new = sequence(id, 4, 4, priority);
        scheduler.submit(NewSequence { arrival: later(arrival), ..new }).unwrap();
    }
    assert_eq!(admitted(&mut scheduler, &mut kv), [2, 4, 1, 3]);
}

#[test]
fn a_short_prompt_goes_before_a_long_one_that_came_shortly_before_and_no_other() {
    let (mut scheduler, mut kv) = (Scheduler::new(4, 8), cache(4, 16));
    let budget = PromptBudget {
        seconds: 0.1,
        row_s: 0.01,
        position_s: 0.0,
        rows_min: 1,
        seconds_most: f64::INFINITY,
        rows_max: 99,
    };
    scheduler.form(&mut Step::default(), &mut kv, 64, budget);
    // The long one takes a second, so others may go first for four.
    for (id, length, arrival_ms) in [(1, 100, 0), (2, 10, 3500), (3, 10, 3700)] {
        let arrival = start() + Duration::from_millis(arrival_ms);
        scheduler.submit(NewSequence { arrival, ..sequence(id, length, 8, Priority::Normal) }).unwrap();
    }
    assert_eq!(admitted(&mut scheduler, &mut kv), [2, 1, 3]);
    let mut step = Step::default();
    assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget { seconds: 0.155, ..budget }));
    let rows: Vec<(u64, usize)> =
        step.segments.iter().map(|s| (scheduler.sequence(s.slot).unwrap().stream.0, s.rows)).collect();
    assert_eq!(rows, [(2, 10), (1, 5)], "so they do for rows");
}

#[test]
fn a_client_that_has_had_much_waits_for_those_who_have_had_little() {
    let (mut scheduler, mut kv) = (Scheduler::new(1, 99), cache(1, 4));
    let mut step = Step::default();
    let submit = |scheduler: &mut Scheduler, id: u64, client: u64, priority| {
        let new = sequence(id, 100, 2, priority);
        scheduler.submit(NewSequence { client: ClientId(client), ..new }).unwrap();
    };
    (0..40).for_each(|id| submit(&mut scheduler, id, 1, Priority::High));
    let mut order = Vec::new();
    while scheduler.running() + scheduler.waiting() > 0 {
        order.extend(admitted(&mut scheduler, &mut kv));
        if order.len() == 15 && scheduler.waiting() == 25 {
            (100..105).for_each(|id| submit(&mut scheduler, id, 2, Priority::Low));
        }
        while scheduler.running() > 0 {
            assert!(scheduler.form(&mut step, &mut kv, 256, PromptBudget::of_rows(256)));
            compute(&mut scheduler, &step);
            if scheduler.sequence(0).unwrap().generated() == 2 {
                scheduler.finish(0, &mut kv);
            }
        }
    }
    let of_late: Vec<usize> = (0..order.len()).filter(|at| order[*at] >= 100).collect();
    // Each has 101 rows; the first client may be ahead by 1024 and the one that it has begun.
    assert_eq!((order.len(), of_late[0]), (45, 25), "{order:?}");
    assert!(of_late[4] <= 33, "{of_late:?}");
}

#[test]
fn sequences_that_begin_alike_compute_it_once() {
    let (mut scheduler, mut kv) = (Scheduler::new(3, 8), BlockTables::new(256, 3, 24).with_prefixes());
    let mut step = Step::default();
    for (id, last) in [(1, 7), (2, 8), (3, 9)] {
        let tokens: Vec<u32> = (0..100).chain([last]).collect();
        scheduler.submit(with_tokens(id, tokens, 8, Priority::Normal)).unwrap();
    }
    assert_eq!(admitted(&mut scheduler, &mut kv), [1, 2, 3]);
    assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(64)));
    let rows = |step: &Step| step.segments.iter().map(|segment| (segment.slot, segment.rows)).collect::<Vec<_>>();
    assert_eq!(rows(&step), [(0, 64)], "the others wait for the same blocks");
    compute(&mut scheduler, &step);
    assert!(scheduler.form(&mut step, &mut kv, 256, PromptBudget::of_rows(256)));
    assert_eq!(rows(&step), [(0, 37)], "so they do for its third block");
    compute(&mut scheduler, &step);
    assert!(scheduler.form(&mut step, &mut kv, 256, PromptBudget::of_rows(256)));
    assert_eq!(rows(&step), [(0, 1), (1, 5), (2, 5)]);
    assert_eq!([0, 1, 2].map(|slot| scheduler.sequence(slot).unwrap().cached()), [0, 96, 96]);
    assert_eq!(scheduler.take_counts(), Counts { prefix_queries: 303, prefix_hits: 192, ..Counts::default() });
    compute(&mut scheduler, &step);
    (0..3).for_each(|slot| scheduler.finish(slot, &mut kv));
    assert_eq!(kv.blocks_free(), 24);
    scheduler.submit(with_tokens(4, (0..97).collect(), 8, Priority::Normal)).unwrap();
    admitted(&mut scheduler, &mut kv);
    assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(64)));
    assert_eq!((rows(&step), step.logits.as_slice()), (vec![(0, 1)], &[0][..]), "at least the last token is computed");
}

#[test]
fn cancelling_frees_whatever_the_stream_held_wherever_it_is() {
    let (mut scheduler, mut kv) = (Scheduler::new(1, 8), cache(1, 4));
    submit(&mut scheduler, 1, 4, 4);
    submit(&mut scheduler, 2, 4, 4);
    admitted(&mut scheduler, &mut kv);
    for id in [2, 1, 9] {
        scheduler.cancel(StreamId(id), &mut kv);
    }
    assert_eq!((scheduler.running(), scheduler.waiting(), kv.blocks_free()), (0, 0, 4));
    assert!(!scheduler.form(&mut Step::default(), &mut kv, 8, PromptBudget::of_rows(8)));
}

#[test]
fn a_sequence_taken_out_goes_on_elsewhere_with_the_same_tokens_and_limits() {
    let (mut scheduler, mut kv) = (Scheduler::new(1, 8), cache(1, 4));
    submit(&mut scheduler, 1, 3, 5);
    submit(&mut scheduler, 2, 4, 4);
    admitted(&mut scheduler, &mut kv);
    let mut step = Step::default();
    for _ in 0..2 {
        assert!(scheduler.form(&mut step, &mut kv, 8, PromptBudget::of_rows(8)));
        compute(&mut scheduler, &step);
    }
    let taken = scheduler.take_all(&mut kv);
    assert_eq!((scheduler.running(), scheduler.waiting(), kv.blocks_free()), (0, 0, 4));
    assert_eq!((taken[0].tokens.as_slice(), taken[0].generated, taken[1].stream.0), (&[0, 1, 2, 7, 7][..], 2, 2));

    let (mut other, mut kv) = (Scheduler::new(1, 0), cache(1, 4));
    submit(&mut other, 3, 4, 4);
    taken.into_iter().rev().for_each(|sequence| other.resume(sequence));
    assert_eq!(admitted(&mut other, &mut kv), [1]);
    let sequence = other.sequence(0).unwrap();
    assert_eq!((sequence.prompt_len, sequence.generated(), sequence.tokens_max), (3, 2, 5));
    assert!(other.form(&mut step, &mut kv, 8, PromptBudget::of_rows(8)));
    assert_eq!((step.tokens.as_slice(), step.logits.as_slice()), (&[0, 1, 2, 7, 7][..], &[4][..]));
    assert_eq!(other.waiting(), 2, "nothing resumed is refused, and those who waited go on waiting");
}

#[test]
fn a_prompt_that_is_scored_takes_no_more_rows_than_may_have_logits_and_is_never_scored_twice() {
    let (mut scheduler, mut kv) = (Scheduler::new(2, 4).with_logits(6), cache(2, 8).with_prefixes());
    let budget = PromptBudget::of_rows(64);
    let scored =
        |id: u64| NewSequence { scoring: Some(Scoring { top: 0, done: 0 }), ..sequence(id, 40, 2, Priority::Normal) };
    scheduler.submit(sequence(1, 40, 2, Priority::Normal)).unwrap();
    assert_eq!(admitted(&mut scheduler, &mut kv), [1]);
    let mut step = Step::default();
    scheduler.submit(scored(2)).unwrap();
    admitted(&mut scheduler, &mut kv);
    let (mut wanted, mut pushed_out) = (Vec::new(), false);
    while scheduler.form(&mut step, &mut kv, 64, budget) {
        assert!(step.logits.len() <= 6 && step.logits.is_sorted(), "{step:?}");
        for segment in step.segments.clone() {
            let sequence = scheduler.sequence_mut(segment.slot).unwrap();
            if sequence.stream == StreamId(2) {
                let positions = sequence.scored(sequence.computed..sequence.computed + segment.rows);
                let rows: Vec<usize> =
                    positions.clone().map(|at| segment.first_row + at - segment.first_position).collect();
                assert!(rows.iter().all(|row| step.logits.contains(row)));
                wanted.extend(positions.clone());
                sequence.scoring.as_mut().unwrap().done = positions.end.max(sequence.scoring.unwrap().done);
            }
        }
        compute(&mut scheduler, &step);
        if wanted.len() >= 10 && !std::mem::replace(&mut pushed_out, true) {
            scheduler.preempt_last(&mut kv);
            admitted(&mut scheduler, &mut kv);
        }
        let done: Vec<usize> =
            (0..2).filter(|slot| scheduler.sequence(*slot).is_some_and(|s| s.generated() > 1)).collect();
        done.into_iter().for_each(|slot| scheduler.finish(slot, &mut kv));
    }
    assert_eq!(wanted, (0..39).collect::<Vec<_>>(), "each position but the last, once");
}

#[test]
fn what_answers_leave_is_found_by_prompts_only_where_both_are_computed_alike() {
    for (alike, cached) in [(true, 64), (false, 32)] {
        let (scheduler, mut kv) = (Scheduler::new(1, 4), BlockTables::new(128, 1, 8).with_prefixes());
        let mut scheduler = if alike { scheduler } else { scheduler.sharing_prompts_only() };
        let mut step = Step::default();
        let mut run = |scheduler: &mut Scheduler, kv: &mut BlockTables, new: NewSequence, steps: usize| {
            scheduler.submit(new).unwrap();
            admitted(scheduler, kv);
            let found = scheduler.sequence(0).unwrap().computed;
            for _ in 0..steps {
                scheduler.form(&mut step, kv, 128, PromptBudget::of_rows(128));
                compute(scheduler, &step);
            }
            scheduler.finish(0, kv);
            found
        };
        assert_eq!(run(&mut scheduler, &mut kv, sequence(1, 32, 40, Priority::Normal), 37), 0);
        let tokens: Vec<u32> = (0..32).chain([7; 36]).collect();
        let longer = with_tokens(2, tokens.clone(), 4, Priority::Normal);
        assert_eq!(run(&mut scheduler, &mut kv, longer, 2), cached);
        let resumed = NewSequence { generated: 36, ..with_tokens(3, tokens, 40, Priority::Normal) };
        assert_eq!(run(&mut scheduler, &mut kv, resumed, 1), cached);
    }
}

#[test]
fn sets_that_take_long_take_turns_and_free_sequences_are_in_every_step() {
    let tokenizer = default_tokenizer();
    let letter = letter(&tokenizer, b'a');
    let (mut library, any) = (Library::default(), Constraint::Regex("(?s:.*)".into()));
    let mut guides = library.guides((&tokenizer, tokenizer.vocab_len()), &any, 4).unwrap();
    let (mut scheduler, mut kv) = (Scheduler::new(6, 0), cache(6, 24));
    for id in 0..6 {
        // Two are free, and one of those with a guide is quick.
        let guide = (id < 4).then(|| Guided::from(guides.pop().unwrap()));
        scheduler.submit(NewSequence { guide, ..sequence(id, 2, 100, Priority::Normal) }).unwrap();
    }
    assert_eq!(admitted(&mut scheduler, &mut kv).len(), 6);
    let mut step = Step::default();
    let mut run = |most_us: u64, free: usize, steps: usize| {
        let mut counts = [0; 6];
        for _ in 0..steps {
            scheduler.limit_sets(Duration::from_micros(most_us), Company::Nobody);
            assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(64)));
            for segment in &step.segments {
                let sequence = scheduler.sequence_mut(segment.slot).unwrap();
                sequence.computed += segment.rows;
                sequence.push(letter);
                if let Some(guide) = &mut sequence.guide {
                    let us = if segment.slot == 3 { 30 } else { 1_500 };
                    guide.get_mut().pretend_that_it_took(Duration::from_micros(us));
                }
                counts[segment.slot] += 1;
            }
        }
        (free..6).for_each(|slot| scheduler.finish(slot, &mut kv));
        counts
    };
    assert_eq!(run(1_500, 6, 1), [1; 6]);
    assert_eq!(run(4_500, 6, 6), [6; 6], "there is room for all");
    assert_eq!(run(1_500, 3, 14), [4, 4, 4, 14, 14, 14]);
    assert!(run(1_500, 3, 12)[..3].iter().all(|count| *count == 12), "nobody else is there: all have the same turns");
}

#[test]
fn sets_that_are_alike_are_spread_over_the_steps_of_others() {
    let tokenizer = default_tokenizer();
    let letter = letter(&tokenizer, b'a');
    let (mut library, any) = (Library::default(), Constraint::Regex("(?s:.*)".into()));
    let mut guides = library.guides((&tokenizer, tokenizer.vocab_len()), &any, 16).unwrap();
    let (mut scheduler, mut kv) = (Scheduler::new(17, 0), cache(17, 80));
    for id in 0..17 {
        // The last one is free.
        let guide = guides.pop().map(Guided::from);
        scheduler.submit(NewSequence { guide, ..sequence(id, 2, 100, Priority::Normal) }).unwrap();
    }
    assert_eq!(admitted(&mut scheduler, &mut kv).len(), 17);
    let (mut step, mut most, mut counts) = (Step::default(), 0, [0; 17]);
    for turn in 0..65 {
        scheduler.limit_sets(Duration::from_micros(6_000), Company::Nobody);
        assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(64)));
        let mut guided = 0;
        for segment in &step.segments {
            let sequence = scheduler.sequence_mut(segment.slot).unwrap();
            sequence.computed += segment.rows;
            sequence.push(letter);
            if let Some(guide) = &mut sequence.guide {
                guide.get_mut().pretend_that_it_took(Duration::from_micros(3_000));
                guided += 1;
            }
            counts[segment.slot] += 1;
        }
        if turn > 0 {
            most = most.max(guided);
        }
    }
    assert_eq!(most, 2);
    assert!(counts[16] == 65 && counts[..16].iter().all(|count| (8..=9).contains(count)), "{counts:?}");
}

#[test]
fn who_is_pushed_out_while_its_guide_is_beside_goes_on_with_it() {
    let tokenizer = default_tokenizer();
    let (mut library, any) = (Library::default(), Constraint::Regex("(?s:.*)".into()));
    let guide = library.guides((&tokenizer, tokenizer.vocab_len()), &any, 1).unwrap().pop().unwrap();
    let mut beside = Beside::start(78, 1, &Arc::default()).unwrap();
    let (mut scheduler, mut kv) = (Scheduler::new(1, 0), cache(1, 8));
    let guide = Some(Guided::from(guide));
    scheduler.submit(NewSequence { guide, ..sequence(1, 2, 100, Priority::Normal) }).unwrap();
    assert_eq!(admitted(&mut scheduler, &mut kv), [1]);
    let mut step = Step::default();
    assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(64)));
    let slow = scheduler.sequence_mut(0).unwrap();
    slow.computed += 2;
    slow.push(letter(&tokenizer, b'a'));
    for _ in 0..2 {
        slow.guide.as_mut().unwrap().get_mut().pretend_that_it_took(Duration::from_millis(40));
    }
    scheduler.step_aside(&mut beside, true);
    let slow = scheduler.sequence(0).unwrap();
    assert!(slow.waits_for_guide());
    assert!(!scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(64)), "there is nothing else to compute");
    scheduler.preempt_last(&mut kv);
    while !beside.take_news() {
        std::thread::yield_now();
    }
    scheduler.take_guides_back();
    let counts = scheduler.take_counts();
    assert_eq!((counts.preempted, counts.guides_beside), (1, 1));
    assert!(admitted(&mut scheduler, &mut kv).is_empty(), "it is not new");
    assert!(scheduler.form(&mut step, &mut kv, 64, PromptBudget::of_rows(64)));
    assert_eq!(step.tokens.len(), 3, "its prompt and its token");
}
