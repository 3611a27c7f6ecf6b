use std::fmt;

/// A model on the Hugging Face hub: `org/name`, then perhaps `@revision`, then perhaps `:quant` or `:file.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id {
    /// `org/name`, or `name` alone for the oldest models.
    pub repo: String,
    /// A branch, a tag, or the beginning of a commit; `main` where none is named.
    pub revision: Option<String>,
    /// Which of several GGUF files.
    pub pick: Option<String>,
}

impl Id {
    /// Reads what may be an id by the hub's rules; anything else is a path.
    pub fn parse(text: &str) -> Option<Id> {
        let (rest, pick) = match text.split_once(':') {
            Some((rest, pick)) => (rest, Some(pick)),
            None => (text, None),
        };
        let (repo, revision) = match rest.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (rest, None),
        };
        let parts = repo.split('/').count();
        let valid = parts <= 2
            && repo.split('/').all(is_name)
            && !["--", ".."].iter().any(|part| repo.contains(part))
            && !repo.ends_with(".git")
            && revision.is_none_or(is_relative)
            && pick.is_none_or(is_relative);
        valid.then(|| Id { repo: repo.into(), revision: revision.map(Into::into), pick: pick.map(Into::into) })
    }

    /// Its directory in a cache.
    pub fn directory(&self) -> String {
        format!("models--{}", self.repo.replace('/', "--"))
    }

    /// The repository that a directory of a cache holds.
    pub fn of_directory(name: &str) -> Option<String> {
        let repo = name.strip_prefix("models--")?.replace("--", "/");
        Id::parse(&repo).filter(|id| id.repo == repo).map(|id| id.repo)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.pick.iter().try_for_each(|pick| write!(f, ":{pick}"))
    }
}

/// Letters, digits and `-_.`, 96 at most, not `-` or `.` at either end.
fn is_name(part: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    part.len() <= 96
        && edge(part.chars().next())
        && edge(part.chars().next_back())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// The path of something below a directory.
fn is_relative(text: &str) -> bool {
    text.len() <= 1024
        && !text.contains(['\\', ':', '\0'])
        && text.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read() {
        let id = |text: &str| Id::parse(text).map(|id| (id.repo, id.revision, id.pick));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(id("Qwen/Qwen3-0.6B"), Some(("Qwen/Qwen3-0.6B".into(), None, None)));
        assert_eq!(id("gpt2"), Some(("gpt2".into(), None, None)));
        assert_eq!(id("a/b@v1.0"), Some(("a/b".into(), some("v1.0"), None)));
        assert_eq!(id("a/b@refs/pr/1:Q4_K_M"), Some(("a/b".into(), some("refs/pr/1"), some("Q4_K_M"))));
        assert_eq!(id("a/b:sub/m-Q8_0.gguf"), Some(("a/b".into(), None, some("sub/m-Q8_0.gguf"))));
        for text in ["a/b", "gpt2", "a/b@v1.0", "a/b@refs/pr/1:Q4_K_M", "a/b:m.gguf"] {
            assert_eq!(Id::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_id_is_not_taken_for_one() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a/b/c",
            "./a",
            "../a",
            "~/a",
            "a//b",
            "a--b/c",
            "a/b..c",
            "a/b.git",
            "-a/b",
            "a-/b",
            "a/b.",
            "a b/c",
            "a/b@",
            "a/b:",
            "a/b@../c",
            "a/b@/c",
            "a/b:../x.gguf",
            "ä/b",
            "C:\\models",
            "a\\b",
            "a/b@x:y:z",
        ] {
            assert_eq!(Id::parse(text), None, "{text:?}");
        }
        assert_eq!(Id::parse(&format!("a/{}", "b".repeat(97))), None);
    }

    #[test]
    fn directories_are_named_both_ways() {
        let id = Id::parse("meta-llama/Llama-3.2-1B").unwrap();
        assert_eq!(id.directory(), "models--meta-llama--Llama-3.2-1B");
        assert_eq!(Id::of_directory(&id.directory()).as_deref(), Some("meta-llama/Llama-3.2-1B"));
        assert_eq!(Id::of_directory("models--gpt2").as_deref(), Some("gpt2"));
        for other in ["datasets--a--b", "models--", "models--a--b--c", "models--a--b@c", "version.txt"] {
            assert_eq!(Id::of_directory(other), None, "{other}");
        }
    }
}
