//! What the KV cache knows is not computed again, and too few blocks for all change no text.

use serde_json::{Value, json};

use crate::clients::streamed_text;
use crate::server::{PATIENCE, Server, becomes_true};

const COMPLETIONS: &str = "/v1/completions";
const STORY: &str = "Once upon a time, in a land far away, there lived a little fox who wanted to see the sea. Every \
                     morning she asked the old owl how far it was, and every morning the owl told her to wait.";

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

#[test]
fn a_prompt_that_was_computed_before_is_found_and_gives_the_same_text() {
    let (server, plain) = (Server::start(&[]), Server::start(&["--prefix-cache", "false"]));
    let ask = |server: &Server, prompt: &str| {
        let body = json!({"prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": true});
        server.ask(COMPLETIONS, &body)
    };
    let first = ask(&server, STORY);
    let prompt_tokens = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(cached(&first), 0);
    let again = ask(&server, STORY);
    // Whole blocks, and at least one token is computed.
    assert_eq!((cached(&again), prompt_tokens > 32), ((prompt_tokens - 1) / 32 * 32, true));
    assert_eq!(text(&again), text(&first));
    assert_eq!(server.metric("bitnet_prefix_cache_queries_total"), 2.0 * prompt_tokens as f64);
    assert_eq!(server.metric("bitnet_prefix_cache_hits_total"), cached(&again) as f64);

    // A conversation goes on: the answer is known as well.
    let longer = format!("{STORY}{} Then", text(&first));
    let next = ask(&server, &longer);
    assert!(cached(&next) > cached(&again), "{next}");
    assert_eq!(text(&next), text(&ask(&plain, &longer)));
    let other = ask(&server, &STORY.replace("Once", "Twice"));
    assert_eq!(cached(&other), 0, "another beginning shares nothing");
    assert_eq!(text(&other), text(&ask(&plain, &STORY.replace("Once", "Twice"))));
    assert_eq!(cached(&ask(&plain, STORY)), 0);
    assert_eq!(plain.metric("bitnet_prefix_cache_hits_total"), 0.0);
    assert!(server.becomes_quiet(), "what is only kept is not in use");
}

#[test]
fn the_choices_of_a_request_share_its_prompt() {
    let server = Server::start(&[]);
    let body = json!({"prompt": STORY, "max_tokens": 12, "temperature": 1.5, "seed": 3, "n": 4, "ignore_eos": true});
    let answer = server.ask(COMPLETIONS, &body);
    assert_eq!(cached(&answer), 0, "the first one computes it");
    let prompt_tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(server.metric("bitnet_prefix_cache_hits_total"), (3 * ((prompt_tokens - 1) / 32 * 32)) as f64);
    for index in 0..4 {
        let mut alone = body.clone();
        (alone["n"], alone["seed"]) = (json!(1), json!(3 + index));
        assert_eq!(text(&server.ask(COMPLETIONS, &alone)), answer["choices"][index]["text"]);
    }
}

#[test]
fn streams_that_are_pushed_out_for_want_of_blocks_give_the_text_that_they_give_alone() {
    // Room for a little more than one sequence of full length.
    let server = Server::start(&["--kv-cache-mb", "7", "--max-context", "512"]);
    let body = |seed: u64, stream: bool| {
        let prompt = &STORY[..20 + seed as usize * 7];
        json!({
            "prompt": prompt, "max_tokens": 300, "temperature": 1, "seed": seed, "ignore_eos": true, "stream": stream
        })
    };
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for (seed, client) in (0..).zip(&mut clients) {
        client.send_post(COMPLETIONS, body(seed, true).to_string().as_bytes());
    }
    let together: Vec<String> = clients.iter_mut().map(|client| streamed_text(&client.answer().chunks(), 0)).collect();
    assert!(server.metric("bitnet_preemptions_total") > 0.0, "{}", server.first_words);
    for (seed, together) in (0..).zip(&together) {
        assert_eq!(text(&server.ask(COMPLETIONS, &body(seed, false))), together, "stream {seed}");
    }
    assert!(server.becomes_quiet());
}

#[test]
fn what_nobody_has_used_for_long_goes_back_to_the_system() {
    let server = Server::start(&["--kv-idle-seconds", "1"]);
    let body = json!({"prompt": STORY, "max_tokens": 40, "temperature": 0, "ignore_eos": true});
    let first = server.ask(COMPLETIONS, &body);
    let resident = || server.metric("bitnet_kv_cache_resident_blocks");
    assert!(becomes_true(PATIENCE, || resident() == 0.0), "{}", resident());
    let again = server.ask(COMPLETIONS, &body);
    assert_eq!((cached(&again), text(&again)), (0, text(&first)));
    assert!(resident() > 0.0);
}

#[test]
fn a_share_of_nothing_keeps_nothing() {
    let server = Server::start(&["--prefix-cache-share", "0"]);
    let body = json!({"prompt": STORY, "max_tokens": 40, "temperature": 0, "ignore_eos": true});
    let answers = [(); 2].map(|()| server.ask(COMPLETIONS, &body));
    assert_eq!((cached(&answers[1]), text(&answers[1])), (0, text(&answers[0])));
}
