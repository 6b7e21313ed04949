//! Answers that must look like something, on the mock device.

use net::api::Constraint;

use super::*;
use crate::engine::faults::{self, Turn};
use crate::guide::tests::letter;
use crate::guide::{Guide, Guided, Library, SETS_TIME_MAX};
use crate::mailbox::LeaderBell;

impl Scene {
    fn guides(&self, constraint: &Constraint, count: usize) -> Vec<Guide> {
        let model = &self.assignment.model;
        Library::default().guides((&model.tokenizer, model.weights.params.vocab), constraint, count).unwrap()
    }

    fn start_guided(&mut self, id: u64, guide: Guide, tokens_max: usize) {
        let sampling = SamplingParams { seed: id, ..SamplingParams::default() };
        let sequence = NewSequence::new(StreamId(id), vec![50], tokens_max, sampling, self.now);
        self.submit(NewSequence { guide: Some(Guided::from(guide)), ..sequence });
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.feeder.turn(self.now, &mut self.queues);
            self.now += Duration::from_millis(2);
        }
    }

    fn letter(&self) -> u32 {
        letter(&self.assignment.model.tokenizer, b'e')
    }

    /// Turns until `done`, for which threads may need time.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
            self.turns(1);
            std::thread::yield_now();
        }
    }

    /// One whose stream 1 is free, and whose stream 2 waits for a guide that computes for long.
    fn with_one_beside() -> Self {
        let mut scene = Self::new();
        let guide = scene.guides(&ambiguous(), 1).remove(0);
        scene.settle();
        scene.start(1, &[10], 200);
        scene.start_guided(2, slow(guide, scene.letter(), 20).taking(Duration::from_millis(400)), 100);
        scene.until("no guide is beside", |scene| scene.status.beside.get() == 1);
        scene
    }

    fn take_returned(&mut self, id: u64) -> NewSequence {
        let of = |event: &Event| matches!(event, Event::Returned(sequence) if sequence.stream.0 == id);
        let at = self.queues.events.iter().position(of).unwrap();
        let Event::Returned(sequence) = self.queues.events.remove(at) else { unreachable!() };
        *sequence
    }

    fn last_of(&self, id: u64) -> Option<&Event> {
        self.queues.events.iter().find(|event| event.stream() == StreamId(id) && event.is_last())
    }
}

/// An answer with so many letters so far, whose sets have taken long; what may come next is known.
fn slow(guide: Guide, letter: u32, letters: usize) -> Guide {
    let mut guide = guide;
    (0..letters).for_each(|_| guide.push(letter));
    assert!(guide.allowed().is_some());
    (0..2).for_each(|_| guide.pretend_that_it_took(Duration::from_millis(40)));
    guide
}

fn hex() -> Constraint {
    Constraint::Regex("[0-9a-f]{40}".into())
}

/// So ambiguous that what may follow some hundred letters takes long to find.
fn ambiguous() -> Constraint {
    Constraint::Grammar("# lark\nstart: e \"~\"\ne: e e | /[a-z ]/".into())
}

#[test]
fn a_guide_keeps_its_sequence_on_the_device_to_its_form_and_goes_back_with_it() {
    let mut scene = Scene::new();
    let tokenizer = Arc::clone(&scene.assignment.model.tokenizer);
    let mut guides = scene.guides(&hex(), 2);
    scene.settle();
    scene.start(1, &[10], 100);
    scene.start_guided(2, guides.pop().unwrap(), 100);
    scene.turns(8);
    scene.feeder.device_mut().mood = Mood::Fails;
    scene.feeder.turn(scene.now, &mut scene.queues);
    let tokens = scene.tokens(2);
    let text: Vec<u8> = tokens.iter().flat_map(|token| tokenizer.piece(*token)).copied().collect();
    assert!(tokens.len() > 1 && text.iter().all(u8::is_ascii_hexdigit), "{tokens:?}");
    let mut returned = scene.take_returned(2);
    let guide = returned.guide.as_mut().unwrap().get_mut();
    let mut same = guides.pop().unwrap();
    tokens.iter().for_each(|token| same.push(*token));
    assert_eq!(guide.allowed(), same.allowed());
    assert!(scene.tokens(1).starts_with(&[11, 12]), "the other one is as it was");
}

