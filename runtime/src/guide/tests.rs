//! Guides without a model: walks through grammars by tokens drawn at random from those that are allowed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gguf::Gguf;
use net::api::Constraint;
use serde_json::{Value, json};

use super::compiler::Library;
use super::memory::Memory;
use super::pace::Pace;
use super::{Beside, GUIDE_BYTES, Guide, GuideError, Guided};
use crate::model::Source;
use crate::text::Tokenizer;

fn tokenizer_of(source: &Source) -> Arc<Tokenizer> {
    let header = source.header().unwrap();
    Arc::new(Tokenizer::from_gguf(Gguf::parse(&header, source.bytes()).unwrap().metadata()).unwrap())
}

pub(crate) fn default_tokenizer() -> Arc<Tokenizer> {
    tokenizer_of(&Source::embedded())
}

fn schema(schema: &Value) -> Constraint {
    Constraint::JsonSchema(schema.to_string())
}

pub(super) fn compile(
    library: &mut Library,
    tokenizer: &Arc<Tokenizer>,
    constraint: &Constraint,
) -> Result<Guide, GuideError> {
    library.guides((tokenizer, tokenizer.vocab_len()), constraint, 1).map(|mut guides| guides.pop().unwrap())
}

fn bits(words: &[u32]) -> impl Iterator<Item = u32> + '_ {
    (0..)
        .zip(words)
        .flat_map(|(at, word)| (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 32 + bit))
}

/// How a walk went.
pub(super) struct Walk {
    pub(super) text: String,
    pub(super) tokens: Vec<u32>,
    /// It came to an end by itself.
    pub(super) ended: bool,
    pub(super) failed: bool,
    pub(super) longest: Duration,
}

/// A walk of at most `tokens_max` tokens; `seed` draws them.
pub(super) fn walk(guide: &mut Guide, tokenizer: &Tokenizer, seed: u64, tokens_max: usize) -> Walk {
    let (mut state, mut bytes) = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, Vec::new());
    let mut walk =
        Walk { text: String::new(), tokens: Vec::new(), ended: false, failed: false, longest: Duration::ZERO };
    while walk.tokens.len() < tokens_max && !walk.ended {
        let started = Instant::now();
        let allowed: Vec<u32> = guide.allowed().map_or(Vec::new(), |words| bits(words).collect());
        walk.longest = walk.longest.max(started.elapsed());
        if allowed.is_empty() {
            break;
        }
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let token = allowed[usize::try_from(state % allowed.len() as u64).unwrap()];
        walk.ended = tokenizer.is_end_of_generation(token);
        if !walk.ended {
            let started = Instant::now();
            guide.push(token);
            walk.longest = walk.longest.max(started.elapsed());
            walk.tokens.push(token);
            bytes.extend_from_slice(tokenizer.piece(token));
            walk.ended = guide.is_complete();
        }
        walk.failed = guide.has_failed();
    }
    walk.failed |= guide.has_failed();
    walk.text = String::from_utf8(bytes).unwrap_or_default();
    walk
}

