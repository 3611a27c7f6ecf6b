use std::process::Command;

use serde_json::Value;

use crate::child::{kvist, output, texts};
use crate::temp::{Repo, SMALL, TempDir};

fn report(args: &[&str]) -> (Value, Option<i32>) {
    let (out, errors, code) = output(&[&["doctor", "--json"], args].concat());
    assert_eq!(errors, "");
    (serde_json::from_str(&out).unwrap(), code)
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Programs read it: a name that goes away or comes to mean something else needs a new schema number.
#[test]
fn the_schema_stays() {
    let (report, code) = report(&["--threads", "1"]);
    assert_eq!((report["doctor"].as_u64(), code), (Some(1), Some(0)), "{report:#}");
    let expected = ["doctor", "version", "verdict", "machine", "measured", "model", "fits", "hub", "checks"];
    assert_eq!(keys(&report), expected);
    let machine = &report["machine"];
    assert_eq!(keys(machine), ["cpu", "cores", "isa", "memory", "transparent_huge_pages", "limits"]);
    assert_eq!(keys(&machine["cores"]), ["online", "affinity", "allowed", "numa_nodes", "last_level_cache_bytes"]);
    assert_eq!(keys(&machine["isa"][0]), ["name", "available", "chosen", "missing"]);
    assert_eq!(keys(&machine["memory"]), ["total", "free", "cgroup_limit"]);
    assert_eq!(keys(&machine["limits"]), ["open_files", "address_space"]);
    let measured = &report["measured"];
    assert!(measured["read_gb_per_second"].as_f64() > Some(0.0) && measured["threads"] == 1, "{measured}");
    assert_eq!(
        keys(&report["model"]),
        [
            "name",
            "path",
            "family",
            "parameters",
            "layers",
            "context",
            "vocabulary",
            "tokenizer_vocabulary",
            "chat",
            "weights",
            "weight_bytes",
            "kv_type",
            "kv_bytes_per_token"
        ]
    );
    assert_eq!(
        keys(&report["fits"]),
        [
            "free",
            "total",
            "weights",
            "kv",
            "buffers",
            "replies",
            "connections",
            "context",
            "context_limit",
            "kv_tokens",
            "largest_context",
            "largest_kv_ram",
            "decode_tokens_per_second_bound",
            "prefill_tokens_per_second_bound"
        ]
    );
    assert_eq!(keys(&report["hub"]), ["directory", "models"]);
    assert_eq!(keys(&report["checks"][0]), ["section", "name", "status", "text", "hint"]);
    assert_eq!((report["model"]["context"].as_u64(), report["fits"]["context"].as_u64()), (Some(4096), Some(4096)));
    let isa = machine["isa"].as_array().unwrap();
    assert_eq!(isa.iter().filter(|isa| isa["chosen"] == true).count(), 1);
    assert!(isa.iter().all(|isa| isa["available"] == (isa["missing"].as_array().unwrap().is_empty())), "{isa:?}");
}

#[test]
fn failures_have_exit_code_1_and_a_hint() {
    for args in [&["--kv-ram", "1000TiB"][..], &["some/model"], &["--ctx", "100000"]] {
        let (report, code) = report(&[&["--no-measure"], args].concat());
        assert_eq!((code, report["verdict"].as_str()), (Some(1), Some("fail")), "{args:?}: {report:#}");
        let failed: Vec<_> = report["checks"].as_array().unwrap().iter().filter(|c| c["status"] == "fail").collect();
        assert!(failed.len() == 1 && failed[0]["hint"].is_string(), "{failed:?}");
        assert!(report["measured"].is_null() && report["machine"]["cores"]["allowed"].as_u64() > Some(0));
    }
    let (text, errors, code) = output(&["doctor", "--no-measure", "some/model"]);
    assert_eq!((code, errors.as_str()), (Some(1), ""));
    assert!(text.contains("\n  fail  not usable  ") && text.contains("\n        hint: kvist works offline"), "{text}");
    assert!(text.ends_with("\nfail  1 problem to solve first\n") && !text.contains('\x1b'), "{text}");
    // What was asked for wrongly is not a matter of the machine.
    assert_eq!(output(&["doctor", "--isa", "sse"]).2, Some(2));
    assert_eq!(output(&["doctor", "--max-step-tokens", "1"]).2, Some(2));
}

#[test]
fn the_cache_is_listed() {
    let cache = TempDir::new();
    Repo::new(&cache, "Org/Small").copy("aaaa", SMALL).set_ref("main", "aaaa");
    Repo::new(&cache, "Org/Half").copy("bbbb", SMALL).remove("bbbb", "tokenizer.json").set_ref("main", "bbbb");
    let mut command = kvist(&["doctor", "--no-measure", "--json", "Org/Small"]);
    let (out, _, code) = texts(command.env("HF_HUB_CACHE", cache.path()).output().unwrap());
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(0), "{out}");
    assert_eq!(
        (report["model"]["name"].as_str(), report["hub"]["directory"].as_str()),
        (Some("Org/Small"), Some(cache.path()))
    );
    let models = report["hub"]["models"].as_array().unwrap();
    assert_eq!(
        keys(&models[0]),
        ["id", "usable", "bytes", "text", "revisions", "unfinished_files", "unfinished_bytes"]
    );
    let usable: Vec<_> = models.iter().map(|m| (m["id"].as_str().unwrap(), m["usable"] == true)).collect();
    assert_eq!(usable, [("Org/Half", false), ("Org/Small", true)]);
    assert_eq!(models[1]["revisions"], serde_json::json!([{"commit": "aaaa", "name": "main"}]));
}

#[test]
fn settings_come_from_everywhere_and_limits_count() {
    let mut command = kvist(&["doctor", "--no-measure", "--json"]);
    let (out, _, _) = texts(command.env("KVIST_CTX", "1024").env("KVIST_REPLY_RAM", "5MiB").output().unwrap());
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((report["fits"]["context"].as_u64(), report["fits"]["replies"].as_u64()), (Some(1024), Some(5 << 20)));

    // Limits of the shell: files, and an address space that does not hold the cache.
    let script = "ulimit -n 200; ulimit -v 6000000; exec \"$0\" doctor --no-measure --kv-ram 5GiB";
    let mut command = Command::new("sh");
    let command = command.args(["-c", script, env!("CARGO_BIN_EXE_kvist")]).env("HF_HUB_CACHE", "/nowhere");
    let (text, errors, code) = texts(command.output().unwrap());
    assert_eq!((code, errors.as_str()), (Some(1), ""), "{text}");
    assert!(text.contains("  warn  open files  200 at once: 136 connections instead of 900"), "{text}");
    assert!(
        text.contains("  fail  addresses   limited to 5.7 GiB, and about ")
            && text.contains("hint: ulimit -v unlimited"),
        "{text}"
    );
}