#[test]
fn what_was_chosen_ahead_of_a_guide_is_dropped() {
    let mut scene = Scene::new();
    let tokenizer = Arc::clone(&scene.assignment.model.tokenizer);
    let guide = scene.guides(&hex(), 1).remove(0);
    // The device counts up from the prompt until the answer says this.
    let open: &str = String::from_utf8(tokenizer.piece(54).to_vec()).unwrap().leak();
    let before = |id: u32| String::from_utf8_lossy(tokenizer.piece(id)).contains(open);
    assert!(!open.is_empty() && !(51..54).any(before));
    scene.settle();
    scene.start(1, &[10], 100);
    let sequence = NewSequence::new(StreamId(2), vec![50], 30, greedy(), scene.now);
    scene.submit(NewSequence { stop_at_end: false, guide: Some(Guided::from(guide.behind(open))), ..sequence });
    scene.turns(60);
    let tokens = scene.tokens(2);
    assert!(tokens.len() > 10 && tokens.starts_with(&[51, 52, 53, 54]), "{tokens:?}");
    let text: Vec<u8> = tokens[4..].iter().flat_map(|token| tokenizer.piece(*token)).copied().collect();
    assert!(text.iter().all(u8::is_ascii_hexdigit), "{tokens:?}");
    assert!(scene.tokens(1).starts_with(&[11, 12, 13, 14, 15, 16]), "the other one is as it was");
}

#[test]
fn a_slow_guide_is_away_between_its_tokens_and_changes_none() {
    let answers = [false, true].map(|is_slow| {
        let mut scene = Scene::new();
        let guide = scene.guides(&hex(), 1).remove(0);
        scene.settle();
        scene.start(1, &[10], 150);
        let slow = |guide| slow(guide, 0, 0).taking(Duration::from_millis(22));
        scene.start_guided(2, if is_slow { slow(guide) } else { guide }, 100);
        scene.until("streams don't end", |scene| scene.status.in_flight() == 0);
        assert_eq!((scene.status.guides_beside.get() > 3, scene.status.beside.get()), (is_slow, 0));
        assert_eq!(scene.tokens(1), (11..161).collect::<Vec<_>>());
        // A slow one knows its end a step later.
        let ended = matches!(
            scene.last_of(2),
            Some(Event::Token { finish: Some(Finish::Stop), .. } | Event::End { finish: Finish::Stop, .. })
        );
        assert!(ended, "{:?}", scene.last_of(2));
        scene.tokens(2)
    });
    assert!(answers[0].len() > 10 && answers[0] == answers[1], "{answers:?}");
}

#[test]
fn while_a_guide_is_away_others_go_on_ahead_and_whoever_leaves_is_not_waited_for() {
    let mut scene = Scene::with_one_beside();
    let (tokens, steps) = (scene.tokens(1).len(), scene.feeder.device().steps.len());
    scene.turns(20);
    assert_eq!((scene.tokens(1).len() - tokens, scene.status.beside.get()), (20, 1));
    let unknown = |step: &&(usize, usize)| **step == (1, 1);
    assert_eq!(scene.feeder.device().steps[steps..].iter().filter(unknown).count(), 20, "no step waits for its token");
    scene.queues.commands.push(GpuCommand::Cancel(StreamId(2)));
    scene.turns(1);
    assert_eq!((scene.status.beside.get(), scene.status.in_flight()), (0, 1));
    scene.until("the free stream does not end", |scene| scene.status.in_flight() == 0);
    // The device rests, and its slot is free.
    scene.start(3, &[20], 2);
    scene.settle();
    assert_eq!((scene.tokens(1).len(), scene.tokens(3)), (200, vec![21, 22]));
}

#[test]
fn a_feeder_that_has_none_but_guides_that_are_away_rests_until_one_is_back() {
    let mut scene = Scene::new();
    let guide = scene.guides(&ambiguous(), 1).remove(0);
    scene.settle();
    scene.start_guided(2, slow(guide, scene.letter(), 60), 3);
    scene.until("no guide is beside", |scene| scene.status.beside.get() == 1);
    while !scene.feeder.has_news() {
        let rest = scene.feeder.turn(scene.now, &mut scene.queues);
        assert!(
            scene.feeder.has_news() || matches!(rest, Rest::Until(until) if until > scene.now + Duration::from_secs(1))
        );
        std::thread::yield_now();
    }
    scene.until("it does not end", |scene| scene.status.in_flight() == 0);
    assert_eq!((scene.tokens(2).len(), scene.status.state()), (3, State::Healthy));
}

