//! What is kept on disk, across kill -9 and restarts, and `kvist cache` beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::child::{PATIENCE, Served, kvist, output, serve, texts};
use crate::temp::{SMALL, TempDir};

/// Tokens of a chunk.
const CHUNK: u64 = 64;
const SYSTEM: &str = "You are a patient assistant who answers every question about quokkas in one short sentence. ";

/// A directory with a store, and the flags that name it.
struct Home {
    dir: TempDir,
    flags: Vec<String>,
}

impl Home {
    fn new() -> Home {
        let dir = TempDir::new();
        let at = |name: &str| dir.0.join(name).to_str().unwrap().to_owned();
        let flags = ["--kv-disk", "1GiB", "--kv-dir", &at("kv"), "--kv-key-file", &at("key")].map(str::to_owned).into();
        Home { dir, flags }
    }

    fn args<'a>(&'a self, before: &[&'a str], after: &[&'a str]) -> Vec<&'a str> {
        [before, &self.flags.iter().map(String::as_str).collect::<Vec<_>>(), after].concat()
    }

    fn serve(&self, args: &[&str]) -> Served {
        Served::of(serve(&self.args(&[], args)))
    }

    /// `kvist cache ..`: what it prints and its exit code.
    fn cache(&self, command: &str, args: &[&str]) -> (String, String, Option<i32>) {
        output(&self.args(&["cache", command], args))
    }

    fn json(&self, command: &str, args: &[&str]) -> Value {
        let (out, errors, code) = self.cache(command, &[args, &["--json"]].concat());
        assert_eq!(code, Some(0), "{errors}");
        serde_json::from_str(&out).unwrap()
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.0.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn segments(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.dir.0.join("kv")).unwrap().flatten().map(|entry| entry.path());
        files.filter(|path| path.is_file()).collect()
    }

    /// Waits until the disk has this many tokens, as somebody sees it who looks beside the server.
    fn until_kept(&self, tokens: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let listed = self.json("ls", &[]);
            if listed["tokens"].as_u64().unwrap() >= tokens {
                return;
            }
            assert!(Instant::now() < deadline, "{tokens} tokens never came: {listed}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn chat(messages: &Value) -> String {
    json!({"messages": messages, "max_tokens": 40, "temperature": 0, "ignore_eos": true}).to_string()
}

/// The body of what the server says to a request line and header lines, with a body.
fn talk(served: &Served, request: &str, headers: &str, body: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(served.address).unwrap();
    let length = body.len();
    let head = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n");
    write!(stream, "{head}{headers}\r\n{body}").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split_once("\r\n\r\n").expect("a head and a body").1.to_owned()
}

fn answer(served: &Served, key: Option<&str>, path: &str, body: &str) -> Value {
    let key = key.map_or(String::new(), |key| format!("Authorization: Bearer {key}\r\n"));
    let text = talk(served, &format!("POST {path}"), &key, body);
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(value.get("error"), None, "{value}");
    value
}

fn ask(served: &Served, key: Option<&str>, messages: &Value) -> Value {
    answer(served, key, "/v1/chat/completions", &chat(messages))
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

fn prompt_tokens(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens"].as_u64().unwrap()
}

fn conversation() -> Value {
    json!([
        {"role": "system", "content": SYSTEM.repeat(8)},
        {"role": "user", "content": "Where do quokkas sleep when it rains?"},
    ])
}

/// One turn more.
fn next(messages: &Value, reply: &Value, user: &str) -> Value {
    let mut messages = messages.clone();
    let list = messages.as_array_mut().unwrap();
    list.push(json!({"role": "assistant", "content": content(reply)}));
    list.push(json!({"role": "user", "content": user}));
    messages
}

#[test]
fn a_conversation_survives_a_kill() {
    let home = Home::new();
    let first = conversation();
    let (second, told, kept);
    {
        let mut served = home.serve(&[]);
        let reply = ask(&served, None, &first);
        second = next(&first, &reply, "And in the sun, what do they do all day long?");
        let reply = ask(&served, None, &second);
        told = content(&reply).to_owned();
        let all = prompt_tokens(&reply) + reply["usage"]["completion_tokens"].as_u64().unwrap() - 1;
        kept = all / CHUNK * CHUNK;
        home.until_kept(kept);
        served.signal("KILL");
        served.end();
    }
    // What will happen is told before, by the store alone.
    let file = home.file("chat.json", &second.to_string());
    let explained = home.json("explain", &["--messages", &file, "--prefill-rate", "1000"]);
    assert_eq!((&explained["ram"], &explained["why"]["reason"]), (&Value::Null, &json!("last_chunk")), "{explained}");
    let (disk, computed) = (explained["disk"].as_u64().unwrap(), explained["computed"].as_u64().unwrap());
    assert!(computed <= CHUNK && explained["spliced"].as_u64().unwrap() > 30, "{explained}");
    assert!((explained["compute_ms"].as_f64().unwrap() - computed as f64).abs() < 0.01, "{explained}");

    let served = home.serve(&[]);
    assert!(served.page.contains(&format!("{kept} tokens of")), "{}", served.page);
    let url = format!("http://{}", served.address);
    let asked = home.json("explain", &["--messages", &file, "--url", &url]);
    for part in ["tokens", "spliced", "disk", "computed"] {
        assert_eq!(asked[part], explained[part], "{part}: {asked}");
    }
    let reply = ask(&served, None, &second);
    assert_eq!((cached(&reply), prompt_tokens(&reply) - cached(&reply)), (disk, computed));
    assert_eq!(content(&reply), told);
    assert_eq!(reply["usage"]["kvist"]["loaded_tokens"], json!(disk), "{reply}");
    let metrics = talk(&served, "GET /metrics", "", "");
    let from_disk = metrics.lines().find(|l| l.contains("saved_prefill_tokens_total{") && l.contains("disk"));
    assert!(from_disk.is_some_and(|line| line.ends_with(&format!(" {disk}"))), "{metrics}");
    let again = home.json("explain", &["--messages", &file, "--url", &url]);
    assert_eq!((&again["computed"], &again["why"]["reason"]), (&json!(1), &json!("complete")), "{again}");
    // In words.
    let (text, errors, code) = home.cache("explain", &["--messages", &file]);
    assert_eq!(code, Some(0), "{errors}");
    for part in ["RAM       not known", "disk      ", "assumed", "--prefill-rate", "only the last chunk"] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
}

#[test]
fn where_a_prompt_parts_from_what_is_kept_is_shown() {
    let home = Home::new();
    let served = home.serve(&[]);
    let first = ask(&served, None, &conversation());
    home.until_kept(prompt_tokens(&first) / CHUNK * CHUNK);
    let explain = |name: &str, messages: Value, args: &[&str]| {
        let file = home.file(name, &messages.to_string());
        home.cache("explain", &[&["--messages", &file], args].concat())
    };
    let mut changed = conversation();
    changed[0]["content"] = json!(SYSTEM.repeat(8).replacen("patient", "hurried", 1));
    let (text, _, code) = explain("changed.json", changed, &[]);
    assert_eq!(code, Some(0));
    assert!(text.contains("the system prompt differs from the nearest path kept at token"), "{text}");
    assert!(text.contains(" patient") && text.contains(" hurried"), "{text}");
    // Other settings make other bytes.
    let (text, _, _) = explain("same.json", conversation(), &["--kv-type", "kv8"]);
    assert!(text.contains("other fingerprints: kvist-small bf16 kv16"), "{text}");
    let (_, errors, code) = explain("same.json", conversation(), &["--tenant", "nobody"]);
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("no key of tenant nobody") && errors.contains("hint: it knows operator, public"),
        "{errors}"
    );
    for (args, code, part) in [
        (&["--prompt", ""][..], 2, "empty"),
        (&["--messages", "/nowhere/chat.json"], 2, "/nowhere/chat.json"),
        (&["--prompt", "x", "--url", "https://a"], 2, "plain HTTP"),
        (&["--prompt", "x", "--url", "http://127.0.0.1:1"], 1, "is kvist serve running there?"),
        (&["--prompt", "x", "--messages", "y"], 2, "cannot be used with"),
        (&["--prompt", "x", "--prefill-rate", "0"], 2, "above 0"),
    ] {
        let (_, errors, got) = home.cache("explain", args);
        assert_eq!(got, Some(code), "{errors}");
        assert!(errors.starts_with("error: ") && errors.contains(part) && errors.contains("hint: "), "{errors}");
    }
}

#[test]
fn tenants_do_not_see_each_others() {
    let home = Home::new();
    let keys = home.file("keys", "alice wonderland\nbob builder\n");
    let messages = conversation();
    let first = {
        let mut served = home.serve(&["--api-key-file", &keys]);
        let first = ask(&served, Some("wonderland"), &messages);
        home.until_kept(prompt_tokens(&first) / CHUNK * CHUNK);
        served.signal("KILL");
        served.end();
        first
    };
    let listed = home.json("ls", &[]);
    let names: Vec<&str> = listed["domains"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["operator", "public", "tenant alice", "tenant bob"]);
    let lengths = [0, 1, 2, 3].map(|i| listed["domains"][i]["conversations"].as_array().unwrap().len());
    assert_eq!(lengths, [0, 0, 1, 0], "{listed}");
    let file = home.file("chat.json", &messages.to_string());
    let reason = |tenant| home.json("explain", &["--messages", &file, "--tenant", tenant])["why"]["reason"].clone();
    assert_eq!((reason("alice"), reason("bob")), (json!("last_chunk"), json!("nothing")));

    let mut served = home.serve(&["--api-key-file", &keys]);
    let url = format!("http://{}", served.address);
    let (_, errors, code) = home.cache("explain", &["--messages", &file, "--url", &url]);
    assert!(code == Some(1) && errors.contains("401") && errors.contains("hint: --key-file"), "{errors}");
    let bobs = home.file("bob.key", "builder\n");
    let told = home.json("explain", &["--messages", &file, "--url", &url, "--key-file", &bobs]);
    assert_eq!((&told["ram"], &told["disk"], &told["why"]["reason"]), (&json!(0), &json!(0), &json!("nothing")));
    let bob = ask(&served, Some("builder"), &messages);
    assert_eq!(cached(&bob), 0);
    let alice = ask(&served, Some("wonderland"), &messages);
    assert!(prompt_tokens(&alice) - cached(&alice) <= CHUNK, "{alice}");
    assert!(content(&alice) == content(&first) && content(&bob) == content(&first));
    served.signal("TERM");
    assert_eq!(served.end().0, Some(0));

    // What a destroyed key sealed is gone for good; the others' is not.
    let (text, errors, code) = home.cache("forget", &["alice"]);
    assert!(code == Some(0) && text.contains("the key of tenant alice is destroyed"), "{errors}");
    let (_, errors, code) = home.cache("forget", &["alice"]);
    assert!(code == Some(1) && errors.contains("no key of tenant alice"), "{errors}");
    let before = home.json("ls", &[])["bytes"].as_u64().unwrap();
    let (text, errors, code) = home.cache("gc", &[]);
    assert!(code == Some(0) && text.contains("removed"), "{errors}");
    assert!(home.json("ls", &[])["bytes"].as_u64().unwrap() < before, "{text}");
    let served = home.serve(&["--api-key-file", &keys]);
    assert_eq!(cached(&ask(&served, Some("wonderland"), &messages)), 0);
    assert!(cached(&ask(&served, Some("builder"), &messages)) > 0);
}

#[test]
fn what_was_carried_over_a_cut_goes_with_its_tenant() {
    let home = Home::new();
    let keys = home.file("keys", "alice wonderland\n");
    let turn = |n: u32| {
        let told = format!("Part {n}: what did Lily and her dog do in the park with the big red ball that day?");
        [json!({"role": "user", "content": told}), json!({"role": "assistant", "content": "They played."})]
    };
    let mut messages: Vec<Value> = (0..30).flat_map(turn).collect();
    messages.push(json!({"role": "user", "content": "And then?"}));
    let mut served = home.serve(&["--api-key-file", &keys, "--ctx", "512", "--on-overflow", "truncate"]);
    let reply = ask(&served, Some("wonderland"), &Value::Array(messages));
    assert_eq!(reply["usage"]["kvist"]["carried"], true, "{reply}");
    served.signal("TERM");
    assert_eq!(served.end().0, Some(0));
    let (text, _, _) = home.cache("ls", &[]);
    assert!(text.contains("  tenant alice, carried over a cut ("), "{text}");
    let (_, errors, code) = home.cache("forget", &["alice"]);
    assert_eq!(code, Some(0), "{errors}");
    let listed = home.json("ls", &[]);
    assert!(!listed["domains"].to_string().contains("alice") && listed["tokens"] == 0, "{listed}");
}

#[test]
fn one_process_has_a_store() {
    let home = Home::new();
    let served = home.serve(&[]);
    let pid = served.child.id().to_string();
    let (_, errors, code) = texts(serve(&home.args(&[], &[])).stdin(Stdio::null()).output().unwrap());
    assert_eq!(code, Some(1));
    assert!(errors.contains(&format!("locked by pid {pid}")) && errors.contains("hint: stop that process"), "{errors}");
    for (command, args) in
        [("gc", &[][..]), ("pin", &["--prompt", "x"]), ("pin", &["--prompt", "x", "--unpin"]), ("forget", &["alice"])]
    {
        let (_, errors, code) = home.cache(command, args);
        assert_eq!(code, Some(1), "{command}");
        assert!(errors.contains(&format!("the server with pid {pid} has the store")), "{command}: {errors}");
    }
    let (text, errors, code) = home.cache("verify", &[]);
    assert!(code == Some(0) && text.starts_with("0 tokens in 0 chunks verified"), "{text}{errors}");
}

#[test]
fn where_nothing_can_be_kept_nothing_is() {
    let dir = TempDir::new();
    let kv = dir.0.join("kv");
    let served = Served::start(&["--kv-disk", "off", "--kv-dir", kv.to_str().unwrap()]);
    assert!(served.page.contains("nothing is kept"), "{}", served.page);
    ask(&served, None, &conversation());
    drop(served);
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 0);
    let (_, errors, code) = output(&["cache", "ls", "--kv-dir", kv.to_str().unwrap()]);
    assert!(code == Some(2) && errors.starts_with("error: --kv-disk off"), "{errors}");
    let (_, errors, code) = output(&["cache", "ls", "--kv-disk", "1GiB", "--kv-dir", kv.to_str().unwrap()]);
    assert!(code == Some(1) && errors.contains("there is no such directory"), "{errors}");

    // Nobody can write there, root neither.
    let nowhere = "/proc/kvist-nowhere";
    let mut command = serve(&[]);
    command.env_remove("KVIST_KV_DISK").env("XDG_CACHE_HOME", nowhere).env("XDG_CONFIG_HOME", dir.path());
    let mut served = Served::of(command);
    assert!(served.page.contains("nothing is kept"), "{}", served.page);
    ask(&served, None, &conversation());
    served.signal("TERM");
    let (code, _, errors) = served.end();
    assert_eq!(code, Some(0));
    assert!(
        errors.contains("warning: --kv-dir /proc/kvist-nowhere") && errors.contains("nothing is kept on disk"),
        "{errors}"
    );
    let flags = ["--kv-disk", "1GiB", "--kv-dir", nowhere];
    let (_, errors, code) = texts(serve(&flags).stdin(Stdio::null()).output().unwrap());
    assert!(code == Some(1) && errors.starts_with("error: --kv-dir /proc/kvist-nowhere"), "{errors}");
}