#[test]
fn every_walk_through_a_schema_is_a_value_of_it() {
    let order = json!({
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green", "blue\n\"", "größe"]},
            "count": {"type": "integer", "minimum": -3, "maximum": 12},
            "ratio": {"type": "number", "minimum": 0, "maximum": 1},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            "name": {"type": "string", "maxLength": 6},
            "tags": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "boolean"}},
            "inner": {"type": "object", "properties": {"a": {"const": null}, "b": {"anyOf": [{"type": "null"},
                {"type": "integer", "minimum": 0, "maximum": 9}]}}, "required": ["a"], "additionalProperties": false},
        },
        "required": ["colour", "count", "ratio", "code", "name", "tags", "inner"],
        "additionalProperties": false,
    });
    let is_order = |value: &Value| {
        let (fields, inner) = (value.as_object().unwrap(), value["inner"].as_object().unwrap());
        let code = value["code"].as_str().unwrap().as_bytes();
        let tags = value["tags"].as_array().unwrap();
        fields.keys().map(String::as_str).eq(["colour", "count", "ratio", "code", "name", "tags", "inner"])
            && ["red", "green", "blue\n\"", "größe"].contains(&value["colour"].as_str().unwrap())
            && value["count"].as_f64().is_some_and(|count| count.fract() == 0.0 && (-3.0..=12.0).contains(&count))
            && (0.0..=1.0).contains(&value["ratio"].as_f64().unwrap())
            && (code.len() == 6 && code[..2].iter().all(u8::is_ascii_uppercase) && code[2] == b'-')
            && code[3..].iter().all(u8::is_ascii_digit)
            && value["name"].as_str().unwrap().chars().count() <= 6
            && (1..=3).contains(&tags.len())
            && tags.iter().all(Value::is_boolean)
            && inner.get("a").is_some_and(Value::is_null)
            && inner.get("b").is_none_or(|b| b.is_null() || b.as_f64().is_some_and(|b| b.fract() == 0.0 && b < 10.0))
            && inner.len() <= 2
    };
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    let mut ended = 0;
    for seed in 0..60 {
        let mut guide = compile(&mut library, &tokenizer, &schema(&order)).unwrap();
        let walk = walk(&mut guide, &tokenizer, seed, 400);
        assert!(!walk.failed, "{}", walk.text);
        if walk.ended {
            let value: Value =
                serde_json::from_str(&walk.text).unwrap_or_else(|error| panic!("{error}: {}", walk.text));
            assert!(is_order(&value), "{value}");
            ended += 1;
        }
    }
    assert!(ended > 50, "{ended} of 60 walks came to an end");
}

#[test]
fn patterns_choices_and_grammars_give_what_they_say() {
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    let mut texts = |constraint: &Constraint| -> Vec<String> {
        let mut texts: Vec<String> = (0..40)
            .map(|seed| {
                let mut guide = compile(&mut library, &tokenizer, constraint).unwrap();
                let walk = walk(&mut guide, &tokenizer, seed, 100);
                assert!(walk.ended && !walk.failed, "{constraint:?}: {}", walk.text);
                walk.text
            })
            .collect();
        texts.sort();
        texts.dedup();
        texts
    };
    let choices = ["yes", "no", "yes and no", "\"quoted\\\"", "été"].map(String::from);
    let mut all = choices.to_vec();
    all.sort();
    assert_eq!(texts(&Constraint::Choice(choices.to_vec())), all);
    for pattern in ["^[ab]{3}\\/\\d$", "[ab]{3}/[0-9]"] {
        let found = texts(&Constraint::Regex(pattern.into()));
        assert!(found.len() > 10);
        for text in found {
            let bytes = text.as_bytes();
            let ends = bytes[3] == b'/' && text[4..].chars().all(|c| c.is_numeric()) && text[4..].chars().count() == 1;
            assert!(ends && bytes[..3].iter().all(|byte| b"ab".contains(byte)), "{text}");
        }
    }
    let sum = "start: NUMBER (\"+\" NUMBER)~0..2\nNUMBER: /[1-9]/\n";
    for text in texts(&Constraint::Grammar(sum.into())) {
        assert!(text.split('+').all(|part| part.len() == 1 && part != "0"), "{text}");
    }
}

#[test]
fn a_copy_and_one_that_is_fed_the_same_tokens_allow_the_same() {
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    let constraint = schema(&json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 40}}}));
    let mut first = compile(&mut library, &tokenizer, &constraint).unwrap();
    let tokens = walk(&mut first, &tokenizer, 3, 12).tokens;
    let mut second = compile(&mut library, &tokenizer, &constraint).unwrap();
    let mut third = compile(&mut Library::default(), &tokenizer, &constraint).unwrap();
    for token in tokens {
        assert_eq!(second.allowed().map(<[u32]>::to_vec), third.allowed().map(<[u32]>::to_vec));
        second.push(token);
        third.push(token);
    }
    assert_eq!(second.copy().unwrap().allowed(), third.allowed());
}

