//! The local cache of Hugging Face downloads, read only: `models--org--name/{refs,snapshots,blobs}` below one directory.
//! Nothing here opens a connection.

mod id;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

pub use id::Id;

/// Deeper folders, and more entries of one folder, than any download has.
const MOST_DEPTH: usize = 6;
const MOST_ENTRIES: usize = 100_000;
/// A ref is a commit of 40 digits.
const MOST_REF: u64 = 256;
/// Digits that a shortened commit has at least.
const LEAST_DIGITS: usize = 4;

/// The directory that holds the models' directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    pub root: PathBuf,
}

/// A model's directory in the cache.
#[derive(Debug, PartialEq, Eq)]
pub struct Repo {
    pub id: String,
    /// Commits by the names of branches and tags.
    pub refs: BTreeMap<String, String>,
    /// Commits that files are there of, in ascending order.
    pub commits: Vec<String>,
    /// Downloads that were begun and not finished, and their bytes so far.
    pub unfinished: (usize, u64),
    dir: PathBuf,
}

/// Why a revision is not there.
#[derive(Debug, PartialEq, Eq)]
pub enum Lacking {
    /// No branch, tag or commit of this name.
    Revision(String),
    /// A branch or tag whose commit's files are not there.
    Snapshot { name: String, commit: String },
    /// Several commits begin so.
    Ambiguous(String),
}

impl Cache {
    /// Where this user's cache is, by the variables of the `huggingface_hub` package: `HF_HUB_CACHE`, its old name,
    /// `HF_HOME`, `XDG_CACHE_HOME`, the home directory. `None` without any of them.
    pub fn locate(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<Cache> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(|value| expand(value, &set));
        let home = || path("HF_HOME").or_else(|| Some(caches(&path, &set)?.join("huggingface")));
        let hub = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        Some(Cache { root: hub.or_else(|| Some(home()?.join("hub")))? })
    }

    pub fn of_process() -> Option<Cache> {
        Cache::locate(&|name| std::env::var_os(name))
    }

    /// Every model, by name. A cache that is not there has none.
    pub fn repos(&self) -> io::Result<Vec<Repo>> {
        let mut repos = Vec::new();
        for name in names(&self.root)? {
            let dir = self.root.join(&name);
            if let Some(id) = Id::of_directory(&name).filter(|_| dir.is_dir()) {
                repos.push(Repo::open(id, dir));
            }
        }
        repos.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(repos)
    }

    /// The model of this id, whatever is there of it.
    pub fn repo(&self, id: &Id) -> Option<Repo> {
        let dir = self.root.join(id.directory());
        dir.is_dir().then(|| Repo::open(id.repo.clone(), dir))
    }
}

impl Repo {
    /// What the directory of a model holds. What cannot be read counts as not there.
    pub fn open(id: String, dir: PathBuf) -> Repo {
        let mut refs = BTreeMap::new();
        for file in walk(&dir.join("refs")) {
            let name: Vec<_> = file.components().map(|c| c.as_os_str().to_string_lossy()).collect();
            if let Some(commit) = read_ref(&dir.join("refs").join(&file)) {
                refs.insert(name.join("/"), commit);
            }
        }
        let snapshots = dir.join("snapshots");
        let mut commits = names(&snapshots).unwrap_or_default();
        commits.retain(|commit| snapshots.join(commit).is_dir());
        commits.sort();
        let blobs = dir.join("blobs");
        let mut unfinished = (0, 0);
        for name in names(&blobs).unwrap_or_default().iter().filter(|name| name.ends_with(".incomplete")) {
            unfinished.0 += 1;
            unfinished.1 += fs::metadata(blobs.join(name)).map_or(0, |meta| meta.len());
        }
        Repo { id, refs, commits, unfinished, dir }
    }

    /// The model's directory, if this is one of a cache.
    pub fn of_directory(dir: &Path) -> Option<Repo> {
        let id = Id::of_directory(dir.file_name()?.to_str()?)?;
        dir.join("snapshots").is_dir().then(|| Repo::open(id, dir.to_path_buf()))
    }

    /// The commit of a branch, a tag, a commit or its first digits; of `main` where none is named.
    pub fn commit(&self, revision: Option<&str>) -> Result<&str, Lacking> {
        let name = revision.unwrap_or("main");
        let there = |commit: &str| self.commits.iter().find(|c| *c == commit).map(String::as_str);
        if let Some(commit) = self.refs.get(name) {
            return there(commit).ok_or_else(|| Lacking::Snapshot { name: name.into(), commit: commit.clone() });
        }
        if let Some(commit) = there(name) {
            return Ok(commit);
        }
        let short = name.len() >= LEAST_DIGITS && name.chars().all(|c| c.is_ascii_hexdigit());
        let mut beginning = self.commits.iter().filter(|commit| short && commit.starts_with(name));
        match (beginning.next(), beginning.next()) {
            (Some(commit), None) => Ok(commit),
            (Some(_), Some(_)) => Err(Lacking::Ambiguous(name.into())),
            (None, _) => Err(Lacking::Revision(name.into())),
        }
    }

