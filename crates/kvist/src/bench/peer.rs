//! llama.cpp's benchmarks on the same file, in turns with the engine.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::cases::Kind;
use crate::failure::{Failure, Result};

/// Programs to run beside the engine, and what they run on.
pub struct Peers {
    pub llama_bench: Option<PathBuf>,
    pub llama_batched_bench: Option<PathBuf>,
    pub model: PathBuf,
    pub threads: usize,
}

impl Peers {
    /// Tokens per second of llama.cpp; `None` where no program is given that measures the case.
    pub fn measure(&self, kind: Kind) -> Result<Option<f64>> {
        let threads = self.threads.to_string();
        if let (Some(program), Some([prompt, tokens, depth])) = (&self.llama_bench, kind.llama_bench()) {
            let [prompt, tokens, depth] = [prompt, tokens, depth].map(|n| n.to_string());
            let args = ["-p", &prompt, "-n", &tokens, "-d", &depth, "-t", &threads, "-r", "1", "-o", "json"];
            return run(program, &self.model, &args, prompt_or_generation).map(Some);
        }
        if let (Some(program), Some(case)) = (&self.llama_batched_bench, kind.llama_batched_bench()) {
            let mut args: Vec<&str> = case.iter().map(String::as_str).collect();
            args.extend(["-t", &threads, "-tb", &threads, "--output-format", "jsonl"]);
            return run(program, &self.model, &args, batched_generation).map(Some);
        }
        Ok(None)
    }
}

fn run(program: &Path, model: &Path, args: &[&str], rate: impl Fn(&[u8]) -> Option<f64>) -> Result<f64> {
    let failed = |what: String| Failure::new(format!("{}: {what}", program.display()), "run it by hand on this model");
    let output = Command::new(program).args(args).arg("-m").arg(model).output().map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(failed(errors.lines().last().unwrap_or("failed").to_owned()));
    }
    rate(&output.stdout).filter(|rate| *rate > 0.0).ok_or_else(|| failed("printed no rate".into()))
}

/// Of the one test in the JSON of `llama-bench`.
fn prompt_or_generation(printed: &[u8]) -> Option<f64> {
    serde_json::from_slice::<Value>(printed).ok()?.as_array()?.first()?["avg_ts"].as_f64()
}

/// Of the one line of JSON of `llama-batched-bench`, which prints other lines, too.
fn batched_generation(printed: &[u8]) -> Option<f64> {
    let mut lines = printed.split(|&byte| byte == b'\n');
    lines.find_map(|line| serde_json::from_slice::<Value>(line).ok()?["speed_tg"].as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_found_in_what_they_print() {
        let printed = br#"[{"n_prompt": 512, "n_gen": 0, "avg_ts": 43.5}]"#;
        assert_eq!(prompt_or_generation(printed), Some(43.5));
        assert_eq!(prompt_or_generation(b"error: no such model"), None);
        let printed = b"note\n{\"pp\": 128, \"tg\": 8, \"speed_pp\": 6274.8, \"speed_tg\": 2185.5}\n\n";
        assert_eq!(batched_generation(printed), Some(2185.5));
        assert_eq!(batched_generation(b"|    PP |\n"), None);
    }

    #[test]
    fn a_program_that_cannot_run_is_an_error() {
        let failed = |program: &str| {
            let model = PathBuf::from("model.gguf");
            let peers = Peers { llama_bench: Some(program.into()), llama_batched_bench: None, model, threads: 1 };
            peers.measure(Kind::Prefill(8)).unwrap_err()
        };
        assert!(failed("/nowhere/llama-bench").what.starts_with("/nowhere/llama-bench: "));
        assert_eq!(failed("/proc/self/mem").hint, "run it by hand on this model");
    }
}