#[test]
fn a_device_that_has_none_but_guides_that_are_away_is_tested_like_an_idle_one() {
    let mut scene = Scene::new();
    let guide = scene.guides(&ambiguous(), 1).remove(0);
    scene.settle();
    scene.start_guided(2, slow(guide, scene.letter(), 20).taking(Duration::from_secs(1)), 3);
    scene.until("no guide is beside", |scene| scene.status.beside.get() == 1);
    scene.turns(3);
    for tests in 1..3 {
        assert_eq!((scene.status.tests.get(), scene.status.beside.get()), (tests, 1));
        scene.now += Duration::from_secs(16);
        scene.turns(8);
    }
    assert_eq!((scene.status.tests.get(), scene.status.state()), (3, State::Healthy));
    scene.feeder.device_mut().mood = Mood::Fails;
    scene.now += Duration::from_secs(16);
    scene.turns(2);
    assert_eq!((scene.status.state(), scene.returned().len()), (State::Down, 1), "no step would have told");
}

#[test]
fn a_sequence_goes_back_without_its_guide_which_comes_after_it() {
    for how in ["fault", "close", "swap", "panic"] {
        let mut scene = Scene::with_one_beside();
        match how {
            "fault" => scene.feeder.device_mut().mood = Mood::Fails,
            "panic" => scene.feeder.device_mut().mood = Mood::Panics,
            "close" => scene.queues.commands.push(GpuCommand::Close(GenerationId(0))),
            _ => {
                let next = Assignment { generation: GenerationId(1), ..scene.assignment.clone() };
                scene.queues.assignment = Some(Box::new(next));
            }
        }
        scene.turns(1);
        assert_eq!((scene.returned().len(), scene.status.in_flight(), scene.status.beside.get()), (2, 0, 0), "{how}");
        let tokens = scene.tokens(2);
        let (letter, mut same) = (scene.letter(), scene.guides(&ambiguous(), 1).remove(0));
        let mut returned = scene.take_returned(2);
        let guide = returned.guide.as_mut().unwrap();
        assert!(guide.is_beside(), "{how}");
        // A leader that has the sequence now is told.
        let mut leader = Beside::start(BESIDE - 1, 1, &Arc::new(LeaderBell::default())).unwrap();
        guide.follow(&leader);
        while !leader.take_news() {
            std::thread::yield_now();
        }
        assert!(guide.comes_back());
        (0..20).for_each(|_| same.push(letter));
        tokens.iter().for_each(|token| same.push(*token));
        assert_eq!(guide.get_mut().allowed(), same.allowed(), "{how}");
    }
}

#[test]
fn a_sequence_goes_on_on_another_device_and_its_guide_comes_after_it() {
    for fails_again in [false, true] {
        let mut second = Scene::new();
        second.settle();
        second.start(1, &[10], 200);
        let mut first = Scene::with_one_beside();
        first.feeder.device_mut().mood = Mood::Fails;
        first.turns(1);
        let before = first.tokens(2);
        let moved = first.take_returned(2);
        assert!(moved.guide.as_ref().unwrap().is_beside());
        second.submit(NewSequence { tokens_max: moved.generated + 2, ..moved });
        second.turns(2);
        if fails_again {
            second.feeder.device_mut().mood = Mood::Fails;
            second.turns(1);
            let mut moved = second.take_returned(2);
            let mut leader = Beside::start(BESIDE - 1, 1, &Arc::new(LeaderBell::default())).unwrap();
            let guide = moved.guide.as_mut().unwrap();
            guide.follow(&leader);
            while guide.is_beside() && !(leader.take_news() && guide.comes_back()) {
                std::thread::yield_now();
            }
            assert!(moved.tokens.ends_with(&before) && guide.get_mut().allowed().is_some());
        } else {
            second.until("it does not end", |scene| scene.status.in_flight() == 0);
            assert_eq!(second.tokens(2).len(), 2);
        }
    }
}

#[test]
fn a_guide_that_breaks_down_beside_a_device_ends_its_own_answer() {
    let _turn = Turn::take();
    let mut scene = Scene::new();
    let guides = scene.guides(&hex(), 2);
    scene.settle();
    scene.start(1, &[10], 100);
    faults::inject(faults::Fault::Guide, scene.number.try_into().unwrap());
    for (id, guide) in (2..).zip(guides) {
        scene.start_guided(id, slow(guide, 0, 0), 100);
    }
    scene.until("streams don't end", |scene| scene.status.in_flight() == 0);
    let failed = [2, 3].map(|id| matches!(scene.last_of(id), Some(Event::End { finish: Finish::Unguided, .. })));
    assert_eq!(failed.into_iter().filter(|failed| *failed).count(), 1);
    assert_eq!((scene.tokens(1).len(), scene.status.state()), (100, State::Healthy));
}

