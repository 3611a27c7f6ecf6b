//! Traces in the form of Mooncake (FAST'25), with the names that Dynamo gives to the same fields, and sessions.

use std::collections::HashMap;
use std::ops::Range;

use kvist_base::Micros;
use serde_json::Value;

/// Tokens of a block.
pub const BLOCK: u32 = 512;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub at: Micros,
    /// Tokens of the prompt, and tokens generated.
    pub prompt: u32,
    pub reply: u32,
    /// In [`Trace::blocks`].
    pub blocks: Range<usize>,
}

/// Requests in order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub rows: Vec<Row>,
    /// Blocks of all requests, numbered from 0 in order of appearance.
    pub blocks: Vec<u32>,
    /// Different blocks.
    pub different: usize,
}

impl Trace {
    /// Reads JSON lines: `timestamp` (ms), `input_length`, `output_length`, `hash_ids`, one for each block of 512 tokens of
    /// the prompt; or `created_time`, `input_tokens`, `output_tokens`. A row with a `session_id` may give its `delay`
    /// (`delay_ms`) in ms after the previous row of the session in place of a time. Other fields are not read.
    ///
    /// # Errors
    /// The line that is not understood, and why.
    pub fn parse(text: &str) -> Result<Trace, String> {
        let mut reader = Reader::default();
        let mut rows = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            rows.push(reader.row(line).map_err(|e| format!("line {}: {e}", i + 1))?);
        }
        // Sessions are written one after the other by some tools.
        rows.sort_by_key(|row| row.0);
        let mut trace = Trace::default();
        for (at, prompt, reply, ids) in rows {
            trace.push(at, prompt, reply, ids);
        }
        trace.number();
        Ok(trace)
    }

    pub(crate) fn push(&mut self, at: Micros, prompt: u32, reply: u32, blocks: Vec<u32>) {
        let start = self.blocks.len();
        self.blocks.extend(blocks);
        self.rows.push(Row { at, prompt, reply, blocks: start..self.blocks.len() });
    }

    /// Numbers blocks in order of appearance.
    pub(crate) fn number(&mut self) {
        let mut numbers = HashMap::new();
        for block in &mut self.blocks {
            let next = numbers.len() as u32;
            *block = *numbers.entry(*block).or_insert(next);
        }
        self.different = numbers.len();
    }

    pub fn blocks(&self, row: &Row) -> &[u32] {
        &self.blocks[row.blocks.clone()]
    }

    /// These requests alone.
    pub fn part(&self, rows: Range<usize>) -> Trace {
        let mut part = Trace::default();
        for row in &self.rows[rows] {
            part.push(row.at, row.prompt, row.reply, self.blocks(row).to_vec());
        }
        part.number();
        part
    }
}

#[derive(Default)]
struct Reader {
    ids: HashMap<String, u32>,
    sessions: HashMap<String, Micros>,
}

impl Reader {
    fn row(&mut self, line: &str) -> Result<(Micros, u32, u32, Vec<u32>), String> {
        let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let field = |names: &[&str]| names.iter().find_map(|&name| value.get(name).filter(|v| !v.is_null()));
        let number = |names: &[&str]| match field(names) {
            None => Ok(None),
            Some(v) => match v.as_f64() {
                Some(x) if (0.0..1e15).contains(&x) => Ok(Some(x)),
                _ => Err(format!("{}: {v} is not a number of 0 or more", names[0])),
            },
        };
        let tokens = |names: &[&str]| match number(names)? {
            Some(x) if x > f64::from(u32::MAX) => Err(format!("{}: {x} tokens", names[0])),
            x => Ok(x.map(|x| x as u32)),
        };
        let ids = field(&["hash_ids"]).and_then(Value::as_array).ok_or("hash_ids: a list is missing")?;
        let mut blocks = Vec::with_capacity(ids.len());
        for id in ids {
            if !(id.is_u64() || id.is_i64() || id.is_string()) {
                return Err(format!("hash_ids: {id} is neither a whole number nor a string"));
            }
            let next = self.ids.len() as u32;
            blocks.push(*self.ids.entry(id.to_string()).or_insert(next));
        }
        let prompt = tokens(&["input_length", "input_tokens"])?.unwrap_or(ids.len() as u32 * BLOCK);
        let reply = tokens(&["output_length", "output_tokens"])?.unwrap_or(0);
        let session = field(&["session_id"]).map(Value::to_string);
        let before = session.as_ref().and_then(|session| self.sessions.get(session).copied());
        let at = match (number(&["timestamp", "created_time"])?, number(&["delay", "delay_ms"])?, before) {
            (Some(ms), ..) => (ms * 1000.0) as Micros,
            (None, delay, Some(before)) => before + (delay.unwrap_or(0.0) * 1000.0) as Micros,
            (None, _, None) => {
                return Err("timestamp: it is missing, and there is no earlier row of the session".into());
            }
        };
        session.map(|session| self.sessions.insert(session, at));
        Ok((at, prompt, reply, blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_dialects_and_sessions() {
        let text = r#"{"timestamp": 2000, "input_length": 700, "output_length": 9, "hash_ids": [7, 9]}

            {"created_time": 1000.5, "input_tokens": 512, "output_tokens": 3, "hash_ids": ["7"], "session_id": "a"}
            {"session_id": "a", "delay_ms": 500, "hash_ids": [7, 8], "priority": 1}"#;
        let trace = Trace::parse(text).unwrap();
        let rows: Vec<_> = trace.rows.iter().map(|row| (row.at, row.prompt, row.reply, trace.blocks(row))).collect();
        let same: [(u64, u32, u32, &[u32]); 3] =
            [(1_000_500, 512, 3, &[0]), (1_500_500, 1024, 0, &[1, 2]), (2_000_000, 700, 9, &[1, 3])];
        assert_eq!(rows, same, "a string is another id than a number");
        assert_eq!(trace.different, 4);
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, wrong) in [
            ("\n{", "line 2: EOF"),
            (r#"{"timestamp": 0}"#, "line 1: hash_ids"),
            (r#"{"hash_ids": [1]}"#, "line 1: timestamp"),
            (r#"{"timestamp": -1, "hash_ids": [1]}"#, "timestamp: -1 is not"),
            (r#"{"timestamp": 1, "hash_ids": [1.5]}"#, "1.5 is neither"),
            (r#"{"timestamp": 1, "input_length": 1e12, "hash_ids": []}"#, "input_length"),
        ] {
            let error = Trace::parse(text).unwrap_err();
            assert!(error.contains(wrong), "{error:?} does not say {wrong:?}");
        }
    }
}
