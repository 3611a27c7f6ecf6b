//! From what the user calls a model to its files: a directory, a `.gguf` file, or an id in the local cache of Hugging
//! Face downloads.

use std::path::{Path, PathBuf};

use super::files::{Files, Form, Gguf, only, pick, plain};
use crate::failure::{Failure, Result};
use crate::hub::{Cache, Id, Lacking, Repo};
use crate::nearest;
use crate::size::human;

pub const NEEDED: &str = "name a directory with config.json, safetensors weights and tokenizer.json, a .gguf file, or a \
                          model in the local Hugging Face cache (`kvist doctor` lists them)";

/// Models of the cache that a hint lists at most.
const LISTED: usize = 12;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub place: Place,
    /// What to call it.
    pub name: String,
    /// What the user should know about the choice.
    pub note: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    Directory(PathBuf),
    Gguf(PathBuf),
}

/// Finds MODEL. A directory of this name wins over an id.
pub fn find(model: &str, cache: Option<&Cache>) -> Result<Found> {
    let path = Path::new(model);
    let id = Id::parse(model);
    if path.is_dir() {
        let both = id.as_ref().is_some_and(|id| cache.is_some_and(|cache| cache.repo(id).is_some()));
        let note = both.then(|| {
            format!("{model} is a directory here; the model of this name in the local Hugging Face cache is not used")
        });
        return Ok(Found { note, ..in_directory(path, model)? });
    }
    if path.is_file() {
        if is_gguf(path) {
            return Ok(Found { name: stem(path), place: Place::Gguf(path.into()), note: None });
        }
        return Err(Failure::usage(format!("{model} is a file, and no .gguf"), NEEDED));
    }
    if let Err(e) = path.symlink_metadata()
        && e.kind() != std::io::ErrorKind::NotFound
        && e.kind() != std::io::ErrorKind::NotADirectory
    {
        return Err(Failure::usage(format!("{model}: {}", plain(&e)), "check the rights of the path"));
    }
    if is_gguf(path) && id.as_ref().is_none_or(|id| id.pick.is_none()) {
        return Err(Failure::usage(format!("{model}: there is no such file"), NEEDED));
    }
    match (id, cache) {
        (Some(id), Some(cache)) => in_cache(&id, cache),
        (Some(_), None) => Err(Failure::usage(
            format!("{model}: there is no such directory, and no home directory to look for a Hugging Face cache in"),
            "set HF_HUB_CACHE, or name a directory",
        )),
        (None, _) if model.starts_with('~') => Err(Failure::usage(
            format!("{model}: there is no such directory"),
            "only a shell puts the home directory for ~: write the whole path",
        )),
        (None, _) => Err(Failure::usage(format!("{model}: there is no such directory or file"), NEEDED)),
    }
}

fn in_directory(dir: &Path, model: &str) -> Result<Found> {
    // Somebody named the place where the cache keeps a model.
    if let Some(repo) = Repo::of_directory(dir) {
        let id = Id { repo: repo.id.clone(), revision: None, pick: None };
        return of_repo(&id, &repo, dir.parent().unwrap_or(dir));
    }
    let files = Files::of(dir);
    if let Form::Gguf(ggufs) = &files.form {
        let gguf = only(ggufs).map_err(|what| Failure::usage(format!("{model}: {what}"), "name one of its files"))?;
        complete(model, &gguf.missing, "copy the whole model")?;
        let file = dir.join(&gguf.file);
        return Ok(Found { name: stem(&file), place: Place::Gguf(file), note: None });
    }
    if let Some(trouble) = files.trouble() {
        return Err(Failure::usage(format!("{model}: {trouble}"), NEEDED));
    }
    // `.` and `..` have no name of their own.
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let name = full.file_name().map_or("model".into(), |n| n.to_string_lossy().into_owned());
    Ok(Found { place: Place::Directory(dir.into()), name, note: None })
}

fn in_cache(id: &Id, cache: &Cache) -> Result<Found> {
    match cache.repo(id) {
        Some(repo) => of_repo(id, &repo, &cache.root),
        None => Err(absent(id, cache)),
    }
}

