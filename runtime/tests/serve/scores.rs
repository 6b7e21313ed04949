//! `echo` with `logprobs`: how likely each token of a prompt was. The same bits as when the model chose these tokens itself.

use serde_json::{Value, json};

use crate::clients::streamed_text;
use crate::server::Server;

const COMPLETIONS: &str = "/v1/completions";
const TOP: usize = 3;

/// The ids of a prompt and of what follows it, with the log-probabilities of the latter as they were chosen.
fn chosen(server: &Server) -> (Vec<u32>, Vec<u32>, Value) {
    let tokenize = |text: &Value| -> Vec<u32> {
        let answer = server.ask("/v1/tokenize", &json!({"content": text, "add_special": false}));
        answer["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let prompt = tokenize(&json!("Once upon a time there was a fox who"));
    let body = json!({"prompt": prompt, "max_tokens": 60, "temperature": 0, "logprobs": TOP, "ignore_eos": true});
    let logprobs = server.ask(COMPLETIONS, &body)["choices"][0]["logprobs"].clone();
    let answer: Vec<u32> = logprobs["tokens"].as_array().unwrap().iter().flat_map(&tokenize).collect();
    assert_eq!(answer.len(), 60, "each piece is one token again");
    (prompt, answer, logprobs)
}

fn score(prompt: &[u32], max_tokens: u32, stream: bool) -> Value {
    json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": TOP, "echo": true, "stream": stream,
        "ignore_eos": true})
}

#[test]
fn tokens_of_a_prompt_are_as_likely_as_when_they_were_chosen() {
    let (server, deaf) = (Server::start(&[]), Server::start(&["--speculation", "off", "--prefix-cache", "false"]));
    let (prompt, answer, as_chosen) = chosen(&server);
    let whole = [&prompt[..], &answer].concat();
    // The prompt is known by now; its scores are computed nevertheless, also where few rows may have logits.
    for (server, max_tokens) in [(&server, 0), (&server, 2), (&server, 0), (&deaf, 0)] {
        let scored = server.ask(COMPLETIONS, &score(&whole, max_tokens, false));
        let logprobs = &scored["choices"][0]["logprobs"];
        for column in ["tokens", "token_logprobs", "top_logprobs"] {
            let all = logprobs[column].as_array().unwrap();
            assert_eq!(all.len(), whole.len() + max_tokens as usize, "{column}");
            assert_eq!(all[prompt.len()..whole.len()], as_chosen[column].as_array().unwrap()[..], "{column}");
        }
        assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
        assert!(logprobs["token_logprobs"][1].as_f64().unwrap() < 0.0);
        assert_eq!(logprobs["top_logprobs"][1].as_object().unwrap().len(), TOP);
        assert_eq!(scored["usage"]["completion_tokens"], max_tokens);
        assert_eq!(scored["choices"][0]["finish_reason"], "length");
        let offsets: Vec<u64> =
            logprobs["text_offset"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap()).collect();
        assert!(offsets[0] == 0 && offsets.is_sorted(), "{offsets:?}");
    }
}

#[test]
fn a_stream_has_the_same_scores() {
    let server = Server::start(&[]);
    let (prompt, answer, _) = chosen(&server);
    let whole = [&prompt[..], &answer].concat();
    for max_tokens in [0, 5] {
        let body = server.ask(COMPLETIONS, &score(&whole, max_tokens, false));
        let chunks = server.post(COMPLETIONS, &score(&whole, max_tokens, true).to_string()).chunks();
        assert_eq!(streamed_text(&chunks, 0), body["choices"][0]["text"]);
        for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let of = |chunk: &Value| chunk["choices"][0]["logprobs"][column].as_array().cloned().unwrap_or_default();
            let streamed: Vec<Value> = chunks.iter().flat_map(of).collect();
            assert_eq!(streamed, *body["choices"][0]["logprobs"][column].as_array().unwrap(), "{column}");
        }
    }
}

#[test]
fn scores_are_the_same_beside_others_and_where_blocks_run_short() {
    let server = Server::start(&["--kv-cache-mb", "7", "--max-context", "512"]);
    let prompts: Vec<Vec<u32>> = (0..6).map(|first| (0..90).map(|at| 5 + first + at % 40).collect()).collect();
    let alone: Vec<Value> = prompts.iter().map(|prompt| server.ask(COMPLETIONS, &score(prompt, 200, false))).collect();
    let mut clients: Vec<_> = (0..2 * prompts.len()).map(|_| server.connect()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        let prompt = &prompts[index / 2];
        let generate =
            json!({"prompt": prompt, "max_tokens": 200, "temperature": 1, "seed": index, "ignore_eos": true});
        let body = if index % 2 == 0 { score(prompt, 200, false) } else { generate };
        client.send_post(COMPLETIONS, body.to_string().as_bytes());
    }
    for (index, client) in clients.iter_mut().enumerate() {
        let answer = client.answer();
        assert_eq!(answer.status, 200, "{}", answer.text());
        if index % 2 == 0 {
            assert_eq!(answer.json()["choices"], alone[index / 2]["choices"]);
        }
    }
    assert!(server.metric("bitnet_preemptions_total") > 0.0, "{}", server.first_words);
    assert!(server.becomes_quiet());
}
