//! What of a prompt the cache holds, and why not more: for the server's endpoint, and for who looks into a store without a
//! server.

use std::ops::Range;
use std::sync::Arc;

use kvist_base::{CHUNK, DomainId, TokenId};
use kvist_engine::{Carry, Prospect};
use kvist_store::{Nearest, Store};
use kvist_text::{ReplyTable, Tokenizer, splice};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::chat::{input, template};
use crate::api::completions::{self, parse_prompts};
use crate::api::error::ApiError;
use crate::api::json::{Fields, parse_object};
use crate::api::overflow::{Left, OnOverflow, Overflow, Text};
use crate::api::params::{max_tokens, most_tokens, on_overflow};
use crate::config::TextParts;

/// Tokens of text that are shown on each side of the place where two paths part.
const SHOWN: usize = 12;

/// A prompt as the server would compute it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What is left of it, where it did not fit.
    pub ids: Vec<TokenId>,
    /// Tokens of its oldest turns that are dropped.
    pub dropped: usize,
    /// What is left keeps its KV.
    pub carry: Option<Arc<Carry>>,
    /// How many of them are those of earlier replies.
    pub spliced: usize,
    /// Where the text of the system message is among them, about, if there is one.
    system: Option<Range<usize>>,
}

impl Asked {
    /// Reads a body of the chat endpoint (`messages`) or of the completions endpoint (`prompt`, one of them).
    ///
    /// # Errors
    /// What the endpoint would say of it.
    pub fn read(
        text: &TextParts,
        replies: &ReplyTable,
        overflow: Overflow,
        now: u64,
        body: &[u8],
    ) -> Result<Asked, String> {
        let map = parse_object(body).map_err(|e| e.message)?;
        Asked::parse(text, replies, overflow, now, &|_| Ok(()), Fields(&map)).map_err(|e| e.message)
    }

    /// As [`Asked::read`]; `check` may refuse a text that may not be cut by its length in bytes.
    pub(crate) fn parse(
        text: &TextParts,
        replies: &ReplyTable,
        mut overflow: Overflow,
        now: u64,
        check: &dyn Fn(usize) -> Result<(), ApiError>,
        fields: Fields,
    ) -> Result<Asked, ApiError> {
        if fields.get("messages").is_none() {
            let add_special = fields.boolean("add_special_tokens")?.unwrap_or(true);
            let ids = match parse_prompts(fields, 1)?.as_slice() {
                [completions::Prompt::Ids(ids)] => ids.to_vec(),
                [completions::Prompt::Text(prompt)] => {
                    check(prompt.len())?;
                    text.tokenizer.encode(prompt, add_special)?
                }
                _ => return Err(ApiError::field("prompt", "one prompt is needed")),
            };
            return Ok(Asked { ids, dropped: 0, carry: None, spliced: 0, system: None });
        }
        let (input, template) = (input(fields, now)?, template(text)?);
        overflow.on = on_overflow(fields, overflow.on)?;
        if overflow.on == OnOverflow::Error {
            check(template.render(&input)?.len())?;
        }
        let prompt = splice(&text.tokenizer, template, replies, overflow.owner.domain, &input)?;
        let system = system_text(input.messages).and_then(|system| {
            let start = prompt.text.find(system)?;
            Some(tokens_of(&text.tokenizer, &prompt.ids, start..start + system.len()))
        });
        let parts = Text { tokenizer: &text.tokenizer, template, input: &input };
        let left = overflow.left(parts, &prompt, max_tokens(most_tokens(fields)?));
        let Left { dropped, carry, ids } = left.unwrap_or(Left { dropped: 0, carry: None, ids: prompt.ids });
        Ok(Asked { ids, dropped, carry: carry.map(Arc::new), spliced: prompt.spliced, system })
    }
}

fn system_text(messages: &[Value]) -> Option<&str> {
    let first = messages.first().filter(|first| ["system", "developer"].map(Some).contains(&first["role"].as_str()))?;
    first["content"].as_str().map(str::trim).filter(|text| !text.is_empty())
}

/// The tokens that the bytes of a text lie in.
fn tokens_of(tokenizer: &Tokenizer, ids: &[TokenId], bytes: Range<usize>) -> Range<usize> {
    let ends = ids.iter().scan(0, |end, &id| {
        *end += tokenizer.token_bytes(id).len();
        Some(*end)
    });
    let ends: Vec<usize> = ends.collect();
    ends.partition_point(|&end| end <= bytes.start)..ends.partition_point(|&end| end < bytes.end) + 1
}

/// What would become of a prompt. Numbers are tokens unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    pub tokens: usize,
    /// Not counted: those of the oldest turns, which are dropped because all of them do not fit.
    #[serde(default)]
    pub dropped: usize,
    /// Of those found, the ones that are carried on from where they lie under the name of another path, such as the
    /// conversation's before the cut moved; null: what is left is no carried path.
    #[serde(default)]
    pub carried: Option<usize>,
    /// Of them, ids of earlier replies that are put in the place of their text.
    pub spliced: usize,
    /// Found in RAM; null: only a running server knows.
    pub ram: Option<usize>,
    /// Loaded from disk behind these.
    pub disk: usize,
    /// On disk behind those in RAM, loaded or not.
    pub on_disk: usize,
    pub computed: usize,
    /// How long the load takes by itself.
    pub load_ms: f64,
    /// How long the rest takes to compute; null: not known yet.
    pub compute_ms: Option<f64>,
    /// Both, one after the other, without a queue.
    pub ttft_ms: Option<f64>,
    pub why: Why,
}

