//! Replies remember the ids they were generated with.
//!
//! A reply's text, tokenised anew in the next turn's prompt, need not give the ids that the model generated; then the
//! next turn would share only part of the reply's KV. So the generated ids are kept, and a later prompt in which the
//! same text stands after the same ids gets them back. A wrong entry cannot make a wrong prompt: ids are only put where
//! their bytes are the rendered text.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvist_base::{DomainId, TokenId};
use serde_json::Value;

use crate::json::{Style, dumps};
use crate::messages::{arguments_budget, normalise, read_arguments, text_of};
use crate::{ChatInput, ChatTemplate, TextError, Thinking, Tokenizer};

/// Entries looked at for one prompt, at most.
const MAX_CANDIDATES: usize = 4096;
/// Bookkeeping of an entry, about, in bytes.
const ENTRY_OVERHEAD: usize = 160;

/// A tokenised conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The rendered text.
    pub text: String,
    pub ids: Vec<TokenId>,
    /// How many of `ids` were taken from earlier replies instead of being tokenised.
    pub spliced: usize,
    /// Under which a reply to this prompt is remembered.
    pub key: PromptKey,
    /// Where a reply begins.
    pub thinking: Thinking,
}

/// A reply as it was generated and as it comes back in the next turn's messages.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// All of its text, with what marks calls and reasoning.
    pub text: &'a str,
    pub content: &'a str,
    /// Name and arguments (JSON) of each call.
    pub calls: &'a [(String, String)],
}

/// Where a reply begins: its domain, and what stands before it as text and as ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptKey {
    domain: DomainId,
    text_len: usize,
    text_hash: u64,
    ids_hash: u64,
}

/// Sizes of a [`ReplyTable`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplyStats {
    pub entries: usize,
    /// Bytes held, about.
    pub bytes: usize,
}

/// The ids of recent replies, per domain, least recently used out first.
pub struct ReplyTable {
    budget: usize,
    inner: Mutex<Inner>,
    listener: Option<Listener>,
}

/// Is told what is remembered: a domain, a key and a value of bytes, which [`ReplyTable::restore`] takes back.
pub type Listener = Box<dyn Fn(DomainId, &[u8], &[u8]) + Send + Sync>;

/// Ordered so that the entries for one text in one domain are neighbours, ascending by where the text stood.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    domain: DomainId,
    reply_hash: u64,
    text_len: usize,
    text_hash: u64,
    ids_hash: u64,
}

struct Entry {
    ids: Arc<[TokenId]>,
    used: u64,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<Key, Entry>,
    by_use: BTreeMap<u64, Key>,
    clock: u64,
    bytes: usize,
}

impl Key {
    /// All but the domain.
    fn bytes(&self) -> [u8; 32] {
        let words = [self.reply_hash, self.text_len as u64, self.text_hash, self.ids_hash];
        let mut out = [0; 32];
        out.chunks_exact_mut(8).zip(words).for_each(|(out, word)| out.copy_from_slice(&word.to_le_bytes()));
        out
    }

    fn of_bytes(domain: DomainId, bytes: &[u8]) -> Option<Key> {
        let (words, []) = bytes.as_chunks::<8>() else { return None };
        let &[reply_hash, text_len, text_hash, ids_hash] = words else { return None };
        let [reply_hash, text_len, text_hash, ids_hash] =
            [reply_hash, text_len, text_hash, ids_hash].map(u64::from_le_bytes);
        Some(Key { domain, reply_hash, text_len: text_len as usize, text_hash, ids_hash })
    }
}

impl ReplyTable {
    /// A table of about `budget` bytes; 0 remembers nothing.
    pub fn new(budget: usize) -> Self {
        ReplyTable { budget, inner: Mutex::default(), listener: None }
    }

    /// Remembers that `ids` were generated after the prompt of `key` and shown as `text` (they may go on beyond it: a
    /// token that ended the reply, or the rest of a stop string).
    pub fn remember(&self, tokenizer: &Tokenizer, key: PromptKey, text: &str, ids: &[TokenId]) {
        self.remember_reply(tokenizer, key, Reply { text, content: text, calls: &[] }, ids);
    }

    /// The same for a reply that is found again by its content and its calls. (Not by its reasoning, which clients may
    /// or may not send back.)
    pub fn remember_reply(&self, tokenizer: &Tokenizer, key: PromptKey, reply: Reply, ids: &[TokenId]) {
        let kept = matching(tokenizer, reply.text, ids).0;
        let bytes = kept * size_of::<TokenId>() + ENTRY_OVERHEAD;
        if kept == 0 || bytes > self.budget {
            return;
        }
        let PromptKey { domain, text_len, text_hash, ids_hash } = key;
        let key = Key { domain, reply_hash: reply_hash(reply), text_len, text_hash, ids_hash };
        if let Some(listener) = &self.listener {
            let ids: Vec<u8> = ids[..kept].iter().flat_map(|id| id.to_le_bytes()).collect();
            listener(domain, &key.bytes(), &ids);
        }
        self.insert(key, &ids[..kept]);
    }

