/// What one piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Text that can be given out: no part of it belongs to a stop string, now or later.
    pub text: String,
    /// The stop string that ended the stream, as an index into the given list.
    pub stop: Option<usize>,
}

/// Looks for stop strings in a stream of text and holds back what may turn out to be the start of one.
///
/// The stream ends where the first of them is complete; of several that are complete at the same place the longest
/// counts, then the first given. So the result does not depend on how the text was cut into pieces. An empty stop
/// string never matches.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<Pattern>,
    /// The stop string itself is given out, too.
    include: bool,
    held: String,
    stopped: bool,
}

/// A stop string with its Knuth-Morris-Pratt table, and how much of it the stream ends with.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `border[i]`: length of the longest proper prefix of `bytes[..=i]` that is also its suffix.
    border: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut border = vec![0; bytes.len()];
        let mut k = 0;
        for i in 1..bytes.len() {
            while k > 0 && bytes[i] != bytes[k] {
                k = border[k - 1];
            }
            k += usize::from(bytes[i] == bytes[k]);
            border[i] = k;
        }
        Pattern { bytes, border, matched: 0 }
    }

    /// Whether the pattern is complete with this byte.
    fn push(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.border[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }

    /// Goes on behind a complete match as if it had been none.
    fn pass(&mut self) {
        self.matched = self.border[self.matched - 1];
    }
}

impl StopMatcher {
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops = stops.iter().map(|s| Pattern::new(s.as_ref())).collect();
        StopMatcher { stops, include: false, held: String::new(), stopped: false }
    }

    /// The same, but the text ends with the stop string instead of before it.
    pub fn including(self, include: bool) -> Self {
        StopMatcher { include, ..self }
    }

    /// Takes a piece in which no stop string may end: what completes in it does not count, what completes after it
    /// does. Returns the text that can be given out.
    pub fn skip(&mut self, delta: &str) -> String {
        self.held.push_str(delta);
        for byte in delta.bytes() {
            self.stops.iter_mut().filter(|s| !s.bytes.is_empty()).for_each(|s| {
                if s.push(byte) {
                    s.pass();
                }
            });
        }
        self.certain()
    }

    /// Takes the next piece. After a stop everything else is ignored.
    pub fn push(&mut self, delta: &str) -> Stopped {
        if self.stopped {
            return Stopped::default();
        }
        let before = self.held.len();
        self.held.push_str(delta);
        for (i, byte) in delta.bytes().enumerate() {
            let mut found: Option<(usize, usize)> = None;
            for (index, stop) in self.stops.iter_mut().enumerate().filter(|(_, s)| !s.bytes.is_empty()) {
                if stop.push(byte) && found.is_none_or(|(length, _)| stop.bytes.len() > length) {
                    found = Some((stop.bytes.len(), index));
                }
            }
            if let Some((length, index)) = found {
                self.stopped = true;
                self.held.truncate(before + i + 1 - if self.include { 0 } else { length });
                return Stopped { text: std::mem::take(&mut self.held), stop: Some(index) };
            }
        }
        Stopped { text: self.certain(), stop: None }
    }

    /// Takes all of `held` but what may be the start of a stop string.
    fn certain(&mut self) -> String {
        // A partial match starts with the first byte of a stop string, so the cut is at a character.
        let keep = self.stops.iter().map(|s| s.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text still held back when the stream ends otherwise.
    pub fn finish(&mut self) -> String {
        self.stopped = true;
        std::mem::take(&mut self.held)
    }
}
