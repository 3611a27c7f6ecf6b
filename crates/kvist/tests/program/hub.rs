//! Models by id in a cache of Hugging Face downloads.

use std::fs;
use std::os::unix::fs::symlink;

use crate::child::{kvist, texts};
use crate::temp::{Repo, SHARDED, SMALL, TempDir, read};

const A: &str = "aaaa0000aaaa0000aaaa0000aaaa0000aaaa0000";
const B: &str = "bbbb0000bbbb0000bbbb0000bbbb0000bbbb0000";
const ONE: [&str; 6] = ["--kv-ram", "32MiB", "--threads", "2", "--max-tokens", "8"];

fn with(cache: &TempDir, args: &[&str]) -> (String, String, Option<i32>) {
    texts(kvist(args).env("HF_HUB_CACHE", cache.path()).output().unwrap())
}

/// What `serve` resolves MODEL to.
fn served(cache: &TempDir, model: &str) -> (String, String, Option<i32>) {
    with(cache, &["serve", "--print-config", model])
}

/// A cache with the small model as `Org/Small`, whose `main` is commit A.
fn small() -> (TempDir, Repo) {
    let cache = TempDir::new();
    let repo = Repo::new(&cache, "Org/Small");
    repo.copy(A, SMALL).set_ref("main", A);
    (cache, repo)
}