fn of_repo(id: &Id, repo: &Repo, root: &Path) -> Result<Found> {
    let commit = repo.commit(id.revision.as_deref()).map_err(|lacking| no_revision(id, repo, root, &lacking))?;
    let dir = repo.snapshot(commit);
    let files = Files::of(&dir);
    let fetch = fetch(id, repo);
    match &files.form {
        Form::Gguf(ggufs) => {
            let gguf = pick(ggufs, id.pick.as_deref()).map_err(|what| {
                Failure::usage(
                    format!("{id}: {what}"),
                    format!("name one, as in {}:NAME", Id { pick: None, ..id.clone() }),
                )
            })?;
            complete(&id.to_string(), &gguf.missing, &fetch)?;
            Ok(Found { place: Place::Gguf(dir.join(&gguf.file)), name: id.repo.clone(), note: None })
        }
        Form::Other(_) => Err(Failure::new(format!("{id} in the local cache: {}", trouble(&files)), fetch)),
        Form::Safetensors => {
            if let Some(pick) = &id.pick {
                return Err(Failure::usage(
                    format!("{id}: it holds no GGUF model, so there is no {pick} of it"),
                    format!("name it without :{pick}; --weights q8 and --weights q4 quantise while loading"),
                ));
            }
            if !files.missing.is_empty() {
                return Err(Failure::new(format!("{id} in the local cache is {}", trouble(&files)), fetch));
            }
            Ok(Found { place: Place::Directory(dir), name: id.repo.clone(), note: None })
        }
    }
}

fn trouble(files: &Files) -> String {
    files.trouble().unwrap_or_default()
}

fn complete(model: &str, missing: &[String], fetch: &str) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("{model} is incomplete: missing {}", super::files::list(missing)), fetch))
}

/// How to get the rest of a model.
fn fetch(id: &Id, repo: &Repo) -> String {
    let revision = id.revision.as_ref().map_or(String::new(), |revision| format!(" --revision {revision}"));
    let begun = match repo.unfinished {
        (0, _) => String::new(),
        (1, bytes) => format!("a download stopped after {}; ", human(bytes)),
        (n, bytes) => format!("{n} downloads stopped after {}; ", human(bytes)),
    };
    format!(
        "{begun}kvist works offline and fetches nothing; where there is a network: `hf download {}{revision}`",
        repo.id
    )
}

fn no_revision(id: &Id, repo: &Repo, root: &Path, lacking: &Lacking) -> Failure {
    let what = match lacking {
        Lacking::Revision(name) => {
            format!("{}: the local cache {} has no revision {name} of it", id.repo, root.display())
        }
        Lacking::Snapshot { name, commit } => {
            format!("{}: {name} is commit {}, and the local cache has no files of that", id.repo, short(commit))
        }
        Lacking::Ambiguous(name) => format!("{}: several commits begin with {name}", id.repo),
    };
    let others: Vec<String> = repo
        .revisions()
        .map(|(commit, name)| match commit.starts_with(&name) {
            true => format!("{}@{name}", id.repo),
            false => format!("{}@{} ({name})", id.repo, short(commit)),
        })
        .collect();
    let hint = if others.is_empty() { fetch(id, repo) } else { format!("there: {}", super::files::list(&others)) };
    Failure::new(what, hint)
}

fn short(commit: &str) -> String {
    commit.chars().take(8).collect()
}

