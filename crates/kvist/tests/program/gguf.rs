//! `.gguf` files as MODEL: by path, in a directory, in a cache. The file is the embedded model, written here.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::child::{Served, kvist, output, texts};
use crate::temp::{Repo, SMALL, TempDir, read};

const ONE: [&str; 10] = [
    "--kv-ram",
    "32MiB",
    "--threads",
    "2",
    "--max-tokens",
    "12",
    "--temperature",
    "0",
    "--prompt",
    "What is a vector?",
];

/// Little-endian, as the format has it (github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, n: u64) -> &mut Writer {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn word(&mut self, n: u32) -> &mut Writer {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Writer {
        self.number(text.len() as u64).0.extend(text.as_bytes());
        self
    }

    fn texts(&mut self, texts: &[String]) {
        self.word(9).word(8).number(texts.len() as u64);
        texts.iter().for_each(|text| {
            self.text(text);
        });
    }
}

const TYPE_F32: u32 = 0;
const TYPE_BF16: u32 = 30;

/// The embedded model as llama.cpp's converter would write it in BF16.
fn small() -> Vec<u8> {
    let json = |name: &str| -> Value { serde_json::from_slice(&read(SMALL, name)).unwrap() };
    let (config, tokenizer, settings) = (json("config.json"), json("tokenizer.json"), json("tokenizer_config.json"));
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let mut meta = Writer::default();
    let mut keys = 0;
    let mut key = |meta: &mut Writer, name: &str| {
        meta.text(name);
        keys += 1;
    };
    for (name, value) in [
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "qwen2"),
        ("tokenizer.chat_template", settings["chat_template"].as_str().unwrap()),
    ] {
        key(&mut meta, name);
        meta.word(8).text(value);
    }
    for (name, value) in [
        ("llama.block_count", size("num_hidden_layers")),
        ("llama.context_length", size("max_position_embeddings")),
        ("llama.embedding_length", size("hidden_size")),
        ("llama.feed_forward_length", size("intermediate_size")),
        ("llama.attention.head_count", size("num_attention_heads")),
        ("llama.attention.head_count_kv", size("num_key_value_heads")),
        ("llama.rope.dimension_count", size("head_dim")),
        ("llama.vocab_size", size("vocab_size")),
        ("tokenizer.ggml.bos_token_id", size("bos_token_id")),
        ("tokenizer.ggml.eos_token_id", size("eos_token_id")),
    ] {
        key(&mut meta, name);
        meta.word(4).word(value as u32);
    }
    for (name, field) in
        [("llama.attention.layer_norm_rms_epsilon", "rms_norm_eps"), ("llama.rope.freq_base", "rope_theta")]
    {
        key(&mut meta, name);
        meta.word(6).word((config[field].as_f64().unwrap() as f32).to_bits());
    }
    let mut tokens = vec![String::new(); size("vocab_size")];
    for (text, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = text.clone();
    }
    let mut types = vec![1; tokens.len()];
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        tokens[id] = added["content"].as_str().unwrap().into();
        types[id] = 3;
    }
    key(&mut meta, "tokenizer.ggml.tokens");
    meta.texts(&tokens);
    let merges = tokenizer["model"]["merges"].as_array().unwrap();
    let merges = merges.iter().map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
    key(&mut meta, "tokenizer.ggml.merges");
    meta.texts(&merges.collect::<Vec<_>>());
    key(&mut meta, "tokenizer.ggml.token_type");
    meta.word(9).word(5).number(types.len() as u64);
    types.into_iter().for_each(|kind| {
        meta.word(kind);
    });

    let file = read(SMALL, "model.safetensors");
    let data = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..data]).unwrap();
    let (mut infos, mut bytes, mut tensors) = (Writer::default(), Vec::new(), 0);
    for (name, tensor) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        assert_eq!(tensor["dtype"], "BF16");
        let shape: Vec<usize> =
            tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let [from, to] = [0, 1].map(|i| data + tensor["data_offsets"][i].as_u64().unwrap() as usize);
        let mut content = file[from..to].to_vec();
        let mut kind = TYPE_BF16;
        if name.contains("q_proj") || name.contains("k_proj") {
            content = interleaved(&content, size("head_dim"), shape[1] * 2);
        } else if shape.len() == 1 {
            kind = TYPE_F32;
            content = content.as_chunks::<2>().0.iter().flat_map(|b| [0, 0, b[0], b[1]]).collect();
        }
        infos.text(&renamed(name)).word(shape.len() as u32);
        shape.iter().rev().for_each(|n| {
            infos.number(*n as u64);
        });
        infos.word(kind).number(bytes.len() as u64);
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        tensors += 1;
    }
    let mut out = Writer(b"GGUF".to_vec());
    out.word(3).number(tensors).number(keys);
    out.0.extend(meta.0);
    out.0.extend(infos.0);
    out.0.resize(out.0.len().next_multiple_of(32), 0);
    out.0.extend(bytes);
    out.0
}

