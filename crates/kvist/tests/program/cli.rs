//! Settings, errors, `run` and `completions` as a user meets them.

use crate::child::{kvist, output, piped};
use crate::temp::TempDir;

#[test]
fn printed_settings_give_themselves_again() {
    let flags = ["--port", "9000", "--kv-ram", "96MiB", "--strict-model", "--cors", "https://example.org"];
    let mut command = kvist(&[&["serve", "--print-config"], &flags[..]].concat());
    let printed = command.env("KVIST_MAX_BATCH", "7").output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    for line in [
        "port = 9000                          # flag --port",
        "max-batch = 7                        # environment KVIST_MAX_BATCH",
        "host = \"127.0.0.1\"                   # default",
        "# ctx = 4096                         # default: the model's, or what --kv-ram holds",
        "# max-body = \"64KiB\"                 # default: 16 bytes per context token, 64KiB at least",
    ] {
        assert!(printed.lines().any(|l| l == line), "{line:?} in\n{printed}");
    }
    let path = std::env::temp_dir().join(format!("kvist-cli-{}.toml", std::process::id()));
    std::fs::write(&path, &printed).unwrap();
    let (again, errors, code) = output(&["serve", "--print-config", "--config", path.to_str().unwrap()]);
    let by_environment = kvist(&["serve", "--print-config"]).env("KVIST_CONFIG", &path).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(String::from_utf8(by_environment.stdout).unwrap(), again);
    assert_eq!(code, Some(0), "{errors}");
    let values = |text: &str| -> toml::Table { toml::from_str(text).unwrap() };
    assert_eq!(values(&again), values(&printed));
    assert!(again.contains("# file "), "{again}");
}

#[test]
fn errors_have_a_hint_and_exit_codes() {
    for (args, code, parts) in [
        (&["serve", "--prot", "1"][..], 2, &["error: unexpected argument '--prot'", "--port"][..]),
        (&["serve", "--port", "many"], 2, &["error: --port: \"many\"", "hint: "]),
        (&["serve", "model.gguf"], 2, &["error: model.gguf: there is no such file", "hint: "]),
        (
            &["serve", "some-org/some-model"],
            2,
            &["not in the local cache", "offline", "`hf download some-org/some-model`"],
        ),
        (&["serve", "~/model"], 2, &["error: ~/model: there is no such directory", "hint: only a shell"]),
        (
            &["serve", "./nowhere"],
            2,
            &["error: ./nowhere: there is no such directory or file", "hint: name a directory"],
        ),
        (
            &["serve", "/dev/null"],
            2,
            &["error: /dev/null: there is no such directory or file", "hint: name a directory"],
        ),
        (&["serve", "Cargo.toml"], 2, &["error: Cargo.toml is a file, and no .gguf", "hint: name a directory"]),
        (&["run", "--ctx", "100000"], 2, &["error: --ctx 100000: the model was made for 4096", "hint: choose 4096"]),
        (&["run", "--kv-ram", "10"], 2, &["error: --kv-ram 10 holds no context", "hint: --kv-ram 1MiB"]),
        (&["bench", "engine", "--shape", "huge"], 2, &["error: invalid value 'huge'", "llama-3.2-1b"]),
        (&["bench", "engine", "--case", "prefill-4096"], 2, &["error: --case prefill-4096: ", "4096 tokens", "hint: "]),
        (&["bench", "engine", "--case", "prefill"], 2, &["error: invalid value 'prefill'", "prefill-512"]),
        (&["serve", "--max-step-tokens", "1"], 2, &["error: --max-step-tokens: ", "from 32 to 65536", "hint: "]),
        (&["serve", "--max-batch", "512"], 2, &["error: --max-batch 512 and 16 rows", "hint: --max-batch 496"]),
        (&[], 2, &["Usage: kvist <COMMAND>"]),
    ] {
        let (_, errors, got) = output(args);
        assert_eq!(got, Some(code), "{args:?}: {errors}");
        parts.iter().for_each(|part| assert!(errors.contains(part), "{args:?}: {part:?} in {errors}"));
    }
    let (version, _, code) = output(&["--version"]);
    assert_eq!((version.trim(), code), (concat!("kvist ", env!("CARGO_PKG_VERSION")), Some(0)));
}

