//! Structured output: the fields that ask for it, in OpenAI's, vLLM's and llama-server's spellings.

use std::sync::Arc;
use std::time::Duration;

use kvist_text::TextError;
use kvist_text::grammar::{Grammar, GrammarSource};
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::api::error::ApiError;
use crate::api::json::{Fields, parse_text, type_of};
use crate::app::{App, Serving};

/// Longer than this no client waits for a grammar to be compiled. The limits of its size keep it far below.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the reply must be, and the field that says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Structured {
    pub source: GrammarSource,
    pub field: String,
}

/// What a request's fields ask for; at most one of them may ask.
pub fn parse(fields: Fields) -> Result<Option<Structured>, ApiError> {
    let mut found: Option<Structured> = None;
    let mut add = |field: &str, source: Option<GrammarSource>| {
        let Some(source) = source else { return Ok(()) };
        if let Some(other) = &found {
            return Err(ApiError::field(field, format!("`{}` asks for a structure already", other.field)));
        }
        found = Some(Structured { source, field: field.to_owned() });
        Ok(())
    };
    if let Some(format) = fields.object("response_format")? {
        let (field, source) = response_format(format)?;
        add(&field, source)?;
    }
    if let Some(map) = fields.object("structured_outputs")? {
        for (field, source) in structured_outputs(map)? {
            add(&field, Some(source))?;
        }
    }
    for (name, read) in [
        ("guided_json", schema as Read),
        ("guided_regex", regex),
        ("guided_choice", choice),
        ("guided_grammar", grammar),
        ("json_schema", schema),
        ("grammar", grammar),
    ] {
        let source = fields.get(name).map(|value| read(name, value)).transpose()?;
        // llama-server's clients send an empty grammar for none.
        add(name, source.filter(|s| !matches!(s, GrammarSource::Grammar(text) if text.is_empty())))?;
    }
    Ok(found)
}

type Read = fn(&str, &Value) -> Result<GrammarSource, ApiError>;

fn schema(field: &str, value: &Value) -> Result<GrammarSource, ApiError> {
    let schema = match value {
        Value::Object(_) | Value::Bool(_) => value.clone(),
        Value::String(text) => {
            parse_text(text).map_err(|e| ApiError::field(field, format!("the schema is not JSON: {e}")))?
        }
        other => return Err(ApiError::field(field, format!("a JSON schema is needed, not {}", type_of(other)))),
    };
    Ok(GrammarSource::JsonSchema { schema, strict: true })
}

fn regex(field: &str, value: &Value) -> Result<GrammarSource, ApiError> {
    string(field, value).map(GrammarSource::Regex)
}

fn grammar(field: &str, value: &Value) -> Result<GrammarSource, ApiError> {
    string(field, value).map(GrammarSource::Grammar)
}

fn choice(field: &str, value: &Value) -> Result<GrammarSource, ApiError> {
    let wrong = || ApiError::field(field, "a list of strings is needed");
    let list = value.as_array().ok_or_else(wrong)?;
    let choices = list.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong));
    Ok(GrammarSource::Choice(choices.collect::<Result<_, _>>()?))
}

fn string(field: &str, value: &Value) -> Result<String, ApiError> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| ApiError::field(field, format!("a string is needed, not {}", type_of(value))))
}

/// OpenAI's field; `json_object` with a `schema` is llama-server's.
fn response_format(format: &Map<String, Value>) -> Result<(String, Option<GrammarSource>), ApiError> {
    let named = |name: &str| format!("response_format.{name}");
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(("response_format".into(), None)),
        Some("json_object") => Ok(match format.get("schema") {
            None | Some(Value::Null) => ("response_format".into(), Some(GrammarSource::JsonObject)),
            Some(value) => (named("schema"), Some(schema(&named("schema"), value)?)),
        }),
        Some("json_schema") => {
            let field = named("json_schema");
            let Some(Value::Object(asked)) = format.get("json_schema") else {
                return Err(ApiError::field(field, "an object with a `schema` is needed"));
            };
            let strict = match asked.get("strict") {
                None | Some(Value::Null) => true,
                Some(Value::Bool(strict)) => *strict,
                Some(other) => {
                    let message = format!("true or false is needed, not {}", type_of(other));
                    return Err(ApiError::field(field + ".strict", message));
                }
            };
            let field = field + ".schema";
            let Some(value) = asked.get("schema").filter(|value| value.is_object() || value.is_boolean()) else {
                return Err(ApiError::field(field, "a JSON schema is needed"));
            };
            Ok((field, Some(GrammarSource::JsonSchema { schema: value.clone(), strict })))
        }
        _ => Err(ApiError::field(named("type"), "it is one of `text`, `json_object` and `json_schema`")),
    }
}

/// vLLM's field.
fn structured_outputs(map: &Map<String, Value>) -> Result<Vec<(String, GrammarSource)>, ApiError> {
    let mut found = Vec::new();
    for (name, value) in map {
        let field = format!("structured_outputs.{name}");
        let source = match (name.as_str(), value) {
            (_, Value::Null) => continue,
            ("json", value) => schema(&field, value)?,
            ("regex", value) => regex(&field, value)?,
            ("choice", value) => choice(&field, value)?,
            ("grammar", value) => grammar(&field, value)?,
            ("json_object", Value::Bool(true)) => GrammarSource::JsonObject,
            // What they switch off is off here, or how it is done is not the client's to choose.
            ("json_object", Value::Bool(false)) => continue,
            ("disable_fallback" | "disable_any_whitespace" | "disable_additional_properties", Value::Bool(false)) => {
                continue;
            }
            _ => return Err(ApiError::unsupported(field, "this version of kvist does not support it")),
        };
        found.push((field, source));
    }
    Ok(found)
}

/// Compiles what a request asks for, away from the threads that serve others.
pub async fn compile(app: &App, serving: &Arc<Serving>, asked: &Structured) -> Result<Grammar, ApiError> {
    let slot = app.grammar_slots.clone().acquire_owned().await.map_err(|_| ApiError::closing())?;
    let (serving, source) = (serving.clone(), asked.source.clone());
    let compiling = tokio::task::spawn_blocking(move || {
        // Held to the end of the work, whoever still waits for it.
        let _slot = slot;
        serving.grammars.compile(&source)
    });
    match timeout(PATIENCE, compiling).await {
        Err(_) => Err(refused(&asked.field, "it takes more than a second to compile; make it simpler")),
        Ok(Err(_)) => Err(ApiError::internal("compiling the grammar panicked")),
        Ok(Ok(Err(TextError::Grammar(message)))) => Err(refused(&asked.field, message)),
        Ok(Ok(Err(other))) => Err(other.into()),
        Ok(Ok(Ok(grammar))) => Ok(grammar),
    }
}

fn refused(field: &str, message: impl std::fmt::Display) -> ApiError {
    ApiError { code: Some("invalid_grammar"), ..ApiError::field(field, message) }
}

/// A reply that cannot be brought to its end.
pub fn cannot_follow(message: &str) -> ApiError {
    let message = format!("the reply cannot go on as the request demands: {message}");
    ApiError { code: Some("invalid_grammar"), ..ApiError::invalid(message) }
}
