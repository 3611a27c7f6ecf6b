//! Inputs from a corpus, broken in ways that get past the first check.

use kvist_sim::Random;
use serde_json::{Map, Value};

/// How a target's inputs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Json,
    /// A length of 8 bytes, so much JSON, data.
    Safetensors,
    /// A line of its own, JSON.
    Request,
    Bytes,
}

/// Numbers at which sizes and counts go wrong.
const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    3,
    7,
    8,
    63,
    64,
    255,
    256,
    65_535,
    65_536,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 53,
    (1 << 63) - 1,
    u64::MAX,
];

const STRINGS: [&str; 14] = [
    "",
    " ",
    "\0",
    "\u{feff}",
    "é\u{301}",
    "👩‍👩‍👧",
    "\u{10ffff}",
    "../../etc/passwd",
    "{{ 1 }}",
    "{% for x in y %}",
    "<s>",
    "(a+)+$",
    "[^\\s\\S]{1000}",
    "null",
];

/// An input of `kind`, made of the corpus by a few mutations.
pub fn input(corpus: &[Vec<u8>], kind: Kind, rng: &mut Random) -> Vec<u8> {
    let mut bytes = corpus[rng.below(corpus.len())].clone();
    if kind != Kind::Bytes && rng.chance(75) {
        structure(&mut bytes, corpus, kind, rng);
        if rng.chance(85) {
            return bytes;
        }
    }
    for _ in 0..1 + rng.below(6) {
        raw(&mut bytes, corpus, rng);
    }
    bytes
}

