//! Memory is counted before anything is read.

use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::child::{PATIENCE, kvist, output, texts};
use crate::temp::{SMALL, TempDir};

/// A model whose weights are a file without content: all zero, and none of it on the disk. `None` where the file system
/// has no such files.
fn sparse(hidden: u64, intermediate: u64, layers: u64) -> Option<TempDir> {
    let dir = TempDir::new();
    let (head_dim, vocab) = (128, 4096);
    let config = json!({
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": hidden / head_dim, "intermediate_size": intermediate, "head_dim": head_dim,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    fs::write(dir.0.join("config.json"), config.to_string()).unwrap();
    fs::copy(format!("{SMALL}/tokenizer.json"), dir.0.join("tokenizer.json")).unwrap();
    let mut header = Map::new();
    let mut at: u64 = 0;
    let mut tensor = |name: String, shape: &[u64]| {
        let end = at + 2 * shape.iter().product::<u64>();
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    };
    let (h, i) = (hidden, intermediate);
    tensor("model.embed_tokens.weight".into(), &[vocab, h]);
    tensor("model.norm.weight".into(), &[h]);
    for layer in 0..layers {
        for part in ["q", "k", "v", "o"] {
            tensor(format!("model.layers.{layer}.self_attn.{part}_proj.weight"), &[h, h]);
        }
        for (part, shape) in [("gate", [i, h]), ("up", [i, h]), ("down", [h, i])] {
            tensor(format!("model.layers.{layer}.mlp.{part}_proj.weight"), &shape);
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensor(format!("model.layers.{layer}.{norm}.weight"), &[h]);
        }
    }
    let text = Value::Object(header).to_string();
    let mut file = File::create(dir.0.join("model.safetensors")).unwrap();
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_len(8 + text.len() as u64 + at).ok()?;
    Some(dir)
}

#[test]
fn a_model_that_is_too_large_is_refused_before_it_is_read() {
    // 690 billion weights.
    let Some(dir) = sparse(32_768, 131_072, 40) else {
        eprintln!("SKIPPED: the file system has no sparse files of 1.3 TB");
        return;
    };
    for command in ["serve", "run"] {
        let (out, errors, code) = output(&[command, dir.path(), "--kv-ram", "1GiB", "--ctx", "64"]);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{errors}");
        assert!(errors.starts_with("error: not enough memory: weights 1.3 TiB + "), "{errors}");
        assert!(errors.contains(" = 1.3 TiB, but ") && errors.contains(" are free"), "{errors}");
        assert!(errors.contains("\nhint: choose a smaller model"), "{errors}");
    }
    let (out, errors, code) = output(&["doctor", "--no-measure", "--json", dir.path()]);
    assert_eq!((code, errors.as_str()), (Some(1), ""));
    let report: Value = serde_json::from_str(&out).unwrap();
    assert!(report["fits"]["weights"].as_u64() > Some(1 << 40), "{}", report["fits"]);
    assert_eq!((report["fits"]["largest_kv_ram"].as_u64(), report["verdict"].as_str()), (Some(0), Some("fail")));
}

#[test]
fn a_signal_while_the_model_loads_ends_at_once() {
    let Some(dir) = sparse(4096, 16_384, 2) else { return };
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let port = address.port().to_string();
    let args = ["serve", dir.path(), "--port", &port, "--kv-ram", "64MiB", "--ctx", "64", "--threads", "1"];
    let mut child = kvist(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It listens before it loads.
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it does not listen");
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let (page, errors, code) = texts(child.wait_with_output().unwrap());
    assert_eq!((code, page.as_str()), (Some(0), ""), "{errors}");
    // A warning that the model has no chat template may come before the signal does.
    assert!(errors.contains("stopping: 0 requests running") && !errors.contains("error"), "{errors}");
}