/// Rows of q and k in the order of pairs that rotate together: `[head][half][2]` for `[head][2][half]`.
fn interleaved(rows: &[u8], head_dim: usize, row: usize) -> Vec<u8> {
    let order = |i: usize| i / head_dim * head_dim + i % 2 * (head_dim / 2) + i % head_dim / 2;
    (0..rows.len() / row).flat_map(|i| rows[order(i) * row..(order(i) + 1) * row].to_vec()).collect()
}

fn renamed(name: &str) -> String {
    let mut out = name.strip_prefix("model.").unwrap_or(name).to_owned();
    for (theirs, ours) in [
        ("layers.", "blk."),
        ("embed_tokens", "token_embd"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ] {
        out = out.replace(theirs, ours);
    }
    if out == "norm.weight" { "output_norm.weight".into() } else { out }
}

fn ran(model: &str) -> String {
    let (out, errors, code) = output(&[&["run"][..], &ONE, &[model]].concat());
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{model}");
    out
}

#[test]
fn a_file_runs_as_the_model_that_it_was_made_of() {
    let dir = TempDir::new();
    let file = dir.0.join("small-BF16.gguf");
    fs::write(&file, small()).unwrap();
    let embedded = output(&[&["run"][..], &ONE].concat()).0;
    assert!(embedded.len() > 10);
    // Tokenizer and template of its metadata; then the directory with one such file.
    assert_eq!(ran(file.to_str().unwrap()), embedded);
    assert_eq!(ran(dir.path()), embedded);
    // What lies beside it wins.
    fs::write(dir.0.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    assert_ne!(ran(dir.path()), embedded);
    fs::remove_file(dir.0.join("chat_template.jinja")).unwrap();
    fs::copy(Path::new(SMALL).join("tokenizer.json"), dir.0.join("tokenizer.json")).unwrap();
    assert_eq!(ran(dir.path()), embedded);
    fs::write(dir.0.join("tokenizer.json"), "{").unwrap();
    let (_, errors, code) = output(&["run", dir.path(), "--prompt", "x"]);
    assert_eq!(code, Some(1));
    assert!(errors.starts_with("error: ") && errors.contains("hint: fetch the file again"), "{errors}");
}

#[test]
fn a_file_of_a_cache_is_picked_by_its_quantisation() {
    let cache = TempDir::new();
    let repo = Repo::new(&cache, "Org/Small-GGUF");
    repo.set_ref("main", "aaaa").file("aaaa", "Small-BF16.gguf", &small());
    repo.file("aaaa", "mmproj-Q4_K_M.gguf", b"x").file("aaaa", "config.json", b"{}");
    let with = |args: &[&str]| texts(kvist(args).env("HF_HUB_CACHE", cache.path()).output().unwrap());
    let prompt = |model: &str| with(&[&["run"][..], &ONE, &[model]].concat());
    let (only, errors, code) = prompt("Org/Small-GGUF");
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    // The usual one of several; it is damaged.
    repo.file("aaaa", "Small-Q4_K_M.gguf", b"GGUF").file("aaaa", "sub/Small-Q8_0-00002-of-00003.gguf", b"x");
    let (_, errors, code) = prompt("Org/Small-GGUF");
    assert!(code == Some(1) && errors.contains("Small-Q4_K_M.gguf") && errors.contains("\nhint: "), "{errors}");
    for picked in ["Org/Small-GGUF:BF16", "Org/Small-GGUF:bf16", "Org/Small-GGUF@main:Small-BF16.gguf"] {
        assert_eq!(prompt(picked), (only.clone(), String::new(), Some(0)), "{picked}");
    }
    let (_, errors, code) = prompt("Org/Small-GGUF:Q6_K");
    assert_eq!(code, Some(2));
    assert!(errors.contains("it holds no Q6_K, but BF16, Q4_K_M, Q8_0\n"), "{errors}");
    assert!(errors.contains("hint: name one, as in Org/Small-GGUF:NAME"), "{errors}");
    let (_, errors, code) = prompt("Org/Small-GGUF:Q8_0");
    assert_eq!(code, Some(1));
    let lost = "missing sub/Small-Q8_0-00001-of-00003.gguf, sub/Small-Q8_0-00003-of-00003.gguf\n";
    assert!(errors.contains(lost) && errors.contains("hf download Org/Small-GGUF"), "{errors}");
    // A safetensors model has no such files.
    Repo::new(&cache, "Org/Small").copy("bbbb", SMALL).set_ref("main", "bbbb");
    let (_, errors, code) = prompt("Org/Small:Q8_0");
    assert!(code == Some(2) && errors.contains("--weights q8"), "{errors}");
    let (listed, _, _) = with(&["doctor", "--no-measure"]);
    let line = "ok    Org/Small-GGUF  GGUF: BF16 13.4 MiB, Q4_K_M 4 B, Q8_0 1 B (incomplete)";
    assert!(listed.contains(line), "{line:?} in\n{listed}");
}

#[test]
fn weights_are_quantised_while_they_load() {
    let memory = |form: &str| {
        let (out, _, code) = output(&["doctor", "--no-measure", "--json", SMALL, "--weights", form]);
        assert_eq!(code, Some(0), "{out}");
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["model"]["weights"], if form == "file" { "bf16" } else { form });
        report["fits"]["weights"].as_u64().unwrap()
    };
    let [file, bf16, q8, q4] = ["file", "bf16", "q8", "q4"].map(memory);
    assert_eq!(file, bf16);
    // 34 bytes for 32 weights, 18 in four bits; the table stays in eight.
    assert!(q8 * 100 / bf16 >= 53 && q8 * 100 / bf16 <= 54, "{q8} of {bf16}");
    assert!(q4 < q8 * 3 / 4 && q4 > q8 / 2, "{q4} of {q8}");
    let served = Served::start(&["--weights", "q8"]);
    assert!(served.page.contains("7.0 M parameters in q8, 7."), "{}", served.page);
    let body = r#"{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}"#;
    assert!(served.ask("POST", "/v1/chat/completions", body).starts_with("HTTP/1.1 200"));
}

#[test]
fn damaged_files_are_errors_with_hints() {
    let dir = TempDir::new();
    let whole = small();
    let mut wrong = whole.clone();
    wrong[4] = 9;
    for (name, bytes) in [
        ("empty.gguf", &whole[..0]),
        ("magic.gguf", b"GGML and more of it"),
        ("version.gguf", &wrong),
        ("half.gguf", &whole[..whole.len() / 2]),
        ("head.gguf", &whole[..1000]),
    ] {
        let file = dir.0.join(name);
        fs::write(&file, bytes).unwrap();
        for command in ["serve", "doctor"] {
            let (out, errors, code) = output(&[command, file.to_str().unwrap()]);
            let all = out + &errors;
            assert_eq!(code, Some(1), "{name}: {all}");
            assert!(all.contains(name) && all.contains("hint: ") && !all.contains("panic"), "{name}: {all}");
        }
    }
    let (_, errors, code) = output(&["serve", dir.path()]);
    assert_eq!(code, Some(2));
    assert!(errors.contains("it holds several GGUF models: empty.gguf, "), "{errors}");
}