#[test]
fn an_id_runs_as_the_files_behind_it() {
    let (cache, _repo) = small();
    let prompt = ["run", "--prompt", "What is a vector?"];
    let (embedded, _, _) = with(&cache, &[&prompt[..], &ONE].concat());
    let (stored, errors, code) = with(&cache, &[&prompt[..], &ONE, &["Org/Small"]].concat());
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(stored, embedded);
    // The directory of the cache does, too.
    let dir = cache.0.join("models--Org--Small");
    let (printed, errors, code) = with(&cache, &["serve", "--print-config", dir.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(printed.contains("# served-model-name = \"Org/Small\""), "{printed}");
}

#[test]
fn the_variables_of_huggingface_hub_say_where() {
    let home = TempDir::new();
    fs::create_dir_all(home.0.join("x/huggingface")).unwrap();
    let (cache, _repo) = small();
    symlink(&cache.0, home.0.join("x/huggingface/hub")).unwrap();
    for (name, value) in [
        ("HF_HUB_CACHE", cache.path().to_owned()),
        ("HF_HOME", "~/x/huggingface".into()),
        ("XDG_CACHE_HOME", "$HOME/x".into()),
    ] {
        let mut command = kvist(&["serve", "--print-config", "Org/Small"]);
        for other in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"] {
            command.env_remove(other);
        }
        let value = if name == "XDG_CACHE_HOME" { value.replace("$HOME", home.path()) } else { value };
        let (_, errors, code) = texts(command.env("HOME", &home.0).env(name, value).output().unwrap());
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{name}");
    }
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let (cache, repo) = small();
    let config = String::from_utf8(read(SMALL, "config.json")).unwrap();
    let longer = config.replace("\"max_position_embeddings\": 4096", "\"max_position_embeddings\": 2048");
    assert_ne!(config, longer);
    repo.copy(B, SMALL).remove(B, "config.json").file(B, "config.json", longer.as_bytes());
    repo.set_ref("v2", &format!("{B}\n")).set_ref("refs/pr/1", B).set_ref("lost", &"c".repeat(40));
    for (model, context) in [
        ("Org/Small", 4096),
        ("Org/Small@main", 4096),
        ("Org/Small@v2", 2048),
        ("Org/Small@refs/pr/1", 2048),
        (&format!("Org/Small@{B}"), 2048),
        ("Org/Small@bbbb0000", 2048),
    ] {
        let (printed, errors, code) = served(&cache, model);
        assert_eq!(code, Some(0), "{model}: {errors}");
        assert!(printed.contains(&format!("# ctx = {context} ")), "{model}: {printed}");
    }
    for (model, parts) in [
        (
            "Org/Small@v3",
            &["error: Org/Small: the local cache ", "has no revision v3", "Org/Small@aaaa0000 (main)"][..],
        ),
        ("Org/Small@lost", &["lost is commit cccccccc", "no files of that", "hint: there: "]),
        ("Org/Small@..", &["there is no such directory or file", "hint: "]),
    ] {
        let (_, errors, code) = served(&cache, model);
        assert!(code == Some(1) || code == Some(2), "{model}");
        parts.iter().for_each(|part| assert!(errors.contains(part), "{model}: {part:?} in {errors}"));
    }
    // Without `main` nothing is guessed.
    fs::remove_file(repo.0.join("refs/main")).unwrap();
    let (_, errors, code) = served(&cache, "Org/Small");
    assert_eq!(code, Some(1));
    assert!(errors.contains("no revision main") && errors.contains("Org/Small@bbbb0000 (refs/pr/1, v2)"), "{errors}");
}

#[test]
fn what_is_missing_is_named() {
    let cache = TempDir::new();
    let repo = Repo::new(&cache, "Org/Parts");
    repo.copy(A, SHARDED).set_ref("main", A);
    let shards: Vec<String> = fs::read_dir(SHARDED)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("model-"))
        .collect();
    assert!(shards.len() > 1);
    // It came without a tokenizer.
    let (_, errors, code) = served(&cache, "Org/Parts");
    assert_eq!(code, Some(1));
    assert!(
        errors.starts_with("error: Org/Parts in the local cache is incomplete: missing tokenizer.json\n"),
        "{errors}"
    );
    repo.file(A, "tokenizer.json", &read(SMALL, "tokenizer.json"));
    assert_eq!(served(&cache, "Org/Parts").2, Some(0));
    // The download of a shard was interrupted: its link is not there yet.
    repo.remove(A, &shards[0]);
    fs::write(repo.0.join("blobs/1234.abcd.incomplete"), [0; 5 << 10]).unwrap();
    let (_, errors, code) = served(&cache, "Org/Parts");
    assert_eq!(code, Some(1));
    for part in [&format!("missing {}\n", shards[0]), "stopped after 5.0 KiB", "offline", "`hf download Org/Parts`"] {
        assert!(errors.contains(part), "{part:?} in {errors}");
    }
    // Somebody cleaned the blobs up.
    fs::remove_file(repo.0.join("blobs").join(format!("{A}-{}", shards[1]))).unwrap();
    let (_, errors, _) = served(&cache, "Org/Parts@main");
    assert!(errors.contains(&format!("{} (a link to a download that is not there)", shards[1])), "{errors}");
    assert!(errors.contains("`hf download Org/Parts --revision main`"), "{errors}");
    // And an index that is none.
    repo.remove(A, "model.safetensors.index.json").file(A, "model.safetensors.index.json", b"{\"weight_map\": 3}");
    let (_, errors, _) = served(&cache, "Org/Parts");
    assert!(errors.contains("model.safetensors.index.json (it has no weight_map)"), "{errors}");
    repo.remove(A, "model.safetensors.index.json");
    repo.file(A, "model.safetensors.index.json", br#"{"weight_map": {"a": "../../../x.safetensors"}}"#);
    let (_, errors, _) = served(&cache, "Org/Parts");
    assert!(errors.contains("is not the name of a file beside it"), "{errors}");
}

#[test]
fn what_cannot_be_read_is_no_panic() {
    let (cache, repo) = small();
    let fails = |parts: &[&str]| {
        let (_, errors, code) = served(&cache, "Org/Small");
        assert!(matches!(code, Some(1 | 2)), "{errors}");
        parts.iter().for_each(|part| assert!(errors.contains(part), "{part:?} in {errors}"));
        assert!(errors.starts_with("error: ") && errors.contains("\nhint: ") && !errors.contains("panic"), "{errors}");
    };
    // A directory where a file belongs, a link to itself, a pipe.
    repo.remove(A, "config.json");
    fs::create_dir(repo.snapshot(A).join("config.json")).unwrap();
    fails(&["missing config.json (it is not a file)"]);
    fs::remove_dir(repo.snapshot(A).join("config.json")).unwrap();
    symlink("config.json", repo.snapshot(A).join("config.json")).unwrap();
    fails(&["missing config.json (", "symbolic link"]);
    repo.remove(A, "config.json").file(A, "config.json", b"{");
    fails(&["config.json", "hint: "]);
    // Folders that lead into themselves.
    symlink(".", repo.snapshot(A).join("loop")).unwrap();
    fails(&["config.json"]);
    // Refs that lead elsewhere, that are folders, that are no text.
    for commit in ["../../../..", "/etc", "", "..", "a/b"] {
        repo.set_ref("main", commit);
        fails(&["no revision main"]);
    }
    fs::write(repo.0.join("refs/main"), [0xff; 5000]).unwrap();
    fails(&["no revision main"]);
    fs::remove_file(repo.0.join("refs/main")).unwrap();
    fs::create_dir(repo.0.join("refs/main")).unwrap();
    fails(&["no revision main"]);
    fs::remove_dir_all(repo.0.join("snapshots")).unwrap();
    fails(&["no revision main", "hf download Org/Small"]);
}

#[test]
fn what_is_not_there_lists_what_is() {
    let (cache, _repo) = small();
    Repo::new(&cache, "other/broken").copy(A, SMALL).remove(A, "model.safetensors").set_ref("main", A);
    Repo::new(&cache, "other/torch").file(A, "pytorch_model.bin", b"x").set_ref("main", A);
    Repo::new(&cache, "other/branch").copy(A, SMALL).set_ref("dev", A);
    Repo::new(&cache, "other/bert").file(A, "config.json", br#"{"model_type": "bert"}"#).set_ref("main", A);
    Repo::new(&cache, "other/nothing");
    for odd in ["datasets--a--b", "models--a--b--c", "models--", "models--a--.b", ".locks", "models--we ird"] {
        fs::create_dir(cache.0.join(odd)).unwrap();
    }
    fs::write(cache.0.join("models--a--file"), "x").unwrap();
    let (_, errors, code) = served(&cache, "org/smal");
    assert_eq!(code, Some(2));
    let place =
        format!("error: org/smal is not in the local cache {}, and there is no directory org/smal\n", cache.path());
    assert!(errors.starts_with(&place), "{errors}");
    for part in [
        "hint: did you mean Org/Small? kvist works offline and fetches nothing; the cache holds\n",
        "\n  Org/Small      13.3 MiB\n",
        "\n  other/bert     ",
        "\n  other/branch   no files of main, but of dev\n",
        "\n  other/broken   0 B, incomplete: missing model.safetensors\n",
        "\n  other/nothing  empty\n",
        "\n  other/torch    cannot be run: PyTorch weights\n",
    ] {
        assert!(errors.contains(part), "{part:?} in {errors}");
    }
    assert!(!errors.contains("a/b") && !errors.contains("ird"), "{errors}");
    // A name without its organisation is found by the hint.
    assert!(served(&cache, "Small").1.contains("hint: did you mean Org/Small? "));
    assert!(!served(&cache, "entirely/different-model").1.contains("did you mean"));
    let empty = TempDir::new();
    let (_, errors, code) = served(&empty, "Org/Small");
    assert_eq!(code, Some(2));
    assert!(errors.contains("fetches nothing, and the cache is empty") && errors.contains("`hf download Org/Small`"));
}

#[test]
fn a_directory_wins_over_an_id_and_says_so() {
    let (cache, _repo) = small();
    let here = TempDir::new();
    fs::create_dir(here.0.join("Org")).unwrap();
    symlink(SMALL, here.0.join("Org/Small")).unwrap();
    let mut command = kvist(&["serve", "--print-config", "Org/Small"]);
    let (printed, errors, code) =
        texts(command.env("HF_HUB_CACHE", cache.path()).current_dir(&here.0).output().unwrap());
    assert_eq!(code, Some(0));
    assert!(errors.starts_with("note: Org/Small is a directory here; "), "{errors}");
    assert!(printed.contains("# served-model-name = \"model\""), "{printed}");
}