    /// From now on `listener` is told what is remembered.
    pub fn tell(&mut self, listener: Listener) {
        self.listener = Some(listener);
    }

    /// Takes back what a [`Listener`] was told. False for what no listener was ever told. A wrong entry does no harm: ids
    /// are only put where their bytes are the rendered text.
    pub fn restore(&self, domain: DomainId, key: &[u8], value: &[u8]) -> bool {
        let (Some(key), (ids, [])) = (Key::of_bytes(domain, key), value.as_chunks()) else { return false };
        let ids: Vec<TokenId> = ids.iter().map(|id| TokenId::from_le_bytes(*id)).collect();
        let fits = !ids.is_empty() && ids.len() * size_of::<TokenId>() + ENTRY_OVERHEAD <= self.budget;
        if fits {
            self.insert(key, &ids);
        }
        fits
    }

    fn insert(&self, key: Key, ids: &[TokenId]) {
        let bytes = size_of_val(ids) + ENTRY_OVERHEAD;
        let mut inner = self.lock();
        inner.remove(&key);
        while inner.bytes + bytes > self.budget {
            let Some((_, oldest)) = inner.by_use.pop_first() else { break };
            inner.remove(&oldest);
        }
        inner.clock += 1;
        let used = inner.clock;
        inner.entries.insert(key, Entry { ids: ids.into(), used });
        inner.by_use.insert(used, key);
        inner.bytes += bytes;
    }

    /// Forgets everything of one domain.
    pub fn forget(&self, domain: DomainId) {
        let mut inner = self.lock();
        let keys: Vec<Key> = inner.entries.keys().filter(|k| k.domain == domain).copied().collect();
        keys.iter().for_each(|key| inner.remove(key));
    }

    pub fn stats(&self) -> ReplyStats {
        let inner = self.lock();
        ReplyStats { entries: inner.entries.len(), bytes: inner.bytes }
    }

    /// At most `limit` entries for a reply text in a domain that stood within `places`, in ascending order of place.
    fn candidates(
        &self,
        domain: DomainId,
        reply_hash: u64,
        places: RangeInclusive<usize>,
        limit: usize,
    ) -> Vec<(Key, Arc<[TokenId]>)> {
        let at = |text_len, hash| Key { domain, reply_hash, text_len, text_hash: hash, ids_hash: hash };
        let inner = self.lock();
        let range = inner.entries.range(at(*places.start(), 0)..=at(*places.end(), u64::MAX));
        range.take(limit).map(|(key, entry)| (*key, entry.ids.clone())).collect()
    }