    /// The files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// The commits, each by a name for people: branches and tags, else its first digits.
    pub fn revisions(&self) -> impl Iterator<Item = (&str, String)> {
        self.commits.iter().map(|commit| {
            let named = self.refs.iter().filter(|(_, c)| *c == commit).map(|(name, _)| name.as_str());
            let named: Vec<&str> = named.collect();
            let name = if named.is_empty() { commit.chars().take(8).collect() } else { named.join(", ") };
            (commit.as_str(), name)
        })
    }
}

/// Files below a directory, as paths from it in ascending order. Links to directories are not followed: they may lead
/// back.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![(PathBuf::new(), 0)];
    while let Some((below, depth)) = open.pop() {
        for entry in fs::read_dir(dir.join(&below)).into_iter().flatten().flatten() {
            let path = below.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < MOST_DEPTH => open.push((path, depth + 1)),
                Ok(kind) if !kind.is_dir() => files.push(path),
                _ => {}
            }
            if files.len() + open.len() > MOST_ENTRIES {
                break;
            }
        }
    }
    files.sort();
    files
}

/// What a directory contains; nothing if it is not there. Names that are not UTF-8 are none that we look for.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    Ok(entries.take(MOST_ENTRIES).flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The commit that a ref names. It becomes part of a path, so it must be one name.
fn read_ref(path: &Path) -> Option<String> {
    let mut text = String::new();
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    fs::File::open(path).ok()?.take(MOST_REF).read_to_string(&mut text).ok()?;
    let commit = text.trim();
    let mut parts = Path::new(commit).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)).then(|| commit.to_owned())
}

/// This user's directories for caches and for configuration.
pub fn own_directories() -> (Option<PathBuf>, Option<PathBuf>) {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let path = |name: &str| set(name).map(|value| expand(value, &set));
    let configuration = || path("XDG_CONFIG_HOME").or_else(|| Some(PathBuf::from(home(&set)?).join(".config")));
    (caches(&path, &set), configuration())
}

fn caches(path: &dyn Fn(&str) -> Option<PathBuf>, set: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    path("XDG_CACHE_HOME").or_else(|| Some(PathBuf::from(home(set)?).join(".cache")))
}

fn home(set: &dyn Fn(&str) -> Option<OsString>) -> Option<OsString> {
    set("HOME").or_else(|| set("USERPROFILE"))
}

/// `~`, `$NAME` and `${NAME}` as `huggingface_hub` expands them; what is not set stays.
fn expand(value: OsString, set: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    let Some(text) = value.to_str() else { return value.into() };
    let text = match (text.strip_prefix('~'), home(set).and_then(|home| home.into_string().ok())) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ => text.to_owned(),
    };
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, len) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match set(name).and_then(|value| value.into_string().ok()) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[at..=at + len]),
        }
        rest = &after[len..];
    }
    out.push_str(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(variables: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Cache::locate(&variable).map(|cache| cache.root.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_cache_is_where_its_variables_say() {
        let home = ("HOME", "/home/u");
        for (variables, expected) in [
            (&[home][..], "/home/u/.cache/huggingface/hub"),
            (&[home, ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[home, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
            (&[home, ("HF_HOME", "~/h")], "/home/u/h/hub"),
            (&[home, ("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[home, ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
            (&[home, ("HF_HUB_CACHE", "$DATA/hub"), ("DATA", "/d")], "/d/hub"),
            (&[home, ("HF_HUB_CACHE", "${DATA}x/$NONE/${ALSO}"), ("DATA", "/d")], "/dx/$NONE/${ALSO}"),
            (&[home, ("HF_HUB_CACHE", ""), ("HF_HOME", "")], "/home/u/.cache/huggingface/hub"),
            (&[home, ("HF_HUB_CACHE", "/a$")], "/a$"),
        ] {
            assert_eq!(root(variables).as_deref(), Some(expected), "{variables:?}");
        }
        assert_eq!(root(&[]), None);
    }

    #[test]
    fn revisions_are_found() {
        let repo = Repo {
            id: "a/b".into(),
            refs: [("main", "abcdef01"), ("v1", "abcd9999"), ("gone", "1234")]
                .map(|(n, c)| (n.into(), c.into()))
                .into(),
            commits: vec!["abcd9999".into(), "abcdef01".into(), "ffff0000".into()],
            unfinished: (0, 0),
            dir: PathBuf::new(),
        };
        assert_eq!(repo.commit(None), Ok("abcdef01"));
        assert_eq!(repo.commit(Some("v1")), Ok("abcd9999"));
        assert_eq!(repo.commit(Some("ffff0000")), Ok("ffff0000"));
        assert_eq!(repo.commit(Some("abcde")), Ok("abcdef01"));
        assert_eq!(repo.commit(Some("abcd")), Err(Lacking::Ambiguous("abcd".into())));
        assert_eq!(repo.commit(Some("fff")), Err(Lacking::Revision("fff".into())));
        let gone = Lacking::Snapshot { name: "gone".into(), commit: "1234".into() };
        assert_eq!(repo.commit(Some("gone")), Err(gone));
        let names: Vec<String> = repo.revisions().map(|(_, name)| name).collect();
        assert_eq!(names, ["v1", "main", "ffff0000"]);
    }
}
