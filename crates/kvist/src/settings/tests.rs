use super::keys::{CTX, HOST, KV_RAM, MAX_BATCH, MODEL, PORT, PUBLIC_PROMPT, STRICT_MODEL};
use super::*;

struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> TempFile {
        let path = std::env::temp_dir().join(format!("kvist-settings-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        TempFile(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn resolve(flags: &[(&str, &str)], environment: &[(&str, &str)], file: Option<&Path>) -> Result<Settings> {
    let pick = |list: &[(&str, &str)], name: &str| -> Option<Vec<String>> {
        let all: Vec<String> = list.iter().filter(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()).collect();
        (!all.is_empty()).then_some(all)
    };
    Settings::resolve(
        false,
        &Layers {
            flags: &|key| pick(flags, key.name),
            environment: &|name| pick(environment, name).map(|mut all| all.remove(0)),
            file,
        },
    )
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = TempFile::new("order", "port = 1\nhost = \"10.0.0.1\"\nkv-ram = \"1GiB\"\nstrict-model = true\n");
    let path = Some(file.0.as_path());
    let env = [("KVIST_PORT", "2"), ("KVIST_KV_RAM", "2GiB"), ("KVIST_UNRELATED", "x")];
    let s = resolve(&[("port", "3")], &env, path).unwrap();
    assert_eq!((s.number(&PORT), s.origin(&PORT)), (Some(3), &Origin::Flag));
    assert_eq!((s.number(&KV_RAM), s.origin(&KV_RAM)), (Some(2 << 30), &Origin::Environment("KVIST_KV_RAM".into())));
    assert_eq!((s.text(&HOST), s.origin(&HOST)), (Some("10.0.0.1"), &Origin::File(file.0.clone())));
    assert_eq!((s.count(&MAX_BATCH), s.origin(&MAX_BATCH)), (64, &Origin::Default));
    assert!(s.flag(&STRICT_MODEL));
    assert_eq!((s.number(&CTX), s.text(&MODEL)), (None, None));
    assert_eq!(resolve(&[], &env, path).unwrap().number(&PORT), Some(2));
    assert_eq!(resolve(&[], &[], path).unwrap().number(&PORT), Some(1));
    assert_eq!(resolve(&[], &[], None).unwrap().number(&PORT), Some(8080));
}

#[test]
fn what_is_printed_gives_the_same_settings() {
    let flags = [
        ("model", "some \"dir\"\\x"),
        ("port", "0"),
        ("kv-ram", "1536MiB"),
        ("max-body", "1000001"),
        ("allow-unauthenticated", "true"),
        ("public-prompt", "a.txt"),
        ("public-prompt", "b, c.txt"),
        ("cors", "https://example.org"),
    ];
    let first = resolve(&flags, &[("KVIST_MAX_N", "4")], None).unwrap();
    let printed = first.print();
    let file = TempFile::new("printed", &printed);
    let again = resolve(&[], &[], Some(&file.0)).unwrap();
    for (a, b) in first.entries.iter().zip(&again.entries) {
        assert_eq!((a.0.name, &a.1), (b.0.name, &b.1), "{printed}");
    }
    assert_eq!(again.list(&PUBLIC_PROMPT), ["a.txt", "b, c.txt"]);
    for expected in [
        "# flag --port",
        "# argument",
        "# environment KVIST_MAX_N",
        "# default\n",
        "kv-ram = \"1536MiB\"",
        "# ctx =",
        "# default: the model's, or what --kv-ram holds",
    ] {
        assert!(printed.contains(expected), "{expected:?} in\n{printed}");
    }
}

#[test]
fn an_empty_default_list_is_printed_as_one() {
    let printed = resolve(&[], &[], None).unwrap().print();
    let table: toml::Table = toml::from_str(&printed).unwrap();
    assert_eq!(table["cors"].as_array().map(Vec::len), Some(0));
    assert!(!table.contains_key("public-prompt") && !table.contains_key("model"));
}

#[test]
fn what_was_found_is_printed_as_a_comment() {
    let mut s = resolve(&[("kv-ram", "7MiB")], &[], None).unwrap();
    s.fill(&KV_RAM, Value::Size(1));
    s.fill(&CTX, Value::Number(4096));
    let printed = s.print();
    assert!(printed.contains("\nkv-ram = \"7MiB\"") && printed.contains("\n# ctx = 4096 "), "{printed}");
}

#[test]
fn unknown_variables_are_told_with_the_nearest() {
    let nearest = |name| keys::unknown_variable(name).unwrap_or_default();
    assert!(nearest("KVIST_MAXBATCH").ends_with("KVIST_MAXBATCH; the nearest is KVIST_MAX_BATCH"));
    assert!(nearest("KVIST_CONFG").ends_with("KVIST_CONFIG"));
    assert_eq!((nearest("KVIST_CONFIG"), nearest("KVIST_CTX"), nearest("HOME")), <_>::default());
}

#[test]
fn a_found_value_is_filled_in_unless_given() {
    let mut s = resolve(&[("kv-ram", "7MiB")], &[], None).unwrap();
    s.fill(&KV_RAM, Value::Size(1));
    s.fill(&CTX, Value::Number(4096));
    assert_eq!((s.number(&KV_RAM), s.number(&CTX)), (Some(7 << 20), Some(4096)));
}

#[test]
fn errors_name_the_place_and_the_way_out() {
    let fails = |flags: &[(&str, &str)], env: &[(&str, &str)], file: Option<&str>| {
        let file = file.map(|text| TempFile::new("wrong", text));
        let failure = resolve(flags, env, file.as_ref().map(|f| f.0.as_path())).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(!failure.hint.is_empty());
        failure.to_string()
    };
    let contains = |text: String, parts: &[&str]| {
        parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} in {text:?}"));
    };
    contains(fails(&[("port", "70000")], &[], None), &["--port", "70000", "from 0 to 65535", "hint: "]);
    contains(fails(&[("kv-ram", "much")], &[], None), &["--kv-ram", "not a size"]);
    contains(fails(&[("kv-type", "kv4")], &[], None), &["kv16", "kv8"]);
    contains(fails(&[("threads", "0")], &[], None), &["--threads", "from 1 to 1024", "hint: without it: the cores"]);
    contains(fails(&[("max-step-tokens", "1")], &[], None), &["from 32 to 65536"]);
    contains(fails(&[("max-step-tokens", "9223372036854775807")], &[], None), &["from 32 to 65536"]);
    contains(fails(&[("max-queue", "0")], &[], None), &["1 or more"]);
    contains(fails(&[("ctx", "1")], &[], None), &["--ctx", "64 or more", "hint: "]);
    for cors in ["foo", "https://", "://x", "https://a/", "HTTPS://A", "https://a b"] {
        contains(fails(&[("cors", cors)], &[], None), &["--cors", "no origin", "https://example.org"]);
        contains(fails(&[], &[("KVIST_CORS", cors)], None), &["no origin"]);
        contains(fails(&[], &[], Some(&format!("cors = [{cors:?}]\n"))), &["no origin"]);
    }
    contains(fails(&[("isa", "sse")], &[], None), &["none of avx512, avx512vnni, avxvnni, avx2, portable"]);
    contains(fails(&[], &[("KVIST_MAX_N", "0")], None), &["KVIST_MAX_N", "1 or more", "unset"]);
    contains(fails(&[], &[("KVIST_PORT", "tcp://10.0.0.1:80")], None), &["KVIST_PORT", "enableServiceLinks"]);
    contains(fails(&[], &[], Some("prot = 80\n")), &["\"prot\"", "did you mean \"port\"?"]);
    contains(fails(&[], &[], Some("something-else = 80\n")), &["no setting named", "--print-config"]);
    contains(fails(&[], &[], Some("port = \"80\"\n")), &["port", "quotes"]);
    contains(fails(&[], &[], Some("port = = 80\n")), &["line 1"]);
    contains(fails(&[], &[], Some("host = true\n")), &["host", "not of the right type"]);
    let missing = resolve(&[], &[], Some(Path::new("/nowhere/kvist.toml"))).unwrap_err();
    contains(missing.to_string(), &["/nowhere/kvist.toml", "--config"]);
}

#[test]
fn one_file_serves_both_commands() {
    let file = TempFile::new("both", "port = 9\nkv-ram = \"1GiB\"\n");
    let layers = Layers { flags: &|_| None, environment: &|_| None, file: Some(&file.0) };
    let settings = Settings::resolve(true, &layers).unwrap();
    assert_eq!(settings.number(&KV_RAM), Some(1 << 30));
    assert!(!settings.print().contains("port"));
}