/// Whether any file below holds these bytes.
fn holds(dir: &Path, what: &[u8]) -> bool {
    fs::read_dir(dir).unwrap().flatten().any(|entry| match entry.path() {
        path if path.is_dir() => holds(&path, what),
        path => fs::read(path).unwrap().windows(what.len()).any(|window| window == what),
    })
}

#[test]
fn no_prompt_stands_in_the_clear() {
    for encrypted in [true, false] {
        let mut home = Home::new();
        if !encrypted {
            *home.flags.last_mut().unwrap() = "off".into();
        }
        let mut served = home.serve(&[]);
        let reply = ask(&served, None, &conversation());
        let body = json!({"messages": conversation()}).to_string();
        let tokens = answer(&served, None, "/tokenize", &body)["tokens"].clone();
        let tokens: Vec<u32> = tokens.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
        served.signal("TERM");
        assert_eq!(served.end().0, Some(0));
        let (kv, bytes) =
            (home.dir.0.join("kv"), |ids: &[u32]| -> Vec<u8> { ids.iter().flat_map(|t| t.to_le_bytes()).collect() });
        let listed = home.json("ls", &[]);
        assert!(listed["tokens"].as_u64().unwrap() >= prompt_tokens(&reply) / CHUNK * CHUNK, "{listed}");
        // Where there is no encryption, this very search finds them.
        assert_eq!(holds(&kv, &bytes(&tokens[20..24])), !encrypted);
        for text in ["quokkas", "patient", content(&reply)] {
            assert!(!holds(&kv, text.as_bytes()), "{text}");
        }
        assert_eq!(listed["encrypted"], encrypted);
    }
}

