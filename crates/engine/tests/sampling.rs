//! Adjusting and drawing, against what transformers' logits processors give (tools/make_sampling_fixture.py).

use std::sync::Arc;

use kvist_base::{DomainId, TokenId};
use kvist_engine::{Edits, Request, RequestId, Sampling, Seen, adjust, sample};
use serde_json::Value;

const DRAWS: usize = 40_000;

fn fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/sampling.json")).unwrap()
}

fn ids(list: &Value) -> Vec<TokenId> {
    list.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as TokenId).collect()
}

fn floats(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap_or(f64::NEG_INFINITY)).collect()
}

fn row(list: &Value) -> Vec<f32> {
    floats(list).iter().map(|&x| x as f32).collect()
}

fn request(case: &Value, stops: &Value) -> Request {
    let number = |name: &str| case[name].as_f64().unwrap() as f32;
    let bias = case["bias"].as_array().unwrap().iter();
    Request {
        id: RequestId(0),
        domain: DomainId(2),
        prompt: ids(&case["prompt"]),
        n: 1,
        max_tokens: 100,
        sampling: Sampling {
            temperature: number("temperature"),
            top_k: case["top_k"].as_u64().unwrap() as u32,
            top_p: number("top_p"),
            min_p: number("min_p"),
            repetition_penalty: number("repetition_penalty"),
            presence_penalty: number("presence_penalty"),
            frequency_penalty: number("frequency_penalty"),
            seed: 17,
        },
        edits: Arc::new(Edits {
            bias: bias.map(|b| (b[0].as_u64().unwrap() as TokenId, b[1].as_f64().unwrap() as f32)).collect(),
            allowed: (!case["allowed"].is_null()).then(|| ids(&case["allowed"])),
            bad_words: case["bad_words"].as_array().unwrap().iter().map(ids).collect(),
            min_tokens: case["min_tokens"].as_u64().unwrap() as u32,
        }),
        stop_tokens: ids(stops),
        constraint: None,
        logprobs: None,
        prompt_logprobs: None,
        priority: 0,
        ttft_slo: None,
        carry: None,
    }
}

fn seen_of(request: &Request, output: &[TokenId]) -> Option<Seen> {
    let tokens = [&request.prompt, output].concat();
    Seen::new(&request.sampling, &tokens, request.prompt.len())
}

#[test]
fn logits_and_probabilities_are_those_of_transformers() {
    let fixture = fixture();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    for (i, case) in cases.iter().enumerate() {
        let request = request(case, &fixture["stops"]);
        let (output, logits) = (ids(&case["output"]), row(&case["logits"]));
        let mut scratch = vec![7.0; 3];
        let seen = seen_of(&request, &output);
        let adjusted = adjust(&logits, &request, &output, seen.as_ref(), &mut scratch);
        for (t, (&got, want)) in adjusted.iter().zip(row(&case["adjusted"])).enumerate() {
            assert!(
                got == want || (got - want).abs() <= 1e-5 * want.abs().max(1.0),
                "case {i}, token {t}: {got}, {want}"
            );
        }
        let expected = floats(&case["probabilities"]);
        let mut drawn = vec![0.0; expected.len()];
        for position in 0..DRAWS {
            drawn[sample(adjusted, &request.sampling, 0, position).unwrap() as usize] += 1.0;
        }
        let mut chi = 0.0;
        for (t, (d, p)) in drawn.iter().zip(&expected).enumerate() {
            let e = p * DRAWS as f64;
            assert!(*p > 0.0 || *d == 0.0, "case {i}: token {t} was drawn {d} times, transformers drops it");
            assert!(e < 30.0 || *d > 0.0, "case {i}: token {t} was never drawn, transformers has it at {p}");
            // Rare tokens would need another statistic; the draws are a fixed function, so this is no chance.
            if e >= 5.0 {
                chi += (d - e) * (d - e) / e;
            }
        }
        assert!(chi < 70.0, "case {i}: chi^2 = {chi}: {drawn:?}, {expected:?}");
        let greedy = Sampling { temperature: 0.0, ..request.sampling };
        let best = (0..expected.len()).max_by(|&a, &b| adjusted[a].total_cmp(&adjusted[b])).unwrap();
        assert_eq!(sample(adjusted, &greedy, 0, 0), Some(best as TokenId));
    }
}

/// What is kept up token by token is what is made of all tokens at once, wherever it was dropped and made again.
#[test]
fn counts_are_a_function_of_the_tokens() {
    let fixture = fixture();
    for case in fixture["cases"].as_array().unwrap() {
        let request = request(case, &fixture["stops"]);
        let output = ids(&case["output"]);
        for start in 0..output.len() {
            let mut seen = seen_of(&request, &output[..start]);
            output[start..].iter().for_each(|&t| seen.iter_mut().for_each(|s| s.push(t)));
            assert_eq!(seen, seen_of(&request, &output));
        }
    }
}

#[test]
fn a_row_that_nothing_changes_is_not_copied() {
    let fixture = fixture();
    let mut request = request(&fixture["cases"][0], &fixture["stops"]);
    let logits = row(&fixture["cases"][0]["logits"]);
    request.edits = Arc::new(Edits { min_tokens: 2, ..Edits::default() });
    let mut scratch = Vec::new();
    assert_ne!(adjust(&logits, &request, &[5], None, &mut scratch), logits);
    assert_eq!(adjust(&logits, &request, &[5, 5], None, &mut scratch).as_ptr(), logits.as_ptr());
}

#[test]
fn extremes_leave_numbers_to_draw_from() {
    let fixture = fixture();
    let mut request = request(&fixture["cases"][0], &fixture["stops"]);
    request.sampling = Sampling { repetition_penalty: f32::MIN_POSITIVE, ..Sampling::GREEDY };
    request.edits = Arc::new(Edits { bias: vec![(99, 1.0)], bad_words: vec![vec![]], ..Edits::default() });
    request.stop_tokens = vec![u32::MAX];
    let logits = [30.0f32, f32::NEG_INFINITY, f32::NAN, -3.0];
    let mut scratch = Vec::new();
    let seen = Seen::new(&request.sampling, &[0, 1, 2, 3, 77], 4);
    let adjusted = adjust(&logits, &request, &[77], seen.as_ref(), &mut scratch);
    assert_eq!((adjusted[0], adjusted[1]), (f32::MAX, f32::NEG_INFINITY));
    assert_eq!(sample(adjusted, &request.sampling, 0, 0), Some(0));
    request.edits = Arc::new(Edits { allowed: Some(vec![1]), ..Edits::default() });
    let adjusted = adjust(&logits, &request, &[77], None, &mut scratch);
    assert_eq!(sample(adjusted, &request.sampling, 0, 0), None);
}
