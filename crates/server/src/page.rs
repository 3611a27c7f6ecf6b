//! The page at `/`: what this is and how to call it. No scripts, no assets; open without a key, so with keys set it
//! does not name the model.

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

/// Renders the page. `model` is left out where visitors may not know it.
pub fn page(request: &HeaderMap, model: Option<&str>, keyed: bool) -> Response {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-[]".contains(c);
    let host = request.get(header::HOST).and_then(|h| h.to_str().ok()).filter(|h| h.chars().all(plain));
    let model = model.map_or(String::new(), |m| format!("It serves <b>{}</b>.", escape(m)));
    let key = if keyed { "\n  -H 'authorization: Bearer KEY' \\" } else { "" };
    let text =
        PAGE.replace("{{model}}", &model).replace("{{host}}", host.unwrap_or("localhost:8080")).replace("{{key}}", key);
    let mut response = Html(text).into_response();
    let headers = response.headers_mut();
    if let Some(policy) = &*POLICY {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy.clone());
    }
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| HeaderValue::from_str(&policy()).ok());

/// Nothing but the page's own style sheet.
fn policy() -> String {
    let style = PAGE.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>")).map_or("", |(s, _)| s);
    let digest = base64(&Sha256::digest(style));
    format!(
        "default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0u32, |w, &b| w << 8 | u32::from(b)) << (8 * (3 - group.len()));
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= group.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn what_clients_send_cannot_become_markup() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("<script>"));
        let response = page(&headers, Some("a<b>'"), false);
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
        assert_eq!(escape("a<b>'\"&"), "a&lt;b&gt;&#39;&quot;&amp;");
    }
}
