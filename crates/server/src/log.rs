use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Takes one log line, without its line end. Called from any thread.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// Lines on standard error.
pub fn stderr_log() -> Log {
    Arc::new(|line| {
        use std::io::Write;
        // Nobody can be told when even standard error is closed.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    })
}

/// One request's line. It is written when the last holder lets go: for a stream, when the body ends or its reader is
/// gone.
pub struct RequestLine {
    log: Log,
    /// Written only if the status is an error.
    quiet: bool,
    head: String,
    start: Instant,
    fields: Mutex<Vec<(&'static str, String)>>,
}

impl RequestLine {
    pub fn new(log: Log, quiet: bool, head: String) -> Arc<Self> {
        Arc::new(RequestLine { log, quiet, head, start: Instant::now(), fields: Mutex::default() })
    }

    /// Sets a field; values are numbers, ids and fixed words, never text of the client.
    pub fn set(&self, name: &'static str, value: impl ToString) {
        let mut fields = self.fields.lock().unwrap_or_else(PoisonError::into_inner);
        let value = value.to_string();
        match fields.iter_mut().find(|(n, _)| *n == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
    }
}

impl Drop for RequestLine {
    fn drop(&mut self) {
        let fields = self.fields.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Without a status the client left before there was one.
        let status = fields.iter().find(|(n, _)| *n == "status");
        if self.quiet && status.is_some_and(|(_, s)| s.starts_with('2')) {
            return;
        }
        // An answer that began well may still have ended in an error.
        let failed = fields.iter().any(|(n, v)| matches!(*n, "status" | "error") && v.starts_with('5'));
        let mut line = if failed { "error: ".to_owned() } else { String::new() };
        line.push_str(&self.head);
        for (name, value) in fields {
            line.push_str(&format!(" {name}={value}"));
        }
        (self.log)(&format!("{line} ms={}", self.start.elapsed().as_millis()));
    }
}
