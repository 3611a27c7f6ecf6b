//! Who asks: a key file, and the tenant that a key stands for.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use kvist_base::DomainId;
use sha2::{Digest, Sha256};

/// The domain of requests when no keys are set, and of what the operator does.
pub const OPERATOR: DomainId = DomainId(1);

/// A caller that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub name: Arc<str>,
    pub domain: DomainId,
}

impl Tenant {
    pub fn operator() -> Self {
        Tenant { name: "-".into(), domain: OPERATOR }
    }

    /// Under which a store keeps what is the tenant's; no key file can name the operator.
    pub fn store_name(&self) -> String {
        if self.domain == OPERATOR { "operator".into() } else { format!("tenant {}", self.name) }
    }
}

/// The keys of a key file, hashed. Each name is a tenant with a domain of its own; several keys may have one name.
#[derive(Clone)]
pub struct Keys {
    entries: Arc<[([u8; 32], Tenant)]>,
}

/// What is wrong with a key file. The message names the line, never a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFileError(String);

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nhint: each line is `name key` or `name sha256:HEX`; `#` starts a comment line", self.0)
    }
}

impl std::error::Error for KeyFileError {}

impl Keys {
    pub fn from_file(path: &Path) -> Result<Keys, KeyFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| KeyFileError(format!("the key file {} cannot be read: {e}", path.display())))?;
        Keys::parse(&text)
    }

    /// Parses lines `name key` or `name sha256:HEX`. The domain of the n-th different name is `n + 2` counted from 0,
    /// so names are added at the end.
    pub fn parse(text: &str) -> Result<Keys, KeyFileError> {
        let mut names: Vec<&str> = Vec::new();
        let mut entries: Vec<([u8; 32], Tenant)> = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| KeyFileError(format!("key file, line {}: {what}", i + 1));
            let mut words = line.split_whitespace();
            let (Some(name), Some(key), None) = (words.next(), words.next(), words.next()) else {
                return Err(wrong("it does not have two words"));
            };
            let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if name.len() > 64 || !name.chars().all(allowed) {
                return Err(wrong("a name has at most 64 letters, digits, `_`, `-` and `.`"));
            }
            let digest = match key.strip_prefix("sha256:") {
                Some(hex) => unhex(hex).ok_or_else(|| wrong("`sha256:` is not followed by 64 hex digits"))?,
                None => Sha256::digest(key).into(),
            };
            if entries.iter().any(|(d, t)| *d == digest && &*t.name != name) {
                return Err(wrong("the key already belongs to another name"));
            }
            let index = names.iter().position(|n| *n == name).unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            });
            entries.push((digest, Tenant { name: name.into(), domain: DomainId(index as u32 + 2) }));
        }
        if entries.is_empty() {
            return Err(KeyFileError("the key file has no keys".into()));
        }
        Ok(Keys { entries: entries.into() })
    }

    /// Each tenant, once.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        let first = |i: usize| !self.entries[..i].iter().any(|e| e.1.domain == self.entries[i].1.domain);
        (0..self.entries.len()).filter(move |i| first(*i)).map(|i| &self.entries[i].1)
    }

    /// The tenant of a key. Digests are compared, all of them and whole, so the time taken tells nothing.
    pub fn find(&self, key: &[u8]) -> Option<&Tenant> {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let mut found = None;
        for (known, tenant) in self.entries.iter() {
            let differ = known.iter().zip(&digest).fold(0, |d, (a, b)| d | (a ^ b));
            if std::hint::black_box(differ) == 0 {
                found = Some(tenant);
            }
        }
        found
    }
}

/// The key that a request carries: `Authorization: Bearer KEY` or `x-api-key: KEY`.
pub fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        return scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii());
    }
    headers.get("x-api-key").map(|v| v.as_bytes().trim_ascii())
}

fn unhex(hex: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tenants_and_keys_are_hashed() {
        // echo -n secret | sha256sum
        let hashed = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let keys = Keys::parse(&format!("# staff\nalice a-key\n\nbob sha256:{hashed}\nalice second\n")).unwrap();
        let domain = |key: &str| keys.find(key.as_bytes()).map(|t| (t.name.to_string(), t.domain.0));
        assert_eq!(domain("a-key"), Some(("alice".into(), 2)));
        assert_eq!(domain("second"), Some(("alice".into(), 2)));
        assert_eq!(domain("secret"), Some(("bob".into(), 3)));
        for wrong in ["", "a-ke", "a-key ", "sha256", hashed, "a-keyy"] {
            assert_eq!(domain(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn malformed_files_are_refused_by_line() {
        for (text, part) in [
            ("", "no keys"),
            ("# only a comment", "no keys"),
            ("alice", "line 1"),
            ("alice a b", "line 1"),
            ("a k\nb k", "line 2: the key already belongs"),
            ("a/b key", "letters"),
            ("a sha256:12", "64 hex"),
            (&format!("a sha256:{}", "g".repeat(64)), "64 hex"),
        ] {
            let error = Keys::parse(text).err().expect(text).to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn keys_are_found_in_both_headers() {
        let with = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            presented(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(with("authorization", "Bearer k1").as_deref(), Some(&b"k1"[..]));
        assert_eq!(with("authorization", "bearer  k1 ").as_deref(), Some(&b"k1"[..]));
        assert_eq!(with("authorization", "Basic k1"), None);
        assert_eq!(with("authorization", "k"), None);
        assert_eq!(with("x-api-key", "k2").as_deref(), Some(&b"k2"[..]));
    }
}
