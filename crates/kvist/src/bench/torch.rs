//! torch's attention beside ours, by a python that has it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use super::trees::{Case, Tree};
use crate::failure::{Failure, Result};

const SCRIPT: &str = include_str!("torch_attention.py");

/// Seconds for a layer, and in which form torch was fastest.
pub struct Beside {
    pub dtype: String,
    pub seconds: Vec<f64>,
}

/// A python that answers line by line.
pub struct Torch {
    python: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub version: String,
}

/// A case that torch is ready to run.
pub struct Loaded<'a> {
    torch: &'a mut Torch,
    pub dtype: String,
}

impl Torch {
    pub fn start(python: &Path, threads: usize) -> Result<Torch> {
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT, &threads.to_string()]);
        // Its threads must not spin while ours compute.
        command.envs([("OMP_WAIT_POLICY", "passive"), ("KMP_BLOCKTIME", "0")]);
        Torch::from(command)
    }

    fn from(mut command: Command) -> Result<Torch> {
        let name = command.get_program().display().to_string();
        let failed = |e: std::io::Error| Failure::usage(format!("--python: {name}: {e}"), "a python with torch");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are pipes");
        };
        let output = BufReader::new(output);
        let mut torch = Torch { python: name, child, input, output, version: String::new() };
        let version = torch.answer("torch")?;
        torch.version = version.as_str().unwrap_or_default().to_owned();
        Ok(torch)
    }

    /// Lets torch make the keys and values of a case; `None` where it has no form for it.
    pub fn load(&mut self, case: &Case, layers: usize) -> Result<Option<Loaded<'_>>> {
        let (batch, rows, shared, own) = match case.tree {
            Tree::Flat { batch, shared, own } => (batch, 1, shared, own),
            Tree::Prefill { batch, shared, rows } => (batch, rows, shared, rows),
            Tree::Levels { .. } | Tree::Comb { .. } | Tree::Draft { .. } => return Ok(None),
        };
        let shape = json!({
            "batch": batch, "rows": rows, "shared": shared, "own": own, "layers": layers,
            "heads": case.heads.q, "kv_heads": case.heads.kv, "head_dim": case.heads.dim,
        });
        self.ask(&shape)?;
        let dtype = self.answer("dtype")?.as_str().unwrap_or_default().to_owned();
        Ok(Some(Loaded { torch: self, dtype }))
    }

    fn ask(&mut self, what: &Value) -> Result<()> {
        writeln!(self.input, "{what}").map_err(|e| self.failed(&e.to_string()))
    }

    fn answer(&mut self, field: &str) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|e| self.failed(&e.to_string()))?;
        let answer: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(error) = answer["error"].as_str() {
            return Err(self.failed(error));
        }
        match &answer[field] {
            Value::Null => Err(self.failed("ended without an answer")),
            value => Ok(value.clone()),
        }
    }

    fn failed(&self, what: &str) -> Failure {
        let Torch { python, .. } = self;
        Failure::new(format!("--python: {python}: {what}"), format!("{python} -m pip install torch"))
    }
}

impl Loaded<'_> {
    /// All layers once.
    pub fn run(&mut self) -> Result<()> {
        self.torch.ask(&Value::Null)?;
        self.torch.answer("seconds").map(drop)
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It may be gone already, and there is nothing to learn from how it ends.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::super::trees::Heads;
    use super::*;

    /// A program that answers as a python would.
    fn program(body: &str) -> Result<Torch> {
        let mut command = Command::new("sh");
        command.args(["-c", body]);
        Torch::from(command)
    }

    #[test]
    fn a_python_without_torch_is_a_clear_error() {
        let error = |started: Result<Torch>| started.err().expect("no torch");
        let missing = error(Torch::start(Path::new("/nowhere/python"), 1));
        assert!(missing.what.starts_with("--python: /nowhere/python: "), "{}", missing.what);
        let without = error(program(r#"echo '{"error": "No module named torch"}'"#));
        assert_eq!(without.what, "--python: sh: No module named torch");
        assert_eq!(without.hint, "sh -m pip install torch");
        // A shell cannot run the script.
        assert!(error(Torch::start(Path::new("sh"), 1)).what.ends_with("ended without an answer"));
    }

    #[test]
    fn cases_are_asked_and_answered_line_by_line() {
        let answers =
            r#"echo '{"torch": "9.9"}'; read a; echo '{"dtype": "bf16"}'; read b; echo '{"seconds": 0.5}'; read c"#;
        let mut torch = program(answers).ok().unwrap();
        assert_eq!(torch.version, "9.9");
        let heads = Heads { q: 4, kv: 2, dim: 64 };
        let draft = Case { tree: Tree::Draft { batch: 1, context: 64, nodes: &[1, 2] }, heads };
        assert!(torch.load(&draft, 1).ok().unwrap().is_none());
        let flat = Case { tree: Tree::Flat { batch: 2, shared: 64, own: 0 }, heads };
        let mut loaded = torch.load(&flat, 3).ok().flatten().unwrap();
        assert_eq!(loaded.dtype, "bf16");
        assert!(loaded.run().is_ok());
    }
}