    /// Marks entries as used, the first most recently: a later reply of a conversation is worth nothing without the
    /// earlier ones, so it goes first.
    fn touch(&self, keys: &[Key]) {
        let mut inner = self.lock();
        for key in keys.iter().rev() {
            inner.clock += 1;
            let now = inner.clock;
            let Some(entry) = inner.entries.get_mut(key) else { continue };
            let before = std::mem::replace(&mut entry.used, now);
            inner.by_use.remove(&before);
            inner.by_use.insert(now, *key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.ids.len() * size_of::<TokenId>() + ENTRY_OVERHEAD;
        }
    }
}

/// Renders a conversation and tokenises it, with the ids of remembered replies where the template shows them verbatim.
///
/// No special tokens are added: a template writes its own.
pub fn splice(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    table: &ReplyTable,
    domain: DomainId,
    input: &ChatInput,
) -> Result<Prompt, TextError> {
    let messages = normalise(input.messages)?;
    let text = template.render_normalised(&messages, input)?;
    let replies: Vec<u64> = messages.iter().filter(|m| m["role"] == "assistant").filter_map(message_hash).collect();
    let dialect = template.dialect();
    let thinking = match messages.last().and_then(text_of) {
        Some(content) if input.continue_final_message => dialect.thinking_within(content),
        _ => dialect.thinking_after(&text),
    };
    Ok(Prompt { thinking, ..splice_text(tokenizer, table, domain, text, &replies)? })
}

/// Tokenises a rendered `text`; `replies` are the hashes of the assistant's messages in it, in order.
fn splice_text(
    tokenizer: &Tokenizer,
    table: &ReplyTable,
    domain: DomainId,
    text: String,
    replies: &[u64],
) -> Result<Prompt, TextError> {
    let mut built = Built::default();
    let mut used = Vec::new();
    let mut budget = MAX_CANDIDATES;
    for &reply in replies {
        // Hash of the text before the candidates' places, which ascend.
        let (mut hash, mut hashed) = (built.text_hash, built.end);
        for (key, ids) in table.candidates(domain, reply, built.end..=text.len(), budget) {
            budget -= 1;
            let at = key.text_len;
            if !text.is_char_boundary(at) {
                continue;
            }
            let (mut count, mut length) = matching(tokenizer, &text[at..], &ids);
            while count > 0 && !text.is_char_boundary(at + length) {
                count -= 1;
                length -= tokenizer.bytes_of(ids[count]).len();
            }
            if count == 0 {
                continue;
            }
            hash.extend(text[hashed..at].bytes());
            hashed = at;
            if hash.0 != key.text_hash {
                continue;
            }
            let Some(between) = built.encode_rest(tokenizer, &text[..at])? else { continue };
            if built.ids_hash.with_ids(&between).0 != key.ids_hash {
                continue;
            }
            built.push(&between, &text[..at]);
            built.push(&ids[..count], &text[..at + length]);
            built.spliced += count;
            used.push(key);
            break;
        }
    }
    match built.encode_rest(tokenizer, &text)? {
        Some(rest) => built.push(&rest, &text),
        // What follows the last reply cannot be tokenised by itself; the whole always can.
        None => {
            used.clear();
            built = Built::default();
            built.push(&tokenizer.encode(&text, false)?, &text);
        }
    }
    table.touch(&used);
    let Built { ids, spliced, end: text_len, text_hash: Fnv(text_hash), ids_hash: Fnv(ids_hash) } = built;
    Ok(Prompt {
        text,
        ids,
        spliced,
        key: PromptKey { domain, text_len, text_hash, ids_hash },
        thinking: Thinking::NotBegun,
    })
}

/// The ids of a prefix of the text.
#[derive(Default)]
struct Built {
    ids: Vec<TokenId>,
    spliced: usize,
    /// Bytes of text covered.
    end: usize,
    text_hash: Fnv,
    ids_hash: Fnv,
}

impl Built {
    /// Ids of what `text` has beyond the covered prefix. `None` if that cannot be tokenised by itself.
    fn encode_rest(&self, tokenizer: &Tokenizer, text: &str) -> Result<Option<Vec<TokenId>>, TextError> {
        if self.end == 0 { tokenizer.encode(text, false).map(Some) } else { tokenizer.encode_inside(&text[self.end..]) }
    }

    /// Adds the ids of what `text` has beyond the covered prefix.
    fn push(&mut self, ids: &[TokenId], text: &str) {
        self.ids.extend_from_slice(ids);
        self.ids_hash = self.ids_hash.with_ids(ids);
        self.text_hash.extend(text[self.end..].bytes());
        self.end = text.len();
    }
}

/// How many of `ids` spell a prefix of `text`, and its length in bytes.
fn matching(tokenizer: &Tokenizer, text: &str, ids: &[TokenId]) -> (usize, usize) {
    let mut length = 0;
    for (i, &id) in ids.iter().enumerate() {
        let bytes = tokenizer.bytes_of(id);
        if bytes.is_empty() || !text.as_bytes()[length..].starts_with(bytes) {
            return (i, length);
        }
        length += bytes.len();
    }
    (ids.len(), length)
}

/// Templates and clients may trim a reply, so it is looked up without the space around it.
fn reply_hash(reply: Reply) -> u64 {
    let mut hash = Fnv::default();
    hash.extend(reply.content.trim().bytes());
    for (name, arguments) in reply.calls {
        let object = read_arguments(arguments, &arguments_budget());
        hash.extend_call(name, &object.unwrap_or_else(|| arguments.as_str().into()));
    }
    hash.0
}

/// The same of a normalised message; `None` for one without content and calls.
fn message_hash(message: &Value) -> Option<u64> {
    let mut hash = Fnv::default();
    let content = text_of(message).unwrap_or_default();
    hash.extend(content.trim().bytes());
    let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
    for call in calls {
        let function = call.get("function").unwrap_or(call);
        hash.extend_call(function["name"].as_str().unwrap_or_default(), &function["arguments"]);
    }
    (!content.is_empty() || !calls.is_empty()).then_some(hash.0)
}

/// FNV-1a, 64 bits: a prefix's hash is a state of the whole's. A collision costs a hit and nothing else.
#[derive(Clone, Copy)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn extend(&mut self, bytes: impl IntoIterator<Item = u8>) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// `arguments` as a value, since clients may write them anew. No text holds the byte between the parts.
    fn extend_call(&mut self, name: &str, arguments: &Value) {
        let arguments = dumps(arguments, &Style::one_line());
        for part in [name, &arguments] {
            self.extend([0xff].into_iter().chain(part.bytes()));
        }
    }

    fn with_ids(mut self, ids: &[TokenId]) -> Self {
        self.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        self
    }
}
