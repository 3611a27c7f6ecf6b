//! Keys, tenants, browsers, request ids, logs.

use kvist_server::{Access, Keys, ServerConfig};
use serde_json::json;

use crate::harness::{Harness, Setup, with_messages};

fn keyed() -> Harness {
    keyed_with(Some("scraper"))
}

fn keyed_with(metrics_key: Option<&str>) -> Harness {
    let keys = Some(Keys::parse("alice key-a\nbob key-b\nscraper key-s\n").unwrap());
    let metrics_key = metrics_key.map(str::to_owned);
    Harness::with(Setup { server: ServerConfig { keys, metrics_key, ..ServerConfig::default() }, ..Setup::default() })
}

#[test]
fn without_a_key_only_health_and_the_page_are_open() {
    let h = keyed();
    let mut open = Vec::new();
    let wrong = [("authorization", "Bearer key-c"), ("authorization", "Basic key-a"), ("x-api-key", "")];
    let mut monitored = Vec::new();
    for (method, path, access) in kvist_server::paths() {
        let marked_open = access == Access::Everyone;
        let path = path.replace("{*id}", "kvist-test");
        for headers in wrong.iter().map(std::slice::from_ref).chain([&[][..]]) {
            let reply = h.request(method, &path, headers, b"{}");
            assert_eq!(reply.status == 401, !marked_open, "{method} {path}: {}", reply.status);
            if reply.status == 401 {
                assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
                assert_eq!(reply.json()["error"]["type"], "authentication_error");
            }
        }
        let reply = h.request(method, &path, &[("authorization", "Bearer key-a")], b"{}");
        assert_ne!(reply.status, 401, "{method} {path}");
        assert_eq!(reply.status == 403, access == Access::Monitor, "{method} {path}: {}", reply.status);
        let reply = h.request(method, &path, &[("authorization", "Bearer key-s")], b"{}");
        assert!(![401, 403].contains(&reply.status), "{method} {path}: {}", reply.status);
        if access == Access::Monitor {
            monitored.push(path.clone());
        }
        if marked_open {
            open.push(path);
        }
    }
    assert_eq!(open, ["/health", "/"]);
    assert_eq!(monitored, ["/metrics"]);
    // What does not exist tells nothing either.
    for (method, path) in
        [("GET", "/nothing"), ("GET", "/v1/chat/completions"), ("OPTIONS", "/metrics"), ("GET", "//health")]
    {
        assert_eq!(h.request(method, path, &[], b"").status, 401, "{method} {path}");
    }
    let page = h.get("/");
    assert!(!page.text().contains("kvist-test"), "the page does not name the model");
}

#[test]
fn what_all_tenants_do_is_shown_to_the_named_key_only() {
    let ask = |h: &Harness, key: &str| h.request("GET", "/metrics", &[("x-api-key", key)], b"");
    let h = keyed();
    let refused = ask(&h, "key-b");
    assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (403, Some("permission_error")));
    assert!(ask(&h, "key-s").text().contains("vllm:prompt_tokens_total"));
    let h = keyed_with(None);
    assert!(["key-a", "key-b", "key-s"].iter().all(|key| ask(&h, key).status == 403));
    assert_eq!(Harness::start().get("/metrics").status, 200);
}

