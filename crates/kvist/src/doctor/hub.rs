//! The models in the local cache of Hugging Face downloads.

use serde_json::{Value, json};

use super::report::{Section, Status};
use crate::hub::Cache;
use crate::model;

pub fn look() -> (Section, Value) {
    let mut section = Section::new("Hugging Face cache");
    let Some(cache) = Cache::of_process() else {
        section.add(Status::Info, "place", "none: there is no home directory");
        return (section, json!({"directory": null, "models": []}));
    };
    let place = cache.root.display().to_string();
    let repos = match cache.repos() {
        Ok(repos) => repos,
        Err(e) => {
            section.advise(Status::Warn, "place", format!("{place}: {e}"), "check the rights of the directory");
            return (section, json!({"directory": place, "models": []}));
        }
    };
    let empty = if repos.is_empty() { ": no models; kvist itself never downloads" } else { "" };
    section.add(Status::Info, "place", format!("{place}{empty}"));
    let mut models = Vec::new();
    for repo in &repos {
        let state = model::state(repo);
        let status = if state.usable { Status::Ok } else { Status::Info };
        section.add(status, &repo.id, state.text.clone());
        let revisions: Vec<Value> =
            repo.revisions().map(|(commit, name)| json!({"commit": commit, "name": name})).collect();
        models.push(json!({
            "id": repo.id,
            "usable": state.usable,
            "bytes": state.bytes,
            "text": state.text,
            "revisions": revisions,
            "unfinished_files": repo.unfinished.0,
            "unfinished_bytes": repo.unfinished.1,
        }));
    }
    (section, json!({"directory": place, "models": models}))
}
