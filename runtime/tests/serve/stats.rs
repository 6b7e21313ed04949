//! What the server says that it has done, against what was done with it.

use serde_json::json;

use crate::server::Server;

#[test]
fn stats_are_what_happened_and_bad_ranges_are_named() {
    let server = Server::start(&[]);
    for (query, param) in [
        ("time_range=0h", "time_range"),
        ("time_range=721h", "time_range"),
        ("time_range=31d", "time_range"),
        ("time_range=1%68", "time_range"),
        ("include_details=yes", "include_details"),
        ("window=1h", "window"),
    ] {
        let answer = server.get(&format!("/v1/stats?{query}"));
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(param)), "{query}");
    }
    let nothing = server.get("/v1/stats").json();
    assert_eq!(nothing["time_range_seconds"], 86_400);
    assert_eq!(nothing["inference_stats"]["requests_started"], 0);
    assert_eq!(nothing["inference_stats"]["time_to_first_token_ms"]["p99"], json!(null), "no request, no time");

    for _ in 0..3 {
        server.ask("/v1/completions", &json!({"prompt": "Once", "max_tokens": 5, "ignore_eos": true, "n": 2}));
    }
    assert_eq!(server.post("/v1/completions", "{").status, 400);
    let stats = server.get("/v1/stats?time_range=1h&include_details=true").json();
    let (served, inferred) = (&stats["server_stats"], &stats["inference_stats"]);
    assert_eq!((&inferred["requests_started"], &inferred["requests_active"]), (&json!(3), &json!(0)), "{stats}");
    assert_eq!(inferred["sequences_finished"], json!({"stop": 0, "length": 6, "cancelled": 0, "failed": 0}));
    assert_eq!(inferred["generated_tokens"], 30);
    assert_eq!(inferred["time_to_first_token_ms"]["count"], 3);
    let quantiles = ["p50", "p95", "p99"].map(|name| inferred["request_ms"][name].as_f64().unwrap());
    assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{quantiles:?}");
    assert_eq!(served["responses"]["4xx"], 7);
    assert_eq!(served["responses"]["2xx"], 4, "three answers and the stats before");
    assert_eq!(served["responses_total"], 11);
    assert!(stats["batch_stats"]["steps"].as_u64().unwrap() >= 5, "{stats}");
    let (covered, uptime) = (stats["covered_seconds"].as_f64().unwrap(), served["uptime_seconds"].as_f64().unwrap());
    assert!(covered > 0.0 && covered <= uptime && uptime < 3600.0, "{covered} of {uptime} s");
    assert_eq!(stats["since"], served["started_at"], "it counts from its start on");
    let timeline = stats["details"]["timeline"].as_array().unwrap();
    let told: u64 = timeline.iter().map(|part| part["generated_tokens"].as_u64().unwrap()).sum();
    assert_eq!(told, 30, "{timeline:?}");
    assert_eq!(stats["details"]["shards"].as_array().map(Vec::len), served["shards"].as_u64().map(|n| n as usize));
    assert_eq!(server.post("/v1/stats", "{}").status, 405);
}
