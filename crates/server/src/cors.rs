//! Calls from web pages: off unless the operator lists their origins. Never with credentials.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::api::ApiError;
use crate::config::ServerConfig;

/// The `Origin` of a request, if pages from there may read the answer.
pub fn allowed(list: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    list.iter().any(|o| o == "*" || o.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

/// The answer to a browser's question whether it may call. Such a question carries no key.
pub fn preflight(request: &Parts, origin: &HeaderValue) -> Option<Response> {
    let asks = request.method == Method::OPTIONS && request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if !asks {
        return None;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    if let Some(wanted) = request.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    permit(headers, origin);
    Some(response)
}

/// Lets pages from `origin` read an answer.
pub fn permit(headers: &mut HeaderMap, origin: &HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("x-request-id, retry-after, x-kvist-truncated-prompt-tokens"),
    );
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}

/// Keeps web pages out of a server without keys, which often runs where only its user should reach it: pages whose own
/// name was made to point here (DNS rebinding) by `Host`, all others by `Origin`. Who sends neither is no browser.
pub fn refuse_foreign(config: &ServerConfig, headers: &HeaderMap) -> Result<(), ApiError> {
    if config.keys.is_some() {
        return Ok(());
    }
    let ours = |host: &HeaderValue| is_ours(config.host.as_deref(), host.as_bytes());
    if !headers.get_all(header::HOST).iter().all(ours) {
        let message = "the Host header names another server; without keys only addresses, `localhost` and the name \
                       given by --host are answered";
        return Err(ApiError { code: Some("foreign_host"), ..ApiError::forbidden(message) });
    }
    let host = headers.get(header::HOST).map_or(&b""[..], |h| h.as_bytes());
    let own = |origin: &HeaderValue| {
        let rest = origin.as_bytes();
        let rest = rest.strip_prefix(b"http://").or_else(|| rest.strip_prefix(b"https://"));
        rest.is_some_and(|rest| rest.eq_ignore_ascii_case(host))
    };
    if headers.get(header::ORIGIN).is_none_or(own) || allowed(&config.cors, headers).is_some() {
        return Ok(());
    }
    let message = "web pages of this origin may not call the server; allow them with --cors";
    Err(ApiError { code: Some("foreign_origin"), ..ApiError::forbidden(message) })
}

fn is_ours(name: Option<&str>, host: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(host) else { return false };
    let host = authority.host();
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let address = bracketed.map_or_else(|| host.parse::<IpAddr>().is_ok(), |h| h.parse::<Ipv6Addr>().is_ok());
    let named = ["localhost"].into_iter().chain(name).any(|n| n.eq_ignore_ascii_case(host));
    (address || named) && !authority.as_str().contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_the_own_name_are_ours() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:80",
            "10.1.2.3:1",
            "localhost",
            "LOCALHOST:9",
            "box:1",
            "Box",
        ] {
            assert!(is_ours(Some("box"), host.as_bytes()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "x@localhost", "", "[box]"]
        {
            assert!(!is_ours(Some("box"), host.as_bytes()), "{host}");
        }
        assert!(!is_ours(None, b"box"));
    }
}
