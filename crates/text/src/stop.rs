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
}

impl StopMatcher {
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops = stops.iter().map(|s| Pattern::new(s.as_ref())).collect();
        StopMatcher { stops, held: String::new(), stopped: false }
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
                self.held.truncate(before + i + 1 - length);
                return Stopped { text: std::mem::take(&mut self.held), stop: Some(index) };
            }
        }
        // A partial match starts with the first byte of a stop string, so the cut is at a character.
        let keep = self.stops.iter().map(|s| s.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Stopped { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// The text still held back when the stream ends otherwise.
    pub fn finish(&mut self) -> String {
        self.stopped = true;
        std::mem::take(&mut self.held)
    }
}