#[test]
fn without_keys_web_pages_are_kept_out() {
    let host = Some("box".to_owned());
    let cors = vec!["https://a.example".to_owned()];
    let server = ServerConfig { host, cors, ..ServerConfig::default() };
    let h = Harness::with(Setup { server, ..Setup::default() });
    let ask = |headers: &[(&str, &str)]| {
        let reply = h.request("POST", "/v1/completions", headers, br#"{"prompt":"x","max_tokens":1}"#);
        if reply.status == 403 {
            assert_eq!(reply.json()["error"]["type"], "permission_error");
        }
        reply.status
    };
    for host in ["localhost:1", "127.0.0.1:8080", "[::1]:8080", "box:7"] {
        assert_eq!(ask(&[("host", host)]), 200, "{host}");
        assert_eq!(ask(&[("host", host), ("origin", &format!("http://{host}"))]), 200, "{host}");
        assert_eq!(ask(&[("host", host), ("origin", "https://a.example")]), 200);
        for origin in ["https://b.example", "null", "http://localhost:2", "http://evil.example"] {
            assert_eq!(ask(&[("host", host), ("origin", origin)]), 403, "{host} {origin}");
        }
    }
    assert_eq!(ask(&[("host", "rebound.example"), ("origin", "http://rebound.example")]), 403);
    assert_eq!(ask(&[("host", "rebound.example")]), 403);
    assert_eq!(h.request("GET", "/", &[("host", "rebound.example")], b"").status, 403);
    // Keys are what keeps strangers out of a server that has them.
    let with_key = [("host", "rebound.example"), ("x-api-key", "key-a")];
    assert_eq!(keyed().request("GET", "/v1/models", &with_key, b"").status, 200);
}

#[test]
fn tenants_do_not_hit_each_others_prefixes() {
    let h = keyed();
    let body = with_messages(json!({"max_tokens": 4})).to_string();
    let ask = |header: (&str, &str)| {
        let answer = h.request("POST", "/v1/chat/completions", &[header], body.as_bytes()).ok();
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (cached, usage["prompt_tokens"].as_u64().unwrap(), answer["choices"].clone())
    };
    let (cold, length, text) = ask(("authorization", "Bearer key-a"));
    assert_eq!(cold, 0);
    assert_eq!(ask(("x-api-key", "key-b")), (0, length, text.clone()));
    assert_eq!(ask(("x-api-key", "key-a")), (length - 1, length, text));
    let hurry = h.request("POST", "/v1/completions", &[("x-api-key", "key-a")], br#"{"prompt":"x","priority":-1}"#);
    assert_eq!(hurry.status, 400, "a tenant cannot put itself before others");
}

#[test]
fn the_page_is_static_and_strict() {
    let h = Harness::start();
    let reply = h.request("GET", "/", &[("host", "127.0.0.1:9999")], b"");
    assert_eq!(reply.status, 200);
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"));
    let text = reply.text();
    for part in ["kvist-test", "curl http://", "/v1/models", "/metrics", "/health"] {
        assert!(text.contains(part), "{part}");
    }
    assert!(!text.contains("<script") && !text.contains("src=") && !text.contains("{{"));
}

#[test]
fn request_ids_are_echoed_or_made() {
    let h = Harness::start();
    let ask =
        |id: &str| h.request("GET", "/health", &[("x-request-id", id)], b"").header("x-request-id").unwrap().to_owned();
    assert_eq!(ask("abc-123_x.y:z"), "abc-123_x.y:z");
    for bad in ["with space", "quote\"", &"x".repeat(200), ""] {
        let id = ask(bad);
        assert!(id != bad && id.len() == 24, "{id}");
    }
    assert!(h.get("/nothing").header("x-request-id").is_some());
}

#[test]
fn browsers_may_call_from_listed_origins_only() {
    let off = Harness::start();
    let from = [("origin", "https://a.example"), ("access-control-request-method", "POST")];
    assert_eq!(off.request("OPTIONS", "/v1/models", &from, b"").header("access-control-allow-origin"), None);
    assert_eq!(off.request("GET", "/v1/models", &from, b"").header("access-control-allow-origin"), None);

    let keys = Some(Keys::parse("alice key-a").unwrap());
    let cors = vec!["https://a.example".to_owned()];
    let h = Harness::with(Setup { server: ServerConfig { keys, cors, ..ServerConfig::default() }, ..Setup::default() });
    let wanted = [from[0], from[1], ("access-control-request-headers", "authorization, x-stainless-os")];
    let preflight = h.request("OPTIONS", "/v1/models", &wanted, b"");
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization, x-stainless-os"));
    assert_eq!(preflight.header("access-control-allow-credentials"), None);
    let call = h.request("GET", "/v1/models", &from, b"");
    assert_eq!((call.status, call.header("access-control-allow-origin")), (401, Some("https://a.example")));
    let other = h.request("GET", "/health", &[("origin", "https://b.example")], b"");
    assert_eq!((other.status, other.header("access-control-allow-origin")), (200, None));
}

#[test]
fn the_log_has_a_line_per_request_and_no_text() {
    let h = Harness::start();
    let secret = "zebra crossing";
    h.chat(json!({"messages": [{"role": "user", "content": secret}], "max_tokens": 5})).ok();
    h.complete(&json!({"prompt": secret, "stop": secret, "user": secret}));
    h.complete(&json!({"prompt": [secret, 5], "max_tokens": 5}));
    h.get("/zebra?crossing=zebra");
    h.get("/health");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while h.log.lock().unwrap().len() < 4 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let lines = h.log.lock().unwrap().clone();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines.iter().all(|l| !l.contains("zebra")), "{lines:?}");
    let chat = lines.iter().find(|l| l.starts_with("POST /v1/chat/completions")).unwrap();
    for part in [" id=", " tenant=- ", " status=200", " prompt=", " cached=0", " generated=5", " finish=length", " ms="]
    {
        assert!(chat.contains(part), "{part} in {chat}");
    }
    assert!(lines.iter().any(|l| l.starts_with("GET (other)") && l.contains("status=404 code=not_found_error")));
    assert!(lines.iter().all(|l| !l.contains("error: ")), "{lines:?}");
    // The server's own faults stand out.
    let h = Harness::loading(ServerConfig::default());
    h.chat(json!({}));
    h.until_log(|l| l.starts_with("error: POST ") && l.contains(" status=503 code=service_unavailable_error"));
}
