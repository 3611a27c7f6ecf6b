//! llama.cpp's `llama-bench` on the same file, in turns with the engine.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::figures::median;
use super::workload::Workload;
use crate::failure::{Failure, Result};

const PREFILL: usize = 512;
const DECODE: usize = 32;
const TURNS: usize = 3;

/// Tokens per second of both, one figure for each turn.
pub struct Compared {
    name: String,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Compared {
    fn ratio(&self) -> f64 {
        median(&self.ours) / median(&self.theirs)
    }
}

/// Runs both in turns: a prompt alone, and the tokens of one sequence from the start of its context.
pub fn compare(
    work: &mut Workload,
    program: &Path,
    model: &Path,
    threads: usize,
    note: &dyn Fn(&str),
) -> Result<[Compared; 2]> {
    let compared = |name: String| Compared { name, ours: Vec::new(), theirs: Vec::new() };
    let mut prefill = compared(format!("prefill, {PREFILL} tokens"));
    let mut decode = compared(format!("decode, 1 sequence, {DECODE} tokens"));
    for turn in 1..=TURNS {
        note(&format!("both in turns, {turn} of {TURNS}"));
        let mut prompt = work.tokens(PREFILL);
        prefill.ours.push(PREFILL as f64 / (work.single(&mut prompt, 1)?.first as f64 / 1e6));
        let start = vec![work.tokens(1)];
        decode.ours.push(1e6 / work.decode_some(&start, DECODE, note)?.step);
        let [pp, tg] = llama_bench(program, model, threads)?;
        prefill.theirs.push(pp);
        decode.theirs.push(tg);
    }
    Ok([prefill, decode])
}

/// Tokens per second of prefill and decode, by one run of the program.
fn llama_bench(program: &Path, model: &Path, threads: usize) -> Result<[f64; 2]> {
    let (pp, tg, threads) = (PREFILL.to_string(), DECODE.to_string(), threads.to_string());
    let failed = |what: String| Failure::new(format!("{}: {what}", program.display()), "run it by hand on this model");
    let output = Command::new(program)
        .args(["-p", &pp, "-n", &tg, "-t", &threads, "-r", "1", "-o", "json", "-m"])
        .arg(model)
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(failed(errors.lines().last().unwrap_or("failed").to_owned()));
    }
    rates(&output.stdout).ok_or_else(|| failed("printed no rates of prompt and generation".into()))
}

/// Of its JSON.
fn rates(printed: &[u8]) -> Option<[f64; 2]> {
    let tests: Value = serde_json::from_slice(printed).ok()?;
    let rate = |of: &str, other: &str| {
        let test = tests.as_array()?.iter().find(|test| test[of].as_u64() > Some(0) && test[other] == 0)?;
        test["avg_ts"].as_f64().filter(|rate| *rate > 0.0)
    };
    Some([rate("n_prompt", "n_gen")?, rate("n_gen", "n_prompt")?])
}

/// For people.
pub fn table(compared: &[Compared]) -> String {
    let mut out = format!("{:<32}{:>14}{:>14}{:>9}\n", "tok/s", "kvist", "llama.cpp", "ratio");
    for c in compared {
        out += &format!("{:<32}{:>14.1}{:>14.1}{:>8.2}x\n", c.name, median(&c.ours), median(&c.theirs), c.ratio());
    }
    out
}

pub fn json(compared: &[Compared]) -> Value {
    let entry = |c: &Compared| json!({"name": c.name, "kvist": c.ours, "llama_cpp": c.theirs, "ratio": c.ratio()});
    compared.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_found_in_what_it_prints() {
        let printed =
            br#"[{"n_prompt": 512, "n_gen": 0, "avg_ts": 43.5}, {"n_prompt": 0, "n_gen": 32, "avg_ts": 12.5}]"#;
        assert_eq!(rates(printed), Some([43.5, 12.5]));
        assert_eq!(rates(br#"[{"n_prompt": 512, "n_gen": 0, "avg_ts": 43.5}]"#), None);
        assert_eq!(rates(b"error: no such model"), None);
    }

    #[test]
    fn a_program_that_cannot_run_is_an_error() {
        let failed = |program: &str| llama_bench(Path::new(program), Path::new("model.gguf"), 1).unwrap_err();
        assert!(failed("/nowhere/llama-bench").what.starts_with("/nowhere/llama-bench: "));
        assert_eq!(failed("/proc/self/mem").hint, "run it by hand on this model");
    }

    #[test]
    fn the_ratio_is_that_of_medians() {
        let c = Compared { name: "prefill".into(), ours: vec![9.0, 4.0, 1.0], theirs: vec![2.0, 2.0, 50.0] };
        assert_eq!(c.ratio(), 2.0);
        assert!(table(&[c]).contains("2.00x"));
    }
}
