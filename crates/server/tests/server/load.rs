//! Many clients at once, and what the metrics say afterwards.

use serde_json::{Value, json};

use crate::harness::{Harness, Setup, text_of, tokenizer};

const CHAT: &str = "/v1/chat/completions";
const CLIENTS: u64 = 64;

fn body(system: &str, client: u64) -> Value {
    json!({
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": format!("I am client {client}.")}],
        "stream": true, "max_tokens": 24, "temperature": 0.8, "seed": client,
        "stream_options": {"include_usage": true},
    })
}

#[test]
fn sixty_four_streams_share_one_system_prompt() {
    let system: String = (0..500).map(|i| format!("Rule {i}: be kind. ")).collect();
    let ids = tokenizer().encode(&system, false).unwrap();
    let system = tokenizer().decode(&ids[..2000], true);
    // Each client alone on a cold server.
    let expected: Vec<String> = (0..CLIENTS)
        .map(|c| if c % 8 == 0 { text_of(&Harness::start().stream(CHAT, &body(&system, c)), 0) } else { String::new() })
        .collect();
    let h = Harness::with(Setup { chunks: 1024, ..Setup::default() });
    let streams: Vec<Vec<Value>> = std::thread::scope(|scope| {
        let (h, system) = (&h, &system);
        let handles: Vec<_> = (0..CLIENTS).map(|c| scope.spawn(move || h.stream(CHAT, &body(system, c)))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    let (mut computed, mut prompt) = (0, 0);
    for (client, chunks) in streams.iter().enumerate() {
        let usage = &chunks.last().unwrap()["usage"];
        computed += usage["kvist"]["computed_tokens"].as_u64().unwrap();
        prompt += usage["prompt_tokens"].as_u64().unwrap();
        assert_eq!(usage["completion_tokens"], 24);
        if client % 8 == 0 {
            assert_eq!(text_of(chunks, 0), expected[client], "client {client}");
        }
    }
    let own = prompt / CLIENTS - 2000;
    let bound = 2000 + CLIENTS * (own + 63);
    assert!(computed <= bound, "{computed} prompt tokens computed, {bound} allowed, {prompt} in all");
    h.until_empty();

    let text = h.get("/metrics").text();
    assert_eq!(h.get("/metrics").header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    check_exposition(&text);
    assert_eq!(h.metric("vllm:prompt_tokens_total"), prompt as f64);
    assert_eq!(h.metric("vllm:prompt_tokens_cached_total"), (prompt - computed) as f64);
    assert_eq!(h.metric("vllm:prefix_cache_hits_total"), (prompt - computed) as f64);
    assert_eq!(h.metric("vllm:generation_tokens_total"), 24.0 * CLIENTS as f64);
    assert_eq!(h.metric("vllm:request_success_total{finished_reason=\"length\"}"), CLIENTS as f64);
    assert_eq!(h.metric("vllm:time_to_first_token_seconds_count"), CLIENTS as f64);
    assert_eq!(h.metric("vllm:inter_token_latency_seconds_count"), 23.0 * CLIENTS as f64);
    assert_eq!(h.metric("vllm:e2e_request_latency_seconds_count"), CLIENTS as f64);
    assert_eq!(h.metric("vllm:num_requests_running"), 0.0);
    assert_eq!(h.metric("vllm:kv_cache_usage_perc"), 0.0);
    assert!(text.contains("vllm:cache_config_info{engine=\"0\",model_name=\"kvist-test\",block_size=\"64\""));
    let row_bytes = h.metric("kvist_kv_bytes{tier=\"ram\",state=\"idle\"}");
    assert_eq!(row_bytes, f64::from(h.stats().cache.evictable) * 64.0 * 8.0);
}

/// Every sample follows its type line, every name appears once, every value is a number.
fn check_exposition(text: &str) {
    let mut seen = std::collections::BTreeSet::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(seen.insert(name.to_owned()), "{name} twice");
            assert!(["gauge", "counter", "histogram"].contains(&kind));
            assert_eq!(kind == "counter", name.ends_with("_total") && kind != "histogram", "{name}");
            family = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (name, rest) = line.split_once('{').unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).filter(|b| *b == family);
            assert!(name == family || base.is_some(), "{name} after {family}");
            assert!(rest.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
    assert!(seen.len() > 30);
}

#[test]
fn ten_identical_prompts_compute_their_prefix_once() {
    let h = Harness::start();
    let prompt: Vec<u32> = (0..1500).map(|i| 5 + i % 4000).collect();
    h.knobs.close();
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let ask = || h.complete(&json!({"prompt": prompt, "max_tokens": 8})).ok();
        let handles: Vec<_> = (0..10).map(|_| scope.spawn(ask)).collect();
        std::thread::sleep(std::time::Duration::from_millis(100));
        h.knobs.open();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    let computed: u64 = answers.iter().map(|a| a["usage"]["kvist"]["computed_tokens"].as_u64().unwrap()).sum();
    assert!(computed <= 1500 + 10 * 64, "{computed} computed");
    assert!(answers.iter().all(|a| a["choices"] == answers[0]["choices"]));
    h.until_empty();
}