#[test]
fn an_operator_lists_pins_and_verifies() {
    let home = Home::new();
    let messages = conversation();
    let reply = {
        let mut served = home.serve(&[]);
        let reply = ask(&served, None, &messages);
        served.signal("TERM");
        assert_eq!(served.end().0, Some(0));
        reply
    };
    let whole = prompt_tokens(&reply) / CHUNK * CHUNK;
    let file = home.file("chat.json", &messages.to_string());
    let (text, errors, code) = home.cache("pin", &["--messages", &file]);
    assert!(
        code == Some(0) && text.contains(&format!("{whole} of ")) && text.contains("RAM does not"),
        "{text}{errors}"
    );
    let (text, _, _) = home.cache("ls", &[]);
    for part in ["of 1.0 GiB in ", "kvist-small bf16 kv16 ", "  operator: 1 conversation, ", " ago, pinned"] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    let (text, errors, code) = home.cache("pin", &["--messages", &file, "--unpin"]);
    assert!(code == Some(0) && text == "1 path of operator unpinned\n", "{text}{errors}");
    assert!(!home.cache("ls", &[]).0.contains("pinned"));
    let (_, errors, code) = home.cache("pin", &["--messages", &file, "--unpin"]);
    assert!(code == Some(1) && errors.contains("is pinned for operator"), "{errors}");
    let (_, errors, code) = home.cache("pin", &["--prompt", "Never heard of it."]);
    assert!(code == Some(1) && errors.contains("nothing of these") && errors.contains("hint: send"), "{errors}");

    let (text, errors, code) = home.cache("verify", &[]);
    assert!(code == Some(0) && text.contains(" tokens in ") && text.contains(" verified in "), "{text}{errors}");
    // What is of other settings stays unless it is asked for.
    let (text, errors, code) = home.cache("gc", &["--kv-type", "kv8"]);
    assert!(code == Some(0) && text.contains("--foreign removes them"), "{text}{errors}");
    assert!(home.json("ls", &[])["tokens"].as_u64().unwrap() >= whole);

    let largest = home.segments().into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&largest, bytes).unwrap();
    let (_, errors, code) = home.cache("verify", &[]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("bad: operator, tokens ") && errors.contains("error: 1 chunk cannot be read"), "{errors}");
    {
        let mut served = home.serve(&[]);
        let again = ask(&served, None, &messages);
        assert_eq!(content(&again), content(&reply));
        served.signal("TERM");
        served.end();
    }
    let (text, errors, code) = home.cache("gc", &["--kv-type", "kv8", "--foreign"]);
    assert!(code == Some(0) && text.contains(" removed"), "{text}{errors}");
    assert_eq!(home.json("ls", &[])["tokens"], 0);
    let help = kvist(&["cache", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for command in ["ls", "explain", "verify", "gc", "pin", "forget"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command} in\n{help}");
    }
}

