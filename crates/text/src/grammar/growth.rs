//! What compiling a schema takes, estimated from above before it is done.
//!
//! The compiler combines what stands beside or within `allOf` by multiplying out: each alternative of one side with each
//! of the other, properties with those of the same name, or with what the other side says of all. Two lists of 220
//! alternatives become 48,400 expressions, and a schema for any property is copied into each that is listed. The same is
//! done here with counts in place of schemas, in time that has a bound.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::{expressions, walk};

/// Microseconds, about: for a schema of a type, for one that has parts, for a value of an `enum`.
const PLAIN: f64 = 20.0;
const PARTS: f64 = 60.0;
const LITERAL: f64 = 5.0;
/// For a number of items: up to 200 KB of rules.
const COUNTED: f64 = 800.0;
/// For each digit of a number's bounds: a range is an expression with branches for each.
const DIGIT: f64 = 20.0;
/// For a length, a format, and beyond its size, a pattern.
const LENGTH: f64 = 100.0;
const FORMAT: f64 = 400.0;
const PATTERN: f64 = 50.0;
/// Ways in which a text may begin to match all expressions that it must match, and what trying one of them takes.
const WAYS: f64 = 20_000.0;
const WAY: f64 = 0.5;
/// Of a format, and of a length.
const FORMAT_WAYS: f64 = 16.0;
const LENGTH_WAYS: f64 = 2.0;
/// For one part of a schema that is copied to be combined.
const COPY: f64 = 0.1;
/// Combinations of two schemas, and levels of them. The compiler gives up at 50,000 and 128.
const STEPS: usize = 100_000;
const LEVELS: usize = 256;

const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];
const OWN: [&str; 21] = [
    "type",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "items",
    "additionalItems",
    "prefixItems",
    "minItems",
    "maxItems",
    "properties",
    "additionalProperties",
    "patternProperties",
    "required",
    "minProperties",
    "maxProperties",
];

/// Microseconds for a schema, of which `used` are the paths that its references lead to.
pub fn estimate<'a>(schema: &'a Value, used: impl Iterator<Item = &'a String>) -> Result<f64, String> {
    let mut growth = Growth { whole: schema, known: BTreeMap::new(), steps: 0, copies: 0.0 };
    let mut work = growth.shape(schema)?.work();
    for path in used {
        work += growth.resolve(path)?.work();
    }
    Ok(work + growth.copies)
}

/// The alternatives of a schema. Those of one type are summed up.
#[derive(Clone, Default)]
struct Shape<'a> {
    /// How many allow anything.
    any: f64,
    types: [Option<Box<Kind<'a>>>; TYPES.len()],
    /// References, and how many of each.
    references: Vec<(&'a str, f64)>,
}

/// Alternatives of one type.
#[derive(Clone, Default)]
struct Kind<'a> {
    count: f64,
    /// Without what is inside.
    work: f64,
    /// Ways in which an alternative's expressions may begin to match; most of all.
    ways: f64,
    /// Properties and leading items, with the number of alternatives that name them.
    named: BTreeMap<Cow<'a, str>, (f64, Shape<'a>)>,
    /// All other properties or items.
    others: Shape<'a>,
}

impl<'a> Kind<'a> {
    /// What the alternatives say of a property; each that does not name it says what it says of all others.
    fn take(&mut self, name: &str) -> Shape<'a> {
        let (naming, shape) = self.named.remove(name).unwrap_or_default();
        match self.count > naming {
            true => shape.or(self.others.clone().times((self.count - naming) / self.count)),
            false => shape,
        }
    }
}

impl<'a> Shape<'a> {
    fn anything() -> Self {
        Shape { any: 1.0, ..Shape::default() }
    }

    fn of(index: usize, kind: Kind<'a>) -> Self {
        let mut shape = Shape::default();
        shape.types[index] = Some(Box::new(kind));
        shape
    }