/// The model is not in the cache: what is, and what may have been meant.
fn absent(id: &Id, cache: &Cache) -> Failure {
    let what =
        format!("{} is not in the local cache {}, and there is no directory {id}", id.repo, cache.root.display());
    let offline = "kvist works offline and fetches nothing";
    let repos = match cache.repos() {
        Ok(repos) => repos,
        Err(e) => return Failure::usage(what, format!("{offline}; the cache cannot be read: {}", plain(&e))),
    };
    if repos.is_empty() {
        let fetch = format!("where there is a network: `hf download {}`", id.repo);
        return Failure::usage(what, format!("{offline}, and the cache is empty; {fetch}"));
    }
    let meant = meant(&id.repo, repos.iter().map(|repo| repo.id.as_str()));
    let meant = meant.map_or(String::new(), |repo| format!("did you mean {repo}? "));
    let width = repos.iter().take(LISTED).map(|repo| repo.id.len()).max().unwrap_or(0);
    let mut hint = format!("{meant}{offline}; the cache holds");
    for repo in repos.iter().take(LISTED) {
        hint += &format!("\n  {:<width$}  {}", repo.id, state(repo).text);
    }
    if repos.len() > LISTED {
        hint += &format!("\n  and {} more: `kvist doctor` lists all", repos.len() - LISTED);
    }
    Failure::usage(what, hint)
}

/// The id that was probably meant: the name without its organisation, or a few letters aside.
fn meant<'a>(asked: &str, there: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let there: Vec<&str> = there.collect();
    let name = |id: &str| id.rsplit('/').next().unwrap_or(id).to_lowercase();
    let wanted = name(asked);
    let by_name = there.iter().find(|id| name(id) == wanted);
    by_name.copied().or_else(|| nearest::of(asked, there, 1 + asked.len() / 5))
}

/// What a model of the cache is good for.
pub struct State {
    pub text: String,
    /// Whether it can be run as it is.
    pub usable: bool,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// Size and completeness of what a run without a revision would use.
pub fn state(repo: &Repo) -> State {
    let not = |text: String, bytes| State { text, usable: false, bytes };
    let Ok(commit) = repo.commit(None) else {
        if repo.commits.is_empty() {
            let bytes = repo.unfinished.1;
            let text =
                if repo.unfinished.0 > 0 { format!("incomplete: {} so far", human(bytes)) } else { "empty".into() };
            return not(text, 0);
        }
        let names: Vec<String> = repo.revisions().map(|(_, name)| name).collect();
        return not(format!("no files of main, but of {}", super::files::list(&names)), 0);
    };
    let dir = repo.snapshot(commit);
    let files = Files::of(&dir);
    let (size, bytes) = (human(files.bytes), files.bytes);
    match (&files.form, files.trouble()) {
        (Form::Other(what), _) => not(format!("cannot be run: {what}"), bytes),
        (_, Some(trouble)) => not(format!("{size}, {trouble}"), bytes),
        (Form::Gguf(ggufs), None) => {
            let name = |gguf: &Gguf| {
                let name = if gguf.quant.is_empty() { gguf.file.display().to_string() } else { gguf.quant.clone() };
                let lacks = if gguf.missing.is_empty() { "" } else { " (incomplete)" };
                format!("{name} {}{lacks}", human(gguf.bytes))
            };
            let names: Vec<String> = ggufs.iter().map(name).collect();
            let usable = ggufs.iter().any(|gguf| gguf.missing.is_empty());
            State { text: format!("GGUF: {}", names.join(", ")), usable, bytes }
        }
        (Form::Safetensors, None) => match super::config(&dir) {
            Ok(_) => State { text: size, usable: true, bytes },
            Err(failure) => not(format!("{size}, {}", failure.what), bytes),
        },
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

fn stem(path: &Path) -> String {
    path.file_stem().map_or("model".into(), |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_guessed() {
        let there = ["Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B", "gpt2"];
        for (asked, expected) in [
            ("qwen/qwen3-0.6b", Some("Qwen/Qwen3-0.6B")),
            ("Qwen3-0.6B", Some("Qwen/Qwen3-0.6B")),
            ("unsloth/Llama-3.2-1B", Some("meta-llama/Llama-3.2-1B")),
            ("Qwen/Qwen3-0.8B", Some("Qwen/Qwen3-0.6B")),
            ("meta-llama/Llama-3.1-8B", Some("meta-llama/Llama-3.2-1B")),
            ("gtp2", None),
            ("microsoft/phi-4", None),
        ] {
            assert_eq!(meant(asked, there.into_iter()), expected, "{asked}");
        }
    }
}