#[test]
fn slow_guides_stay_in_steps_that_nobody_else_waits_for() {
    let mut scene = Scene::new();
    let guides = scene.guides(&Constraint::Regex("(?s:.*)".into()), 3);
    scene.settle();
    for (id, guide) in (1..).zip(guides) {
        let mut guide = slow(guide, 0, 0).taking(Duration::from_millis(2));
        (0..8).for_each(|_| guide.pretend_that_it_took(Duration::from_millis(2)));
        scene.start_guided(id, guide, 200);
    }
    scene.turns(20);
    let counts = [1, 2, 3].map(|id| scene.tokens(id).len());
    assert!(counts.iter().all(|count| *count >= 17), "{counts:?}");
    assert_eq!(scene.status.guides_beside.get(), 0);
    // Beside free streams, as many as end while their threads wait for a core.
    let begun = Instant::now();
    for id in 9.. {
        scene.start(id, &[10], 200);
        scene.until("the free stream does not end", |scene| scene.last_of(id).is_some());
        if scene.status.guides_beside.get() > 3 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no guide is beside");
    }
    scene.until("streams don't end", |scene| scene.status.in_flight() == 0);
    assert_eq!([1, 2, 3].map(|id| scene.tokens(id).len()), [200; 3]);
}

#[test]
fn whoever_leaves_a_device_that_rests_is_counted_no_longer() {
    let mut scene = Scene::new();
    let guide = scene.guides(&ambiguous(), 1).remove(0);
    scene.settle();
    scene.start_guided(2, slow(guide, scene.letter(), 20).taking(Duration::from_millis(400)), 100);
    scene.until("no guide is beside", |scene| scene.status.beside.get() == 1);
    scene.queues.commands.push(GpuCommand::Cancel(StreamId(2)));
    scene.turns(1);
    assert_eq!((scene.status.beside.get(), scene.status.in_flight()), (0, 0));
}

#[test]
fn a_token_is_sent_before_its_sequence_is_over() {
    let mut scene = Scene::new();
    scene.settle();
    scene.queues.status = Some(Arc::clone(&scene.status));
    scene.start(1, &[10], 3);
    scene.settle();
    assert_eq!((scene.tokens(1), scene.status.in_flight()), (vec![11, 12, 13], 0));
    assert_eq!(scene.queues.in_flight.last(), Some(&1));
}

#[test]
fn an_answer_whose_sets_take_too_long_in_all_ends_as_too_complex() {
    let mut scene = Scene::new();
    let mut guide = slow(scene.guides(&hex(), 1).remove(0), 0, 0);
    guide.pretend_that_it_took(SETS_TIME_MAX);
    scene.settle();
    scene.start(1, &[10], 100);
    scene.start_guided(2, guide, 100);
    scene.until("streams don't end", |scene| scene.status.in_flight() == 0);
    assert!(matches!(scene.last_of(2), Some(Event::End { finish: Finish::Unguided, .. })));
    assert_eq!((scene.tokens(1).len(), scene.tokens(2).len()), (100, 1));
}

#[test]
fn sets_are_computed_while_the_device_computes_and_their_time_is_no_step_s() {
    let mut scene = Scene::new();
    let guide = scene.guides(&hex(), 1).remove(0);
    scene.settle();
    scene.start_guided(2, guide, 30);
    // Long enough for any set to have its turn.
    for _ in 0..4 {
        scene.feeder.turn(scene.now, &mut scene.queues);
        scene.now += Duration::from_millis(9);
    }
    scene.feeder.device_mut().mood = Mood::Takes;
    let (before, tokens) = (scene.status.costs().decode_s, scene.tokens(2).len());
    let (steps, rows) = (scene.status.steps.count(), scene.status.rows.count());
    assert!(before < 0.01);
    for _ in 0..10 {
        assert_eq!(scene.feeder.turn(scene.now, &mut scene.queues), Rest::None, "the step is not done, but a set is");
        // Whatever it took.
        scene.now += Duration::from_millis(500);
        scene.feeder.turn(scene.now, &mut scene.queues);
    }
    assert_eq!((scene.tokens(2).len() - tokens, scene.status.costs().decode_s), (10, before));
    assert_eq!((scene.status.steps.count() - steps, scene.status.rows.count() - rows), (0, 10));
}