    fn kinds(&self) -> impl Iterator<Item = &Kind<'a>> {
        self.types.iter().flatten().map(|kind| &**kind)
    }

    fn count(&self) -> f64 {
        self.any + self.kinds().map(|k| k.count).sum::<f64>() + self.references.iter().map(|r| r.1).sum::<f64>()
    }

    fn work(&self) -> f64 {
        let inside = |k: &Kind| k.named.values().map(|(_, shape)| shape.work()).sum::<f64>() + k.others.work();
        PLAIN * (self.any + self.references.iter().map(|r| r.1).sum::<f64>())
            + self.kinds().map(|k| k.work + inside(k)).sum::<f64>()
    }

    /// Parts that a copy has.
    fn size(&self) -> f64 {
        let inside = |k: &Kind| k.named.values().map(|(_, shape)| shape.size()).sum::<f64>() + k.others.size();
        self.any + self.references.len() as f64 + self.kinds().map(|k| k.count + inside(k)).sum::<f64>()
    }

    fn times(mut self, n: f64) -> Self {
        if n != 1.0 {
            self.any *= n;
            self.references.iter_mut().for_each(|r| r.1 *= n);
            for kind in self.types.iter_mut().flatten() {
                kind.count *= n;
                kind.work *= n;
                for (naming, shape) in kind.named.values_mut() {
                    *naming *= n;
                    *shape = std::mem::take(shape).times(n);
                }
                kind.others = std::mem::take(&mut kind.others).times(n);
            }
        }
        self
    }

    fn or(mut self, other: Self) -> Self {
        self.any += other.any;
        self.references.extend(other.references);
        for (mine, theirs) in self.types.iter_mut().zip(other.types) {
            match (mine, theirs) {
                (_, None) => {}
                (mine @ None, theirs) => *mine = theirs,
                (Some(mine), Some(theirs)) => {
                    mine.count += theirs.count;
                    mine.work += theirs.work;
                    mine.ways = mine.ways.max(theirs.ways);
                    for (name, (naming, shape)) in theirs.named {
                        let entry = mine.named.entry(name).or_default();
                        *entry = (entry.0 + naming, std::mem::take(&mut entry.1).or(shape));
                    }
                    mine.others = std::mem::take(&mut mine.others).or(theirs.others);
                }
            }
        }
        self
    }
}

struct Growth<'a> {
    whole: &'a Value,
    /// Shapes by path; `None` while one is worked out.
    known: BTreeMap<&'a str, Option<Rc<Shape<'a>>>>,
    steps: usize,
    copies: f64,
}

impl<'a> Growth<'a> {
    fn step(&mut self, steps: usize) -> Result<(), String> {
        self.steps += steps;
        match self.steps <= STEPS {
            true => Ok(()),
            false => Err("what it combines by `allOf` or side by side multiplies to too much".into()),
        }
    }

