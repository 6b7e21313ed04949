//! A grammar whose sets of tokens take long: what becomes of its request, and of everybody else's, while its guide computes beside
//! the steps.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clients::Client;
use crate::models::Folder;
use crate::server::{PATIENCE, Server, becomes_true};

const COMPLETIONS: &str = "/v1/completions";
/// So ambiguous that what may follow some hundred letters takes seconds to find; it hardly ever comes to its end.
const AMBIGUOUS: &str = "# lark\nstart: e \"~\"\ne: e e | /[a-z ]/";

fn slow(max_tokens: u32, more: &Value) -> Value {
    let mut body =
        json!({"prompt": "Once upon", "max_tokens": max_tokens, "temperature": 1, "seed": 5, "grammar": AMBIGUOUS});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A stream of such an answer, whose guide has been beside the steps.
fn slow_stream(server: &Server) -> Client {
    let before = server.metric("bitnet_guides_beside_total");
    let mut client = server.connect();
    client.send_post(COMPLETIONS, slow(900, &json!({"stream": true})).to_string().as_bytes());
    assert_eq!(client.head().status, 200);
    assert!(becomes_true(PATIENCE, || server.metric("bitnet_guides_beside_total") > before + 2.0));
    client
}

fn is_away(server: &Server) -> bool {
    becomes_true(PATIENCE, || server.metric("bitnet_requests_beside") == 1.0)
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

fn rest_of_stream(client: &mut Client) -> String {
    let mut body = Vec::new();
    while client.chunk(&mut body) {}
    String::from_utf8(body).unwrap()
}

#[test]
fn a_slow_grammar_holds_up_its_own_answer_alone_and_ends_with_its_client_or_deadline() {
    let server = Server::start(&[]);
    let free = json!({"prompt": "Once", "max_tokens": 300, "temperature": 1, "seed": 7, "ignore_eos": true});
    let short = slow(8, &json!({}));
    let alone = [&free, &short].map(|body| server.ask(COMPLETIONS, body));

    let client = slow_stream(&server);
    let tokens = || server.metric("bitnet_sampled_tokens_total");
    let (before, begun) = (tokens(), Instant::now());
    let beside = server.ask(COMPLETIONS, &free);
    let took = begun.elapsed();
    // In steps of both, it would have as many.
    let slow_ones = tokens() - before - 300.0;
    assert!(slow_ones < 150.0, "{slow_ones} tokens of the slow answer beside 300 free ones, in {took:?}");
    assert_eq!(text(&beside), text(&alone[0]));
    assert_eq!(text(&server.ask(COMPLETIONS, &short)), text(&alone[1]), "slow ones beside each other");

    let late = server.post(COMPLETIONS, &slow(900, &json!({"timeout_ms": 1500})).to_string());
    assert_eq!(late.status, 408, "{}", late.text());
    assert!(is_away(&server), "the other one goes on");
    drop(client);
    assert!(server.becomes_quiet());
    // Nobody computes for who has left.
    let idle = || {
        let before = server.cpu_time();
        server.cpu_time() - before < Duration::from_millis(20) && server.metric("bitnet_requests_beside") == 0.0
    };
    assert!(becomes_true(PATIENCE, idle));
}

#[test]
fn a_model_leaves_and_a_server_ends_while_guides_compute_beside_the_steps() {
    let folder = Folder::new();
    folder.write("a.gguf", include_bytes!("../../assets/bitnetd-tiny-i2_s.gguf"));
    let b = folder.synth("b.gguf", 2);
    let server = folder.serve("a.gguf", &["--swap-watch-seconds", "0", "--drain-timeout", "1"]);
    let mut old = slow_stream(&server);
    assert_eq!(server.swap(&b, &json!({}))["status"], "completed");
    let before = server.metric("bitnet_guides_beside_total");
    let goes_on =
        || server.metric("bitnet_guides_beside_total") > before && server.metric("bitnet_requests_beside") == 1.0;
    assert!(becomes_true(PATIENCE, goes_on), "the old model goes on with its own");
    server.terminate();
    let rest = rest_of_stream(&mut old);
    assert!(rest.contains("SERVICE_UNAVAILABLE") && !rest.contains("[DONE]"), "{rest}");
    assert!(rest.matches("\"text\":").count() > 2, "{rest}");
    let ended = server.ended();
    assert!(ended.code == Some(1) && ended.words.contains("streams were cut after the drain timeout"), "{ended:?}");
}

#[test]
fn a_drain_waits_for_an_answer_whose_guide_is_beside_the_steps() {
    let server = Server::start(&[]);
    let expected = server.ask(COMPLETIONS, &slow(12, &json!({})));
    let mut client = server.connect();
    client.send_post(COMPLETIONS, slow(12, &json!({})).to_string().as_bytes());
    assert!(becomes_true(PATIENCE, || server.metric("bitnet_requests_running") == 1.0));
    server.terminate();
    let answer = client.answer();
    assert_eq!((answer.status, text(&answer.json())), (200, text(&expected)));
    let ended = server.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
