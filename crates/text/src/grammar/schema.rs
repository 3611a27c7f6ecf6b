//! JSON schemas before they are compiled. The compiler takes over from here with most keywords; this adds what it does
//! not do (references beyond plain paths, keywords that change nothing, branches of `oneOf` behind references) and
//! refuses what it would let through although the schema forbids it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::costs::Costs;
use super::formats;
use super::reference::Reference;
use super::{GrammarLimits, growth, walk};

/// White space between the parts of a JSON text: as `json.dumps` writes it or indented, and never without end.
const WHITESPACE: &str = r"[ ]|\n[ \t]{0,40}";
/// No escapes by code point (`\u` and four digits): they would let a property's name be spelt so that it is not recognised.
const ESCAPES: &str = "nrbtf\\\"";
/// Levels that compiling may recurse over: of the schema and of all that it refers to, each once.
const LEVELS: usize = 2000;

pub fn any_object() -> Value {
    json!({"type": "object"})
}

/// The schema as the compiler takes it. `costs` are those of the whole source.
pub fn prepared(schema: &Value, strict: bool, limits: &GrammarLimits, costs: &mut Costs) -> Result<Value, String> {
    // Every value takes a byte at least.
    if !walk::fits(schema, limits.depth, limits.bytes) {
        return Err(format!(
            "the schema is nested more than {} levels deep, or has more than {} values",
            limits.depth, limits.bytes
        ));
    }
    let size = walk::bytes(schema);
    if size > limits.bytes {
        return Err(format!("the schema has {size} bytes; at most {} are allowed", limits.bytes));
    }
    let mut root = match schema {
        Value::Object(map) => map.clone(),
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => return Err("the schema is `false`, which nothing matches".into()),
        _ => return Err("a schema must be an object".into()),
    };
    root.remove("x-guidance");
    let mut document =
        Document { id: root.get("$id").and_then(Value::as_str).map(str::to_owned), ..Document::default() };
    document.learn(&mut root, "#".into());
    let mut used = BTreeSet::new();
    document.rewrite(&mut root, strict, &mut used, costs)?;
    let levels: usize = document.heights["#"] + used.iter().map(|path| document.heights[path]).sum::<usize>();
    if levels > LEVELS {
        return Err(format!("the schema and what it refers to have {levels} levels together; {LEVELS} are allowed"));
    }
    let whole = Value::Object(root.clone());
    let mut room = limits.bytes;
    open_branches(&mut root, &whole, &mut room)?;
    let mut root = Value::Object(root);
    costs.spend(growth::estimate(&root, used.iter())?)?;
    root["x-guidance"] = json!({"whitespace_pattern": WHITESPACE, "json_allowed_escapes": ESCAPES, "lenient": !strict});
    Ok(root)
}

/// What is known of the whole schema.
#[derive(Default)]
struct Document {
    /// The root's `$id`.
    id: Option<String>,
    /// Another schema in it has an `$id`: references below it mean something else.
    inner_id: bool,
    /// A reference that depends on how it was reached.
    dynamic: bool,
    /// Paths of schemas by their `$anchor`.
    anchors: BTreeMap<String, String>,
    /// Levels of each schema, by path.
    heights: BTreeMap<String, usize>,
}

impl Document {
    fn learn(&mut self, schema: &mut Map<String, Value>, path: String) -> usize {
        for key in ["$anchor", "$dynamicAnchor"] {
            if let Some(name) = schema.get(key).and_then(Value::as_str) {
                self.anchors.insert(name.to_owned(), path.clone());
            }
        }
        self.inner_id |= path != "#" && schema.contains_key("$id");
        self.dynamic |= schema.contains_key("$dynamicRef") || schema.contains_key("$recursiveRef");
        let mut height = 0;
        for (segments, schema) in walk::subschemas(schema) {
            height = height.max(match schema {
                Value::Object(map) => self.learn(map, format!("{path}/{segments}")),
                _ => {
                    self.heights.insert(format!("{path}/{segments}"), 1);
                    1
                }
            });
        }
        self.heights.insert(path, height + 1);
        height + 1
    }

    fn rewrite(
        &self,
        schema: &mut Map<String, Value>,
        strict: bool,
        used: &mut BTreeSet<String>,
        costs: &mut Costs,
    ) -> Result<(), String> {
        if let Some(Value::String(text)) = schema.get("$ref") {
            let path = self.resolve(text)?;
            used.insert(path.clone());
            schema["$ref"] = path.into();
        }
        if !self.dynamic {
            schema.remove("$dynamicAnchor");
        }
        drop_neutral(schema);
        drop_repeated(schema);
        evaluate(schema);
        formats::enforce(schema);
        check_strings(schema)?;
        costs.add(schema)?;
        if strict {
            check_free_names(schema)?;
        }
        for (_, schema) in walk::subschemas(schema) {
            if let Value::Object(map) = schema {
                self.rewrite(map, strict, used, costs)?;
            }
        }
        Ok(())
    }

    /// The path that a reference means, in the compiler's spelling: `#` or `#/` and segments that nothing is escaped in.
    fn resolve(&self, text: &str) -> Result<String, String> {
        let wrong = |what: &str| Err(format!("$ref `{text}`: {what}"));
        if self.inner_id {
            return wrong("references are not supported beside an `$id` inside the schema");
        }
        let path = match Reference::parse(text, self.id.as_deref()) {
            None => return wrong("only references within the schema (`#...`) are supported"),
            Some(Reference::Anchor(name)) => match self.anchors.get(&name) {
                Some(path) => path.clone(),
                None => return wrong("there is no such `$anchor`"),
            },
            Some(Reference::Path(segments)) if segments.iter().any(|s| s.contains('/')) => {
                return wrong("names with a slash are not supported");
            }
            Some(Reference::Path(segments)) => {
                segments.iter().fold(String::from("#"), |path, segment| path + "/" + segment)
            }
        };
        match self.heights.contains_key(&path) {
            true => Ok(path),
            false => wrong("there is no schema"),
        }
    }
}