/// A file where every write fails.
#[cfg(target_os = "linux")]
fn full() -> std::fs::File {
    std::fs::File::options().write(true).open("/dev/full").unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_no_panic() {
    assert_eq!(kvist(&["serve", "nope"]).stderr(full()).status().unwrap().code(), Some(2));
    assert_eq!(kvist(&["serve", "--prot"]).stderr(full()).status().unwrap().code(), Some(2));
    for args in [&["serve", "--print-config"][..], &["--help"], &["completions", "bash"]] {
        let printed = kvist(args).stdout(full()).output().unwrap();
        let errors = String::from_utf8(printed.stderr).unwrap();
        assert_eq!(printed.status.code(), Some(1), "{args:?}: {errors}");
        assert!(errors.starts_with("error: standard output: "), "{errors}");
    }
}

#[test]
fn an_unknown_variable_is_warned_about() {
    let printed = kvist(&["serve", "--print-config"]).env("KVIST_MAXBATCH", "7").output().unwrap();
    let errors = String::from_utf8(printed.stderr).unwrap();
    assert_eq!(errors, "warning: there is no setting KVIST_MAXBATCH; the nearest is KVIST_MAX_BATCH\n");
    assert!(printed.status.success());
}

#[test]
fn a_piped_conversation_is_answered_line_by_line() {
    let input = "Hello!\nWhat do you mean?\n/stats\n/unheard-of\n/clear\nHello!\n";
    let (out, errors, code) = piped(&["run", "--kv-ram", "32MiB", "--threads", "2"], input);
    assert_eq!(code, Some(0), "{errors}");
    let lines: Vec<&str> = out.lines().collect();
    // The embedded model answers greedily, so the same question gets the same answer, the second time from the cache.
    assert!(!lines[0].is_empty());
    assert_eq!(lines.first(), lines.last());
    let row = |name: &str| -> Vec<u64> {
        let line = lines.iter().find(|l| l.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{name}: {out}"));
        line.split_whitespace().filter_map(|word| word.replace(',', "").parse().ok()).collect()
    };
    let (prompt, cached, computed) = (row("prompt tokens"), row("cached"), row("computed"));
    assert_eq!((prompt[0] - cached[0], prompt[1] - cached[1]), (computed[0], computed[1]), "{out}");
    // The second turn hits the whole first turn with its reply.
    assert!(row("spliced")[0] > 0 && cached[0] > 0 && computed[0] < prompt[0] / 2 + 16, "{out}");
    assert!(errors.contains("compiled into the binary") && errors.contains("256 tokens at most"), "{errors}");
    assert!(errors.contains("error: no command /unheard-of\nhint: /help"), "{errors}");
}

#[test]
fn one_prompt_is_answered_and_nothing_else_is_said() {
    let args = ["run", "--kv-ram", "32MiB", "--threads", "1", "--prompt", "Hello!", "--max-tokens", "5"];
    let (first, errors, code) = output(&args);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert!(first.ends_with('\n') && first.trim().len() > 1);
    let drawn = |seed: &str| output(&[&args[..], &["--temperature", "1.5", "--seed", seed]].concat()).0;
    assert_eq!(drawn("1"), drawn("1"));
    assert!((2..9).any(|seed: u32| drawn(&seed.to_string()) != drawn("1")));
}

#[test]
fn a_directory_is_served_like_the_same_files_in_the_binary() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/model");
    let args = ["run", "--kv-ram", "32MiB", "--threads", "2", "--prompt", "What is a vector?", "--max-tokens", "12"];
    let (embedded, _, _) = output(&args);
    let (stored, errors, code) = output(&[&args[..], &[dir]].concat());
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(stored, embedded);
}

#[test]
fn completions_know_the_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let (script, errors, code) = output(&["completions", shell]);
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{shell}");
        assert!(script.contains("kv-ram") && script.contains("serve"), "{shell}");
    }
}

#[test]
fn bench_engine_reports_every_figure_as_json() {
    let cases = ["prefill-512", "decode-1", "decode-32-shared-1024", "decode-8-private-1024"];
    let mut args = vec!["bench", "engine", "--json", "--threads", "2", "--turns", "2"];
    cases.iter().for_each(|case| args.extend(["--case", case]));
    let (out, errors, code) = output(&args);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (report["version"].as_str(), report["machine"]["threads"].as_u64()),
        (Some(env!("CARGO_PKG_VERSION")), Some(2))
    );
    assert!(report["machine"]["valid"].is_boolean() && report["machine"]["bf16_gflop_per_second"].as_f64() > Some(0.0));
    let measured = report["figures"]["cases"].as_array().unwrap();
    assert_eq!(measured.iter().map(|c| c["case"].as_str().unwrap()).collect::<Vec<_>>(), cases);
    for case in measured {
        let positive = |key: &str| case[key].as_f64() > Some(0.0);
        assert!(positive("tokens_per_second") && positive("floor_seconds") && positive("share_of_floor"), "{out}");
        assert_eq!(case["seconds"].as_array().map(Vec::len), Some(2), "{out}");
        let details = &case["details"];
        if let Some(sequences) = details["sequences"].as_u64() {
            let kv = ["kv_bytes_per_step", "kv_bytes_per_step_unshared"].map(|key| details[key].as_u64().unwrap());
            assert_eq!((kv[0] < kv[1], details["steps"].as_u64()), (sequences == 32, Some(32)), "{out}");
        }
    }
}

#[test]
fn bench_store_brings_a_conversation_back_from_everywhere() {
    let dir = TempDir::new();
    let common = ["bench", "store", "--json", "--threads", "2", "--history", "128,192", "--dir", dir.path()];
    let bench = |more: &[&str]| -> serde_json::Value {
        let (out, errors, code) = output(&[&common[..], more].concat());
        assert_eq!((code, errors.as_str()), (Some(0), ""));
        serde_json::from_str::<serde_json::Value>(&out).unwrap()["figures"]["store"].take()
    };
    let figures = bench(&["--new-tokens", "8", "--repeat", "2"]);
    assert!(figures["sequential_bytes_per_second"]["best"].as_f64() > Some(0.0));
    let cases = figures["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2 * (3 + 2 * 3));
    for case in cases {
        let history = case["history"].as_u64();
        let recomputed = case["case"] == "recomputed";
        for turn in case["turns"].as_array().unwrap() {
            assert_eq!(turn["cached_tokens"].as_u64(), if recomputed { Some(0) } else { history }, "{case}");
            let from_disk = case["case"].as_str().is_some_and(|name| name.starts_with("disk"));
            assert_eq!(turn["read_bytes"].as_u64() > Some(0), from_disk, "{case}");
        }
        assert_eq!(case["floor_seconds"].is_number(), !recomputed && case["case"] != "RAM", "{case}");
    }
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0, "the store goes with the run");
    let (_, errors, code) = output(&["bench", "store", "--history", "100"]);
    assert_eq!(code, Some(2));
    assert!(errors.contains("--history 100 is not a multiple of 64") && errors.contains("hint: "), "{errors}");
}
