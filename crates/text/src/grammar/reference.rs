/// What a `$ref` within a schema names.
#[derive(Debug, PartialEq, Eq)]
pub enum Reference {
    /// Segments of a JSON pointer, unescaped; none = the root.
    Path(Vec<String>),
    Anchor(String),
}

impl Reference {
    /// `None` for a reference that leads out of the schema whose `$id` is `id`, or that is not spelt right.
    pub fn parse(text: &str, id: Option<&str>) -> Option<Self> {
        let (document, fragment) = text.split_once('#').unwrap_or((text, ""));
        if !document.is_empty() && Some(document) != id.map(|id| id.trim_end_matches('#')) {
            return None;
        }
        let fragment = percent_decoded(fragment)?;
        match fragment.strip_prefix('/') {
            _ if fragment.is_empty() => Some(Reference::Path(Vec::new())),
            Some(path) => {
                Some(Reference::Path(path.split('/').map(|s| s.replace("~1", "/").replace("~0", "~")).collect()))
            }
            None => Some(Reference::Anchor(fragment)),
        }
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || (rest.next()? as char).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_unescaped() {
        let path = |segments: &[&str]| Some(Reference::Path(segments.iter().map(|s| s.to_string()).collect()));
        assert_eq!(Reference::parse("#", None), path(&[]));
        assert_eq!(Reference::parse("#/$defs/a~1b~0c%25d", None), path(&["$defs", "a/b~c%d"]));
        assert_eq!(Reference::parse("#/a%22b", None), path(&["a\"b"]));
        assert_eq!(Reference::parse("#name", None), Some(Reference::Anchor("name".into())));
        assert_eq!(Reference::parse("http://x/y#/a", Some("http://x/y")), path(&["a"]));
        for outside in ["other.json", "http://x/z#/a", "#/%zz", "#/%f", "#/%ff"] {
            assert_eq!(Reference::parse(outside, Some("http://x/y")), None, "{outside}");
        }
    }
}
