use kvist_base::{Allowed, Constraint, TokenId};
use llguidance::Matcher;

/// A compiled grammar and how far a text has got in it.
pub struct Grammar {
    matcher: Matcher,
    /// Stands for the end of the text in the matcher's masks; no token of the model.
    end: TokenId,
    next: Option<Result<Next, String>>,
}

#[derive(Clone)]
struct Next {
    tokens: Vec<u32>,
    end: bool,
}

impl Grammar {
    pub(super) fn new(matcher: Matcher, end: TokenId) -> Self {
        Grammar { matcher, end, next: None }
    }

    /// What of the schema is not enforced, in words.
    pub(super) fn warnings(&mut self) -> Vec<String> {
        self.matcher.grammar_warnings()
    }

    fn work_out(&mut self) -> Result<Next, String> {
        if self.is_complete() {
            return Ok(Next { tokens: Vec::new(), end: true });
        }
        let mask = self.matcher.compute_mask().map_err(|e| told(&e))?;
        let mut tokens = mask.as_slice().to_vec();
        let (word, bit) = (self.end as usize / 32, 1 << (self.end % 32));
        let end = tokens[word] & bit != 0;
        tokens[word] &= !bit;
        Ok(Next { tokens, end })
    }
}

impl Constraint for Grammar {
    fn prepare(&mut self) {
        if self.next.is_none() {
            self.next = Some(self.work_out());
        }
    }

    fn allowed(&mut self) -> Result<Allowed<'_>, String> {
        self.prepare();
        match &self.next {
            Some(Ok(next)) => Ok(Allowed { tokens: &next.tokens, end: next.end }),
            Some(Err(message)) => Err(message.clone()),
            None => Err("nothing is known of what may follow".into()),
        }
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        self.next = None;
        self.matcher.consume_token(token).map_err(|e| told(&e))
    }

    fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    fn fork(&self) -> Box<dyn Constraint> {
        // With its own lexer states: forks may be worked on at once, and their limits are their own.
        Box::new(Grammar { matcher: self.matcher.deep_clone(), end: self.end, next: self.next.clone() })
    }
}

/// What clients meet often, without the names of a library's switches.
fn in_our_words(text: &str) -> Option<String> {
    if let Some(keys) = text.strip_prefix("Unimplemented keys: ") {
        let keys = keys.trim_matches(['[', ']']).replace('"', "`");
        return Some(format!("{keys} cannot be enforced: leave it out, or send `strict: false` to have it ignored"));
    }
    if text.starts_with("oneOf constraints are not supported") {
        let hint = "let each require a property whose `const` differs, use `anyOf`, or send `strict: false`";
        return Some(format!("`oneOf`: its branches may overlap, which cannot be ruled out while generating: {hint}"));
    }
    match text {
        "NoExtensionBias" => Some("no text can match".into()),
        "ParserTooComplex" => Some("it is too ambiguous or too large".into()),
        "LexerTooComplex" => Some("its expressions are too complex".into()),
        _ => None,
    }
}

/// The first lines of an error, without the parser's internals.
pub(super) fn told(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let text = text.split("\n<").next().unwrap_or_default().trim();
    if let Some(told) = in_our_words(text) {
        return told;
    }
    let mut short: String = text.chars().take(600).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}