/// Constraints that are wrong, and what is said of them.
#[test]
fn what_can_t_be_compiled_says_why() {
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    for (constraint, word) in [
        (schema(&json!({"type": "strnig"})), "strnig"),
        (schema(&json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}})), "none"),
        (schema(&json!({"$ref": "https://example.com/schema.json"})), "$ref"),
        (schema(&json!({"type": "string", "pattern": "(("})), "("),
        (schema(&json!({"not": {"type": "string"}})), "not"),
        (schema(&json!({"type": "integer", "minimum": 5, "maximum": 4})), "minimum"),
        (Constraint::Regex("a(".into()), "("),
        (Constraint::Regex("a\\\\\\".into()), "backslash"),
        (Constraint::Grammar("start: nothing".into()), "nothing"),
        (Constraint::Grammar("begin: \"a\"".into()), "start"),
        (Constraint::Grammar("start: %json {\"type\": \"string\"}".into()), "%json"),
    ] {
        let error = compile(&mut library, &tokenizer, &constraint).err().map(|error| error.to_string());
        let error = error.unwrap_or_else(|| panic!("{constraint:?} is taken"));
        assert!(error.contains(word) && error.len() < 400 && !error.contains('\n'), "{constraint:?}: {error}");
    }
}

fn nested(open: &str, inner: &str, close: &str, count: usize) -> String {
    format!("{}{inner}{}", open.repeat(count), close.repeat(count))
}

/// Constraints that try to take time, memory or stack.
fn hostile() -> Vec<(&'static str, Constraint)> {
    let two = |i: usize| json!({"anyOf": [{"required": [format!("a{i}")]}, {"required": [format!("b{i}")]}]});
    let names: Vec<String> = (0..6000).map(|i| format!("name number {i}")).collect();
    let properties: serde_json::Map<String, Value> =
        names[..2500].iter().map(|name| (name.clone(), json!({"type": "integer"}))).collect();
    let deep = (0..28).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    let chain = (0..4000).fold("start: r0\n".to_owned(), |text, i| text + &format!("r{i}: r{}\n", i + 1));
    let words: Vec<String> = (0..1000).map(|i| format!("\"w{i}\"")).collect();
    vec![
        ("all of any of", schema(&json!({"allOf": (0..30).map(two).collect::<Vec<_>>()}))),
        ("just under the limit", schema(&json!({"allOf": (0..11).map(two).collect::<Vec<_>>()}))),
        ("a large enum", schema(&json!({"enum": names}))),
        ("many properties", schema(&json!({"type": "object", "properties": properties}))),
        ("deep arrays", schema(&deep)),
        ("a long string", schema(&json!({"type": "string", "maxLength": 1_000_000_000}))),
        ("a long pattern", schema(&json!({"type": "string", "pattern": "^(a|b|ab){1000,100000}$"}))),
        ("many items", schema(&json!({"type": "array", "items": {"type": "null"}, "minItems": 100_000}))),
        ("a multiple", schema(&json!({"type": "integer", "multipleOf": 1_000_000_007}))),
        ("itself", schema(&json!({"$ref": "#"}))),
        (
            "each other",
            schema(&json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})),
        ),
        ("itself in all of", schema(&json!({"allOf": [{"$ref": "#"}, {"type": "object"}]}))),
        ("brackets", Constraint::Regex(nested("(", "a", ")", 30_000))),
        ("brackets under the limit", Constraint::Regex(nested("(?:", "a", ")*", 99))),
        ("repetitions of repetitions", Constraint::Regex(nested("(", "a", "{100})", 20))),
        ("exponential states", Constraint::Regex("(a|b)*a(a|b){60}".into())),
        (
            "many exponential states",
            Constraint::Regex("([ab]*a[ab]{50}|[a-z]*q[a-z]{50}x|[0-9 ]*7[0-9 ]{50}y)*".into()),
        ),
        ("words", Constraint::Regex(format!("({})*", words.join("|").replace('"', "")))),
        ("classes", Constraint::Regex("(\\p{L}\\P{Lu}[^\\p{N}]){1,3000}".into())),
        ("a not", Constraint::Grammar("start: A\nA: ~(/(a|b)*a(a|b){20}/) & /[ab]{0,200}/\n".into())),
        ("ambiguous", Constraint::Grammar("start: e\ne: e e | e e e | \"a\" | \"a\" \"a\" |\n".into())),
        ("endless", Constraint::Grammar("start: e\ne: e e\n".into())),
        ("nothing again and again", Constraint::Grammar("start: (a*)*\na: (b*)*\nb: \"\"?\n".into())),
        ("brackets of rules", Constraint::Grammar(format!("start: {}", nested("(", "\"a\"", ")", 20_000)))),
        ("a chain of rules", Constraint::Grammar(format!("{chain}r4000: \"a\"\n"))),
        ("rules repeated", Constraint::Grammar("start: a~1..1000000\na: b~1..1000\nb: c~1..1000\nc: \"x\"\n".into())),
        ("many words", Constraint::Grammar(format!("start: w*\nw: {}\n", words.join(" | ")))),
        ("stops", Constraint::Grammar("start: a b\na[stop=\"x\", capture]: /.*/\nb: \"y\"\n".into())),
    ]
}

