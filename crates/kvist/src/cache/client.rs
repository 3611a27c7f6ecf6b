//! One request to a running server, in plain HTTP.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::failure::{Failure, Result};

const PATIENCE: Duration = Duration::from_secs(60);
/// Far more than any answer here.
const MOST: u64 = 16 << 20;

/// Where a server is.
#[derive(Debug, PartialEq, Eq)]
struct Url<'a> {
    host: &'a str,
    /// With the port.
    authority: String,
}

fn parse(url: &str) -> Result<Url<'_>> {
    let wrong = |what: &str| Failure::usage(format!("--url {url}: {what}"), "such as http://127.0.0.1:8080");
    if url.starts_with("https://") {
        return Err(wrong("kvist speaks plain HTTP; ask the server itself, on its own machine"));
    }
    let authority = url.strip_prefix("http://").ok_or_else(|| wrong("it does not begin with http://"))?;
    let authority = authority.trim_end_matches('/');
    if authority.is_empty() || authority.contains(['/', '@', '?', '#']) || authority.contains(char::is_whitespace) {
        return Err(wrong("a host and a port are wanted, and nothing else"));
    }
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            port.parse::<u16>().map_err(|_| wrong("the port is no number"))?;
            host
        }
        _ => return Ok(Url { host: authority, authority: format!("{authority}:80") }),
    };
    Ok(Url { host, authority: authority.into() })
}

/// Sends a body and returns the answer's; an answer other than 200 is a failure in its words.
pub fn post(url: &str, path: &str, key_file: Option<&Path>, body: &Value) -> Result<Value> {
    let key = key_file.map(key).transpose()?;
    let Url { host, authority } = parse(url)?;
    let failed = |e: std::io::Error| Failure::new(format!("--url {url}: {e}"), "is kvist serve running there?");
    let address = authority.to_socket_addrs().map_err(failed)?.next();
    let address =
        address.ok_or_else(|| Failure::new(format!("--url {url}: {host} has no address"), "check the name"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let body = body.to_string();
    let authorization = key.map_or(String::new(), |key| format!("Authorization: Bearer {key}\r\n"));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n{authorization}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).map_err(failed)?;
    read(&String::from_utf8_lossy(&answer)).map_err(|what| {
        let hint = if what.starts_with("401") { "--key-file FILE, a file with the key alone" } else { "" };
        Failure::new(format!("--url {url}: {what}"), hint)
    })
}

/// The body of a whole answer, or its status and what it says.
fn read(answer: &str) -> std::result::Result<Value, String> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is no HTTP")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    match (status, value["error"]["message"].as_str()) {
        ("200", _) if value.is_object() => Ok(value),
        (_, Some(message)) => Err(format!("{status}: {message}")),
        _ => Err(format!("{status}: not the answer of a kvist of this version")),
    }
}

fn key(file: &Path) -> Result<String> {
    let wrong =
        |what: String| Failure::usage(format!("--key-file {}: {what}", file.display()), "a file with the key alone");
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [key] if key.is_ascii() => Ok(key.into()),
        _ => Err(wrong("it does not hold one word".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_host_and_a_port() {
        let parts = |url| parse(url).map(|url| (url.host.to_owned(), url.authority));
        assert_eq!(parts("http://localhost:8080/").unwrap(), ("localhost".into(), "localhost:8080".into()));
        assert_eq!(parts("http://box").unwrap(), ("box".into(), "box:80".into()));
        assert_eq!(parts("http://[::1]:9").unwrap(), ("[::1]".into(), "[::1]:9".into()));
        assert_eq!(parts("http://[::1]").unwrap().1, "[::1]:80");
        for wrong in ["https://a", "a:80", "http://", "http://a/b", "http://a:x", "http://u@a", "http://a b"] {
            assert_eq!(parts(wrong).unwrap_err().code, 2, "{wrong}");
        }
    }

    #[test]
    fn answers_are_read_in_the_servers_words() {
        assert_eq!(read("HTTP/1.1 200 OK\r\nA: b\r\n\r\n{\"a\": 1}").unwrap()["a"], 1);
        let refused = read("HTTP/1.1 401 Unauthorized\r\n\r\n{\"error\": {\"message\": \"a key\"}}");
        assert_eq!(refused.unwrap_err(), "401: a key");
        assert!(read("HTTP/1.1 404 Not Found\r\n\r\n<html>").unwrap_err().starts_with("404: not the answer"));
        assert!(read("").is_err());
    }
}