/// Removes keywords that change nothing where they stand, and writes counts as integers.
fn drop_neutral(schema: &mut Map<String, Value>) {
    let anything = |v: &Value| *v == Value::Bool(true) || v.as_object().is_some_and(Map::is_empty);
    let nothing = |v: &Value| v.as_object().is_some_and(Map::is_empty);
    let has = |s: &Map<String, Value>, key: &str| s.contains_key(key);
    let (contains, condition) = (has(schema, "contains"), has(schema, "if"));
    let branches = has(schema, "then") || has(schema, "else");
    schema.retain(|key, value| match key.as_str() {
        "uniqueItems" => value != false,
        "not" => value != false,
        "unevaluatedProperties" | "unevaluatedItems" | "propertyNames" => !anything(value),
        "dependentRequired" | "dependentSchemas" | "dependencies" => !nothing(value),
        "minContains" | "maxContains" => contains,
        "if" => branches,
        "then" | "else" => condition,
        _ => true,
    });
    for (key, value) in schema.iter_mut() {
        let counts = ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];
        if counts.contains(&key.as_str())
            && let Some(number) =
                value.as_f64().filter(|x| value.is_f64() && x.fract() == 0.0 && (0.0..9e15).contains(x))
        {
            *value = (number as u64).into();
        }
    }
}

/// Removes what is listed again where that means nothing and no reference can lead. Each type of a list is compiled with
/// all keywords beside it, as often as it is there: 150 times `string` beside a format, which is one more schema with the
/// same types, became 22,500 expressions and took 11 s.
fn drop_repeated(schema: &mut Map<String, Value>) {
    for key in ["type", "enum", "required"] {
        if let Some(Value::Array(list)) = schema.get_mut(key) {
            let mut seen = BTreeSet::new();
            list.retain(|value| seen.insert(value.to_string()));
        }
    }
}

/// Where nothing beside them evaluates anything, `unevaluated...` means what the older keywords mean.
fn evaluate(schema: &mut Map<String, Value>) {
    const IN_PLACE: [&str; 11] = [
        "$ref",
        "$dynamicRef",
        "$recursiveRef",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "dependentSchemas",
        "contains",
        "dependencies",
    ];
    if IN_PLACE.iter().any(|key| schema.contains_key(*key)) {
        return;
    }
    for (unevaluated, additional) in [("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")]
    {
        if let Some(value) = schema.remove(unevaluated) {
            schema.entry(additional).or_insert(value);
        }
    }
}

/// Control characters that JSON has no short escape for cannot be written with [`ESCAPES`].
fn check_strings(schema: &Map<String, Value>) -> Result<(), String> {
    let control = |text: &str| text.chars().any(|c| (c < ' ' && !"\u{8}\t\n\u{c}\r".contains(c)) || c == '\u{7f}');
    let named = |key: &str| schema.get(key).and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name);
    let wrong = |place: &str| Err(format!("{place}: control characters are not supported"));
    if named("properties").any(|name| control(name)) {
        return wrong("properties");
    }
    for key in ["const", "enum", "required"] {
        if schema.get(key).is_some_and(|value| walk::strings(value).iter().any(|text| control(text))) {
            return wrong(key);
        }
    }
    let patterns = schema.get("pattern").and_then(Value::as_str).into_iter();
    for pattern in patterns.chain(named("patternProperties").map(String::as_str)) {
        if control(pattern) || formats::escapes_control(pattern) {
            return wrong("pattern");
        }
    }
    Ok(())
}

/// Names that the schema does not list may be repeated, and a repeated name is one property.
fn check_free_names(schema: &Map<String, Value>) -> Result<(), String> {
    let least = schema.get("minProperties").and_then(Value::as_u64).unwrap_or(0);
    let listed = schema
        .get("required")
        .and_then(Value::as_array)
        .map_or(0, |list| list.iter().filter_map(Value::as_str).collect::<BTreeSet<_>>().len() as u64);
    if least > listed + 1 {
        return Err(format!(
            "minProperties {least} with {listed} required: at most one more than the required ones can be enforced"
        ));
    }
    Ok(())
}

/// Puts what a branch of a `oneOf` refers to in its place: only there can the compiler see that branches exclude each
/// other, by a property whose value differs.
fn open_branches(schema: &mut Map<String, Value>, whole: &Value, room: &mut usize) -> Result<(), String> {
    if let Some(Value::Array(branches)) = schema.get_mut("oneOf") {
        for branch in branches {
            if let Some(reference) = branch.get("$ref").and_then(Value::as_str)
                && branch.as_object().is_some_and(|map| map.len() == 1)
                && let Some(target) = walk::at(whole, reference)
                && target.get("$ref").is_none()
            {
                let size = walk::bytes(target);
                *room = room.checked_sub(size).ok_or("the branches of `oneOf` refer to too much")?;
                *branch = target.clone();
            }
        }
    }
    for (_, schema) in walk::subschemas(schema) {
        if let Value::Object(map) = schema {
            open_branches(map, whole, room)?;
        }
    }
    Ok(())
}