/// Why no more of a prompt is found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Why {
    /// All is found; the last token is computed always.
    Complete,
    /// Only the last chunk is not, which is not whole or whose rows are run again.
    LastChunk { at: usize },
    /// The nearest path has other tokens from here on.
    Differs { at: usize, in_system_prompt: bool, prompt: Around, stored: Around },
    /// The nearest path ends here: what follows is new.
    Ends { at: usize },
    /// What was here was evicted, or could not be read.
    Evicted { at: usize },
    /// No path of this tenant, and no public one, begins like it.
    Nothing,
    /// As [`Why::Nothing`], but the store has files of other models, settings or keys.
    OtherFingerprint { stored: Vec<String> },
    /// The disk has what follows, but computing it takes less time than loading it.
    ComputedFaster { at: usize },
}

/// Text beside the place where two paths part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Around {
    pub before: String,
    pub after: String,
}

impl Around {
    fn new(tokenizer: &Tokenizer, ids: &[TokenId], at: usize) -> Around {
        let text = |range: Range<usize>| tokenizer.decode(&ids[range], false);
        Around { before: text(at.saturating_sub(SHOWN)..at), after: text(at..ids.len().min(at + SHOWN)) }
    }
}

/// The path of a domain, or a public one, that agrees longest with these tokens in a store.
pub fn nearest(store: &Store, domain: DomainId, asked: &Asked) -> Option<Nearest> {
    // A carried path sees nothing but its own namespace.
    let domains = asked.carry.as_ref().map_or([DomainId::PUBLIC, domain], |carry| [carry.space; 2]);
    let paths = domains.into_iter().filter_map(|domain| store.nearest(domain, &asked.ids));
    paths.max_by_key(|path| (path.common, std::cmp::Reverse(path.gone)))
}

impl Explained {
    /// `ram`: whether the prospect is that of a running server's tree. `stored`: see [`nearest`].
    pub fn new(tokenizer: &Tokenizer, asked: &Asked, prospect: &Prospect, ram: bool, stored: Option<&Nearest>) -> Self {
        let tokens = asked.ids.len();
        let cached = prospect.cached(tokens);
        let found = prospect.ram.min(cached);
        let load = if prospect.loads { prospect.load } else { 0 };
        let compute = prospect.compute;
        let ms = |micros: u64| micros as f64 / 1000.0;
        Explained {
            tokens,
            dropped: asked.dropped,
            carried: asked.carry.as_ref().map(|_| prospect.carried),
            spliced: asked.spliced,
            ram: ram.then_some(found),
            disk: cached - found,
            on_disk: prospect.tier,
            computed: tokens - cached,
            load_ms: ms(load),
            compute_ms: compute.map(ms),
            ttft_ms: compute.map(|compute| ms(load + compute)),
            why: why(tokenizer, asked, prospect, stored),
        }
    }
}

fn why(tokenizer: &Tokenizer, asked: &Asked, prospect: &Prospect, stored: Option<&Nearest>) -> Why {
    let ids = &asked.ids[..];
    let cached = prospect.cached(ids.len());
    let agree = |path: &[TokenId]| path.iter().zip(ids).take_while(|(a, b)| a == b).count();
    let none: &[TokenId] = &[];
    // What is carried on lies under other names.
    let carried = if prospect.carried > 0 { &ids[..cached / CHUNK * CHUNK] } else { none };
    let paths = [&prospect.nearest[..], stored.map_or(none, |stored| &stored.tokens), carried];
    let (at, path) =
        paths.map(|path| (agree(path), path)).into_iter().max_by_key(|(n, p)| (*n, p.len())).unwrap_or((0, none));
    if cached + 1 >= ids.len() {
        return Why::Complete;
    }
    if prospect.tier > 0 && !prospect.loads {
        return Why::ComputedFaster { at: prospect.ram };
    }
    if let Some(gone) = stored.and_then(|stored| stored.gone)
        && (cached / CHUNK * CHUNK..at).contains(&gone)
    {
        return Why::Evicted { at: gone };
    }
    let rest = ids.len() - cached;
    match () {
        () if at == 0 => Why::Nothing,
        () if rest <= CHUNK && (at == ids.len() || at == path.len()) => Why::LastChunk { at: cached },
        () if at < path.len() => Why::Differs {
            at,
            in_system_prompt: asked.system.as_ref().is_some_and(|system| system.contains(&at)),
            prompt: Around::new(tokenizer, ids, at),
            stored: Around::new(tokenizer, path, at),
        },
        () => Why::Ends { at },
    }
}