/// What only looks after a store does not read the model for it, and says so; what speaks of the model does.
#[test]
fn the_model_is_read_where_its_bytes_matter() {
    let home = Home::new();
    let model = home.dir.0.join("small");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(SMALL).unwrap().flatten() {
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let name = model.to_str().unwrap().to_owned();
    {
        let mut served = home.serve(&[&name]);
        ask(&served, None, &conversation());
        served.signal("TERM");
        assert_eq!(served.end().0, Some(0));
    }
    let unread = "the model's files were not read";
    let (text, errors, code) = home.cache("ls", &[&name]);
    assert!(code == Some(0) && text.contains(unread) && text.contains("operator: 1 conversation"), "{text}{errors}");
    // Where it is of other settings, it is read to know what is of none.
    let (text, _, code) = home.cache("ls", &[&name, "--kv-type", "kv8"]);
    assert!(code == Some(0) && !text.contains(unread) && text.contains("not of this model"), "{text}");

    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let told = home.json("explain", &[&name, "--messages", &home.file("chat.json", &conversation().to_string())]);
    assert_eq!(told["why"]["reason"], "other_fingerprint", "{told}");
    let (text, errors, code) = home.cache("verify", &[&name]);
    assert!(code == Some(0) && !text.starts_with("0 tokens"), "{text}{errors}");
    let (text, errors, code) = home.cache("gc", &[&name, "--foreign"]);
    assert!(code == Some(0) && !text.starts_with("0 B removed"), "{text}{errors}");
}

#[test]
fn where_there_is_no_store_it_is_said() {
    let home = Home::new();
    let (kv, key) = (home.dir.0.join("kv"), home.dir.0.join("key"));
    let says = |part: &str| {
        for command in [&["ls"][..], &["verify"], &["gc"], &["forget", "bob"], &["explain", "--prompt", "x"]] {
            let (_, errors, code) = home.cache(command[0], &command[1..]);
            assert!(code == Some(1) && errors.contains(part) && errors.contains("\nhint: "), "{command:?}: {errors}");
            assert!(!errors.contains("--kv-disk off"), "{errors}");
        }
    };
    says("there is no such directory");
    fs::write(&kv, "x").unwrap();
    says("it is no directory");
    fs::remove_file(&kv).unwrap();
    fs::create_dir(&kv).unwrap();
    fs::write(kv.join("notes.txt"), "x").unwrap();
    says("there is no store in it");
    assert_eq!((fs::read_dir(&kv).unwrap().count(), key.exists()), (1, false), "looking makes nothing");

    // A name alone is a file where the server was started.
    let mut command = serve(&["--kv-disk", "1GiB", "--kv-dir", "kv", "--kv-key-file", "key"]);
    command.current_dir(&home.dir.0);
    let mut served = Served::of(command);
    served.signal("TERM");
    assert_eq!(served.end().0, Some(0));
    let (text, errors, code) = home.cache("ls", &[]);
    assert!(code == Some(0) && text.contains(": 0 tokens in 0 B"), "{text}{errors}");

    fs::rename(&key, home.dir.0.join("other")).unwrap();
    says("name the --kv-key-file of the server");
    fs::create_dir(&key).unwrap();
    says("it is no file");
}
