//! The README's curl lines, run as they stand.

use std::path::Path;
use std::process::Command;

use crate::child::Served;

/// The fenced blocks of the README that call curl.
fn curl_lines() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = std::fs::read_to_string(path).unwrap();
    text.split("```\n").skip(1).step_by(2).filter(|block| block.starts_with("curl ")).map(String::from).collect()
}

#[test]
fn its_curl_lines_work() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no curl");
        return;
    }
    let lines = curl_lines();
    assert!(lines.len() >= 4, "{lines:?}");
    let served = Served::start(&[]);
    for line in lines {
        assert!(line.contains("http://127.0.0.1:8080/"), "{line}");
        let script = line.replace("127.0.0.1:8080", &served.address.to_string());
        let script = script.replacen("curl ", "curl --silent --show-error --fail-with-body --max-time 100 ", 1);
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let body = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{line}{body}{}", String::from_utf8_lossy(&output.stderr));
        if line.contains("/metrics") {
            assert!(body.contains("vllm:prompt_tokens_total"), "{body}");
        } else if line.contains("\"stream\": true") {
            assert!(body.ends_with("data: [DONE]\n\n") && body.contains("\"cached_tokens\""), "{body}");
        } else {
            let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() > 0, "{answer}");
            if line.contains("What is the code of blue owl?") {
                assert_eq!(answer["choices"][0]["message"]["content"], "77", "as the README says");
            }
        }
    }
}