/// Mutates the JSON inside, so that what comes out still parses.
fn structure(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], kind: Kind, rng: &mut Random) {
    let head = match kind {
        Kind::Safetensors => 8,
        Kind::Request => bytes.iter().position(|&b| b == b'\n').map_or(0, |line| line + 1),
        Kind::Json | Kind::Bytes => 0,
    };
    let end = match kind {
        Kind::Safetensors => match bytes.first_chunk::<8>() {
            Some(&length) => 8 + (u64::from_le_bytes(length) as usize).min(bytes.len() - 8),
            None => return,
        },
        _ => bytes.len(),
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(&bytes[head..end]) else { return };
    let other = serde_json::from_slice::<Value>(&corpus[rng.below(corpus.len())]).ok();
    for _ in 0..1 + rng.below(4) {
        let mut nodes = count(&value);
        nodes = rng.below(nodes.max(1));
        node(&mut value, &mut nodes, &mut |v| change(v, other.as_ref(), rng));
    }
    let json = value.to_string().into_bytes();
    let data = bytes.split_off(end);
    bytes.truncate(if kind == Kind::Request { head } else { 0 });
    if kind == Kind::Safetensors {
        bytes.extend((json.len() as u64).to_le_bytes());
    }
    bytes.extend(json);
    bytes.extend(data);
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

/// Calls `f` on the `at`-th node.
fn node(value: &mut Value, at: &mut usize, f: &mut dyn FnMut(&mut Value)) -> bool {
    if *at == 0 {
        f(value);
        return true;
    }
    *at -= 1;
    match value {
        Value::Array(list) => list.iter_mut().any(|v| node(v, at, f)),
        Value::Object(map) => map.values_mut().any(|v| node(v, at, f)),
        _ => false,
    }
}

fn change(value: &mut Value, other: Option<&Value>, rng: &mut Random) {
    match (rng.below(10), &mut *value) {
        (0..=3, Value::Object(map)) if !map.is_empty() => {
            let name = map.keys().nth(rng.below(map.len())).cloned().unwrap_or_default();
            match rng.below(4) {
                0 => drop(map.remove(&name)),
                1 => {
                    let v = map[&name].clone();
                    map.insert(STRINGS[rng.below(STRINGS.len())].into(), v);
                }
                2 => {
                    map.insert(name, scalar(rng));
                }
                _ => {
                    let from = map.values().nth(rng.below(map.len())).cloned().unwrap_or_default();
                    map.insert(name, from);
                }
            }
        }
        (0..=3, Value::Array(list)) if !list.is_empty() => {
            let at = rng.below(list.len());
            match rng.below(4) {
                0 => drop(list.remove(at)),
                1 => list.insert(at, scalar(rng)),
                2 => list[at] = scalar(rng),
                _ => {
                    let copies = 1 + rng.below(200);
                    let item = list[at].clone();
                    list.splice(at..at, std::iter::repeat_n(item, copies));
                }
            }
        }
        (0..=3, Value::Number(n)) => {
            let n = n.as_f64().unwrap_or(0.0);
            *value = match rng.below(6) {
                0 => (n + 1.0).into(),
                1 => (n - 1.0).into(),
                2 => (-n).into(),
                3 => (n * 2.0).into(),
                4 => (n / 2.0).into(),
                _ => (n * 1e9).into(),
            };
            // Sizes are integers.
            if let Some(whole) = value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15) {
                *value = (whole as i64).into();
            }
        }
        (0..=3, Value::String(text)) => {
            let mut bytes = std::mem::take(text).into_bytes();
            raw(&mut bytes, &[], rng);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        (4, _) => {
            let inner = value.take();
            *value = if rng.chance(50) {
                Value::Array(vec![inner])
            } else {
                Map::from_iter([("type".into(), inner)]).into()
            };
        }
        (5, _) => {
            let depth = [5, 60, 120, 126][rng.below(4)];
            *value = (0..depth).fold(value.take(), |v, _| Value::Array(vec![v]));
        }
        (6, _) if other.is_some() => {
            let other = other.expect("just checked");
            let mut at = rng.below(count(other));
            let mut copy = other.clone();
            node(&mut copy, &mut at, &mut |v| *value = v.take());
        }
        (7, Value::Object(map)) => drop(map.insert(STRINGS[rng.below(STRINGS.len())].into(), scalar(rng))),
        _ => *value = scalar(rng),
    }
}

fn scalar(rng: &mut Random) -> Value {
    match rng.below(10) {
        0 => Value::Null,
        1 => Value::Bool(rng.chance(50)),
        2..=4 => NUMBERS[rng.below(NUMBERS.len())].into(),
        5 => (-(NUMBERS[rng.below(NUMBERS.len())] as i64 >> 1)).into(),
        6 => [0.5, -0.5, 1e-300, 1e300, f64::MIN_POSITIVE, 3e38][rng.below(6)].into(),
        7 => STRINGS[rng.below(STRINGS.len())].repeat(1 << rng.below(12)).into(),
        8 => Value::Array(Vec::new()),
        _ => Value::Object(Map::new()),
    }
}

fn raw(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut Random) {
    let n = bytes.len();
    let at = rng.below(n.max(1)).min(n);
    let some = |rng: &mut Random, most: usize| 1 + rng.below(most.max(1));
    match rng.below(11) {
        0 if n > 0 => bytes[at] ^= 1 << rng.below(8),
        1 if n > 0 => bytes[at] = rng.below(256) as u8,
        2 => bytes.truncate(at),
        3 => {
            let end = n.min(at + some(rng, 64));
            drop(bytes.drain(at..end));
        }
        4 => {
            let new: Vec<u8> = (0..some(rng, 16)).map(|_| rng.below(256) as u8).collect();
            drop(bytes.splice(at..at, new));
        }
        5 => {
            let copy = bytes[at..n.min(at + some(rng, 256))].repeat(some(rng, 8));
            drop(bytes.splice(at..at, copy));
        }
        6 => {
            let number = NUMBERS[rng.below(NUMBERS.len())].to_le_bytes();
            let width = [1, 2, 4, 8][rng.below(4)];
            for (b, v) in bytes[at..].iter_mut().zip(&number[..width]) {
                *b = *v;
            }
        }
        7 => {
            let number = NUMBERS[rng.below(NUMBERS.len())].to_string();
            drop(bytes.splice(at..n.min(at + 1), number.into_bytes()));
        }
        8 if !corpus.is_empty() => {
            let other = &corpus[rng.below(corpus.len())];
            let from = rng.below(other.len().max(1)).min(other.len());
            let piece = &other[from..other.len().min(from + some(rng, 512))];
            drop(bytes.splice(at..at, piece.iter().copied()));
        }
        9 => drop(bytes.splice(at..at, STRINGS[rng.below(STRINGS.len())].bytes())),
        _ => {
            // One of the characters that formats are made of.
            let c = b"{}[]\",:\\%()|*+?.<>\n\0"[rng.below(20)];
            drop(bytes.splice(at..at, std::iter::repeat_n(c, some(rng, 4))));
        }
    }
}