#[test]
fn hostile_constraints_are_refused_or_kept_to_within_bounds() {
    let tokenizer = default_tokenizer();
    let mut library = Library::default();
    let refused = [
        "all of any of",
        "just under the limit",
        "a multiple",
        "itself",
        "each other",
        "itself in all of",
        "brackets",
        "endless",
        "brackets of rules",
    ];
    // More than a row of the parser may hold, and classes whose automata have no end.
    let given_up = ["many properties", "classes"];
    let run = || {
        for (name, constraint) in hostile() {
            match compile(&mut library, &tokenizer, &constraint) {
                Err(error) => {
                    let error = error.to_string();
                    assert!(refused.contains(&name), "{name}: {error}");
                    assert!(!error.contains("panic") && error.len() < 400, "{name}: {error}");
                }
                Ok(mut guide) => {
                    assert!(!refused.contains(&name), "{name} is taken");
                    let walk = walk(&mut guide, &tokenizer, 5, 300);
                    assert_eq!(walk.failed, given_up.contains(&name), "{name}: {}", walk.text);
                    assert!(
                        guide.has_failed() == walk.failed && (walk.ended || walk.failed || walk.tokens.len() == 300)
                    );
                }
            }
        }
    };
    // As the thread that compiles has it.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(super::compiler::STACK_BYTES);
        thread.spawn_scoped(scope, run).unwrap().join().unwrap();
    });
}

/// Not a check but a measurement: `cargo test --release -p runtime guide_speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn guide_speed() {
    let source = Source::embedded();
    let tokenizer = tokenizer_of(&source);
    let mut library = Library::default();
    println!("{} tokens", tokenizer.vocab_len());
    for (name, constraint) in hostile() {
        let started = Instant::now();
        let compiled = compile(&mut library, &tokenizer, &constraint);
        let took = started.elapsed();
        let Ok(mut guide) = compiled else {
            println!("{name}: refused after {took:?}");
            continue;
        };
        let walk = walk(&mut guide, &tokenizer, 5, 300);
        println!(
            "{name}: compiled in {took:?}, {} tokens, failed {}, longest {:?}",
            walk.tokens.len(),
            walk.failed,
            walk.longest
        );
    }
    let person = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "age": {"type": "integer"}, "mail": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}}},
        "required": ["name", "age", "tags"], "additionalProperties": false});
    for (name, constraint) in [
        ("json_object", Constraint::JsonObject),
        ("schema", schema(&person)),
        ("regex", Constraint::Regex("[A-Z][a-z]+ [0-9]{1,5}(, [a-z]+)*".into())),
        ("choice", Constraint::Choice((0..20).map(|i| format!("choice {i}")).collect())),
    ] {
        let started = Instant::now();
        compile(&mut library, &tokenizer, &constraint).unwrap();
        let compiled = started.elapsed();
        let started = Instant::now();
        compile(&mut library, &tokenizer, &constraint).unwrap();
        let copied = started.elapsed();
        let (mut masks, mut pushes) = (Vec::new(), Vec::new());
        for seed in 0..40_u64 {
            let mut guide = compile(&mut library, &tokenizer, &constraint).unwrap();
            let mut state = seed * 977 + 1;
            for _ in 0..60 {
                let started = Instant::now();
                let allowed: Vec<u32> = match guide.allowed() {
                    Some(words) => {
                        masks.push(started.elapsed());
                        bits(words).collect()
                    }
                    None => break,
                };
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let token = allowed[usize::try_from((state >> 33) % allowed.len() as u64).unwrap()];
                let started = Instant::now();
                guide.push(token);
                pushes.push(started.elapsed());
                if tokenizer.is_end_of_generation(token) || guide.is_complete() {
                    break;
                }
            }
        }
        masks.sort();
        pushes.sort();
        let mean = masks.iter().sum::<Duration>() / u32::try_from(masks.len()).unwrap();
        println!(
            "{name}: compiled {compiled:?}, copied {copied:?}; {} masks mean {mean:?}, median {:?}, p99 {:?}, max {:?}; push median {:?}, max {:?}",
            masks.len(),
            masks[masks.len() / 2],
            masks[masks.len() * 99 / 100],
            masks[masks.len() - 1],
            pushes[pushes.len() / 2],
            pushes[pushes.len() - 1]
        );
    }
}

