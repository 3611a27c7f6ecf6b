//! Other programs' attention beside ours, by a python that has them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use super::trees::{Case, Tree};
use crate::failure::{Failure, Result};

const SCRIPT: &str = concat!(
    include_str!("attention_peers/common.py"),
    include_str!("attention_peers/torch.py"),
    include_str!("attention_peers/ggml.py"),
    include_str!("attention_peers/chunk_attention.py"),
    include_str!("attention_peers/serve.py"),
);

/// A python that answers line by line.
pub struct Peers {
    python: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Of each peer that it has, by name.
    pub versions: Vec<(String, String)>,
}

/// A case that a peer is ready to run, in the form in which it is fastest here.
pub struct Form {
    pub form: String,
    /// Seconds for a layer in each form that was tried.
    pub tried: Value,
}

impl Form {
    /// `None` where the peer has none.
    fn of(answer: &Value) -> Option<Form> {
        Some(Form { form: answer["form"].as_str()?.to_owned(), tried: answer["tried"].clone() })
    }
}

/// What a peer took: seconds for a layer.
pub struct Beside {
    pub peer: String,
    pub form: Form,
    pub seconds: Vec<f64>,
}

impl Peers {
    /// `ggml`: the folder of its libraries, if the python's own are not wanted.
    pub fn start(python: &Path, threads: usize, ggml: Option<&Path>) -> Result<Peers> {
        if let Some(folder) = ggml.filter(|folder| !folder.is_dir()) {
            let what = format!("--ggml: {} is not a folder", folder.display());
            return Err(Failure::usage(what, "the one with the libggml* of a build of llama.cpp"));
        }
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT, &threads.to_string()]).args(ggml);
        // Their threads must not spin while ours compute.
        command.envs([("OMP_WAIT_POLICY", "passive"), ("KMP_BLOCKTIME", "0")]);
        Peers::from(command)
    }

    fn from(mut command: Command) -> Result<Peers> {
        let name = command.get_program().display().to_string();
        let failed = |e: std::io::Error| Failure::usage(format!("--python: {name}: {e}"), "a python with torch");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are pipes");
        };
        let output = BufReader::new(output);
        let mut peers = Peers { python: name, child, input, output, versions: Vec::new() };
        let versions = peers.answer("peers")?;
        let version =
            |(name, version): (&String, &Value)| (name.clone(), version.as_str().unwrap_or_default().to_owned());
        peers.versions = versions.as_object().into_iter().flatten().map(version).collect();
        Ok(peers)
    }

    /// Lets the peers make the keys and values of a case; those that have a form for it, by name.
    pub fn load(&mut self, case: &Case, layers: usize) -> Result<BTreeMap<String, Form>> {
        let (batch, rows, shared, own) = match case.tree {
            Tree::Flat { batch, shared, own } => (batch, 1, shared, own),
            Tree::Prefill { batch, shared, rows } => (batch, rows, shared, rows),
            Tree::Levels { .. } | Tree::Comb { .. } | Tree::Draft { .. } => return Ok(BTreeMap::new()),
        };
        self.ask(&json!({
            "batch": batch, "rows": rows, "shared": shared, "own": own, "layers": layers,
            "heads": case.heads.q, "kv_heads": case.heads.kv, "head_dim": case.heads.dim,
        }))?;
        let loaded = self.answer("loaded")?;
        let form = |(peer, form): (&String, &Value)| Some((peer.clone(), Form::of(form)?));
        Ok(loaded.as_object().into_iter().flatten().filter_map(form).collect())
    }

    /// All layers of the loaded case once, by the peer of this name.
    pub fn run(&mut self, peer: &str) -> Result<()> {
        self.ask(&peer.into())?;
        self.answer("seconds").map(drop)
    }

    fn ask(&mut self, what: &Value) -> Result<()> {
        writeln!(self.input, "{what}").map_err(|e| self.failed(&e.to_string()))
    }

    fn answer(&mut self, field: &str) -> Result<Value> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(|e| self.failed(&e.to_string()))?;
        let mut answer: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(error) = answer["error"].as_str() {
            return Err(self.failed(error));
        }
        match answer.get_mut(field).map(Value::take) {
            None | Some(Value::Null) => Err(self.failed("ended without an answer")),
            Some(value) => Ok(value),
        }
    }

    fn failed(&self, what: &str) -> Failure {
        let python = &self.python;
        Failure::new(format!("--python: {python}: {what}"), format!("{python} -m pip install torch llama-cpp-python"))
    }
}

impl Drop for Peers {
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
    fn program(body: &str) -> Result<Peers> {
        let mut command = Command::new("sh");
        command.args(["-c", body]);
        Peers::from(command)
    }

    #[test]
    fn a_python_without_peers_is_a_clear_error() {
        let error = |started: Result<Peers>| started.err().expect("no peers");
        let missing = error(Peers::start(Path::new("/nowhere/python"), 1, None));
        assert!(missing.what.starts_with("--python: /nowhere/python: "), "{}", missing.what);
        let without = error(program(r#"echo '{"error": "none is installed there"}'"#));
        assert_eq!(without.what, "--python: sh: none is installed there");
        assert_eq!(without.hint, "sh -m pip install torch llama-cpp-python");
        let folder = error(Peers::start(Path::new("sh"), 1, Some(Path::new("/nowhere"))));
        assert_eq!(folder.what, "--ggml: /nowhere is not a folder");
        // A shell cannot run the script.
        assert!(error(Peers::start(Path::new("sh"), 1, None)).what.ends_with("ended without an answer"));
    }

    #[test]
    fn the_script_says_what_a_bare_python_lacks() {
        let mut command = Command::new("python3");
        command.args(["-I", "-S", "-c", SCRIPT, "1"]);
        let what = Peers::from(command).err().expect("no packages").what;
        // Or there is no such program on this machine.
        let said = ["none of torch, llama_cpp, chunk_attn is installed there", "(os error 2)"];
        assert!(said.iter().any(|said| what.ends_with(said)), "{what}");
    }

    #[test]
    fn cases_are_asked_and_answered_line_by_line() {
        let answers = r#"
            echo '{"peers": {"torch": "9.9", "ggml": "1"}}'
            read a; echo '{"loaded": {"torch": {"form": "bf16", "tried": {"f32": 2, "bf16": 1}}, "ggml": null}}'
            read b; [ "$b" = '"torch"' ] && echo '{"seconds": 0.5}'
            read c; echo '{"error": "out of memory"}'"#;
        let mut peers = program(answers).ok().unwrap();
        assert_eq!(peers.versions, [("torch".into(), "9.9".into()), ("ggml".into(), "1".into())]);
        let heads = Heads { q: 4, kv: 2, dim: 64 };
        let draft = Case { tree: Tree::Draft { batch: 1, context: 64, nodes: &[1, 2] }, heads };
        assert!(peers.load(&draft, 1).ok().unwrap().is_empty());
        let flat = Case { tree: Tree::Flat { batch: 2, shared: 64, own: 0 }, heads };
        let loaded = peers.load(&flat, 3).ok().unwrap();
        assert_eq!(loaded.len(), 1, "the other has no form for it");
        assert_eq!((loaded["torch"].form.as_str(), &loaded["torch"].tried["f32"]), ("bf16", &2.into()));
        assert!(peers.run("torch").is_ok());
        assert!(peers.run("torch").unwrap_err().what.ends_with("out of memory"));
    }
}