    fn resolve(&mut self, path: &'a str) -> Result<Rc<Shape<'a>>, String> {
        match self.known.get(path) {
            Some(Some(shape)) => return Ok(shape.clone()),
            // It refers to itself; the compiler refuses that.
            Some(None) => return Ok(Rc::new(Shape::anything())),
            None => {}
        }
        self.known.insert(path, None);
        let schema = walk::at(self.whole, path).unwrap_or(&Value::Bool(true));
        let shape = Rc::new(self.shape(schema)?);
        self.known.insert(path, Some(shape.clone()));
        Ok(shape)
    }

    fn shape(&mut self, schema: &'a Value) -> Result<Shape<'a>, String> {
        self.step(1)?;
        let Value::Object(map) = schema else {
            return Ok(if *schema == false { Shape::default() } else { Shape::anything() });
        };
        let mut shape = match OWN.iter().any(|key| map.contains_key(*key)) {
            true => self.own(map)?,
            false => Shape::anything(),
        };
        for (key, value) in map {
            let list = value.as_array().map_or(&[][..], Vec::as_slice);
            match key.as_str() {
                "const" => shape = self.both(shape, constant(value), 0)?,
                "enum" => {
                    let values = list.iter().map(constant).fold(Shape::default(), Shape::or);
                    shape = self.both(shape, values, 0)?;
                }
                "anyOf" | "oneOf" => {
                    let mut options = Shape::default();
                    for option in list {
                        options = options.or(self.shape(option)?);
                    }
                    shape = self.both(shape, options, 0)?;
                }
                "allOf" => {
                    for part in list {
                        let part = self.shape(part)?;
                        shape = self.both(shape, part, 0)?;
                    }
                }
                "$ref" => {
                    let references = value.as_str().map(|path| (path, 1.0)).into_iter().collect();
                    shape = self.both(shape, Shape { references, ..Shape::default() }, 0)?;
                }
                _ => {}
            }
        }
        Ok(shape)
    }

    /// What a schema says beside the keywords that combine schemas.
    fn own(&mut self, map: &'a Map<String, Value>) -> Result<Shape<'a>, String> {
        let all: Vec<&str> = match map.get("type") {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => TYPES.to_vec(),
        };
        let mut shape = Shape::default();
        for name in all {
            let name = if name == "integer" { "number" } else { name };
            let Some(index) = TYPES.iter().position(|t| *t == name) else { continue };
            let leaf = |work| Kind { count: 1.0, work, ..Kind::default() };
            let kind = match name {
                "number" => leaf(PLAIN + number(map)),
                "string" => Kind { ways: ways(map), ..leaf(PLAIN + string(map)) },
                "array" => self.array(map)?,
                "object" => self.object(map)?,
                _ => leaf(PLAIN),
            };
            shape = shape.or(Shape::of(index, kind));
        }
        Ok(shape)
    }

    fn array(&mut self, map: &'a Map<String, Value>) -> Result<Kind<'a>, String> {
        let counted = if map.contains_key("minItems") || map.contains_key("maxItems") { COUNTED } else { 0.0 };
        let (leading, others) = match map.get("items") {
            list @ Some(Value::Array(_)) => (list, map.get("additionalItems")),
            others => (map.get("prefixItems"), others),
        };
        let mut kind = Kind { count: 1.0, work: PARTS + counted, ..Kind::default() };
        for (i, item) in leading.and_then(Value::as_array).into_iter().flatten().enumerate() {
            kind.named.insert(i.to_string().into(), (1.0, self.shape(item)?));
        }
        kind.others = others.map_or(Ok(Shape::anything()), |schema| self.shape(schema))?;
        Ok(kind)
    }

    fn object(&mut self, map: &'a Map<String, Value>) -> Result<Kind<'a>, String> {
        let schemas = |key: &str| map.get(key).and_then(Value::as_object).into_iter().flatten();
        let mut kind = Kind { count: 1.0, work: PARTS, ..Kind::default() };
        let mut patterns = Shape::default();
        let mut before: f64 = 0.0;
        for (pattern, schema) in schemas("patternProperties") {
            // Each is compared with each.
            let ways = expressions::ways(pattern);
            kind.work += PATTERN + expressions::work(pattern) + WAY * ways * before;
            before += ways;
            patterns = patterns.or(self.shape(schema)?);
        }
        let size = patterns.size() as usize;
        for (name, schema) in schemas("properties") {
            let mut shape = self.shape(schema)?;
            // Names that match no pattern are not combined with one; which do is not worked out here.
            if patterns.count() > 0.0 {
                self.step(size)?;
                shape = self.both(shape, patterns.clone(), 0)?;
            }
            kind.work += PLAIN;
            kind.named.insert(Cow::from(name), (1.0, shape));
        }
        let others = map.get("additionalProperties");
        kind.others = others.map_or(Ok(Shape::anything()), |schema| self.shape(schema))?.or(patterns);
        Ok(kind)
    }

    /// What both say: each alternative of one with each of the other.
    fn both(&mut self, mut a: Shape<'a>, mut b: Shape<'a>, level: usize) -> Result<Shape<'a>, String> {
        self.step(1)?;
        if level > LEVELS {
            return Err("what it combines by `allOf` or side by side is nested too deep".into());
        }
        for (one, other) in [(&a, &b), (&b, &a)] {
            if one.count() > 1.0 {
                let size = other.size();
                self.copies += COPY * one.count() * size;
            }
        }
        let (any_a, any_b) = (std::mem::take(&mut a.any), std::mem::take(&mut b.any));
        let mut result = Shape { any: any_a * any_b, ..Shape::default() };
        if b.count() == 0.0 {
            return Ok(result.or(a.times(any_b)));
        }
        if a.count() == 0.0 {
            return Ok(result.or(b.times(any_a)));
        }
        if any_b > 0.0 {
            self.step(a.size() as usize)?;
            result = result.or(a.clone().times(any_b));
        }
        if any_a > 0.0 {
            self.step(b.size() as usize)?;
            result = result.or(b.clone().times(any_a));
        }
        for (path, n) in std::mem::take(&mut a.references) {
            let target = self.resolve(path)?;
            self.step((target.size() + b.size()) as usize)?;
            let met = self.both((*target).clone().times(n), b.clone(), level + 1)?;
            result = result.or(met);
        }
        for (path, n) in std::mem::take(&mut b.references) {
            let target = self.resolve(path)?;
            self.step((target.size() + a.size()) as usize)?;
            let met = self.both(a.clone(), (*target).clone().times(n), level + 1)?;
            result = result.or(met);
        }
        for (index, pair) in a.types.into_iter().zip(b.types).enumerate() {
            if let (Some(x), Some(y)) = pair {
                let kind = self.kinds(*x, *y, level)?;
                result = result.or(Shape::of(index, kind));
            }
        }
        Ok(result)
    }

    fn kinds(&mut self, mut x: Kind<'a>, mut y: Kind<'a>, level: usize) -> Result<Kind<'a>, String> {
        let count = x.count * y.count;
        let ways = x.ways.max(1.0) * y.ways.max(1.0);
        if ways > WAYS {
            return Err("it has too many patterns, or alternatives in them, that a text must match at once".into());
        }
        let work = x.work * y.count + y.work * x.count + if ways > 1.0 { count * ways * WAY } else { 0.0 };
        let mut named = BTreeMap::new();
        let sizes = [x.others.size() as usize, y.others.size() as usize];
        while let Some(name) = x.named.keys().next().or(y.named.keys().next()).cloned() {
            self.step(sizes[0] + sizes[1])?;
            let (mine, theirs) = (x.take(&name), y.take(&name));
            named.insert(name, (count, self.both(mine, theirs, level + 1)?));
        }
        let others = self.both(x.others, y.others, level + 1)?;
        Ok(Kind { count, work, ways, named, others })
    }
}

fn number(map: &Map<String, Value>) -> f64 {
    let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
    let digits: usize = bounds.iter().filter_map(|key| map.get(*key)).map(walk::bytes).sum();
    DIGIT * digits as f64 + if map.contains_key("multipleOf") { LENGTH } else { 0.0 }
}

fn string(map: &Map<String, Value>) -> f64 {
    let has = |keys: [&str; 2]| keys.iter().any(|key| map.contains_key(*key));
    let pattern = map.get("pattern").and_then(Value::as_str).map_or(0.0, |p| PATTERN + expressions::work(p));
    pattern
        + if has(["minLength", "maxLength"]) { LENGTH } else { 0.0 }
        + if map.contains_key("format") { FORMAT } else { 0.0 }
}

/// Ways in which a text may begin to match what is said of a string.
fn ways(map: &Map<String, Value>) -> f64 {
    let has = |key: &str| map.contains_key(key);
    map.get("pattern").and_then(Value::as_str).map_or(1.0, expressions::ways)
        * if has("format") { FORMAT_WAYS } else { 1.0 }
        * if has("minLength") || has("maxLength") { LENGTH_WAYS } else { 1.0 }
}

/// The one value that a schema allows.
fn constant(value: &Value) -> Shape<'_> {
    let kind = |work, named| Kind { count: 1.0, work, ways: 1.0, named, others: Shape::default() };
    let leaf = |work| kind(work, BTreeMap::new());
    match value {
        Value::Null => Shape::of(0, leaf(LITERAL)),
        Value::Bool(_) => Shape::of(1, leaf(LITERAL)),
        Value::Number(_) => Shape::of(2, leaf(LITERAL + DIGIT)),
        Value::String(text) => Shape::of(3, leaf(LITERAL + 0.05 * text.len() as f64)),
        Value::Array(list) => {
            let named = list.iter().enumerate().map(|(i, v)| (i.to_string().into(), (1.0, constant(v))));
            Shape::of(4, kind(PARTS, named.collect()))
        }
        Value::Object(map) => {
            let named = map.iter().map(|(name, v)| (Cow::from(name), (1.0, constant(v))));
            Shape::of(5, kind(PARTS, named.collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(schema: Value) -> Result<f64, String> {
        estimate(&schema, [].iter())
    }

    #[test]
    fn what_is_combined_multiplies() {
        let options =
            |n: usize, schema: &dyn Fn(usize) -> Value| json!({"anyOf": (0..n).map(schema).collect::<Vec<_>>()});
        let lengths = |n| options(n, &|i| json!({"type": "string", "minLength": i}));
        let patterns = |n| options(n, &|i| json!({"type": "string", "pattern": format!("^a{i}")}));
        let (a, b) = (of(lengths(30)).unwrap(), of(patterns(40)).unwrap());
        // Each alternative of one with each of the other; where the types differ nothing is left.
        let all = of(json!({"allOf": [lengths(30), patterns(40)]})).unwrap();
        assert!(all > 40.0 * a + 30.0 * b && all < 50.0 * a + 40.0 * b, "{all} of {a} and {b}");
        assert!(of(json!({"allOf": [lengths(30), {"type": "array"}]})).unwrap() < a);
        // Within properties and items, by name or for all.
        let object = |name: &str, schema: Value| json!({"type": "object", "properties": {name: schema}});
        let others = |schema: Value| json!({"type": "object", "additionalProperties": schema});
        let items = |schema: Value| json!({"type": "array", "items": schema});
        for pair in [
            [object("p", lengths(30)), object("p", patterns(40))],
            [object("p", lengths(30)), others(patterns(40))],
            [items(lengths(30)), items(patterns(40))],
            [items(lengths(30)), json!({"type": "array", "prefixItems": [patterns(40)]})],
        ] {
            assert!(of(json!({"allOf": pair})).unwrap() >= all, "{pair:?}");
        }
        let apart = of(json!({"allOf": [object("p", lengths(30)), object("q", patterns(40))]})).unwrap();
        assert!(apart < 1.1 * (a + b) + 10.0 * PARTS, "{apart} of {a} and {b}");
    }

    #[test]
    fn references_count_where_they_are_combined() {
        let node =
            json!({"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "value": {"type": "string"}}});
        let alone = of(json!({"$ref": "#/$defs/node", "$defs": {"node": node}})).unwrap();
        assert!(alone < 100.0, "{alone}");
        let with = json!({"allOf": [{"$ref": "#/$defs/node"}, {"properties": {"kind": {"const": "x"}}}], "$defs": {"node": node}});
        assert!((100.0..1000.0).contains(&of(with).unwrap()));
        // It comes to an end, as an estimate or as a refusal.
        let other = json!({"type": "object", "properties": {"next": {"$ref": "#/$defs/other"}}});
        let endless = json!({"allOf": [{"$ref": "#/$defs/node"}, {"$ref": "#/$defs/other"}],
                             "$defs": {"node": node, "other": other}});
        assert!(of(endless).is_err());
        let itself =
            json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]}}, "$ref": "#/$defs/a"});
        assert!(estimate(&itself, ["#/$defs/a".to_owned()].iter()).is_ok());
    }

    #[test]
    fn patterns_at_once_are_few() {
        let all = |n: usize| json!({"allOf": vec![json!({"type": "string", "pattern": "[A-Z]"}); n]});
        assert!(of(all(8)).is_ok() && of(all(20)).is_err());
    }
}