#[test]
fn no_guide_is_made_where_others_take_the_memory_for_all() {
    let (tokenizer, constraint) = (default_tokenizer(), Constraint::Choice(vec!["yes".into(), "no".into()]));
    // For the one that is kept and four copies, with what they have grown by, and for no four more.
    let mut library = Library::within(&Memory::new(8 * GUIDE_BYTES));
    let mut guides = |count| library.guides((&tokenizer, tokenizer.vocab_len()), &constraint, count);
    assert_eq!(guides(8).err(), Some(GuideError::Memory));
    let four = guides(4).expect("those that had been made for eight are gone");
    assert_eq!(guides(4).err(), Some(GuideError::Memory));
    drop(four);
    assert_eq!(guides(4).map(|guides| guides.len()), Ok(4));
}

/// Waits until the guide is back, as a leader does.
fn take_back(guided: &mut Guided, beside: &mut Beside) {
    while guided.is_beside() {
        if beside.take_news() {
            assert!(guided.comes_back());
        }
        std::thread::yield_now();
    }
}

/// One that counts as slow, behind the beginning of an answer.
fn slow(library: &mut Library, tokenizer: &Arc<Tokenizer>, constraint: &Constraint) -> Guided {
    let mut guided = Guided::from(compile(library, tokenizer, constraint).unwrap());
    guided.get_mut().pace = Pace::slow();
    guided.push(letter(tokenizer, b'f'));
    guided
}

pub(crate) fn letter(tokenizer: &Tokenizer, letter: u8) -> u32 {
    (0..tokenizer.vocab_len() as u32).find(|id| tokenizer.piece(*id) == [letter]).unwrap()
}

#[test]
fn a_slow_guide_comes_back_with_the_same_set_and_a_quick_one_stays() {
    let (tokenizer, mut library) = (default_tokenizer(), Library::default());
    let mut beside = Beside::start(77, 1, &Arc::default()).unwrap();
    let pattern = Constraint::Regex("(?s:.*)a(?s:.{13})Q".into());
    let mut same = compile(&mut library, &tokenizer, &pattern).unwrap();
    let mut guided = Guided::from(compile(&mut library, &tokenizer, &pattern).unwrap());
    guided.get_mut().pace = Pace::slow();
    guided.step_aside_if_slow(&mut beside, true);
    assert!(!guided.is_beside(), "the first set came with it");
    for byte in *b"a fox" {
        guided.push(letter(&tokenizer, byte));
        same.push(letter(&tokenizer, byte));
        guided.get_mut().pace = Pace::default();
        guided.step_aside_if_slow(&mut beside, true);
        assert!(!guided.is_beside());
        guided.get_mut().pace = Pace::slow();
        guided.step_aside_if_slow(&mut beside, true);
        assert!(guided.is_beside());
        take_back(&mut guided, &mut beside);
        assert_eq!(guided.get_mut().allowed(), same.allowed());
    }
}