#[test]
fn sets_of_more_time_than_a_step_take_turns_and_free_streams_are_in_every_step() {
    let mut scene = Scene::new();
    let guides = scene.guides(&Constraint::Regex("(?s:.*)".into()), 3);
    scene.settle();
    scene.start(9, &[10], 150);
    for (id, guide) in (1..).zip(guides) {
        // Three of these are more than two threads have in a step of 0.2 ms, and not so much that they are sent away.
        scene.start_guided(id, guide.taking(Duration::from_micros(600)), 100);
    }
    let counts = |scene: &Scene| [9, 1, 2, 3].map(|id| scene.tokens(id).len());
    scene.turns(4);
    let before = counts(&scene);
    for _ in 0..60 {
        scene.feeder.turn(scene.now, &mut scene.queues);
        scene.now += Duration::from_micros(200);
    }
    let counts: Vec<usize> = counts(&scene).iter().zip(before).map(|(after, before)| after - before).collect();
    assert!(counts[0] >= 55 && counts[1..].iter().all(|count| (1..30).contains(count)), "{counts:?}");
    // Of 60 steps, two threads each.
    assert!(counts[1..].iter().sum::<usize>() <= 44, "{counts:?}");
    assert_eq!(scene.status.guides_beside.get(), 0);
}

/// Not a check but a measurement: `cargo test --release -p runtime free_gaps -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn free_gaps_beside_guides() {
    let person = serde_json::json!({"type": "object", "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
        "required": ["name", "age", "tags"], "additionalProperties": false});
    let kinds = [
        ("nothing", None, 0, 0),
        ("ambiguous", Some(ambiguous()), 1, 0),
        ("three ambiguous", Some(ambiguous()), 3, 0),
        ("three schemas", Some(Constraint::JsonSchema(person.to_string())), 3, 0),
        ("three words", Some(Constraint::Regex("([a-z]{1,9} ){400}".into())), 3, 0),
        ("three of 0.3 ms", Some(Constraint::Regex("([a-z]{1,9} ){400}".into())), 3, 300),
        ("one of 0.7 ms", Some(Constraint::Regex("([a-z]{1,9} ){400}".into())), 1, 700),
    ];
    for (name, constraint, count, least) in kinds {
        let mut scene = Scene::new();
        scene.settle();
        scene.feeder.device_mut().mood = Mood::Lasts(Duration::from_micros(1500));
        let (mut gaps, mut last, mut seen) = (Vec::new(), None, 0);
        let begun = Instant::now();
        let (mut guided, mut free) = (0_u64, 1_u64 << 32);
        let mut answers = 0;
        scene.start(free, &[10], 200);
        while begun.elapsed() < Duration::from_secs(8) {
            if let Some(constraint) = &constraint {
                let there = (1..=guided).filter(|id| scene.last_of(*id).is_none()).count();
                for _ in there..count {
                    guided += 1;
                    let guide = scene.guides(constraint, 1).remove(0).taking(Duration::from_micros(least));
                    scene.now = Instant::now();
                    scene.start_guided(guided, guide, 150);
                    // Compiling takes time that is no gap.
                    last = None;
                }
            }
            scene.now = Instant::now();
            let rest = scene.feeder.turn(scene.now, &mut scene.queues);
            let tokens = scene.tokens(free).len();
            let now = Instant::now();
            if tokens > seen {
                if let Some(last) = last.replace(now) {
                    gaps.push(now - last);
                }
                seen = tokens;
            }
            if scene.last_of(free).is_some() {
                free += 1;
                scene.start(free, &[10], 200);
                (last, seen) = (None, 0);
                answers = (1..=guided).map(|id| scene.tokens(id).len()).sum::<usize>();
            }
            if let Rest::Until(until) = rest {
                while Instant::now() < until && !scene.feeder.has_news() {
                    std::hint::spin_loop();
                }
            }
        }
        gaps.sort();
        let at = |of: usize| gaps[gaps.len() * of / 1000].as_secs_f64() * 1e3;
        println!(
            "{name}: {} gaps, p50 {:.2} p90 {:.2} p99 {:.2} max {:.2} ms; guided tokens {answers}, sets beside {}",
            gaps.len(),
            at(500),
            at(900),
            at(990),
            gaps.last().unwrap().as_secs_f64() * 1e3,
            scene.status.guides_beside.get()
        );
    }
}