#[test]
fn a_guide_whose_sequence_leaves_while_it_is_beside_is_not_waited_for_and_frees_its_memory() {
    let tokenizer = default_tokenizer();
    let memory = Memory::new(64 * GUIDE_BYTES);
    let mut library = Library::within(&memory);
    let mut beside = Beside::start(77, 1, &Arc::default()).unwrap();
    let mut guided = slow(&mut library, &tokenizer, &Constraint::Regex("[a-z]*".into()));
    guided.step_aside_if_slow(&mut beside, true);
    assert!(guided.is_beside());
    drop(guided);
    while !beside.take_news() {
        std::thread::yield_now();
    }
    drop(library);
    let all: Option<Vec<_>> = (0..64).map(|_| memory.share()).collect();
    assert!(all.is_some(), "its memory is free by the time that the thread tells");
}

#[test]
fn a_set_that_takes_seconds_ends_with_its_sequence() {
    let (tokenizer, mut library) = (default_tokenizer(), Library::default());
    let mut beside = Beside::start(77, 1, &Arc::default()).unwrap();
    let ambiguous = Constraint::Grammar("# lark\nstart: e\ne: e e | /[a-z ]/".into());
    let mut guided = slow(&mut library, &tokenizer, &ambiguous);
    (0..400).for_each(|_| guided.push(letter(&tokenizer, b'f')));
    guided.step_aside_if_slow(&mut beside, true);
    assert!(guided.is_beside());
    // Not before the thread has begun it.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(20) {
        std::thread::yield_now();
    }
    assert!(!beside.take_news(), "400 letters are too few");
    let left = Instant::now();
    drop(guided);
    while !beside.take_news() {
        std::thread::yield_now();
    }
    assert!(left.elapsed() < Duration::from_secs(1), "{:?}", left.elapsed());
}

#[test]
fn a_set_that_takes_seconds_holds_up_no_other_where_there_are_threads_for_both() {
    let (tokenizer, mut library) = (default_tokenizer(), Library::default());
    let mut beside = Beside::start(77, 5, &Arc::default()).unwrap();
    let ambiguous = Constraint::Grammar("# lark\nstart: e\ne: e e | /[a-z ]/".into());
    let mut long = slow(&mut library, &tokenizer, &ambiguous);
    (0..400).for_each(|_| long.push(letter(&tokenizer, b'f')));
    long.step_aside_if_slow(&mut beside, true);
    let mut short = slow(&mut library, &tokenizer, &Constraint::Regex("[a-z]*".into()));
    short.step_aside_if_slow(&mut beside, true);
    assert!(long.is_beside() && short.is_beside());
    take_back(&mut short, &mut beside);
    assert!(!long.comes_back());
}

#[test]
fn who_has_the_sequence_now_is_told_of_its_guide_whenever_that_is_back() {
    let (tokenizer, mut library) = (default_tokenizer(), Library::default());
    let mut here = Beside::start(77, 1, &Arc::default()).unwrap();
    let mut there = Beside::start(78, 1, &Arc::default()).unwrap();
    for turn in 0..200 {
        let mut guided = slow(&mut library, &tokenizer, &Constraint::Regex("[a-z]*".into()));
        guided.step_aside_if_slow(&mut here, true);
        assert!(guided.is_beside() && !there.has_news());
        // Before it is back, at about that time, and after that.
        match turn % 4 {
            0 => {}
            1 => std::thread::yield_now(),
            2 => (0..turn * 50).for_each(|_| std::hint::spin_loop()),
            _ => {
                while !here.take_news() {
                    std::thread::yield_now();
                }
            }
        }
        guided.follow(&there);
        take_back(&mut guided, &mut there);
        assert!(!there.has_news());
    }
}
